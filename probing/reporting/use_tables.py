"""Prints tables of verdicts, patching and ablation in the terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from probing.reporting.latent_words import edit_title
from probing.reporting.terminal import WIDE, grid, print_lines, print_table
from probing.reporting.use_words import SHORT, adjusted_p, deciding, effect, flags_said, mediated
from probing.reporting.wording import count, decimal, folded, interval, p_value, plural, short, with_interval
from probing.results.patching import PatchingResult
from probing.results.use import EditEffect, UseCell, answers_said
from probing.system.screen import shown
from probing.verdicts.verdict import Verdict, Word

if TYPE_CHECKING:
    from probing.use.patching.ablating import AblationResult
    from probing.use.patching.prompt_pairs import PairPatching


_DOSES_SAID = (
    "effect of the swap, in SD, by dose (1: the whole difference of class means); * the dose taken, chosen on states "
    "alone; complete: how far probes on states see the goal (1: as in its own rows); MDE: smallest effect of either "
    "edit found with 80 % probability"
)
_OTHERS_SAID = (
    "root mean square change of the output, in its SDs, by other interventions, for comparison alone; in brackets the "
    "95th percentile of the draws; control_task: LEACE of labels shuffled within strata"
)
_COLUMNS = ("place", "accuracy", "effect, SD", "mediated", "p", "verdict")
_STYLE = {"used": "bold green", "decodable only": "bold", "not decodable": "dim"}


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print one table for each property and behaviour; below it, explain its flags and why some verdicts are
    undecided.
    """
    for group in _grouped(verdicts):
        flags = dict.fromkeys(flag for verdict in group for flag in verdict.flags)
        letters = {name: chr(ord("a") + i) for i, name in enumerate(flags)}
        print_lines(console, [_heading(group[0])], style="bold")
        console.print(_table(group, letters, console.width))
        print_lines(console, [_notes(group, console.width)], style="dim")
        cells = [verdict.evidence for verdict in group if verdict.evidence is not None]
        if cells:
            _print_doses(cells, console)
        if any(cell.comparisons for cell in cells):
            console.print(_others([cell for cell in cells if cell.comparisons]))
            print_lines(console, [_OTHERS_SAID], style="dim")
        marked = {name: name for name in letters} if console.width >= WIDE else letters
        print_lines(console, [*_flag_lines(group, marked), *_undecided(group), ""])


def _grouped(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    groups: dict[tuple[str, ...], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.task, verdict.behaviour, verdict.model, verdict.unit), []).append(verdict)
    return list(groups.values())


def _heading(first: Verdict) -> str:
    of = f" in {first.behaviour}" if first.behaviour else ""
    rows = f" {count(first.n_rows)} rows" if first.n_rows is not None else ""
    coverage = f" ({100 * first.coverage:.0f} % matched)" if first.coverage is not None else ""
    return f"Is {first.task} used by {first.model or 'the model'}{of}?{rows}{coverage}"


def _table(group: Sequence[Verdict], letters: dict[str, str], width: int) -> Table:
    table = grid(["acc." if name == "accuracy" and width < WIDE else name for name in _COLUMNS], texts=(0, 5))
    table.columns[-1].no_wrap = True
    for verdict in group:
        *cells, word = _row(verdict, letters, width)
        table.add_row(*map(shown, cells), shown(word, style=_STYLE.get(verdict.word.coarse, "")))
    return table


def _row(verdict: Verdict, letters: dict[str, str], width: int) -> list[str]:
    edit, gate = deciding(verdict), verdict.decodability
    shown = verdict.flags if width >= WIDE else [letters[flag] for flag in verdict.flags]
    flags = f" ({','.join(shown)})" if shown else ""
    numbers = ["–"] * 3
    if edit is not None:
        dagger = "†" if verdict.word is Word.USED_SITE else ""
        own = with_interval(effect(edit), 2) if width >= WIDE else _narrow(edit)
        p = p_value(adjusted_p(edit)).replace("< 0", "<").removeprefix("0")
        numbers = [own + dagger, _mediated(edit, width), p]
    return [verdict.place, short(gate.accuracy) if gate else "–", *numbers, SHORT[verdict.word] + flags]


