"""Scores each token that a model generates, from the state that the model computes when it reads this token, and
aggregates the scores of a text. Options and attributes call tokens "pieces".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probing.contracts.probe import Probe
from probing.errors import BadParameter, unknown_name
from probing.labels import Pieces
from probing.models.language_model import LanguageModel
from probing.models.reading.generating import listening
from probing.scoring.alarms import AS_TRAINED, SO_FAR, Alarm, AlarmRule, AlarmThreshold, Limits, limits_of, rule_of
from probing.scoring.recipe import Recipe, answer_mark, recipe_of, refuse_other_form
from probing.scoring.text_pools import TextPool
from probing.states.store import narrow
from probing.states.store.format import widen
from probing.states.store.views import warn_of_unknown
from probing.statistics.aggregations import running
from probing.statistics.thresholds import choose_threshold

Floats = NDArray[np.float64]
BLOCK = 64  # pieces of a sequence that are scored together where no callback waits for them


@dataclass(eq=False)
class WatchedText:
    """Holds the scores of the n tokens of one generated text.

    Attributes:
        ids: `(n,)` vocabulary ids of the scored tokens.
        scores: by name of the probe, `(n,)` scores in the order of the tokens.
        is_complete: whether the generation ended without an error.
    """

    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: dict[str, Floats] = field(default_factory=dict)
    is_complete: bool = False
    _tokenizer: Any = field(default=None, repr=False)
    _own: dict[str, TextPool] = field(default_factory=dict, repr=False)

    @property
    def text(self) -> str:
        """Text of all scored tokens together."""
        return str(self._tokenizer.decode(self.ids))

    @property
    def pieces(self) -> list[str]:
        """Text of each scored token."""
        return [str(self._tokenizer.decode([int(piece)])) for piece in self.ids]

    def aggregate(self, probe: str, how: str = "mean", *, decay: float = 0.9, width: int = 8) -> float:
        """Return one number that aggregates the scores of a probe over all tokens; `how`, `decay` and `width` are
        explained at `probing.statistics.aggregations.running`.

        Raises:
            BadParameter: there is no token, or the aggregation is unknown.
            UnknownName: there is no probe of this name.
        """
        found = running(self._scores(probe), how, decay=decay, width=width)
        if not len(found):
            raise BadParameter("a text without pieces has no score", needed="at least one piece", found="none")
        return float(found[-1])

    def multimax(self, probes: Sequence[str] | None = None) -> float:
        """Return the sum of the highest scores of several probes (None: all), each taken over the tokens. It suits
        probes that each detect a different symptom of one property.

        References:
            Kramár et al. 2026, Building Production-Ready Probes For Gemini, arXiv 2601.11516 (MultiMax, whose linear
            scores are trained together; here the probes were trained one by one).
        """
        return sum(self.aggregate(name, "max") for name in (probes or self.scores))

    def as_trained(self, probe: str) -> float:
        """Return the probe's score of the text so far, with states pooled as in training; for a finished text it equals
        the result of `score`.

        Raises:
            BadParameter: the probe scores words or positions inside the text, or there is no token.
        """
        self._scores(probe)
        return self._own[probe].score()

    def compared(self, probe: str, rule: AlarmRule) -> Floats:
        """Return the values that a rule compares with the threshold: one after each of n tokens, `(n,)`, or for
        `as_trained` the score of the finished text, `(1,)`; an empty array for a text without tokens.
        """
        scores = self._scores(probe)
        if rule.alarm_on == AS_TRAINED:
            return np.array([self.as_trained(probe)] if len(scores) else [], np.float64)
        return np.asarray(rule.compared(scores, self._own[probe].so_far), np.float64)

    def _scores(self, probe: str) -> Floats:
        if probe not in self.scores:
            raise unknown_name("probe", probe, self.scores)
        return self.scores[probe]


class GenerationScores(Sequence[WatchedText]):
    """Holds the scores of all texts that were generated within `watch`, in order.

    Attributes:
        recipes: by name of the probe, a description of how its states are read and pooled.
        rule: which score of a text raises an alarm, and when.
    """

    def __init__(self, recipes: Mapping[str, Recipe], tokenizer: Any, rule: AlarmRule) -> None:
        self.recipes, self.rule = dict(recipes), rule
        self._tokenizer = tokenizer
        self._texts: list[WatchedText] = []

    def __getitem__(self, index: Any) -> Any:
        return self._texts[index]

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        pieces = sum(len(text.ids) for text in self)
        return f"GenerationScores({len(self)} texts, {pieces} pieces, probes: {', '.join(self.recipes)})"

    def peaks(self, probe: str) -> Floats:
        """Return the highest value of each of N texts that is compared with a threshold, `(N,)`: an alarm is raised for
        a text if this is above the threshold. That of a text without tokens is minus infinity.
        """
        return np.array([text.compared(probe, self.rule).max(initial=-np.inf) for text in self], np.float64)

    def threshold(
        self,
        probe: str,
        *,
        fpr: float = 0.01,
        positive: ArrayLike | None = None,
        clusters: ArrayLike | None = None,
    ) -> AlarmThreshold:
        """Choose the threshold of alarms on these N texts: of new texts that are generated in the same way, without the
        property, a share of at most `fpr` raises an alarm on average. Give it to `watch(…, threshold=…)`.

        Args:
            probe: name of the probe.
            fpr: largest share of texts without the property that may raise an alarm.
            positive: `(N,)` whether each text has the property; None means that none has.
            clusters: `(N,)` group of each text, such as the prompt that it continues; None means that texts are
                independent.

        Raises:
            DegenerateDesign: there are too few texts without the property; the message says how many are needed.
            BadParameter: `fpr` is not between 0 and 1, or there is not a flag and a group for every text.
            UnknownName: there is no probe of this name.
        """
        if probe not in self.recipes:
            raise unknown_name("probe", probe, self.recipes)
        flags = np.zeros(len(self), bool) if positive is None else positive
        label = self.recipes[probe].label
        found = choose_threshold(self.peaks(probe), flags, fpr=fpr, dev_clusters=clusters, label=label)
        facts = {one.name: getattr(found, one.name) for one in fields(found)}
        return AlarmThreshold(**facts, rule=self.rule)

    def records(self) -> list[dict[str, Any]]:
        """Return a list of dicts, one for each probe and token of each text, with the number of the text, the number
        and text of the token, the name of the probe and the score.
        """
        return [
            {"text": n, "piece": t, "said": said, "probe": name, "score": float(scores[t])}
            for n, text in enumerate(self)
            for name, scores in text.scores.items()
            for t, said in enumerate(text.pieces)
        ]


@contextmanager
def watch(
    model: LanguageModel,
    probes: Probe | str | Path | Sequence[Probe | str | Path] | Mapping[str, Probe | str | Path],
    *,
    label: str | Mapping[str, str] | None = None,
    callback: Callable[[Alarm], object] | None = None,
    threshold: Limits = None,
    alarm_on: str | None = None,
    role: Literal["assistant", "all"] = "assistant",
    decay: float = 0.9,
    width: int = 8,
    any_model: bool = False,
) -> Iterator[GenerationScores]:
    """Return a context manager in whose block every token that the model generates is scored, by `model.generate` or by
    `generate` of the Hugging Face model inside it. Afterwards all hooks are removed, also after an error.

    A token is scored when the model has read it; up to rounding, the scores equal those of the finished text read in
    one pass. Special tokens, tokens after the end of a text, and by default the prompt are not scored.

    Args:
        model: a decoder.
        probes: saved probes or their files; the keys of a mapping name them in the scores.
        label: class whose natural log odds are the score, one for all probes or a mapping by name; None: the class that
            a probe's threshold flags, or without a threshold, of two classes the second in sorted order.
        callback: function that is called with an `Alarm`, at most once for each text and probe, when the score passes
            the threshold. An exception in it ends the generation. With a callback, every token is scored immediately,
            which takes more time.
        threshold: threshold for the callback, one for all probes or a mapping by name: a number, or the result of
            `threshold` of the scores of an earlier `watch`, which keeps its share of false alarms. None means the
            threshold that was saved with each probe. A warning is given if a threshold was chosen on other scores, so
            that its share of false alarms does not hold.
        alarm_on: what is compared with the threshold: `as_trained`, the score of a text as a whole, pooled as in
            training, when the text is finished; `as_trained_so_far`, the same of the text so far, after every token; or
            after every token an aggregation of the scores so far, such as `last`, `mean` or `max`
            (`probing.statistics.aggregations.running` lists all). None means as the threshold was chosen: for one saved
            with a probe of whole texts `as_trained`, for a number `last`. Each score after a token is one more chance
            of an alarm, so that a threshold chosen on finished texts would raise far more.
        role: tokens to score: `assistant` (generated ones) or `all` (also those of the prompt).
        decay, width: for `alarm_on`: weight of the past in an `exponential` mean, and number of tokens of a `rolling`
            mean.
        any_model: as in `score`.

    Yields:
        The scores as `GenerationScores`. Tokens are added as they are generated; the scores are complete after the
        generation.

    Raises:
        UnsupportedModel: the model does not continue texts.
        ProvenanceMismatch, UnknownSite, BadParameter: as in `score`; or a prompt is a chat and training used plain
            texts (or the reverse), or there is a callback but no threshold.
    """
    named = _named(probes)
    labels = dict.fromkeys(named, label) if label is None or isinstance(label, str) else dict(label)
    if unknown := set(labels) - set(named):
        raise unknown_name("probe", min(unknown), named)
    recipes = {
        name: recipe_of(probe, model, label=labels.get(name), any_model=any_model) for name, probe in named.items()
    }
    if callback is not None and not callable(callback):
        raise BadParameter("the callback cannot be called", needed="a function", found=type(callback).__name__)
    rule = rule_of(recipes, threshold, alarm_on, role, decay=decay, width=width)
    rule.check(recipes)
    limits = limits_of(recipes, threshold, rule) if callback is not None else {}
    found = GenerationScores(recipes, model.tokenizer, rule)
    special = torch.tensor(sorted(model.tokenizer.all_special_ids), dtype=torch.long)

    def alarm(sequence: int, is_finished: bool) -> None:
        text = found[sequence]
        for name, limit in limits.items() if is_finished or rule.alarm_on != AS_TRAINED else ():
            if (name, sequence) in raised:
                continue
            values = text.compared(name, rule)
            over = np.flatnonzero(values > limit)
            if len(over):
                raised.add((name, sequence))
                first = len(text.ids) - len(values) + int(over[0])
                assert callback is not None
                callback(Alarm(name, sequence, first, float(values[over[0]]), limit, recipes[name].label))

    raised: set[tuple[str, int]] = set()
    mark = () if any_model else answer_mark(model)
    listener = _Scorer(recipes, found, special, role == "all", alarm if callback is not None else None, mark)
    sites = tuple(dict.fromkeys(recipe.site for recipe in recipes.values()))
    with listening(model.suffix.model, model.suffix.trunk, sites, listener, model.name):
        try:
            yield found
        finally:
            listener.flush()


class _Scorer:
    """Scores the pieces of one generation after another, a block of pieces at a time, and puts them into the result."""

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        found: GenerationScores,
        special: Tensor,
        reads_prompt: bool,
        alarm: Callable[[int, bool], None] | None,
        mark: tuple[int, ...],
    ) -> None:
        self._mark, self._unknown, self._has_warned = mark, found._tokenizer.unk_token_id, False
        self._recipes, self._found, self._special = recipes, found, special
        self._reads_prompt, self._alarm = reads_prompt, alarm
        self._waiting: list[tuple[int, Tensor, Mapping[str, Tensor]]] = []
        self._pools: list[dict[str, TextPool]] = []

    def begins(self, ids: Tensor, mask: Tensor, stops: frozenset[int]) -> None:
        """Begin a text for each prompt, of the form that the probes were trained on."""
        for row, is_text in zip(ids.cpu(), mask.bool().cpu(), strict=True):
            refuse_other_form(self._recipes, self._mark, row[is_text].numpy())
        if not self._has_warned:
            self._has_warned = warn_of_unknown(self._count_unknown(ids.cpu()[mask.bool().cpu()]))
        self._first, self._length, self._mask = len(self._found), ids.shape[1], mask.bool().cpu()
        self._next, self._count = (0 if self._reads_prompt else self._length), 0
        self._stops = torch.tensor(sorted(stops), dtype=torch.long)
        self._ended = torch.zeros(len(ids), dtype=torch.bool)
        so_far = self._found.rule.alarm_on == SO_FAR
        self._pools = [
            {name: TextPool(recipe, scores_prefixes=so_far) for name, recipe in self._recipes.items()} for _ in ids
        ]
        for pools in self._pools:
            scores = {name: np.zeros(0) for name in self._recipes}
            self._found._texts.append(WatchedText(scores=scores, _tokenizer=self._found._tokenizer, _own=pools))

    def _count_unknown(self, ids: Tensor) -> NDArray[np.int64]:
        """Return the number of tokens of prompts that are unknown, and of all but special ones, `(1, 2)`."""
        is_unknown = ids == (-1 if self._unknown is None else self._unknown)
        return np.array([(int(is_unknown.sum()), int((~torch.isin(ids, self._special) | is_unknown).sum()))], np.int64)

    def reads(self, start: int, ids: Tensor, states: Mapping[str, Tensor]) -> None:
        """Keep the pieces of a pass that were not read before, and score them when there are enough."""
        new = max(0, self._next - start)
        if new >= ids.shape[1]:
            return
        self._next = start + ids.shape[1]
        # States are copied: the model may write over its own. All else waits for a block, for small steps cost most.
        copied = {site: state[:, new:].clone() for site, state in states.items()}
        self._waiting.append((start + new, ids[:, new:], copied))
        self._count += ids.shape[1] - new
        if self._alarm is not None or self._count >= BLOCK:
            self.flush()
            self._compare(is_over=False)

    def ends(self, ids: Tensor) -> None:
        """Score what is left of the generation."""
        self.flush()
        for text in self._found._texts[self._first :]:
            text.is_complete = True
        self._compare(is_over=True)

    def _compare(self, *, is_over: bool) -> None:
        """Compare the texts with their thresholds; `is_over`: the generation has ended, and with it every text."""
        if self._alarm is not None:
            for row, has_ended in enumerate(self._ended.tolist()):
                self._alarm(self._first + row, is_over or has_ended)

    def flush(self) -> None:
        """Score the pieces that wait."""
        waiting, self._waiting, self._count = self._waiting, [], 0
        if not waiting:
            return
        pieces = torch.cat([part[1] for part in waiting], 1).cpu()
        columns = torch.cat([torch.arange(start, start + part.shape[1]) for start, part, _ in waiting])
        ids, is_text = pieces.numpy(), self._is_text(pieces, columns).numpy()
        rows = np.nonzero(is_text)[0]
        texts = self._found._texts[self._first :]
        for row, text in enumerate(texts):
            text.ids = np.concatenate([text.ids, ids[row][is_text[row]]])
        if not len(rows):
            return
        states: dict[tuple[str, str], NDArray[np.float32]] = {}
        for name, recipe in self._recipes.items():
            key = recipe.site, recipe.reading.dtype
            if key not in states:
                raw = torch.cat([part[2][recipe.site] for part in waiting], 1).float().cpu().numpy()[is_text]
                states[key] = widen(narrow(raw, recipe.reading.dtype, recipe.site), recipe.reading.dtype)
            X = states[key]
            scores, _, _ = recipe.scored(Pieces.of_rows(X) if recipe.probe.input == "pieces" else X)
            for row, text in enumerate(texts):
                mine = rows == row
                text.scores[name] = np.concatenate([text.scores[name], scores[mine]])
                self._pools[row][name].add(X[mine])

    def _is_text(self, ids: Tensor, columns: Tensor) -> Tensor:
        """Return which pieces `(B, t)` are scored: no padding, no special piece, nothing behind the end of a text."""
        is_new = columns >= self._length
        prompt = self._mask[:, columns.clamp(max=self._length - 1)]
        stops = torch.isin(ids, self._stops) & is_new
        before = (stops.cumsum(1) - stops.long()) > 0  # a piece behind the first that ends the text
        gone = self._ended[:, None] | before
        self._ended |= stops.any(1)
        return (prompt | is_new) & ~torch.isin(ids, self._special) & ~stops & ~gone


def _named(probes: Any) -> dict[str, Probe | str | Path]:
    if isinstance(probes, Mapping):
        found = dict(probes)
    else:
        given = [probes] if isinstance(probes, str | Path | Probe) else list(probes)
        found = {}
        for probe in given:
            about = {} if isinstance(probe, str | Path) else probe.about
            name = f"{about.get('task')} {about.get('probe')} {about.get('site')}" if about else str(probe)
            found[name if name not in found else f"{name} ({len(found) + 1})"] = probe
    if not found:
        raise BadParameter("no probe to watch with", needed="at least one probe", found="none")
    return found
