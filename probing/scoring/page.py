"""The page of scores: texts whose pieces (tokens) or words are coloured by how far they are above or below the
threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from probing.reporting.page import plain
from probing.reporting.wording import plural
from probing.scoring.scores import RowScore, TextScore, TextScores

_LEVELS = 9  # of the style sheet, in each direction
_MOST = 500  # texts of a page; a browser shows as many at once
_MOST_OF_FRAGMENT = 20


def page(scores: TextScores) -> str:
    """Return scores as a self-contained HTML page, without scripts or network requests, with all text escaped; at most
    500 texts.
    """
    return _made(scores, _MOST, is_fragment=False)


def fragment(scores: TextScores) -> str:
    """Return the scores of the first 20 texts as HTML for a notebook."""
    return _made(scores, _MOST_OF_FRAGMENT, is_fragment=True)


def _made(scores: TextScores, most: int, *, is_fragment: bool) -> str:
    recipe = scores.recipe
    shown = scores[:most]
    middle, spread = _scale(scores)
    label = recipe.label or ("the number predicted" if not recipe.labels else "the most probable label")
    has_pieces = any(text.pieces for text in scores)
    about = [
        scores.model,
        plural(len(scores), "text"),
        f"rows {recipe.rows}" + (", and every piece" if has_pieces else ""),
    ]
    if recipe.threshold is not None:
        about.append(str(recipe.threshold))
        if recipe.reads_whole_texts:
            about.append("these shares are of whole texts: of single pieces more are underlined")
    what = "score" if not recipe.labels else f"natural log odds of {label}"
    return plain(
        "scores.html.jinja",
        "scores.css",
        is_fragment=is_fragment,
        heading=f"{recipe.name}: {label}",
        about=about,
        remarks=recipe.remarks,
        legend=[
            {"css": _css(value, middle, spread), "text": f"{value:.2g}"}
            for value in (middle + step * spread for step in (-4, -2, -1, 1, 2, 4))
        ],
        key=f"{what}; underlined: above the threshold" if recipe.threshold else what,
        texts=[_text(text, middle, spread, recipe.label) for text in shown],
        left_out=len(scores) - len(shown),
    )


def _scale(scores: TextScores) -> tuple[float, float]:
    """Return the score that has no colour (the threshold, else odds of one to one, of numbers their mean), and the
    distance from it, of rows and pieces in the middle, that has half the colour.
    """
    recipe = scores.recipe
    values = np.array([one.score for text in scores for one in (*text.rows, *text.pieces)], np.float64)
    values = values[np.isfinite(values)]
    if recipe.threshold is not None:
        middle = recipe.threshold.value
    else:
        middle = 0.0 if recipe.labels or not len(values) else float(values.mean())
    spread = float(np.median(np.abs(values - middle))) if len(values) else 1.0
    return middle, spread or 1.0


def _text(text: TextScore, middle: float, spread: float, label: str) -> dict[str, Any]:
    whole = [row for row in text.rows if row.word < 0]
    return {
        "id": text.id,
        "role": text.role,
        "is_cut": text.is_cut,
        "said": _said(whole[0], label) if whole else f"{plural(len(text.rows), 'word')} scored",
        "parts": _parts(text, text.pieces or text.rows, middle, spread, label),
    }


def _parts(
    text: TextScore, found: Sequence[RowScore], middle: float, spread: float, label: str
) -> list[dict[str, str]]:
    """Return the text cut into parts, each with the class of its colour; what has no score has none."""
    parts, end = [], 0
    for one in sorted(found, key=lambda row: row.start):
        start = max(one.start, end)  # pieces of one character share it: the first has it
        if one.end <= start:
            continue
        if start > end:
            parts.append({"text": text.text[end:start], "css": "", "said": ""})
        css = _css(one.score, middle, spread) + (" flagged" if one.is_flagged else "")
        parts.append({"text": text.text[start : one.end], "css": css, "said": _said(one, label)})
        end = one.end
    return [*parts, {"text": text.text[end:], "css": "", "said": ""}]


def _css(score: float, middle: float, spread: float) -> str:
    share = math.tanh(abs(score - middle) / (2 * spread)) if math.isfinite(score) else 1.0
    return f"{'up' if score > middle else 'down'}{min(_LEVELS - 1, int(share * _LEVELS))}"


def _said(one: RowScore, label: str) -> str:
    if not one.probabilities:
        return f"{one.score:.4g}"
    named = label or one.label
    flagged = "" if one.is_flagged is None else ", above the threshold" if one.is_flagged else ", below the threshold"
    return f"log odds of {named} {one.score:.3f} (p {one.probabilities[named]:.3g}){flagged}"
