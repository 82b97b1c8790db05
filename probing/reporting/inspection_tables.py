"""Rows and sentences of an inspection, for its page and the terminal, and `print_inspection`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from probing.reporting.tables import grid
from probing.reporting.wording import decimal, plural
from probing.results.inspection import CHECK_LIMITS, Inspection
from probing.system.screen import shown

WAYS = {
    "uniform": "pattern made uniform",
    "position_mean": "pattern replaced by its mean by position",
    "permuted": "pattern permuted",
    "mean_output": "output replaced by its mean",
}
FEW = 4  # heads of largest effect that the page shows
SHORT = {"uniform": "uniform", "position_mean": "position", "permuted": "permuted", "mean_output": "mean"}
CATCHING = ("first_token", "punctuation", "self", "previous_token", "same_token", "induction")


def site_rows(found: Inspection) -> tuple[list[str], list[list[str]]]:
    head = ["site", "norm", "5–95 %", "token 0", "cosine before", "attention adds", "MLP adds", "top-3 share"]
    head += ["largest coordinate", "massive: token 0", "elsewhere", "participation", "anisotropy", "in context"]
    rows = []
    for row in found.sites.to_dict("records"):
        rows.append(
            [
                str(row["site"]),
                size(row["norm_median"]),
                f"{size(row['norm_low'])}–{size(row['norm_high'])}",
                size(row["norm_first_token"]),
                number(row["cosine_to_previous_median"]),
                size(row["attention_norm_median"]),
                size(row["mlp_norm_median"]),
                number(row["largest_share_median"]),
                _whole(row["largest_coordinate"]),
                str(row["massive_first_token"]),
                str(row["massive_elsewhere"]),
                size(row["participation_ratio"]),
                number(row["anisotropy"]),
                number(row["contextual_similarity"]),
            ]
        )
    return head, rows


def number(value: Any) -> str:
    return decimal(None if value is None or not np.isfinite(value) else float(value), 2)


def size(value: Any) -> str:
    """Return a size with three figures: `0.52`, `41.8`, `22,712`."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _whole(value: Any) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.0f}"


def agreement(found: Inspection) -> list[str]:
    """Return sentences on how often a striking pattern has little effect, or that nothing was checked."""
    if found.checks is None:
        return [found.limits[-1]]
    counts = {way: by["any"] for way, by in found.disagreement.items() if by}
    if not counts:
        return [CHECK_LIMITS[0]]
    few = ", ".join(f"{of['below_median']} ({WAYS[way]})" for way, of in counts.items())
    striking = plural(next(iter(counts.values()))["striking"], "head")
    return [
        CHECK_LIMITS[0],
        f"Of {striking} with a striking pattern (in the top decile of some score), these change the output less than "
        f"the median head: {few}.",
    ]


def striking_rows(found: Inspection) -> tuple[list[str], list[list[str]]]:
    ways = found.replacements
    head = ["score", "head", "value", "95 %", "uniform", "weighted", *(f"KL {SHORT[way]}" for way in ways)]
    rows = []
    for score, layer, one in standing_out(found):
        assert found.heads is not None  # for the reader of types
        table = found.heads
        of = table[(table["layer"] == layer) & (table["head"] == one) & (table["score"] == score)].iloc[0]
        interval = f"{number(of['low'])}–{number(of['high'])}" if np.isfinite(of["low"]) else "–"
        numbers = [number(of["value"]), interval, number(of["uniform"]), number(of["value_weighted"])]
        effects = [decimal(effect_of(found, way, layer, one)["kl"], 4) for way in ways]
        rows.append([score.replace("_", " "), f"{layer}.{one}", *numbers, *effects])
    return head, rows


def standing_out(found: Inspection) -> list[tuple[str, int, int]]:
    """Return, for each score, the head with its largest value (of entropy its smallest): (score, layer, head)."""
    rows = []
    for score in ("entropy_share", *CATCHING):
        values = found.grid(score)
        values = -values if score == "entropy_share" else values
        if np.isfinite(values).any():
            place, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
            rows.append((score, found.layers[int(place)], int(head)))
    return rows


def effect_of(found: Inspection, way: str, layer: int, head: int) -> dict[str, float]:
    assert found.checks is not None  # for the reader of types: asked for only where it was measured
    table = found.checks
    row = table[(table["layer"] == layer) & (table["head"] == head) & (table["replacement"] == way)].iloc[0]
    return {name: float(row[name]) for name in ("kl", "kl_low", "kl_high", "kl_last")}


def largest_effects(found: Inspection, count: int) -> list[tuple[int, int]]:
    """Return the heads that move the output most in whichever way they are replaced: by the least of their effects,
    since a single replacement can do damage where nothing is read.
    """
    if found.checks is None:
        return []
    effect = np.min([found.grid(way, "kl") for way in found.replacements], axis=0)
    order = np.argsort(-effect, axis=None)[:count]
    return [(found.layers[int(k) // effect.shape[1]], int(k) % effect.shape[1]) for k in order]


def print_inspection(found: Inspection, console: Console, *, details: bool) -> None:
    """Print an inspection: sites, the heads that stand out beside their checked effect, and what it cannot show;
    with `details` every site, else some ten.
    """
    console.print(shown(repr(found), style="bold"))
    head, rows = site_rows(found)
    step = 1 if details else max(1, -(-len(rows) // 10))
    chosen = rows[::step] if (len(rows) - 1) % step == 0 else [*rows[::step], rows[-1]]
    kept = range(len(head)) if details or console.width >= 150 else (0, 1, 2, 3, 4, 5, 6, 7)
    _print(console, [head[k] for k in kept], [[row[k] for k in kept] for row in chosen], (0,))
    if len(chosen) < len(rows):
        console.print(shown(f"{plural(len(rows) - len(chosen), 'site')} more with --details", style="dim"))
    if found.heads is not None:
        console.print(shown("the head with the largest score of each kind, and what the output loses", style="bold"))
        _print(console, *striking_rows(found), (0, 1))
        _print_effects(found, console)
    for line in [*found.notes, *(agreement(found)[1:] if found.checks is not None else ())]:
        console.print(shown(line))
    console.print(shown("What this cannot show:", style="bold"))
    for line in found.limits:
        console.print(shown(f"- {line}"))


def _print_effects(found: Inspection, console: Console) -> None:
    if found.checks is None:
        return
    ways = found.replacements
    rows = [
        [f"{layer}.{head}", *(decimal(effect_of(found, way, layer, head)["kl"], 4) for way in ways)]
        for layer, head in largest_effects(found, 2 * FEW)
    ]
    console.print(shown("heads that move the output most whichever way they are replaced: KL, bits", style="bold"))
    _print(console, ["head", *(WAYS[way] for way in ways)], rows, (0,))


def _print(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[int]) -> None:
    table = grid(head, texts=texts)
    for row in rows:
        table.add_row(*map(shown, row))
    console.print(table)
