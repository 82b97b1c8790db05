"""Tier 3: programs that tracr compiled. A case asks which variables of a program, at one token, its output uses.

A *property* is a variable of the program at that token, or several that are one-to-one there. Its carriers are the
directions of these variables. Two oracles say what a cell is: exchanging the carriers' coordinates alone, and
exchanging the whole state, between prompts that agree in the labelled properties. A cell is scored if both have the
same label; where they contradict each other, a variable that is no function of the labels, or determines the property,
acts there, too, and no label tells them apart: such a cell is in the band, and its sub-label stays empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Instrument, Place
from probing.plantbench.case import Case, Cell, CellTruth, Certificate, LeftOut, Truth, Values
from probing.plantbench.certifying import FAINT, UNUSED, USED, certify, probe_accuracy
from probing.plantbench.tier3_models import TracrModel, Variable, read_program, shipped
from probing.seeds import child_seed, generator
from probing.use.edited_models.arrays import ArrayInstrument

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Read = Literal["own", "others"]
READS: tuple[Read, ...] = ("own", "others")  # outputs that are the behaviour: at the edited token, or at all others
ROWS, PAIRS, PROBE_ROWS, SURVEY = 6000, 4096, 4096, 24_000
LEAST_ROWS = 45  # of a class within a stratum, so that every fold has the ten that `probing use` wants
LEAST_COVERAGE = 0.85
BATCH = 4096


@dataclass(frozen=True)
class Property:
    """A property of the edited token.

    Attributes:
        name: name of the last of its variables.
        carriers: its variables, each a one-to-one function of the others.
        covariates: names of the properties that rules are given beside it.
        is_number: whether its values are real numbers rather than classes.
    """

    name: str
    carriers: tuple[Variable, ...]
    covariates: tuple[str, ...]
    is_number: bool


def cases(seed: int, *, folder: Path | None = None, names: Sequence[str] = ()) -> Iterator[tuple[Case, Truth]]:
    """Yield a case for every property of every program, read out at its own token and at all others.

    Args:
        seed: seed of the prompts; the programs depend on none.
        folder: folder with folders of programs; None: those in the repository.
        names: programs to yield; none: all.

    Raises:
        CorpusError: there are no programs.
    """
    folders = shipped() if folder is None else sorted(path for path in folder.iterdir() if path.is_dir())
    for number, source in enumerate(folders, start=1):
        if names and source.name not in names:
            continue
        model = read_program(source)
        for token in edited_tokens(model):
            study = Study(model, token, seed)
            for prop in study.properties:
                for read in READS:
                    yield from study.case(number, prop, read)


def edited_tokens(model: TracrModel) -> tuple[int, ...]:
    """Return the numbers of the tokens whose states are edited: the third, and of brackets also the last."""
    program = model.program
    return (min(3, program.shortest), program.length) if program.prompts == "brackets" else (min(3, program.shortest),)


class Study:
    """Draws prompts of a program, and says which properties the state of one token has.

    Args:
        model: the compiled program.
        token: number of the edited token; the first is the one that begins every prompt.
        seed: seed of the prompts.
    """

    def __init__(self, model: TracrModel, token: int, seed: int) -> None:
        self.model, self.program, self.token = model, model.program, token
        self.seed = child_seed(seed, "tier 3", model.program.name, token)
        self._survey = self.program.sample(SURVEY, generator(self.seed, "survey"))
        self._rows = self.program.sample(ROWS, generator(self.seed, "rows"))
        self._states = self.states(self._survey)

    @cached_property
    def properties(self) -> tuple[Property, ...]:
        """All properties that vary, with the covariates that rules are given for each."""
        final = self._states[self.model.sites[-1]]
        groups: list[tuple[list[Variable], Ints]] = []
        for variable in self.program.variables:
            codes = variable.codes(final)
            if not variable.dims or len(np.unique(codes)) < 2:
                continue
            same = next((group for group in groups if _one_to_one(group[1], codes)), None)
            if same is None:
                groups.append(([variable], codes))
            else:
                same[0].append(variable)
        by_name = {carriers[-1].name: own for carriers, own in groups}
        found = []
        for carriers, own in groups:
            name = carriers[-1].name
            is_number = not carriers[-1].values and len(np.unique(own)) > 2
            others = {other: values for other, values in by_name.items() if other != name}
            found.append(Property(name, tuple(carriers), self._covariates(name, own, others, is_number), is_number))
        return tuple(found)

    def _covariates(self, name: str, z: Ints, others: Mapping[str, Ints], is_number: bool) -> tuple[str, ...]:
        """Return the other properties, those first from which this one is not computed, as far as rows within their
        combinations still have different values of it.
        """
        above = self.program.ancestors(name)
        ordered = [other for other in others if other not in above] + [other for other in others if other in above]
        chosen: tuple[str, ...] = ()
        strata = np.zeros(len(z), np.int64)
        for other in ordered:
            finer = _codes(strata * (int(others[other].max()) + 1) + others[other])
            if _coverage(z, finer, is_number) >= LEAST_COVERAGE:
                strata, chosen = finer, (*chosen, other)
        return chosen

    def states(self, ids: Ints) -> dict[str, NDArray[np.float32]]:
        """Return the states `(N, D)` of the edited token at every site that writes."""
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(ids), BATCH):
            with torch.no_grad():
                states = self.model.run(torch.from_numpy(ids[start : start + BATCH]))
            for site in self.model.writing_sites:
                found.setdefault(site, []).append(states[site][:, self.token])
        final = self.model.sites[-1]
        found.setdefault(final, found[self.model.writing_sites[-1]])
        return {site: torch.cat(parts).numpy() for site, parts in found.items()}

    def case(self, number: int, prop: Property, read: Read) -> Iterator[tuple[Case, Truth]]:
        """Yield the case of one property and one part of the output, unless that output does not vary."""
        behaviour = Behaviour(self.model, self.token, read)
        if not behaviour.varies(self._rows):
            return
        truth = self.truth(prop, behaviour)
        if not truth.cells:
            return
        labels, n_classes = self.labels(prop, self.states(self._rows)[self.model.sites[-1]])
        case = Case(
            tier=3,
            number=number,
            name=self.program.name,
            twin="",
            seed=self.seed,
            instrument=behaviour.instrument(self._rows, [cell.place for cell in truth.cells]),
            labels=labels,
            n_classes=n_classes,
            groups=np.arange(ROWS),
            cells=tuple(truth.cells),
            read=behaviour.read,
        )
        yield case, truth

    def labels(self, prop: Property, final: NDArray[np.floating]) -> tuple[dict[str, Values], dict[str, int]]:
        """Return the values of a property and of its covariates in final states `(N, D)` of the token, and their
        numbers of classes (0: real).
        """
        labels: dict[str, Values] = {}
        for name in (prop.name, *prop.covariates):
            labels[name] = _codes(self.program.variable(name).codes(final))
        n_classes = {name: int(z.max()) + 1 for name, z in labels.items()}
        if prop.is_number:
            labels[prop.name] = final[:, prop.carriers[-1].dims[0]].astype(np.float64).round(5)
            n_classes[prop.name] = 0
        return labels, n_classes

    def truth(self, prop: Property, behaviour: Behaviour) -> Truth:
        """Return what exchanging a property's coordinates, and whole states, does at every site that has it; without
        cells if the output is the same in all prompts that agree with others in the labels.
        """
        labels, n_classes = self.labels(prop, self._states[self.model.sites[-1]])
        z, k = labels[prop.name], n_classes[prop.name]
        strata = np.zeros(len(z), np.int64)
        for name in prop.covariates:
            strata = _codes(strata * n_classes[name] + labels[name].astype(np.int64))
        start, goal = _pairs(z, strata, k, generator(self.seed, "pairs", prop.name))
        both = np.concatenate([start, goal])
        if not behaviour.varies(self._survey[both]):
            return Truth({})
        pairs = np.stack([np.arange(len(start)), len(start) + np.arange(len(start))], axis=1)
        found: dict[Cell, CellTruth] = {}
        dims = [dim for variable in prop.carriers for dim in variable.dims]
        states = self._states
        whole = behaviour.instrument(self._survey[both], [Place(site) for site in self.model.writing_sites])
        for site in self.model.writing_sites:
            varying = [dim for dim in dims if np.ptp(states[site][:, dim]) > 0.01]
            if not varying:
                continue
            place = Place(site)
            given = pairs, z[both], strata[both]
            direct = certify(Coordinates(whole, varying), place, *given, n_classes=k)
            exchanged = certify(whole, place, *given, n_classes=k)
            fresh = slice(0, PROBE_ROWS)
            accuracy = probe_accuracy([states[site][fresh]], z[fresh], n_classes=k)
            label, reason = agreed(direct, exchanged), left_out(direct, exchanged)
            found[Cell(place, prop.name)] = CellTruth("", label, accuracy, 1 / k if k else 0.0, reason)
        return Truth(found)


def agreed(direct: Certificate, exchanged: Certificate) -> Certificate:
    """Return the certificate of a property's own coordinates, in the band if that of the whole state has another
    label.
    """
    labels = {_label(direct), _label(exchanged)}
    return direct if labels == {direct.label} else replace(direct, label="band", sub_label="")


def left_out(direct: Certificate, exchanged: Certificate) -> LeftOut:
    """Return why a cell is in the band (see `agreed`): `collinear` if exchanging the property's own coordinates does
    nothing and exchanging the whole state does something; `cancelling` if both change outputs, and on average by
    nothing beyond the noise of the pairs; else `other`; "" if it is not in the band.
    """
    if agreed(direct, exchanged).label != "band":
        return ""
    if direct.label == "unused":
        return "collinear"
    cancels = all(c.e > UNUSED and _is_noise(c, FAINT) for c in (direct, exchanged))
    return "cancelling" if cancels else "other"


def _label(certificate: Certificate) -> str:
    """Return the label of a certificate, without what is used only by the noise of its pairs."""
    return "band" if certificate.label == "used" and _is_noise(certificate, USED) else certificate.label


def _is_noise(certificate: Certificate, bound: float) -> bool:
    """Return whether the mean effect is below a bound once the noise of the pairs is taken off."""
    return certificate.s**2 - certificate.noise**2 < bound**2


@dataclass(frozen=True)
class Behaviour:
    """Runs a program from edited states of one token, and reads its output at that token or at all others.

    Attributes:
        model: the compiled program.
        token: number of the edited token.
        read: `own` or `others`.
    """

    model: TracrModel
    token: int
    read: Read

    def outputs(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return the outputs `(B, V)` that are read from final states `(B, T, D)`; those of padding are 0."""
        y = self.model.outputs(states)
        if self.read == "own":
            return y[:, self.token]
        others = [t for t in range(1, ids.shape[1]) if t != self.token]
        is_word = (ids != self.model.program.padding)[:, others, None]
        return (y[:, others] * is_word).flatten(1)

    def varies(self, ids: Ints) -> bool:
        """Return whether the outputs that are read differ between prompts."""
        given = torch.from_numpy(ids[:: max(1, len(ids) // 1000)])
        with torch.no_grad():
            y = self.outputs(self.model.run(given)[self.model.sites[-1]], given)
        return bool(y.std(0).max() > 0.01)

    def instrument(self, ids: Ints, places: Sequence[Place]) -> ArrayInstrument:
        """Return an instrument that edits these prompts `(N, T)` at some places."""
        given = torch.from_numpy(ids)
        with torch.no_grad():
            parts = [self.model.run(given[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
        whole = {place.site: torch.cat([part[place.site] for part in parts]) for place in places}

        def run_from(site: str, rows: Ints, states: Mapping[str, Tensor], frozen_norms: bool) -> Tensor:
            found = []
            for start in range(0, len(rows), BATCH):
                some = torch.from_numpy(rows[start : start + BATCH])
                x = whole[site][some].clone()
                if "" in states:
                    x[:, self.token] = states[""][start : start + BATCH]
                final = self.model.run(given[some], site=site, states=x)[self.model.sites[-1]]
                found.append(self.outputs(final, given[some]))
            return torch.cat(found)

        return ArrayInstrument({place: whole[place.site][:, self.token].numpy() for place in places}, run_from)


class Coordinates(Instrument):
    """Shows some coordinates of an instrument's states as if they were the states: edits leave all others alone.

    Args:
        whole: the instrument.
        dims: the coordinates.
    """

    def __init__(self, whole: Instrument, dims: Sequence[int]) -> None:
        self._whole, self._dims = whole, list(dims)

    @property
    def places(self) -> tuple[Place, ...]:
        return self._whole.places

    @property
    def n_rows(self) -> int:
        return self._whole.n_rows

    def clean(self) -> Floats:
        return self._whole.clean()

    def states(self, place: Place) -> NDArray[np.float32]:
        return self._whole.states(place)[:, self._dims]

    def run_from(self, site: str, rows: Ints, states: Mapping[str, Tensor], *, frozen_norms: bool = False) -> Tensor:
        edited = {}
        for position, given in states.items():
            x = torch.from_numpy(self._whole.states(Place(site, position))[rows]).clone()
            x[:, self._dims] = given
            edited[position] = x
        return self._whole.run_from(site, rows, edited, frozen_norms=frozen_norms)


def _codes(values: NDArray[np.int64]) -> Ints:
    return np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _one_to_one(first: Ints, second: Ints) -> bool:
    n = len(np.unique(first))
    return n == len(np.unique(second)) == len(np.unique(first * (int(second.max()) + 1) + second))


def _coverage(z: Ints, strata: Ints, is_number: bool) -> float:
    """Return the share of rows that are in a class with enough rows in their stratum, beside another such class; for
    numbers, in a stratum with enough rows and several values.
    """
    k, least = int(z.max()) + 1, LEAST_ROWS * len(z) / ROWS
    counts = np.bincount(strata * k + z, minlength=(int(strata.max()) + 1) * k).reshape(-1, k)
    if is_number:
        good = ((counts > 0).sum(1) > 1) & (counts.sum(1) >= least)
        return float(good[strata].mean())
    enough = counts >= least
    enough &= enough.sum(1, keepdims=True) >= 2
    return float(enough[strata, z].mean())


def _pairs(z: Values, strata: Ints, n_classes: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return rows to edit and, for each, a random row of the same stratum and another value; classes with few rows in
    their stratum are left out, as `probing use` leaves them out.
    """
    codes = np.unique(z, return_inverse=True)[1].astype(np.int64).reshape(-1)
    k, least = int(codes.max()) + 1, LEAST_ROWS * len(z) / ROWS if n_classes else 1
    counts = np.bincount(strata * k + codes, minlength=(int(strata.max()) + 1) * k).reshape(-1, k)
    enough = counts >= least
    enough &= enough.sum(1, keepdims=True) >= 2
    rows = rng.permutation(np.flatnonzero(enough[strata, codes]))
    ordered = rows[np.lexsort((codes[rows], strata[rows]))]
    own_stratum, own_cell = strata[ordered], strata[ordered] * k + codes[ordered]
    first, size = _runs(own_stratum)
    begins, same = _runs(own_cell)
    start = rng.permutation(len(ordered))[:PAIRS]
    step = rng.integers(0, size[start] - same[start])  # among the rows of the stratum that are not of the own class
    place = begins[start] - first[start]
    goal = first[start] + np.where(step < place, step, step + same[start])
    return ordered[start], ordered[goal]


def _runs(values: Ints) -> tuple[Ints, Ints]:
    """Return, for each of sorted values, where its run of equal values begins and how long it is."""
    _, begins, codes, sizes = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    return begins[codes], sizes[codes]
