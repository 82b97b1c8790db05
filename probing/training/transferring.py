"""Scores probes that were trained on one corpus on another, for every ordered pair of corpora, and compares them with
probes trained on the tested corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from probing._renamed import takes_old_names
from probing.contracts.measure import Measure
from probing.contracts.probe import Probe
from probing.contracts.task import Task
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnknownSite
from probing.labels import Labels
from probing.measures._rows import Tempers, tempers_of
from probing.provenance import digest
from probing.results.probe import Score
from probing.results.transfer import CrossResult, CrossResults, committed
from probing.states.store import Store
from probing.statistics.clusters import Resampler
from probing.system.machine import target_of
from probing.text.corpus import Corpus
from probing.training.fitting import fits_of, unit_id
from probing.training.labelling import input_names
from probing.training.plan import Plan, make_plan
from probing.training.results import NO_SITE
from probing.training.scoring import Sampled, Scores, difference_of, score_label_set, score_of
from probing.training.states import States, site_states, unit_states
from probing.training.units import sweep_results


@dataclass(frozen=True)
class Trained:
    """Holds the fits of one probe (one per seed) and the labels they were trained on.

    Attributes:
        name: name of the source that they were trained on.
        fits: the fits on the task's labels.
        labels: all labels of that source; its train rows were used for training.
        tempers: for each fit, the factors that its log odds are multiplied by, fitted on that source's dev rows; None
            if no measure needs them.
    """

    name: str
    fits: Sequence[Probe]
    labels: Labels
    tempers: Sequence[Tempers] | None

    @classmethod
    def of(cls, name: str, plan: Plan, probe: Probe, states: States) -> Trained:
        """Fit the probe on the labels of a plan's task, once per seed, and return the fits."""
        fits = fits_of(plan, probe, states, (plan.labels,))[0]
        measures = plan.measures_for(probe).values()
        return cls(name, fits, plan.labels, tempers_of(fits, plan.labels, states["dev"], measures))


