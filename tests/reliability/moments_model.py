"""What must be true of the moments of stores to which anything may happen."""

from __future__ import annotations

from pathlib import Path

from probing.errors import CorruptShard, IncompleteStore, ProvenanceMismatch, StoreError, UnknownName
from probing.states.store import FileOps, Store
from probing.states.store.format import parse_signed
from tests.reliability.gathered import NAMES, Name, gather, in_bytes, truth
from tests.reliability.job import Job


class MomentsModel:
    """The moments of one store.

    Attributes:
        kept: moments that were gathered or brought along, and neither removed nor damaged since.
        spoiled: damaged files and records, with the bytes they were left with; None: the file was deleted.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        self.kept: set[Name] = set()
        self.spoiled: dict[Name, tuple[Path, bytes | None]] = {}

    @property
    def names(self) -> set[Name]:
        """Moments that have a record, good or bad."""
        return {name for name in NAMES if self._record(name).exists()}

    @property
    def is_complete(self) -> bool:
        """Whether the store has all its shards."""
        try:
            return Store.open(self.path).shards_done == self.job.n_shards
        except StoreError:
            return False

    def gather(self, name: Name, files: FileOps, *, is_sound: bool) -> None:
        """Gather moments: they are right, or shards are missing or damaged."""
        is_complete = self.is_complete
        try:
            found = gather(self.path, self.job, *name, files)
        except (IncompleteStore, CorruptShard):
            assert not is_complete or not is_sound
            return
        assert is_complete and in_bytes(found) == truth(self.job)[name]
        self.kept.add(name)
        self.look_again()
        assert name not in self.spoiled

    def damage(self, name: Name, *, is_record: bool, deletes: bool) -> None:
        """Flip a bit of moments that are kept, or delete a file of theirs."""
        record = parse_signed(self._record(name).read_bytes())
        path = self._record(name) if is_record else self.path / "moments" / record["file"]
        data = bytearray(path.read_bytes())
        self.kept.discard(name)
        if deletes:
            path.unlink()
        else:
            data[len(data) // 2 if is_record else record["datasets"]["/cross"]["offset"]] ^= 1
            path.write_bytes(data)
        if not (is_record and deletes):  # without a record there are no moments: no damage
            self.spoiled[name] = (path, None if deletes else bytes(data))

    def look_again(self) -> None:
        """Forget damage that is gone, since the file was written again or its record was removed."""
        self.spoiled = {
            name: (path, data)
            for name, (path, data) in self.spoiled.items()
            if self._record(name).exists() and (path.read_bytes() if path.exists() else None) == data
        }

    def check(self) -> None:
        """The law: what is kept is there, what is given is right, what is refused has a reason."""
        try:
            store = Store.open(self.path, allow_partial=True)
        except StoreError:
            return
        for name in NAMES:
            try:
                given = in_bytes(store.moments(*name))
            except UnknownName:
                assert name not in self.kept
            except ProvenanceMismatch:
                assert store.shards_done < store.shards_planned
            except CorruptShard:
                assert name in self.spoiled
            else:
                assert given == truth(self.job)[name] and name not in self.spoiled

    def _record(self, name: Name) -> Path:
        return self.path / "moments" / f"{name[0]}.{name[1]}.json"
