"""Defines PatchingResult, the effects of patching at each site and position, and reads and writes the file
patching.json, which the report shows as heat maps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, InputError
from probing.files.strict_json import strict_json
from probing.files.whole_files import write_atomically
from probing.results.use import Answers

Floats = NDArray[np.float64]
NAME = "patching.json"
_MOST_BYTES = 16 << 20
_FIELDS = {"sites": list, "positions": list, "effect": list, "normalised": list, "n_pairs": int, "method": str}


@dataclass(frozen=True, eq=False, repr=False)
class PatchingResult:
    """Holds the effects of patching at each of S sites and P positions; NaN where a site has no such position.

    Attributes:
        sites: names of the sites, which are the rows of the arrays.
        positions: names of the positions, which are the columns of the arrays.
        effect: `(S, P)` mean change of the output towards that of the other prompt of the pair; for pairs with answers,
            mean change of (logit of the answer − logit of the corrupted answer).
        normalised: `(S, P)` the effect as a share of the difference between the outputs for both prompts: 0 is no
            change, 1 means the output of the other prompt.
        n_pairs: number of pairs of prompts.
        method: `activation` or `attribution`.
        answers: for each answer, the tokens whose logits were measured; an empty tuple if there are no answers.
        model: full name of the model; "" if it is not known.
    """

    sites: tuple[str, ...]
    positions: tuple[str, ...]
    effect: Floats
    normalised: Floats
    n_pairs: int
    method: str
    answers: Answers = ()
    model: str = ""

    def __repr__(self) -> str:
        places = f"{len(self.sites)} sites × {len(self.positions)} positions"
        return (
            f"PatchingResult({self.method}, {self.n_pairs:,} pairs, {places}{f', {self.model}' if self.model else ''})"
        )

    def is_same(self, other: PatchingResult) -> bool:
        """Return whether another result is of the same model, sites, positions, pairs and method, and has the same
        numbers up to rounding. A model that one of the results does not name counts as the same.
        """
        ours, theirs = ((one.sites, one.positions, one.n_pairs, one.method, one.answers) for one in (self, other))
        same_model = self.model == other.model or "" in (self.model, other.model)
        return ours == theirs and same_model and np.allclose(self.effect, other.effect, equal_nan=True)

    def table(self) -> list[dict[str, str | float]]:
        """Return the result as a list of dicts, one per site and position."""
        return [
            {
                "site": site,
                "position": position,
                "effect": float(self.effect[i, j]),
                "normalised": float(self.normalised[i, j]),
            }
            for i, site in enumerate(self.sites)
            for j, position in enumerate(self.positions)
            if np.isfinite(self.effect[i, j])
        ]

    def error_of(self, approximate: PatchingResult) -> PatchingError:
        """Return the error of `approximate`, an approximation of this result at the same sites and positions.

        Raises:
            BadParameter: the sites or positions differ.
        """
        if (self.sites, self.positions) != (approximate.sites, approximate.positions):
            raise BadParameter(
                "results of different places are not compared",
                needed="the same sites and positions",
                found=f"{approximate.sites}, {approximate.positions}",
            )
        exact, rough = (x.normalised[np.isfinite(self.normalised)] for x in (self, approximate))
        varies = len(exact) > 1 and np.ptp(exact) > 0 and np.ptp(rough) > 0
        return PatchingError(
            difference=approximate.normalised - self.normalised,
            root_mean_square=float(np.sqrt(np.square(rough - exact).mean())),
            largest=float(np.abs(rough - exact).max()),
            correlation=float(np.corrcoef(exact, rough)[0, 1]) if varies else None,
        )

    def plot(self, title: str = "") -> Any:
        """Return an Altair chart, a heat map of `normalised` over sites and positions. `title` is its title.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        return import_module("probing.reporting.plots").plot_patching(self, title)


