"""Shows similarity on the page and in the terminal: heat maps of sites, curves over sites and steps, tables, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from probing.reporting.blocks import Block, Cell, Figure, Fold, Number, Section, Table, Words, maps_figure, number
from probing.reporting.charts import Chart, panel_chart
from probing.reporting.drawing import altair_chart, together
from probing.reporting.grids import HeatMap, map_chart
from probing.reporting.panels import SHARES, Curve, Panel, Point, points
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
from probing.reporting.task_results import site_order
from probing.reporting.terminal import print_limits, print_lines, print_table
from probing.reporting.wording import decimal, folded, plural, short
from probing.results.similarity import CKA, OUTPUT_KL, TRANSFER, SimilarityResult, SimilarityResults

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
    cells = [(one.site_a, one.site_b, one.score.value) for one in here]
    first = here[0]
    name = f"{title}, {first.second}" if several else title
    label = f"n {first.score.n:,}, d {first.width_a} and {first.width_b}"
    axes = (f"site of {first.first}", f"site of {first.second}")
    return HeatMap.of_cells(name, cells, label, *axes, rows=rows, columns=columns, is_upward=True, is_share=True)


def _store_map(same: Results, seconds: Sequence[str], title: str) -> HeatMap:
    sites = sorted({one.site_a for one in same}, key=site_order)
    cells = [(one.second, one.site_a, one.score.value) for one in same]
    label = f"with {same[0].first}, at sites of the same name; n {same[0].score.n:,}"
    return HeatMap.of_cells(title, cells, label, "store", "site", rows=seconds, columns=sites, is_share=True)


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
        Curve(second, "task", _over(sites, [one for one in results if one.second == second], measure, "pair"), part)
        for part, second in enumerate(seconds)
    ]
    pairs = [(x, one) for x, site in enumerate(sites) if (one := _at(results, measure, "pair", site))]
    if measure == TRANSFER:
        curves.append(Curve("on its own states", "ceiling", tuple(Point(x, one.own_a or 0.0) for x, one in pairs)))
        floor = pairs[0][1].baseline if pairs else None
        if floor is not None:
            curves.append(Curve("best baseline", "baseline", tuple(Point(x, floor) for x, _ in pairs)))
    else:
        curves.append(Curve("halves of the first", "ceiling", _over(sites, results, measure, "ceiling")))
    curves.append(Curve("untrained twin", "control", _over(sites, results, measure, "floor"), 1))
    bounds = tuple(Point(x, one.null_bound) for x, one in pairs if one.null_bound is not None)
    curves.append(Curve("chance (95 %)", "baseline", bounds, 1))
    drawn = tuple(curve for curve in curves if curve.points)
    title = f"{_title(results, measure)} over sites"
    return Panel(title, TITLES[measure], tuple(sites), drawn, (), (0, 1), SHARES)


def _over(sites: Sequence[str], results: Results, measure: str, role: str) -> tuple[Point, ...]:
    known = ((x, _at(results, measure, role, site)) for x, site in enumerate(sites))
    return points((x, one.score) for x, one in known if one is not None)


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
        curves.append(Curve(site, "task", points((steps.index(one.step or 0), one.score) for one in here), part))
    names, places = tuple(f"{step:,}" for step in steps), tuple(map(float, steps))
    title = _title(results, measure) + ("" if measure == TRANSFER else f" with {pairs[0].first}")
    return Panel(title, TITLES[measure], names, tuple(curves), (), (0, 1), SHARES, "training step", places=places)


def charts_of(results: Results) -> list[Chart]:
    """Return all charts of similarity: curves, then heat maps."""
    return [panel_chart(one) for one in similarity_panels(results)] + [map_chart(one) for one in site_maps(results)]


def plot_similarity(results: SimilarityResults) -> Any:
    """Return the charts of similarity side by side, as an Altair chart."""
    return altair_chart(together(charts_of(results)))


# Tables.


def _beside(here: Results, measure: str, site: str) -> dict[str, float | None]:
    """Return the numbers beside a measure at sites of the same name, by their headings."""
    pair, ceiling, floor = (_at(here, measure, role, site) for role in ("pair", "ceiling", "floor"))
    found: dict[str, float | None] = {"chance": pair.null_bound if pair else None}
    if measure == TRANSFER:
        of_probes = {"own A": "own_a", "own B": "own_b", "baseline": "baseline"}
        found |= {head: getattr(pair, name, None) for head, name in of_probes.items()}
    else:
        found["ceiling"] = ceiling.score.value if ceiling else None
    if _chosen(here, measure, "floor"):
        found["floor"] = floor.score.value if floor else None
    if measure == CKA:
        found |= {"biased": pair.biased, "no outliers": pair.without_outliers} if pair else _NO_CKA
    return found


_NO_CKA: dict[str, float | None] = {"biased": None, "no outliers": None}
_ON_PAGE = {"own A": "own", "no outliers": "without outliers"}  # headings that a page has room for


def _same_table(results: Results, second: str) -> Table:
    """Return a table of sites of the same name: each measure with chance, ceiling and floor."""
    here = [one for one in results if one.second == second or one.role != "pair"]
    head, sites = ["site"], _same_sites(here)
    body: list[list[Cell]] = [[site] for site in sites]
    for measure in _measures(results):
        names = [name for name in _beside(here, measure, "") if name != "own B"]
        head += [TITLES[measure], *(_ON_PAGE.get(name, name) for name in names)]
        for row, site in zip(body, sites, strict=True):
            pair, beside = _at(here, measure, "pair", site), _beside(here, measure, site)
            row += [number(pair.score if pair else None), *(Number(decimal(beside[name])) for name in names)]
    return Table(f"{results[0].first} and {second}, at sites of the same name.", head, body, source=_SOURCE)


def _drift_table(found: SimilarityResults) -> Table | None:
    moved = found.moved(20)
    if moved.empty:
        return None
    named = "form" in moved
    names = ["form"] if named else ["example", "word"]
    rows: list[list[Cell]] = [
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
    rows: list[list[Cell]] = [
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
    panels, maps = similarity_panels(results), site_maps(results)
    blocks: list[Block] = [Words("p", [CAPTION])]
    if panels:
        titles = "; ".join(panel.title for panel in panels)
        blocks.append(Figure([panel_chart(one) for one in panels], "", f"Curves: {titles}"))
    blocks += [maps_figure(maps)] if maps else []
    has_same = bool(_same_sites(_chosen(results, CKA)))
    tables = [_same_table(results, second) for second in _seconds(results)] if has_same else []
    folds = [Fold("All measures, with intervals", tables)] if tables else []
    disagreement, drift = _disagreement_table(results), _drift_table(found)
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
    about = [f"{first.first}: {first.provenance.get('model_a')}"]
    for second in seconds[: None if details else _MOST_LISTED]:
        one = next(one for one in results if one.second == second)
        about.append(f"{second}: {one.provenance.get('model_b')}")
    print_lines(console, [*about, _sizes(first)], style="dim")
    for measure in _measures(results):
        _print_measure(results, measure, seconds, console, details=details)
    if outputs := _chosen(results, OUTPUT_KL):
        rows = [(one.second, folded(one.score), decimal(one.null_bound, 2), f"{one.score.n:,}") for one in outputs]
        note = f"over {plural(outputs[0].clusters, 'text')}"
        print_table(console, ["store", TITLES[OUTPUT_KL], "chance", "tokens"], rows, (0,), note=note)
    print_lines(console, claims(results), style="bold")
    rho, pairs = disagreements(results)
    print_lines(console, [disagreement_sentence(rho, pairs)] if pairs else [])
    _print_drift(found, console)
    print_limits(console, LIMITS)


def _print_measure(results: Results, measure: str, seconds: Sequence[str], console: Console, *, details: bool) -> None:
    pairs = _chosen(results, measure)
    print_lines(console, [_title(results, measure)], style="bold")
    if len(seconds) > 1 and not details:
        same = {(one.second, one.site_a): one for one in pairs if one.site_a == one.site_b}
        ordered = {key: same[key] for key in sorted(same, key=lambda key: seconds.index(key[0]))}
        _print_matrix(ordered, "store ↓ site →", console)
        return
    for second in seconds:
        here = [one for one in results if one.second == second or one.role != "pair"]
        if len(seconds) > 1:
            print_lines(console, [f"with {second}"], style="italic")
        if sites := _same_sites(_chosen(here, measure)):
            head = ["site", TITLES[measure].partition(" (")[0], *_beside(here, measure, "")]
            known = [(site, pair) for site in sites if (pair := _at(here, measure, "pair", site))]
            rows = [
                (site, folded(pair.score), *map(short, _beside(here, measure, site).values())) for site, pair in known
            ]
            print_table(console, head, rows, (0,))
        cells = {(one.site_a, one.site_b): one for one in pairs if one.second == second}
        if any(a != b for a, b in cells) and (details or measure in (CKA, TRANSFER)):
            _print_matrix(cells, f"{pairs[0].first} ↓ {second} →", console)


def _print_matrix(cells: Mapping[tuple[str, str], SimilarityResult], corner: str, console: Console) -> None:
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted({column for _, column in cells}, key=site_order)
    fitting = max(2, (console.width - max(len(corner), *map(len, rows)) - 1) // 8)
    values = {place: one.score.value for place, one in cells.items()}
    for start in range(0, len(columns), fitting):
        part = columns[start : start + fitting]
        body = [(row, *(short(values.get((row, column))) for column in part)) for row in rows]
        print_table(console, [corner, *part], body, (0,))


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
    at = moved["site"].iloc[0]
    print_lines(console, [f"{what} that moved most at {at} (mean 1 − R²): {', '.join(told)}"])
    if not named and (found.drift is not None and (found.drift["word"] >= 0).any()):
        print_lines(console, ["with the corpus, the forms of the words are shown (--corpus)"], style="dim")
