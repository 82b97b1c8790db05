"""Extraction: a corpus through a model into a store, shard by shard; a stopped run goes on where it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from probing.alignment import check_words
from probing.batching import row_estimate, shard_starts
from probing.chat import ChatTemplate
from probing.completing import complete
from probing.corpus import Corpus, Example
from probing.errors import BadParameter, CorpusError, UnitFailed, unknown_name
from probing.extraction_work import WorkersThatLoad, WorkersWithModel, ids_of, place_of_work, shard_units, threads_set
from probing.language_model import LanguageModel
from probing.positions import SCOPE, check_spans, parse_positions, positions_identity
from probing.provenance import digest
from probing.shard_reading import WINDOW, Clock, Reading, inputs_of
from probing.site import are_module_paths, select_sites
from probing.specs import build
from probing.store import Store, StoreWriter
from probing.store.leases import Leases
from probing.work import Executor, WorkerFactory

ROWS = (
    "piece", "word:first", "word:last", "word:mean", "word:max",
    "sentence:first", "sentence:last", "sentence:mean", "sentence:cls",
)  # fmt: skip
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LONG_INPUTS = ("truncate", "window", "skip", "refuse")
TOKENS_PER_BATCH = 2048
SHARD_BYTES = 64 << 20

LongInputs = Literal["truncate", "window", "skip", "refuse"]


def extract(
    model: LanguageModel | str, corpus: Corpus, *, sites: str | Sequence[str] = "resid.*", to: str | Path,
    rows: str = "word:mean", dtype: str | None = None, max_length: int | None = None,
    long_inputs: LongInputs = "truncate", tokens_per_batch: int = TOKENS_PER_BATCH, shard_bytes: int = SHARD_BYTES,
    stride: int | None = None, chat_template: bool = False, num_workers: int = 1, worker_index: int = 0,
    executor: str | Executor = "inline", workers: int | None = None, threads: int | None = None,
    progress: bool | None = None,
) -> Store:  # fmt: skip
    """States of a corpus at the chosen sites, pooled to rows, in a store; only what is missing is computed.

    Args:
        model: a model, or the name of one.
        corpus: the examples.
        sites: shell-style patterns, comma-separated or a list; `name=module.path` makes a site of any module.
        to: the store's directory, new or unfinished.
        rows: `piece`, `word:first|last|mean|max` or `sentence:first|last|mean|cls`, of which `first` and `last` are
            content pieces, not special ones; or `position:` and positions, such as `entity.last,answer.before,end`.
        dtype: stored dtype; None: the compute dtype.
        max_length: the most pieces of an input; None: what the model allows.
        long_inputs: `truncate` (words cut are named), `window` (read in overlapping windows), `skip` or `refuse`.
        stride: pieces from one window to the next; None: half of `max_length`.
        tokens_per_batch: padded pieces of a batch.
        shard_bytes: size of a shard, about.
        chat_template: read each text as a user's message (or in its `messages`), by the tokenizer's chat template.
        num_workers, worker_index: of that many processes, which share a file system, this one takes the shards whose
            number modulo `num_workers` is `worker_index`. Whoever finds all shards done seals the store; the others
            return it unfinished.
        executor: who computes the shards: `inline`, `processes`, `ray`, with options (`processes:stall_seconds=600`),
            or an object. Independent runs may share one store: a shard that another run computes is waited for.
        workers: processes of this run, for `processes` and `ray`, which load the model by its name or folder.
        threads: processor threads of each worker; None: for `inline` as they are, else its share of the cores. States
            can differ in the last bits between numbers of threads; with equal numbers every executor gives equal bytes.
        progress: show a bar on standard error; None: if it is a terminal.

    Raises:
        UnknownSite: a pattern that matches no site.
        BadParameter: an option out of range, or `sentence:cls` without a CLS piece.
        CorpusError: no examples, or a long input under `refuse`.
        AlignmentError: word spans that overlap or leave their text.
        ProvenanceMismatch: `to` holds a store of another model, corpus or recipe.
        DiskFull: not enough room for what is missing.
        NonFiniteStates: NaN or infinity, naming the site and the sentence.
        NotRepresentable: a state too large for the stored dtype.
        UnitFailed: several shards failed, all others being done; what fails in one shard only is raised itself.
        WorkerLost, Stalled: workers died or hung.
        MissingDependency: the executor needs a package that is not installed.
    """
    runner = executor_of(executor, workers, threads)
    if not 0 <= worker_index < num_workers:
        raise BadParameter("no such worker", needed=f"0 to {num_workers - 1}", found=str(worker_index))
    model = LanguageModel.load(model, by_blocks=not are_module_paths(sites)) if isinstance(model, str) else model
    reading = _reading(model, sites, rows, dtype, max_length, long_inputs, tokens_per_batch, shard_bytes)
    if long_inputs == WINDOW or stride is not None:
        reading = replace(reading, stride=_stride(reading, stride))
    if chat_template:
        ChatTemplate(model.tokenizer, model.name)  # refuses a tokenizer that has none
        reading = replace(reading, chat=True)
    _check_corpus(model, corpus, reading)
    row_bytes = sum(model.width(site) for site in reading.sites) * ITEM_BYTES[reading.dtype]
    row_bytes *= len(reading.positions) or 1
    starts = shard_starts(corpus, reading.scope, row_bytes, shard_bytes)
    identity = _identity(model, corpus, reading, starts)
    factory = _factory(runner, model, reading, Path(to), identity)
    with threads_set(runner.threads):
        place = place_of_work(model.device)
    writer = StoreWriter.open(Path(to), identity=identity, environment=place)
    shards = [shard for shard in writer.missing() if shard % num_workers == worker_index]
    plan = shard_units(digest(identity), corpus, starts, shards)
    todo = [example for unit in plan.units for example in unit.payload.examples]
    writer.preflight(row_bytes * sum(row_estimate(example, reading.scope) for example in todo))
    with _progress(sum(unit.size for unit in plan.units), progress) as advance, _sole_error_itself():
        complete(
            plan, runner, factory, advance, missing=lambda: ids_of(plan, set(writer.missing())),
            busy=lambda: ids_of(plan, Leases(Path(to)).held().keys()),
        )  # fmt: skip
    if writer.missing():
        return Store.open(Path(to), allow_partial=True)
    writer.seal()
    return Store.open(Path(to))


def executor_of(executor: str | Executor, workers: int | None, threads: int | None) -> Executor:
    """The executor, with the options given beside its name.

    Raises:
        UnknownName, BadParameter: no such executor, or an option out of range.
        MissingDependency: it needs a package that is not installed.
    """
    given = [f"{name}={n}" for name, n in {"workers": workers, "threads": threads}.items() if n is not None]
    if not isinstance(executor, str):
        if given:
            raise BadParameter("the executor has its own options", needed="workers and threads in the executor object")
        return executor
    name, _, own = executor.partition(":")
    built: Executor = build("executors", f"{name}:{','.join(filter(None, [own, *given]))}")
    return built


def _factory(
    executor: Executor, model: LanguageModel, reading: Reading, path: Path, identity: dict[str, Any]
) -> WorkerFactory:
    if executor.in_process:
        return WorkersWithModel(model, reading, path, identity)
    if model.source is None:
        raise BadParameter(
            "other processes cannot load this model", needed="a model loaded from a folder or by its hub name",
            found=f"{model.name}, built in memory",
            next_step="save model and tokenizer with save_pretrained and load the folder, or use executor='inline'",
        )  # fmt: skip
    modules = model.added_modules(reading.sites).get("modules", {})
    return WorkersThatLoad(model.source, modules, reading, path.resolve(), identity)


@contextmanager
def _sole_error_itself() -> Iterator[None]:
    """What one unit alone failed of is raised as it is."""
    try:
        yield
    except UnitFailed as failure:
        if len(failure.errors) != 1:
            raise
        ((name, error),) = failure.errors.items()
        error.add_note(f"everything but {name} is done and kept")
        raise error from error.__cause__


def _reading(
    model: LanguageModel, sites: str | Sequence[str], rows: str, dtype: str | None, max_length: int | None,
    long_inputs: str, tokens_per_batch: int, shard_bytes: int,
) -> Reading:  # fmt: skip
    """Check every option before any work."""
    scope, _, pool = rows.partition(":")
    positions = parse_positions(pool) if scope == SCOPE else ()
    if not positions and rows not in ROWS:
        usual = {"sentence": "sentence:mean", "word": "word:mean"}.get(scope.lower().removesuffix("s"), rows)
        error = unknown_name("row scope", rows, (*ROWS, f"{SCOPE}:NAME"), error=BadParameter)
        error.next_step = f"did you mean {usual!r}?" if usual != rows else error.next_step
        raise error
    if rows == "sentence:cls" and model.cls_id is None:
        raise BadParameter(
            "sentence:cls needs a CLS piece", needed="a tokenizer with a CLS piece", found="none", where=model.name,
            next_step="use rows sentence:last or sentence:mean",
        )  # fmt: skip
    stored = dtype or model.dtype
    if stored not in ITEM_BYTES:
        raise unknown_name("stored dtype", stored, ITEM_BYTES, error=BadParameter)
    if long_inputs not in LONG_INPUTS:
        raise unknown_name("rule for long inputs", long_inputs, LONG_INPUTS, error=BadParameter)
    limit = model.max_length
    if max_length is not None and (max_length < 4 or (limit is not None and max_length > limit)):
        needed = f"4 to {limit}" if limit is not None else "at least 4"
        raise BadParameter("max_length is out of range", needed=needed, found=str(max_length), where=model.name)
    if tokens_per_batch < 1 or not 1 <= shard_bytes <= 1 << 30:
        raise BadParameter(
            "batch or shard size is out of range", needed="tokens_per_batch ≥ 1 and 1 ≤ shard_bytes ≤ 1 GiB",
            found=f"{tokens_per_batch}, {shard_bytes}",
        )  # fmt: skip
    chosen = select_sites(_named_modules(model, sites), model.sites)
    pool = "mean" if positions else pool or "mean"
    return Reading(chosen, scope, pool, stored, max_length or limit, long_inputs, tokens_per_batch, positions)


def _stride(reading: Reading, stride: int | None) -> int:
    limit = reading.max_length
    if reading.long_inputs != WINDOW or limit is None:
        raise BadParameter(
            "a stride is for long inputs read in windows" if limit else "windows of which length?",
            needed="long inputs `window`, and a max_length", found=f"{reading.long_inputs}, max_length {limit}",
            next_step="leave the stride out" if limit else "give max_length",
        )  # fmt: skip
    if stride is not None and not 1 <= stride <= limit:
        raise BadParameter("the stride is out of range", needed=f"1 to {limit}", found=str(stride))
    return stride or max(1, limit // 2)


def _named_modules(model: LanguageModel, sites: str | Sequence[str]) -> list[str]:
    """Site patterns, of which `name=module.path` were made sites of the model."""
    patterns = []
    for part in sites.split(",") if isinstance(sites, str) else sites:
        name, _, path = part.strip().partition("=")
        if path:
            model.add_site(name, path)
        patterns.append(name)
    return patterns


def _check_corpus(model: LanguageModel, corpus: Corpus, reading: Reading) -> None:
    examples = corpus.examples
    if not examples:
        raise CorpusError("there is nothing to extract", needed="at least one example", found="0", where=corpus.source)
    check_spans(corpus, reading.positions)
    lengths = [len(example.text) for example in examples]
    check_words([example.words for example in examples], lengths, [example.id for example in examples])
    if reading.long_inputs == "refuse" and reading.max_length is not None:
        _refuse_long(model, examples, reading, reading.max_length)


def _refuse_long(model: LanguageModel, examples: Sequence[Example], reading: Reading, limit: int) -> None:
    # A piece is at least one byte, so that only long texts need be tried; 16 leaves room for special pieces.
    long = [example for example in examples if reading.chat or len(example.text.encode()) + 16 > limit]
    for example, encoded in zip(long, inputs_of(model, long, reading), strict=True):
        if len(encoded) > limit:
            raise CorpusError(
                "an input is too long for the model", needed=f"at most {limit} pieces", found=f"{len(encoded)} pieces",
                where=f"sentence {example.id}", next_step="shorten it, or use long inputs truncate or skip",
            )  # fmt: skip


def _identity(model: LanguageModel, corpus: Corpus, reading: Reading, starts: tuple[int, ...]) -> dict[str, Any]:
    source = ", ".join(Path(part.strip()).name for part in corpus.source.split(","))
    more = positions_identity(corpus, reading.positions) if reading.positions else {}
    more |= {"chat": ChatTemplate(model.tokenizer, model.name).identity(corpus)} if reading.chat else {}
    return model.identity() | {
        "corpus": {"fingerprint": corpus.fingerprint, "source": source, "subset": None},
        "extraction": reading.identity() | model.added_modules(reading.sites) | more,
        "plan": {"starts": list(starts), "count": len(corpus)},
    }


class _Rate(ProgressColumn):
    """Words per second."""

    def render(self, task: ProgressTask) -> Text:
        """The rate of the last seconds."""
        return Text(f"{task.speed:,.0f} words/s" if task.speed else "")


@contextmanager
def _progress(total: int, show: bool | None) -> Iterator[Clock]:
    """A bar with words per second and time left, on standard error."""
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (TextColumn("extracting"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as bar:
        task = bar.add_task("words", total=total)
        yield lambda words: bar.advance(task, words)
