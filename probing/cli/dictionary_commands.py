"""The commands `probing dictionary …`: sparse dictionaries are read, checked on states, and encode them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer

from probing.cli.job_commands import add_job_command
from probing.cli.store_commands import print_store
from probing.system.screen import console, say, shown

dictionary_app = typer.Typer(
    help="Read, check and use sparse dictionaries of states (sparse autoencoders, transcoders).", no_args_is_help=True
)


def finish_info(job: Any, quiet: bool, as_json: bool) -> None:
    """Run the job of `probing dictionary info` and print what the dictionary is."""
    made = job.run(progress=not quiet)
    facts = {
        "source": made.source,
        "architecture": made.architecture,
        "activation": made.activation,
        "latents": made.n_latents,
        "width": made.width,
        "k": made.k,
        "normalization": made.normalization,
        "subtract_decoder_bias": made.subtract_decoder_bias,
        "model": made.model,
        "site": made.site,
        "target": made.target,
        "content_id": made.content_id,
        "declared": dict(made.declared),
    }
    if as_json:
        say(json.dumps(facts, sort_keys=True, default=str))
        return
    facts["declared"] = ", ".join(f"{name} {value}" for name, value in made.declared.items())
    _print(facts)
    if made.site is None:
        say("no site of this name here: give --site where states are encoded", err=True)


def finish_check(job: Any, quiet: bool, as_json: bool) -> None:
    """Run the job of `probing dictionary check`, print what was measured, and end in an error if the dictionary does
    not do what its file declares.
    """
    found = job.run(progress=not quiet)
    if as_json:
        say(json.dumps(asdict(found), sort_keys=True, default=str))
    else:
        _print_check(found)
    found.refuse_if_wrong(job.dictionary)


def _print_check(found: Any) -> None:
    declared = found.declared
    rows = {
        "site": f"{found.site}, {found.rows:,} rows",
        "L0": f"{found.fit.l0:.4g}" + (f" (declared {declared['l0']:g})" if "l0" in declared else ""),
        "variance unexplained": f"{found.fit.fvu:.1%}"
        + (f" (declared {declared['fvu']:.1%})" if "fvu" in declared else ""),
        "dead latents": f"{found.fit.dead:.1%} on these rows",
    }
    if found.loss is not None:
        loss = found.loss
        scores = {
            "loss (nats)": loss.clean,
            "loss, reconstruction put in": loss.reconstructed,
            "loss, mean state put in": loss.mean,
            "loss, zeros put in": loss.zero,
        }
        rows |= {name: f"{one.value:.4g} [{one.low:.4g}, {one.high:.4g}]" for name, one in scores.items()}
        shares = {"loss recovered": loss.recovered, "loss recovered from the mean state": loss.recovered_from_mean}
        rows |= {name: f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]" for name, one in shares.items()}
    _print(rows)


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, ""):
            table.add_row(shown(name), shown(str(value)))
    console().print(table)


def finish_encode(job: Any, quiet: bool, as_json: bool) -> None:
    """Run the job of `probing dictionary encode` and print the store of latents."""
    print_store(job.run(progress=not quiet).path, as_json, brief=True)


for _name, _finish in (("info", finish_info), ("check", finish_check), ("encode", finish_encode)):
    add_job_command(dictionary_app, _name, f"Dictionary{_name.title()}Job", _finish, home="probing.jobs.dictionary")
