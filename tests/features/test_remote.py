"""Featurizing onto an object store, and scoring from it, is as it would be with a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Images, SmallDenoiser, make_images, make_scheduler
from object_stores import Server, s3_server

import journey
from journey.errors import CorruptShardError, StoreMismatchError
from journey.files.paths import as_path, names_in
from journey.projectors.scaled import Scaled
from journey.store.store import FeatureStore

IMAGES = make_images(12)
MODEL = (SmallDenoiser(), make_scheduler())
PROJECTOR = Scaled(journey.CountSketch(64))


class Watched(Images):
    """A dataset that tells which images are read, and does something at one of them when it is measured."""

    def __init__(self, images: torch.Tensor, at: int | None = None, then: Any = None) -> None:
        super().__init__(images)
        self.reads: list[int] = []
        self._at, self._then = at, then

    def __getitem__(self, index: int) -> torch.Tensor:
        self.reads.append(index)
        if index == self._at and self.reads.count(index) == 2:  # each is looked at once before the work
            self._then()
        return super().__getitem__(index)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def bucket(server: Server) -> str:
    return f"s3://{server.make_bucket()}"


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> journey.Fit:
    return journey.fit(MODEL, Images(IMAGES), tmp_path_factory.mktemp("fit"), projector=PROJECTOR, progress=False)


def featurize(out: str | Path, fit: Any, dataset: Any = None, **changes: Any) -> journey.Features:
    """Featurize in shards of two images."""
    arguments = {
        "projector": PROJECTOR,
        "draws": journey.StratifiedDraws(2),
        "shard_size": 2,
        "batch_size": 2,
        "check": False,
        "progress": False,
        **changes,
    }
    return journey.featurize(MODEL, Images(IMAGES) if dataset is None else dataset, out, fit=fit, **arguments)


@pytest.fixture(scope="module")
def local(fit: journey.Fit, tmp_path_factory: pytest.TempPathFactory) -> journey.Features:
    return featurize(tmp_path_factory.mktemp("local"), fit)


def rows(features: journey.Features) -> dict[int | str, list[bytes]]:
    """The bytes of each image's row, by id."""
    found: dict[int | str, list[bytes]] = {}
    for shard in features.shards():
        tensors = [tensor for name, tensor in sorted(shard.tensors.items()) if name != "ids"]
        for at, i in enumerate(shard.ids):
            assert i not in found
            found[i] = [tensor[at].numpy().tobytes() for tensor in tensors]
    return found


def shards(out: str) -> set[str]:
    """The shards that are there, by their numbers."""
    return {name[-18:-12] for name in names_in(as_path(out)) if name.startswith("rows-")}


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_two_ranks_measure_their_shares_and_the_rows_are_those_of_a_folder(
    request: pytest.FixtureRequest, kind: str, fit: journey.Fit, local: journey.Features
) -> None:
    root = request.getfixturevalue("bucket") if kind == "s3" else "memory://ranks"
    out = f"{root}/features"
    featurize(out, fit, rank=1, world_size=2)
    assert shards(out) == {"000001", "000003", "000005"}
    features = featurize(out, fit, rank=0, world_size=2)
    assert rows(features) == rows(local)
    assert names_in(as_path(out)) == names_in(local.store.path) - {".claims", ".verified.json"}


def test_a_run_that_was_stopped_measures_only_what_is_missing(
    bucket: str, fit: journey.Fit, local: journey.Features
) -> None:
    with pytest.raises(KeyboardInterrupt):
        featurize(f"{bucket}/features", fit, Watched(IMAGES, 7, interrupt))
    assert shards(f"{bucket}/features") == {"000000", "000001"}  # the third is written when the fourth is read
    again = Watched(IMAGES)
    features = featurize(f"{bucket}/features", fit, again)
    assert again.reads[12:] == list(range(4, 12))
    assert rows(features) == rows(local)


def test_a_connection_that_breaks_is_named_and_nothing_finished_is_lost(
    bucket: str, server: Server, fit: journey.Fit, local: journey.Features
) -> None:
    text = rf"cannot \w+ here \(EndpointConnectionError.*what is finished is kept: '{bucket}/features/"
    try:
        with pytest.raises(ConnectionError, match=text):
            featurize(f"{bucket}/features", fit, Watched(IMAGES, 4, server.stop))
    finally:
        server.start()
    assert shards(f"{bucket}/features") == {"000000"}
    assert rows(featurize(f"{bucket}/features", fit)) == rows(local)


