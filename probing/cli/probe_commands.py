"""The commands `probing probe show` and `probing score`: show the card of a saved probe, and score new texts by it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from probing.cli.once_only import OnceOnly
from probing.cli.store_commands import AsJson, path_argument, print_mapping
from probing.system.screen import say

probe_app = typer.Typer(help="Show probes that `probing train --to DIR` saved in DIR/probes.", no_args_is_help=True)


@probe_app.command("show", cls=OnceOnly)
def probe_show(
    probe: Annotated[Path, path_argument(metavar="PROBE", help="file of a saved probe", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show what a saved probe was trained on and how good it is: labels, site, rows, model, scores with intervals,
    control, threshold.

    Example: probing probe show cache/results/upos/probes/upos/resid.2/linear/HASH.json
    """
    found = import_module("probing.probes._estimator").load_probe(probe)
    if as_json:
        say(json.dumps(dict(found.about), sort_keys=True))
        return
    print_mapping(dict(import_module("probing.reporting.probe_card").card_rows(found)), False, verbatim=True)


def finish_score(job: Any, quiet: bool, as_json: bool) -> None:
    """Run the job of `probing score`: print JSON lines as texts are scored, or the names of the files written."""
    warned: set[str] = set()
    output = import_module("probing.cli.output")
    has_warned, unknown_pieces_warning = False, import_module("probing.states.store.views").unknown_pieces_warning
    for scores in job.run(progress=not quiet):
        unknown, pieces = scores.unknown_pieces.sum(0).tolist()
        if not has_warned and (doubt := unknown_pieces_warning(unknown / pieces if pieces else None)):
            output.warn([doubt])
            has_warned = True
        new = [f"not as in training: {remark}" for remark in scores.recipe.remarks if remark not in warned]
        output.warn(new)
        warned.update(scores.recipe.remarks)
        if not job.files or as_json:
            say(scores.json_lines(), nl=False)
    for file in job.files:
        say(f"scores: {file}", err=as_json)
