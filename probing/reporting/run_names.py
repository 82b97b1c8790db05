"""Names of the runs in one folder: the model, and the settings in which runs of one task on one model differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probing.reporting.wording import plural
from probing.results.probe import ProbeResult

_UNNAMED = "a model that is not named"


def model_of(result: ProbeResult) -> str:
    """Return the full name of the model whose states were read."""
    return str(result.provenance.get("model") or _UNNAMED)


def run_names(groups: Sequence[Sequence[ProbeResult]]) -> list[str]:
    """Return, for each group of results of one task, the model and after it the settings that set it apart from other
    groups of that model.

    `gpt2 [revision 607a30d783df, float32]`; where the same model was probed twice, `…, 3 seeds` beside `…, 1 seed`.
    """
    models = [model_of(group[0]) for group in groups]
    told = []
    for group, model in zip(groups, models, strict=True):
        others = [other for other, name in zip(groups, models, strict=True) if name == model and other is not group]
        own = [said(group) for said in _SETTINGS if any(said(group) != said(other) for other in others)]
        told.append(", ".join([model, *filter(None, own)]))
    return told


def not_saved(results: Sequence[ProbeResult], before: str = "not saved: ") -> list[str]:
    """Return which probes of states have no file, and why."""
    reasons = {r.probe: str(r.provenance["not_saved"]) for r in results if r.provenance.get("not_saved")}
    return [f"{before}probe {probe} ({reason})" for probe, reason in reasons.items()]


def distinct(parts: Sequence[Sequence[str]]) -> list[str]:
    """Return a name for each: its first part, and as many more parts as make it unique."""
    named = []
    for own in parts:
        lengths = range(1, len(own) + 1)
        alone = (n for n in lengths if sum(other[:n] == own[:n] for other in parts) == 1)
        named.append(", ".join(filter(None, own[: next(alone, len(own))])))
    return named


def _provenance(group: Sequence[ProbeResult]) -> Mapping[str, Any]:
    return group[0].provenance


def _controls(group: Sequence[ProbeResult]) -> str:
    names = dict.fromkeys(c.control for r in group for m in r.measures for c in m.comparisons)
    draws = plural(group[0].draw_count, "draw")
    return f"controls {', '.join(names)} ({draws})" if names else "no control"


def _measures(group: Sequence[ProbeResult]) -> str:
    return f"measures {', '.join(dict.fromkeys(m.measure for r in group for m in r.measures))}"


def _hash_of(key: str, title: str) -> Callable[[Sequence[ProbeResult]], str]:
    return lambda group: f"{title} {str(_provenance(group).get(key) or '')[:12]}".strip()


_SETTINGS: tuple[Callable[[Sequence[ProbeResult]], str], ...] = (
    lambda group: f"rows {_provenance(group).get('rows')}",
    lambda group: plural(group[0].seed_count, "seed"),
    lambda group: f"root seed {_provenance(group).get('root_seed')}",
    lambda group: f"resampled by {_provenance(group).get('cluster')}",
    _controls,
    _measures,
    _hash_of("store_id", "store"),
    _hash_of("content_id", "content"),
    _hash_of("corpus", "corpus"),
    _hash_of("labels", "labels"),
    lambda group: f"scores of version {_provenance(group).get('version')}",
)
