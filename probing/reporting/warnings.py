"""Sentences that warn of problems with a task's data and scores, and sentences on state controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from probing.reporting.task_results import TaskResults, comparison, score
from probing.reporting.wording import measure_title, plural, with_interval
from probing.results.probe import Comparison, MeasureResult
from probing.states.store.views import cut_at, cut_inputs_warning, unknown_pieces_warning
from probing.verdicts.decodability import lone_test_label, only_test_label, shared_inputs, too_few

# A tokenizer that fits its text knows all but a few pieces in 10,000. At 1 % about every tenth sentence of ten words
# has a hole; and 1 % of contradicted rows can cost half of the margin of 0.02 by which a task is called decodable.
MOST_CONFLICTING = 0.01


@dataclass(frozen=True)
class _WaysOut:
    """Holds what can be done about problems of the data, in terms of what its owner has."""

    copies: str
    several_labels: str
    group: str
    group_of_values: str


_OF_FILES = _WaysOut(
    "A file without a column `split` is split with all copies of a text on one side.",
    "Give test and dev rows of several labels (of a file that is split at random: another --split-seed).",
    "--group COLUMN",
    "--group {name}",
)
_OF_ARRAYS = _WaysOut(
    "Without split=, all copies of a text are put on one side.",
    "Give test and dev rows of several labels (of a random split: another split_seed).",
    "groups=",
    "groups= with the values of {name}",
)


def warnings_of_task(task: TaskResults) -> tuple[str, ...]:
    """Return the warnings about a task's data and its scores."""
    ways = _OF_ARRAYS if task.any.is_of_arrays else _OF_FILES
    return (*_shared(task, ways), *warnings_of(task.any.facts, ways), *_below_prior(task, ways))


def warnings_of(facts: Mapping[str, Any], ways: _WaysOut = _OF_FILES) -> tuple[str, ...]:
    """Return a sentence for each problem that the facts show, the most serious first; () if they show none."""
    parts = (_of_splits(facts, ways), _of_inputs(facts), _of_values(facts), _left_out(facts))
    return tuple(sentence for part in parts for sentence in part if sentence)


def _shared(task: TaskResults, ways: _WaysOut) -> tuple[str, ...]:
    """Return sentences on what copies of train's texts in test do to the score, with the score on all rows beside."""
    found = shared_inputs(task.any.facts)
    if not found:
        return ()
    shared = f"{plural(found['rows'], 'test row')} ({plural(found['texts'], 'text')}) have an input that train has too"
    way_out = _way_out(task.any.facts, ways)
    if not found["new_rows"]:
        return (f"NOT JUDGED: all {shared}: what is scored may be known by heart. {way_out}",)
    best = task.best()
    if best is None or score(best, task.primary) is None:
        return (f"{shared}. {way_out}",)
    whole, new = best.measure(task.primary), best.judged(task.primary)
    if whole is new:
        return (f"{shared}, and the {plural(found['new_rows'], 'other')} are too few to be scored alone. {way_out}",)
    return (
        f"{shared}. Tables and judgement are of the {found['new_rows']:,} others: {task.primary} "
        f"{with_interval(new.score)} at {best.site}; on all rows it is {with_interval(whole.score)}. {way_out}",
    )


def _way_out(facts: Mapping[str, Any], ways: _WaysOut) -> str:
    """Return why test rows have an input that train has, where it is not that texts were copied, and what to do."""
    alike = facts.get("alike_inputs") or {}
    rows, cut = alike.get("rows", 0), alike.get("cut", 0)
    if not rows:
        return ways.copies
    at = cut_at((facts.get("cut_inputs") or {}).get("tokens"))
    parts = []
    if cut:
        parts.append(
            f"The texts of {cut:,} of these rows differ from those of train, but not before they are cut{at}: read "
            "all of them (--long-inputs window), or leave long ones out."
        )
    if rows > cut:
        parts.append(
            f"The texts of {rows - cut:,} of these rows differ from those of train, but their tokens are the same: the "
            "tokenizer does not keep what tells them apart (upper and lower case, accents, or words it has no token "
            f"for). Keep such texts in one split ({ways.group}), or use a model that reads the difference."
        )
    copied = shared_inputs(facts).get("rows", 0) > rows
    return " ".join([*parts, *([ways.copies] if copied else [])])


