"""Checks of a run before anything is fitted, once all of it is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from probing.contracts.probe import Probe
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnknownSite, unknown_name
from probing.labels import Labels, check_laid_out
from probing.recipes import spec_of
from probing.states.store import Store
from probing.statistics.clusters import EVALUATED
from probing.text.corpus import SPLITS, Corpus
from probing.training.pooling import PooledStore

if TYPE_CHECKING:
    from probing.training.plan import Plan


def reads_states(name: str, probe: Probe) -> bool:
    """Return whether the probe has to be fitted at every site."""
    return probe.reads in ("states", "pieces") and name.partition(":")[0] != "prior"


def check_analyses(plan: Plan) -> None:
    """Refuse an analysis that reads a site the store has not, or that no probe of the run can be given to."""
    for name, analysis in plan.analyses.items():
        if analysis.given and analysis.given not in plan.store.sites:
            raise unknown_name("site", analysis.given, plan.store.sites, where=f"analysis {name}", error=UnknownSite)
        if name not in {unit[0] for unit in plan.analysis_units()}:
            raise BadParameter(
                f"no probe of this run can be analysed by {name}",
                needed=f"a probe that {name} accepts",
                found=", ".join(plan.probes) or "no probe",
                next_step="see docs/decodability.md, or leave the analysis out",
            )


def refuse_large(store: Store, sites: tuple[str, ...], labels: Labels, probes: Mapping[str, Probe]) -> None:
    """Refuse pairs that are too many for a probe which can only read them laid out."""
    laid_out = [name for name, probe in probes.items() if reads_states(name, probe) and not probe.reads_pairs]
    if laid_out and labels.level == "pair":
        width = max(store.width(site) for site in sites) * (2 if labels.reading == "pair" else 1)
        most = max(len(labels.rows(split)) for split in SPLITS)
        check_laid_out(4 * width * most, f"probe {laid_out[0]} on task {labels.task}")


def refuse_other_corpus(store: Store, corpus: Corpus) -> None:
    recorded = store.identity["corpus"]["fingerprint"]
    if recorded != corpus.fingerprint:
        raise ProvenanceMismatch(
            "the states of this store were made from another corpus",
            needed=f"corpus {recorded[:12]}…",
            found=f"corpus {corpus.fingerprint[:12]}… from {corpus.source}",
            where=str(getattr(store, "path", "")),
            next_step="give the files the store was extracted from, in the same order, or extract again",
        )


def refuse_unreadable(probe: Probe, plan: Plan) -> None:
    labels = plan.labels
    if probe.reads == "pieces" and not isinstance(plan.store, PooledStore):
        raise BadParameter(
            f"{spec_of(probe)} reads all pieces of a row",
            needed="a store of pieces",
            found=plan.provenance["rows"],
            where=str(plan.store.path),
            next_step="extract with --rows piece to another folder, and train on that",
        )
    if probe.reads not in ("states", "pieces") and probe.reads not in labels.keys:
        raise BadParameter(
            f"{spec_of(probe)} reads the {probe.reads} of a row, and these rows have none",
            needed=f"rows with one of: {', '.join(labels.keys) or '(nothing)'}",
            found=probe.reads,
            where=f"task {labels.task}",
            next_step="leave this probe out",
        )


def refuse_constant_target(labels: Labels) -> None:
    """Refuse a split in which all targets are equal, where R² and rank correlation are undefined."""
    for split in EVALUATED if labels.kind == "real" else ():
        if np.ptp(labels.y[labels.rows(split)]) == 0:
            raise DegenerateDesign(
                f"all targets in {split} are equal",
                needed="at least two different values",
                found="one value",
                where=f"task {labels.task}",
                next_step="choose another task or more data",
            )
