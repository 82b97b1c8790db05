"""JSON lines: one object a line, with the field `text` (or `words`) and label fields."""

from __future__ import annotations

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
        values, places = [], []
        for number, line in enumerate(read_text(source).split("\n"), start=1):
            if line.strip():
                values.append(_object(line, f"{source}:{number}"))
                places.append(f"{source}:{number}")
        return corpus_from_rows(Rows(values, places, source), split=split, options=chosen)


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
