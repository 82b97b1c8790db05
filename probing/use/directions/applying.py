"""Runs a model with and without a direction added to its states, and returns both outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import Tensor

from probing.contracts.behaviour import Behaviour, Outputs, Readout, Texts
from probing.contracts.edited_model import Place
from probing.errors import BadParameter, NoBehaviour, ProvenanceMismatch
from probing.models.language_model import LanguageModel
from probing.provenance import UNKNOWN, model_called, weights_digest
from probing.recipes import build, spec_of
from probing.results.use import answers_said
from probing.system.machine import with_typed_errors
from probing.system.progress import steps_bar
from probing.text.corpus import Corpus, Example
from probing.text.positions import Position
from probing.use.behaviours._answers import piece_text
from probing.use.behaviours.masked_token import MaskedToken
from probing.use.behaviours.next_token import NextToken
from probing.use.directions.record import Evidence, Header
from probing.use.edited_models._rows import TextRows, rows_of_spans, rows_of_words
from probing.use.edited_models.text import TextInstrument

Floats = NDArray[np.float64]
_DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, eq=False, repr=False)
class AppliedDirection:
    """Holds the outputs of a model on n rows, without a direction and with it.

    Attributes:
        header: header of the evidence file.
        place: place where the direction was added.
        start: name of the class (or number) that the direction leads away from; "" for an eraser.
        goal: name of the class (or number) that it leads to; "" for an eraser.
        strength: factor of the direction: 1 adds the whole difference, a negative factor leads back.
        behaviour: the behaviour measured, as text; "" if the most probable tokens are shown.
        texts: text of each row, `(n,)`.
        words: `(n,)` index of the word at which each row is edited; -1 if rows are whole texts.
        outputs: names of the V outputs: answers, tokens of the vocabulary, or numbers of a readout.
        unit: `logits` (of answers, minus their mean), `log probabilities` (of tokens, over the vocabulary), or
            `numbers`.
        clean: `(n, V)` outputs without the direction.
        edited: `(n, V)` outputs with it.
        top: number of most probable tokens that are shown for each run; 0 if a behaviour was measured.
    """

    header: Header
    place: str
    start: str
    goal: str
    strength: float
    behaviour: str
    texts: tuple[str, ...]
    words: tuple[int, ...]
    outputs: tuple[str, ...]
    unit: Literal["logits", "log probabilities", "numbers"]
    clean: Floats
    edited: Floats
    top: int = 0

    def __repr__(self) -> str:
        way = f"{self.start} → {self.goal}" if self.start or self.goal else self.header.kind
        return (
            f"AppliedDirection({self.header.task} {way} at {self.place} × {self.strength:g}, {len(self.texts):,} rows)"
        )

    def probabilities(self) -> tuple[Floats, Floats] | None:
        """Return the probabilities `(n, V)` without the direction and with it (for answers: among the answers; for
        tokens: among the whole vocabulary); None if the unit is `numbers`.
        """
        if self.unit == "numbers":
            return None
        as_probabilities = np.exp if self.unit == "log probabilities" else partial(softmax, axis=1)
        return as_probabilities(self.clean), as_probabilities(self.edited)

    def flips(self) -> float | None:
        """Return the share of rows whose most probable output changes; None if the unit is `numbers`."""
        if self.unit == "numbers":
            return None
        return float((self.clean.argmax(1) != self.edited.argmax(1)).mean())

    def rows(self) -> list[dict[str, Any]]:
        """Return a list of flat dicts, one for each row (text or word) and output."""
        both = self.probabilities()
        return [
            {
                "text": text,
                **({"word": word} if word >= 0 else {}),
                "place": self.place,
                "strength": self.strength,
                "output": name,
                "clean": float(self.clean[i, k]),
                "edited": float(self.edited[i, k]),
                "unit": self.unit,
                "clean_probability": None if both is None else float(both[0][i, k]),
                "edited_probability": None if both is None else float(both[1][i, k]),
            }
            for i, (text, word) in enumerate(zip(self.texts, self.words, strict=True))
            for k, name in enumerate(self.outputs)
        ]


class _AllPieces:
    """Measures the logits of the whole vocabulary as they are, for a few texts."""

    def fit(self, texts: Texts, clean: Callable[[], Iterable[Outputs]]) -> Readout:
        return lambda outputs: outputs.values.float()


class _NextPieces(_AllPieces, NextToken):
    pass


class _MaskPieces(_AllPieces, MaskedToken):
    pass


@with_typed_errors
def apply_direction(
    model: LanguageModel,
    evidence: Evidence,
    texts: str | Sequence[str] | Corpus,
    *,
    strength: float = 1.0,
    behaviour: Behaviour | str | None = None,
    start: str | None = None,
    goal: str | None = None,
    position: str | None = None,
    split: str | None = None,
    max_rows: int = 500,
    seed: int = 0,
    top: int = 5,
    any_model: bool = False,
    progress: bool | None = None,
) -> AppliedDirection:
    """Run a model on texts without a direction, and with it added to the states at the site and position where it was
    fitted, and return both outputs.

    The direction is one vector added to the states of all rows: the difference between the mean states of two classes,
    averaged over strata. Evidence that is an eraser removes the property from the states instead.

    Args:
        model: the model that the direction was fitted on.
        evidence: class means or an eraser, from `read_directions`.
        texts: prompts, or a corpus.
        strength: factor of the direction; 1 adds the whole difference.
        behaviour: the behaviour to measure. None means, for a corpus, the one that the verdict is about, and for
            prompts the most probable tokens.
        start: name of the class (for real values, number) that the direction leads away from; None means the other of
            two classes if `goal` names one, else the first, or the number 0.
        goal: name of the class (or number) that it leads to; None means the other of two classes than `start`, or the
            number 1.
        position: position at which the direction is added; None means where it was fitted. Spans exist in a corpus
            only.
        split: for a corpus, the split to use; None means all.
        max_rows: for a corpus, the largest number of rows; if there are more, some are chosen at random.
        seed: seed of that choice.
        top: without a behaviour, the number of most probable tokens of each run that are shown.
        any_model: whether another model than the direction was fitted on is accepted, if its states have the same
            width.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        ProvenanceMismatch: the direction was fitted on another model or other weights.
        UnknownSite: the model has no such site.
        BadParameter: the evidence is a probe, states have another width, `strength` is not finite or so large that
            outputs become NaN, `top` is below 1, or a text lacks the position.
        NoBehaviour: the model cannot give these outputs.
        UnknownName: there is no such class, position or split.
    """
    if not np.isfinite(strength):
        raise BadParameter("a strength is a number", needed="a finite number", found=str(strength))
    if top < 1:
        raise BadParameter("top must be at least 1", needed="1 or more", found=str(top))
    header = evidence.header
    first, last = evidence.codes(start, goal)
    if not any_model:
        check_model(header, model)
    check_width(evidence, model)
    corpus = texts if isinstance(texts, Corpus) else _corpus_of([texts] if isinstance(texts, str) else texts)
    place = Place(header.site, _position(header, position, has_spans=isinstance(texts, Corpus)))
    is_open = behaviour is None and not isinstance(texts, Corpus)
    measured = _pieces_of(model) if is_open else _built(behaviour or header.behaviour)
    if not isinstance(texts, Corpus):
        _check_lengths(model, corpus)
    most = max_rows if isinstance(texts, Corpus) else len(corpus)  # every prompt is shown
    rows = _rows(model, corpus, place.position, split=split, max_rows=most, seed=seed)
    if not isinstance(texts, Corpus) and len(rows.example) < len(corpus):
        raise _lacking(corpus, rows, place.position)
    instrument = TextInstrument(model, rows, measured, sites=place.site, may_be_constant=True)
    instrument.check()
    edited = _edited(instrument, place, evidence, first, last, strength, progress)
    clean = instrument.clean()
    if is_open:
        clean, edited, names = _likeliest(model, clean, edited, top)
    else:
        names = _names(instrument, clean.shape[1])
    has_classes = header.kind == "class_mean"
    return AppliedDirection(
        header=header,
        place=str(place),
        start=evidence.said(first) if has_classes else "",
        goal=evidence.said(last) if has_classes else "",
        strength=float(strength),
        behaviour="" if is_open else spec_of(measured),
        texts=tuple(corpus.examples[k].text for k in rows.ordinal),
        words=tuple(rows.word.tolist()),
        outputs=names,
        unit="log probabilities" if is_open else "logits" if instrument.logits else "numbers",
        clean=clean,
        edited=edited,
        top=top if is_open else 0,
    )


def check_model(header: Header, model: LanguageModel) -> None:
    """Check that the evidence was fitted on this model: the hashes of the weights must be equal, whatever the name and
    dtype. Evidence from before version 0.2 has no such hash; for it the full names are compared.

    Raises:
        ProvenanceMismatch: it was fitted on another model, or on other weights.
    """
    identity = model.identity()["model"]
    names = {model_called(identity | {"dtype": dtype}) for dtype in (*_DTYPES, UNKNOWN)}
    is_same = weights_digest(identity) == header.identity if header.identity else header.model in names
    if not is_same:
        raise ProvenanceMismatch(
            "the direction was fitted on another model",
            needed=_with_weights(header.model, header.identity),
            found=_with_weights(model_called(identity), weights_digest(identity)),
            where=header.place,
            next_step="load the model that the evidence names, or accept any model of the same width (--any-model)",
        )


def _with_weights(name: str, identity: str) -> str:
    return name if not identity or f"weights {identity[:8]}" in name else f"{name}, weights {identity[:8]}"


def check_width(evidence: Evidence, model: LanguageModel) -> None:
    """Check that the model's states at the site have the width of the evidence.

    Raises:
        UnknownSite: the model has no such site.
        BadParameter: they have another width.
    """
    width = model.width(evidence.header.site)
    if width != evidence.width:
        raise BadParameter(
            "the states of this model have another width",
            needed=f"{evidence.width} dimensions at {evidence.header.site}",
            found=f"{width} in {model.name}",
            next_step="give the model that the evidence was fitted on",
        )


def _edited(
    instrument: TextInstrument,
    place: Place,
    evidence: Evidence,
    start: float,
    goal: float,
    strength: float,
    progress: bool | None,
) -> Floats:
    """Return the behaviour `(N, V)` of rows whose states have the direction added, in the batches of the clean run."""
    states, every = instrument.states(place), np.arange(instrument.n_rows)
    # The edit is computed in float64: a float32 state plus nothing is, to the bit, what it was.
    codes = {"start": start, "goal": goal} if not evidence.header.labels else {"start": int(start), "goal": int(goal)}
    with np.errstate(over="ignore"):  # what overflows is told below
        moved = torch.from_numpy(evidence.apply(states, **codes, dose=strength))
    found: list[Tensor] = []
    parts = instrument.batches(every)
    with steps_bar("apply", "rows", len(every), progress) as advance, torch.no_grad():
        for part in parts:
            found.append(instrument.run_from(place.site, every[part], {place.position: moved[part]}))
            advance(sum(map(len, found)), len(every))
    back = np.argsort(np.concatenate(parts), kind="stable")
    edited = np.asarray(torch.cat(found).double().cpu().numpy()[back])
    if np.isnan(edited).any():
        raise BadParameter(
            "the outputs with the direction are no numbers",
            needed="a strength at which the model still computes",
            found=f"{strength:g}",
            where=str(place),
            next_step="choose a smaller strength: 1 is the whole difference of the classes",
        )
    return edited


def _corpus_of(prompts: Sequence[str]) -> Corpus:
    if not prompts:
        raise BadParameter("no prompt was given", needed="one or more", found="none")
    if not all(prompts):
        raise BadParameter("a prompt is empty", needed="texts", found=f"prompt {list(prompts).index('') + 1} is ''")
    return Corpus(tuple(Example(f"prompt {k}", text) for k, text in enumerate(prompts, start=1)), "the prompts")


def _check_lengths(model: LanguageModel, corpus: Corpus) -> None:
    """Refuse prompts that would be cut: their end would lie elsewhere.

    Raises:
        BadParameter: naming the first.
    """
    encoded = model.encode([example.text for example in corpus.examples])
    for example, one in zip(corpus.examples, encoded, strict=True):
        if model.max_length is not None and len(one) > model.max_length:
            raise BadParameter(
                "a prompt is longer than the model reads",
                needed=f"at most {model.max_length} pieces",
                found=f"{len(one)}",
                where=example.id,
                next_step="shorten it",
            )


def _position(header: Header, position: str | None, *, has_spans: bool) -> str:
    """Return the name of the position where the direction is added; "" for the words of a corpus."""
    name = header.position if position is None else Position.parse(position).name
    if not has_spans and (not name or Position.parse(name).span):
        raise BadParameter(
            "a prompt has no such position",
            needed="end, start, end-1, start+2, …",
            found=repr(name) if name else "words of a corpus",
            where=header.place,
            next_step="say where in the prompts (--position end), or give a corpus that has these positions",
        )
    return name


def _pieces_of(model: LanguageModel) -> Behaviour:
    head = model.suffix.head
    if head is None:
        raise NoBehaviour(
            "this model gives no pieces",
            needed="a language-model head",
            found=type(model.suffix.model).__name__,
            where=model.name,
            next_step="name a behaviour, such as readout",
        )
    return _MaskPieces() if head == "masked" else _NextPieces()


def _built(behaviour: Behaviour | str) -> Behaviour:
    built: Behaviour = build("behaviours", behaviour) if isinstance(behaviour, str) else behaviour
    return built


def _rows(
    model: LanguageModel, corpus: Corpus, position: str, *, split: str | None, max_rows: int, seed: int
) -> TextRows:
    if position:
        return rows_of_spans(model, corpus, positions=[position], split=split, max_rows=max_rows, seed=seed)
    return rows_of_words(model, corpus, split=split, max_rows=max_rows, seed=seed)


def _lacking(corpus: Corpus, rows: TextRows, position: str) -> BadParameter:
    missing = sorted(set(range(len(corpus))) - set(rows.ordinal.tolist()))
    return BadParameter(
        "a prompt lacks the position",
        needed=f"{position} in every prompt",
        found=repr(corpus.examples[missing[0]].text)[:200],
        where=corpus.examples[missing[0]].id,
        next_step="choose another position, or leave this prompt out",
    )


def _likeliest(model: LanguageModel, clean: Floats, edited: Floats, top: int) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Return the log probabilities of the pieces that are among the likeliest of any row, and what they stand for."""
    both = [np.asarray(log_softmax(logits, axis=1)) for logits in (clean, edited)]
    most = min(top, clean.shape[1])
    chosen = np.unique([np.argsort(-values, axis=1, kind="stable")[:, :most] for values in both])
    chosen = chosen[np.argsort(-both[0][:, chosen].max(0), kind="stable")]
    names = tuple(piece_text(model.tokenizer, int(piece)) for piece in chosen)
    return both[0][:, chosen], both[1][:, chosen], names


def _names(instrument: TextInstrument, number: int) -> tuple[str, ...]:
    """Return the names of the outputs: the answers as they were measured, or numbers from 1 on."""
    if len(instrument.answers) == number:
        return tuple(answers_said((answer,)) for answer in instrument.answers)
    return tuple(f"output {k}" for k in range(1, number + 1))
