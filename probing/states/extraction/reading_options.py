"""Checks the options of an extraction, makes ReadingOptions of them, and plans the shards (ShardPlan)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from probing.errors import BadParameter, CorpusError, unknown_name
from probing.models.language_model import LanguageModel
from probing.models.site import select_sites
from probing.states.extraction.replay_reading import as_replay
from probing.states.extraction.shard_reading import WINDOW, ReadingOptions, inputs_of
from probing.states.store import ITEM_BYTES, STATE_TYPES, ShardContent
from probing.states.store.commit_record import row_estimate, shard_starts
from probing.text.alignment import check_words
from probing.text.chat import ChatTemplate
from probing.text.corpus import Corpus, Example
from probing.text.positions import SCOPE, check_spans, parse_positions, positions_identity

ROWS = (
    "piece",
    "word:first",
    "word:last",
    "word:mean",
    "word:max",
    "sentence:first",
    "sentence:last",
    "sentence:mean",
    "sentence:max",
    "sentence:cls",
)
LONG_INPUTS = ("truncate", "window", "skip", "refuse")
TOKENS_PER_BATCH = 2048
_CHUNK = 8192  # examples looked at together: all of a large corpus would fill the memory

LongInputs = Literal["truncate", "window", "skip", "refuse"]


def reading_of(
    model: LanguageModel,
    *,
    sites: str | Sequence[str],
    rows: str,
    dtype: str | None = None,
    max_length: int | None = None,
    long_inputs: str = "truncate",
    stride: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    chat_template: bool = False,
    role: str = "states",
    outputs: str | None = None,
    columns: str | Sequence[int] | None = None,
) -> ReadingOptions:
    """Check options of `extract` and return them as `ReadingOptions`; sites of the form `name=module.path` are added to
    the model.

    Raises:
        UnknownSite: a pattern matches no site.
        BadParameter: an option is out of range, or excluded by the model or another option.
        ReplayUnavailable: a replay is asked for, but the model is not read by its blocks.
    """
    scope, _, pool = rows.partition(":")
    positions = parse_positions(pool) if scope == SCOPE else ()
    _check_rows(model, rows, is_position=bool(positions))
    stored = dtype or model.dtype
    if stored not in STATE_TYPES:
        raise unknown_name("stored dtype", stored, STATE_TYPES, error=BadParameter)
    if tokens_per_batch < 1:
        raise BadParameter("tokens_per_batch is out of range", needed="at least 1", found=str(tokens_per_batch))
    limit = _length_limit(model, max_length, long_inputs)
    chosen = select_sites(_named_modules(model, sites), model.sites)
    pool = "mean" if positions else pool or "mean"
    reading = ReadingOptions(chosen, scope, pool, stored, limit, long_inputs, tokens_per_batch, positions)
    if long_inputs == WINDOW or stride is not None:
        reading = replace(reading, stride=_stride(reading, stride))
    if chat_template:
        ChatTemplate(model.tokenizer, model.name)  # refuses a tokenizer that has none
        reading = replace(reading, chat=True)
    if role not in ("states", "replay"):
        raise unknown_name("role", role, ("states", "replay"), error=BadParameter)
    if role == "replay":
        return as_replay(model, reading, outputs, columns)
    if outputs is not None or columns is not None:
        raise BadParameter("outputs and columns are of a replay store", needed="role replay", found="role states")
    return reading


def _check_rows(model: LanguageModel, rows: str, *, is_position: bool) -> None:
    if not is_position and rows not in ROWS:
        usual = {"sentence": "sentence:mean", "word": "word:mean"}.get(rows.partition(":")[0].lower().removesuffix("s"))
        error = unknown_name("row scope", rows, (*ROWS, f"{SCOPE}:NAME"), error=BadParameter)
        error.next_step = f"did you mean {usual!r}?" if usual else error.next_step
        raise error
    if rows == "sentence:cls" and model.cls_id is None:
        raise BadParameter(
            "sentence:cls needs a CLS piece",
            needed="a tokenizer with a CLS piece",
            found="none",
            where=model.name,
            next_step="use rows sentence:last or sentence:mean",
        )


def _length_limit(model: LanguageModel, max_length: int | None, long_inputs: str) -> int | None:
    if long_inputs not in LONG_INPUTS:
        raise unknown_name("rule for long inputs", long_inputs, LONG_INPUTS, error=BadParameter)
    limit = model.max_length
    if max_length is not None and (max_length < 4 or (limit is not None and max_length > limit)):
        needed = f"4 to {limit}" if limit is not None else "at least 4"
        raise BadParameter("max_length is out of range", needed=needed, found=str(max_length), where=model.name)
    return max_length or limit


def _stride(reading: ReadingOptions, stride: int | None) -> int:
    limit = reading.max_length
    if reading.long_inputs != WINDOW or limit is None:
        raise BadParameter(
            "a stride is for long inputs read in windows" if limit else "windows of which length?",
            needed="long inputs `window`, and a max_length",
            found=f"{reading.long_inputs}, max_length {limit}",
            next_step="leave the stride out" if limit else "give max_length",
        )
    if stride is not None and not 1 <= stride <= limit:
        raise BadParameter("the stride is out of range", needed=f"1 to {limit}", found=str(stride))
    return stride or max(1, limit // 2)


def _named_modules(model: LanguageModel, sites: str | Sequence[str]) -> list[str]:
    """Return site patterns; those of the form `name=module.path` were made sites of the model."""
    patterns = []
    for part in sites.split(",") if isinstance(sites, str) else sites:
        name, _, path = part.strip().partition("=")
        if path:
            model.add_site(name, path)
        patterns.append(name)
    return patterns


def check_corpus(model: LanguageModel, corpus: Corpus, reading: ReadingOptions) -> None:
    """Check that the corpus can be read with these options.

    Raises:
        CorpusError: there are no examples, a position names an unknown span, or an input is too long under `refuse`.
        AlignmentError: word spans overlap or leave their text.
    """
    examples = corpus.examples
    if not examples:
        raise CorpusError("there is nothing to extract", needed="at least one example", found="0", where=corpus.source)
    if reading.positions:
        check_spans(corpus, reading.positions)
    for first in range(0, len(examples), _CHUNK):
        chunk = examples[first : first + _CHUNK]
        check_words([e.words for e in chunk], [len(e.text) for e in chunk], [e.id for e in chunk])
    if reading.long_inputs == "refuse" and reading.max_length is not None:
        _refuse_long(model, examples, reading, reading.max_length)


def _refuse_long(model: LanguageModel, examples: Sequence[Example], reading: ReadingOptions, limit: int) -> None:
    # A piece is at least one byte, so that only long texts need be tried; 16 leaves room for special pieces.
    long = [example for example in examples if reading.chat or len(example.text.encode()) + 16 > limit]
    for example, encoded in zip(long, inputs_of(model, long, reading), strict=True):
        if len(encoded) > limit:
            raise CorpusError(
                "an input is too long for the model",
                needed=f"at most {limit} pieces",
                found=f"{len(encoded)} pieces",
                where=f"sentence {example.id}",
                next_step="shorten it, or use long inputs truncate or skip",
            )


def subset_of(corpus: Corpus, subset: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the ordinals of the examples in a subset, in rising order; None: all examples.

    Args:
        corpus: the corpus.
        subset: a split, numbers, or a text of numbers and half-open ranges: `0,5,20:40`.

    Raises:
        BadParameter: there is no such split (the message names the nearest) or example, or the subset is empty.
    """
    if subset is None:
        return None
    if isinstance(subset, str) and not any(c.isdigit() for c in subset):
        if subset not in corpus.splits:
            raise unknown_name("subset", subset, corpus.splits, where=corpus.source, error=BadParameter)
        kept = {k for k, example in enumerate(corpus.examples) if example.split == subset}
    elif isinstance(subset, str) and subset in corpus.splits:
        kept = {k for k, example in enumerate(corpus.examples) if example.split == subset}
    else:
        kept = _numbers(subset, len(corpus)) if isinstance(subset, str) else {int(k) for k in subset}
    if not kept or min(kept) < 0 or max(kept) >= len(corpus):
        raise BadParameter(
            "the subset is not of this corpus",
            needed=f"some of 0 to {len(corpus) - 1}",
            found=f"{min(kept)} to {max(kept)}" if kept else "nothing",
            where=corpus.source,
        )
    return None if len(kept) == len(corpus) else tuple(sorted(kept))


