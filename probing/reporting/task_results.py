"""TaskResults: the results of one task in the order of sites, its best site, and distinct names of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from probing.errors import UnknownSite
from probing.models.site import Site
from probing.reporting.wording import plural
from probing.results.analysis import AnalysisResult
from probing.results.features import FeatureScores, features_of, is_features
from probing.results.models import UNNAMED, ModelFacts
from probing.results.probe import Comparison, Gain, MeasureResult, ProbeResult, Score


def model_of(result: ProbeResult) -> str:
    """Return the full name of the model whose states were read."""
    return str(result.provenance.get("model") or UNNAMED)


def run_names(groups: Sequence[Sequence[ProbeResult]]) -> list[str]:
    """Return a name for each group of results of one task: the model, followed by the settings that differ from other
    groups of that model.

    Such a name is `gpt2 [revision 607a30d783df, float32]`; if the same model was probed twice, `…, 3 seeds` and `…, 1
    seed`.
    """
    models = [model_of(group[0]) for group in groups]
    told = []
    for group, model in zip(groups, models, strict=True):
        others = [other for other, name in zip(groups, models, strict=True) if name == model and other is not group]
        own = [said(group) for said in _SETTINGS if any(said(group) != said(other) for other in others)]
        told.append(", ".join([ModelFacts.of_result(group[0]).label, *filter(None, own)]))
    return told


def not_saved(results: Sequence[ProbeResult], before: str = "not saved: ") -> list[str]:
    """Return a phrase for each probe on states that was not saved, with the reason; `before` is put in front."""
    reasons = {r.probe: str(r.provenance["not_saved"]) for r in results if r.provenance.get("not_saved")}
    return [f"{before}probe {probe} ({reason})" for probe, reason in reasons.items()]


def distinct(parts: Sequence[Sequence[str]]) -> list[str]:
    """Return a unique name for each entry: its first part, followed by the fewest further parts that make it unique."""
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


NO_SITE = "(none)"
_PRIMARY = ("uas", "uuas", "accuracy", "r2")
_STREAM = ("embed", "resid", "final_norm")


@dataclass(frozen=True)
class ScoresOnTest:
    """Holds what tables show of one result on test: its score by the primary measure; score, ceiling and selectivity
    of one control; and the gain over the best baseline. None: not measured.
    """

    score: Score | None = None
    control: Score | None = None
    ceiling: float | None = None
    selectivity: Score | None = None
    gain: Score | None = None


@dataclass(frozen=True)
class TaskResults:
    """Holds all results of one run on one task, from one model's states with one set of settings.

    Attributes:
        task: the task's name.
        title: name of the task, followed by that of the run if the task was run several times.
        states: full name of the model, followed by the settings that distinguish this run from others on that model.
        kind: `classes` or `real`.
        results: results of probes on states, ordered by site along the forward pass, then by probe.
        baselines: results of probes that read no states (site "(none)").
        primary: name of the measure by which sites are chosen: the first of UAS, UUAS, accuracy and R² that was scored,
            else the first measure.
        analyses: results of analyses of this task, in the order of sites along the forward pass.
    """

    task: str
    title: str
    states: str
    kind: str
    results: tuple[ProbeResult, ...]
    baselines: tuple[ProbeResult, ...]
    primary: str
    analyses: tuple[AnalysisResult, ...] = ()

    @property
    def position(self) -> str:
        """Position whose states were read, if the store has several and the name of the task ends in it; else ""."""
        rows = str(self.any.provenance.get("rows") or "")
        position = rows.removeprefix("position:") if rows.startswith("position:") else ""
        return position if position and self.task.endswith(f" at {position}") else ""

    @property
    def label(self) -> str:
        """Name of the task without its position, as in results of use."""
        return self.task.removesuffix(f" at {self.position}") if self.position else self.task

    def analyses_by_kind(self) -> dict[tuple[str, str], list[AnalysisResult]]:
        """Return the results of analyses, grouped by (analysis, probe), but for comparisons of dictionaries."""
        groups: dict[tuple[str, str], list[AnalysisResult]] = {}
        for result in filter(lambda one: not is_features(one), self.analyses):
            groups.setdefault((result.analysis, result.probe), []).append(result)
        return groups

    @property
    def features(self) -> list[FeatureScores]:
        """Comparisons of dictionaries with the states that they are of."""
        return features_of(self.analyses)

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites of the results, along the forward pass."""
        return tuple(dict.fromkeys(result.site for result in self.results))

    @property
    def probes(self) -> tuple[str, ...]:
        """Names of the probes on states, in the order of first occurrence."""
        return tuple(dict.fromkeys(result.probe for result in self.results))

    @property
    def any(self) -> ProbeResult:
        """One of the results, for the entries that all share: facts, provenance, classes."""
        return (self.results or self.baselines)[0]

    @property
    def all(self) -> tuple[ProbeResult, ...]:
        """All results: first those of probes on states, then those of baselines."""
        return self.results + self.baselines

    @cached_property
    def model(self) -> ModelFacts:
        """Facts of the model whose states were read."""
        return ModelFacts.of_result(self.any)

    @cached_property
    def chosen_on(self) -> str:
        """Split on which the best site is chosen: dev, or test if dev was not scored."""
        scored = all(score(result, self.primary, "dev") is not None for result in self.results)
        return "dev" if scored else "test"

    @property
    def secondary(self) -> str | None:
        """Second measure shown in tables: log loss if it was scored, else Spearman, else the next one scored."""
        names = list(dict.fromkeys(m.measure for result in self.all for m in result.measures))
        wanted = [name for name in ("log_loss", "spearman", *names) if name in names and name != self.primary]
        return wanted[0] if wanted else None

    def best(self, probe: str | None = None) -> ProbeResult | None:
        """Return the result with the best primary score on dev, among the results of one probe or of all (the first of
        equal ones); None if there is none.
        """
        split = self.chosen_on
        scored = [
            (result, found)
            for result in self.results
            if probe in (None, result.probe)
            if (found := score(result, self.primary, split)) is not None
        ]
        if not scored:
            return None
        return max(scored, key=lambda pair: pair[1].score.value * (1 if pair[1].higher_is_better else -1))[0]

    def at(self, site: str, probe: str) -> ProbeResult | None:
        """Return the result of one probe at one site; None if there is none."""
        return next((r for r in self.results if (r.site, r.probe) == (site, probe)), None)

    def controls(self) -> tuple[str, ...]:
        """Return the names of the controls against which selectivity is defined, in the order of first occurrence."""
        return _control_names(self.results, self.primary, lambda c: c.is_selectivity)

    @cached_property
    def _first_control(self) -> str | None:
        return next(iter(self.controls()), None)

    def on_test(self, result: ProbeResult | None, control: str = "") -> ScoresOnTest:
        """Return the scores of a result on test, beside those of a control ("": of the first)."""
        measured = score(result, self.primary) if result else None
        if measured is None:
            return ScoresOnTest()
        gain, against = measured.least_gain, comparison(measured, control or self._first_control)
        return ScoresOnTest(
            measured.score,
            against.score if against else None,
            against.ceiling if against else None,
            against.selectivity if against else None,
            gain.gain if gain else None,
        )

    def columns(self, control: str = "") -> tuple[str, ...]:
        """Return the fields of `ScoresOnTest` that some result has, the score among them always."""
        every = [self.on_test(result, control) for result in self.all]
        names = (field.name for field in fields(ScoresOnTest))
        return tuple(n for n in names if n == "score" or any(getattr(one, n) is not None for one in every))

    def chance_checks(self) -> tuple[str, ...]:
        """Return the names of the chance checks, in the order of first occurrence."""
        return _control_names(self.results, self.primary, lambda c: not c.is_selectivity and not c.above)

    def state_controls(self) -> tuple[str, ...]:
        """Return the names of the controls that keep the labels and replace the states, in the order of first
        occurrence.
        """
        return _control_names(self.results, self.primary, lambda c: bool(c.above))


