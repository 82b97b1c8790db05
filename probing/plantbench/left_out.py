"""Counts the cells of tier 3 whose truth is left open, by reason, and what the rates would be if truth were read by the
directions of a variable alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probing.plantbench.scoring import Scored
from probing.use.nulls import rate_interval


@dataclass(frozen=True)
class LeftOutCells:
    """Counts cells that are not scored, and rates with and without the first kind of them.

    A cell is *collinear* if exchanging the property's own directions does nothing and exchanging the whole state does
    something: another variable that goes with the property acts there. It is *cancelling* if exchanges change outputs,
    and on average by nothing. Read by directions alone, collinear cells are unused.

    Attributes:
        collinear, collinear_used, collinear_unused: such cells, and those that are called used, and unused.
        cancelling, cancelling_used, cancelling_unused: such cells, and those that are called used, and unused.
        other: cells that are left out for neither reason.
        used_called_used: used cells that are called used.
        unused, false_used: unused cells that are scored, and those that are called used.
        unused_by_directions, false_used_by_directions: the same with collinear cells as unused ones.
    """

    collinear: int
    collinear_used: int
    collinear_unused: int
    cancelling: int
    cancelling_used: int
    cancelling_unused: int
    other: int
    used_called_used: int
    unused: int
    false_used: int
    unused_by_directions: int
    false_used_by_directions: int


def left_out(scored: Sequence[Scored]) -> LeftOutCells:
    """Return the counts over some cells of tier 3."""

    def count(reason: str = "", label: str = "band", verdicts: Sequence[str] = ()) -> int:
        cells = [s for s in scored if s.label == label and s.truth.left_out == reason]
        return sum(not verdicts or s.answer.verdict in verdicts for s in cells)

    used, unused = ("used",), ("unused", "not_decodable")
    collinear, collinear_used = count("collinear"), count("collinear", verdicts=used)
    false_used, n_unused = count(label="unused", verdicts=used), count(label="unused")
    return LeftOutCells(
        collinear,
        collinear_used,
        count("collinear", verdicts=unused),
        count("cancelling"),
        count("cancelling", verdicts=used),
        count("cancelling", verdicts=unused),
        count("other"),
        count(label="used", verdicts=used),
        n_unused,
        false_used,
        n_unused + collinear,
        false_used + collinear_used,
    )


def left_out_by_case(scored: Sequence[Scored]) -> dict[str, LeftOutCells]:
    """Return the counts by name of the program."""
    names = dict.fromkeys(s.name for s in scored)
    return {name: left_out([s for s in scored if s.name == name]) for name in names}


def left_out_table(rule: str, scored: Sequence[Scored]) -> str:
    """Return a text table of the cells that are left out, a line for each program, and rates under both readings of
    truth with 95 % Clopper-Pearson intervals.
    """
    found = left_out_by_case(scored) | {"all": left_out(scored)}
    width = max(len(name) for name in found)
    heads = ("collinear: used, unused, of", "cancelling: used, unused, of", "other")
    lines = [
        f"{rule}, cells of tier 3 that are not scored",
        f"{'program':{width}}  " + "  ".join(f"{head:>28}" for head in heads),
    ]
    for name, one in found.items():
        cells = (
            f"{one.collinear_used}, {one.collinear_unused}, {one.collinear}",
            f"{one.cancelling_used}, {one.cancelling_unused}, {one.cancelling}",
            str(one.other),
        )
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:>28}" for cell in cells))
    total = found["all"]
    hits = total.used_called_used
    lines += [
        _reading("without them", hits, total.false_used, total.unused),
        _reading(
            "by directions alone, collinear cells are unused",
            hits,
            total.false_used_by_directions,
            total.unused_by_directions,
        ),
    ]
    return "\n".join(lines)


def _reading(name: str, hits: int, false: int, unused: int) -> str:
    return f"{name}: unused called used {_rate(false, unused)}, right where it says used {_rate(hits, hits + false)}"


def _rate(part: int, whole: int) -> str:
    if not whole:
        return "–"
    low, high = rate_interval(part, whole)
    return f"{part} of {whole}, {part / whole:.3f} [{low:.3f}, {high:.3f}]"
