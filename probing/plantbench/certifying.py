"""Certificates: labels of planted models (`used` or `unused`) that are measured by exchanging states between minimal
pairs of prompts; and prompts for linear probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Instrument, Place
from probing.errors import BadTwin, PlantFailed
from probing.plantbench.case import Cell, CellTruth, Certificate, Joint, Label, SubLabel, Truth, joints_of
from probing.plantbench.planted_model import PlantedModel, PromptInstrument
from probing.plantbench.prompts import POSITIONS, Lexicon, Prompts
from probing.plantbench.yardstick import SignedMeans, Yardstick
from probing.seeds import generator
from probing.use.contrasts import sums_by
from probing.use.discriminant import Discriminant, Moments
from probing.use.effect_sums import behaviour

USED, UNUSED = 0.10, 0.02
FAINT = USED / 2  # where s_c is far below s_Y, E alone would call unused what is nearly an effect that counts
N_PAIRS = 4096

Ints = NDArray[np.int64]
Values = Ints | NDArray[np.float64]


def certify(
    instrument: Instrument, place: Place | Sequence[Place], pairs: Ints, z: Values, strata: Ints, *, n_classes: int
) -> Certificate:
    """Run one prompt of each minimal pair with its state replaced by that of the other, at one place or at several of
    one site together, and return the certificate of the effect.

    Args:
        instrument: instrument whose rows include both rows of each pair; rules never see this instrument.
        place: place of the cell, or several places of one site.
        pairs: `(n, 2)` rows x, which is edited, and x', whose state it gets; x is drawn like the rows that rules are
            given, and the class of x' by the frequencies of the other classes.
        z: `(N,)` values of the property.
        strata: `(N,)` codes 0 … W-1 of the other properties' values, equal within pairs.
        n_classes: number of classes K; 0 for real values.

    Raises:
        BadTwin: the rows of a pair have the same value of the property, or are in different strata.
    """
    places = [place] if isinstance(place, Place) else list(place)
    x, other = pairs[:, 0], pairs[:, 1]
    _check_pairs(z[x], z[other], strata[x], strata[other])
    y = instrument.clean()
    means = SignedMeans.of(z[x], z[other], strata[x], n_classes=n_classes)
    yardstick = Yardstick.of(means, y[x], y[other] - y[x])
    states = {p: instrument.states(p) for p in places}
    donated = {p: h[other] for p, h in states.items()}
    delta = _changes(instrument, x, donated)
    size, e = yardstick(delta), math.sqrt(float((delta**2).sum(1).mean())) / yardstick.s_y
    label: Label = "used" if size.s >= USED else "unused" if e <= UNUSED and size.s <= FAINT else "band"
    frozen = sub = None
    is_alone = len(places) == 1
    if label == "used" and is_alone:
        if instrument.has_norms:
            frozen = yardstick(_changes(instrument, x, donated, frozen_norms=True)).s
        swap = {p: _class_mean_swap(h, pairs, z, strata, n_classes) for p, h in states.items()}
        sub = yardstick(_changes(instrument, x, swap)).s
    mf = yardstick.mediated(delta) if yardstick.total >= USED else None
    how = _sub_label(label, frozen, sub) if is_alone else ""
    return Certificate(
        label,
        how,
        size.s,
        e,
        mf,
        frozen,
        sub,
        len(pairs),
        s_total=size.of_total,
        along=size.along,
        off=size.off,
        noise=means.error(delta, means(delta)) / yardstick.s_y,
    )


def truth_of(
    cell: Cell,
    certificate: Certificate,
    intended: str,
    accuracy: float,
    n_classes: int,
    *,
    where: str,
    sub_label: str = "",
) -> CellTruth:
    """Return the truth about a cell from its certificate, after checking it against the builder's intention.

    Raises:
        PlantFailed: the cell is intended to be used and certified unused, or the reverse, or its sub-label differs.
    """
    check_intention(cell, certificate, intended, where=where)
    if sub_label and certificate.label == "used" and certificate.sub_label != sub_label:
        raise PlantFailed(
            f"{cell} is used otherwise than it was built to be",
            needed=sub_label,
            found=certificate.sub_label,
            where=where,
        )
    kept = "used" if intended == "used" else "unused" if intended == "unused" else ""
    return CellTruth(kept, certificate, accuracy, 1 / n_classes if n_classes else 0.0)  # type: ignore[arg-type]


def check_intention(what: Cell | Joint, certificate: Certificate, intended: str, *, where: str) -> None:
    """Check that a certified label does not contradict the intended one.

    Raises:
        PlantFailed: the cell is intended to be used and certified unused, or the reverse; the message names it.
    """
    found = certificate.label
    if intended and found != "band" and found != intended:
        raise PlantFailed(
            f"{what} is not what it was built to be",
            needed=f"{intended} by intention",
            found=f"{found}: S {certificate.s:.3f}, E {certificate.e:.4f}",
            where=where,
        )


def probe_accuracy(features: Sequence[NDArray[np.floating]], z: Values, *, n_classes: int) -> float:
    """Return the best held-out balanced accuracy (R² for real values) of linear probes on several kinds of features
    `(N, D)`.

    The probes are Gaussian classes with one covariance, fitted on the first half of the rows and scored on the second;
    classes count equally, so a rare class is not overlooked. The first features are the states; builders add products
    of planted directions.
    """
    half = len(z) // 2
    best = 0.0
    for given in features:
        X = np.asarray(given, np.float64)
        predicted = Discriminant(Moments.of(X[:half], z[:half], n_classes)).predict(X[half:])
        if not n_classes:
            rest = z[half:] - predicted[:, 0]
            best = max(best, 1 - float((rest**2).mean() / z[half:].var()))
            continue
        odds = predicted / np.maximum(np.bincount(z[:half], minlength=n_classes), 1)
        right = odds.argmax(1) == z[half:]
        best = max(best, float(np.mean([right[z[half:] == k].mean() for k in np.unique(z[half:])])))
    return best


def _check_pairs(start: Values, goal: Values, strata: Ints, of_other: Ints) -> None:
    same, moved = int((start == goal).sum()), int((strata != of_other).sum())
    if same or moved:
        raise BadTwin(
            "not minimal pairs",
            needed="another value of the property in the same stratum",
            found=f"{same} pairs of one value, {moved} of two strata, of {len(start)}",
        )


def _changes(
    instrument: Instrument, rows: Ints, states: Mapping[Place, NDArray[np.float32]], *, frozen_norms: bool = False
) -> Floats:
    """Return the change of the clean behaviour, `(n, V)`, when rows have other states `(n, D)` at places of one
    site.
    """
    (site,) = {place.site for place in states}
    given = {place.position: h for place, h in states.items()}
    return behaviour(instrument, site, rows, given, frozen_norms=frozen_norms) - instrument.clean()[rows]


def _class_mean_swap(
    h: NDArray[np.float32], pairs: Ints, z: Values, strata: Ints, n_classes: int
) -> NDArray[np.float32]:
    """Return the states of x, `(n, D)`, moved by the difference of the population's class means (or the slope) in their
    stratum.
    """
    x, other = pairs[:, 0], pairs[:, 1]
    rows = pairs.reshape(-1)
    states, w = h[rows].astype(np.float64), strata[rows]
    if not n_classes:
        shift = np.zeros((len(x), h.shape[1]))
        for stratum in np.unique(w):
            inside = w == stratum
            centred = z[rows][inside] - z[rows][inside].mean()
            slope = centred @ states[inside] / (centred @ centred)
            own = strata[x] == stratum
            shift[own] = (z[other] - z[x])[own, None] * slope
        return np.asarray(h[x] + shift, np.float32)
    codes = w * n_classes + z[rows].astype(np.int64)
    size = (int(strata.max()) + 1) * n_classes
    means = sums_by(codes, states, size) / np.maximum(np.bincount(codes, minlength=size), 1)[:, None]
    start, goal = (strata[x] * n_classes + values for values in (z[x], z[other]))
    return np.asarray(h[x] + means[goal] - means[start], np.float32)


def _sub_label(label: Label, frozen: float | None, sub: float | None) -> SubLabel:
    if label != "used":
        return ""
    if frozen is not None and frozen <= UNUSED:
        return "norm-mediated"
    return "subspace" if sub is not None and sub >= USED else "site only"


PROBE_ROWS = 65_536

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Claim:
    """Holds a model and the claims about it (intended labels of cells) that are to be certified.

    Attributes:
        planted: the model, in evaluation mode.
        name: name of the model, for messages.
        intended, sub_labels: intended label and sub-label of cells, where the builder has an intention.
        cells: all cells to certify.
        directions: planted directions `(D,)` by property and position, such as `B.subject`.
        products: pairs of directions such that the product of a state's coordinates along them codes a property; the
            oracle's probes read these products, too.
    """

    planted: PlantedModel
    name: str
    intended: Mapping[Cell, str]
    cells: tuple[Cell, ...]
    sub_labels: Mapping[Cell, str] = field(default_factory=dict)
    directions: Mapping[str, Floats] = field(default_factory=dict)
    products: tuple[tuple[Floats, Floats], ...] = ()


def every_cell(planted: PlantedModel) -> tuple[Cell, ...]:
    """Return the cells of all properties at all sites and positions."""
    places = [Place(site, position) for site in planted.sites for position in POSITIONS]
    return tuple(Cell(place, name) for name in planted.language.lexicon.properties for place in places)


def certified(claim: Claim, *, seed: int, n_pairs: int = N_PAIRS, probe_rows: int = PROBE_ROWS) -> Truth:
    """Measure the effect of every cell by exchanging states between minimal pairs, and return the truth with the
    certified labels.

    Args:
        claim: the model and the claims about it.
        seed: seed of the prompts, which differ from the rows that rules are given.
        n_pairs: number of pairs for each property.
        probe_rows: number of prompts for the probes.

    Raises:
        PlantFailed: a certified label contradicts the intended one.
    """
    found: dict[Cell, CellTruth] = {}
    joints: dict[Joint, Certificate] = {}
    fresh = claim.planted.language.sample(probe_rows, generator(seed, "probes"))
    probed = claim.planted.states_at(fresh, list(dict.fromkeys(cell.place for cell in claim.cells)))
    for name in dict.fromkeys(cell.property for cell in claim.cells):
        cells = [cell for cell in claim.cells if cell.property == name]
        together = joints_of(cells)
        asked = [*([cell.place] for cell in cells), *(joint.places for joint in together)]
        certificates = _certificates(claim, name, asked, seed, n_pairs)
        joints |= dict(zip(together, certificates[len(cells) :], strict=True))
        z, n_classes = values_of(claim.planted.language.lexicon, name)
        for cell, certificate in zip(cells, certificates, strict=False):
            features = _features(probed[cell.place], claim)
            found[cell] = truth_of(
                cell,
                certificate,
                claim.intended.get(cell, ""),
                probe_accuracy(features, z[fresh.words], n_classes=n_classes),
                n_classes,
                where=claim.name,
                sub_label=claim.sub_labels.get(cell, ""),
            )
    return Truth({cell: found[cell] for cell in claim.cells}, joints)


def _certificates(
    claim: Claim, name: str, asked: Sequence[Sequence[Place]], seed: int, n_pairs: int
) -> list[Certificate]:
    """Return, for each set of places of one site, the certificate of exchanging the states of all of them."""
    language = claim.planted.language
    places = list(dict.fromkeys(place for several in asked for place in several))
    x, other = language.pairs(n_pairs, name, generator(seed, "pairs", name))
    both = PromptInstrument(claim.planted, joined(x, other), places=places)
    pairs = np.stack([np.arange(n_pairs), n_pairs + np.arange(n_pairs)], axis=1)
    words = np.concatenate([x.words, other.words])
    z, n_classes = values_of(language.lexicon, name)
    strata = strata_of(language.lexicon, name)[words]
    return [certify(both, several, pairs, z[words], strata, n_classes=n_classes) for several in asked]


def joined(x: Prompts, other: Prompts) -> Prompts:
    """Return prompts with the rows of `x`, followed by those of `other`."""
    return Prompts(
        np.concatenate([x.ids, other.ids]),
        np.concatenate([x.words, other.words]),
        np.concatenate([x.subject, other.subject]),
    )


def values_of(lexicon: Lexicon, name: str) -> tuple[Values, int]:
    """Return the values of a property for every word, `(W,)`, and the number of classes K (0 for real values)."""
    if name in lexicon.values:
        return lexicon.real(name), 0
    codes = lexicon.codes(name)
    return codes, int(codes.max()) + 1


def strata_of(lexicon: Lexicon, name: str) -> NDArray[np.int64]:
    """Return a code for the combined values of the other properties, for every word, `(W,)`."""
    found = np.zeros(len(lexicon), dtype=np.int64)
    for other in lexicon.properties:
        if other != name:
            codes = lexicon.codes(other)
            found = found * (int(codes.max()) + 1) + codes
    return found


def _features(states: NDArray[np.float32], claim: Claim) -> list[NDArray[np.floating]]:
    """Return the states; where properties are coded together, also with the products of what is coded together."""
    if not claim.products:
        return [states]
    products = [(states @ u) * (states @ v) for u, v in claim.products]
    return [states, np.column_stack([states, *products])]
