"""The feature store: a folder that holds the features of every training sample under every checkpoint.

::

    features/
        manifest.json                              what is stored and which run it belongs to (see ``Manifest``)
        checkpoint-000-shard-000000.safetensors    dataset positions [0, shard_size) under the first checkpoint
        checkpoint-000-shard-000001.safetensors    ...

A shard holds ``rows`` [num, bins, proj_dim], int8 with ``scales`` float32 [num, bins] unless another form was asked for
(``journey.store.rows``), ``norm`` and ``noise`` float32 [num], ``values`` float32 [num, bins] and ``ids`` int64 [num],
and is readable with safetensors alone: a feature is ``rows * scales``. It is a fixed range of positions, complete
whenever it exists, and carries its own checksum. So any process may write any shard, several may write the same one,
and there is no shared state to merge or to lose: a run that was killed continues with the shards that are missing and
leaves the same bytes as one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from journey.errors import IncompleteStoreError, StoreMismatchError, naming_folder
from journey.files.publish import check_writable, remove_leftovers, sync_folder
from journey.store.manifest import Manifest, check_free, publish_manifest, read_manifest
from journey.store.shard import Shard, ShardFormat, check_shard_size, read_shard_file, write_shard_file

_MAX_DIFFERENCES = 5  # shown in one message; a run that differs in more is simply another run


class FeatureStore:
    """Features on disk, written and read by shards. Made by ``create_or_resume`` or ``open``.

    Attributes:
        path: The folder.
        manifest: What it holds.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use ``create_or_resume`` or ``open`` instead; they check the folder."""
        self.path = path
        self.manifest = manifest
        self._manifest_checksum = manifest.checksum
        # Files whose checksum was found right: inode, time and size of when it was.
        self._verified: dict[Path, tuple[int, int, int]] = {}

    @classmethod
    def create_or_resume(
        cls, path: str | os.PathLike[str], manifest: Manifest, beside: Sequence[str] = ()
    ) -> FeatureStore:
        """Create a store, or open the one that the same run left behind.

        Several processes may do this at once. Temporary files of dead processes are deleted.

        Args:
            path: The folder: absent, empty, or holding the store of the same run.
            manifest: What the store is to hold.
            beside: Names of what may be in the folder before there is a store.

        Returns:
            The store, with the shards that are already done.

        Raises:
            StoreMismatchError: If the folder holds the features of a different run; names the fields that differ.
            StoreError: If the folder's manifest is damaged.
            CorruptShardError: If a shard has an impossible size.
            FileExistsError: If the folder holds other files, or is itself a file.
            OSError: If the folder cannot be written to. A complete store may be read-only.
        """
        folder = Path(path)
        check_free(folder, beside)
        with naming_folder(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)
        remove_leftovers(folder)
        publish_manifest(folder, manifest, beside)
        store = cls.open(folder)
        differences = store.manifest.differences(manifest)
        if differences:
            shown = [f"  {name}: {ours} in the store, {theirs} now\n" for name, ours, theirs in differences]
            more = f"  and {len(shown) - _MAX_DIFFERENCES} more\n" if len(shown) > _MAX_DIFFERENCES else ""
            raise StoreMismatchError(
                f"{folder} holds the features of a different run:\n{''.join(shown[:_MAX_DIFFERENCES])}{more}"
                "Give another folder, repeat the run with the store's values, or delete the folder to start over."
            )
        if not store.is_complete:
            with naming_folder(folder):
                check_writable(folder)  # before hours of work, not after
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FeatureStore:
        """Open a store to read it, complete or not.

        Args:
            path: The folder.

        Returns:
            The store.

        Raises:
            FileNotFoundError: If there is no store at ``path``.
            StoreFormatError: If it was written in a format that this version does not read.
            StoreError: If its manifest is damaged.
        """
        return cls(Path(path), read_manifest(Path(path)))

    def num_shards(self, checkpoint: str) -> int:
        """Return how many shards a checkpoint has when it is complete; equal for all checkpoints."""
        self._checkpoint_index(checkpoint)
        return self.manifest.num_shards

    def shard_range(self, index: int) -> tuple[int, int]:
        """Return the dataset positions ``[begin, end)`` of a shard.

        Raises:
            IndexError: If there is no such shard.
        """
        if not 0 <= index < self.manifest.num_shards:
            raise IndexError(f"shard index must be in [0, {self.manifest.num_shards}), got {index}")
        begin = index * self.manifest.shard_size
        return begin, min(begin + self.manifest.shard_size, self.manifest.num_samples)

    def shard_path(self, checkpoint: str, index: int) -> Path:
        """Return the file of a shard, whether or not it exists."""
        self.shard_range(index)
        return self.path / f"checkpoint-{self._checkpoint_index(checkpoint):03d}-shard-{index:06d}.safetensors"

    def is_done(self, checkpoint: str, index: int) -> bool:
        """Tell whether a shard is there, by its name and size; CorruptShardError if the size is impossible."""
        return check_shard_size(self.shard_path(checkpoint, index), self._format(checkpoint, index))

    def missing(self, checkpoint: str) -> list[int]:
        """List the shards of a checkpoint that are not there yet, ascending; raises as ``is_done`` does."""
        return [index for index in range(self.num_shards(checkpoint)) if not self.is_done(checkpoint, index)]

    @property
    def is_complete(self) -> bool:
        """Whether every shard of every checkpoint is there."""
        return not any(self.missing(checkpoint) for checkpoint in self.manifest.checkpoints)

    def write_shard(
        self, checkpoint: str, index: int, *, features: Tensor, norm: Tensor, noise: Tensor, values: Tensor, ids: Tensor
    ) -> None:
        """Write one shard, durably; it is there as a whole when this returns, and not at all before.

        A shard that exists is replaced. Equal inputs give equal bytes.

        Args:
            checkpoint: Name of the checkpoint.
            index: Index of the shard; ``num = end - begin`` of its ``shard_range``.
            features: Projected gradients, float32 on the CPU, finite. [num, bins, proj_dim]
            norm: See ``Shard.norm``, float32 on the CPU. [num]
            noise: See ``Shard.noise``, float32 on the CPU. [num]
            values: The measurement's values, float32 on the CPU, finite. [num, bins]
            ids: Ids of the samples, int64 on the CPU. [num]

        Raises:
            ValueError: If a shape or a device is wrong, or a number is NaN or infinite; names the tensor.
            TypeError: If a dtype is wrong.
            OSError: If the folder cannot be written to.
        """
        path, form = self.shard_path(checkpoint, index), self._format(checkpoint, index)
        given = {"features": features, "norm": norm, "noise": noise, "values": values, "ids": ids}
        write_shard_file(path, form, given)

    def read_shard(self, checkpoint: str, index: int, verify: bool = True) -> Shard:
        """Read one shard.

        Args:
            checkpoint: Name of the checkpoint.
            index: Index of the shard.
            verify: Check the tensors' bytes against the checksum, once as long as the file stays as it is. The size
                and the header are always checked.

        Returns:
            The shard.

        Raises:
            IncompleteStoreError: If the shard is not there yet.
            CorruptShardError: If the file is not what was written.
        """
        path, form = self.shard_path(checkpoint, index), self._format(checkpoint, index)
        try:
            state = path.stat()
            seen = (state.st_ino, state.st_mtime_ns, state.st_size)
            tensors = read_shard_file(path, form, verify=verify and self._verified.get(path) != seen)
        except FileNotFoundError:
            raise IncompleteStoreError(f"{path} is missing; run featurize again to compute it") from None
        if verify:
            self._verified[path] = seen
        return Shard(checkpoint, form.begin, form.end, form.row, form.proj_dim, tensors)

    def iter_shards(self, checkpoint: str, verify: bool = True) -> Iterator[Shard]:
        """Read the shards of a checkpoint one after the other, in order.

        Args:
            checkpoint: Name of the checkpoint.
            verify: As in ``read_shard``.

        Returns:
            The shards; memory holds one at a time.

        Raises:
            IncompleteStoreError: If shards are missing; before the first one is read.
            CorruptShardError: If a file is not what was written.
        """
        self._require_complete(checkpoint)
        return (self.read_shard(checkpoint, index, verify) for index in range(self.num_shards(checkpoint)))

    def features(self, checkpoint: str) -> Tensor:
        """Read the features of all samples under a checkpoint, verified and unpacked.

        Args:
            checkpoint: Name of the checkpoint.

        Returns:
            The features, float32. [num_samples, bins, proj_dim]

        Raises:
            IncompleteStoreError: If shards are missing.
            CorruptShardError: If a file is not what was written.
        """
        sizes = (self.manifest.num_samples, self.manifest.bins, self.manifest.proj_dim)
        whole = torch.empty(sizes, dtype=torch.float32, device="cpu")
        for shard in self.iter_shards(checkpoint):
            whole[shard.begin : shard.end] = shard.features
        return whole

    def _checkpoint_index(self, checkpoint: str) -> int:
        names = list(self.manifest.checkpoints)
        if checkpoint not in names:
            raise ValueError(f"checkpoint must be one of {names}, got {checkpoint!r}")
        return names.index(checkpoint)

    def _format(self, checkpoint: str, index: int) -> ShardFormat:
        held, (begin, end) = self.manifest, self.shard_range(index)
        return ShardFormat(self._manifest_checksum, checkpoint, begin, end, held.bins, held.proj_dim, held.row)

    def _require_complete(self, checkpoint: str) -> None:
        missing, total = self.missing(checkpoint), self.num_shards(checkpoint)
        if missing:
            raise IncompleteStoreError(
                f"{self.path} misses {len(missing)} of {total} shards of checkpoint {checkpoint!r} "
                f"(the first is number {missing[0]}); run featurize again with the same arguments to compute them"
            )


def stored_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """Return the manifest of a folder, or None if it holds no store.

    Raises:
        StoreFormatError: If it was written in a format that this version does not read.
        StoreError: If it is damaged.
    """
    try:
        return read_manifest(Path(path))
    except FileNotFoundError:
        return None
