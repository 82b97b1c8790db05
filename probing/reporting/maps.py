"""HeatMap: numbers in rows and columns, from patching, ablation, transfer between sources, and confusions of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.reporting.task_results import TaskResults, site_order
from probing.reporting.wording import decimal, measure_title, plural
from probing.results.patching import PatchingResult
from probing.results.use import answers_said

if TYPE_CHECKING:
    from probing.results.transfer import CrossResult
    from probing.use.patching.ablating import AblationResult

_MOST_CLASSES = 25


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Numbers in rows and columns; NaN is left blank.

    Attributes:
        title: above it.
        rows, columns: names.
        values: `(R, C)`.
        label: what the numbers are.
        y_label, x_label: what rows and columns are.
        is_upward: whether the first row is drawn at the bottom, as the first layer of a model.
        is_share: whether 1 is drawn in full colour, so that maps of shares can be compared.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    label: str
    y_label: str = ""
    x_label: str = ""
    is_upward: bool = False
    is_share: bool = False

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.rows), len(self.columns)) or not np.isfinite(self.values).any():
            raise BadParameter(
                "no heat map can be drawn",
                needed=f"({len(self.rows)}, {len(self.columns)}) numbers",
                found=f"shape {self.values.shape}",
                where=self.title,
            )

    @property
    def limit(self) -> float:
        """Largest absolute value, or 1 for shares; it is drawn in full colour."""
        largest = float(np.nanmax(np.abs(self.values))) or 1.0
        return max(1.0, largest) if self.is_share else largest

    @property
    def description(self) -> str:
        """What is drawn, in words: the largest value and its place."""
        i, j = divmod(int(np.nanargmax(np.abs(self.values))), len(self.columns))
        largest = f"largest {decimal(float(self.values[i, j]))} at {self.rows[i]}, {self.columns[j]}"
        return f"{self.title}, {self.label}: {largest}"


def patching_map(result: PatchingResult, title: str = "") -> HeatMap:
    """Return a map of shares of the natural difference by site and position."""
    columns = tuple(position.replace("start+", "+") or "row" for position in result.positions)
    of = f" in {answers_said(result.answers)}" if result.answers else ""
    by = f"; {result.model}" if result.model else ""
    return HeatMap(
        title or f"{result.method} patching",
        result.sites,
        columns,
        result.normalised,
        f"share of the difference between prompts{of}; {plural(result.n_pairs, 'pair')}{by}",
        "site",
        "position",
        is_upward=True,
        is_share=True,
    )


def ablation_map(result: AblationResult, title: str = "") -> HeatMap:
    """Return a map of effects by layer and head."""
    grid = result.grid()
    layers = sorted({component.layer for component in result.components})
    columns = tuple(str(head) for head in range(grid.shape[1])) if grid.shape[1] > 1 else ("all",)
    return HeatMap(
        title or f"{result.by} ablation",
        tuple(f"layer {layer}" for layer in layers),
        columns,
        grid,
        "change of the behaviour, in SD",
        "layer",
        "head" if grid.shape[1] > 1 else "",
        is_upward=True,
    )


def transfer_maps(results: Sequence[CrossResult]) -> list[HeatMap]:
    """Return a map for each task, probe and first measure: sources trained on by sources tested on where there is one
    site; pairs of sources by sites where there are several.
    """
    groups: dict[tuple[str, str, str], list[CrossResult]] = {}
    for one in results:
        groups.setdefault((one.task, one.probe, str(one.provenance.get("store_id", ""))[:0]), []).append(one)
    return [_transfer_map(task, probe, group) for (task, probe, _), group in groups.items()]


def _transfer_map(task: str, probe: str, group: Sequence[CrossResult]) -> HeatMap:
    measure = group[0].measure
    chosen = [one for one in group if one.measure == measure]
    sites = sorted(dict.fromkeys(one.site for one in chosen), key=site_order)
    title, label = f"{task}: {probe}", f"{measure_title(measure)} on test rows"
    if len(sites) == 1:
        keys = [(one.trained_on, one.tested_on) for one in chosen]
        names = ("trained on", "tested on")
        title += f" at {sites[0]}" if not sites[0].startswith("(") else ""
    else:
        keys = [(f"{one.trained_on} → {one.tested_on}", one.site) for one in chosen]
        names = ("trained on → tested on", "site")
    rows = tuple(dict.fromkeys(row for row, _ in keys))
    columns = tuple(dict.fromkeys(column for _, column in keys)) if len(sites) == 1 else tuple(sites)
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), one in zip(keys, chosen, strict=True):
        values[rows.index(row), columns.index(column)] = one.score.value
    sizes = sorted({one.score.n for one in chosen})
    label += f"; n {sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "")
    return HeatMap(title, rows, columns, values, label, *names, is_share=chosen[0].score.unit in ("fraction", "R²"))


def confusion_map(task: TaskResults) -> HeatMap | None:
    """Return shares of true labels that are predicted as each label, at the best site on dev, of the most frequent
    labels; None where there are no classes.
    """
    best = task.best()
    if best is None or not best.confusion or not best.classes:
        return None
    counts = np.asarray(best.confusion, dtype=np.float64)
    totals = counts.sum(1)
    kept = np.sort(np.argsort(-totals, kind="stable")[:_MOST_CLASSES])
    if not totals[kept].any():
        return None
    shares = counts[np.ix_(kept, kept)] / np.where(totals[kept] > 0, totals[kept], np.nan)[:, None]
    cut = f"; the {len(kept)} most frequent of {len(totals)} labels" if len(kept) < len(totals) else ""
    names = tuple(str(best.classes[k]) for k in kept)
    title = f"{best.probe} at {best.site}, first seed{cut}"
    return HeatMap(
        title, names, names, shares, "share of the true label's test rows", "true", "predicted", is_share=True
    )
