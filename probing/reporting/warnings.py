"""What makes a task's numbers doubtful, as plain sentences; counted in `doubts.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.reporting.wording import plural

# A tokenizer that fits its text knows all but a few pieces in 10,000. At 1 % about every tenth sentence of ten words
# has a hole; and 1 % of contradicted rows can cost half of the margin of 0.02 by which a task is called decodable.
MOST_UNKNOWN = 0.01
MOST_CONFLICTING = 0.01
Ints = NDArray[np.int64]


def warnings_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each doubt, the worst first; empty where there is none, or nothing is known."""
    found = (
        *_one_label(facts),
        unknown_pieces_warning(facts.get("unknown_pieces")),
        _conflicting(facts),
        _alike_labels(facts),
        _without_label(facts),
    )
    return tuple(sentence for sentence in found if sentence)


def only_test_label(facts: Mapping[str, Any]) -> str | None:
    """The label that all test rows have, if they have but one."""
    label = (facts.get("one_label") or {}).get("test")
    return None if label is None else str(label)


def _one_label(facts: Mapping[str, Any]) -> tuple[str, ...]:
    way_out = "Split the file with another seed (--split-seed), or give train, dev and test files."
    test, dev = only_test_label(facts), (facts.get("one_label") or {}).get("dev")
    return (
        f"NOT JUDGED: all test labels are {test!r}. {way_out}" if test is not None else "",
        f"All dev labels are {dev!r}, so the best site is chosen by this label alone. {way_out}" if dev else "",
    )


def _alike_labels(facts: Mapping[str, Any]) -> str:
    pairs = facts.get("alike_labels") or ()
    shown = "; ".join(" and ".join(map(repr, names)) for names in pairs[:5]) + ("; …" if len(pairs) > 5 else "")
    what = "Labels differ by upper and lower case or white space alone and count as different"
    return f"{what}: {shown}." if pairs else ""


def _without_label(facts: Mapping[str, Any]) -> str:
    count = (facts.get("excluded") or {}).get("no label", 0)
    kept = sum((facts.get("rows") or {}).values())
    # Word tasks leave words without a value out as a matter of course: a form without number has no Number.
    if not count or facts.get("level") != "sentence":
        return ""
    return f"{plural(count, 'row')} of {count + kept:,} {'has' if count == 1 else 'have'} no label and are left out."


def unknown_pieces_warning(share: float | None) -> str:
    """What it means that a share of the pieces is unknown to the model; empty where it is small."""
    if share is None or share <= MOST_UNKNOWN:
        return ""
    return (
        f"{100 * share:.0f} % of the pieces of these texts are unknown to the model's tokenizer: words behind the "
        "same unknown piece look the same to the model. Use a model whose vocabulary has these words "
        "(and check upper and lower case)."
    )


def whole_spans_warning(names: Sequence[str], position: Ints, sizes: Ints) -> str:
    """Which positions of a store are means of several pieces; empty where none is.

    Args:
        names: of the positions.
        position: `(R,)` which of them each row is at.
        sizes: `(R,)` pieces of each row.
    """
    several = [name for k, name in enumerate(names) if (sizes[position == k] > 1).any()]
    if not several:
        return ""
    last = ", ".join(f"{name}.last" for name in several)
    return f"{', '.join(several)}: whole spans, the mean of their pieces; one piece of each is {last}."


def _conflicting(facts: Mapping[str, Any]) -> str:
    rows, count = (facts.get("rows") or {}).get("test"), facts.get("conflicting_inputs")
    if not rows or not count or count <= MOST_CONFLICTING * rows:
        return ""
    return (
        f"{plural(count, 'test row')} of {rows:,} {'has' if count == 1 else 'have'} the same input as a row with "
        "another label: no probe can be right on both."
    )
