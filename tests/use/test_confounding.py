"""Laws of matching: a behaviour that reads a labelled covariate, in whatever form, is not a use of the property."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.results.use import UseResult
from probing.use.edited_models.arrays import ArrayInstrument
from probing.use.effects import UseOptions
from probing.use.measure import Property, measure_property
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Word
from tests.conftest import some

Floats = NDArray[np.float64]
Made = tuple[Floats, dict[str, tuple[NDArray, int]], Floats]  # log odds of the property, covariates, what is read
QUICK = UseOptions(curve=False, details=False, null=False)
ROWS = 3000


def u_shape(rng: np.random.Generator) -> Made:
    u = rng.normal(size=ROWS)
    return u + 0.5 * (u**2 - 1), {"u": (u, 0)}, u**2


def product(rng: np.random.Generator) -> Made:
    u, v = rng.normal(size=(2, ROWS))
    return 2.5 * u * v, {"u": (u, 0), "v": (v, 0)}, u * v


def turned_slope(rng: np.random.Generator) -> Made:
    u, a = rng.normal(size=ROWS), rng.integers(0, 2, ROWS)
    return 1.5 * u * (2 * a - 1), {"u": (u, 0), "a": (a, 2)}, u * (2 * a - 1)


def step(rng: np.random.Generator) -> Made:
    u = rng.normal(size=ROWS)
    s = np.where(u > 0.06, 1.0, -1.0)
    return 1.3 * s, {"u": (u, 0)}, s


def exclusive_or(rng: np.random.Generator) -> Made:
    bits = rng.integers(0, 2, (ROWS, 7))
    x = 2.0 * (bits[:, 0] ^ bits[:, 1]) - 1
    return 1.2 * x, {f"a{i}": (bits[:, i], 2) for i in range(7)}, x


def measured(made: Callable[[np.random.Generator], Made], seed: int, *, unknown: float = 0.0) -> UseResult:
    """States of a code of the property, which is not read, of what is read, and of noise."""
    rng = np.random.default_rng(seed)
    odds, covariates, read = made(rng)
    z = (rng.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    h = np.column_stack([2 * z - 1 + 0.5 * rng.normal(size=ROWS), read, rng.normal(size=(ROWS, 12))])
    reads = torch.zeros(h.shape[1], 2)
    reads[1, 0], reads[-1, 0], reads[-2, 1] = 1.0, 0.5, 0.5
    for values, k in covariates.values():
        if not k:
            values[rng.random(ROWS) < unknown] = np.nan
    instrument = ArrayInstrument(
        {Place("h"): h.astype(np.float32)}, lambda site, rows, states, frozen: states[""] @ reads
    )
    return measure_property(instrument, Property("z", z, 2, np.arange(ROWS) // 3, covariates), options=QUICK)


@pytest.mark.parametrize("made", some([product, u_shape, turned_slope, step, exclusive_or], 2))
def test_a_covariate_that_is_read_in_another_form_is_not_taken_for_the_property(
    made: Callable[[np.random.Generator], Made],
) -> None:
    """Strata and a linear check see none of these: nearly all of them were called used."""
    words = [judge([measured(made, seed)])[0].word.coarse for seed in range(6)]
    assert words.count("used") <= 2, words


def test_rows_whose_covariate_is_not_known_are_left_out_and_counted() -> None:
    result = measured(u_shape, 0, unknown=0.15)
    assert 0.75 < result.coverage < 0.86 and result.n_rows < 0.86 * ROWS
    assert np.isfinite(result.cells[0].subspace.effect_size)


@pytest.mark.parametrize("tail", ["pareto", "log-normal", "t"])
def test_real_values_of_heavy_tails_that_a_probe_foretells_are_not_called_not_decodable(tail: str) -> None:
    """One row carries the variance of their R²; ranks tell."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        z = {"pareto": rng.pareto(1.5, ROWS), "log-normal": rng.lognormal(0, 1.6, ROWS), "t": rng.standard_t(2, ROWS)}[
            tail
        ]
        h = np.column_stack([z + 0.2 * rng.normal(size=ROWS), rng.normal(size=(ROWS, 7))]).astype(np.float32)
        instrument = ArrayInstrument({Place("h"): h}, lambda site, rows, states, frozen: states[""][:, 3:4])
        (verdict,) = judge([measure_property(instrument, Property("z", z, 0, np.arange(ROWS), {}), options=QUICK)])
        assert verdict.word is not Word.NOT_DECODABLE, verdict.reason
