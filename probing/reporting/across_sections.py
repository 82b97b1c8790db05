"""Shows one task in several models: a section of the page, and lines and tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from probing.reporting.across_models import (
    AcrossModels,
    best_of,
    charts,
    claims,
    difference,
    notes,
    of_pair,
    panels,
    site_map,
)
from probing.reporting.blocks import Cell, Figure, Fold, Section, Table, map_table, number
from probing.reporting.charts import described
from probing.reporting.findings import finding
from probing.reporting.task_results import score, site_order
from probing.reporting.terminal import WIDE, grid, print_lines
from probing.reporting.wording import Estimate, correction_title, folded, p_value, plural, with_interval
from probing.system.screen import shown


def rows(across: AcrossModels) -> tuple[list[str], list[list[Cell]]]:
    """Return the headings of a table, and a row for each model at the site and probe that are best on dev, and for each
    baseline.
    """
    is_stepped = any(one.step is not None for one in across.models)
    head = ["model", "finding", *(["step"] if is_stepped else []), "parameters", "best site", "score"]
    head += ["difference", "from", "adjusted p"] if across.pairs else []
    head += ["selectivity", "gain over baseline"]
    models = [_row(across, i, is_stepped) for i in range(len(across.tasks))]
    for baseline in across.tasks[0].baselines:
        if found := score(baseline, across.tasks[0].primary):
            cells: dict[str, Cell] = {"model": f"baseline {baseline.probe}", "score": number(found.score)}
            models.append([cells.get(column, "–") for column in head])
    return head, models


def _row(across: AcrossModels, i: int, is_stepped: bool) -> list[Cell]:
    task, model = across.tasks[i], across.models[i]
    result, scores = best_of(task), task.on_test(best_of(task))
    row: list[Cell] = [model.title, finding(task).status]
    row += ["–" if model.step is None else f"{model.step:,}"] if is_stepped else []
    row += ["–" if model.parameters is None else f"{model.parameters:,}"]
    row += [f"{result.site}, {result.probe}", number(scores.score)]
    if across.pairs:
        pair, of = across.pair(i), across.reference(i)
        row += [difference(pair), across.names[of or 0], p_value(pair["p_adjusted"])] if pair else ["–", "–", "–"]
    return [*row, number(scores.selectivity), number(scores.gain)]


def section(across: AcrossModels, anchor: str) -> Section:
    """Return the section of the page on one task in several models."""
    drawn, found = panels(across), site_map(across)
    described_map = [found.description] if found else []
    head, body = rows(across)
    texts = [i for i, name in enumerate(head) if name in ("model", "best site", "from", "finding")]
    caption = (
        "Test rows, at the site and probe that are best on dev for each model; bands are 95 % intervals. Dotted: "
        "baselines that read no state, and so no model. The map has every site."
    )
    figure = Figure(charts(across), caption if drawn else "", ". ".join([described(drawn), *described_map]))
    table = Table(f"Each model at the site and probe that are best on dev.{_tested(across)}", head, body, texts)
    folds = [Fold("Scores at each site", [map_table(found)] if found else [])]
    folds += [Fold("Differences at each site", [_site_table(across)])] if across.by_site else []
    return Section(
        anchor,
        _title(across),
        [t.states for t in across.tasks],
        claims=[f"{claim}." for claim in claims(across)],
        notes=notes(across),
        blocks=[figure, table],
        folds=folds,
    )


def _title(across: AcrossModels) -> str:
    return f"{across.task} in {plural(len(across.tasks), 'model')}"


def _tested(across: AcrossModels) -> str:
    """Return what the differences in a table are."""
    if not across.pairs:
        return ""
    row = next(iter(across.pairs.values()))
    how = f"{correction_title(row['correction'])}-adjusted over {plural(len(across.pairs), 'pair')}"
    return f" Differences are paired, on the same {row['n']:,} rows and resamples; p is {how}."


def _site_table(across: AcrossModels) -> Table:
    sites = sorted({site for _, site in across.by_site}, key=site_order)
    models = list(dict.fromkeys(i for i, _ in across.by_site))
    found = [
        [site, *(difference(row) if (row := across.by_site.get((i, site))) else "–" for i in models)] for site in sites
    ]
    head = [f"{across.names[i]} less {across.names[across.reference(i) or 0]}" for i in models]
    said = f"Differences at the same site, by {best_of(across.tasks[0]).probe}: paired; intervals are not adjusted."
    return Table(said, ["site", *head], found)


def print_across(across: Sequence[AcrossModels], console: Console, *, details: bool) -> None:
    """Print the claims and warnings of each task; with `details`, a table of its models comes first."""
    for one in across:
        if details:
            _print_models(one, console)
        said = [claim[:1].lower() + claim[1:] if one.series() else claim for claim in claims(one)]
        print_lines(console, [f"{one.task}: {claim}" for claim in said])
        print_lines(console, [f"warning: {one.task}: {note}" for note in notes(one)], style="bold yellow")


_OF_DIFFERENCES = (
    "at the site that is best on dev for each model; differences are paired, from the first step of the run, the "
    "untrained twin or the smallest model"
)


def _print_models(across: AcrossModels, console: Console) -> None:
    """Print a table in which models have their short names, and whose first column is never broken."""
    said: Callable[[Estimate | None], str] = with_interval if console.width >= WIDE else folded
    head = ["model", "site", "score", *(["difference", "adj. p"] if across.pairs else []), "selectivity", "gain"]
    table = grid(head, texts=(0, 1))
    table.columns[0].no_wrap = True
    for i, task in enumerate(across.tasks):
        scores, pair = task.on_test(best_of(task)), across.pair(i)
        row = [across.names[i], best_of(task).site, said(scores.score)]
        if across.pairs:
            row += [said(of_pair(pair)), p_value(pair["p_adjusted"])] if pair else ["–", "–"]
        table.add_row(*map(shown, (*row, said(scores.selectivity), said(scores.gain))))
    print_lines(console, [_title(across)], style="bold")
    console.print(table)
    print_lines(console, [_OF_DIFFERENCES], style="dim")