def _print_doses(cells: Sequence[UseCell], console: Console) -> None:
    """Print a table that gives for each place how complete the swap is, its effect by dose, the smallest effect that
    would be detected, and the effect of states of the same value, which is subtracted from an interchange.
    """
    doses = sorted({dose for cell in cells for dose, _ in cell.dose_curve} | {cell.dose for cell in cells})
    has_alike = any(cell.whole.alike is not None for cell in cells)
    rows = []
    for cell in cells:
        by_dose = {cell.dose: cell.subspace.effect_size} | dict(cell.dose_curve)
        marks = ["*" if dose == cell.dose else " " for dose in doses]
        known = [(by_dose.get(dose), mark) for dose, mark in zip(doses, marks, strict=True)]
        effects = ["–" if value is None else f"{decimal(value, 2)}{mark}" for value, mark in known]
        alike = [decimal(cell.whole.alike, 2)] if has_alike else []
        detectable = max(edit.smallest_detectable_effect for edit in (cell.subspace, cell.whole))
        rows.append([cell.place, *effects, decimal(cell.completeness, 2), decimal(detectable, 2), *alike])
    head = ["swap by dose", *(f"{dose:g}" for dose in doses), "complete", "MDE"]
    print_table(console, [*head, *(["same value"] if has_alike else [])], rows, (0,), note=_DOSES_SAID)


def _others(cells: Sequence[UseCell]) -> Table:
    """Return a table of what other interventions change at each place; of random subspaces the median, and the 95th
    percentile.
    """
    names = list(dict.fromkeys(name for cell in cells for name in cell.comparisons))
    table = grid(["other edits", *map(edit_title, names)], texts=(0,))
    for column in table.columns:
        column.no_wrap = False
    for cell in cells:
        table.add_row(*map(shown, (cell.place, *(_change(cell.comparisons.get(name)) for name in names))))
    return table


def _change(numbers: dict[str, float] | None) -> str:
    if numbers is None or "change" not in numbers:
        return "–"
    high = numbers.get("change_high")
    return decimal(numbers["change"], 2) + (f" ({decimal(high, 2)})" if high is not None else "")


def _narrow(edit: EditEffect) -> str:
    """Return an effect and half the width of its interval, as `0.12 ±.07`."""
    return f"{decimal(edit.effect_size, 2)} {folded(effect(edit), 2).partition(' ')[2]}"


def _mediated(edit: EditEffect, width: int) -> str:
    found = mediated(edit)
    if found is None or not interval(found):
        return "–"
    return with_interval(found, 2, decimal if width >= WIDE else short)


def _notes(group: Sequence[Verdict], width: int) -> str:
    notes = ["effect: of a class-mean swap, in SDs of the clean output"]
    notes += [] if width >= WIDE else ["± half the 95 % interval"]
    if any(verdict.word is Word.USED_SITE for verdict in group):
        notes.append("† of interchange of whole states")
    notes += [
        "mediated: share of the natural difference",
        f"used: at least {group[0].epsilon:g} SD",
        "p: adjusted over edits, statistics and places",
    ]
    return "; ".join(notes)


def _flag_lines(group: Sequence[Verdict], letters: dict[str, str]) -> list[str]:
    """Return a line for each flag; at several places, the numbers are of the first."""
    lines = []
    for name, letter in letters.items():
        having = [verdict for verdict in group if name in verdict.flags]
        said = dict(flags_said(having[0])).get(name, "")
        where = f" (at {having[0].place})" if len(having) > 1 and said else ""
        lines.append(f"{name if letter == name else f'({letter}) {name}'}{f': {said}' if said else ''}{where}")
    return lines


def _undecided(group: Sequence[Verdict]) -> list[str]:
    """Return why each inconclusive verdict is inconclusive; places with the same reason stand together."""
    reasons: dict[str, list[str]] = {}
    for verdict in group:
        if verdict.word is Word.INCONCLUSIVE:
            why = verdict.reason.removeprefix("Inconclusive: ").split(" (smallest detectable")[0].rstrip(".")
            reasons.setdefault(why, []).append(verdict.place)
    together = [f"{verdict.place}: {verdict.text}" for verdict in group if verdict.word is Word.NOT_ALONE]
    return [*(f"inconclusive at {', '.join(places)}: {reason}" for reason, places in reasons.items()), *together]


_LARGEST = 12
_EXACT = "a share of the difference between the prompts: 0 changes nothing, 1 gives all of it"
_BESIDE = " (in brackets: by attribution)"


def print_patching(found: PairPatching, console: Console, *, title: str, run_prompt: str) -> None:
    """Print the effects of patching as shares by site and position (those of attribution patching in brackets), the
    output after clean and corrupted prompts, and the error of attribution patching.
    """
    exact, rough = found.exact, found.rough
    other = {"corrupted": "clean", "clean": "corrupted"}[run_prompt]
    heading = f"{title}: {plural(exact.n_pairs, 'pair')}, {run_prompt} prompts run with one state of their {other} ones"
    print_lines(console, [heading], style="bold")
    print_lines(console, [f"model: {exact.model}"] if exact.model else [], style="dim")
    if found.clean is not None and found.corrupted is not None:
        said = f"logit of answer less corrupted_answer: {decimal(found.clean)} after clean prompts, "
        print_lines(console, [f"{said}{decimal(found.corrupted)} after corrupted ones"])
    answers = answers_said(exact.answers) if exact.answers else ""
    print_lines(console, [f"answers as measured: {answers}"] if answers else [], style="dim")
    _print_shares(exact, rough, console)
    _print_pieces(found, console)
    if rough is not None:
        error = exact.error_of(rough)
        together = "" if error.correlation is None else f", correlation {decimal(error.correlation, 2)}"
        said = f"attribution less activation patching: root mean square {decimal(error.root_mean_square)}, largest "
        print_lines(console, [f"{said}{decimal(error.largest)}{together}"])


