"""Which shards a store has and is to have: its parts, its files, and what is missing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from journey.data.ids import Ids
from journey.errors import IncompleteStoreError, StoreError, StoreMismatchError, naming_folder
from journey.files.paths import Location, names_in
from journey.files.publish import check_writable
from journey.store.manifest import Manifest
from journey.store.part import Part, ShardName, part_name, read_skipped, skipped_path
from journey.store.shard import Shard

_SUFFIX = ".safetensors"


class Layout(ABC):
    """The files of a store, by name.

    Attributes:
        path: The folder.
        manifest: What it holds.
    """

    def __init__(self, path: Location, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._parts: dict[str, Part] = {}  # as read; a part never changes

    @abstractmethod
    def read_shard(self, checkpoint: str, shard: ShardName, verify: bool = True) -> Shard:
        """Read one shard, see ``FeatureStore``."""

    def parts(self) -> list[Part]:
        """Return the parts that are planned by now, in order.

        Raises:
            StoreError: If a part is damaged, or gone while its rows are there.
        """
        files = self.names()
        names = sorted(name for file in files if (name := part_name(file)) is not None)
        lost = sorted({name for file in files if (name := _planned(file)) is not None}.difference(names))
        if lost:
            raise StoreError(
                f"{self.path / f'part-{lost[0]}{_SUFFIX}'} is missing, but rows of its images are there: restore the "
                f"file, or delete rows-*-{lost[0]}-* to measure them again"
            )
        for name in names:
            if name not in self._parts:
                self._parts[name] = Part.read(self.path, name)
        return [self._parts[name] for name in names]

    def plan(self, ids: Ids, shard_size: int) -> None:
        """Add a part of those images that are neither planned nor there, if there are any.

        Several processes may do this at once: one of them adds the part, the others find it.

        Args:
            ids: Images that the store is to hold.
            shard_size: Images per shard of the new part.

        Raises:
            StoreMismatchError: If the store's ids are of the other kind, integers or strings.
            StoreError: If a part is damaged.
            OSError: If the folder cannot be written to.
        """
        while True:
            # Taken before it is known what is planned: a part that comes in between has this name, and is read.
            number = max((int(part.name) + 1 for part in self.parts()), default=0)
            known = self.planned_ids()
            self.check_kind(known, ids)
            new = [i for i in ids if i not in known]
            with naming_folder(self.path):
                if new or not self.is_complete:
                    check_writable(self.path)  # before hours of work, not after
            if not new:
                return
            try:
                Part.of(f"{number:06d}", new, shard_size).publish(self.path)
            except FileExistsError:  # another process was first; perhaps with fewer images
                continue
            return

    def check_kind(self, known: Collection[int | str], ids: Ids) -> None:
        """Refuse ids of the other kind, integers or strings, than the store's; StoreMismatchError names two."""
        if known and ids and type(next(iter(known))) is not type(ids[0]):
            raise StoreMismatchError(
                f"ids must be of the kind that {self.path} has, such as {next(iter(known))!r}, got {ids[0]!r}"
            )

    def planned_ids(self) -> set[int | str]:
        """Return the images that are planned, or there without a plan; those that were skipped are not."""
        files, known = self.names(), set[int | str]()
        for part in self.parts():
            skipped = set[int | str]()
            for shard in part.shards:
                if (path := skipped_path(self.path, shard)).name in files:
                    skipped |= read_skipped(path).keys()
            known.update(i for i in part.ids if i not in skipped)
        for shard in self._loose(files):
            known.update(self.read_shard(self.manifest.checkpoints[0], shard, verify=False).ids)
        return known

    def skipped_ids(self) -> set[int | str]:
        """Return the images that were planned, and left out as they could not be read."""
        known = self.planned_ids()
        return {i for part in self.parts() for i in part.ids if i not in known}

    def shards(self) -> list[ShardName]:
        """Return all shards that the store has or is to have, in order: those of parts, then those without a plan."""
        return [shard for part in self.parts() for shard in part.shards] + self._loose(self.names())

    def missing(self, checkpoint: str) -> list[ShardName]:
        """List the shards of a checkpoint that are not there yet, in order."""
        self._checkpoint_index(checkpoint)
        files = self.names()
        return [shard for shard in self.shards() if self.shard_path(checkpoint, shard).name not in files]

    @property
    def is_complete(self) -> bool:
        """Whether every shard of every checkpoint is there."""
        return not any(self.missing(checkpoint) for checkpoint in self.manifest.checkpoints)

    def names(self) -> set[str]:
        """Return the names of all files in the folder, listed once instead of looking for each."""
        return names_in(self.path)

    def shard_path(self, checkpoint: str, shard: ShardName) -> Location:
        """Return the file of a shard, whether or not it exists."""
        return self.path / f"{self._stem(checkpoint, shard)}{_SUFFIX}"

    def require_complete(self) -> None:
        """Refuse a store of which shards are missing, or that has none.

        Raises:
            IncompleteStoreError: If so.
        """
        cure = "run featurize again with the same arguments"
        total = len(self.shards())
        if not total:
            raise IncompleteStoreError(f"{self.path} holds no image yet; {cure}")
        for checkpoint in self.manifest.checkpoints:
            if missing := self.missing(checkpoint):
                raise IncompleteStoreError(
                    f"{self.path} misses {len(missing)} of {total} shards of checkpoint {checkpoint!r} "
                    f"(the first is {missing[0]}); {cure} to compute them"
                )

    def _loose(self, files: set[str]) -> list[ShardName]:
        """Shards without a plan that every checkpoint has, by name: others are of a run that was stopped."""
        words = [name.removesuffix(_SUFFIX).split("-") for name in files if name.startswith("rows-")]
        found = sorted({ShardName(part, int(number)) for *_, part, number in words if len(part) == 16})
        names = self.manifest.checkpoints
        return [shard for shard in found if all(self.shard_path(name, shard).name in files for name in names)]

    def _stem(self, checkpoint: str, shard: ShardName) -> str:
        return f"rows-{self._checkpoint_index(checkpoint):03d}-{shard}"

    def _checkpoint_index(self, checkpoint: str) -> int:
        names = list(self.manifest.checkpoints)
        if checkpoint not in names:
            raise ValueError(f"checkpoint must be one of {names}, got {checkpoint!r}")
        return names.index(checkpoint)


def _planned(file: str) -> str | None:
    """The part that a file of rows belongs to; None of other files, and of shards without a plan."""
    words = file.removesuffix(_SUFFIX).split("-") if file.startswith("rows-") else []
    return words[2] if len(words) == 4 and len(words[2]) == 6 else None