@dataclass(frozen=True, eq=False)
class PatchingError:
    """Holds the difference between attribution patching and activation patching, in the units of
    `PatchingResult.normalised`.

    Attributes:
        difference: `(S, P)` attribution minus activation.
        root_mean_square: root mean square of the differences over all sites and positions.
        largest: their largest absolute value.
        correlation: correlation of the two methods over all sites and positions; None if one of them does not vary.
    """

    difference: Floats
    root_mean_square: float
    largest: float
    correlation: float | None


def write_patching(results: Mapping[str, PatchingResult], folder: str | Path) -> Path:
    """Write results by title into a folder, whole or not at all; numbers that are not finite are null."""
    told = {
        title: {
            "sites": found.sites,
            "positions": found.positions,
            "effect": _plain(found.effect),
            "normalised": _plain(found.normalised),
            "n_pairs": found.n_pairs,
            "method": found.method,
            "answers": found.answers,
            "model": found.model,
        }
        for title, found in results.items()
    }
    path = Path(folder) / NAME
    write_atomically(path, (json.dumps(told, sort_keys=True, allow_nan=False) + "\n").encode())
    return path


def read_patching(folder: str | Path) -> dict[str, PatchingResult]:
    """Return the results in patching.json of a folder, by title; an empty mapping if there is no such file.

    Raises:
        InputError: the file was not written by `write_patching`.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return {}
    if path.stat().st_size > _MOST_BYTES:
        raise _damaged(path, f"{path.stat().st_size:,} bytes")
    try:
        told = strict_json(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(told, dict):
        raise _damaged(path, type(told).__name__)
    return {title: _result(path, title, one) for title, one in told.items()}


def _plain(values: Floats) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in values]


def _result(path: Path, title: str, told: Any) -> PatchingResult:
    fits = isinstance(told, dict) and set(told) - {"answers", "model"} == set(_FIELDS)
    if not fits or not all(type(told[name]) is kind for name, kind in _FIELDS.items()):
        raise _damaged(path, f"{title[:60]!r} without the fields of a result")
    names = [tuple(told[key]) for key in ("sites", "positions")]
    if not all(type(name) is str for part in names for name in part):
        raise _damaged(path, f"{title[:60]!r} with sites or positions that are no names")
    try:
        effect, share = (np.array(told[key], dtype=np.float64) for key in ("effect", "normalised"))
    except (TypeError, ValueError) as error:
        raise _damaged(path, f"{title[:60]!r}: {error}") from error
    if not effect.shape == share.shape == (len(names[0]), len(names[1])):
        raise _damaged(path, f"{title[:60]!r} with shapes {effect.shape} and {share.shape}")
    answers = _answers(path, title, told.get("answers", []))
    model = told.get("model", "")
    if not isinstance(model, str):
        raise _damaged(path, f"{title[:60]!r} with a model that is no name")
    return PatchingResult(names[0], names[1], effect, share, told["n_pairs"], told["method"], answers, model)


def free_title(known: Mapping[str, PatchingResult], title: str, results: Sequence[PatchingResult]) -> str:
    """Return the title, or `title (2)`, `title (3)`, …: the first that is not used in `known`, or is used there for
    these same results.
    """
    names = (title if number == 1 else f"{title} ({number})" for number in count(1))
    held = ((name, [(known.get(titled(name, one)), one) for one in results]) for name in names)
    return next(name for name, both in held if all(other is None or other.is_same(one) for other, one in both))


def titled(title: str, result: PatchingResult) -> str:
    """Return the title of a result in patching.json."""
    return f"{title}, {result.method}"


def _answers(path: Path, title: str, told: Any) -> Answers:
    """Return the answers in a file; files that were written before answers were recorded have none."""
    try:
        found = tuple(tuple((piece, text) for piece, text in pieces) for pieces in told)
    except (TypeError, ValueError) as error:
        raise _damaged(path, f"{title[:60]!r}: {error}") from error
    if not all(type(piece) is int and type(text) is str for pieces in found for piece, text in pieces):
        raise _damaged(path, f"{title[:60]!r} with answers that are no pieces")
    return found


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        "not a readable patching.json", needed="a file of write_patching", found=why[:200], where=str(path)
    )
