"""Splits a model into senders and readers: `SplitModel` says what a circuit needs of a model, `SplitTransformer` gives
it for Hugging Face models. B prompts, T tokens, D width of the residual stream, H heads, G groups, E width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probing.errors import ProbingError, UnsupportedModel
from probing.models.adapters.huggingface import HuggingFaceTrunk
from probing.models.batching import PaddedBatch
from probing.models.language_model import LanguageModel
from probing.models.reading.calls import BlockCalls
from probing.models.reading.split_block import SplitBlock, not_split

IDENTITY = 1e-5  # largest difference, as a share of the largest entry


@dataclass(frozen=True)
class Layer:
    """Describes one block.

    Attributes:
        heads: number of attention heads; 0 if the block has no attention.
        groups: number of groups of heads that share keys and values; equal to `heads` if none do.
        has_mlp: whether the block has an MLP.
    """

    heads: int
    groups: int
    has_mlp: bool = True

    def heads_of(self, group: int) -> range:
        """Return the heads that read the keys and values of a group."""
        size = self.heads // self.groups
        return range(group * size, (group + 1) * size)


class SplitModel(ABC):
    """A model whose residual stream is the sum of what senders write, and whose readers can be given inputs of their
    own. Any PyTorch model becomes one by the methods below; `block` and `attention` need not be written.

    Attributes:
        name: name of the model.
        identity: facts that tell the model from others, which files of circuits record.
        layers: description of each block.
        is_parallel: whether the MLP of a block reads what attention reads, without what attention wrote.
        max_length: largest number of tokens of a prompt; None if there is no limit.
    """

    name: str
    identity: Mapping[str, Any]
    layers: Sequence[Layer]
    is_parallel: bool = False
    max_length: int | None = None

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return what enters the first block, `(B, T, D)`, for prompts of one length, `(B, T)`."""

    @abstractmethod
    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the outputs of the heads of a block before they are projected into the residual stream, `(B, T, H,
        E)`.

        Args:
            layer: number of the block.
            q: `(H, B, T, D)` what each head's query reads from the residual stream, before any norm; or `(1, B, T, D)`
                if all read the same.
            k, v: the same of keys and values, `(G, B, T, D)` or `(1, B, T, D)`.
        """

    @abstractmethod
    def write(self, layer: int, z: Tensor) -> Tensor:
        """Return what each head writes into the residual stream, `(H, B, T, D)`, from `heads`."""

    @abstractmethod
    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """Return what the MLP of a block writes, `(B, T, D)`, if it reads `x` (before any norm)."""

    @abstractmethod
    def measure(self, x: Tensor, answers: Tensor) -> Tensor:
        """Return the metric of each prompt, `(B,)`, from the last state of the residual stream `(B, T, D)` and the
        answers `(B, A)`; for language models the logit of the first answer minus that of the second.
        """

    def attention(self, layer: int, z: Tensor) -> Tensor:
        """Return what attention adds to the residual stream, `(B, T, D)`: what heads write in sum, and constants."""
        return self.write(layer, z).sum(0)

    def block(self, layer: int, x: Tensor) -> Tensor:
        """Return what leaves a block, `(B, T, D)`, if every reader reads `x`."""
        middle = x
        if self.layers[layer].heads:
            middle = x + self.attention(layer, self.heads(layer, x[None], x[None], x[None]))
        if not self.layers[layer].has_mlp:
            return middle
        return middle + self.mlp(layer, x if self.is_parallel else middle)

    def check(self, ids: Tensor) -> float:
        """Check on prompts `(B, T)` that the parts add up to the model, and return the largest difference as a share
        of the scale. Models that are only their parts need no check.
        """
        return 0.0


class SplitTransformer(SplitModel):
    """Splits a causal Hugging Face model whose blocks add attention and MLP to the residual stream, each behind a norm
    of its input (GPT-2, Llama, Qwen, NeoX, OPT, and Gemma with norms of what is written, too).

    Attention runs in the model's own code, between its projections; norms and MLPs are the model's modules.

    Attributes:
        model: the language model.
    """

    def __init__(self, model: LanguageModel) -> None:
        """Find the parts of every block, and check that queries, keys and values of heads are read where expected.

        Raises:
            UnsupportedModel: the model is not causal, or its readers cannot be split.
        """
        self.model, self.name, self.identity = model, model.facts()["name"], dict(model.identity()["model"])
        self.max_length = model.max_length
        trunk = model.suffix.trunk
        if not isinstance(trunk, HuggingFaceTrunk):
            raise not_split(trunk, "it is read by module paths", "a Hugging Face model")
        self._trunk = trunk
        if model.suffix.head != "causal":
            raise not_split(self._trunk, "it has no head that predicts the next token", "a causal language model")
        blocks = trunk.blocks
        missing = [
            k for k in range(len(blocks)) if f"heads.{k}" not in model.sites or f"mlp_out.{k}" not in model.sites
        ]
        if missing or not len(blocks):
            raise not_split(
                self._trunk, f"attention and MLP of block {missing[0] if missing else 0} do not add up to its output"
            )
        if any(site.startswith("cross_out") for site in model.sites):
            raise not_split(self._trunk, "it attends to an encoder")
        if trunk.reads_alone or trunk.layout.skipped:
            raise not_split(self._trunk, "its states depend on padding or on tokens of its own")
        calls = BlockCalls(trunk)
        try:
            self._blocks = [SplitBlock(trunk, k, calls) for k in range(len(blocks))]
        except ProbingError:
            self._check_weights()
            raise
        is_parallel = all(block.is_parallel for block in self._blocks)
        for block in self._blocks:  # one that shows neither is as the others; `check` compares what its MLP reads
            block.is_parallel = is_parallel
        self.layers = [Layer(block.n_heads, block.n_groups) for block in self._blocks]
        self.is_parallel = is_parallel
        try:
            for block in self._blocks:
                block.check()
            self.check(torch.arange(10).reshape(2, 5) % self._trunk.vocabulary)
        except ProbingError:
            self._check_weights()
            raise
        except Exception as error:  # whatever the code of a family raises if it is run part by part
            raise not_split(
                self._trunk, f"its attention does not run apart from the model ({type(error).__name__})"
            ) from error

    def _check_weights(self) -> None:
        """Check that all weights are finite: a model of which some are not shows nothing of how it is built.

        Raises:
            UnsupportedModel: some are not.
        """
        wrong = [name for name, one in self._trunk.model.named_parameters() if not bool(torch.isfinite(one).all())]
        if wrong:
            raise UnsupportedModel(
                "weights of the model are not finite",
                needed="finite numbers",
                found=f"NaN or infinity in {', '.join(wrong[:3])}" + (" and others" if len(wrong) > 3 else ""),
                where=self.name,
                next_step="load the weights again, or in another number type",
            )

    def embed(self, ids: Tensor) -> Tensor:
        """Return the states that enter the first block, `(B, T, D)`, which contain positions where these are added."""
        inputs = self._inputs(ids)
        with torch.no_grad():
            return self._trunk.read(inputs.ids, inputs.mask, ["resid.0"])["resid.0"].clone()

    def _inputs(self, ids: Tensor) -> PaddedBatch:
        given = ids.to(self.model.device)
        return self.model.suffix.padded(given, torch.ones_like(given))

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `SplitModel.heads`."""
        return self._blocks[layer].heads(q, k, v)

    def write(self, layer: int, z: Tensor) -> Tensor:
        """See `SplitModel.write`; behind a norm of what is written, each head's part of the normed sum."""
        return self._blocks[layer].write(z)

    def attention(self, layer: int, z: Tensor) -> Tensor:
        """See `SplitModel.attention`."""
        return self._blocks[layer].added(z)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """See `SplitModel.mlp`."""
        return self._blocks[layer].mlp(x)

    def block(self, layer: int, x: Tensor) -> Tensor:
        """See `SplitModel.block`; the model's own block is run."""
        return self._blocks[layer].run(x)

    def measure(self, x: Tensor, answers: Tensor) -> Tensor:
        """Return the logit of the first answer minus that of the second at the last token, `(B,)`."""
        inputs = self._inputs(torch.zeros((len(x), 1), dtype=torch.long) + 1)
        logits = self.model.run_from(f"resid.{len(self._blocks)}", x[:, -1:].contiguous(), inputs)[:, -1].float()
        chosen = logits.gather(1, answers.to(logits.device))
        return chosen[:, 0] - chosen[:, 1]

    def check(self, ids: Tensor) -> float:
        """Compare, on prompts `(B, T)`, the sum of what senders wrote with the model's own residual stream at every
        reader, and the logits from the parts with its logits; return the largest difference as a share of the scale.

        Raises:
            UnsupportedModel: a difference is above 1e-5 (1e-2 in half precision).
        """
        with torch.no_grad():
            worst, where = self._compare(ids)
        limit = IDENTITY if self._trunk.dtype in (torch.float32, torch.float64) else 1e-2
        if not worst <= limit:
            raise not_split(
                self._trunk,
                f"what its parts wrote is not what {where} reads (difference {worst:.2g} of the largest entry)",
                f"the residual stream as the sum of its parts, up to {limit:g}",
            )
        return worst

    def _compare(self, ids: Tensor) -> tuple[float, str]:
        inputs = self._inputs(ids)
        sites = [f"resid.{k}" for k in range(len(self._blocks) + 1)]
        with ExitStack() as stack:
            middles = [stack.enter_context(block.input_of_mlp()) for block in self._blocks]
            output, states = self.model.suffix.run(inputs, sites)
        total = states["resid.0"]
        worst, where = 0.0, ""

        def compare(found: Tensor, expected: Tensor, name: str) -> None:
            nonlocal worst, where
            share = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
            worst, where = max((worst, where), (share if share == share else float("inf"), name))

        x = total
        for k, block in enumerate(self._blocks):
            compare(total, states[f"resid.{k}"], f"attention {k}")
            z = block.heads(x[None], x[None], x[None])
            total = total + block.write(z).sum(0) + block.constant
            middle = x + block.added(z)
            read = x if self.is_parallel else middle
            compare(states[f"resid.{k}"] if self.is_parallel else total, middles[k][-1].reshape(read.shape), f"MLP {k}")
            written = block.mlp(read)
            total, x = total + written, middle + written
        compare(total, states[sites[-1]], "the output")
        logits = self.model.suffix.logits(output)[:, -1]
        last = self._inputs(torch.zeros((len(ids), 1), dtype=torch.long) + 1)
        compare(self.model.run_from(sites[-1], total[:, -1:].contiguous(), last)[:, -1], logits, "the logits")
        return worst, where
