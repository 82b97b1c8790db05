"""Extraction: runs a corpus through a model into a store, shard by shard; a stopped run goes on where it was."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from probing._renamed import takes_old_names
from probing.contracts.executor import Executor, WorkerFactory
from probing.errors import BadParameter
from probing.executors._run_until_done import complete, executor_of, sole_error_itself
from probing.models.language_model import LanguageModel
from probing.models.site import are_module_paths
from probing.provenance import digest
from probing.states.extraction.reading_options import TOKENS_PER_BATCH, LongInputs, check_corpus, reading_of
from probing.states.extraction.shard_plan import ShardPlan
from probing.states.extraction.shard_reading import ReadingOptions
from probing.states.extraction.shard_work import (
    StoreToFill,
    WorkersThatLoad,
    WorkersWithModel,
    ids_of,
    place_of_work,
    shard_units,
    threads_set,
)
from probing.states.store import Store
from probing.states.store.leases import Leases
from probing.system.machine import with_typed_errors
from probing.system.screen import words_bar
from probing.text.corpus import Corpus

SHARD_BYTES = 64 << 20


@takes_old_names
@with_typed_errors
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
    """Read the states of a corpus at the chosen sites, pooled to rows, into a store; only what is missing is computed.

    Args:
        model: a model, or the name of one.
        corpus: the examples.
        sites: shell-style patterns, comma-separated or a list; `name=module.path` makes a site of any module.
        to: the store's directory, new or unfinished.
        rows: `piece`, `word:first|last|mean|max` or `sentence:first|last|mean|cls`, of which `first` and `last` are
            content pieces, not special ones; or `position:` and positions, such as `entity.last,answer.before,end`
            (`entity` alone is the mean over the pieces of that span).
        dtype: stored dtype; None: the compute dtype.
        max_length: the most pieces of an input; None: what the model allows.
        long_inputs: `truncate` (words cut are named), `window` (read in overlapping windows), `skip` or `refuse`.
        stride: pieces from one window to the next; None: half of `max_length`.
        tokens_per_batch: padded pieces of a batch.
        shard_bytes: size of a shard, about.
        chat_template: read each text as a user's message (or in its `messages`), by the tokenizer's chat template.
        array_size, array_index: of that many processes, which share a file system, this one takes the shards whose
            number modulo `array_size` is `array_index`. Whoever finds all shards done seals the store; the others
            return it unfinished.
        executor: who computes the shards: `inline`, `processes`, `ray`, with options (`processes:stall_seconds=600`),
            or an object. Independent runs may share one store: a shard that another run computes is waited for.
        workers: processes of this run, for `processes` and `ray`, which load the model by its name or folder.
        threads: processor threads of each worker; None: for `inline` as they are, else its share of the cores. States
            can differ in the last bits between numbers of threads; with equal numbers every executor gives equal bytes.
        allow_mixed_environment: resume with another minor version of torch or transformers; each shard records its own.
        moments: without effect since version 0.2.
        subset: only these examples: a split, ordinals, or text such as `0,5,20:40`.
        role: `replay` keeps whole sequences and the clean outputs of a model, for `Replay`; `rows` is then left alone.
        outputs, columns: of a replay: outputs of the `last` piece of each example (default of causal models), of `mask`
            pieces (of masked ones), `all` or `none`; vocabulary ids kept, or a file of them (None: all).
        progress: show a bar on standard error; None: if it is a terminal.

    Raises:
        UnknownSite: a pattern that matches no site.
        BadParameter: an option out of range, or `sentence:cls` without a CLS piece.
        CorpusError: no examples, or a long input under `refuse`.
        AlignmentError: word spans that overlap or leave their text.
        ProvenanceMismatch: `to` holds a store of another model, corpus or recipe, or one begun with other versions.
        DiskFull: not enough room for what is missing.
        NonFiniteStates: NaN or infinity, naming the site and the sentence.
        NotRepresentable: a state too large for the stored dtype.
        UnitFailed: several shards failed, all others being done; what fails in one shard only is raised itself.
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
        place = place_of_work(model.device)
    writer = target.open(place)
    shards = [shard for shard in writer.missing() if shard % array_size == array_index]
    plan = shard_units(digest(identity), cut.part, cut.starts, shards, cut.kept)
    writer.preflight(cut.bytes_of([example for unit in plan.units for example in unit.payload.examples]))
    with words_bar("extracting", sum(unit.size for unit in plan.units), progress) as advance, sole_error_itself():
        complete(
            plan,
            runner,
            factory,
            advance,
            missing=lambda: ids_of(plan, set(writer.missing())),
            busy=lambda: ids_of(plan, Leases(Path(to)).held().keys()),
        )
    if writer.missing():
        return Store.open(Path(to), allow_partial=True)
    writer.seal()
    return Store.open(Path(to))


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
