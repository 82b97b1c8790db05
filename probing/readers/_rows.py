"""Makes examples of rows of named fields: the rules that JSONL, tables and hub data sets share.

* Upper and lower case of these usual names do not matter where no field has the name as it is.
* Text: the field `text`, else `sentence` (whole numbers are digits), else the only field of strings; or `text=FIELD`.
* Words: the list field `words` or `tokens` (option `words=FIELD`), found in order in the text; without a text, the
  words joined by spaces are the text. Without a list, words are cut as `_words.split_words` says.
* Labels: a list field as long as the words in more than half of the rows is a word column (and must be in every row);
  a field of single values is a sentence column; one of [a, b, label] triples in more than half of the rows holds pairs
  of words, counted from 0; lists of strings of other lengths are sets of labels, kept as JSON in a sentence column;
  other fields (nested, lists of numbers) are left out, and a task that asks for one says so.
* Labels and names of fields and spans are kept in Unicode's composed form (NFC); the text stays as it is.
* `id`, `document` or `group`, and `split` are the example's id, document and split; options `id=`, `document=` and
  `split_column=` name others, and `none` switches one off, as it does `spans` and `messages`.
* Spans: the field `spans`, a mapping of names to [start, end] or to a substring that occurs once (null: this row has
  none); or options `span.NAME=COLUMN` (of substrings) and `span.NAME=START:END` (two columns of offsets).
* Chats: the field `messages`, a list of {"role", "content"}; without a text, the last user's message is the text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from probing.errors import CorpusError, unknown_name
from probing.readers._text import check_options
from probing.readers._values import (
    OPTION,
    Field,
    fields_of,
    label_of,
    labels_of,
    last_of_user,
    messages_of,
    pairs_of,
    span_fields,
    spans_of,
    split_words,
    string_of,
    with_composed_names,
)
from probing.text.corpus import Corpus, Example, Label
from probing.text.example import composed
from probing.text.sources import split_name

_OFF = "none"
_DEFAULTS = {
    "text": ("text", "sentence"),
    "words": ("words", "tokens"),
    "id": ("id",),
    "document": ("document", "group"),
    "split_column": ("split",),
    "spans": ("spans",),
    "messages": ("messages",),
}
ROW_OPTIONS = tuple(_DEFAULTS)


@dataclass(frozen=True)
class Roles:
    """Names the field that has each role; "" if no field has it."""

    text: str
    words: str
    id: str
    document: str
    split_column: str
    spans: str
    messages: str


@dataclass(frozen=True)
class Rows:
    """Holds rows as read, with the place of each for messages. Both are iterated over several times, so that rows need
    not all be in memory.
    """

    values: Collection[Mapping[str, Any]]
    places: Collection[str]
    source: str


@dataclass(frozen=True)
class Places(Collection[str]):
    """Generates the place of every row for messages: a file and a number."""

    head: str
    numbers: Sequence[int]

    def __iter__(self) -> Iterator[str]:
        return (f"{self.head}{number}" for number in self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, value: object) -> bool:
        return any(value == place for place in self)


def row_options(options: Mapping[str, str], reader: str, more: Sequence[str] = ()) -> dict[str, str]:
    """Return the options that concern rows (`ROW_OPTIONS` and `span.NAME`), in composed form.

    Raises:
        BadParameter: an option is neither one of these nor in `more`.
    """
    own = [name for name in options if name in ROW_OPTIONS or name.startswith(OPTION)]
    check_options([name for name in options if name not in own], (*ROW_OPTIONS, f"{OPTION}NAME", *more), reader)
    return {name: composed(options[name]) for name in own}


def corpus_from_rows(rows: Rows, *, split: str, options: Mapping[str, str]) -> Corpus:
    """Return a corpus made of the rows, by the rules in the docstring of this module.

    Args:
        rows: the rows, at least one.
        split: split of every row; "": the value of the split field, or `train` if there is none.
        options: the options that `row_options` returned.

    Raises:
        CorpusError: a row has no text, words that are not in the text, or columns of the wrong length; the message
            names the row.
    """
    if not rows.values:
        raise CorpusError("the corpus is empty", needed="at least one row", found="none", where=rows.source)
    known = fields_of(rows.values)
    rows = replace(rows, values=with_composed_names(rows.values, list(known), rows.source))
    known = {composed(name): field for name, field in known.items()}
    roles = _roles(known, options, rows.source)
    located = span_fields(options, list(known), rows.source)
    for row, place in zip(rows.values, rows.places, strict=True) if any(f.lists for f in known.values()) else ():
        n_words = len(_text_and_words(row, roles, place)[1])
        for name, value in row.items():
            known[name].fitting += isinstance(value, list) and len(value) == n_words
    special = {getattr(roles, role.name) for role in fields(roles)} - {roles.document}
    kinds = {name: field.level for name, field in known.items() if name not in special}
    examples, stem = [], Path(rows.source).stem
    has_splits = bool(roles.split_column) and known[roles.split_column].has_scalar
    for index, (row, place) in enumerate(zip(rows.values, rows.places, strict=True)):
        text, words = _text_and_words(row, roles, place)
        columns = {name: label_of(row.get(name)) for name, level in kinds.items() if level == "sentence"}
        columns |= {name: labels_of(row.get(name)) for name, level in kinds.items() if level == "labels"}
        word_columns = {
            name: _word_labels(row.get(name), len(words), name, place)
            for name, level in kinds.items()
            if level == "word"
        }
        identity = string_of(row.get(roles.id)) or f"{stem}:{index + 1}"
        document = string_of(row.get(roles.document))
        own_split = _split(row, roles, split, place, is_split=has_splits)
        spans = spans_of(row, roles.spans, located, text, place)
        chat = messages_of(row, roles.messages, place)
        pairs = pairs_of(row, [name for name, level in kinds.items() if level == "pair"], len(words), place)
        examples.append(Example(identity, text, words, columns, word_columns, document, own_split, spans, chat, pairs))
    return Corpus(
        tuple(examples), rows.source, _unit(roles.document), tuple(n for n, level in kinds.items() if not level)
    )


def _unit(column: str) -> str:
    """Return the name of the groups of examples: `document`, or the column's own name."""
    return column.lower() if column.lower() in _DEFAULTS["document"] else column or "document"


