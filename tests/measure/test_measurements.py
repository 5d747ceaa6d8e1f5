"""Measurements give one value per row, and a fingerprint that tells them apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from cases import randn
from diffusers import DDPMScheduler
from torch import Tensor

from journey.measure.left_out import LeftOutLoss, Prior
from journey.measure.measurements import Measurement, PixelMeasurement, Prediction, SquaredNorm, TrainingLoss
from journey.models.schedulers import as_schedule

MEASUREMENTS = [TrainingLoss(), SquaredNorm(), LeftOutLoss(1.0, Prior.of(randn(5, 2, 3, 5, seed=5)))]


def make_prediction(num_rows: int = 4) -> Prediction:
    """Random tensors in every field, all different."""
    images = [randn(num_rows, 2, 3, 5, seed=seed) for seed in range(5)]
    return Prediction(*images, timesteps=torch.arange(num_rows), schedule=as_schedule(DDPMScheduler()))


def test_the_training_loss_is_the_mean_squared_error_of_each_row() -> None:
    p = make_prediction()
    rows = zip(p.prediction, p.target, strict=True)
    expected = torch.stack([torch.nn.functional.mse_loss(prediction, target) for prediction, target in rows])
    torch.testing.assert_close(TrainingLoss()(p), expected, rtol=1e-6, atol=0)


def test_the_squared_norm_is_the_mean_square_of_each_prediction() -> None:
    p = make_prediction()
    expected = torch.stack([(prediction**2).sum() / prediction.numel() for prediction in p.prediction])
    torch.testing.assert_close(SquaredNorm()(p), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda m: type(m).__name__)
def test_a_value_depends_on_its_own_row_alone_and_can_be_differentiated(measurement: Measurement) -> None:
    p = make_prediction()
    prediction = p.prediction.requires_grad_()
    values = measurement(p)
    assert values.shape == (4,)
    (grad,) = torch.autograd.grad(values[2], prediction)
    assert grad[2].abs().min() > 0
    assert not grad[[0, 1, 3]].any()


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda m: type(m).__name__)
def test_a_mask_leaves_the_mean_over_all_pixels_so_that_complements_add_up(measurement: PixelMeasurement) -> None:
    p = make_prediction()
    mask = torch.rand(4, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    part, rest = measurement(replace(p, mask=mask)), measurement(replace(p, mask=1 - mask))
    expected = (mask * measurement.pixels(p)).sum((1, 2, 3)) / 30
    torch.testing.assert_close(part, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(part + rest, measurement(p), rtol=1e-6, atol=0)


def test_a_prediction_that_would_be_stretched_to_its_target_is_refused() -> None:
    p = make_prediction()
    with pytest.raises(ValueError, match=r"shape of its target \[4, 2, 3, 5\], got \[4, 1, 3, 5\]"):
        TrainingLoss()(replace(p, prediction=p.prediction[:, :1]))


@dataclass(frozen=True)
class Power(Measurement):
    """A measurement of a user's own."""

    exponent: int = 3

    def __call__(self, p: Prediction) -> Tensor:
        return p.prediction.pow(self.exponent).flatten(1).sum(1)


def test_fingerprints_differ_when_measurements_do() -> None:
    measurements = [TrainingLoss(), SquaredNorm(), Power(), Power(2)]
    found = [measurement.fingerprint() for measurement in measurements]
    assert len({repr(fingerprint) for fingerprint in found}) == 4
    assert found[3] == {"class": f"{Power.__module__}.Power", "exponent": 2}
    assert Power(2).fingerprint() == Power(2).fingerprint()
