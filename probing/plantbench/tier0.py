"""Tier 0: latent vectors. `CASES` lists the cases; each is built and certified in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Instrument, Place
from probing.errors import PlantFailed, unknown_name
from probing.plantbench import tier0_codes as codes
from probing.plantbench import tier0_wider as wider
from probing.plantbench.case import Case, Cell, CellTruth, Certificate, Truth, Values, joints_of
from probing.plantbench.certifying import USED, certify, check_intention, probe_accuracy, truth_of
from probing.plantbench.knobs import Knobs
from probing.plantbench.plants import FIRST, SITE, Builder, KnobsOf, Latents, flipped
from probing.plantbench.vectors import World, drawn
from probing.seeds import generator

TwinName = Literal["unused", "used"]


@dataclass(frozen=True)
class Spec:
    """Specifies one case of tier 0.

    Attributes:
        name: name of the case as printed.
        build: function that returns the plant of a twin, from knobs and seed.
        knobs: function that returns the case's knobs from the common knobs and the seed; None: the common knobs are
            used.
        twins: names of the twins that it has.
    """

    name: str
    build: Builder
    knobs: KnobsOf | None = None
    twins: tuple[TwinName, ...] = ("unused", "used")


CASES: Mapping[int, Spec] = MappingProxyType(
    {
        1: Spec("plain", codes.plain),
        2: Spec("absent", codes.absent, twins=("unused",)),
        3: Spec("high_norm", codes.high_norm),
        4: Spec("unequal_length", codes.unequal_length),
        5: Spec("correlated", codes.correlated),
        6: Spec("cancelled", codes.cancelled),
        7: Spec("opposed", codes.opposed),
        8: Spec("weak", codes.weak),
        9: Spec("distributed", codes.distributed),
        10: Spec("product", codes.product),
        11: Spec("redundant", codes.redundant),
        12: Spec("self_repair", codes.self_repair),
        13: Spec("dormant", codes.dormant),
        16: Spec("interaction", codes.interaction),
        17: Spec("stratum_code", codes.stratum_code),
        18: Spec("five_classes", codes.five_classes),
        19: Spec("continuous", codes.continuous),
        20: Spec("rare", codes.rare),
        21: Spec("identity_label", codes.identity_label),
        22: Spec("dose_trap", codes.dose_trap),
        23: Spec("four_classes", wider.many_classes(0, zipf=False), wider.fewer_rows),
        24: Spec("four_zipf_classes", wider.many_classes(0, zipf=True), wider.fewer_rows),
        25: Spec("six_classes", wider.many_classes(1, zipf=False), wider.fewer_rows),
        26: Spec("six_zipf_classes", wider.many_classes(1, zipf=True), wider.fewer_rows),
        27: Spec("seventeen_classes", wider.many_classes(2, zipf=False), wider.fewer_rows),
        28: Spec("seventeen_zipf_classes", wider.many_classes(2, zipf=True), wider.fewer_rows),
        29: Spec("zipf_documents", wider.documents, wider.zipf_documents),
        30: Spec("treebank_documents", wider.documents, wider.treebank_documents),
        31: Spec("majority", wider.majority),
        32: Spec("effect_below", wider.of_size(0), twins=("used",)),
        33: Spec("effect_at", wider.of_size(1), twins=("used",)),
        34: Spec("effect_above", wider.of_size(2), twins=("used",)),
        35: Spec("effect_well_above", wider.of_size(3), twins=("used",)),
        36: Spec("small_opposed", wider.small_opposed, twins=("used",)),
        37: Spec("as_wide_as_long", codes.plain, wider.wide(0)),
        38: Spec("wider_than_long", codes.plain, wider.wide(1)),
        39: Spec("groups_of_one", codes.plain, wider.groups_of_size(0)),
        40: Spec("groups_of_two", codes.plain, wider.groups_of_size(1)),
        41: Spec("groups_of_seven", codes.plain, wider.groups_of_size(2)),
        42: Spec("mixed_groups", codes.plain, wider.mixed_groups),
        43: Spec("crossing_groups", wider.crossing_groups, wider.even_groups),
    }
)


MOST_STEPS, CLOSE = 12, 1e-4  # of finding a gain


def cases(
    seed: int, *, knobs: Knobs | None = None, numbers: Sequence[int] = tuple(CASES)
) -> Iterator[tuple[Case, Truth]]:
    """Yield each twin of every case of tier 0.

    Raises:
        PlantFailed: the certified label of a cell contradicts the intended one.
    """
    for number in numbers:
        for twin in CASES[number].twins:
            yield build(number, twin, seed, knobs=knobs)


def build(number: int, twin: TwinName, seed: int, *, knobs: Knobs | None = None) -> tuple[Case, Truth]:
    """Build one case of tier 0 and return it with its certified truth. Twins have the same rows; they differ in what
    the output depends on (in case 4, in what is written into the states).

    Raises:
        UnknownName: tier 0 has no such case.
        PlantFailed: the certified label of a cell contradicts the intended one.
    """
    if number not in CASES or twin not in CASES[number].twins:
        known = [f"{k}.{t}" for k, spec in CASES.items() for t in spec.twins]
        raise unknown_name("case of tier 0", f"{number}.{twin}", known)
    spec, knobs = CASES[number], knobs or Knobs()
    own = spec.knobs(knobs, seed) if spec.knobs else knobs
    world, sample = world_of(number, twin, seed, own)
    key = f"0.{number:02d}.{twin}.{seed}"
    truth = _certified(world, sample, key, _flips(number, seed))
    return _case(world, number, twin, seed), truth


def world_of(number: int, twin: TwinName, seed: int, knobs: Knobs) -> tuple[World, Latents]:
    """Return the model of a case and the rows on which it is certified, in groups of equal size.

    Args:
        number, twin, seed: those of the case.
        knobs: knobs of the case.
    """
    plant, path = CASES[number].build(twin == "used", knobs, seed), _path(number, seed)
    even = knobs if knobs.grouping == "equal" else replace(knobs, grouping="equal", group_size=1)
    sample = drawn(plant, even, knobs.n_pairs, *path, "pairs")
    world = World.of(plant, knobs, sample, *path)
    return (_with_target(world, sample, number, seed) if plant.target else world), sample


def _path(number: int, seed: int) -> tuple[int | str, ...]:
    return "tier 0", number, seed


def _flips(number: int, seed: int) -> np.random.Generator:
    return generator(0, "plantbench", *_path(number, seed), "flips")


def _with_target(world: World, sample: Latents, number: int, seed: int) -> World:
    """Return the world read with the gain at which the oracle finds the size that was meant at the first position.

    Raises:
        PlantFailed: no gain gives that size.
    """
    plant, gain = world.plant, USED
    place = Place(SITE, plant.positions[0])
    for _ in range(MOST_STEPS):
        assert plant.at_gain is not None
        world = World.of(plant.at_gain(gain), world.knobs, sample, *_path(number, seed))
        found = _Pairs.of(world, sample, _flips(number, seed)).certify(place).s
        if abs(found / plant.target - 1) < CLOSE:
            return world
        gain *= plant.target / found
    raise PlantFailed(
        "no gain gives the effect that was meant",
        needed=f"S {plant.target:.4f}",
        found=f"{found:.4f}",
        where=f"case {number} of tier 0, seed {seed}",
    )


def _case(world: World, number: int, twin: TwinName, seed: int) -> Case:
    plant, knobs, path = world.plant, world.knobs, _path(number, seed)
    rows = drawn(plant, knobs, knobs.n // 2 if knobs.twins else knobs.n, *path, "rows")
    states, z, times = world.written(rows, rows.z), rows.z, 1
    if knobs.twins:
        other = flipped(generator(0, "plantbench", *path, "twins"), z, plant.n_classes)
        states, z, times = _beside(states, world.written(rows, other)), np.concatenate([z, other]), 2
    half = len(rows.z)
    return Case(
        tier=0,
        number=number,
        name=CASES[number].name,
        twin=twin,
        seed=seed,
        instrument=world.instrument(states),
        labels={"B": z, "A": np.tile(rows.a, times), "C": np.tile(rows.c, times)},
        n_classes={"B": plant.n_classes, "A": 2, "C": 2},
        groups=np.tile(rows.groups, times),
        cells=tuple(Cell(Place(SITE, position), "B") for position in plant.positions),
        types=None if rows.types is None else np.tile(rows.types, times),
        twins=np.roll(np.arange(2 * half), half) if knobs.twins else None,
    )


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Minimal pairs of a world, of which the first rows are drawn as a case's rows are.

    Attributes:
        states: `(2n, d)` by position: of n rows, then of the same rows with another value.
        z, strata: `(2n,)`.
        pairs: `(n, 2)`.
    """

    instrument: Instrument
    states: Mapping[str, NDArray[np.float32]]
    z: Values
    strata: NDArray[np.int64]
    pairs: NDArray[np.int64]
    n_classes: int

    @classmethod
    def of(cls, world: World, sample: Latents, rng: np.random.Generator) -> _Pairs:
        n, k = len(sample.z), world.plant.n_classes
        other = flipped(rng, sample.z, k)
        states = _beside(world.written(sample, sample.z), world.written(sample, other))
        strata = np.tile(2 * sample.a + sample.c, 2)
        pairs = np.stack([np.arange(n), n + np.arange(n)], axis=1)
        return cls(world.instrument(states), states, np.concatenate([sample.z, other]), strata, pairs, k)

    def certify(self, places: Place | Sequence[Place]) -> Certificate:
        return certify(self.instrument, places, self.pairs, self.z, self.strata, n_classes=self.n_classes)


