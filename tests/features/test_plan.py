"""A plan names the bytes and the passes that featurizing then takes, writes nothing, and refuses the same."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Images, SmallDenoiser, make_images, make_scheduler
from PIL import Image
from torch import Tensor, nn

import journey
from journey.errors import GradientCheckError
from journey.features.plan import plan
from journey.features.plan_times import Spread
from journey.features.planned import Plan
from journey.measure.draws import StratifiedDraws
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled

SCHEDULER = make_scheduler()
SMALL = {"projector": Scaled(CountSketch(64)), "draws": StratifiedDraws(num_draws=2)}


def planned(dataset: Any = None, network: nn.Module | None = None, **options: Any) -> Plan:
    """A plan from as few batches as there may be, of nine images unless told otherwise."""
    model = (SmallDenoiser() if network is None else network, SCHEDULER)
    dataset = Images(make_images(9)) if dataset is None else dataset
    return plan(model, dataset, **{**SMALL, "seconds": 1e-6, **options})


def featurized(out: Path, dataset: Any = None, network: nn.Module | None = None, **options: Any) -> journey.Features:
    """The same, featurized."""
    model = (SmallDenoiser() if network is None else network, SCHEDULER)
    dataset = Images(make_images(9)) if dataset is None else dataset
    return journey.featurize(model, dataset, out, **{**SMALL, "progress": False, **options})


def bytes_in(folder: Path) -> int:
    """Of the store alone: the fit is in a folder of its own."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


class Stream:
    """Images with ids that begin anew at every iter()."""

    def __init__(self, count: int) -> None:
        self.images = make_images(count)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((f"image {i:04d}", image) for i, image in enumerate(self.images))


class Counted(SmallDenoiser):
    """Counts how often it is called."""

    calls = 0

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x_t, timesteps)

    @classmethod
    def during(cls, run: Callable[[], object]) -> int:
        before = cls.calls
        run()
        return cls.calls - before


NAMED = [{"id": name, "image": image} for name, image in zip("abcdefghijklmnopqrstuvw", make_images(23), strict=True)]
STORES = {
    "the default": {},
    "one shard": {"shard_size": 100},
    "the last shard and batch short": {"shard_size": 4, "batch_size": 3},
    "4 bits in bins": {"row": "int4", "draws": StratifiedDraws(num_draws=2, bins=3), "shard_size": 5},
    "floats of no sketch": {"row": "float32", "projector": Identity()},
    "half floats under two checkpoints": {"row": "float16", "checkpoints": [SmallDenoiser(1), SmallDenoiser(2)]},
    "some layers": {"select": ["inward.*", "time.weight"]},
    "no measurement to fit": {"measurement": journey.TrainingLoss()},
}


@pytest.mark.parametrize("options", STORES.values(), ids=STORES)
@pytest.mark.parametrize("dataset", [Images(make_images(23)), NAMED], ids=["numbered", "named"])
def test_the_bytes_of_the_store_are_those_that_featurizing_writes(
    tmp_path: Path, dataset: Any, options: dict[str, Any]
) -> None:
    expected = planned(dataset, **options)
    featurized(tmp_path / "f", dataset, **options)
    assert expected.store_bytes == bytes_in(tmp_path / "f")
    assert expected.store_bytes_exact
    assert expected.length_known
    assert expected.num_images == 23


def test_the_bytes_with_a_fit_that_lies_elsewhere_are_those_that_featurizing_writes(tmp_path: Path) -> None:
    journey.fit((SmallDenoiser(), SCHEDULER), Images(make_images(9)), tmp_path / "fit", projector=SMALL["projector"])
    expected = planned(fit=tmp_path / "fit")
    featurized(tmp_path / "f", fit=tmp_path / "fit")
    assert expected.store_bytes == bytes_in(tmp_path / "f")
    assert expected.fit_seconds.highest == expected.fit_passes == expected.fit_bytes == 0
    assert expected.query_seconds is not None


PASSES = {
    "the default": {},
    "one image at once": {"batch_size": 1},
    "shards that are no whole batches": {"batch_size": 3, "shard_size": 7},
    "several bins": {"draws": StratifiedDraws(num_draws=2, bins=10)},
    "two checkpoints": {"batch_size": 4, "checkpoints": [SmallDenoiser(1), SmallDenoiser(2)]},
}


