"""Trains probes on the states of a store, beside control tasks and baselines, and returns their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sklearn.base import BaseEstimator

from probing._renamed import takes_old_names
from probing.contracts.analysis import Analysis
from probing.contracts.control import Control, StateControl
from probing.contracts.executor import Executor, WorkPlan
from probing.contracts.measure import Measure
from probing.contracts.task import Task
from probing.errors import BadParameter, DoubtfulData, UnitFailed, unknown_name, warn_user
from probing.executors._units import Rounds, executor_of, sole_error_itself
from probing.files.whole_files import folder_locked
from probing.states.store import Store
from probing.statistics.multiplicity import CORRECTIONS, Correction, adjusted
from probing.statistics.thresholds import AskedThreshold
from probing.system.machine import target_of
from probing.text.corpus import Corpus
from probing.training.plan import make_plan
from probing.training.results import ProbeResults
from probing.training.running import (
    Fitters,
    Threads,
    UnitResults,
    check_run,
    results_of,
    training_units,
    units_bar,
    units_to_do,
)
from probing.training.units import check_threshold, sweep_results

if TYPE_CHECKING:
    from probing.dictionaries.dictionary import Dictionary


@takes_old_names
def train(
    store: Store | str | Path,
    corpus: Corpus,
    *,
    task: str | Task,
    probes: Sequence[str | BaseEstimator] | None = None,
    controls: Sequence[str | Control | StateControl] | None = None,
    measures: Sequence[str | Measure] | None = None,
    analyses: Sequence[str | Analysis] = (),
    features: Sequence[str | Path | Dictionary] = (),
    seeds: int = 1,
    root_seed: int = 0,
    sites: str | Sequence[str] = "*",
    resample_by: str = "auto",
    rows: str | None = None,
    correction: Correction = "holm",
    to: str | Path | None = None,
    replace: bool = False,
    executor: str | Executor = "inline",
    workers: int | None = None,
    threads: int | None = None,
    max_memory_mib: int | None = None,
    device: str = "cpu",
    array_size: int = 1,
    array_index: int = 0,
    threshold: str | None = None,
    progress: bool = True,
) -> ProbeResults:
    """Fit every probe at every site, on the task and on its control tasks, score all fits, and return the results.

    Probes are trained on the split train, stopped early by dev, and scored on dev (to choose a site) and on test. The
    task and its controls are given the same probe, the same limits on training and the same seeds. Baselines, which do
    not read states, are always fitted too and have the site "(none)": `prior`; for words, `word_type`; for sentences,
    `text_length`, `bag_of_words`, `tfidf`, `character_ngrams` and `nearest_text`, and for probes that are not linear
    `text_mlp`. The results contain the gain of every probe over each baseline.

    Args:
        store: the states, or the directory of a store.
        corpus: the corpus the store was made from, with its labels.
        task: a task or its name, e.g. `upos` or `feature:Number`.
        probes: probes, scikit-learn estimators, or names with options such as `mlp:hidden=64` (default: linear; ridge
            for a real-valued target).
        controls: controls, or names with options such as `word_type:draws=5`. The default for words is `word_type`. For
            sentences it is `shuffled_labels`, which only checks for chance; name `keyed:key=COLUMN` if sentences share
            something that a probe could memorise.
        measures: measures or their names (default: accuracy, macro_f1 and log_loss; r2 and spearman for a real-valued
            target).
        analyses: analyses to run at every site beside the scores, such as `code_length`; `probing list analyses` lists
            them. Their numbers are in `ProbeResults.analyses`.
        features: dictionaries (sparse autoencoders) whose latents are probed for comparison with the states that they
            encode: paths, with options as in `DIR,twin=DIR,k=1|16|128`, or `Dictionary` objects. Their numbers are in
            `ProbeResults.features`, and in features.parquet.
        seeds: number of fits of each stochastic probe, with different seeds.
        root_seed: root of every random draw.
        sites: shell-style patterns of sites of the store.
        resample_by: what is resampled for intervals: `sentence`, `document` (or the group that the corpus was read
            with), or `auto`: documents where the label is constant or nearly so within them, else sentences.
        rows: for a store of all tokens (extracted with `rows="piece"`), how states are pooled to words or sentences,
            such as `word:last` (default: the mean).
        correction: how the p values of gains are adjusted over the sites, probes, baselines and tasks of a store:
            `holm` bounds the probability of any false claim, `bh` (Benjamini-Hochberg) the expected share of false
            claims. It is applied to all results in the folder.
        to: folder for results.jsonl, results.parquet, fitted probes, and the finished fits, from which a killed run
            resumes. Earlier results in the folder stay, also those of other models.
        replace: whether to drop results in the folder that are of the same store, rows, task, site and probe with other
            settings (such as seeds, controls or measures).
        executor: how probes are fitted: `inline`, `processes`, `ray`, or an object. Options are given as in
            `processes:stall_seconds=7200`: a worker that reports nothing for so long counts as stalled and is started
            again; a worker reports nothing during one fit. With other processes `to` is required; they
            read the stores themselves.
        workers: number of processes, for `processes` and `ray`.
        threads: processor threads of each worker; None means as many as this process has. With the same number every
            executor gives the same bytes; with different numbers the last bits of a score can differ.
        max_memory_mib: MiB that the states of a site may take. If they would take more, `linear` and `ridge` stream
            them from the store, with the same results up to rounding; other probes and analyses still load them all.
            None: no limit.
        device: torch device that `linear`, `mlp`, `ridge` and `mass_mean` compute on; other probes, and all scoring,
            use the CPU. Results are equal up to rounding, so a run that was begun on one device can be finished on
            another.
        array_size: number of processes that share the work, on any machines that can write to `to`.
        array_index: index of this process, counted from 0; it does every `array_size`-th fit. The process that finds
            all fits done writes the results.
        threshold: a largest rate of false positives, as text: `fpr=0.01`, `fpr=0.01,label=CLASS` or
            `fpr=0.01,by=COLUMN`. If given, every probe gets a threshold on the log odds of the class (by default the
            second of two in sorted order) that keeps to this rate on dev. It is saved with the probe, with its recall
            and false positives on test (for each value of the column too). See `choose_threshold`. None: no threshold.
        progress: whether to show progress: a bar in a terminal, a changing line in a notebook, otherwise a line on
            standard error every 30 s.

    Raises:
        ProvenanceMismatch: the store was made from another corpus.
        DegenerateDesign: nothing can be learned from the labels, or dev has too few rows for the threshold.
        NonFiniteStates: states are NaN or infinite; the message names site and rows.
        UnknownName, BadParameter: a name or parameter is wrong.
        UnitFailed: several fits failed, and all others are done and written; if only one failed, its own error is
            raised.
        WorkerLost, Stalled: workers died or hung.
        MissingDependency: the executor needs a package that is not installed.
        CannotReachFile: `to` cannot be used; it is checked before work begins.
    """
    if correction not in CORRECTIONS:
        raise unknown_name("correction", correction, CORRECTIONS, error=BadParameter)
    runner, folder = executor_of(executor, workers, threads), target_of(to)
    folder = None if folder is None else folder.resolve()
    check_run(runner, folder, array_size, array_index)
    opened = store if not isinstance(store, str | Path) else Store.open(store)
    plan = make_plan(
        opened,
        corpus,
        task=task,
        probes=probes,
        controls=controls,
        measures=measures,
        analyses=[*analyses, *_comparisons(features)],
        seeds=seeds,
        root_seed=root_seed,
        sites=sites,
        resample_by=resample_by,
        rows=rows,
        max_memory_mib=max_memory_mib,
        threshold=None if threshold is None else AskedThreshold.parse(threshold),
        device=device,
    )
    if plan.threshold is not None and to is None:
        raise BadParameter(
            "a threshold is kept in saved probes", needed="to=DIR", found="no folder", next_step="name a folder"
        )
    if plan.threshold is not None:
        check_threshold(plan, plan.threshold)
    units, done = training_units(plan), UnitResults(folder)
    share = WorkPlan(units.units[array_index::array_size])
    if folder is not None:
        sweep_results(folder)
    todo = units_to_do(plan, share, done)
    rounds = Rounds(todo, missing=lambda: done.missing(todo), hopeless=None)
    with sole_error_itself(len(units.units)):
        try:
            with units_bar(plan.task, share, todo, shown=progress) as bar:
                told = bar.begins if runner.in_process else None
                fitters = Fitters(plan, done, Threads.equal(runner.threads), told)
                for now in rounds:
                    with closing(runner.run(now, fitters, bar.advance)) as outcomes:  # type: ignore[type-var]
                        for outcome in outcomes:
                            rounds.note(outcome)
        except UnitFailed:
            if array_size == 1:
                _written(units, UnitResults(folder) if folder else done, folder, correction, replaces=replace)
            raise
    found = done if folder is None else UnitResults(folder)  # read again: what is written now is what its unit says now
    whole = folder if array_size == 1 or not found.missing(units) else None
    results = _written(units, found, whole, correction, replaces=replace)
    if not results.missing:
        _warn_of_data(results)
    return results


def _warn_of_data(results: ProbeResults) -> None:
    """Warn of what the results say of their data, in the words of the command line."""
    tasks = import_module("probing.reporting.task_results").by_task(results)
    for task in tasks:
        for sentence in import_module("probing.reporting.warnings").warnings_of_task(task):
            warn_user(f"{task.title}: {sentence}", DoubtfulData)


def _comparisons(features: Sequence[str | Path | Dictionary]) -> list[Analysis]:
    """Return the comparisons of dictionaries with the states that they are of."""
    if not features:
        return []
    from probing.dictionaries.comparing import DictionaryComparison

    given = [features] if isinstance(features, str | Path) else features
    return [DictionaryComparison.parse(one) for one in given]


def _written(
    units: WorkPlan, done: UnitResults, folder: Path | None, correction: Correction, *, replaces: bool
) -> ProbeResults:
    """Write the results there are, merged into those of the folder."""
    missing = len(done.missing(units))
    found, analyses = results_of(units.units, done)
    complete = (dataclasses.replace(one, complete=not missing) for one in found)
    results = ProbeResults(adjusted(complete, correction=correction), analyses)
    results.missing = missing
    if folder is None or not len(results):
        return results
    with folder_locked(folder):
        results.write(folder, replace=replaces)
        return results.adjusted_in(folder)
