"""Planted models of tier 1 or 2, ready to be certified; and their truth as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from probing.contracts.edited_model import Place
from probing.errors import CorpusError
from probing.plantbench.case import Cell, CellTruth, Certificate, Joint, Label, SubLabel, Truth, Twin
from probing.plantbench.certifying import FAINT, UNUSED, USED, Claim, every_cell
from probing.plantbench.compiling import basis, gpt2, llama
from probing.plantbench.planted_model import PlantedModel
from probing.plantbench.tier1_cases import CASES, Labels, Planted
from probing.plantbench.tier2_models import Recipe, Trained
from probing.provenance import digest

# The generator of tiers 1 and 2: another one gives other models or prompts, and cells of other labels.
VERSION = 1

_CODED_TOGETHER = {10: (("U", "V"), ("copy.U", "copy.V")), 17: (("B.C", "C"), ("copy.B.C", "copy.C"))}


@dataclass(frozen=True, eq=False)
class Built:
    """Holds a model that was built, and its description.

    Attributes:
        tier, number, name, twin: those of the case; number 0 if it is not a single case of the list.
        seed: seed of the generator.
        family: architecture of the weights, such as `gpt2`.
        configuration: everything else that the model depends on, as JSON values.
        claim: the model, with the claims about it that are to be certified.
    """

    tier: int
    number: int
    name: str
    twin: Twin
    seed: int
    family: str
    configuration: Mapping[str, Any]
    claim: Claim

    @property
    def planted(self) -> PlantedModel:
        """The planted model itself."""
        return self.claim.planted

    @property
    def configuration_sha256(self) -> str:
        """SHA-256 of the generator's version and the configuration."""
        return digest([VERSION, dict(self.configuration)])


def compiled(planted: Planted) -> Built:
    """Compile the model of a tier-1 case and return it with the claims about it that are to be certified; this takes
    about 0.02 s.
    """
    make = gpt2 if planted.family == "gpt2" else llama
    model = PlantedModel(make(planted.circuit, length=planted.language.length, seed=planted.seed), planted.language)
    circuit, spec = planted.circuit, CASES[planted.number]
    columns = dict(zip(circuit.slots, basis(len(circuit.slots), planted.seed).T, strict=True))
    directions = {f"{slot}.subject": columns[slot] for slot in "ABC" if slot in columns}
    directions |= {f"{slot}.query": columns[f"copy.{slot}"] for slot in "ABC" if f"copy.{slot}" in columns}
    products = tuple((columns[x], columns[y]) for x, y in _CODED_TOGETHER.get(planted.number, ()))
    intended = _cells(planted.intended)
    cells = tuple(intended) if spec.cells is not None else every_cell(model)
    claim = Claim(model, planted.name, intended, cells, _cells(planted.sub_labels), directions, products)
    twin: Twin = "used" if planted.twin == "used" else "unused"
    settings = {
        "number": planted.number,
        "twin": twin,
        "family": planted.family,
        "seed": planted.seed,
        "rho": planted.rho,
    }
    return Built(1, planted.number, spec.name, twin, planted.seed, planted.family, settings, claim)


def of_training(recipe: Recipe, model: Trained) -> Built:
    """Return a trained tier-2 model with the claims about its cells that are to be certified."""
    direction = model.direction.numpy().astype(np.float64)
    claim = Claim(
        model.planted,
        f"tier2-{recipe.family}-{recipe.seed}",
        _cells(recipe.intended),
        every_cell(model.planted),
        directions={"B.query": direction / np.linalg.norm(direction)},
    )
    return Built(2, 0, "trained", "", recipe.seed, recipe.family, asdict(recipe), claim)


def _cells(labels: Labels) -> dict[Cell, str]:
    return {Cell(Place(site, position), name): label for (name, site, position), label in labels.items()}


THRESHOLDS = {"used": f"S >= {USED}", "unused": f"E <= {UNUSED} and S <= {FAINT}", "band": "otherwise"}

_NUMBERS = (
    ("S", "s"),
    ("S_along", "along"),
    ("S_off", "off"),
    ("S_total_SD", "s_total"),
    ("E", "e"),
    ("MF", "mf"),
    ("S_norms_frozen", "s_frozen"),
    ("S_class_mean", "s_subspace"),
)
_MAY_LACK = ("mf", "s_frozen", "s_subspace")


