"""Shows what lenses read: curves over sites beside controls, use beside them, and prompts by site and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from probing.reporting.blocks import Figure, Fold, Number, Section, Table, Words
from probing.reporting.charts import described, panel_chart
from probing.reporting.lens_prompts import (
    prompt_curves,
    shortened,
    trajectory_caption,
    trajectory_chart,
    trajectory_words,
)
from probing.reporting.panels import Curve, Panel, Point
from probing.reporting.tables import grid
from probing.reporting.wording import decimal, plural
from probing.results.lens import (
    ALL_SITES,
    CONTROLS,
    FIRST,
    UNIGRAM,
    LensDifference,
    LensMean,
    LensResult,
    SiteUse,
    Trajectory,
)
from probing.results.models import ModelFacts
from probing.system.screen import shown

TITLE = "What lenses read"
QUANTITIES = {
    "kl": "KL(final ‖ lens)",
    "kl_reverse": "KL(lens ‖ final)",
    "cross_entropy": "cross-entropy of the true token",
    "bits_per_byte": "the same, bits a byte",
    "entropy": "entropy",
    "agreement": "top token is the final one",
    "rank_of_final": "rank of the final top token",
    "rank_of_true": "rank of the true token",
}
_DRAWN = ("kl", "cross_entropy", "entropy", "agreement")
_PLACES = {"rank_of_final": 1, "rank_of_true": 1, "kl_reverse": 2, "cross_entropy": 2, "entropy": 2}
_CONSTANT = (UNIGRAM, FIRST)
_HEADS = (
    "KL(final ‖ lens), cross-entropy of the true token (CE) and entropy in bits; agree: the top token is the "
    "final one; rank f, rank t: mean rank of the final top token, of the true token."
)
_FAR = 3.0  # from how many times the 90 % point an axis is cut
_LAST_TOKENS = 6  # of a prompt, in the terminal


def model_of_lens(result: LensResult) -> ModelFacts:
    """Return the facts of the model that lenses read."""
    return ModelFacts.of(result.model, result.facts.get("model"))


def lens_section(result: LensResult, anchor: str) -> Section:
    """Return the section of the page: curves, use, prompts, and all numbers folded."""
    panels = [panel for quantity in _DRAWN if (panel := _panel(result, quantity)).curves]
    more = [panel for panel in (_use_panel(result), _commitment_panel(result)) if panel is not None]
    blocks: list[Table | Figure | Words] = [Words("p", [about(result)])]
    blocks.append(Figure([panel_chart(panel) for panel in panels], "", described(panels)))
    if more:
        blocks.append(Figure([panel_chart(panel) for panel in more], "", described(more)))
    for one in result.trajectories:
        blocks.append(Figure([trajectory_chart(one)], trajectory_caption(one), trajectory_words(one)))
    folds = [Fold(f"All numbers of {name}", [_table(result, name)]) for name in _moving(result)]
    folds.append(Fold("Differences, row by row", [_difference_table(result)]))
    if result.use:
        folds.append(Fold("Replaced states", [_use_table(result)]))
    folds += [
        Fold(f"Curves of the prompt “{shortened(one.prompt)}”", [prompt_curves(one)]) for one in result.trajectories
    ]
    folds.append(Fold("The lenses and controls", [Words("ul", [f"{k}: {v}" for k, v in result.lenses.items()])]))
    return Section(
        anchor,
        TITLE,
        models=[model_of_lens(result).label],
        about=f"States of {model_of_lens(result).label}",
        claims=claims(result),
        notes=list(result.doubts),
        blocks=[*blocks, Words("p", ["What this does not show:"]), Words("ul", result.limits)],
        folds=folds,
    )


def about(result: LensResult) -> str:
    """Return a sentence on rows and texts."""
    facts = result.facts
    is_masked, skip = facts.get("head") == "masked", int(facts.get("skip", 1))
    of = "one masked token of each text" if is_masked else "tokens with one that follows"
    left_out = "" if is_masked or not skip else f"; the first {_skipped(skip)} left out"
    rows, texts = (plural(int(facts.get(name, 0)), name[:-1]) for name in ("rows", "texts"))
    return f"{rows} ({of}) of {texts}{left_out}. KL is to the model's own output."


def _skipped(skip: int) -> str:
    return "token of each text is" if skip == 1 else f"{skip} tokens of each text are"


def claims(result: LensResult) -> list[str]:
    """Return sentences on the results: where the first lens reads more than each control, where its top token settles,
    and which sites it does not read that are used all the same.
    """
    name = next(iter(result.lenses))
    sentences = _convergence(result)
    for than in (other for other in result.lenses if other != name):
        gains = [d for d in result.differences if (d.lens, d.than_lens, d.quantity) == (name, than, "kl")]
        if gains and all(d.high is not None for d in gains):
            closer = [d.site for d in gains if d.high is not None and d.high < 0]
            farther = [d.site for d in gains if d.low is not None and d.low > 0]
            parts = [f"closer to the final output at {_ranges(result, closer)}"] if closer else []
            parts += [f"farther from it at {_ranges(result, farther)}"] if farther else []
            of = "than" if than in CONTROLS else "than the lens"
            sentences.append(f"{name} is {' and '.join(parts) or 'not told apart'} {of} {than}.")
    if weak := _weak_controls(result):
        sentences.append(
            f"No better than the unigram at any site, so the unigram is the control to beat: {', '.join(weak)} "
            "(trained on too few rows or steps, or nothing can be read)."
        )
    depth = result.mean(name, ALL_SITES, "commitment_depth")
    if depth is not None:
        sentences.append(f"The top token of {name} stays the final one from block {_with(depth, 1)} on, in the mean.")
    if result.unread_but_used:
        sentences.append(
            f"Not read by {name}, and used all the same: {_ranges(result, result.unread_but_used)} (the lens is no "
            f"closer to the final output than the unigram; replacing the state changes the output by "
            f"{result.facts.get('used_bits', 0.1):g} bits or more)."
        )
    return sentences


def _convergence(result: LensResult) -> list[str]:
    """Return a sentence on how far the mean derivatives of a Jacobian lens that was fitted here have converged."""
    fitted = result.facts.get("jacobian") or {}
    changes = fitted.get("change_between_halves") or {}
    if not changes:
        return []
    worst = max(changes, key=lambda site: changes[site])
    return [
        f"Derivatives of the Jacobian lens, from {plural(int(fitted['texts']), 'text')}: the means of two halves of "
        f"the texts differ by {min(changes.values()):.0%} to {changes[worst]:.0%} of their size (most at {worst}); "
        "more texts bring them nearer."
    ]


def _weak_controls(result: LensResult) -> list[str]:
    """Return the trained controls that are farther from the final output than the unigram wherever they read."""
    level = next((m.value for m in result.means if (m.lens, m.quantity) == (UNIGRAM, "kl")), None)
    weak = []
    for name in (name for name in _moving(result) if name in CONTROLS and level is not None):
        values = [m.value for m in result.means if (m.lens, m.quantity) == (name, "kl")]
        weak += [name] if values and min(values) >= (level or 0.0) else []
    return weak


def _ranges(result: LensResult, sites: Sequence[str]) -> str:
    """Return sites with runs of neighbours shortened: `resid.3 to resid.9, resid.12`."""
    order = {site: k for k, site in enumerate(result.sites)}
    runs: list[list[str]] = []
    for site in sorted(sites, key=lambda one: order.get(one, -1)):
        if runs and order.get(site, -9) == order.get(runs[-1][-1], -9) + 1:
            runs[-1].append(site)
        else:
            runs.append([site])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _moving(result: LensResult) -> list[str]:
    """Return the lenses that read each site."""
    return [name for name in result.lenses if name not in _CONSTANT]


def _panel(result: LensResult, quantity: str) -> Panel:
    curves = []
    for part, name in enumerate(_moving(result)):
        means = [(x, result.mean(name, site, quantity)) for x, site in enumerate(result.sites)]
        points = tuple(Point(x, m.value, m.low, m.high) for x, m in means if m is not None)
        if points:
            curves.append(Curve(_called(name), "other" if name in CONTROLS else "task", points, part))
    levels = [
        Curve(_called(m.lens), "baseline", (Point(0, m.value, m.low, m.high),), part)
        for part, m in enumerate(m for m in result.means if m.lens in _CONSTANT and m.quantity == quantity)
    ]
    unit = "share of rows" if quantity == "agreement" else "bits a token"
    least = (0.0, 1.0 if quantity == "agreement" else 0.1)
    title = QUANTITIES[quantity][:1].upper() + QUANTITIES[quantity][1:]
    most, cut = _most(curves)
    return Panel(title, unit + cut, tuple(result.sites), tuple(curves), tuple(levels), least, (-1e9, most))


def _most(curves: Sequence[Curve]) -> tuple[float, str]:
    """Return the end of an axis and what its label says: it is cut where few points lie far above all others."""
    values = [point.value for curve in curves for point in curve.points]
    if not values or max(values) <= _FAR * (usual := float(np.quantile(values, 0.9))):
        return 1e9, ""
    return 1.2 * usual, f" (cut below {decimal(max(values), 0)})"


def _called(name: str) -> str:
    return name.replace("_", " ")


def _use_panel(result: LensResult) -> Panel | None:
    if not result.use:
        return None
    sites = tuple(one.site for one in result.use)
    points = tuple(
        Point(x, one.value, one.low, one.high, "cross" if one.site in result.unread_but_used else "", _use_words(one))
        for x, one in enumerate(result.use)
    )
    read = tuple(Point(x, one.lens_kl) for x, one in enumerate(result.use) if one.lens_kl is not None)
    first = next(iter(result.lenses))
    curves = (
        Curve("state replaced by the mean", "task", points, 1),
        Curve(f"KL(final ‖ {first})", "other", read, 0),
    )
    most, cut = _most(curves)
    label = "bits a token" + cut
    return Panel("Use: the output without the state", label, sites, curves, (), (0.0, 0.1), (-1e9, most))


def _use_words(one: SiteUse) -> str:
    if one.is_read is None or one.is_used is None:
        return "not known"
    return ("read" if one.is_read else "not read") + (", used" if one.is_used else ", no use shown")


def _commitment_panel(result: LensResult) -> Panel | None:
    curves = []
    for part, one in enumerate(result.commitment):
        shares = np.cumsum([one.shares.get(site, 0.0) for site in result.sites])
        points = tuple(Point(x, float(share)) for x, share in enumerate(shares))
        curves.append(Curve(_called(one.lens), "task", points, part))
    if not curves:
        return None
    title = "Top token settled: share of rows by site"
    return Panel(title, "share of rows", tuple(result.sites), tuple(curves), (), (0.0, 1.0), (0.0, 1.0))


def _with(one: LensMean | LensDifference | SiteUse, places: int = 3) -> str:
    if one.low is None:
        return f"{decimal(one.value, places)} (one text: no interval)"
    return f"{decimal(one.value, places)} [{decimal(one.low, places)}, {decimal(one.high, places)}]"


def _cell(one: LensMean | LensDifference | SiteUse | None, places: int = 3) -> Number:
    if one is None:
        return Number("–")
    small = f"[{decimal(one.low, places)}, {decimal(one.high, places)}]" if one.low is not None else ""
    return Number(decimal(one.value, places), small)


def _table(result: LensResult, name: str) -> Table:
    rows: list[list[str | Number]] = [
        [site, *(_cell(result.mean(name, site, quantity), _PLACES.get(quantity, 3)) for quantity in QUANTITIES)]
        for site in result.sites
        if result.mean(name, site, "kl") is not None
    ]
    caption = f"{name}: means over rows with 95 % intervals; KL, cross-entropy and entropy in bits a token."
    return Table(caption, ["site", *QUANTITIES.values()], rows, source="lens.parquet")


def _difference_table(result: LensResult) -> Table:
    rows: list[list[str | Number]] = [
        [d.site, d.lens, f"{d.than_lens} at {d.than_site}" if d.than_site != d.site else d.than_lens, _cell(d)]
        for d in result.differences
        if d.quantity == "kl"
    ]
    caption = "KL(final ‖ lens) less that of what it is compared with, in bits; negative: closer to the final output."
    return Table(caption, ["site", "lens", "less", "difference"], rows, (0, 1, 2), source="lens_differences.parquet")


def _use_table(result: LensResult) -> Table:
    rows: list[list[str | Number]] = [
        [one.site, _cell(one), Number(decimal(one.lens_kl)), _use_words(one)] for one in result.use
    ]
    caption = (
        f"KL of the output of {result.use[0].n} rows when their state is replaced by the mean state, in bits, beside "
        f"KL(final ‖ {next(iter(result.lenses))}) there."
    )
    return Table(caption, ["site", "replaced", "lens", ""], rows, (0, 3), source="lens.json")


def print_lens(result: LensResult, console: Console, *, details: bool) -> None:
    """Print what each lens reads by site, use beside it, prompts, and what a lens cannot show."""
    console.print(shown(f"model {model_of_lens(result).label}: {about(result)}", style="dim"))
    names = list(result.lenses)
    for name in [one for one in _moving(result) if details or one == names[0]]:
        _print_lens_table(result, name, console)
    if len(names) > 2:
        _print_beside(result, console)
    for sentence in claims(result):
        console.print(shown(sentence))
    if result.use:
        _print_use(result, console)
    for one in result.trajectories:
        _print_trajectory(one, console)
    console.print(shown("What this does not show:", style="bold"))
    for sentence in result.limits:
        console.print(shown(f"- {sentence}"))


def _print_lens_table(result: LensResult, name: str, console: Console) -> None:
    columns = ("kl", "cross_entropy", "bits_per_byte", "entropy", "agreement", "rank_of_final", "rank_of_true")
    heads = ("KL", "CE", "CE/byte", "entropy", "agree", "rank f", "rank t")
    table = grid(["site", *heads])
    for site in result.sites:
        means = [result.mean(name, site, quantity) for quantity in columns]
        if means[0] is not None:
            rest = [decimal(m.value, _PLACES.get(m.quantity, 3)) for m in means[1:] if m is not None]
            table.add_row(
                *map(
                    shown, (site, _with(means[0], 2) if means[0].low is not None else decimal(means[0].value, 2), *rest)
                )
            )
    console.print(shown(f"{name}: {result.lenses[name]}", style="bold"))
    console.print(table)
    console.print(shown(_HEADS, style="dim"))


def _print_beside(result: LensResult, console: Console) -> None:
    """Print the KL of every lens and control, site by site."""
    table = grid(["site", *map(_called, result.lenses)])
    levels = {m.lens: m for m in result.means if m.lens in _CONSTANT and m.quantity == "kl"}
    for site in result.sites:
        means = [levels.get(name) or result.mean(name, site, "kl") for name in result.lenses]
        table.add_row(*map(shown, (site, *(decimal(m.value, 2) if m else "–" for m in means))))
    console.print(shown("KL(final ‖ lens), bits a token; intervals on the page and in lens.parquet", style="bold"))
    console.print(table)


def _print_use(result: LensResult, console: Console) -> None:
    table = grid(["site", "KL when replaced, bits", "KL of the lens", ""], texts=(0, 3))
    for one in result.use:
        table.add_row(*map(shown, (one.site, _with(one, 2), decimal(one.lens_kl, 2), _use_words(one))))
    caption = f"The output of {plural(result.use[0].n, 'row')} when the state is replaced by the mean state of its site"
    console.print(shown(caption, style="bold"))
    console.print(table)


def _print_trajectory(one: Trajectory, console: Console) -> None:
    first = max(0, len(one.tokens) - _LAST_TOKENS)
    table = grid(["site", *one.tokens[first:]], texts=range(len(one.tokens) - first + 1))
    for s, site in enumerate(one.sites):
        cells = [f"{shortened(top[0][0], 9)} {top[0][1]:.2f}" for top in one.top[s][first:]]
        table.add_row(*map(shown, (site, *cells)))
    console.print(
        shown(f"{one.lens}, “{shortened(one.prompt, 70)}”: most probable next token, last tokens", style="bold")
    )
    console.print(table)
