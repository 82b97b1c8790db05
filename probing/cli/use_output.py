"""Prints the verdicts of `probing use`, and ends it with an error if a task could not be measured."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from probing.cli.output import (
    end_if_unmatched,
    show_answers,
    show_latents,
    show_lines,
    show_verdicts,
    warn,
    warn_of_behaviours,
)
from probing.errors import UnitFailed
from probing.system.screen import say


def finish_use(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    try:
        run = job.run(progress=not quiet)
    except UnitFailed as failure:
        if (Path(job.to) / "use.jsonl").is_file():
            if not as_json:
                say(f"In {job.to}, with verdicts of earlier runs; what failed in this one is named at the end:")
            _show_use(import_module("probing.verdicts.judging").read_use_run(job.to), job, as_json, details)
        raise failure
    _show_use(run, job, as_json, details)
    end_if_unmatched(run)


def _show_use(run: Any, job: Any, as_json: bool, details: bool) -> None:
    if as_json:
        for verdict in run:
            say(verdict.to_json())
        warn_of_behaviours(run.results)
        return
    if details:
        show_verdicts(run.verdicts)
    show_lines(use=run, details=details)
    show_answers(run.results)
    show_latents(run.results)
    for result in run.results:
        if result.twin_pairs is not None:
            say(f"{result.task}: whole states were exchanged between {result.twin_pairs:,} pairs of twins")
    warn(
        [f"{r.task}: left out, as too rare for three folds: {', '.join(r.left_out)}" for r in run.results if r.left_out]
    )
    warn_of_behaviours(run.results)
    say(f"verdicts: {Path(job.to) / 'verdicts.parquet'}\nnext: probing report {job.to}")
