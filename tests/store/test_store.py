"""What is written is read; what was not written is noticed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from cases import randn
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from store_runs import SHARD_SIZE, contents, ids_of, make_manifest, make_tensors, run

from journey.errors import CorruptShardError, IncompleteStoreError, StoreError, StoreMismatchError
from journey.store.part import Part, ShardName, loose_shard, write_skipped
from journey.store.store import FeatureStore

SECOND = "runs/second é"


def shard(number: int, part: str = "000000") -> ShardName:
    """A shard of the first part, unless another one is named."""
    return ShardName(part, number)


@given(st.integers(1, 9), st.integers(1, 10), st.integers(1, 3), st.integers(1, 5), st.booleans(), st.randoms())
def test_store_returns_what_was_written(
    num_samples: int, shard_size: int, bins: int, proj_dim: int, strings: bool, random
) -> None:
    manifest = make_manifest(bins=bins, proj_dim=proj_dim)
    expected = {name: randn(num_samples, bins, proj_dim, seed=seed) for seed, name in enumerate(manifest.checkpoints)}
    ids = [f"é{i * 10**i}/x.png" if strings else i - 2**62 for i in range(num_samples)]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.create_or_resume(folder, manifest)
        store.plan(ids, shard_size)
        work = [(name, each) for name in manifest.checkpoints for each in store.shards()]
        random.shuffle(work)
        for name, each in work:
            assert not store.is_complete
            assert each in store.missing(name)
            begin = each.number * shard_size
            features = expected[name][begin : begin + shard_size]
            norm = features[:, 0].norm(dim=-1)
            rest = {"norm": norm, "noise": norm / 2, "values": features[..., 0], "content": torch.arange(len(norm))}
            store.write_shard(name, each, ids[begin : begin + shard_size], features=features, **rest)
        store = FeatureStore.open(folder)
        assert store.is_complete
        for name in manifest.checkpoints:
            assert store.missing(name) == []
            assert torch.equal(store.features(name), expected[name])
            shards = list(store.iter_shards(name))
            assert [i for each in shards for i in each.ids] == ids
            norm = expected[name][:, 0].norm(dim=-1)
            whole = {"features": expected[name], "values": expected[name][..., 0], "norm": norm, "noise": norm / 2}
            for field, value in whole.items():
                parts = [getattr(each, field) for each in shards]
                assert torch.equal(torch.cat(parts), value), field
                assert all(len(part) == len(each) for part, each in zip(parts, shards, strict=True))


@given(st.lists(st.lists(st.integers(-9, 9), unique=True), max_size=5), st.integers(1, 4))
def test_a_store_grows_by_those_images_that_it_lacks(additions: list[list[int]], shard_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        known: list[int] = []
        FeatureStore.create_or_resume(folder, make_manifest())
        for ids in additions:
            store = FeatureStore.create_or_resume(folder, make_manifest())
            before = [part.ids for part in store.parts()]
            store.plan(ids, shard_size)
            new = [i for i in ids if i not in known]
            known += new
            assert [part.ids for part in FeatureStore.open(folder).parts()] == before + [new] * bool(new)
        assert FeatureStore.open(folder).planned_ids() == set(known)


def test_images_that_were_skipped_are_planned_again(tmp_path: Path) -> None:
    store = FeatureStore.create_or_resume(tmp_path, make_manifest())
    store.plan(["a", "b", "c"], 2)
    write_skipped(tmp_path, shard(0), {"b": "OSError: broken"})
    assert store.planned_ids() == {"a", "c"}
    store.plan(["a", "b", "c", "d"], 2)
    assert [part.ids for part in store.parts()] == [["a", "b", "c"], ["b", "d"]]


def test_a_part_that_another_process_adds_at_the_same_moment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (FeatureStore.create_or_resume(tmp_path, make_manifest()) for _ in range(2))
    real = Part.publish

    def second(part: Part, folder: Path) -> None:
        monkeypatch.setattr(Part, "publish", real)
        theirs.plan([1, 2], 2)
        real(part, folder)

    monkeypatch.setattr(Part, "publish", second)
    ours.plan([1, 2, 3], 2)
    assert [part.ids for part in ours.parts()] == [[1, 2], [3]]


def test_ids_of_another_kind_are_refused(tmp_path: Path) -> None:
    store = FeatureStore.create_or_resume(tmp_path, make_manifest())
    store.plan([1, 2], 2)
    with pytest.raises(StoreMismatchError, match=r"ids must be of the kind that .* has, such as 1, got 'a'"):
        store.plan(["a"], 2)


def test_shards_without_a_plan_are_found_when_every_checkpoint_has_them(tmp_path: Path) -> None:
    store = run(tmp_path)
    loose = loose_shard([70, 77], [1, 2])
    assert loose == loose_shard([70, 77], [1, 2])
    assert loose not in (loose_shard([77, 70], [1, 2]), loose_shard([70, 77], [1, 3]))
    for name in store.manifest.checkpoints:
        assert loose not in store.shards()
        store.write_shard(name, loose, [70, 77], **make_tensors(store, name, [70, 77]))
    assert store.shards()[-1] == loose
    assert store.planned_ids() == {*range(0, 35, 7), 70, 77}
    assert store.features("first").shape[0] == 7


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "part-000000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"part-000000\.safetensors is damaged"):
        FeatureStore.open(tmp_path).shards()


def test_a_shard_may_hold_no_image(tmp_path: Path) -> None:
    store = FeatureStore.create_or_resume(tmp_path, make_manifest(checkpoints=["only"]))
    store.plan(["a"], 2)
    shapes = {"features": (0, 2, 3), "norm": (0,), "noise": (0,), "values": (0, 2)}
    empty = {name: torch.empty(shape) for name, shape in shapes.items()}
    store.write_shard("only", shard(0), [], content=torch.empty(0, dtype=torch.int64), **empty)
    assert store.is_complete
    assert len(store.read_shard("only", shard(0))) == 0
    assert store.features("only").shape == (0, 2, 3)


def test_store_is_readable_without_this_package(tmp_path: Path) -> None:
    store = run(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["checkpoints"] == ["first", SECOND]
    path = tmp_path / "rows-001-000000-000002.safetensors"
    tensors = load_file(path)
    expected = {"ids": torch.tensor([28]), **make_tensors(store, SECOND, [28])}
    expected["rows"] = expected.pop("features")
    assert tensors.keys() == expected.keys()
    assert all(
        torch.equal(tensors[name], expected[name]) and tensors[name].dtype == expected[name].dtype for name in tensors
    )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    data = path.read_bytes()
    begin_of_data = 8 + int.from_bytes(data[:8], "little")
    assert begin_of_data % 8 == 0, "tensors are not aligned"
    with safe_open(tmp_path / "part-000000.safetensors", "pt") as file:
        part = json.loads(file.metadata()["saved"])["sha256"]
    owner = hashlib.sha256(json.dumps([manifest["checksum"], part], separators=(",", ":")).encode()).hexdigest()
    assert metadata == {
        "name": path.stem,
        "owner": owner,
        "sha256": hashlib.sha256(data[begin_of_data:]).hexdigest(),
    }


def test_store_bytes_are_pinned(tmp_path: Path) -> None:
    """Another value here means a new FORMAT_VERSION: stores on disk have these bytes."""
    run(tmp_path)
    digest = hashlib.sha256(b"".join(data for _, data in sorted(contents(tmp_path).items()))).hexdigest()
    assert digest == "07b722ca5e049d75fe5b1a7555cdd9efe24695117d585097f6f08d3686b75959"


def test_writing_again_gives_the_same_bytes_whatever_the_strides(tmp_path: Path) -> None:
    store = run(tmp_path)
    before = contents(tmp_path)
    for each in store.shards():
        tensors = make_tensors(store, "first", ids_of(store, each))
        strided = {name: torch.stack([tensor, tensor], dim=-1)[..., 1] for name, tensor in tensors.items()}
        strided["features"].requires_grad_()
        store.write_shard("first", each, ids_of(store, each), **strided)
    assert contents(tmp_path) == before


def test_a_flipped_bit_in_any_byte_of_a_shard_is_detected(tmp_path: Path) -> None:
    store = run(tmp_path, make_manifest(bins=1, proj_dim=2, checkpoints=["c"], fingerprints={}), 1)
    path = store.shard_path("c", shard(0))
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CorruptShardError):
            store.read_shard("c", shard(0))


def test_a_shard_of_any_other_length_is_detected_without_hashing_it(tmp_path: Path) -> None:
    store = run(tmp_path)
    path = store.shard_path("first", shard(2))
    data = path.read_bytes()
    for damaged in [*(data[:length] for length in range(len(data))), data + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(
            CorruptShardError, match=f"{path.name} is damaged.*Delete this file and run featurize again"
        ):
            store.read_shard("first", shard(2), verify=False)


def test_the_error_of_a_damaged_shard_gives_both_checksums_and_a_cure_that_works(tmp_path: Path) -> None:
    store = run(tmp_path)
    before = contents(tmp_path)
    path = store.shard_path("first", shard(1))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    begin_of_data = 8 + int.from_bytes(data[:8], "little")
    written, found = (hashlib.sha256(x[begin_of_data:]).hexdigest() for x in (before[path.name], data))
    for read in (store.features, lambda name: list(store.iter_shards(name))):
        with pytest.raises(CorruptShardError) as caught:
            read("first")
        assert str(caught.value) == (
            f"{path} is damaged: expected the SHA-256 {written}, found {found}. "
            "Delete this file and run featurize again with the same arguments; it recomputes only this shard."
        )
    assert len(list(store.iter_shards("first", verify=False))) == 3, "verify=False must not hash"
    path.unlink()
    assert store.missing("first") == [shard(1)]
    run(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "source", "found"),
    [
        ({}, ("first", 0), "found .* name 'rows-000-000000-000000'"),
        ({}, (SECOND, 1), "found .* name 'rows-001-000000-000001'"),
        ({"proj_dim": 4}, ("first", 1), "found .* name 'rows-000-000000-000001', owner"),
        ({"fingerprints": {"seed": 1}}, ("first", 1), "found .* name 'rows-000-000000-000001', owner"),
    ],
    ids=["range", "checkpoint", "shape", "run"],
)
def test_a_whole_shard_from_elsewhere_is_detected(tmp_path: Path, changes: dict, source: tuple, found: str) -> None:
    store, other = run(tmp_path / "store"), run(tmp_path / "other", make_manifest(**changes))
    name, number = source
    shutil.copy(other.shard_path(name, shard(number)), store.shard_path("first", shard(1)))
    expected = "expected .* name 'rows-000-000000-000001', owner [0-9a-f]{64}.*"
    with pytest.raises(CorruptShardError, match=expected + found):
        store.read_shard("first", shard(1), verify=False)


def test_a_shard_that_is_no_safetensors_file_is_detected(tmp_path: Path) -> None:
    store = run(tmp_path)
    path = store.shard_path("first", shard(1))
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(CorruptShardError, match="no such header"):
        store.read_shard("first", shard(1))


def test_an_incomplete_store_says_how_much_is_missing(tmp_path: Path) -> None:
    store = run(tmp_path)
    for number in (1, 2):
        store.shard_path(SECOND, shard(number)).unlink()
    assert not store.is_complete
    for read in (store.features, store.iter_shards):
        for name in ("first", SECOND):
            with pytest.raises(
                IncompleteStoreError,
                match=r"misses 2 of 3 shards of checkpoint 'runs/second é' \(the first is 000000-000001\)",
            ):
                read(name)
    with pytest.raises(IncompleteStoreError, match=r"000000-000001\.safetensors is missing; run featurize again"):
        store.read_shard(SECOND, shard(1))


def test_a_store_without_images_says_so(tmp_path: Path) -> None:
    store = FeatureStore.create_or_resume(tmp_path, make_manifest())
    with pytest.raises(IncompleteStoreError, match="holds no image yet; run featurize again"):
        store.features("first")


def test_another_run_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(StoreMismatchError) as caught:
        FeatureStore.create_or_resume(tmp_path, make_manifest(proj_dim=4, fingerprints={"seed": 1}))
    assert str(caught.value) == (
        f"{tmp_path} holds the features of a different run:\n"
        "  fingerprints.draws[0]: 1 in the store, (absent) now\n"
        "  fingerprints.draws[1]: 2.5 in the store, (absent) now\n"
        "  fingerprints.draws[2]: null in the store, (absent) now\n"
        "  fingerprints.seed: 0 in the store, 1 now\n"
        '  fingerprints.weights.first: "ab" in the store, (absent) now\n'
        "  and 2 more\n"
        "Give another folder, repeat the run with the store's values, or delete the folder to start over."
    )
    with pytest.raises(StoreMismatchError, match=r':\n  library_version: "1.2.3" in the store, "2" now\nGive'):
        FeatureStore.create_or_resume(tmp_path, make_manifest(library_version="2"))
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    for name in ("thesis.tex", "a", "b", "c"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"no manifest.json but holds other files \(a, b, c, \.\.\.\); give an empty"
    ):
        FeatureStore.create_or_resume(tmp_path, make_manifest())
    assert contents(tmp_path) == dict.fromkeys(("thesis.tex", "a", "b", "c"), b"precious")
    with pytest.raises(FileExistsError, match=r"thesis\.tex is a file; the feature store needs a folder"):
        FeatureStore.create_or_resume(tmp_path / "thesis.tex", make_manifest())


def test_files_beside_an_existing_store_do_no_harm(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "arguments.json").write_text("{}")
    assert run(tmp_path).is_complete
    assert "arguments.json" in contents(tmp_path)


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot write to this folder") as caught:
        FeatureStore.create_or_resume(tmp_path / "file" / "store", make_manifest())
    assert caught.value.filename == str(tmp_path / "file" / "store")

    complete = run(tmp_path / "complete")
    real = Path.open

    def open_to_read(path: Path, mode: str = "r") -> object:
        return real(path, mode) if mode in ("r", "rb") else denied(path)

    def denied(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    # Tests may run as root, whom permissions do not stop: refuse the two ways in which files are created.
    monkeypatch.setattr(Path, "open", open_to_read)
    monkeypatch.setattr(Path, "touch", denied)
    store = FeatureStore.create_or_resume(complete.path, make_manifest())
    store.plan([0, 7], 2)
    assert store.is_complete
    empty = tmp_path / "empty"
    empty.mkdir()
    for attempt in (lambda: FeatureStore.create_or_resume(empty, make_manifest()), lambda: store.plan([1], 2)):
        with pytest.raises(PermissionError, match=r"cannot write to this folder \(Permission denied\)"):
            attempt()
    assert not list(empty.iterdir())


def test_opening_what_is_no_store_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=r"is not a feature store: it has no manifest\.json"):
            FeatureStore.open(path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest.json is damaged or not the manifest of a feature store"):
        FeatureStore.open(tmp_path)


def test_names_and_indices_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    store = run(tmp_path)
    for call in (store.missing, lambda name: store.read_shard(name, shard(0))):
        with pytest.raises(ValueError, match=r"checkpoint must be one of .*'first'.*, got 'last'"):
            call("last")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(2, 3, 2)}, ValueError, r"features must be \[2, 2, 3\], got \[2, 3, 2\]"),
        ({"features": torch.zeros(1, 2, 3)}, ValueError, r"features must be \[2, 2, 3\], got \[1, 2, 3\]"),
        ({"values": torch.zeros(2)}, ValueError, r"values must be \[2, 2\], got \[2\]"),
        ({"content": torch.zeros(3, dtype=torch.int64)}, ValueError, r"content must be \[2\], got \[3\]"),
        ({"content": torch.zeros(2)}, TypeError, "content must be a torch.int64 tensor, got torch.float32"),
        ({"content": [0, 1]}, TypeError, "content must be a torch.int64 tensor, got list"),
        (
            {"features": torch.zeros(2, 2, 3).double()},
            TypeError,
            "features must be a torch.float32 tensor, got torch.float64",
        ),
        ({"values": torch.zeros(2, 2, device="meta")}, ValueError, "values must be on the CPU, got meta"),
        (
            {"features": torch.full((2, 2, 3), torch.inf)},
            ValueError,
            "features must be finite.* in 2 of 2 samples, the first with id 14",
        ),
        (
            {"values": torch.tensor([[0, 0], [0, torch.nan]])},
            ValueError,
            "values must be finite.* in 1 of 2 samples, the first with id 21",
        ),
    ],
)
def test_a_shard_that_should_not_be_stored_is_refused(tmp_path: Path, change: dict, error: type, message: str) -> None:
    store = FeatureStore.create_or_resume(tmp_path, make_manifest())
    with pytest.raises(ValueError, match="shard must be of a part that is planned, or of none, got 000000-000001"):
        store.write_shard("first", shard(1), [14, 21], **make_tensors(store, "first", [14, 21]))
    store.plan([0, 7, 14, 21], SHARD_SIZE)
    with pytest.raises(error, match=message):
        store.write_shard("first", shard(1), [14, 21], **{**make_tensors(store, "first", [14, 21]), **change})
    assert list(contents(tmp_path)) == ["manifest.json", "part-000000.safetensors"]


def test_what_was_verified_is_verified_again_only_when_the_file_changes(tmp_path: Path) -> None:
    store = run(tmp_path)
    path = store.shard_path("first", shard(1))
    whole = path.read_bytes()
    store.read_shard("first", shard(1))
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptShardError):
        store.read_shard("first", shard(1))
    path.write_bytes(whole)
    store.read_shard("first", shard(1))


def test_writing_to_what_was_read_leaves_the_file_alone(tmp_path: Path) -> None:
    store = run(tmp_path)
    before = store.shard_path("first", shard(0)).read_bytes()
    store.read_shard("first", shard(0)).features.fill_(7)
    assert store.shard_path("first", shard(0)).read_bytes() == before


def test_images_of_a_part_that_was_lost_are_planned_again(tmp_path: Path) -> None:
    store = run(tmp_path)
    store.plan([100, 107], SHARD_SIZE)
    (tmp_path / "part-000000.safetensors").unlink()
    with pytest.raises(StoreError, match=r"part-000000\.safetensors is missing, but rows of its images are there"):
        store.plan([0, 7, 100, 107], SHARD_SIZE)
    for path in tmp_path.glob("rows-*"):
        path.unlink()
    store.plan([0, 7, 100, 107], SHARD_SIZE)
    assert [(part.name, part.ids) for part in store.parts()] == [("000001", [100, 107]), ("000002", [0, 7])]
