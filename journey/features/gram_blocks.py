"""The part of single images in a Gram matrix, measured again, and the matrix in which each stands with its own weight.

A Gram matrix is a mean over the fit's images, up to 512. Of those the rows are measured with the draws that the fit had
for them, so that their outer products are what the matrix holds of them; those of other images have draws of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from journey.curvature.gram import GramMatrix
from journey.features.gram_rows import OWN_DRAWS, gradients_of, noise_of, own_rows, pseudo_rows
from journey.measure.featurizer import Featurizer
from journey.models.condition import Encoded

# Distance of the noise of an image's own gradients from that which the fit keeps, in norms, at which both are of the
# same image: rounding is far below, other images are above one.
_SAME = 0.1
# Of a weight of one: blocks that stand in the matrix as they should are left alone.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class GramBlock:
    """The part of one image in a Gram matrix.

    Attributes:
        rows: Rows B whose outer products ``B^T B`` are averaged over images, float32, on the CPU. [rank, proj_dim]
        in_fit: Whether the matrix holds them.
    """

    rows: Tensor
    in_fit: bool


def measure_blocks(
    featurizer: Featurizer, gram: GramMatrix, samples: Encoded, positions: Sequence[int], seed: int
) -> list[GramBlock]:
    """Measure images as the fit measured its own, under the network's current weights.

    Args:
        featurizer: Measures, with prior and scales.
        gram: The Gram matrix of these weights.
        samples: The images as the network takes them.
        positions: Their positions in the dataset, by which the fit knows its images.
        seed: That of the plan of the Gram matrix: which checkpoint it is of, by position.

    Returns:
        The part of each.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite; names the image, a timestep and a layer.
    """
    bins, num_fitted = OWN_DRAWS.bins, len(gram.noise)
    own = own_rows(featurizer, samples, list(positions), 0, len(samples) * bins)
    noise = noise_of(own)
    away = torch.cdist(noise, gram.noise, compute_mode="donot_use_mm_for_euclid_dist")
    distances, places = away.min(1)
    same = distances <= _SAME * noise.norm(dim=1)
    numbers = [
        place if held else num_fitted + position
        for place, held, position in zip(places.tolist(), same.tolist(), positions, strict=True)
    ]
    (_, own_share, own_mean), (num_pseudo, share, mean) = gram.parts.tolist()
    each = round(num_pseudo) // num_fitted
    parts = []
    if own_share:
        parts.append(own.view(len(samples), bins, -1) * (own_share / own_mean / bins) ** 0.5)
    if share:
        gradients = gradients_of(featurizer, samples, positions, numbers, each, seed)
        pseudo = pseudo_rows(featurizer, gradients, 0, gradients.num_rows)
        parts.append(pseudo.view(len(samples), each, -1) * (share / mean / each) ** 0.5)
    rows = torch.cat(parts, 1)
    return [GramBlock(*part) for part in zip(rows.unbind(), same.tolist(), strict=True)]


def whole_matrix(gram: GramMatrix, blocks: Sequence[GramBlock], num_images: int) -> Tensor:
    """Return the Gram matrix of all images of a dataset, in which each of some stands by its own block.

    Those images count by their blocks, and the others as the fit's images do that are not among them: no image counts
    twice, whether the fit looked at it or not. Where the fit looked at all images, it is the Gram matrix itself.

    Args:
        gram: The mean over the fit's images, m of them.
        blocks: Of c images.
        num_images: Of the dataset, n.

    Returns:
        ``(n - c) / n * mean over the fit's other images + 1 / n * sum of blocks``, float64. [proj_dim, proj_dim]
    """
    num_fitted, held = len(gram.noise), sum(block.in_fit for block in blocks)
    others = (num_images - len(blocks)) / num_images
    # The mean over the fit's other images is (m M - sum of the blocks that it holds) / (m - held); of none, it is M.
    scale, taken = (others * num_fitted / (num_fitted - held), 1) if held < num_fitted else (others, 0)
    matrix = gram.matrix.double() * scale
    for block in blocks:
        weight = 1 / num_images - taken * block.in_fit * scale / num_fitted
        if abs(weight) * num_images > _ROUNDING:
            rows = block.rows.double()
            matrix.addmm_(rows.T, rows, alpha=weight)
    return matrix
