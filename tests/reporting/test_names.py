"""Names in charts: whole where they fit, in lines that fit, shortened in the middle where they do not, never alike."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from probing.errors import printable
from probing.reporting.names import chosen_line, fitted, lines_of, width_of

NAMES = st.text(max_size=300)
WIDTHS = st.floats(3, 40)


def shown(name: str) -> str:
    """A name as a chart can show it: on one line, with what turns text escaped."""
    return " ".join(printable(name).split())


@given(NAMES, WIDTHS, st.integers(1, 4))
@example("a" * 5_000, 20.0, 3)
@example("W" * 500, 3.0, 1)
def test_lines_fit_and_hold_the_name_or_both_its_ends(name: str, width: float, most: int) -> None:
    lines = lines_of(name, width, most)
    assert 1 <= len(lines) <= most
    assert all(width_of(line) <= width or len(line) == 1 for line in lines)
    whole = shown(name)
    joined = "".join("".join(lines).split())
    if "…" not in joined.replace("".join(whole.split()), ""):
        assert joined == "".join(whole.split())
        return
    head, _, tail = joined.partition("…")
    bare = "".join(whole.split())
    assert bare.startswith(head) and bare.endswith(tail) and len(joined) <= len(bare)


@given(st.lists(NAMES, max_size=6), WIDTHS)
@example(["a" * 200 + "b" + "a" * 200, "a" * 200 + "c" + "a" * 200, "a" * 401], 10.0)
@example(["", " ", "\t", "x"], 10.0)
def test_different_names_are_shown_differently(names: list[str], width: float) -> None:
    lines = [tuple(one) for one in fitted(names, width)]
    for name, one in zip(names, lines, strict=True):
        assert all((one == other) == (name == another) for another, other in zip(names, lines, strict=True))


@given(st.lists(NAMES, min_size=1, max_size=4), WIDTHS)
def test_an_expression_of_a_chart_holds_no_line_end_and_no_open_quote(names: list[str], width: float) -> None:
    text = chosen_line(names, width)
    assert "\n" not in text
    assert text.replace("\\\\", "").replace("\\'", "").count("'") % 2 == 0