def test_a_store_grows_and_keeps_its_rows(
    bucket: str, server: Server, fit: journey.Fit, local: journey.Features
) -> None:
    name = bucket.removeprefix("s3://")
    featurize(f"{bucket}/features", fit, Images(IMAGES[:5]))
    before = server.objects(name)
    more = Watched(IMAGES)
    features = featurize(f"{bucket}/features", fit, more)
    assert more.reads[12:] == list(range(5, 12))
    after = server.objects(name)
    assert {key: after[key] for key in before} == before
    assert rows(features) == rows(local)


def test_a_stream_is_measured_into_shards_without_a_plan(
    bucket: str, fit: journey.Fit, local: journey.Features
) -> None:
    stream = ({"id": i, "image": IMAGES[i]} for i in range(12))
    features = featurize(f"{bucket}/features", fit, stream)
    assert rows(features) == rows(local)


def test_what_cannot_be_written_is_refused_before_an_image_is_measured(
    bucket: str, server: Server, fit: journey.Fit
) -> None:
    featurize(f"{bucket}/features", fit, Images(IMAGES[:2]))
    dataset = Watched(IMAGES)
    with pytest.raises(StoreMismatchError, match=rf"{bucket}/features holds the features of a different run"):
        featurize(f"{bucket}/features", fit, dataset, draws=journey.StratifiedDraws(4))
    assert dataset.reads == []
    server.deny(bucket.removeprefix("s3://"), "PutObject")
    # A new store is begun when the images were looked at.
    with pytest.raises(PermissionError, match=rf"does not let these credentials write here.*{bucket}/other/manifest"):
        featurize(f"{bucket}/other", fit, dataset)
    with pytest.raises(OSError, match=r"there is no bucket nowhere; make it, or give another path: 's3://nowhere/x"):
        featurize("s3://nowhere/x", fit, dataset)
    with pytest.raises(
        ValueError, match=rf"fit must be given .* got fit=None with out {bucket}/other; run journey.fit"
    ):
        featurize(f"{bucket}/other", None, dataset)
    assert dataset.reads == list(range(12))


def test_scores_from_an_object_store_are_those_from_a_folder(
    bucket: str, fit: journey.Fit, local: journey.Features, tmp_path: Path
) -> None:
    there = f"{bucket}/fit"
    remote_fit = journey.fit(MODEL, Images(IMAGES), there, projector=PROJECTOR, progress=False)
    assert remote_fit.fingerprint == fit.fingerprint
    assert names_in(as_path(there)) == names_in(fit.path) - {".lock"}
    featurize(f"{bucket}/features", there)
    features = journey.open_features(f"{bucket}/features", MODEL, fit=there)
    trajectory = journey.record(MODEL, seed=0, num_inference_steps=4)
    trajectory.save(f"{bucket}/trajectory.safetensors")
    query = journey.Trajectory.load(f"{bucket}/trajectory.safetensors")
    scores = journey.score(features, query)
    expected = journey.score(local, trajectory)
    assert torch.equal(scores.values, expected.values)
    scores.save(f"{bucket}/scores.safetensors")
    expected.save(tmp_path / "scores.safetensors")
    saved = as_path(f"{bucket}/scores.safetensors").read_bytes()
    assert saved == (tmp_path / "scores.safetensors").read_bytes()
    assert torch.equal(journey.Scores.load(f"{bucket}/scores.safetensors").values, expected.values)
    with pytest.raises(FileNotFoundError, match=rf"fit must be given: {bucket}/features was made with one that lies"):
        journey.open_features(f"{bucket}/features", MODEL)


def test_a_damaged_object_is_found_by_score_and_measured_again_when_it_is_deleted(
    bucket: str, server: Server, fit: journey.Fit, local: journey.Features
) -> None:
    features = featurize(f"{bucket}/features", fit)
    name, key = bucket.removeprefix("s3://"), "features/rows-000-000000-000001.safetensors"
    content = server.objects(name)[key]
    server.client.put_object(Bucket=name, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptShardError, match=rf"{bucket}/{key} is damaged"):
        rows(features)
    server.client.delete_object(Bucket=name, Key=key)
    assert rows(featurize(f"{bucket}/features", fit)) == rows(local)
    assert FeatureStore.open(f"{bucket}/features").is_complete
