"""Reads CoNLL-U treebanks strictly: lines must have ten columns, words must be numbered in order, heads must form a
tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NoReturn

from probing.contracts.reader import CorpusReader
from probing.errors import CorpusError
from probing.readers._text import check_options, read_text
from probing.text.corpus import Corpus, Example, Label

_NO_FEATURES: dict[str, str] = {}
_NOT_COLUMNS = ("text", "sent_id", "newdoc", "newdoc id", "newpar", "newpar id", "global.columns")


class ConlluReader(CorpusReader):
    """Reads CoNLL-U treebanks, one sentence per example.

    Words are the syntactic words. `upos`, `xpos`, `lemma`, `deprel`, `head` and `feature:<Name>` (every feature of the
    file) become columns with a value for each word, None where the file has `_`. Other comments `# key = value` than
    those of the format become columns with a value for each sentence; `# newdoc` begins a document. Empty nodes (`8.1`)
    are skipped.

    The text is that of the comment `# text` if the tokens occur in it in order; otherwise it is rebuilt from tokens and
    `SpaceAfter=No`. A word of a multiword token has its own span if the words' forms make up the token (`do` + `n't`);
    otherwise every word has the span of the token (`du` for `de` + `le`).

    References:
        https://universaldependencies.org/format.html
    """

    suffixes: ClassVar[tuple[str, ...]] = (".conllu", ".conll")
    numbers_documents_by_file: ClassVar[bool] = True

    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """Read all sentences of the file and return the corpus.

        Args:
            source: path of the file.
            split: name of the split of all sentences; "" means `train`.
            options: none; this reader has no options.

        Raises:
            CorpusError: a line is malformed; the message names file and line, the expected form and the text of the
                line.
            BadParameter: an option is given.
        """
        check_options(options, (), "CoNLL-U")
        sentences = list(_sentences(read_text(source), source))
        names = sorted({name for sentence in sentences for features in sentence.features for name in features})
        return Corpus(tuple(s.example(names, split or "train") for s in sentences), source)


@dataclass
class _Sentence:
    """Holds one sentence while it is read; lists have one entry per word, `tokens` one per surface token."""

    where: str
    id: str
    document: str | None
    text: str | None = None
    columns: dict[str, Label] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)
    lemma: list[Label] = field(default_factory=list)
    upos: list[Label] = field(default_factory=list)
    xpos: list[Label] = field(default_factory=list)
    features: list[dict[str, str]] = field(default_factory=list)
    head: list[Label] = field(default_factory=list)
    deprel: list[Label] = field(default_factory=list)
    tokens: list[tuple[str, bool, int]] = field(default_factory=list)  # form, space after, number of words
    range_end: int = 0  # last word of the latest multiword token
    lines: list[int] = field(default_factory=list)

    def example(self, names: list[str], split: str) -> Example:
        """Return the finished example; `names` are the features of the whole file."""
        text, spans = self._placed()
        columns: dict[str, tuple[Label, ...]] = {
            "upos": tuple(self.upos),
            "xpos": tuple(self.xpos),
            "lemma": tuple(self.lemma),
            "deprel": tuple(self.deprel),
            "head": tuple(self.head),
        }
        here, none = set().union(*self.features), (None,) * len(self.features)
        columns |= {
            f"feature:{name}": tuple([f.get(name) for f in self.features]) if name in here else none for name in names
        }
        made = Example(self.id, text, self._word_spans(spans), self.columns, columns, self.document, split)
        try:
            _ = made.depths
        except CorpusError as error:
            raise CorpusError(error.message, needed=error.needed, found=error.found, where=self.where) from None
        return made

    def _placed(self) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and the span of every token in it."""
        if self.text is not None:
            spans, at = [], 0
            for form, _, _ in self.tokens:
                while self.text[at : at + 1].isspace():
                    at += 1
                if not self.text.startswith(form, at):
                    break
                spans.append((at, at + len(form)))
                at += len(form)
            if len(spans) == len(self.tokens) and not self.text[at:].strip():
                return self.text, spans
        pieces, spans, at = [], [], 0
        for form, space_after, _ in self.tokens:
            spans.append((at, at + len(form)))
            pieces.append(form + " " if space_after else form)
            at += len(pieces[-1])
        return "".join(pieces).rstrip(), spans

    def _word_spans(self, spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        if len(spans) == len(self.forms):
            return tuple(spans)
        words: list[tuple[int, int]] = []
        for (surface, _, n_words), (start, end) in zip(self.tokens, spans, strict=True):
            forms = self.forms[len(words) : len(words) + n_words]
            if "".join(forms) != surface:
                words += [(start, end)] * n_words
                continue
            for form in forms:
                words.append((start, start + len(form)))
                start += len(form)
        return tuple(words)


def _sentences(text: str, source: str) -> Iterator[_Sentence]:
    stem, document, n_documents, n_sentences = Path(source).stem, None, 0, 0
    current: _Sentence | None = None
    number = 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.removesuffix("\r")
        if not line.strip():
            if current is not None:
                yield _closed(current, source, number)
            current = None
            continue
        if current is None:
            n_sentences += 1
            current = _Sentence(f"{source}:{number}", f"{stem}:{n_sentences}", document)
        if not line.startswith("#"):
            _add_line(current, line, source, number)
            continue
        if current.tokens:
            _refuse("a comment inside a sentence", "comments before the first word", line, source, number)
        # White space around a comment's key and value is layout: the format allows none at the ends of a text.
        key, equals, value = (part.strip() for part in line[1:].partition("="))
        if key in ("newdoc", "newdoc id"):
            n_documents += 1
            document = current.document = value or f"{stem}:document {n_documents}"
        elif equals:
            _add_comment(current, key, value)
    if current is not None:
        yield _closed(current, source, number)


def _add_comment(sentence: _Sentence, key: str, value: str) -> None:
    if key == "text":
        sentence.text = value
    elif key == "sent_id" and value:
        sentence.id = value
    elif key not in _NOT_COLUMNS:
        sentence.columns[key] = value or None


def _add_line(sentence: _Sentence, line: str, source: str, number: int) -> None:
    fields = line.split("\t")
    if len(fields) != 10:
        _refuse("a CoNLL-U line has ten columns", "10 tab-separated columns", f"{len(fields)}", source, number)
    if "" in fields:
        _refuse("an empty column", "`_` where there is no value", f"column {fields.index('') + 1}", source, number)
    name, form, lemma, upos, xpos, feats, head, deprel, _, misc = fields
    expected = len(sentence.forms) + 1
    if name != str(expected):
        _add_other(sentence, name, form, misc, source, number)
        return
    if expected > sentence.range_end:
        sentence.tokens.append((form, "SpaceAfter=No" not in misc.split("|"), 1))
    sentence.forms.append(form)
    sentence.lines.append(number)
    sentence.lemma.append(lemma if lemma != "_" or form == "_" else None)
    sentence.upos.append(_or_none(upos))
    sentence.xpos.append(_or_none(xpos))
    sentence.deprel.append(_or_none(deprel))
    sentence.features.append(_NO_FEATURES if feats == "_" else _features(feats, source, number))
    if head != "_" and not (head.isascii() and head.isdigit()):
        _refuse("the head is not a number", "an integer, 0 for the root", head, source, number)
    sentence.head.append(None if head == "_" else int(head[:9]))


def _add_other(sentence: _Sentence, name: str, form: str, misc: str, source: str, number: int) -> None:
    """Add a line that is not the next word: a multiword token or an empty node."""
    expected = len(sentence.forms) + 1
    for mark in "-.":
        first, found, second = name.partition(mark)
        if found and all(part.isascii() and part.isdigit() and len(part) < 10 for part in (first, second)):
            break
    else:
        _refuse("words are numbered 1, 2, 3, …", f"word {expected}", name, source, number)
    if mark == ".":
        if int(first) != expected - 1:
            _refuse("an empty node out of place", f"{expected - 1}.…", name, source, number)
        return
    if int(first) != expected or int(second) <= int(first) or int(first) <= sentence.range_end:
        _refuse("a multiword token out of place", f"{expected}-…, without overlap", name, source, number)
    sentence.range_end = int(second)
    sentence.tokens.append((form, "SpaceAfter=No" not in misc.split("|"), int(second) - int(first) + 1))


def _closed(sentence: _Sentence, source: str, number: int) -> _Sentence:
    n = len(sentence.forms)
    if n == 0:
        _refuse("a sentence without words", "at least one word line", "none", source, number)
    if sentence.range_end > n:
        _refuse("a multiword token without its words", f"{sentence.range_end} words", str(n), source, number)
    for word, head in enumerate(sentence.head, start=1):
        if isinstance(head, int) and head > n:
            found = f"head {head} of word {word} in a sentence of {n} words"
            _refuse("a head out of range", f"0 to {n}", found, source, sentence.lines[word - 1])
    return sentence


def _features(feats: str, source: str, number: int) -> dict[str, str]:
    pairs = _pairs(feats)
    if len(pairs) != feats.count("|") + 1:
        _refuse("malformed features", "Name=Value|Name=Value, each name once, or _", feats, source, number)
    return pairs


@lru_cache(maxsize=4096)
def _pairs(feats: str) -> dict[str, str]:
    """Return features by name; a treebank of 100,000 words has some hundred different sets of them."""
    return dict(part.split("=", 1) for part in feats.split("|") if "=" in part)


def _or_none(value: str) -> str | None:
    return None if value == "_" else value


def _refuse(message: str, needed: str, found: str, source: str, number: int) -> NoReturn:
    raise CorpusError(message, needed=needed, found=found[:200], where=f"{source}:{number}")


MEMBER = ConlluReader
