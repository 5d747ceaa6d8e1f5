"""Stores that several processes fill and that grow: no row depends on who measured it, when, or beside what."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Images, SmallDenoiser, make_images, make_scheduler
from score_runs import make_trajectory
from torch import Tensor

import journey
from journey.errors import CorruptShardError, IncompleteStoreError, StoreError, StoreMismatchError
from journey.features import contents
from journey.files.lock import Claims
from journey.store.store import FeatureStore

NUM_IMAGES = 40
OPTIONS: dict[str, Any] = {
    "projector": journey.CountSketch(64),
    "draws": journey.StratifiedDraws(2),
    "progress": False,
    "batch_size": 3,
}


class Named(Images):
    """Images with names, some of them, in any order."""

    def __init__(self, positions: list[int], wait: float = 0.0) -> None:
        super().__init__(make_images(64)[positions])
        self.ids = [f"é/{i}.png" for i in positions]
        self.wait = wait

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.wait)
        return super().__getitem__(index)


class Endless:
    """A stream that can be read again."""

    def __init__(self, positions: list[int], broken: tuple[int, ...] = ()) -> None:
        self.positions, self.broken = positions, broken

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for i in self.positions:
            yield f"é/{i}.png", torch.zeros(3, 3) if i in self.broken else make_images(64)[i]


def run(out: Path, dataset: Any, **options: Any) -> journey.Features:
    return journey.featurize((SmallDenoiser(), make_scheduler()), dataset, out, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> journey.Fit:
    folder = tmp_path_factory.mktemp("fit")
    model = (SmallDenoiser(), make_scheduler())
    dataset = Named(list(range(NUM_IMAGES)))
    return journey.fit(model, dataset, folder, projector=OPTIONS["projector"], progress=False)


def rows_of(features: journey.Features) -> dict[int | str, bytes]:
    """The bytes of every row, by id."""
    found: dict[int | str, bytes] = {}
    for shard in features.shards():
        for at, i in enumerate(shard.ids):
            names = ("rows", "scales", "norm", "values", "content")
            found[i] = b"".join(shard.tensors[name][at].numpy().tobytes() for name in names)
    return found


@pytest.fixture(scope="module")
def expected(fit: journey.Fit, tmp_path_factory: pytest.TempPathFactory) -> dict[int | str, bytes]:
    """The rows of one process that measures all in order."""
    torch.set_num_threads(1)  # as forks, which have no thread pool
    try:
        return rows_of(run(tmp_path_factory.mktemp("one") / "f", Named(list(range(NUM_IMAGES))), fit=fit))
    finally:
        torch.set_num_threads(2)


def test_processes_that_are_killed_and_come_late_leave_the_rows_of_one(
    tmp_path: Path, fit: journey.Fit, expected: dict[int | str, bytes]
) -> None:
    def start(rank: int) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                run(
                    tmp_path / "f", Named(list(range(NUM_IMAGES)), 0.01), fit=fit, shard_size=2, rank=rank, world_size=2
                )
                status = 0
            finally:
                os._exit(status)
        return pid

    def wait_for(count: int) -> None:
        while len(list((tmp_path / "f").glob("rows-*"))) < count:
            time.sleep(0.005)

    first, second = start(0), start(1)
    for count in (3, 8):
        wait_for(count)
        os.kill(second, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(second, 0)[1])
        second = start(1)
    third = start(0)
    assert [os.waitpid(pid, 0)[1] for pid in (first, second, third)] == [0, 0, 0]
    run(tmp_path / "f", Named(list(range(NUM_IMAGES))), fit=fit)  # what a killed process had in hand last
    store = FeatureStore.open(tmp_path / "f")
    assert [part.ids for part in store.parts()] == [Named(list(range(NUM_IMAGES))).ids]
    assert len(list((tmp_path / "f").glob("rows-*"))) == NUM_IMAGES // 2
    assert rows_of(run(tmp_path / "f", Named(list(range(NUM_IMAGES))), fit=fit)) == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_measuring_changes_no_byte_of_a_row(
    tmp_path: Path, fit: journey.Fit, expected: dict[int | str, bytes], seed: int
) -> None:
    order = list(range(NUM_IMAGES))
    random.Random(seed).shuffle(order)
    torch.set_num_threads(1)
    try:
        run(tmp_path / "f", Named(order[:7]), fit=fit, shard_size=5)
        run(tmp_path / "f", Named(order[:23]), fit=fit, shard_size=4, workers=2)
        features = run(tmp_path / "f", Named(order), fit=fit)
        streamed = run(tmp_path / "s", Endless(order), fit=fit, shard_size=6)
    finally:
        torch.set_num_threads(2)
    assert features.ids == [f"é/{i}.png" for i in order]
    assert rows_of(features) == expected
    assert rows_of(streamed) == expected


def score(features: journey.Features, **options: Any) -> journey.Scores:
    return journey.score(features, make_trajectory(), steps=[40], num_draws=4, progress=False, **options)


def test_scores_of_old_images_stay_when_a_store_grows(tmp_path: Path, fit: journey.Fit) -> None:
    few = run(tmp_path / "f", Named(list(range(10))), fit=fit, draws=journey.StratifiedDraws(4))
    before, whole = score(few), few.store.path
    grown = run(whole, Named(list(range(15))), fit=fit, draws=journey.StratifiedDraws(4))
    after = score(grown)
    assert after.train_ids[:10] == before.train_ids
    torch.testing.assert_close(after.values[..., :10], before.values, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(after.standard_errors()[..., :10], before.standard_errors(), rtol=1e-5, atol=0)
    images = journey.score(grown, images=make_images(2), progress=False)
    assert torch.equal(journey.score(few, images=make_images(2), progress=False).values, images.values[..., :10])


def test_parts_of_a_store_are_scored_as_in_the_whole(tmp_path: Path, fit: journey.Fit) -> None:
    features = run(tmp_path / "f", Named(list(range(12))), fit=fit, shard_size=5)
    whole, ids = score(features), features.ids
    part = features.select([ids[7], ids[2], ids[11]])
    assert part.ids == [ids[2], ids[7], ids[11]]
    torch.testing.assert_close(score(part).values, whole.values[..., [2, 7, 11]])
    rest = features.without([ids[0], ids[5]])
    assert rest.ids == [i for i in ids if i not in (ids[0], ids[5])]
    torch.testing.assert_close(score(rest).values, whole.values[..., [1, 2, 3, 4, *range(6, 12)]])
    assert rest.without([ids[1]]).num_samples == 9
    for wrong in (["é/99.png"], []):
        with pytest.raises(ValueError, match="ids must"):
            features.select(wrong)


def test_stores_of_one_fit_are_joined(tmp_path: Path, fit: journey.Fit) -> None:
    one = run(tmp_path / "a", Named(list(range(8))), fit=fit)
    run(tmp_path / "b", Named(list(range(5, 12))), fit=fit)
    model = (SmallDenoiser(), make_scheduler())
    joined = journey.open_features([tmp_path / "a", tmp_path / "b"], model, fit=fit)
    assert joined.ids == [f"é/{i}.png" for i in range(12)]
    torch.testing.assert_close(score(joined).values[..., :8], score(one).values, rtol=1e-6, atol=1e-9)
    other = Named(list(range(20, 25)))
    other.ids = [f"é/{i}.png" for i in range(5)]
    run(tmp_path / "c", other, fit=fit)
    with pytest.raises(StoreMismatchError, match=r"c holds an image of id 'é/0.png' that differs"):
        journey.open_features([tmp_path / "a", tmp_path / "c"], model, fit=fit)
    run(tmp_path / "d", other, fit=fit, draws=journey.StratifiedDraws(2, seed=1))
    with pytest.raises(StoreMismatchError, match=r"draws\.seed"):
        journey.open_features([tmp_path / "a", tmp_path / "d"], model, fit=fit)
    with pytest.raises(ValueError, match="path must name at least one folder"):
        journey.open_features([], model)


class Broken(Named):
    """Images of which some cannot be read, or do not fit."""

    broken: tuple[int, ...] = (3, 4, 5, 9)

    def __getitem__(self, index: int) -> Tensor:
        if index in self.broken[:-1]:
            raise OSError("the file ends in the middle")
        return torch.zeros(3, 3, 3) if index in self.broken else super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_left_out_named_and_tried_again(
    tmp_path: Path, fit: journey.Fit, expected: dict[int | str, bytes], workers: int
) -> None:
    dataset = Broken(list(range(12)))
    with pytest.raises(ValueError, match=r"dataset\[3\] \(é/3.png\) cannot be read: OSError: the file ends"):
        run(tmp_path / "f", dataset, fit=fit, shard_size=3, workers=workers)
    with pytest.warns(UserWarning, match=r"4 images were left out: é/3.png \(OSError: the file ends in the middle\)"):
        features = run(tmp_path / "f", dataset, fit=fit, workers=workers, on_error="skip")
    assert features.ids == [i for at, i in enumerate(dataset.ids) if at not in dataset.broken]
    with pytest.warns(UserWarning, match="4 images were left out"):
        again = run(tmp_path / "f", dataset, fit=fit, on_error="skip")
    assert again.ids == features.ids
    assert len(again.store.parts()) == 1, "what cannot be read still was planned again"
    with pytest.raises(ValueError, match=r"dataset\[3\] \(é/3.png\) cannot be read: OSError: the file ends"):
        run(tmp_path / "f", dataset, fit=fit)
    dataset.broken = ()
    mended = run(tmp_path / "f", dataset, fit=fit)
    assert sorted(mended.ids) == sorted(dataset.ids)
    torch.testing.assert_close(mended.matrix().sum(), run(tmp_path / "g", dataset, fit=fit).matrix().sum())


def test_a_stream_names_what_is_broken_and_passes_over_what_is_there(tmp_path: Path, fit: journey.Fit) -> None:
    with pytest.raises(ValueError, match=r"image 'é/4.png' must be an image \[C, H, W\], got \[3, 3\]"):
        run(tmp_path / "f", Endless(list(range(9)), (4,)), fit=fit, shard_size=3)
    assert run(tmp_path / "f", Endless(list(range(3))), fit=fit).ids == ["é/0.png", "é/1.png", "é/2.png"]
    with pytest.warns(UserWarning, match="1 images were left out: é/4.png"):
        features = run(tmp_path / "f", Endless(list(range(9)), (4,)), fit=fit, shard_size=3, on_error="skip")
    assert len(features.ids) == 8
    with pytest.raises(ValueError, match=r"got 'é/1\.png' for two or more of the stream"):
        run(tmp_path / "g", Endless([0, 1, 2, 1]), fit=fit)


def test_processes_share_a_stream_and_measure_every_image_once(
    tmp_path: Path, fit: journey.Fit, expected: dict[int | str, bytes]
) -> None:
    torch.set_num_threads(1)
    try:
        for rank in (1, 0):
            features = run(tmp_path / "f", Endless(list(range(NUM_IMAGES))), fit=fit, rank=rank, world_size=2)
    finally:
        torch.set_num_threads(2)
    assert rows_of(features) == expected
    unnamed = list(make_images(6))
    with pytest.raises(ValueError, match="ids must be the caller's own where several processes read a stream"):
        run(tmp_path / "g", iter(unnamed), fit=fit, rank=0, world_size=2)


def test_a_stream_that_can_be_read_once_needs_a_fit(tmp_path: Path, fit: journey.Fit) -> None:
    with pytest.raises(ValueError, match="dataset is an iterator, which can be read only once"):
        run(tmp_path / "f", iter(make_images(6)))
    assert run(tmp_path / "f", iter(make_images(6)), fit=fit).ids == list(range(6))
    assert run(tmp_path / "g", (image for image in make_images(6)), fit=fit, workers=1).num_samples == 6


def test_another_image_under_an_id_that_is_there_is_refused(tmp_path: Path, fit: journey.Fit) -> None:
    run(tmp_path / "f", Named(list(range(6))), fit=fit)
    other = Named([0, 1, 2, 9, 4, 5])
    other.ids = Named(list(range(6))).ids
    with pytest.raises(StoreMismatchError, match=r"the one of id 'é/3\.png' has other pixels"):
        run(tmp_path / "f", other, fit=fit)


def test_draws_are_keyed_by_ids_and_not_by_positions(tmp_path: Path, fit: journey.Fit) -> None:
    one, other = Named([3, 7]), Named([7, 3])
    a, b = (run(tmp_path / name, d, fit=fit, row="float32") for name, d in (("a", one), ("b", other)))
    assert torch.equal(a.matrix(), b.matrix().flip(0))
    renamed = Named([3, 7])
    renamed.ids = ["x", "y"]
    assert not torch.equal(run(tmp_path / "c", renamed, fit=fit, row="float32").matrix(), a.matrix())


def test_a_fit_of_images_that_cannot_be_read_leaves_them_out(tmp_path: Path) -> None:
    dataset = Broken(list(range(12)))
    with pytest.warns(UserWarning, match="4 images were left out"):
        features = run(tmp_path / "f", dataset, on_error="skip")
    assert features.num_samples == 8
    assert score(features).values.isfinite().all()
    dataset.broken = (0, 99)
    with pytest.warns(UserWarning, match=r"1 images were left out: é/0.png"):
        assert run(tmp_path / "h", dataset, on_error="skip", batch_size="auto").num_samples == 11
    with pytest.raises(ValueError, match=r"dataset\[0\] cannot be read: OSError: the file ends"):
        journey.fit((SmallDenoiser(), make_scheduler()), dataset, tmp_path / "fit", progress=False)
    dataset.broken = tuple(range(12))
    with pytest.raises(ValueError, match="dataset must hold an image that can be read and fits the model, got none"):
        run(tmp_path / "g", dataset, on_error="skip")


def test_streams_of_other_images_under_the_same_ids_lose_none_and_are_refused(tmp_path: Path, fit: journey.Fit) -> None:
    class Numbered(Endless):
        def __iter__(self) -> Iterator[tuple[str, Any]]:
            for name, (_, item) in zip("abcdefgh", super().__iter__(), strict=False):
                yield name, item

    run(tmp_path / "f", Numbered(list(range(8))), fit=fit, shard_size=4)
    with pytest.raises(StoreMismatchError, match=r"the one of id '[ae]' has other pixels"):
        run(tmp_path / "f", Numbered(list(range(20, 28))), fit=fit, shard_size=4)
    once = iter(list(Numbered(list(range(20, 28)))))
    assert run(tmp_path / "f", once, fit=fit, shard_size=4).num_samples == 8  # what is there is passed over unread
    # Two processes that did not see each other: neither writes over the other, and the clash is named.
    run(tmp_path / "g", Numbered(list(range(20, 28))), fit=fit, shard_size=4)
    for path in (tmp_path / "g").glob("rows-*"):
        (tmp_path / "f" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(StoreMismatchError, match=r"holds an image of id '[ae]' that differs"):
        score(journey.open_features(tmp_path / "f", (SmallDenoiser(), make_scheduler()), fit=fit))


def test_an_id_that_comes_twice_is_refused_also_where_it_is_stored(tmp_path: Path, fit: journey.Fit) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"got 'é/1\.png' for two or more of the stream"):
            run(tmp_path / "f", Endless([0, 1, 2, 3, 1]), fit=fit, shard_size=2)


def test_under_every_checkpoint_a_shard_holds_the_same_images(tmp_path: Path) -> None:
    weights = [SmallDenoiser(1), SmallDenoiser(2)]
    dataset = Broken(list(range(8)))
    dataset.broken = (3, 99)
    with pytest.warns(UserWarning, match="1 images were left out"):
        features = run(tmp_path / "f", dataset, checkpoints=weights, on_error="skip")
    expected = score(features).values
    for path in features.store.path.glob("rows-001-*"):
        path.unlink()
    dataset.broken = (5, 99)
    with pytest.raises(ValueError, match=r"dataset\[5\] \(é/5.png\) cannot be read"):
        run(tmp_path / "f", dataset, checkpoints=weights, on_error="skip")
    dataset.broken = ()
    whole = run(tmp_path / "f", dataset, checkpoints=weights, on_error="skip")
    assert sorted(whole.ids) == dataset.ids
    found = score(whole.select(features.ids)).values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_an_image_that_is_gone_does_not_keep_the_finished_ones(
    tmp_path: Path, fit: journey.Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_SAMPLED", 2)  # as of a dataset too large to look at each image first
    dataset = Broken(list(range(10)))
    dataset.broken = (8, 99)
    with pytest.raises(ValueError, match=r"dataset\[8\] \(é/8.png\)"):
        run(tmp_path / "f", dataset, fit=fit, shard_size=3)
    rest = Named([0, 1, 2, 3, 4, 5, 6, 7, 9])
    with pytest.raises(ValueError, match=r"got one without 'é/8.png'; those that it holds are measured"):
        run(tmp_path / "f", rest, fit=fit, shard_size=3)
    with pytest.warns(UserWarning, match="1 images were left out: é/8.png"):
        features = run(tmp_path / "f", rest, fit=fit, shard_size=3, on_error="skip")
    assert features.ids == rest.ids


def test_ids_of_two_kinds_do_not_meet_in_a_store(tmp_path: Path, fit: journey.Fit) -> None:
    integers, strings = run(tmp_path / "f", make_images(4), fit=fit), Endless([1, 2])
    with pytest.raises(StoreMismatchError, match=r"ids must be of the kind that .* has, such as 0, got 'é/1.png'"):
        run(tmp_path / "f", strings, fit=fit)
    assert integers.num_samples == 4
    run(tmp_path / "g", strings, fit=fit)
    with pytest.raises(StoreMismatchError, match="all integers or all strings, got both"):
        journey.open_features([tmp_path / "f", tmp_path / "g"], (SmallDenoiser(), make_scheduler()), fit=fit)
    with pytest.raises(TypeError, match="ids must be an integer or a string, got True"):
        integers.select([True, False])
    images = Named([0, 1, 2])
    images.ids = images.ids[:2]
    with pytest.raises(ValueError, match=r"dataset\.ids must name each of its 3 images, got 2"):
        run(tmp_path / "h", images, fit=fit)


def test_processes_of_other_datasets_know_shards_by_the_same_numbers(tmp_path: Path, fit: journey.Fit) -> None:
    features = run(tmp_path / "f", Named(list(range(6))), fit=fit, shard_size=6)
    features.store.plan(Named(list(range(6, 12))).ids, 6)
    (tmp_path / "f" / "rows-000-000000-000000.safetensors").unlink()
    holds, ends = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:  # has the first shard in hand, of images that are not in the other's dataset
        claims = Claims(tmp_path / "f")
        os.write(holds[1], b"x" if claims.take(0) else b"-")
        os.read(ends[0], 1)
        os._exit(0)
    try:
        assert os.read(holds[0], 1) == b"x"
        with pytest.raises(ValueError, match=r"got one without 'é/.*; those that it holds are measured"):
            run(tmp_path / "f", Named(list(range(6, 12))), fit=fit)
    finally:
        os.write(ends[1], b"x")
        os.waitpid(pid, 0)
    assert [path.name for path in (tmp_path / "f").glob("rows-*")] == ["rows-000-000001-000000.safetensors"]


def test_a_part_or_a_shard_of_another_store_of_the_run_is_refused(tmp_path: Path, fit: journey.Fit) -> None:
    ours = run(tmp_path / "a", Named(list(range(6))), fit=fit, shard_size=3).store.path
    theirs = run(tmp_path / "b", Named(list(range(6, 12))), fit=fit, shard_size=3).store.path
    (shard,) = [path for path in ours.glob("rows-*") if path.stem.endswith("000001")]
    before = shard.read_bytes()
    shard.write_bytes((theirs / shard.name).read_bytes())
    with pytest.raises(CorruptShardError, match=f"{shard.name} is damaged or belongs elsewhere"):
        score(journey.open_features(ours, (SmallDenoiser(), make_scheduler()), fit=fit))
    shard.write_bytes(before)
    part = ours / "part-000000.safetensors"
    part.unlink()
    for again in (Named(list(range(6))), Named(list(range(6, 12)))):
        with pytest.raises(StoreError, match=r"part-000000\.safetensors is missing, but rows of its images are there"):
            run(ours, again, fit=fit, shard_size=3)
    part.write_bytes((theirs / part.name).read_bytes())
    with pytest.raises(CorruptShardError, match="is damaged or belongs elsewhere"):
        run(ours, Named(list(range(6, 12))), fit=fit, shard_size=3).ids  # noqa: B018


def test_a_store_without_rows_says_so(tmp_path: Path, fit: journey.Fit) -> None:
    with pytest.raises(ValueError, match="got a stream without any"):
        run(tmp_path / "f", Endless([]), fit=fit)
    empty = journey.open_features(tmp_path / "f", (SmallDenoiser(), make_scheduler()), fit=fit)
    with pytest.raises(IncompleteStoreError, match="holds no image yet"):
        score(empty)


def test_the_fit_of_a_store_must_be_given_where_it_lies_elsewhere(tmp_path: Path, fit: journey.Fit) -> None:
    store = run(tmp_path / "f", Named(list(range(6))), fit=fit).store
    before = sorted(path.name for path in store.path.iterdir())
    with pytest.raises(StoreMismatchError, match="fit must be given"):
        run(tmp_path / "f", Named(list(range(6))))
    with pytest.raises(FileExistsError, match="which holds a feature store"):
        journey.fit((SmallDenoiser(), make_scheduler()), make_images(6), tmp_path / "f", progress=False)
    assert sorted(path.name for path in store.path.iterdir()) == before
