"""Case: a planted model as a rule sees it. Truth: what only the score sees. Answer: what a rule says of a cell."""

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
Said = Literal["used", "unused", "not_decodable", "abstain"]


@dataclass(frozen=True, order=True)
class Cell:
    """A property at a place."""

    place: Place
    property: str

    def __str__(self) -> str:
        return f"{self.property} at {self.place}"


@dataclass(frozen=True, order=True)
class Joint:
    """A property at several positions of one site together.

    Attributes:
        name: of the property.
        site: where.
        positions: two or more.
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
        """Return whether the cell is at one of these positions."""
        return cell.property == self.name and cell.place in self.places


def joints_of(cells: Iterable[Cell]) -> tuple[Joint, ...]:
    """Return, for each property and site at which several positions are asked about, all these positions together."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        found.setdefault((cell.property, cell.place.site), []).append(cell.place.position)
    return tuple(Joint(name, site, tuple(several)) for (name, site), several in found.items() if len(several) > 1)


@dataclass(frozen=True, eq=False)
class Case:
    """A model with labelled rows; rules are asked what it uses.

    Attributes:
        tier: 0 latent vectors, 1 compiled transformers, 2 trained ones.
        number, name: of the case in docs/plantbench.md.
        twin: which of the two it is; rules are given `blind` cases, where it is "".
        seed: of the generator.
        instrument: states and behaviour of N rows.
        labels: by property, `(N,)` codes 0 … K-1 (int64) or real values (float64).
        n_classes: K by property; 0 for real values.
        groups: `(N,)` codes of what is independent.
        types: `(N,)` codes of identities; None: rows have none.
        cells: what is scored.
        twins: `(N,)` row that differs in the property alone; None but in the twins track.
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

    @property
    def key(self) -> str:
        """Key of the case, such as `0.05.used.3`: tier, case, twin, seed."""
        return f"{self.tier}.{self.number:02d}.{self.twin}.{self.seed}"

    def blind(self) -> Case:
        """Return the case without number, name and twin, as a rule is given it."""
        return replace(self, number=0, name="", twin="")

    def covariates(self, name: str) -> dict[str, tuple[Values, int]]:
        """Return values and K of the other labelled properties, by name."""
        return {other: (z, self.n_classes[other]) for other, z in self.labels.items() if other != name}


@dataclass(frozen=True)
class Certificate:
    """Result of do-interventions on minimal pairs at one cell; effects are in SDs of the clean output.

    Attributes:
        label: used (S ≥ 0.10), unused (E ≤ 0.02 and S ≤ 0.05), or in the band between them, which is not scored.
        sub_label: of a used cell, how; "" otherwise.
        s, e: size of the mean effect by the one yardstick (`yardstick`); root mean square effect.
        mf: share of the natural difference; None where there is none (below 0.10).
        s_frozen: S with norms held; None: not run.
        s_subspace: S of the population's class-mean swap; None: not run.
        n_pairs: measured.
        s_total: the mean effect within strata over the SD of the clean output as a whole, which S was before version 2.
        along, off: the parts of S: along the natural contrast (signed), in SDs along it; off it, in SDs of the whole.
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


@dataclass(frozen=True)
class CellTruth:
    """The truth of one cell.

    Attributes:
        intended: by the builder; "": no intention, certification decides.
        certificate: by the oracle.
        probe_accuracy: balanced accuracy (R² of real values) of the best of the oracle's probes.
        chance: 1 / K (0 for real values).
    """

    intended: Literal["used", "unused", ""]
    certificate: Certificate
    probe_accuracy: float
    chance: float

    @property
    def decodable(self) -> bool:
        """Whether probes are at least 0.05 above chance (R² of at least 0.02)."""
        return self.probe_accuracy >= self.chance + (0.05 if self.chance else 0.02)


@dataclass(frozen=True)
class Truth:
    """The truth of a case.

    Attributes:
        cells: of each place alone.
        joints: of all positions of a site together, where there are several.
    """

    cells: Mapping[Cell, CellTruth]
    joints: Mapping[Joint, Certificate] = field(default_factory=dict)

    def joint(self, cell: Cell) -> Certificate | None:
        """Return the certificate of all positions of this cell's site together; None: the cell is the only one."""
        return next((found for joint, found in self.joints.items() if joint.holds(cell)), None)


@dataclass(frozen=True)
class Answer:
    """The answer of a rule for one cell.

    Attributes:
        verdict: used, unused, not decodable, or nothing.
        score: the larger, the more used; NaN: none.
        effect: estimate of MF; NaN: none.
        p: of no effect; NaN: none.
        together: of all positions of the site edited together; "": no answer.
    """

    verdict: Said
    score: float = float("nan")
    effect: float = float("nan")
    p: float = float("nan")
    together: Literal["used", "unused", ""] = ""


def groups_of(knobs: Knobs, n: int, rng: np.random.Generator) -> Ints:
    """Return the codes 0 … G-1 of groups, `(n,)`, each group in one piece, as the knobs have it; `rng` draws sizes that
    vary.
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
    """Return `(k,)` shares proportional to 1, 1/2, 1/3 … to the power of `tail`."""
    shares = np.arange(1, k + 1) ** -tail
    return np.asarray(shares / shares.sum())


def effective(groups: Ints) -> float:
    """Return how many equal groups the groups are worth: (Σ m)² / Σ m² of their sizes m."""
    sizes = np.bincount(groups).astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _whole(shares: NDArray[np.float64], n: int) -> Ints:
    """Return whole sizes of at least 1 that are as nearly proportional to the shares as can be and sum to n."""
    wanted = shares * (n - len(shares))
    sizes = np.floor(wanted).astype(np.int64)
    most = np.argsort(sizes - wanted, kind="stable")[: n - len(shares) - int(sizes.sum())]
    sizes[most] += 1
    return sizes + 1
