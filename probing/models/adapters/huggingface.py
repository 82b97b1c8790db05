"""Reads the states of any Hugging Face Transformer by forward hooks on its blocks, without code for each family of
models.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probing.errors import UnsupportedModel
from probing.models.batching import decoder_inputs, keeps_state, read_alone
from probing.models.discovery.blocks import find_blocks, find_embedding, find_final_norm, find_sublayers
from probing.models.discovery.parts import (
    Side,
    Sides,
    attending_layers,
    find_side,
    inner_config,
    number_of,
    refusing,
    text_config,
)
from probing.models.discovery.tracing import Layout, ModuleCall, copier, is_close, trace_calls
from probing.models.reading.hooked import HookedModule

_SHAPE = (3, 7)  # (B, T) of the text that shows where states flow: two numbers that cannot be taken for each other
_SMALL = 60
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")


class HuggingFaceTrunk(HookedModule):
    """Reads the states of a loaded Hugging Face model at its sites.

    It assumes that blocks run once each, in order, on states of shape `(B, T, D)` (batch, tokens, width);
    `LanguageModel.self_check` verifies this.

    The decoder of an encoder-decoder reads its start token and then the whole input (teacher forcing), while the
    encoder reads the same input. The state of a token is the decoder's state at the position where it reads this token,
    as in a decoder-only model.

    Args:
        model: the model.
        side: side of an encoder-decoder that is read, `encoder` or `decoder`; None means the encoder.
        by_blocks: whether to find the blocks and their parts; if not, the only sites are `embed` and added ones.

    Attributes:
        blocks: the list of blocks; empty if `by_blocks` was False.
        final_norm: the norm after the last block, if there is one.
        side: `encoder` or `decoder` of an encoder-decoder; else None.
    """

    def __init__(self, model: nn.Module, *, side: Sides | None = None, by_blocks: bool = True) -> None:
        """Find the blocks, the final norm and the embedding.

        Raises:
            UnsupportedModel: the model has no list of blocks, or no embedding of tokens.
            BadParameter: a side is given for a model that has one side only.
        """
        super().__init__()
        self.model = model.eval()
        self.family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
        refuse = partial(refusing, self.family, where=type(model).__name__)
        with refuse(doing="its parts are found"):
            found = find_side(model, side)
        self.trunk, self.side, self._start = found.trunk, found.name, found.start_id
        self.lead = 0 if self._start is None else 1
        self._parameters = set(inspect.signature(self.trunk.forward).parameters)
        self._part = found.part
        self._embedding: nn.Module | None = None
        self.layout, self.reads_alone = Layout(), False
        calls = self._trace(found.part)
        with refuse(doing="its parts are found"):
            self._embedding = find_embedding(found.part, calls)
        if self._embedding is None:
            raise UnsupportedModel(
                f"models of the family {self.family!r} are not read",
                needed="a piece embedding, a table of vectors",
                found="no module that takes the ids of pieces",
                where=type(model).__name__,
                next_step="choose a model of text, or LanguageModel.wrap it",
            )
        self.blocks = nn.ModuleList()
        self.final_norm: nn.Module | None = None
        self.modules["embed"] = _path_of(self.trunk, self._embedding)
        try:
            with refuse(doing="its blocks are found"):
                if by_blocks:
                    self._add_blocks(found, calls)
        except UnsupportedModel as error:
            states = ((call.path, call.output) for call in calls if call.output is not None)
            first = next(((path, state) for path, state in states if not bool(torch.isfinite(state).all())), None)
            if first is None:
                raise
            # Blocks are found by the states that they hand on, and NaN equals nothing.
            raise self.not_finite(first[0] or "the whole", first[1].dtype) from error

    def _trace(self, part: nn.Module) -> list[ModuleCall]:
        """Return the calls inside the part that is read, in a pass over `_SHAPE` small ids.

        Raises:
            UnsupportedModel: the model does not run on text alone.
        """
        try:
            return trace_calls([part], lambda: self._run_once(*_SHAPE))[0]
        except Exception as error:  # whatever a model raises that text alone does not suffice
            raise UnsupportedModel(
                f"models of the family {self.family!r} do not run on text alone",
                needed="a forward pass over ids",
                found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
                where=type(self.model).__name__,
                next_step="choose a model of text, or LanguageModel.wrap it with a call of your own",
            ) from error

    def _add_blocks(self, found: Side, calls: Sequence[ModuleCall]) -> None:
        config = text_config(found.part)
        shape = (_SHAPE[0], _SHAPE[1] + self.lead)
        inner = find_blocks(
            found.part, calls, shape, width=number_of(config, "hidden_size", "d_model"), family=self.family
        )
        self.blocks = inner.modules
        norm = find_final_norm(inner, calls)
        self.layout = inner.layout
        self.final_norm = None if norm is None else norm[1]
        outer = f"{found.path}." if found.path else ""
        config = inner_config(found.part, inner.paths[0]) or text_config(found.trunk)
        self.n_heads = number_of(config, *(("decoder_attention_heads",) if self.lead else ()), *_HEADS)
        sublayers = find_sublayers(
            self.blocks, self._run_once, self.n_heads, has_cross=self.lead > 0, is_attention=attending_layers(config)
        )
        for layer, (path, parts) in enumerate(zip((outer + p for p in inner.paths), sublayers, strict=True)):
            self._add(f"resid.{layer}", path, reads_input=True)
            if parts is None:
                continue
            if parts.projection:
                self._add(f"heads.{layer}", f"{path}.{parts.projection}", reads_input=True)
                self._add(f"attn_out.{layer}", f"{path}.{parts.attention}")
            if parts.cross:
                self._add(f"cross_out.{layer}", f"{path}.{parts.cross}")
            self._add(f"mlp_out.{layer}", f"{path}.{parts.mlp}")
        self._add(f"resid.{len(self.blocks)}", outer + inner.paths[-1])
        if norm is not None:
            self._add("final_norm", outer + norm[0])
        if self.layout.skipped is None:
            self.layout = replace(self.layout, skipped=self._places_before())
        self.reads_alone = self._changes_with_padding()

    def _places_before(self) -> int:
        """Return how many places the blocks have before the first piece; changing the last piece changes one place
        only.

        Raises:
            UnsupportedModel: it changes another number of places.
        """
        kept: list[Tensor] = []
        handle = self.blocks[0].register_forward_hook(copier(kept), with_kwargs=True)
        ids = torch.tensor([[(11 + 7 * i) % self.vocabulary for i in range(_SHAPE[1])]] * 2, device=self.device)
        ids[1, -1] = (ids[1, -1] + 1) % self.vocabulary
        try:
            with torch.inference_mode():
                self.run(ids, torch.ones_like(ids))
        finally:
            handle.remove()
        changed = (kept[0][0] != kept[0][1]).any(-1).nonzero().flatten().tolist()
        start = changed[0] - _SHAPE[1] - self.lead + 1 if len(changed) == 1 else -1
        if start < 0:
            raise self.unsupported(f"one other piece changes {len(changed)} states of {kept[0].shape[1]}", "one")
        return start

    def _changes_with_padding(self) -> bool:
        """Return whether states of an input depend on how far it is padded on the right, so that it has to be read
        alone.
        """
        count = self.vocabulary
        ids = torch.tensor([[(11 + 7 * i) % count for i in range(_SHAPE[1])]] * 2, device=self.device)
        mask = torch.ones_like(ids)
        ids[1, 3:], mask[1, 3:] = (0 if self.counting_padding_id is None else self.counting_padding_id), 0
        sites = [site for site in self.sites if site != "embed"]
        with torch.inference_mode():
            padded, alone = (
                HookedModule.read(self, ids, mask, sites),
                HookedModule.read(self, ids[1:, :3], mask[1:, :3], sites),
            )
        return not all(is_close(padded[site][1, :3], alone[site][0], loose=1e-4) for site in sites)

    def layout_of(self, site: str) -> Layout:
        """Return how the states at a site are laid out: as the blocks lay them out, or `(B, T, D)` at sites that were
        added.
        """
        return Layout() if site in self.added else self.layout

    def _run_once(self, n: int = 1, length: int = 7) -> None:
        """Run a forward pass over a small input, or over `n` equal ones."""
        known = number_of(text_config(self._part), "vocab_size") or _SMALL
        count = known if self._embedding is None else min(known, len(self.embedding))
        ids = torch.tensor([[(11 + 7 * i) % count for i in range(length)]] * n, device=self.device)
        with torch.inference_mode():
            self.run(ids, torch.ones_like(ids))

    @property
    def embedding(self) -> Tensor:
        """Embedding vectors of all V tokens of the vocabulary, `(V, D)`."""
        weight: Tensor = self._embedding.weight  # type: ignore[union-attr, assignment]
        return weight

    @property
    def vocabulary(self) -> int:
        """Number of ids in the vocabulary."""
        return len(self.embedding)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.trunk.parameters()).device if self._embedding is None else self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type that the model computes in."""
        return self.embedding.dtype

    @property
    def counting_padding_id(self) -> int | None:
        """Padding id, if the model computes position numbers from where this id occurs (as RoBERTa does); else None."""
        for name, module in self._part.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return module.padding_idx
        return None

    @property
    def max_positions(self) -> int | None:
        """Largest number of tokens that the position embeddings allow; None if the configuration sets no limit."""
        limit = number_of(text_config(self._part) or text_config(self.trunk), "max_position_embeddings")
        if limit is None:
            return None
        padding = self.counting_padding_id
        return limit - self.lead if padding is None else limit - padding - 1 - self.lead

    def identity(self) -> dict[str, Any]:
        """Return what stores record about an encoder-decoder: that the decoder is read, and which input its encoder
        gets; an empty dictionary for other models.
        """
        return {"side": "decoder", "encoder_input": "the same text"} if self.side == "decoder" else {}

    def run(self, ids: Tensor, mask: Tensor) -> Any:
        """Run one forward pass of the model without its head, and return its output. `ids` and `mask` are `(B, T)`; the
        mask is 1 at tokens and 0 at padding.
        """
        return self.trunk(**self.inputs(ids, mask))

    def run_with_head(self, ids: Tensor, mask: Tensor) -> Any:
        """Run one forward pass of the whole model on ids and mask `(B, T)` (0 at padding), and return its output; None
        for a model without a head, and for the encoder of an encoder-decoder.
        """
        has_none = self.model is self.trunk and self.side is None
        return None if has_none or self.side == "encoder" else self.model(**self.inputs(ids, mask))

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Return the arguments of a forward pass over ids and mask `(B, T)` (0 at padding); positions are counted from
        the first token that is not padding, also after padding on the left.
        """
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        is_left_padded = bool((mask[:, 0] == 0).any())
        if is_left_padded and "position_ids" in self._parameters and self.counting_padding_id is None:
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "use_cache" in self._parameters:
            given["use_cache"] = False
        if self._start is not None:
            given |= decoder_inputs(ids, mask, self._start)
        return given

    @property
    def may_run_side_by_side(self) -> bool:
        """Whether passes may run in parallel: they run on a CPU, and a pass does not change the model."""
        return self.device.type == "cpu" and not keeps_state(self.trunk, [self._run_once, lambda: self._run_once(2, 5)])

    @contextmanager
    def held(self, sites: Sequence[str]) -> Iterator[None]:
        """Return a context manager in whose block the hooks of these sites stay registered (see `HookedModule.held`);
        the site `embed` needs none.
        """
        self.check_sites(sites)
        with super().held([site for site in sites if site != "embed"]):
            yield

    def read(self, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Run one forward pass without the head on ids and mask `(B, T)` (0 at padding), and return the states `(B, T,
        D)` by site; the pass is stopped once all are read.

        Raises:
            UnknownSite: the model does not have one of the sites.
            UnsupportedModel: a module to be read did not run, or ran more than once.
        """
        self.check_sites(sites)
        inner = [site for site in sites if site != "embed"]
        read = partial(read_alone, super().read) if self.reads_alone else super().read
        states = read(ids, mask, inner) if inner else {}
        if "embed" in sites:
            states["embed"] = nn.functional.embedding(ids, self.embedding)
        return {site: states[site] for site in sites}


def known_ids(trunk: HookedModule) -> int | None:
    """Return the number of vocabulary ids that have an embedding vector in the model that `trunk` reads; None if it is
    not a Hugging Face model.
    """
    return trunk.vocabulary if isinstance(trunk, HuggingFaceTrunk) else None


def _path_of(root: nn.Module, wanted: nn.Module) -> str:
    return next((path for path, module in root.named_modules() if module is wanted), "")


MEMBER = HuggingFaceTrunk
