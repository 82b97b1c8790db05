"""Reads pairs of a clean and a corrupted prompt from a file, and measures the effects of putting states of one into the
run of the other (patching).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from probing._renamed import takes_old_names
from probing.errors import BadParameter, CorpusError
from probing.models.language_model import LanguageModel
from probing.recipes import build
from probing.results.patching import PatchingResult
from probing.text.corpus import Corpus, Label
from probing.text.positions import Position
from probing.use.behaviours.masked_token import MaskedToken
from probing.use.behaviours.next_token import NextToken
from probing.use.edited_models._rows import TextRows, rows_of_spans
from probing.use.edited_models._running import check_sizes
from probing.use.edited_models.text import TextInstrument
from probing.use.patching.patching import attribute, patch

CLEAN, CORRUPTED = "clean", "corrupted"
ANSWER, OTHER = "answer", "corrupted_answer"
_NEEDED = f"columns {CLEAN} and {CORRUPTED}; {ANSWER} and {OTHER} (both or neither)"


@dataclass(frozen=True)
class PromptPairs:
    """Holds n pairs of a clean and a corrupted prompt.

    Attributes:
        corpus: 2n examples: first the n clean prompts, then the n corrupted ones.
        answers: for each pair, the answers to the clean and to the corrupted prompt; an empty tuple if the file has
            none.
    """

    corpus: Corpus
    answers: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.corpus) // 2

    @classmethod
    def read(cls, source: str, *, spans: Mapping[str, tuple[str, str]] | None = None) -> PromptPairs:
        """Read pairs from a JSONL file or a table with the columns `clean`, `corrupted` and optionally `answer` and
        `corrupted_answer`, and return them.

        Args:
            source: the file.
            spans: by name, the columns that hold a substring of the clean and of the corrupted prompt.

        Raises:
            CorpusError: the file is malformed, lacks a column or a value, or an answer is not a text.
        """
        try:
            sides = [
                Corpus.read(
                    source,
                    text=side,
                    split_column="none",
                    words="none",
                    document="none",
                    spans="none",
                    **{f"span.{name}": of[k] for name, of in (spans or {}).items()},
                )
                for k, side in enumerate((CLEAN, CORRUPTED))
            ]
        except CorpusError as error:
            error.add_note(f"a file of pairs has {_NEEDED}")
            raise
        examples = [
            replace(example, id=f"{side}:{example.id}", split="train", document=None)
            for side, corpus in zip((CLEAN, CORRUPTED), sides, strict=True)
            for example in corpus.examples
        ]
        rows = [example.columns for example in sides[0].examples]
        known = {name for row in rows for name in row}
        if len({ANSWER, OTHER} & known) == 1:
            raise CorpusError(
                "one answer of each pair is missing", needed=_NEEDED, found=", ".join(sorted(known)), where=source
            )
        answers = tuple((_answer(row, ANSWER, source), _answer(row, OTHER, source)) for row in rows if ANSWER in known)
        for k, pair in enumerate(answers):
            if "" in pair or pair[0] == pair[1]:
                raise CorpusError(
                    "a pair without two different answers",
                    needed=_NEEDED,
                    found=repr(pair),
                    where=f"{source}, pair {k + 1}",
                )
        return cls(Corpus(tuple(examples), source), answers)

    @property
    def alternatives(self) -> tuple[str, ...]:
        """All different answers, in the order in which they first occur."""
        return tuple(dict.fromkeys(answer for pair in self.answers for answer in pair))

    def directions(self) -> NDArray[np.float64] | None:
        """Return, for each pair, the direction `(n, V)` among the logits of all V `alternatives` along which (logit of
        its answer − logit of the corrupted answer) is measured; None without answers.
        """
        if not self.answers:
            return None
        at = {answer: k for k, answer in enumerate(self.alternatives)}
        found = np.zeros((len(self), len(at)))
        for k, (answer, other) in enumerate(self.answers):
            found[k, at[answer]], found[k, at[other]] = 1.0, -1.0
        return found


def _answer(row: Mapping[str, Label], column: str, source: str) -> str:
    """Return an answer to the space as it stands in the file. A number with a point is refused: 1.50 would be read as
    1.5.

    Raises:
        CorpusError: a number that may have been written otherwise, or a truth value.
    """
    value = row[column]
    if isinstance(value, bool | float):
        raise CorpusError(
            f"the column {column} holds numbers, and it cannot be told how they were written",
            needed="texts",
            found=repr(value),
            where=source,
            next_step='give the pairs as JSON lines, with answers in quotes: "1.50"',
        )
    return "" if value is None else str(value)


@dataclass(frozen=True, eq=False)
class PairPatching:
    """Holds the effects of patching pairs of prompts.

    Attributes:
        exact: result of activation patching, in which the model runs with every state.
        rough: result of attribution patching, an approximation by gradients, at the same sites and positions; None if
            `attribution` was False.
        clean: mean over the clean prompts of (logit of the answer − logit of the corrupted answer); None if that is not
            what was measured.
        corrupted: the same over the corrupted prompts.
        pieces: for each position, the text of its tokens in the first clean and in the first corrupted prompt.
        doubts: a warning for each answer that is far less probable than the same answer spelt with (or without) a
            space before it.
    """

    exact: PatchingResult
    rough: PatchingResult | None
    clean: float | None
    corrupted: float | None
    pieces: dict[str, tuple[str, str]]
    doubts: tuple[str, ...] = ()


@takes_old_names
def patch_pairs(
    model: LanguageModel,
    pairs: PromptPairs,
    *,
    behaviour: str = "next_token",
    sites: str | Sequence[str] = "resid.*",
    positions: Sequence[str] = (),
    run_prompt: str = CORRUPTED,
    attribution: bool = True,
    advance: Callable[[int, int], None] | None = None,
) -> PairPatching:
    """Run one prompt of every pair with the states of the other prompt at one site and position, for all sites and
    positions in turn, and return the effects.

    Args:
        model: the model, with the head that the behaviour needs.
        pairs: pairs from `PromptPairs.read`. If they have answers and the behaviour is logits without answers of its
            own, (logit of the answer − logit of the corrupted answer) is measured.
        behaviour: what is measured: `next_token`, `masked_token`, `head`, `readout` or another behaviour by name.
        sites: names of sites, with wildcards.
        positions: positions in each prompt, such as `end`, `start+3` or `subject.last`; `subject` alone is the whole
            span, whose tokens are exchanged one by one. If empty, every token is a position; all prompts must then have
            the same number of tokens.
        run_prompt: `corrupted` runs the corrupted prompt with states of the clean prompt; `clean`, the reverse.
        attribution: whether to compute attribution patching, too.
        advance: called with two numbers: places done, and places in all.

    Raises:
        BadParameter: prompts differ in length and no positions are named, a prompt lacks a position, or a span has
            different numbers of tokens in the two prompts of a pair.
        NoBehaviour, EditFailed, UnknownSite: see `TextInstrument`.
        DegenerateDesign: the prompts of every pair give the same behaviour.
    """
    chosen = tuple(positions) or _every(model, pairs)
    measured = build("behaviours", behaviour)
    by_answer = bool(pairs.answers) and isinstance(measured, NextToken | MaskedToken) and measured.answers is None
    if by_answer:
        measured = type(measured)(answers=pairs.alternatives, position=measured.position)
    rows = rows_of_spans(model, pairs.corpus, positions=chosen, max_rows=len(pairs.corpus))
    _check_rows(rows, pairs)
    instrument = TextInstrument(model, rows, measured, sites=sites)
    instrument.check()
    first = np.arange(len(pairs)) + (len(pairs) if run_prompt == CORRUPTED else 0)
    donors = np.arange(len(pairs)) + (0 if run_prompt == CORRUPTED else len(pairs))
    both, along = np.stack([first, donors], axis=1), pairs.directions() if by_answer else None
    exact = replace(patch(instrument, both, direction=along, advance=advance), answers=instrument.answers)
    rough = replace(attribute(instrument, both, direction=along), answers=exact.answers) if attribution else None
    told: tuple[float | None, float | None] = (None, None)
    if along is not None:
        y = instrument.clean().reshape(2, len(pairs), -1)
        told = float((y[0] * along).sum(1).mean()), float((y[1] * along).sum(1).mean())
    return PairPatching(exact, rough, *told, _pieces(model, instrument), instrument.doubts)


def _check_rows(rows: TextRows, pairs: PromptPairs) -> None:
    if len(rows.example) < len(pairs.corpus):
        raise BadParameter(
            "a prompt lacks a position",
            needed=f"every position in all {len(pairs.corpus)} prompts",
            found=", ".join(f"{n}: {why}" for why, n in rows.excluded.items()),
            where=pairs.corpus.source,
            next_step="choose other positions",
        )
    for name, pieces in rows.pieces.items():
        clean, corrupted = np.split(np.array([len(one) for one in pieces], dtype=np.int64), 2)
        check_sizes(name, clean, corrupted)


def _every(model: LanguageModel, pairs: PromptPairs) -> tuple[str, ...]:
    encoded = model.encode([example.text for example in pairs.corpus.examples])
    lengths = sorted({int((~one.special).sum()) for one in encoded})
    if len(lengths) > 1:
        raise BadParameter(
            "prompts of different lengths have no positions in common",
            needed="prompts with equally many pieces each",
            found=f"{lengths[0]} to {lengths[-1]} pieces",
            where=pairs.corpus.source,
            next_step="name positions, such as --position end, or spans (--span NAME=COLUMN,CORRUPTED_COLUMN)",
        )
    return tuple(Position.parse(f"start+{k}" if k else "start").name for k in range(lengths[0]))


def _pieces(model: LanguageModel, instrument: TextInstrument) -> dict[str, tuple[str, str]]:
    rows, half = instrument.rows, instrument.n_rows // 2
    found = {}
    for name, pieces in rows.pieces.items():
        texts = []
        for row in (0, half):
            one = rows.encoded[rows.example[row]]
            texts.append(model.tokenizer.decode([int(one.ids[p]) for p in pieces[row]]))
        found[name] = (texts[0], texts[1])
    return found
