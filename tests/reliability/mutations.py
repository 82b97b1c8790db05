"""Ways to spoil a file: bytes, pieces that make readers stumble, and values inside JSON."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

STUMBLES = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n\n",
    b'"',
    b"'",
    b"{",
    b"}",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 400,
    b"99999999999999999999",
    b"true",
    b"null",
    b"\\ud800",
    "\u2028".encode(),
    b"\t",
    b",",
    b"&a [*a, *a]",
    b"*a",
    b"!!python/object/apply:os.abort []",
    b"<<: {}",
    b"- - - - -",
    b": : :",
    b"? ?",
    b"%TAG !",
    b"1-999999999\t",
    b"0.1\t_",
    b"# text = ",
    b"#",
    b"_",
    b"|",
    b"=",
    b"..",
    b"/etc/passwd",
    b"\x1a",
    b"\xf0\x9f\x98",
)
_LETTERS = "\t\n\r ,;:|=_-#\"'[]{}01239.eE+aZß東\u0301\u200b\u00a0"
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    2**200,
    "",
    "x",
    "../x",
    "\x00",
    "0" * 64,
    [],
    {},
    [[]],
    {"a": {}},
    [0, 0],
    ["embed"] * 3,
    "float64",
)


def spoiled(data: bytes, rng: random.Random, spans: Sequence[tuple[int, int]] = ()) -> bytes:
    """A copy with one to four changes.

    Args:
        data: what is spoiled.
        rng: where and how.
        spans: byte ranges in which most changes are made; (): anywhere.
    """
    for _ in range(rng.choice([1, 1, 2, 4])):
        data = _changed(data, rng, rng.choice(spans) if spans and rng.random() < 0.9 else (0, len(data)))
    return data


def spoiled_text(data: bytes, rng: random.Random) -> bytes:
    """As `spoiled`; half of the copies are still UTF-8, so that what is read of them gets beyond that."""
    if rng.random() < 0.5:
        return spoiled(data, rng)
    text = data.decode()
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, size = rng.randrange(len(text) + 1), rng.choice([0, 1, 2, 5, 20, 80])
        other = rng.randrange(len(text) + 1)
        inserts = (rng.choice(_LETTERS), "", text[at : at + size], text[other : other + size], _stumble(rng))
        text = text[:at] + rng.choice(inserts) + text[at + rng.choice([0, size]) :]
    return text.encode()


def _stumble(rng: random.Random) -> str:
    return rng.choice(STUMBLES).decode("utf-8", "ignore")


def _changed(data: bytes, rng: random.Random, span: tuple[int, int]) -> bytes:
    at = rng.randrange(span[0], max(span[0] + 1, min(span[1], len(data) + 1)))
    size = rng.choice([1, 2, 4, 8, rng.randrange(1, 64), rng.randrange(1, max(2, len(data)))])
    kind = rng.randrange(8)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.randbytes(min(size, 64)) + data[at + min(size, 64) :]
    if kind == 2:
        return data[:at] + bytes([rng.choice([0, 0xFF, 0x7F])]) * min(size, 8) + data[at + min(size, 8) :]
    if kind == 3:
        return data[:at] + data[at + size :]
    if kind == 4:
        return data[:at] + data[at : at + size] + data[at:]
    if kind == 5:
        return data[:at]
    if kind == 6:
        other = rng.randrange(len(data) + 1)
        return data[:at] + data[other : other + size] + data[at + size :]
    return data[:at] + rng.choice(STUMBLES) + data[at:]


def altered_object(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """As `altered`, and still an object."""
    found = altered(value, rng)
    while not isinstance(found, dict):
        found = altered(value, rng)
    return found


def altered(value: Any, rng: random.Random) -> Any:
    """JSON of which one value somewhere is another, is missing or is new."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {name: inner for name, inner in value.items() if name != key}
        if rng.random() < 0.1:
            return value | {rng.choice(["", "x", "../x", key * 2]): rng.choice(VALUES)}
        return value | {key: altered(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return [*value[:place], *value[place + 1 :]]
        return [*value[:place], altered(value[place], rng), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 4096, -4096, 2**32, value])
    return rng.choice(VALUES)
