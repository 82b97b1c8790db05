"""A column of numbers that an odd cell or decimal commas make classes is warned of, and no other column is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import probing as pb
from probing.errors import BadParameter, DegenerateDesign, DoubtfulData
from probing.recipes import build_task
from probing.reporting.warnings import warnings_of
from probing.tasks._numbers import merged_values, odd_number
from probing.text.corpus import Corpus
from probing.text.example import Example
from probing.training.label_checks import check_labels
from tests.samples.training_samples import labels_of

FINITE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


def corpus(values: list[Any]) -> Corpus:
    return Corpus(tuple(Example(str(i), f"text {i}", columns={"y": v}) for i, v in enumerate(values)))


def doubts(values: list[Any], name: str = "column:y") -> dict[str, Any]:
    read = corpus(values)
    task = build_task(name, read)
    task.prepare(read)
    return task.doubts(read)


@settings(deadline=None, max_examples=30)
@given(st.lists(FINITE, min_size=40, max_size=80), st.sampled_from(["n/a", "?", "1,000.5", "-", "twelve", "007"]))
def test_one_odd_cell_among_numbers_is_named_with_the_counts(numbers: list[float], odd: str) -> None:
    found = doubts([*map(str, numbers), odd])["odd_numbers"]
    assert found == {"column": "y", "numbers": len(numbers), "values": len(numbers) + 1, "odd": odd}
    (sentence,) = warnings_of({"odd_numbers": found, "classes": 7})
    assert f"{len(numbers)} of {len(numbers) + 1} values" in sentence and repr(odd) in sentence
    assert "7 classes" in sentence and "column:y:real" in sentence


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=40, max_size=60, unique=True))
def test_decimal_commas_are_named_and_the_point_is_the_cure(tenths: list[int]) -> None:
    values = [f"{n / 10:.1f}".replace(".", ",") for n in tenths]
    found = doubts(values)["odd_numbers"]
    (sentence,) = warnings_of({"odd_numbers": found, "classes": 51})
    assert "decimal comma" in sentence and found["odd"].replace(",", ".") in sentence and "51 classes" in sentence
    read = corpus(values)
    with pytest.raises(BadParameter, match="point") as caught:
        build_task("column:y:real", read).prepare(read)
    assert ":classes" not in caught.value.next_step


@pytest.mark.parametrize(
    "values",
    [
        [f"{i}.5" for i in range(50)],  # numbers as they should be
        list(range(50)),
        [*["yes", "no"] * 20, "1"],  # classes, of which one looks like a number
        ["01", "1", "02"] * 20,  # codes
        [*map(str, range(30)), *["x"] * 10],  # too many others for odd cells
        [f"{i},0" for i in (1, 2)] * 30,  # few values, which would be classes as numbers too
        [True, False] * 30,
        ["a,b", "c,d"] * 30,
    ],
)
def test_classes_and_numbers_are_not_taken_for_each_other(values: list[Any]) -> None:
    assert "odd_numbers" not in doubts(values)


def test_what_was_asked_for_by_name_is_not_doubted() -> None:
    values = [*map(str, range(60)), "n/a"]
    assert doubts(values) and not doubts(values, "column:y:classes")
    read = corpus(values)
    with pytest.raises(BadParameter, match="correct that cell"):
        build_task("column:y:real", read).prepare(read)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([1, "1", 1.0, 2, "two", True, "True", None]), max_size=30))
def test_a_class_written_as_number_and_string_is_named_and_one_and_one_point_oh_are_not(values: list[Any]) -> None:
    named = {"1": [v for v in values if v is not None and v is not True and str(v) in ("1", "1.0")]}
    named["True"] = [v for v in values if v is True or v == "True"]
    mixed = {n for n, same in named.items() if len({isinstance(v, str) for v in same}) == 2}
    assert set(merged_values(values)) == mixed


def test_odd_number_of_an_empty_column_is_none() -> None:
    assert odd_number([]) is None


def test_training_warns_of_it() -> None:
    rng = np.random.default_rng(0)
    labels = [*map(str, rng.integers(0, 20, 199)), "n/a"]
    with pytest.warns(DoubtfulData, match="199 of 200 values.*'n/a' is not"):
        pb.probe(rng.standard_normal((200, 4)), labels, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DoubtfulData)
        pb.probe(rng.standard_normal((200, 4)), [str(i % 2) for i in range(200)], progress=False)


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        (lambda i: f"2020-01-{i % 28 + 1:02}", "days since a date"),
        (lambda i: f"20{i:02}-01-01 08:30:00+01:00", "days since a date"),
        (lambda i: f"{i % 24:02}:15:00", "seconds"),
        (lambda i: f"{i} days, 0:15:00", "seconds"),
        (lambda i: f"name {i}", "column:when:classes"),
    ],
)
def test_a_column_of_dates_or_times_says_what_to_give_in_its_place(value: Callable[[int], str], instead: str) -> None:
    values = [value(i) for i in range(60)]
    dated = Corpus(tuple(Example(f"{i}", f"text {i}", columns={"when": v}) for i, v in enumerate(values)))
    with pytest.raises(BadParameter, match="is not numeric") as raised:
        build_task("column:when:real", dated).prepare(dated)
    assert instead in raised.value.next_step
    labels = labels_of(list(range(60)), ["train"] * 40 + ["dev"] * 10 + ["test"] * 10, classes=tuple(values))
    with pytest.raises(DegenerateDesign, match="fewer train rows than classes") as refused:
        check_labels(labels, dated)
    assert (instead if "column" not in instead else "fewer classes") in refused.value.next_step
