"""What the card of a saved probe records: how its rows were read, from which model, its scores, and its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probing.contracts.probe import Probe
from probing.errors import BadParameter, DegenerateDesign, unknown_name
from probing.labels import MISSING
from probing.measures._rows import gives_probabilities, predict
from probing.provenance import tokenizer_digest, weights_digest
from probing.results.probe import MeasureResult, Score
from probing.statistics.thresholds import AskedThreshold, Threshold, choose_threshold
from probing.training.plan import Plan
from probing.training.states import States

CARD = 2  # version of the card; cards without one are of version 0.1
_READ = ("dtype", "long_inputs", "max_length", "stride", "modules", "chat", "position_names")


def card_facts(
    plan: Plan, probe: Probe, measures: Sequence[MeasureResult], threshold: Threshold | None
) -> dict[str, Any]:
    """Return what the card of a saved probe records of the run, ready for JSON.

    Returns:
        `corpus_source`; `keys`, the names of keys that it reads as codes; `read`, how its rows are made of texts (rows
        of the store, and how these were pooled when read); `model_facts`, what identifies the model; `scores`, with
        intervals, controls and the best baseline; `clusters`, numbers of rows and of clusters by split; `threshold`.
    """
    base = getattr(plan.store, "base", plan.store)
    identity, pooled = base.identity, plan.store.identity["extraction"]["rows"]
    extraction, model = identity["extraction"], identity["model"]
    names = None if probe.input_as_text else plan.labels.key_names.get(probe.input)
    return {
        "card": CARD,
        "corpus_source": identity["corpus"].get("source", ""),
        **({} if names is None else {"keys": list(names)}),
        "read": {
            "rows": extraction["rows"],
            "pooled": "" if plan.store is base else pooled.removesuffix(" of pieces"),
            "level": plan.labels.level,
            "row_form": plan.labels.row_form,
            **{name: extraction[name] for name in _READ if name in extraction},
        },
        "model_facts": {
            "source": model.get("source"),
            "revision": model.get("revision"),
            "weights": weights_digest(model),
            "tokenizer": tokenizer_digest(identity["tokenizer"]) if "tokenizer" in identity else "",
            "dtype": model.get("dtype"),
            "side": model.get("side"),
        },
        "scores": [_scored(found) for found in measures if found.split.partition("_")[0] == "test"],
        "resampled_by": plan.labels.unit,
        "clusters": {name: one.clusters.count for name, one in plan.resamplers.items()},
        "row_counts": {name: len(plan.labels.rows(name)) for name in ("train", "dev", "test")},
        "threshold": None if threshold is None else threshold.facts(),
    }


def _scored(found: MeasureResult) -> dict[str, Any]:
    """Return a score with its interval, the first control and the baseline that it gains least over."""
    control, least = next(iter(found.comparisons), None), found.least_gain
    beside: dict[str, Any] = {}
    if control is not None:
        beside |= {"control": control.control, "control_score": control.score.value}
        beside |= {"gain_over_control": _ends(control.selectivity)}
    if least is not None:
        beside |= {"baseline": least.baseline, "gain_over_baseline": _ends(least.gain)}
    score = found.score
    return {"measure": found.measure, "split": found.split, "value": _ends(score), "n": score.n} | beside


def _ends(score: Score) -> list[float | None]:
    """Return value, low and high; None where they are not finite, which JSON cannot hold."""
    return [float(x) if np.isfinite(x) else None for x in (score.value, score.low, score.high)]


def check_threshold(plan: Plan, asked: AskedThreshold) -> None:
    """Check before anything is fitted that a threshold can be chosen on these labels.

    Raises:
        BadParameter: labels that are no classes, or more than two and none is named.
        UnknownName: there is no such class or column.
        DegenerateDesign: too few rows of other classes on dev; the message says how many are needed.
    """
    label = _label(plan, asked)
    if asked.by and asked.by not in plan.labels.keys:
        raise unknown_name("column", asked.by, plan.labels.keys, where=f"threshold of task {plan.task}")
    rows = plan.judged("dev").rows
    others = int((plan.labels.y[rows] != plan.labels.classes.index(label)).sum())
    try:  # of so many equal scores a threshold is chosen or refused as of others
        chosen = rows[plan.labels.y[rows] != plan.labels.classes.index(label)]
        homes = _homes(plan, chosen)
        choose_threshold(np.zeros(others), np.zeros(others, bool), fpr=asked.fpr, dev_clusters=homes)
    except DegenerateDesign as error:
        error.where = f"dev of task {plan.task}"
        raise


def threshold_of(plan: Plan, asked: AskedThreshold | None, fit: Probe, states: States) -> Threshold | None:
    """Choose the threshold of a fit on dev, and return it with its evidence on test; None if none was asked for, or the
    probe gives no probabilities.
    """
    if asked is None or not gives_probabilities(fit):
        return None
    label = _label(plan, asked)
    code = plan.labels.classes.index(label)
    parts = {}
    for split in ("dev", "test"):
        one = plan.judged(split)
        rows, X = plan.labels.rows(split), np.asarray(states[split]) if fit.input == "states" else states[split]
        found = predict(fit, X, plan.labels.take(rows)).log_probabilities
        assert found is not None  # the probe gives probabilities
        parts[split] = (log_odds(found, code)[one.within], plan.labels.y[one.rows] == code)
    dev, test = plan.judged("dev"), plan.judged("test")
    codes = plan.labels.keys[asked.by][test.rows] if asked.by else None
    names = np.array([*plan.labels.key_names[asked.by], "(none)"], dtype=object) if asked.by else None
    return choose_threshold(
        *parts["dev"],
        *parts["test"],
        fpr=asked.fpr,
        dev_clusters=_homes(plan, dev.rows),
        clusters=_homes(plan, test.rows),
        groups=None if codes is None or names is None else names[np.where(codes == MISSING, len(names) - 1, codes)],
        by=asked.by,
        label=label,
        seed=test.seed,
    )


def _homes(plan: Plan, rows: Any) -> Any:
    """Return the group of each row: the document or named group that is never split, or examples of one text."""
    assert plan.example_groups is not None  # a threshold was asked for
    return plan.example_groups[plan.labels.example[rows]]


def log_odds(log_probabilities: Any, code: int) -> Any:
    """Return the natural log odds `(N,)` of one class against all others, from log probabilities `(N, K)`."""
    others = np.delete(log_probabilities, code, axis=1)
    with np.errstate(divide="ignore"):  # a class that the probe never saw has log probability -inf
        return log_probabilities[:, code] - np.logaddexp.reduce(others, axis=1)


def _label(plan: Plan, asked: AskedThreshold) -> str:
    """Return the class to be flagged: of two the second in sorted order, if none is named."""
    classes = plan.labels.classes
    if plan.labels.kind != "classes" or (len(classes) != 2 and not asked.label):
        raise BadParameter(
            "a threshold flags one class",
            needed="two classes, or the class to be flagged",
            found=f"{len(classes)} classes" if plan.labels.kind == "classes" else f"targets of kind {plan.labels.kind}",
            where=f"task {plan.task}",
            next_step="name it: fpr=0.01,label=CLASS",
        )
    if asked.label and asked.label not in classes:
        raise unknown_name("class", asked.label, classes, where=f"task {plan.task}")
    return asked.label or classes[1]
