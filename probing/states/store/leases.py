"""Leases: hints on which process computes which shard, so that processes share the work; correctness does not need
them.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probing.errors import StoreBusy
from probing.states.store.file_ops import (
    LEASE_SECONDS,
    REAL_FILES,
    FileOps,
    host_name,
    is_dead_here,
)
from probing.states.store.format import parse_signed, record_file, signed_json

FOLDER = "leases"
RENEW_SECONDS = 60
UNWRITTEN_SECONDS = 10  # a lease is written as soon as it is made: one still empty is of a process killed in between
LEASE = re.compile(r"s\d{6}\.json")


@dataclass(frozen=True)
class Holder:
    """Describes the process that holds the lease of a shard.

    Attributes:
        host, pid: host name and process id; "" and 0 if the lease cannot be read.
        age: seconds since the lease was last renewed, by the file server's clock.
    """

    host: str
    pid: int
    age: float


class Lease:
    """Holds the lease of one shard, by which this process announces that it computes the shard."""

    def __init__(self, files: FileOps, path: Path, data: bytes) -> None:
        self._files = files
        self._path = path
        self._data = data
        self._renewed = files.clock()

    def renew(self) -> None:
        """Renew the lease while the work goes on; the file is touched at most once a minute."""
        if self._files.clock() - self._renewed >= RENEW_SECONDS:
            self._renewed = self._files.clock()
            with suppress(OSError):
                self._files.touch(self._path)

    def release(self) -> None:
        """Delete the lease, if this process still holds it."""
        with suppress(OSError):
            if self._path.read_bytes() == self._data:
                self._files.unlink(self._path)


class Leases:
    """Manages the leases of one store, by which processes avoid computing the same shard.

    A lease is a file made with `O_EXCL` and renewed by touching it. A lease is valid for 15 minutes after its last
    renewal by the file server's clock (10 seconds if it does not name its process), or until its process is known to be
    dead. Errors with leases are ignored, since a shard that is computed twice is committed only once.
    """

    def __init__(self, path: Path, files: FileOps = REAL_FILES) -> None:
        self._folder = path / FOLDER
        self._files = files

    def take(self, shard: int) -> Lease:
        """Take the lease of a shard and return it.

        Raises:
            StoreBusy: another process holds the lease.
        """
        target = self._folder / record_file(shard)
        facts = {"host": host_name(), "pid": os.getpid(), "shard": shard, "token": secrets.token_hex(8)}
        data = signed_json(facts)
        with suppress(OSError):
            if not self._folder.is_dir():
                with suppress(FileExistsError):
                    self._files.mkdir(self._folder)
            if not self._create(target, data):
                self._refuse_if_held(shard, target)
                self._files.unlink(target)
                self._create(target, data)
        return Lease(self._files, target, data)

    def held(self) -> dict[int, Holder]:
        """Return the holders of valid leases, by shard."""
        names = []
        with suppress(OSError):
            names = [name for name in self._files.listdir(self._folder) if LEASE.fullmatch(name)]
        now = self._now() if names else 0.0
        found = ((int(name[1:7]), self._live_holder(self._folder / name, now)) for name in names)
        return {shard: holder for shard, holder in found if holder is not None}

    def expired(self) -> list[Path]:
        """Return the lease files that are no longer valid."""
        held = {self._folder / record_file(shard) for shard in self.held()}
        with suppress(OSError):
            every = [self._folder / name for name in self._files.listdir(self._folder) if LEASE.fullmatch(name)]
            return [path for path in every if path not in held and path.is_file() and not path.is_symlink()]
        return []

    def _create(self, target: Path, data: bytes) -> bool:
        """Create the file, and return whether it was not there."""
        try:
            fd = self._files.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        try:
            self._files.write(fd, memoryview(data))
        finally:
            self._files.close(fd)
        return True

    def _refuse_if_held(self, shard: int, target: Path) -> None:
        holder = self._live_holder(target, self._now())
        if holder is not None:
            raise StoreBusy(
                f"another process computes shard {shard}",
                needed="a shard that nobody computes",
                found=f"process {holder.pid} on {holder.host or 'an unknown host'}",
                where=str(target),
                next_step=f"wait for it, or {LEASE_SECONDS // 60} minutes after it died",
            )

    def _live_holder(self, target: Path, now: float) -> Holder | None:
        try:
            data, age = target.read_bytes(), max(0.0, now - self._files.stat(target).st_mtime)
        except OSError:
            return None
        facts = _facts(data)
        host, pid = facts.get("host"), facts.get("pid")
        limit = LEASE_SECONDS if isinstance(pid, int) else UNWRITTEN_SECONDS
        if age > limit or (isinstance(pid, int) and is_dead_here(str(host), pid)):
            return None
        return Holder(str(host or ""), pid if isinstance(pid, int) else 0, age)

    def _now(self) -> float:
        """Return the file server's time, as it stamps a new file; this host's where no file can be made."""
        probe = self._folder / f".tmp-{host_name()}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._files.close(self._files.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            now = self._files.stat(probe).st_mtime
            self._files.unlink(probe)
        except OSError:
            return self._files.clock()
        return now


def _facts(data: bytes) -> dict[str, Any]:
    try:
        return parse_signed(data)
    except ValueError:
        return {}