def _numbers(text: str, count: int) -> set[int]:
    kept: set[int] = set()
    for part in text.split(","):
        first, colon, end = part.strip().partition(":")
        if not first.isdigit() or not (end.isdigit() if colon else not end) or (colon and int(end) > count):
            needed = f"a split, or numbers and ranges such as 0,5,20:40 of {count} examples"
            raise BadParameter("not a subset", needed=needed, found=part)
        kept |= set(range(int(first), int(end))) if colon else {int(first)}
    return kept


def with_ordinals(content: ShardContent, ordinals: Sequence[int]) -> ShardContent:
    """Return the content of one shard, with its examples numbered by their ordinals in the whole corpus instead of in
    the subset.
    """
    own, start = np.asarray(ordinals, dtype=np.int64), content.example_start
    return replace(
        content,
        rows={**content.rows, "example": own[content.rows["example"].astype(np.int64) - start]},
        examples={**content.examples, "ordinal": own[content.examples["ordinal"].astype(np.int64) - start]},
        skipped=tuple((ordinals[e - start], reason) for e, reason in content.skipped),
        missing_words=tuple((ordinals[e - start], w, reason) for e, w, reason in content.missing_words),
        windowed=tuple((ordinals[e - start], count) for e, count in content.windowed),
        inputs=tuple((ordinals[e - start], unknown, ids) for e, unknown, ids in content.inputs),
    )


