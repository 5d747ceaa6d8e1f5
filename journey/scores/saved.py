"""How the files of scores hold ids and settings."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.models.schedules import Interval


def id_tensors(name: str, ids: Ids | np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """Return ids as tensors: integers as ``name``; strings as their UTF-8 bytes, and where each ends.

    Args:
        name: Of the tensors.
        ids: All integers or all strings, of any shape.

    Returns:
        ``name``, int64; or ``name.bytes``, uint8, and ``name.ends``, int64. Flat.
    """
    flat: list[Any] = np.asarray(ids).ravel().tolist() if isinstance(ids, np.ndarray) else list(ids)
    if not flat or not isinstance(flat[0], str):
        return {name: torch.tensor(flat, dtype=torch.int64, device="cpu")}
    parts = [text.encode() for text in flat]
    joined = np.frombuffer(b"".join(parts), dtype=np.uint8).copy()
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {f"{name}.bytes": torch.from_numpy(joined), f"{name}.ends": torch.from_numpy(ends)}


def ids_of_tensors(name: str, saved: dict[str, Tensor], where: str) -> Ids:
    """Return what ``id_tensors`` took, flat.

    Args:
        name: Of the tensors.
        saved: Tensors by name.
        where: Names the file in errors.

    Returns:
        The ids.

    Raises:
        ValueError: If they are not there, or the ends are not those of the strings.
    """
    if name in saved:
        found: list[int] = saved[name].tolist()
        return found
    if not {f"{name}.bytes", f"{name}.ends"} <= set(saved):
        raise ValueError(f"{where} is damaged or of another version: it lacks {name}")
    joined, ends = saved[f"{name}.bytes"].numpy().tobytes(), [0, *saved[f"{name}.ends"].tolist()]
    if ends != sorted(ends) or ends[-1] != len(joined):
        raise ValueError(f"{where} is damaged: {name}.ends must rise to the {len(joined)} bytes of {name}.bytes")
    return [joined[first:end].decode() for first, end in pairwise(ends)]


def setting_tensors(scores: Any) -> dict[str, Tensor]:
    """Return what ``Scores`` and ``TopScores`` say of how they were made."""
    tensors = {
        "timesteps": scores.timesteps,
        "damping": torch.tensor(scores.damping, dtype=torch.float64, device="cpu"),
    }
    for name in ("interval", "train_interval"):
        if getattr(scores, name) is not None:
            tensors[name] = torch.tensor(getattr(scores, name), dtype=torch.int64, device="cpu")
    if scores.region is not None:
        tensors["region"] = scores.region
    return tensors


def settings_of_tensors(saved: dict[str, Tensor]) -> dict[str, Any]:
    """Return what ``setting_tensors`` took, by the names of the attributes."""
    return {
        "timesteps": saved["timesteps"],
        "damping": saved["damping"].item(),
        "interval": _interval(saved, "interval"),
        "train_interval": _interval(saved, "train_interval"),
        "region": saved.get("region"),
    }


def _interval(saved: dict[str, Tensor], name: str) -> Interval | None:
    if name not in saved:
        return None
    first, end = saved[name].tolist()
    return first, end
