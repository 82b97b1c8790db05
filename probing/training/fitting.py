"""Does the parts of one unit of a training run: fits a probe at a site on the task and on every control draw, scores
it, and writes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.analysis import Analysis, SiteData
from probing.contracts.probe import Probe
from probing.errors import ProbingError
from probing.labels import Labels
from probing.measures._rows import Tempers, predict, tempers_of
from probing.provenance import digest
from probing.recipes import full_recipe
from probing.results.analysis import AnalysisResult
from probing.results.probe import ProbeResult
from probing.statistics.clusters import EVALUATED
from probing.text.corpus import SPLITS
from probing.training.build import BESIDE_NON_LINEAR, StateSet
from probing.training.plan import Plan, recipe_of, run_id
from probing.training.results import NO_SITE
from probing.training.scoring import ControlScores, Scores, kept, measure_results, score_label_set
from probing.training.states import States, held, site_states, stateless
from probing.training.units import card_facts, commit_analysis, commit_unit, threshold_of, with_saved_probe

Unit = tuple[str, str, Probe]  # site, name, probe


@dataclass(frozen=True)
class OtherFits:
    """Holds the fits of a probe on the states of one state control: scores, number of fits, and whether all
    converged.
    """

    name: str
    scores: ControlScores
    fit_count: int
    converged: bool


def unit_id(plan: Plan, site: str, name: str, probe: Probe) -> str:
    """Return the hash of everything that determines one result."""
    return digest([recipe_of(plan, site, name, probe), dict(plan.provenance)])


def analysis_id(plan: Plan, analysis: Analysis, unit: Unit) -> str:
    """Return the hash of everything that determines the result of one analysis."""
    return digest([full_recipe(analysis), unit_id(plan, *unit)])


def baseline_scores(plan: Plan) -> dict[str, Scores]:
    """Fit the baselines on the task and return their scores by name; gains are computed over these."""
    scores: dict[str, Scores] = {}
    for name, probe in plan.baselines.items():
        states = stateless(plan, probe)
        (fits,) = fits_of(plan, probe, states, (plan.labels,))
        measures = plan.measures_for(probe)
        tempers = tempers_of(fits, plan.labels, states["dev"], measures.values())
        scores[name] = score_label_set(
            fits, plan.labels, states, measures, plan.resamplers, seen=plan.seen, tempers=tempers
        )
    return scores


def score_unit(
    plan: Plan,
    unit: Unit,
    fits: Sequence[Sequence[Probe]],
    states: States,
    baselines: Mapping[str, Scores],
    others: Sequence[OtherFits],
    folder: Path | None,
) -> ProbeResult:
    """Score the fits of one probe at one site, commit the result and return it.

    Args:
        plan: plan of the run.
        unit: site, name and probe.
        fits: fits as `fits[label set][seed]`, of the task's labels and of those of all control draws.
        states: input of the probe by split.
        baselines: scores of the baselines.
        others: the probe's fits on the states of state controls.
        folder: folder of the results; None writes nothing.
    """
    site, name, probe = unit
    measures = plan.measures_for(probe)
    sets = list(zip(fits, plan.label_sets, strict=True))
    tempers = [tempers_of(fits_of_set, labels, states["dev"], measures.values()) for fits_of_set, labels in sets]
    scored = [
        score_label_set(
            fits_of_set,
            labels,
            states,
            measures,
            plan.resamplers,
            seen=plan.seen if index == 0 else labels.seen,
            tempers=tempers[index],
        )
        for index, (fits_of_set, labels) in enumerate(sets)
    ]
    draws = iter(scored[1:])
    left_out = set(BESIDE_NON_LINEAR) - set(plan.beside(probe))
    compared = {name: scores for name, scores in baselines.items() if name not in left_out}
    controls = {
        one.name: ControlScores(
            one.control.is_selectivity,
            [labels.ceiling for labels in one.draws],
            [next(draws) for _ in one.draws],
            ceilings_of="accuracy" if plan.labels.choice is None else "uas",
            permutes=one.draws[0].origin is not None,
        )
        for one in plan.controls
    } | {one.name: one.scores for one in others}
    result = ProbeResult(
        task=plan.task,
        kind=plan.labels.kind,
        site=site,
        probe=name,
        measures=measure_results(scored[0], controls, compared, measures, plan.resamplers),
        seed_count=len(plan.seeds),
        draw_count=_most_draws(plan),
        fit_count=sum(map(len, fits)) + sum(one.fit_count for one in others),
        classes=plan.labels.classes,
        confusion=_confusion(plan.labels, fits[0][0], states["test"]),
        converged=all(has_converged(fits_of_set) for fits_of_set in fits) and all(one.converged for one in others),
        facts=dict(plan.facts),
        provenance=_provenance(plan, unit) | _temperatures(tempers[0]),
    )
    threshold = threshold_of(plan, plan.threshold, fits[0][0], states) if site != NO_SITE else None
    card = card_facts(plan, probe, result.measures, threshold) | _temperatures(tempers[0])
    result, files = with_saved_probe(result, fits[0][0], card)
    commit_unit(folder, result, files, kept(scored[0], plan.resamplers))
    return result


def run_analysis(
    plan: Plan, name: str, unit: Unit, states: States, given: States | None, folder: Path | None
) -> AnalysisResult:
    """Run one analysis of one probe at one site, commit its result and return it."""
    site, probe_name, probe = unit
    analysis = plan.analyses[name]
    data = _judged(
        SiteData(
            site=site,
            states=states,
            labels=plan.labels,
            controls={one.name: one.draws for one in plan.controls},
            given=given,
            seeds=plan.seeds,
            resamplers=plan.resamplers,
            chance_checks=frozenset(one.name for one in plan.controls if not one.control.is_selectivity),
            others={
                one.name: partial(_other_states, plan, site, one)
                for one in plan.state_controls
                if one.source.stand_in(site)
            },
        )
    )
    result = AnalysisResult(
        analysis=name,
        task=plan.task,
        site=site,
        probe=probe_name,
        points=tuple(analysis.run(probe, data)),
        settings=dict(analysis.settings(data)),
        provenance=dict(plan.provenance)
        | {"unit": analysis_id(plan, analysis, unit), "run": run_id(plan), "recipe": full_recipe(analysis)},
    )
    commit_analysis(folder, result)
    return result


def _other_states(plan: Plan, site: str, control: StateSet) -> States:
    """Return the states of the first draw of a state control at a site, by split."""
    return held(site_states(plan, site, partial(control.source.read, draw=0)))


def _judged(data: SiteData) -> SiteData:
    """Return the data without the rows of dev and test whose input is in train, where these are counted apart."""
    new = {one.base: one for one in data.resamplers.values() if one.split != one.base}
    if not new:
        return data
    rows = [new[split].rows if split in new else data.labels.rows(split) for split in SPLITS]
    kept = np.sort(np.concatenate(rows))
    labels = data.labels.take(kept)

    def of(states: States | None) -> Any:
        return states and {split: X[new[split].within] if split in new else X for split, X in states.items()}

    resamplers = {
        split: replace(one, split=split, rows=labels.rows(split), within=np.arange(len(one.rows)))
        for split, one in (dict(data.resamplers) | new).items()
        if split in EVALUATED
    }
    controls = {name: tuple(draw.take(kept) for draw in draws) for name, draws in data.controls.items()}
    others = {name: lambda read=read: of(read()) for name, read in data.others.items()}
    return replace(
        data,
        states=of(data.states),
        labels=labels,
        controls=controls,
        given=of(data.given),
        resamplers=resamplers,
        others=others,
    )


def has_converged(fits: Sequence[Probe]) -> bool:
    """Return whether every fit converged; fits that do not report it count as converged."""
    return all(bool(getattr(fit, "converged_", True)) for fit in fits)


def fits_of(plan: Plan, probe: Probe, states: States, label_sets: Sequence[Labels]) -> list[list[Probe]]:
    """Fit a probe and return the fits as `fits[label set][seed]`; a deterministic probe is fitted with one
    seed only.
    """
    return probe.fit_many(**fit_arguments(plan, probe, states, label_sets))


def fit_arguments(plan: Plan, probe: Probe, states: States, label_sets: Sequence[Labels]) -> dict[str, Any]:
    """Return the arguments of `Probe.fit_many`: states, labels and seeds; one seed only for a deterministic probe."""
    train, dev = ([labels.y[labels.rows(split)] for labels in label_sets] for split in ("train", "dev"))
    seeds = plan.seeds if probe.stochastic else plan.seeds[:1]
    return {"X": states["train"], "targets": train, "seeds": seeds, "dev": (states["dev"], dev)}


def _most_draws(plan: Plan) -> int:
    counts = [one.draw_count for one in plan.controls] + [one.draw_count for one in plan.state_controls]
    return max(counts, default=0)


def _provenance(plan: Plan, unit: Unit) -> dict[str, Any]:
    return dict(plan.provenance) | {
        "recipe": recipe_of(plan, *unit),
        "unit": unit_id(plan, *unit),
        "run": run_id(plan),
    }


def _temperatures(tempers: Sequence[Tempers] | None) -> dict[str, Any]:
    """Return, for the provenance, the numbers that the log odds of each seed's fit are multiplied by."""
    return {} if tempers is None else {"temperatures": [one.temperatures.tolist() for one in tempers]}


