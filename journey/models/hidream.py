"""HiDream: a multimodal transformer with experts on VAE latents, told the states of T5 and of every layer of Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow


class HiDream(Flow):
    """The transformer of a ``HiDreamImagePipeline``. Its output is ``x0 - noise``, and it sees the padding of texts.

    In eval mode, as in diffusers' LoRA script, no gradient passes through the routed experts.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode, or routed experts are trainable.
    """

    default_guidance = 5.0
    embeddings = ("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_projections")
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, latents=latents, seed=seed)
        self.patch_size = int(self.config.patch_size)
        routed = [name for name, p in self.network.named_parameters() if p.requires_grad and ".experts." in name]
        if routed:
            raise ValueError(
                f"routed experts of {type(self.network).__name__} must not be trainable, for no gradient passes "
                f"through them in eval mode, got {routed[0]}; call requires_grad_(False) on all with '.experts.' in "
                "their names"
            )

    def shape_of(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of the latents of an image, see ``Denoiser.shape_of``; what is no square has a limit."""
        network: Any = self.network
        shape, most = super().shape_of(size), int(network.max_seq)
        tokens = shape[1] * shape[2] // self.patch_size**2
        if shape[1] != shape[2] and tokens > most:
            raise ValueError(
                f"size must give at most {most} tokens of {self.patch_size * self.scale_factor} pixels in each "
                f"direction where it is no square, as the model takes, got {size} with {tokens}"
            )
        return shape

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return the states of T5 [num_rows, tokens, channels] and Llama [num_rows, layers, ...], and the pooled."""
        t5, _, llama, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=self.text_device
        )
        states = {"encoder_hidden_states_t5": t5, "encoder_hidden_states_llama3": llama.transpose(0, 1).contiguous()}
        return Condition({**states, "pooled_projections": pooled})

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Use the scheduler's own sigmas, shifted for the longest image, see ``Denoiser.set_timesteps``."""
        # Here, because it imports the text encoders' library.
        from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

        shifts = scheduler.config.get("use_dynamic_shifting", False)
        shift = {"mu": calculate_shift(self.network.max_seq)} if shifts else {}
        scheduler.set_timesteps(num_inference_steps, **shift)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network, see ``Flow.velocity``."""
        found: Tensor = self.network(
            hidden_states=x_t,
            timesteps=sigma * self.num_train_timesteps,
            encoder_hidden_states_t5=told["encoder_hidden_states_t5"].to(self.dtype),
            encoder_hidden_states_llama3=told["encoder_hidden_states_llama3"].to(self.dtype).transpose(0, 1),
            pooled_embeds=told["pooled_projections"].to(self.dtype),
        ).sample
        return -found
