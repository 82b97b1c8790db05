"""Finding: one plain sentence per task, what it does not show, its evidence and what would overturn it.

The criterion: a task is *decodable* at a site when the gain over the best baseline clears its margin (0.02 accuracy) on
test at an adjusted p of at most 0.025, and *selectively decodable* when the interval of selectivity against every
control also lies above 0. The site is chosen on dev. Nothing is judged on fewer than 20 test sentences: so
few show little; nor where all test labels are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probing.errors import InputError
from probing.records import Comparison, Gain, MeasureResult, ProbeResult
from probing.reporting.state_controls import sentences
from probing.reporting.task_results import TaskResults, by_task, comparison, least_gain, score
from probing.reporting.unjudged import MIN_SENTENCES, SHOWS_NOTHING, needs
from probing.reporting.warnings import only_test_label, warnings_of
from probing.reporting.wording import (
    beyond,
    correction_title,
    count,
    decimal,
    half_width,
    measure_title,
    plural,
    probability,
    with_interval,
)

Status = Literal["selectively decodable", "decodable", "not shown to be decodable", "not judged"]


@dataclass(frozen=True)
class Finding:
    """What one task's results say, in words.

    Attributes:
        task: the task's title.
        status: the criterion's outcome at the best site.
        sentence: what was found, with site, probe, numbers and intervals.
        does_not_show: what must not be concluded from it.
        evidence: further numbers, a sentence each.
        overturned_by: what would change the finding; where nothing is judged, what a judgement needs.
    """

    task: str
    status: Status
    sentence: str
    does_not_show: str
    evidence: tuple[str, ...]
    overturned_by: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """The criterion at one site for one probe: the scores it rests on and the outcome."""

    result: ProbeResult
    measured: MeasureResult
    gain: Gain | None
    weakest: Comparison | None
    status: Status


def finding(results: Sequence[ProbeResult] | TaskResults) -> Finding:
    """The finding of one task.

    Raises:
        InputError: the results are of no task or of several.
    """
    task = results if isinstance(results, TaskResults) else _only_task(results)
    best = task.best()
    judged = judge(task, best) if best else None
    if judged is None:
        return _not_judged(task)
    return Finding(
        task=task.title,
        status=judged.status,
        sentence=_sentence(task, judged),
        does_not_show=_does_not_show(task, judged),
        evidence=_evidence(task, judged),
        overturned_by=_overturned_by(task, judged),
    )


def judge(task: TaskResults, result: ProbeResult) -> Judgement | None:
    """Apply the criterion to one result on test; None where its primary measure was not scored there."""
    measured = score(result, task.primary)
    if measured is None:
        return None
    gain = least_gain(measured)
    controls = [c for c in measured.comparisons if c.is_selectivity]
    weakest = min(controls, key=lambda c: c.selectivity.low) if controls else None
    if gain is None or _too_few(result) or only_test_label(result.facts) is not None:
        return Judgement(result, measured, gain, weakest, "not judged")
    if not gain.is_shown:
        return Judgement(result, measured, gain, weakest, "not shown to be decodable")
    selective = weakest is not None and weakest.selectivity.low > 0
    return Judgement(result, measured, gain, weakest, "selectively decodable" if selective else "decodable")


def _too_few(result: ProbeResult) -> int | None:
    """The number of test sentences, where it is too small to judge by."""
    sentences: int | None = result.facts.get("sentences", {}).get("test")
    return sentences if sentences is not None and sentences < MIN_SENTENCES else None


def _only_task(results: Sequence[ProbeResult]) -> TaskResults:
    tasks = by_task(results)
    if len(tasks) != 1:
        raise InputError("a finding is about one task", needed="results of one task", found=plural(len(tasks), "task"))
    return tasks[0]


def _not_judged(task: TaskResults) -> Finding:
    return Finding(
        task=task.title,
        status="not judged",
        sentence=f"No probe of hidden states was scored on test for {task.title}: nothing can be said about them.",
        does_not_show="Baselines alone show how far the label can be predicted without any hidden state.",
        evidence=(),
        overturned_by=("a probe of the states of at least one site",),
    )


def _sentence(task: TaskResults, judged: Judgement) -> str:
    parts = [
        _opening(task, judged),
        f"on {count(judged.measured.score.n)} test rows {measure_title(task.primary)} "
        f"is {with_interval(judged.measured.score)}",
        _gain_clause(judged.gain, judged.status),
        _control_clause(judged),
    ]
    return "; ".join(part for part in parts if part) + "."


def _opening(task: TaskResults, judged: Judgement) -> str:
    where = f"from {judged.result.site} by the probe {judged.result.probe}{_choice(task)}"
    match judged.status:
        case "selectively decodable":
            return f"{task.title} is selectively decodable {where}"
        case "decodable" if judged.weakest:
            return f"{task.title} is decodable, but not shown to be selectively decodable, {where}"
        case "decodable":
            return f"{task.title} is decodable {where}; without a control task nothing can be said of selectivity"
        case "not judged" if (label := only_test_label(judged.result.facts)) is not None:
            return f"NOT JUDGED: all test labels are {label!r}, so that nothing shows whether {task.title} is decodable"
        case "not judged" if few := _too_few(judged.result):
            return f"{few} test sentences are too few to judge whether {task.title} is decodable {where}"
        case "not judged":
            return f"Whether {task.title} is decodable {where} cannot be judged without a baseline"
        case _:
            known = beyond(judged.gain.baseline if judged.gain else None)
            return f"{task.title} is not shown to be decodable{known} {where}"


def _choice(task: TaskResults) -> str:
    options = len(task.results)
    return f" (the best of {options} site-probe pairs, chosen on {task.chosen_on})" if options > 1 else ""


def _gain_clause(gain: Gain | None, status: Status) -> str:
    if gain is None:
        return ""
    clause = f"the gain over the best baseline ({gain.baseline}) is {with_interval(gain.gain)}"
    if status == "not judged":
        return clause
    p = f"{correction_title(gain.correction)}-adjusted p {probability(gain.p_adjusted)}"
    if gain.is_shown:
        return f"{clause}, beyond the margin of {_margin(gain)} ({p})"
    least = gain.margin + half_width(gain.gain) if gain.detectable is None else gain.detectable
    return (
        f"{clause}, which does not clear the margin of {_margin(gain)} ({p}; the smallest difference that these rows "
        f"would have shown to clear it, four times in five, is about {decimal(least)})"
    )


def _margin(gain: Gain) -> str:
    return f"{gain.margin:g}"


def _control_clause(judged: Judgement) -> str:
    against = judged.weakest
    if against is None:
        return ""
    most = (
        ""
        if against.ceiling is None
        else (f" (one that memorised every key of train would reach {decimal(against.ceiling)} on average)")
    )
    return (
        f"the control task {against.control} gives {with_interval(against.score)}{most}, "
        f"so that selectivity is {with_interval(against.selectivity)}"
    )


def _does_not_show(task: TaskResults, judged: Judgement) -> str:
    if judged.status == "not judged":
        return SHOWS_NOTHING
    if judged.status == "not shown to be decodable":
        first = (
            "That these probes did not read the label beyond the baselines does not show that it is absent: "
            "another probe, other rows or more training text may find it."
        )
    else:
        first = (
            f"That a probe can recover {task.title} from a state does not show that the model uses it, "
            "nor that this is where the model computes it: decodability is a fact about readers of the state."
        )
    return f"{first} It holds for this corpus, this model and this family of probes."


def _evidence(task: TaskResults, judged: Judgement) -> tuple[str, ...]:
    lines = [_spread(task, judged.result.probe), *_other_probes(task, judged), *_other_controls(judged)]
    lines = [*warnings_of(judged.result.facts), *lines]
    lines += [_chance_line(task, judged, name) for name in task.chance_checks()]
    lines += sentences(judged.measured)
    lines.append(_seen_line(judged))
    if task.chosen_on == "test" and len(task.results) > 1:
        lines.append("Dev was not scored, so the site was chosen on test: its score is too favourable.")
    if unconverged := [r for r in task.results if not r.converged]:
        lines.append(f"{plural(len(unconverged), 'site-probe pair')} did not meet the solver's tolerance.")
    return tuple(line for line in lines if line)


def _spread(task: TaskResults, probe: str) -> str:
    judged = [judge(task, result) for result in task.results if result.probe == probe]
    statuses = [j.status for j in judged if j]
    if len(statuses) < 2 or "not judged" in statuses:
        return ""
    selective = statuses.count("selectively decodable")
    decodable = selective + statuses.count("decodable")
    return (
        f"With {probe} the criterion of decodability is met at {decodable} of {len(statuses)} sites, "
        f"that of selective decodability at {selective}."
    )


def _other_probes(task: TaskResults, judged: Judgement) -> list[str]:
    lines = []
    for probe in task.probes:
        best = task.best(probe)
        found = score(best, task.primary) if best else None
        if best is None or found is None or probe == judged.result.probe:
            continue
        against = comparison(found, judged.weakest.control if judged.weakest else None)
        more = f", selectivity {with_interval(against.selectivity)}" if against else ""
        lines.append(
            f"{probe} is best at {best.site}: {measure_title(task.primary)} {with_interval(found.score)}{more}."
        )
    return lines


def _other_controls(judged: Judgement) -> list[str]:
    return [
        f"Against the control {other.control} ({with_interval(other.score)}) "
        f"selectivity is {with_interval(other.selectivity)}."
        for other in judged.measured.comparisons
        if other.is_selectivity and other != judged.weakest
    ]


def _chance_line(task: TaskResults, judged: Judgement, name: str) -> str:
    check = comparison(judged.measured, name)
    if check is None:
        return ""
    majority = judged.result.facts.get("majority")
    beside = (
        f", the majority label {decimal(majority)}" if isinstance(majority, float) and task.kind == "classes" else ""
    )
    return f"Chance check ({name}): the same probe scores {with_interval(check.score)}{beside}."


def _seen_line(judged: Judgement) -> str:
    seen, unseen = judged.measured.seen, judged.measured.unseen
    if seen is None or unseen is None:
        return ""
    return f"On rows whose key occurs in train the score is {decimal(seen)}, on the others {decimal(unseen)}."


def _overturned_by(task: TaskResults, judged: Judgement) -> tuple[str, ...]:
    if judged.status == "not judged":
        few, label = _too_few(judged.result), only_test_label(judged.result.facts)
        return needs(sentences=few, only_label=label, has_baseline=judged.gain is not None)
    keyed = " or ".join(task.controls())
    reasons = [
        "another corpus or domain, in which the label's cues differ",
        "a stronger baseline without hidden states (longer context of words, a lexicon)",
        f"a control keyed on another field than {keyed}" if keyed else "a control task, of which there was none here",
        "another capacity of the probe: selectivity falls as a probe can memorise more",
    ]
    if judged.result.seed_count == 1:
        reasons.append("other seeds of the probe: one was run")
    if judged.status == "not shown to be decodable":
        reasons.insert(0, "more test rows: the interval of the gain would be narrower")
    return tuple(reasons)
