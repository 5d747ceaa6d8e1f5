"""What is differentiated: one number per row of a batch, from the denoiser's prediction.

A measurement is a small class: ``__call__`` maps a ``Prediction`` to one value per row, differentiably, and
``fingerprint`` tells what distinguishes it from another. For example::

    class MeanOutput(Measurement):
        def __call__(self, p: Prediction) -> Tensor:
            return p.prediction.flatten(1).mean(1)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A batch that went through the denoiser.

    Args:
        prediction: The network's output, float32, differentiable. [num_rows, C, H, W]
        target: What it was trained to be (noise, image or velocity). [num_rows, C, H, W]
        x0: The clean images. [num_rows, C, H, W]
        x_t: The noised images, the network's input. [num_rows, C, H, W]
        noise: The noise in them. [num_rows, C, H, W]
        timesteps: int64. [num_rows]
    """

    prediction: Tensor
    target: Tensor
    x0: Tensor
    x_t: Tensor
    noise: Tensor
    timesteps: Tensor


class Measurement(ABC):
    """A value per row whose gradient with respect to the parameters is the feature."""

    @abstractmethod
    def __call__(self, p: Prediction) -> Tensor:
        """Return the values, differentiable with respect to ``p.prediction``. [num_rows]"""

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the measurement, as JSON values: its name, and its fields if it is a dataclass."""
        fields: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return {"kind": f"{type(self).__module__}.{type(self).__qualname__}", **fields}


class TrainingLoss(Measurement):
    """The denoising loss ``mean((target - prediction)**2)`` over the pixels of a row: the default.

    Reference:
        Georgiev et al., "The Journey, Not the Destination: How Data Guides Diffusion Models", 2023, section 3;
        Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, Eq. 14.
    """

    def __call__(self, p: Prediction) -> Tensor:
        """Return the loss of each row. [num_rows]"""
        return (p.target - p.prediction).square().flatten(1).mean(1)


class SquaredNorm(Measurement):
    """The mean square of the prediction, ``mean(prediction**2)``: the measurement of D-TRAK.

    Reference:
        Zheng et al., "Intriguing Properties of Data Attribution on Diffusion Models", ICLR 2024, section 4.
    """

    def __call__(self, p: Prediction) -> Tensor:
        """Return the mean square of each row. [num_rows]"""
        return p.prediction.square().flatten(1).mean(1)