def _below_prior(task: TaskResults, ways: _WaysOut) -> tuple[str, ...]:
    """Return sentences on probes that do worse than knowing the label frequencies, by more than chance makes them."""
    scored = [(result, found) for result in task.results if (found := score(result, task.primary)) is not None]
    gains = [(result, gain) for result, found in scored for gain in found.gains if gain.baseline == "prior"]
    below = [(result, gain.gain) for result, gain in gains if gain.gain.high < 0]
    if not below or only_test_label(task.any.facts) is not None:  # one label: the majority is right on all rows or none
        return ()
    result, over = min(below, key=lambda pair: pair[1].value)
    others = (
        f" (and {plural(len(below) - 1, 'other probe or site', 'other probes and sites')})" if len(below) > 1 else ""
    )
    what = "predicting the mean of train" if task.kind == "real" else "the label frequencies"
    return (
        f"{result.probe} at {result.site}{others} scores below {what} by more than its interval: "
        f"{with_interval(over)}. What it learned on train is wrong on test: "
        f"{_why_below(task, ways, result.probe, -over.high)}.",
    )


FEW = 10  # train rows a coordinate: with fewer, a probe can fit noise to the cost of its score on test


def _why_below(task: TaskResults, ways: _WaysOut, probe: str, loss: float) -> str:
    """Return the causes, the likeliest first, of scores of a probe that are at least `loss` below those of one that
    reads nothing.

    A linear fit of N rows of D coordinates to noise is expected to lose D / (N - D) of the variance on other rows, and
    less of labels: noise is a cause of losses up to twice as large.
    """
    facts = task.any.facts
    rows, width, outlier = (facts.get("rows") or {}).get("train"), facts.get("width"), facts.get("outlier")
    causes = []
    if outlier:
        causes.append(f"one value, {outlier['value']:g} of row {outlier['row']}, outweighs all others")
    is_linear = probe.partition(":")[0] in ("linear", "ridge")
    if rows and width and (rows < FEW * width or (is_linear and loss <= 2 * width / (rows - width))):
        causes.append(
            f"it fitted noise, of which {rows:,} train rows of {int(width):,} coordinates leave much (more rows, or a "
            "simpler probe)"
        )
    what = ("opposite values", "values") if task.kind == "real" else ("opposite labels", "labels")
    if not (outlier and task.kind == "real"):
        causes.append(f"rows that belong together lie in both with {what[0]} (name their group: {ways.group})")
        causes.append(f"{what[1]} are mixed up")
        causes += [] if task.kind == "real" else ["it overfits a frequent label"]
    return ", or ".join([", ".join(causes[:-1]), causes[-1]]) if len(causes) > 1 else causes[0]


def _of_splits(facts: Mapping[str, Any], ways: _WaysOut) -> Iterator[str]:
    """Yield sentences on labels and values that are spread over the splits in a way that spoils scores."""
    test, dev = only_test_label(facts), (facts.get("one_label") or {}).get("dev")
    if test is not None:
        yield f"NOT JUDGED: all test labels are {test!r}. {ways.several_labels}"
    if (lone := lone_test_label(facts)) is not None and too_few(facts) is None:
        yield (
            f"NOT JUDGED: too few test rows of {lone!r}: a single one, or all of one sentence or group. A probe that "
            f"is right on it may be so by chance. {ways.several_labels}"
        )
    if dev:
        yield f"All dev labels are {dev!r}, so the best site is chosen by this label alone. {ways.several_labels}"
    for name, found in (facts.get("like_groups") or {}).items():
        least, most = (f"{found[key]:,}" for key in ("least", "most"))
        if found.get("fixing"):
            yield (
                f"Each value of the column {name!r} goes with one label (nearly): {found['values']:,} values, "
                f"{found['crossing']:,} of them in more than one split, so a probe can recognise the value and repeat "
                "its label. If rows of one value belong together (authors, sources, templates), keep them together: "
                f"{ways.group_of_values.format(name=name)}. The control keyed:key={name} shows what it is worth alone."
            )
            continue
        yield (
            f"Values of the column {name!r} recur across splits like those of a group: {found['values']:,} values, "
            f"each on {least if least == most else f'{least} to {most}'} rows, {found['crossing']:,} of them in more "
            "than one split. If rows of one value belong together (pairs, templates, items), keep them together: "
            f"{ways.group_of_values.format(name=name)}."
        )


