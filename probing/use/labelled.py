"""A corpus whose columns are the labels of tasks, so that words and texts can be chosen by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from probing.contracts.task import Task
from probing.errors import BadParameter
from probing.recipes import build_task
from probing.text.corpus import Corpus

PROPERTY_LEVELS = ("word", "sentence")
LEAST = 30  # sentences and word types of a class


def rare_classes(corpus: Corpus, task: str) -> tuple[str, ...]:
    """Return classes of a task of words that have too few sentences or word types to be in three folds, by name.

    Where the type all but decides the label, types do not cross folds; a verdict needs 30 of each class. None is rare
    where fewer than two classes would be left.
    """
    column = [
        (unit, e, e.word_columns.get(task, ())) for unit, e in zip(corpus.unit_names, corpus.examples, strict=True)
    ]
    texts: dict[str, set[str]] = {}
    types: dict[str, set[str]] = {}
    for unit, example, labels in column:
        for form, label in zip(example.forms, labels, strict=False):
            if isinstance(label, str):
                texts.setdefault(label, set()).add(unit)
                types.setdefault(label, set()).add(form.lower())
    rare = {name for name in texts if min(len(texts[name]), len(types[name])) < LEAST}
    return tuple(sorted(rare)) if len(texts) - len(rare) >= 2 else ()


def without(corpus: Corpus, task: str, classes: Sequence[str]) -> Corpus:
    """Return the corpus, in which words of these classes have no label of the task."""
    left_out = set(classes)
    examples = []
    for example in corpus.examples:
        if task in example.word_columns:
            kept = tuple(None if label in left_out else label for label in example.word_columns[task])
            example = replace(example, word_columns={**example.word_columns, task: kept})
        examples.append(example)
    return replace(corpus, examples=tuple(examples))


def labelled_corpus(corpus: Corpus, tasks: Sequence[str]) -> Corpus:
    """Return the same texts, with a column for each task, named as the task is.

    Raises:
        UnknownName: no such task, or the corpus lacks what it needs.
        BadParameter: a task of spans or pairs.
    """
    built = {name: _prepared(corpus, name) for name in dict.fromkeys(tasks)}
    examples = []
    for example in corpus.examples:
        of_text, of_words = dict(example.columns), dict(example.word_columns)
        for name, task in built.items():
            labels = task.labels(example)
            if task.level == "word":
                of_words[name] = tuple(labels)
            else:
                of_text[name] = labels[0]
        examples.append(replace(example, columns=of_text, word_columns=of_words))
    return replace(corpus, examples=tuple(examples))


def task_levels(corpus: Corpus, tasks: Sequence[str], positions: Sequence[str]) -> str:
    """Return the level that all tasks share, `word` or `sentence`.

    Raises:
        BadParameter: tasks of both kinds, or positions that are missing or make no sense.
    """
    levels = {_prepared(corpus, name).level for name in tasks}
    if len(levels) > 1:
        raise BadParameter(
            "tasks of words and of sentences are not measured together",
            needed="one level",
            found=", ".join(sorted(levels)),
            next_step="run them one after the other",
        )
    (level,) = levels
    if level == "sentence" and not positions:
        raise BadParameter(
            "where do the states lie that are edited?",
            needed="positions, such as end or a span's name",
            found="none",
            next_step="--position end",
        )
    if level == "word" and positions:
        raise BadParameter("tasks of words have their own position", needed="no positions", found=", ".join(positions))
    return level


def _prepared(corpus: Corpus, name: str) -> Task:
    task = build_task(name, corpus)
    task.prepare(corpus)
    if task.level not in PROPERTY_LEVELS:
        raise BadParameter(
            f"{name} is a task of {task.level}s",
            needed="labels of words or of sentences",
            found=task.level,
            next_step="choose another task",
        )
    return task
