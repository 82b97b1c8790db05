"""The confusion table at the best layer, as coloured cells."""

from __future__ import annotations

from probing.reporting.markup import Markup, el, table
from probing.reporting.task_results import TaskResults
from probing.reporting.wording import count
from probing.results.probe import ProbeResult

MAX_CLASSES = 25


def confusion_table(task: TaskResults) -> Markup:
    """Return the counts on test at the best layer, coloured by share of the row; at most `MAX_CLASSES` classes."""
    best = task.best()
    if best is None or not best.confusion or not best.classes:
        return Markup("")
    totals = [sum(row) for row in best.confusion]
    largest = sorted(range(len(totals)), key=lambda k: (-totals[k], k))[:MAX_CLASSES]
    shown = sorted(largest) if len(totals) <= MAX_CLASSES else largest
    cut = (
        f" Only the {len(shown)} most frequent of {len(totals)} classes are shown." if len(shown) < len(totals) else ""
    )
    caption = (
        f"Confusion at {best.site} with {best.probe} on test: rows are true classes, columns predicted ones, "
        f"numbers per cent of the row.{cut} Hold the pointer over a cell for counts."
    )
    head = ["", *(best.classes[k] for k in shown), "rows"]
    rows = [_confusion_row(best, k, shown, totals[k]) for k in shown]
    return table(caption, head, rows, "confusion")


def _confusion_row(best: ProbeResult, true: int, shown: list[int], total: int) -> list[Markup]:
    cells = []
    for predicted in shown:
        number = best.confusion[true][predicted]
        share = number / total if total else 0.0
        heat = f"h{min(10, round(10 * share))}" if share >= 0.05 else ""
        css = " ".join(filter(None, (heat, "own" if predicted == true else "")))
        hint = f"{count(number)} of {count(total)} rows of {best.classes[true]} predicted {best.classes[predicted]}"
        cells.append(el("td", {"class": css, "title": hint}, _percent(share, number)))
    return [el("th", {"scope": "row"}, best.classes[true]), *cells, el("td", None, count(total))]


def _percent(share: float, number: int) -> str:
    if not number:
        return "·"
    return "<1" if share < 0.01 else f"{100 * share:.0f}"