def _of_inputs(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on inputs that a model reads in part, and on test rows that no probe can be right on."""
    yield unknown_pieces_warning(facts.get("unknown_pieces"))
    cut = facts.get("cut_inputs") or {}
    yield cut_inputs_warning(cut.get("inputs", 0), cut.get("tokens"))
    rows = (facts.get("rows") or {}).get("test") or 0
    conflicting, unseen = facts.get("conflicting_inputs") or 0, facts.get("unseen_rows") or 0
    if rows and conflicting > MOST_CONFLICTING * rows:
        yield (
            f"{plural(conflicting, 'test row')} of {rows:,} {'has' if conflicting == 1 else 'have'} the same input as "
            "a row with another label: no probe can be right on both."
        )
    if rows and unseen:
        carry = "carries a label" if unseen == 1 else "carry labels"
        yield f"{plural(unseen, 'test row')} of {rows:,} {carry} that train lacks: no probe can be right on them."


def _of_values(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on values that look mistaken."""
    if found := facts.get("outlier"):
        yield (
            f"The value {found['value']:g} of row {found['row']} of the corpus, counted from 0 (in {found['split']}), "
            f"lies far from all others, which are {found['lowest']:g} to {found['highest']:g}: fits and scores are "
            "about it. Correct it, or leave its row out."
        )
    if found := facts.get("odd_numbers"):
        yield _odd_numbers(found, facts.get("classes"))
    if names := facts.get("merged_values") or ():
        shown = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
        yield f"Values stand in the data both as numbers and as strings, and count as one class each: {shown}."
    if pairs := facts.get("alike_labels") or ():
        shown = "; ".join(" and ".join(map(repr, names)) for names in pairs[:5]) + ("; …" if len(pairs) > 5 else "")
        yield f"Labels differ by upper and lower case or white space alone and count as different: {shown}."


def _odd_numbers(found: Mapping[str, Any], number_of_classes: Any) -> str:
    numbers, values, odd, name = (found[key] for key in ("numbers", "values", "odd", "column"))
    classes = f"so its values are taken as {number_of_classes} classes"
    if odd.count(",") == 1 and odd.replace(",", "").strip("+- ").isdigit():
        return (
            f"Values of the column {name!r} are numbers with a decimal comma ({odd!r}), {classes}. Write decimals with "
            f"a point ({odd.replace(',', '.')}) and they are numbers; column:{name}:classes if they are names."
        )
    are = "is not" if values - numbers == 1 else f"and {values - numbers - 1:,} more are not"
    return (
        f"{numbers:,} of {values:,} values of the column {name!r} are numbers; {odd!r} {are}, {classes}. Correct "
        f"it, or leave the cell empty (column:{name}:real then reads numbers); column:{name}:classes if they are names."
    )


def _left_out(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on rows that are left out or stand alone, and on labels that are read in another form."""
    excluded = dict(facts.get("excluded") or {})
    unlabelled = excluded.pop("no label", 0)
    # Word tasks leave words without a value out as a matter of course: a form without number has no Number.
    if unlabelled and facts.get("level") == "sentence":
        rows = unlabelled + sum((facts.get("rows") or {}).values())
        have = "has" if unlabelled == 1 else "have"
        yield f"{plural(unlabelled, 'row')} of {rows:,} {have} no label and are left out."
    if shown := ", ".join(f"{n:,} of the {name}" for name, n in excluded.items() if name.startswith("split ")):
        yield f"Left out, since splits are train, dev and test: {shown}."
    if shown := ", ".join(f"{n:,} with {reason}" for reason, n in excluded.items() if reason.startswith("no ")):
        yield f"Left out, since something of this run draws or reads by it: {shown}."
    if alone := facts.get("alone") or 0:
        stand = "stands" if alone == 1 else "stand"
        unit = facts.get("group_name") or "document"
        yield f"{plural(alone, 'example')} without a {unit} {stand} alone, as a group of one."
    if found := facts.get("recomposed") or {}:
        shown = ", ".join(f"{name} ({plural(n, 'example')})" for name, n in found.items())
        form = "Labels in another Unicode form (not NFC) are read as composed, so that é is one label however typed"
        yield f"{form}: {shown}."


_WHAT = {
    "random states": "one random vector for each key of the rows, so that it shows what telling keys apart is worth",
    "the untrained twin": "the states of the same architecture with random weights",
}


def column(against: Comparison) -> str:
    """Return the title of the column of differences, such as `above random states`."""
    return f"above {against.above}"


def example_of(task: TaskResults, control: str) -> Comparison | None:
    """Return one comparison with a control, for the entries that all comparisons with it share; None if there
    is none.
    """
    found = (comparison(score(result, task.primary), control) for result in task.results)
    return next((against for against in found if against is not None), None)


def title(against: Comparison) -> str:
    """Return the title of a state control's table, such as `the same labels on other states: NAME`."""
    return f"the same labels on other states: {against.control}"


def described(against: Comparison) -> str:
    """Return the title of a state control's table with a description of its states."""
    what = _WHAT.get(against.above, f"the states of {against.above}")
    return f"{title(against)} ({what}). The difference is no selectivity."


def sentences(measured: MeasureResult) -> list[str]:
    """Return a sentence for each state control: the score on the other states, and the difference of the score on the
    task from it.
    """
    found = []
    for against in (one for one in measured.comparisons if one.above):
        source, gap = f"the states of {against.above}", against.selectivity
        source = against.above if against.above == "random states" else source
        told = "" if gap.low > 0 else ", which is less than they give" if gap.high < 0 else ", which is not told from 0"
        found.append(
            f"On {source} the same probe scores {with_interval(against.score)}: {measure_title(measured.measure)} here "
            f"is {with_interval(gap)} above {against.above}{told}."
        )
    return found
