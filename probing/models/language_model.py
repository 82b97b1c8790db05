"""Defines `LanguageModel`, which runs a model on tokenised text and returns hidden states and logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from probing.errors import BadParameter
from probing.models.adapters.huggingface import HuggingFaceTrunk, known_ids
from probing.models.adapters.module import Call, ModuleTrunk, vocabulary_of
from probing.models.batching import PaddedBatch, ParallelBatches, check_ids, encoded, many_passes, padded, padding_id
from probing.models.discovery.parts import Sides
from probing.models.loading.identity import (
    Checkpoint,
    ModelSource,
    model_facts,
    model_identity,
    source_names,
    tokenizer_identity,
    untrained_twin,
)
from probing.models.loading.pretrained import check_tokenizer, load
from probing.models.reading.generating import Chat, Generated, continued
from probing.models.reading.hooked import HookedModule
from probing.models.reading.replay import SuffixReplay
from probing.models.reading.self_check import SelfCheck
from probing.models.site import shortly
from probing.provenance import model_called
from probing.reference import shipped
from probing.system.screen import card, some
from probing.text.alignment import Encoded


class LanguageModel:
    """Wraps a Transformer (encoder or decoder), or any PyTorch module that takes tokens, and reads its states at sites.

    A site is a named place in the model, such as `resid.6` (see `Site`). Names with `piece` are about tokens.

    Attributes:
        name: hub name or folder name.
        tokenizer: the fast tokenizer.
        padding_side: `right` or `left`; the states of tokens (not padding) are the same for both.
        source: the arguments that `load` was called with; None for a model that was built in memory.
    """

    source: ModelSource | None = None

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        padding_side: str | None = None,
        revision: str | None = None,
        folder: Path | None = None,
        untrained: int | None = None,
        checkpoint: Checkpoint | None = None,
        called: str = "",
        trunk: HookedModule | None = None,
    ) -> None:
        check_tokenizer(tokenizer, name)
        if padding_side not in (None, "left", "right"):
            raise BadParameter("unknown padding side", needed="left or right", found=repr(padding_side))
        self.name = name
        self.tokenizer = tokenizer
        self.padding_side = padding_side or "right"
        self._model = model.eval()
        self._trunk = HuggingFaceTrunk(model) if trunk is None else trunk
        self._where = (name, revision, folder)
        self._untrained, self._checkpoint, self._called = untrained, checkpoint, called or name
        self._widths: dict[str, int] = {}
        self._identity: dict[str, Any] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str | torch.device | None = "cpu",
        dtype: str = "float32",
        attention: str | None = None,
        kind: Literal["auto", "base", "causal", "masked"] = "auto",
        padding_side: str | None = None,
        revision: str | None = None,
        untrained: int | None = None,
        step: int | None = None,
        run: str | None = None,
        side: Sides | None = None,
        by_blocks: bool = True,
        allow_pickle_weights: bool = False,
        check: bool = True,
    ) -> Self:
        """Load a model and its tokenizer from a local folder, the hub or this package, and return a `LanguageModel`.

        Args:
            name: folder, hub name or `probing:reference`.
            device: a torch device; None means the CPU.
            dtype: data type to compute in: `float32`, `float16` or `bfloat16`.
            attention: attention implementation, such as `eager` or `sdpa`; None means the model's default.
            kind: head to load: `auto` (the head that the model was saved with), `base` (none), `causal` or `masked`.
            padding_side: `right` (default) or `left`.
            revision: hub branch, tag or commit; a folder has none.
            untrained: seed of random weights in the same architecture, instead of the trained ones.
            step: for a checkpoint, the number of steps it was trained for; figures show results over steps.
            run: for a checkpoint, the name of the training run.
            side: which side of an encoder-decoder is read: `encoder` (default) or `decoder`, teacher-forced on the text
                while the encoder reads the same text.
            by_blocks: whether to find the Transformer blocks, which give the standard sites; False: use `add_site`.
            allow_pickle_weights: whether `.bin` weights (pickles) may be loaded if there are no others.
            check: whether to run `self_check`.

        Raises:
            UnsupportedModel: the model cannot be loaded, or the self-check failed.
            RemoteCodeRefused: the model needs Python code in its folder, which is never run.
            BadParameter: the dtype, device, kind, side or revision is unknown, or `step` is not a number.
            UnknownName: the name after `probing:` is not that of a model that ships with this package.
        """
        given, name, device, checkpoint = name, shipped(name, "model"), str(device or "cpu"), Checkpoint.of(step, run)
        loaded = load(
            name,
            device=device,
            dtype=dtype,
            attention=attention,
            kind=kind,
            revision=revision,
            allow_pickle_weights=allow_pickle_weights,
        )
        network = loaded.model if untrained is None else untrained_twin(loaded.model, untrained)
        trunk = HuggingFaceTrunk(network, side=side, by_blocks=by_blocks)
        source, shown = source_names(given, name)
        where: dict[str, Any] = {"name": source, "called": shown, "folder": loaded.folder, "revision": loaded.revision}
        where["padding_side"] = padding_side
        model = cls(network, loaded.tokenizer, untrained=untrained, checkpoint=checkpoint, trunk=trunk, **where)
        asked = (loaded.revision, untrained, side, by_blocks, allow_pickle_weights, step, run)
        model.source = ModelSource(name, device, dtype, attention, kind, padding_side, *asked).anywhere()
        if check:
            model.self_check()
        return model

    @classmethod
    def from_modules(
        cls,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str = "in-memory",
        padding_side: str | None = None,
        side: Sides | None = None,
        step: int | None = None,
        run: str | None = None,
        by_blocks: bool = True,
        check: bool = True,
    ) -> Self:
        """Return a `LanguageModel` of a Hugging Face model and a fast tokenizer in memory; options are those of `load`.

        Raises:
            UnsupportedModel: the self-check failed.
            BadParameter: `step` is not a number.
        """
        how: dict[str, Any] = {
            "trunk": HuggingFaceTrunk(model, side=side, by_blocks=by_blocks),
            "checkpoint": Checkpoint.of(step, run),
        }
        built = cls(model, tokenizer, name=name, padding_side=padding_side, **how)
        if check:
            built.self_check()
        return built

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        tokenizer: Any,
        *,
        sites: Mapping[str, str],
        call: Call | None = None,
        name: str = "in-memory",
        padding_side: str | None = None,
        max_length: int | None = None,
        check: bool = True,
    ) -> Self:
        """Return a `LanguageModel` of any PyTorch module that takes token ids, with sites given as module paths.

        Args:
            module: the PyTorch module.
            tokenizer: the fast tokenizer whose ids the module takes.
            sites: module path for each site name, such as `{"resid.1": "encoder.layers.0"}`. The module's output, or
                the first of a tuple, must be `(batch, tokens, width)`.
            call: a function `call(module, ids, mask)` that runs it on ids and mask `(batch, tokens)`; the mask is 0 at
                padding. None: `module(ids)` is called, with `input_ids` and a mask if its `forward` has such
                parameters; a module that takes no mask runs on one input at a time.
            name: name of the model in messages and in the store.
            padding_side: `right` (default) or `left`.
            max_length: largest number of tokens of an input.
            check: whether to run `self_check`.

        Raises:
            UnknownSite: there is no such module; the message names the nearest.
            UnsupportedModel: a module does not return one state per token, or the self-check failed.
        """
        known = vocabulary_of(module, tokenizer)
        trunk = ModuleTrunk(module, sites, call=call, vocabulary=known, max_positions=max_length)
        built = cls(module, tokenizer, name=name, padding_side=padding_side, trunk=trunk)
        if check:
            built.self_check()
        return built

    @property
    def _check(self) -> SelfCheck:
        return SelfCheck(self._trunk, self.states, self._padded, self.first_piece, self.tokenizer.all_special_ids)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, in the order in which a forward pass reaches them."""
        return self._trunk.sites

    @cached_property
    def suffix(self) -> SuffixReplay:
        """Object that runs only the blocks after a given site, from given states at that site."""
        return SuffixReplay(self._model, self._trunk)

    @property
    def modules(self) -> dict[str, str]:
        """Path of the module that is read, for each site."""
        return dict(self._trunk.modules)

    @property
    def dtype(self) -> str:
        """Data type that the model computes in: `float32`, `float16` or `bfloat16`."""
        return str(self._trunk.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Torch device on which the weights are."""
        return str(self._trunk.device)

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of an input, special tokens included; None if no limit is known."""
        limits = [self._trunk.max_positions or 0, int(min(self.tokenizer.model_max_length, 10**9))]
        return min((limit for limit in limits if 0 < limit < 10**9), default=None)

    @property
    def cls_id(self) -> int | None:
        """Vocabulary id of the CLS token; None if the tokenizer has none."""
        value: int | None = self.tokenizer.cls_token_id
        return value

    def width(self, site: str) -> int:
        """Return the number of features D at a site.

        Raises:
            UnknownSite: the model has no such site.
        """
        self._trunk.check_sites([site])
        if site not in self._widths:
            states = self.states([self._check.input_of(2)], self.sites)
            self._widths = {name: state.shape[-1] for name, state in states.items()}
        return self._widths[site]

    def head_size(self, site: str) -> dict[str, int]:
        """Return the number of heads (`n_heads`) and the width of one (`head_dim`) at a site such as `heads.6`, else
        `{}`.

        Raises:
            UnknownSite: the model has no such site.
        """
        return self._trunk.head_size(site, self.width(site))

    def add_site(self, site: str, path: str) -> None:
        """Add a site at which the output of any module of the model is read.

        Args:
            site: name of the new site, in the form `stream` or `stream.layer`, such as `gate.3`.
            path: the module's path in the model, as `model.named_modules()` gives it.

        Raises:
            UnknownSite: the name does not have that form or is in use, or there is no such module.
            UnsupportedModel: the output is not one state per token, or depends on other texts of the batch.
        """
        self._trunk.add_site(site, path)
        try:
            self._check.batches([site])
        except BaseException:
            self._trunk.remove_site(site)
            raise

    def added_modules(self, sites: Sequence[str]) -> dict[str, Any]:
        """Return `{"modules": {site: path}}` for those of `sites` that `add_site` or `wrap` added; `{}` without any."""
        found = {site: self._trunk.modules[site] for site in sites if site in self._trunk.added}
        return {"modules": found} if found else {}

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenise texts with special tokens and without truncation, and return one `Encoded` per text; raise
        `UnsupportedModel` if a token has no embedding vector.
        """
        return self._known(encoded(self.tokenizer, texts))

    def _known(self, batch: Sequence[Encoded]) -> list[Encoded]:
        return check_ids(batch, known_ids(self._trunk), self.tokenizer, self.name)

    def states(self, batch: Sequence[Encoded], sites: Sequence[str]) -> dict[str, Tensor]:
        """Run the model on a batch and return the states `(batch, tokens, width)` by site. Shorter inputs are padded;
        `first_piece` returns at which token each begins.

        Raises:
            UnknownSite: the model does not have one of the sites.
            BadParameter: an input has no tokens.
        """
        with torch.inference_mode():
            return self._trunk.read(*self._padded(batch), sites)

    def many_states(self, sites: Sequence[str]) -> AbstractContextManager[ParallelBatches]:
        """Return a context manager in whose block `states` is faster for exactly these sites, and may be called from
        the threads of the object it yields. The weights must not change in the block.
        """
        return many_passes(self._trunk, sites)

    def first_piece(self, batch: Sequence[Encoded]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the index `(B,)` of the first token of each input in a padded batch, which is 0 with padding right."""
        lengths = np.array([len(e) for e in batch], dtype=np.int64)
        return lengths.max() - lengths if self.padding_side == "left" else np.zeros_like(lengths)

    def logits(self, batch: Sequence[Encoded]) -> Tensor:
        """Run the model on a batch and return its logits `(batch, tokens, vocabulary)`.

        Raises:
            UnsupportedModel: the model was loaded without a head over the vocabulary.
        """
        with torch.inference_mode():
            return self.suffix.logits(self._trunk.run_with_head(*self._padded(batch)))[:, self._trunk.lead :]

    def padded(self, batch: Sequence[Encoded]) -> PaddedBatch:
        """Pad a batch of tokenised texts to one length, and return ids and mask as the model takes them."""
        return self.suffix.padded(*self._padded(batch))

    def generate(self, prompts: Sequence[str | Chat], *, max_new_tokens: int = 64, **options: Any) -> list[Generated]:
        """Continue `prompts` (texts, or chats as lists of (role, content) pairs) and return the generated texts.
        `options` are passed to Hugging Face's `generate`, which by default takes the most probable token.

        Raises:
            UnsupportedModel: the model does not continue texts.
            BadParameter: a prompt is empty or fills the context, or a chat is given and there is no chat template.
        """
        known = (self._trunk, self.tokenizer, self.max_length, self.name, self.encode)
        return continued(self._model, *known, prompts, max_new_tokens, options)

    def run_from(self, site: str, states: Tensor, inputs: PaddedBatch) -> Tensor:
        """Run only the blocks after a site `resid.l`, from the given `states` there, `(batch, tokens, width)`, and
        return logits `(batch, tokens, vocabulary)`. `inputs` is the batch as `padded` returns it.
        """
        return self.suffix.run_from(site, states, inputs)

    def self_check(self) -> None:
        """Run small inputs, and check that the states read at each site are those that the site's name promises.

        Raises:
            UnsupportedModel: a check failed; the message names the model's family and the check.
        """
        self._check.model()

    def identity(self) -> dict[str, Any]:
        """Return the facts that stores record: a dict with the keys `model` and `tokenizer`, without local paths."""
        if self._identity is not None:
            return dict(self._identity)
        found = {
            "model": model_identity(self._model, *self._where, self._untrained, self._checkpoint)
            | self._trunk.identity(),
            "tokenizer": tokenizer_identity(self.tokenizer, *self._where, self.padding_side),
        }
        if self._where[2] is not None:  # hashes of files, which were read once; what is in memory may change
            self._identity = found
        return dict(found)

    def facts(self) -> dict[str, Any]:
        """Return name, architecture, number of layers, width and number of parameters, as far as known."""
        return model_facts(self._model, self._called)

    def _padded(self, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """Return ids and mask `(B, T)` on the model's device."""
        padding = padding_id(self.tokenizer.pad_token_id, self._trunk)
        starts = self.first_piece(batch).tolist() if batch else []
        return padded(self._known(batch), starts, padding, self._trunk.device)

    def __repr__(self) -> str:
        twin = "" if self._untrained is None else f", untrained (seed {self._untrained})"
        return f"LanguageModel {self.name}: {shortly(self.sites)}; {self.dtype} on {self.device}{twin}"

    def _repr_html_(self) -> str:
        limit = f"{self.max_length} pieces" if self.max_length else "no limit"
        rows = [("sites", f"{len(self.sites)}: {some(self.sites)}"), ("type of numbers", self.dtype)]
        return card(model_called(self.identity()["model"]), [*rows, ("on", self.device), ("longest input", limit)])
