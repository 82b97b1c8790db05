"""The truth about edges of models that were built: what the output does when one sender's write into one reader's input
is that of another prompt, and everything else that the reader reads stays (a do-intervention on the edge).

It is measured with hooks of its own, apart from the code of `probing.circuits`, which is judged by it. Senders are
`input`, heads such as `a1.h0` and MLPs such as `m2`; readers are `a1.h0<q>`, `<k>` and `<v>`, MLPs and `logits`.
B prompts, T tokens, D width, V numbers of the output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probing.plantbench.planted_model import PlantedModel
from probing.plantbench.tier3_models import TracrModel

Metric = Callable[[Tensor], Tensor]  # outputs (B, V) to one number a prompt
Label = Literal["material", "weak", "inert"]

MATERIAL = 0.10  # of the fall of the metric from clean to corrupted prompts: 2 δ of `probing circuit`
INERT = 1e-4  # of it, as the root mean square over prompts


@dataclass(frozen=True)
class EdgeTruth:
    """Holds the truth about one edge.

    Attributes:
        sender, reader: names of the two ends.
        effect: mean fall of the metric when the edge carries what it carries in the corrupted prompt, as a share of the
            fall from clean to corrupted prompts.
        spread: root mean square of that fall over prompts, as such a share.
        label: `material` (the effect is at least 0.1 in size), `inert` (the spread is at most 0.0001), else `weak`.
    """

    sender: str
    reader: str
    effect: float
    spread: float
    label: Label

    @property
    def name(self) -> str:
        """Name of the edge, such as `a0.h1->a3.h2<q>`."""
        return f"{self.sender}->{self.reader}"

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values, with numbers of 6 significant digits."""
        return asdict(self) | {"effect": float(f"{self.effect:.6g}"), "spread": float(f"{self.spread:.6g}")}