@pytest.mark.parametrize("kept", [4 << 30, 4000], ids=["rows at will", "few rows at once"])
@pytest.mark.parametrize("options", PASSES.values(), ids=PASSES)
def test_the_passes_are_the_calls_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kept: int
) -> None:
    monkeypatch.setattr("journey.gradients.passes._KEPT_BYTES", kept)
    monkeypatch.setattr("journey.features.fill.sampled_ids", lambda *_: set())
    dataset, model = Images(make_images(20)), (Counted(), SCHEDULER)
    expected = plan(model, dataset, **{**SMALL, "seconds": 1e-6, **options})
    fitted = {name: value for name, value in {**SMALL, **options}.items() if name in ("projector", "checkpoints")}
    fit = Counted.during(lambda: journey.fit(model, dataset, tmp_path / "fit", progress=False, **fitted))
    asked = {**SMALL, **options, "fit": tmp_path / "fit", "check": False, "progress": False}
    measured = Counted.during(lambda: journey.featurize(model, dataset, tmp_path / "f", **asked))
    probe = 1  # a call that tells what the network keeps, once for each of the two
    if "batch_size" in options:
        # A fit that featurize makes has its batch size, this one has not.
        fit = Counted.during(lambda: featurized(tmp_path / "g", dataset, model[0], **options, check=False)) - measured
        assert (expected.passes, expected.fit_passes) == (measured, fit)
    else:
        assert (expected.passes, expected.fit_passes) == (measured - probe, fit - probe)
    assert kept > 4000 or "batch_size" in options or expected.passes > 20


def test_the_fit_takes_the_gradients_of_its_images() -> None:
    found = planned(num_images=600)  # of which 512 are fitted to
    assert (found.scale_gradients, found.own_gradients, found.pseudo_gradients) == (512, 5120, 512)
    few = planned()  # nine, each with as many pseudo-gradients
    assert (few.scale_gradients, few.own_gradients, few.pseudo_gradients) == (57 * 9, 90, 8 * 9)
    none = planned(projector=CountSketch(64), measurement=journey.TrainingLoss())
    assert (none.scale_gradients, none.own_gradients) == (0, 90)


def test_features_too_long_for_a_gram_matrix_have_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("journey.features.fit.LARGEST_GRAM", 100)
    found = planned()
    assert found.query_seconds is found.read_bytes_per_second is None
    assert found.own_gradients == found.pseudo_gradients == found.fit_bytes == 0
    assert "cannot be scored" in str(found)


def test_the_gram_matrix_has_the_bytes_that_its_fit_writes(tmp_path: Path) -> None:
    expected = planned().fit_bytes
    featurized(tmp_path / "f")
    found = (tmp_path / "f" / "fit" / "gram-000.safetensors").stat().st_size
    assert found - 1000 < expected < found  # but for the header


def test_a_stream_is_planned_for_a_thousand_images_or_as_many_as_are_asked_for() -> None:
    unknown = planned(Stream(600))
    assert (unknown.num_images, unknown.length_known, unknown.store_bytes_exact) == (1000, False, False)
    assert "unknown length" in str(unknown)
    assert planned(Stream(600), num_images=50_000).num_images == 50_000


def test_a_stream_that_ends_within_the_images_of_a_fit_has_a_known_length() -> None:
    found = planned(Stream(30))
    assert (found.num_images, found.length_known) == (30, True)


def test_the_bytes_of_a_stream_are_about_those_that_featurizing_writes(tmp_path: Path) -> None:
    expected = planned(Stream(300), shard_size=30, projector=CountSketch(256))
    featurized(tmp_path / "f", Stream(300), shard_size=30, projector=CountSketch(256))
    assert not expected.store_bytes_exact
    assert expected.store_bytes == pytest.approx(bytes_in(tmp_path / "f"), rel=0.03)


def test_the_bytes_of_more_images_than_there_are_grow_with_them(tmp_path: Path) -> None:
    expected = planned(Images(make_images(40)), num_images=400, projector=CountSketch(256), shard_size=40)
    featurized(tmp_path / "f", Images(make_images(400)), projector=CountSketch(256), shard_size=40)
    assert not expected.store_bytes_exact
    assert expected.store_bytes == pytest.approx(bytes_in(tmp_path / "f"), rel=0.03)


def test_every_second_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that advances by one second between two looks at it, every call takes one."""
    ticks = itertools.count()
    monkeypatch.setattr("journey.features.plan_times.time.perf_counter", lambda: float(next(ticks)))
    options = {"batch_size": 2, "shard_size": 8, "dataset": Images(make_images(64))}
    alone, shared = planned(**options), planned(**options, devices=3)
    # Eight images are encoded at once, in four passes.
    assert alone.seconds_per_image == Spread(1 / 8, 1 / 8, 1 / 8)
    assert alone.passes == 32
    assert alone.seconds.median - alone.fit_seconds.median == pytest.approx(8)
    assert alone.fit_share == pytest.approx(alone.fit_seconds.median / alone.seconds.median)
    # Of eight shards among three devices one measures three.
    assert shared.seconds.median - shared.fit_seconds.median == pytest.approx(3)
    assert shared.fit_seconds == alone.fit_seconds


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(9):
        Image.new("L", (8, 8), 20 * i).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    written, watched = [], [True]

    def watch(event: str, given: tuple[Any, ...]) -> None:
        writes = event in ("os.mkdir", "os.rename", "os.link", "os.truncate")
        if event == "open":
            writes = bool(given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and not str(given[0]).startswith("/proc")
        if writes and watched:
            written.append(given[0])

    sys.addaudithook(watch)  # which nothing takes away again
    try:
        planned(folder)
        planned(Stream(20), batch_size="auto")
        assert not written
        (tmp_path / "proof").write_text("that it is seen")
        assert written == [str(tmp_path / "proof")]
    finally:
        watched.clear()
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "proof"]


def test_what_is_measured_after_a_plan_does_not_depend_on_it(tmp_path: Path) -> None:
    expected = featurized(tmp_path / "before").matrix()
    network = SmallDenoiser()
    planned(network=network)
    torch.testing.assert_close(featurized(tmp_path / "after", network=network).matrix(), expected, rtol=0, atol=0)


class Twisted(nn.Module):
    """A network with a parameter of its own, which meets the batch in the second dimension: there is no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.twist = SmallDenoiser(), nn.Parameter(torch.ones(1))
        self.config = self.inner.config
        self.eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return (self.twist * self.inner(x_t, timesteps).transpose(0, 1)).transpose(0, 1)


