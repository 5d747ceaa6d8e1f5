"""Ids of images as tensors: integers as they are, strings as the bytes of all, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from journey.data.ids import Ids


def pack_ids(ids: Ids) -> dict[str, Tensor]:
    """Return ids as tensors.

    Args:
        ids: All integers of 64 bits, or all strings.

    Returns:
        ``ids`` int64 [num]; or of strings ``id_ends`` int64 [num], where each ends in ``id_bytes`` uint8, UTF-8.
    """
    if not ids or not isinstance(ids[0], str):
        return {"ids": torch.tensor(ids, dtype=torch.int64, device="cpu")}
    texts = [str(i).encode() for i in ids]
    ends = torch.tensor([len(text) for text in texts], dtype=torch.int64, device="cpu").cumsum(0)
    return {
        "id_ends": ends,
        "id_bytes": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
    }


def unpack_ids(tensors: Mapping[str, Tensor]) -> list[int | str]:
    """Return the ids that ``pack_ids`` packed.

    Raises:
        ValueError: If the tensors are no such ids.
    """
    if "ids" in tensors:
        found: list[int | str] = tensors["ids"].tolist()
        return found
    whole, ends = tensors["id_bytes"].numpy().tobytes(), tensors["id_ends"].tolist()
    if [0, *ends] != sorted([0, *ends]) or ends[-1:] != [len(whole)]:
        raise ValueError("id_ends must rise to the length of id_bytes")
    return [whole[begin:end].decode() for begin, end in zip([0, *ends], ends, strict=False)]
