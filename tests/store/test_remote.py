"""A store on an object store is what it would be in a folder, and each way to fail has an error of its own."""

from __future__ import annotations

import atexit
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs
import torch
from fsspec.implementations.memory import MemoryFileSystem
from object_stores import SECRET, Server, s3_server
from store_runs import FIRST, SHARD_SIZE, contents, died_by, fork, make_manifest, run
from upath import UPath

from journey.errors import CorruptShardError, IncompleteStoreError, StoreMismatchError
from journey.files.copies import forget_copy, kept_copy
from journey.files.paths import as_path, exists, names_in
from journey.files.publish import publish
from journey.files.tensors import read_tensors, write_tensors
from journey.store.store import FeatureStore


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def bucket(server: Server) -> str:
    return server.make_bucket()


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest) -> str:
    """An empty place on an object store."""
    if request.param == "memory":
        return f"memory://{request.node.name}"
    return f"s3://{request.getfixturevalue('bucket')}"


def test_a_store_has_the_files_of_one_in_a_folder(place: str, tmp_path: Path) -> None:
    store = run(f"{place}/features")
    found = {name: (store.path / name).read_bytes() for name in names_in(store.path)}
    assert found == contents(run(tmp_path).path)
    assert store.is_complete


def test_a_store_may_be_the_whole_bucket(bucket: str, tmp_path: Path) -> None:
    store = run(f"s3://{bucket}")
    assert names_in(store.path) == set(contents(run(tmp_path).path))
    assert FeatureStore.open(f"s3://{bucket}/").is_complete


def test_rows_are_read_as_they_were_written(place: str, tmp_path: Path) -> None:
    run(f"{place}/features")
    store, local = FeatureStore.open(f"{place}/features"), run(tmp_path)
    for checkpoint in local.manifest.checkpoints:
        assert torch.equal(store.features(checkpoint), local.features(checkpoint))


def test_another_run_is_refused(place: str) -> None:
    run(f"{place}/features")
    with pytest.raises(
        StoreMismatchError, match=rf"{re.escape(place)}/features holds .*\n  proj_dim: 3 in the store, 4 now"
    ):
        FeatureStore.create_or_resume(f"{place}/features", make_manifest(proj_dim=4))


def test_a_place_with_other_objects_is_refused(place: str) -> None:
    publish(as_path(f"{place}/features/photo.png"), [b"x"])
    with pytest.raises(FileExistsError, match=r"features has no manifest\.json but holds other files \(photo\.png\)"):
        run(f"{place}/features")


def test_processes_that_plan_at_once_plan_every_image_once(bucket: str) -> None:
    def plan(number: int) -> None:
        store = FeatureStore.create_or_resume(f"s3://{bucket}/features", make_manifest())
        store.plan(list(range(number, number + 4)), SHARD_SIZE)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(plan, range(4)))
    planned = [i for part in FeatureStore.open(f"s3://{bucket}/features").parts() for i in part.ids]
    assert sorted(planned) == list(range(7))


def test_one_of_those_who_write_an_object_at_once_is_told_that_it_was_first(bucket: str) -> None:
    path = as_path(f"s3://{bucket}/once")

    def write(number: int) -> int | None:
        try:
            publish(path, [str(number).encode()], exclusive=True)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        firsts = [number for number in pool.map(write, range(8)) if number is not None]
    assert len(firsts) == 1
    assert path.read_bytes() == str(firsts[0]).encode()


