"""Suites: which cases are scored, made one at a time; tiers are generators of (Case, Truth) by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from probing.errors import BadParameter
from probing.plantbench import tier0, tier1
from probing.plantbench.case import Case, Truth
from probing.plantbench.knobs import DEVELOPMENT_SEEDS, Knobs, held_out, holdout_seed
from probing.seeds import child_seed

Tier = Callable[[int], Iterable[tuple[Case, Truth]]]
TIERS: Mapping[int, Tier] = {0: tier0.cases, 1: tier1.cases}


@dataclass(frozen=True)
class Suite:
    """Cases of some tiers and seeds; iterating makes them anew, one at a time.

    Attributes:
        seeds: of the generators.
        tiers: generators by number.
    """

    seeds: tuple[int, ...]
    tiers: Mapping[int, Tier]

    def __iter__(self) -> Iterator[tuple[Case, Truth]]:
        for tier in self.tiers.values():
            for seed in self.seeds:
                yield from tier(seed)


def development(*, seeds: Sequence[int] = DEVELOPMENT_SEEDS, tiers: Sequence[int] = tuple(TIERS)) -> Suite:
    """The frozen development suite; `seeds=CI_SEEDS` for a quick one.

    Raises:
        BadParameter: a tier that is not built, or a seed that is not one of development.
    """
    unknown = [tier for tier in tiers if tier not in TIERS]
    if unknown or not set(seeds) <= set(DEVELOPMENT_SEEDS):
        known = f"tiers {sorted(TIERS)}, seeds 0 to {DEVELOPMENT_SEEDS[-1]}"
        raise BadParameter("no such development suite", needed=known,
                           found=f"tiers {list(tiers)}, seeds {list(seeds)}")  # fmt: skip
    return Suite(tuple(seeds), {tier: TIERS[tier] for tier in tiers})


def vectors(
    knobs: Knobs, *, seeds: Sequence[int] = DEVELOPMENT_SEEDS, numbers: Sequence[int] = tuple(tier0.PLANTS)
) -> Suite:
    """Tier 0 with other knobs: power against n, gain, ρ or d is a score for each of several of these."""
    return Suite(tuple(seeds), {0: lambda seed: tier0.cases(seed, knobs=knobs, numbers=numbers)})


def held_out_vectors(version: str, *, draws: int = 20) -> Suite:
    """Tier 0 of the held-out configuration: wider knobs, seeds that only the named version gives."""

    def tier(draw: int) -> Iterator[tuple[Case, Truth]]:
        return tier0.cases(child_seed(holdout_seed(version), draw), knobs=held_out(version, draw))

    return Suite(tuple(range(draws)), {0: tier})
