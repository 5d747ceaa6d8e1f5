"""What can be said of a folder without gradients: the logged loss, pixels, structure, the optimal denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.check.folders import Planted
from journey.audit.similarity import pixel_distance, structural_similarity
from journey.measure.batch import measure_values
from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.methods.baselines import optimal_denoiser
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import encode_all

_DRAWS = 40


def losses(planted: Planted, model: Denoiser) -> Tensor:
    """The training loss of each image under its caption, after training. [num_images]"""
    samples: Encoded = encode_all(model, planted.dataset)
    draws = StratifiedDraws(_DRAWS, seed=1)
    return measure_values(model, samples, draws=draws, measurement=TrainingLoss())[:, 0].double()


def pixel_pairs(planted: Planted) -> Tensor:
    """Closeness of each pair in pixels. [num_images, num_images]"""
    return -pixel_distance(planted.images, planted.images)


def structure_pairs(planted: Planted) -> Tensor:
    """Structural similarity of each pair. [num_images, num_images]"""
    return structural_similarity(planted.images, planted.images)


def denoiser_pairs(planted: Planted, model: Denoiser) -> Tensor:
    """Weight of each image in the optimal denoiser's prediction of each, of both directions. [num, num]"""
    weights = optimal_denoiser(model, planted.images, planted.images)
    return weights + weights.T


def apart(pairs: Tensor) -> Tensor:
    """How far each image is from the one that is nearest to it. [num_images]"""
    others = pairs.clone()
    others.fill_diagonal_(-torch.inf)
    return -others.amax(1)
