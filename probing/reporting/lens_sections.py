"""Shows what lenses read: curves over sites beside controls, use beside them, and prompts by site and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from probing.reporting.blocks import Block, Cell, Figure, Fold, Number, Section, Table, Words, number, panels_figure
from probing.reporting.charts import Chart, ink, layer, nominal, rounded, tip
from probing.reporting.panels import Curve, Panel, Point, points
from probing.reporting.terminal import print_limits, print_lines, print_table
from probing.reporting.wording import Estimate, decimal, plural, sentence_case, with_interval
from probing.results.lens import ALL_SITES, CONTROLS, FIRST, UNIGRAM, LensResult, SiteUse, Trajectory
from probing.results.models import ModelFacts

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
_COLOURS, _DOMAIN = ["#f4f8fb", "#0072b2"], [0.0, 1.0]  # of probabilities in the chart of a prompt


def model_of_lens(result: LensResult) -> ModelFacts:
    """Return the facts of the model that lenses read."""
    return ModelFacts.of(result.model, result.facts.get("model"))


def lens_section(result: LensResult, anchor: str) -> Section:
    """Return the section of the page: curves, use, prompts, and all numbers folded."""
    panels = [panel for quantity in _DRAWN if (panel := _panel(result, quantity)).curves]
    more = [panel for panel in (_use_panel(result), _commitment_panel(result)) if panel is not None]
    blocks: list[Block] = [Words("p", [about(result)]), panels_figure(panels)]
    blocks += [panels_figure(more)] if more else []
    blocks += [Figure([trajectory_chart(one)], _caption(one), _last_tokens(one)) for one in result.trajectories]
    folds = [Fold(f"All numbers of {name}", [_table(result, name)]) for name in _moving(result)]
    folds.append(Fold("Differences, row by row", [_difference_table(result)]))
    folds += [Fold("Replaced states", [_use_table(result)])] if result.use else []
    folds += [
        Fold(f"Curves of the prompt “{shortened(one.prompt)}”", [_prompt_curves(one)]) for one in result.trajectories
    ]
    folds.append(Fold("The lenses and controls", [Words("ul", [f"{k}: {v}" for k, v in result.lenses.items()])]))
    model = model_of_lens(result).label
    return Section(
        anchor,
        TITLE,
        models=[model],
        about=f"States of {model}",
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
    skipped = "token of each text is" if skip == 1 else f"{skip} tokens of each text are"
    left_out = "" if is_masked or not skip else f"; the first {skipped} left out"
    rows, texts = (plural(int(facts.get(name, 0)), name[:-1]) for name in ("rows", "texts"))
    return f"{rows} ({of}) of {texts}{left_out}. KL is to the model's own output."


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
        drawn = points((x, result.mean(name, site, quantity)) for x, site in enumerate(result.sites))
        if drawn:
            curves.append(Curve(_called(name), "other" if name in CONTROLS else "task", drawn, part))
    constant = [m for m in result.means if m.lens in _CONSTANT and m.quantity == quantity]
    levels = [Curve(_called(m.lens), "baseline", points([(0, m)]), part) for part, m in enumerate(constant)]
    unit, least = ("share of rows", 1.0) if quantity == "agreement" else ("bits a token", 0.1)
    most, cut = _most(curves)
    title = sentence_case(QUANTITIES[quantity])
    return Panel(title, unit + cut, tuple(result.sites), tuple(curves), tuple(levels), (0.0, least), (-1e9, most))


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
    unread = result.unread_but_used
    replaced = tuple(
        Point(x, one.value, one.low, one.high, "cross" if one.site in unread else "", _use_words(one))
        for x, one in enumerate(result.use)
    )
    read = tuple(Point(x, one.lens_kl) for x, one in enumerate(result.use) if one.lens_kl is not None)
    curves = (
        Curve("state replaced by the mean", "task", replaced, 1),
        Curve(f"KL(final ‖ {next(iter(result.lenses))})", "other", read, 0),
    )
    most, cut = _most(curves)
    title, sites = "Use: the output without the state", tuple(one.site for one in result.use)
    return Panel(title, "bits a token" + cut, sites, curves, least=(0.0, 0.1), most=(-1e9, most))


def _use_words(one: SiteUse) -> str:
    if one.is_read is None or one.is_used is None:
        return "not known"
    return ("read" if one.is_read else "not read") + (", used" if one.is_used else ", no use shown")


def _commitment_panel(result: LensResult) -> Panel | None:
    curves = []
    for part, one in enumerate(result.commitment):
        shares = np.cumsum([one.shares.get(site, 0.0) for site in result.sites])
        drawn = tuple(Point(x, float(share)) for x, share in enumerate(shares))
        curves.append(Curve(_called(one.lens), "task", drawn, part))
    title = "Top token settled: share of rows by site"
    return Panel(title, "share of rows", tuple(result.sites), tuple(curves), most=(0.0, 1.0)) if curves else None


def _with(one: Estimate, places: int = 3) -> str:
    return with_interval(one, places) + (" (one text: no interval)" if one.low is None else "")


def _table(result: LensResult, name: str) -> Table:
    rows: list[list[Cell]] = [
        [site, *(number(result.mean(name, site, quantity), _PLACES.get(quantity, 3)) for quantity in QUANTITIES)]
        for site in result.sites
        if result.mean(name, site, "kl") is not None
    ]
    caption = f"{name}: means over rows with 95 % intervals; KL, cross-entropy and entropy in bits a token."
    return Table(caption, ["site", *QUANTITIES.values()], rows, source="lens.parquet")


def _difference_table(result: LensResult) -> Table:
    rows: list[list[Cell]] = [
        [d.site, d.lens, f"{d.than_lens} at {d.than_site}" if d.than_site != d.site else d.than_lens, number(d)]
        for d in result.differences
        if d.quantity == "kl"
    ]
    caption = "KL(final ‖ lens) less that of what it is compared with, in bits; negative: closer to the final output."
    return Table(caption, ["site", "lens", "less", "difference"], rows, (0, 1, 2), source="lens_differences.parquet")


def _use_table(result: LensResult) -> Table:
    rows: list[list[Cell]] = [
        [one.site, number(one), Number(decimal(one.lens_kl)), _use_words(one)] for one in result.use
    ]
    caption = (
        f"KL of the output of {result.use[0].n} rows when their state is replaced by the mean state, in bits, beside "
        f"KL(final ‖ {next(iter(result.lenses))}) there."
    )
    return Table(caption, ["site", "replaced", "lens", ""], rows, (0, 3), source="lens.json")


def print_lens(result: LensResult, console: Console, *, details: bool) -> None:
    """Print what each lens reads by site, use beside it, prompts, and what a lens cannot show."""
    print_lines(console, [f"model {model_of_lens(result).label}: {about(result)}"], style="dim")
    names = list(result.lenses)
    for name in [one for one in _moving(result) if details or one == names[0]]:
        _print_lens(result, name, console)
    if len(names) > 2:
        _print_beside(result, console)
    print_lines(console, claims(result))
    if result.use:
        title = (
            f"The output of {plural(result.use[0].n, 'row')} when the state is replaced by the mean state of its site"
        )
        rows = [(one.site, _with(one, 2), decimal(one.lens_kl, 2), _use_words(one)) for one in result.use]
        print_table(console, ["site", "KL when replaced, bits", "KL of the lens", ""], rows, (0, 3), title=title)
    for one in result.trajectories:
        first = max(0, len(one.tokens) - _LAST_TOKENS)
        title = f"{one.lens}, “{shortened(one.prompt, 70)}”: most probable next token, last tokens"
        body = [
            (site, *(f"{shortened(top[0][0], 9)} {top[0][1]:.2f}" for top in row[first:]))
            for site, row in zip(one.sites, one.top, strict=True)
        ]
        head = ["site", *one.tokens[first:]]
        print_table(console, head, body, range(len(head)), title=title)
    print_limits(console, result.limits)


def _print_lens(result: LensResult, name: str, console: Console) -> None:
    columns = ("cross_entropy", "bits_per_byte", "entropy", "agreement", "rank_of_final", "rank_of_true")
    head = ("site", "KL", "CE", "CE/byte", "entropy", "agree", "rank f", "rank t")
    rows = []
    for site in result.sites:
        if (kl := result.mean(name, site, "kl")) is not None:
            others = [m for quantity in columns if (m := result.mean(name, site, quantity)) is not None]
            cells = [decimal(m.value, _PLACES.get(m.quantity, 3)) for m in others]
            rows.append([site, with_interval(kl, 2), *cells])
    print_table(console, head, rows, title=f"{name}: {result.lenses[name]}", note=_HEADS)


def _print_beside(result: LensResult, console: Console) -> None:
    """Print the KL of every lens and control, site by site."""
    levels = {m.lens: m for m in result.means if m.lens in _CONSTANT and m.quantity == "kl"}
    rows = []
    for site in result.sites:
        means = [levels.get(name) or result.mean(name, site, "kl") for name in result.lenses]
        rows.append([site, *(decimal(m.value if m else None, 2) for m in means)])
    title = "KL(final ‖ lens), bits a token; intervals on the page and in lens.parquet"
    print_table(console, ["site", *map(_called, result.lenses)], rows, title=title)


# Prompts.


def trajectory_chart(one: Trajectory) -> Chart:
    """Return the chart of a prompt: the most probable token by site and position, coloured by its probability."""
    columns = [f"{k} {token}" for k, token in enumerate(one.tokens)]
    rows = []
    for s, site in enumerate(one.sites):
        for t, column in enumerate(columns):
            (token, share), *others = one.top[s][t]
            row = {"site": site, "token": column, "text": shortened(token, 8), "value": rounded(share)}
            row |= {"ink": ink(_COLOURS, _DOMAIN, share)}
            row |= {"top": f"{token} {share:.2f}" + "".join(f", {name} {p:.2f}" for name, p in others)}
            numbers = {"entropy": one.entropy, "kl": one.kl, "rank": one.rank_of_final}
            rows.append(row | {name: rounded(values[s][t]) for name, values in numbers.items()})
    scale = {"domain": _DOMAIN, "range": _COLOURS, "interpolate": "rgb"}
    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": 160, "format": ".1f"}
    colour = {"field": "value", "type": "quantitative", "title": "probability", "scale": scale, "legend": legend}
    axis = {"labelAngle": -40, "labelLimit": 90}
    encoding = {
        "x": nominal("token", sort=columns, title="token read", axis=axis),
        "y": nominal("site", sort=list(reversed(one.sites)), title=None, axis={"labelLimit": 90}),
        "tooltip": [
            tip("site"),
            tip("token", "token read"),
            tip("top", "most probable next"),
            tip("entropy", "entropy, bits", number=True),
            tip("kl", "KL to final, bits", number=True),
            tip("rank", "rank of final top", number=True),
        ],
    }
    of_text = {"condition": {"test": "datum.ink === '#ffffff'", "value": "#ffffff"}, "value": "#000000"}
    layers = [
        layer({"type": "rect", "stroke": "#ffffff", "strokeWidth": 0.5}, color=colour),
        layer({"type": "text", "fontSize": 9}, text=nominal("text"), color=of_text),
    ]
    return {
        "title": {"text": f"{one.lens}: the most probable token by site", "subtitle": shortened(one.prompt, 90)},
        "width": {"step": 58},
        "height": {"step": 18},
        "data": {"values": rows},
        "encoding": encoding,
        "layer": layers,
    }


def _caption(one: Trajectory) -> str:
    """Return what the chart shows."""
    cut = " Only the first tokens are shown." if one.is_cut else ""
    return (
        "Each column is a token that was read, each row a site, the last at the top; a cell is the token that the lens "
        f"finds most probable as the output there, full colour is probability 1.{cut}"
    )


def _last_tokens(one: Trajectory) -> str:
    """Return the top tokens after the last token, for readers who cannot see the chart."""
    return f"{one.lens}, last token: " + "; ".join(
        f"{site} {row[-1][0][0]} {row[-1][0][1]:.2f}" for site, row in zip(one.sites, one.top, strict=True)
    )


def _prompt_curves(one: Trajectory) -> Figure:
    """Return curves over sites at the last token: entropy, KL and ranks."""
    sites = tuple(one.sites)

    def curve(name: str, values: Sequence[Sequence[float | None]], part: int, at: int = -1) -> Curve:
        last = [(x, row[at]) for x, row in enumerate(values) if row]
        return Curve(name, "task", tuple(Point(x, float(v)) for x, v in last if v is not None), part)

    bits = (curve("entropy", one.entropy, 0), curve("KL(final ‖ lens)", one.kl, 1))
    ranks = [curve("rank of the final top token", one.rank_of_final, 0)]
    if len(one.tokens) > 1 and one.rank_of_true and one.rank_of_true[0][-2] is not None:
        ranks.append(curve("rank of the true token", one.rank_of_true, 1, at=-2))
    title = "Ranks there (of the true token: one before)"
    panels = [
        Panel("At the last token", "bits", sites, bits, least=(0.0, 0.1)),
        Panel(title, "rank", sites, tuple(ranks), least=(1.0, 2.0), most=(0.0, 1e9)),
    ]
    return panels_figure(panels, f"{one.lens}: {one.prompt}")


def shortened(text: str, most: int = 40) -> str:
    """Return the text, cut to at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
