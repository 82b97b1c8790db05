"""Defines ExtractJob, ImportJob, TrainJob and ReportJob, which hold the checked options of a run, from flags or a study
file.

An option is declared once, as a field: flags, `--help` and YAML keys are derived from it. `job.run()` calls the
function that a notebook would call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

import probing as pb
from probing._renamed import COMMAND_LINE, by_new_names, flag_of
from probing.errors import ConfigError, ProbingError, unknown_name
from probing.jobs.flag_values import check_one_file_each, named_pairs
from probing.models.site import are_module_paths
from probing.reference import PREFIX, folder
from probing.results.analysis import run_all

if TYPE_CHECKING:
    from probing.jobs.models import ModelOptions
    from probing.states.store import Store
    from probing.text.corpus import Corpus
    from probing.training.results import ProbeResults


MODEL_HELP = "Hugging Face model name, local folder, or probing:reference, a small model that ships"


def option(default: Any = ..., *, help: str, flag: str = "") -> Any:
    """Return a pydantic field that is also a command-line flag; `flag` is the name of the flag if it differs from that
    of the field (`--probe` for `probes`).
    """
    return Field(default=default, description=help, json_schema_extra={"flag": flag})


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_corpus(value: Any) -> Any:
    """Return a mapping `{split: file}`, as a study file gives it, in the form the flag has: `[split=file, …]`."""
    return [f"{split}={file}" for split, file in value.items()] if isinstance(value, dict) else _as_list(value)


Many = Annotated[list[str], BeforeValidator(_as_list)]
Files = Annotated[list[str], BeforeValidator(_as_corpus)]


class Job(BaseModel):
    """Base class of jobs: frozen pydantic models of options, each described in its field, which refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @classmethod
    def read(cls, values: dict[str, Any], where: str) -> Self:
        """Check values and return the job; `where` says in messages where the values come from.

        Raises:
            ConfigError: a key is missing, unknown or of the wrong type; the message names the key.
        """
        try:
            return cls.model_validate(values, context={"where": where})
        except ValidationError as error:
            raise _readable(error, cls, where) from None

    def given_to(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return, by name, those options that are parameters of a function. An empty list is replaced by None if the
        default of the parameter is None.
        """
        takes = {name: p for name, p in signature(function).parameters.items() if name in type(self).model_fields}
        given = {name: getattr(self, name) for name in takes}
        return {name: None if value == [] and takes[name].default is None else value for name, value in given.items()}

    @model_validator(mode="before")
    @classmethod
    def _by_new_names(cls, values: Any, info: ValidationInfo) -> Any:
        """Take options by their old names, too, which are written as flags on the command line."""
        if not isinstance(values, dict):
            return values
        if info.context and info.context["where"] == COMMAND_LINE:
            return by_new_names(
                values, cls.model_fields, written=lambda name: flag_of(name, cls.model_fields.get(name))
            )
        return by_new_names(values, cls.model_fields)


def _readable(error: ValidationError, job: type[BaseModel], where: str) -> Exception:
    first = error.errors()[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, ProbingError):
        raised.where = raised.where or where
        return raised
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(job, first["loc"][:-1])
        return unknown_name("key", str(first["loc"][-1]), known, where=f"{where}, {path}", error=ConfigError)
    return ConfigError(
        f"{path or 'the job'}: {first['msg']}",
        found=repr(first.get("input"))[:200],
        where=where,
        next_step=f"see `probing --help` and the study file that ships, {folder() / 'study.yaml'}",
    )


def _fields_at(job: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at a path such as `("train", 0)`: those of the job nested in that field."""
    for part in path:
        if isinstance(part, str):
            annotation = job.model_fields[part].annotation
            nested = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
            job = nested[0] if nested else job
    return [field.alias or name for name, field in job.model_fields.items()]


class CorpusOptions(Job):
    """Holds the options that name the labelled corpus."""

    corpus: Files = option(help="SPLIT=FILE (repeat for train, dev, test), or one FILE, hub:NAME or probing:reference")
    reader_options: Many = option(
        [], help="option of the file's reader, e.g. text=sentence, span.entity=COLUMN", flag="reader-option"
    )
    split_seed: int | None = option(None, help="seed of the random split of a corpus in one file")
    group: str | None = option(None, help="column whose equal values form a group (default: documents)")

    def read_corpus(self, root: Path | None = None) -> Corpus:
        """Read and return the corpus; relative paths refer to the folder `root`."""
        check_one_file_each(self.corpus)
        options = dict(named_pairs(self.reader_options, "reader-option", "text=COLUMN"))
        options |= {} if self.group is None else {"group": self.group}
        options |= {} if self.split_seed is None else {"split_seed": str(self.split_seed)}
        named = [entry for entry in self.corpus if "=" in entry and not entry.startswith("hub:")]
        if not named and len(self.corpus) == 1:
            return pb.Corpus.read(_rooted(self.corpus[0], root), **options)
        files = {split: _rooted(file, root) for split, file in named_pairs(self.corpus, "corpus", "train=FILE")}
        return pb.Corpus.read(files, **options)


def _rooted(path: str, root: Path | None) -> str:
    return path if root is None or path.startswith(("hub:", PREFIX)) else str(root / path)


class ExtractOptions(Job):
    """Holds the options of the extraction of states from a model."""

    sites: str = option(
        "resid.*", help="sites, comma-separated, with wildcards: 'embed,resid.*'; NAME=MODULE.PATH for any module"
    )
    rows: str = option(
        "word:mean",
        help="piece (every token), word:first|last|mean|max, sentence:last|first|mean|max|cls, or position:P,… where P "
        "is SPAN (the mean of its tokens) or start, end, SPAN.first|last|before|after, with +N or -N tokens",
    )
    device: str = option("cpu", help="torch device")
    dtype: str = option("float32", help="data type to compute in: float32, float16 or bfloat16")
    store_dtype: str | None = option(None, help="data type to store states in (default: that of --dtype)")
    attention: str | None = option(None, help="attention implementation: eager, sdpa, …")
    revision: str | None = option(None, help="revision of a hub model")
    side: Literal["encoder", "decoder"] | None = option(
        None, help="side of an encoder-decoder: encoder (default), or decoder, which reads the text beside its encoder"
    )
    untrained: int | None = option(None, help="seed: random weights in the model's architecture, as a control")
    allow_pickle_weights: bool = option(False, help="load .bin weights where there are no others; they can run code")
    max_length: int | None = option(None, help="largest number of tokens of an input (default: the model's limit)")
    long_inputs: Literal["truncate", "window", "skip", "refuse"] = option(
        "truncate", help="what happens to longer inputs: truncate, window (read in overlapping windows), skip, refuse"
    )
    stride: int | None = option(None, help="tokens from one window to the next (default: half of max-length)")
    chat_template: bool = option(False, help="format each text as a user's message, by the tokenizer's chat template")
    tokens_per_batch: int | None = option(
        None, help="tokens per batch, padding included (default: chosen for the device)"
    )
    executor: str = option(
        "inline", help="how the work is run: inline, processes or ray (see `probing list executors`)"
    )
    workers: int | None = option(None, help="number of worker processes of processes or ray (default 2)")
    threads: int | None = option(None, help="processor threads of each worker; equal numbers give equal bytes")
    allow_mixed_environment: bool = option(
        False, help="resume a store begun with another minor version of torch or transformers"
    )
    moments: str | None = option(None, help="has no effect since version 0.2")
    subset: str | None = option(None, help="only these examples: a split, or numbers such as 0,5,20:40")
    role: Literal["states", "replay"] = option(
        "states", help="what is stored: states, or all that a replay of the model needs"
    )
    outputs: str | None = option(None, help="for replay: outputs of the last token, of mask tokens, of all, or none")
    columns: str | None = option(None, help="for replay: vocabulary ids whose outputs are stored, or a file of them")

    def extract(
        self,
        model: str | ModelOptions,
        corpus: Corpus,
        to: str | Path,
        *,
        progress: bool,
        array_size: int = 1,
        array_index: int = 0,
    ) -> Store:
        """Load the model, run `probing.extract` with these options, and return the store. Options in a `ModelOptions`
        take precedence.
        """
        options = self.given_to(pb.extract) | {"dtype": self.store_dtype}  # `dtype` of a job is that of computing
        options["executor"] = import_module("probing.executors._units").executor_of(
            self.executor, self.workers, self.threads
        )
        for name in ("workers", "threads", *(["tokens_per_batch"] if self.tokens_per_batch is None else [])):
            del options[name]
        name, own = (model, {}) if isinstance(model, str) else (model.name, model.loaded_with())
        loading = self.given_to(pb.LanguageModel.load) | {"by_blocks": not are_module_paths(self.sites)} | own
        loaded = pb.LanguageModel.load(name, **loading)
        shared = {"array_size": array_size, "array_index": array_index, "progress": progress}
        return pb.extract(**options | {"model": loaded, "corpus": corpus, "to": to} | shared)


class ExtractJob(CorpusOptions, ExtractOptions):
    """Run a model over a corpus and save its hidden states in a store; a killed run resumes where it was.

    On a cluster, start every job of a job array with the same command, with --array-size 64 --array-index I and a --to
    on a disk that all of them share. Exit code 75 means that the batch system stopped the job: run it again. `probing
    store info` names what is missing. This was tested with independent processes, not on a real SLURM.
    """

    model: Many = option(help=f"{MODEL_HELP}; NAME@REVISION, NAME:step=1000,run=a,untrained=0 (repeatable)")
    to: str = option(help="directory of the store (or, for several models, of their stores)")
    array_size: int = option(1, help="number of processes, on any machines, that share the work")
    array_index: int = option(0, help="number of this process, from 0 on: it does every array-size-th shard")

    def run(self, *, progress: bool = True) -> Store | list[Store]:
        """Extract the states, or finish an interrupted extraction; return the store, or a list of stores for several
        models.
        """
        models, corpus = import_module("probing.jobs.models").models_of(self.model), self.read_corpus()
        shared: dict[str, Any] = {"array_size": self.array_size, "array_index": self.array_index, "progress": progress}
        places = [Path(self.to) / one.folder if len(models) > 1 else self.to for one in models]
        stores = [self.extract(one, corpus, to, **shared) for one, to in zip(models, places, strict=True)]
        return stores if len(models) > 1 else stores[0]


class ImportJob(CorpusOptions):
    """Make a store of states that another program computed: NeuroX, lmprobe, vLLM, .npy, .safetensors, .h5 or a store.

    The source is not trusted: a separate process with limits on memory, time and files checks it first.
    """

    source: str = Field(
        description="file or folder to import", json_schema_extra={"argument": True, "metavar": "SOURCE"}
    )
    corpus: Files = option(
        [], help="corpus of the states: SPLIT=FILE (repeat), or one FILE, hub:NAME or probing:reference"
    )
    to: str = option(help="directory of the new store")
    rows: str | None = option(
        None, help="word, sentence or piece (token), perhaps with the pooling (default: inferred)"
    )
    model: str | None = option(None, help="model that the states come from; recorded, not checked")
    layers: str | None = option(
        None,
        help="what numbered layers are: resid (inputs of blocks), blocks (their outputs), hf:L (hidden_states of "
        "transformers, L blocks), vllm or vllm:IDS, or another name (default: layer; required for lmprobe and vLLM)",
    )
    tokenizer: str | None = option(
        None, help="for vLLM: folder of the tokenizer, to match requests with texts by token ids"
    )
    store_dtype: str | None = option(None, help="data type to store states in (default: the source's, or float32)")

    def run(self, *, progress: bool = True) -> Store:
        """Import the states, or finish an interrupted import, and return the store."""
        return pb.import_states(
            self.source,
            self.read_corpus() if self.corpus else None,
            to=self.to,
            rows=self.rows,
            model=self.model,
            layers=self.layers,
            tokenizer=self.tokenizer,
            dtype=self.store_dtype,
        )


class TrainOptions(Job):
    """Holds the options of the training of probes on states."""

    tasks: Many = option(help="task: upos, feature:Number, head, span:COLUMN, column:NAME, … (repeatable)", flag="task")
    probes: Many = option([], help="probe: linear, mlp:hidden=64, … (default: the task's; repeatable)", flag="probe")
    controls: Many = option(
        [], help="control with options: word_type:draws=5 (default for words), keyed:key=COLUMN, …", flag="control"
    )
    measures: Many = option([], help="measure (default: those of the task's kind; repeatable)", flag="measure")
    analyses: Many = option(
        [], help="further analysis at every site, e.g. code_length (see `probing list analyses`)", flag="analysis"
    )
    features: Many = option([], help="dictionary to probe beside its states: DIR, or DIR,twin=DIR,k=1|16 (repeatable)")
    seeds: int = Field(
        default=1, ge=1, le=1000, description="number of seeds of each stochastic probe", json_schema_extra={"flag": ""}
    )
    root_seed: int = option(0, help="seed of every random draw")
    sites: str = option("*", help="sites of the store to probe, with wildcards")
    resample_by: Literal["auto", "sentence", "document"] = option(
        "auto", help="what the bootstrap resamples (auto: documents if the label is constant in them)"
    )
    correction: Literal["holm", "bh"] = option("holm", help="adjustment of p values: holm, or bh (Benjamini-Hochberg)")
    rows: str | None = option(
        None, help="how to pool a store of all tokens: word:mean, …; or position:NAME, one of its positions"
    )
    executor: str = option(
        "inline", help="how the fits are run: inline, processes or ray (see `probing list executors`)"
    )
    workers: int | None = option(None, help="number of worker processes of processes or ray (default 2)")
    threads: int | None = option(None, help="processor threads of each worker (default: as this process)")
    max_memory_mib: int | None = option(
        None, help="MiB for the states of a site; linear and ridge read larger ones in blocks"
    )
    threshold: str | None = option(
        None, help="choose a threshold on dev, and measure it on test: fpr=0.01[,label=CLASS][,by=COLUMN]"
    )
    device: str = option("cpu", help="torch device that linear, mlp, ridge and mass_mean compute on")
    replace: bool = option(False, help="drop results of the same store, task, site and probe with other settings")

    def train(
        self,
        store: str | Path,
        corpus: Corpus,
        to: str | Path,
        *,
        progress: bool,
        task: str,
        controls: Sequence[Any] = (),
        array_size: int = 1,
        array_index: int = 0,
    ) -> ProbeResults:
        """Run `probing.train` on one task with these options, merge the results into those in `to`, and return them;
        `controls` are added to the controls in the options.
        """
        fitting = import_module("probing.training.build").fitting(task, corpus, self)
        own = {"task": task, "controls": [*self.controls, *controls] or None, **fitting}
        shared = {"array_size": array_size, "array_index": array_index, "progress": progress}
        return pb.train(**self.given_to(pb.train) | own | {"store": store, "corpus": corpus, "to": to} | shared)


def stores_in(place: str | Path) -> list[Path]:
    """Return the store at a path; for a folder that is not a store, return the stores directly in it, such as those of
    several models.
    """
    path = Path(place)
    inside = sorted(file.parent for file in path.glob("*/store.json")) if not (path / "store.json").exists() else []
    return inside or [path]


class TrainJob(CorpusOptions, TrainOptions):
    """Train probes on tasks and on their control tasks, and write results.jsonl and results.parquet.

    If a task fails, the other tasks are still trained. The jobs of a job array share the work with --array-size 64
    --array-index I and a --to on a disk that all of them share; the job that finds all fits of a task done writes its
    results.
    """

    store: str = Field(
        description="directory of the store, or of the stores of several models", json_schema_extra={"argument": True}
    )
    to: str = option(help="directory of the results")
    array_size: int = option(1, help="number of processes, on any machines, that share the work")
    array_index: int = option(0, help="number of this process, from 0 on: it does every array-size-th fit")

    def run(self, *, progress: bool = True) -> ProbeResults:
        """Train the probes that are not trained yet, write all results and return them. If some of several tasks fail,
        the others are trained first, then UnitFailed is raised.
        """
        if not self.tasks:
            raise ConfigError("no task was given", needed="at least one --task", next_step="see `probing list tasks`")
        corpus = self.read_corpus()
        shared: dict[str, Any] = {"array_size": self.array_size, "array_index": self.array_index, "progress": progress}
        stores = stores_in(self.store)
        attempts = [
            (
                f"{task} ({store.name})" if len(stores) > 1 else task,
                partial(self.train, store, corpus, self.to, task=task, **shared),
            )
            for task in self.tasks
            for store in stores
        ]
        found = run_all(attempts, Path(self.to), "tasks")
        return pb.ProbeResults.joined(found).adjusted_in(Path(self.to))


class ReportJob(Job):
    """Write OUT_DIR/report.html from the results in OUT_DIR, which `probing train`, `probing use` or both wrote."""

    results: str = Field(description="directory that `train` or `use` wrote", json_schema_extra={"argument": True})

    def run(self) -> Path:
        """Write the report, and return the path of the page."""
        return pb.report(self.results)
