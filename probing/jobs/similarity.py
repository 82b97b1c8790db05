"""Defines SimilarityOptions and SimilarityJob, the validated options of comparing stores on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import probing as pb
from probing.errors import BadParameter, ConfigError
from probing.jobs import CorpusOptions, Files, Job, Many, option
from probing.jobs.models import ModelOptions, parsed

if TYPE_CHECKING:
    from probing.results.similarity import SimilarityResults
    from probing.text.corpus import Corpus


class SimilarityOptions(Job):
    """Holds the options of comparing stores."""

    twin: str | None = option(None, help="store of the untrained twin of the first model, as the floor")
    sites: str = option("*", help="sites of the stores, with wildcards")
    pairs: Literal["auto", "all", "same"] = option(
        "auto", help="pairs of sites: all, same (of one name), auto: all if there are two stores"
    )
    task: str | None = option(None, help="task of probes that are trained on one store and scored on the other")
    probe: str | None = option(None, help="probe with options (default: the task's first)")
    kl_texts: int = option(200, help="largest number of texts on which outputs are compared")
    resample_by: Literal["sentence", "document"] = option(
        "sentence", help="clusters that are resampled and permuted whole: sentence, or document (needs --corpus)"
    )
    neighbours: int = option(10, help="number of nearest neighbours")
    neighbour_rows: int = option(2000, help="random rows among which neighbours are sought")
    permutations: int = option(99, help="permutations of each null, 19 or more; 0: none")
    first_token: Literal["leave-out", "keep"] = option(
        "leave-out", help="rows with token 0 of their input, where many models have states of another kind"
    )
    outliers: Literal["apart", "leave-out"] = option(
        "apart", help="outlier coordinates: apart (CKA with and without them), or leave-out of all measures of states"
    )
    root_seed: int = option(0, help="root of every random draw")

    def check(self) -> None:
        """Check what can be checked without stores.

        Raises:
            BadParameter: an option is wrong.
        """
        rows = import_module("probing.similarities.rows")
        rows.check_options(self.sites, **{name: getattr(self, name) for name in rows.CHECKED})
        if self.probe is not None and self.task is None:
            raise BadParameter("probe needs a task", needed="the task of the probe", found="none", where="task")

    def similarity(
        self,
        stores: Sequence[str | Path],
        corpus: Corpus | None,
        to: str | Path,
        *,
        models: Sequence[ModelOptions] = (),
        progress: bool,
        **own: Any,
    ) -> SimilarityResults:
        """Load the models, if outputs are compared, run `probing.similarity` with these options, and return the
        results.
        """
        own |= {"corpus": corpus, "to": to, "progress": progress or False}
        own["models"] = [pb.LanguageModel.load(one.name, **one.loaded_with()) for one in models] or None
        return pb.similarity(*stores, **self.given_to(pb.similarity) | own)


class SimilarityJob(CorpusOptions, SimilarityOptions):
    """Compare the states of stores on the same rows, site by site, and write similarity.jsonl, similarity.parquet and
    drift.parquet.

    The first store is compared with each of the others, such as checkpoints of its training. Rows are words, sentences,
    positions or tokens of one corpus.
    """

    stores: Many = Field(
        description="directories of two stores or more",
        json_schema_extra={"argument": True, "metavar": "STORE_DIR..."},
    )
    corpus: Files = option([], help="corpus of the stores, for --task, --model and the forms of words: SPLIT=FILE, …")
    models: Many = option([], help="models of the stores, in their order: the KL of their outputs", flag="model")
    to: str = option(help="directory of the results")

    def run(self, *, progress: bool = True) -> SimilarityResults:
        """Compare the stores that are not compared yet, write the results and return them."""
        if len(self.stores) < 2:
            raise ConfigError(
                "one store alone has nothing to be compared with", needed="two stores or more", found="one"
            )
        corpus = self.read_corpus() if self.corpus else None
        models = [ModelOptions.read(parsed(one), f"model {one}") for one in self.models]
        return self.similarity(self.stores, corpus, self.to, models=models, progress=progress)
