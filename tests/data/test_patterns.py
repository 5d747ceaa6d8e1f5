"""Names of files as people write them stand for the files that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journey.data.patterns import expand_braces, find_files


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{x}.tar", ["{x}.tar"]),
    ],
)
def test_braces_stand_for_several_names(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@given(first=st.integers(0, 200), count=st.integers(1, 50), width=st.integers(1, 6))
def test_a_range_of_braces_counts_with_its_zeros(first: int, count: int, width: int) -> None:
    names = expand_braces("{" + f"{first:0{width}}..{first + count - 1}" + "}")
    assert [int(name) for name in names] == list(range(first, first + count))
    assert all(len(name) == max(width, len(str(int(name))), len(str(first))) for name in names)


def test_patterns_give_sorted_files_and_paths_their_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "s/c.tar", "[d].tar", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files([tmp_path / "b.tar", tmp_path / "a.tar"]) == [tmp_path / "b.tar", tmp_path / "a.tar"]
    assert find_files([f"{tmp_path}/?.tar"]) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert find_files([f"{tmp_path}/**/c.tar"]) == [tmp_path / "s/c.tar"]
    (tmp_path / "s-b.tar").touch()  # as a folder is listed: what is in s/ comes before
    assert find_files([f"{tmp_path}/**/*.tar"])[-2:] == [tmp_path / "s/c.tar", tmp_path / "s-b.tar"]
    assert find_files([f"{tmp_path}/[d].tar"]) == [tmp_path / "[d].tar"], "a file that is called so"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("a-0.tar", "a-2.tar"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"no file .*a-1\.tar, of .*a-\{0\.\.2\}\.tar"):
        find_files([f"{tmp_path}/a-{{0..2}}.tar"])
    with pytest.raises(FileNotFoundError, match=r"no file .*\*\.parquet"):
        find_files([f"{tmp_path}/*.parquet"])
    with pytest.raises(ValueError, match=r"every file once, got .*a-0\.tar twice"):
        find_files([f"{tmp_path}/*.tar", f"{tmp_path}/a-0.tar"])
    with pytest.raises(ValueError, match="a range that goes up"):
        expand_braces("{3..1}")