def _roles(known: Mapping[str, Field], options: Mapping[str, str], source: str) -> Roles:
    chosen = {}
    for role, candidates in _DEFAULTS.items():
        asked = options.get(role, "")
        if asked and asked != _OFF and asked not in known:
            raise unknown_name(f"column for option {role}", asked, known, where=source, error=CorpusError)
        usual = _usual(candidates, known)
        found = next((name for name in usual if _fits(role, known[name])), "")
        chosen[role] = "" if asked == _OFF else asked or found
    if not (chosen["text"] or chosen["words"] or chosen["messages"]):
        # A column of that name is the text whatever it holds: another in its place would be read without a word.
        named = [] if options.get("text") == _OFF else usual_text(known)
        chosen["text"] = (
            named[0]
            if named
            else _only_text({n: field for n, field in known.items() if n not in chosen.values()}, source)
        )
    return Roles(**chosen)


def usual_names(role: str) -> tuple[str, ...]:
    """Return the usual names of a field with this role."""
    return _DEFAULTS[role]


def usual_text(names: Collection[str]) -> list[str]:
    """Return the columns that have a usual name of the text column (`text`, `sentence`), in any case."""
    return _usual(_DEFAULTS["text"], names)


def _usual(candidates: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the columns of these names, as they are or in upper case (`Sentence`)."""
    return [
        name
        for candidate in candidates
        for name in ([candidate] if candidate in names else [name for name in names if name.lower() == candidate])
    ]


def _fits(role: str, field: Field) -> bool:
    """Return whether a field of that usual name holds what the role needs: `words` may also be a number of words."""
    needed = {"text": field.has_string, "words": field.has_words, "spans": field.has_mapping}
    return {**needed, "messages": field.has_messages}.get(role, True)


def _only_text(known: Mapping[str, Field], source: str) -> str:
    of_strings = [name for name, field in known.items() if field.has_string and field.is_string]
    if len(of_strings) == 1:
        return of_strings[0]
    raise CorpusError(
        "which column is the text?",
        needed="a column `text` or `sentence`, or exactly one column of strings",
        found=f"columns {', '.join(known)}",
        where=source,
        next_step=f"name it: --reader-option text={next(iter(of_strings or known), 'COLUMN')} (Python: text=…)",
    )


def _text_and_words(row: Mapping[str, Any], roles: Roles, place: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    text = row.get(roles.text) if roles.text else None
    words = row.get(roles.words) if roles.words else None
    if isinstance(words, str):
        words = words.split()
    if type(text) is int:
        text = str(text)
    if words is not None and not (isinstance(words, list) and all(isinstance(w, str) and w.strip() for w in words)):
        raise CorpusError(
            f"{roles.words} is not a list of words",
            needed="a list of strings that are not empty",
            found=repr(words)[:200],
            where=place,
        )
    if roles.text and not (isinstance(text, str) and text.strip()):
        raise CorpusError(
            f"no text in column {roles.text!r}",
            needed="text",
            found=repr(text)[:80],
            where=place,
            next_step="fill it in or leave the row out; if another column is the text: --reader-option text=COLUMN "
            "(words=COLUMN for lists of words)",
        )
    if text is None and roles.messages and not roles.words:
        text = last_of_user(messages_of(row, roles.messages, place), place)
    if text is None:
        if not words:
            raise CorpusError("a row without words", needed=f"words in {roles.words!r}", found=repr(words), where=place)
        text = " ".join(words)
    _check_unicode(text, place)
    return text, split_words(text) if words is None else _located(words, text, place)


def _located(words: Sequence[str], text: str, place: str) -> tuple[tuple[int, int], ...]:
    spans, at = [], 0
    for number, word in enumerate(words, start=1):
        start = text.find(word, at)
        if start < 0:
            raise CorpusError(
                f"word {number} is not in the text where it should be",
                needed=f"{word!r} after character {at}",
                found=repr(text[at : at + 40]),
                where=place,
                next_step="give words as they are written in the text, or leave the text out",
            )
        at = start + len(word)
        spans.append((start, at))
    return tuple(spans)


def _word_labels(value: Any, n_words: int, name: str, place: str) -> tuple[Label, ...]:
    if value is None:
        return (None,) * n_words
    if len(value) != n_words:
        raise CorpusError(
            f"column {name!r} does not fit the words",
            needed=f"{n_words} values, one per word",
            found=f"{len(value)}",
            where=place,
        )
    return tuple([label_of(item) for item in value])


def _split(row: Mapping[str, Any], roles: Roles, split: str, place: str, *, is_split: bool) -> str:
    own = string_of(row.get(roles.split_column))
    if own is None and is_split and not split:
        raise CorpusError(
            "a row without a split, where others have one",
            needed=f"train, dev or test in {roles.split_column!r}",
            found="nothing",
            where=place,
            next_step="fill it in, leave the row out, or read with --reader-option split_column=none",
        )
    if not roles.split_column or own is None:
        return split or "train"
    if split and split_name(own) != split:
        raise CorpusError(
            f"a row given as {split!r} says that it is {own!r}",
            needed=f"{roles.split_column}={split}",
            found=own,
            where=place,
            next_step="give the file alone, so that its own column splits it, or read with split_column=none",
        )
    return split_name(own)


def _check_unicode(text: str, place: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CorpusError(
                "half a surrogate pair in the text", found=f"U+{ord(text[error.start]):04X}", where=place
            ) from None
