"""Computes the content of one shard: runs examples through the model and pools pieces (tokens) to rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from mmap import mmap
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from probing.errors import BadParameter, NonFiniteStates
from probing.models.batching import ParallelBatches, length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.states.extraction.pooling import Gather, Windows, windowed_states, windows_of
from probing.states.store import ITEM_BYTES, ShardContent, narrow
from probing.states.store.format import FLAGS, MAX_SHARD_BYTES
from probing.text.alignment import Encoded, Rows, piece_rows, sentence_rows, word_rows
from probing.text.chat import ChatTemplate
from probing.text.corpus import Example
from probing.text.positions import SCOPE, Position, position_rows

SKIPPED, TRUNCATED, HAS_MISSING, WINDOWED = FLAGS.values()
WINDOW = "window"


class Clock(Protocol):
    """Describes a progress function: it is called during a run with the number of words of text read since its last
    call.
    """

    def __call__(self, words: int) -> None: ...


@dataclass(frozen=True)
class ReadingOptions:
    """Holds the options of an extraction: sites, rows, data type and limits.

    Attributes:
        sites: site names, in order.
        scope, pool: the parts of the option `rows` before and after the colon, such as `word` and `mean`.
        dtype: dtype that states are stored in.
        max_length: largest number of pieces of an input; None: no limit.
        long_inputs: treatment of longer inputs: `truncate`, `window`, `skip` or `refuse`.
        tokens_per_batch: largest number of padded pieces of a batch.
        positions: the positions, if rows are positions.
        stride: number of pieces from one window to the next, if long inputs are read in windows.
        chat: whether texts are put into prompts by the tokenizer's chat template.
    """

    sites: tuple[str, ...]
    scope: str
    pool: str
    dtype: str
    max_length: int | None
    long_inputs: str
    tokens_per_batch: int
    positions: tuple[Position, ...] = ()
    stride: int | None = None
    chat: bool = False

    def identity(self) -> dict[str, Any]:
        """Return the `extraction` block of a store's identity."""
        return {
            "role": "states",
            "sites": list(self.sites),
            "rows": self.scope if self.scope in ("piece", SCOPE) else f"{self.scope}:{self.pool}",
            "dtype": self.dtype,
            "batch_rule": f"length-sorted, at most {self.tokens_per_batch} padded pieces, equal examples once",
            "long_inputs": self.long_inputs,
            "max_length": self.max_length,
        } | ({"stride": self.stride, "window_rule": "nearest middle"} if self.long_inputs == WINDOW else {})

    def output_bytes(self, model: LanguageModel) -> tuple[int, int]:
        """Return bytes of stored outputs per row, and per example: 0, since only replay stores have outputs."""
        return 0, 0


def read_shard(
    model: LanguageModel,
    examples: Sequence[Example],
    start: int,
    reading: ReadingOptions,
    lanes: ParallelBatches,
    advance: Clock | None = None,
) -> ShardContent:
    """Run the examples of one shard through the model and return its content, which depends on model, examples and
    options only.

    Raises:
        NonFiniteStates: a state is NaN or infinite; the message names the site and the sentence.
        BadParameter: there are more rows than a shard may hold; the model is not run.
    """
    encoded, too_long = encode_within(model, examples, reading)
    rows = _rows(model, examples, encoded, reading)
    refuse_too_large(model, examples, rows, reading)
    windows = _windows(encoded, reading)
    states = _read_states(model, examples, encoded, rows, windows, reading, lanes, advance)
    content = assembled(model, examples, start, reading, encoded, too_long, rows, states, set(windows))
    return replace(content, windowed=tuple((start + e, len(cut.inputs)) for e, cut in windows.items()))


def refuse_too_large(model: LanguageModel, examples: Sequence[Example], rows: Rows, reading: ReadingOptions) -> None:
    """Refuse a shard that would be too large, before the model is run.

    Raises:
        BadParameter: the states take more bytes than a shard may have; the message names the example with the most
            rows.
    """
    n_bytes = len(rows) * sum(model.width(site) for site in reading.sites) * ITEM_BYTES[reading.dtype]
    if n_bytes > MAX_SHARD_BYTES:
        e = int(np.argmax(np.diff(rows.offset)))
        raise BadParameter(
            "the states of one shard are too many",
            needed=f"at most {MAX_SHARD_BYTES:,} bytes",
            found=f"{n_bytes:,} bytes of {len(rows):,} rows, {int(np.diff(rows.offset)[e]):,} of one example",
            where=f"sentence {examples[e].id}",
            next_step="cut long texts into several examples, set max_length, or extract fewer sites at a time",
        )


