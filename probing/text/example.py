"""Defines `Example`, a text with its words, labels, spans and pairs, and computes the depths of words in a dependency
tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from probing.errors import BadParameter, CorpusError, NoSuchExample
from probing.text.grouping import Label, are_decomposed, compact, interned, named, once

_WALKING = -2


def depths(heads: Sequence[Any], where: str) -> tuple[int | None, ...]:
    """Return, for every word, the number of arcs from it up to the root (0 for the root); None if a head on this path
    is missing. `heads` are the numbers of the words' heads, counted from 1, 0 for the root; `where` names the sentence
    in messages.

    Raises:
        CorpusError: a head is not a word of the sentence, or heads form a circle.
    """
    known: dict[int, int | None] = {0: -1}
    for word in range(1, len(heads) + 1):
        path = []
        while word not in known:
            path.append(word)
            known[word] = _WALKING
            head = heads[word - 1]
            if head is None:
                word = path.pop()
                known[word] = None
                break
            if not isinstance(head, int) or isinstance(head, bool) or not 0 <= head <= len(heads):
                raise CorpusError(
                    f"the head of word {word} is no word of the sentence",
                    needed=f"an integer from 0 to {len(heads)}",
                    found=repr(head),
                    where=f"sentence {where}",
                )
            word = head
        depth = known[word]
        if depth == _WALKING:
            raise CorpusError(
                "heads form a circle, not a tree",
                needed="every word's heads lead to the root (head 0)",
                found=f"word {word} is above itself",
                where=f"sentence {where}",
            )
        for step, below in enumerate(reversed(path), start=1):
            known[below] = None if depth is None else depth + step
    return tuple(known[word] for word in range(1, len(heads) + 1))


@dataclass(frozen=True)
class Example:
    """Holds a text with its words and labels.

    Attributes:
        id: sentence id, for messages.
        text: the source text; all spans index its code points.
        words: half-open character span of each word, in order.
        columns: sentence-level labels by column name.
        word_columns: word-level labels by column name, one entry per word, None where missing. Readers of treebanks
            give `upos`, `xpos`, `lemma`, `deprel` (str), `head` (int: the number of the head, words counted from 1; 0
            for the root) and `feature:<Name>`.
        document: id shared by examples that must be in the same split; None if the example is a group of its own.
        split: `train`, `dev`, `test` or another name.
        spans: half-open character spans by name, which positions such as `entity.last` refer to; a span that this text
            does not have is left out.
        messages: (role, content) of each message of the chat that the text is a part of, for chat templates; empty if
            there is no chat.
        pairs: (word a, word b, label) triples by field name, words counted from 0.
        recomposed: names of columns with a label that was not in composed Unicode form (NFC); labels, documents and
            names of columns and spans are converted to this form.
    """

    id: str
    text: str
    words: tuple[tuple[int, int], ...] = ()
    columns: Mapping[str, Label] = None  # type: ignore[assignment]
    word_columns: Mapping[str, tuple[Label, ...]] = None  # type: ignore[assignment]
    document: str | None = None
    split: str = "train"
    spans: Mapping[str, tuple[int, int]] = None  # type: ignore[assignment]
    messages: tuple[tuple[str, str], ...] = ()
    pairs: Mapping[str, tuple[tuple[int, int, Label], ...]] = None  # type: ignore[assignment]
    recomposed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Spans and labels repeat: kept once, 100,000 annotated sentences take a third of the memory.
        columns, word_columns = self.columns or {}, self.word_columns or {}
        if not self.recomposed:
            changed = [name for name, label in columns.items() if are_decomposed((label,))]
            changed += [name for name, labels in word_columns.items() if are_decomposed(labels)]
            object.__setattr__(self, "recomposed", tuple(map(interned, changed)))
        object.__setattr__(self, "words", tuple([once(span) for span in self.words]))
        object.__setattr__(self, "columns", {interned(key): interned(label) for key, label in columns.items()})
        object.__setattr__(self, "word_columns", {interned(key): compact(x) for key, x in word_columns.items()})
        object.__setattr__(self, "document", named(self.document))
        for name in ("spans", "pairs"):
            given = getattr(self, name) or {}
            object.__setattr__(self, name, {interned(key): value for key, value in given.items()})

    @property
    def forms(self) -> tuple[str, ...]:
        """Surface form of each word; control tasks give one label to all words of a form."""
        return tuple(self.text[start:end] for start, end in self.words)

    @cached_property
    def depths(self) -> tuple[int | None, ...]:
        """Number of arcs from every word up to the root of its tree (0 for the root), computed from the column `head`.

        It is None for a word if a head on this path is missing.

        Raises:
            CorpusError: there is no column `head`, a head is not a word of the sentence, or heads form a circle.
        """
        return depths(self.word_columns.get("head", ()), self.id)

    @property
    def group(self) -> str:
        """Id of the group that must stay in one split: the document, or the example itself if it has none."""
        return self.document if self.document is not None else self.id


def example_at(examples: Sequence[Example], index: int, source: str) -> Example:
    """Return the example with this ordinal.

    Raises:
        NoSuchExample: there is none; the message names `source`, where the examples came from.
        BadParameter: the index is no whole number.
    """
    try:
        return examples[index]
    except IndexError:
        count = len(examples)
        raise NoSuchExample(
            f"there is no example {index}",
            needed=f"a number from 0 to {count - 1}, or from -1 back to -{count}" if count else "",
            found=f"{index}, in a corpus of {count:,} examples",
            where=source,
        ) from None
    except TypeError:
        raise BadParameter(
            "a corpus is not indexed in this way",
            needed="corpus[3], corpus[10:20] or the name of a split, corpus['train']",
            found=f"{type(index).__name__} {index!r}"[:200],
            next_step="corpus.filter(lambda example: …) chooses examples by what they hold",
        ) from None


def in_split(example: Example, split: str) -> Example:
    """Return the example in another split: `replace` would go through all of its labels again."""
    moved = object.__new__(Example)
    moved.__dict__.update(example.__dict__, split=split)
    return moved
