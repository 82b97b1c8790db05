"""Prints the results of jobs: records go to standard output, warnings to standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from probing.cli.store_commands import print_store
from probing.errors import DegenerateDesign, UnitFailed
from probing.system.screen import console, say


def finish_import(job: Any, quiet: bool, as_json: bool) -> None:
    _show_store(job.run(progress=not quiet), as_json)


def finish_extract(job: Any, quiet: bool, as_json: bool) -> None:
    import_module("probing.models.loading.light_start").start_lightly()
    found = job.run(progress=not quiet)
    for store in found if isinstance(found, list) else [found]:
        _show_store(store, as_json)
    if isinstance(found, list) and not as_json:
        say(f"next: probing train {job.to} … trains on the states of all {len(found)} models")


def _show_store(store: Any, as_json: bool) -> None:
    print_store(store.path, as_json, brief=True)
    warnings = import_module("probing.states.store.views")
    cut = warnings.cut_inputs_warning(len(store.cut_inputs), store.max_length)
    warn([warnings.unknown_pieces_warning(store.unknown_pieces), cut])
    if store.position_names:
        rows = store.rows
        warn([warnings.whole_spans_warning(store.position_names, rows.position, rows.piece_end - rows.piece_start)])


def finish_study(study: Any, to: Path | None, quiet: bool, as_json: bool, details: bool) -> Path:
    """Run a study, print its results and verdicts, and return the path of its page; if tasks failed, print the results
    of the others before the error is raised.
    """
    try:
        page: Path = study.run(to, progress=not quiet)
    except UnitFailed as failure:
        show(written(study.folder(to), None, failure), as_json, details)
        raise
    show_study(page.parent, study.certified() if study.use else {}, as_json, details)
    if any(entry.threshold for entry in study.train):
        results = import_module("probing.training.results").ProbeResults.read(page.parent)
        _show_saved(results, page.parent, as_json, is_asked=True)
    _show_looks(study, page.parent, as_json, details)
    if study.use and (page.parent / "use.jsonl").is_file():
        end_if_unmatched(import_module("probing.verdicts.judging").read_use_run(page.parent))
    return page


def _show_looks(study: Any, folder: Path, as_json: bool, details: bool) -> None:
    """Print the results of lenses, of circuits and of the comparison of states that a study asks for."""
    reporting = import_module("probing.reporting")
    for result in reporting.lenses_in(folder) if study.lens else ():
        _show_lens(result, as_json, details)
    if study.similarity:
        results = import_module("probing.results.similarity").SimilarityResults.read(folder)
        _show_similarity(results, as_json, details)
    for result in reporting.circuits_in(folder) if study.circuit else ():
        _show_circuit(result, as_json, details)


def finish_train(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    try:
        results = job.run(progress=not quiet)
    except UnitFailed as failure:
        show(written(Path(job.to), job.tasks, failure), as_json, details)
        raise
    if results.missing:  # what is there is not all: it would be shown with too good an opinion of the best site
        say(f"{results.missing} units of work are left to other processes: the last one writes the results", err=True)
        return
    show(results, as_json, details, folder=Path(job.to))
    _show_saved(results, Path(job.to), as_json, is_asked=job.threshold is not None)
    if not as_json:
        say(f"results: {Path(job.to) / 'results.parquet'}\nnext: probing report {job.to}")


def _show_saved(results: Any, folder: Path, as_json: bool, *, is_asked: bool) -> None:
    """Print for each task where its saved probe that is best on dev lies, with its threshold; as JSON lines only if a
    threshold is asked for.
    """
    if as_json and not is_asked:
        return
    card = import_module("probing.reporting.probe_card")
    for facts in card.saved_facts(import_module("probing.reporting.task_results").by_task(results), folder):
        say(json.dumps(facts, sort_keys=True) if as_json else card.saved_line(facts))


def written(folder: Path, tasks: Iterable[str] | None, failure: UnitFailed) -> Any:
    """Return the `ProbeResults` in a folder: of all tasks, or (if `tasks` is given) of the tasks named there that did
    not fail.
    """
    module = import_module("probing.training.results")
    path = folder / "results.jsonl"
    results = module.ProbeResults.read(folder) if path.is_file() else module.ProbeResults(())
    failed = {name for name, error in failure.errors.items() if not isinstance(error, UnitFailed)}
    return results.of_tasks({result.task for result in results if tasks is None or result.task in set(tasks) - failed})


def show(results: Any, as_json: bool, details: bool, use: Any = None, folder: Path | None = None) -> None:
    """Print results of probes and of edits: a line for each property, with `details` after tables; for several models
    also their differences, tested from the results in `folder`. With `as_json`, print JSON lines instead.
    """
    if as_json:
        print_json(results)
        for verdict in use or ():
            say(verdict.to_json())
        return
    if details and len(results):
        import_module("probing.reporting.tables").print_results(list(results), console(), results.analyses)
    if details and use is not None:
        show_verdicts(use.verdicts)
    if len(results) or use is not None:
        show_lines(results, use, details=details, folder=folder)
    if getattr(results, "features", None):
        module = import_module("probing.reporting.features_sections")
        module.print_features(results.features, console(), details=details)


def show_lines(results: Any = (), use: Any = None, *, details: bool, folder: Path | None = None) -> None:
    """Print a line for each property and model on where it is decodable and used, then warnings (unless `details`),
    then differences between models.
    """
    module = import_module("probing.reporting.overview")
    module.print_overview(list(results), use, console(), with_doubts=not details)
    tasks = import_module("probing.reporting.task_results").by_task(results)
    across = import_module("probing.reporting.across_models").across_models(tasks, folder)
    import_module("probing.reporting.across_sections").print_across(across, console(), details=details)
    panels = import_module("probing.reporting.use_panels")
    warn(f"{name}: use inconclusive, nothing was edited: {reason}" for name, reason in panels.unmatched(use))
    if not details:
        say(
            "--details prints tables; `probing report` makes a page of them"
            if use is None or len(results)
            else "--details prints tables"
        )


def end_if_unmatched(run: Any) -> None:
    """Raise the error that ends a command if rows of a task could not be matched, so that nothing was edited.

    Raises:
        DegenerateDesign: the message names each such task and the reason.
    """
    reasons = list(dict.fromkeys(f"{one.task}: {one.unmatched}" for one in run.results if one.unmatched))
    if reasons:
        raise DegenerateDesign(
            "use inconclusive, since rows cannot be matched" + (f", of {len(reasons)} tasks" if reasons[1:] else ""),
            needed="rows that differ in the task and agree in its covariates",
            found="; ".join(reasons),
            next_step="ask such tasks in runs of their own; all verdicts are written",
        )


def show_answers(results: Iterable[Any]) -> None:
    words = import_module("probing.reporting.use_words")
    for sentence in dict.fromkeys(filter(None, map(words.answers_sentence, results))):
        say(sentence)


def show_latents(results: Iterable[Any]) -> None:
    words = import_module("probing.reporting.latent_words")
    sentences = [
        f"{result.task}: {words.use_of_latents(cell.place, name, cell)}"
        for result in results
        for cell in result.cells
        for name in words.edits_of_latents(cell)
    ]
    for sentence in [*sentences, *([words.OPTIMISTIC] if sentences else [])]:
        say(sentence)


def warn_of_behaviours(results: Iterable[Any]) -> None:
    words = import_module("probing.reporting.use_words")
    warn(dict.fromkeys(doubt for result in results for doubt in words.doubts_of(result)))


def finish_patch(job: Any, quiet: bool, as_json: bool) -> None:
    run = job.run(progress=not quiet)
    tables = import_module("probing.reporting.use_tables")
    if as_json:
        for one in filter(None, (run.found.exact, run.found.rough)):
            _print_rows([{"title": run.title, "method": one.method, **row} for row in one.table()])
        warn(run.found.doubts)
        return
    tables.print_patching(run.found, console(), title=run.title, run_prompt=run.run_prompt)
    warn(run.found.doubts)
    _print_files(run.files, f"probing report {job.to}")


def finish_ablate(job: Any, quiet: bool, as_json: bool) -> None:
    run = job.run(progress=not quiet)
    tables = import_module("probing.reporting.use_tables")
    for one in run.found:
        if as_json:
            _print_rows(one.table())
        else:
            tables.print_ablation(one, console())
            say()
    warn(run.doubts)
    if not as_json:
        if run.answers:
            said = import_module("probing.results.use").answers_said(run.answers, ids=True)
            say(f"Answers as measured, with piece ids: {said}.")
        _print_files(run.files)


def finish_lens(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    result = job.run(progress=not quiet)
    page = import_module("probing.reporting").report(Path(job.to))
    _show_lens(result, as_json, details)
    if not as_json:
        say(f"results: {Path(job.to) / 'lens.parquet'}\nreport: {page}")


def _show_lens(result: Any, as_json: bool, details: bool) -> None:
    if as_json:
        _print_rows(result.table().to_dict("records"))
        _print_rows(result.difference_table().to_dict("records"))
    else:
        import_module("probing.reporting.lens_sections").print_lens(result, console(), details=details)
    warn(result.doubts)


def finish_circuit(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    result = job.run(progress=not quiet)
    page = import_module("probing.reporting").report(Path(job.to))
    _show_circuit(result, as_json, details)
    if not as_json:
        say(f"results: {Path(job.to) / 'circuit.json'}\nreport: {page}")


def _show_circuit(result: Any, as_json: bool, details: bool) -> None:
    if as_json:
        _print_rows(asdict(one) for one in result.words)
        _print_rows(_without_nan(row) for row in result.table().to_dict("records"))
    else:
        import_module("probing.reporting.circuit_sections").print_circuit(result, console(), details=details)
    warn(result.doubts)


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with None for numbers that there are not."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}


def _print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        say(json.dumps(row, sort_keys=True))


def _print_files(files: Iterable[Path], next_step: str = "") -> None:
    say("\n".join(f"{file.suffix[1:]}: {file}" for file in files))
    if next_step:
        say(f"next: {next_step}")


def finish_inspect(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    run = job.run(progress=not quiet)
    if as_json:
        say(run.found.to_json())
        return
    import_module("probing.reporting.inspection_tables").print_inspection(run.found, console(), details=details)
    _print_files(run.files)


def finish_plantbench(job: Any, quiet: bool, as_json: bool) -> None:
    card = job.run(progress=not quiet)
    if job.by_case:
        say(card.case_tables() + "\n")
    elif "3" in job.tiers:
        say(card.case_tables(tier=3) + "\n")
    if "3" in job.tiers:
        say(card.left_out_tables() + "\n")
    say(card.table(lambda s: f"tier {s.tier}") if len(set(job.tiers)) > 1 else card.table())
    if card.power:
        say("\n" + card.power_tables())
    if card.circuits:
        say("\n" + card.circuit_table())
    if job.json_file is not None:
        say(f"score card: {job.json_file}")


def show_study(folder: Path, certified: Mapping[tuple[str, str], str], as_json: bool, details: bool) -> None:
    """Print the results of a study, a line for each property, and compare verdicts with the certified truth if there is
    one.
    """
    results = import_module("probing.training.results").ProbeResults.read(folder)
    run = None
    if (folder / "use.jsonl").is_file():
        run = import_module("probing.verdicts.judging").read_use_run(folder)
    show(results, as_json, details, use=run, folder=folder)
    if run is None or as_json:
        return
    show_answers(run.results)
    show_latents(run.results)
    warn_of_behaviours(run.results)
    known = [(v, certified[v.task, v.place]) for v in run if (v.task, v.place) in certified]
    if not known:
        return
    right = sum(_agreement(verdict.word.coarse, label) == "right" for verdict, label in known)
    say(
        "\nThe truth of this model is certified by do-interventions on minimal pairs: "
        f"{right} of {len(known)} verdicts are right."
    )
    width = max(len(f"{v.task} at {v.place}") for v, _ in known)
    for verdict, label in known:
        coarse = verdict.word.coarse
        agreement = _agreement(coarse, label)
        if details or agreement != "right":
            said = f"certified {label:7} verdict {coarse:15} {agreement}"
            say(f"  {f'{verdict.task} at {verdict.place}':{width}}  {said}")


def _agreement(coarse: str, label: str) -> str:
    """Return whether a verdict agrees with what is certified: `right`, `WRONG` or `undecided`."""
    right = {"used": ("used",), "unused": ("decodable only", "not decodable")}.get(label, ())
    return "right" if coarse in right else "undecided" if coarse == "inconclusive" or not right else "WRONG"


def show_verdicts(verdicts: Iterable[Any]) -> None:
    import_module("probing.reporting.use_tables").print_verdicts(list(verdicts), console())


def finish_report(job: Any, quiet: bool, as_json: bool) -> None:
    say(f"report: {job.run()}")
    tables = [Path(job.results) / f"{name}.parquet" for name in ("results", "verdicts")]
    for table in filter(Path.is_file, tables):
        say(f"{table.stem}: {table}")
    failures = import_module("probing.results.analysis").read_failures(Path(job.results))
    warn([f"{failure.name} failed: {failure.text}" for failure in failures])


def finish_cross(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    results = job.run()
    warn(results.remarks)
    if as_json:
        say(results.json_lines(), nl=False)
        return
    module = import_module("probing.reporting.transfer_sections")
    is_matrix = results.name == "transfer"
    if is_matrix:
        module.print_transfer(list(results), console(), details=details)
        warn(module.doubts(list(results)))
    if details or not is_matrix:
        columns = ["site", "probe", "measure", "trained_on", "tested_on", "value", "low", "high", "difference"]
        say(results.table()[columns].to_string(index=False, float_format="%.3f", na_rep="–"))
    say(f"results: {Path(job.to) / f'{results.name}.parquet'}\nnext: probing report {job.to}")


def finish_similarity(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    results = job.run(progress=not quiet)
    _show_similarity(results, as_json, details)
    if not as_json:
        say(f"results: {Path(job.to) / 'similarity.parquet'}\nnext: probing report {job.to}")


def _show_similarity(results: Any, as_json: bool, details: bool) -> None:
    if as_json:
        say(results.json_lines(), nl=False)
    else:
        import_module("probing.reporting.similarity_sections").print_similarity(results, console(), details=details)
    doubts = import_module("probing.reporting.similarity_words").doubts(list(results))
    warn([*results.remarks, *doubts])


def print_json(results: Any) -> None:
    say(import_module("probing.results.probe").json_lines(results), nl=False)
    for task in import_module("probing.reporting.task_results").by_task(results):
        sentences = import_module("probing.reporting.warnings").warnings_of_task(task)
        warn([f"{task.title}: {sentence}" for sentence in sentences])


def warn(sentences: Iterable[str]) -> None:
    """Print each sentence as a warning on standard error; empty sentences are left out."""
    for sentence in filter(None, sentences):
        say(f"warning: {sentence}", err=True)
