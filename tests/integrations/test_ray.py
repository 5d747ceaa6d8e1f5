"""A Ray cluster of two raylets, one of which is killed in the middle, gives the rows of one process.

Run as a script (``python test_ray.py FOLDER``) this file is the cluster and its driver: a process of its own, since Ray
changes the one that it is in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import Images, SmallDenoiser, make_images, make_scheduler

import journey
from journey.errors import StoreMismatchError
from journey.features.worker import StoreWorker, Worker
from journey.integrations import ray as engine
from journey.store.store import FeatureStore

NUM_IMAGES, SHARD = 24, 3
IDS = tuple(f"image {i}" for i in range(NUM_IMAGES))
OPTIONS: dict[str, Any] = {
    "projector": journey.CountSketch(64),
    "draws": journey.StratifiedDraws(2),
    "progress": False,
}


def make_model() -> tuple[SmallDenoiser, Any]:
    torch.set_num_threads(1)
    return SmallDenoiser(), make_scheduler()


class SlowImages(Images):
    """Images that take their time, so that a machine dies while others are to come."""

    ids = IDS

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.1)
        return super().__getitem__(index)


def make_dataset(slow: bool = False) -> Images:
    return SlowImages(make_images(NUM_IMAGES)) if slow else Named(make_images(NUM_IMAGES))


class Named(Images):
    """The same images at once."""

    ids = IDS


def run_cluster(folder: Path) -> dict[str, Any]:
    """Featurize on two raylets; kill the second when it has written something."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    killed_at = []

    def kill() -> None:
        while len(list((folder / "ray").glob("rows-*"))) < 2:
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)
        killed_at.append(len(list((folder / "ray").glob("rows-*"))))

    killer = threading.Thread(target=kill)
    killer.start()
    engine.featurize(make_model, make_dataset(slow=True), folder / "ray", shard_size=SHARD, actors=(1, 2), **OPTIONS)
    killer.join()
    # A table of arrays, of which half is there: the rest is added.
    pixels = [((image[0] + 1) * 127.5).round().byte().numpy() for image in make_images(NUM_IMAGES)]
    table = [{"id": i, "image": array} for i, array in zip(IDS, pixels, strict=True)]
    fit = folder / "ray" / "fit"
    for part in (table[: NUM_IMAGES // 2], table):
        engine.featurize(make_model, ray.data.from_items(part), folder / "table", fit=fit, shard_size=12, **OPTIONS)
    # The strongest scores, found in slices of the store, beside those that one process finds.
    features = journey.open_features(folder / "table", make_model(), fit=fit)
    asked = {"images": make_images(2, seed=9), "top": 5, "progress": False, "candidates": IDS[3:20]}
    found, expected = engine.score(features, tasks=2, **asked), journey.score(features, **asked)
    for side in ("proponents", "opponents"):
        ours, theirs = getattr(found, side), getattr(expected, side)
        assert (ours.ids == theirs.ids).all()
        assert torch.equal(ours.values, theirs.values)
        torch.testing.assert_close(ours.errors, theirs.errors, rtol=0, atol=0, equal_nan=True)
    assert (found.num_train, torch.equal(found.solutions, expected.solutions)) == (expected.num_train, True)
    # A model from a module that only this process can import.
    (folder / "lonely").mkdir()
    (folder / "lonely" / "lonely_model.py").write_text(
        "from test_ray import make_model as make\ndef f(): return make()"
    )
    sys.modules["test_ray"] = sys.modules["__main__"]
    sys.path.insert(0, str(folder / "lonely"))
    lonely = __import__("lonely_model")
    refused = ""
    try:
        engine.featurize(lonely.f, make_dataset(), folder / "lonely-f", fit=fit, **OPTIONS)
    except TypeError as error:
        refused = str(error)
    ray.shutdown()
    cluster.shutdown()
    return {"killed_at": killed_at[0], "refused": refused}


def rows_of(path: Path) -> dict[int | str, bytes]:
    """The bytes of every row, by id."""
    found: dict[int | str, bytes] = {}
    for shard in FeatureStore.open(path).iter_shards("0"):
        for at, i in enumerate(shard.ids):
            row = b"".join(shard.tensors[name][at].numpy().tobytes() for name in ("rows", "scales", "norm", "noise"))
            assert found.setdefault(i, row) == row, "an image that was measured twice has two rows"
    return found


def test_a_cluster_that_loses_a_machine_gives_the_rows_of_one_process(tmp_path: Path) -> None:
    folders = [str(Path(journey.__file__).parents[1]), str(Path(__file__).parents[1] / "support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    # Workers search the driver's folder first: not this one, whose package may not be built.
    command, here = [sys.executable, __file__, str(tmp_path)], tmp_path
    ran = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["killed_at"] < NUM_IMAGES // SHARD, "the machine died after the work"
    assert "every machine of the cluster can import" in told["refused"]
    assert "lonely_model" in told["refused"]
    torch.set_num_threads(1)  # as the workers
    try:
        one = journey.featurize(make_model(), make_dataset(), tmp_path / "one", shard_size=8, **OPTIONS)
    finally:
        torch.set_num_threads(2)
    expected = rows_of(one.store.path)
    assert rows_of(tmp_path / "ray") == expected
    assert set(rows_of(tmp_path / "table")) == set(expected)
    assert len(list((tmp_path / "table").glob("rows-*"))) == 2, "what is there was measured again"


def test_a_worker_gives_the_rows_of_the_store_and_travels_without_its_model(tmp_path: Path) -> None:
    import pickle

    features = journey.featurize(make_model(), make_dataset(), tmp_path / "f", **OPTIONS)
    worker = Worker(make_model, tmp_path / "f" / "fit", projector=OPTIONS["projector"], draws=OPTIONS["draws"])
    images = [image.numpy() for image in make_images(NUM_IMAGES)]
    size = features.store.manifest.fingerprints["batch_size"]
    worker.images_per_pass = size
    assert len(pickle.dumps(worker)) < 10_000
    found = worker({"id": IDS[:5], "image": images[:5]})
    assert len(pickle.dumps(worker)) < 10_000
    again = pickle.loads(pickle.dumps(worker))({"id": IDS[:5], "image": images[:5]})
    (shard,) = list(features.select(IDS[:5]).shards())
    assert found["id"].tolist() == shard.ids
    for name in ("norm", "noise", "values", "rows", "scales"):
        assert found[name][:, 0].tobytes() == shard.tensors[name].numpy().tobytes(), name
        assert found[name].tobytes() == again[name].tobytes()
    assert found["content"].tolist() == shard.content.tolist()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": []}, "batch must have a column id, got image"),
        ({"id": [], "image": []}, "batch must hold at least one image"),
        ({"id": ["a", "a"], "image": [np.zeros((1, 8, 8))] * 2}, "got 'a' for two or more"),
        ({"id": ["a"], "text": ["?"]}, "image 'a' must have one of the keys image"),
        ({"id": ["a"], "image": [b"no picture"]}, "image 'a'"),
    ],
)
def test_a_batch_that_cannot_be_measured_is_refused(tmp_path: Path, batch: dict[str, Any], message: str) -> None:
    fit = journey.fit(make_model(), make_dataset(), tmp_path / "fit", projector=OPTIONS["projector"], progress=False)
    worker = Worker(make_model, fit, projector=OPTIONS["projector"], draws=OPTIONS["draws"])
    with pytest.raises(ValueError, match=message):
        worker(batch)


@pytest.mark.parametrize("change", ["weights", "fit", "passes", "row"])
def test_rows_of_another_run_do_not_get_into_a_store(tmp_path: Path, change: str) -> None:
    features = journey.featurize(make_model(), make_dataset(), tmp_path / "f", **OPTIONS)
    other = journey.fit(
        make_model(), make_images(4) / 2, tmp_path / "fit", progress=False, projector=OPTIONS["projector"]
    )
    own: dict[str, Any] = {"fit": features.fit, "images_per_pass": 24, "row": "int8", "model": make_model}
    own |= {"weights": {"model": lambda: (SmallDenoiser(1), make_scheduler())}, "fit": {"fit": other}}.get(change, {})
    own |= {"passes": {"images_per_pass": 5}, "row": {"row": "int4"}}.get(change, {})
    worker = StoreWorker(Worker(projector=OPTIONS["projector"], draws=OPTIONS["draws"], **own), tmp_path / "f")
    before = sorted(path.name for path in (tmp_path / "f").iterdir())
    with pytest.raises(StoreMismatchError):
        worker({"id": ["x", "y"], "image": [image.numpy() for image in make_images(2)]})
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == before


def test_another_image_under_an_id_that_was_measured_is_refused(tmp_path: Path) -> None:
    features = journey.featurize(make_model(), make_dataset(), tmp_path / "f", **OPTIONS)
    own = {"model": make_model, "fit": features.fit, "projector": OPTIONS["projector"], "draws": OPTIONS["draws"]}
    size = features.store.manifest.fingerprints["batch_size"]
    worker = StoreWorker(Worker(**own, images_per_pass=size), tmp_path / "f")
    images = [image.numpy() for image in make_images(NUM_IMAGES)]
    batch = {"id": np.array(["x", "y"]), "image": images[:2]}
    for _ in range(2):  # a batch that comes again is no fault
        assert worker(batch)["id"].tolist() == ["x", "y"]
    with pytest.raises(ValueError, match="ids must name every image once, got 'y' for two or more"):
        worker({"id": np.array(["y", "z"]), "image": images[2:4]})


def test_choices_that_mean_nothing_on_ray_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size, workers cannot be chosen on Ray"):
        engine.featurize(make_model, make_dataset(), tmp_path / "f", workers=2, batch_size=4)
    for actors in (0, (2,), (3, 2), "2", True, (1.5, 2)):
        with pytest.raises(ValueError, match="actors must be a positive integer, or the fewest and the most, got"):
            engine.featurize(make_model, make_dataset(), tmp_path / "f", actors=actors)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "journey-attribution\[ray\]"'):
        engine.featurize(make_model, make_dataset(), tmp_path / "f")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "told.json").write_text(json.dumps(run_cluster(target)))
