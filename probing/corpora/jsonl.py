"""JSON lines: one object a line, fields as `_rows.py` says."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from probing.contracts import CorpusReader
from probing.corpora._rows import Rows, corpus_from_rows, row_options
from probing.corpora._text import read_text
from probing.corpus import Corpus
from probing.errors import CorpusError


class JsonlReader(CorpusReader):
    """Reads JSON lines: `{"text": "Dogs bark.", "upos": ["NOUN", "VERB", "PUNCT"], "tense": "present"}`.

    Options: `text`, `words`, `id`, `document`, `split_column` name the fields that play these parts;
    `span.NAME` names the field of a substring, or START:END the fields of two offsets.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".ndjson")

    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """All rows of the file.

        Raises:
            CorpusError: not JSON, not an object, a key twice, a number that is not finite; with file and line.
        """
        chosen = row_options(options, "JSONL")
        values, places = [], []
        for number, line in enumerate(read_text(source).split("\n"), start=1):
            if line.strip():
                values.append(_object(line, f"{source}:{number}"))
                places.append(f"{source}:{number}")
        return corpus_from_rows(Rows(values, places, source), split=split, options=chosen)


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            "a line is not sound JSON", needed="one JSON object a line", found=str(error)[:200], where=place
        ) from None
    if not isinstance(value, dict):
        raise CorpusError("a line is no JSON object", needed="one JSON object a line", found=line[:80], where=place)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number: use null")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is too large a number")
    return value


MEMBER = JsonlReader
