"""Defines `Replay`, which runs the later blocks of a model from stored states, batch by batch. It first checks that
unedited states give the stored outputs.

replay = Replay.open("cache/states/gpt2-replay", model)
for batch in replay.batches():
    states = replay.states(batch, "resid.6")
    before, after = batch.logits, replay.run(batch, "resid.6", edit(states))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import EditFailed, ProvenanceMismatch, ReplayUnavailable
from probing.models.batching import PaddedBatch
from probing.models.language_model import LanguageModel
from probing.models.reading.replay import is_same, tolerance
from probing.models.site import Site
from probing.provenance import differing_keys, value_at
from probing.states.store import Store

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ReplayBatch:
    """Holds a batch as the model read it, B examples of T tokens each (padding included), and stored outputs: the
    logits of C vocabulary ids at M of the tokens.

    Attributes:
        shard: number of the shard.
        number: number of the batch in its shard.
        examples: `(B,)` index of each example in the corpus.
        rows: `(B, T)` number of each token's row in the store; -1 for padding.
        inputs: ids, mask and positions; ids are 0 at padding.
        places: `(M, 2)` pairs of indices (not `Place` objects), one per token with stored outputs: its example in the
            batch, and the token in that example.
        output_rows: `(M,)` number of each such token's row in the store.
        logits: `(M, C)` float32 outputs of the unedited model.
        logsumexp: `(M,)` float32 log-sum-exp of the logits over the whole vocabulary.
    """

    shard: int
    number: int
    examples: Ints
    rows: Ints
    inputs: PaddedBatch
    places: Ints
    output_rows: Ints
    logits: Tensor
    logsumexp: Tensor


class Replay:
    """Runs the blocks after a site from stored states, unedited or edited. The states must be in a replay store
    (`extract` with `outputs`) that the same model made.

    Attributes:
        store: the store of the states, which was extracted for replaying.
        model: the model of the extraction, with the same weights.
        sites: sites from which the model can be run.
        columns: `(C,)` vocabulary ids of the stored outputs; None if outputs of the whole vocabulary, or no outputs,
            are stored.
        has_outputs: whether outputs are stored.
    """

    def __init__(self, store: Store, model: LanguageModel) -> None:
        self.store, self.model = store, model
        self.sites = tuple(site for site in store.sites if Site.parse(site).stream == "resid")
        extraction = store.identity["extraction"]
        self.has_outputs = extraction["outputs"] != "none"
        self.columns: Ints | None = None
        if self.has_outputs and extraction["columns"] is not None and store.shards:
            self.columns = store.dataset(store.shards[0], "/outputs/column").astype(np.int64)
        self._columns = None if self.columns is None else torch.from_numpy(self.columns).to(model.device)
        self._is_left = store.identity["tokenizer"]["padding_side"] == "left"
        self._checked: set[str] = set()

    @classmethod
    def open(cls, store: Store | Path | str, model: LanguageModel) -> Self:
        """Open a finished replay store together with its model, and return the replay.

        Raises:
            ReplayUnavailable: the store was not extracted for replaying.
            ProvenanceMismatch: model or tokenizer differ from those of the store; the message names the keys that
                differ.
            IncompleteStore: shards are missing.
        """
        opened = store if isinstance(store, Store) else Store.open(store)
        role = opened.identity["extraction"].get("role")
        if role != "replay":
            raise ReplayUnavailable(
                "this store cannot be replayed",
                needed="a store of role replay",
                found=f"role {role}",
                where=str(opened.path),
                next_step="run `probing extract --role replay` into another directory",
            )
        ours = model.identity()
        keys = differing_keys(ours, {name: opened.identity[name] for name in ours})
        if keys:
            raise ProvenanceMismatch(
                "the store was made by another model",
                needed=f"the same {', '.join(keys)}",
                found="; ".join(
                    f"{key}: {value_at(opened.identity, key)}, here {value_at(ours, key)}" for key in keys[:5]
                ),
                where=str(opened.path),
                next_step="load the model as it was when the store was made",
            )
        return cls(opened, model)

    def batches(self) -> Iterator[ReplayBatch]:
        """Yield every batch, in the order in which the extraction ran them."""
        for shard in self.store.shards:
            batch = self.store.dataset(shard, "/examples/batch").astype(np.int64)
            for number in range(int(batch[:, 0].max(initial=-1)) + 1):
                members = np.flatnonzero((batch[:, 0] == number) & (batch[:, 1] > 0))
                if len(members):
                    yield self._batch(shard, number, members, int(batch[members[0], 1]))

    def states(self, batch: ReplayBatch, site: str) -> Tensor:
        """Return the stored states of a batch, of shape (batch, tokens, width), in the data type that the model
        computes in; states at padding are 0.

        Raises:
            UnknownSite: the store does not have the site.
        """
        real = batch.rows >= 0
        found = self.store.read(site, batch.rows[real])
        states = np.zeros((*batch.rows.shape, found.shape[1]), dtype=np.float32)
        states[real] = found
        return torch.from_numpy(states).to(self.model.device, getattr(torch, self.model.dtype))

    def run(self, batch: ReplayBatch, site: str, states: Tensor | None = None) -> Tensor:
        """Run the blocks from a site on, with the given states there, and return the float32 outputs of the batch, `(M,
        C)`: logits of C vocabulary ids at M tokens.

        Before the first run from a site, a batch is run with its stored states and the outputs are compared with the
        stored ones.

        Args:
            batch: one of `batches()`.
            site: one of `sites`.
            states: states of shape (batch, tokens, width); None means the stored ones. Gradients are computed for a
                tensor that requires them.

        Raises:
            ReplayUnavailable: no outputs are stored.
            EditFailed: unedited states do not give the stored outputs.
            UnknownSite: the store does not have the site.
        """
        if not self.has_outputs:
            raise ReplayUnavailable(
                "no outputs were kept",
                needed="a store with outputs last, mask or all",
                found="outputs none",
                where=str(self.store.path),
                next_step="use `run_states`, or extract with --outputs",
            )
        self.check(site)
        return self._outputs(batch, site, self.states(batch, site) if states is None else states)

    def run_states(self, batch: ReplayBatch, site: str, states: Tensor, read: str) -> Tensor:
        """Run the blocks from `site` on, with the given states `(B, T, D)` there, and return the states `(B, T, D)` at
        the later site `read`; for models without a head.

        Raises:
            EditFailed: unedited states do not give the stored states.
            UnknownSite: the store or the model does not have a site.
        """
        self.check(site)
        return self.model.suffix.states_from(site, states, batch.inputs, [read])[read]

    def check(self, site: str) -> None:
        """Run one batch from its stored states at a site and compare the outputs with the stored ones; this is done
        once per site.

        Raises:
            EditFailed: the outputs (or, if none are stored, the states at the highest stored site) differ.
            ReplayUnavailable: nothing is stored to compare with.
        """
        if site in self._checked:
            return
        with torch.no_grad():
            found, expected, what, batch = self._clean(site)
        if not is_same(found, expected, getattr(torch, self.model.dtype)):
            worst = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
            raise EditFailed(
                f"clean states at {site} do not give the clean {what}",
                needed=f"a difference of at most {tolerance(getattr(torch, self.model.dtype)):g} of the largest",
                found=f"{worst:.2g}",
                where=f"site {site}, shard {batch.shard}, batch {batch.number} of {self.store.path}",
                next_step="load the model as it was when the store was made, or extract the replay store again here",
            )
        self._checked.add(site)

    def _clean(self, site: str) -> tuple[Tensor, Tensor, str, ReplayBatch]:
        """Return what replay gives and what was stored, for the first batch that has it."""
        if self.has_outputs:
            batch = next((batch for batch in self.batches() if len(batch.logits)), None)
            if batch is not None:
                return self._outputs(batch, site, self.states(batch, site)).cpu(), batch.logits, "outputs", batch
        last, batch = self.sites[-1], next(self.batches(), None)
        if last == site or batch is None:
            raise ReplayUnavailable(
                f"nothing is stored to compare a replay from {site} with",
                needed="outputs, or a higher resid site",
                found=f"outputs of no piece; sites {', '.join(self.sites)}",
                where=str(self.store.path),
                next_step="extract with outputs, or with --sites 'resid.*'",
            )
        real = torch.from_numpy(batch.rows >= 0)
        found = self.model.suffix.states_from(site, self.states(batch, site), batch.inputs, [last])[last]
        return found.cpu()[real], self.states(batch, last).cpu()[real], f"states at {last}", batch

    def _outputs(self, batch: ReplayBatch, site: str, states: Tensor) -> Tensor:
        logits = self.model.run_from(site, states, batch.inputs)
        kept = logits[batch.places[:, 0], batch.places[:, 1]].float()
        return kept if self._columns is None else kept[:, self._columns]

    def _batch(self, shard: int, number: int, members: Ints, length: int) -> ReplayBatch:
        offset = self.store.dataset(shard, "/examples/offset").astype(np.int64)
        sizes = offset[members + 1] - offset[members]
        order = np.lexsort((members, -sizes))  # as the batch was made: the longest first, ties in order
        members, sizes = members[order], sizes[order]
        rows = np.full((len(members), length), -1, dtype=np.int64)
        for k, (e, size) in enumerate(zip(members, sizes, strict=True)):
            start = length - size if self._is_left else 0
            rows[k, start : start + size] = np.arange(offset[e], offset[e + 1])
        example = self.store.dataset(shard, "/examples/ordinal").astype(np.int64)[members]
        places, kept, logits, sums = self._kept(shard, rows)
        first = self.store.first_row(shard)
        return ReplayBatch(
            shard,
            number,
            example,
            np.where(rows >= 0, rows + first, -1),
            self._inputs(shard, rows),
            places,
            kept + first,
            logits,
            sums,
        )

    def _inputs(self, shard: int, rows: Ints) -> PaddedBatch:
        """Return ids, mask and positions; positions only if the model was given them."""
        real, columns = rows >= 0, dict[str, Any]()
        for name in ("input_id", "mask", "position_id"):
            padded = np.zeros(rows.shape, dtype=np.int64)
            padded[real] = self.store.dataset(shard, f"/rows/{name}")[rows[real]]
            columns[name] = torch.from_numpy(padded).to(self.model.device)
        given = bool((columns["position_id"][torch.from_numpy(real)] >= 0).all())
        return PaddedBatch(columns["input_id"], columns["mask"], columns["position_id"] if given else None)

    def _kept(self, shard: int, rows: Ints) -> tuple[Ints, Ints, Tensor, Tensor]:
        """Return places, rows of the shard, logits and log-sum-exp of the outputs that were kept, in order of place."""
        if not self.has_outputs:
            none = np.zeros(0, dtype=np.int64)
            return none.reshape(0, 2), none, torch.zeros((0, 0)), torch.zeros(0)
        kept = self.store.dataset(shard, "/outputs/row").astype(np.int64)
        places = np.argwhere(np.isin(rows, kept) & (rows >= 0))
        mine = rows[places[:, 0], places[:, 1]]
        where = np.searchsorted(kept, mine)
        logits, sums = (
            torch.from_numpy(self.store.dataset(shard, f"/outputs/{name}")[where]) for name in ("logits", "logsumexp")
        )
        return places, mine, logits, sums
