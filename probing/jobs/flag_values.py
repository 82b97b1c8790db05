"""Reads values of flags that have the form NAME=VALUE; for a value of another form, the error shows the right one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from probing.errors import ConfigError


def check_one_file_each(entries: Iterable[str]) -> None:
    """Refuse several files in one value of `--corpus`, such as `train=a,dev=b`.

    Raises:
        ConfigError: a value names several files; the message shows the flags to write instead.
    """
    for entry in entries:
        parts = re.split(r",\s*(?=[\w.]+=)", entry)
        if len(parts) > 1 and "=" in parts[0] and not Path(entry.partition("=")[2]).exists():
            raise ConfigError(
                "--corpus names several files at once",
                needed="the flag once for each file",
                found=repr(entry),
                next_step=f"repeat it: {' '.join(f'--corpus {part}' for part in parts)}",
            )


def named_pairs(entries: list[str], flag: str, example: str) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each `NAME=VALUE` of a flag.

    Raises:
        ConfigError: an entry has another form, or a name is given twice.
    """
    seen: set[str] = set()
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value) or name in seen:
            problem = "is given twice" if name in seen else "has not the form NAME=VALUE"
            raise ConfigError(f"--{flag} {entry!r} {problem}", needed=f"something like {example}", found=repr(entry))
        seen.add(name)
        yield name, value