def crossed(
    plan: Plan, unit: tuple[str, str, Probe], states: States, tested_on: str, sources: Sequence[Trained]
) -> list[CrossResult]:
    """Score every trained probe on the test rows of `plan`, without those whose input is also in the train rows of a
    source, and return the results.

    Probes trained on other sources are compared with the probe that was trained on the tested source.

    Args:
        plan: the planned training on the tested source, whose test rows are scored. All labels must have the same
            classes.
        unit: name of the site, name of the probe, and the probe.
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
        score=replace(score_of(here, kind, resampler), n=len(resampler.rows)),
        difference=None if own is None else _difference(here, own[measure, "test"], kind, resampler),
        known=here.seen if labels.kind == "classes" else None,
        unseen_labels=tuple(labels.classes[code] for code in np.unique(unseen).tolist()),
        unseen_rows=len(unseen),
        train_rows=len(source.labels.rows("train")),
        provenance=dict(plan.provenance) | _known_of(plan),
    )


def _known_of(plan: Plan) -> dict[str, Any]:
    """Return facts that a reader of the result needs and that entered no score: the model's, and how many different
    sentences of test there are.
    """
    counts = plan.facts.get("sentences") or {}
    return {
        name: value
        for name, value in (("model_facts", plan.facts.get("model")), ("sentences", counts.get("test")))
        if value
    }


def _difference(ours: Sampled, own: Sampled, measure: Measure, resampler: Resampler) -> Score:
    return replace(difference_of(ours, own, measure, resampler), n=len(resampler.rows))


Source = tuple[Store | str | Path, Corpus]


@takes_old_names
def transfer(
    sources: Mapping[str, Source],
    *,
    task: str | Task,
    probes: Sequence[str | BaseEstimator] | None = None,
    measures: Sequence[str | Measure] | None = None,
    seeds: int = 1,
    root_seed: int = 0,
    sites: str | Sequence[str] = "*",
    resample_by: str = "auto",
    rows: str | None = None,
    to: str | Path | None = None,
) -> CrossResults:
    """Train every probe on the train split of each source, score it on the test split of every source, and return the
    scores. A source is a corpus with a store of its states.

    Each score is compared with that of the probe trained on the tested source itself (`difference`, on the same rows,
    with an interval from resampling sentences or documents). For measures in bits, probabilities are calibrated on dev
    of the training source. Baselines are scored too, with site "(none)", except those that predict from word forms or
    distances (`word_type`, `linear_order`), which cannot be applied to another corpus. The classes are those of all
    sources together; test rows whose label does not occur in the training source count as wrong.

    Args:
        sources: by name, a store (or its directory) and the corpus it was made from; two or more, all of one model.
        task: a task or its name, the same for every corpus.
        probes, measures, seeds, root_seed, sites, resample_by, rows: as for `train`.
        to: folder for transfer.jsonl, transfer.parquet, and the finished fits, from which a killed run resumes.

    Raises:
        ProvenanceMismatch: a store is of another model or kind of rows, or was made from another corpus than the one
            given.
        DegenerateDesign: two sources have no label in common, or nothing can be learned from the labels.
        UnknownSite: a store lacks a site.
        UnknownName, BadParameter: a name or parameter is wrong.
        CannotReachFile: `to` cannot be used; it is checked before work begins.
    """
    if len(sources) < 2:
        raise BadParameter("transfer needs two sources", needed="two or more", found=", ".join(sources) or "none")
    folder = target_of(to)
    opened = {
        name: (store if not isinstance(store, str | Path) else Store.open(store), corpus)
        for name, (store, corpus) in sources.items()
    }
    trained = {input_name for store, corpus in opened.values() for input_name in _trained(store, corpus)}
    plans = {
        name: make_plan(
            store,
            corpus,
            task=task,
            probes=probes,
            controls=[],
            measures=measures,
            analyses=(),
            seeds=seeds,
            root_seed=root_seed,
            sites=sites,
            resample_by=resample_by,
            rows=rows,
            trained=trained,
        )
        for name, (store, corpus) in opened.items()
    }
    _refuse_other_states(plans)
    _refuse_keyed_probes(plans)
    plans = _united(plans)
    _refuse_strangers(plans)
    if folder is not None:
        sweep_results(folder)
    results = CrossResults("transfer", _all(plans, folder), _shared(plans))
    if folder is not None:
        results.write(folder)
    return results


def _trained(store: Store, corpus: Corpus) -> list[str]:
    """Return the inputs of the train rows of a source."""
    of_chats = "chat" in store.identity["extraction"]
    return input_names([e for e in corpus.examples if e.split == "train"], of_chats=of_chats)


def _shared(plans: Mapping[str, Plan]) -> list[str]:
    """Return what is left out, source by source, because some source trains on it."""
    found = []
    for name, plan in plans.items():
        counts = plan.facts["shared_inputs"].get("test", {})
        if counts.get("rows"):
            left = (
                "left out" if plan.judged("test") is not plan.resamplers["test"] else "all that there are, and scored"
            )
            found.append(f"{name}: {counts['rows']:,} test rows whose input is in train of some source are {left}")
    return found


def _all(plans: Mapping[str, Plan], folder: Path | None) -> list[CrossResult]:
    """Return the results of every unit; the states of a site are read only if one of its units is not yet done."""
    first = next(iter(plans.values()))
    found: list[CrossResult] = []
    for site in (NO_SITE, *first.sites):
        kept: dict[str, States] = {}
        for unit in _units(first, site):
            identity = digest(["transfer", {name: unit_id(plan, *unit) for name, plan in plans.items()}, list(plans)])
            found += committed(folder, identity, lambda unit=unit, kept=kept: _pairs(plans, unit, kept))  # type: ignore[misc]
    return found


def _units(plan: Plan, site: str) -> list[tuple[str, str, Probe]]:
    return [unit for unit in plan.units() if unit[0] == site and _is_portable(unit[2])]


def _is_portable(probe: Probe) -> bool:
    """Return whether the probe's input means the same in every corpus: states, pieces or texts, not codes of a corpus's
    words.
    """
    return probe.input in ("states", "pieces") or probe.input_as_text


def _pairs(plans: Mapping[str, Plan], unit: tuple[str, str, Probe], kept: dict[str, States]) -> list[CrossResult]:
    """Return the results of one probe at one site, trained on every source and scored on every source."""
    site, _, probe = unit
    if not kept and site != NO_SITE:
        kept.update({name: site_states(plan, site) for name, plan in plans.items()})
    states = {name: unit_states(plan, site, probe, kept.get(name, {})) for name, plan in plans.items()}
    trained = [Trained.of(name, plan, probe, states[name]) for name, plan in plans.items()]
    return [result for name, plan in plans.items() for result in crossed(plan, unit, states[name], name, trained)]


def _refuse_other_states(plans: Mapping[str, Plan]) -> None:
    """Refuse stores whose states differ in kind: probes read coordinates, which must mean the same in every store."""
    (first, plan), *others = plans.items()
    for name, other in others:
        for part, one, two in (
            ("model", plan.provenance["model_identity"], other.provenance["model_identity"]),
            ("tokenizer", plan.store.identity.get("tokenizer"), other.store.identity.get("tokenizer")),
            ("rows", plan.provenance["rows"], other.provenance["rows"]),
        ):
            if one != two:
                shown = (plan.provenance["model"], other.provenance["model"]) if part == "model" else (one, two)
                raise ProvenanceMismatch(
                    f"the stores of {first} and {name} have not the same {part}",
                    needed=f"{shown[0]}, as of {first}",
                    found=f"{shown[1]}",
                    where=f"source {name}",
                    next_step="extract both with one model and one recipe",
                )
        if other.sites != plan.sites:
            odd = sorted(set(plan.sites) ^ set(other.sites))
            raise UnknownSite(
                f"{first} and {name} have not the same sites",
                needed=", ".join(plan.sites),
                found=", ".join(odd),
                where=f"source {name}",
                next_step="name sites that both stores have",
            )
        if other.labels.kind != plan.labels.kind:
            raise BadParameter(
                "the task has classes in one source and numbers in another",
                needed=f"{plan.labels.kind}, as {first}",
                found=other.labels.kind,
                where=f"source {name}",
                next_step="name its kind: column:NAME:classes",
            )


def _refuse_keyed_probes(plans: Mapping[str, Plan]) -> None:
    keyed = [name for name, probe in next(iter(plans.values())).probes.items() if not _is_portable(probe)]
    if keyed:
        raise BadParameter(
            f"{keyed[0]} cannot be transferred",
            needed="probes that read states or texts",
            found=keyed[0],
            next_step="leave it out: what it has learned are numbers of one corpus's words",
        )


def _united(plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """Return the plans with every code pointing into the sorted classes of all of them."""
    classes = tuple(sorted({name for plan in plans.values() for name in plan.labels.classes}))
    place = {name: code for code, name in enumerate(classes)}
    found = {}
    for name, plan in plans.items():
        codes = np.array([place[one] for one in plan.labels.classes], np.int64)
        y = codes[plan.labels.y] if classes else plan.labels.y
        found[name] = replace(plan, labels=replace(plan.labels, y=y, classes=classes))
    return found


def _refuse_strangers(plans: Mapping[str, Plan]) -> None:
    for source, plan in plans.items():
        learned = plan.labels.y[plan.labels.rows("train")]
        for target, other in plans.items() if plan.labels.kind == "classes" else ():
            if not np.isin(other.labels.y[other.labels.rows("test")], learned).any():
                shown = ", ".join(other.labels.classes[code] for code in np.unique(other.labels.y)[:10].tolist())
                raise DegenerateDesign(
                    f"no test label of {target} occurs in the training rows of {source}",
                    needed="labels named alike in all sources",
                    found=shown,
                    where=f"task {plan.task}",
                    next_step="map the labels of one corpus to those of the other",
                )
