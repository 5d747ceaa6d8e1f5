"""What featurizing will take, in numbers and in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from journey.features.plan_measure import QUERY_STEPS
from journey.features.plan_times import Spread


@dataclass(frozen=True)
class Plan:
    """What featurizing will take.

    Attributes:
        num_images: Images that it is for.
        length_known: Whether the dataset has as many; of a stream nobody knows, and the plan is for 1,000, or for as
            many as were asked for.
        devices: Devices, or processes, that share the work.
        device: What it was measured on.
        seconds: The whole, on these devices, with the fit.
        seconds_per_image: Of measuring, on one device, under all checkpoints.
        passes: Times that the network runs forward and backward to measure the images, without the first batch's
            comparison with autograd and the layers' sizes of one image in 256.
        num_batches: That were measured for this plan.
        fit_seconds: Of it the fit, which one process makes while the others wait; 0 of a fit that is given.
        scale_gradients: Pseudo-gradients that it takes for scales.
        own_gradients: Own gradients of images that it takes for Gram matrices.
        pseudo_gradients: Pseudo-gradients likewise.
        fit_passes: Times that the network runs forward and backward for the fit.
        fit_bytes: Of its Gram matrices on disk.
        store_bytes: Of the store, without the fit.
        store_bytes_exact: Whether to the byte: so if all ids are known and no image will be skipped.
        memory_bytes: Peak of a process that makes the fit and measures: resident on the CPU, on a CUDA device allocated
            there; None if the system does not tell.
        query_seconds: Of ``journey.score`` for one image at three steps; None without a Gram matrix.
        read_bytes_per_second: Speed at which it was taken to read rows: that of rows that the system holds in memory,
            checksums included. A disk may be slower.
    """

    num_images: int
    length_known: bool
    devices: int
    device: str
    seconds: Spread
    seconds_per_image: Spread
    passes: int
    num_batches: int
    fit_seconds: Spread
    scale_gradients: int
    own_gradients: int
    pseudo_gradients: int
    fit_passes: int
    fit_bytes: int
    store_bytes: int
    store_bytes_exact: bool
    memory_bytes: int | None
    query_seconds: float | None
    read_bytes_per_second: float | None

    @property
    def fit_share(self) -> float:
        """Share of the fit in the whole time."""
        return self.fit_seconds.median / self.seconds.median

    def to_json(self) -> str:
        """Return the plan as a JSON object; times are objects of median, lowest and highest seconds."""
        return json.dumps({**asdict(self), "fit_share": self.fit_share}, indent=2, allow_nan=False)

    def __str__(self) -> str:
        """A table to read."""
        known = "" if self.length_known else ", of a dataset of unknown length"
        plural = "" if self.devices == 1 else "s"
        memory = "the system does not tell" if self.memory_bytes is None else _bytes(self.memory_bytes)
        kind = "allocated" if self.device.startswith("cuda") else "resident"
        rows = {
            "time": f"{_spread(self.seconds)}, on {self.devices} device{plural} ({self.device})",
            "per image": f"{_spread(self.seconds_per_image)} on one device; {self.passes:,} passes of the network",
            "fit": self._fit(),
            "store": f"{'' if self.store_bytes_exact else 'about '}{_bytes(self.store_bytes)}, "
            f"and {_bytes(self.fit_bytes)} of the fit",
            "memory": f"{memory} {kind}, of one process",
            "one query": self._query(),
        }
        lines = [f"{name:<10} {text}" for name, text in rows.items()]
        sure = f"From {self.num_batches} batches; in brackets by the fastest and the slowest."
        return "\n".join([f"{self.num_images:,} images{known}", *lines, sure])

    def _fit(self) -> str:
        if not self.fit_seconds.highest:
            return "given"
        kinds = {"for scales": self.scale_gradients, "own": self.own_gradients, "pseudo": self.pseudo_gradients}
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
        return f"{_spread(self.fit_seconds)}, {self.fit_share:.0%} of the time; gradients: {counts or 'none'}"

    def _query(self) -> str:
        if self.query_seconds is None or self.read_bytes_per_second is None:
            return "features as long as these, or a fit without a Gram matrix, cannot be scored"
        return (
            f"{_time(self.query_seconds)} at {QUERY_STEPS} steps, if rows are read at "
            f"{_bytes(self.read_bytes_per_second)} per second, as from memory"
        )


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _spread(seconds: Spread) -> str:
    return f"{_time(seconds.median)} [{_time(seconds.lowest)} to {_time(seconds.highest)}]"
