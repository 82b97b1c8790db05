"""Extracts states: runs a corpus through a model and writes the states into a store, file by file (shard by shard); a
stopped run can be resumed. One shard is one unit of work, for any process that can load the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from probing._renamed import takes_old_names
from probing.contracts.executor import Executor, Report, Worker, WorkerFactory, WorkerSlot, WorkPlan, WorkUnit, unit_id
from probing.errors import BadParameter, DoubtfulData, NonFiniteStates, NotRepresentable, StoreBusy, warn_user
from probing.executors._units import Rounds, executor_of, sole_error_itself
from probing.models.language_model import LanguageModel
from probing.models.loading.identity import ModelSource
from probing.models.site import are_module_paths
from probing.provenance import digest, environment
from probing.states.extraction.reading_options import (
    TOKENS_PER_BATCH,
    LongInputs,
    ShardPlan,
    check_corpus,
    reading_of,
    with_ordinals,
)
from probing.states.extraction.replay_reading import ReplayReading, read_replay_shard
from probing.states.extraction.shard_reading import Clock, ReadingOptions, n_words, read_shard
from probing.states.store import ShardContent, Store, StoreWriter
from probing.states.store.leases import Lease, Leases
from probing.states.store.maintenance import remove
from probing.states.store.views import cut_inputs_warning, unknown_pieces_warning
from probing.system.progress import words_bar
from probing.text.corpus import Corpus, Example

SHARD_BYTES = 64 << 20


@takes_old_names
def extract(
    model: LanguageModel | str,
    corpus: Corpus,
    *,
    sites: str | Sequence[str] = "resid.*",
    to: str | Path,
    rows: str = "word:mean",
    dtype: str | None = None,
    max_length: int | None = None,
    long_inputs: LongInputs = "truncate",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    shard_bytes: int = SHARD_BYTES,
    stride: int | None = None,
    chat_template: bool = False,
    array_size: int = 1,
    array_index: int = 0,
    executor: str | Executor = "inline",
    workers: int | None = None,
    threads: int | None = None,
    allow_mixed_environment: bool = False,
    moments: str | None = None,
    subset: str | Sequence[int] | None = None,
    role: Literal["states", "replay"] = "states",
    outputs: str | None = None,
    columns: str | Sequence[int] | None = None,
    progress: bool | None = None,
) -> Store:
    """Run a corpus through a model, write its hidden states at the chosen sites into a store, and return the store.
    States are pooled to one per word or sentence, or stored for every token; options call tokens "pieces". Of an
    unfinished store, only the missing files (shards) are computed.

    Args:
        model: a `LanguageModel`, or the folder or hub name of one.
        corpus: the corpus to read.
        sites: names of sites with wildcards, comma-separated or as a list; `name=module.path` makes a site of any
            module.
        to: the store's directory, new or unfinished.
        rows: what a row of the store, one state, stands for: `piece` (a token); `word:first|last|mean|max` or
            `sentence:first|last|mean|max|cls`, which pool the states of a word's or sentence's tokens (`first` and
            `last` do not count special tokens); or `position:` and positions in the text, such as
            `entity.last,answer.before,end` (`entity` alone is the mean over the tokens of that span).
        dtype: data type that states are stored in; None means the one that the model computes in.
        max_length: largest number of tokens of an input; None means the limit of the model.
        long_inputs: what to do with longer inputs: `truncate` (inputs cut are counted and warned of, words cut off are
            listed), `window` (read them in overlapping windows), `skip` or `refuse`.
        stride: number of tokens from the start of one window to the start of the next; None means half of `max_length`.
        tokens_per_batch: largest number of tokens of a batch, padding included.
        shard_bytes: approximate size of a shard.
        chat_template: whether to format each text by the tokenizer's chat template, as a user's message or as part of
            its `messages`.
        array_size: number of processes that share the work, on one file system.
        array_index: index of this process, counted from 0; it computes every `array_size`-th shard. The process that
            computes the last missing shard finishes the store; the others return it unfinished.
        executor: how the shards are computed: `inline`, `processes`, `ray`, with options
            (`processes:stall_seconds=600`), or an object. Independent runs may share one store: a shard that another
            run computes is waited for.
        workers: number of processes, for `processes` and `ray`; each loads the model by its name or folder.
        threads: processor threads of each worker; None means, for `inline`, as it is, otherwise an equal share of the
            cores. States can differ in their last bits if the number of threads differs; with the same number every
            executor gives the same bytes.
        allow_mixed_environment: whether a store may be continued with another minor version of torch or transformers;
            each shard records the versions that made it.
        moments: without effect since version 0.2.
        subset: read only these examples: a split, a list of indices, or text such as `0,5,20:40`.
        role: `states`, or `replay` to store the states of whole sequences and the outputs of the unedited model, which
            `Replay` needs; `rows` then has no effect.
        outputs: for `replay`, the tokens whose outputs are stored: the `last` of each example (the default for causal
            models), `mask` tokens (the default for masked models), `all` or `none`.
        columns: for `replay`, the vocabulary ids whose outputs are stored, as a list or a file that lists them; None
            means all.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        UnknownSite: a pattern matches no site.
        BadParameter: an option is out of range, or `rows` is `sentence:cls` and the tokenizer has no CLS token.
        CorpusError: there are no examples, or an input is too long and `long_inputs` is `refuse`.
        AlignmentError: word spans overlap or leave their text.
        ProvenanceMismatch: `to` holds a store of another model or corpus or with other options, or one begun with other
            library versions.
        DiskFull: there is not enough room for the missing shards.
        NonFiniteStates: a state is NaN or infinite; the message names the site and the sentence.
        NotRepresentable: a state is too large for the stored dtype.
        UnitFailed: several shards failed (after three failures without any success, the others are not tried); if only
            one failed, the error of that shard is raised.
        WorkerLost, Stalled: workers died or hung.
        MissingDependency: the executor needs a package that is not installed.
    """
    runner = executor_of(executor, workers, threads)
    if moments is not None:
        warnings.warn("`moments` has no effect any more: nothing read them", FutureWarning, stacklevel=4)
    if not 0 <= array_index < array_size:
        raise BadParameter("no such part of the array", needed=f"0 to {array_size - 1}", found=str(array_index))
    model = LanguageModel.load(model, by_blocks=not are_module_paths(sites)) if isinstance(model, str) else model
    reading = reading_of(
        model,
        sites=sites,
        rows=rows,
        dtype=dtype,
        max_length=max_length,
        long_inputs=long_inputs,
        stride=stride,
        tokens_per_batch=tokens_per_batch,
        chat_template=chat_template,
        role=role,
        outputs=outputs,
        columns=columns,
    )
    cut = ShardPlan.of(model, corpus, reading, subset=subset, shard_bytes=shard_bytes)
    check_corpus(model, cut.part, reading)
    identity = cut.identity(model, reading)
    target = StoreToFill(Path(to).resolve(), identity, allow_mixed_environment)
    factory = _factory(runner, model, reading, target)
    with threads_set(runner.threads):
        place = place_of_work(model.device) | {"model": model.facts()}
    is_new = array_size == 1 and not Path(to).exists()
    writer = target.open(place)
    shards = [shard for shard in writer.missing() if shard % array_size == array_index]
    plan = shard_units(digest(identity), cut.part, cut.starts, shards, cut.kept)
    writer.preflight(cut.bytes_of([example for unit in plan.units for example in unit.payload.examples]))
    size = sum(unit.size for unit in plan.units)
    rounds = Rounds(
        plan,
        missing=lambda: ids_of(plan, set(writer.missing())),
        busy=lambda: ids_of(plan, Leases(Path(to)).held().keys()),
    )
    with (
        _removed_if_empty(Path(to), is_new),
        words_bar("extracting", size, progress, are_rows=reading.scope == "word") as advance,
        sole_error_itself(len(cut.starts)),
    ):
        for now in rounds:
            with closing(runner.run(now, factory, advance)) as outcomes:  # type: ignore[type-var]
                for outcome in outcomes:
                    rounds.note(outcome)
    if writer.missing():
        return Store.open(Path(to), allow_partial=True)
    writer.seal()
    store = Store.open(Path(to))
    doubts = unknown_pieces_warning(store.unknown_pieces), cut_inputs_warning(len(store.cut_inputs), store.max_length)
    for sentence in filter(None, doubts):
        warn_user(sentence, DoubtfulData)
    return store


@contextmanager
def _removed_if_empty(folder: Path, is_new: bool) -> Iterator[None]:
    """Within the block, delete a store that this run made if its states cannot be stored and none of its shards is
    there: nothing in it is worth going on from, and its options would stand against others.
    """
    try:
        yield
    except (NonFiniteStates, NotRepresentable):
        if is_new and not Store.open(folder, allow_partial=True).shards_done:
            with suppress(StoreBusy):
                remove(folder)
        raise


def _factory(executor: Executor, model: LanguageModel, reading: ReadingOptions, store: StoreToFill) -> WorkerFactory:
    if executor.in_process:
        return WorkersWithModel(model, reading, store)
    if model.source is None:
        raise BadParameter(
            "other processes cannot load this model",
            needed="a model loaded from a folder or by its hub name",
            found=f"{model.name}, built in memory",
            next_step="save model and tokenizer with save_pretrained and load the folder, or use executor='inline'",
        )
    modules = model.added_modules(reading.sites).get("modules", {})
    return WorkersThatLoad(model.source, modules, reading, store)


@dataclass(frozen=True)
class ShardTask:
    """Holds the data that a worker needs to compute one shard.

    Attributes:
        shard: number of the shard.
        start: position of its first example among those read.
        examples: the examples of the shard.
        kept: ordinals of these examples in the corpus, if only a subset is read.
    """

    shard: int
    start: int
    examples: tuple[Example, ...]
    kept: tuple[int, ...] | None = None


def shard_units(
    store_id: str, corpus: Corpus, starts: Sequence[int], shards: Sequence[int], kept: tuple[int, ...] | None = None
) -> WorkPlan:
    """Return a plan with one unit of work per shard of `shards`. The id of a unit is a hash of the store's id and the
    shard number.

    Args:
        store_id: id of the store.
        corpus: the examples that are read.
        starts: first example of each shard of the store.
        shards: numbers of the shards to compute.
        kept: ordinals of the examples in the whole corpus, if only a subset is read.
    """
    bounds = (*starts, len(corpus))
    units = []
    for shard in shards:
        examples = corpus.examples[bounds[shard] : bounds[shard + 1]]
        own = None if kept is None else kept[bounds[shard] : bounds[shard + 1]]
        name = f"shard {shard} (examples {bounds[shard]} to {bounds[shard + 1] - 1})"
        size = sum(n_words(example) for example in examples)
        units.append(WorkUnit(unit_id(store_id, shard), name, size, ShardTask(shard, bounds[shard], examples, own)))
    return WorkPlan(tuple(units))


def ids_of(plan: WorkPlan, shards: Set[int]) -> set[str]:
    """Return the ids of the units that compute any of these shards."""
    return {unit.id for unit in plan.units if unit.payload.shard in shards}


@dataclass(frozen=True)
class StoreToFill:
    """Names the store that shards are written to, and its identity; see `StoreWriter.open`."""

    path: Path
    identity: Mapping[str, Any]
    allow_mixed_environment: bool = False

    def open(self, environment: dict[str, Any]) -> StoreWriter:
        """Open a writer for one worker."""
        return StoreWriter.open(
            self.path,
            identity=dict(self.identity),
            environment=environment,
            allow_mixed_environment=self.allow_mixed_environment,
        )


@dataclass(frozen=True)
class WorkersWithModel:
    """Makes a worker in this process from a model that is already loaded."""

    model: LanguageModel
    reading: ReadingOptions
    store: StoreToFill

    def __call__(self, place: WorkerSlot) -> ShardWorker:
        """Make the worker."""
        return ShardWorker(self.model, self.reading, self.store, place)


@dataclass(frozen=True)
class WorkersThatLoad:
    """Makes a worker in any process; the worker loads the model, and an error is raised if it is not the model of the
    plan.
    """

    source: ModelSource
    modules: Mapping[str, str]
    reading: ReadingOptions
    store: StoreToFill

    def __call__(self, place: WorkerSlot) -> ShardWorker:
        """Make the worker.

        Raises:
            ProvenanceMismatch: the model is no longer what the plan was made for.
        """
        model = LanguageModel.load(**asdict(self.source.for_worker(place.slot)), check=False)  # checked before
        for site, module in self.modules.items():
            model.add_site(site, module)
        store = replace(self.store, identity={**self.store.identity, **model.identity()})
        return ShardWorker(model, self.reading, store, place)


class ShardWorker(Worker):
    """Reads shards; while a shard is hashed and written, the next is read."""

    def __init__(self, model: LanguageModel, reading: ReadingOptions, store: StoreToFill, place: WorkerSlot) -> None:
        self._model = model
        self._reading = reading
        self._stack = ExitStack()
        with self._stack as entered:
            entered.enter_context(threads_set(place.threads))
            self._writer = store.open(place_of_work(model.device))
            self._leases = Leases(store.path)
            self._background = entered.enter_context(ThreadPoolExecutor(max_workers=1))
            if not isinstance(reading, ReplayReading):  # a replay must meet the bits of an ordinary pass
                self._lanes = entered.enter_context(model.many_states(reading.sites))
            self._stack = entered.pop_all()

    def start(self, unit: WorkUnit, report: Report) -> Callable[[], None]:
        """Read the shard and begin to write it, unless it is done; return a function that waits for the end of
        writing.
        """
        task: ShardTask = unit.payload
        if self._writer.is_done(task.shard):
            return lambda: report(unit.size)
        lease = self._leases.take(task.shard)
        try:
            content = self._content(task, unit, lease, report)
        except BaseException:
            lease.release()
            raise
        if content is None:
            return lease.release
        return self._background.submit(self._commit, task.shard, content, lease).result

    def close(self) -> None:
        """Wait until everything is written, and release the model and the threads."""
        self._stack.close()

    def _content(self, task: ShardTask, unit: WorkUnit, lease: Lease, report: Report) -> ShardContent | None:
        if self._writer.is_done(task.shard):  # by the one who had the lease before
            report(unit.size)
            return None
        advance = _signs_of_life(lease, report)
        if isinstance(self._reading, ReplayReading):
            content = read_replay_shard(self._model, task.examples, task.start, self._reading, advance)
        else:
            content = read_shard(self._model, task.examples, task.start, self._reading, self._lanes, advance)
        return content if task.kept is None else with_ordinals(content, task.kept)

    def _commit(self, shard: int, content: ShardContent, lease: Lease) -> None:
        try:
            self._writer.commit(shard, content)
        finally:
            lease.release()


def _signs_of_life(lease: Lease, report: Report) -> Clock:
    def advance(words: int) -> None:
        lease.renew()
        report(words)

    return advance


def place_of_work(device: str) -> dict[str, Any]:
    """Return library versions, device and PyTorch's number of threads, which can change the last bits of a product."""
    return environment(device) | {"threads": torch.get_num_threads()}


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Within the block, PyTorch uses `count` threads; None: the number is not changed."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
