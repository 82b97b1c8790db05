"""Warnings for users of a store: pieces (tokens) unknown to the tokenizer, and spans that are read as means
of pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from probing.errors import DoubtfulData, warn_user
from probing.text.alignment import Encoded

Ints = NDArray[np.int64]
MOST_UNKNOWN = 0.01


def unknown_pieces_warning(share: float | None) -> str:
    """Return a warning that a share of the pieces is unknown to the tokenizer; an empty string if the share is at most
    `MOST_UNKNOWN` or None.
    """
    if share is None or share <= MOST_UNKNOWN:
        return ""
    return (
        f"{100 * share:.0f} % of the pieces of these texts are unknown to the model's tokenizer: words behind the "
        "same unknown piece look the same to the model. Use a model whose vocabulary has these words "
        "(and check upper and lower case)."
    )


def count_unknown(encoded: Iterable[Encoded], unknown_id: int | None) -> Ints:
    """Return, for each of N texts, the number of its tokens that are the tokenizer's unknown token, and of all (special
    ones not counted), `(N, 2)`. `unknown_id` is the id of that token; None: the tokenizer has none.
    """
    plain = [one.ids[~one.special] for one in encoded]
    return np.array(
        [(0 if unknown_id is None else int((ids == unknown_id).sum()), len(ids)) for ids in plain], np.int64
    )


def warn_of_unknown(counts: Ints) -> bool:
    """Warn the user if more than `MOST_UNKNOWN` of the tokens of texts are unknown, and return whether they are.
    `counts` is what `count_unknown` returned.
    """
    unknown, all_tokens = counts.reshape(-1, 2).sum(0).tolist()
    sentence = unknown_pieces_warning(unknown / all_tokens if all_tokens else None)
    if sentence:
        warn_user(sentence, DoubtfulData)
    return bool(sentence)


def whole_spans_warning(names: Sequence[str], position: Ints, sizes: Ints) -> str:
    """Return a warning that names the positions of a store whose states are means of several pieces; empty if there is
    none.

    Args:
        names: names of the positions.
        position: `(R,)` index of each row's position in `names`.
        sizes: `(R,)` number of pieces of each row.
    """
    several = [name for k, name in enumerate(names) if (sizes[position == k] > 1).any()]
    if not several:
        return ""
    last = ", ".join(f"{name}.last" for name in several)
    return f"{', '.join(several)}: whole spans, the mean of their pieces; one piece of each is {last}."
