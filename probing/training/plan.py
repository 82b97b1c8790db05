"""Plan: everything that a training run needs, as built objects, checked before anything is fitted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from probing.contracts.analysis import Analysis
from probing.contracts.control import Control, Probed, StateControl
from probing.contracts.measure import Measure
from probing.contracts.probe import Probe
from probing.contracts.task import Task
from probing.errors import BadParameter, UnknownSite, unknown_name
from probing.labels import Kind, Labels, check_laid_out, labels_digest
from probing.measures._rows import gives_probabilities
from probing.models.site import select_sites
from probing.provenance import digest, model_called, weights_digest
from probing.recipes import build_task, full_recipe, normalised, spec_of
from probing.seeds import child_seed
from probing.states.store import Store
from probing.states.store.views import refuse_other_corpus
from probing.statistics.bootstrap import RESAMPLES
from probing.statistics.clusters import EVALUATED, NEW, Resampler, evaluated
from probing.statistics.thresholds import AskedThreshold
from probing.system.machine import check_device
from probing.text.corpus import SPLITS, Corpus
from probing.training.build import (
    BESIDE_NON_LINEAR,
    ControlSet,
    StateSet,
    built_analyses,
    built_baselines,
    built_controls,
    built_measures,
    built_probes,
    is_beyond_linear,
    named_controls,
    needed_keys,
)
from probing.training.label_checks import (
    alike_inputs,
    check_labels,
    cut_inputs,
    data_warnings,
    defined_measures,
    refuse_one_class,
)
from probing.training.labelling import label_rows
from probing.training.pooling import PooledStore, PositionStore, with_rows
from probing.training.results import NO_SITE
from probing.training.row_facts import facts, with_keys


def reads_states(name: str, probe: Probe) -> bool:
    """Return whether a probe reads states and so has to be fitted at every site."""
    return probe.input in ("states", "pieces") and name.partition(":")[0] != "prior"


def check_analyses(plan: Plan, probed: Probed) -> None:
    """Raise an error if an analysis reads a site which the store does not have, accepts no probe of the run, or cannot
    be run on its states and labels.
    """
    for name, analysis in plan.analyses.items():
        analysis.check(probed, [one.name for one in plan.state_controls])
        if analysis.given and analysis.given not in plan.store.sites:
            raise unknown_name("site", analysis.given, plan.store.sites, where=f"analysis {name}", error=UnknownSite)
        if name not in {unit[0] for unit in plan.analysis_units()}:
            raise BadParameter(
                f"no probe of this run can be analysed by {name}",
                needed=f"a probe that {name} accepts",
                found=", ".join(plan.probes) or "no probe",
                next_step=f"see `probing list analyses {name.partition(':')[0]}`, or leave the analysis out",
            )


def refuse_large(store: Store, sites: tuple[str, ...], labels: Labels, probes: Mapping[str, Probe]) -> None:
    """Raise an error if a probe that does not take `Pairs` would get more pairs than fit in memory as one matrix."""
    laid_out = [name for name, probe in probes.items() if reads_states(name, probe) and not probe.accepts_pairs]
    if laid_out and labels.level == "pair":
        width = max(store.width(site) for site in sites) * (2 if labels.row_form == "pair" else 1)
        most = max(len(labels.rows(split)) for split in SPLITS)
        check_laid_out(4 * width * most, f"probe {laid_out[0]} on task {labels.task}")


def refuse_unreadable(probe: Probe, plan: Plan) -> None:
    labels = plan.labels
    if probe.input == "pieces" and not isinstance(plan.store, PooledStore):
        raise BadParameter(
            f"{spec_of(probe)} reads all pieces of a row",
            needed="a store of pieces",
            found=plan.provenance["rows"],
            where=str(plan.store.path),
            next_step="extract with --rows piece to another folder, and train on that",
        )
    if probe.input not in ("states", "pieces") and probe.input not in labels.keys:
        raise BadParameter(
            f"{spec_of(probe)} reads the {probe.input} of a row, and these rows have none",
            needed=f"rows with one of: {', '.join(labels.keys) or '(nothing)'}",
            found=probe.input,
            where=f"task {labels.task}",
            next_step="leave this probe out",
        )


LEAST_MEMORY = 16
VERSION = 10  # raised by any change that alters a score or what is kept of a unit


@dataclass(frozen=True)
class Plan:
    """Lists which probes are fitted on which labels and states; names are those shown in results.

    Attributes:
        store, sites: the store, and the sites of it that are probed.
        task: name of the task.
        labels, controls, state_controls: labels of the task; labels of every draw of every control; other states for
            the task's labels.
        probes, baselines: unfitted probes by name; baselines read no states.
        measures, chosen_measures: measures by name; whether the caller named them.
        analyses: analyses by name, each run on every probe that it accepts.
        seeds: one child seed for each seed asked for.
        resamplers: clusters and their weights, by split.
        seen: `(N,)` whether the row's word type occurs in train (for a choice, that of word a); None for sentence rows.
        facts: facts about the data.
        provenance: facts that all results of the run have in common.
        max_memory_mib: MiB that the states of a site may take; if they take more, they are streamed. None: no limit.
        threshold: request for a threshold, which is chosen on dev for every saved probe; None: no threshold.
        example_groups: group of every example of the corpus that is never split: of a document, a named group or one
            text; None: no threshold is asked for.
    """

    store: Store
    sites: tuple[str, ...]
    task: str
    labels: Labels
    probes: Mapping[str, Probe]
    baselines: Mapping[str, Probe]
    controls: tuple[ControlSet, ...]
    state_controls: tuple[StateSet, ...]
    measures: Mapping[str, Measure]
    chosen_measures: bool
    analyses: Mapping[str, Analysis]
    seeds: tuple[int, ...]
    resamplers: Mapping[str, Resampler]
    seen: NDArray[np.bool_] | None
    facts: Mapping[str, Any]
    provenance: Mapping[str, Any]
    max_memory_mib: int | None = None
    threshold: AskedThreshold | None = None
    example_groups: NDArray[np.int64] | None = None

    @property
    def label_sets(self) -> tuple[Labels, ...]:
        """Label sets to fit on: the task's labels, then every draw of every control."""
        return (self.labels, *(draw for control in self.controls for draw in control.draws))

    def beside(self, probe: Probe) -> list[str]:
        """Return the baselines that only probes that are not linear are compared with, if this probe is one."""
        return [name for name in self.baselines if name in BESIDE_NON_LINEAR] if is_beyond_linear(probe) else []

    def judged(self, split: str) -> Resampler:
        """Return the resampler of the rows that verdicts are based on: the rows of the split whose input is not in
        train, if these are scored separately, else all rows of the split.
        """
        return self.resamplers.get(split + NEW, self.resamplers[split])

    def units(self) -> list[tuple[str, str, Probe]]:
        """Return (site, name, probe) for everything to fit: first baselines and probes that read no states, at site
        "(none)", then the other probes at each site.
        """
        stateless = {name: probe for name, probe in self.probes.items() if not reads_states(name, probe)}
        reading = {name: probe for name, probe in self.probes.items() if name not in stateless}
        found = [(NO_SITE, name, probe) for name, probe in (dict(self.baselines) | stateless).items()]
        return found + [(site, name, probe) for site in self.sites for name, probe in reading.items()]

    def analysis_units(self) -> list[tuple[str, tuple[str, str, Probe]]]:
        """Return (analysis, unit) for every analysis and every probe that it accepts and that reads one state per row,
        site by site.
        """
        reading = [unit for unit in self.units() if unit[0] != NO_SITE and unit[2].input == "states"]
        return [
            (name, unit)
            for unit in reading
            for name, one in self.analyses.items()
            if one.accepts(unit[2]) and one.reads(unit[0])
        ]

    def measures_for(self, probe: Probe) -> dict[str, Measure]:
        """Return the measures by which a probe can be scored.

        Raises:
            BadParameter: a measure named by the caller needs probabilities, which the probe does not give.
        """
        if gives_probabilities(probe):
            return dict(self.measures)
        left_out = [name for name, measure in self.measures.items() if measure.reads_probabilities]
        if left_out and self.chosen_measures:
            raise BadParameter(
                f"{left_out[0]} needs probabilities",
                found=f"{spec_of(probe)}, which gives none",
                next_step="leave the measure out, or use another probe",
            )
        return {name: measure for name, measure in self.measures.items() if name not in left_out}


