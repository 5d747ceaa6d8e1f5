"""The default measurement: the training loss with the residual that an image leaves when it is left out of training.

A model that has learned an image by heart leaves next to no residual there, of whatever sign its last steps of training
gave it; what it would leave without the image is what its removal is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from journey.files.fingerprint import fingerprint_tensors
from journey.files.paths import GivenPath
from journey.files.tensors import read_tensors, write_tensors
from journey.measure.measurements import PixelMeasurement, Prediction

# Stands for the prior in a fingerprint where it is that of a fit, which is named beside it.
PRIOR_OF_FIT = "of the fit"
# Below the variance of any images but constant ones, for which nothing is missed.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Prior:
    """Mean and variance of images, in the space that the network denoises.

    Args:
        mean: The mean image, float32. [C, H, W]
        variance: Mean square of the images' pixels about it, float32. [1]
        origin: Where they are named; takes the place of their hash.
    """

    mean: Tensor
    variance: Tensor
    origin: str | None = None

    @staticmethod
    def of(images: Tensor) -> Prior:
        """Return the prior of some images.

        Args:
            images: In the space that the network denoises. [num_images, C, H, W]

        Returns:
            The prior, on the images' device.

        Raises:
            ValueError: If an image is not finite; names the first.
        """
        faulty = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if faulty:
            raise ValueError(f"images must be finite, images[{faulty[0]}] is not")
        exact = images.double()
        mean = exact.mean(0)
        variance = (exact - mean).square().mean().clamp(min=_LEAST_VARIANCE)
        return Prior(mean.float(), variance.float().view(1))

    def save(self, path: GivenPath, *, exclusive: bool = False) -> None:
        """Write the prior as one safetensors file, whole or not at all.

        Args:
            path: The file.
            exclusive: Refuse to replace an existing file.

        Raises:
            FileExistsError: If ``exclusive`` and the file exists.
        """
        write_tensors(path, "prior", self._tensors(), exclusive=exclusive)

    @staticmethod
    def load(path: GivenPath, origin: str | None = None) -> Prior:
        """Read what ``save`` wrote.

        Args:
            path: The file.
            origin: See ``Prior``.

        Returns:
            The prior, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds something else, or is damaged.
        """
        found = read_tensors(path, "prior", ("mean", "variance"))
        return Prior(found["mean"], found["variance"], origin)

    def fingerprint(self) -> str:
        """Return the origin, or else the hash of mean and variance."""
        return fingerprint_tensors(self._tensors()) if self.origin is None else self.origin

    def _tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance}


@dataclass(frozen=True, eq=False)
class LeftOutLoss(PixelMeasurement, name="left_out_loss"):
    """The training loss with the residual of an image that was left out: the default.

    By leave-one-out, removing image i changes a least-squares model's prediction by its kernel with i times the
    residual that i leaves *without being trained on*. The gradient of the training loss has the residual that is left
    with it. So the residual is extended by what a denoiser misses that knows of the image no more than its noised form
    and the prior: one for pixels of known mean and variance, without the noise,

    ``guess = mean + signal^2 variance / (signal^2 variance + sigma^2) * (x0 - mean)``

    and the value of a row is ``mean(r^2 + weight (r^2 - (r - missed)^2))`` for ``r = prediction - target`` and
    ``missed = target(guess) - target``, whose gradient with respect to the prediction is that of a loss with the
    residual ``r + weight missed``. Near the end of the way the noised image tells all, and this is the training loss.

    Scores follow retraining better than those of the training loss (docs/results/choices.md), and images that a model
    reproduces are found among the proponents of their reproductions.

    Args:
        weight: How much of what is missed is added; 0 is the training loss.
        prior: Of the training images. None lets ``journey.fit`` take it from some of them; nothing
            else takes None.

    Raises:
        ValueError: If ``weight`` is negative.
    """

    weight: float = 1.0
    prior: Prior | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        if not self.weight >= 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")

    def pixels(self, p: Prediction) -> Tensor:
        """Return what each pixel gives.

        Args:
            p: The batch.

        Returns:
            [num_rows, C, H, W]

        Raises:
            ValueError: If there is no prior, or one of images of another shape.
        """
        residual = p.prediction - p.target
        loss = residual.square()
        return loss + self.weight * (loss - (residual - self._missed(p)).square())

    def _missed(self, p: Prediction) -> Tensor:
        """Target of the guess minus target of the image, at the same noised image. [num_rows, C, H, W]"""
        if self.prior is None:
            raise ValueError(
                "prior must be given, got None, which journey.fit alone replaces by that of its images; "
                "Prior.of(images) is that of any"
            )
        if self.prior.mean.shape != p.x0.shape[1:]:
            raise ValueError(
                f"prior must be of images of shape {list(p.x0.shape[1:])}, got a mean of "
                f"{list(self.prior.mean.shape)}: these have another size, or number of frames, than those of the fit"
            )
        mean, variance = self.prior.mean.to(p.x0), self.prior.variance.to(p.x0)
        signal, sigma = p.schedule.factors(p.timesteps, p.x0)
        away = (p.x0 - mean) / (signal.square() * variance + sigma.square())
        # Targets are linear in image and noise: no division by sigma, which may be zero.
        return p.schedule.target(-sigma.square() * away, signal * sigma * away, p.timesteps)

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the measurement, as JSON values."""
        return {
            "class": self.fingerprint_name,
            "weight": self.weight,
            "prior": PRIOR_OF_FIT if self.prior is None else self.prior.fingerprint(),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> LeftOutLoss | None:
        """Return the measurement whose prior is the fit's; None for a prior of the caller's."""
        return cls(fields["weight"]) if fields["prior"] == PRIOR_OF_FIT else None
