"""Stable Audio: a transformer on latents of sound, told the states of T5 and where the sound begins and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from journey.data.items import check_finite
from journey.data.numbers import as_tensor
from journey.models.condition import Condition
from journey.models.latent import LatentDenoiser
from journey.models.text import TextDenoiser

_SCHEDULER = "CosineDPMSolverMultistepScheduler"


class StableAudio(TextDenoiser, LatentDenoiser):
    """The transformer of a ``StableAudioPipeline``, on latents [C, L] of sounds [C, T].

    Sounds fill the model's length, those that are shorter with silence behind them; an item says in
    ``seconds_total`` where its sound ends, by default at the length's end, as prompts do. Scores are of the whole.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode.

    Reference:
        Evans et al., "Stable Audio Open", ICASSP 2025.
    """

    default_guidance = 7.0
    autoencoders = ("AutoencoderOobleck",)
    embeddings = ("encoder_hidden_states", "global_hidden_states")
    encoders = ("text_encoder",)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.transformer, latents=latents, seed=seed)
        kind = type(pipeline.scheduler).__name__
        if kind != _SCHEDULER:  # the network is told angles, which others do not have
            raise ValueError(f"scheduler of a {type(pipeline).__name__} must be a {_SCHEDULER}, got a {kind}")
        self._hop = int(pipeline.vae.hop_length)

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """The parts that run once per sound: the autoencoder, the text encoder and what projects its states."""
        projection = getattr(self.pipeline, "projection_model", None)
        return super().frozen | ({} if projection is None else {"projection_model": projection})

    @property
    def in_channels(self) -> int:
        """Channels of a sound."""
        return int(self.pipeline.vae.config.audio_channels)

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return int(self.pipeline.vae.config.sampling_rate)

    @property
    def sample_size(self) -> tuple[int, ...]:
        """Samples of a sound."""
        return (int(self.config.sample_size) * self._hop,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents of a sound. [C, L]"""
        return (int(self.config.in_channels), int(self.config.sample_size))

    def shape_of(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of the latents of a sound, which has the model's length, see ``Denoiser.shape_of``."""
        if size is not None and tuple(size) != self.sample_size:
            raise ValueError(f"size must be the {self.sample_size[0]} samples that the model makes, got {tuple(size)}")
        return self.shape

    def check_image(self, image: Tensor, what: str) -> None:
        """Refuse a sound that does not fit the model or is not finite.

        Args:
            image: One sound. [C, T]
            what: Names the sound in the error.

        Raises:
            ValueError: If the number of channels or the length is wrong, or a sample is NaN or infinite.
        """
        expected = (self.in_channels, *self.sample_size)
        if tuple(image.shape) != expected:
            raise ValueError(
                f"{what} must be a sound [C, T] = {list(expected)} at {self.sampling_rate} samples a second, got "
                f"{list(image.shape)}; cut it, or put silence behind it and tell its seconds_total"
            )
        check_finite(image, what)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return what the network is told of sounds of the model's length, one row for each prompt."""
        return self._encode(prompts, [self._seconds] * len(prompts))

    def null_condition(self) -> Condition:
        """Return zeros in place of all states but those of the length, as the pipeline guides. One row."""
        told = self.encode_prompt([""]).tensors
        return Condition({**told, "encoder_hidden_states": torch.zeros_like(told["encoder_hidden_states"])})

    def encode_conditions(self, items: list[Any], names: list[str]) -> tuple[Condition, list[int]]:
        """Return one row per caption, with the length that its item tells, and how many captions each item has."""
        told, counts = super().encode_conditions(items, names)
        if self._dropped:
            return told, counts
        seconds = [self._end(item, name) for item, name in zip(items, names, strict=True)]
        ends = [end for end, count in zip(seconds, counts, strict=True) for _ in range(count)]
        return self._with_lengths(told["encoder_hidden_states"][:, :-2], ends), counts

    def describe(self, item: Any, name: str) -> Any:
        """Return captions and length of an item, by which items are told apart."""
        return [super().describe(item, name), None if self._dropped else self._end(item, name)]

    @property
    def _seconds(self) -> float:
        return self.sample_size[0] / self.sampling_rate

    def _end(self, item: Any, name: str) -> float:
        """Where the sound of an item ends, in seconds."""
        found = item.get("seconds_total", self._seconds) if isinstance(item, dict) else self._seconds
        numbers = int | float | np.number | np.ndarray | Tensor
        single = as_tensor(found) if isinstance(found, numbers) and not isinstance(found, bool) else None
        if single is None or single.numel() != 1 or not 0 < float(single) <= self._seconds:
            raise ValueError(
                f"seconds_total of {name} must be above 0 and at most {self._seconds:g}, got {found!r}: it is the "
                "number of seconds after which the sound ends, and left out for one of the model's length"
            )
        return float(single)

    def _encode(self, prompts: list[str], ends: list[float]) -> Condition:
        return self._with_lengths(self.pipeline.encode_prompt(list(prompts), self.text_device, False), ends)

    @torch.no_grad()
    def _with_lengths(self, states: Tensor, ends: list[float]) -> Condition:
        """Token states, with those of begin and end behind them, and the latter alone."""
        begin, end = self.pipeline.encode_duration([0.0] * len(ends), ends, states.device, False, len(ends))
        return Condition(
            {
                "encoder_hidden_states": torch.cat([states, begin, end], 1),
                "global_hidden_states": torch.cat([begin, end], 2),
            }
        )

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        # Here, because diffusers versions without it remain usable for the rest.
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        told, network = self._told(condition), self.network
        rotations = get_1d_rotary_pos_embed(
            self.config.attention_head_dim // 2,
            x_t.shape[2] + told["global_hidden_states"].shape[1],
            use_real=True,
            repeat_interleave_real=False,
        )
        found: Tensor = network(
            x_t,
            times.to(x_t.dtype),
            encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
            global_hidden_states=told["global_hidden_states"].to(self.dtype),
            rotary_embedding=tuple(part.to(x_t.device) for part in rotations),
        ).sample
        return found

    def _scaled(self, z: Tensor) -> Tensor:
        return z

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents
