"""Runs one block of a Transformer part by part: its heads, what they write, and its MLP. B prompts, T tokens, D width
of the residual stream, H heads, G groups of heads that share keys and values, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probing.errors import UnsupportedModel
from probing.models.adapters.huggingface import HuggingFaceTrunk
from probing.models.discovery.tracing import first_tensor, given_state, is_same, trace_calls, with_first, with_state
from probing.models.reading.calls import BlockCalls, kept_outputs, replaced
from probing.models.reading.hooked import HookedModule
from probing.models.reading.replay import emptied

_FUSED, _INTERLEAVED = ("c_attn", "qkv_proj", "Wqkv"), ("query_key_value",)


def not_split(
    trunk: HookedModule, why: str, needed: str = "blocks that add attention and MLP to the residual stream"
) -> UnsupportedModel:
    """Return the error for a model that cannot be split into senders and readers."""
    return UnsupportedModel(
        f"models of the family {trunk.family!r} are not split into senders and readers: {why}",
        needed=needed,
        found=type(trunk.model).__name__,
        next_step="choose a model such as GPT-2, Llama, Qwen, GPT-NeoX, OPT or Gemma; `probing patch` needs no split",
    )


class SplitBlock:
    """One block of a Transformer, run part by part."""

    def __init__(self, trunk: HuggingFaceTrunk, layer: int, calls: BlockCalls) -> None:
        """Find the parts of a block.

        Raises:
            UnsupportedModel: its readers cannot be split.
        """
        self.trunk, self.layer, self.block, self._calls = trunk, layer, trunk.blocks[layer], calls
        root, modules = trunk.trunk, trunk.modules
        projection, mlp, added = (modules[f"{kind}.{layer}"] for kind in ("heads", "mlp_out", "attn_out"))
        self.projection, self.mlp_out, self.attn_out = (root.get_submodule(p) for p in (projection, mlp, added))
        self.attention = root.get_submodule(projection.rpartition(".")[0])
        if self.attention is self.block:
            raise not_split(trunk, f"attention of block {layer} is no module of its own")
        self.readers = self._columns()
        self.norm, self.is_parallel = self._traced()
        weight, bias = _linear(self.projection)
        assert weight is not None  # `_traced` refuses other layers
        size = weight.shape[1] // self.n_heads
        self.out = weight.detach().reshape(weight.shape[0], self.n_heads, size).permute(1, 2, 0)  # (H, E, D)
        self.bias = torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype) if bias is None else bias
        self.gain = self._gain()

    @property
    def constant(self) -> Tensor | float:
        """What attention adds whatever the heads write: the bias of the projection."""
        return self.bias.detach() if self.gain is None else 0.0

    def _once(self, length: int = 7) -> None:
        """Run the block as it is run in a pass over a small prompt."""
        args, more = self._calls.of(length, self.block)
        with torch.no_grad():
            self.block(*args, **more)

    def _columns(self) -> dict[str, list[tuple[nn.Module, Tensor]]]:
        """Return for `q`, `k` and `v`, by head or group, the linear layer that computes it and its columns there.

        Raises:
            UnsupportedModel: the linear layers are not known.
        """
        children = dict(self.attention.named_children())
        n_heads = self.trunk.n_heads or 0
        out = _linear(self.projection)[0]
        if out is None or not n_heads or out.shape[1] % n_heads:
            raise not_split(self.trunk, f"the projection of heads in block {self.layer} is no linear layer")
        size = out.shape[1] // n_heads
        apart = [children[name] for name in ("q_proj", "k_proj", "v_proj") if name in children]
        fused = [children[name] for name in (*_FUSED, *_INTERLEAVED) if name in children]
        linear = [_linear(one)[0] for one in (apart if len(apart) == 3 else fused)]
        if not linear or any(weight is None for weight in linear):
            raise not_split(
                self.trunk, f"queries, keys and values of block {self.layer} come from no known linear layers"
            )
        widths = [len(weight) for weight in linear if weight is not None]
        if len(apart) == 3:
            groups, starts, owners = widths[1] // size, [0, 0, 0], apart
        else:
            groups = (widths[0] // size - n_heads) // 2
            starts, owners = [0, n_heads * size, (n_heads + groups) * size], fused[:1] * 3
        is_interleaved = len(apart) != 3 and any(name in children for name in _INTERLEAVED)
        sound = groups > 0 and n_heads % groups == 0 and sum(widths) == (n_heads + 2 * groups) * size
        if not sound or (is_interleaved and groups != n_heads):
            raise not_split(self.trunk, f"heads of block {self.layer} have queries, keys and values of unequal widths")
        self.n_heads, self.n_groups = n_heads, groups
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
        the MLP seems to read the residual stream before attention has written (so, too, if either writes nothing).

        Raises:
            UnsupportedModel: the projections read something else.
        """
        calls = trace_calls([self.block], self._once)[0]
        entered = calls[-1].given
        owner = self.readers["q"][0][0]
        read = next((call.given for call in calls if call.module is owner), None)
        if entered is None or read is None:
            raise not_split(self.trunk, f"attention of block {self.layer} reads no state")
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
            raise not_split(self.trunk, f"attention of block {self.layer} does not read a norm of the residual stream")
        before = not self._reads_after() and self._writes_the_same(calls)
        return (norms[0].module if norms else None), before

    def _reads_after(self) -> bool:
        """Return whether a module of the block besides attention is given what entered it and what attention wrote, in
        sum. What attention writes is made large, so that this shows in a block that computes nothing, too.
        """
        with self._given_attention(1.0):
            calls = trace_calls([self.block], self._once)[0]
        entered, added = calls[-1].given, next((c.output for c in calls if c.module is self.attn_out), None)
        if entered is None or added is None:
            return False
        inside, middle = set(self.attention.modules()), entered + added.reshape(entered.shape)
        return any(
            call.given is not None
            and call.given.numel() == middle.numel()
            and call.module not in inside
            and is_same(call.given.reshape(middle.shape), middle)
            for call in calls
        )

    def _writes_the_same(self, calls: Sequence[Any]) -> bool:
        """Return whether the MLP writes the same if attention writes zeros."""
        written = next(call.output for call in calls if call.module is self.mlp_out)
        with torch.no_grad(), self._silent_attention() as _, kept_outputs(self.mlp_out) as kept:
            self._once()
        return is_same(kept[0].reshape(written.shape), written)

    def _silent_attention(self) -> AbstractContextManager[None]:
        """Within the block, attention is not computed and writes zeros."""
        return self._given_attention(0.0)

    @contextmanager
    def _given_attention(self, size: float) -> Iterator[None]:
        """Within the block, attention is not computed and writes a wave of a size relative to what it reads."""
        form = self._form()

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = given_state(args, kwargs)
            assert given is not None  # attention is given states
            wave = torch.sin(torch.arange(given.shape[-1], device=given.device, dtype=torch.float32)).to(given.dtype)
            scale = size * given.abs().amax() if size else 0.0
            return with_first(form, torch.zeros_like(given) + scale * wave)

        with replaced(self.attention, forward):
            yield

    def _form(self) -> Any:
        known = self.__dict__.get("_form_of_attention", self)
        if known is self:
            with kept_outputs(self.attention, whole=True) as kept:
                self._once()
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
            raise not_split(self.trunk, f"what follows attention in block {self.layer} is no norm by scale")
        if bool(self.bias.any()):
            raise not_split(self.trunk, f"the projection in block {self.layer} has a bias and a norm behind it")
        found_gain: Tensor = gain.detach()
        return found_gain

    def _is_plain(self) -> bool:
        """Return whether attention adds what its projection returns."""
        with kept_outputs(self.projection) as inner, kept_outputs(self.attn_out) as outer:
            self._once()
        return inner[0].shape == outer[0].shape and is_same(inner[0], outer[0])

    def check(self) -> None:
        """Check that changing the query, key or value of one head at one token changes nothing but that head's output,
        at this token (for queries) or from it on.

        Raises:
            UnsupportedModel: it does.
        """
        random = torch.Generator().manual_seed(7)
        x = torch.randn((1, 4, self.out.shape[-1]), generator=random).to(self.out)
        moved = 0
        with torch.no_grad():
            plain = self.heads(x[None], x[None], x[None])
            for kind, count in (("q", self.n_heads), ("k", self.n_groups), ("v", self.n_groups)):
                for i in {0, count - 1}:
                    given = x[None].repeat(count, 1, 1, 1)
                    given[i, :, 1] = torch.randn(x.shape[-1], generator=random).to(x)
                    inputs = {"q": x[None], "k": x[None], "v": x[None]} | {kind: given}
                    changed = (self.heads(**inputs) - plain).abs().amax(-1)[0] > 1e-5 * plain.abs().max()
                    mine = [i] if kind == "q" else list(self._heads_of(i))
                    others = [h for h in range(self.n_heads) if h not in mine]
                    tokens = changed.any(1).tolist()
                    moved += int(any(tokens))
                    if changed[:, others].any() or tokens[0] or (kind == "q" and any(tokens[2:])):
                        raise not_split(self.trunk, f"heads of block {self.layer} are not where they are expected")
        if not moved and self._reads_values():
            raise not_split(self.trunk, f"heads of block {self.layer} read nothing")

    def _reads_values(self) -> bool:
        """Return whether the values of the first or the last group read anything: those of pruned heads do not."""
        ends = [(_linear(owner)[0], columns) for owner, columns in (self.readers["v"][0], self.readers["v"][-1])]
        return any(weight is None or bool(weight[columns.to(weight.device)].any()) for weight, columns in ends)

    def _heads_of(self, group: int) -> range:
        size = self.n_heads // self.n_groups
        return range(group * size, (group + 1) * size)

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the outputs of the heads before their projection, `(B, T, H, E)`.

        Args:
            q: `(H, B, T, D)` what each head's query reads from the residual stream, or `(1, B, T, D)` for all.
            k, v: the same of keys and values, `(G, B, T, D)` or `(1, B, T, D)`.
        """
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
        args, more = self._calls.of(batch[1], self.attention)
        args, more = with_state(args, more, like)
        with ExitStack() as stack:
            for owner, output in outputs:
                stack.enter_context(replaced(owner, lambda *_, output=output, **__: output))
            stack.enter_context(replaced(self.projection, lambda x, *_, **__: x))
            z = first_tensor(self.attention(*args, **more))
        assert isinstance(z, Tensor)  # attention returns states
        return z.reshape(*batch, self.n_heads, -1)

    def write(self, z: Tensor) -> Tensor:
        """Return what each head writes, `(H, B, T, D)`; if a norm follows, each head's part of the normed sum."""
        parts = torch.einsum("bthe,hed->hbtd", z, self.out)
        if self.gain is None:
            return parts
        gained = parts.sum(0) * self.gain
        scale = (self.added(z) * gained).sum(-1, keepdim=True) / gained.square().sum(-1, keepdim=True).clamp_min(1e-30)
        return parts * self.gain * scale

    def added(self, z: Tensor) -> Tensor:
        """Return what attention adds to the residual stream, `(B, T, D)`."""
        projected: Tensor = self.projection(z.flatten(2))
        return projected if self.gain is None else torch.as_tensor(self.attn_out(projected))

    def mlp(self, x: Tensor) -> Tensor:
        """Return what the MLP writes, `(B, T, D)`, if it reads `x` from the residual stream."""
        with self._silent_attention(), kept_outputs(self.mlp_out) as kept:
            self.run(x)
        written: Tensor = kept[0].reshape(x.shape)
        return written

    def run(self, x: Tensor) -> Tensor:
        """Return what leaves the block, `(B, T, D)`, if `x` enters it."""
        args, more = self._calls.of(x.shape[1], self.block)
        args, more = with_state(args, more, x)
        found = first_tensor(self.block(*args, **more))
        assert isinstance(found, Tensor)  # blocks return states
        return found

    @contextmanager
    def input_of_mlp(self) -> Iterator[list[Tensor]]:
        """Within the block, what the MLP reads from the residual stream is noted in the list."""
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
        calls = trace_calls([self.block], self._once)[0]
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
        raise not_split(self.trunk, f"the MLP of block {self.layer} does not read the residual stream")


def _linear(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Return weight `(out, in)` and bias of a linear layer; None for any other layer, such as a quantised one."""
    if type(module) is nn.Linear:
        return module.weight, module.bias
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return module.weight.T, module.bias  # type: ignore[return-value]
    return None, None
