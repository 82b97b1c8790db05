"""Defines TransferJob and LeaveOneOutJob, the checked options of training probes on some corpora or groups and scoring
them on others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probing as pb
from probing.errors import ConfigError, unknown_name
from probing.jobs import CorpusOptions, Job, Many, option
from probing.jobs.flag_values import check_one_file_each, named_pairs

if TYPE_CHECKING:
    from probing.results.transfer import CrossResults
    from probing.text.corpus import Corpus


class CrossOptions(Job):
    """Holds the options of the probes that are fitted and of the measures that score them."""

    task: str = option(help="task: upos, feature:Number, column:NAME, …")
    probes: Many = option([], help="probe with options (default: linear, or ridge; repeatable)", flag="probe")
    measures: Many = option([], help="measure (default: those of the task's kind; repeatable)", flag="measure")
    seeds: int = Field(
        default=1, ge=1, le=1000, description="number of seeds of each stochastic probe", json_schema_extra={"flag": ""}
    )
    root_seed: int = option(0, help="seed of every random draw")
    sites: str = option("*", help="sites of the stores to probe, with wildcards")
    rows: str | None = option(
        None, help="how to pool a store of all tokens: word:mean, …; or position:NAME, one of its positions"
    )
    to: str = option(help="directory of the results")


class TransferJob(CrossOptions):
    """Train probes on every source, score them on every source, and write transfer.jsonl and transfer.parquet.

    A source is a store with the corpus it was made from; all stores must be of one model.
    """

    sources: Many = option(help="NAME=STORE_DIR (two or more)", flag="source")
    corpus: Many = option(help="NAME.SPLIT=FILE (repeat for every source and split), or NAME=FILE, or NAME=hub:DATASET")
    reader_options: Many = option([], help="option of the files' reader, for all sources", flag="reader-option")
    group: str | None = option(None, help="column of all sources whose equal values form a group (default: documents)")
    resample_by: Literal["auto", "sentence", "document"] = option(
        "auto",
        help="what is resampled: sentence, document (or group), auto (documents if the label is constant in them)",
    )

    def run(self) -> CrossResults:
        """Train the probes that are not trained yet, score them, write the results and return them."""
        stores = dict(named_pairs(self.sources, "source", "old=cache/states/old"))
        corpora = self._corpora(stores)
        sources = {name: (store, corpora[name]) for name, store in stores.items()}
        return pb.transfer(**self.given_to(pb.transfer) | {"sources": sources})

    def _corpora(self, stores: dict[str, str]) -> dict[str, Corpus]:
        check_one_file_each(self.corpus)
        files: dict[str, list[str]] = {name: [] for name in stores}
        for key, file in named_pairs(self.corpus, "corpus", "old.train=old-train.conllu"):
            name, dot, split = key.rpartition(".") if key not in stores else (key, "", "")
            if name not in stores:
                raise unknown_name("source", name or key, stores, where=f"--corpus {key}={file}", error=ConfigError)
            files[name].append(f"{split}={file}" if dot else file)
        for name in (name for name, given in files.items() if not given):
            raise ConfigError(
                f"source {name} has no corpus",
                needed=f"--corpus {name}.train=FILE and its other splits",
                found="none",
                next_step="give the files its store was extracted from",
            )
        return {
            name: CorpusOptions(corpus=given, reader_options=self.reader_options, group=self.group).read_corpus()
            for name, given in files.items()
        }


class LeaveOneOutJob(CorpusOptions, CrossOptions):
    """Train probes on all groups but one and score them on that one, in turn, and write leave_one_out.jsonl and
    leave_one_out.parquet.
    """

    store: str = Field(description="directory of the store", json_schema_extra={"argument": True})
    group: str = option("document", help="groups to leave out: document, or a sentence-level column of the corpus")
    least_rows: int = option(50, help="groups of fewer labelled rows are tested together")

    def run(self) -> CrossResults:
        """Train the probes that are not trained yet, score them, write the results and return them."""
        read = CorpusOptions(corpus=self.corpus, reader_options=self.reader_options, split_seed=self.split_seed)
        return pb.leave_one_out(**self.given_to(pb.leave_one_out) | {"corpus": read.read_corpus()})
