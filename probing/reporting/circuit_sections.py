"""Shows a circuit: a drawing by depth, words on it, what circuits of each size keep, and what its edges carry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from probing.reporting.blocks import Block, Cell, Figure, Fold, Number, Section, Table, Words, number, panels_figure
from probing.reporting.charts import GREY, Chart, Row, layer, nominal, rounded, tip
from probing.reporting.panels import Curve, Panel, Point, points
from probing.reporting.terminal import print_limits, print_lines, print_table
from probing.reporting.wording import Interval, decimal, interval, plural, probability, sentence_case, with_interval
from probing.results.circuit import MATERIAL, TOGETHER, CircuitPart, CircuitResult, CircuitSize

TITLE = "The circuit"
_COLOURS = {"for the answer": "#0072b2", "against it": "#d55e00"}
_WIDTH, _MARGIN = 560, 24  # of the drawing, in pixels
_SHIFT = {"q": -8.0, "k": 0.0, "v": 8.0}  # pixels between the ends of edges at a head, which then lie side by side
_WIDEST, _LEAST = 7.0, 0.8
_CHOICES = {
    "judged": "the circuit that is judged",
    "absolute": "by absolute effect",
    "signed": "by signed effect",
    "nodes": "edges between the best nodes",
}
_MOST_ROWS = 25  # in the terminal, without --details


def circuit_section(result: CircuitResult, anchor: str) -> Section:
    """Return the section of the page: the drawing, words, curves over sizes, and all edges folded."""
    blocks: list[Block] = [Words("p", [about(result)])]
    if any("->" in name for name in result.edges):
        blocks.append(Figure([circuit_chart(result)], _DRAWING, drawing_words(result)))
    blocks.append(_word_table(result))
    if result.sizes:
        caption = _SIZES if result.facts.get("given") is None else _SIZE_OF_GIVEN
        blocks.append(panels_figure([_size_panel(result)], caption))
    blocks += [_elsewhere_table(result)] if result.elsewhere else []
    inside, rest = ([part for part in result.parts if part.in_circuit == is_in] for is_in in (True, False))
    folds = [Fold("Each part of the circuit", [_part_table(result, inside)])]
    folds += [Fold("Parts that are not in it", [_part_table(result, rest)])] if rest else []
    if any(part.carries for part in result.parts):
        folds.append(Fold("What the edges carry", [_flow_table(result)]))
    folds += [Fold("Circuits of each size", [_size_table(result)])] if result.sizes else []
    folds.append(Fold("How it was found", [Words("ul", methods(result))]))
    folds.append(Fold("What this does not show", [Words("ul", result.limits)]))
    return Section(
        anchor,
        TITLE,
        models=[result.model],
        about=f"{result.model}, {result.facts['level']} level",
        claims=claims(result),
        notes=result.doubts,
        blocks=blocks,
        folds=folds,
    )


_DRAWING = (
    "From the input at the bottom to the logits at the top. An edge is as wide as the fall of the metric without it, "
    "and faint if it is not material; the ends of an edge at a head are, from left to right, its query, key and value."
)
_SIZES = (
    "Share of the metric that circuits of each size keep on pairs that they were not chosen on, with 95 % intervals; "
    "the grey lines enclose 95 % of random circuits with as many edges at every node."
)


_SIZE_OF_GIVEN = (
    "Share of the metric that the given circuit keeps on the test pairs, with its 95 % interval; the grey marks "
    "enclose 95 % of random circuits with as many edges at every node."
)


def about(result: CircuitResult) -> str:
    """Return what the circuit is of, where it is from, and how many pairs it rests on."""
    facts, given = result.facts, result.facts.get("given")
    if given is None:
        origin = f"chosen on {plural(facts['pairs_of_discovery'], 'pair')}, measured on {facts['pairs_of_test']} others"
    else:
        origin = f"given by {given}, measured on {plural(facts['pairs_of_test'], 'pair')}"
    return (
        f"{plural(len(result.edges), 'edge')} of {facts['all_edges']:,}, {result.scope}; {origin} "
        f"({plural(facts['groups_of_test'], 'group')}). Shares are of the fall of the metric from "
        f"{decimal(facts['metric_full'], 2)} on clean prompts to {decimal(facts['metric_corrupted'], 2)} corrupted."
    )


def claims(result: CircuitResult) -> list[str]:
    """Return one sentence for each word on the circuit, and one on its parts."""
    found = [
        f"{_SENTENCES.get(one.question, one.question + ': {0}, {1}').format(one.word, with_interval(one.share))}; it "
        f"would be overturned by {one.overturned_by}."
        for one in result.words
    ]
    inside = [part for part in result.parts if part.in_circuit]
    parts, many = plural(len(inside), result.facts["level"]), len(result.material)
    bound = f"change the circuit's metric by more than {decimal(result.facts['delta'], 2)}"
    which = f"{many or 'none'} of {parts} {'is' if many < 2 else 'are'} material"
    shown = "no removal was" if not many else "its removal was" if many == 1 else "the removal of each was"
    found.append(f"{sentence_case(which)}: {shown} shown to {bound}. This is {result.scope}.")
    return found


_SENTENCES = {
    "sufficient": "Is the circuit sufficient? {0}: it keeps {1} of the metric",
    "necessary": "Is it necessary? {0}: without it, the rest keeps {1}",
    TOGETHER: "What those of the circuit do together, inside it, whose removal changes it by less than δ on discovery: "
    "{0}, {1}",
    "beside random circuits": "On the test pairs of random circuits it is {0}: it keeps {1}, where the model keeps 1",
}


def methods(result: CircuitResult) -> list[str]:
    """Return sentences on how the circuit was found and what it cost."""
    facts = result.facts
    how = {"exact": "each one corrupted in turn", "eap": "EAP", "eap_ig": f"EAP-IG in {facts['steps']} steps"}
    ranks = [_agreement(name, facts) for name in ("eap", "eap_ig")]
    passes = ", ".join(f"{value:,.1f} a pair of {name}" for name, value in facts["passes"].items())
    if facts.get("given") is None:
        found = [
            f"Effects on discovery: {how[facts['method']]}, of {facts['candidates']:,} candidate edges.",
            f"Rank correlation with exact effects on {facts.get('rank_correlation_on', 0)} of them: "
            f"{'; '.join(ranks)}.",
        ]
    else:
        found = [
            f"The circuit is given by {facts['given']}: nothing was ranked or chosen here, and effects on discovery "
            f"are those of that file. The other {plural(facts['pairs_of_discovery'], 'pair')} say which edges change "
            "the circuit's metric by less than δ, and give means."
        ]
    found += [
        f"Sum of what senders wrote against the residual stream: {facts['identity_check']:.1e} of its largest entry; "
        f"all edges against the model {facts['all_edges_difference']:.1e}, none against the corrupted run "
        f"{facts['no_edges_difference']:.1e}.",
        f"Forward passes: {passes}.",
    ]
    if facts.get("overlap_with_other_corruption") is not None:
        share = decimal(facts["overlap_with_other_corruption"], 2)
        found.append(f"Circuits of this size that EAP finds under both corruptions share {share} of their edges.")
    if result.areas:
        found.append(
            "CPR is the area under f over the share of edges (1 is best), CMD that between f and 1 (0 is best), of "
            "circuits by each order."
        )
    return [*found, *(f"{name}: {with_interval(one)}." for name, one in result.areas.items())]


def _agreement(screen: str, facts: Mapping[str, Any]) -> str:
    """Return the rank correlation of a screen with exact effects, and where they differ most."""
    worst = facts.get(f"largest_error_{screen}")
    phrase = f"{screen.replace('_', '-').upper()} {decimal(facts.get(f'rank_correlation_{screen}'), 2)}"
    if worst is None:
        return phrase
    numbers = f"estimated {decimal(worst['estimated'])}, exact {decimal(worst['exact'])}"
    return f"{phrase} (they differ most on {worst['name']}: {numbers})"


def circuit_chart(result: CircuitResult) -> Chart:
    """Return the chart of a circuit: nodes by depth, edges as wide as their effects, intervals on hover."""
    effects = {part.name: part for part in result.parts}
    ends = {edge: _ends(result, edge) for edge in result.edges}
    places = _places([node for sender, readers, _ in ends.values() for node in (sender, *readers)])
    most = max((abs(_size_of(effects.get(edge))) for edge in ends), default=1.0) or 1.0
    across = [x for x, _ in places.values()]
    pixel = (max(across, default=0.0) - min(across, default=0.0)) / (_WIDTH - 2 * _MARGIN)
    rows: list[Row] = [{"kind": "node", "name": name, "x": x, "y": y, "label": name} for name, (x, y) in places.items()]
    for edge, (sender, readers, reading) in ends.items():
        part = effects.get(edge)
        value = _size_of(part)
        removal = part.removal if part is not None else None
        for node in readers:
            x2, y2 = places[node]
            rows.append(
                {
                    "kind": "edge",
                    "name": edge,
                    "x": places[sender][0],
                    "y": places[sender][1],
                    "x2": x2 + pixel * _SHIFT.get(reading, 0.0),
                    "y2": y2,
                    "value": rounded(value),
                    "low": rounded(removal.low if removal else None),
                    "high": rounded(removal.high if removal else None),
                    "word": part.word if part is not None and part.word else "not tested",
                    "width": round(max(_LEAST, _WIDEST * abs(value) / most), 2),
                    "side": "for the answer" if value >= 0 else "against it",
                    "faint": part is None or part.word != MATERIAL,
                }
            )
    return _laid_out(result, rows, len({y for _, y in places.values()}))


def _laid_out(result: CircuitResult, rows: list[Row], depth: int) -> Chart:
    plain = {"type": "quantitative", "axis": None, "scale": {"zero": False, "nice": False, "padding": _MARGIN}}
    tips = [tip("name", "edge"), tip("value", "fall without it", number=True), tip("low", "95 % low", number=True)]
    tips += [tip("high", "95 % high", number=True), tip("word")]
    colour = nominal(
        "side",
        title=None,
        scale={"domain": list(_COLOURS), "range": list(_COLOURS.values())},
        legend={"orient": "bottom"},
    )
    edges = layer(
        {"type": "rule", "strokeCap": "round"},
        where="datum.kind === 'edge'",
        x2={"field": "x2"},
        y2={"field": "y2"},
        color=colour,
        strokeWidth={"field": "width", "type": "quantitative", "scale": None, "legend": None},
        opacity={"condition": {"test": "datum.faint", "value": 0.3}, "value": 0.85},
        tooltip=tips,
    )
    dots = layer(
        {"type": "point", "filled": True, "size": 90, "color": GREY, "opacity": 1},
        where="datum.kind === 'node'",
        tooltip=[tip("name", "node")],
    )
    names = layer(
        {"type": "text", "dx": 8, "dy": -8, "align": "left", "fontSize": 10, "color": GREY},
        where="datum.kind === 'node'",
        text=nominal("label"),
    )
    return {
        "title": {"text": f"{plural(len(result.edges), 'edge')} by depth", "subtitle": result.model},
        "width": _WIDTH,
        "height": max(160, 44 * depth),
        "data": {"values": rows},
        "encoding": {"x": {"field": "x"} | plain, "y": {"field": "y"} | plain},
        "layer": [edges, dots, names],
    }


def _ends(result: CircuitResult, edge: str) -> tuple[str, list[str], str]:
    """Return the sender of an edge, the nodes that read it, and as what: `q`, `k`, `v` or ""."""
    sender, _, reader = edge.partition("->")
    reading = re.search(r"<(.)>", reader)
    nodes = result.facts.get("nodes_of_readers", {}).get(reader) or [re.sub(r"<.>", "", reader)]
    return sender, list(nodes), reading[1] if reading else ""


def _places(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return where nodes are drawn: one row for each depth that has any, side by side in it."""

    def depth(name: str) -> float:
        number = re.match(r"[am](\d+)", name)
        if number is None:
            return -1.0 if name == "input" else float("inf")
        return int(number[1]) + (0.5 if name.startswith("m") else 0.0)

    known = sorted(dict.fromkeys(names), key=lambda name: (depth(name), [int(n) for n in re.findall(r"\d+", name)]))
    rows = sorted({depth(name) for name in known})
    found: dict[str, tuple[float, float]] = {}
    for y, row in enumerate(rows):
        mine = [name for name in known if depth(name) == row]
        # Rows of one node are put left and right of the middle in turn, so that edges past them can be seen.
        shift = 0.5 * (-1) ** y * (0 < y < len(rows) - 1) if len(mine) == 1 else 0.0
        found |= {name: (k - (len(mine) - 1) / 2 + shift, float(y)) for k, name in enumerate(mine)}
    return found


