"""Defines `UseJob`, the checked options of a use run: which states of a running model are edited, and which behaviour
is measured.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probing as pb
from probing.errors import ConfigError, DoubtfulAnswer
from probing.jobs import MODEL_HELP, CorpusOptions, Job, Many, option

if TYPE_CHECKING:
    from probing.jobs.models import ModelOptions
    from probing.text.corpus import Corpus
    from probing.verdicts.verdict import UseRun


class UseOptionsOfJob(Job):
    """Holds the options of the edits and of their measurement."""

    tasks: Many = option(
        help="property: feature:NAME, upos, column:NAME, … (repeatable; sentence tasks are each other's covariates)",
        flag="task",
    )
    behaviour: str = option(
        "",
        help="output to measure: 'next_token:answers= A| B' (spaces count), masked_token:…, head, readout "
        "(`probing list behaviours`)",
    )
    sites: str = option("resid.*", help="sites, comma-separated, with wildcards: resid.*, attn_out.1, heads.*")
    positions: Many = option(
        [],
        help="where the states of a sentence are edited: end, SPAN.last, SPAN (the mean of its tokens) (repeatable)",
        flag="position",
    )
    covariates: Many = option(
        [], help="further property in which compared rows must agree (repeatable)", flag="covariate"
    )
    minimal_pairs: str | None = option(
        None,
        help="column with the id of the sentence that differs in the task only; states are exchanged in these pairs",
    )
    split: str | None = option(None, help="only this split (default: all, since folds do not depend on splits)")
    max_rows: int = Field(
        default=2000, ge=30, description="largest number of rows, classes balanced", json_schema_extra={"flag": ""}
    )
    epsilon: float = Field(
        default=0.1,
        gt=0,
        lt=2,
        description="smallest effect that counts, in standard deviations of the output",
        json_schema_extra={"flag": ""},
    )
    comparisons: Many = option(
        [],
        help="further intervention, reported beside the verdict: leace, random_subspace, … (repeatable)",
        flag="comparison",
    )
    permutations: int = option(0, help="number of shuffles of the labels for a permutation test of the largest effect")
    control_properties: int = option(
        0, help="number of random properties of word forms that are measured in the same way, as a control"
    )
    seed: int = option(0, help="seed of every random draw")
    replace: bool = option(False, help="drop results that other settings gave for the same task, behaviour and model")
    device: str = option("cpu", help="torch device")
    dtype: str = option("float32", help="data type to compute in: float32, float16 or bfloat16")
    save_directions: bool = option(False, help="write the fitted directions, with their verdicts, to OUT_DIR/evidence")
    kind: Literal["auto", "base", "causal", "masked"] = option("auto", help="head to load: auto, base, causal, masked")
    revision: str | None = option(None, help="revision of a hub model")
    untrained: int | None = option(None, help="seed: random weights in the model's architecture, as a control")

    def use(self, model: str | ModelOptions, corpus: Corpus, to: str | Path, *, progress: bool) -> UseRun:
        """Load the model, run `probing.intervene` with these options, and return the run. With `save_directions`, the
        directions are written too. `to` is the folder of the results, and `progress` says whether progress is shown.

        Raises:
            ConfigError: no task is named.
        """
        if not self.tasks:
            raise ConfigError("no task was given", needed="at least one --task", next_step="see `probing list tasks`")
        name, own = (model, {}) if isinstance(model, str) else (model.name, model.loaded_with())
        loaded = pb.LanguageModel.load(name, **self.given_to(pb.LanguageModel.load) | own)
        measured = import_module("probing.use.effects").UseOptions
        options = measured(**self.given_to(measured) | {"comparisons": tuple(self.comparisons)})
        criteria = import_module("probing.verdicts.verdict").Criteria(epsilon=self.epsilon)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DoubtfulAnswer)  # commands say it once, below their tables
            own = {"model": loaded, "corpus": corpus, "to": to, "progress": progress}
            judged = {"criteria": criteria, "options": options}
            run = pb.intervene(**self.given_to(pb.intervene) | own | judged)
        if self.save_directions:
            built = import_module("probing.use.subjects").Subjects
            subjects = built(**self.given_to(built) | {"model": loaded, "corpus": corpus})
            keep = import_module("probing.use.directions.fitting").keep_directions
            keep(loaded, subjects, run, options, Path(to) / "evidence")
        return run


class UseJob(CorpusOptions, UseOptionsOfJob):
    """Exchange a property (such as tense) in the hidden states of a running model, measure how its output changes, and
    give a verdict on use for each place.

    This writes use.jsonl and verdicts.parquet. If `probing train --to` writes into the same folder, the report shows
    decodability and use side by side.
    """

    model: Many = option(help=f"{MODEL_HELP}; NAME@REVISION, NAME:step=1000,run=a,untrained=0 (repeatable)")
    to: str = option(help="directory of the results")

    def run(self, *, progress: bool = True) -> UseRun:
        """Measure the effects of the edits, judge them, write results and verdicts, and return them; for several
        models, return all results in the folder. `progress`: whether to show progress on standard error.
        """
        models, corpus = import_module("probing.jobs.models").models_of(self.model), self.read_corpus()
        runs = [self.use(one, corpus, self.to, progress=progress) for one in models]
        whole: UseRun = import_module("probing.verdicts.judging").read_use_run(Path(self.to)) if runs[1:] else runs[0]
        return whole
