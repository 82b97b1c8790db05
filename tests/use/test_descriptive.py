"""A number that decides nothing never costs a verdict: it becomes None, and the record says why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import EditFailed
from probing.reporting.use_words import doubts_of
from probing.results.use import UseCell, UseResult
from probing.use import measure
from probing.use.effect_sums import spared
from probing.use.effects import UseOptions
from probing.use.measure import measure_property
from probing.use.swapping import swapped
from probing.verdicts.judging import judge
from tests.conftest import some
from tests.samples.use_report_samples import a_result
from tests.samples.use_samples import Past, sample

CELL = a_result().cells[0]


def test_a_failure_leaves_the_cell_and_a_note() -> None:
    def fails(cell: UseCell) -> UseCell:
        raise EditFailed("it is not finite", found="NaN")

    def breaks(cell: UseCell) -> UseCell:
        raise ZeroDivisionError("by zero")

    one = spared("effect with norms held", CELL, fails)
    assert replace(one, notes=()) == CELL and one.notes == ("effect with norms held not measured: it is not finite",)
    two = spared("comparisons", one, breaks)
    assert two.notes == (*one.notes, "comparisons not measured: ZeroDivisionError: by zero")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_become_none(bad: float) -> None:
    changes: dict[str, Any] = {
        "frozen_share": bad,
        "frozen_low90": 0.1,
        "dose_curve": ((0.5, 0.2), (1.0, bad)),
        "p_permutation": 0.5,
        "comparisons": {"leace": {"change": bad}, "inlp": {"change": 1.0}},
        "subspace": replace(CELL.subspace, null_ratio=bad),
    }
    before = replace(
        CELL,
        exceeds_low=-math.inf,
        subspace=replace(
            CELL.subspace, mediated_fraction_high=math.inf, mediated_fraction=0.5, mediated_fraction_low=0.1
        ),
    )
    changes["subspace"] = replace(before.subspace, null_ratio=bad)
    found = spared("it", before, lambda cell: replace(cell, **changes))
    assert (found.frozen_share, found.frozen_low90, found.p_permutation) == (None, 0.1, 0.5)
    assert found.dose_curve == ((0.5, 0.2),) and found.comparisons == {"inlp": {"change": 1.0}}
    assert found.subspace == replace(before.subspace, null_ratio=None) and found.exceeds_low == -math.inf
    assert found.notes == ("it not measured: numbers that are not finite",)
    assert spared("it", before, lambda cell: replace(cell, frozen_share=0.3)).notes == ()


class Overflowing(Past):
    """With norms held its outputs are not finite."""

    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        y = super().run_from(site, rows, states, frozen_norms=frozen_norms)
        return y * math.nan if frozen_norms else y


def test_verdicts_are_the_same_whatever_stands_beside() -> None:
    made = sample(0, gain=2.0, n=600)
    assert isinstance(made.instrument, Past)
    options = UseOptions(comparisons=("leace", "mean_ablation"), permutations=3)
    plain = measure_property(made.instrument, made.prop, options=options)
    broken = Overflowing(made.instrument.h, made.instrument.reads, made.instrument.past, norm=True)
    found = measure_property(broken, made.prop, options=options)
    (cell,), (before,) = found.cells, plain.cells
    assert before.notes == () and before.frozen_share is not None
    assert (cell.frozen_share, cell.frozen_low90, cell.frozen_high90) == (None, None, None)
    assert any(note.startswith("effect with norms held not measured: ") for note in cell.notes), cell.notes
    kept = dict.fromkeys(("frozen_share", "frozen_low90", "frozen_high90")) | {"notes": ()}
    assert replace(cell, **kept) == replace(before, **kept)  # type: ignore[arg-type]
    words, whole = (
        [(v.word, [f for f in v.flags if f != "norm-mediated"]) for v in judge([r])] for r in (found, plain)
    )
    assert words == whole and UseResult.from_json(found.to_json()).to_json() == found.to_json()


@pytest.mark.parametrize(
    ("name", "what"),
    some(
        [
            ("dose_curve", "swap at dose 2"),
            ("compared", "comparisons"),
            ("null_error", "computed null"),
            ("permuted", "permutations"),
            ("interchanged", "effect with norms held"),
        ],
        2,
    ),
)
def test_no_descriptive_number_costs_the_verdict(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sample(1, gain=2.0, n=600)
    options = UseOptions(comparisons=("leace",), permutations=2)
    original = getattr(measure, name)

    def fails(*args: Any, **given: Any) -> Any:
        if name == "interchanged" and not given.get("frozen_norms"):
            return original(*args, **given)
        raise EditFailed("an edit gives outputs that are not finite", where="here")

    plain = judge([measure_property(made.instrument, made.prop, options=options)])
    monkeypatch.setattr(measure, name, fails)
    if name == "interchanged":
        monkeypatch.setattr(measure, "swapped", lambda *a, **g: fails() if g.get("frozen_norms") else swapped(*a, **g))
    found = measure_property(made.instrument, made.prop, options=options)
    assert [v.word for v in judge([found])] == [v.word for v in plain]
    assert any(note.startswith(f"{what} not measured") for note in found.cells[0].notes), found.cells[0].notes


def test_notes_are_told_with_their_place() -> None:
    result = replace(a_result(), cells=(replace(CELL, notes=("x not measured: y",)),))
    assert doubts_of(result) == [f"{CELL.place}: x not measured: y"]