def _size_of(part: CircuitPart | None) -> float:
    return 0.0 if part is None else part.removal.value if part.removal is not None else part.effect or 0.0


def drawing_words(result: CircuitResult) -> str:
    """Return the largest edges in words, for readers who cannot see the drawing."""
    inside = sorted((p for p in result.parts if p.in_circuit), key=lambda p: -abs(_size_of(p)))
    return "; ".join(f"{part.name} {with_interval(part.removal)}" for part in inside[:12])


def _size_panel(result: CircuitResult) -> Panel:
    edges = sorted({one.edges for one in result.sizes})

    def curve(name: str, by: str, part: int) -> Curve:
        known = {edges.index(one.edges): one.faithfulness for one in result.sizes if one.by == by}
        return Curve(name, "task", points((x, known[x]) for x in sorted(known)), part)

    chosen = [by for by in _CHOICES if any(one.by == by for one in result.sizes)]
    curves = [curve(_CHOICES[by], by, k) for k, by in enumerate(chosen)]
    random = {edges.index(one.edges): one for one in result.sizes if _random(one) is not None}
    for name, field in (("random, 2.5 %", "random_low"), ("random, 97.5 %", "random_high")):
        drawn = tuple(Point(x, float(getattr(random[x], field))) for x in sorted(random))
        curves += [Curve(name, "ceiling", drawn)] if drawn else []
    names = tuple(f"{number:,}" for number in edges)
    title, y_label = "What circuits keep", "share f of the metric"
    return Panel(title, y_label, names, tuple(curves), most=(-2.0, 3.0), x_label="edges")


