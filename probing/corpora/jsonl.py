"""JSON lines: one object a line, with the field `text` (or `words`) and label fields."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from probing.contracts import CorpusReader
from probing.corpora._rows import Rows, corpus_from_rows, row_options
from probing.corpora._text import read_text
from probing.corpus import Corpus
from probing.errors import CorpusError
from probing.strict_json import strict_json


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
        lines = [(n, line) for n, line in enumerate(read_text(source).split("\n"), start=1) if line.strip()]
        places = [f"{source}:{number}" for number, _ in lines]
        objects = _Objects([line for _, line in lines], places)
        return corpus_from_rows(Rows(objects, places, source), split=split, options=chosen)


@dataclass(frozen=True)
class _Objects(Collection[dict[str, Any]]):
    """The objects of a file, parsed as they are gone through: a hundred thousand at once would fill the memory."""

    lines: list[str]
    places: list[str]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(_object, self.lines, self.places)

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, value: object) -> bool:
        return any(value == found for found in self)


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = strict_json(line)
    except ValueError as error:
        raise CorpusError(
            "a line is not sound JSON", needed="one JSON object a line", found=str(error)[:200], where=place
        ) from None
    if not isinstance(value, dict):
        raise CorpusError("a line is no JSON object", needed="one JSON object a line", found=line[:80], where=place)
    return value


MEMBER = JsonlReader
