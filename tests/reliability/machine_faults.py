"""F13: whatever the machine refuses, each command ends in a typed error, and what was in its folder is there.

Beside it stands a careless command, which opens its results in place and lets every exception through.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from probing.system import supervising
from tests.reliability.children import Ended, run
from tests.reliability.commands import ROOT
from tests.reliability.faulty_commands import COMMANDS, Command, build_world, call, filled, preload
from tests.reliability.tally import Tally

DESCRIPTORS = (8, 24)
SPARE_MIB = (16, 128)  # address space beyond what the process has when it begins
FRESH_MIB = (300, 1500)  # address space of a process that is started anew
SECONDS = 240.0
LONG = "n" * 300
# Written anew by every run, whatever it does: the environment, and locks.
_RENEWED = ("environment.json", ".lock", "leases")


@dataclass(frozen=True)
class Fault:
    """One thing that the machine refuses.

    Attributes:
        name: for messages.
        limit: called in the child before the command.
        place: the target, made of the folder that it would be.
        given: the input in place of the right one, made of the right one.
        needs_start: whether the command is done, or nearly: not asked of long ones.
    """

    name: str
    limit: Callable[[Path], None] = lambda place: None
    place: Callable[[Path], Path] = lambda place: place
    given: Callable[[Path], Path] | None = None
    needs_start: bool = True


def _bound_by_permissions(place: Path) -> None:
    """Give up what root has beyond others: to read and write whatever the permissions are."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    for call_ in (libc.capget, libc.capset):
        assert call_(head, data) == 0, os.strerror(ctypes.get_errno())
        data[0] &= ~(1 << 1 | 1 << 2)  # effective: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        data[1] &= ~(1 << 1 | 1 << 2)  # permitted
    with pytest.raises(PermissionError):
        (_sealed_off(place) / "x").touch()


def _sealed_off(place: Path) -> Path:
    folder = place.parent / "sealed"
    folder.mkdir(mode=0o500, exist_ok=True)
    return folder


def _read_only(place: Path) -> None:
    _sealed_off(place)
    for path in (place.parent, *([place, *place.rglob("*")] if place.exists() else [])):
        path.chmod(0o555 if path.is_dir() else 0o444)
    _bound_by_permissions(place)


def _gone(place: Path) -> None:
    folder = place.parent / "working"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def _closed_output(place: Path) -> None:
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]


def _broken_output(place: Path) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)
    os.close(reader)


