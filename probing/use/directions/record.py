"""Defines `Evidence`: a direction, an eraser or a probe, with everything needed to apply it again and the verdict on
it.

The arrays of each kind of evidence, with their shapes (W strata, K classes, D width of a state, r directions that an
eraser removes); `counts` are numbers of rows, and `shares` are the strata's shares of them:

    class_mean   means (W, K, D), counts (W, K), shares (W,); for real values slopes (W, D), shares (W,)
    leace        left (D, r), right (D, r), centre (D,)
    probe        weights (D, K), bias (K,)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict
from scipy.special import log_softmax

from probing.errors import BadParameter, unknown_name
from probing.results.use import EditEffect
from probing.verdicts.verdict import Verdict, Word

Kind = Literal["class_mean", "leace", "probe"]

OPERATIONS: dict[str, str] = {
    "class_mean": "h + dose * (means[stratum, goal] - means[stratum, start]); without a stratum the mean of these "
    "differences, weighted by shares. Of real values h + dose * (goal - start) * slopes[stratum]",
    "leace": "h - dose * left @ (right.T @ (h - centre))",
    "probe": "log_softmax(h @ weights + bias)",
}
CONVENTION = (
    "resid.l is what enters block l (blocks count from 0); resid.L leaves the last block, before any final norm; "
    "attn_out.l and mlp_out.l are what a sublayer of block l adds; embed is the embedding of a piece"
)


@dataclass(frozen=True)
class Stated:
    """Holds a verdict in the form in which files of evidence store it: the verdict in words, its reason and the
    numbers. A number that was not measured is None.

    Attributes:
        word, flags, reason, overturned_by: as in `Verdict`.
        effect: effect size in SDs of the unedited output, as (value, low, high) with a 95 % interval.
        mediated: effect as a share of the natural difference in output, as (value, low, high) with a 95 % interval;
            None also if that difference is not established.
        p_adjusted: adjusted p value of the effect.
        mde: smallest detectable effect.
        accuracy: accuracy of the probe.
        coverage: share of the labelled rows that are in the experiment.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    word: str
    flags: tuple[str, ...]
    reason: str
    overturned_by: str
    effect: tuple[float, float, float] | None
    mediated: tuple[float, float, float] | None
    p_adjusted: float | None
    mde: float | None
    accuracy: float | None
    coverage: float | None

    @classmethod
    def of(cls, verdict: Verdict) -> Stated:
        """Return a verdict in the form for files, with the numbers of the edit that decided it: those of the
        interchange of whole states if the verdict is "used (site; subspace not identified)", otherwise those of the
        class-mean swap.
        """
        edit, gate = _deciding(verdict), verdict.decodability
        return cls(
            word=str(verdict.word),
            flags=verdict.flags,
            reason=verdict.reason,
            overturned_by=verdict.overturned_by,
            effect=_interval(edit.effect_size, edit.effect_size_low, edit.effect_size_high) if edit else None,
            mediated=_interval(edit.mediated_fraction, edit.mediated_fraction_low, edit.mediated_fraction_high)
            if edit
            else None,
            p_adjusted=min(edit.p_adjusted, edit.whole_effect_p_adjusted) if edit else None,
            mde=edit.smallest_detectable_effect if edit else None,
            accuracy=gate.accuracy if gate else None,
            coverage=verdict.coverage,
        )


def _deciding(verdict: Verdict) -> EditEffect | None:
    cell = verdict.evidence
    return None if cell is None else cell.whole if verdict.word is Word.USED_SITE else cell.subspace


def _interval(value: float | None, low: float | None, high: float | None) -> tuple[float, float, float] | None:
    """Return the three numbers, or None if one is missing or not finite, which JSON cannot hold."""
    if value is None or low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        return None
    return value, low, high


