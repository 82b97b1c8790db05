"""Laws of margins: no measure, whatever its unit, lets a gain count that exceeds nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from probing import registry
from probing.contracts.measure import MARGINS, Measure
from probing.errors import BadParameter
from probing.measures.accuracy import Accuracy
from probing.measures.rmse import RMSE
from probing.recipes import full_recipe
from probing.training import train
from probing.training.build import built_measures
from probing.training.scoring import _margin, _range
from tests.conftest import ROOT
from tests.samples.training_samples import labels_of, vector_of, word_corpus, word_store

LABELS = labels_of([0, 1, 0, 1], ["train"] * 4)
NAMES = registry.names("measures")


def made_up(**attributes: Any) -> type[Measure]:
    """A measure that scores as accuracy does, with these class attributes."""
    own = {name: vars(Accuracy)[name] for name in ("row_statistics", "from_totals")}
    return type("MadeUp", (Measure,), {"kinds": ("classes",)} | own | attributes)


@pytest.mark.parametrize("name", NAMES)
def test_every_measure_has_the_margin_of_its_unit_or_one_of_its_own_and_none_is_nought(name: str) -> None:
    measure = registry.get("measures", name).MEMBER
    assert measure.margin > 0
    assert measure.unit not in MARGINS or measure.margin == MARGINS[measure.unit]


@pytest.mark.parametrize("unit", MARGINS)
def test_a_known_unit_has_its_margin_and_a_declared_one_goes_before(unit: str) -> None:
    assert made_up(unit=unit).margin == MARGINS[unit] > 0
    assert made_up(unit=unit, margin=0.1).margin == made_up(unit="kappa", margin=0.1).margin == 0.1


@pytest.mark.parametrize("unit", ["kappa", "Fraction", "R2", "", None])
def test_a_unit_without_a_margin_is_refused_when_the_class_is_defined(unit: Any) -> None:
    with pytest.raises(BadParameter, match="MadeUp has no margin") as error:
        made_up(unit=unit)
    assert repr(unit) in error.value.found and "`margin`" in str(error.value)
    assert all(f"{known} {least:g}" in error.value.needed for known, least in MARGINS.items())


@pytest.mark.parametrize("margin", [0, 0.0, -0.02, math.nan, math.inf, True, "0.02", None])
def test_a_margin_that_is_no_number_above_nought_is_refused(margin: Any) -> None:
    for unit in ("kappa", "fraction"):
        with pytest.raises(BadParameter, match="no margin"):
            made_up(unit=unit, margin=margin)


def test_a_subclass_in_another_unit_does_not_take_its_parent_s_margin() -> None:
    parent = made_up(unit="fraction")
    assert type("Same", (parent,), {}).margin == MARGINS["fraction"]
    assert type("Bits", (parent,), {"unit": "bits"}).margin == MARGINS["bits"]
    with pytest.raises(BadParameter, match="Other has no margin"):
        type("Other", (parent,), {"unit": "kappa"})


def test_what_is_no_measure_or_has_no_unit_or_whose_options_take_the_margin_away_is_refused_before_work() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Asked(Accuracy):
        """Accuracy with a margin to choose."""

        margin: float = 0.05  # type: ignore[misc]

    (name,) = built_measures([Asked(margin=0.1)], LABELS)
    assert name == "Asked:margin=0.1" and full_recipe(Asked(margin=0.1))
    for wrong, message in ((Asked(margin=0.0), "no margin"), (made_up()(), "no margin"), (Accuracy, "no measure")):
        with pytest.raises(BadParameter, match=message):
            built_measures([wrong], LABELS)


def test_the_margin_of_a_gain_in_the_unit_of_the_target_is_a_share_of_what_prior_reaches() -> None:
    scores: Any = {("rmse", "test"): type("Reached", (), {"value": 30.0})}
    assert _margin(RMSE(), {"word_type": {}, "prior": scores}, "test", "rmse") == pytest.approx(0.6)
    assert _margin(Accuracy(), {"prior": scores}, "test", "accuracy") == MARGINS["fraction"]


def test_scores_in_a_unit_of_their_own_have_no_bounds_in_either_direction() -> None:
    for higher in (True, False):
        assert _range(made_up(unit="log density", margin=0.1, higher_is_better=higher)()) == (-math.inf, math.inf)
    assert [_range(one) for one in (RMSE(), Accuracy())] == [(0.0, math.inf), (0.0, 1.0)]


def test_a_gain_counts_beyond_the_margin_that_a_measure_of_another_unit_declares() -> None:
    corpus = word_corpus(types=12)
    store: Any = word_store(corpus, lambda form, tag: np.concatenate([vector_of(form, 6), vector_of(tag, 2)]))
    measures = [made_up(unit="hits", margin=0.3)(), "accuracy"]
    results = train(store, corpus, task="upos", measures=measures, controls=[], progress=False)
    margins = {m.measure: {gain.margin for gain in m.gains} for r in results for m in r.measures if m.gains}
    assert margins == {"MadeUp": {0.3}, "accuracy": {0.02}}


def test_the_page_for_those_who_add_a_measure_lists_every_unit_with_its_margin() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert [unit for unit, margin in MARGINS.items() if f"`{unit}` {margin:g}" not in page] == []
