"""Summaries of the values of a field over all rows, from which the role and the level of a field are inferred."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from probing.readers._messages import are_messages
from probing.readers._pairs import are_pairs
from probing.readers._values import is_scalar


@dataclass
class Field:
    """Summary of the values of one field over all rows."""

    has_string: bool = False
    has_words: bool = False
    has_mapping: bool = False
    has_messages: bool = False
    has_scalar: bool = False
    is_string: bool = True
    is_plain: bool = True
    has_names: bool = False
    is_names: bool = True
    lists: int = 0
    triples: int = 0
    fitting: int = 0

    def see(self, value: Any) -> None:
        """Add one value that is not null to the summary."""
        if isinstance(value, list):
            self.is_string = False
            self.lists += 1
            self.triples += are_pairs(value)
            are_names = all(isinstance(item, str) for item in value)
            self.has_words |= are_names
            self.has_names |= are_names and bool(value)
            self.is_names &= are_names
            self.has_messages |= are_messages(value)
            self.is_plain &= all(is_scalar(item) for item in value)
            return
        is_string = isinstance(value, str)
        self.has_string |= is_string
        self.is_string &= is_string
        self.is_names &= is_string
        self.has_mapping |= isinstance(value, dict)
        self.has_scalar = True
        self.is_plain &= is_scalar(value)

    @property
    def level(self) -> str:
        """Level of the field: `word`, `sentence`, `pair`, `labels` (a row has any number), or "" for a field that is
        left out.
        """
        if not self.is_plain:
            return "pair" if 2 * self.triples > self.lists and not self.has_scalar else ""
        if not self.lists:
            return "sentence"
        if 2 * self.fitting > self.lists and not self.has_scalar:
            return "word"
        return "labels" if self.is_names and self.has_names else ""


def fields_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Field]:
    """Return every field that occurs, in order of first occurrence."""
    found: dict[str, Field] = {}
    for row in rows:
        for name, value in row.items():
            if name not in found:
                found[name] = Field()
            if value is not None:
                found[name].see(value)
    return found