@dataclass(frozen=True)
class Header:
    """Holds everything in a file of evidence but its arrays: what it is, what it was fitted on, and the verdict.

    Attributes:
        kind: kind of evidence: `class_mean`, `leace` or `probe`.
        operation: formula by which the evidence is applied to a state h.
        model: full name of the model.
        revision: commit of a hub model; "" if not known.
        identity: SHA-256 of the model's weights (`weights_digest`); "" if not known.
        site: name of the site.
        convention: what the names of sites mean, in words.
        position: name of the position; "" if rows have a single one.
        position_rule: how the position was located in a text.
        task: name of the property.
        labels: names of its classes, in the order of their codes; empty for real values.
        label_definition: what the labels mean, in words.
        behaviour: behaviour that the verdict is about.
        strata: description of each stratum.
        sign: in which direction a positive dose leads, in words.
        scale: unit of the states, in words.
        dose: dose at which the verdict was reached.
        data: SHA-256 of states and labels.
        rows: number of rows fitted on.
        fitted_on: which rows of the experiment these are, in words.
        folds: how folds were used for the verdict, in words.
        controls: descriptions of the controls of the measurement.
        verdict: the verdict, which is never missing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Kind
    operation: str
    model: str
    revision: str
    identity: str
    site: str
    convention: str
    position: str
    position_rule: str
    task: str
    labels: tuple[str, ...]
    label_definition: str
    behaviour: str
    strata: tuple[str, ...]
    sign: str
    scale: str
    dose: float
    data: str
    rows: int
    fitted_on: str
    folds: str
    controls: tuple[str, ...]
    verdict: Stated

    @property
    def place(self) -> str:
        """Name of the place: the site, and after `@` the position if there is one, such as `resid.3@query`."""
        return f"{self.site}@{self.position}" if self.position else self.site


Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Evidence:
    """Holds the arrays of a direction, an eraser or a probe, with a header that says what they mean.

    Attributes:
        header: the description and the verdict.
        arrays: the arrays by name; the module lists those of each kind.

    Raises:
        BadParameter: the verdict is missing, or the arrays are not those that this kind of evidence has.
    """

    header: Header
    arrays: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        if not isinstance(self.header.verdict, Stated) or self.header.verdict.word not in set(Word):
            raise BadParameter(
                "no evidence without its verdict",
                needed="one of the verdicts of `judge`",
                found=repr(self.header.verdict)[:80],
                where=self.header.place,
            )
        problem = misfit(self.header, self.arrays)
        if problem:
            raise BadParameter(
                "arrays that are not those of the kind", needed=self.header.kind, found=problem, where=self.header.place
            )

    def __repr__(self) -> str:
        head = self.header
        return f"Evidence({head.kind} of {head.task} at {head.place}, width {self.width}: {head.verdict.word})"

    @property
    def width(self) -> int:
        """Number of features of a state, D."""
        return next(int(self.arrays[n].shape[i]) for n, i in _WIDTH[self.header.kind] if n in self.arrays)

    def apply(
        self,
        states: NDArray[np.floating],
        *,
        start: ArrayLike = 0,
        goal: ArrayLike = 1,
        strata: ArrayLike | None = None,
        dose: float = 1.0,
    ) -> NDArray[np.floating]:
        """Edit states and return the result, `(n, D)`: computed in float64, and returned in the dtype of `states`.

        Args:
            states: `(n, D)` states to edit.
            start: class code (or real value) of each row before the edit, `(n,)` or one for all rows; erasers ignore
                it.
            goal: class code (or real value) of each row after the edit, `(n,)` or one for all rows; erasers ignore it.
            strata: `(n,)` codes in the order of `header.strata`; None means one shift for all rows.
            dose: factor of the edit; 1 is the whole edit.

        Raises:
            BadParameter: the evidence is a probe, which edits nothing; the states have another width; or there is no
                such class or stratum, or no stratum with rows of both classes.
        """
        x = self._checked(states)
        if self.header.kind == "probe":
            raise BadParameter(
                "a probe edits nothing", needed="directions or an eraser", found="a probe", next_step="use predict"
            )
        if self.header.kind == "leace":
            a = self.arrays
            change = -((x - a["centre"]) @ a["right"]) @ a["left"].T
        else:
            change = self._shift(len(x), np.asarray(start), np.asarray(goal), strata)
        return np.asarray(x + dose * change, dtype=states.dtype)

    def codes(self, start: str | None = None, goal: str | None = None) -> tuple[float, float]:
        """Return the class codes (for real values, the numbers) that `apply` and `direction` take as `start` and
        `goal`, from names.

        Args:
            start: name of a class, or a number; None means the other of two classes if `goal` names one, else the
                first, or the number 0.
            goal: name of a class, or a number; None means the other of two classes than `start`, or the number 1.

        Raises:
            BadParameter: names are given for an eraser or a probe, `start` and `goal` are the same class, or one of
                them is None though there are more than two classes.
            UnknownName: there is no such class.
        """
        names = self.header.labels
        if self.header.kind != "class_mean":
            if start is None and goal is None:
                return 0, 1
            raise BadParameter(
                "only class means go from one class to another", needed="class_mean", found=self.header.kind
            )
        if not names:
            return _number(start, 0.0), _number(goal, 1.0)
        if len(names) > 2 and (start is None or goal is None):
            raise BadParameter(
                f"{self.header.task} has {len(names)} classes: say from which to which",
                needed="start and goal",
                found=f"{start or 'none'} and {goal or 'none'}",
                where=self.header.place,
                next_step=f"name two of {', '.join(names[:30])}",
            )
        for name in (start, goal):
            if name is not None and name not in names:
                raise unknown_name("class", name, names, where=self.header.task)
        first = names.index(start) if start is not None else 1 - names.index(goal) if goal is not None else 0
        last = names.index(goal) if goal is not None else 1 - first
        if first == last:
            raise BadParameter("a direction leads to another class", needed="two classes", found=f"{start} and {goal}")
        return first, last

    def said(self, code: float) -> str:
        """Return the name of the class with this code or, for real values, the number as text, for use in sentences."""
        return self.header.labels[int(code)] if self.header.labels else f"{code:g}"

    def predict(self, states: NDArray[np.floating]) -> Floats:
        """Return the natural log probabilities `(n, K)` that the probe gives to states `(n, D)`.

        Raises:
            BadParameter: the evidence is not a probe, or the states have another width.
        """
        if self.header.kind != "probe":
            raise BadParameter("only a probe predicts", needed="a probe", found=self.header.kind)
        return np.asarray(log_softmax(self._checked(states) @ self.arrays["weights"] + self.arrays["bias"], axis=1))

    def direction(self, *, start: float = 0, goal: float = 1) -> Floats:
        """Return the vector `(D,)` that is added at dose 1 to lead from `start` to `goal`, averaged over strata; both
        are codes of classes. For real values they are numbers, and the default 0 and 1 give the vector for one unit.

        Raises:
            BadParameter: the evidence is not class means, or there is no such class.
        """
        if self.header.kind != "class_mean":
            raise BadParameter("only class means are a direction", needed="class_mean", found=self.header.kind)
        return np.asarray(self._shift(1, np.asarray(start), np.asarray(goal), None)[0])

    def _checked(self, states: NDArray[np.floating]) -> Floats:
        if states.ndim != 2 or states.shape[1] != self.width:
            raise BadParameter(
                "states of another width", needed=f"(n, {self.width})", found=str(states.shape), where=self.header.place
            )
        return states.astype(np.float64)

    def _shift(self, n: int, start: NDArray[Any], goal: NDArray[Any], strata: ArrayLike | None) -> Floats:
        shares = self.arrays["shares"]
        w = None if strata is None else self._codes("stratum", np.asarray(strata), n, len(shares))
        if "means" in self.arrays:
            n_classes = len(self.header.labels)
            begin, end = (self._codes("class", codes, n, n_classes) for codes in (start, goal))
            return self._between(begin, end, w)
        change = np.broadcast_to(goal - start, (n,))[:, None]
        slopes = self.arrays["slopes"]
        return np.asarray(change * (shares @ slopes if w is None else slopes[w]))

    def _codes(self, what: str, codes: NDArray[Any], n: int, most: int) -> NDArray[Any]:
        """Return codes from 0 to `most` - 1, `(n,)`."""
        fits = codes.dtype.kind in "iu" and codes.shape in ((), (n,))
        if not fits or (codes.size and not (codes.min() >= 0 and codes.max() < most)):
            raise BadParameter(
                f"no such {what}",
                needed=f"whole numbers from 0 to {most - 1}, one or {n}",
                found=f"{codes.shape} of {codes.dtype}, {codes.ravel()[:3].tolist()} …",
                where=self.header.place,
            )
        return np.broadcast_to(codes, (n,))

    def _between(self, begin: NDArray[Any], end: NDArray[Any], w: NDArray[Any] | None) -> Floats:
        means, counts = self.arrays["means"], self.arrays["counts"]
        known = (counts[:, begin] > 0) & (counts[:, end] > 0)  # (W, n)
        is_known = known.any(0) if w is None else known[w, np.arange(len(w))]
        if not is_known.all():
            raise BadParameter(
                "no rows to tell a class by",
                needed="a stratum with rows of both classes",
                found="none",
                where=self.header.place,
            )
        if w is not None:
            return np.asarray(means[w, end] - means[w, begin])
        weights = self.arrays["shares"][:, None] * known
        weights = weights if known.all() else weights / weights.sum(0)
        return np.asarray(sum(v[:, None] * (m[end] - m[begin]) for v, m in zip(weights, means, strict=True)))


def _number(text: str | None, default: float) -> float:
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadParameter("a property of real values goes from number to number", needed="a number", found=repr(text))
    return value


_WIDTH = {"class_mean": (("means", 2), ("slopes", 1)), "leace": (("centre", 0),), "probe": (("weights", 0),)}


def misfit(header: Header, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a phrase that says how the arrays differ from those that the kind of evidence in the header must have; ""
    if they do not.
    """
    wanted = _wanted(header)
    if set(arrays) != set(wanted):
        return f"arrays {', '.join(sorted(arrays))[:100] or 'none'}"
    sizes: dict[str, int] = {"K": len(header.labels), "W": len(header.strata)}
    for name, axes in wanted.items():
        array, kind = arrays[name], "i" if name == "counts" else "f"
        if array.ndim != len(axes) or array.dtype.kind != kind or array.dtype.itemsize != 8:
            return f"{name} of shape {array.shape} and {array.dtype}"
        if any(sizes.setdefault(axis, n) != n for axis, n in zip(axes, array.shape, strict=True)):
            return f"{name} of shape {array.shape}"
        if not np.isfinite(array).all() or (name in ("counts", "shares") and array.min(initial=0) < 0):
            return f"{name} with numbers that are not finite, or negative"
    empty = [axis for axis in set("".join(wanted.values())) - {"r"} if not sizes[axis]]  # an eraser may have rank 0
    return f"arrays without {empty[0]}" if empty else ""


def _wanted(header: Header) -> dict[str, str]:
    if header.kind == "leace":
        return {"left": "Dr", "right": "Dr", "centre": "D"}
    if header.kind == "probe":
        return {"weights": "DK", "bias": "K"}
    return {"means": "WKD", "counts": "WK", "shares": "W"} if header.labels else {"slopes": "WD", "shares": "W"}
