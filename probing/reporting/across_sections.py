"""Shows one task in several models: a section of the page, and lines and tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table as Grid

from probing.reporting.across_models import AcrossModels, best_of, charts, claims, difference, notes, panels, site_map
from probing.reporting.blocks import Figure, Fold, Number, Section, Table, number
from probing.reporting.charts import described
from probing.reporting.findings import finding
from probing.reporting.sections import map_table
from probing.reporting.tables import grid
from probing.reporting.task_results import comparison, least_gain, score, site_order
from probing.reporting.wording import correction_title, folded, p_value, plural, with_interval
from probing.results.probe import MeasureResult, Score
from probing.system.screen import shown

_WIDE = 120


def rows(across: AcrossModels) -> tuple[list[str], list[list[str | Number]]]:
    """Return the headings of a table, and a row for each model at the site and probe that are best on dev, and for each
    baseline.
    """
    is_stepped = any(one.step is not None for one in across.models)
    head = ["model", *(["step"] if is_stepped else []), "parameters", "best site", "score"]
    head += ["difference", "from", "adjusted p"] if across.pairs else []
    head += ["selectivity", "gain over baseline", "finding"]
    models = [_row(across, i, is_stepped) for i in range(len(across.tasks))]
    known = [(one.probe, score(one, across.tasks[0].primary)) for one in across.tasks[0].baselines]
    return head, models + [_baseline_row(head, name, found) for name, found in known if found]


def _baseline_row(head: Sequence[str], name: str, found: MeasureResult) -> list[str | Number]:
    """Return the row of a baseline, which reads no state of any model."""
    cells: dict[str, str | Number] = {"model": f"baseline {name}", "score": number(found.score)}
    return [cells.get(column, "–") for column in head]


def _row(across: AcrossModels, i: int, is_stepped: bool) -> list[str | Number]:
    task, model = across.tasks[i], across.models[i]
    result, measured = best_of(task)
    against, gain = comparison(measured, next(iter(task.controls()), None)), least_gain(measured)
    row: list[str | Number] = [model.title]
    row += ["–" if model.step is None else f"{model.step:,}"] if is_stepped else []
    row += ["–" if model.parameters is None else f"{model.parameters:,}"]
    row += [f"{result.site}, {result.probe}", number(measured.score if measured else None)]
    if across.pairs:
        pair, of = across.pair(i), across.reference(i)
        row += [difference(pair), across.names[of or 0], p_value(pair["p_adjusted"])] if pair else ["–", "–", "–"]
    row += [number(against.selectivity if against else None), number(gain.gain if gain else None)]
    row.append(finding(task).status)
    return row


def section(across: AcrossModels, anchor: str) -> Section:
    """Return the section of the page on one task in several models."""
    drawn, found = panels(across), site_map(across)
    described_map = [found.description] if found else []
    head, body = rows(across)
    caption = (
        "Test rows, at the site and probe that are best on dev for each model; bands are 95 % intervals. Dotted: "
        "baselines that read no state, and so no model. The map has every site."
    )
    figure = Figure(charts(across), caption if drawn else "", ". ".join([described(drawn), *described_map]))
    table = Table(f"Each model at the site and probe that are best on dev.{_tested(across)}", head, body, _texts(head))
    folds = [Fold("Scores at each site", [map_table(found)] if found else [])]
    folds += [Fold("Differences at each site", [_site_table(across)])] if across.by_site else []
    title = f"{across.task} in {plural(len(across.tasks), 'model')}"
    said = [f"{claim}." for claim in claims(across)]
    return Section(
        anchor,
        title,
        [t.states for t in across.tasks],
        claims=said,
        notes=notes(across),
        blocks=[figure, table],
        folds=folds,
    )


def _tested(across: AcrossModels) -> str:
    """Return what the differences in a table are."""
    if not across.pairs:
        return ""
    row = next(iter(across.pairs.values()))
    how = f"{correction_title(row['correction'])}-adjusted over {plural(len(across.pairs), 'pair')}"
    return f" Differences are paired, on the same {row['n']:,} rows and resamples; p is {how}."


def _texts(head: Sequence[str]) -> list[int]:
    """Return the numbers of the columns that hold words."""
    return [i for i, name in enumerate(head) if name in ("model", "best site", "from", "finding")]


def _site_table(across: AcrossModels) -> Table:
    sites = sorted({site for _, site in across.by_site}, key=site_order)
    models = list(dict.fromkeys(i for i, _ in across.by_site))
    found = [
        [site, *(difference(row) if (row := across.by_site.get((i, site))) else "–" for i in models)] for site in sites
    ]
    head = [f"{across.names[i]} less {across.names[across.reference(i) or 0]}" for i in models]
    said = f"Differences at the same site, by {best_of(across.tasks[0])[0].probe}: paired; intervals are not adjusted."
    return Table(said, ["site", *head], found)


def print_across(across: Sequence[AcrossModels], console: Console, *, details: bool) -> None:
    """Print the claims and warnings of each task; with `details`, a table of its models comes first."""
    for one in across:
        if details:
            console.print(shown(f"{one.task} in {plural(len(one.tasks), 'model')}", style="bold"))
            console.print(_printed(one, with_interval if console.width >= _WIDE else folded))
            console.print(shown(_OF_DIFFERENCES, style="dim"))
        for claim in claims(one):
            console.print(shown(f"{one.task}: {claim[:1].lower() + claim[1:] if one.series() else claim}"))
        for note in notes(one):
            console.print(shown(f"warning: {one.task}: {note}", style="bold yellow"))


_OF_DIFFERENCES = (
    "at the site that is best on dev for each model; differences are paired, from the first step of the run, the "
    "untrained twin or the smallest model"
)


def _printed(across: AcrossModels, said: Callable[[Score], str]) -> Grid:
    """Return the table of the terminal, in which models have their short names."""
    head = ["model", "site", "score", *(["difference", "adj. p"] if across.pairs else []), "selectivity", "gain"]
    table = grid(head, texts=(0, 1))
    table.columns[0].no_wrap = True
    for i, task in enumerate(across.tasks):
        result, measured = best_of(task)
        against, gain = comparison(measured, next(iter(task.controls()), None)), least_gain(measured)
        row = [across.names[i], result.site, said(measured.score) if measured else "–"]
        pair = across.pair(i)
        if across.pairs:
            found = Score(pair["difference"], pair["low"], pair["high"], pair["n"], "") if pair else None
            row += [said(found), p_value(pair["p_adjusted"])] if pair and found else ["–", "–"]
        row += [said(against.selectivity) if against else "–", said(gain.gain) if gain else "–"]
        table.add_row(*map(shown, row))
    return table
