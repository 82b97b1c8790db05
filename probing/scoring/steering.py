"""Adds the direction of a probe to the states of a running model (steering), and measures the effect on its text and
answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.models.batching import length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.models.reading.shifting import shifted
from probing.probes._estimator import load_probe
from probing.scoring.recipe import recipe_of
from probing.states.extraction.reading_options import TOKENS_PER_BATCH
from probing.system.machine import with_typed_errors
from probing.text.alignment import Encoded
from probing.text.corpus import Corpus
from probing.use.directions import Evidence, caveat, read_directions
from probing.use.directions.applying import check_model, check_width
from probing.verdicts.judging import read_use_run
from probing.verdicts.verdict import UseRun

Floats = NDArray[np.float64]
NOT_TESTED = "use not tested"


@dataclass(frozen=True, eq=False)
class Steering:
    """Describes a direction that is added to the states of a model.

    Attributes:
        name: name of the property and probe, or of the file of the direction.
        site: site at which the vector is added to the states.
        vector: `(D,)` vector that is added at strength 1.
        unit: what strength 1 changes, in words.
        strength: factor by which the vector is multiplied.
        use: the verdict on whether the model uses the property, in words; or "use not tested".
    """

    name: str
    site: str
    vector: Floats
    unit: str
    strength: float
    use: str

    def __repr__(self) -> str:
        return f"Steering({self.name} at {self.site}, strength {self.strength:g}: {self.unit}; {self.use})"


@dataclass(frozen=True)
class SteeringEffect:
    """Holds the effect of one strength on a model's text: means over texts, with 95 % intervals.

    Attributes:
        strength: factor of the direction.
        kl: triple (value, low, high): mean Kullback-Leibler divergence of the steered from the unsteered distribution
            of the next token, in nats per token, with the ends of its interval.
        perplexity: perplexity of the texts with steering.
        clean_perplexity: perplexity of the texts without steering.
        changed: share of tokens after which another token than without steering is the most probable.
        answers: for each answer, a triple (value, low, high): the mean change of its log probability (nats) after the
            texts.
    """

    strength: float
    kl: tuple[float, float, float]
    perplexity: float
    clean_perplexity: float
    changed: float
    answers: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class SteeringReport:
    """Holds the effects of several strengths of a direction.

    Attributes:
        steering: the direction at strength 1, with the verdict on whether the model uses the property.
        effects: effect of each strength, in the order given.
        texts: number of texts.
        pieces: number of predicted tokens.
    """

    steering: Steering
    effects: tuple[SteeringEffect, ...]
    texts: int
    pieces: int

    def records(self) -> list[dict[str, Any]]:
        """Return the effects as flat dicts, one for each strength."""
        return [
            {
                "strength": one.strength,
                "kl": one.kl[0],
                "kl_low": one.kl[1],
                "kl_high": one.kl[2],
                "perplexity": one.perplexity,
                "clean_perplexity": one.clean_perplexity,
                "changed": one.changed,
                **{f"log p({name})": change[0] for name, change in one.answers.items()},
                "use": self.steering.use,
            }
            for one in self.effects
        ]

    def __str__(self) -> str:
        lines = [f"{self.steering.name} added at {self.steering.site} ({self.steering.unit}); {self.steering.use}"]
        lines += [f"on {self.texts:,} texts, {self.pieces:,} pieces:"]
        for one in self.effects:
            answers = "".join(f", log p({name!r}) {value[0]:+.2f}" for name, value in one.answers.items())
            lines.append(
                f"  strength {one.strength:g}: KL {one.kl[0]:.3g} [{one.kl[1]:.3g}, {one.kl[2]:.3g}] nats a piece, "
                f"perplexity {one.clean_perplexity:.4g} → {one.perplexity:.4g}, {100 * one.changed:.1f} % of next "
                f"pieces change{answers}"
            )
        return "\n".join(lines)


Source = Probe | Evidence | str | Path


@contextmanager
def steer(
    model: LanguageModel,
    probe: Source,
    *,
    strength: float = 1.0,
    label: str | None = None,
    use: UseRun | str | Path | None = None,
    any_model: bool = False,
) -> Iterator[Steering]:
    """Return a context manager in whose block the direction of a probe is added to the states of the model, at the
    probe's site and at all tokens of every text. Afterwards the hook is removed, also after an error.

    The direction is scaled so that strength 1 raises the log odds of the probe's label (or the predicted number) by 1;
    of all steps that do so, it is the shortest if each coordinate is measured in its standard deviations. For
    directions that `probing use` saved, it is the difference between the means of two classes, and strength 1 adds the
    whole difference. With strength 0 the states stay bit for bit the same.

    That a probe reads a property does not show that the model uses it: adding the direction may have no effect, or
    spoil the text. `steering_report` measures both.

    Args:
        model: the model that the probe was trained on.
        probe: a saved linear probe (such as `linear`, `ridge` or `mass_mean`), class means from `read_directions`, or a
            file of either.
        strength: factor of the direction; a negative one makes the label less probable.
        label: label whose log odds the direction raises, or for class means the class that it leads to; None means the
            second of two in sorted order.
        use: results of `probing use` that may have a verdict on this property and site, or their folder; None means
            those in the probe's folder of results, if there are any.
        any_model: as in `score`.

    Yields:
        The `Steering` that is in force: the direction, with the verdict on whether the model uses the property.

    Raises:
        ProvenanceMismatch, UnknownSite, BadParameter: as in `score`; or the probe has no direction, or the strength is
            not finite.
    """
    if not isinstance(strength, int | float):
        raise BadParameter("the strength is no number", needed="a number", found=repr(strength))
    found = direction_of(model, probe, strength=strength, label=label, use=use, any_model=any_model)
    vector = torch.from_numpy(found.vector * found.strength)
    with shifted(model.suffix.trunk, found.site, vector, changes=bool(found.strength)):
        yield found


def direction_of(
    model: LanguageModel,
    probe: Source,
    *,
    strength: float = 1.0,
    label: str | None = None,
    use: UseRun | str | Path | None = None,
    any_model: bool = False,
) -> Steering:
    """Return the direction that `steer` adds, after checking it against the model; arguments and errors are those of
    `steer`.
    """
    if not math.isfinite(strength):
        raise BadParameter("a strength is a number", needed="a finite number", found=str(strength))
    given = _loaded(probe)
    if isinstance(given, Evidence):
        return _of_evidence(model, given, strength, label, any_model)
    recipe = recipe_of(given, model, label=label, any_model=any_model)
    gradient, step = _direction(given, recipe.label, recipe.labels, recipe.name)
    unit = f"1 raises the log odds of {recipe.label} by 1" if recipe.labels else "1 raises the number predicted by 1"
    about = given.about
    verdict = _verdict(str(about.get("task")), recipe.site, use if use is not None else _beside(probe))
    return Steering(recipe.name, recipe.site, step / float(gradient @ step), unit, float(strength), verdict)


def _loaded(probe: Source) -> Probe | Evidence:
    if not isinstance(probe, str | Path):
        return probe
    path = Path(probe)
    if path.with_suffix(".json").is_file() or not path.exists():
        return load_probe(path)
    (evidence, *others) = read_directions(path).values()
    if others:
        raise BadParameter(
            "one direction is added at a time", needed="one file", found=f"{len(others) + 1}", where=str(path)
        )
    return evidence


def _of_evidence(
    model: LanguageModel, evidence: Evidence, strength: float, label: str | None, any_model: bool
) -> Steering:
    header = evidence.header
    if header.kind != "class_mean":
        raise BadParameter(
            "only class means are a direction", needed="class_mean", found=header.kind, where=header.place
        )
    start, goal = evidence.codes(None, label)
    if not any_model:
        check_model(header, model)
    check_width(evidence, model)
    said = f"{header.task} from {evidence.said(start)} to {evidence.said(goal)}"
    doubt = caveat(header)
    return Steering(
        said,
        header.site,
        evidence.direction(start=start, goal=goal),
        "1 is the whole difference of the classes",
        float(strength),
        f"{header.verdict.word}" + (f" ({doubt})" if doubt else ""),
    )


def _direction(probe: Any, label: str, labels: tuple[str, ...], name: str) -> tuple[Floats, Floats]:
    """Return, on states as they are, the gradient `(D,)` of the log odds (or number) and the direction of the step."""
    weights = getattr(probe, "coef_", getattr(probe, "direction_", None))
    if weights is None or np.asarray(weights).shape[0] != probe.n_features_in_:
        raise BadParameter(
            "this probe has no direction",
            needed="a linear probe: linear, ridge, mass_mean, sparse, attention_pooling",
            found=type(probe).__name__,
            where=name,
        )
    table = np.asarray(weights, np.float64).reshape(probe.n_features_in_, -1) * getattr(probe, "temperature_", 1.0)
    scale = np.asarray(getattr(probe, "scale_", np.ones(len(table))), np.float64)
    if labels:
        if not label:
            raise BadParameter("which label is added?", needed=f"one of {', '.join(labels)}", found="none", where=name)
        own = labels.index(label)
        others = np.delete(table, own, axis=1).mean(1)
        column = table[:, own] - others
    else:
        column = table[:, 0]
    if not np.any(column):
        raise BadParameter("this probe has no direction", needed="weights", found="all 0", where=name)
    return column / scale, column * scale


def _beside(probe: Source) -> Path | None:
    """Return the folder of results that a saved probe lies in, if it holds results of use."""
    if not isinstance(probe, str | Path):
        return None
    folders = [folder for folder in Path(probe).resolve().parents if (folder / "use.jsonl").is_file()]
    return folders[0] if folders else None


def _verdict(task: str, site: str, use: UseRun | str | Path | None) -> str:
    """Return what results of use say of a property at a site."""
    run = use if use is None or isinstance(use, UseRun) else read_use_run(use)
    found = [] if run is None else [v for v in run.verdicts if v.task == task.partition(" at ")[0] and v.site == site]
    if not found:
        return NOT_TESTED
    return "; ".join(f"at {one.place}: {one.text}" + (f" ({one.behaviour})" if one.behaviour else "") for one in found)


@with_typed_errors
def steering_report(
    model: LanguageModel,
    probe: Source,
    texts: Sequence[str] | Corpus,
    *,
    strengths: Sequence[float] = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0),
    answers: Sequence[str] = (),
    label: str | None = None,
    use: UseRun | str | Path | None = None,
    any_model: bool = False,
) -> SteeringReport:
    """Measure the effect of adding a probe's direction on a model's text, and return it for each strength.

    Args:
        model: a causal model.
        probe, label, use, any_model: as in `steer`.
        texts: texts on which the effect is measured; at least two of them must have two or more tokens.
        strengths: factors of the direction.
        answers: single tokens, such as ` was`, whose log probability after each text is compared.

    Raises:
        BadParameter: as in `steer`; or there are too few texts, the model has no causal head, or an answer is not a
            single token.
    """
    plain = direction_of(model, probe, label=label, use=use, any_model=any_model)
    if model.suffix.head != "causal":
        raise BadParameter(
            "text quality is that of a causal model",
            needed="a head that predicts the next piece",
            found=str(model.suffix.head),
        )
    for strength in strengths:
        if not math.isfinite(strength):
            raise BadParameter("a strength is a number", needed="a finite number", found=str(strength))
    given = [example.text for example in texts.examples] if isinstance(texts, Corpus) else list(texts)
    encoded = [one.truncated(model.max_length) if model.max_length else one for one in model.encode(given)]
    encoded = [one for one in encoded if len(one) > 1]
    if len(encoded) < 2:
        raise BadParameter(
            "too few texts to measure on", needed="two texts of two pieces or more", found=str(len(encoded))
        )
    pieces = {answer: _piece(model, answer) for answer in answers}
    sums = [_Sums(pieces) for _ in strengths]
    for batch in length_sorted_batches([len(one) for one in encoded], TOKENS_PER_BATCH):
        inputs = [encoded[k] for k in batch]
        clean = _log_probabilities(model, inputs)
        for strength, to in zip(strengths, sums, strict=True):
            vector = torch.from_numpy(plain.vector * strength)
            with shifted(model.suffix.trunk, plain.site, vector, changes=bool(strength)):
                to.add(inputs, clean, _log_probabilities(model, inputs))
    effects = tuple(to.effect(float(strength)) for strength, to in zip(strengths, sums, strict=True))
    return SteeringReport(plain, effects, len(encoded), sum(len(one) - 1 for one in encoded))


def _piece(model: LanguageModel, answer: str) -> int:
    ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise BadParameter(
            "an answer is a single piece",
            needed="one piece of the vocabulary; a space before it counts",
            found=f"{answer!r}: {len(ids)} pieces",
            where=model.name,
        )
    return int(ids[0])


def _log_probabilities(model: LanguageModel, inputs: Sequence[Encoded]) -> list[Tensor]:
    """Return the log probabilities `(T, V)` of the next piece at each piece of each input."""
    logits = model.logits(inputs)
    starts = model.first_piece(inputs).tolist()
    return [
        torch.log_softmax(row[start : start + len(one)].float(), -1)
        for row, start, one in zip(logits, starts, inputs, strict=True)
    ]


class _Sums:
    """Collects the effects of one strength, text by text."""

    def __init__(self, answers: dict[str, int]) -> None:
        self._answers = answers
        self._kl: list[float] = []
        self._surprise = [0.0, 0.0]
        self._changed = self._count = 0
        self._change: dict[str, list[float]] = {name: [] for name in answers}

    def add(self, inputs: Sequence[Encoded], clean: Sequence[Tensor], steered: Sequence[Tensor]) -> None:
        for one, before, after in zip(inputs, clean, steered, strict=True):
            targets = torch.from_numpy(one.ids[1:]).to(before.device)[:, None]
            self._kl.append(float((after[:-1].exp() * (after[:-1] - before[:-1])).sum(-1).mean()))
            for k, logs in enumerate((before, after)):
                self._surprise[k] -= float(logs[:-1].gather(1, targets).sum())
            self._changed += int((before[:-1].argmax(-1) != after[:-1].argmax(-1)).sum())
            self._count += len(targets)
            for name, piece in self._answers.items():
                self._change[name].append(float(after[-1, piece] - before[-1, piece]))

    def effect(self, strength: float) -> SteeringEffect:
        """Return the effect, with intervals over texts."""
        clean, steered = (math.exp(min(700.0, total / self._count)) for total in self._surprise)
        changes = {name: _interval(values) for name, values in self._change.items()}
        return SteeringEffect(strength, _interval(self._kl), steered, clean, self._changed / self._count, changes)


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95 % interval over texts, by Student's t."""
    from scipy.stats import t

    x = np.asarray(values, np.float64)
    half = float(t.ppf(0.975, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return float(x.mean()), float(x.mean()) - half, float(x.mean()) + half