def _confusion(labels: Labels, fit: Probe, X: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """Return counts on test, true classes by predicted classes; empty for targets of another kind."""
    n_classes = len(labels.classes)
    if labels.kind != "classes":
        return ()
    test = labels.take(labels.rows("test"))
    cells = np.bincount(test.y * n_classes + predict(fit, X, test).values, minlength=n_classes**2)
    return tuple(tuple(row) for row in cells.reshape(n_classes, n_classes).tolist())


_Done = tuple[Scores, int, bool]  # scores, how many fits, whether all converged


@dataclass
class OtherStates:
    """Fits probes on the states of state controls, and caches each fit by probe, control, draw and name of the states,
    so that sites with the same control states share the fit.

    A fit is the same, bit for bit, in every process, so it makes no difference which process computes it.
    """

    plan: Plan
    _known: dict[tuple[str, str, int, str], _Done] = field(default_factory=dict)

    def fits(self, unit: Unit) -> list[OtherFits]:
        """Return the fits of one probe on every state control that has states for its site; an empty list for a probe
        that does not read a single state per row.
        """
        site, name, probe = unit
        if probe.input != "states":
            return []
        return [
            self._of_control(one, site, name, probe) for one in self.plan.state_controls if one.source.stand_in(site)
        ]

    def _of_control(self, one: StateSet, site: str, name: str, probe: Probe) -> OtherFits:
        done = []
        for draw in range(one.draw_count):
            key = name, one.name, draw, one.source.stand_in(site)
            if key not in self._known:
                self._known[key] = self._fitted(one, site, probe, draw)
            done.append(self._known[key])
        scores = [scored for scored, _, _ in done]
        return OtherFits(
            one.name,
            ControlScores(False, [None] * len(scores), scores, above=one.source.above),
            sum(count for _, count, _ in done),
            all(converged for _, _, converged in done),
        )

    def _fitted(self, one: StateSet, site: str, probe: Probe, draw: int) -> _Done:
        plan = self.plan
        try:
            states = site_states(plan, site, partial(one.source.read, draw=draw))
        except ProbingError as error:
            error.add_note(f"the states are those of the control {one.name}")
            raise
        (fits,) = fits_of(plan, probe, states, (plan.labels,))
        seen = plan.seen if one.source.seen is None else one.source.seen
        measures = plan.measures_for(probe)
        tempers = tempers_of(fits, plan.labels, states["dev"], measures.values())
        scores = score_label_set(fits, plan.labels, states, measures, plan.resamplers, seen=seen, tempers=tempers)
        return scores, len(fits), has_converged(fits)