def score(result: ProbeResult, measure: str, split: str = "test") -> MeasureResult | None:
    """Return the result of one measure on a split, restricted to the rows that are judged (see
    `ProbeResult.judged_split`); None if it was not scored.
    """
    judged = result.judged_split(split)
    return next((m for m in result.measures if (m.measure, m.split) == (measure, judged)), None)


def comparison(found: MeasureResult | None, control: str | None) -> Comparison | None:
    """Return the comparison with one control, or None if there is none."""
    return next((c for c in (found.comparisons if found else ()) if c.control == control), None)


def least_gain(found: MeasureResult | None) -> Gain | None:
    """Return the gain over the best baseline, which is the smallest gain."""
    return found.least_gain if found else None


def place_of(result: ProbeResult) -> str:
    """Return the site of a result, or `baseline` if its probe reads no state."""
    return "baseline" if result.site == NO_SITE else result.site


def by_task(results: Iterable[ProbeResult], analyses: Iterable[AnalysisResult] = ()) -> list[TaskResults]:
    """Return the results grouped by task and run, in the order in which tasks first occur, with their analyses."""
    groups: dict[tuple[str, str], list[ProbeResult]] = {}
    for result in results:
        groups.setdefault((result.task, _run(result)), []).append(result)
    told: dict[tuple[str, str], list[AnalysisResult]] = {}
    for analysis in analyses:
        told.setdefault((analysis.task, _run(analysis)), []).append(analysis)
    # Models of a task in an order of their own, so that the order in which they were trained changes nothing.
    tasks = list(dict.fromkeys(task for task, _ in groups))
    order = {key: (tasks.index(key[0]), *ModelFacts.of_result(group[0]).order[:4]) for key, group in groups.items()}
    groups = {key: groups[key] for key in sorted(groups, key=order.__getitem__)}
    states = _states(groups)
    titles = distinct([(task, states[task, run], run[:12]) for task, run in groups])
    return [
        _task_results(key[0], title, states[key], group, told.get(key, []))
        for title, (key, group) in zip(titles, groups.items(), strict=True)
    ]


