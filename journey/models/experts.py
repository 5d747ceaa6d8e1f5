"""Two networks as one, each for its own part of the noise levels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from journey.models.network import compute_dtype, unwrapped

# By how much times may be off for having been divided and multiplied again.
_ROUNDING = 1e-4


class Experts(nn.Module):
    """The networks of a pipeline that changes from one to the other on the way from noise to image.

    Rows of one part go through their network alone. Of mixed rows both networks see all while gradients are watched,
    for layers must see the whole batch, and each row takes the answer of its own; else each sees its own rows. Each is
    given its rows in the dtype that it computes in.

    Args:
        transformer: For times of ``boundary`` or more.
        transformer_2: For the others.
        boundary: The time, as the networks are given it.

    Raises:
        ValueError: If one has an adapter and the other, without one, is trainable: then all of it would be measured.
    """

    def __init__(self, transformer: nn.Module, transformer_2: nn.Module, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2 = unwrapped(transformer), unwrapped(transformer_2)
        self.boundary = boundary
        self.config: Any = self.transformer.config
        # By which diffusers tells what a network computes in.
        self._keep_in_fp32_modules = getattr(self.transformer, "_keep_in_fp32_modules", None)
        # Both may be wrong, which must not go unseen.
        self.training = self.transformer.training or self.transformer_2.training
        adapted = {name: _has_adapter(part) for name, part in self.named_children()}
        for name, part in self.named_children():
            free = [key for key, p in part.named_parameters() if p.requires_grad]
            if any(adapted.values()) and not adapted[name] and free:
                raise ValueError(
                    f"{name} must have an adapter as the other network has, or be frozen, got {len(free)} trainable "
                    f"weights such as {free[0]}; call {name}.requires_grad_(False), or load its adapter too"
                )

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest dtype that holds what either network computes in."""
        return torch.promote_types(*(compute_dtype(part) for part in self.children()))

    def is_first(self, times: Tensor) -> Tensor:
        """Tell the times at which the first network answers. [num_rows]"""
        return times >= self.boundary - _ROUNDING

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
        """Answer each row by its own network.

        Args:
            hidden_states: [num_rows, ...]
            timestep: [num_rows]
            encoder_hidden_states: [num_rows, tokens, channels]

        Returns:
            An object with ``sample``. [num_rows, ...]
        """
        first = self.is_first(timestep)
        rows, parts = (hidden_states, timestep, encoder_hidden_states), (self.transformer, self.transformer_2)
        if first.all() or not first.any():
            return SimpleNamespace(sample=_answer(parts[0 if first.all() else 1], *rows))
        if torch.is_grad_enabled():
            high, low = (_answer(part, *rows) for part in parts)
            return SimpleNamespace(sample=torch.where(first.view(-1, *(1,) * (high.dim() - 1)), high, low))
        found = torch.empty_like(hidden_states)
        for part, own in zip(parts, (first, ~first), strict=True):
            found[own] = _answer(part, *(row[own] for row in rows))
        return SimpleNamespace(sample=found)


def _answer(network: nn.Module, x_t: Tensor, times: Tensor, states: Tensor) -> Tensor:
    """What a network answers, in the dtype of its input, whatever it computes in."""
    dtype = compute_dtype(network)
    found: Tensor = network(x_t.to(dtype), times, states.to(dtype)).sample
    return found.to(x_t.dtype)


def _has_adapter(network: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in network.named_parameters())
