"""Terminal tables of patching and ablation: grids where they fit, else the largest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from probing.reporting.use_tables import short2
from probing.reporting.wording import decimal, plural
from probing.results.patching import PatchingResult
from probing.results.use import answers_said
from probing.system.screen import shown

if TYPE_CHECKING:
    from probing.use.patching.ablating import AblationResult
    from probing.use.patching.prompt_pairs import PairPatching

_LARGEST = 12
_EXACT = "a share of the difference between the prompts: 0 changes nothing, 1 gives all of it"
_BESIDE = " (in brackets: by attribution)"


def print_patching(found: PairPatching, console: Console, *, title: str, into: str) -> None:
    """Print shares by site and position, attribution in brackets; the effect of the prompts by themselves; and the
    error.
    """
    exact, rough = found.exact, found.rough
    other = {"corrupted": "clean", "clean": "corrupted"}[into]
    heading = f"{title}: {plural(exact.n_pairs, 'pair')}, {into} prompts run with one state of their {other} ones"
    console.print(shown(heading, style="bold"))
    if exact.model:
        console.print(shown(f"model: {exact.model}", style="dim"))
    if found.clean is not None and found.corrupted is not None:
        said = f"logit of answer less corrupted_answer: {decimal(found.clean)} after clean prompts, "
        console.print(shown(f"{said}{decimal(found.corrupted)} after corrupted ones"))
    if exact.answers:
        console.print(shown(f"answers as measured: {answers_said(exact.answers)}", style="dim"))
    if _fits(_grid(exact, rough), console):
        console.print(_grid(exact, rough))
        console.print(shown(_EXACT + (_BESIDE if rough is not None else ""), style="dim"))
    elif _fits(_grid(exact, None), console):
        console.print(_grid(exact, None))
        console.print(shown(_EXACT, style="dim"))
        if rough is not None:
            console.print(_grid(rough, None))
            console.print(shown("the same by attribution", style="dim"))
    else:
        console.print(_listed(exact, rough))
        console.print(shown(_EXACT + (_BESIDE if rough is not None else ""), style="dim"))
    _print_pieces(found, console)
    if rough is not None:
        error = exact.error_of(rough)
        together = "" if error.correlation is None else f", correlation {decimal(error.correlation, 2)}"
        said = f"attribution less activation patching: root mean square {decimal(error.root_mean_square)}, largest "
        console.print(shown(f"{said}{decimal(error.largest)}{together}"))


def _fits(table: Table, console: Console) -> bool:
    return Console(width=10**6).measure(table).maximum <= console.width


def _print_pieces(found: PairPatching, console: Console) -> None:
    if found.exact.n_pairs == 1 or any(name.startswith("start") for name in found.pieces):
        parts = [
            f"{name} {clean!r}" + (f" / {corrupted!r}" if corrupted != clean else "")
            for name, (clean, corrupted) in found.pieces.items()
        ]
        console.print(shown(f"pieces of the first pair, clean / corrupted: {'; '.join(parts)}", style="dim"))


def _said(exact: PatchingResult, rough: PatchingResult | None, i: int, j: int) -> str:
    value = exact.normalised[i, j]
    if not np.isfinite(value):
        return ""
    return short2(float(value)) + ("" if rough is None else f" ({short2(float(rough.normalised[i, j]))})")


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
    table.add_column(shown(first), no_wrap=True)
    return table


def _grid(exact: PatchingResult, rough: PatchingResult | None) -> Table:
    table = _table("site")
    for position in exact.positions:
        table.add_column(shown(position.replace("start+", "+") or "row"), justify="right", no_wrap=True)
    for i, site in enumerate(exact.sites):
        table.add_row(shown(site), *(shown(_said(exact, rough, i, j)) for j in range(len(exact.positions))))
    return table


def _listed(exact: PatchingResult, rough: PatchingResult | None) -> Table:
    """Return the places of the largest shares."""
    table = _table(f"largest {_LARGEST} places")
    table.add_column("share", justify="right", no_wrap=True)
    sizes = np.nan_to_num(np.abs(exact.normalised), nan=-1.0)
    for at in np.argsort(-sizes, axis=None, kind="stable")[:_LARGEST].tolist():
        i, j = divmod(at, len(exact.positions))
        if sizes[i, j] >= 0:
            table.add_row(shown(f"{exact.sites[i]}@{exact.positions[j]}"), shown(_said(exact, rough, i, j)))
    return table


def print_ablation(found: AblationResult, console: Console) -> None:
    """Print effects by component; heads as a grid of layers and heads."""
    kind = str(found.components[0]).split()[0]
    heading = f"{found.by} ablation of each {kind}: {plural(found.n_rows, 'row')}"
    console.print(shown(heading, style="bold"))
    if found.components[0].head is not None:
        console.print(_heads(found))
        console.print(shown("change of the behaviour, in SDs of the clean one, by layer and head", style="dim"))
    else:
        table = _table(kind)
        for name in ("change, SD", "flips"):
            table.add_column(name, justify="right", no_wrap=True)
        flips = found.flips if found.flips is not None else [None] * len(found.components)
        for one, effect, flip in zip(found.components, found.effect, flips, strict=True):
            table.add_row(shown(str(one)), decimal(float(effect)), decimal(None if flip is None else float(flip)))
        console.print(table)
        console.print(
            shown(
                "change: of the behaviour, in SDs of the clean one; flips: share of rows whose largest "
                "answer is another",
                style="dim",
            )
        )
    _print_largest(found, console)


def _heads(found: AblationResult) -> Table:
    table, grid = _table("layer"), found.grid()
    for head in range(grid.shape[1]):
        table.add_column(str(head), justify="right", no_wrap=True)
    layers = sorted({component.layer for component in found.components})
    for layer, values in zip(layers, grid, strict=True):
        table.add_row(str(layer), *(short2(float(value)) if np.isfinite(value) else "" for value in values))
    return table


def _print_largest(found: AblationResult, console: Console) -> None:
    order = np.argsort(-found.effect, kind="stable")[:3]
    said = ", ".join(f"{found.components[k]} {decimal(float(found.effect[k]), 2)}" for k in order)
    console.print(shown(f"largest: {said} SD"))
