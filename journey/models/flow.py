"""Transformers that are told captions and were trained by flow matching; a family says what is its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.models.latent import LatentDenoiser
from journey.models.schedulers import FlowMatching
from journey.models.text import TextDenoiser


class Flow(TextDenoiser, LatentDenoiser):
    """The transformer of a text-to-image pipeline that predicts the velocity ``noise - x0``.

    A family gives ``encode_prompt`` (through ``padded`` where texts have different lengths), ``velocity``, its
    ``default_guidance`` and what of the rest is its own: ``combine``, ``mu``, and in ``LatentDenoiser`` the sizes and
    the scale of the latents. Nothing of it knows the sampler or the gradients.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode, the scheduler is none of flow matching, or the network embeds guidance
            that the family does not give.
    """

    patch_size = 2
    gives_guidance = False
    embeddings: tuple[str, ...] = ("encoder_hidden_states", "encoder_hidden_states_mask")
    encoders: tuple[str, ...] = ("text_encoder",)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, self.network_of(pipeline), latents=latents, seed=seed)
        check_flow(self, pipeline)
        if getattr(self.config, "guidance_embeds", False) and not self.gives_guidance:
            raise ValueError(
                f"transformer of a {type(pipeline).__name__} must not embed guidance, got guidance_embeds=True, as "
                "distilled networks have it, whose training loss is another"
            )

    def network_of(self, pipeline: Any) -> nn.Module:
        """Return the network of the pipeline that is measured."""
        network: nn.Module = pipeline.transformer
        return network

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the pipeline makes by default."""
        size = getattr(self.pipeline, "default_sample_size", None)
        return (int(self.config.sample_size if size is None else size),) * 2

    @abstractmethod
    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network: packing, positions, its own time and its sign belong here.

        Args:
            x_t: Noised latents in the network's dtype. [num_rows, C, H, W]
            sigma: Noise levels in [0, 1], float32. [num_rows]
            told: One row per latent, on the network's device, without padding that every row has.

        Returns:
            The velocity ``noise - x0``. [num_rows, C, H, W]
        """

    def mu(self, scheduler: Any, shape: tuple[int, ...], num_inference_steps: int) -> float:
        """Return the shift by the resolution that the pipeline's sampler is given: linear in the image's tokens."""
        # Here, because it imports the text encoders' library.
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        absent = [name for name in limits if scheduler.config.get(name) is None]
        if absent:
            raise ValueError(
                f"scheduler must tell {', '.join(absent)}, by which this pipeline shifts its steps, got "
                f"{type(scheduler).__name__} without; keep the one that the pipeline came with"
            )
        tokens = (shape[1] // self.patch_size) * (shape[2] // self.patch_size)
        return float(calculate_shift(tokens, *(scheduler.config[name] for name in limits)))

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Use the pipeline's sigmas and their shift by the resolution, see ``Denoiser.set_timesteps``."""
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=self.mu(scheduler, shape, num_inference_steps))

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        told = self._told(condition).trimmed()
        return self.velocity(x_t, times / self.num_train_timesteps, told)


def check_flow(denoiser: Denoiser, pipeline: Any) -> None:
    """Refuse a scheduler under which a network that was trained by flow matching would be taken for another.

    Raises:
        ValueError: If the pipeline's is one.
    """
    if denoiser.prediction_type != FlowMatching.prediction_type:
        raise ValueError(
            f"scheduler of a {type(pipeline).__name__} must be one of flow matching, as its network was trained: a "
            'FlowMatchEulerDiscreteScheduler, or a solver with prediction_type="flow_prediction", got '
            f"{type(pipeline.scheduler).__name__} with {denoiser.prediction_type}"
        )


def padded(rows: Sequence[Tensor]) -> Condition:
    """Return ``encoder_hidden_states`` and their mask from states of texts of different lengths.

    Args:
        rows: Each [num_tokens, channels]

    Returns:
        One row per text.
    """
    present = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
    return Condition(
        {
            "encoder_hidden_states": pad_sequence(list(rows), batch_first=True),
            "encoder_hidden_states_mask": pad_sequence(present, batch_first=True),
        }
    )


def embed_guidance(condition: Condition, guidance_scale: float) -> Condition:
    """Return a condition that tells the network the guidance as a number, ``guidance`` [num_rows]."""
    states = condition["encoder_hidden_states"]
    guidance = torch.full((len(condition),), float(guidance_scale), device=states.device, dtype=torch.float32)
    return Condition({**condition.tensors, "guidance": guidance})


def told_guidance(told: Condition, guidance_scale: float) -> Tensor:
    """Return the guidance that rows tell, or one for rows that tell none, as a distilled network's. [num_rows]"""
    return (told if "guidance" in told.tensors else embed_guidance(told, guidance_scale))["guidance"]


def pack(latents: Tensor) -> Tensor:
    """Return squares of 2x2 latents as tokens, row by row, channels slowest. [B, C, H, W] -> [B, H W / 4, 4 C]"""
    rows, channels, height, width = latents.shape
    squares = latents.view(rows, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(rows, height * width // 4, channels * 4)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the latents of a given shape that ``pack`` made tokens of. [B, H W / 4, 4 C] -> [B, C, H, W]"""
    rows, channels, height, width = shape
    squares = tokens.view(rows, height // 2, width // 2, channels, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)