def _certified(world: World, sample: Latents, key: str, rng: np.random.Generator) -> Truth:
    """Return the truth of all cells, and of the positions together."""
    plant, both = world.plant, _Pairs.of(world, sample, rng)
    found: dict[Cell, CellTruth] = {}
    for position in plant.positions:
        cell = Cell(Place(SITE, position), "B")
        mixed = both.pairs.reshape(-1)
        features = _features(world, both.states[position][mixed])
        accuracy = probe_accuracy(features, both.z[mixed], n_classes=plant.n_classes)
        found[cell] = truth_of(
            cell,
            both.certify(cell.place),
            plant.intended[position],
            accuracy,
            plant.n_classes,
            where=key,
            sub_label=plant.sub_label,
        )
    joints = {joint: both.certify(joint.places) for joint in joints_of(found)}
    for joint, certificate in joints.items():
        check_intention(joint, certificate, plant.joint, where=key)
    return Truth(found, joints)


def _features(world: World, states: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return what the oracle's probes read: the states; or, where only products carry the property, the product of the
    planted slots.
    """
    if not world.plant.products:
        return [states]
    slots = states @ world.rotation[FIRST : FIRST + world.plant.slots].T.astype(np.float32)
    return [states, slots.prod(1, keepdims=True)]


def _beside(
    one: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    return {position: np.concatenate([one[position], other[position]]) for position in one}
