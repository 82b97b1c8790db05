"""Defines `Case`, a model with labelled rows that rules are asked about; `Truth`, what the model is known to use, which
rules are not given; and `Answer`, a rule's answer for one property at one place (a cell).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Instrument, Place
from probing.plantbench.knobs import Knobs

Ints = NDArray[np.int64]
Values = NDArray[np.int64] | NDArray[np.float64]
Twin = Literal["unused", "used", ""]
Label = Literal["used", "unused", "band"]
SubLabel = Literal["subspace", "site only", "norm-mediated", ""]
LeftOut = Literal["collinear", "cancelling", "other", ""]
Said = Literal["used", "unused", "not_decodable", "abstain"]


@dataclass(frozen=True, order=True)
class Cell:
    """Names a property at a place. Rules answer for each cell and are scored on it.

    Attributes:
        place: the place, a site and perhaps a position.
        property: name of the property.
    """

    place: Place
    property: str

    def __str__(self) -> str:
        return f"{self.property} at {self.place}"


@dataclass(frozen=True, order=True)
class Joint:
    """Names a property at several positions of one site, which are edited together.

    Attributes:
        name: name of the property.
        site: name of the site.
        positions: names of two or more positions.
    """

    name: str
    site: str
    positions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} at {self.site}@{'+'.join(self.positions)}"

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that are edited together."""
        return tuple(Place(self.site, position) for position in self.positions)

    def holds(self, cell: Cell) -> bool:
        """Return whether a cell is of the same property and site, and at one of these positions."""
        return cell.property == self.name and cell.place in self.places


