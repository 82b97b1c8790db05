"""Reads JSON lines: each line is an object with the field `text` (or `words`) and fields of labels."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from probing.contracts.reader import CorpusReader
from probing.errors import CorpusError
from probing.files.strict_json import strict_json
from probing.readers._rows import Places, Rows, corpus_from_rows, row_options, usual_names
from probing.readers._text import read_text
from probing.text.corpus import Corpus


class JsonlReader(CorpusReader):
    """Reads JSON lines such as `{"text": "Dogs bark.", "upos": ["NOUN", "VERB", "PUNCT"], "tense": "present"}`, or one
    JSON array of such objects.

    The options `text`, `words`, `id`, `document` and `split_column` name the fields that hold the text, its words, its
    id, its document and its split. `span.NAME` names the field that holds a substring of the text, or (as START:END)
    two fields that hold its offsets.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".ndjson")

    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """Read the file and return the corpus; each line (or each object of the JSON array) is an example.

        Args:
            source: path of the file.
            split: name of the split of all examples; "" means the split that each line names, or `train` if none is
                named.
            options: options of the class by name, as texts.

        Raises:
            CorpusError: a line is not JSON or not an object, or has a key twice or a number that is not finite; the
                message names file and line.
            BadParameter: there is no such option.
        """
        chosen = row_options(options, "JSONL")
        return corpus_from_rows(read_lines(source, chosen), split=split, options=chosen)


def read_lines(source: str, options: Mapping[str, str] | None = None) -> Rows:
    """Return the objects of a file, one per line or those of its JSON array. `options` are those of `JsonlReader`.

    Raises:
        CorpusError: see `JsonlReader.read`; for a file with one object per line, raised while the objects are iterated
            over.
    """
    text = read_text(source)
    return _array(text, source) if text.lstrip().startswith("[") else _lines(text, source, options or {})


def _lines(text: str, source: str, options: Mapping[str, str]) -> Rows:
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    places = Places(f"{source}:", [number for number, _ in lines])
    if len(lines) != 1 or not _has_row(lines[0][1], options):
        _refuse_one_object(text, lines[0][1], len(lines), source)
    return Rows(_Objects([line for _, line in lines], places), places, source)


def _array(text: str, source: str) -> Rows:
    """Return the rows of a JSON array of objects."""
    try:
        values = strict_json(text)
    except ValueError as error:
        raise CorpusError(
            "the file is not sound JSON",
            needed="an array of objects, or one object a line",
            found=str(error)[:200],
            where=source,
        ) from None
    other = next((value for value in values if not isinstance(value, dict)), None)
    if other is not None or not values:
        raise CorpusError(
            "the array holds no rows",
            needed='an array of objects: [{"text": "…", "label": "…"}, …]',
            found=repr(other)[:80] if values else "an empty array",
            where=source,
            next_step="write it with DataFrame.to_json(…, orient='records', lines=True), or each row as an object",
        )
    return Rows(values, Places(f"{source}, row ", range(1, len(values) + 1)), source)


def _has_row(line: str, options: Mapping[str, str]) -> bool:
    """Return whether a line holds an object with a list of words or messages: a row, even if all of its fields are
    lists.
    """
    try:
        value = strict_json(line)
    except ValueError:
        return False
    names = {*usual_names("words"), *usual_names("messages"), options.get("words"), options.get("messages")}
    return isinstance(value, dict) and any(isinstance(value.get(name), list) for name in names if name)


def _refuse_one_object(text: str, first: str, n_lines: int, source: str) -> None:
    """Refuse a file that is a single object: over several lines, or with all rows inside of its fields."""
    try:
        value = strict_json(first if n_lines == 1 else text) if n_lines == 1 or not _is_json(first) else None
    except ValueError:
        return  # not one object: the line is named where it is read
    fields = value if isinstance(value, dict) else {}
    holding = next((k for k, v in fields.items() if isinstance(v, list) and v and isinstance(v[0], dict)), None)
    of_columns = bool(fields) and all(isinstance(field, dict | list) for field in fields.values())
    if not fields or (n_lines == 1 and not of_columns):
        return
    made = shlex.quote(f"{Path(source).with_suffix('')}.lines.jsonl")
    program = shlex.quote("." if holding is None else f".[{json.dumps(holding)}][]")
    step = f"write one object a line, e.g. with: jq -c {program} {shlex.quote(source)} > {made}"
    if holding is None and of_columns:
        step = "write it with DataFrame.to_json(…, orient='records', lines=True)"
    raise CorpusError(
        "the file is one JSON object",
        needed="one object a line, or an array of objects",
        found=f"the fields {', '.join(fields)}"[:80],
        where=source,
        next_step=step,
    )


def _is_json(line: str) -> bool:
    try:
        strict_json(line)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Objects(Collection[dict[str, Any]]):
    """The objects of a file, parsed while they are iterated over: a hundred thousand at once would fill the memory."""

    lines: list[str]
    places: Places

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
            "a line is not sound JSON",
            needed="one JSON object a line",
            found=str(error)[:200],
            where=place,
            next_step="correct the line; objects over several lines are put on one each by jq -c .",
        ) from None
    if not isinstance(value, dict):
        raise CorpusError("a line is no JSON object", needed="one JSON object a line", found=line[:80], where=place)
    return value


MEMBER = JsonlReader
