"""PlantbenchJob: validated options of scoring verdicts on models for which it is known what they use."""

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
    """Score verdicts on models whose truth is certified: this package's protocol, and the field's usual rules.

    Tier 0 is latent vectors, tier 1 compiled transformers, tier 2 trained ones, which are part of the repository and
    not of an installed package. A rule of your own, any function of a case, is scored from Python:
    probing.plantbench.scoring.score.
    """

    tiers: Many = option(["0", "1", "2"], help="0 vectors, 1 compiled, 2 trained (repeatable)", flag="tier")
    heldout: bool = option(False, help="the held-out configuration of this version: wider ranges, seeds of its own")
    seeds: int | None = Field(
        default=None,
        ge=1,
        le=20,
        json_schema_extra={"flag": ""},
        description="seeds of tier 0 (3, or 10 draws held out); tier 1 takes a tenth",
    )
    rules: Many = option(
        ["protocol", "field"],
        help="protocol, its variants, or field: the literature's, on tier 0 (repeatable)",
        flag="rule",
    )
    power: Many = option([], help="n, gain, rho, effect, classes or width: every rule's power, tier 0 (repeatable)")
    by_case: bool = option(False, help="print a table for each case too")
    json_file: str | None = option(None, help="file of the score card", flag="json")

    def run(self, *, progress: bool = True) -> Scorecard:
        """Score the rules and return the scorecard; if `json_file` is set, also write it there."""
        if not set(self.tiers) <= {"0", "1", "2"}:
            raise ConfigError("no such tier", needed="0, 1 or 2", found=", ".join(self.tiers))
        version = import_module("probing.plantbench.knobs").held_out_version(pb.__version__) if self.heldout else ""
        card: Scorecard = import_module("probing.plantbench.scorecard").run(
            tiers=sorted({int(tier) for tier in self.tiers}),
            heldout=version,
            seeds=self.seeds,
            rules=self.rules,
            power=self.power,
            progress=None if progress else False,
        )
        if self.json_file is not None:
            Path(self.json_file).parent.mkdir(parents=True, exist_ok=True)
            card.write(Path(self.json_file))
        return card