def _print_shares(exact: PatchingResult, rough: PatchingResult | None, console: Console) -> None:
    """Print the shares by site and position: both kinds in one table, or in two where one is too wide, or the largest
    in a list.
    """
    whole, alone = _grid(exact, rough), _grid(exact, None)
    said = _EXACT + (_BESIDE if rough is not None else "")
    tables = [(whole if _fits(whole, console) else _listed(exact, rough), said)]
    if not _fits(whole, console) and _fits(alone, console):
        tables = [(alone, _EXACT), *([(_grid(rough, None), "the same by attribution")] if rough is not None else [])]
    for table, note in tables:
        console.print(table)
        print_lines(console, [note], style="dim")


def _fits(table: Table, console: Console) -> bool:
    return Console(width=10**6).measure(table).maximum <= console.width


def _print_pieces(found: PairPatching, console: Console) -> None:
    if found.exact.n_pairs == 1 or any(name.startswith("start") for name in found.pieces):
        parts = [
            f"{name} {clean!r}" + (f" / {corrupted!r}" if corrupted != clean else "")
            for name, (clean, corrupted) in found.pieces.items()
        ]
        print_lines(console, [f"pieces of the first pair, clean / corrupted: {'; '.join(parts)}"], style="dim")


def _said(exact: PatchingResult, rough: PatchingResult | None, i: int, j: int) -> str:
    value = exact.normalised[i, j]
    if not np.isfinite(value):
        return ""
    return short(float(value), 2) + ("" if rough is None else f" ({short(float(rough.normalised[i, j]), 2)})")


def _numbers(first: str, columns: Iterable[str]) -> Table:
    """Return an empty table of names and numbers, which are never broken."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
    table.add_column(shown(first), no_wrap=True)
    for name in columns:
        table.add_column(shown(name), justify="right", no_wrap=True)
    return table


def _grid(exact: PatchingResult, rough: PatchingResult | None) -> Table:
    table = _numbers("site", (position.replace("start+", "+") or "row" for position in exact.positions))
    for i, site in enumerate(exact.sites):
        table.add_row(shown(site), *(shown(_said(exact, rough, i, j)) for j in range(len(exact.positions))))
    return table


def _listed(exact: PatchingResult, rough: PatchingResult | None) -> Table:
    """Return the places of the largest shares."""
    table = _numbers(f"largest {_LARGEST} places", ["share"])
    sizes = np.nan_to_num(np.abs(exact.normalised), nan=-1.0)
    for at in np.argsort(-sizes, axis=None, kind="stable")[:_LARGEST].tolist():
        i, j = divmod(at, len(exact.positions))
        if sizes[i, j] >= 0:
            table.add_row(shown(f"{exact.sites[i]}@{exact.positions[j]}"), shown(_said(exact, rough, i, j)))
    return table


def print_ablation(found: AblationResult, console: Console) -> None:
    """Print the effects of ablating each component, in SD; effects of heads are printed as a table of layers by
    heads.
    """
    kind = str(found.components[0]).split()[0]
    print_lines(console, [f"{found.by} ablation of each {kind}: {plural(found.n_rows, 'row')}"], style="bold")
    if found.components[0].head is not None:
        console.print(_heads(found))
        note = "change of the behaviour, in SDs of the clean one, by layer and head"
    else:
        table = _numbers(kind, ("change, SD", "flips"))
        flips = found.flips if found.flips is not None else [None] * len(found.components)
        for one, change, flip in zip(found.components, found.effect, flips, strict=True):
            table.add_row(shown(str(one)), decimal(float(change)), decimal(None if flip is None else float(flip)))
        console.print(table)
        note = "change: of the behaviour, in SDs of the clean one; flips: share of rows whose largest answer is another"
    print_lines(console, [note], style="dim")
    order = np.argsort(-found.effect, kind="stable")[:3]
    said = ", ".join(f"{found.components[k]} {decimal(float(found.effect[k]), 2)}" for k in order)
    print_lines(console, [f"largest: {said} SD"])


def _heads(found: AblationResult) -> Table:
    grid = found.grid()
    table = _numbers("layer", map(str, range(grid.shape[1])))
    layers = sorted({component.layer for component in found.components})
    for layer, values in zip(layers, grid, strict=True):
        table.add_row(str(layer), *(short(float(value), 2) if np.isfinite(value) else "" for value in values))
    return table
