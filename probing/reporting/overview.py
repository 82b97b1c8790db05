"""Overview: shows which properties are decodable and used at which sites, with a one-line summary of each property."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from probing.reporting.findings import judge, unjudged_because
from probing.reporting.task_results import TaskResults, by_task, model_of, site_order, split_site
from probing.reporting.use_panels import Use, uses
from probing.reporting.use_words import MARKS, SHORT, effect
from probing.reporting.warnings import warnings_of_task
from probing.reporting.wording import decimal, measure_title, short, with_interval
from probing.results.probe import ProbeResult, Score
from probing.results.use import UseCell
from probing.system.screen import shown
from probing.verdicts.decodability import DECODABLE, NOT_JUDGED, SELECTIVE, Judgement, baseline_value
from probing.verdicts.verdict import UseRun, Verdict, Word

_GAIN, _SELECTIVITY, _SCORE = "gain over the best baseline", "selectivity", "score on test"
_STRENGTH = (SELECTIVE, DECODABLE)
_MOST_RANGES = 4
_SAME = 0.05  # shares of mediation that differ by less are given as one


@dataclass(frozen=True)
class Cell:
    """Holds the results of a property at a site: judgement of probes, result and verdict of edits, and the value drawn;
    None: not measured.
    """

    site: str
    judgement: Judgement | None
    use: tuple[UseCell, Verdict] | None
    value: float | None

    def record(self) -> dict[str, object]:
        """Return the fields of the cell that the chart draws."""
        return {
            "value": None if self.value is None else round(self.value, 4),
            "decodable": self.judgement is not None and self.judgement.status in _STRENGTH,
            "shape": MARKS[self.use[1].word] if self.use else "",
            "use": SHORT[self.use[1].word] if self.use else "",
            "share": _share(*self.use) if self.use else 1.0,
        }

    def hints(self) -> dict[str, str]:
        """Return the entries of the tooltip, text by title."""
        used = {"use": SHORT[self.use[1].word]} | _use_words(*self.use) if self.use else {}
        return {"site": self.site} | _probe_words(self.judgement) | used


def _share(cell: UseCell, verdict: Verdict) -> float:
    """Return the mediated fraction of a used property, between 0 and 1; 1 for other verdicts and if it is unknown."""
    edit = cell.whole if verdict.word is Word.USED_SITE else cell.subspace
    is_used = verdict.word in (Word.USED_SUBSPACE, Word.USED_SITE)
    return min(1.0, max(0.0, edit.mediated_fraction)) if is_used and edit.mediated_fraction is not None else 1.0


def _probe_words(judgement: Judgement | None) -> dict[str, str]:
    if judgement is None:
        return {}
    measured, gain, against = judgement.measured, judgement.gain, judgement.weakest
    found = {
        "probe": judgement.result.probe,
        measure_title(measured.measure): with_interval(measured.score),
        "finding": judgement.status,
        "test rows": f"{measured.score.n:,}",
    }
    found |= {f"gain over {gain.baseline}": with_interval(gain.gain)} if gain else {}
    return found | ({f"selectivity ({against.control})": with_interval(against.selectivity)} if against else {})


def _use_words(cell: UseCell, verdict: Verdict) -> dict[str, str]:
    edit, found = cell.subspace, {"swap, SD": with_interval(effect(cell.subspace), 2)}
    if edit.mediated_fraction is not None:
        found["mediated fraction"] = decimal(edit.mediated_fraction, 2)
    return found | ({"flags": ", ".join(verdict.flags)} if verdict.flags else {})


@dataclass(frozen=True)
class Row:
    """Holds the results of a property in one model, for one behaviour and position if its use was tested.

    Attributes:
        name: name of the property, with position and behaviour if several rows have it.
        model: full name of the model.
        anchor: anchor of its section in the page.
        cells: one cell per site, in the order of the forward pass.
        decodability, use: summary of each without the name of the property; "" if not measured.
    """

    name: str
    model: str
    anchor: str
    cells: tuple[Cell, ...]
    decodability: str
    use: str

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites of the row, in the order of the forward pass."""
        return tuple(cell.site for cell in self.cells)

    @property
    def line(self) -> str:
        """Summary of the row: `decodability` and `use`, separated by a dot."""
        return " · ".join(filter(None, (self.decodability, self.use)))


