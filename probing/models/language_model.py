"""LanguageModel: a model and its tokenizer; reads states at sites, gives logits, and checks itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from probing.errors import BadParameter
from probing.models.adapters.huggingface import HuggingFaceTrunk, known_ids
from probing.models.adapters.module import Call, ModuleTrunk, vocabulary_of
from probing.models.batching import PaddedBatch
from probing.models.cpu_speed.parallel_batches import ParallelBatches, many_passes
from probing.models.discovery.parts import Sides
from probing.models.loading.identity import ModelSource, model_identity, tokenizer_identity, untrained_twin
from probing.models.loading.pretrained import check_tokenizer, load
from probing.models.reading.hooked import HookedModule
from probing.models.reading.inputs import check_ids, encoded, padded, padding_id
from probing.models.reading.replay import SuffixReplay
from probing.models.reading.self_check import SelfCheck
from probing.reference import shipped
from probing.text.alignment import Encoded


class LanguageModel:
    """A Transformer of text, encoder or decoder, or any module over pieces, whose states can be read.

    Attributes:
        name: hub name or folder name.
        tokenizer: the fast tokenizer.
        padding_side: `right` or `left`; states of real pieces are the same for both.
        source, suffix: where it was loaded from (None: built in memory); what runs it from the middle on.
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
        self.suffix = SuffixReplay(self._model, self._trunk)
        self._where = (name, revision, folder)
        self._untrained = untrained
        self._widths: dict[str, int] = {}
        self._identity: dict[str, Any] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        attention: str | None = None,
        kind: Literal["auto", "base", "causal", "masked"] = "auto",
        padding_side: str | None = None,
        revision: str | None = None,
        untrained: int | None = None,
        side: Sides | None = None,
        by_blocks: bool = True,
        allow_pickle_weights: bool = False,
        check: bool = True,
    ) -> Self:
        """Load a local folder, a hub model, or the small model that ships.

        Args:
            name: folder, hub name or `probing:reference`.
            device: a torch device.
            dtype: compute dtype: `float32`, `float16` or `bfloat16`.
            attention: attention implementation, such as `eager` or `sdpa`; None: the model's default.
            kind: which head to load; `auto`: the one the model was saved with.
            padding_side: `right` (default) or `left`.
            revision: hub branch, tag or commit.
            untrained: seed of random weights in the same architecture, instead of the trained ones.
            side: which side of an encoder-decoder is read: `encoder` (default) or `decoder`, teacher-forced on the
                text while the encoder reads the same text.
            by_blocks: find the blocks; without them, for families of another kind, sites are module paths (`add_site`).
            allow_pickle_weights: also load `.bin` weights, where there are no others; recorded in the identity.
            check: run `self_check`.

        Raises:
            UnsupportedModel: it cannot be loaded, or the self-check failed.
            RemoteCodeRefused: it is Python code of its own, which is never run.
            BadParameter: an unknown dtype, device, kind, padding side or side.
            UnknownName: `probing:` before something that does not ship.
        """
        name = shipped(name, "model")
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
        path = Path(name).expanduser()
        source = path.resolve().name if path.is_dir() else name
        model = cls(
            network,
            loaded.tokenizer,
            name=source,
            padding_side=padding_side,
            revision=loaded.revision,
            folder=loaded.folder,
            untrained=untrained,
            trunk=HuggingFaceTrunk(network, side=side, by_blocks=by_blocks),
        )
        model.source = ModelSource(
            name,
            device,
            dtype,
            attention,
            kind,
            padding_side,
            loaded.revision,
            untrained,
            side,
            by_blocks,
            allow_pickle_weights,
        ).anywhere()
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
        by_blocks: bool = True,
        check: bool = True,
    ) -> Self:
        """Use a Hugging Face model and fast tokenizer that are already built; options as for `load`.

        Raises:
            UnsupportedModel: the self-check failed.
        """
        trunk = HuggingFaceTrunk(model, side=side, by_blocks=by_blocks)
        built = cls(model, tokenizer, name=name, padding_side=padding_side, trunk=trunk)
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
        """Use any module over the pieces of a fast tokenizer, read by the paths of modules inside it.

        Args:
            module: the model, in PyTorch.
            tokenizer: gives the ids that the module takes.
            sites: module path by site name, such as `{"resid.1": "encoder.layers.0"}`. The output (or the first of a
                tuple) must be `(B, T, D)`.
            call: `call(module, ids, mask)` runs it on `(B, T)` ids and mask, 1 for real pieces. None: `module(ids)`, or
                with `input_ids` and a mask where its forward names them; one that takes no mask reads one by one.
            name: what messages and the store call it.
            padding_side: `right` (default) or `left`.
            max_length: the most pieces of an input.
            check: run `self_check`.

        Raises:
            UnknownSite: no such module, with the nearest.
            UnsupportedModel: a site is not one state a piece, or the self-check failed.
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
        """Site names, in the order of a forward pass."""
        return self._trunk.sites

    @property
    def modules(self) -> dict[str, str]:
        """Path of the hooked module, for each site."""
        return dict(self._trunk.modules)

    @property
    def dtype(self) -> str:
        """Data type that the model computes in: `float32`, `float16` or `bfloat16`."""
        return str(self._trunk.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Torch device of the weights."""
        return str(self._trunk.device)

    @property
    def max_length(self) -> int | None:
        """Largest number of pieces of an input, special ones counted; None: no limit known."""
        limits = [self._trunk.max_positions or 0, int(min(self.tokenizer.model_max_length, 10**9))]
        return min((limit for limit in limits if 0 < limit < 10**9), default=None)

    @property
    def cls_id(self) -> int | None:
        """Vocabulary id of the CLS piece, if the tokenizer has one."""
        value: int | None = self.tokenizer.cls_token_id
        return value

    def width(self, site: str) -> int:
        """Return the number of features D at a site.

        Raises:
            UnknownSite: no such site.
        """
        self._trunk.check_sites([site])
        if site not in self._widths:
            states = self.states([self._check.input_of(2)], self.sites)
            self._widths = {name: state.shape[-1] for name, state in states.items()}
        return self._widths[site]

    def head_size(self, site: str) -> dict[str, int]:
        """Return `n_heads` and `head_dim` of a site `heads.l`; empty for other sites.

        Raises:
            UnknownSite: no such site.
        """
        return self._trunk.head_size(site, self.width(site))

    def add_site(self, site: str, path: str) -> None:
        """Make a site of any module's output.

        Args:
            site: its name, in the form of a site, such as `gate.3`.
            path: the module's path in the model, as `model.named_modules()` gives it.

        Raises:
            UnknownSite: the name has another form or another meaning, or there is no such module.
            UnsupportedModel: the output is not one state `(B, T, D)` a pass, or depends on the batch.
        """
        self._trunk.add_site(site, path)
        try:
            self._check.batches([site])
        except BaseException:
            self._trunk.remove_site(site)
            raise

    def added_modules(self, sites: Sequence[str]) -> dict[str, Any]:
        """Return the module paths of those sites that `add_site` or `wrap` made: part of a store's identity."""
        found = {site: self._trunk.modules[site] for site in sites if site in self._trunk.added}
        return {"modules": found} if found else {}

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return texts as the model reads them, not yet truncated; a piece without a vector raises
        `UnsupportedModel`.
        """
        return self._known(encoded(self.tokenizer, texts))

    def _known(self, batch: Sequence[Encoded]) -> list[Encoded]:
        return check_ids(batch, known_ids(self._trunk), self.tokenizer, self.name)

    def states(self, batch: Sequence[Encoded], sites: Sequence[str]) -> dict[str, Tensor]:
        """Return the states `(B, T, D)` by site; T is the longest input, and `first_piece` says where each begins.

        Raises:
            UnknownSite: a site this model does not have.
            BadParameter: an input without pieces.
        """
        with torch.inference_mode():
            return self._trunk.read(*self._padded(batch), sites)

    def many_states(self, sites: Sequence[str]) -> AbstractContextManager[ParallelBatches]:
        """Within the block, `states` of just these sites is faster, and may run in its lanes; the weights must not
        change.
        """
        return many_passes(self._trunk, sites)

    def first_piece(self, batch: Sequence[Encoded]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the column of each input's first piece, `(B,)`: above 0 behind left padding."""
        lengths = np.array([len(e) for e in batch], dtype=np.int64)
        return lengths.max() - lengths if self.padding_side == "left" else np.zeros_like(lengths)

    def logits(self, batch: Sequence[Encoded]) -> Tensor:
        """Return the model's outputs `(B, T, V)`.

        Raises:
            UnsupportedModel: it was loaded without a head over the vocabulary.
        """
        with torch.inference_mode():
            return self.suffix.logits(self._trunk.run_with_head(*self._padded(batch)))[:, self._trunk.lead :]

    def padded(self, batch: Sequence[Encoded]) -> PaddedBatch:
        """Return the padded inputs of the model for a batch."""
        return self.suffix.padded(*self._padded(batch))

    def run_from(self, site: str, states: Tensor, inputs: PaddedBatch) -> Tensor:
        """Return the logits `(B, T, V)` when `resid.l` has these states `(B, T, D)`; only blocks l to L-1 run
        (`SuffixReplay`).
        """
        return self.suffix.run_from(site, states, inputs)

    def self_check(self) -> None:
        """Prove on four small inputs that the hooks read what the site names say.

        Raises:
            UnsupportedModel: which family failed, and how.
        """
        self._check.model()

    def identity(self) -> dict[str, Any]:
        """Return the `model` and `tokenizer` blocks of a store's identity; no machine paths."""
        if self._identity is not None:
            return dict(self._identity)
        found = {
            "model": model_identity(self._model, *self._where, self._untrained) | self._trunk.identity(),
            "tokenizer": tokenizer_identity(self.tokenizer, *self._where, self.padding_side),
        }
        if self._where[2] is not None:  # hashes of files, which were read once; what is in memory may change
            self._identity = found
        return dict(found)

    def _padded(self, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """Return ids and mask `(B, T)` on the model's device."""
        padding = padding_id(self.tokenizer.pad_token_id, self._trunk)
        starts = self.first_piece(batch).tolist() if batch else []
        return padded(self._known(batch), starts, padding, self._trunk.device)
