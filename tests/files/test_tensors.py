"""Saved files have the same bytes for the same tensors, and anything else is refused by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from journey.files.tensors import check_fields, read_json, read_tensors, write_tensors


def test_equal_tensors_give_equal_bytes_however_they_lie_in_memory(tmp_path: Path) -> None:
    values, ids = torch.rand(3, 4), torch.arange(2)
    write_tensors(tmp_path / "a", "scores", {"values": values, "ids": ids})
    write_tensors(tmp_path / "b", "scores", {"ids": ids, "values": values.T.contiguous().T})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = read_tensors(tmp_path / "b", "scores")
    assert torch.equal(found["values"], values)
    assert torch.equal(found["ids"], ids)


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="file"):
        read_tensors(path, "scores")
    write_tensors(path, "trajectory", {"x": torch.ones(2)})
    with pytest.raises(ValueError, match=r"file holds no saved scores$"):
        read_tensors(path, "scores")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="file holds no saved trajectory, or is damaged: "):
        read_tensors(path, "trajectory")
    path.write_text("{")
    with pytest.raises(ValueError, match="file holds no saved trajectory, or is damaged: "):
        read_tensors(path, "trajectory")
    with pytest.raises(ValueError, match="file is damaged: "):
        read_json(path)


def test_one_altered_bit_and_a_file_of_another_program_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, "scores", {"values": torch.ones(2)})
    altered = bytearray(path.read_bytes())
    altered[-1] ^= 1
    path.write_bytes(altered)
    with pytest.raises(ValueError, match="file is damaged: its tensors do not have the SHA-256 that it says"):
        read_tensors(path, "scores")
    save_file({"values": torch.ones(2)}, path, metadata={"saved": "scores"})
    with pytest.raises(ValueError, match="file holds no saved scores, or is damaged: "):
        read_tensors(path, "scores")
    save_file({"values": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"file holds no saved scores$"):
        read_tensors(path, "scores")


def test_a_file_without_a_tensor_that_it_must_hold_is_refused_by_name(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", "scores", {"values": torch.ones(2)})
    with pytest.raises(ValueError, match=r"file is damaged or of another version: it lacks ids, damping of scores"):
        read_tensors(tmp_path / "file", "scores", ("ids", "values", "damping"))


def test_a_disk_that_is_full_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_tensors(path, "scores", {"values": torch.ones(2)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*free its space or give another folder") as caught:
        write_tensors(path, "scores", {"values": torch.zeros(2)})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert read_tensors(path, "scores")["values"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], r"here is damaged: it must be an object with name, count, got \[\]"),
        ({"name": "a"}, "here is damaged or of another version: it lacks count"),
        ({"name": 3, "count": 1}, "here is damaged: name cannot be 3"),
    ],
)
def test_json_without_a_field_or_with_another_in_its_place_is_refused_by_name(found: object, message: str) -> None:
    fields = {"name": str, "count": (int, type(None))}
    with pytest.raises(ValueError, match=message):
        check_fields(found, fields, "here")
    assert check_fields({"name": "a", "count": None, "more": 1}, fields, "here")["name"] == "a"