def _random(one: CircuitSize) -> Interval | None:
    """Return the interval of random circuits of a size; None if none were drawn."""
    known = one.random_low is not None and one.random_high is not None
    return Interval(0.0, one.random_low, one.random_high) if known else None


def _in_random(one: CircuitSize) -> str:
    random = _random(one)
    return "–" if random is None else interval(random)


def _word_table(result: CircuitResult) -> Table:
    rows: list[list[Cell]] = [
        [one.question, one.word, number(one.share), decimal(one.detectable)] for one in result.words
    ]
    head = ["question", "word", "share", "smallest difference shown"]
    return Table(f"Words on the circuit: {result.scope}.", head, rows, (0, 1), source="circuit.json")


def _part_table(result: CircuitResult, parts: Sequence[CircuitPart]) -> Table:
    rows: list[list[Cell]] = [
        [
            part.name,
            Number(decimal(part.effect)),
            number(part.removal),
            _p(part),
            decimal(part.detectable),
            part.word or "–",
        ]
        for part in parts
    ]
    head = ["effect on discovery", "fall without it (test)", "adjusted p", "smallest shown", "word"]
    caption = "By how much the metric falls without each: of the whole model, and of the circuit."
    return Table(caption, [result.facts["level"], *head], rows, (0, 5), source="circuit_edges.parquet")


