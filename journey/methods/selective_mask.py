"""Which entries of the gradient to keep so that inner products rank the images as whole gradients do (GraSS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from journey.files.fingerprint import fingerprint_tensors
from journey.measure.batch import measure_batch
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import Measurement
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.ops.geometry import tap_major
from journey.projectors.base import ParameterSlot, Projector
from journey.projectors.exact import Identity

# Temperatures between which the soft mask hardens, relative to the spread of the entries' initial importance, and the
# rate at which Adam moves them.
_WARM, _COLD, _RATE = 1.0, 0.05, 0.1
_QUERY_SHARE = 5  # one of so many sampled images is a query, as in the published code


@dataclass(frozen=True, eq=False)
class Selected(Projector, name="selected"):
    """Chosen entries of the gradient, then another projector.

    Args:
        inner: What the kept entries go to.
        kept: Which entries, bool, in the order of ``Identity``. [grad_dim]
    """

    inner: Projector
    kept: Tensor

    def features_dim(self, num_parameters: int) -> int:
        """Return that of the inner projector.

        Args:
            num_parameters: Entries of the gradient.

        Returns:
            The length of the features.

        Raises:
            ValueError: If the mask has another number of entries.
        """
        if self.kept.shape != (num_parameters,):
            raise ValueError(
                f"kept must have an entry for each of {num_parameters} parameters, got {list(self.kept.shape)}"
            )
        return self.inner.features_dim(num_parameters)

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the image of the kept entries, see ``Projector.add_``."""
        begin = slot.offset + row_begin * slot.cols
        kept = self.kept[begin : begin + grads[0].numel()].view(grads.shape[1:])
        self.inner.add_(features, slot, grads * tap_major(kept, slot.taps).to(grads.device), row_begin)

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the map, as JSON values."""
        kept = fingerprint_tensors({"": self.kept})
        return {"class": self.fingerprint_name, "inner": self.inner.fingerprint(), "kept": kept}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> None:
        """Return None: a hash does not tell the mask."""


def fit_selective_mask(
    denoiser: Denoiser,
    samples: Encoded,
    *,
    draws: Draws,
    measurement: Measurement,
    keep: float = 0.1,
    num_images: int = 40,
) -> Tensor:
    """Choose the entries for a model from whole gradients of some of the training images.

    Four fifths of the sample are training images of the objective of ``select_entries``, the rest its queries.

    Args:
        denoiser: The model.
        samples: The training images as the network takes them; image i has the draws of sample i.
        draws: Timesteps and noise, one bin.
        measurement: What is differentiated.
        keep: Share of the entries that is kept.
        num_images: Size of the sample, evenly spread. All their gradients are held: [num_images, grad_dim] float32.

    Returns:
        Which entries to keep, bool, on the CPU. [grad_dim]

    Raises:
        ValueError: If ``keep`` is not in (0, 1], or there are fewer than ten images to choose by.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    count = min(num_images, len(samples))
    if count < 2 * _QUERY_SHARE:
        raise ValueError(
            f"num_images and samples must be at least {2 * _QUERY_SHARE}, got {num_images}, {len(samples)}"
        )
    featurizer = Featurizer(denoiser, measurement=measurement, projector=Identity())
    grads = []
    for index in range(count):
        i = index * len(samples) // count
        sample = samples.select(i, i + 1)
        features = measure_batch(featurizer, draws, sample, [i]).features
        grads.append(features.mean(1))
    whole = torch.cat(grads)
    queries = torch.arange(count, dtype=torch.int64, device="cpu") % _QUERY_SHARE == 0
    chosen = select_entries(whole[~queries], whole[queries], max(1, round(keep * whole.shape[1])))
    return chosen.cpu()


def select_entries(
    train: Tensor,  # [num_train, grad_dim]
    query: Tensor,  # [num_queries, grad_dim]
    num_kept: int,
    *,
    num_steps: int = 40,
) -> Tensor:
    """Choose entries whose part of the inner products agrees best with the whole.

    Maximises over masks m with ``num_kept`` ones the ``agreement``: the mean over queries q of the correlation, over
    training images i, of ``<q, g_i>`` with ``<m q, m g_i>``. The published form lets m be a sigmoid, adds a penalty on
    its sum and thresholds what Adam finds; there a constant m, whose correlation is one, is a stationary point, and the
    weight of the penalty decides how many entries are kept. Here their number is given, the sigmoid is centred on the
    threshold between kept and others and hardens on the way, the start is each entry's own variance of ``q_j g_ij``,
    and the best of all hard masks on the way is returned.

    Args:
        train: Gradients of training images, float32. [num_train, grad_dim]
        query: Gradients of queries. [num_queries, grad_dim]
        num_kept: Entries that are kept.
        num_steps: Steps of Adam.

    Returns:
        Which entries to keep, bool. [grad_dim]

    Raises:
        ValueError: If ``num_kept`` is not between 1 and ``grad_dim``.

    Reference:
        Hu et al., "GraSS: Scalable Influence Function with Sparse Gradient Compression", NeurIPS 2025, selective mask.
    """
    if not 1 <= num_kept <= train.shape[1]:
        raise ValueError(f"num_kept must be between 1 and {train.shape[1]}, got {num_kept}")
    variance = query.square().mean(0) * train.var(0)
    importance = variance.clamp(min=torch.finfo(torch.float32).tiny).log()
    logits = (importance - importance.mean()) / importance.std().clamp(min=1e-6)
    logits = logits.detach().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=_RATE)
    best, chosen = -2.0, torch.zeros(0, dtype=torch.float32, device="cpu")
    for step in range(num_steps + 1):
        largest = logits.detach().topk(num_kept)
        hard = torch.zeros_like(importance, dtype=torch.bool).index_fill(0, largest.indices, True)
        found = agreement(hard, train, query).item()
        if found > best:
            best, chosen = found, hard
        temperature = _WARM * (_COLD / _WARM) ** (step / max(1, num_steps))
        soft = torch.sigmoid((logits - largest.values[-1]) / temperature)
        optimizer.zero_grad()
        torch.autograd.backward(-agreement(soft, train, query))
        optimizer.step()
    return chosen


def agreement(mask: Tensor, train: Tensor, query: Tensor) -> Tensor:
    """Return the mean over queries of the correlation of masked with whole inner products over training images."""
    whole = query @ train.T
    masked = (query * mask.square()) @ train.T
    centred = [products - products.mean(1, keepdim=True) for products in (whole, masked)]
    return F.cosine_similarity(centred[0], centred[1], dim=1).mean()