def _full_output(place: Path) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def _descriptors(count: int) -> Callable[[Path], None]:
    return lambda place: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def _memory(spare: int) -> Callable[[Path], None]:
    def limit(place: Path) -> None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + (spare << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return limit


def _as_file(place: Path) -> Path:
    file = place.parent / "file"
    file.write_text("somebody's", encoding="utf-8")
    return file / "folder"


def _unreadable(path: Path) -> Path:
    """A copy of the input that nobody may read."""
    copy = path.parent.parent / "trial" / f"unreadable{path.suffix}"
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    for part in (copy, *copy.rglob("*")):
        part.chmod(0)
    return copy


def _file_in_place(path: Path) -> Path:
    """A file where a folder is expected, or the other way round."""
    other = path.parent.parent / "trial" / f"other{path.suffix}"
    if path.is_dir():
        other.write_text("a file", encoding="utf-8")
    else:
        other.mkdir()
    return other


FAULTS = [
    Fault("read-only target", _read_only, needs_start=False),
    Fault("a file where the target's folder should be", place=_as_file, needs_start=False),
    Fault("a name of 300 characters", place=lambda place: place.parent / LONG, needs_start=False),
    Fault("missing input", given=lambda path: path.with_name("missing" + path.suffix)),
    Fault("a file for a folder, or a folder for a file", given=_file_in_place),
    Fault("an input of 300 characters", given=lambda path: path.with_name(LONG + path.suffix)),
    Fault("unreadable input", limit=_bound_by_permissions, given=_unreadable),
    Fault("deleted working directory", _gone, place=lambda place: Path(place.name), needs_start=False),
    Fault("closed output", _closed_output),
    Fault("broken output", _broken_output),
    Fault("full output", _full_output),
    *(Fault(f"{count} descriptors", _descriptors(count)) for count in DESCRIPTORS),
    *(Fault(f"{spare} MiB more", _memory(spare)) for spare in SPARE_MIB),
]


def machine_faults(
    folder: Path,
    names: Sequence[str] = (),
    states: Sequence[str] = ("fresh", "resume"),
    fresh: bool = True,
    hang_seconds: float = supervising.HANG_SECONDS,
) -> Tally:
    """F13.

    Args:
        folder: where files are made.
        names: of the commands; empty: all.
        states: `fresh` targets, and those that an earlier run filled (`resume`).
        fresh: also start processes anew under limits on memory and descriptors, so that the imports meet them.
        hang_seconds: how long a command without memory does nothing before it is ended.
    """
    supervising.HANG_SECONDS = hang_seconds
    tally = Tally("F13", "a typed error; no traceback, signal or hang; nothing of the target lost")
    preload()
    world = folder / "world"
    build_world(world, heavy=not names)
    inputs = hashes(world)
    careless: list[tuple[str, str]] = []
    for name in names or COMMANDS:
        command = COMMANDS[name]
        filled_target = _filled_target(folder, world, name, command) if "resume" in states else None
        for state, fault in [(one, fault) for one in states for fault in _faults_of(command, one)]:
            before = filled_target if state == "resume" else None
            tally.problems += trial(folder, world, name, command, fault, before, tally)
        if fresh and command.is_quick:
            for problem in started_anew(folder, world, name, command, tally):
                tally.problems.append(problem)
    for fault in FAULTS:
        careless += _careless_trial(folder, fault)
    tally.add("lost", [] if hashes(world) == inputs else ["an input changed"], "the inputs")
    tally.add_naive(careless)
    return tally


def _faults_of(command: Command, state: str) -> Iterator[Fault]:
    for fault in FAULTS:
        is_of_target = not fault.needs_start
        if is_of_target and not command.writes:
            continue
        if fault.given is not None and (not command.input or state == "resume"):
            continue
        if command.is_quick or is_of_target:
            yield fault


def _filled_target(folder: Path, world: Path, name: str, command: Command) -> Path | None:
    """A folder as an earlier run of the command left it."""
    if not command.writes or not command.is_quick:
        return None
    target = folder / "filled" / name.replace(" ", "-")
    target.parent.mkdir(exist_ok=True)
    if command.made:
        shutil.copytree(world / command.made, target)
    if name in ("store rm", "store repair", "store gc"):
        return target
    ended = run(call(filled(command, world, target)), SECONDS)
    assert ended.code == 0, (name, ended.output)
    return target


def trial(
    folder: Path, world: Path, name: str, command: Command, fault: Fault, before: Path | None, tally: Tally
) -> list[tuple[str, str]]:
    """Run one command under one fault, and say what is wrong."""
    place = _new_trial(folder)
    source = before or (world / command.made if command.made else None)
    if source is not None and command.writes:
        shutil.copytree(source, place)
    to = fault.place(place)
    kept = hashes(place) if place.is_dir() else {}
    given = fault.given(world / command.input) if fault.given is not None and command.input else None
    if fault.name == "deleted working directory":
        to = Path(place.name)

    def work() -> None:
        fault.limit(place)
        call(filled(command, world, to, given))()

    ended = run(work, SECONDS)
    where = f"{name}, {fault.name}, {'resume' if before else 'fresh'}"
    tally.done["commands under a fault"] += 1
    tally.done["typed errors"] += ended.code == 1
    _unlock(place.parent)
    may_delete = name == "store rm" and (ended.code == 0 or "output" in fault.name)  # done, but it cannot be said
    problems = judged(ended, where)
    lost = [] if may_delete else _lost(kept, place, ended)
    return problems + [("lost", f"{where}: {what}") for what in lost]


def judged(ended: Ended, where: str) -> list[tuple[str, str]]:
    """What is wrong with how a command ended."""
    if ended.kind:
        return [(ended.kind, f"{where}: signal {ended.signal}, {ended.output[-300:]}")]
    if "Traceback" in ended.output:
        return [("crash", f"{where}: {ended.output[-400:]}")]
    if ended.code not in (0, 1):
        return [("crash", f"{where}: exit status {ended.code}, {ended.output[-200:]}")]
    said = [line for line in ended.output.splitlines() if line.strip()]
    is_silent = "output" in where or "descriptors" in where
    return [("crash", f"{where}: ended without a word")] if ended.code == 1 and not said and not is_silent else []


def _lost(kept: dict[str, str], place: Path, ended: Ended) -> list[str]:
    """What was in the folder and is not, or is otherwise, after a command that did not end well."""
    now = hashes(place) if place.is_dir() else {}
    gone = [f"{name} is gone" for name in kept if name not in now]
    changed = [f"{name} changed" for name in kept if name in now and now[name] != kept[name]]
    return [*gone, *(changed if ended.code else [])]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, but for those that are always written anew."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(_RENEWED)
    }