def assembled(
    model: LanguageModel,
    examples: Sequence[Example],
    start: int,
    reading: ReadingOptions,
    encoded: Sequence[Encoded],
    too_long: Sequence[int],
    rows: Rows,
    states: dict[str, NDArray[Any]],
    windowed: Set[int] = frozenset(),
) -> ShardContent:
    """Return the content of a shard that is common to stores of both roles: rows, examples, sites, and the words and
    examples left out.
    """
    skipped = dict(rows.skipped) | dict.fromkeys(too_long, "too_long")
    missing = [(start + e, w, reason) for e, w, reason in rows.missing if e not in set(too_long)]
    with_missing = {e - start for e, _, _ in missing}
    return ShardContent(
        example_start=start,
        n_examples=len(examples),
        rows=_row_columns(rows, start),
        examples=_example_columns(examples, encoded, rows, start, set(skipped), with_missing, windowed),
        sites=states,
        modules={site: model.modules[site] for site in reading.sites},
        skipped=tuple((start + e, reason) for e, reason in sorted(skipped.items())),
        missing_words=tuple(missing),
        heads={site: size for site in reading.sites if (size := model.head_size(site))},
        pieces=sum(int((~one.special).sum()) for one in encoded),
        inputs=_inputs_not_told_by_text(encoded, start, model.tokenizer.unk_token_id),
    )


def _inputs_not_told_by_text(
    encoded: Sequence[Encoded], start: int, unknown_id: int | None
) -> tuple[tuple[int, int, str], ...]:
    """Return (example, unknown pieces, hash of the ids) of inputs with unknown pieces, or cut, since other texts may
    give the same input.
    """
    counts = [int(((one.ids == unknown_id) & ~one.special).sum()) if unknown_id is not None else 0 for one in encoded]
    return tuple(
        (start + e, count, hashlib.sha256(one.ids.astype("<i8").tobytes()).hexdigest()[:16])
        for e, (one, count) in enumerate(zip(encoded, counts, strict=True))
        if count or one.is_truncated
    )


def _windows(encoded: Sequence[Encoded], reading: ReadingOptions) -> dict[int, Windows]:
    """Return the inputs that are read in windows, by position."""
    limit = reading.max_length
    if reading.long_inputs != WINDOW or limit is None or reading.stride is None:
        return {}
    return {e: windows_of(one, limit, reading.stride) for e, one in enumerate(encoded) if len(one) > limit}


def _read_states(
    model: LanguageModel,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    rows: Rows,
    windows: dict[int, Windows],
    reading: ReadingOptions,
    lanes: ParallelBatches,
    advance: Clock | None,
) -> dict[str, NDArray[Any]]:
    """Return the stored rows `(R, D)` by site."""
    stored = np.uint16 if reading.dtype == "bfloat16" else np.dtype(reading.dtype)
    states = {site: pages_for((len(rows), model.width(site)), stored) for site in reading.sites}
    original = _originals(examples)
    lengths = [
        len(one) if rows.offset[e + 1] > rows.offset[e] and original[e] == e else 0 for e, one in enumerate(encoded)
    ]
    alone = [[e] for e in windows if lengths[e]]
    together = [0 if e in windows else length for e, length in enumerate(lengths)]

    def read(batch: list[int]) -> int:
        """Write the rows of a batch, which no other batch writes, and return its number of words."""
        inputs = [encoded[e] for e in batch]
        gather = Gather.of(rows, batch, model.first_piece(inputs), lengths[batch[0]], model.device)
        if batch[0] in windows:
            found = windowed_states(model, windows[batch[0]], reading.sites, reading.tokens_per_batch)
        else:
            found = model.states(inputs, reading.sites)
        places = gather.rows.cpu()
        for site in reading.sites:
            pooled = gather.pool(found[site], reading.pool).cpu()
            if not math.isfinite(float(pooled.sum())):  # also where a sum of finite numbers overflows
                check_finite(pooled.numpy(), site, rows, places.numpy(), examples)
            narrowed = narrow(pooled.numpy(), reading.dtype, site)
            _tensor(states[site]).index_copy_(0, places, _tensor(narrowed))  # as states[places] = narrowed, faster
        return sum(n_words(examples[e]) for e in batch)

    for words in lanes.map(read, [*length_sorted_batches(together, reading.tokens_per_batch), *alone]):
        if advance is not None:
            advance(words)
    for e, first in enumerate(original):
        if e != first:
            for site in reading.sites:
                mine, its = (slice(rows.offset[i], rows.offset[i + 1]) for i in (e, first))
                states[site][mine] = states[site][its]
            if advance is not None:
                advance(n_words(examples[e]))
    return states


