"""Plan: everything a training run needs, as built objects, checked before anything is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from probing.contracts import Analysis, Control, Measure, Probe, Task
from probing.corpus import SPLITS, Corpus
from probing.design import Kind, Labels, check_laid_out
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch
from probing.predicting import gives_probabilities
from probing.provenance import digest
from probing.resampling import EVALUATED, Resampler
from probing.seeds import child_seed
from probing.site import select_sites
from probing.specs import build_task, full_recipe, spec_of
from probing.statistics import RESAMPLES
from probing.store import Store
from probing.training.doubts import doubts
from probing.training.labelling import facts, label_rows
from probing.training.members import (
    ControlSet,
    built_analyses,
    built_baselines,
    built_controls,
    built_measures,
    built_probes,
)
from probing.training.pooling import PositionStore, with_rows
from probing.training.results import NO_SITE
from probing.training.units import VERSION, labels_digest


@dataclass(frozen=True)
class Plan:
    """What is fitted on what. Names are those shown in results.

    Attributes:
        store, sites: where states come from.
        labels: of the task; `controls` hold the labels of every draw.
        probes, baselines: unfitted, by name. Baselines read no states.
        analyses: by name, each run on every probe that it can read.
        measures: by name. `chosen_measures`: whether the caller named them.
        seeds: one child seed per seed asked for.
        resamplers: by split.
        seen: `(N,)` whether the row's type (of a choice, its word a) occurs in train; None for sentence rows.
        facts: of the data.
        provenance: what all results of the run share.
    """

    store: Store
    sites: tuple[str, ...]
    task: str
    labels: Labels
    probes: Mapping[str, Probe]
    baselines: Mapping[str, Probe]
    controls: tuple[ControlSet, ...]
    measures: Mapping[str, Measure]
    chosen_measures: bool
    analyses: Mapping[str, Analysis]
    seeds: tuple[int, ...]
    resamplers: Mapping[str, Resampler]
    seen: NDArray[np.bool_] | None
    facts: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def label_sets(self) -> tuple[Labels, ...]:
        """The task's labels, then every draw of every control."""
        return (self.labels, *(draw for control in self.controls for draw in control.draws))

    def units(self) -> list[tuple[str, str, Probe]]:
        """(site, name, probe) of everything to fit: at site "(none)" what reads no states, then each site's probes."""
        stateless = {name: probe for name, probe in self.probes.items() if not reads_states(name, probe)}
        reading = {name: probe for name, probe in self.probes.items() if name not in stateless}
        found = [(NO_SITE, name, probe) for name, probe in (dict(self.baselines) | stateless).items()]
        return found + [(site, name, probe) for site in self.sites for name, probe in reading.items()]

    def analysis_units(self) -> list[tuple[str, tuple[str, str, Probe]]]:
        """(analysis, unit) of everything to analyse, site by site."""
        reading = [unit for unit in self.units() if unit[0] != NO_SITE]
        return [(name, unit) for unit in reading for name, one in self.analyses.items() if one.accepts(unit[2])]

    def measures_for(self, probe: Probe) -> dict[str, Measure]:
        """The measures this probe can be scored by.

        Raises:
            BadParameter: a measure that the caller named needs probabilities the probe does not give.
        """
        if gives_probabilities(probe):
            return dict(self.measures)
        left_out = [name for name, measure in self.measures.items() if measure.reads_probabilities]
        if left_out and self.chosen_measures:
            raise BadParameter(
                f"{left_out[0]} needs probabilities", found=f"{spec_of(probe)}, which gives none",
                next_step="leave the measure out, or use another probe",
            )  # fmt: skip
        return {name: measure for name, measure in self.measures.items() if name not in left_out}


def reads_states(name: str, probe: Probe) -> bool:
    """Whether the probe has to be fitted at every site."""
    return probe.reads == "states" and name.partition(":")[0] != "prior"


