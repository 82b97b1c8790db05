"""Suites: sequences of (Case, Truth) to score rules on, which generators for each tier build one at a time by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from probing.errors import BadParameter, unknown_name
from probing.plantbench import tier0
from probing.plantbench.case import Case, Truth
from probing.plantbench.knobs import DEVELOPMENT_SEEDS, Knobs, held_out, holdout_seed
from probing.plantbench.tier0 import CASES
from probing.seeds import child_seed

Tier = Callable[[int], Iterable[tuple[Case, Truth]]]
TIERS = (0, 1, 2, 3)


def _tier(number: int, function: str) -> Callable[..., Any]:
    """Return a function of a tier, whose module is loaded only now: those after tier 0 need transformers, which
    takes seconds.
    """
    found: Callable[..., Any] = getattr(import_module(f"probing.plantbench.tier{number}"), function)
    return found


def _of_development(number: int, programs: Sequence[str]) -> Tier:
    if number == 2:
        _tier(2, "case_folders")()  # refused now, rather than after the minutes that the other tiers take
        shipped = _tier(2, "shipped")
        return lambda seed: shipped()
    if number == 3:
        known = [folder.name for folder in import_module("probing.plantbench.tier3_models").shipped()]
        for name in programs:
            if name not in known:
                raise unknown_name("program", name, known)
        return lambda seed: _tier(3, "cases")(seed, names=programs)
    return _tier(number, "cases")


@dataclass(frozen=True)
class Suite:
    """Iterates over (Case, Truth) for some tiers and seeds; each iteration builds them anew, one at a time.

    Attributes:
        seeds: seeds of the generators.
        tiers: by number of the tier, a function that returns its cases for a seed.
        few: by number of the tier, the seeds to use instead of `seeds`, for tiers whose cases take long.
    """

    seeds: tuple[int, ...]
    tiers: Mapping[int, Tier]
    few: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Case, Truth]]:
        for number, tier in self.tiers.items():
            for seed in self.few.get(number, self.seeds):
                yield from tier(seed)


def _few(seeds: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return a tenth of the seeds for compiled cases, each of which takes as long as many of vectors. Trained ones
    depend on no seed.
    """
    tenth = tuple(seeds[: max(1, len(seeds) // 10)])
    return {1: tenth, 2: (0,), 3: tenth}


def development(
    *, seeds: Sequence[int] = DEVELOPMENT_SEEDS, tiers: Sequence[int] = TIERS, programs: Sequence[str] = ()
) -> Suite:
    """Return the frozen development suite; `seeds=CI_SEEDS` gives a quick one. `programs` are the names of the programs
    of tier 3; none means all.

    Raises:
        UnknownName: there is no such program.
        BadParameter: there is no such tier, or a seed is not a development seed.
        CorpusError: tier 2 or 3 is asked for in an installed package, which lacks its models.
    """
    unknown = [tier for tier in tiers if tier not in TIERS]
    if unknown or not set(seeds) <= set(DEVELOPMENT_SEEDS):
        known = f"tiers {list(TIERS)}, seeds 0 to {DEVELOPMENT_SEEDS[-1]}"
        raise BadParameter("no such development suite", needed=known, found=f"tiers {list(tiers)}, seeds {list(seeds)}")
    return Suite(tuple(seeds), {tier: _of_development(tier, programs) for tier in tiers}, _few(seeds))


def vectors(knobs: Knobs, *, seeds: Sequence[int] = DEVELOPMENT_SEEDS, numbers: Sequence[int] = tuple(CASES)) -> Suite:
    """Return a suite of tier 0 with other knobs; scores at several of them show power against n, gain, ρ or d."""
    return Suite(tuple(seeds), {0: lambda seed: tier0.cases(seed, knobs=knobs, numbers=numbers)})


def held_out_suite(version: str, *, tiers: Sequence[int] = TIERS, draws: int = 20, models: int = 3) -> Suite:
    """Return the suite of the held-out configuration: knobs from wider ranges, and seeds that only the name of the
    version determines. Run it once per release.

    Tier 1 has a tenth of the draws of tier 0; tier 2 trains `models` models. The programs of tier 3 are the same, with
    new prompts.
    """
    root = holdout_seed(version)
    made: dict[int, Tier] = {
        0: lambda draw: tier0.cases(child_seed(root, draw), knobs=held_out(version, draw)),
        1: lambda draw: _tier(1, "cases")(child_seed(root, draw)),
        2: lambda draw: _tier(2, "held_out")(version, draw),
        3: lambda draw: _tier(3, "cases")(child_seed(root, draw)),
    }
    few = _few(range(draws)) | {2: tuple(range(models))}
    return Suite(tuple(range(draws)), {tier: made[tier] for tier in tiers}, few)
