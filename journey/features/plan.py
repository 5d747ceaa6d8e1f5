"""What featurizing a dataset will take, measured on a few batches before anything starts."""

from __future__ import annotations

from math import inf
from typing import Any

import torch

from journey.data.stream import Stream
from journey.errors import check_count
from journey.features.choices import Choices
from journey.features.contents import check_images
from journey.features.fit import IMAGES
from journey.features.fitted import use_fit
from journey.features.plan_fit import FitCost, cost_of_fit
from journey.features.plan_measure import MeasureCost, cost_of_measuring, query_seconds
from journey.features.plan_sizes import exact_bytes, likely_bytes
from journey.features.plan_times import Spread
from journey.features.planned import Plan
from journey.features.prepare import Prepared, default_shard_size, prepare
from journey.gradients.memory import peak_bytes, reset_peak
from journey.gradients.sizes import layer_names
from journey.store.manifest import Manifest

# For which a stream of unknown length is planned.
_OF_STREAM = 1000
# Shares of the time that measuring, and each kind of gradient of a fit, may take.
_MEASURING, _FITTING = 0.5, 0.1


def plan(
    model: Any,
    dataset: Any,
    *,
    devices: int = 1,
    num_images: int | None = None,
    seconds: float = 20.0,
    **choices: Any,
) -> Plan:
    """Measure a few batches and say what ``journey.featurize`` of the same arguments will take; writes nothing.

    What ``journey.featurize`` would refuse is refused. The first batch of each kind does not count, further ones are
    measured until the time is over, at least one.

    Args:
        model: The model, on the device that it will be measured on.
        dataset: The images, in any form but an iterator, of which the images that are read here would be missing later.
        devices: Devices such as the model's, each with a process, that are to share the work.
        num_images: Plan for so many images like these; by default for those of the dataset, of a stream for 1,000.
        seconds: How long to measure, about; models whose batches take longer take longer.
        **choices: Those of ``journey.featurize``, from ``fit`` to ``on_error``. Without a ``fit`` its making is part of
            the plan; of several ``checkpoints`` the first is measured under.

    Returns:
        The plan.

    Raises:
        ValueError: As ``journey.featurize``; if ``devices`` or ``num_images`` is no positive integer, ``seconds`` no
            positive number, or the dataset is an iterator.
        TypeError: As ``journey.featurize``, as are further errors.

    Example:
        >>> print(plan((unet, scheduler), dataset, devices=8))
    """
    check_count("devices", devices)
    if num_images is not None:
        check_count("num_images", num_images)
    if not 0 < seconds < inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds!r}")
    given = prepare(model, dataset, Choices(**choices), out=None)
    source, length = given.source, _length(given)
    if isinstance(source, Stream) and source.once:
        raise ValueError(
            "dataset is an iterator, which can be read only once, and the images that are read for a plan would be "
            "missing from it: give an object whose iter() begins anew"
        )
    if not isinstance(source, Stream):
        check_images(None, source, given.ids, given.featurizer.denoiser, given.choices.on_error)
    count = num_images or length or _OF_STREAM
    device = given.featurizer.denoiser.device
    counted = _reset(device)
    fitting, fingerprint = _fitting(given, count, seconds * _FITTING)
    measuring = cost_of_measuring(given, seconds * _MEASURING)
    peak = peak_bytes(device) + fitting.held_bytes if counted else None
    manifest = given.manifest_with(fit=fingerprint)
    return _put_together(given, manifest, fitting, measuring, (devices, count, length, peak))


def _put_together(
    given: Prepared,
    manifest: Manifest,
    fitting: FitCost,
    measuring: MeasureCost,
    numbers: tuple[int, int, int | None, int | None],
) -> Plan:
    """The plan, of the costs of its parts."""
    devices, count, length, peak = numbers
    stream, measurer = isinstance(given.source, Stream), measuring.measurer
    size = given.choices.shard_size or default_shard_size(None if stream else count, measurer.images_per_batch)
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
        store_bytes_exact=exact and given.choices.on_error == "error",
        memory_bytes=peak,
        query_seconds=query,
        read_bytes_per_second=speed,
    )


def _length(given: Prepared) -> int | None:
    """Images of the dataset; None of a stream, unless it ends before as many as are looked at."""
    if not isinstance(given.source, Stream):
        return len(given.ids)
    return len(given.sample) if 0 < len(given.sample) < IMAGES else None


def _fitting(given: Prepared, count: int, seconds: float) -> tuple[FitCost, str]:
    """The cost of the fit, and its fingerprint or one as long."""
    if given.choices.fit is None:
        return cost_of_fit(given, count, seconds), "0" * 64
    fitted = use_fit(given.choices.fit, given.featurizer, given.told)
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
