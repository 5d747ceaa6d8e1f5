"""The demos' training loop tells the network about the images that it shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from journey.demo.fit import fit


class Recorder(nn.Module):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def forward(self, x_t: Tensor, timesteps: Tensor, **told: Tensor) -> Any:
        self.calls.append((x_t, timesteps, told))
        return SimpleNamespace(sample=x_t * self.weight)


def _fit(model: nn.Module, images: Tensor, **changes: Any) -> None:
    numbers = {"steps": 2, "batch_size": 500, "learning_rate": 1e-3, "seed": 0, "progress": False}
    fit(model, images, **{**numbers, **changes})


def test_every_image_comes_with_what_is_told_about_it() -> None:
    levels = torch.linspace(-1, 1, 5)
    images = levels[:, None, None, None].expand(5, 1, 8, 8)
    model = Recorder()
    _fit(model, images, tell=lambda chosen, generator: {"which": chosen})
    for x_t, timesteps, told in model.calls:
        # A batch has one timestep in each of its 500 parts of the schedule. Before timestep 100 the noise has a
        # deviation below 0.17, that of the mean of 64 pixels is below 0.022, and levels are 0.5 apart.
        early = timesteps < 100
        assert early.sum() == 50
        means = x_t.mean((1, 2, 3))[early]
        assert torch.equal((means[:, None] - levels).abs().argmin(1), told["which"][early])
    assert not torch.equal(model.calls[0][2]["which"], model.calls[1][2]["which"])


def test_an_unconditional_network_is_told_nothing() -> None:
    model = Recorder()
    _fit(model, torch.zeros(3, 1, 4, 4))
    assert [told for *_, told in model.calls] == [{}, {}]
    assert not model.training


@pytest.mark.parametrize("name", ["steps", "batch_size", "learning_rate"])
def test_numbers_that_are_not_positive_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        _fit(Recorder(), torch.zeros(3, 1, 4, 4), **{name: 0})
