"""The feature store: a folder that holds the features of every training image under every checkpoint.

::

    features/
        manifest.json                        which run the features belong to (see ``Manifest``)
        part-000000.safetensors              which images are to be measured, in which shards (``journey.store.part``)
        rows-000-000000-000000.safetensors   the first checkpoint: part 0, shard 0
        rows-000-000000-000001.safetensors   ...
        rows-000-8d3a51f0c2b94e67-000000.safetensors   a shard without a plan, named after its ids

A shard holds ``rows`` [num, bins, proj_dim], int8 with ``scales`` float32 [num, bins] unless another form was asked for
(``journey.store.rows``), ``norm`` and ``noise`` float32 [num], ``values`` float32 [num, bins], ``content`` int64 [num]
and the ids (``journey.store.ids``), and is readable with safetensors alone: a feature is ``rows * scales``. It is
complete whenever it exists, and carries its own checksum. So any process may write any shard, several may write the
same one, and there is no shared state to merge or to lose: a run that was killed continues with the shards that are
missing and leaves the same bytes as one that was not. A store grows by parts; no row of it ever changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.errors import CorruptShardError, IncompleteStoreError, StoreMismatchError, naming_folder
from journey.files.copies import forget_copy, kept_copy
from journey.files.fingerprint import fingerprint_json
from journey.files.paths import GivenPath, Location, as_path
from journey.files.publish import remove_leftovers, sync_folder
from journey.store.ids import pack_ids
from journey.store.layout import Layout
from journey.store.manifest import Manifest, check_free, publish_manifest, read_manifest
from journey.store.marks import Mark, Marks, mark_of
from journey.store.part import FIRST_PART, ShardName
from journey.store.shard import Shard, ShardFormat, read_shard_file, write_shard_file

_MAX_DIFFERENCES = 5  # shown in one message; a run that differs in more is simply another run
_MOST_MAPPED = 16_384  # the system allows a process some 65,000 maps


class FeatureStore(Layout):
    """Features on disk, written and read by shards. Made by ``create_or_resume`` or ``open``.

    Attributes:
        path: The folder.
        manifest: What it holds.
    """

    def __init__(self, path: Location, manifest: Manifest) -> None:
        """Use ``create_or_resume`` or ``open`` instead; they check the folder."""
        super().__init__(path, manifest)
        self._manifest_checksum = manifest.checksum
        self._owners: dict[str, str] = {}  # of parts, by name
        self._marks = Marks(path)
        self._mapped: dict[str, tuple[Mark, dict[str, Tensor]]] = {}  # shards that were read, as files they were

    @classmethod
    def create_or_resume(cls, path: GivenPath, manifest: Manifest, beside: Sequence[str] = ()) -> FeatureStore:
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
            FileExistsError: If the folder holds other files, or is itself a file.
            OSError: If the folder cannot be written to. One that has a store may be read-only.
        """
        folder = as_path(path)
        check_free(folder, beside)
        if isinstance(folder, Path) and not folder.is_dir():
            with naming_folder(folder):
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
        return store

    @classmethod
    def open(cls, path: GivenPath) -> FeatureStore:
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
        folder = as_path(path)
        return cls(folder, read_manifest(folder))

    def write_shard(self, checkpoint: str, shard: ShardName, ids: Ids, **tensors: Tensor) -> None:
        """Write one shard, durably; it is there as a whole when this returns, and not at all before.

        A shard that exists is replaced. Equal inputs give equal bytes.

        Args:
            checkpoint: Name of the checkpoint.
            shard: Which shard.
            ids: Of the images: the planned ones, or some of them.
            **tensors: On the CPU: ``features`` float32 [num, bins, proj_dim] and ``values`` float32 [num, bins], both
                finite, ``norm`` and ``noise`` float32 [num] and ``content`` int64 [num], see ``Shard``.

        Raises:
            ValueError: If a shape or a device is wrong, or a number is NaN or infinite; names the tensor.
            TypeError: If a dtype is wrong.
            OSError: If the folder cannot be written to.
        """
        form = self._format_of(checkpoint, shard, ids, self._owner(shard))
        write_shard_file(self.shard_path(checkpoint, shard), form, ids, tensors)

    def shard_bytes(self, checkpoint: str, shard: ShardName, ids: Ids) -> int:
        """Return the size of the file that a shard of some images has, written or not."""
        return self._format_of(checkpoint, shard, ids, "0" * len(self._manifest_checksum)).num_bytes

    def read_shard(self, checkpoint: str, shard: ShardName, verify: bool = True) -> Shard:
        """Read one shard.

        Args:
            checkpoint: Name of the checkpoint.
            shard: Which shard.
            verify: Check the tensors' bytes against the checksum, once as long as the file stays as it is
                (``journey.store.marks``). The size and the header are always checked.

        Returns:
            The shard.

        Raises:
            IncompleteStoreError: If the shard is not there yet.
            CorruptShardError: If the file is not what was written.
        """
        path, form = self.shard_path(checkpoint, shard), self._format(checkpoint, shard, self._owner(shard))
        try:
            copy = kept_copy(path)
            mark = mark_of(copy)
            unsure = verify and not self._marks.holds(path.name, mark)
            before, tensors = self._mapped.get(path.name, (None, {}))
            if unsure or before != mark:
                tensors = read_shard_file(path, form, verify=unsure)
        except CorruptShardError:
            forget_copy(path)  # it may be computed again
            raise
        except FileNotFoundError:
            raise IncompleteStoreError(f"{path} is missing; run featurize again to compute it") from None
        if len(self._mapped) < _MOST_MAPPED:
            self._mapped[path.name] = (mark, tensors)
        if unsure:
            self._marks.add(path.name, mark)
        return Shard(form.row, form.proj_dim, tensors)

    def keep_marks(self) -> None:
        """Keep which shards were verified, for other processes; call it when a question was answered."""
        self._marks.keep()

    def forget_marks(self) -> None:
        """Verify every shard again, whatever was found before."""
        self._marks.forget()

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
        self.require_complete()
        return (self.read_shard(checkpoint, shard, verify) for shard in self.shards())

    def shards_that_hold(self, ids: Collection[int | str]) -> Iterator[Shard]:
        """Read the shards, of the first checkpoint, that have some images, as far as they are there; unverified."""
        checkpoint, files = self.manifest.checkpoints[0], self.names()
        planned = {part.name: part for part in self.parts()}
        for shard in self.shards():
            part = planned.get(shard.part)
            if part is not None and not any(i in ids for i in part.ids_of(shard.number)):
                continue
            if self.shard_path(checkpoint, shard).name in files:
                yield self.read_shard(checkpoint, shard, verify=False)

    def features(self, checkpoint: str) -> Tensor:
        """Read the features of all images under a checkpoint, verified and unpacked.

        Args:
            checkpoint: Name of the checkpoint.

        Returns:
            The features, float32. [num_samples, bins, proj_dim]

        Raises:
            IncompleteStoreError: If shards are missing.
            CorruptShardError: If a file is not what was written.
        """
        return torch.cat([shard.features for shard in self.iter_shards(checkpoint)])

    def _owner(self, shard: ShardName) -> str:
        """What a shard says that it belongs to: the manifest, and the part that planned it if one did."""
        if len(shard.part) > len(FIRST_PART):
            return self._manifest_checksum
        if shard.part not in self._owners:
            part = next((part for part in self.parts() if part.name == shard.part), None)
            if part is None:
                raise ValueError(f"shard must be of a part that is planned, or of none, got {shard}")
            self._owners[shard.part] = fingerprint_json([self._manifest_checksum, part.fingerprint])
        return self._owners[shard.part]

    def _format_of(self, checkpoint: str, shard: ShardName, ids: Ids, owner: str) -> ShardFormat:
        packed = pack_ids(ids)
        return self._format(
            checkpoint, shard, owner, len(ids), len(packed["id_bytes"]) if "id_bytes" in packed else None
        )

    def _format(
        self, checkpoint: str, shard: ShardName, owner: str, num: int = 0, id_bytes: int | None = None
    ) -> ShardFormat:
        held, name = self.manifest, self._stem(checkpoint, shard)
        return ShardFormat(owner, name, num, id_bytes, held.bins, held.proj_dim, held.row)
