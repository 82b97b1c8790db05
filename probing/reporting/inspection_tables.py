"""Rows and sentences of an inspection, for its page and the terminal, and `print_inspection`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from probing.reporting.terminal import grid, print_limits, print_lines
from probing.reporting.wording import decimal, plural
from probing.results.inspection import CHECK_LIMITS, EQUAL, SHORT, SINK, WAYS, Inspection
from probing.system.screen import shown

if TYPE_CHECKING:
    from pandas import DataFrame

_LEAST = 6  # least width of a column of words in the terminal
FEW = 4  # heads of largest effect that the page shows
DEFINITIONS = (
    "Each score is a mean over the queries of a text that may attend to at least two keys, then over texts.",
    "Entropy is in bits; its share is that of log₂ of the number of keys that the query may attend to."
    " Even attention has a share of 1.",
    "Weights on token 0, on punctuation (visible, no letter or digit, not special), on the token itself and on the "
    "token before count those queries only that may attend to such a key.",
    "The same token, and the token after it (induction), are earlier ones only, in encoders, too: keys before the "
    "query that are the query's token, or that follow such a token. Queries without such a key do not count.",
    "Distance is the mean of |query − key| in tokens, its spread the standard deviation within a query.",
)
CATCHING = ("first_token", "punctuation", "self", "previous_token", "same_token", "induction")


def number(value: Any) -> str:
    return decimal(float(value) if _is_known(value) else None, 2)


def size(value: Any) -> str:
    """Return a size with three figures: `0.52`, `41.8`, `22,712`."""
    if not _is_known(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _is_known(*values: Any) -> bool:
    return all(value is not None and np.isfinite(value) for value in values)


def _whole(value: Any) -> str:
    return f"{value:.0f}" if _is_known(value) else "–"


# Of the table of sites: what it shows of a site, and how this is written.
_SITES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "site": ("site", str),
    "norm": ("norm_median", size),
    "5–95 %": ("norm_range", str),
    "token 0": ("norm_first_token", size),
    "cosine before": ("cosine_to_previous_median", number),
    "attention adds": ("attention_norm_median", size),
    "MLP adds": ("mlp_norm_median", size),
    "top-3 share": ("largest_share_median", number),
    "largest coordinate": ("largest_coordinate", _whole),
    "massive: token 0": ("massive_first_token", str),
    "elsewhere": ("massive_elsewhere", str),
    "participation": ("participation_ratio", size),
    "anisotropy": ("anisotropy", number),
    "in context": ("contextual_similarity", number),
}


def site_rows(found: Inspection) -> tuple[list[str], list[list[str]]]:
    """Return the headings of the table of sites, and its rows."""
    rows = []
    for row in found.sites.to_dict("records"):
        low, high = row["norm_low"], row["norm_high"]
        row["norm_range"] = f"{size(low)}–{size(high)}" if _is_known(low, high) else "–"
        rows.append([write(row[name]) for name, write in _SITES.values()])
    return list(_SITES), rows


NOTHING_BESIDE_FIRST = (
    "Every text has a single token: there are no other tokens whose norms and geometry could be given, and a head has "
    "nothing to choose between."
)


def is_of_single_tokens(found: Inspection) -> bool:
    """Return whether no text has a second token."""
    return all(len(text.tokens) < 2 for text in found.texts)


def agreement(found: Inspection) -> list[str]:
    """Return sentences on how often a striking pattern has little effect, or that nothing was checked."""
    if found.checks is None:
        return [found.limits[-1]]
    effects = found.checks["kl"].to_numpy(dtype=np.float64)
    if not np.isfinite(effects).any():
        return [CHECK_LIMITS[0], "No effect is defined: these texts are too short for anything to be replaced."]
    if np.nanmax(effects) <= rounding(found):
        return [CHECK_LIMITS[0], f"No head changes the output by more than rounding ({rounding(found):g} bits)."]
    counts = {way: by["any"] for way, by in found.disagreement.items() if by and by["any"]["striking"]}
    if not counts:
        return [CHECK_LIMITS[0]]
    few = ", ".join(f"{of['below_median']} of {of['striking']} ({WAYS[way]})" for way, of in counts.items())
    said = [
        CHECK_LIMITS[0],
        "Of the heads with a striking pattern (in the top decile of some score, and above its median), these "
        f"change the output less than the median head: {few}.",
    ]
    striking = max(of["striking"] for of in counts.values())
    heads = effects.size // len(found.replacements)
    if 2 * striking > heads:
        said.append(
            f"Striking are {striking} of {heads} heads, since each needs to lead in one score only: to be striking "
            "says little here."
        )
    by_chance = [way for way, of in counts.items() if _is_by_chance(found, way, of)]
    if by_chance:
        which = (
            "each of these counts" if by_chance == list(counts) else ", ".join(f"“{WAYS[way]}”" for way in by_chance)
        )
        said.append(
            f"About half of any heads lie below the median; {which} is what chance gives as well (hypergeometric, two-"
            "sided p above .05), so it is no sign that striking heads do less or more than others."
        )
    return said


def _is_by_chance(found: Inspection, way: str, of: Mapping[str, int]) -> bool:
    """Return whether as many heads below the median effect would be among as many heads drawn at random."""
    from scipy.stats import hypergeom

    effects = found.grid(way, "kl")
    known = effects[np.isfinite(effects)]
    drawn = hypergeom(len(known), int((known < np.median(known)).sum()), of["striking"])
    fewer, more = drawn.cdf(of["below_median"]), drawn.sf(of["below_median"] - 1)
    return bool(2 * min(fewer, more) > 0.05)


def rounding(found: Inspection) -> float:
    """Return the effect, in bits, up to which nothing is told from rounding."""
    return float(found.settings.get("rounding", 0.0))


def kl(value: float) -> str:
    """Return an effect in bits with four decimals; a dash if it is not defined."""
    return decimal(value if np.isfinite(value) else None, 4)


def least_effects(found: Inspection) -> NDArray[np.float64]:
    """Return the least effect of each head over the replacements, `(L, H)`; NaN where one of them is not defined.
    Replacements that are defined for no head do not count.
    """
    effects = [found.grid(way, "kl") for way in found.replacements]
    return np.asarray(np.min([one for one in effects if np.isfinite(one).any()] or effects, axis=0))


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
        effects = [kl(effect_of(found, way, layer, one)["kl"]) for way in ways]
        rows.append([score.replace("_", " "), f"{layer}.{one}", *numbers, *effects])
    return head, rows


def standing_out(found: Inspection) -> list[tuple[str, int, int]]:
    """Return, for each score, the head with its largest value (of entropy its smallest): (score, layer, head). Scores
    that are equal for all heads name none.
    """
    rows = []
    for score in ("entropy_share", *CATCHING, *(("sink_mass",) if SINK in found.notes else ())):
        values = found.grid(score)
        values = -values if score == "entropy_share" else values
        if np.isfinite(values).any() and np.nanmax(values) > np.nanmin(values) + EQUAL:
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
    since a single replacement can do damage where nothing is read. Heads whose effect is not defined or not above
    rounding are in no order and left out.
    """
    if found.checks is None:
        return []
    effect = least_effects(found)
    above = np.where(effect > rounding(found), effect, -np.inf)
    order = [k for k in np.argsort(-above, axis=None)[:count] if np.isfinite(above.flat[k])]
    return [(found.layers[int(k) // effect.shape[1]], int(k) % effect.shape[1]) for k in order]


def print_inspection(found: Inspection, console: Console, *, details: bool) -> None:
    """Print an inspection: sites, the heads that stand out beside their checked effect, and what it cannot show;
    with `details` every site, else some ten. Columns that do not fit are left out: the files have them.
    """
    print_lines(console, [repr(found)], style="bold")
    head, rows = site_rows(found)
    chosen = rows if details else _some(rows)
    _print(console, head, chosen, (0,))
    if len(chosen) < len(rows):
        print_lines(console, [f"{plural(len(rows) - len(chosen), 'site')} more with --details"], style="dim")
    if found.heads is not None:
        loses = "" if found.checks is None else ", and what the output loses"
        title = f"the head with the largest score of each kind (of entropy share the smallest){loses}"
        _print(console, *striking_rows(found), (0, 1), ("weighted", "95 %", "uniform"), title=title)
        _print_effects(found, console)
    _print_comparison(found, console, details)
    print_lines(console, [*found.notes, *([NOTHING_BESIDE_FIRST] * is_of_single_tokens(found))])
    print_lines(console, agreement(found)[1:] if found.checks is not None else ())
    print_limits(console, found.limits, "What this cannot show:")


def _print_effects(found: Inspection, console: Console) -> None:
    heads = largest_effects(found, 2 * FEW)
    ways = [way for way in found.replacements if np.isfinite(found.grid(way, "kl")).any()]
    rows = [
        [f"{layer}.{head}", *(kl(effect_of(found, way, layer, head)["kl"]) for way in ways)] for layer, head in heads
    ]
    if rows:
        title = "heads that move the output most whichever way they are replaced: KL, bits"
        _print(console, ["head", *(f"KL {SHORT[way]}" for way in ways)], rows, (0,), title=title)


def _some(rows: list[list[str]]) -> list[list[str]]:
    """Return some ten of the rows, the first and the last among them."""
    step = max(1, -(-len(rows) // 10))
    return rows[::step] if (len(rows) - 1) % step == 0 else [*rows[::step], rows[-1]]


def _print_comparison(found: Inspection, console: Console, details: bool) -> None:
    """Print how far the two texts are apart at each site, and the heads whose patterns differ most."""
    if found.comparison is None:
        return
    states, heads = found.comparison.states, found.comparison.heads
    rows = []
    for site in dict.fromkeys(states["site"]):
        at = states[states["site"] == site]
        most = at.loc[at["relative_distance"].idxmax()]
        medians = [number(at[name].median()) for name in ("relative_distance", "cosine")]
        rows.append([site, *medians, str(most["span"]), number(most["relative_distance"]), number(most["cosine"])])
    columns = ["site", "distance", "cosine", "largest at", "distance there", "cosine there"]
    title = f"compared with “{found.comparison.text.text}”: where the states differ most"
    _print(console, columns, rows if details else _some(rows), (0, 3), title=title)
    print_lines(console, ["medians over tokens or spans; distances are shares of the mean of both norms"], style="dim")
    if heads is not None:
        title = "heads whose patterns differ most (total variation)"
        _print(console, *differing_heads(heads, 2 * FEW), (0,), title=title)


def differing_heads(heads: DataFrame, count: int) -> tuple[list[str], list[list[str]]]:
    """Return the heads whose patterns differ most between two texts, as rows of a table."""
    rows = [
        [f"{row.layer}.{row.head}", number(row.mean_variation), number(row.largest_variation), str(row.largest_at)]
        for row in heads.nlargest(count, "mean_variation").itertuples()
    ]
    return ["head", "mean", "largest", "at token"], rows


def _left_out(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, first: Sequence[str]) -> list[str]:
    """Return the headings of the columns that are left out so that the others fit into a width: some of `first`, then
    those at the right.
    """
    widths = {title: max(_LEAST, len(title), *(len(row[k]) for row in rows)) + 1 for k, title in enumerate(head)}
    gone: list[str] = []
    for title in [*first, *(one for one in reversed(head[1:]) if one not in first)]:
        if sum(widths[one] for one in head if one not in gone) <= width + 1:
            break
        gone.append(title)
    return [title for title in head if title in gone]


def _print(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Sequence[int],
    first: Sequence[str] = (),
    title: str = "",
) -> None:
    """Print a table without the columns that do not fit (see `_left_out`), and name these."""
    gone = _left_out(head, rows, console.width, first)
    kept = [k for k, name in enumerate(head) if name not in gone]
    table = grid([head[k] for k in kept], texts=[i for i, k in enumerate(kept) if k in texts])
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(shown(row[k]) for k in kept))
    print_lines(console, filter(None, [title]), style="bold")
    console.print(table)
    if gone:
        words = f"left out for want of room: {', '.join(gone)} (a wider terminal, or the files, have them)"
        print_lines(console, [words], style="dim")