def joints_of(cells: Iterable[Cell]) -> tuple[Joint, ...]:
    """Return, for each property and site with cells at several positions, all these positions as one `Joint`."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        found.setdefault((cell.property, cell.place.site), []).append(cell.place.position)
    return tuple(Joint(name, site, tuple(several)) for (name, site), several in found.items() if len(several) > 1)


@dataclass(frozen=True, eq=False)
class Case:
    """Holds a model with labelled rows (words or texts). Rules answer which of the labelled properties the model uses,
    and where.

    Attributes:
        tier: 0 for random vectors with a known output, 1 for transformers with constructed weights, 2 for trained
            transformers, 3 for compiled programs.
        number: number of the case in docs/plantbench.md; of the program in tier 3.
        name: its name there.
        twin: cases come in pairs of models that differ in one thing: `used` is the model that uses the property,
            `unused` the other; "" in the `blind` copies that rules are given.
        seed: seed of the generator of the case.
        instrument: instrument with states and behaviour of N rows.
        labels: by property, `(N,)` codes from 0 to K − 1 (int64) or real values (float64).
        n_classes: number of classes K by property; 0 for real values.
        groups: `(N,)` code of each row's group (such as a document); groups are independent.
        types: `(N,)` code of what each row is an occurrence of, such as a word form; None if rows are not occurrences
            of anything.
        cells: the cells that are scored.
        twins: `(N,)` for each row, the row that differs from it in the property only; None except in the cases with
            minimal pairs.
        read: in tier 3, the tokens whose outputs are the behaviour, `own` (the edited one) or `others`.
    """

    tier: int
    number: int
    name: str
    twin: Twin
    seed: int
    instrument: Instrument
    labels: Mapping[str, Values]
    n_classes: Mapping[str, int]
    groups: Ints
    cells: tuple[Cell, ...]
    types: Ints | None = None
    twins: Ints | None = None
    read: Literal["own", "others", ""] = ""

    @property
    def key(self) -> str:
        """Key of the case, such as `0.05.used.3`: tier, number, twin (in tier 3, what is read) and seed."""
        return f"{self.tier}.{self.number:02d}.{self.twin or self.read}.{self.seed}"

    def blind(self) -> Case:
        """Return a copy of the case without its number, name and twin, which is what rules are given."""
        return replace(self, number=0, name="", twin="")

    def covariates(self, name: str) -> dict[str, tuple[Values, int]]:
        """Return, by name, values and number of classes of all labelled properties but `name`."""
        return {other: (z, self.n_classes[other]) for other, z in self.labels.items() if other != name}


@dataclass(frozen=True)
class Certificate:
    """Holds what exchanging states between minimal pairs (do-interventions) shows about one cell; effects are in SDs of
    the unedited output.

    Attributes:
        label: `used` (S ≥ 0.10), `unused` (E ≤ 0.02 and S ≤ 0.05), or `band` for cells between, which are not scored; S
            and E are `s` and `e`.
        sub_label: how the model uses a used cell, such as `norm-mediated` or `site only`; "" for other cells.
        s: S, the size of the mean effect (see docs/plantbench.md).
        e: E, the root mean square effect.
        mf: effect as a share of the natural difference in output; None if that difference is below 0.10 SD.
        s_frozen: S with the scales of norms frozen; None if it was not measured.
        s_subspace: S of a swap of class means, computed within strata over all rows of the pairs; None if it was not
            measured.
        n_pairs: number of pairs measured.
        s_total: mean effect within strata divided by the SD of the whole unedited output, the definition of S before
            version 2.
        along: part of S along the natural contrast, the difference in output between values of the property (signed, in
            SDs along it).
        off: part of S off that contrast, in SDs of the whole output.
        noise: what chance alone gives `off`, by the spread of effects between the pairs.
    """

    label: Label
    sub_label: SubLabel
    s: float
    e: float
    mf: float | None
    s_frozen: float | None
    s_subspace: float | None
    n_pairs: int
    s_total: float = 0.0
    along: float = 0.0
    off: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class CellTruth:
    """Holds the truth about one cell.

    Attributes:
        intended: label that the case was built to have; "" if the measured certificate alone decides.
        certificate: what exchanging states shows.
        probe_accuracy: balanced accuracy (R² for real values) of the best of the probes that the builder of the case
            fits.
        chance: accuracy of chance, 1 / K (0 for real values).
        left_out: why a cell of tier 3 is in the band: `collinear` (its own directions do nothing, the whole state does
            something), `cancelling` (exchanges change outputs, on average by nothing) or `other`; else "".
    """

    intended: Literal["used", "unused", ""]
    certificate: Certificate
    probe_accuracy: float
    chance: float
    left_out: LeftOut = ""

    @property
    def decodable(self) -> bool:
        """Whether probes are at least 0.05 above chance (R² of at least 0.02)."""
        return self.probe_accuracy >= self.chance + (0.05 if self.chance else 0.02)


@dataclass(frozen=True)
class Truth:
    """Holds the truth about a case.

    Attributes:
        cells: truth about each property at each place alone.
        joints: for each property and site with several positions, the certificate of all of them together.
    """

    cells: Mapping[Cell, CellTruth]
    joints: Mapping[Joint, Certificate] = field(default_factory=dict)

    def joint(self, cell: Cell) -> Certificate | None:
        """Return the certificate of exchanging the states at all positions of this cell's site at once; None if the
        site has only one position.
        """
        return next((found for joint, found in self.joints.items() if joint.holds(cell)), None)


@dataclass(frozen=True)
class Answer:
    """Holds the answer of a rule for one cell.

    Attributes:
        verdict: `used`, `unused`, `not_decodable`, or `abstain` for no answer.
        score: evidence of use, the larger the stronger; NaN if there is none.
        effect: estimate of the mediated fraction, the effect as a share of the natural difference in output; NaN if
            there is none.
        p: p value of no effect; NaN if there is none.
        together: verdict on all positions of the site edited together; "" for no answer.
    """

    verdict: Said
    score: float = float("nan")
    effect: float = float("nan")
    p: float = float("nan")
    together: Literal["used", "unused", ""] = ""


def groups_of(knobs: Knobs, n: int, rng: np.random.Generator) -> Ints:
    """Return the group of each row, `(n,)` codes from 0 to G − 1 (for G groups) in ascending order; `knobs` gives the
    sizes of groups, and `rng` draws them if they vary.
    """
    if knobs.grouping == "equal":
        return np.arange(n) // knobs.group_size
    if knobs.grouping == "mixed":
        sizes = rng.integers(1, knobs.largest + 1, n)  # more than enough
        return np.repeat(np.arange(n), sizes)[:n]
    documents = min(knobs.documents, n)
    if knobs.grouping == "zipf":
        shares = zipf_shares(documents, knobs.tail)
    else:
        drawn = np.exp(knobs.spread * rng.standard_normal(documents))
        shares = drawn / drawn.sum()
    return np.repeat(np.arange(documents), _whole(shares, n))


def zipf_shares(k: int, tail: float) -> NDArray[np.float64]:
    """Return k shares `(k,)` that sum to 1; the i-th (from 1) is proportional to (1/i) to the power of `tail`."""
    shares = np.arange(1, k + 1) ** -tail
    return np.asarray(shares / shares.sum())


def effective(groups: Ints) -> float:
    """Return the effective number of groups, (Σm)² / Σm², where m are the numbers of rows of the groups.

    Args:
        groups: number of the group of each row, `(N,)`.
    """
    sizes = np.bincount(groups).astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _whole(shares: NDArray[np.float64], n: int) -> Ints:
    """Return whole sizes of at least 1 that are as nearly proportional to the shares as can be and sum to n."""
    wanted = shares * (n - len(shares))
    sizes = np.floor(wanted).astype(np.int64)
    most = np.argsort(sizes - wanted, kind="stable")[: n - len(shares) - int(sizes.sum())]
    sizes[most] += 1
    return sizes + 1
