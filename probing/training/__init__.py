"""Probes beside control tasks on a store's states, giving ProbeResults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.base import BaseEstimator

from probing.analysis import AnalysisResult
from probing.contracts import Analysis, Control, Measure, Task
from probing.corpus import Corpus
from probing.errors import BadParameter, unknown_name
from probing.records import ProbeResult
from probing.statistics import CORRECTIONS, Correction
from probing.store import Store
from probing.training.fitting import analysis_id, baseline_scores, fit_unit, run_analysis, unit_id
from probing.training.plan import Plan, make_plan
from probing.training.results import NO_SITE, ProbeResults, adjusted
from probing.training.states import site_states, stateless
from probing.training.units import load_analysis, load_unit


def train(
    store: Store | str | Path,
    corpus: Corpus,
    *,
    task: str | Task,
    probes: Sequence[str | BaseEstimator] | None = None,
    controls: Sequence[str | Control] | None = None,
    measures: Sequence[str | Measure] | None = None,
    analyses: Sequence[str | Analysis] = (),
    seeds: int = 1,
    root_seed: int = 0,
    sites: str | Sequence[str] = "*",
    cluster: str = "sentence",
    rows: str | None = None,
    correction: Correction = "holm",
    to: str | Path | None = None,
    progress: bool = True,
) -> ProbeResults:
    """Fit every probe at every site on the task and on every draw of every control, and score all of it.

    Probes learn from train, stop early by dev, and are scored on dev (for choosing a site) and on test. The task and
    its controls get the same probe, budget and seeds. The baselines `prior` and, for words, `word_type` are always
    fitted, with site "(none)", and every probe's gain over them is given.

    Args:
        store: the states, or the directory of a store.
        corpus: the corpus the store was made from, with its labels.
        task: a task or its name, e.g. `upos` or `feature:Number`.
        probes: probes, scikit-learn estimators or recipes such as `mlp:hidden=64` (default: linear; ridge for a
            real-valued target).
        controls: controls or recipes such as `word_type:draws=5` (default: word_type for words; for sentences
            shuffled_labels, a chance check, since only the caller knows what key sentences share).
        measures: default: accuracy, macro_f1 and log_loss, or r2 and spearman.
        analyses: what to run beside the scores at every site, such as `code_length`; see `probing list analyses`.
            Their numbers are in `ProbeResults.analyses`.
        seeds: fits of each stochastic probe.
        root_seed: root of every random draw.
        sites: patterns of sites of the store.
        cluster: what is resampled for intervals: `sentence` or `document`.
        rows: how the rows of a piece store are pooled, e.g. `word:last` (default: the mean).
        correction: how p of gains are adjusted over the sites, probes, baselines and tasks of a store: `holm`, or `bh`
            (Benjamini-Hochberg), which bounds the share of false claims instead of the chance of any. It goes for all
            results of the folder.
        to: folder for results.jsonl, results.parquet, fitted probes, and units by which a killed run resumes.
        progress: whether to show a bar on standard error, if that is a terminal.

    Raises:
        ProvenanceMismatch: the store was made from another corpus.
        DegenerateDesign: labels from which nothing can be learned.
        NonFiniteStates: NaN or infinite states, with site and rows.
        UnknownName, BadParameter: names and parameters.
    """
    if correction not in CORRECTIONS:
        raise unknown_name("correction", correction, CORRECTIONS, error=BadParameter)
    opened = store if not isinstance(store, str | Path) else Store.open(store)
    plan = make_plan(
        opened, corpus, task=task, probes=probes, controls=controls, measures=measures, analyses=analyses,
        seeds=seeds, root_seed=root_seed, sites=sites, cluster=cluster, rows=rows,
    )  # fmt: skip
    folder = Path(to) if to is not None else None
    found, told = _results(plan, folder, progress=progress)
    results = adjusted(found, told, correction=correction)
    if folder is None:
        return results
    results.write(folder)
    return results.adjusted_in(folder)


def _results(plan: Plan, folder: Path | None, *, progress: bool) -> tuple[list[ProbeResult], list[AnalysisResult]]:
    """Results of all units and analyses in order: loaded where committed, else computed. Each site is read once."""
    units, analyses = plan.units(), plan.analysis_units()
    found = [load_unit(folder, unit_id(plan, *unit)) for unit in units]
    told = [load_analysis(folder, analysis_id(plan, plan.analyses[name], unit)) for name, unit in analyses]
    baselines = {} if None not in found else baseline_scores(plan)
    with _bar(len(units) + len(analyses), plan.task, shown=progress) as advance:
        for site in (NO_SITE, *plan.sites):
            missing = [i for i, unit in enumerate(units) if unit[0] == site and found[i] is None]
            untold = [i for i, (_, unit) in enumerate(analyses) if unit[0] == site and told[i] is None]
            states = site_states(plan, site) if site != NO_SITE and missing + untold else {}
            for index in missing:
                _, name, probe = units[index]
                advance(0, f"{site} {name}")
                here = states or stateless(plan, probe)
                found[index] = fit_unit(plan, units[index], here, {} if site == NO_SITE else baselines, folder)
                advance(1, f"{site} {name}")
            for index in untold:
                name, unit = analyses[index]
                advance(0, f"{site} {unit[1]} {name}")
                other = plan.analyses[name].given
                given = site_states(plan, other) if other else None
                told[index] = run_analysis(plan, name, unit, states, given, folder)
                advance(1, f"{site} {unit[1]} {name}")
    return [result for result in found if result is not None], [result for result in told if result is not None]


@contextmanager
def _bar(total: int, title: str, *, shown: bool) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        job = bar.add_task(title, total=total)

        def advance(steps: int, now: str) -> None:
            bar.update(job, advance=steps, description=f"{title} · {now}")

        yield advance
