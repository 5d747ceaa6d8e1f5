"""What a feature store holds and which run it belongs to: the content of its ``manifest.json``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from journey.errors import StoreError, StoreFormatError
from journey.files.fingerprint import JSONValue, canonical_json, fingerprint_json, json_differences
from journey.files.paths import GivenPath, Location, as_path, exists, names_in, read_bytes
from journey.files.publish import is_temporary, publish
from journey.store.rows import RowFormat, check_row_format

FORMAT_VERSION = 4
_FILE_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a store, equal for two runs exactly when they would write the same row of an image.

    It names no image: a store grows. It holds no clock, host name or path of its own, so that the same run gives the
    same bytes anywhere.

    Attributes:
        bins: Time bins per sample that are kept apart, at least 1.
        proj_dim: Features per sample and bin, at least 1.
        row: How features are kept, see ``journey.store.rows``.
        checkpoints: Names of the checkpoints, all different; each has its own shards.
        library_version: Version of this package that featurizes.
        fingerprints: Everything else that the features depend on (weights, measurement, draws, projector, ...), each a
            JSON value under its name.

    Raises:
        ValueError: If a size is below 1, there is no such form of rows, a checkpoint is missing or named twice, or a
            fingerprint is NaN or infinite.
        TypeError: If a field has the wrong type or a fingerprint is not a JSON value.
    """

    bins: int
    proj_dim: int
    row: RowFormat
    checkpoints: Sequence[str]
    library_version: str
    fingerprints: Mapping[str, JSONValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields and bring the fingerprints to the form that reading them back gives."""
        for name in ("bins", "proj_dim"):
            size = getattr(self, name)
            if type(size) is not int:
                raise TypeError(f"{name} must be an int, got {size!r} ({type(size).__name__})")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        check_row_format(self.row)
        if not isinstance(self.library_version, str):
            raise TypeError(f"library_version must be a string, got {self.library_version!r}")
        _check_checkpoints(self.checkpoints)
        object.__setattr__(self, "checkpoints", tuple(self.checkpoints))
        if not isinstance(self.fingerprints, Mapping):
            raise TypeError(f"fingerprints must map names to JSON values, got {type(self.fingerprints).__name__}")
        normalised = {}
        for name, value in self.fingerprints.items():
            try:
                normalised[name] = json.loads(canonical_json({name: value}))[name]
            except (TypeError, ValueError) as error:
                raise type(error)(f"fingerprint {name!r} must be a JSON value: {error}") from error
        object.__setattr__(self, "fingerprints", normalised)

    @property
    def checksum(self) -> str:
        """SHA-256 of all fields in canonical JSON. Every shard carries it, so shards of two runs cannot be mixed."""
        return fingerprint_json(self._fields())

    def to_json(self) -> str:
        """Write the manifest as the text of ``manifest.json``: sorted keys, indented, ending in a newline."""
        document = {**self._fields(), "checksum": self.checksum}
        return json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = _FILE_NAME) -> Manifest:
        """Read the text of a ``manifest.json``.

        Args:
            text: The whole file.
            origin: Its name, for the messages.

        Returns:
            The manifest that was written.

        Raises:
            StoreFormatError: If it was written in a format that this version does not know.
            StoreError: If the text is damaged.
        """
        cure = "restore the file, or delete the folder and run featurize again"
        try:
            document: dict[str, Any] = json.loads(text)
            version = document.pop("format_version")
            checksum = document.pop("checksum", None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{origin} is damaged or not the manifest of a feature store ({error}); {cure}") from error
        if version != FORMAT_VERSION:
            raise StoreFormatError(
                f"{origin} has format version {version!r}, this version of journey reads {FORMAT_VERSION}; "
                "use the version of journey that wrote it, or featurize again into another folder"
            )
        try:
            manifest = cls(**document)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{origin} is damaged ({error}); {cure}") from error
        if manifest.checksum != checksum:
            raise StoreError(
                f"{origin} is damaged or was edited: its fields have the checksum {manifest.checksum}, "
                f"the file says {checksum}; {cure}"
            )
        return manifest

    def differences(self, other: Manifest) -> list[tuple[str, str, str]]:
        """List the fields that differ.

        Args:
            other: The manifest to compare with.

        Returns:
            For every field that differs: its path (such as ``fingerprints.draws.seed``), and its value here and in
            ``other`` as JSON.
        """
        return json_differences(self._fields(), other._fields())

    def _fields(self) -> dict[str, JSONValue]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}


def publish_manifest(folder: Location, manifest: Manifest, beside: Sequence[str] = ()) -> None:
    """Write the manifest of a folder unless there is one already, perhaps another one.

    Args:
        folder: An existing folder, empty or with a manifest.
        beside: Names of what may be there without one.
        manifest: What to write.

    Raises:
        FileExistsError: If the folder holds other files but no manifest.
        OSError: If the folder cannot be written to.
    """
    path = folder / _FILE_NAME
    check_free(folder, beside)
    if exists(path):
        return
    with contextlib.suppress(FileExistsError):  # exists: another process was first
        publish(path, [manifest.to_json().encode()], exclusive=True)


def check_free(folder: Location, beside: Sequence[str] = ()) -> None:
    """Refuse a folder that holds other files than those of a store.

    Args:
        folder: It need not exist.
        beside: Names of what may be there without a manifest.

    Raises:
        FileExistsError: If it holds other files but no manifest, or is itself a file.
    """
    if isinstance(folder, Path) and not folder.is_dir():
        if folder.exists():
            raise FileExistsError(f"{folder} is a file; the feature store needs a folder")
        return
    foreign = sorted(name for name in names_in(folder) if name not in beside and not is_temporary(name))
    # After the listing: what another process adds meanwhile comes after its manifest.
    if foreign and not exists(folder / _FILE_NAME):
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise FileExistsError(
            f"{folder} has no {_FILE_NAME} but holds other files ({shown}); give an empty or a new folder"
        )


def read_manifest(folder: Location) -> Manifest:
    """Read the manifest of a folder.

    Args:
        folder: The folder of a store.

    Returns:
        Its manifest.

    Raises:
        FileNotFoundError: If there is none.
        StoreFormatError: If it was written in a format that this version does not know.
        StoreError: If it is damaged.
    """
    path = folder / _FILE_NAME
    try:
        text = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder} is not a feature store: it has no {_FILE_NAME}; give the folder that featurize wrote"
        ) from None
    return Manifest.from_json(text, str(path))


def stored_manifest(path: GivenPath) -> Manifest | None:
    """Return the manifest of a folder, or None if it holds no store.

    Raises:
        StoreFormatError: If it was written in a format that this version does not read.
        StoreError: If it is damaged.
    """
    try:
        return read_manifest(as_path(path))
    except FileNotFoundError:
        return None


def _check_checkpoints(checkpoints: Sequence[str]) -> None:
    if isinstance(checkpoints, str) or not all(isinstance(name, str) for name in checkpoints):
        raise TypeError(f"checkpoints must be a sequence of names, got {checkpoints!r}")
    if not checkpoints:
        raise ValueError("checkpoints must name at least one checkpoint, got none")
    twice = sorted({name for name in checkpoints if list(checkpoints).count(name) > 1})
    if twice:
        raise ValueError(f"checkpoints must have different names, got {twice[0]!r} more than once")