def _states(groups: Mapping[tuple[str, str], Sequence[ProbeResult]]) -> dict[tuple[str, str], str]:
    """Return which model's states each run of a task read."""
    named: dict[tuple[str, str], str] = {}
    for task in dict.fromkeys(task for task, _ in groups):
        keys = [key for key in groups if key[0] == task]
        named |= dict(zip(keys, run_names([groups[key] for key in keys]), strict=True))
    return named


def _task_results(
    task: str, title: str, states_of: str, group: Sequence[ProbeResult], analyses: Sequence[AnalysisResult]
) -> TaskResults:
    states = sorted((r for r in group if r.site != NO_SITE), key=lambda r: site_order(r.site))
    baselines = sorted((r for r in group if r.site == NO_SITE), key=lambda r: r.probe)
    ordered = sorted(analyses, key=lambda one: site_order(one.site))
    primary = _primary(states or baselines)
    return TaskResults(task, title, states_of, group[0].kind, tuple(states), tuple(baselines), primary, tuple(ordered))


def _primary(results: Sequence[ProbeResult]) -> str:
    names = [m.measure for m in results[0].measures]
    return next((name for name in (*_PRIMARY, *names) if name in names), _PRIMARY[0])


def _run(result: ProbeResult | AnalysisResult) -> str:
    """Return the id that results share which make one table; of older ones the store."""
    return str(result.provenance.get("run") or result.provenance.get("store_id") or "")


def _control_names(
    results: Sequence[ProbeResult], measure: str, wanted: Callable[[Comparison], bool]
) -> tuple[str, ...]:
    found = (score(result, measure) for result in results)
    names = (c.control for m in found if m for c in m.comparisons if wanted(c))
    return tuple(dict.fromkeys(names))


def site_order(site: str) -> tuple[int, int, int, str]:
    """Return a sort key that puts sites along the forward pass: embedding, residual stream and final norm, then other
    streams, then all other names.
    """
    stream, layer = split_site(site)
    if stream in _STREAM:
        return 0, _STREAM.index(stream), layer, site
    known = Site.parse(site).order if stream else (99, 0, "")
    return 1, known[0], layer, site


def split_site(site: str) -> tuple[str, int]:
    """Return stream and layer of a site, such as `("resid", 6)`; the layer is -1 if there is none, and the stream is
    empty if the name is not of a site.
    """
    try:
        parsed = Site.parse(site)
    except UnknownSite:
        return "", -1
    return parsed.stream, -1 if parsed.layer is None else parsed.layer


def connected(one: str, other: str) -> bool:
    """Return whether a chart may join two neighbouring sites by a line: both are of the same stream, or both among
    `embed`, `resid` and `final_norm`.
    """
    first, second = split_site(one)[0], split_site(other)[0]
    return first == second or (first in _STREAM and second in _STREAM)