def _p(part: CircuitPart) -> str:
    return "–" if part.p_adjusted is None else probability(part.p_adjusted)


def _elsewhere_table(result: CircuitResult) -> Table:
    rows: list[list[Cell]] = [[name, number(one)] for name, one in result.elsewhere.items()]
    caption = "What the same circuit keeps under another corruption, and on other pairs."
    return Table(caption, ["measured on", "share f"], rows, source="circuit.json")


def _flow_table(result: CircuitResult) -> Table:
    names = list(dict.fromkeys(name for part in result.parts for name in part.carries))
    rows: list[list[Cell]] = [
        [part.name, *(number(part.carries.get(name)) for name in names)] for part in result.parts if part.carries
    ]
    caption = (
        "Share of the metric's fall if this edge alone carries the mean of the other class; shuffled: the same with "
        "labels in random order."
    )
    return Table(caption, [result.facts["level"], *names], rows, source="circuit_flows.parquet")


def _size_table(result: CircuitResult) -> Table:
    rows: list[list[Cell]] = [
        [_CHOICES[one.by], f"{one.asked:,}", f"{one.edges:,}", number(one.faithfulness), _in_random(one)]
        for one in result.sizes
    ]
    head = ["chosen", "asked for", "edges", "share f", "95 % of random circuits"]
    return Table("What circuits of each size keep on test.", head, rows, source="circuit_sizes.parquet")


def print_circuit(result: CircuitResult, console: Console, *, details: bool) -> None:
    """Print words on the circuit, its parts, what it keeps elsewhere, and what a circuit cannot show."""
    print_lines(console, [f"model {result.model}: {about(result)}"], style="dim")
    print_lines(console, claims(result))
    inside = [part for part in result.parts if part.in_circuit]
    rows = [
        (part.name, decimal(part.effect), with_interval(part.removal), _p(part), part.word)
        for part in (inside if details else inside[:_MOST_ROWS])
    ]
    more = f"{len(inside) - len(rows)} more with --details" if len(rows) < len(inside) else ""
    print_table(
        console, [result.facts["level"], "effect", "fall without it", "adj. p", "word"], rows, (0, 4), note=more
    )
    if details and result.sizes:
        sizes = [
            (_CHOICES[one.by], f"{one.edges:,}", with_interval(one.faithfulness), _in_random(one))
            for one in result.sizes
        ]
        print_table(console, ["chosen", "edges", "share f", "random"], sizes, (0,))
    print_lines(console, [f"{name}: f {with_interval(share)}" for name, share in result.elsewhere.items()])
    print_lines(console, methods(result), style="dim")
    print_limits(console, result.limits)
