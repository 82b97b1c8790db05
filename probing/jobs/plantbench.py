"""Defines PlantbenchJob, the checked options of scoring verdicts on models for which it is known what they use."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

import probing as pb
from probing.errors import ConfigError
from probing.jobs import Job, Many, option

if TYPE_CHECKING:
    from probing.plantbench.scorecard import Scorecard


class PlantbenchJob(Job):
    """Count how often verdicts are wrong, on models for which it is known what they use.

    It scores the protocol of this package and the usual rules of the literature. Tier 0 has random vectors with a known
    output as models, tier 1 transformers with constructed weights, tier 2 trained transformers, and tier 3 programs
    that tracr compiled into transformers. Tiers 2 and 3 are part of the repository and not of an installed package. A
    rule of your own, any function of a case, is scored from Python: probing.plantbench.scoring.score.
    """

    tiers: Many = option(
        ["0", "1", "2", "3"],
        help="kind of models: 0 vectors, 1 constructed, 2 trained, 3 compiled programs (repeatable)",
        flag="tier",
    )
    heldout: bool = option(False, help="use the held-out models of this version: wider ranges, other seeds")
    seeds: int | None = Field(
        default=None,
        ge=1,
        le=20,
        json_schema_extra={"flag": ""},
        description="number of seeds of tier 0 (default 3, held out 10); tiers 1 and 3 take a tenth",
    )
    first_seed: int = Field(
        default=0,
        ge=0,
        le=19,
        json_schema_extra={"flag": ""},
        description="first of the development seeds (with 1, those after 0)",
    )
    programs: Many = option([], help="program of tier 3 (default: all) (repeatable)", flag="program")
    rules: Many = option(
        ["protocol", "field"],
        help="rule to score: protocol, its variants, or field (the literature's, on tier 0) (repeatable)",
        flag="rule",
    )
    power: Many = option(
        [], help="also measure power as this varies: n, gain, rho, effect, classes, width (repeatable)"
    )
    circuits: bool = option(False, help="also score circuits on the known edges of tier 3")
    by_case: bool = option(False, help="print a table for each case too")
    json_file: str | None = option(None, help="file to write the scorecard to", flag="json")

    def run(self, *, progress: bool = True) -> Scorecard:
        """Score the rules and return the scorecard; if `json_file` is set, also write it there. `progress`: whether to
        show progress on standard error.
        """
        if not set(self.tiers) <= {"0", "1", "2", "3"}:
            raise ConfigError("no such tier", needed="0, 1, 2 or 3", found=", ".join(self.tiers))
        if self.circuits and "3" not in self.tiers:
            raise ConfigError("no edges are known", needed="tier 3", found=", ".join(self.tiers))
        if self.programs and ("3" not in self.tiers or self.heldout):
            raise ConfigError(
                "no programs to choose from",
                needed="tier 3 of the development seeds",
                found="held-out models" if self.heldout else f"tiers {', '.join(self.tiers)}",
            )
        if self.heldout and self.first_seed:
            raise ConfigError(
                "held-out models have no development seed",
                needed="no --first-seed",
                found=f"--first-seed {self.first_seed}",
            )
        version = import_module("probing.plantbench.knobs").held_out_version(pb.__version__) if self.heldout else ""
        card: Scorecard = import_module("probing.plantbench.scorecard").run(
            tiers=sorted({int(tier) for tier in self.tiers}),
            heldout=version,
            seeds=self.seeds,
            first_seed=self.first_seed,
            programs=self.programs,
            rules=self.rules,
            power=self.power,
            circuits=self.circuits,
            progress=None if progress else False,
        )
        if self.json_file is not None:
            Path(self.json_file).parent.mkdir(parents=True, exist_ok=True)
            card.write(Path(self.json_file))
        return card