BROKEN = make_images(9)
BROKEN[4, 0, 3, 3] = torch.nan
REFUSED: dict[str, dict[str, Any]] = {
    "more bins than timesteps": {"draws": StratifiedDraws(2, bins=200)},
    "no batch": {"batch_size": 0},
    "memory without auto": {"memory": 10},
    "an unknown row": {"row": "int2"},
    "no shard": {"shard_size": 0},
    "an unknown way with errors": {"on_error": "ignore"},
    "a class for a projector": {"projector": CountSketch},
    "a pattern that matches nothing": {"select": "nothing.*"},
    "no image": {"dataset": []},
    "an image that is not finite": {"dataset": Images(BROKEN)},
    "images of another size": {"dataset": Images(make_images(9)[:, :, :4])},
    "an empty stream": {"dataset": Stream(0)},
    "an iterator without a fit": {"dataset": iter(Stream(9))},
    "a path that leads nowhere": {"dataset": "/no/such/folder"},
    "a network in train mode": {"network": SmallDenoiser().train()},
    "a parameter without a rule": {"network": Twisted()},
    "a network that is not finite": {"network": SmallDenoiser()},
    "a fit that is not there": {"fit": "/no/such/fit"},
    "no process to read": {"workers": -1, "projector": CountSketch(64), "measurement": journey.TrainingLoss()},
}
with torch.no_grad():
    REFUSED["a network that is not finite"]["network"].outward.weight.fill_(torch.nan)


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_featurizing_refuses_is_refused_in_the_same_words(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011 of each its own
        featurized(tmp_path / "f", **options)
    with pytest.raises(type(expected.value)) as found:
        planned(**options)
    assert str(found.value) == str(expected.value)


def test_a_fit_of_another_network_is_refused_in_the_same_words(tmp_path: Path) -> None:
    fit = journey.fit((SmallDenoiser(1), SCHEDULER), Images(make_images(9)), tmp_path / "fit", progress=False)
    with pytest.raises(journey.errors.StoreMismatchError) as expected:
        featurized(tmp_path / "f", fit=fit)
    with pytest.raises(journey.errors.StoreMismatchError) as found:
        planned(fit=fit)
    assert str(found.value) == str(expected.value)


def test_gradients_that_are_not_autograds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountSketch, "add_layers_", lambda self, features, *_: features.add_(1))
    with pytest.raises(GradientCheckError):
        planned()


@pytest.mark.parametrize(
    ("name", "number"),
    [("devices", 0), ("devices", 1.5), ("num_images", 0), ("seconds", 0), ("seconds", float("nan"))],
)
def test_numbers_that_cannot_be_are_refused(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*positive.*, got {number}"):
        planned(**{name: number})


def test_an_iterator_is_refused_since_a_plan_would_take_images_from_it(tmp_path: Path) -> None:
    fit = journey.fit((SmallDenoiser(), SCHEDULER), Images(make_images(9)), tmp_path / "fit", progress=False)
    images = iter(Stream(9))
    with pytest.raises(ValueError, match="would be missing"):
        planned(images, fit=fit, projector=Scaled(CountSketch()))
    assert len(list(images)) == 9


def test_images_that_cannot_be_read_are_skipped_where_they_are_to_be(tmp_path: Path) -> None:
    options = {"on_error": "skip", "projector": CountSketch(64), "measurement": journey.TrainingLoss()}

    class Faulty(Images):
        def __getitem__(self, index: int) -> Tensor:
            if index % 9 == 0:
                raise OSError("the file is damaged")
            return super().__getitem__(index)

    found = planned(Faulty(make_images(20)), **options)
    assert not found.store_bytes_exact
    with pytest.raises(ValueError, match="the file is damaged"):
        planned(Faulty(make_images(20)), **{**options, "on_error": "error"})


def test_the_json_holds_every_number() -> None:
    found = planned()
    told = json.loads(found.to_json())
    assert told.keys() == {field.name for field in fields(Plan)} | {"fit_share"}
    assert told["seconds"]["lowest"] <= told["seconds"]["median"] <= told["seconds"]["highest"]
    assert told["store_bytes"] == found.store_bytes
