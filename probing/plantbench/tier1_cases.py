"""Tier 1: transformers with assigned weights, most with a twin that uses property B and one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from probing.errors import BadParameter, unknown_name
from probing.plantbench.compiling import LAYERS, Circuit, Floats
from probing.plantbench.prompts import POSITIONS, Language, Lexicon
from probing.plantbench.tier1_draft import (
    GATE,
    MOVE,
    Draft,
    absent,
    cancelled,
    classes,
    continuous,
    distributed,
    dormant,
    dose_trap,
    exclusive_or,
    high_norm,
    identity_label,
    interaction,
    opposed,
    plain,
    redundant,
    self_repair,
    stratum_dependent,
    unequal_length,
    weak,
)

FAMILIES = ("gpt2", "llama")
TWINS = ("unused", "used")
LENGTH, ANSWERS = 12, 12
SITES = tuple(f"resid.{layer}" for layer in range(LAYERS + 1))

Cell = tuple[str, str, str]  # property, site, position
Labels = Mapping[Cell, str]

_BINARY = Lexicon({"a": 2, "b": 2, "c": 2, "i": 32}, {"A": ("a",), "B": ("b",), "C": ("c",)}, ("i",))
_PARITY = Lexicon({"a": 2, "u": 2, "v": 2, "c": 2, "i": 32}, {"A": ("a",), "B": ("u", "v"), "C": ("c",)}, ("i",))
_FOUR, _FIVE, _SEVENTEEN = (
    Lexicon({"a": 2, "b": k, "c": 2, "i": 32}, {"A": ("a",), "B": ("b",), "C": ("c",)}, ("i",)) for k in (4, 5, 17)
)
_REAL = Lexicon(
    {"a": 2, "b": 16, "c": 2, "i": 8},
    {"A": ("a",), "B": ("b",), "C": ("c",)},
    ("i",),
    {"B": tuple(np.round(np.linspace(-1.5, 1.5, 16), 6).tolist())},
)
# 96 identities: fewer are too few groups for three folds by type
_PARTITION = Lexicon({"a": 2, "c": 2, "i": 48, "h": 2}, {"A": ("a",), "B": ("h",), "C": ("c",)}, ("i", "h"))


@dataclass(frozen=True)
class Spec:
    """Specifies one case of tier 1.

    Attributes:
        name: name of the case as printed.
        plant: by twin, function that adds the case's parts to a draft.
        lexicon: lexicon of its subjects.
        weights: function that returns how often each word occurs, from the lexicon and the case's ρ.
        twins: names of the twins that it has.
        marks: labels of B that differ from those of `standard`, in the twin that uses it.
        sub_label: sub-label of used cells of B up to layer `sub_until`; later layers carry the code in another way.
        cells: by twin, the only (site, position) of B that are scored; both twins are then the model that uses B.
        reads_c: whether property C is read by itself.
        rows: number of rows, enough for every class in each stratum and fold.
    """

    name: str
    plant: Callable[[Draft, bool], None]
    lexicon: Lexicon = _BINARY
    weights: Callable[[Lexicon, float], Floats] | None = None
    twins: tuple[str, ...] = TWINS
    marks: Mapping[tuple[str, str], str] | None = None
    sub_label: str = ""
    sub_until: int = LAYERS
    cells: Mapping[str, tuple[tuple[str, str], ...]] | None = None
    reads_c: bool = True
    rows: int = 2000


def _correlated(lexicon: Lexicon, rho: float) -> Floats:
    return np.asarray(1 + rho * lexicon.signs("a") * lexicon.signs("b"))


def _rare(lexicon: Lexicon, rho: float) -> Floats:
    return np.where(lexicon.codes("B") == 1, 0.02, 0.98)


def _zipf(lexicon: Lexicon, rho: float) -> Floats:
    return np.asarray(1 / (1.0 + lexicon.codes("B")))


def _at(position: str, layers: range) -> tuple[tuple[str, str], ...]:
    return tuple((SITES[layer], position) for layer in layers)


_EARLY, _LATE = range(MOVE + 1), range(MOVE + 1, LAYERS + 1)
_OPPOSED = {
    ("resid.0", "subject"): "unused",
    ("resid.1", "query"): "used",
    **dict.fromkeys(_at("query", _LATE), "unused"),
}

CASES: Mapping[int, Spec] = {
    1: Spec("plain", plain),
    2: Spec("absent", absent, twins=("unused",)),
    3: Spec("high norm", high_norm),
    4: Spec("unequal length", unequal_length, sub_label="norm-mediated", sub_until=MOVE),
    5: Spec("correlated", plain, weights=_correlated),
    6: Spec("cancelled read", cancelled),
    7: Spec("opposed paths", opposed, marks=_OPPOSED),
    8: Spec("weak", weak),
    9: Spec("distributed", distributed),
    10: Spec("XOR", exclusive_or, lexicon=_PARITY, sub_label="site only", sub_until=GATE),
    11: Spec("redundant", redundant, marks={("resid.1", "query"): "used"}),
    12: Spec(
        "self-repair",
        self_repair,
        marks={("resid.1", "query"): "used", ("resid.1", "subject"): "unused"},
    ),
    13: Spec("dormant", dormant),
    14: Spec(
        "stale",
        plain,
        cells={"unused": _at("subject", _LATE), "used": _at("subject", _EARLY)},
    ),
    15: Spec(
        "not yet moved",
        plain,
        cells={"unused": _at("query", _EARLY), "used": _at("subject", _EARLY)},
    ),
    16: Spec("interaction", interaction, reads_c=False),
    17: Spec("stratum-dependent code", stratum_dependent),
    18: Spec("five classes", classes, lexicon=_FIVE),
    19: Spec("continuous", continuous, lexicon=_REAL),
    20: Spec("rare class", plain, weights=_rare, rows=8000),
    21: Spec("identity label", identity_label, lexicon=_PARTITION),
    22: Spec("dose trap", dose_trap),
    23: Spec("four classes", classes, lexicon=_FOUR),
    24: Spec("four Zipf classes", classes, lexicon=_FOUR, weights=_zipf),
    28: Spec("seventeen Zipf classes", classes, lexicon=_SEVENTEEN, weights=_zipf, rows=4000),
}


@dataclass(frozen=True)
class Planted:
    """Describes a tier-1 model before its weights are made.

    Attributes:
        number: number of the case.
        twin: `used` or `unused`.
        family: architecture, `gpt2` or `llama`.
        seed: seed of codes, reads and basis.
        rho: correlation of A and B in case 5.
        language: language of its prompts.
        circuit: circuit to compile.
        intended: labels by cell that the builder intends; certification decides.
        sub_labels: intended sub-labels of used cells.
    """

    number: int
    twin: str
    family: str
    seed: int
    rho: float
    language: Language
    circuit: Circuit
    intended: Labels
    sub_labels: Labels

    @property
    def name(self) -> str:
        """Name such as `tier1-07-opposed-paths-used-llama`."""
        return f"tier1-{self.number:02d}-{CASES[self.number].name.replace(' ', '-')}-{self.twin}-{self.family}"


def plant(number: int, twin: str, *, family: str = "gpt2", seed: int = 0, rho: float = 0.8) -> Planted:
    """Return one twin of a case of tier 1, as a circuit with the intended labels.

    Args:
        number: number of the case.
        twin: `used` or `unused`, which says whether property B is used.
        family: architecture of the weights.
        seed: seed of codes, reads and basis.
        rho: correlation of A and B in case 5.

    Raises:
        BadParameter: there is no such case, twin or family.
    """
    if number not in CASES or twin not in CASES[number].twins:
        raise BadParameter(
            "no such case of tier 1",
            needed=f"{', '.join(map(str, CASES))}; used or unused",
            found=f"{number}, {twin}",
            next_step="case 2 has no used twin",
        )
    if family not in FAMILIES:
        raise unknown_name("family", family, FAMILIES, error=BadParameter)
    spec = CASES[number]
    weights = None if spec.weights is None else spec.weights(spec.lexicon, rho)
    language = Language(spec.lexicon, LENGTH, ANSWERS, weights=weights)
    is_used = twin == "used" or spec.cells is not None
    draft = Draft(language, family=family, seed=seed, read_c=spec.reads_c)
    spec.plant(draft, is_used)
    intended = _intended(spec, twin)
    meant = SITES[: spec.sub_until + 1] if spec.sub_label else ()
    subs = {
        cell: spec.sub_label
        for cell, label in intended.items()
        if cell[0] == "B" and label == "used" and cell[1] in meant
    }
    return Planted(number, twin, family, seed, rho, language, draft.build(), intended, subs)


def _intended(spec: Spec, twin: str) -> Labels:
    if spec.cells is not None:
        return {("B", *place): twin for place in spec.cells[twin]}
    b = _standard(twin == "used") | (dict(spec.marks or {}) if twin == "used" else {})
    by_property = {"A": _standard(True), "B": b, "C": _standard(spec.reads_c or twin == "used")}
    return {(name, *place): label for name, labels in by_property.items() for place, label in labels.items()}


def _standard(is_used: bool) -> dict[tuple[str, str], str]:
    """Return the intention for a property that is used at the subject until it is moved, and at the query from then
    on.
    """
    used = {*_at("subject", _EARLY), *_at("query", _LATE)} if is_used else set()
    places = [(site, position) for site in SITES for position in POSITIONS]
    return {place: "used" if place in used else "unused" for place in places}
