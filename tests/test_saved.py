"""Saved files have the same bytes for the same tensors, and anything else is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from journey.saved import read_json, read_tensors, write_tensors


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
    with pytest.raises(ValueError, match="file is damaged: "):
        read_json(path)
