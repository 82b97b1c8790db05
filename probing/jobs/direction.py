"""Defines ApplyDirectionJob, the checked options of running a model with a direction added to its states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import probing as pb
from probing.errors import BadParameter, ConfigError
from probing.jobs import CorpusOptions, Files, Many, option
from probing.jobs.patch import LoadedModel

if TYPE_CHECKING:
    from probing.models.language_model import LanguageModel
    from probing.use.directions import AppliedDirection


class ApplyDirectionJob(CorpusOptions, LoadedModel):
    """Run a model with and without a direction added to its states, and show its outputs side by side.

    Give --prompt (repeatable) or --corpus. A strength of 1 adds the whole difference between two classes, at the site
    and position for which the direction was saved. For prompts, the most probable next tokens are shown, or the answers
    of --behaviour; for a corpus, the answers, by default those that the verdict is about. Nothing is written.
    """

    evidence: str = Field(
        description="file of a direction, or a folder with one (`probing use --save-directions`)",
        json_schema_extra={"argument": True, "metavar": "EVIDENCE"},
    )
    prompts: Many = option([], help="text that the model is run on (repeatable)", flag="prompt")
    corpus: Files = option(
        [], help="texts in files instead: SPLIT=FILE (repeat), or one FILE, hub:NAME or probing:reference"
    )
    behaviour: str = option("", help="output to show: 'next_token:answers= A| B' (spaces count), masked_token:…, …")
    strength: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="factor of the direction: 1 adds the whole difference, a negative one leads back",
        json_schema_extra={"flag": ""},
    )
    start: str | None = option(
        None, help="class that the direction leads away from (default: the other of two, or else the first)"
    )
    goal: str | None = option(None, help="class that the direction leads to (default: the second of two)")
    position: str | None = option(None, help="where it is added: end, SPAN.last, … (default: where it was fitted)")
    any_model: bool = option(False, help="accept another model than the direction was fitted on, of the same width")
    top: int = Field(
        default=5,
        ge=1,
        description="number of most probable next tokens to show, without --behaviour",
        json_schema_extra={"flag": ""},
    )
    split: str | None = option(None, help="only this split of the corpus (default: all)")
    max_rows: int = Field(
        default=500, ge=1, description="largest number of rows of a corpus", json_schema_extra={"flag": ""}
    )
    seed: int = option(0, help="seed of the choice of rows of a corpus")
    untrained: int | None = option(None, help="seed: random weights in the model's architecture, as a control")

    def load(self) -> LanguageModel:
        """Load the model, run its self-check, and return it."""
        return pb.LanguageModel.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            kind=self.kind,
            revision=self.revision,
            untrained=self.untrained,
        )

    def run(self, *, progress: bool = True) -> AppliedDirection:
        """Read the direction and the texts, load the model, run it without the direction and with it, and return both
        outputs. `progress`: whether to show progress on standard error.
        """
        if bool(self.prompts) == bool(self.corpus):
            raise ConfigError(
                "texts come from prompts or from a corpus",
                needed="--prompt TEXT (repeatable) or --corpus FILE",
                found="both" if self.corpus else "neither",
            )
        found = pb.read_directions(self.evidence)
        if len(found) > 1:
            raise BadParameter(
                "one direction is applied at a time",
                needed="one file",
                found=f"{len(found)}: {', '.join(path.name for path in found)}"[:400],
                where=self.evidence,
                next_step="name one of these files",
            )
        (evidence,) = found.values()
        evidence.codes(self.start, self.goal)  # refused before the model is loaded
        texts = self.read_corpus() if self.corpus else self.prompts
        return pb.apply_direction(
            self.load(),
            evidence,
            texts,
            strength=self.strength,
            behaviour=self.behaviour or None,
            start=self.start,
            goal=self.goal,
            position=self.position,
            split=self.split,
            max_rows=self.max_rows,
            seed=self.seed,
            top=self.top,
            any_model=self.any_model,
            progress=None if progress else False,
        )
