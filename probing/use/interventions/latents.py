"""Sets chosen latents of a dictionary to their mean over the rows of another class; the rest of the state stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.intervention import Edit, Intervention, Targets
from probing.dictionaries.comparing import refuse_other_states
from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.encoding import normalized
from probing.errors import BadParameter, UnsupportedFormat
from probing.seeds import generator
from probing.statistics.sparse_columns import mean_differences
from probing.use.interventions._edits import Floats, Goals, columns_of
from probing.use.interventions.class_mean import ClassMeanEdit, class_means, class_slopes

Ints = NDArray[np.int64]
GOALS = ("mean", "zero")
CONTROLS = ("", "latents", "directions")


@dataclass(frozen=True, eq=False)
class LatentEdit(Edit):
    """Changes c latents of each state and adds the decoded difference: h + a · s(h) · (f' − f) W, with f the latents of
    h, f' their new values, W the directions `(c, D)` of the decoder, a the scale, and s(h) the factor by which the
    dictionary normalises h (1 if it does not).

    The reconstruction error, h minus its reconstruction, is therefore the same after the edit.

    Attributes:
        dictionary: the dictionary.
        chosen: `(c,)` numbers of the latents.
        values, targets: latents `(N, c)` and labels of the rows that the edit was fitted on.
        to: what latents are set to: `mean`, their mean over the rows of the goal's class in the row's stratum (for real
            values they are moved along their slope on the value), or `zero`.
        scale: the factor a.
    """

    dictionary: Dictionary
    chosen: Ints
    values: Floats
    targets: Targets
    to: str = "mean"
    scale: float = 1.0

    @cached_property
    def _fitted(self) -> Floats:
        """Means `(K, W, c)`, or slopes `(1, W, c)`."""
        fit = class_means if self.targets.n_classes else class_slopes
        return fit(self.values, self.targets)

    @property
    def _directions(self) -> Floats:
        return self.scale * self.dictionary.decoder[self.chosen].astype(np.float64)

    def _factors(self, states: NDArray[np.floating]) -> Floats:
        """Return s(h) of n rows, `(n, 1)`."""
        scale = normalized(np.asarray(states, np.float32), self.dictionary.normalization)[2]
        return np.broadcast_to(np.asarray(scale, np.float64), (len(states), 1))

    def _changes(self, states: NDArray[np.floating], targets: Targets, goals: Goals) -> Floats:
        """Return f' − f, `(n, c)`."""
        before = latents_of(self.dictionary, states, self.chosen)
        if self.to == "zero":
            return -before
        if self.targets.n_classes:
            return np.asarray(self._fitted[goals.astype(np.int64), targets.strata] - before)
        return np.asarray(np.maximum(self._moved(before, targets, goals), 0.0) - before)  # a latent is never negative

    def _moved(self, before: Floats, targets: Targets, goals: Goals) -> Floats:
        """Return latents moved along their slopes on a real value, `(n, c)`."""
        return np.asarray(before + (goals - targets.z)[:, None] * self._fitted[0, targets.strata])

    def shifts(self, states: NDArray[np.floating], targets: Targets, goals: Goals) -> Floats:
        """Return what is added to each state, `(n, D)`."""
        return np.asarray(self._factors(states) * (self._changes(states, targets, goals) @ self._directions))

    def apply(self, states: NDArray[np.float32], targets: Targets, goals: Goals) -> NDArray[np.float32]:
        if not len(self.chosen):
            return states.copy()
        return np.asarray(states + self.shifts(states, targets, goals), dtype=states.dtype)

    @property
    def rank(self) -> int:
        return len(self.chosen)

    @property
    def latents(self) -> Sequence[int]:
        return [int(one) for one in self.chosen]

    @property
    def active_latents(self) -> Sequence[int]:
        return [int(one) for one in self.chosen[(np.asarray(self.values) != 0).any(0)]]

    def influence(self, states: NDArray[np.float32], targets: Targets, goals: Goals, sensitivity: Floats) -> Floats:
        """Return the influence of the N rows that the means were computed from, `(N,)` (see `Edit.influence`)."""
        influence = np.zeros(len(self.values))
        if self.to == "zero" or not len(self.chosen):
            return influence
        on_latents = (self._factors(states) * sensitivity) @ self._directions.T  # derivatives by f'
        own, real = self.targets, not self.targets.n_classes
        weights = on_latents
        if real:
            is_free = self._moved(latents_of(self.dictionary, states, self.chosen), targets, goals) > 0
            weights = (goals - targets.z)[:, None] * on_latents * is_free
        for w in np.unique(targets.strata):
            rows, edited = np.flatnonzero(own.strata == w), targets.strata == w
            if real:
                z = own.z[rows] - own.z[rows].mean()
                left = self.values[rows] - self.values[rows].mean(0) - z[:, None] * self._fitted[0, w]
                influence[rows] += z * (left @ weights[edited].sum(0)) / max(float(z @ z), 1e-300)
                continue
            for goal in np.unique(goals[edited]):
                of_class = rows[own.z[rows] == goal]
                if len(of_class):
                    left = self.values[of_class] - self._fitted[int(goal), w]
                    influence[of_class] += left @ weights[edited & (goals == goal)].sum(0) / len(of_class)
        return influence


class Latents(Intervention):
    """Sets chosen latents of a dictionary (a sparse autoencoder) to their mean over the rows of the goal's class, or to
    0, and adds the decoded difference to the state, so that the dictionary's reconstruction error stays in it.

    Its effect divided by that of the class-mean swap is the share of the swap's effect that these latents mediate. It
    is never part of a verdict.

    Args:
        dictionary: folder or file of the dictionary.
        latents: numbers of the latents, joined by `|`; "": the `top` latents that differ most between classes.
        top: if `latents` is empty, the number of latents to set: those with the largest |mean difference| between the
            rows of a class and all others (for real values, the largest covariance). With 0, the edit changes nothing.
        to: `mean`, or `zero`.
        site: site whose states are edited; "": the one that the dictionary names.
        instead: a control in place of the edit: `latents`, as many randomly chosen latents, or `directions`, shifts
            along random directions from N(0, Σ) with Σ the covariance of states. Both are scaled so that they move
            states as far (root mean square over the rows of `fit`).

    References:
        Marks, Rager, Michaud, Belinkov, Bau and Mueller 2024, Sparse Feature Circuits, §2 (error kept in the edited
        state).
    """

    def __init__(
        self,
        *,
        dictionary: str,
        latents: str = "",
        top: int = 16,
        to: str = "mean",
        site: str = "",
        instead: str = "",
    ) -> None:
        """Store the options; the class describes them.

        Raises:
            BadParameter: an option is out of range.
        """
        if top < 0 or to not in GOALS or instead not in CONTROLS:
            raise BadParameter(
                "no such edit of latents",
                needed=f"top of 0 or more, to {GOALS}, instead {CONTROLS}",
                found=f"top {top}, to {to!r}, instead {instead!r}",
            )
        self.dictionary = dictionary
        self.latents = latents
        self.top = top
        self.to = to
        self.site = site
        self.instead = instead
        _numbers(latents)

    @property
    def files(self) -> Sequence[Path]:
        """Paths of the files of the dictionary (a sparse autoencoder)."""
        place = Path(self.dictionary).expanduser()
        return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]

    def _loaded(self) -> Dictionary:
        place = Path(self.dictionary).expanduser().resolve()
        return _read(str(place), tuple(file.stat().st_mtime_ns for file in self.files if file.exists()))

    def edits(self, site: str) -> bool:
        """Return whether states at `site` can be edited: it must be the option `site` or, if that is empty, the site
        that the dictionary names.
        """
        return site == (self.site or self._loaded().site)

    def check(self, site: str, width: int, model: Mapping[str, Any] | None) -> None:
        """Check that the dictionary was made for states of this width and model, and that it has the chosen latents.

        Raises:
            ProvenanceMismatch: it was made for states of another width or model.
            UnsupportedFormat: it is a transcoder, which decodes the states of another site than it encodes.
            BadParameter: there is no such latent.
        """
        dictionary = self._loaded()
        refuse_other_states(dictionary, site, width, model, where=self.dictionary)
        if dictionary.is_transcoder:
            raise UnsupportedFormat(
                "a transcoder decodes to another place than it encodes",
                needed="a dictionary that reconstructs the states",
                found=dictionary.architecture,
                where=self.dictionary,
            )
        beyond = [one for one in _numbers(self.latents) if one >= dictionary.n_latents]
        if beyond or self.top > dictionary.n_latents:
            raise BadParameter(
                "there is no such latent",
                needed=f"numbers below {dictionary.n_latents:,}",
                found=", ".join(map(str, beyond)) or f"top {self.top}",
                where=self.dictionary,
            )

    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int = 0) -> Edit:
        columns = columns_of(targets)
        dictionary = self._loaded()
        self.check(self.site or dictionary.site or "", states.shape[1], None)
        every = dictionary.encode(states)
        chosen = np.array(_numbers(self.latents) or _ranked(every, targets, columns)[: self.top], np.int64)
        edit = LatentEdit(dictionary, chosen, _dense(every, chosen), targets, self.to)
        if not self.instead or not len(chosen):
            return edit
        draws, aim = generator(seed, "intervention", "latents", self.instead), _displacement(edit, states, targets)
        if self.instead == "directions":
            return _random_directions(states, targets, aim, draws)
        active = np.setdiff1d(np.unique(every.indices), chosen)
        others = draws.permutation(active)[: len(chosen)].astype(np.int64)
        random = LatentEdit(dictionary, others, _dense(every, others), targets, self.to)
        return _scaled(random, aim / max(_displacement(random, states, targets), 1e-300))


