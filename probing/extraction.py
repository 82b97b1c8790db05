"""Extraction: a corpus through a model into a store, shard by shard; a stopped run goes on where it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from probing.alignment import check_words
from probing.batching import row_estimate, shard_starts
from probing.corpus import Corpus, Example
from probing.errors import BadParameter, CorpusError, unknown_name
from probing.gathering import Gathering, selected
from probing.language_model import LanguageModel
from probing.provenance import environment
from probing.replay_reading import ReplayReading, columns_of, outputs_of, read_replay_shard, vocabulary_size
from probing.shard_reading import Clock, Reading, n_words, read_shard
from probing.site import select_sites
from probing.store import ShardContent, Store, StoreWriter
from probing.subset import subset_of, with_ordinals

ROWS = (
    "piece", "word:first", "word:last", "word:mean", "word:max",
    "sentence:first", "sentence:last", "sentence:mean", "sentence:cls",
)  # fmt: skip
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LONG_INPUTS = ("truncate", "skip", "refuse")
TOKENS_PER_BATCH = 2048
SHARD_BYTES = 64 << 20

LongInputs = Literal["truncate", "skip", "refuse"]


def extract(
    model: LanguageModel | str, corpus: Corpus, *, sites: str | Sequence[str] = "resid.*", to: str | Path,
    rows: str = "word:mean", dtype: str | None = None, max_length: int | None = None,
    long_inputs: LongInputs = "truncate", tokens_per_batch: int = TOKENS_PER_BATCH, shard_bytes: int = SHARD_BYTES,
    num_workers: int = 1, worker_index: int = 0, moments: str | None = None,
    subset: str | Sequence[int] | None = None, role: Literal["states", "replay"] = "states",
    outputs: str | None = None, columns: str | Sequence[int] | None = None, progress: bool | None = None,
) -> Store:  # fmt: skip
    """States of a corpus at the chosen sites, pooled to rows, in a store; only what is missing is computed.

    Args:
        model: a model, or the name of one.
        corpus: the examples.
        sites: shell-style patterns, comma-separated or a list; `name=module.path` makes a site of any module.
        to: the store's directory, new or unfinished.
        rows: `piece`, `word:first|last|mean|max` or `sentence:first|last|mean|cls`. `first` and `last` are content
            pieces, not special ones.
        dtype: stored dtype; None: the compute dtype.
        max_length: the most pieces of an input; None: what the model allows.
        long_inputs: `truncate` (words cut are named), `skip` or `refuse`.
        tokens_per_batch: padded pieces of a batch.
        shard_bytes: size of a shard, about.
        num_workers, worker_index: of that many processes, which share a file system, this one takes the shards whose
            number modulo `num_workers` is `worker_index`. Whoever finds all shards done seals the store; the others
            return it unfinished.
        moments: a split, or `all`: also gather means and cross-products of its states (`Store.moments`).
        subset: only these examples: a split, ordinals, or text such as `0,5,20:40`.
        role: `replay` keeps whole sequences, special pieces too, and the clean outputs of a model with a head, so that
            `Replay` can run the model from any of the sites; `rows` is then left alone.
        outputs: for a replay: outputs of the `last` piece of each example (default of causal models), of `mask`
            pieces (default of masked ones), of `all` pieces, or `none`.
        columns: for a replay: vocabulary ids whose outputs are kept, or a file of them; None: all.
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
    """
    if not 0 <= worker_index < num_workers:
        raise BadParameter("no such worker", needed=f"0 to {num_workers - 1}", found=str(worker_index))
    model = LanguageModel.load(model) if isinstance(model, str) else model
    reading = _reading(model, sites, rows, dtype, max_length, long_inputs, tokens_per_batch, shard_bytes)
    reading = _with_role(model, reading, role, outputs, columns)
    kept = subset_of(corpus, subset)
    part = corpus if kept is None else replace(corpus, examples=tuple(corpus.examples[k] for k in kept))
    _check_corpus(model, part, reading)
    if moments is not None:
        selected(corpus, moments)
    row_bytes = sum(model.width(site) for site in reading.sites) * ITEM_BYTES[reading.dtype]
    output_bytes = _output_bytes(model, reading)
    starts = shard_starts(part, reading.scope, row_bytes + output_bytes[0], shard_bytes, output_bytes[1])
    identity = _identity(model, corpus, reading, starts, kept)
    writer = StoreWriter.open(Path(to), identity=identity, environment=environment(model.device))
    bounds = (*starts, len(part))
    before = None if moments is None else Store.open(Path(to), allow_partial=True)
    gathering = None if moments is None else Gathering(reading.sites, corpus, moments, before)
    missing = [shard for shard in writer.missing() if shard % num_workers == worker_index]
    todo = [part.examples[bounds[shard] : bounds[shard + 1]] for shard in missing]
    estimates = [row_estimate(example, reading.scope) for examples in todo for example in examples]
    writer.preflight((row_bytes + output_bytes[0]) * sum(estimates) + output_bytes[1] * len(estimates))
    total = sum(n_words(example) for examples in todo for example in examples)
    packing = nullcontext() if isinstance(reading, ReplayReading) else model.many_states()
    with _progress(total, progress) as advance, packing, ThreadPoolExecutor(max_workers=1) as background:
        commit: Future[None] | None = None  # of the shard before, while the model reads the next
        for shard, examples in zip(missing, todo, strict=True):
            content = _read(model, examples, bounds[shard], reading, advance)
            content = content if kept is None else with_ordinals(content, kept)
            if commit is not None:
                commit.result()
            commit = background.submit(_commit, writer, shard, content, gathering)
        if commit is not None:
            commit.result()
    if writer.missing():
        return Store.open(Path(to), allow_partial=True)
    writer.seal()
    store = Store.open(Path(to))
    if gathering is not None:
        gathering.finish(store)
    return store


def _read(
    model: LanguageModel, examples: Sequence[Example], start: int, reading: Reading, advance: Clock
) -> ShardContent:
    if isinstance(reading, ReplayReading):
        return read_replay_shard(model, examples, start, reading, advance)
    return read_shard(model, examples, start, reading, advance)


def _commit(writer: StoreWriter, shard: int, content: ShardContent, gathering: Gathering | None) -> None:
    writer.commit(shard, content)
    if gathering is not None:
        gathering.add(shard, content)


def _reading(
    model: LanguageModel, sites: str | Sequence[str], rows: str, dtype: str | None, max_length: int | None,
    long_inputs: str, tokens_per_batch: int, shard_bytes: int,
) -> Reading:  # fmt: skip
    """Check every option before any work."""
    if rows not in ROWS:
        raise unknown_name("row scope", rows, ROWS, error=BadParameter)
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
    scope, _, pool = rows.partition(":")
    chosen = select_sites(_named_modules(model, sites), model.sites)
    return Reading(chosen, scope, pool or "mean", stored, max_length or limit, long_inputs, tokens_per_batch)


def _with_role(
    model: LanguageModel, reading: Reading, role: str, outputs: str | None, columns: str | Sequence[int] | None
) -> Reading:
    """The reading, or that of a replay store."""
    if role not in ("states", "replay"):
        raise unknown_name("role", role, ("states", "replay"), error=BadParameter)
    if role == "states":
        if outputs is not None or columns is not None:
            raise BadParameter("outputs and columns are of a replay store", needed="role replay", found="role states")
        return reading
    if reading.dtype != model.dtype:
        raise BadParameter(
            "a replay store keeps states as they were computed", needed=f"stored dtype {model.dtype}",
            found=reading.dtype, next_step="leave the stored dtype out, or compute in it",
        )  # fmt: skip
    kept = outputs_of(model, outputs)
    if kept == "none" and columns is not None:
        raise BadParameter("there are no outputs to choose columns of", needed="outputs last, mask or all", found=kept)
    values = vars(reading) | {"scope": "sequence", "pool": "mean"}
    return ReplayReading(**values, outputs=kept, columns=columns_of(model, columns))


def _output_bytes(model: LanguageModel, reading: Reading) -> tuple[int, int]:
    """Bytes of outputs by row and by example."""
    if not isinstance(reading, ReplayReading) or reading.outputs == "none":
        return 0, 0
    width = vocabulary_size(model) if reading.columns is None else len(reading.columns)
    return (4 * width, 0) if reading.outputs == "all" else (0, 4 * width)


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
    lengths = [len(example.text) for example in examples]
    check_words([example.words for example in examples], lengths, [example.id for example in examples])
    if reading.long_inputs == "refuse" and reading.max_length is not None:
        _refuse_long(model, examples, reading.max_length)


def _refuse_long(model: LanguageModel, examples: Sequence[Example], limit: int) -> None:
    # A piece is at least one byte, so that only long texts need be tried; 16 leaves room for special pieces.
    long = [example for example in examples if len(example.text.encode()) + 16 > limit]
    for example, encoded in zip(long, model.encode([example.text for example in long]), strict=True):
        if len(encoded) > limit:
            raise CorpusError(
                "an input is too long for the model", needed=f"at most {limit} pieces", found=f"{len(encoded)} pieces",
                where=f"sentence {example.id}", next_step="shorten it, or use long inputs truncate or skip",
            )  # fmt: skip


def _identity(
    model: LanguageModel, corpus: Corpus, reading: Reading, starts: tuple[int, ...], kept: tuple[int, ...] | None
) -> dict[str, Any]:
    source = ", ".join(Path(part.strip()).name for part in corpus.source.split(","))
    return model.identity() | {
        "corpus": {"fingerprint": corpus.fingerprint, "source": source, "subset": None if kept is None else list(kept)},
        "extraction": reading.identity() | model.added_modules(reading.sites),
        "plan": {"starts": list(starts), "count": len(corpus) if kept is None else len(kept)},
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