def _new_trial(folder: Path) -> Path:
    parent = folder / "trial"
    _unlock(parent)
    shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir()
    return parent / "target"


def _unlock(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")) if folder.exists() else ():
        path.chmod(0o755 if path.is_dir() else 0o644)


def started_anew(folder: Path, world: Path, name: str, command: Command, tally: Tally) -> Iterator[tuple[str, str]]:
    """Problems of a process that is started under a limit on address space."""
    for mib in FRESH_MIB:
        place = _new_trial(folder)
        if command.made:
            shutil.copytree(world / command.made, place)
        words = [sys.executable, "-m", "probing", *filled(command, world, place)]
        variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

        def limit(most: int = mib << 20) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

        try:
            done = subprocess.run(
                words, env=variables, preexec_fn=limit, capture_output=True, text=True, timeout=SECONDS
            )
            ended = Ended(
                max(done.returncode, 0),
                -done.returncode or None if done.returncode < 0 else None,
                False,
                done.stdout + done.stderr,
            )
        except subprocess.TimeoutExpired:
            ended = Ended(None, None, True, "")
        tally.done["processes under ulimit -v"] += 1
        tally.done["typed errors"] += ended.code == 1
        yield from judged(ended, f"{name}, started under {mib} MiB")


def _careless(source: Path, to: Path) -> None:
    """As a notebook would: results are opened first, in place, and no error is thought of."""
    to.mkdir(parents=True, exist_ok=True)
    with (to / "results.json").open("w", encoding="utf-8") as file:
        lines = source.read_text(encoding="utf-8").splitlines()
        table = bytearray(300 << 20)
        others = [source.open(encoding="utf-8") for _ in range(8)]
        json.dump({"count": len(lines), "bytes": len(table), "files": len(others)}, file)
    print(len(lines), flush=True)


def _careless_trial(folder: Path, fault: Fault) -> list[tuple[str, str]]:
    place = _new_trial(folder)
    place.mkdir()
    (place / "results.json").write_text('{"count": 7}', encoding="utf-8")
    kept, to = hashes(place), fault.place(place)
    world = folder / "world"
    given = (fault.given or (lambda path: path))(world / "dev.jsonl")

    def work() -> None:
        fault.limit(place)
        _careless(given, to)

    ended = run(work, SECONDS)
    _unlock(place.parent)
    crash = [("crash", fault.name)] if ended.kind or "Traceback" in ended.output else []
    return crash + [("lost", what) for what in _lost(kept, place, ended)]
