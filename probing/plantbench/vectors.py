"""Latent vectors of tier 0: rows are drawn, written into rotated states, and read by a model of one RMSNorm.

In the model's own basis the coordinates are: a constant 2, the codes of A and C, the slots of B, and noise, of which
some directions are read. States are these vectors after a rotation. The noise in B's slots changes sign with its code
(`plants.turned`), so that both states of a minimal pair have the same length: a code that is not read then has no
effect at all, not even through the norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Place
from probing.plantbench.case import groups_of
from probing.plantbench.knobs import Knobs
from probing.plantbench.plants import CONST, FIRST, SITE, A, C, Latents, Plant, Values
from probing.seeds import generator
from probing.use.edited_models.arrays import ArrayInstrument

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]
IDENTITY_SLOTS = 16


def drawn(plant: Plant, knobs: Knobs, n: int, *seeds: int | str) -> Latents:
    """Draw n rows (labels, hidden bits, noise) and return their latent values; the rows of a group have part of their
    noise in common.
    """
    rng = generator(0, "plantbench", *seeds)
    a, c = rng.integers(0, 2, n), rng.integers(0, 2, n)
    groups = groups_of(knobs, n, generator(0, "plantbench", *seeds, "groups"))
    types = rng.integers(0, knobs.identities, n) if plant.by_identity else None
    if plant.by_group:
        of_group = np.unique(groups, return_index=True)[1]
        z = plant.draw(rng, a[of_group], c[of_group], None, knobs)[groups]
    else:
        z = plant.draw(rng, a, c, types, knobs)
    hidden = rng.choice([-1.0, 1.0], n)
    noise = {position: _noise(plant, knobs, types, groups, position, seeds) for position in plant.positions}
    return Latents(a, c, z, hidden, groups, types, noise)


def _noise(
    plant: Plant, knobs: Knobs, types: Ints | None, groups: Ints, position: str, seeds: tuple[int | str, ...]
) -> Floats:
    noise = knobs.noise * _normals(groups.tobytes(), knobs.width, knobs.group_share, (*seeds, position))
    if types is not None:  # the identity's own vector stands in slots of which most are read
        rng = generator(0, "plantbench", *seeds[:-1], "identities")
        start = FIRST + plant.slots
        own = rng.standard_normal((knobs.identities, IDENTITY_SLOTS), dtype=np.float32)
        noise[:, start : start + IDENTITY_SLOTS] = knobs.noise * own[types]
    noise[:, [CONST, *(FIRST + slot for slot in plant.silent)]] = 0.0
    return np.asarray(noise)


@lru_cache(maxsize=4)  # twins are built one after the other and share their rows
def _normals(codes: bytes, width: int, share: float, seeds: tuple[int | str, ...]) -> Floats:
    """Draw `(n, d)` normal values of variance 1, of which rows of a group (codes as int64) share a part."""
    rng, groups = generator(0, "plantbench", *seeds, "noise"), np.frombuffer(codes, np.int64)
    own = rng.standard_normal((len(groups), width), dtype=np.float32)
    of_group = rng.standard_normal((int(groups[-1]) + 1, width), dtype=np.float32)
    found = np.float32(np.sqrt(1 - share)) * own + (np.float32(np.sqrt(share)) * of_group)[groups]
    found.setflags(write=False)
    return found


@dataclass(frozen=True, eq=False)
class World:
    """Holds the model of one case: the rotation of states, the weights by which it reads them, and the gain of its
    norm, the root mean square of states, which undoes the norm's scaling on average.
    """

    plant: Plant
    knobs: Knobs
    rotation: Floats
    weights: Floats
    reads: Floats
    norm_gain: float

    @classmethod
    def of(cls, plant: Plant, knobs: Knobs, sample: Latents, *seeds: int | str) -> World:
        """Draw the rotation and the read weights by the seeds, set the gain from the length of the states of `sample`,
        and return the world.
        """
        rng = generator(0, "plantbench", *seeds, "model")
        rotation = np.linalg.qr(rng.standard_normal((knobs.width, knobs.width)))[0]
        reads = rng.standard_normal((2 + plant.slots, knobs.answers))
        reads *= knobs.gain * np.sqrt(knobs.answers) / np.linalg.norm(reads, axis=1, keepdims=True)
        on_noise = knobs.noise_gain * rng.standard_normal((knobs.noise_reads + plant.slots, knobs.answers))
        weights = np.zeros((knobs.width, knobs.answers))
        weights[[A, C]] = reads[:2]
        weights[FIRST : FIRST + plant.slots] = plant.linear(reads[2:], on_noise[knobs.noise_reads :])
        start = FIRST + plant.slots
        weights[start : start + knobs.noise_reads] = on_noise[: knobs.noise_reads]
        world = cls(plant, knobs, rotation, weights, reads[2:], 1.0)
        length = np.mean([np.mean(h**2, dtype=np.float64) for h in world.written(sample, sample.z).values()])
        return cls(plant, knobs, rotation, weights, reads[2:], float(np.sqrt(length)))

    def written(self, latents: Latents, z: Values) -> dict[str, NDArray[np.float32]]:
        """Return, by position, the states `(n, d)` of rows whose value of B is z."""
        found = {}
        for position, noise in latents.noise.items():
            h = noise.copy()
            h[:, CONST] = 2.0
            h[:, A] += 2.0 * latents.a - 1
            h[:, C] += 2.0 * latents.c - 1
            own = slice(FIRST, FIRST + self.plant.slots)
            h[:, own] = self.plant.write(h[:, own], z, latents)
            found[position] = h @ self.rotation.astype(np.float32)
        return found

    def instrument(self, states: Mapping[str, NDArray[np.float32]]) -> ArrayInstrument:
        """Return an instrument that runs the model on these rows."""
        clean = {position: torch.from_numpy(h) for position, h in states.items()}
        reader = _Reader(self, clean)
        return ArrayInstrument({Place(SITE, p): h for p, h in states.items()}, reader, logits=True, has_norms=True)


class _Reader:
    """Computes y = squash(u) W at the first position + what the plant reads besides; u = RMSnorm(h) in the model's
    basis.
    """

    def __init__(self, world: World, clean: Mapping[str, Tensor]) -> None:
        self._plant, self._squash, self._clean = world.plant, world.knobs.squash, clean
        back = world.rotation.T * world.norm_gain
        self._back = torch.from_numpy(back.astype(np.float32))
        self._to_slots = self._back[:, : FIRST + world.plant.slots].contiguous()
        self._weights = torch.from_numpy(world.weights.astype(np.float32))
        self._to_answers = torch.from_numpy((back @ world.weights).astype(np.float32))
        self._reads = torch.from_numpy(world.reads.astype(np.float32))

    def __call__(self, site: str, rows: NDArray[np.int64], given: Mapping[str, Tensor], frozen_norms: bool) -> Tensor:
        read = self._plant.positions if self._plant.more else self._plant.positions[:1]
        normed = {position: self._normed(position, rows, given.get(position), frozen_norms) for position in read}
        first = normed[self._plant.positions[0]]
        y = first @ self._to_answers if self._squash == "linear" else self._squashed(first @ self._back) @ self._weights
        if self._plant.more is None:
            return y
        return y + self._plant.more({position: h @ self._to_slots for position, h in normed.items()}, self._reads)

    def _normed(self, position: str, rows: NDArray[np.int64], given: Tensor | None, frozen_norms: bool) -> Tensor:
        if given is not None and not frozen_norms:
            return given * torch.rsqrt((given**2).mean(1, keepdim=True))
        clean = self._clean[position].index_select(0, torch.from_numpy(rows))
        scale = torch.rsqrt((clean**2).mean(1, keepdim=True))
        return (clean if given is None else given) * scale

    def _squashed(self, u: Tensor) -> Tensor:
        return 2 * torch.tanh(u / 2) if self._squash == "tanh" else 2 * torch.nn.functional.softsign(u / 2)
