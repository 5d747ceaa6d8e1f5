"""How the files of scores hold ids and settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.models.schedules import Interval
from journey.store.ids import pack_ids, unpack_ids

_PARTS = {"ids": "", "id_ends": ".ends", "id_bytes": ".bytes"}


def id_tensors(name: str, ids: Ids | np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """Return ids as tensors (``journey.store.ids``) with names of their own.

    Args:
        name: Of the tensors.
        ids: All integers or all strings, of any shape.

    Returns:
        ``name``, int64; or ``name.bytes``, uint8, and ``name.ends``, int64. Flat.
    """
    flat = ids.ravel().tolist() if isinstance(ids, np.ndarray) else ids
    return {name + _PARTS[part]: tensor for part, tensor in pack_ids(flat).items()}


def ids_of_tensors(name: str, saved: dict[str, Tensor], where: str) -> list[int | str]:
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
    found = {part: saved[name + suffix] for part, suffix in _PARTS.items() if name + suffix in saved}
    if not ("ids" in found or {"id_ends", "id_bytes"} <= set(found)):
        raise ValueError(f"{where} is damaged or of another version: it lacks {name}")
    try:
        return unpack_ids(found)
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {name}: {error}") from None


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
