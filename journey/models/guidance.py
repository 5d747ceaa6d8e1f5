"""Guidance: what a network is told besides its condition, and how two of its predictions make one."""

from __future__ import annotations

from torch import Tensor

from journey.models.condition import Condition


class Guidance:
    """Classifier-free guidance, or the family's own in its place; every ``Denoiser`` has it.

    Reference:
        Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, Eq. 6, with guidance_scale = 1 + w.
    """

    # Guidance that the pipelines sample with where nothing else is asked for.
    default_guidance = 1.0
    # At this scale or below the prediction under the condition is taken alone.
    no_guidance = 1.0

    def with_guidance(self, condition: Condition, guidance_scale: float) -> tuple[Condition, float]:
        """Return the condition to sample with, and the scale of classifier-free guidance that remains to be applied."""
        return condition, guidance_scale

    def combine(self, without: Tensor, given: Tensor, guidance_scale: float) -> Tensor:
        """Return the prediction under guidance.

        Args:
            without: The prediction under the null condition or the negative prompt, float32. [num_rows, C, H, W]
            given: The prediction under the condition, float32. [num_rows, C, H, W]
            guidance_scale: Above ``no_guidance``.

        Returns:
            float32. [num_rows, C, H, W]
        """
        return without + guidance_scale * (given - without)

    def null_condition(self) -> Condition:
        """Return what the network is told when it is told nothing, one row, for guidance.

        Raises:
            TypeError: If the model has no such condition.
        """
        raise TypeError(f"{type(self).__name__} has no null condition: guidance needs one of a text or class model")

    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return the condition of some prompts, one row each.

        Raises:
            TypeError: If the model reads no text.
        """
        raise TypeError(f"prompt must be None for {type(self).__name__}, which reads no text, got {prompts[:1]}")

    def encode_negative(self, prompts: list[str]) -> Condition:
        """Return the condition of some negative prompts, which a few families write differently. One row each."""
        return self.encode_prompt(prompts)
