"""Splits a model into senders and readers: `SplitModel` says what a circuit needs of a model, `SplitTransformer` gives
it for Hugging Face models. B prompts, T tokens, D width of the residual stream, H heads, G groups, E width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probing.circuits.graph import Graph, Layer
from probing.errors import ProbingError, UnsupportedModel
from probing.models.batching import PaddedBatch
from probing.models.discovery.tracing import first_tensor, given_state, is_same, trace_calls, with_first, with_state
from probing.models.language_model import LanguageModel
from probing.models.reading.replay import emptied

IDENTITY = 1e-5  # largest difference, as a share of the largest entry
_FUSED, _INTERLEAVED = ("c_attn", "qkv_proj", "Wqkv"), ("query_key_value",)


class SplitModel(ABC):
    """A model whose residual stream is the sum of what senders write, and whose readers can be given inputs of their
    own. Any PyTorch model becomes one by the methods below; `block` and `attention` need not be written.

    Attributes:
        name: name of the model.
        identity: facts that tell the model from others, which files of circuits record.
        graph: its senders and readers.
    """

    name: str
    identity: dict[str, Any]
    graph: Graph

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
        """Return what attention adds to the residual stream, `(B, T, D)`: the sum of what heads write, and constants."""
        return self.write(layer, z).sum(0)

    def block(self, layer: int, x: Tensor) -> Tensor:
        """Return what leaves a block, `(B, T, D)`, if every reader reads `x`."""
        middle = x
        if self.graph.layers[layer].heads:
            middle = x + self.attention(layer, self.heads(layer, x[None], x[None], x[None]))
        if not self.graph.layers[layer].has_mlp:
            return middle
        return middle + self.mlp(layer, x if self.graph.is_parallel else middle)

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
        self.model, self.name = model, model.name
        trunk = model.suffix.trunk
        self._trunk, self._arguments = trunk, dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]]()
        if model.suffix.head != "causal":
            raise self.refused("it has no head that predicts the next token", "a causal language model")
        blocks = getattr(trunk, "blocks", ())
        missing = [k for k in range(len(blocks)) if f"heads.{k}" not in model.sites or f"mlp_out.{k}" not in model.sites]
        if missing or not len(blocks):
            raise self.refused(f"attention and MLP of block {missing[0] if missing else 0} do not add up to its output")
        if any(site.startswith("cross_out") for site in model.sites):
            raise self.refused("it attends to an encoder")
        if getattr(trunk, "reads_alone", False) or getattr(trunk.layout, "skipped", 0):
            raise self.refused("its states depend on padding or on tokens of its own")
        self._blocks = [_Block(self, k, block) for k, block in enumerate(blocks)]
        parallel = {block.is_parallel for block in self._blocks}
        if len(parallel) > 1:
            raise self.refused("some of its blocks are parallel and others are not")
        self.graph = Graph([block.shape for block in self._blocks], is_parallel=parallel == {True})
        try:
            for block in self._blocks:
                block.check()
            self.check(torch.arange(10).reshape(2, 5) % self._trunk.vocabulary)
        except ProbingError:
            raise
        except Exception as error:  # whatever the code of a family raises if it is run part by part
            raise self.refused(f"its attention does not run apart from the model ({type(error).__name__})") from error

    @property
    def identity(self) -> dict[str, Any]:  # type: ignore[override]
        """What stores record about the model."""
        return dict(self.model.identity()["model"])

    def refused(self, why: str, needed: str = "blocks that add attention and MLP to the residual stream") -> Exception:
        """Return the error for a model that cannot be split."""
        return UnsupportedModel(
            f"models of the family {self._trunk.family!r} are not split into senders and readers: {why}",
            needed=needed,
            found=type(self.model.suffix.model).__name__,
            where=self.name,
            next_step="choose a model such as GPT-2, Llama, Qwen, GPT-NeoX, OPT or Gemma; `probing patch` needs no split",
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Return the states that enter the first block, `(B, T, D)`, which contain positions where these are added."""
        inputs = self._inputs(ids)
        with torch.no_grad():
            return self._trunk.read(inputs.ids, inputs.mask, ["resid.0"])["resid.0"].clone()

    def _inputs(self, ids: Tensor) -> PaddedBatch:
        given = ids.to(self.model.device)
        return self.model.suffix.padded(given, torch.ones_like(given))

    def arguments(self, layer: int, length: int) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
        """Return how block and attention are called beside their states, for prompts of one length: arguments of the
        block, and of its attention.
        """
        if length not in self._arguments:
            self._arguments[length] = self._traced_arguments(length)
        (block_args, block_more), (args, more) = self._arguments[length][2 * layer : 2 * layer + 2]
        return block_args, block_more, args, more

    def _traced_arguments(self, length: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        seen: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        modules = [module for block in self._blocks for module in (block.block, block.attention)]
        with ExitStack() as stack:
            for place, module in enumerate(modules):

                def note(_: nn.Module, args: Any, more: Any, place: int = place) -> None:
                    seen[place] = (args, dict(more))

                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
            with torch.no_grad():
                ids = torch.zeros((1, length), dtype=torch.long) + 1
                self.model.suffix.run(self._inputs(ids))
        return [seen[place] for place in range(len(modules))]

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
            raise self.refused(
                f"what its parts wrote is not what {where} reads (difference {worst:.2g} of the largest entry)",
                f"the residual stream as the sum of its parts, up to {limit:g}",
            )
        return worst

    def _compare(self, ids: Tensor) -> tuple[float, str]:
        graph, inputs = self.graph, self._inputs(ids)
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
            read = x if graph.is_parallel else middle
            compare(states[f"resid.{k}"] if graph.is_parallel else total, middles[k][-1].reshape(read.shape), f"MLP {k}")
            written = block.mlp(read)
            total, x = total + written, middle + written
        compare(total, states[sites[-1]], "the output")
        logits = self.model.suffix.logits(output)[:, -1]
        last = self._inputs(torch.zeros((len(ids), 1), dtype=torch.long) + 1)
        compare(self.model.run_from(sites[-1], total[:, -1:].contiguous(), last)[:, -1], logits, "the logits")
        return worst, where


class _Block:
    """One block of a Transformer, run part by part."""

    def __init__(self, split: SplitTransformer, layer: int, block: nn.Module) -> None:
        self.split, self.layer, self.block = split, layer, block
        root, modules = split._trunk.trunk, split._trunk.modules
        projection, mlp, added = (modules[f"{kind}.{layer}"] for kind in ("heads", "mlp_out", "attn_out"))
        self.projection, self.mlp_out, self.attn_out = (root.get_submodule(p) for p in (projection, mlp, added))
        self.attention = root.get_submodule(projection.rpartition(".")[0])
        if self.attention is block:
            raise split.refused(f"attention of block {layer} is no module of its own")
        self.readers = self._columns()
        self.norm, self.is_parallel = self._traced()
        weight, bias = _linear(self.projection)
        assert weight is not None  # `_traced` refuses other layers
        size = weight.shape[1] // self.shape.heads
        self.out = weight.detach().reshape(weight.shape[0], self.shape.heads, size).permute(1, 2, 0)  # (H, E, D)
        self.bias = torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype) if bias is None else bias
        self.gain = self._gain()

    @property
    def constant(self) -> Tensor | float:
        """What attention adds whatever the heads write: the bias of the projection."""
        return self.bias.detach() if self.gain is None else 0.0

    def _columns(self) -> dict[str, list[tuple[nn.Module, Tensor]]]:
        """Return for `q`, `k` and `v`, by head or group, the linear layer that computes it and its columns there.

        Raises:
            UnsupportedModel: the linear layers are not known.
        """
        children = dict(self.attention.named_children())
        n_heads = self.split._trunk.n_heads or 0
        out = _linear(self.projection)[0]
        if out is None or not n_heads or out.shape[1] % n_heads:
            raise self.split.refused(f"the projection of heads in block {self.layer} is no linear layer")
        size = out.shape[1] // n_heads
        apart = [children[name] for name in ("q_proj", "k_proj", "v_proj") if name in children]
        fused = [children[name] for name in (*_FUSED, *_INTERLEAVED) if name in children]
        linear = [_linear(one)[0] for one in (apart if len(apart) == 3 else fused)]
        if not linear or any(weight is None for weight in linear):
            raise self.split.refused(f"queries, keys and values of block {self.layer} come from no known linear layers")
        widths = [len(weight) for weight in linear if weight is not None]
        if len(apart) == 3:
            groups, starts, owners = widths[1] // size, [0, 0, 0], apart
        else:
            groups = (widths[0] // size - n_heads) // 2
            starts, owners = [0, n_heads * size, (n_heads + groups) * size], fused[:1] * 3
        is_interleaved = len(apart) != 3 and any(name in children for name in _INTERLEAVED)
        sound = groups > 0 and n_heads % groups == 0 and sum(widths) == (n_heads + 2 * groups) * size
        if not sound or (is_interleaved and groups != n_heads):
            raise self.split.refused(f"heads of block {self.layer} have queries, keys and values of unequal widths")
        self.shape = Layer(n_heads, groups)
        own = torch.arange(size)
        found = {}
        for place, (kind, owner) in enumerate(zip("qkv", owners, strict=True)):
            count = n_heads if kind == "q" else groups
            found[kind] = [
                (owner, own + ((3 * i + place) * size if is_interleaved else starts[place] + i * size))
                for i in range(count)
            ]
        return found

    def _traced(self) -> tuple[nn.Module | None, bool]:
        """Return the norm whose output the projections read (None: they read the residual stream itself), and whether
        the MLP reads the residual stream before attention has written.

        Raises:
            UnsupportedModel: the projections read something else.
        """
        run = self.split._trunk._run_once  # type: ignore[attr-defined]
        calls = trace_calls([self.block], run)[0]
        entered = calls[-1].given
        owner = self.readers["q"][0][0]
        read = next((call.given for call in calls if call.module is owner), None)
        if entered is None or read is None:
            raise self.split.refused(f"attention of block {self.layer} reads no state")
        norms = [
            call
            for call in calls
            if call.given is not None
            and call.output is not None
            and call.output.shape == read.shape
            and is_same(call.output, read)
            and call.given.shape == entered.shape
            and is_same(call.given, entered)
        ]
        if not norms and not is_same(read, entered):
            raise self.split.refused(f"attention of block {self.layer} does not read a norm of the residual stream")
        before = self._reads_before(calls, entered)
        return (norms[0].module if norms else None), before

    def _reads_before(self, calls: Sequence[Any], entered: Tensor) -> bool:
        """Return whether the MLP reads what enters the block: whether it writes the same if attention writes zeros."""
        written = next(call.output for call in calls if call.module is self.mlp_out)
        with torch.no_grad(), self._silent_attention() as _, _kept(self.mlp_out) as kept:
            self.split._trunk._run_once()  # type: ignore[attr-defined]
        return is_same(kept[0].reshape(written.shape), written)

    @contextmanager
    def _silent_attention(self) -> Iterator[None]:
        """Within the block, attention is not computed and writes zeros."""
        form = self._form()

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = given_state(args, kwargs)
            assert given is not None  # attention is given states
            return with_first(form, torch.zeros_like(given))

        with _replaced(self.attention, forward):
            yield

    def _form(self) -> Any:
        known = self.__dict__.get("_form_of_attention", self)
        if known is self:
            with _kept(self.attention, whole=True) as kept:
                self.split._trunk._run_once()  # type: ignore[attr-defined]
            known = self.__dict__["_form_of_attention"] = emptied(kept[0])
        return known

    def _gain(self) -> Tensor | None:
        """Return the gain `(D,)` of the norm that follows the projection (as in Gemma 2), None if there is none.

        Raises:
            UnsupportedModel: what follows it is no norm by scale.
        """
        if self.attn_out is self.projection or self._is_plain():
            return None
        x = torch.linspace(-1.5, 2.0, self.out.shape[-1], dtype=self.out.dtype, device=self.out.device)
        with torch.no_grad():
            y = self.attn_out(x[None, None])[0, 0]
            gain = y / x * x.square().mean().sqrt()
            other = torch.sin(7 * x) * 3
            expected = other * gain / other.square().mean().sqrt()
            found = self.attn_out(other[None, None])[0, 0]
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
            raise self.split.refused(f"what follows attention in block {self.layer} is no norm by scale")
        if bool(self.bias.any()):
            raise self.split.refused(f"the projection in block {self.layer} has a bias and a norm behind it")
        return gain.detach()

    def _is_plain(self) -> bool:
        """Return whether attention adds what its projection returns."""
        with _kept(self.projection) as inner, _kept(self.attn_out) as outer:
            self.split._trunk._run_once()  # type: ignore[attr-defined]
        return inner[0].shape == outer[0].shape and is_same(inner[0], outer[0])

    def check(self) -> None:
        """Check that changing the query, key or value of one head changes that head's output alone, and values in
        proportion.

        Raises:
            UnsupportedModel: it does not.
        """
        layers = self.shape
        random = torch.Generator().manual_seed(7)
        x = torch.randn((1, 4, self.out.shape[-1]), generator=random).to(self.out)
        with torch.no_grad():
            plain = self.heads(x[None], x[None], x[None])
            for kind, count in (("q", layers.heads), ("k", layers.groups), ("v", layers.groups)):
                for i in {0, count - 1}:
                    given = x[None].repeat(count, 1, 1, 1)
                    given[i, :, 1] = torch.randn(x.shape[-1], generator=random).to(x)
                    inputs = {"q": x[None], "k": x[None], "v": x[None]} | {kind: given}
                    changed = (self.heads(**inputs) - plain).abs().amax(-1)[0] > 1e-6 * plain.abs().max()
                    mine = [i] if kind == "q" else list(layers.heads_of(i))
                    others = [h for h in range(layers.heads) if h not in mine]
                    tokens = changed.any(1).tolist()
                    right = changed[:, mine].any() and not changed[:, others].any() and not tokens[0]
                    if not right or (kind == "q" and any(tokens[2:])) or (kind == "v" and not tokens[1]):
                        raise self.split.refused(f"heads of block {self.layer} are not where they are expected")

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs: dict[int, tuple[nn.Module, Tensor]] = {}
        batch = q.shape[1:3]
        for kind, given in (("q", q), ("k", k), ("v", v)):
            normed = given if self.norm is None else self.norm(given.reshape(-1, *given.shape[2:])).view(given.shape)
            readers = self.readers[kind]
            owner = readers[0][0]
            weight, bias = _linear(owner)
            assert weight is not None  # `_columns` refuses other layers
            columns = torch.stack([cols for _, cols in readers]).to(weight.device)  # (readers, E)
            if len(normed) == 1:
                projected = nn.functional.linear(normed[0], weight[columns.flatten()])
            else:
                projected = torch.einsum("rbtd,red->btre", normed, weight[columns]).flatten(2)
            projected = projected if bias is None else projected + bias[columns.flatten()]
            if id(owner) not in outputs:
                outputs[id(owner)] = (owner, projected.new_zeros((*batch, len(weight))))
            place = torch.zeros(len(weight), dtype=torch.long, device=weight.device)
            place[columns.flatten()] = torch.arange(columns.numel(), device=weight.device)
            is_mine = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
            is_mine[columns.flatten()] = True
            whole = torch.where(is_mine, projected[..., place], outputs[id(owner)][1])
            outputs[id(owner)] = (owner, whole)
        return self._attended(batch, outputs.values(), like=q[0])

    def _attended(self, batch: Any, outputs: Any, *, like: Tensor) -> Tensor:
        _, _, args, more = self.split.arguments(self.layer, batch[1])
        args, more = with_state(args, more, like)
        with ExitStack() as stack:
            for owner, output in outputs:
                stack.enter_context(_replaced(owner, lambda *_, output=output, **__: output))
            stack.enter_context(_replaced(self.projection, lambda x, *_, **__: x))
            z = first_tensor(self.attention(*args, **more))
        assert isinstance(z, Tensor)  # attention returns states
        return z.reshape(*batch, self.shape.heads, -1)

    def write(self, z: Tensor) -> Tensor:
        parts = torch.einsum("bthe,hed->hbtd", z, self.out)
        if self.gain is None:
            return parts
        gained = parts.sum(0) * self.gain
        scale = (self.added(z) * gained).sum(-1, keepdim=True) / gained.square().sum(-1, keepdim=True).clamp_min(1e-30)
        return parts * self.gain * scale

    def added(self, z: Tensor) -> Tensor:
        projected = self.projection(z.flatten(2))
        return projected if self.gain is None else self.attn_out(projected)

    def mlp(self, x: Tensor) -> Tensor:
        with self._silent_attention(), _kept(self.mlp_out) as kept:
            self.run(x)
        return kept[0].reshape(x.shape)

    def run(self, x: Tensor) -> Tensor:
        args, more, _, _ = self.split.arguments(self.layer, x.shape[1])
        args, more = with_state(args, more, x)
        found = first_tensor(self.block(*args, **more))
        assert isinstance(found, Tensor)  # blocks return states
        return found

    @contextmanager
    def input_of_mlp(self) -> Iterator[list[Tensor]]:
        """Within the block, what enters the first module that runs after attention is noted: what the MLP's norm reads."""
        seen: list[Tensor] = []
        with ExitStack() as stack:
            inner = [m for name, m in self.block.named_children() if m is not self.attention]
            first = self._first_after(inner)

            def note(_: nn.Module, args: Any, more: Any) -> None:
                state = given_state(args, more)
                if state is not None:
                    seen.append(state)

            stack.callback(first.register_forward_pre_hook(note, with_kwargs=True).remove)
            yield seen

    def _first_after(self, inner: Sequence[nn.Module]) -> nn.Module:
        """Return the module inside the block whose input is what the MLP reads from the residual stream."""
        calls = trace_calls([self.block], self.split._trunk._run_once)[0]  # type: ignore[attr-defined]
        entered = calls[-1].given
        added = next(call.output for call in calls if call.module is self.attn_out)
        assert entered is not None and added is not None
        expected = entered if self.is_parallel else entered + added
        for call in calls:
            given = call.given
            if call.module is self.norm or given is None or given.numel() != expected.numel() or not call.path:
                continue
            if any(call.module is m for m in self.attention.modules()):
                continue
            if is_same(given.reshape(expected.shape), expected):
                return call.module
        if self.is_parallel and self.norm is not None:  # one norm serves both
            return self.norm
        raise self.split.refused(f"the MLP of block {self.layer} does not read the residual stream")


def _linear(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Return weight `(out, in)` and bias of a linear layer; None for any other layer, such as a quantised one."""
    if type(module) is nn.Linear:
        return module.weight, module.bias
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return module.weight.T, module.bias  # type: ignore[union-attr, return-value]
    return None, None


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block, a module computes `forward` instead of its own."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.__dict__["forward"] = own


@contextmanager
def _kept(module: nn.Module, *, whole: bool = False) -> Iterator[list[Any]]:
    """Within the block, outputs of a module are noted in the list: whole, or their states."""
    seen: list[Any] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output if whole else first_tensor(output))

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
