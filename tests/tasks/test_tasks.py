"""Laws of the tasks: labels of words and sentences, and what a corpus must have for them."""

from __future__ import annotations

from typing import Any

import pytest

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter, CorpusError, DegenerateDesign, UnknownName
from probing.text.corpus import Corpus, Example, Label

WORDS = ((0, 1), (2, 3), (4, 5))


def corpus(columns: dict[str, Label] | None = None, **word_columns: tuple[Label, ...]) -> Corpus:
    return Corpus(
        (Example("s1", "a b c", WORDS, columns or {}, {k.replace("__", ":"): v for k, v in word_columns.items()}),)
    )


def labels(name: str, argument: str, source: Corpus) -> tuple[Task, list[tuple[Any, ...]]]:
    task: Task = registry.get("tasks", name).MEMBER(argument)
    task.prepare(source)
    return task, [task.labels(example) for example in source.examples]


@pytest.mark.parametrize(("name", "column"), [("upos", "upos"), ("xpos", "xpos"), ("dependency_relation", "deprel")])
def test_a_word_column_task_gives_the_column(name: str, column: str) -> None:
    task, (values,) = labels(name, "", corpus(**{column: ("X", None, "Y")}))
    assert (task.level, task.kind, values) == ("word", "classes", ("X", None, "Y"))
    with pytest.raises(UnknownName):
        labels(name, "", corpus(other=("X", None, "Y")))
    with pytest.raises(DegenerateDesign):
        labels(name, "", corpus(**{column: (None, None, None)}))
    with pytest.raises(BadParameter):
        labels(name, "x", corpus(**{column: ("X", None, "Y")}))


def test_an_unknown_feature_names_the_nearest() -> None:
    source = corpus(feature__Number=("Sing", None, "Plur"))
    assert labels("feature", "Number", source)[1] == [("Sing", None, "Plur")]
    with pytest.raises(UnknownName, match="did you mean 'Number'"):
        labels("feature", "Numbr", source)
    with pytest.raises(BadParameter, match="Number"):
        labels("feature", "", source)


def test_tree_depth_counts_arcs_to_the_root() -> None:
    task, (values,) = labels("tree_depth", "", corpus(head=(2, 3, 0)))
    assert (task.level, task.kind, values) == ("word", "real", (2.0, 1.0, 0.0))
    assert labels("tree_depth", "", corpus(head=(2, None, 0)))[1] == [(None, None, 0.0)]


@pytest.mark.parametrize("heads", [(2, 1, 0), (1, 0, 0), (2, 3, 1), (9, 0, 0), (True, 0, 0), ("2", 0, 0)])
def test_heads_that_form_no_tree_are_refused(heads: tuple[Label, ...]) -> None:
    with pytest.raises(CorpusError, match="s1"):
        labels("tree_depth", "", corpus(head=heads))


def test_sentence_length_is_the_number_of_words() -> None:
    task, values = labels("sentence_length", "", corpus())
    assert (task.level, task.kind, values) == ("sentence", "real", [(3.0,)])


def numbers(values: list[Label]) -> Corpus:
    return Corpus(tuple(Example(str(i), "a", ((0, 1),), {"n": value}) for i, value in enumerate(values)))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, None, 2], "classes"),
        ([1.0, 2.0], "classes"),
        ([1.5, 2], "real"),
        (list(range(21)), "real"),
        (list(range(20)), "classes"),
        (["a", 1.5], "classes"),
        ([True, False], "classes"),
    ],
)
def test_the_kind_of_a_column_follows_from_its_values(values: list[Label], kind: str) -> None:
    assert labels("column", "n", numbers(values))[0].kind == kind


def test_numbers_as_classes_are_strings_and_the_kind_can_be_overridden() -> None:
    assert labels("column", "n", numbers([1, 2.0, None]))[1] == [("1",), ("2",), (None,)]
    assert labels("column", "n:real", numbers([1, 2, None]))[1] == [(1.0,), (2.0,), (None,)]
    assert labels("column", "n:classes", numbers([0.5, 2]))[1] == [("0.5",), ("2",)]
    with pytest.raises(BadParameter, match="not numeric"):
        labels("column", "n:real", numbers(["a", "b"]))


def test_a_column_has_the_level_the_corpus_gives_it() -> None:
    source = corpus({"tense": "past"}, tag=("x", "y", None), feature__Number=("Sing", None, None))
    assert labels("column", "tense", source)[1] == [("past",)]
    assert labels("column", "tag", source)[1] == [("x", "y", None)]
    assert labels("column", "feature:Number", source)[0].level == "word"
    with pytest.raises(UnknownName, match="did you mean 'tense'"):
        labels("column", "tensse", source)
    with pytest.raises(BadParameter, match="tag, tense"):
        labels("column", "", source)
