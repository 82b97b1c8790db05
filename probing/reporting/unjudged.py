"""Sentences for results that are not judged: why not, and what a judgement needs. A finding that is not made gets no
caveats.
"""

from __future__ import annotations

from probing.reporting.wording import plural
from probing.verdicts.decodability import MIN_SENTENCES

SHOWS_NOTHING = (
    "These scores show nothing about the states, either way: neither that the label can be recovered from them nor "
    "that it cannot."
)


def needs(
    *, sentences: int | None, only_label: str | None, has_baseline: bool, all_shared: bool = False
) -> tuple[str, ...]:
    """Return what a judgement needs that is missing: test sentences (None: enough), another label, a baseline, new
    texts.
    """
    lacking = ["test texts that train has not"] if all_shared else []
    if only_label is not None:
        lacking.append(f"test rows with another label than {only_label!r}")
    if sentences is not None:
        lacking.append(f"{MIN_SENTENCES} different test sentences or more; here are {plural(sentences, 'sentence')}")
    if not has_baseline:
        lacking.append("a baseline scored on the same rows")
    return tuple(lacking)