def latents_of(dictionary: Dictionary, states: NDArray[np.floating], chosen: Ints) -> Floats:
    """Return the values of c chosen latents of n states, `(n, c)` float64."""
    return _dense(dictionary.encode(np.asarray(states, np.float32)), chosen)


def _dense(every: Any, chosen: Ints) -> Floats:
    return np.asarray(every[:, chosen].toarray(), np.float64)


@lru_cache(maxsize=2)
def _read(path: str, _: tuple[int, ...]) -> Dictionary:
    return Dictionary.load(path)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise BadParameter("latents are different numbers, joined by |", needed="such as 12|57", found=repr(text))
    return [int(part) for part in parts]


def _ranked(every: Any, targets: Targets, columns: Floats) -> Ints:
    """Return the latents, those first that differ most between the values of the property."""
    if targets.n_classes:
        differences = mean_differences(every, targets.z.astype(np.int64), targets.n_classes)
    else:
        differences = np.abs(every.T @ (columns[:, 0] - columns.mean()))
    return np.argsort(-differences, kind="stable")


def _goals(targets: Targets) -> list[Goals]:
    """Return, for all rows, each goal that is not the row's own: the other classes in turn, or all values mirrored."""
    if not targets.n_classes:
        return [2 * targets.z.mean() - targets.z]
    return [np.asarray((targets.z + step) % targets.n_classes, np.int64) for step in range(1, targets.n_classes)]


