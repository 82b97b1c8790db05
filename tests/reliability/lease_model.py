"""What must be true of the leases of stores to which anything may happen."""

from __future__ import annotations

import os
import time
from pathlib import Path

from probing.errors import StoreBusy
from probing.states.store import FileOps
from probing.states.store.file_ops import LEASE_SECONDS
from probing.states.store.format import signed_json
from probing.states.store.leases import UNWRITTEN_SECONDS, Lease, Leases
from tests.reliability.job import QuickFiles


class LeaseModel:
    """The leases of one store.

    Attributes:
        live, over: shards whose lease counts, and whose lease counts no more but is still there.
        unsure: shards whose lease was being made or was damaged a moment ago: it counts for some seconds, or not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.live: set[int] = set()
        self.over: set[int] = set()
        self.unsure: set[int] = set()
        self._ours: dict[int, Lease] = {}

    def take(self, shard: int, files: FileOps) -> bool:
        """Take a lease; whether it was free. Perhaps the process stops on the way."""
        if shard not in self.live:
            self.over.discard(shard)
            self.unsure.add(shard)  # until we know how it ends
        try:
            self._ours[shard] = Leases(self.path, files).take(shard)
        except StoreBusy:
            assert shard in self.live | self.unsure
            return False
        assert shard not in self.live, "two have one lease"
        self._set(shard, self.live)
        return True

    def release(self, shard: int, files: FileOps) -> None:
        """Give a lease of ours back; one that is another's by now stays."""
        lease = self._ours.pop(shard, None)
        if lease is None:
            return
        was_there = self._file(shard).exists()
        is_ours = was_there and self._file(shard).read_bytes() == lease._data
        lease._files = files
        lease.release()
        assert self._file(shard).exists() == (was_there and not is_ours)
        if is_ours:
            self._set(shard, None)

    def leave(self, shard: int, *, is_over: bool) -> None:
        """A process of another host takes a free shard, perhaps long ago, and is not heard of again."""
        if shard in self.live | self.unsure:
            return
        self._file(shard).parent.mkdir(exist_ok=True)
        self._file(shard).write_bytes(signed_json({"host": "elsewhere", "pid": 7, "shard": shard, "token": "t"}))
        self._age(shard, LEASE_SECONDS + 60 if is_over else 0)
        self._set(shard, self.over if is_over else self.live)

    def damage(self, shard: int, *, keeps: float, is_old: bool) -> None:
        """Cut a lease to a part of its bytes, or change a byte of it where all of them stay."""
        if not self._file(shard).exists():
            return
        data = bytearray(self._file(shard).read_bytes())
        data = data[: int(keeps * len(data))]
        if keeps == 1 and data:
            data[len(data) // 2] = (data[len(data) // 2] + 1) % 256  # a bit that is flipped twice would be sound again
        self._file(shard).write_bytes(data)
        self._age(shard, 2 * UNWRITTEN_SECONDS if is_old else 0)
        self._set(shard, self.over if is_old else self.unsure)

    def collected(self) -> None:
        """After garbage was collected: what is over is gone."""
        assert not any(self._file(shard).exists() for shard in self.over)
        self.over = set()

    def settle(self) -> None:
        """Delete the leases of which nothing can be said."""
        for shard in self.unsure:
            self._file(shard).unlink(missing_ok=True)
        self.unsure = set()

    def removed(self) -> None:
        """After a removal, or one that stopped: none of the rest is anybody's."""
        for shard in {*self.over, *self.live}:
            if not self._file(shard).exists():
                self._set(shard, None)

    def check(self) -> None:
        """The law: live leases count, those that are over do not, and nobody else's are seen."""
        held = set(Leases(self.path, QuickFiles()).held())
        assert self.live <= held <= self.live | self.unsure

    def _set(self, shard: int, where: set[int] | None) -> None:
        for states in (self.live, self.over, self.unsure):
            states.discard(shard)
        if where is not None:
            where.add(shard)

    def _age(self, shard: int, seconds: float) -> None:
        os.utime(self._file(shard), (time.time() - seconds,) * 2)

    def _file(self, shard: int) -> Path:
        return self.path / "leases" / f"s{shard:06d}.json"