def make_plan(
    store: Store,
    corpus: Corpus,
    *,
    task: str | Task,
    probes: Sequence[str | BaseEstimator] | None,
    controls: Sequence[str | Control | StateControl] | None,
    measures: Sequence[str | Measure] | None,
    analyses: Sequence[str | Analysis],
    seeds: int,
    root_seed: int,
    sites: str | Sequence[str],
    resample_by: str,
    rows: str | None,
    max_memory_mib: int | None = None,
    device: str = "cpu",
    trained: Collection[str] = (),
    threshold: AskedThreshold | None = None,
) -> Plan:
    """Build and check all parts of a run, and return its plan. `trained` names inputs on which other probes that are
    scored on these rows are trained; the other arguments are those of `train`.

    Raises:
        ProvenanceMismatch: the store was made from another corpus.
        UnknownName, BadParameter: a name or parameter is wrong.
        DegenerateDesign: nothing can be learned from the labels.
    """
    if seeds < 1:
        raise BadParameter("seeds must be at least 1", needed="1 or more", found=str(seeds))
    check_device(device)
    if max_memory_mib is not None and max_memory_mib < LEAST_MEMORY:
        raise BadParameter(
            "too little memory to train in", needed=f"{LEAST_MEMORY} MiB or more", found=str(max_memory_mib)
        )
    refuse_other_corpus(store, corpus)
    chosen_sites = select_sites(sites, store.sites)
    built_task = build_task(task, corpus) if isinstance(task, str) else task
    name = normalised("tasks", task) if isinstance(task, str) else spec_of(task)
    built_task.prepare(corpus)
    inputs, unknown = store.inputs, store.unknown_pieces
    given, store = rows, with_rows(store, corpus, rows, built_task.read_from)
    if isinstance(store, PositionStore) and store.one_of_several:
        name = f"{name} at {store.one_of_several}"  # so that one folder can hold the results of all
    kind: Kind = built_task.kind
    scope = store.identity["extraction"]["rows"].partition(":")[0]
    labels = label_rows(
        store.rows,
        scope,
        corpus,
        built_task,
        resample_by=resample_by,
        inputs=inputs,
        trained=trained,
        of_chats="chat" in store.identity["extraction"],
    )
    named_probes = built_probes(built_task.probes or None if probes is None else probes, labels)
    named_probes = {name: probe.on(device) for name, probe in named_probes.items()}
    chosen_controls = named_controls(built_task.controls or None if controls is None else controls, labels)
    needed = needed_keys(labels, chosen_controls, named_probes.values())
    if len(complete := with_keys(labels, needed)) < len(labels):
        labels = complete
        check_labels(labels, corpus)
    refuse_large(store, chosen_sites, labels, named_probes)
    named_measures = built_measures(built_task.measures or None if measures is None else measures, labels)
    probed = Probed(
        store,
        chosen_sites,
        labels,
        child_seed(root_seed, "controls"),
        lambda path: with_rows(Store.open(path), corpus, given, built_task.read_from),
    )
    drawn, sources = built_controls(chosen_controls, probed)
    label_sets = (labels, *(draw for one in drawn for draw in one.draws))
    named_measures = defined_measures(named_measures, label_sets)
    plan = Plan(
        store=store,
        sites=chosen_sites,
        task=name,
        labels=labels,
        probes=named_probes,
        baselines=built_baselines(labels, named_probes.values()),
        controls=drawn,
        state_controls=sources,
        measures=named_measures,
        chosen_measures=measures is not None,
        analyses=built_analyses(analyses, kind),
        seeds=tuple(child_seed(root_seed, "probe", index) for index in range(seeds)),
        resamplers=evaluated(
            labels, (draw for one in drawn for draw in one.draws), resamples=RESAMPLES, root_seed=root_seed
        ),
        seen=_seen_types(labels),
        facts=facts(labels, corpus)
        | data_warnings(labels, corpus, inputs, unknown)
        | built_task.doubts(corpus)
        | cut_inputs(labels, store.cut_inputs, store.max_length)
        | alike_inputs(labels, corpus, inputs, store.cut_inputs)
        | _model_facts(store)
        | {"width": max(store.width(site) for site in chosen_sites)},
        provenance=_provenance(store, corpus, labels, root_seed=root_seed, seeds=seeds)
        | ({} if max_memory_mib is None else {"memory": max_memory_mib}),
        max_memory_mib=max_memory_mib,
        threshold=threshold,
        example_groups=None if threshold is None else corpus.units,
    )
    refuse_one_class(plan.measures, plan.label_sets, EVALUATED)
    for probe in plan.probes.values():
        plan.measures_for(probe)
        refuse_unreadable(probe, plan)
    check_analyses(plan, probed)
    return plan


