"""Tier 2: the trained and certified models in the repository, and new models of a held-out configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from probing.errors import CorpusError
from probing.plantbench.built import of_training
from probing.plantbench.case import Case, Truth
from probing.plantbench.certifying import certified
from probing.plantbench.folders import read_case
from probing.plantbench.knobs import holdout_seed
from probing.plantbench.tier1 import case_of
from probing.plantbench.tier2_models import FAMILIES, Recipe, trained
from probing.seeds import child_seed, generator

SHIPPED = Path(__file__).resolve().parents[2] / "datasets" / "plantbench"
ROWS, PAIRS, PROBE_ROWS = 2000, 1024, 8192


def shipped(folder: Path | None = None, *, rows: int = ROWS) -> Iterator[tuple[Case, Truth]]:
    """Yield every case in a folder of cases (None: those in the repository), sorted by name.

    Raises:
        CorpusError: the folder has no case.
    """
    for one in case_folders(folder):
        yield read_case(one, rows=rows)


def case_folders(folder: Path | None = None) -> list[Path]:
    """Return the folders of single cases in a folder of cases (None: that of the repository), sorted by name.

    Raises:
        CorpusError: there is no case; installed packages do not contain those of the repository.
    """
    place = SHIPPED if folder is None else folder
    found = sorted(path.parent for path in place.glob("*/truth.json"))
    if not found:
        raise CorpusError(
            "the trained models of tier 2 are not here",
            needed="folders with truth.json; they are part of the repository, not of an installed package",
            found="none",
            where="" if folder is None else str(folder),
            next_step="leave tier 2 out (--tier 0 --tier 1), or run in a clone of the repository",
        )
    return found


def held_out(version: str, draw: int) -> Iterator[tuple[Case, Truth]]:
    """Train and certify a new model, and yield its case. The family alternates with `draw`; width, heads, identities
    and dropout are drawn from wider ranges.
    """
    rng = generator(holdout_seed(version), "tier 2", draw)
    recipe = Recipe(
        family=FAMILIES[draw % len(FAMILIES)],
        seed=child_seed(holdout_seed(version), "tier 2", draw),
        width=int(rng.choice([48, 64, 80])),
        heads=int(rng.choice([2, 4])),
        identities=int(rng.integers(6, 13)),
        dropout=float(rng.choice([0.0, 0.05])),
    )
    built = of_training(recipe, trained(recipe))
    claim = replace(built.claim, intended={})  # certification alone decides: this recipe has never been tried
    truth = certified(claim, seed=child_seed(recipe.seed, "certificate"), n_pairs=PAIRS, probe_rows=PROBE_ROWS)
    yield case_of(replace(built, claim=claim), truth, ROWS), truth
