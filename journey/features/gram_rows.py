"""The rows that a Gram matrix is made of, kept in parts so that a fit that was stopped goes on where it was.

Own gradients are those of the images at strata of timesteps, measured as rows of a store are; pseudo-gradients are
``sqrt(2 / D) <u, prediction>`` of one draw each (``journey.curvature.pseudo_gradients``). Both are sketched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.curvature.gram import GramMatrix, mix
from journey.curvature.moments import check_finite
from journey.curvature.pseudo_gradients import PseudoGradients
from journey.files.fingerprint import fingerprint_json
from journey.files.paths import Location, exists, make_folder, remove_folder
from journey.files.tensors import read_tensors, write_tensors
from journey.measure.batch import measure_batch
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.models.condition import Encoded
from journey.models.encoding import choose_captions

# Rows of a part: 16 MiB at a length of 4,096.
_ROWS_PER_PART = 1024
_ROWS_PER_BATCH = 64
# Strata of own gradients: an antithetic pair in each tenth of the range.
OWN_DRAWS = StratifiedDraws(num_draws=2, bins=10)


@dataclass(frozen=True)
class GramPlan:
    """What a Gram matrix is made of.

    Attributes:
        own_images: Images whose own gradients count.
        pseudo_gradients: Pseudo-gradients, as many of each image.
        own_share: Weight of own gradients, the rest is that of pseudo-gradients.
        seed: Names draws and directions.
    """

    own_images: int
    pseudo_gradients: int
    own_share: float
    seed: int


def make_gram(
    featurizer: Featurizer, samples: Encoded, ids: list[int], plan: GramPlan, folder: Location, *, progress: bool
) -> GramMatrix:
    """Measure own and pseudo-gradients under the network's current weights and mix their second moments.

    Args:
        featurizer: Measures, with prior and scales.
        samples: Some of the training images as the network takes them.
        ids: Their ids.
        plan: How many of which.
        folder: Where parts are kept meanwhile, in a folder of their own.
        progress: Show a progress bar.

    Returns:
        The Gram matrix.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite; names the image, a timestep and a layer.
    """
    parts = folder / f"parts-{fingerprint_json(asdict(plan))[:16]}"
    make_folder(parts)
    bins = OWN_DRAWS.bins
    gradients = pseudo_gradients(featurizer, samples, ids, plan)
    own = _Parts(parts, "own", min(plan.own_images, len(samples)) * bins)
    pseudo = _Parts(parts, "pseudo", gradients.num_rows)
    total = own.count * OWN_DRAWS.num_draws + pseudo.count
    with tqdm(total=total, unit="draw", desc="fit", disable=not progress, dynamic_ncols=True) as bar:
        own.fill(lambda first, end: own_rows(featurizer, samples, ids, first, end), bins, bar, OWN_DRAWS.num_draws)
        pseudo.fill(lambda first, end: pseudo_rows(featurizer, gradients, first, end), 1, bar, 1)
    noise = torch.cat([noise_of(part) for part in own.read()])
    matrix = mix(own.read, pseudo.read, plan.own_share, noise, featurizer.denoiser.device)
    remove_folder(parts)
    return matrix


def pseudo_gradients(featurizer: Featurizer, samples: Encoded, ids: list[int], plan: GramPlan) -> PseudoGradients:
    """Return the pseudo-gradients of a plan: of every image at draws stratified over the range."""
    each = -(-plan.pseudo_gradients // len(samples))
    return gradients_of(featurizer, samples, ids, range(len(samples)), each, plan.seed)


def gradients_of(
    featurizer: Featurizer, samples: Encoded, ids: Sequence[int], numbers: Sequence[int], each: int, seed: int
) -> PseudoGradients:
    """Return ``each`` pseudo-gradients of some images, whose draws are those of the fit's images of these numbers."""
    told = samples.conditions(choose_captions(0, ids, samples.counts, 1))
    draws = StratifiedDraws(each, antithetic=False, seed=seed)
    return PseudoGradients(featurizer.denoiser, samples.x0, draws, told, exact=False, seed=seed, numbers=numbers)


def own_batches(first: int, end: int) -> list[slice]:
    """Return which images are measured at once whose strata are ``first`` ... ``end - 1``."""
    bins = OWN_DRAWS.bins
    return _batches(first // bins, end // bins, max(1, _ROWS_PER_BATCH // (bins * OWN_DRAWS.num_draws)))


def pseudo_batches(first: int, end: int) -> list[slice]:
    """Return which pseudo-gradients are taken at once."""
    return _batches(first, end, _ROWS_PER_BATCH)


def _batches(first: int, end: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, end)) for begin in range(first, end, size)]


def parts_of(count: int, unit: int) -> list[tuple[int, int]]:
    """Return where the parts of so many rows begin and end, of which ``unit`` stay together."""
    return [(part.start, part.stop) for part in _batches(0, count, _ROWS_PER_PART // unit * unit)]


def own_rows(featurizer: Featurizer, samples: Encoded, ids: list[int], first: int, end: int) -> Tensor:
    """Return the rows of the images whose strata are ``first`` ... ``end - 1``. [end - first, proj_dim]"""
    rows = []
    for some in own_batches(first, end):
        found = measure_batch(featurizer, OWN_DRAWS, samples.select(some.start, some.stop), ids[some])
        rows.append(found.features.flatten(0, 1).cpu())
    return torch.cat(rows)


def pseudo_rows(featurizer: Featurizer, gradients: PseudoGradients, first: int, end: int) -> Tensor:
    """Return sketched pseudo-gradients ``first`` ... ``end - 1``, image after image. [end - first, proj_dim]"""
    found = []
    for some in pseudo_batches(first, end):
        rows = torch.arange(some.start, some.stop, dtype=torch.int64, device="cpu")
        values = next(gradients.pseudo_losses(rows))
        found.append(featurizer.sketch_rows(values, len(rows), gradients.shape).cpu())
    sketches = torch.cat(found)
    check_finite("the network's parameters", sketches)
    return sketches


def noise_of(part: Tensor) -> Tensor:
    """Return half the difference of the images' even and odd strata. [num_images * bins, k] -> [num_images, k]"""
    strata = part.view(-1, OWN_DRAWS.bins, part.shape[1])
    return (strata[:, 0::2].mean(1) - strata[:, 1::2].mean(1)) / 2


class _Parts:
    """Rows in files of a fixed number of rows."""

    def __init__(self, folder: Location, name: str, count: int) -> None:
        self.count = count
        self._folder, self._name = folder, name
        self._paths: list[Location] = []

    def fill(self, measure: Callable[[int, int], Tensor], unit: int, bar: tqdm[Any], draws: int) -> None:
        """Measure the parts that are not there yet; ``unit`` rows stay together, of ``draws`` draws each."""
        for first, end in parts_of(self.count, unit):
            path = self._folder / f"{self._name}-{first:08d}.safetensors"
            if not exists(path):
                write_tensors(path, self._name, {"rows": measure(first, end)})
            self._paths.append(path)
            bar.update((end - first) * draws)

    def read(self) -> Iterator[Tensor]:
        """Yield the rows of each part, in order."""
        for path in self._paths:
            yield read_tensors(path, self._name, ("rows",))["rows"]