def _seen_types(labels: Labels) -> NDArray[np.bool_] | None:
    if "type" not in labels.keys:
        return None
    types = labels.keys["type" if labels.choice is None else "first"]  # the same for all alternatives
    return np.isin(types, types[labels.rows("train")])


def _model_facts(store: Store) -> dict[str, Any]:
    """Return, as `model`, what the store knows of its model beside the identity: readers are shown it, and it enters no
    hash, so that results of older stores stay what they are.
    """
    known, made = store.environment.get("model"), store.identity["model"].get("checkpoint")
    found = dict(known) if isinstance(known, Mapping) else {}
    found |= dict(made) if isinstance(made, Mapping) else {}
    found |= {"weights": weights} if (weights := weights_digest(store.identity["model"])) else {}
    found |= {"untrained": True} if isinstance(store.identity["model"].get("untrained"), Mapping) else {}
    return {"model": found} if found else {}


def _provenance(store: Store, corpus: Corpus, labels: Labels, *, root_seed: int, seeds: int) -> dict[str, Any]:
    imported = store.environment.get("imported")
    return ({"imported": imported} if imported else {}) | {
        "store_id": store.store_id,
        "content_id": store.content_id,
        "corpus": corpus.fingerprint,
        "model": model_called(store.identity["model"], store.identity["extraction"].get("dtype", "")),
        "model_identity": digest(store.identity["model"]),
        "rows": store.identity["extraction"]["rows"],
        "labels": labels_digest(labels),
        "root_seed": root_seed,
        "seeds": seeds,
        "cluster": labels.unit,
        "resamples": RESAMPLES,
        "version": VERSION,
    }


def recipe_of(plan: Plan, site: str, name: str, probe: Probe) -> dict[str, Any]:
    """Return everything except the data that determines one result."""
    return {
        "site": site,
        "name": name,
        "probe": full_recipe(probe),
        "measures": {key: full_recipe(measure) for key, measure in plan.measures_for(probe).items()},
        **({} if plan.threshold is None else {"threshold": vars(plan.threshold)}),
        **({} if not (beside := plan.beside(probe)) else {"beside": beside}),
    } | _recipe_of_all(plan)


def run_id(plan: Plan) -> str:
    """Return the hash of the settings that all results of a run have in common, whatever the site and the probe;
    results with the same hash make one table.
    """
    measures = {key: full_recipe(measure) for key, measure in plan.measures.items()}
    return digest([_recipe_of_all(plan), measures, dict(plan.provenance)])


def _recipe_of_all(plan: Plan) -> dict[str, Any]:
    return {
        "task": plan.task,
        "controls": [full_recipe(one.control) for one in plan.controls],
        "baselines": sorted(name for name in plan.baselines if name not in BESIDE_NON_LINEAR),
    } | ({"states": [one.recipe for one in plan.state_controls]} if plan.state_controls else {})
