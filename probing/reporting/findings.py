"""Finding: a plain sentence on the result of a task, with its limits, its evidence and the observations that would
overturn it.

The criterion is that of `probing.verdicts.decodability`. The site is chosen on dev.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probing.errors import InputError
from probing.reporting.task_results import TaskResults, by_task, comparison, score
from probing.reporting.warnings import sentences, warnings_of_task
from probing.reporting.wording import (
    SHOWS_NOTHING,
    count,
    decimal,
    half_width,
    measure_title,
    needs,
    p_in_family,
    plural,
    with_interval,
)
from probing.results.probe import Gain, ProbeResult
from probing.verdicts.decodability import (
    MIN_SENTENCES,
    Judgement,
    all_shared,
    baseline_value,
    clears_frequencies,
    fails,
    judged,
    lone_test_label,
    only_test_label,
    too_few,
)


@dataclass(frozen=True)
class Finding:
    """States the result of one task in words.

    Attributes:
        task: the task's title.
        status: outcome of the criterion of decodability at the best site.
        sentence: the finding, with site, probe, numbers and intervals.
        does_not_show: conclusions that it does not support.
        evidence: further numbers, a sentence each.
        overturned_by: observations that would change the finding; without a judgement, the data that it needs.
    """

    task: str
    status: str
    sentence: str
    does_not_show: str
    evidence: tuple[str, ...]
    overturned_by: tuple[str, ...]


def finding(results: Sequence[ProbeResult] | TaskResults) -> Finding:
    """Return the finding for one task, from its results.

    Raises:
        InputError: the results are not all of one task.
    """
    task = results if isinstance(results, TaskResults) else _only_task(results)
    best = task.best()
    outcome = judge(task, best) if best else None
    if outcome is None:
        return _not_judged(task)
    return Finding(
        task=task.title,
        status=outcome.status,
        sentence=_sentence(task, outcome),
        does_not_show=_does_not_show(task, outcome),
        evidence=_evidence(task, outcome),
        overturned_by=_overturned_by(task, outcome),
    )


def judge(task: TaskResults, result: ProbeResult) -> Judgement | None:
    """Apply the criterion of decodability to one result on test and return the judgement; None if the primary measure
    was not scored on test.
    """
    measured = score(result, task.primary)
    if measured is None:
        return None
    return judged(result, measured)


def unjudged_because(judgement: Judgement) -> str:
    """Return the reason why a result was not judged, as a clause."""
    facts = judgement.result.facts
    if (label := only_test_label(facts)) is not None:
        return f"all test labels are {label!r}"
    if (label := lone_test_label(facts)) is not None:
        return f"too few test rows of {label!r}: a single one, or all of one sentence or group"
    if all_shared(facts):
        return "train has the input of every test row"
    if few := too_few(facts):
        return f"{plural(few, 'different test sentence')}, fewer than {MIN_SENTENCES}"
    return "no baseline was scored"


def _only_task(results: Sequence[ProbeResult]) -> TaskResults:
    tasks = by_task(results)
    if len(tasks) != 1:
        raise InputError("a finding is about one task", needed="results of one task", found=plural(len(tasks), "task"))
    return tasks[0]


def _not_judged(task: TaskResults) -> Finding:
    return Finding(
        task=task.title,
        status="not judged",
        sentence=f"No probe of hidden states of {task.states} was scored on test for {task.task}: nothing can be said "
        "about them.",
        does_not_show="Baselines alone show how far the label can be predicted without any hidden state.",
        evidence=(),
        overturned_by=("a probe of the states of at least one site",),
    )


def _sentence(task: TaskResults, judged: Judgement) -> str:
    measured = judged.measured
    rows = "test rows" if measured.split == "test" else "test rows whose input train has not"
    reached = f"on {count(measured.score.n)} {rows} {measure_title(task.primary)} is {with_interval(measured.score)}"
    parts = (_opening(task, judged), reached, _gain_clause(judged), _control_clause(judged))
    return "; ".join(filter(None, parts)) + "."


def _opening(task: TaskResults, judged: Judgement) -> str:
    options = len(task.results)
    choice = f" (the best of {options} site-probe pairs, chosen on {task.chosen_on})" if options > 1 else ""
    where = f"from {judged.result.site} of {task.states} by the probe {judged.result.probe}{choice}"
    match judged.status:
        case "selectively decodable":
            return f"{task.task} is selectively decodable {where}"
        case "decodable" if judged.weakest:
            return f"{task.task} is decodable, but not shown to be selectively decodable, {where}"
        case "decodable":
            return f"{task.task} is decodable {where}; without a control task nothing can be said of selectivity"
        case "not judged" if (label := only_test_label(judged.result.facts)) is not None:
            return f"NOT JUDGED: all test labels are {label!r}, so that nothing shows whether {task.task} is decodable"
        case "not judged" if (label := lone_test_label(judged.result.facts)) is not None:
            return f"NOT JUDGED: test has a single row, sentence or group of {label!r}, too few to judge {task.task}"
        case "not judged" if all_shared(judged.result.facts):
            return f"NOT JUDGED: train has the input of every test row, so that {task.task} may be known by heart"
        case "not judged" if few := too_few(judged.result.facts):
            return f"{few} different test sentences are too few to judge whether {task.task} is decodable {where}"
        case "not judged":
            return f"Whether {task.task} is decodable {where} cannot be judged without a baseline"
        case _:
            return f"{task.task} is {judged.status} {where}"


def _gain_clause(judged: Judgement) -> str:
    gain = judged.gain
    if gain is None:
        return ""
    clause = f"the gain over the best baseline ({gain.baseline}) is {with_interval(gain.gain)}"
    if judged.status == "not judged":
        return clause
    p, margin = p_in_family(gain), f"the margin of {gain.margin:g}"
    if gain.is_shown:
        return f"{clause}, beyond {margin} ({p})"
    return f"{clause}, which does not clear {margin} ({p}; {_power(gain)}){_by_itself(judged, gain)}"


def _power(gain: Gain) -> str:
    if gain.detectable is None and gain.error is not None:
        return "with an error as large as this one's, no gain that is possible would have been shown four times in five"
    least = gain.margin + half_width(gain.gain) if gain.detectable is None else gain.detectable
    return (
        "the smallest difference that these rows would have shown to clear it, four times in five, is about "
        f"{decimal(least)}"
    )


def _by_itself(judged: Judgement, gain: Gain) -> str:
    """Return a sentence that the score alone is clear of the label frequencies, where it is, so that no margin hides
    it.
    """
    if not clears_frequencies(judged.measured, gain):
        return ""
    return (
        ", although the interval of the score by itself, without a margin and as if nothing else had been tried, is "
        f"clear of what the label frequencies reach ({decimal(baseline_value(judged.measured, gain))})"
    )


def _control_clause(judged: Judgement) -> str:
    against = judged.weakest
    if against is None:
        return ""
    ceiling = "its ceiling, what memory of every key of train would reach on average, is"
    most = "" if against.ceiling is None else f" ({ceiling} {decimal(against.ceiling)})"
    return (
        f"the control task {against.control} gives {with_interval(against.score)}{most}, "
        f"so that selectivity is {with_interval(against.selectivity)}"
    )


def _does_not_show(task: TaskResults, judged: Judgement) -> str:
    if judged.status == "not judged":
        return SHOWS_NOTHING
    if fails(judged.status):
        first = (
            "That these probes did not read the label beyond the baselines does not show that it is absent: "
            "another probe, other rows or more training text may find it."
        )
    else:
        first = (
            f"That a probe can recover {task.task} from a state does not show that the model uses it, "
            "nor that this is where the model computes it: decodability is a fact about readers of the state."
        )
    return f"{first} It holds for this corpus, this model and this family of probes."


def _evidence(task: TaskResults, judged: Judgement) -> tuple[str, ...]:
    lines = [*warnings_of_task(task), _spread(task, judged.result.probe)]
    lines += [*_other_probes(task, judged), *_other_controls(judged)]
    lines += [_chance_line(task, judged, name) for name in task.chance_checks()]
    lines += sentences(judged.measured)
    seen, unseen = judged.measured.seen, judged.measured.unseen
    if seen is not None and unseen is not None:
        said = "On rows whose key occurs in train the score is"
        lines.append(f"{said} {decimal(seen)}, on the others {decimal(unseen)}.")
    if task.chosen_on == "test" and len(task.results) > 1:
        lines.append("Dev was not scored, so the site was chosen on test: its score is too favourable.")
    if unconverged := [r for r in task.results if not r.converged]:
        lines.append(f"{plural(len(unconverged), 'site-probe pair')} did not meet the solver's tolerance.")
    return tuple(filter(None, lines))


def _spread(task: TaskResults, probe: str) -> str:
    outcomes = [judge(task, result) for result in task.results if result.probe == probe]
    statuses = [outcome.status for outcome in outcomes if outcome]
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
    majority = judged.result.facts.get("majority") if task.kind == "classes" else None
    is_known = isinstance(majority, float)
    beside = f", the majority label of train {decimal(majority)} of the test rows" if is_known else ""
    return f"Chance check ({name}): the same probe scores {with_interval(check.score)}{beside}."


_NOT_LINEAR = ("mlp", "k_nearest")


def _combines_words(judged: Judgement) -> list[str]:
    """Return what would overturn the finding of a non-linear probe of texts, which may combine words that no baseline
    combines; nothing for other probes and rows.
    """
    probe = judged.result.probe
    if any(gain.baseline == "text_mlp" for gain in judged.measured.gains):
        return [
            "a baseline that combines rarer words: `text_mlp` combines only the commonest words and n-grams of train, "
            f"while {probe} may combine whatever words the states hold (see whether `linear` reads the label)"
        ]
    if probe.partition(":")[0] not in _NOT_LINEAR or judged.result.facts.get("level") != "sentence":
        return []
    return [
        "a baseline that combines words: those of words are linear or find the nearest text, while "
        f"{probe} is not linear, and the label may follow from two words that the states merely hold "
        "(see whether `linear` reads it)"
    ]


def _unread(judged: Judgement) -> str:
    """Return what no baseline of the rows reads, and a further one could."""
    position = "the position of the word in its sentence, " if judged.result.facts.get("level") == "word" else ""
    return f"{position}longer context of words, a lexicon"


def _has_no_room(judged: Judgement) -> bool:
    """Return whether the best baseline already scores (nearly) the best score there is, so that no probe could gain."""
    best = {"accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0, "auroc": 1.0}.get(judged.measured.measure)
    gain = judged.gain
    return best is not None and gain is not None and best - baseline_value(judged.measured, gain) <= gain.margin


def _overturned_by(task: TaskResults, judged: Judgement) -> tuple[str, ...]:
    if judged.status == "not judged":
        facts = judged.result.facts
        return needs(
            sentences=too_few(facts),
            only_label=only_test_label(facts),
            has_baseline=judged.gain is not None,
            all_shared=all_shared(facts),
            lone_label=lone_test_label(facts),
        )
    seeds = ["other seeds of the probe: one was run"] if judged.result.seed_count == 1 else []
    if fails(judged.status):
        better = (
            "more test rows: the interval of the gain would be narrower",
            "more training rows, another probe or another capacity of it, which reads the label better",
        )
        return (
            *(() if _has_no_room(judged) else better),
            "another corpus or domain, in which the baselines know less of the label",
            *seeds,
        )
    keyed = " or ".join(task.controls())
    reasons = [
        *_combines_words(judged),
        "another corpus or domain, in which the label's cues differ",
        f"a stronger baseline without hidden states ({_unread(judged)})",
        f"a control keyed on another field than {keyed}" if keyed else "a control task, of which there was none here",
        "another capacity of the probe, with which selectivity changes",
    ]
    return (*reasons, *seeds)
