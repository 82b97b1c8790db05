"""Numbers in words: no digit is lost or added by leaving out the zero before the point."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from probing.reporting.wording import decimal, short


@given(st.floats(-1e6, 1e6), st.integers(1, 5))
def test_a_short_number_is_the_same_number(value: float, places: int) -> None:
    text = short(value, places)
    assert float(text.replace("−", "-")) == float(decimal(value, places).replace("−", "-"))
    assert not text.removeprefix("−").startswith("0.")
    assert len(text.partition(".")[2]) == places


def test_what_is_no_finite_number_has_a_sign_of_its_own() -> None:
    assert [short(value) for value in (None, math.inf, -math.inf)] == ["–", "∞", "−∞"]
    assert [decimal(value) for value in (None, math.inf, -math.inf)] == ["–", "∞", "−∞"]