class Parts(ABC):
    """A model, taken apart by hooks.

    Attributes:
        order: senders and readers in the order of computation: a reader reads all senders before it.
    """

    order: tuple[tuple[str, Literal["sender", "reader"]], ...]

    @property
    def edges(self) -> Iterator[tuple[str, str]]:
        """All pairs of a sender and a reader that comes after it."""
        senders: list[str] = []
        for name, kind in self.order:
            if kind == "sender":
                senders.append(name)
            else:
                yield from ((sender, name) for sender in senders)

    @abstractmethod
    def writes(self, ids: Tensor) -> dict[str, Tensor]:
        """Return what each sender writes into the residual stream, `(B, T, D)`."""

    @abstractmethod
    def outputs(self, ids: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs `(B, V)` when something `(B, T, D)` is added to what some readers read."""


def edge_truth(parts: Parts, clean: Tensor, corrupted: Tensor, metric: Metric) -> list[EdgeTruth]:
    """Measure every edge and return the truth, in the order of readers.

    Args:
        parts: the model.
        clean, corrupted: prompts `(B, T)`, in pairs.
        metric: function of the outputs `(B, V)` that returns one number for each pair, `(B,)`.
    """
    with torch.no_grad():
        own, other = parts.writes(clean), parts.writes(corrupted)
        start = metric(parts.outputs(clean, {})).double()
        whole = float((start - metric(parts.outputs(corrupted, {})).double()).mean())
        found = []
        for sender, reader in parts.edges:
            difference = other[sender] - own[sender]
            if not bool(difference.any()):
                found.append(EdgeTruth(sender, reader, 0.0, 0.0, "inert"))
                continue
            fall = (start - metric(parts.outputs(clean, {reader: difference})).double()) / whole
            effect, spread = float(fall.mean()), float(fall.square().mean().sqrt())
            found.append(EdgeTruth(sender, reader, effect, spread, _label(effect, spread)))
    return found


def _label(effect: float, spread: float) -> Label:
    return "inert" if spread <= INERT else "material" if abs(effect) >= MATERIAL else "weak"


class TracrParts(Parts):
    """Takes a compiled program apart.

    Args:
        model: the program.
        token: number of the token whose outputs are read.
    """

    def __init__(self, model: TracrModel, token: int) -> None:
        self._model, self._token = model, token
        self._heads = [
            [h for h in range(model.program.shape["heads"]) if self._acts(block, h)] for block in model.blocks
        ]
        order: list[tuple[str, Literal["sender", "reader"]]] = [("input", "sender")]
        for layer, block in enumerate(model.blocks):
            order += [(f"a{layer}.h{h}<{kind}>", "reader") for kind in "qkv" for h in self._heads[layer]]
            order += [(f"a{layer}.h{h}", "sender") for h in self._heads[layer]]
            if bool(block.down.weight.any()):  # type: ignore[union-attr, operator]
                order += [(f"m{layer}", "reader"), (f"m{layer}", "sender")]
        self.order = (*order, ("logits", "reader"))

    @staticmethod
    def _acts(block: Any, head: int) -> bool:
        return bool(block.output.weight[:, head * block.key_size : (head + 1) * block.key_size].any())

    def writes(self, ids: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        self._run(ids, {}, found)
        return found

    def outputs(self, ids: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        return self._run(ids, added, {})

    def _run(self, ids: Tensor, added: Mapping[str, Tensor], writes: dict[str, Tensor]) -> Tensor:
        mask = ids != self._model.program.padding
        x = writes["input"] = self._model.embed(ids)
        for layer, block in enumerate(self._model.blocks):
            for head in self._heads[layer]:
                writes[f"a{layer}.h{head}"] = self._head(block, layer, head, x, mask, added)
            for head in self._heads[layer]:
                x = x + writes[f"a{layer}.h{head}"]
            x = x + block.output.bias  # type: ignore[union-attr, operator]
            read = x + added[f"m{layer}"] if f"m{layer}" in added else x
            writes[f"m{layer}"] = block.mlp(read)  # type: ignore[operator]
            x = x + writes[f"m{layer}"]
        return self._model.outputs(x + added["logits"] if "logits" in added else x)[:, self._token]

    def _head(self, block: Any, layer: int, head: int, x: Tensor, mask: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        own = slice(head * block.key_size, (head + 1) * block.key_size)
        read = [x + added[name] if (name := f"a{layer}.h{head}<{kind}>") in added else x for kind in "qkv"]
        layers = (block.query, block.key, block.value)
        q, k, v = (one(h)[..., own] for one, h in zip(layers, read, strict=True))
        scores = (q @ k.transpose(1, 2)) / block.key_size**0.5
        shares = scores.masked_fill(~mask[:, None, :], -1e30).softmax(-1)
        written: Tensor = shares @ v @ block.output.weight[:, own].T
        return written


class HookedParts(Parts):
    """Takes a GPT-2 or Llama of tier 1 apart by hooks on its modules.

    Args:
        planted: the model.
    """

    def __init__(self, planted: PlantedModel) -> None:
        self._planted, config = planted, planted.model.config
        self._is_gpt2 = config.model_type == "gpt2"
        self._heads = int(config.num_attention_heads)
        self._size = int(config.hidden_size) // self._heads
        order: list[tuple[str, Literal["sender", "reader"]]] = [("input", "sender")]
        for layer in range(len(planted.blocks)):
            order += [(f"a{layer}.h{h}<{kind}>", "reader") for kind in "qkv" for h in range(self._heads)]
            order += [(f"a{layer}.h{h}", "sender") for h in range(self._heads)]
            order += [(f"m{layer}", "reader"), (f"m{layer}", "sender")]
        self.order = (*order, ("logits", "reader"))

    def writes(self, ids: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for layer, block in enumerate(self._planted.blocks):
                stack.enter_context(self._written_by_heads(layer, block, found))
                stack.callback(block.mlp.register_forward_hook(_noting(found, f"m{layer}")).remove)  # type: ignore[union-attr]
            with self._planted.reading([0]) as states:
                self._planted.answers(ids)
        return found | {"input": states[0]}

    @contextmanager
    def _written_by_heads(self, layer: int, block: Any, found: dict[str, Tensor]) -> Iterator[None]:
        projection = block.attn.c_proj if self._is_gpt2 else block.self_attn.o_proj

        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            weight = projection.weight if self._is_gpt2 else projection.weight.T
            for head in range(self._heads):
                own = slice(head * self._size, (head + 1) * self._size)
                found[f"a{layer}.h{head}"] = args[0][..., own] @ weight[own]

        handle = projection.register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def outputs(self, ids: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        with ExitStack() as stack:
            for reader, more in added.items():
                for handle in self._adding(reader, more):
                    stack.callback(handle.remove)
            return self._planted.answers(ids)

    def _adding(self, reader: str, more: Tensor) -> Iterable[Any]:
        """Register hooks that add something to what one reader reads, and return them."""

        def before_norm(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0] + more[:, -args[0].shape[1] :], *args[1:])

        model: Any = self._planted.model
        if reader == "logits":
            norm = model.transformer.ln_f if self._is_gpt2 else model.model.norm
            return [norm.register_forward_pre_hook(before_norm)]
        block: Any = self._planted.blocks[int(reader[1:].split(".")[0])]
        if reader.startswith("m"):
            norm = block.ln_2 if self._is_gpt2 else block.post_attention_layernorm
            return [norm.register_forward_pre_hook(before_norm)]
        head, kind = int(reader.split(".h")[1].split("<")[0]), reader[-2]
        return self._adding_to_head(block, head, kind, more)

    def _adding_to_head(self, block: Any, head: int, kind: str, more: Tensor) -> Iterable[Any]:
        norm = block.ln_1 if self._is_gpt2 else block.input_layernorm
        projection = block.attn.c_attn if self._is_gpt2 else getattr(block.self_attn, f"{kind}_proj")
        start = head * self._size + (self._size * self._heads * "qkv".index(kind) if self._is_gpt2 else 0)
        own, read = slice(start, start + self._size), list[Tensor]()

        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            read.append(args[0])

        def replace(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output.clone()
            output[..., own] = projection.forward(norm.forward(read.pop() + more))[..., own]  # without hooks
            return output

        return [norm.register_forward_pre_hook(note), projection.register_forward_hook(replace)]


def _noting(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        found[name] = output

    return note


@dataclass(frozen=True, eq=False)
class EdgePairs:
    """Holds pairs of prompts whose outputs differ, and the metric that compares them.

    Attributes:
        clean, corrupted: `(B, T)` ids.
        answers: `(B, 2)` columns of the output: what is answered in the clean prompt, and in the corrupted one; for an
            output that is a number, both are 0.
        signs: `(B,)` 1, or for an output that is a number its direction from corrupted to clean.
    """

    clean: Tensor
    corrupted: Tensor
    answers: Tensor
    signs: Tensor

    def take(self, rows: slice) -> EdgePairs:
        """Return some of the pairs."""
        return EdgePairs(self.clean[rows], self.corrupted[rows], self.answers[rows], self.signs[rows])

    def metric(self, outputs: Tensor) -> Tensor:
        """Return, from outputs `(B, V)`, the answer's minus the corrupted answer's; the signed number for numbers."""
        chosen = outputs.gather(1, self.answers)
        if outputs.shape[1] == 1:
            return chosen[:, 0] * self.signs
        return chosen[:, 0] - chosen[:, 1]


def pairs_of(parts: Parts, first: NDArray[np.int64], second: NDArray[np.int64], most: int) -> EdgePairs:
    """Return at most `most` of the pairs of prompts `(N, T)` whose outputs name other answers."""
    clean, corrupted = torch.from_numpy(first), torch.from_numpy(second)
    with torch.no_grad():
        own, other = parts.outputs(clean, {}), parts.outputs(corrupted, {})
    if own.shape[1] == 1:
        differ = (own - other).abs()[:, 0] > 0.01
        answers, signs = torch.zeros((len(own), 2), dtype=torch.long), (own - other)[:, 0].sign()
    else:
        answers = torch.stack([own.argmax(1), other.argmax(1)], dim=1)
        differ, signs = answers[:, 0] != answers[:, 1], torch.ones(len(own))
    rows = differ.nonzero()[:most, 0]
    return EdgePairs(clean[rows], corrupted[rows], answers[rows], signs[rows])
