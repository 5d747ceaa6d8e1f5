"""Fingerprints: short strings that are equal exactly when the things they stand for are equal, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

_ABSENT = "(absent)"
JSONValue: TypeAlias = "bool | int | float | str | Sequence[JSONValue] | Mapping[str, JSONValue] | None"


def canonical_json(value: JSONValue) -> str:
    """Write a JSON value in its one canonical form: sorted keys, no spaces, ASCII.

    Args:
        value: What JSON can hold. Tuples count as lists.

    Returns:
        The text. Equal values give equal text; ``1``, ``1.0`` and ``True`` are three different values.

    Raises:
        TypeError: If something inside is not a JSON value, or a mapping has a key that is not a string.
        ValueError: If a number is NaN or infinite, which JSON cannot hold.
    """
    _check_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint_json(value: JSONValue) -> str:
    """Fingerprint a JSON value: SHA-256 of its canonical form, as 64 hexadecimal digits.

    Args:
        value: What JSON can hold. Key order does not matter.

    Returns:
        The fingerprint, the same on every machine.

    Raises:
        TypeError: If something inside is not a JSON value.
        ValueError: If a number is NaN or infinite.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class TensorFingerprint:
    """Fingerprint of named tensors that arrive one after the other, in any order.

    SHA-256 over names, dtypes, shapes and bytes. The device, the strides, ``requires_grad`` and the order of arrival
    do not matter; the sign of a zero and the bits of a NaN do. Memory: one tensor on the CPU at a time, and
    32 bytes and the name for each tensor seen.

    Example:
        >>> fingerprint = TensorFingerprint()
        >>> for index in range(len(dataset)):
        ...     fingerprint.update(str(index), dataset[index])
        >>> fingerprint.hexdigest()
    """

    def __init__(self) -> None:
        """Start with no tensors."""
        self._digests: dict[str, bytes] = {}

    def update(self, name: str, tensor: Tensor) -> None:
        """Add one tensor.

        Args:
            name: Its name, different from all earlier ones.
            tensor: Dense, any dtype, any device, any shape; or one that wraps such tensors.

        Raises:
            ValueError: If the name was already added, or the tensor holds no data (device "meta").
            TypeError: If ``tensor`` is not a dense tensor.
        """
        if isinstance(tensor, Tensor) and hasattr(tensor, "__tensor_flatten__"):
            # What it is made of, as quantised numbers and their scales, and what that stands for.
            form = f"{type(tensor).__name__} {tensor.dtype} {list(tensor.shape)}"
            for part, plain in plain_parts(tensor):
                self.update(f"{name} [{form}{part}]", plain)
            return
        if name in self._digests:
            raise ValueError(f"name {name!r} was already added; every tensor needs its own name")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            found = f"layout {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"tensor {name!r} must be a dense torch tensor, got {found}")
        if tensor.is_meta:
            raise ValueError(f'tensor {name!r} is on the device "meta" and has no values to fingerprint; load it first')
        digest = hashlib.sha256(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        dense = dense.as_strided((dense.numel(),), (1,))  # reshape would keep the odd stride of a single element
        digest.update(dense.view(torch.uint8).numpy().data)  # numpy has no bfloat16: hash bytes, not numbers
        self._digests[name] = digest.digest()

    def hexdigest(self) -> str:
        """Return the fingerprint of all tensors so far, 64 hexadecimal digits. More may be added afterwards."""
        # Each entry already covers its name, so sorting by name is enough to forget the order of arrival.
        digest = hashlib.sha256(f"{len(self._digests)} tensors".encode())
        for name in sorted(self._digests):
            digest.update(self._digests[name])
        return digest.hexdigest()


def plain_parts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a tensor is made of: itself, or of a subclass that wraps others those.

    Args:
        tensor: The tensor, such as a weight that torchao or quanto quantised.

    Yields:
        Where each lies in it, and the tensor.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        yield "", tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        for inner, plain in plain_parts(getattr(tensor, name)):
            yield f".{name}{inner}", plain


def fingerprint_tensors(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """Fingerprint named tensors, for example ``model.state_dict()`` or ``model.named_parameters()``.

    Args:
        tensors: Names with dense tensors of any dtype, device and shape. An iterable is consumed one tensor at a time.

    Returns:
        64 hexadecimal digits, equal when names, dtypes, shapes and bytes are, whatever the device or the order.

    Raises:
        ValueError: If a name comes twice, or a tensor holds no data (device "meta").
        TypeError: If a value is not a dense tensor.
    """
    fingerprint = TensorFingerprint()
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        fingerprint.update(name, tensor)
    return fingerprint.hexdigest()


def _check_keys(value: JSONValue) -> None:
    """Refuse keys that ``json`` would turn into strings: ``{1: x}`` and ``{"1": x}`` must not look equal."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"keys must be strings, got {key!r} ({type(key).__name__})")
            _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_keys(item)


def json_differences(ours: JSONValue, theirs: JSONValue) -> list[tuple[str, str, str]]:
    """List where two JSON values differ.

    Args:
        ours: One.
        theirs: The other.

    Returns:
        For every innermost value that differs: its path (such as ``draws.seed``), and both as JSON.
    """
    mine, other = _leaves(ours), _leaves(theirs)
    pairs = [(name, mine.get(name, _ABSENT), other.get(name, _ABSENT)) for name in sorted(mine.keys() | other.keys())]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _leaves(value: JSONValue, path: str = "") -> dict[str, str]:
    """Flatten nested JSON to ``{path: canonical JSON}``, so that a difference deep inside is shown alone."""
    if isinstance(value, Mapping) and value:
        items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)) and value:
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {path: canonical_json(value)}
    return {name: text for key, item in items for name, text in _leaves(item, key).items()}