def make_plan(
    store: Store,
    corpus: Corpus,
    *,
    task: str | Task,
    probes: Sequence[str | BaseEstimator] | None,
    controls: Sequence[str | Control] | None,
    measures: Sequence[str | Measure] | None,
    analyses: Sequence[str | Analysis],
    seeds: int,
    root_seed: int,
    sites: str | Sequence[str],
    cluster: str,
    rows: str | None,
) -> Plan:
    """Build and check everything.

    Raises:
        ProvenanceMismatch: the store was made from another corpus.
        UnknownName, BadParameter: names and parameters.
        DegenerateDesign: labels from which nothing can be learned.
    """
    if seeds < 1:
        raise BadParameter("seeds must be at least 1", needed="1 or more", found=str(seeds))
    _refuse_other_corpus(store, corpus)
    chosen_sites = select_sites(sites, store.sites)
    built_task = build_task(task, corpus) if isinstance(task, str) else task
    name = task.strip() if isinstance(task, str) else spec_of(task)
    built_task.prepare(corpus)
    inputs, unknown = store.inputs, store.unknown_pieces
    store = with_rows(store, corpus, rows, built_task.read_from)
    if isinstance(store, PositionStore) and store.one_of_several:
        name = f"{name} at {store.one_of_several}"  # so that one folder can hold the results of all
    kind: Kind = built_task.kind
    scope = store.identity["extraction"]["rows"].partition(":")[0]
    labels = label_rows(store.rows, scope, corpus, built_task, cluster=cluster)
    _refuse_constant_target(labels)
    named_probes = built_probes(built_task.probes or None if probes is None else probes, labels)
    _refuse_large(store, chosen_sites, labels, named_probes)
    named_measures = built_measures(built_task.measures or None if measures is None else measures, labels)
    controls = built_task.controls or None if controls is None else controls
    plan = Plan(
        store=store, sites=chosen_sites, task=name, labels=labels, probes=named_probes,
        baselines=built_baselines(labels), controls=built_controls(controls, labels, root_seed),
        measures=named_measures, chosen_measures=measures is not None, analyses=built_analyses(analyses, kind),
        seeds=tuple(child_seed(root_seed, "probe", index) for index in range(seeds)),
        resamplers={s: Resampler.of(labels, s, resamples=RESAMPLES, root_seed=root_seed) for s in EVALUATED},
        seen=_seen_types(labels), facts=facts(labels, corpus) | doubts(labels, corpus, inputs, unknown),
        provenance=_provenance(store, corpus, labels, root_seed=root_seed, cluster=cluster, seeds=seeds),
    )  # fmt: skip
    for probe in plan.probes.values():
        plan.measures_for(probe)
    return plan


def _refuse_large(store: Store, sites: tuple[str, ...], labels: Labels, probes: Mapping[str, Probe]) -> None:
    """Pairs that a probe could only read laid out, and that are too many for it."""
    laid_out = [name for name, probe in probes.items() if reads_states(name, probe) and not probe.reads_pairs]
    if laid_out and labels.level == "pair":
        width = max(store.width(site) for site in sites) * (2 if labels.reading == "pair" else 1)
        most = max(len(labels.rows(split)) for split in SPLITS)
        check_laid_out(4 * width * most, f"probe {laid_out[0]} on task {labels.task}")


def _refuse_other_corpus(store: Store, corpus: Corpus) -> None:
    recorded = store.identity["corpus"]["fingerprint"]
    if recorded != corpus.fingerprint:
        raise ProvenanceMismatch(
            "the states of this store were made from another corpus",
            needed=f"corpus {recorded[:12]}…",
            found=f"corpus {corpus.fingerprint[:12]}… from {corpus.source}",
            where=str(getattr(store, "path", "")),
            next_step="give the files the store was extracted from, in the same order, or extract again",
        )


def _seen_types(labels: Labels) -> NDArray[np.bool_] | None:
    if "type" not in labels.keys:
        return None
    types = labels.keys["type" if labels.choice is None else "first"]  # the same for all alternatives
    return np.isin(types, types[labels.rows("train")])


def _refuse_constant_target(labels: Labels) -> None:
    """R² and rank correlation are undefined on a split in which all targets are equal."""
    for split in EVALUATED if labels.kind == "real" else ():
        if np.ptp(labels.y[labels.rows(split)]) == 0:
            raise DegenerateDesign(
                f"all targets in {split} are equal", needed="at least two different values", found="one value",
                where=f"task {labels.task}", next_step="choose another task or more data",
            )  # fmt: skip


def _provenance(
    store: Store, corpus: Corpus, labels: Labels, *, root_seed: int, cluster: str, seeds: int
) -> dict[str, Any]:
    imported = store.environment.get("imported")
    return ({"imported": imported} if imported else {}) | {
        "store_id": store.store_id, "content_id": store.content_id, "corpus": corpus.fingerprint,
        "model": store.identity["model"]["source"],
        "model_identity": digest(store.identity["model"]), "rows": store.identity["extraction"]["rows"],
        "labels": labels_digest(labels), "root_seed": root_seed, "seeds": seeds, "cluster": cluster,
        "resamples": RESAMPLES, "version": VERSION,
    }  # fmt: skip


def recipe_of(plan: Plan, site: str, name: str, probe: Probe) -> dict[str, Any]:
    """Everything that determines one result but the data."""
    return {
        "task": plan.task, "site": site, "name": name, "probe": full_recipe(probe),
        "controls": [full_recipe(one.control) for one in plan.controls],
        "measures": {key: full_recipe(measure) for key, measure in plan.measures_for(probe).items()},
        "baselines": sorted(plan.baselines),
    }  # fmt: skip
