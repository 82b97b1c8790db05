"""Reads prompts in one pass: their states, the attention patterns of every head, and the values that the patterns
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probing.errors import UnsupportedModel
from probing.inspecting.prompts import Prompt
from probing.models.adapters.huggingface import HuggingFaceTrunk
from probing.models.batching import PaddedBatch
from probing.models.discovery.tracing import first_tensor, is_close, trace_calls
from probing.models.language_model import LanguageModel
from probing.text.alignment import Encoded


@dataclass(frozen=True)
class Values:
    """Says where the values of a layer's heads come from.

    Attributes:
        path: module of the trunk whose output holds them.
        groups: number of value heads; each serves `n_heads / groups` query heads.
        size: number of features of a value.
        is_block: whether the values are the last `groups * size` columns, rather than the last `size` columns of each
            group.
    """

    path: str
    groups: int
    size: int
    is_block: bool

    def of(self, output: Tensor, shape: tuple[int, int], n_heads: int) -> Tensor | None:
        """Return the values `(B, T, H, d)` in the module's output for each query head; None if it has another form."""
        batch, length = shape
        if output.ndim == 4 and output.shape[1] != length and output.shape[2] == length:
            output = output.transpose(1, 2)
        if output.numel() % (batch * length) or output.shape[0] not in (batch, batch * length):
            return None
        flat = output.reshape(batch, length, -1)
        if self.is_block:
            flat = flat[..., -self.groups * self.size :]
        if flat.shape[-1] % self.groups or flat.shape[-1] // self.groups < self.size:
            return None
        cut = flat.reshape(batch, length, self.groups, -1)[..., -self.size :]
        return cut.repeat_interleave(n_heads // self.groups, 2)


@dataclass(frozen=True)
class Read:
    """Holds what one pass over B prompts of T tokens gave.

    Attributes:
        prompts: the prompts.
        inputs: the batch as inputs of the model.
        states: states `(B, T, D)` by site.
        patterns: by layer, the weight `(B, H, T, T)` that each head gives at a query (row) to a key (column).
        values: by layer, the values `(B, T, H, d)` of each head at the keys.
        logits: outputs `(B, T, V)`; None: the model has no head over the vocabulary.
    """

    prompts: Sequence[Prompt]
    inputs: PaddedBatch
    states: Mapping[str, Tensor]
    patterns: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    logits: Tensor | None

    def allowed(self, layer: int, window: int | None) -> NDArray[np.bool_]:
        """Return which keys each query may attend to, `(T, T)`: those up to itself if no head of the layer looks ahead,
        and within `window` tokens if no head looks further.
        """
        pattern = self.patterns[layer]
        length = pattern.shape[-1]
        ahead = np.arange(length)[None] - np.arange(length)[:, None]
        is_seen = (pattern > 0).any(0).any(0).cpu().numpy()
        found = np.ones((length, length), dtype=bool)
        if not (is_seen & (ahead > 0)).any():
            found &= ahead <= 0
        if window is not None and not (is_seen & (np.abs(ahead) >= window)).any():
            found &= np.abs(ahead) < window
        return found


@dataclass
class Reader:
    """Reads prompts in one pass each; attention, if it is asked for, is checked first.

    Attributes:
        model: the model.
        sites: sites to read.
        layers: layers whose attention is read; none unless `find_attention` was called.
        n_heads: number of query heads of a layer.
        size: number of features of a head.
        window: number of tokens that some layers attend within, as the configuration says; None: it says nothing.
        has_sink: whether heads can rest on a sink that is no token, so that the weights of a query sum to less than 1.
    """

    model: LanguageModel
    sites: tuple[str, ...]
    layers: tuple[int, ...] = ()
    n_heads: int = 0
    size: int = 0
    window: int | None = None
    has_sink: bool = False
    _values: dict[int, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.trunk  # a model whose blocks are not known is refused before anything is read

    def find_attention(self) -> None:
        """Find the heads, their patterns and their values, and check that pattern times values is the heads' output.

        Raises:
            UnsupportedModel: the model has no attention, its attention cannot be returned, or the pattern times values
                is not what the heads write.
        """
        trunk, model = self.trunk, self.model
        heads = [site for site in model.sites if site.startswith("heads.")]
        if not heads or trunk.lead:
            raise UnsupportedModel(
                f"models of the family {trunk.family!r} have no attention that can be inspected",
                needed="blocks whose attention and heads are known (sites heads.l)",
                found="the decoder of an encoder-decoder" if trunk.lead else "none",
                where=model.name,
                next_step="inspect the states alone, without attention",
            )
        config = getattr(trunk.model, "config", None)
        kind = getattr(config, "_attn_implementation", None)
        if kind not in (None, "eager"):
            raise self._not_returned(f"attention {kind!r}, which keeps no pattern")
        self.layers = tuple(int(site.partition(".")[2]) for site in heads)
        sizes = {tuple(model.head_size(site).values()) for site in heads}
        if len(sizes) > 1:
            raise self._not_returned("layers with heads of several sizes")
        self.n_heads, self.size = sizes.pop()
        self.window = next(
            (w for name in _WINDOWS if isinstance(w := getattr(config, name, None), int) and w > 0), None
        )
        self._find_values()

    @property
    def trunk(self) -> HuggingFaceTrunk:
        """The part of the model that is read.

        Raises:
            UnsupportedModel: the model was wrapped by paths of modules, so its blocks are not known.
        """
        found = self.model.suffix.trunk
        if isinstance(found, HuggingFaceTrunk) and len(found.blocks):
            return found
        raise UnsupportedModel(
            "a model without known blocks cannot be inspected",
            needed="a Hugging Face model read by its blocks",
            found=type(found).__name__,
            where=self.model.name,
            next_step="load it without module paths",
        )

    def check_running(self) -> None:
        """Check that the model has outputs over its vocabulary and can be run from its middle.

        Raises:
            UnsupportedModel: the model has no head over the vocabulary.
            ReplayUnavailable: its blocks cannot be run from the middle.
        """
        if self.model.suffix.head is None:
            raise UnsupportedModel(
                "this model has no output that a check could measure",
                needed="a causal or masked head over the vocabulary",
                found=type(self.trunk.model).__name__,
                where=self.model.name,
                next_step="load it with kind='causal' or 'masked', or leave the check out",
            )
        for layer in self.layers:
            self.model.suffix.prove(f"resid.{layer}")

    def read(self, prompts: Sequence[Prompt], sites: Sequence[str] | None = None) -> Read:
        """Run one pass over prompts of equal length and return what it gave, at `sites` (None: those of the reader)."""
        wanted = self.sites if sites is None else tuple(sites)
        inputs = self._inputs([prompt.encoded for prompt in prompts])
        shape = (inputs.ids.shape[0], inputs.ids.shape[1])
        with self._outputs() as outputs, torch.inference_mode():
            output, states = self._run(inputs, [site for site in wanted if site != "embed"])
            if "embed" in wanted:
                states["embed"] = nn.functional.embedding(inputs.ids, self.trunk.embedding)
        patterns = self._patterns(output, self.layers)
        values = {}
        for layer, where in self._values.items():
            found = where.of(outputs[layer], shape, self.n_heads)
            assert found is not None  # for the reader of types: the form was checked in `find_attention`
            values[layer] = found
        logits = getattr(output, "logits", None) if self.model.suffix.head is not None else None
        return Read(prompts, inputs, {site: states[site] for site in wanted}, patterns, values, logits)

    def _inputs(self, encoded: Sequence[Encoded]) -> PaddedBatch:
        ids = torch.from_numpy(np.stack([one.ids for one in encoded])).to(self.model.device)
        return PaddedBatch(ids, torch.ones_like(ids), None)

    def _run(self, inputs: PaddedBatch, sites: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
        trunk = self.trunk
        whole = self.model.suffix.model if self.model.suffix.head is not None else trunk.trunk
        asked = {"output_attentions": True} if self.layers else {}
        given = trunk.inputs(inputs.ids, inputs.mask) | asked
        return trunk.read_whole(lambda: whole(**given), inputs.ids, sites)

    def _patterns(self, output: Any, layers: Sequence[int]) -> dict[int, Tensor]:
        """Return the patterns of some layers; of a model that has blocks without attention, only the others count."""
        if not layers:
            return {}
        returned = [one for one in (getattr(output, "attentions", None) or ()) if isinstance(one, Tensor)]
        if len(returned) == len(self.trunk.blocks) != len(layers):
            returned = [returned[layer] for layer in layers]
        if len(returned) != len(layers) or any(one.ndim != 4 or one.shape[1] != self.n_heads for one in returned):
            raise self._not_returned(f"{len(returned)} patterns of {len(layers)} layers")
        return dict(zip(layers, returned, strict=True))

    @contextmanager
    def _outputs(self) -> Iterator[dict[int, Tensor]]:
        """Within the block, keep what the modules that hold values give, by layer."""
        found: dict[int, Tensor] = {}

        def keeper(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                kept = first_tensor(output)
                assert isinstance(kept, Tensor)  # for the reader of types: it was one when the module was chosen
                found[layer] = kept

            return hook

        handles = [
            self.trunk.trunk.get_submodule(where.path).register_forward_hook(keeper(layer))
            for layer, where in self._values.items()
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _find_values(self) -> None:
        """Find, for each layer, a module whose output times the pattern is what the heads give."""
        count = self.trunk.vocabulary
        ids = torch.tensor([[(11 + 7 * i + 3 * row) % count for i in range(7)] for row in range(2)])
        inputs = PaddedBatch(ids.to(self.model.device), torch.ones_like(ids).to(self.model.device), None)
        blocks, paths = [self.trunk.blocks[layer] for layer in self.layers], _paths(self.trunk)
        kept: list[Any] = []
        with torch.inference_mode():
            calls = trace_calls(blocks, lambda: kept.append(self._run(inputs, [f"heads.{n}" for n in self.layers])))
        output, states = kept[0]
        patterns = self._patterns(output, self.layers)
        self.has_sink = any(bool((1 - one.double().sum(-1) > _missing(one.dtype)).any()) for one in patterns.values())
        for layer, trace in zip(self.layers, calls, strict=True):
            for call in trace:
                found = self._values_in(call.output, patterns[layer], states[f"heads.{layer}"])
                if found is not None:
                    groups, is_block = found
                    path = f"{paths[id(self.trunk.blocks[layer])]}.{call.path}"
                    self._values[layer] = Values(path, groups, self.size, is_block)
                    break
            else:
                raise self._not_returned(f"no values in layer {layer} that the returned pattern weights")

    def _values_in(self, output: Tensor | None, pattern: Tensor, heads: Tensor) -> tuple[int, bool] | None:
        """Return how the output of a module holds the values: the number of groups, and whether they are one block."""
        if output is None:
            return None
        shape = (pattern.shape[0], pattern.shape[-1])
        for groups in (g for g in range(self.n_heads, 0, -1) if self.n_heads % g == 0):
            for is_block in (False, True):
                found = Values("", groups, self.size, is_block).of(output, shape, self.n_heads)
                if found is not None and is_close(mixed(pattern, found).flatten(2), heads, loose=1e-4):
                    return groups, is_block
        return None

    def _not_returned(self, found: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"the attention of models of the family {self.trunk.family!r} cannot be returned as it is loaded",
            needed="attention 'eager', and patterns that weight the values of each head",
            found=found,
            where=self.model.name,
            next_step="load the model with attention='eager', or inspect the states alone",
        )


_WINDOWS = ("sliding_window", "window_size")


def _missing(dtype: torch.dtype) -> float:
    """Return how much of a query's weight can be missing by rounding."""
    return max(1e-4, 4 * torch.finfo(dtype).eps)


def _paths(trunk: HuggingFaceTrunk) -> dict[int, str]:
    return {id(module): path for path, module in trunk.trunk.named_modules()}


def mixed(pattern: Tensor, values: Tensor) -> Tensor:
    """Return the output of heads, `(…, T, H, d)`, whose pattern `(…, H, T, T)` weights values `(…, T, H, d)`."""
    return (pattern.to(values.dtype) @ values.transpose(-3, -2)).transpose(-3, -2)
