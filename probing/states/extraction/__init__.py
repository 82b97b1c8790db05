"""Extracts states: runs a corpus through a model and writes the states into a store, file by file (shard by shard); a
stopped run can be resumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from probing._renamed import takes_old_names
from probing.contracts.executor import Executor, WorkerFactory
from probing.errors import BadParameter, DoubtfulData, warn_user
from probing.executors._units import complete, executor_of, sole_error_itself
from probing.models.language_model import LanguageModel
from probing.models.site import are_module_paths
from probing.provenance import digest
from probing.states.extraction.reading_options import TOKENS_PER_BATCH, LongInputs, ShardPlan, check_corpus, reading_of
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
from probing.states.store_warnings import unknown_pieces_warning
from probing.system.progress import words_bar
from probing.text.corpus import Corpus

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
        long_inputs: what to do with longer inputs: `truncate` (words cut off are listed), `window` (read them in
            overlapping windows), `skip` or `refuse`.
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
        progress: whether to show a bar on standard error; None shows it in a terminal only.

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
    writer = target.open(place)
    shards = [shard for shard in writer.missing() if shard % array_size == array_index]
    plan = shard_units(digest(identity), cut.part, cut.starts, shards, cut.kept)
    writer.preflight(cut.bytes_of([example for unit in plan.units for example in unit.payload.examples]))
    size = sum(unit.size for unit in plan.units)
    with words_bar("extracting", size, progress, are_rows=reading.scope == "word") as advance, sole_error_itself():
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
    store = Store.open(Path(to))
    if sentence := unknown_pieces_warning(store.unknown_pieces):
        warn_user(sentence, DoubtfulData)
    return store


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
