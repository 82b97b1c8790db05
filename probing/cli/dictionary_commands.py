"""The commands `probing dictionary …`: they train sparse dictionaries and show their latents."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from probing.cli.job_commands import add_job_command
from probing.system.screen import console, say

dictionary_app = typer.Typer(help="Train, check and read sparse dictionaries of states.", no_args_is_help=True)


def finish_dictionary_train(job: Any, quiet: bool, as_json: bool) -> None:
    """Run `probing dictionary train`, and print the dictionary beside its controls, as a table or JSON."""
    training = job.run(progress=not quiet).training
    page = import_module("probing.reporting").report(Path(job.to))
    if as_json:
        say(training.to_json(), nl=False)
    else:
        import_module("probing.reporting.latent_sections").print_training(training, console())
    import_module("probing.cli.output").warn(training.doubts)
    if not as_json:
        say(f"dictionary: {job.to}\nresults: {Path(job.to) / 'dictionary_training.parquet'}\nreport: {page}")
        say(f"next: probing dictionary tops {job.to} --store {job.store} --corpus … --to …")


def finish_dictionary_tops(job: Any, quiet: bool, as_json: bool, details: bool) -> None:
    """Run `probing dictionary tops`, and print latents with their contexts, as tables or JSON."""
    result = job.run(progress=not quiet)
    page = import_module("probing.reporting").report(Path(job.to))
    if as_json:
        say(result.to_json(), nl=False)
        return
    import_module("probing.reporting.latent_sections").print_contexts(result, console(), details=details)
    say(f"results: {Path(job.to) / 'latent_contexts.parquet'}\nreport: {page}")


_HOME = "probing.jobs.dictionary_training"
add_job_command(dictionary_app, "train", "DictionaryTrainJob", finish_dictionary_train, home=_HOME)
add_job_command(dictionary_app, "tops", "DictionaryTopsJob", finish_dictionary_tops, home=_HOME, with_details=True)
