"""LanguageModel: a model and its tokenizer; reads states at sites, gives logits, and checks itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from probing.alignment import Encoded
from probing.batching import PaddedBatch
from probing.errors import BadParameter, UnsupportedModel
from probing.models._identity import model_identity, tokenizer_identity
from probing.models._loading import load
from probing.models._packing import packed_linear_layers
from probing.models._replay import SuffixReplay, head_kind
from probing.models._self_check import SelfCheck
from probing.models._untrained import untrained_twin
from probing.models.huggingface import HuggingFaceTrunk


class LanguageModel:
    """A Transformer of text, encoder or decoder, whose states can be read.

    Attributes:
        name: hub name or folder name.
        tokenizer: the fast tokenizer.
        padding_side: `right` or `left`; states of real pieces are the same for both.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, name: str, padding_side: str | None = None,
        revision: str | None = None, folder: Path | None = None, untrained: int | None = None,
    ) -> None:  # fmt: skip
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModel(
                "the tokenizer cannot tell character offsets", needed="a fast tokenizer (tokenizer.json)",
                found=type(tokenizer).__name__, where=name, next_step="convert it to tokenizer.json",
            )  # fmt: skip
        if padding_side not in (None, "left", "right"):
            raise BadParameter("unknown padding side", needed="left or right", found=repr(padding_side))
        self.name = name
        self.tokenizer = tokenizer
        self.padding_side = padding_side or "right"
        self._model = model.eval()
        self._trunk = HuggingFaceTrunk(model)
        self._suffix = SuffixReplay(self._model, self._trunk)
        self._revision = revision
        self._folder = folder
        self._untrained = untrained
        self._widths: dict[str, int] = {}
        self._identity: dict[str, Any] | None = None

    @classmethod
    def load(
        cls, name: str, *, device: str = "cpu", dtype: str = "float32", attention: str | None = None,
        kind: Literal["auto", "base", "causal", "masked"] = "auto", padding_side: str | None = None,
        revision: str | None = None, untrained: int | None = None, check: bool = True,
    ) -> Self:  # fmt: skip
        """Load a local folder or a hub model.

        Args:
            name: folder or hub name.
            device: a torch device.
            dtype: compute dtype: `float32`, `float16` or `bfloat16`.
            attention: attention implementation, such as `eager` or `sdpa`; None: the model's default.
            kind: which head to load; `auto`: the one the model was saved with.
            padding_side: `right` (default) or `left`.
            revision: hub branch, tag or commit.
            untrained: seed of random weights in the same architecture, instead of the trained ones.
            check: run `self_check`.

        Raises:
            UnsupportedModel: it cannot be loaded, or the self-check failed.
            BadParameter: an unknown dtype, device, kind or padding side.
        """
        loaded = load(name, device=device, dtype=dtype, attention=attention, kind=kind, revision=revision)
        network = loaded.model if untrained is None else untrained_twin(loaded.model, untrained)
        path = Path(name).expanduser()
        source = path.resolve().name if path.is_dir() else name
        model = cls(network, loaded.tokenizer, name=source, padding_side=padding_side,
                    revision=loaded.revision, folder=loaded.folder, untrained=untrained)  # fmt: skip
        if check:
            model.self_check()
        return model

    @classmethod
    def from_modules(
        cls, model: nn.Module, tokenizer: Any, *, name: str = "in-memory", padding_side: str | None = None,
        check: bool = True,
    ) -> Self:  # fmt: skip
        """Use a Hugging Face model and fast tokenizer that are already built.

        Raises:
            UnsupportedModel: the self-check failed.
        """
        built = cls(model, tokenizer, name=name, padding_side=padding_side)
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
        """For each site, the path of the module that is hooked."""
        return dict(self._trunk.modules)

    @property
    def dtype(self) -> str:
        """The compute dtype: `float32`, `float16` or `bfloat16`."""
        return str(self._trunk.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """The torch device of the weights."""
        return str(self._trunk.device)

    @property
    def max_length(self) -> int | None:
        """The most pieces an input may have, special ones counted; None: no limit known."""
        limits = [self._trunk.max_positions or 0, int(min(self.tokenizer.model_max_length, 10**9))]
        return min((limit for limit in limits if 0 < limit < 10**9), default=None)

    @property
    def cls_id(self) -> int | None:
        """The vocabulary id of the CLS piece, if the tokenizer has one."""
        value: int | None = self.tokenizer.cls_token_id
        return value

    @property
    def padding_id(self) -> int:
        """The vocabulary id that fills up shorter inputs."""
        return next((i for i in (self.tokenizer.pad_token_id, self._trunk.counting_padding_id) if i is not None), 0)

    def width(self, site: str) -> int:
        """D at a site.

        Raises:
            UnknownSite: no such site.
        """
        self._trunk.check_sites([site])
        if site not in self._widths:
            states = self.states([self._check.input_of(2)], self.sites)
            self._widths = {name: state.shape[-1] for name, state in states.items()}
        return self._widths[site]

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
        """Part of a store's identity: the module paths of those sites that `add_site` made."""
        found = {site: self._trunk.modules[site] for site in sites if site in self._trunk.added}
        return {"modules": found} if found else {}

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Texts as the model reads them, not yet truncated."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts), truncation=False, padding=False, return_attention_mask=False, return_token_type_ids=False,
            return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        columns = zip(batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True)
        none = np.zeros((0, 2), dtype=np.int64)
        return [
            Encoded(
                np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64).reshape(-1, 2),
                np.array(special, dtype=bool), none,
            )
            for ids, offsets, special in columns
        ]  # fmt: skip

    def states(self, batch: Sequence[Encoded], sites: Sequence[str]) -> dict[str, Tensor]:
        """States `(B, T, D)` by site; T is the longest input, and `first_piece` says where each begins.

        Raises:
            UnknownSite: a site this model does not have.
            BadParameter: an input without pieces.
        """
        with torch.inference_mode():
            return self._trunk.read(*self._padded(batch), sites)

    @contextmanager
    def many_states(self) -> Iterator[None]:
        """Within the block, `states` is faster where it can be; the weights must not change meanwhile."""
        with torch.inference_mode(), packed_linear_layers(self._trunk.trunk):
            yield

    def first_piece(self, batch: Sequence[Encoded]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """`(B,)` column of each input's first piece: above 0 behind left padding."""
        lengths = np.array([len(e) for e in batch], dtype=np.int64)
        return lengths.max() - lengths if self.padding_side == "left" else np.zeros_like(lengths)

    @property
    def head(self) -> str | None:
        """`causal` or `masked`; None: there is no head over the vocabulary at the trunk's positions."""
        return head_kind(self._model, self._trunk.trunk)

    def padded(self, batch: Sequence[Encoded]) -> PaddedBatch:
        """What the model is given for a batch."""
        ids, mask = self._padded(batch)
        return PaddedBatch(ids, mask, self._trunk.inputs(ids, mask).get("position_ids"))

    def logits(self, batch: Sequence[Encoded]) -> Tensor:
        """The model's outputs `(B, T, V)`.

        Raises:
            UnsupportedModel: it was loaded without a head over the vocabulary.
        """
        with torch.inference_mode():
            return self._suffix.logits(self._suffix.run(self.padded(batch))[0])

    def run(self, inputs: PaddedBatch, sites: Sequence[str]) -> tuple[dict[str, Tensor], Tensor | None]:
        """States `(B, T, D)` by site and logits `(B, T, V)` (None: no head), from one pass."""
        with torch.inference_mode():
            output, states = self._suffix.run(inputs, sites)
        return states, None if self.head is None else self._suffix.logits(output)

    def run_from(self, site: str, states: Tensor, inputs: PaddedBatch) -> Tensor:
        """Logits `(B, T, V)` when the states at `resid.l` are these; only blocks l to L-1 run.

        Before a site is first used, replay of clean states is compared with a full pass.

        Args:
            site: `resid.l`.
            states: `(B, T, D)` in the compute dtype; gradients flow into them if they ask for it.
            inputs: the batch the states are of: masks and positions are made from it.

        Raises:
            UnknownSite: no such site.
            ReplayUnavailable: another kind of site, other shapes, or a family whose blocks pass on more than states.
            UnsupportedModel: there is no head.
        """
        with torch.set_grad_enabled(states.requires_grad):
            return self._suffix.logits(self._suffix.run(inputs, site=site, states=states)[0])

    def states_from(self, site: str, states: Tensor, inputs: PaddedBatch, sites: Sequence[str]) -> dict[str, Tensor]:
        """As `run_from`, and gives the states at later sites instead; it needs no head."""
        with torch.set_grad_enabled(states.requires_grad):
            return self._suffix.run(inputs, sites, site=site, states=states)[1]

    def self_check(self) -> None:
        """Prove on four small inputs that the hooks read what the site names say.

        Raises:
            UnsupportedModel: which family failed, and how.
        """
        self._check.model()

    def identity(self) -> dict[str, Any]:
        """The `model` and `tokenizer` blocks of a store's identity; no machine paths."""
        if self._identity is not None:
            return dict(self._identity)
        where = (self.name, self._revision, self._folder)
        found = {
            "model": model_identity(self._model, *where, self._untrained),
            "tokenizer": tokenizer_identity(self.tokenizer, *where, self.padding_side),
        }
        if self._folder is not None:  # hashes of files, which were read once; what is in memory may change
            self._identity = found
        return dict(found)

    def _padded(self, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """Ids and mask `(B, T)` on the model's device."""
        if not batch or not all(len(e) for e in batch):
            raise BadParameter("an input without pieces cannot be run", needed="at least one piece", found="none")
        ids = np.full((len(batch), max(len(e) for e in batch)), self.padding_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, (one, start) in enumerate(zip(batch, self.first_piece(batch), strict=True)):
            ids[row, start : start + len(one)] = one.ids
            mask[row, start : start + len(one)] = 1
        device = self._trunk.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
