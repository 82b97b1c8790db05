"""Certificates of planted models: minimal pairs of prompts for the oracle, and prompts for its probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.plantbench.case import Cell, CellTruth, Certificate, Joint, Truth, joints_of
from probing.plantbench.lexicon import Lexicon
from probing.plantbench.oracle import N_PAIRS, Values, certify, probe_accuracy, truth_of
from probing.plantbench.planted_model import PlantedModel, PromptInstrument
from probing.plantbench.prompts import POSITIONS, Prompts
from probing.seeds import generator

PROBE_ROWS = 65_536

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Claim:
    """The claims that are to be certified of a model.

    Attributes:
        planted: in evaluation mode.
        name: for messages.
        intended, sub_labels: by cell, where something is meant.
        cells: all that get a certificate.
        directions: planted ones `(D,)`, by property and position: `B.subject`.
        products: pairs of directions whose product a property is coded by; probes may read these products, too.
    """

    planted: PlantedModel
    name: str
    intended: Mapping[Cell, str]
    cells: tuple[Cell, ...]
    sub_labels: Mapping[Cell, str] = field(default_factory=dict)
    directions: Mapping[str, Floats] = field(default_factory=dict)
    products: tuple[tuple[Floats, Floats], ...] = ()


def every_cell(planted: PlantedModel) -> tuple[Cell, ...]:
    """Return the cells of all properties, sites and positions."""
    places = [Place(site, position) for site in planted.sites for position in POSITIONS]
    return tuple(Cell(place, name) for name in planted.language.lexicon.properties for place in places)


def certified(claim: Claim, *, seed: int, n_pairs: int = N_PAIRS, probe_rows: int = PROBE_ROWS) -> Truth:
    """Return the truth of every cell, by exchanges between minimal pairs.

    Args:
        claim: the model and what is meant.
        seed: of the prompts; none of them is a row that rules are given.
        n_pairs: for each property.
        probe_rows: prompts for the probes.

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
    """Return the rows of `x`, then those of `other`."""
    return Prompts(
        np.concatenate([x.ids, other.ids]),
        np.concatenate([x.words, other.words]),
        np.concatenate([x.subject, other.subject]),
    )


def values_of(lexicon: Lexicon, name: str) -> tuple[Values, int]:
    """Return the values of a property, `(W,)`: codes and K, or real values and 0."""
    if name in lexicon.values:
        return lexicon.real(name), 0
    codes = lexicon.codes(name)
    return codes, int(codes.max()) + 1


def strata_of(lexicon: Lexicon, name: str) -> NDArray[np.int64]:
    """Return codes of the other properties' values together, `(W,)`."""
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
