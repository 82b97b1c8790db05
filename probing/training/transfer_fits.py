"""Training on one source and scoring on another: the fits of each source, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure
from probing.contracts.probe import Probe
from probing.labels import Labels
from probing.measures._temperatures import Tempers, tempers_of
from probing.results.probe import Score
from probing.results.transfer import CrossResult
from probing.statistics.clusters import Resampler
from probing.training.fitting import fits_of
from probing.training.plan import Plan
from probing.training.scoring import Sampled, Scores, score_label_set
from probing.training.states import States


@dataclass(frozen=True)
class Trained:
    """Holds the fits of one probe (one per seed) and the labels they were trained on.

    Attributes:
        name: name of the source that they were trained on.
        fits: the fits on the task's labels.
        labels: all labels of that source; its train rows were used for training.
        tempers: scaling factor of each fit's log odds, fitted on that source's dev rows.
    """

    name: str
    fits: Sequence[Probe]
    labels: Labels
    tempers: Sequence[Tempers] | None

    @classmethod
    def of(cls, name: str, plan: Plan, probe: Probe, states: States) -> Trained:
        """Fit the probe on the task's labels in a plan, and return the fits."""
        fits = fits_of(plan, probe, states, (plan.labels,))[0]
        measures = plan.measures_for(probe).values()
        return cls(name, fits, plan.labels, tempers_of(fits, plan.labels, states["dev"], measures))


def crossed(
    plan: Plan, unit: tuple[str, str, Probe], states: States, tested_on: str, sources: Sequence[Trained]
) -> list[CrossResult]:
    """Score every trained probe on those test rows of `plan` whose input is not in the train rows of any source, and
    return the results.

    The others are compared with the probe that was trained on the plan's own rows.

    Args:
        plan: plan whose test rows are scored. All labels must have the same classes.
        unit: site, name and probe.
        states: states of the plan's rows at the site.
        tested_on: name of the plan's source.
        sources: the trained probes.
    """
    measures, resampler = plan.measures_for(unit[2]), plan.judged("test")
    known = [np.isin(plan.labels.y, source.labels.y[source.labels.rows("train")]) for source in sources]
    scores = [
        score_label_set(
            source.fits,
            plan.labels,
            states,
            measures,
            {"test": resampler},
            seen=mask if plan.labels.kind == "classes" else None,
            tempers=source.tempers,
        )
        for source, mask in zip(sources, known, strict=True)
    ]
    own = next((of for source, of in zip(sources, scores, strict=True) if source.name == tested_on), None)
    return [
        _result(plan, unit, name, tested_on, source, of_source, None if of_source is own else own, mask)
        for source, of_source, mask in zip(sources, scores, known, strict=True)
        for name in measures
    ]


def _result(
    plan: Plan,
    unit: tuple[str, str, Probe],
    measure: str,
    tested_on: str,
    source: Trained,
    scores: Scores,
    own: Scores | None,
    known: NDArray[np.bool_],
) -> CrossResult:
    resampler, labels = plan.judged("test"), plan.labels
    here, kind = scores[measure, "test"], plan.measures[measure]
    unseen = labels.y[resampler.rows][~known[resampler.rows]] if labels.kind == "classes" else np.empty(0, np.int64)
    return CrossResult(
        task=plan.task,
        site=unit[0],
        probe=unit[1],
        measure=measure,
        trained_on=source.name,
        tested_on=tested_on,
        score=_score(here.value, here.samples, kind, resampler),
        difference=None if own is None else _difference(here, own[measure, "test"], kind, resampler),
        known=here.seen if labels.kind == "classes" else None,
        unseen_labels=tuple(labels.classes[code] for code in np.unique(unseen).tolist()),
        unseen_rows=len(unseen),
        train_rows=len(source.labels.rows("train")),
        provenance=dict(plan.provenance),
    )


def _difference(ours: Sampled, own: Sampled, measure: Measure, resampler: Resampler) -> Score:
    sign = 1.0 if measure.higher_is_better else -1.0
    return _score(sign * (ours.value - own.value), sign * (ours.samples - own.samples), measure, resampler, least=-1.0)


def _score(
    value: float, samples: NDArray[np.float64], measure: Measure, resampler: Resampler, *, least: float = 0.0
) -> Score:
    low, high = resampler.bounds(value, samples[None], unit=measure.unit, least=least)
    return Score(value, low, high, n=len(resampler.rows), unit=measure.unit)