def _displacement(edit: LatentEdit, states: NDArray[np.float32], targets: Targets) -> float:
    """Return how far the edit moves states, as root mean square over rows and goals."""
    squares = [np.square(edit.shifts(states, targets, goals)).sum(1).mean() for goals in _goals(targets)]
    return float(np.sqrt(np.mean(squares)))


def _scaled(edit: LatentEdit, scale: float) -> LatentEdit:
    return LatentEdit(edit.dictionary, edit.chosen, edit.values, edit.targets, edit.to, scale)


def _random_directions(
    states: NDArray[np.float32], targets: Targets, aim: float, draws: np.random.Generator
) -> ClassMeanEdit:
    """Return a swap of random vectors from N(0, Σ), one a class, that moves states as far as `aim`."""
    x = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    vectors = draws.standard_normal((max(1, targets.n_classes), len(x))) @ x / np.sqrt(len(x))
    edit = ClassMeanEdit(vectors[:, None], 1.0, targets.n_classes)
    zeros = np.zeros_like(states)
    moved = [np.square(edit.apply(zeros, targets, goals)).sum(1).mean() for goals in _goals(targets)]
    return ClassMeanEdit(vectors[:, None], aim / max(float(np.sqrt(np.mean(moved))), 1e-300), targets.n_classes)


MEMBER = Latents