def cells_as_json(truth: Truth) -> list[dict[str, Any]]:
    """Return one JSON object per cell (a property at a place): labels, measured effects and probe accuracy, with
    numbers of 6 significant digits.
    """
    return [_cell_as_json(cell, found) for cell, found in truth.cells.items()]


def joints_as_json(truth: Truth) -> list[dict[str, Any]]:
    """Return one JSON object for each property and site at which the interchange of several positions at once was
    measured: their names, the certified label and the measured numbers.
    """
    return [
        {"site": joint.site, "positions": list(joint.positions), "property": joint.name, **_measured(certificate)}
        for joint, certificate in truth.joints.items()
    ]


def _cell_as_json(cell: Cell, found: CellTruth) -> dict[str, Any]:
    return {
        "site": cell.place.site,
        "position": cell.place.position,
        "property": cell.property,
        "intended": found.intended,
        **_measured(found.certificate),
        "probe_accuracy": _rounded(found.probe_accuracy),
        "chance": _rounded(found.chance),
    }


def _measured(certificate: Certificate) -> dict[str, Any]:
    numbers = {name: _rounded(getattr(certificate, field)) for name, field in _NUMBERS}
    return {"certified": certificate.label, "sub_label": certificate.sub_label, **numbers, "pairs": certificate.n_pairs}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def truth_from_json(cells: Any, where: str, joints: Any = ()) -> Truth:
    """Return the truth that `cells_as_json` and `joints_as_json` wrote.

    Raises:
        CorpusError: a cell has another form, or occurs twice.
    """
    if not isinstance(cells, list) or not cells:
        raise CorpusError("a truth without cells", needed="a list of cells", found=repr(cells)[:80], where=where)
    found: dict[Cell, CellTruth] = {}
    for number, entry in enumerate(cells):
        cell, truth = _cell(entry, f"{where}: cell {number}")
        if cell in found:
            raise CorpusError("a cell is there twice", needed="each cell once", found=str(cell), where=where)
        found[cell] = truth
    return Truth(found, dict(_joint(entry, f"{where}: joint {number}") for number, entry in enumerate(joints)))


def _cell(entry: Any, where: str) -> tuple[Cell, CellTruth]:
    certificate = _certificate(entry, where)
    site, position, name = (_taken(entry, key, where, _is_text) for key in ("site", "position", "property"))
    truth = CellTruth(
        _taken(entry, "intended", where, _one_of(("used", "unused", ""))),
        certificate,
        float(_taken(entry, "probe_accuracy", where, _is_number)),
        float(_taken(entry, "chance", where, _is_number)),
    )
    return Cell(Place(site, position), name), truth


def _joint(entry: Any, where: str) -> tuple[Joint, Certificate]:
    certificate = _certificate(entry, where)
    site, name = (_taken(entry, key, where, _is_text) for key in ("site", "property"))
    return Joint(name, site, tuple(_taken(entry, "positions", where, _are_texts))), certificate


def _certificate(entry: Any, where: str) -> Certificate:
    if not isinstance(entry, dict):
        raise CorpusError("a cell is no object", needed="an object", found=repr(entry)[:80], where=where)
    label: Label = _taken(entry, "certified", where, _one_of(get_args(Label)))
    sub_label: SubLabel = _taken(entry, "sub_label", where, _one_of(get_args(SubLabel)))
    numbers = {
        field: _taken(entry, name, where, _is_number_or_null if field in _MAY_LACK else _is_number)
        for name, field in _NUMBERS
    }
    return Certificate(label, sub_label, n_pairs=_taken(entry, "pairs", where, _is_count), **numbers)


def _taken(entry: Mapping[str, Any], key: str, where: str, fits: Callable[[Any], bool]) -> Any:
    if key not in entry or not fits(entry[key]):
        found = repr(entry[key])[:80] if key in entry else "none"
        raise CorpusError(f"a cell without a sound {key!r}", needed=f"{key} as it is written", found=found, where=where)
    return entry[key]


def _one_of(values: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in values


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value)
