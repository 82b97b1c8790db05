"""The cut of a corpus into shards under a recipe, and the identity of the store that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from probing.errors import BadParameter
from probing.models.batching import row_estimate, shard_starts
from probing.models.language_model import LanguageModel
from probing.states.extraction.replay_reading import output_bytes
from probing.states.extraction.shard_reading import Reading
from probing.states.extraction.subset import subset_of
from probing.states.store import ITEM_BYTES
from probing.text.chat import ChatTemplate
from probing.text.corpus import Corpus, Example
from probing.text.positions import positions_identity


@dataclass(frozen=True)
class ShardPlan:
    """The plan of the shards of one store.

    Attributes:
        corpus: the whole corpus.
        kept: ordinals of the examples that are read; None: all.
        part: those examples.
        starts: first example of each shard, counted in `part`.
        scope: of the rows.
        row_bytes, example_bytes: what a row, and what an example, adds to a shard, over all sites.
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
        reading: Reading,
        *,
        subset: str | Sequence[int] | None,
        shard_bytes: int,
    ) -> Self:
        """Cut the corpus near `shard_bytes`, from the corpus and the recipe alone.

        Raises:
            BadParameter: a size out of range, too many shards, or a subset that is none of the corpus.
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
        """Return about how many bytes these examples take."""
        n_rows = sum(row_estimate(example, self.scope) for example in examples)
        return self.row_bytes * n_rows + self.example_bytes * len(examples)

    def identity(self, model: LanguageModel, reading: Reading) -> dict[str, Any]:
        """Return everything that changes numbers: the `identity` of store.json."""
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
