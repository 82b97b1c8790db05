"""Refuses, before training, labels from which nothing can be learned, and counts problems that make others doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.errors import DegenerateDesign, NotForThisTask, warn_user
from probing.labels import Labels
from probing.recipes import build
from probing.statistics.clusters import EVALUATED
from probing.tasks._numbers import instead_of_times
from probing.text.corpus import SPLITS, Corpus, Example
from probing.text.example import as_input, first_crossing, group_keys, named
from probing.training.row_facts import key_columns


def check_labels(labels: Labels, corpus: Corpus) -> None:
    """Raise an error if nothing can be learned from the labels, or if a score on them would be meaningless.

    Raises:
        DegenerateDesign: there are no rows, a split is empty, there is one class only or fewer rows than classes, no
            label of dev or test occurs in train, or groups cross splits; the message says what, where and the next
            step.
    """
    where = f"task {labels.task} on {corpus.source}"
    if not len(labels):
        raise DegenerateDesign(
            "no row has a label",
            needed="labelled rows",
            found=_listed(labels.excluded) or "no rows",
            where=where,
            next_step="check that splits are named train, dev and test, and that the column has values",
        )
    counts = {split: len(labels.rows(split)) for split in SPLITS}
    empty = [split for split, n in counts.items() if not n]
    if empty:
        raise DegenerateDesign(
            f"no labelled rows in {' and '.join(empty)}",
            needed="rows in train, dev and test",
            found=f"{_listed(counts)}; splits of the corpus: {', '.join(corpus.splits)}",
            where=where,
            next_step="give at least three sentences or documents (and for a judgement 200): fewer cannot be split"
            if len(set(corpus.units.tolist())) < len(SPLITS)
            else "give train=FILE dev=FILE test=FILE, or one file without a column `split`: it is split at random",
        )
    _check_variety(labels, counts["train"], where)
    _check_groups(labels, corpus, where)


def _check_variety(labels: Labels, n_train: int, where: str) -> None:
    if labels.kind == "labels":
        _check_label_sets(labels, where)
        return
    trained = np.unique(labels.y[labels.rows("train")])
    if len(trained) < 2:
        only = labels.classes[int(trained[0])] if labels.kind == "classes" else f"{trained[0]:g}"
        raise DegenerateDesign(
            "all train rows have one label",
            needed="at least two different labels",
            found=f"only {only!r}",
            where=where,
            next_step="choose another task or more data",
        )
    if labels.kind == "real":
        return
    if n_train < len(labels.classes):
        raise DegenerateDesign(
            "fewer train rows than classes",
            needed=f"at least {len(labels.classes)} rows",
            found=str(n_train),
            where=where,
            next_step=instead_of_times(labels.classes)
            or "use more data, or a task with fewer classes (for numbers: column:NAME:real)",
        )
    for split in ("dev", "test"):
        present = np.unique(labels.y[labels.rows(split)])
        if not np.isin(present, trained).any():
            shown = ", ".join(labels.classes[code] for code in present[:10])
            raise DegenerateDesign(
                f"no label of {split} occurs in train",
                needed="labels that train has seen",
                found=shown,
                where=where,
                next_step="check that all files name their labels alike",
            )


def _check_label_sets(labels: Labels, where: str) -> None:
    share = labels.y[labels.rows("train")].mean(axis=0)
    if not ((share > 0) & (share < 1)).any():
        raise DegenerateDesign(
            "no label tells train rows apart",
            needed="a label that some rows of train have and others have not",
            found=", ".join(labels.classes[:10]) or "no label at all",
            where=where,
            next_step="use another column",
        )
    for split in ("dev", "test"):
        if not labels.y[labels.rows(split)][:, share > 0].any():
            raise DegenerateDesign(
                f"no label of {split} occurs in train",
                needed="labels that train has seen",
                found=f"none in {split}",
                where=where,
                next_step="check that all files name their labels alike",
            )


def _check_groups(labels: Labels, corpus: Corpus, where: str) -> None:
    labelled = [corpus.examples[ordinal] for ordinal in np.unique(labels.example)]
    crossing = first_crossing(zip(group_keys(labelled), (e.split for e in labelled), strict=True))
    if crossing:
        (_, name), here, there = crossing
        raise DegenerateDesign(
            "a group crosses splits",
            needed=f"every {corpus.unit} or sentence id in one split",
            found=f"{name!r} in {here} and {there}",
            where=where,
            next_step="correct the splits, or split at random by group with split_seed=0",
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def refuse_one_class(measures: Mapping[str, Measure], label_sets: Iterable[Labels], splits: Iterable[str]) -> None:
    """Raise an error if all rows of a split have one class and a measure is undefined there, since it contrasts
    classes.

    Raises:
        DegenerateDesign: all rows have one class; the message names measure, split and label set.
    """
    wanting = [name for name, measure in measures.items() if measure.needs_two_classes]
    if not wanting:
        return
    for labels, split in product(label_sets, splits):
        if len(np.unique(labels.y[labels.rows(split)])) < 2:
            raise DegenerateDesign(
                f"{wanting[0]} is undefined on {split}: all its labels are the same",
                needed="at least two classes",
                found="one",
                where=f"task {labels.task}" + (f", control {labels.control}" if labels.control else ""),
                next_step="leave the measure out, or split the corpus otherwise",
            )


def defined_measures(measures: Mapping[str, Measure], label_sets: Sequence[Labels]) -> dict[str, Measure]:
    """Return the measures that are defined on dev and test. Where all numbers of a split are equal, R² and rank
    correlations are not: they are left out with a warning, and `rmse` is scored in their place.

    Args:
        measures: measures by name.
        label_sets: labels of the task, then those of every draw of every control.
    """
    found, task = dict(measures), label_sets[0].task
    for labels, split in product(label_sets, EVALUATED) if label_sets[0].kind == "real" else ():
        scored = labels.take(labels.rows(split))
        if np.ptp(scored.y) > 0:
            continue
        guess = Prediction(np.arange(len(scored), dtype=np.float64), labels=scored)
        unfit = [name for name, one in found.items() if not np.isfinite(one.informed(labels).value(scored.y, guess))]
        if not unfit:
            continue
        found = {name: one for name, one in found.items() if name not in unfit}
        found.setdefault("rmse", build("measures", "rmse"))
        whose = f" of the control {labels.control}" if labels.control else ""
        warn_user(
            f"task {task}: all values{whose} in {split} are {scored.y[0]:g}, where {' and '.join(unfit)} "
            f"{'is' if len(unfit) == 1 else 'are'} not defined; rmse is scored instead",
            NotForThisTask,
        )
    return found


LIKE_GROUP = (2, 20)  # rows of one value
LEAST_GROUPS = 10
MOSTLY = 0.95
LEAST_ROWS = 3  # rows of a value from which it can be told to fix the label
RANKED = 0.9  # rank correlation of numbers and labels above which they are one quantity
Inputs = Mapping[int, tuple[int, str]]


def data_warnings(labels: Labels, corpus: Corpus, inputs: Inputs, unknown_pieces: float | None) -> dict[str, Any]:
    """Return further facts about the data, beside those of `row_facts.facts`, from which warnings are made; ready for
    JSON.

    Args:
        labels: labels of the task.
        corpus: the corpus of the labels.
        inputs: by example ordinal, number of unknown pieces (tokens) and hash of the piece ids, for inputs that have
            unknown pieces or were cut.
        unknown_pieces: share of all content pieces that are the tokenizer's unknown piece; None: not known.

    Returns:
        `like_groups`, for columns whose values recur across splits as those of a group would: the number of `values`,
        of rows with each (`least`, `most`) and of values in several splits (`crossing`), and `fixing` (1) if the column
        is listed only because its values fix the label; `recomposed`, by column, the number of examples whose label was
        in another Unicode form; `group_name`, what groups are called; `unknown_pieces`, as given; `conflicting_inputs`,
        the number of test rows whose input also occurs with another label; `one_label`, the label of dev or test if all
        judged rows have the same; `alike_labels`, lists of labels that differ by upper and lower case or white space
        alone; `lone_label`, only if there is one: of two labels of dev or test, that whose rows are all of one cluster.
    """
    return {
        "like_groups": _like_groups(labels, corpus),
        "recomposed": dict(Counter(name for e in corpus.examples for name in e.recomposed)),
        "group_name": corpus.unit,
        "unknown_pieces": unknown_pieces,
        "conflicting_inputs": int(_conflicting(labels, corpus, inputs)[labels.rows("test")].sum()),
        "one_label": _only_labels(labels),
        "alike_labels": _alike(labels.classes),
        **_lone_labels(labels),
    }


def cut_inputs(labels: Labels, cut: NDArray[np.int64], limit: int | None) -> dict[str, Any]:
    """Return, ready for JSON, the fact `cut_inputs`: how many `inputs` with labelled rows were cut and, if known, at
    how many `tokens`; an empty dict if none was.

    Args:
        labels: labels of the task.
        cut: indices of the examples whose input was cut.
        limit: largest number of tokens of an input.
    """
    count = int(np.isin(cut, labels.example[np.isin(labels.split, SPLITS)]).sum())
    at = {} if limit is None else {"tokens": limit}
    return {"cut_inputs": {"inputs": count} | at} if count else {}


def alike_inputs(labels: Labels, corpus: Corpus, inputs: Inputs, cut: NDArray[np.int64]) -> dict[str, Any]:
    """Return, ready for JSON, the fact `alike_inputs`: the number of test `rows` whose text is not in train and whose
    tokens are, and how many of these were `cut`; an empty dict if there are none.
    """
    train, test = (np.unique(labels.example[labels.rows(split)]).tolist() for split in ("train", "test"))
    texts = {as_input(corpus.examples[e].text) for e in train}
    hashes = {inputs[e][1] for e in train if e in inputs}
    alike = [
        e for e in test if e in inputs and inputs[e][1] in hashes and as_input(corpus.examples[e].text) not in texts
    ]
    of_test = labels.example[labels.rows("test")]
    rows, cut_rows = (int(np.isin(of_test, chosen).sum()) for chosen in (alike, np.intersect1d(alike, cut)))
    return {"alike_inputs": {"rows": rows, "cut": cut_rows}} if rows else {}


def _like_groups(labels: Labels, corpus: Corpus) -> dict[str, dict[str, int]]:
    """Return columns of sentences of which some value is in more than one split, and (nearly) every value is on 2 to 20
    examples, or fixes the label.
    """
    present = np.unique(labels.example[np.isin(labels.split, SPLITS)])
    examples = [corpus.examples[e] for e in present.tolist()]
    label = labels.codes[np.unique(labels.example, return_index=True)[1]] if labels.level == "sentence" else None
    found = {}
    for column in key_columns(examples):
        values = [named(e.columns.get(column)) for e in examples]
        counts = Counter(value for value in values if value is not None)
        splits = {value: set() for value in counts}  # type: dict[str, set[str]]
        for value, example in zip(values, examples, strict=True):
            if value is not None:
                splits[value].add(example.split)
        fitting = sum(LIKE_GROUP[0] <= n <= LIKE_GROUP[1] for n in counts.values())
        crossing = sum(len(of_one) > 1 for of_one in splits.values())
        is_label = label is not None and _same(values, label.tolist())
        if len(counts) < LEAST_GROUPS or not crossing or is_label:
            continue
        are_few = fitting >= MOSTLY * len(counts)
        if are_few or (label is not None and _fix(values, label, labels) and not _are_read(values, examples)):
            found[column] = {
                "values": len(counts),
                "least": min(counts.values()),
                "most": max(counts.values()),
                "crossing": crossing,
            } | ({} if are_few else {"fixing": 1})
    return found


def _fix(values: Sequence[str | None], label: NDArray[Any], labels: Labels) -> bool:
    """Return whether (nearly) every value goes with a single label, so that to know the value is to know the label,
    and the values are not the label in other words: finer names of it, or numbers in the order of it.
    """
    counts = Counter(values)
    rows = np.array([i for i, v in enumerate(values) if v is not None and counts[v] >= LEAST_ROWS], np.int64)
    if 2 * len(rows) < len(values):
        return False
    names, codes = np.unique([str(values[i]) for i in rows.tolist()], return_inverse=True)
    y = label[rows]
    if labels.kind == "real":
        means = np.bincount(codes, y) / np.bincount(codes)
        fixed = 1 - np.square(y - means[codes]).sum() / max(np.square(y - y.mean()).sum(), 1e-300)
    else:
        kinds, y = np.unique(y, return_inverse=True)
        if len(names) < 2 * len(kinds):
            return False
        table = np.zeros((len(names), len(kinds)))
        np.add.at(table, (codes, y), 1)
        most = table.sum(axis=0).max()
        fixed = (table.max(axis=1).sum() - most) / max(len(rows) - most, 1)
        means = table.argmax(axis=1).astype(np.float64)
        if labels.kind == "classes":
            spelt = [labels.classes[int(kinds[int(k)])].casefold() for k in means]
            if all(kind in name.casefold() for kind, name in zip(spelt, names.tolist(), strict=True)):
                return False
    return bool(fixed >= MOSTLY) and not _in_order(names.tolist(), means, is_real=labels.kind == "real")


def _are_read(values: Sequence[str | None], examples: Sequence[Example]) -> bool:
    """Return whether (nearly) every value is a part of its text, so that baselines of texts read it."""
    pairs = [(v, e.text) for v, e in zip(values, examples, strict=True) if v is not None]
    return sum(value.casefold() in text.casefold() for value, text in pairs) >= MOSTLY * len(pairs)


def _in_order(names: Sequence[str], means: NDArray[np.float64], *, is_real: bool) -> bool:
    """Return whether names are numbers whose order is that of the labels, as bins of the same quantity have."""
    try:
        order = np.argsort(np.array([float(name) for name in names]), kind="stable")
    except ValueError:
        return False
    along = means[order]
    if not is_real:
        return int((np.diff(along) != 0).sum()) < len(np.unique(along))
    ranks = np.argsort(np.argsort(along))
    return bool(abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) > RANKED)


def _same(values: Sequence[Any], labels: Sequence[Any]) -> bool:
    """Return whether values and labels correspond one to one."""
    pairs = set(zip(values, labels, strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _only_labels(labels: Labels) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in EVALUATED if labels.kind in ("classes", "real") else ():
        present = np.unique(labels.y[_judged(labels, split)])
        if len(present) == 1:
            found[split] = f"{present[0]:g}" if labels.kind == "real" else labels.classes[int(present[0])]
    return found


def _judged(labels: Labels, split: str) -> NDArray[np.int64]:
    """Return the rows of a split whose input is not in train; all, if train has every one."""
    rows = labels.rows(split)
    new = rows if labels.fresh is None else rows[labels.fresh[rows]]
    return new if len(new) else rows


def _lone_labels(labels: Labels) -> dict[str, dict[str, str]]:
    found: dict[str, str] = {}
    for split in EVALUATED if labels.kind == "classes" else ():
        rows = _judged(labels, split)
        present = np.unique(labels.y[rows])
        if len(present) == 2:
            clusters = [len(np.unique(labels.groups[rows[labels.y[rows] == code]])) for code in present]
            found |= {split: labels.classes[int(present[np.argmin(clusters)])]} if min(clusters) == 1 else {}
    return {"lone_label": found} if found else {}


def _alike(classes: Sequence[str]) -> list[list[str]]:
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault(" ".join(name.split()).casefold(), []).append(name)
    return [names for names in by_form.values() if len(names) > 1]


def _conflicting(labels: Labels, corpus: Corpus, inputs: Inputs) -> NDArray[np.bool_]:
    """Return whether a row with the same input (and the same word of it), in any split, has another label, `(N,)`."""
    code_of: dict[str, int] = {}
    present, position = np.unique(labels.example, return_inverse=True)
    codes = [code_of.setdefault(_input(corpus, e, inputs), len(code_of)) for e in present.tolist()]
    other = np.zeros_like(labels.word) if labels.other_word is None else labels.other_word
    longest = max(int(labels.word.max()), int(other.max())) + 2
    place = (labels.word + 1) * longest + other  # a word, or the two words of a span or pair
    distinct, same = np.unique(np.array(codes, np.int64)[position] * longest**2 + place, return_inverse=True)
    same = same.reshape(-1)
    lowest = np.full(len(distinct), np.inf)
    highest = np.full(len(distinct), -np.inf)
    codes_of = labels.codes
    np.minimum.at(lowest, same, codes_of)
    np.maximum.at(highest, same, codes_of)
    return np.asarray((lowest != highest)[same])


def _input(corpus: Corpus, example: int, inputs: Inputs) -> str:
    """Return what tells an input from others: the hash of its piece ids where the text does not."""
    return f"ids {inputs[example][1]}" if example in inputs else f"text {as_input(corpus.examples[example].text)}"
