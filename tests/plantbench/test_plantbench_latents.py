"""Latents of a dictionary that holds the planted features do to certified models what these are certified to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from probing.plantbench import tier0, tier2
from probing.plantbench.case import Case, Cell, CellTruth, Truth
from tests.samples.certified_latents import Edited, edited

SMALLEST = 0.1  # SD: the smallest effect that counts


def agrees(found: Edited, truth: CellTruth) -> None:
    """Used: an effect that counts, with the certified share of the natural difference; unused: less than counts."""
    certified, numbers = truth.certificate, found.numbers
    if certified.label == "unused":
        assert abs(numbers["effect_size"]) < SMALLEST
        return
    assert certified.label == "used" and found.is_shown
    assert abs(numbers["effect_size"]) >= SMALLEST
    assert numbers["share_of_swap"] == pytest.approx(1, abs=0.12)
    if certified.mf is not None:
        assert numbers["mediated_fraction"] == pytest.approx(certified.mf, abs=0.12)


@pytest.fixture(scope="module")
def shipped() -> list[tuple[Case, Truth]]:
    return [case for case, _ in zip(tier2.shipped(rows=1200), range(1), strict=False)]


@pytest.mark.parametrize(
    ("name", "site", "position"),
    [("A", "resid.1", "subject"), ("A", "resid.1", "query"), ("B", "resid.1", "subject"), ("C", "resid.3", "subject")],
)
def test_a_trained_model_uses_latents_as_it_is_certified_to(
    shipped: list[tuple[Case, Truth]], name: str, site: str, position: str, tmp_path: Path
) -> None:
    case, truth = shipped[0]
    cell = next(one for one in case.cells if (one.property, str(one.place)) == (name, f"{site}@{position}"))
    agrees(edited(case, cell, tmp_path / "d"), truth.cells[cell])


def of_tier2() -> list[tuple[Case, Truth, Cell]]:
    return [(case, truth, cell) for case, truth in tier2.shipped(rows=2000) for cell in case.cells]


@pytest.mark.slow
def test_every_cell_of_every_trained_model_agrees(tmp_path: Path) -> None:
    cells = of_tier2()
    for number, (case, truth, cell) in enumerate(cells):
        if truth.cells[cell].certificate.label != "band":
            agrees(edited(case, cell, tmp_path / str(number)), truth.cells[cell])
    assert len(cells) > 50


NUMBERS = (1, 3, 5, 6, 8, 9, 11, 13, 16, 18, 23)  # codes that a few directions hold, read along them


@pytest.mark.slow
def test_vectors_of_known_use_agree(tmp_path: Path) -> None:
    for number, (case, truth) in enumerate(tier0.cases(0, numbers=NUMBERS)):
        for cell in case.cells:
            agrees(edited(case, cell, tmp_path / f"{number}-{cell.place.position}"), truth.cells[cell])
