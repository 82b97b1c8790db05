"""Tier 0: latent vectors. Cases 1 to 13 and 16 to 22, built and certified in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from probing.errors import unknown_name
from probing.instrument import Place
from probing.plantbench import tier0_codes as codes
from probing.plantbench import tier0_reads as reads
from probing.plantbench.case import Case, Cell, CellTruth, Truth, Values
from probing.plantbench.knobs import Knobs
from probing.plantbench.oracle import certify, probe_accuracy, truth_of
from probing.plantbench.plants import FIRST, SITE, Latents, Plant, flipped
from probing.plantbench.vectors import World, drawn
from probing.seeds import generator

Builder = Callable[[bool, Knobs, int], Plant]
PLANTS: Mapping[int, Builder] = MappingProxyType({
    1: codes.plain, 2: codes.absent, 3: codes.high_norm, 4: codes.unequal_length, 5: codes.correlated,
    6: reads.cancelled, 7: reads.opposed, 8: codes.weak, 9: codes.distributed, 10: reads.product,
    11: reads.redundant, 12: reads.self_repair, 13: reads.dormant, 16: reads.interaction, 17: reads.stratum_code,
    18: codes.five_classes, 19: codes.continuous, 20: codes.rare, 21: codes.identity_label, 22: reads.dose_trap,
})  # fmt: skip
WITHOUT_USED_TWIN = (2,)


def cases(
    seed: int, *, knobs: Knobs | None = None, numbers: Sequence[int] = tuple(PLANTS)
) -> Iterator[tuple[Case, Truth]]:
    """Both twins of every case, one after the other.

    Raises:
        PlantFailed: a case is not what it was built to be.
    """
    for number in numbers:
        yield build(number, "unused", seed, knobs=knobs)
        if number not in WITHOUT_USED_TWIN:
            yield build(number, "used", seed, knobs=knobs)


def build(number: int, twin: Literal["unused", "used"], seed: int, *, knobs: Knobs | None = None) -> tuple[Case, Truth]:
    """One case and its certified truth. Twins share their rows; they differ in what is read (4: in what is written).

    Raises:
        UnknownName: no such case in tier 0.
        PlantFailed: it is not what it was built to be.
    """
    if number not in PLANTS or (twin == "used" and number in WITHOUT_USED_TWIN):
        known = [f"{k}.{t}" for k in PLANTS for t in ("unused", "used") if (k, t) != (2, "used")]
        raise unknown_name("case of tier 0", f"{number}.{twin}", known)
    knobs = knobs or Knobs()
    plant = PLANTS[number](twin == "used", knobs, seed)
    path = ("tier 0", number, seed)
    sample = drawn(plant, knobs, knobs.n_pairs, *path, "pairs")
    world = World.of(plant, knobs, sample, *path)
    key = f"0.{number:02d}.{twin}.{seed}"
    truth = _certified(world, sample, key, generator(0, "plantbench", *path, "flips"))
    return _case(world, number, twin, seed, path), truth


def _case(world: World, number: int, twin: Literal["unused", "used"], seed: int, path: tuple[int | str, ...]) -> Case:
    plant, knobs = world.plant, world.knobs
    rows = drawn(plant, knobs, knobs.n // 2 if knobs.twins else knobs.n, *path, "rows")
    states, z, times = world.written(rows, rows.z), rows.z, 1
    if knobs.twins:
        other = flipped(generator(0, "plantbench", *path, "twins"), z, plant.n_classes)
        states, z, times = _beside(states, world.written(rows, other)), np.concatenate([z, other]), 2
    half = len(rows.z)
    return Case(
        tier=0, number=number, name=PLANTS[number].__name__, twin=twin, seed=seed, instrument=world.instrument(states),
        labels={"B": z, "A": np.tile(rows.a, times), "C": np.tile(rows.c, times)},
        n_classes={"B": plant.n_classes, "A": 2, "C": 2}, groups=np.tile(rows.groups, times),
        cells=tuple(Cell(Place(SITE, position), "B") for position in plant.positions),
        types=None if rows.types is None else np.tile(rows.types, times),
        twins=np.roll(np.arange(2 * half), half) if knobs.twins else None,
    )  # fmt: skip


def _certified(world: World, sample: Latents, key: str, rng: np.random.Generator) -> Truth:
    """Truth of all cells, on pairs of which the first rows are drawn as a case's rows are."""
    plant = world.plant
    other = flipped(rng, sample.z, plant.n_classes)
    states = _beside(world.written(sample, sample.z), world.written(sample, other))
    z: Values = np.concatenate([sample.z, other])
    instrument = world.instrument(states)
    n = len(sample.z)
    pairs = np.stack([np.arange(n), n + np.arange(n)], axis=1)
    strata = np.tile(2 * sample.a + sample.c, 2)
    found: dict[Cell, CellTruth] = {}
    for position in plant.positions:
        cell = Cell(Place(SITE, position), "B")
        certificate = certify(instrument, cell.place, pairs, z, strata, n_classes=plant.n_classes)
        mixed = pairs.reshape(-1)
        accuracy = probe_accuracy(_features(world, states[position][mixed]), z[mixed], n_classes=plant.n_classes)
        found[cell] = truth_of(cell, certificate, plant.intended[position], accuracy, plant.n_classes, where=key,
                               sub_label=plant.sub_label)  # fmt: skip
    return Truth(found)


def _features(world: World, states: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """What the oracle's probes read: the states; and where only products tell, the product of the planted slots."""
    if not world.plant.products:
        return [states]
    slots = states @ world.rotation[FIRST : FIRST + world.plant.slots].T.astype(np.float32)
    return [states, slots.prod(1, keepdims=True)]


def _beside(
    one: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    return {position: np.concatenate([one[position], other[position]]) for position in one}
