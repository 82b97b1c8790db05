"""The chosen examples of a corpus, their cut into shards, and the identity of the store that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from probing.errors import BadParameter, unknown_name
from probing.models.language_model import LanguageModel
from probing.states.extraction.replay_reading import output_bytes
from probing.states.extraction.shard_reading import ReadingOptions
from probing.states.store import ITEM_BYTES, ShardContent
from probing.states.store.shard_starts import row_estimate, shard_starts
from probing.text.chat import ChatTemplate
from probing.text.corpus import Corpus, Example
from probing.text.positions import positions_identity


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
    """Says which examples each shard of a store holds.

    Attributes:
        corpus: the whole corpus.
        kept: ordinals of the examples to read; None: all.
        part: the corpus of those examples only.
        starts: first example of each shard, counted in `part`.
        scope: what a row is: `piece`, `word`, `sentence` or `position`.
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
        """Divide the corpus into shards of about `shard_bytes`, from corpus and recipe alone, and return the plan.

        Raises:
            BadParameter: the size is out of range, there would be too many shards, or the subset is not of this corpus.
        """
        if not 1 <= shard_bytes <= 1 << 30:
            raise BadParameter("shard_bytes is out of range", needed="1 to 1 GiB", found=str(shard_bytes))
        kept = subset_of(corpus, subset)
        part = corpus if kept is None else replace(corpus, examples=tuple(corpus.examples[k] for k in kept))
        by_row, by_example = output_bytes(model, reading)
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
