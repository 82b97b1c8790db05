"""What stands below knowing nothing is warned of with its cause: noise, an outlier, or rows that belong together."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import probing as pb
from probing.errors import DoubtfulData
from probing.reporting.findings import finding
from probing.reporting.task_results import by_task
from probing.training.row_facts import _outlier


def sentences(states: Any, labels: Any, **options: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pb.probe(states, labels, progress=False, **options)
    return "\n".join(str(one.message) for one in caught if issubclass(one.category, DoubtfulData))


def noise(rows: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, width)), rng


def test_noise_of_numbers_is_named_as_such_and_has_no_label_frequencies() -> None:
    states, rng = noise(300, 120)
    found = sentences(states, rng.standard_normal(300))
    assert "below predicting the mean of train" in found and "it fitted noise" in found and "120 coordinates" in found
    assert "label" not in found and "frequen" not in found


def test_noise_of_labels_names_the_fitting_of_noise_first() -> None:
    states, rng = noise(600, 300)
    found = sentences(states, np.where(rng.random(600) < 1 / 3, "a", "b"))
    assert "below the label frequencies" in found
    assert found.index("it fitted noise") < found.index("rows that belong together")


@pytest.mark.parametrize("value", [1e9, -1e7])
@pytest.mark.parametrize("at", [3, 77, 199])
def test_an_outlier_is_named_by_its_value_and_row(value: float, at: int) -> None:
    states, rng = noise(200, 4)
    numbers = 50 + 3 * states[:, 0] + rng.standard_normal(200)
    numbers[at] = value
    found = sentences(states, numbers)
    assert f"The value {value:g} of row {at} of the corpus" in found
    assert "belong together" not in found


@pytest.mark.parametrize("draw", ["normal", "laplace", "lognormal", "uniform", "standard_cauchy"])
def test_tails_that_belong_to_the_numbers_are_not_outliers(draw: str) -> None:
    states, rng = noise(150, 3)
    numbers = np.clip(getattr(rng, draw)(size=150), -40, 40)
    assert "far from all others" not in sentences(states, numbers)


SKEWED = {
    "log-normal": lambda rng: np.exp(2 * rng.standard_normal(440)),
    "pareto": lambda rng: rng.pareto(1.0, 440),
    "counts": lambda rng: rng.zipf(1.8, 440).astype(float),
    "prices": lambda rng: np.round(20 * np.exp(1.2 * rng.standard_normal(440)), 2),
    "losses": lambda rng: -np.exp(2 * rng.standard_normal(440)),
}


def is_flagged(numbers: np.ndarray) -> bool:
    rows = SimpleNamespace(y=numbers, split=np.full(len(numbers), "train"), example=np.arange(len(numbers)))
    return _outlier(rows) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(SKEWED))
def test_the_largest_of_skewed_numbers_is_hardly_ever_an_outlier(kind: str) -> None:
    assert sum(is_flagged(SKEWED[kind](np.random.default_rng(seed))) for seed in range(200)) <= 2


@pytest.mark.parametrize("rows", [30, 100, 440, 3000])
def test_a_number_written_a_thousand_times_too_large_is_an_outlier(rows: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        skewed = [np.exp(0.5 * rng.standard_normal(rows))] if rows >= 100 else []
        for numbers in (rng.normal(100, 15, rows), rng.uniform(1, 9, rows), *skewed):
            at = rng.integers(rows)
            numbers[at] = 1000 * max(numbers[at], np.median(numbers))
            assert is_flagged(numbers)


def test_pairs_with_opposite_labels_are_still_named_where_rows_are_many() -> None:
    half = np.random.default_rng(0).standard_normal((300, 8))
    states = np.concatenate([half, half + 1e-3])
    labels = np.random.default_rng(1).integers(0, 2, 300)
    given = ["train"] * 300 + ["dev"] * 100 + ["test"] * 200
    found = sentences(states, np.concatenate([labels, 1 - labels]), split=given, probes=["k_nearest"])
    assert "rows that belong together lie in both with opposite labels" in found and "fitted noise" not in found


@pytest.mark.parametrize("rows, width", [(1000, 64), (1200, 40), (600, 30)])
def test_noise_is_named_at_any_number_of_rows_where_it_explains_the_loss(rows: int, width: int) -> None:
    found = []
    for seed in range(12):
        states, rng = noise(rows, width, seed)
        found.append(sentences(states, rng.standard_normal(rows)))
    below = [one for one in found if "below predicting the mean of train" in one]
    assert below and all("it fitted noise" in one for one in below)


@pytest.mark.parametrize("keys", [None, [f"k{i % 40}" for i in range(200)]])
def test_states_that_are_all_equal_are_named_as_that_and_not_as_copies(keys: list[str] | None) -> None:
    labels = np.random.default_rng(0).choice(["x", "y"], 200)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pb.probe(np.full((200, 5), 2.5), labels, keys=keys, progress=False)
    said = [str(one.message) for one in caught]
    assert sum("All 200 states at" in one and "are equal" in one for one in said) == 1
    assert not any("copies of one input" in one for one in said)


def test_constant_states_of_one_site_are_named_and_the_others_are_not() -> None:
    states, rng = noise(200, 5)
    found = sentences({"resid.0": np.ones((200, 5)), "resid.1": states}, rng.choice(["x", "y"], 200))
    assert "states at resid.0 are equal" in found and "resid.1 are" not in found


def test_a_chance_check_calls_the_majority_label_that_of_train() -> None:
    states, rng = noise(300, 4)
    results = pb.probe(states, rng.choice(["x", "y"], 300), controls=["shuffled_labels"], progress=False)
    lines = [line for task in by_task(results) for line in finding(task).evidence]
    assert any("the majority label of train" in line for line in lines)