@dataclass(frozen=True)
class Overview:
    """Holds the rows of the overview; `quantity` names the value that the colour of cells shows."""

    rows: tuple[Row, ...]
    quantity: str

    @property
    def has_values(self) -> bool:
        """Whether any probe was scored, so that cells have colours."""
        return any(cell.value is not None for row in self.rows for cell in row.cells)

    @property
    def models(self) -> tuple[str, ...]:
        """Models in the order of first occurrence."""
        return tuple(dict.fromkeys(row.model for row in self.rows))


Entry = tuple[TaskResults | None, Sequence[Use], str]  # results of probes, of edits of the same property, an anchor


def entries(tasks: Sequence[TaskResults], uses: Sequence[Use]) -> list[Entry]:
    """Return (results of probes, results of edits, anchor) for each task; edits belong to the probes of the same task,
    model and position, and come last without probes if there are none.
    """
    beside: list[list[Use]] = [[] for _ in tasks]
    alone: list[Use] = []
    for use in uses:
        homes = [_home(tasks, use, position) for position in use.positions]
        for home in dict.fromkeys(homes):
            own = [position for position, at in zip(use.positions, homes, strict=True) if at == home]
            part = use if len(own) == len(homes) else use.only(own)
            (alone if home is None else beside[home]).append(part)
    found: list[Entry] = [(task, own, f"task-{i}") for i, (task, own) in enumerate(zip(tasks, beside, strict=True), 1)]
    return found + [(None, [use], f"use-{i}") for i, use in enumerate(alone, start=1)]


def _home(tasks: Sequence[TaskResults], use: Use, position: str) -> int | None:
    """Return which results of probes are of the property, the model and the position whose states were edited."""
    of_task = [i for i, task in enumerate(tasks) if task.label == use.result.task and task.position in ("", position)]
    of_task = [i for i in of_task if tasks[i].position] or of_task
    of_model = [i for i in of_task if model_of(tasks[i].any) == use.result.model]
    return of_model[0] if of_model else of_task[0] if len(of_task) == 1 else None


def overview(of: Sequence[Entry]) -> Overview:
    """Return the overview, with one row for each property, behaviour and position."""
    quantity = _quantity([task for task, _, _ in of if task])
    rows = [row for task, own, anchor in of for row in _rows(task, own, anchor, quantity)]
    return Overview(tuple(rows), quantity)