@pytest.mark.parametrize(
    "error", [NotImplementedError(), OSError(38, "A header is not implemented"), ValueError("mode")]
)
def test_a_store_without_conditional_writes_is_asked_before(
    place: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_path(f"{place}/once")
    kind = type(path.fs)
    plain = kind.pipe_file

    def pipe_file(self: object, key: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise error
        plain(self, key, value)

    monkeypatch.setattr(kind, "pipe_file", pipe_file)
    publish(path, [b"first"], exclusive=True)
    with pytest.raises(FileExistsError):
        publish(path, [b"second"], exclusive=True)
    assert path.read_bytes() == b"first"


def test_what_others_write_and_delete_is_seen_at_once(bucket: str, server: Server) -> None:
    store = run(f"s3://{bucket}/features")
    path = store.shard_path("first", FIRST)
    assert store.is_complete
    assert exists(path)
    server.client.delete_object(Bucket=bucket, Key=path.path.removeprefix(f"{bucket}/"))
    assert not exists(path)
    assert store.missing("first") == [FIRST]
    forget_copy(path)
    with pytest.raises(IncompleteStoreError, match=rf"{path} is missing"):
        store.read_shard("first", FIRST)


def test_an_object_that_was_changed_is_found_and_one_that_was_cured_is_read(bucket: str, server: Server) -> None:
    store = run(f"s3://{bucket}/features")
    key = store.shard_path("first", FIRST).path.removeprefix(f"{bucket}/")
    sound = server.objects(bucket)[key]
    for damaged in (sound[:-1] + bytes([sound[-1] ^ 1]), sound[:-1], b""):
        server.client.put_object(Bucket=bucket, Key=key, Body=damaged)
        with pytest.raises(CorruptShardError, match=rf"s3://{bucket}/{key} is damaged"):
            store.read_shard("first", FIRST)
    server.client.put_object(Bucket=bucket, Key=key, Body=sound)
    assert store.read_shard("first", FIRST).ids == [0, 7]


def test_each_shard_is_fetched_once_and_the_folder_is_listed_instead_of_asking_for_each(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"s3://{bucket}/features", num_samples=20)
    requests: list[str] = []
    plain = s3fs.S3FileSystem._call_s3

    async def call(self: s3fs.S3FileSystem, method: str, *args: object, **kwargs: object) -> object:
        requests.append(f"{method} {kwargs.get('Key', '')}")
        return await plain(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    store = FeatureStore.open(f"s3://{bucket}/features")
    for _ in range(3):
        for checkpoint in store.manifest.checkpoints:
            assert len(list(store.iter_shards(checkpoint))) == 10
    gets = [request for request in requests if request.startswith("get_object")]
    assert len(gets) == len(set(gets)) == 2 * 10 + 2  # and the manifest, and the part
    heads = [request for request in requests if request.startswith("head_object")]
    assert not [request for request in heads if "rows-" in request]


def test_copies_go_with_the_process_and_those_of_a_fork_are_its_own(bucket: str, tmp_path: Path) -> None:
    path = as_path(f"s3://{bucket}/file")
    publish(path, [b"content"])
    mine = kept_copy(path)
    assert mine.read_bytes() == b"content"

    def child() -> None:
        copy = kept_copy(path)
        assert copy.read_bytes() == b"content"
        (tmp_path / "copy").write_text(str(copy))
        atexit._run_exitfuncs()

    assert died_by(fork(child)) == 0
    theirs = Path((tmp_path / "copy").read_text())
    assert theirs.parent != mine.parent
    assert not theirs.parent.exists()
    assert mine.read_bytes() == b"content"


def test_a_full_disk_for_copies_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_path(f"s3://{bucket}/file")
    publish(path, [b"content"])

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(OSError, match=rf"cannot keep a copy of {path} here \(No space left.*set TMPDIR"):
        kept_copy(path)


def test_tensors_are_saved_and_loaded(place: str) -> None:
    for value in (1.0, 2.0):  # what was replaced is read anew
        write_tensors(f"{place}/scores.safetensors", "scores", {"values": torch.full((2,), value)})
        assert read_tensors(f"{place}/scores.safetensors", "scores")["values"].tolist() == [value, value]


def test_a_bucket_that_is_not_there_is_named(server: Server) -> None:
    text = r"there is no bucket nowhere; make it, or give another path: 's3://nowhere/features"
    for action in (
        lambda: run("s3://nowhere/features"),
        lambda: FeatureStore.open("s3://nowhere/features"),
        lambda: write_tensors("s3://nowhere/features/x", "scores", {}),
        lambda: read_tensors("s3://nowhere/features/x", "scores"),
        lambda: exists(as_path("s3://nowhere/features/x")),
    ):
        with pytest.raises(OSError, match=text) as caught:
            action()
        assert not isinstance(caught.value, FileNotFoundError)


def test_a_bucket_without_a_store_is_named(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"s3://{bucket}/features is not a feature store: it has no manifest"):
        FeatureStore.open(f"s3://{bucket}/features")
    with pytest.raises(FileNotFoundError, match=rf"there is no such object: 's3://{bucket}/scores'"):
        read_tensors(f"s3://{bucket}/scores", "scores")


def test_a_bucket_that_may_only_be_read_is_refused_before_the_work_and_a_complete_store_in_it_is_read(
    bucket: str, server: Server
) -> None:
    run(f"s3://{bucket}/done")
    store = run(f"s3://{bucket}/begun")
    server.client.delete_object(Bucket=bucket, Key=f"begun/{store.shard_path('first', FIRST).name}")
    server.deny(bucket, "PutObject", "DeleteObject")
    with pytest.raises(
        PermissionError, match=rf"does not let these credentials write here .*s3://{bucket}/new/manifest"
    ):
        run(f"s3://{bucket}/new")
    store = FeatureStore.create_or_resume(f"s3://{bucket}/begun", make_manifest())
    with pytest.raises(PermissionError, match=rf"does not let these credentials write here .*s3://{bucket}/begun"):
        store.plan([0, 7], SHARD_SIZE)
    assert run(f"s3://{bucket}/done").is_complete


def test_a_bucket_that_may_not_be_read_is_named(bucket: str, server: Server) -> None:
    store = run(f"s3://{bucket}/features")
    server.deny(bucket, "GetObject")
    with pytest.raises(PermissionError, match="does not let these credentials read here") as caught:
        store.features("first")
    assert f"s3://{bucket}/features/rows-000-000000-000000.safetensors" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_place_that_may_not_be_listed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = run("memory://hidden/features")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "ls", forbidden)
    with pytest.raises(PermissionError, match=r"credentials list here \(Forbidden\).*memory://hidden/features"):
        store.features("first")


def test_only_where_something_may_be_deleted_nothing_stays_of_the_test_for_write_access(
    bucket: str, server: Server
) -> None:
    server.deny(bucket, "DeleteObject")
    before = set(server.objects(bucket))
    store = FeatureStore.create_or_resume(f"s3://{bucket}/features", make_manifest())
    store.plan([0, 7], SHARD_SIZE)
    stays = {"features/manifest.json", "features/part-000000.safetensors", "features/.journey-probe.tmp"}
    assert set(server.objects(bucket)) - before == stays
    assert FeatureStore.create_or_resume(f"s3://{bucket}/features", make_manifest()).missing("first") == [FIRST]


def test_a_file_address_is_a_folder_and_storage_options_reach_the_store(tmp_path: Path, server: Server) -> None:
    assert as_path(f"file://{tmp_path}/a b%20") == tmp_path / "a b%20"
    assert type(as_path(UPath(f"file://{tmp_path}"))) is type(tmp_path)
    assert type(as_path(UPath(tmp_path))) is type(tmp_path)
    assert as_path("a/b") == Path.cwd() / "a/b"  # for good, wherever the process goes
    given = UPath("s3://bucket/x", endpoint_url=server.endpoint, key="other")
    assert as_path(given).storage_options == {"endpoint_url": server.endpoint, "key": "other"}


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ("s3://key:hidden@bucket/x", ValueError, "s3:// path must not hold a password"),
        ("file://host/x", ValueError, "must be absolute, such as file:///data/features, got file://host/x"),
        ("ftp://host/x", ValueError, "ftp://host/x is on no known object store; give a folder, or one of s3://"),
        ("s3:///", ValueError, "s3:/// must name a bucket, such as s3://bucket/features"),
        (3, TypeError, r"a path must be a string, a Path or a UPath, got 3 \(int\)"),
    ],
)
def test_what_is_no_place_for_a_store_is_refused(given: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        as_path(given)
    assert "hidden" not in str(caught.value)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(ImportError, match=r's3://b/x needs upath: pip install "journey-attribution\[cloud\]"'):
        as_path("s3://b/x")


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"gs://b/x needs another package: .*gcsfs"):
        as_path("gs://b/x")
