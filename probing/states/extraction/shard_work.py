"""Divides an extraction into units of work: one shard is one unit, for any process that can load the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from probing.contracts.executor import Report, Worker, WorkerSlot, WorkPlan, WorkUnit, unit_id
from probing.models.language_model import LanguageModel
from probing.models.loading.identity import ModelSource
from probing.provenance import environment
from probing.states.extraction.reading_options import with_ordinals
from probing.states.extraction.replay_reading import ReplayReading, read_replay_shard
from probing.states.extraction.shard_reading import Clock, ReadingOptions, n_words, read_shard
from probing.states.store import ShardContent, StoreWriter
from probing.states.store.leases import Lease, Leases
from probing.text.corpus import Corpus, Example


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