def print_overview(results: Sequence[ProbeResult], run: UseRun | None, console: Console, *, with_doubts: bool) -> None:
    """Print a line for each property and model, and, if `with_doubts`, warnings about the data below."""
    tasks = by_task(results)
    found = overview(entries(tasks, uses(run)))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(overflow="fold", max_width=max(12, console.width * 2 // 5))
    grid.add_column(overflow="fold")
    before, places = "", {model: place for place, model in enumerate(found.models)}
    for row in sorted(found.rows, key=lambda row: places[row.model]):
        if row.model != before:
            grid.add_row(shown("model", style="dim"), shown(row.model, style="dim"))
            before = row.model
        grid.add_row(shown(row.name, style="bold"), shown(row.line))
    console.print(grid)
    about: dict[str, list[str]] = {}
    for task in tasks if with_doubts else ():
        for warning in warnings_of_task(task):
            about.setdefault(warning, []).append(task.title)
    for warning, titles in about.items():
        of = titles[0] if len(titles) == 1 else f"{len(titles)} tasks"
        console.print(shown(f"warning: {of}: {warning}", style="bold yellow"))


def _quantity(tasks: Sequence[TaskResults]) -> str:
    """Return what all tasks have of: gain over the best baseline, else selectivity, else the score."""
    found = [judged for task in tasks for judged in _judged(task).values()]
    if not found or any(one.gain for one in found):
        return _GAIN
    return _SELECTIVITY if any(one.weakest for one in found) else _SCORE


def _judged(task: TaskResults) -> dict[str, Judgement]:
    """Return the judgement at each site of the probe that is best on dev."""
    best = task.best()
    chosen = [result for result in task.results if best and result.probe == best.probe]
    return {result.site: outcome for result in chosen if (outcome := judge(task, result)) is not None}


def _rows(task: TaskResults | None, uses: Sequence[Use], anchor: str, quantity: str) -> list[Row]:
    judged = _judged(task) if task else {}
    decodability = decodability_line(task, judged) if task else ""
    asked: list[tuple[Use | None, str]] = [(use, position) for use in uses for position in use.positions]
    rows = []
    for use, position in asked or [(None, "")]:
        edited = {cell.site: (cell, verdict) for _, cell, verdict in use.at(position)} if use else {}
        sites = sorted({*judged, *edited}, key=site_order)
        of_site = ((site, judged.get(site), edited.get(site)) for site in sites)
        cells = tuple(Cell(site, own, use_there, _value(own, quantity)) for site, own, use_there in of_site)
        name = task.task if task else use.result.task if use else ""
        apart = [position] if use and len(use.positions) > 1 else []
        apart += [_behaviour(use)] if use and len(uses) > 1 else []
        apart += [use.apart] if use else []
        model = task.states if task else use.model.label if use else ""
        named = f"{name} ({', '.join(filter(None, apart))})" if any(apart) else name
        rows.append(Row(named, model, anchor, cells, decodability, use_line(use, position) if use else ""))
    return rows


def _value(judged: Judgement | None, quantity: str) -> float | None:
    if judged is None or judged.status == NOT_JUDGED:
        return None
    found: Mapping[str, Score | None] = {
        _GAIN: judged.gain.gain if judged.gain else None,
        _SELECTIVITY: judged.weakest.selectivity if judged.weakest else None,
        _SCORE: judged.measured.score,
    }
    score = found[quantity]
    return None if score is None else score.value


def decodability_line(task: TaskResults, judged: Mapping[str, Judgement]) -> str:
    """Return a summary such as `selectively decodable at resid.1–3 (+.35 over bag_of_words)`, for the probe that is
    best on dev.
    """
    if not judged:
        return "no probe of states was scored on test"
    sites = list(judged)
    at: dict[str, list[str]] = {}
    for site, one in judged.items():
        at.setdefault(one.status, []).append(site)
    parts = [
        f"{status} at {ranges(at[status], sites)}{_beyond([judged[site] for site in at[status]])}"
        for status in _STRENGTH
        if status in at
    ]
    if parts:
        return ", ".join(parts)
    if NOT_JUDGED in at:
        return f"not judged: {unjudged_because(next(one for one in judged.values() if one.status == NOT_JUDGED))}"
    words = list(dict.fromkeys(one.status for one in judged.values()))
    where = sites[0] if len(sites) == 1 else "any site"
    return f"{' or '.join(words[:3])} at {where}{_reached(list(judged.values()))}"


def _reached(judged: Sequence[Judgement]) -> str:
    """Return what probes and the baseline reach where probes gain least over it: both may know the label well."""
    known = [one for one in judged if one.gain]
    if not known:
        return ""
    best = max(known, key=lambda one: one.measured.score.value * (1 if one.measured.higher_is_better else -1))
    if best.gain is None:
        return ""
    score, own = best.measured.score.value, baseline_value(best.measured, best.gain)
    reached = f"probes reach {short(score, 2)}, {best.gain.baseline} {short(own, 2)}"
    if best.gain.gain.low > 0:
        reached += ": a gain that is not shown to exceed its margin"
    prior = next((gain for gain in best.measured.gains if gain.baseline == "prior"), None)
    if prior is None or prior is best.gain or prior.is_shown:
        return f" ({reached})"
    alone = short(baseline_value(best.measured, prior), 2)
    return f" ({reached}; label frequencies alone {alone}, not shown to be beaten)"


def _beyond(judged: Sequence[Judgement]) -> str:
    gains = [one.gain for one in judged if one.gain]
    if not gains:
        return ""
    ends = [short(pick(gain.gain.value for gain in gains), 2) for pick in (min, max)]
    signed = dict.fromkeys(end if end.startswith("−") else f"+{end}" for end in ends)
    names = list(dict.fromkeys(gain.baseline for gain in gains))
    return f" ({' to '.join(signed)} over {' or '.join(names[:2])})"


def use_line(use: Use, position: str) -> str:
    """Return a summary of the verdicts at one position, such as `used at resid.1–3 (mediated .06 at resid.1 to 1.00 at
    resid.3) in next_token`.
    """
    found = use.at(position)
    sites = [cell.site for _, cell, _ in found]
    parts = []
    for word, name in _WORDS.items():
        here = [cell for _, cell, verdict in found if verdict.word is word]
        if here:
            is_weak = any(verdict.word is word and "weak behaviour" in verdict.flags for _, _, verdict in found)
            weak = " (this behaviour hardly depends on it)" if is_weak and word is Word.NO_MATERIAL_USE else ""
            where = ranges([cell.site for cell in here], sites)
            parts.append(f"{name} at {where}{_mediated(word, here)}{weak}")
    if not parts:
        return f"nothing to use: no probe recovers it at {'this place' if len(sites) == 1 else 'any place'}"
    where = f" in {_behaviour(use)}" if use.result.behaviour else ""
    return f"{', '.join(parts)}{where}"


_WORDS = {
    Word.USED_SUBSPACE: "used",
    Word.USED_SITE: "used (as a whole state)",
    Word.NOT_ALONE: "not used alone, used together with other positions",
    Word.NO_MATERIAL_USE: "no material use found",
    Word.INCONCLUSIVE: "use inconclusive",
    Word.NOT_TESTED: "use not tested",
}


def _mediated(word: Word, cells: Sequence[UseCell]) -> str:
    edits = [cell.whole if word is Word.USED_SITE else cell.subspace for cell in cells]
    both = [(cell.site, edit.mediated_fraction) for cell, edit in zip(cells, edits, strict=True)]
    known = [(site, share) for site, share in both if share is not None]
    if word not in (Word.USED_SUBSPACE, Word.USED_SITE) or not known:
        return ""
    shares = [share for _, share in known]
    if max(shares) - min(shares) < _SAME:
        return f" (mediated {short(sum(shares) / len(shares), 2)})"
    (least, low), (most, high) = (pick(known, key=lambda pair: pair[1]) for pick in (min, max))
    return f" (mediated {short(low, 2)} at {least} to {short(high, 2)} at {most})"


def _behaviour(use: Use) -> str:
    return use.result.behaviour.partition(":")[0]


def ranges(some: Sequence[str], sites: Sequence[str]) -> str:
    """Return the sites in `some` in short form, such as `resid.0, 2–4, final_norm`, in the order of `sites`; at most
    four ranges are named.
    """
    words: list[str] = []
    stream, run = "", (-1, -1)  # of the last word: its stream, its first and last layer
    for site in (site for site in sites if site in set(some)):
        of, layer = split_site(site)
        if not of or layer < 0 or of != stream:
            words.append(site)
            stream, run = (of, (layer, layer)) if layer >= 0 else ("", (-1, -1))
        elif layer == run[1] + 1:
            head = words[-1].partition("–")[0]
            words[-1], run = f"{head}–{layer}", (run[0], layer)
        else:
            words.append(str(layer))
            run = (layer, layer)
    more = len(words) - _MOST_RANGES
    return ", ".join(words[:_MOST_RANGES]) + (f" and {more} more" if more > 0 else "")