def pages_for(shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
    """Return an array of zeros in a separate memory mapping, which is returned to the system when the array is freed.

    On the heap, the arrays of a shard would lie between activations and leave holes that are never returned to the
    system.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap(-1, n_bytes), dtype).reshape(shape) if n_bytes else np.empty(shape, dtype)


def _originals(examples: Sequence[Example]) -> list[int]:
    """Return, for each example, the first with the same text, messages, words and spans: its rows are the same."""
    seen: dict[tuple[object, ...], int] = {}
    keys = [(one.text, one.messages, tuple(one.words), tuple(sorted(one.spans.items()))) for one in examples]
    return [seen.setdefault(key, e) for e, key in enumerate(keys)]


def _tensor(stored: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(stored.view(np.int16) if stored.dtype == np.uint16 else stored)


def check_finite(
    pooled: NDArray[Any], site: str, rows: Rows, places: NDArray[Any], examples: Sequence[Example]
) -> None:
    finite = np.isfinite(pooled).all(axis=1)
    if finite.all():
        return
    example = int(rows.example[places[np.flatnonzero(~finite)[0]]])
    raise NonFiniteStates(
        f"states at {site} are not finite",
        needed="finite numbers",
        found="NaN or infinity",
        where=f"site {site}, sentence {examples[example].id}",
        next_step="compute in bfloat16 or float32, which reach further than float16, or leave this site out",
    )


def inputs_of(model: LanguageModel, examples: Sequence[Example], reading: ReadingOptions) -> list[Encoded]:
    """Tokenise examples and return their inputs without truncation."""
    if reading.chat:
        return ChatTemplate(model.tokenizer, model.name).encode(examples)
    return model.encode([example.text for example in examples])


def encode_within(
    model: LanguageModel, examples: Sequence[Example], reading: ReadingOptions
) -> tuple[list[Encoded], list[int]]:
    """Tokenise examples, and return the inputs within the length limit and the positions of those skipped because they
    are too long.
    """
    encoded = inputs_of(model, examples, reading)
    limit = reading.max_length
    too_long = [e for e, one in enumerate(encoded) if limit is not None and len(one) > limit]
    for e in too_long if reading.long_inputs != WINDOW else ():
        encoded[e] = encoded[e].emptied() if reading.long_inputs == "skip" else encoded[e].truncated(limit or 0)
    return encoded, too_long if reading.long_inputs == "skip" else []


def _rows(
    model: LanguageModel, examples: Sequence[Example], encoded: Sequence[Encoded], reading: ReadingOptions
) -> Rows:
    texts, words = [example.text for example in examples], [example.words for example in examples]
    if reading.scope == "word":
        return word_rows(texts, words, encoded, reading.pool)
    if reading.scope == "piece":
        return piece_rows(texts, words, encoded)
    if reading.scope == SCOPE:
        return position_rows(examples, encoded, reading.positions)
    return sentence_rows(encoded, reading.pool, model.cls_id)


def _row_columns(rows: Rows, start: int) -> dict[str, NDArray[Any]]:
    position = {} if rows.position is None else {"position": rows.position.astype("<u2")}
    return position | {
        "example": (rows.example + start).astype("<u4"),
        "piece_start": rows.piece[:, 0].astype("<u4"),
        "piece_end": rows.piece[:, 1].astype("<u4"),
        "char_start": rows.char[:, 0].astype("<u4"),
        "char_end": rows.char[:, 1].astype("<u4"),
        "word": rows.word.astype("<i4"),
    }


def _example_columns(
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    rows: Rows,
    start: int,
    skipped: set[int],
    with_missing: set[int],
    windowed: Set[int],
) -> dict[str, NDArray[Any]]:
    hashes = b"".join(hashlib.sha256(example.text.encode()).digest() for example in examples)
    flags = [
        SKIPPED * (e in skipped)
        | TRUNCATED * encoded[e].is_truncated
        | HAS_MISSING * (e in with_missing)
        | WINDOWED * (e in windowed)
        for e in range(len(examples))
    ]
    return {
        "offset": rows.offset.astype("<u8"),
        "ordinal": np.arange(start, start + len(examples)).astype("<u4"),
        "text_sha256": np.frombuffer(hashes, dtype="u1").reshape(-1, 32),
        "flags": np.array(flags, dtype="u1"),
    }


def n_words(example: Example) -> int:
    return len(example.words) or len(example.text.split())
