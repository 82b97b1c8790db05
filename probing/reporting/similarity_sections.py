"""Shows similarity on the page and in the terminal: heat maps of sites, curves over sites and steps, tables, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from probing.reporting.blocks import Figure, Fold, Number, Section, Table, Words, number
from probing.reporting.charts import Chart, panel_chart
from probing.reporting.drawing import altair_chart, together
from probing.reporting.grids import HeatMap, map_chart
from probing.reporting.panels import Curve, Panel, Point
from probing.reporting.similarity_words import (
    CAPTION,
    LIMITS,
    OF_STATES,
    TITLES,
    claims,
    disagreement_sentence,
    disagreements,
    doubts,
)
from probing.reporting.tables import grid
from probing.reporting.task_results import site_order
from probing.reporting.wording import decimal, folded, plural, short
from probing.results.similarity import CKA, OUTPUT_KL, TRANSFER, SimilarityResult, SimilarityResults
from probing.system.screen import shown

Results = Sequence[SimilarityResult]
_MOST_MAPS, _MOST_CURVES, _MOST_LISTED = 3, 6, 8
_SOURCE = "similarity.parquet"


def _chosen(results: Results, measure: str, role: str = "pair") -> list[SimilarityResult]:
    return [one for one in results if (one.measure, one.role) == (measure, role)]


def _title(results: Results, measure: str) -> str:
    """Return the title of a measure; of probe transfer with task, probe and measure."""
    if measure != TRANSFER:
        return TITLES[measure]
    one = _chosen(results, TRANSFER)[0]
    return f"{TITLES[TRANSFER]} of {one.task} ({one.probe}, {one.probe_measure})"


def _measures(results: Results) -> list[str]:
    return [name for name in (*OF_STATES, TRANSFER) if _chosen(results, name)]


def _seconds(results: Results) -> list[str]:
    """Return the names of the stores that the first is compared with: checkpoints by step, others as given."""
    steps = {one.second: one.step for one in results if one.role == "pair" and one.measure == CKA}
    return sorted(steps, key=lambda name: -1 if steps[name] is None else steps[name] or 0)


def _same_sites(results: Results) -> list[str]:
    """Return the sites of the same name in both stores, in the order of a forward pass."""
    return sorted({one.site_a for one in results if one.site_a == one.site_b and one.site_a}, key=site_order)


def _at(results: Results, measure: str, role: str, site: str) -> SimilarityResult | None:
    """Return the result of one measure at sites of the same name; None if there is none."""
    return next((one for one in _chosen(results, measure, role) if one.site_a == one.site_b == site), None)


# Maps and curves.


def site_maps(results: Results) -> list[HeatMap]:
    """Return a heat map of sites by sites for each measure and pair of stores in which all pairs of sites were
    compared, and of stores by sites if there are several stores.
    """
    found = []
    seconds = _seconds(results)
    for measure in _measures(results):
        pairs = _chosen(results, measure)
        for second in seconds if len(seconds) <= _MOST_MAPS else []:
            here = [one for one in pairs if one.second == second]
            if any(one.site_a != one.site_b for one in here):
                found.append(_site_map(here, _title(results, measure), several=len(seconds) > 1))
        same = [one for one in pairs if one.site_a == one.site_b]
        if len(seconds) > 1 and same:
            found.append(_store_map(same, seconds, _title(results, measure)))
    return found


def _site_map(here: Results, title: str, *, several: bool) -> HeatMap:
    rows, columns = (sorted({getattr(one, side) for one in here}, key=site_order) for side in ("site_a", "site_b"))
    values = np.full((len(rows), len(columns)), np.nan)
    for one in here:
        values[rows.index(one.site_a), columns.index(one.site_b)] = one.score.value
    first = here[0]
    name = f"{title}, {first.second}" if several else title
    label = f"n {first.score.n:,}, d {first.width_a} and {first.width_b}"
    axes = (f"site of {first.first}", f"site of {first.second}")
    return HeatMap(name, tuple(rows), tuple(columns), values, label, *axes, is_upward=True, is_share=True)


def _store_map(same: Results, seconds: Sequence[str], title: str) -> HeatMap:
    sites = sorted({one.site_a for one in same}, key=site_order)
    values = np.full((len(seconds), len(sites)), np.nan)
    for one in same:
        values[seconds.index(one.second), sites.index(one.site_a)] = one.score.value
    label = f"with {same[0].first}, at sites of the same name; n {same[0].score.n:,}"
    return HeatMap(title, tuple(seconds), tuple(sites), values, label, "store", "site", is_share=True)


def similarity_panels(results: Results) -> list[Panel]:
    """Return a panel for each measure: over training steps if there are two or more checkpoints, else over sites with
    ceiling, floor and chance.
    """
    steps = {one.step for one in results if one.role == "pair" and one.step is not None}
    make = _step_panel if len(steps) > 1 else _sites_panel
    found = (make(results, measure) for measure in _measures(results))
    return [panel for panel in found if panel is not None]


def _sites_panel(results: Results, measure: str) -> Panel | None:
    sites, seconds = _same_sites(_chosen(results, measure)), _seconds(results)
    if len(sites) < 2 or len(seconds) > _MOST_CURVES:
        return None
    curves = [
        Curve(second, "task", _points([one for one in results if one.second == second], measure, "pair", sites), part)
        for part, second in enumerate(seconds)
    ]
    if measure == TRANSFER:
        own = [(x, one) for x, site in enumerate(sites) if (one := _at(results, measure, "pair", site))]
        curves.append(Curve("on its own states", "ceiling", tuple(Point(x, one.own_a or 0.0) for x, one in own)))
        floor = own[0][1].baseline if own else None
        curves += (
            [Curve("best baseline", "baseline", tuple(Point(x, floor) for x, _ in own))] if floor is not None else []
        )
    else:
        curves.append(Curve("halves of the first", "ceiling", _points(results, measure, "ceiling", sites)))
    curves.append(Curve("untrained twin", "control", _points(results, measure, "floor", sites), 1))
    chance = [(x, one.null_bound) for x, site in enumerate(sites) if (one := _at(results, measure, "pair", site))]
    bounds = tuple(Point(x, bound) for x, bound in chance if bound is not None)
    curves.append(Curve("chance (95 %)", "baseline", bounds, 1))
    drawn = tuple(curve for curve in curves if curve.points)
    return Panel(
        f"{_title(results, measure)} over sites", TITLES[measure], tuple(sites), drawn, (), (0, 1), (-0.5, 1.05)
    )


def _points(results: Results, measure: str, role: str, sites: Sequence[str]) -> tuple[Point, ...]:
    known = ((x, _at(results, measure, role, site)) for x, site in enumerate(sites))
    return tuple(Point(x, one.score.value, one.score.low, one.score.high) for x, one in known if one is not None)


def _step_panel(results: Results, measure: str) -> Panel | None:
    pairs = [one for one in _chosen(results, measure) if one.step is not None and one.site_a == one.site_b]
    steps = sorted({one.step for one in pairs if one.step is not None})
    sites = sorted({one.site_a for one in pairs}, key=site_order)
    if len(steps) < 2:
        return None
    picked = sites if len(sites) <= _MOST_CURVES else [sites[i] for i in np.linspace(0, len(sites) - 1, 6).astype(int)]
    curves = []
    for part, site in enumerate(picked):
        here = sorted((one for one in pairs if one.site_a == site), key=lambda one: one.step or 0)
        points = tuple(Point(steps.index(o.step or 0), o.score.value, o.score.low, o.score.high) for o in here)
        curves.append(Curve(site, "task", points, part))
    names, places = tuple(f"{step:,}" for step in steps), tuple(map(float, steps))
    title = _title(results, measure) + ("" if measure == TRANSFER else f" with {pairs[0].first}")
    return Panel(title, TITLES[measure], names, tuple(curves), (), (0, 1), (-0.5, 1.05), "training step", places=places)


def charts_of(results: Results) -> list[Chart]:
    """Return all charts of similarity: curves, then heat maps."""
    return [panel_chart(one) for one in similarity_panels(results)] + [map_chart(one) for one in site_maps(results)]


def plot_similarity(results: SimilarityResults) -> Any:
    """Return the charts of similarity side by side, as an Altair chart."""
    return altair_chart(together(charts_of(results)))


# Tables.


def _same_table(results: Results, second: str) -> tuple[list[str], list[list[str | Number]]]:
    """Return headings and rows of a table of sites of the same name: each measure with chance, ceiling and floor."""
    here = [one for one in results if one.second == second or one.role != "pair"]
    head, measures = ["site"], _measures(results)
    for name in measures:
        head += [TITLES[name], "chance"]
        head += ["own", "baseline"] if name == TRANSFER else ["ceiling"]
        head += ["floor"] if _chosen(results, name, "floor") else []
        head += ["biased", "without outliers"] if name == CKA else []
    body: list[list[str | Number]] = []
    for site in _same_sites(here):
        row: list[str | Number] = [site]
        for name in measures:
            pair, ceiling, floor = (_at(here, name, role, site) for role in ("pair", "ceiling", "floor"))
            row += [number(pair.score if pair else None), Number(decimal(pair.null_bound if pair else None))]
            ends = [pair.own_a, pair.baseline] if name == TRANSFER and pair else []
            ends = ends or [ceiling.score.value if ceiling else None]
            ends += [floor.score.value if floor else None] if _chosen(results, name, "floor") else []
            ends += [pair.biased if pair else None, pair.without_outliers if pair else None] if name == CKA else []
            row += [Number(decimal(value)) for value in ends]
        body.append(row)
    return head, body


def _drift_table(found: SimilarityResults) -> Table | None:
    moved = found.moved(20)
    if moved.empty:
        return None
    named = "form" in moved
    names = ["form"] if named else ["example", "word"]
    rows: list[list[str | Number]] = [
        [*(str(row[name]) for name in names), decimal(row["drift"], 2), f"{row['rows']:,}", str(row["second"])]
        for row in moved.to_dict("records")
    ]
    caption = (
        f"Rows of {moved['site'].iloc[0]} that lie farthest from where the Procrustes map of the other half of the "
        "rows puts them: squared distance over the mean squared distance from the mean (its mean is 1 − R²)."
    )
    return Table(caption, [*names, "drift", "rows", "store"], rows, source="drift.parquet")


def _disagreement_table(results: Results) -> Table | None:
    rho, found = disagreements(results)
    if not found:
        return None
    several = len(_seconds(results)) > 1
    rows: list[list[str | Number]] = [
        [
            f"{one.cka.site_a} → {one.cka.site_b}" + (f", {one.cka.second}" if several else ""),
            number(one.cka.score),
            str(one.cka_rank),
            number(one.transfer.score),
            Number(decimal(one.transfer.own_a)),
            str(one.transfer_rank),
        ]
        for one in found
    ]
    head = ["sites", "CKA", "its rank", "probe transfer", "on its own states", "rank of the loss"]
    return Table(f"{disagreement_sentence(rho, found)} Rank 1 is most alike.", head, rows, source=_SOURCE)


def similarity_section(found: SimilarityResults, anchor: str) -> Section:
    """Return the section of the page on similarity."""
    results = list(found)
    models = {one.provenance.get(f"model_{side}"): None for one in results for side in "ab" if one.role == "pair"}
    panels, maps, seconds = similarity_panels(results), site_maps(results), _seconds(results)
    blocks: list[Table | Figure | Words] = [Words("p", [CAPTION])]
    if panels:
        described = "; ".join(panel.title for panel in panels)
        blocks.append(Figure([panel_chart(one) for one in panels], "", f"Curves: {described}"))
    if maps:
        blocks.append(Figure([map_chart(one) for one in maps], "", ". ".join(one.description for one in maps)))
    tables = [
        Table(
            f"{results[0].first} and {second}, at sites of the same name.",
            *_same_table(results, second),
            source=_SOURCE,
        )
        for second in seconds
        if _same_sites(_chosen(results, CKA))
    ]
    disagreement, drift = _disagreement_table(results), _drift_table(found)
    folds = [Fold("All measures, with intervals", tables)] if tables else []
    if disagreement:
        blocks.append(replace(disagreement, rows=disagreement.rows[:_MOST_LISTED]))
        folds.append(Fold("All pairs of sites, by how much CKA and probe transfer disagree", [disagreement]))
    blocks += [drift] if drift else []
    blocks += [Words("p", ["What these numbers do not show:"]), Words("ul", LIMITS)]
    one = next(one for one in results if one.measure == CKA)
    return Section(
        anchor,
        "Similarity of states",
        about=f"States of {'; '.join(map(str, filter(None, models)))}; {_sizes(one)}",
        claims=claims(results),
        notes=doubts(results),
        blocks=blocks,
        folds=folds,
    )


def _sizes(one: SimilarityResult) -> str:
    clusters = f"{one.clusters:,} {one.provenance.get('resample_by', 'cluster')}s"
    return (
        f"n = {one.score.n:,} rows in {clusters}, d = {one.width_a} and {one.width_b}: biased CKA of independent "
        f"Gaussian states would be {short(one.biased_if_unrelated)}"
    )


# Terminal.


def print_similarity(found: SimilarityResults, console: Console, *, details: bool) -> None:
    """Print what the stores have in common: tables of sites of the same name, a matrix of CKA, the words that moved
    most, disagreements, and what these numbers do not show.
    """
    results = list(found)
    seconds = _seconds(results)
    first = next(one for one in results if one.measure == CKA and one.role == "pair")
    console.print(shown(f"{first.first}: {first.provenance.get('model_a')}", style="dim"))
    for second in seconds[: None if details else _MOST_LISTED]:
        one = next(one for one in results if one.second == second)
        console.print(shown(f"{second}: {one.provenance.get('model_b')}", style="dim"))
    console.print(shown(_sizes(first), style="dim"))
    for measure in _measures(results):
        _print_measure(results, measure, seconds, console, details=details)
    _print_outputs(results, console)
    for claim in claims(results):
        console.print(shown(claim, style="bold"))
    rho, pairs = disagreements(results)
    if pairs:
        console.print(shown(disagreement_sentence(rho, pairs)))
    _print_drift(found, console)
    console.print(shown("What this does not show:", style="bold"))
    for sentence in LIMITS:
        console.print(shown(f"- {sentence}"))


def _print_measure(results: Results, measure: str, seconds: Sequence[str], console: Console, *, details: bool) -> None:
    pairs = _chosen(results, measure)
    console.print(shown(_title(results, measure), style="bold"))
    if len(seconds) > 1 and not details:
        same = {(one.second, one.site_a): one for one in pairs if one.site_a == one.site_b}
        ordered = {key: same[key] for key in sorted(same, key=lambda key: seconds.index(key[0]))}
        _print_matrix(ordered, "store ↓ site →", console)
        return
    for second in seconds:
        here = [one for one in results if one.second == second or one.role != "pair"]
        if len(seconds) > 1:
            console.print(shown(f"with {second}", style="italic"))
        if _same_sites(_chosen(here, measure)):
            _print_same(here, measure, console)
        cells = {(one.site_a, one.site_b): one for one in pairs if one.second == second}
        if any(a != b for a, b in cells) and (details or measure in (CKA, TRANSFER)):
            _print_matrix(cells, f"{pairs[0].first} ↓ {second} →", console)


def _print_same(here: Results, measure: str, console: Console) -> None:
    has_floor = bool(_chosen(here, measure, "floor"))
    columns = ["site", TITLES[measure].partition(" (")[0], "chance"]
    columns += ["own A", "own B", "baseline"] if measure == TRANSFER else ["ceiling"]
    columns += ["floor"] if has_floor else []
    columns += ["biased", "no outliers"] if measure == CKA else []
    table = grid(columns, texts=(0,))
    for site in _same_sites(_chosen(here, measure)):
        pair, ceiling, floor = (_at(here, measure, role, site) for role in ("pair", "ceiling", "floor"))
        if pair is None:
            continue
        ends = (
            [pair.own_a, pair.own_b, pair.baseline]
            if measure == TRANSFER
            else [ceiling.score.value if ceiling else None]
        )
        ends += [floor.score.value if floor else None] if has_floor else []
        ends += [pair.biased, pair.without_outliers] if measure == CKA else []
        table.add_row(*map(shown, (site, folded(pair.score), short(pair.null_bound), *map(short, ends))))
    console.print(table)


def _print_matrix(cells: Mapping[tuple[str, str], SimilarityResult], corner: str, console: Console) -> None:
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted({column for _, column in cells}, key=site_order)
    fitting = max(2, (console.width - max(len(corner), *map(len, rows)) - 1) // 8)
    for start in range(0, len(columns), fitting):
        part = columns[start : start + fitting]
        table = grid([corner, *part], texts=(0,))
        for row in rows:
            values = [cells[row, column].score.value if (row, column) in cells else None for column in part]
            table.add_row(*map(shown, (row, *map(short, values))))
        console.print(table)


def _print_drift(found: SimilarityResults, console: Console) -> None:
    moved = found.moved(_MOST_LISTED)
    if moved.empty:
        return
    named = "form" in moved
    told = [
        f"{row['form'] if named else '{}:{}'.format(row['example'], row['word'])} ({decimal(row['drift'], 2)})"
        for row in moved.to_dict("records")
    ]
    what = "words" if named else "rows (example:word)"
    console.print(shown(f"{what} that moved most at {moved['site'].iloc[0]} (mean 1 − R²): {', '.join(told)}"))
    if not named and (found.drift is not None and (found.drift["word"] >= 0).any()):
        console.print(shown("with the corpus, the forms of the words are shown (--corpus)", style="dim"))


def _print_outputs(results: Results, console: Console) -> None:
    found = _chosen(results, OUTPUT_KL)
    if not found:
        return
    table = grid(["store", TITLES[OUTPUT_KL], "chance", "tokens"], texts=(0,))
    for one in found:
        table.add_row(*map(shown, (one.second, folded(one.score), decimal(one.null_bound, 2), f"{one.score.n:,}")))
    console.print(table)
    console.print(shown(f"over {plural(found[0].clusters, 'text')}", style="dim"))