@dataclass(frozen=True)
class ShardPlan:
    """Holds the division of a corpus into the shards of a store.

    Attributes:
        corpus: the whole corpus.
        kept: ordinals of the examples to read; None means all.
        part: the corpus of those examples only.
        starts: first example of each shard, counted in `part`.
        scope: kind of rows: `piece`, `word`, `sentence` or `position`.
        row_bytes, example_bytes: bytes that each row, and each example, adds to a shard, over all sites.
    """

    corpus: Corpus
    kept: tuple[int, ...] | None
    part: Corpus
    starts: tuple[int, ...]
    scope: str
    row_bytes: int
    example_bytes: int

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        corpus: Corpus,
        reading: ReadingOptions,
        *,
        subset: str | Sequence[int] | None,
        shard_bytes: int,
    ) -> Self:
        """Divide the corpus into shards of about `shard_bytes` and return the plan, which depends on corpus and options
        only.

        Raises:
            BadParameter: the size is out of range, there would be too many shards, or the subset is not of this corpus.
        """
        if not 1 <= shard_bytes <= 1 << 30:
            raise BadParameter("shard_bytes is out of range", needed="1 to 1 GiB", found=str(shard_bytes))
        kept = subset_of(corpus, subset)
        part = corpus if kept is None else replace(corpus, examples=tuple(corpus.examples[k] for k in kept))
        by_row, by_example = reading.output_bytes(model)
        states = sum(model.width(site) for site in reading.sites) * ITEM_BYTES[reading.dtype]
        row_bytes = states * (len(reading.positions) or 1) + by_row
        starts = shard_starts(part, reading.scope, row_bytes, shard_bytes, by_example)
        return cls(corpus, kept, part, starts, reading.scope, row_bytes, by_example)

    def bytes_of(self, examples: Sequence[Example]) -> int:
        """Return the approximate number of bytes that the states of these examples take."""
        n_rows = sum(row_estimate(example, self.scope) for example in examples)
        return self.row_bytes * n_rows + self.example_bytes * len(examples)

    def identity(self, model: LanguageModel, reading: ReadingOptions) -> dict[str, Any]:
        """Return the `identity` of store.json: everything that determines the stored numbers."""
        corpus, kept = self.corpus, self.kept
        source = ", ".join(Path(part.strip()).name for part in corpus.source.split(","))
        more = positions_identity(corpus, reading.positions) if reading.positions else {}
        more |= {"chat": ChatTemplate(model.tokenizer, model.name).identity(corpus)} if reading.chat else {}
        subset = None if kept is None else list(kept)
        return model.identity() | {
            "corpus": {"fingerprint": corpus.fingerprint, "source": source, "subset": subset},
            "extraction": reading.identity() | model.added_modules(reading.sites) | more,
            "plan": {"starts": list(self.starts), "count": len(self.part)},
        }
