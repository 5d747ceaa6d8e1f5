"""Errors that a caller may want to tell apart. Each message says what was found and what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path


class StoreError(RuntimeError):
    """A feature store cannot be used as asked. Base of the errors below; raised itself for a damaged manifest."""


class StoreFormatError(StoreError):
    """The store was written in a format that this version does not read."""


class StoreMismatchError(StoreError):
    """The folder holds the features of a different run."""


class IncompleteStoreError(StoreError):
    """Shards are missing: featurizing has not finished."""


class CorruptShardError(StoreError):
    """A shard file is not what was written: truncated, altered, or from another place."""


@contextlib.contextmanager
def naming_folder(folder: object) -> Iterator[None]:
    """Make an OSError raised inside say which folder could not be written to; keep its number, and so its type."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if not isinstance(folder, Path):  # errors of an object store name the path themselves
            raise
        if "cannot write to this folder" in str(error):  # of a call inside
            raise
        message = f"cannot write to this folder ({error.strerror or error}); free its space or give another folder"
        raise OSError(error.errno, message, str(folder)) from error


def check_count(name: str, value: object, least: int = 1, or_else: str | None = None) -> None:
    """Refuse what is no whole number of at least ``least``.

    Args:
        name: What it is called in the error.
        value: What was given.
        least: The smallest number.
        or_else: What else could have been given.

    Raises:
        ValueError: If it is none; names it.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {kind}{f' or {or_else}' if or_else else ''}, got {value!r}")


class CoverageError(ValueError):
    """A parameter or a layer of the model has no per-sample gradient rule that applies."""


class GradientCheckError(RuntimeError):
    """Per-sample gradients disagree with autograd's gradient of the batch."""


class InPlaceError(RuntimeError):
    """A tensor that the gradient of a layer needs was overwritten before it was used."""


class NonFiniteGradientError(RuntimeError):
    """A per-sample gradient or a measured value is NaN or infinite."""
