"""What featurizing a dataset will take, measured on a few batches before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Literal

import torch

from journey.data.ids import IdOf
from journey.data.stream import Stream
from journey.features.contents import OnError, check_images
from journey.features.fit import IMAGES
from journey.features.fitted import Fit, use_fit
from journey.features.plan_fit import FitCost, cost_of_fit
from journey.features.plan_measure import MeasureCost, cost_of_measuring, query_seconds
from journey.features.plan_sizes import exact_bytes, likely_bytes
from journey.features.plan_times import Spread
from journey.features.planned import Plan
from journey.features.prepare import Prepared, default_shard_size, prepare
from journey.files.paths import GivenPath
from journey.gradients.memory import peak_bytes, reset_peak
from journey.gradients.selection import Selection
from journey.gradients.sizes import layer_names
from journey.measure.draws import Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint
from journey.projectors.base import Projector
from journey.store.manifest import Manifest
from journey.store.rows import RowFormat

# For which a stream of unknown length is planned.
_OF_STREAM = 1000
# Shares of the time that measuring, and each kind of gradient of a fit, may take.
_MEASURING, _FITTING = 0.5, 0.1


def plan(
    model: Any,
    dataset: Any,
    *,
    fit: Fit | GivenPath | None = None,
    measurement: Measurement | None = None,
    draws: Draws | None = None,
    projector: Projector | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
    batch_size: int | Literal["auto"] | None = None,
    memory: int | None = None,
    row: RowFormat = "int8",
    shard_size: int | None = None,
    id_of: IdOf | None = None,
    workers: int = 0,
    on_error: Literal["error", "skip"] = "error",
    devices: int = 1,
    num_images: int | None = None,
    seconds: float = 20.0,
) -> Plan:
    """Measure a few batches and say what ``journey.featurize`` of the same arguments will take; writes nothing.

    Arguments that are not explained here are those of ``journey.featurize``, and what it would refuse is refused. The
    first batch of each kind does not count, further ones are measured until the time is over, at least one.

    Args:
        model: The model, on the device that it will be measured on.
        dataset: The images, in any form but an iterator, of which the images that are read here would be missing later.
        fit: What ``journey.fit`` learned, or its folder; by default its making is part of the plan.
        measurement: As for ``journey.featurize``.
        draws: Likewise.
        projector: Likewise.
        checkpoints: Likewise; the first is measured under.
        select: Likewise.
        uncovered: Likewise.
        batch_size: Likewise.
        memory: Likewise.
        row: Likewise.
        shard_size: Likewise.
        id_of: Likewise.
        workers: Likewise.
        on_error: Likewise.
        devices: Devices such as the model's, each with a process, that are to share the work.
        num_images: Plan for so many images like these; by default for those of the dataset, of a stream for 1,000.
        seconds: How long to measure, about; models whose batches take longer take longer.

    Returns:
        The plan.

    Raises:
        ValueError: As ``journey.featurize``; if ``devices`` or ``num_images`` is no positive integer, ``seconds`` no
            positive number, or the dataset is an iterator.
        TypeError: As ``journey.featurize``, as are further errors.

    Example:
        >>> print(plan((unet, scheduler), dataset, devices=8))
    """
    for name, number in (("devices", devices), ("num_images", num_images)):
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"{name} must be a positive integer, got {number!r}")
    if not 0 < seconds < inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds!r}")
    given = prepare(
        model,
        dataset,
        out=None,
        fit=fit,
        measurement=measurement,
        draws=draws,
        projector=projector,
        checkpoints=checkpoints,
        select=select,
        uncovered=uncovered,
        batch_size=batch_size,
        memory=memory,
        row=row,
        shard_size=shard_size,
        id_of=id_of,
        on_error=on_error,
    )
    source, length = given.source, _length(given)
    if isinstance(source, Stream) and source.once:
        raise ValueError(
            "dataset is an iterator, which can be read only once, and the images that are read for a plan would be "
            "missing from it: give an object whose iter() begins anew"
        )
    if not isinstance(source, Stream):
        check_images(None, given.sample, given.ids, given.featurizer.denoiser, on_error)
    count = num_images or length or _OF_STREAM
    device = given.featurizer.denoiser.device
    counted = _reset(device)
    fitting, fingerprint = _fitting(given, fit, count, seconds * _FITTING)
    measuring = cost_of_measuring(given, workers, on_error, seconds * _MEASURING)
    peak = peak_bytes(device) + fitting.held_bytes if counted else None
    manifest = given.manifest_with(fit=fingerprint)
    return _put_together(given, manifest, fitting, measuring, shard_size, on_error, (devices, count, length, peak))


def _put_together(
    given: Prepared,
    manifest: Manifest,
    fitting: FitCost,
    measuring: MeasureCost,
    shard_size: int | None,
    on_error: OnError,
    numbers: tuple[int, int, int | None, int | None],
) -> Plan:
    """The plan, of the costs of its parts."""
    devices, count, length, peak = numbers
    stream, measurer = isinstance(given.source, Stream), measuring.measurer
    size = shard_size or default_shard_size(None if stream else count, measurer.images_per_batch)
    exact, layers = not stream and count == length, layer_names(given.featurizer.engine)
    if exact:
        stored = exact_bytes(manifest, given.ids, size, layers)
    else:
        stored = likely_bytes(manifest, measuring.ids, count, size, layers, planned=not stream)
    passes = _passes(count, size, measurer.images_per_pass)
    whole = measuring.seconds * passes + Spread.of([measuring.load_seconds * stored.num_shards])
    # Shards are not divided: of 100 shards among 64 devices some measure two.
    busiest = -(-stored.num_shards // devices) / stored.num_shards
    query, speed = None, None
    if fitting.gram is not None:
        query, speed = query_seconds(measuring, given, fitting.gram, stored.shards)
    return Plan(
        num_images=count,
        length_known=length is not None,
        devices=devices,
        device=str(given.featurizer.denoiser.device),
        seconds=fitting.seconds + Spread.of([measuring.first_seconds]) + whole * busiest,
        seconds_per_image=whole * (1 / count),
        passes=passes * measuring.passes,
        num_batches=measuring.num_batches,
        fit_seconds=fitting.seconds,
        scale_gradients=fitting.scale_gradients,
        own_gradients=fitting.own_gradients,
        pseudo_gradients=fitting.pseudo_gradients,
        fit_passes=fitting.passes,
        fit_bytes=fitting.num_bytes,
        store_bytes=stored.total,
        store_bytes_exact=exact and on_error == "error",
        memory_bytes=peak,
        query_seconds=query,
        read_bytes_per_second=speed,
    )


def _length(given: Prepared) -> int | None:
    """Images of the dataset; None of a stream, unless it ends before as many as are looked at."""
    if not isinstance(given.source, Stream):
        return len(given.ids)
    return len(given.sample) if 0 < len(given.sample) < IMAGES else None


def _fitting(given: Prepared, fit: Fit | GivenPath | None, count: int, seconds: float) -> tuple[FitCost, str]:
    """The cost of the fit, and its fingerprint or one as long."""
    if fit is None:
        return cost_of_fit(given, count, seconds), "0" * 64
    fitted = use_fit(fit, given.featurizer, given.told)
    try:
        gram = fitted.gram()
    except FileNotFoundError:
        gram = None
    return FitCost(Spread.of([0.0]), gram=gram), fitted.fingerprint


def _passes(num_images: int, shard_size: int, images_per_pass: int) -> int:
    """Times that so many images go through the network: the last ones of a shard by themselves."""
    shards, rest = divmod(num_images, shard_size)
    return shards * -(-shard_size // images_per_pass) + -(-rest // images_per_pass)


def _reset(device: torch.device) -> bool:
    """Whether the system counts the peak of memory, from here on."""
    try:
        reset_peak(device)
        peak_bytes(device)
    except ValueError:
        return False
    return True
