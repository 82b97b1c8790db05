"""Sequences: whole-sequence states of examples in memory, padded into batches as a model is given them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import BadParameter
from probing.models.batching import PaddedBatch, length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.text.alignment import Encoded

Ints = NDArray[np.int64]
Flat = dict[str, Tensor]
MAX_BYTES = 4 << 30


def cut_by_length(lengths: Ints, tokens_per_batch: int) -> list[Ints]:
    """Return inputs of like length together, the longest first, at most so many padded pieces at once."""
    if len(lengths) and int(lengths.max()) * len(lengths) <= tokens_per_batch:
        return [np.argsort(-lengths, kind="stable")]
    return [np.array(part) for part in length_sorted_batches(lengths.tolist(), tokens_per_batch)]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of B inputs, padded to T pieces.

    Attributes:
        inputs: ids, mask, positions.
        index: `(B, T)` flat piece of each place; one past the last for padding.
        start: `(B,)` column of each input's first piece.
    """

    inputs: PaddedBatch
    index: Tensor
    start: Ints


class Sequences:
    """States of E examples of P pieces in all.

    Attributes:
        lengths: `(E,)` pieces.
        states: `(P + 1, D)` float32 by site, the last row 0, for padding.
    """

    def __init__(self, model: LanguageModel, encoded: Sequence[Encoded], *, tokens_per_batch: int) -> None:
        self._model = model
        self._encoded = encoded
        self.lengths = np.array([len(one) for one in encoded], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.tokens_per_batch = tokens_per_batch
        self.states: Flat = {}
        self.special = torch.from_numpy(np.concatenate([*(one.special for one in encoded), [True]]))

    def reserve(self, widths: Mapping[str, int], max_bytes: int) -> None:
        """Make room for the states of these sites.

        Raises:
            BadParameter: they would take more than `max_bytes`.
        """
        pieces = int(self.offsets[-1]) + 1
        needed = 4 * pieces * sum(widths.values())
        if needed > max_bytes:
            raise BadParameter(
                "whole-sequence states do not fit",
                needed=f"at most {max_bytes / 2**30:.2f} GiB (max_bytes)",
                found=f"{needed / 2**30:.2f} GiB: {pieces - 1} pieces at {len(widths)} sites",
                next_step="give fewer sites or rows (max_rows), or raise max_bytes",
            )
        self.states = {site: torch.zeros((pieces, width)) for site, width in widths.items()}

    def batch(self, examples: Ints) -> Batch:
        """Return the examples (any number of times each) as one batch."""
        given = [self._encoded[e] for e in examples]
        inputs, start = self._model.padded(given), self._model.first_piece(given)
        length = inputs.ids.shape[1]
        column = np.arange(length)[None] - start[:, None]
        real = (column >= 0) & (column < self.lengths[examples][:, None])
        index = np.where(real, self.offsets[examples][:, None] + column, self.offsets[-1])
        return Batch(inputs, torch.from_numpy(index), start)

    def at(self, flat: Tensor, batch: Batch) -> Tensor:
        """Return a flat tensor as `(B, T, …)`, on the model's device."""
        return flat[batch.index].to(batch.inputs.ids.device)

    def parts(self) -> list[Ints]:
        """Return all examples, in length-sorted batches."""
        return cut_by_length(self.lengths, self.tokens_per_batch)

    def read(self, sites: Sequence[str]) -> Iterator[tuple[Ints, Flat]]:
        """Yield examples, and the states of their pieces in order by site, `(pieces, D)` float32, from one clean pass
        each.
        """
        for part in self.parts():
            batch = self.batch(part)
            with torch.no_grad():
                _, found = self._model.suffix.run(batch.inputs, sites)
            real = batch.index < int(self.offsets[-1])
            yield part, {site: states.cpu()[real].float() for site, states in found.items()}

    def gather(self, run: Callable[[Batch], Mapping[str, Tensor]], fill: float) -> Flat:
        """Return flat tensors `(P + 1, …)` of what `run` gives for each batch, `fill` in the last row."""
        flat: Flat = {}
        for part in self.parts():
            batch = self.batch(part)
            for name, values in run(batch).items():
                values = values.float().cpu()
                if name not in flat:
                    flat[name] = torch.full((int(self.offsets[-1]) + 1, *values.shape[2:]), fill)
                flat[name][batch.index] = values
        for values in flat.values():
            values[-1] = fill
        return flat

    def flat_index(self, examples: Ints) -> Ints:
        """Return the flat pieces of the examples, one after the other."""
        return np.concatenate([np.arange(self.offsets[e], self.offsets[e + 1]) for e in examples])
