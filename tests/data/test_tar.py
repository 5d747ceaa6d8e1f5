"""Tar shards: what belongs together, what is told, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, grey_of, write_tar

from journey.data.picture import Form
from journey.data.stream import Failed
from journey.data.tar import TarShards, group_members, read_members

FORM = Form(None, 3)
KEYS = st.from_regex(r"([a-c]/)?[a-z0-9_]{1,3}", fullmatch=True)
SUFFIXES = st.sampled_from(["jpg", "txt", "json", "seg.png", "cls"])


def shards(tmp_path: Path, *members: list[tuple[str, bytes]], **options: Any) -> TarShards:
    paths = [write_tar(tmp_path / f"{i}.tar", some) for i, some in enumerate(members)]
    return TarShards(paths, FORM, **options)


def flat(parts: list[list[Any]]) -> list[Any]:
    return [key for part in parts for key in part]


@given(st.dictionaries(KEYS, st.dictionaries(SUFFIXES, st.binary(max_size=3), min_size=1), max_size=8))
def test_members_of_one_key_come_together(images: dict[str, dict[str, bytes]]) -> None:
    members = [(f"{key}.{suffix}", data) for key, files in images.items() for suffix, data in files.items()]
    assert list(group_members(members)) == list(images.items())
    noise = [
        name for i in range(len(members)) for name in (f".hid{i}.png", f"README{i}", f"__MACOSX/{i}.jpg", f"d/.{i}.x")
    ]
    mixed = [
        pair for i, member in enumerate(members) for pair in (*((n, b"") for n in noise[4 * i : 4 * i + 4]), member)
    ]
    assert list(group_members(mixed)) == list(images.items()), "what has no key is left out"


def test_a_key_that_comes_again_is_refused() -> None:
    with pytest.raises(ValueError, match=r"members of 'a' do not follow each other, or two images have this key"):
        list(group_members([("a.jpg", b""), ("b.jpg", b""), ("a.txt", b"")]))
    with pytest.raises(ValueError, match=r"a\.JPG is there twice"):
        list(group_members([("a.jpg", b""), ("a.JPG", b"")]))


def test_an_image_has_its_key_captions_fields_and_label(tmp_path: Path) -> None:
    told = {"width": 4, "caption": "a red apple", "none": None, "image": "not this", "__key__": "nor this"}
    stream = shards(
        tmp_path,
        [("d/0.jpg", encoded(10)), ("d/0.json", json.dumps(told).encode()), ("d/0.txt", b"a red apple\n")],
        [("1.txt", "grün".encode()), ("1.png", encoded(20)), ("1.cls", b" 7\n"), ("1.mask.png", encoded(0))],
    )
    (first, one), (second, two) = stream
    assert (first, second) == ("d/0", "1")
    assert (grey_of(one), grey_of(two)) == (10, 20)
    assert {key: value for key, value in one.items() if key != "image"} == {
        "__key__": "d/0",
        "width": 4,
        "caption": "a red apple",
    }
    assert {key: value for key, value in two.items() if key != "image"} == {"__key__": "1", "text": "grün", "label": 7}


def test_ids_may_be_a_key_of_the_json_or_a_function(tmp_path: Path) -> None:
    members = [("0.png", encoded(10)), ("0.json", b'{"sku": 5}')]
    assert [name for name, _ in shards(tmp_path, members, id_of="sku")] == [5]
    assert [name for name, _ in shards(tmp_path, members, id_of=lambda item: f"grey {grey_of(item)}")] == ["grey 10"]


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("k.txt", b"x")], r"k in .*0\.tar must have one image, .* got 0 among txt"),
        ([("k.png", b"x"), ("k.jpg", b"x")], r"k in .*0\.tar must have one image, .* got 2 among png, jpg"),
        ([("k.jpg", b"broken")], r"k in .*0\.tar cannot be read as an image"),
        ([("k.jpg", encoded(9, (64, 64), "JPEG")[:400])], r"k in .*0\.tar cannot be read as an image: .*[Tt]runcated"),
        ([("k.jpg", encoded(9)), ("k.json", b"[1]")], r"k in .*0\.tar: its \.json must be an object, got list"),
        ([("k.jpg", encoded(9)), ("k.json", b"{")], "image 'k' cannot be read: Expecting"),
        ([("k.jpg", encoded(9)), ("k.cls", b"cat")], "image 'k' cannot be read: invalid literal"),
        ([("k.jpg", encoded(9)), ("k.txt", b"a"), ("k.json", b'{"text": "b"}')], r"\.txt tells the caption 'a'.*'b'"),
        ([("k.jpg", encoded(9)), ("k.cls", b"1"), ("k.json", b'{"label": 2}')], r"\.cls tells the label 1, .* 2"),
        ([("k.jpg", encoded(9)), ("k.pkl", b"cos\nsystem\n(S'false'\ntR."), ("k.txt", b"\xff")], "invalid start byte"),
    ],
)
def test_a_damaged_image_is_named_and_those_after_it_come(
    tmp_path: Path, members: list[tuple[str, bytes]], text: str
) -> None:
    stream = shards(tmp_path, [*members, ("later.png", encoded(30))])
    with pytest.raises(ValueError, match=text):
        list(stream)
    *_, last = stream.records()
    assert not isinstance(last, Failed)
    assert (last.id, grey_of(last.load())) == ("later", 30)


def test_a_shard_that_is_cut_anywhere_gives_what_was_whole_and_then_an_error(tmp_path: Path) -> None:
    members = [(f"{i}.png", encoded(i)) for i in range(3)]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    other = write_tar(tmp_path / "other.tar", [("other.png", encoded(99))])
    ends = [1024 * i + 512 + len(data) for i, (_, data) in enumerate(members)]  # a header and one block of data each
    for cut in (0, 100, 512, 600, 1023, 1024, 1100, 1536, 2000, 2048, 2560, 2900, 3072, 3100):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        *records, failed, last = TarShards([tmp_path / "cut.tar", other], FORM).records()
        assert isinstance(failed, Failed), cut
        assert "cut.tar is damaged after" in str(failed.exception())
        assert not isinstance(last, Failed)
        assert last.id == "other", "the next shard is read"
        kept = [record.id for record in records if not isinstance(record, Failed)]
        # The last whole image is not given: another file of its key may have followed.
        assert kept == ["0", "1", "2"][: max(0, sum(end <= cut for end in ends) - 1)], cut
    (tmp_path / "cut.tar").write_bytes(whole[:1024] + b"x" * 512 + whole[1536:])
    with pytest.raises(ValueError, match=r"cut\.tar is damaged after .*breaks off at byte 1024"):
        list(TarShards([tmp_path / "cut.tar"], FORM))


def test_what_follows_the_end_of_a_shard_is_not_passed_over(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", encoded(0))]) for name in "ab"]
    (tmp_path / "ab.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ValueError, match="there is more after the mark of its end, such as another archive"):
        list(TarShards([tmp_path / "ab.tar"], FORM))


def test_the_error_of_a_cut_shard_names_the_last_key(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"k{i}.png", encoded(i)) for i in range(3)])
    path.write_bytes(path.read_bytes()[:2600])
    with pytest.raises(ValueError, match=r"a\.tar is damaged after 'k0': k2\.png is cut off; make the shard again"):
        list(TarShards([path], FORM))


def test_what_is_no_tar_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"a\.tar is damaged after its first image"):
        list(TarShards([tmp_path / "a.tar"], FORM))


def test_reading_a_shard_keeps_no_list_of_its_members(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{i}.x", b"1") for i in range(5)])
    assert list(read_members(path)) == [(f"{i}.x", b"1") for i in range(5)]


@given(num_shards=st.integers(1, 5), per_shard=st.integers(1, 3), world_size=st.integers(1, 7))
def test_processes_share_shards_or_images_and_lose_none(
    tmp_path_factory: pytest.TempPathFactory, num_shards: int, per_shard: int, world_size: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    keys = [[f"{s}-{i}" for i in range(per_shard)] for s in range(num_shards)]
    stream = shards(folder, *([(f"{key}.png", b"") for key in some] for some in keys))
    parts = [stream.split(rank, world_size) for rank in range(world_size)]
    found = [[record.id for record in part.records() if not isinstance(record, Failed)] for part in parts]
    everything = flat(keys)
    if num_shards >= world_size:
        assert found == [flat(keys[rank::world_size]) for rank in range(world_size)]
    else:
        assert found == [everything[rank::world_size] for rank in range(world_size)]
    assert sorted(flat(found)) == sorted(everything)
