"""Denoisers made of a few layers, whose curvature is fitted."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

PIXELS = 64


class Stack(nn.Module):
    """A denoiser made of one function of its input, the time and the modules."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        torch.manual_seed(0)
        for name, module in modules.items():
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
            self.add_module(name, module)
        self.eval()


class OneLayer(Stack):
    """``mix W a`` with a frozen mix: the curvature of W is a Kronecker product, since ``df / d(W a)`` does not vary."""

    def __init__(self) -> None:
        super().__init__(layer=nn.Linear(PIXELS, 5), mix=nn.Linear(5, PIXELS))
        self.mix.requires_grad_(False)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.mix(self.layer(x_t.flatten(1))).view_as(x_t)


class Square(Stack):
    """The same with as many inputs as outputs, so that an exchange of the factors shows in the values alone."""

    def __init__(self) -> None:
        super().__init__(layer=nn.Linear(6, 6, bias=False), enter=nn.Linear(PIXELS, 6), mix=nn.Linear(6, PIXELS))
        self.enter.requires_grad_(False)
        self.mix.requires_grad_(False)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.mix(self.layer(torch.tanh(self.enter(x_t.flatten(1))))).view_as(x_t)


class Odd(Stack):
    """A convolution in groups, one over a row of pixels, one that is called twice, an embedding of the time."""

    def __init__(self) -> None:
        super().__init__(
            line=nn.Conv1d(8, 4, 3, padding=1),
            time=nn.Embedding(100, 4),
            twice=nn.Conv1d(4, 4, 1),
            groups=nn.Conv1d(4, 8, 3, padding=1, groups=2),
        )

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        x = self.line(x_t[:, 0]) + self.time(timesteps)[:, :, None]
        return self.groups(self.twice(torch.tanh(self.twice(x))))[:, None]
