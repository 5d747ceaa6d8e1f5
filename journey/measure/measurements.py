"""What is differentiated: one number per row of a batch, from the denoiser's prediction.

A measurement is a small class: ``__call__`` maps a ``Prediction`` to one value per row, differentiably, and
``fingerprint`` tells what distinguishes it from another. One that is a mean over pixels says what each pixel gives, and
can then be restricted to a region of the image; ``MeanOutput`` is the shortest example.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from journey.files.named import Named
from journey.models.schedules import Schedule


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
        schedule: How much image and noise there is at a timestep, and what the target is made of.
        mask: The weight of each pixel in [0, 1], float32; None is one everywhere. [num_rows, 1, H, W]
    """

    prediction: Tensor
    target: Tensor
    x0: Tensor
    x_t: Tensor
    noise: Tensor
    timesteps: Tensor
    schedule: Schedule
    mask: Tensor | None = None


class Measurement(Named):
    """A value per row whose gradient with respect to the parameters is the feature."""

    @abstractmethod
    def __call__(self, p: Prediction) -> Tensor:
        """Return the values, differentiable with respect to ``p.prediction``. [num_rows]"""


class PixelMeasurement(Measurement):
    """A mean over pixels, which a mask restricts to a region.

    The mean is always over *all* pixels, masked ones as zeros, so that a region and its complement add up to the whole:

    ``f(mask) + f(1 - mask) = f(1)``
    """

    @abstractmethod
    def pixels(self, p: Prediction) -> Tensor:
        """Return what each pixel gives, differentiable with respect to ``p.prediction``. [num_rows, C, H, W]"""

    def __call__(self, p: Prediction) -> Tensor:
        """Return the masked mean of each row.

        Args:
            p: The batch.

        Returns:
            [num_rows]

        Raises:
            ValueError: If the prediction has not the shape of the target.
        """
        if p.prediction.shape != p.target.shape:
            raise ValueError(
                f"network must predict what has the shape of its target {list(p.target.shape)}, got "
                f"{list(p.prediction.shape)}"
            )
        pixels = self.pixels(p)
        return (pixels if p.mask is None else pixels * p.mask).flatten(1).mean(1)


class TrainingLoss(PixelMeasurement, name="training_loss"):
    """The denoising loss ``mean((target - prediction)**2)`` over the pixels of a row.

    Reference:
        Georgiev et al., "The Journey, Not the Destination: How Data Guides Diffusion Models", 2023, section 3;
        Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, Eq. 14.
    """

    def pixels(self, p: Prediction) -> Tensor:
        """Return the squared error of each pixel. [num_rows, C, H, W]"""
        return (p.target - p.prediction).square()


class SquaredNorm(PixelMeasurement, name="squared_norm"):
    """The mean square of the prediction, ``mean(prediction**2)``: the measurement of D-TRAK.

    Reference:
        Zheng et al., "Intriguing Properties of Data Attribution on Diffusion Models", ICLR 2024, section 4.
    """

    def pixels(self, p: Prediction) -> Tensor:
        """Return the square of each pixel. [num_rows, C, H, W]"""
        return p.prediction.square()


class MeanOutput(PixelMeasurement, name="mean_output"):
    """The mean of the prediction, ``mean(prediction)``: the measurement of DAS.

    Reference:
        Lin et al., "Diffusion Attribution Score: Evaluating Training Data Influence in Diffusion Models", ICLR 2025.
    """

    def pixels(self, p: Prediction) -> Tensor:
        """Return the prediction itself. [num_rows, C, H, W]"""
        return p.prediction
