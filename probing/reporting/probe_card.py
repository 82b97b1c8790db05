"""The card of a saved probe in words, for the terminal, notebooks and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from probing.reporting.task_results import TaskResults
from probing.reporting.wording import decimal, plural
from probing.statistics.thresholds import Threshold

UNKNOWN = "not recorded (saved by an earlier version)"
_MOST = 12
_USUAL = 0.01  # rate of false positives of which a probe without a threshold is told


def title_of(probe: Any) -> str:
    """Return the name of a saved probe: its task, recipe and site."""
    about = probe.about
    return f"{about.get('task')} by {about.get('probe')} at {about.get('site')}"


def card_rows(probe: Any) -> list[tuple[str, str]]:
    """Return the entries of the card of a saved probe as pairs (name, value); missing entries have the value `unknown`
    or `UNKNOWN`.
    """
    about: Mapping[str, Any] = probe.about
    labels = [str(label) for label in about.get("labels") or ()]
    more = f" and {len(labels) - _MOST} more" if len(labels) > _MOST else ""
    read, facts, rows = about.get("read"), about.get("model_facts"), str(about.get("rows", "unknown"))
    chat = (read or {}).get("chat")
    names = ", ".join((read or {}).get("position_names") or ())
    return [
        ("task", str(about.get("task", "unknown"))),
        ("labels", ", ".join(labels[:_MOST]) + more if labels else "a number"),
        ("probe", f"{about.get('probe', 'unknown')}, {getattr(probe, 'n_features_in_', '?')} dimensions"),
        ("site", str(about.get("site", "unknown"))),
        ("rows", f"{rows} ({names})" if names else rows),
        ("model", str(about.get("model", "unknown"))),
        ("revision", UNKNOWN if facts is None else str(facts.get("revision") or "none (a folder)")),
        ("weights", UNKNOWN if facts is None else str(facts.get("weights"))[:16]),
        ("chat template", UNKNOWN if read is None else f"yes [{chat['template_sha256'][:12]}]" if chat else "no"),
        ("inputs", UNKNOWN if read is None else _inputs(read)),
        ("corpus", f"{about.get('corpus_source') or 'unknown'} [{str(about.get('corpus', ''))[:12]}]"),
        ("trained on", _sizes(about)),
        *(_scores(about.get("scores")) or [("scores", UNKNOWN)]),
        *_threshold(about),
    ]


def _inputs(read: Mapping[str, Any]) -> str:
    most = read.get("max_length")
    limit = f"at most {most} pieces, longer ones: {read.get('long_inputs')}" if most else "no limit"
    return f"{limit}; states in {read.get('dtype')}"


def _sizes(about: Mapping[str, Any]) -> str:
    counts, clusters = about.get("row_counts"), about.get("clusters")
    if not counts or not clusters:
        return UNKNOWN
    unit = about.get("resampled_by", "cluster")
    tested = ", ".join(f"{split} {counts[split]:,} in {plural(clusters[split], unit)}" for split in ("dev", "test"))
    return f"{plural(counts['train'], 'row')}; {tested}"


def _scores(scores: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, str]]:
    found = []
    for score in scores or ():
        said = f"{_interval(score['value'])} on {plural(score['n'], 'row')}"
        if "control" in score:
            said += f"; {score['control']} {decimal(score['control_score'])}"
            said += f", above it {_interval(score['gain_over_control'])}"
        if "baseline" in score:
            said += f"; above {score['baseline']} {_interval(score['gain_over_baseline'])}"
        found.append((f"{score['measure']} ({score['split'].replace('_', ', ')})", said))
    return found


def _threshold(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "card" not in about:
        return [("threshold", UNKNOWN)]
    if not about.get("threshold"):
        return [("threshold", "none (train with --threshold fpr=0.01)")]
    found = Threshold.of(about["threshold"])
    rows = [("threshold", f"log odds of {found.label} {found}")]
    for name, (recall, false_positives) in found.groups.items():
        rows.append(
            (f"{found.by} {name}", f"recall {recall or 'unknown'}, false positives {false_positives or 'unknown'}")
        )
    return rows


def _interval(ends: Sequence[float | None]) -> str:
    value, low, high = map(decimal, ends)
    return f"{value} [{low}, {high}]"


def saved_facts(tasks: Iterable[TaskResults], folder: Path) -> list[dict[str, Any]]:
    """Return facts about the saved probe of each task that is best on dev: `task` (and model), `site`, `probe`, path
    (`saved`), `threshold` (None: it has none), and what is `needed` for one. Tasks without a saved probe are left out.
    """
    found = []
    for task in tasks:
        best = task.best()
        path = folder / f"{best.provenance['saved']}.json" if best and best.provenance.get("saved") else None
        if best is None or path is None or not path.is_file():
            continue
        about = import_module("probing.probes._estimator").load_probe(path).about
        facts = {"task": task.title, "site": best.site, "probe": best.probe, "saved": str(path)}
        threshold = about.get("threshold")
        found.append(facts | {"threshold": threshold, "needed": "" if threshold else _needed(about)})
    return found


def saved_line(facts: Mapping[str, Any]) -> str:
    """Return one line on a saved probe: where it lies, and its threshold, or what a threshold needs."""
    found = f"{facts['task']}: {facts['probe']} at {facts['site']} is saved in {facts['saved']}"
    if facts["threshold"]:
        threshold = Threshold.of(facts["threshold"])
        return f"{found}; threshold: log odds of {threshold.label} {threshold}"
    return f"{found}; {facts['needed']}" if facts["needed"] else found


def _needed(about: Mapping[str, Any]) -> str:
    """Return what a threshold of a probe of two classes needs that has none."""
    counts, clusters = about.get("row_counts"), about.get("clusters")
    if about.get("kind") != "classes" or len(about.get("labels") or ()) != 2 or not counts or not clusters:
        return ""
    least, unit = math.ceil(1 / _USUAL) - 1, str(about.get("resampled_by", "cluster"))
    return (
        f"no threshold: --threshold fpr={_USUAL:g} chooses one, from {least} rows of the other class in dev or more "
        f"(of documents or groups, {least} of them); dev has {counts['dev']:,} rows of both classes in "
        f"{plural(clusters['dev'], unit)}"
    )
