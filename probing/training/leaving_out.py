"""Trains probes on all groups of a corpus but one and scores them on that one, for every group in turn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import stdtrit
from sklearn.base import BaseEstimator

from probing.contracts.measure import Measure
from probing.contracts.probe import Probe
from probing.contracts.task import Task
from probing.errors import BadParameter, DegenerateDesign
from probing.provenance import digest
from probing.recipes import build_task
from probing.results.probe import Score
from probing.results.transfer import CrossResult, CrossResults, committed
from probing.seeds import generator
from probing.states.store import Store
from probing.statistics.clusters import FRACTION
from probing.system.machine import target_of, with_typed_errors
from probing.text.corpus import SPLITS, Corpus, Example
from probing.text.example import composed, named, unit_names
from probing.training.fitting import unit_id
from probing.training.plan import Plan, make_plan
from probing.training.results import NO_SITE
from probing.training.states import States, site_states, unit_states
from probing.training.transferring import Trained, crossed
from probing.training.units import sweep_results

LEAST_ROWS = 50
SMALL, MEAN, OTHERS = "(small groups)", "(mean)", "(others)"


@with_typed_errors
def leave_one_out(
    store: Store | str | Path,
    corpus: Corpus,
    *,
    task: str | Task,
    group: str = "document",
    least_rows: int = LEAST_ROWS,
    probes: Sequence[str | BaseEstimator] | None = None,
    measures: Sequence[str | Measure] | None = None,
    seeds: int = 1,
    root_seed: int = 0,
    sites: str | Sequence[str] = "*",
    rows: str | None = None,
    to: str | Path | None = None,
) -> CrossResults:
    """For every group (such as each genre), train probes on all other groups, score them on this group, and return the
    results.

    A group is tested on all its rows, whatever their split. Of the other groups, the rows in dev (or, if there are
    none, a tenth of these groups) stop the probe early, and the rest train it. The baselines are scored too. The
    interval for one group covers the sampling of its sentences and of seeds. The results also contain the unweighted
    mean over groups, named `(mean)`, with an interval (Student's t) for claims about further groups like these. Groups
    of fewer than `least_rows` labelled rows, or of one sentence, are tested together as `(small groups)`, which does
    not count in the mean; if all of them together are still too few, they are only used for training, and `remarks`
    says so.

    Args:
        store: the states, or the directory of a store.
        corpus: the corpus the store was made from.
        task: a task or its name.
        group: `document`, or a sentence-level column of the corpus, such as `genre`.
        least_rows: smallest number of labelled rows of a group that is tested alone.
        probes, measures, seeds, root_seed, sites, rows: as for `train`.
        to: folder for leave_one_out.jsonl, leave_one_out.parquet, and the finished fits, from which a killed run
            resumes.

    Raises:
        UnknownName: there is no such column.
        BadParameter: the column has a value for each word, not one for each sentence.
        DegenerateDesign: there is one group only, every group is too small, sentences have no group, a document is in
            two groups, or no label of a group occurs in the other groups.
        ProvenanceMismatch, NonFiniteStates: see `train`.
        CannotReachFile: `to` cannot be used; it is checked before work begins.
    """
    folder, opened = target_of(to), store if not isinstance(store, str | Path) else Store.open(store)
    built = build_task(task, corpus) if isinstance(task, str) else task
    group = composed(group)
    folds, remarks = _folds(corpus, built, group, least_rows, root_seed)
    plans = {
        fold.name: _without_dev(
            make_plan(
                opened,
                fold.corpus,
                task=task,
                probes=probes,
                controls=[],
                measures=measures,
                analyses=(),
                seeds=seeds,
                root_seed=root_seed,
                sites=sites,
                resample_by="sentence",
                rows=rows,
            )
        )
        for fold in folds
    }
    if folder is not None:
        sweep_results(folder)
    found = [result for name, plan in plans.items() for result in _fold_results(plan, name, group, folder)]
    results = CrossResults("leave_one_out", [*found, *_means(found)], remarks)
    if folder is not None:
        results.write(folder)
    return results


@dataclass(frozen=True)
class Fold:
    """Holds the name of a group that is left out (`name`), and the corpus in which it is the test split (`corpus`)."""

    name: str
    corpus: Corpus


def _folds(
    corpus: Corpus, task: Task, group: str, least_rows: int, root_seed: int
) -> tuple[list[Fold], tuple[str, ...]]:
    """Return the folds, and what was pooled or left out, in sentences."""
    if least_rows < 1:
        raise BadParameter("least_rows must be at least 1", needed="1 or more", found=str(least_rows))
    task.prepare(corpus)
    labelled = [sum(label is not None for label in task.labels(e)) for e in corpus.examples]
    groups = _groups_of(corpus, group)
    _refuse_documents_in_two(corpus, groups, group)
    rows: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    for example, name, count in zip(corpus.examples, groups, labelled, strict=True):
        if count and example.split in SPLITS:
            rows[name] += count
            sentences[name] += 1
    if len(rows) < 2:
        raise DegenerateDesign(
            "one group only: there is nothing to train on",
            needed="at least two groups with labels",
            found=", ".join(rows) or "none",
            where=f"{group} of {corpus.source}",
            next_step="name another column",
        )
    small = sorted(name for name in rows if rows[name] < least_rows or sentences[name] < 2)
    pooled = SMALL if sum(rows[n] for n in small) >= least_rows and sum(sentences[n] for n in small) > 1 else ""
    names = [pooled if name in small else name for name in groups]
    tested = sorted(set(rows) - set(small)) + ([SMALL] if pooled else [])
    if len(tested) - bool(pooled) < 1:
        raise DegenerateDesign(
            "every group is too small to be tested",
            needed=f"groups of {least_rows} labelled rows",
            found=f"at most {max(rows.values())}",
            where=f"{group} of {corpus.source}",
            next_step="lower least_rows",
        )
    told = f"tested together as {SMALL}" if pooled else "not tested, only trained on"
    shown = ", ".join(small[:20]) + (", …" if len(small) > 20 else "")
    remark = f"groups of fewer than {least_rows} labelled rows or of one sentence are {told}: {shown}"
    return [Fold(name, _with_test(corpus, names, name, root_seed)) for name in tested], (remark,) if small else ()


def _groups_of(corpus: Corpus, group: str) -> list[str]:
    """Return the group of every example.

    Raises:
        UnknownName, BadParameter, DegenerateDesign: see `leave_one_out`.
    """
    if group == "document" and "document" not in corpus.column_names():
        values = [example.document for example in corpus.examples]
    else:
        if corpus.level_of(group) != "sentence":
            raise BadParameter(
                f"{group} is a column of words",
                needed="document, or a column of sentences",
                found=group,
                where=corpus.source,
                next_step="name a column that a whole sentence has one value of",
            )
        values = [named(example.columns.get(group)) for example in corpus.examples]
    missing = [e.id for e, value in zip(corpus.examples, values, strict=True) if value is None and e.split in SPLITS]
    if missing:
        raise DegenerateDesign(
            f"sentences without a {group}",
            needed=f"a {group} of every sentence",
            found=f"{len(missing)} of {len(values)} without, such as {missing[0]}",
            where=corpus.source,
            next_step="name another column, or leave these sentences out of the corpus",
        )
    return [value or "" for value in values]


def _refuse_documents_in_two(corpus: Corpus, groups: Sequence[str], group: str) -> None:
    home: dict[str, str] = {}
    for example, name in zip(corpus.examples, groups, strict=True):
        if home.setdefault(example.group, name) != name:
            raise DegenerateDesign(
                f"a document has two values of {group}",
                needed=f"one {group} of every document",
                found=f"{example.group!r}: {home[example.group]} and {name}",
                where=corpus.source,
                next_step="name a group that keeps documents whole, or read with document=none if they need not be",
            )


def _with_test(corpus: Corpus, names: Sequence[str], tested: str, root_seed: int) -> Corpus:
    """Return the corpus with one group as its test split; the fingerprint stays."""
    units = unit_names(corpus.examples, corpus.units)
    rows = list(zip(corpus.examples, names, units, strict=True))
    others = [(e, unit) for e, name, unit in rows if name != tested and e.split in SPLITS]
    dev = {unit for e, unit in others if e.split == "dev"} or _tenth({unit for _, unit in others}, root_seed)

    def split_of(example: Example, name: str, unit: str) -> str:
        if example.split not in SPLITS:
            return example.split
        return "test" if name == tested else "dev" if unit in dev else "train"

    moved = tuple(replace(e, split=split_of(e, name, unit)) for e, name, unit in rows)
    return replace(corpus, examples=moved, source=f"{corpus.source}, {tested} left out")


def _tenth(groups: set[str], root_seed: int) -> set[str]:
    ordered = sorted(groups)
    chosen = generator(root_seed, "dev groups").permutation(len(ordered))[: max(1, len(ordered) // 10)]
    return {ordered[place] for place in chosen}


def _without_dev(plan: Plan) -> Plan:
    """Return the plan without resamples of dev, where nothing is scored: they are as large as the corpus for every
    fold.
    """
    return replace(plan, resamplers={split: one for split, one in plan.resamplers.items() if one.base == "test"})


def _fold_results(plan: Plan, name: str, group: str, folder: Path | None) -> Iterator[CrossResult]:
    for site in (NO_SITE, *plan.sites):
        kept: dict[str, States] = {}
        for unit in plan.units():
            if unit[0] == site:
                yield from _unit_results(plan, unit, name, group, kept, folder)


def _unit_results(
    plan: Plan, unit: tuple[str, str, Probe], name: str, group: str, kept: dict[str, States], folder: Path | None
) -> list[CrossResult]:
    site, _, probe = unit

    def compute() -> list[CrossResult]:
        if site != NO_SITE and not kept:
            kept[site] = site_states(plan, site)
        states = unit_states(plan, site, probe, kept.get(site, {}))
        return crossed(plan, unit, states, name, [Trained.of(OTHERS, plan, probe, states)])

    return committed(folder, digest(["leave_one_out", group, name, unit_id(plan, *unit)]), compute)


def _means(found: Sequence[CrossResult]) -> list[CrossResult]:
    """Return the mean over groups of every site, probe and measure, in the order of their first group."""
    by_kind: dict[tuple[str, str, str], list[CrossResult]] = {}
    for result in found:
        if result.tested_on != SMALL:
            by_kind.setdefault((result.site, result.probe, result.measure), []).append(result)
    return [_mean(results) for results in by_kind.values() if len(results) > 1]


def _mean(results: Sequence[CrossResult]) -> CrossResult:
    values = np.array([result.score.value for result in results])
    first, count, value = results[0], len(values), float(values.mean())
    half = float(stdtrit(count - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(count)
    low, high = value - half, value + half
    if first.score.unit == FRACTION:
        low, high = max(0.0, low), min(1.0, high)
    made_of = digest([result.provenance["unit"] for result in results])
    return replace(
        first,
        tested_on=MEAN,
        provenance=first.provenance | {"unit": made_of},
        score=Score(value, low, high, n=count, unit=first.score.unit),
        known=None,
        unseen_labels=(),
        unseen_rows=sum(result.unseen_rows for result in results),
        train_rows=round(float(np.mean([result.train_rows for result in results]))),
    )
