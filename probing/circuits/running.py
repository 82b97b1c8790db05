"""Runs a split model with edges corrupted: circuits, single edges and nodes, and estimates from gradients.

An edge that is corrupted carries what its sender wrote on the corrupted prompt (or its mean over prompts) instead of
what it writes in this run. S senders, R readers, B pairs of T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.circuits.graph import ALL_LAYERS, KEY, LOGITS, MLP, QUERY, VALUE, Graph, Mask
from probing.circuits.traces import Means, TokenPairs, trace
from probing.models.splitting import Layer, SplitModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TOKENS = 2048  # of the batch of one pass
Advance = Callable[[int], None]


class Batch:
    """Runs circuits on pairs of one length.

    Attributes:
        model: the model.
        rows: `(B,)` indices of the pairs.
        clean, corrupted: traces of both prompts; of `corrupted`, means where these are the corruption.
        answers: `(B, A)`.
        node_effects: `(S,)` first-order estimates of `node_removals`, summed over pairs, if asked for.
        passes: number of forward passes (of a batch of B prompts) that were run, as whole passes.
    """

    def __init__(
        self,
        model: SplitModel,
        pairs: TokenPairs,
        rows: Ints,
        means: Means | None = None,
        graph: Graph | None = None,
        *,
        is_attributed: bool = False,
    ) -> None:
        """Run both prompts of each pair; `is_attributed`: with the derivatives that `node_effects` need."""
        self.model, self.rows = model, rows
        self.graph = Graph(model.layers, is_parallel=model.is_parallel) if graph is None else graph
        leaves: list[Tensor] | None = [] if is_attributed else None
        with torch.set_grad_enabled(is_attributed):
            clean = trace(model, torch.tensor([list(pairs.clean[k]) for k in rows]), leaves)
        self.answers = torch.as_tensor(pairs.answers[rows], device=clean.end.device)
        slopes = None if leaves is None else self._slopes(clean.end, leaves, by_reader=False)
        self.clean = clean.detached()
        with torch.no_grad():
            self.corrupted = (
                trace(model, torch.tensor([list(pairs.corrupted[k]) for k in rows]))
                if means is None
                else means.trace(self.clean)
            )
        self.passes = 2.0 if slopes is None else 3.0
        self.node_effects = None if slopes is None else self._attributed_to_nodes(slopes)

    @property
    def differences(self) -> Tensor:
        """What senders wrote on the clean prompts less the corrupted, `(S, B, T, D)`."""
        return self.clean.writes - self.corrupted.writes

    def measure(self, x: Tensor) -> Tensor:
        """Return the metric of last states `(n · B, T, D)`, `(n, B)`."""
        times = len(x) // len(self.rows)
        return self.model.measure(x, self.answers.repeat(times, *[1] * (self.answers.ndim - 1))).reshape(times, -1)

    @torch.no_grad()
    def ends(self) -> tuple[Floats, Floats]:
        """Return the metric of the model on the clean prompts and with all edges corrupted, `(B,)` each."""
        return _numbers(self.measure(self.clean.end)[0]), _numbers(self.measure(self.corrupted.end)[0])

    @torch.no_grad()
    def run(self, mask: Mask, *, known: Mapping[int, Tensor] | None = None, first: int = 0) -> Floats:
        """Return the metric `(B,)` of a circuit: the edges of `mask` carry what their senders write in this run, all
        others are corrupted.

        Args:
            mask: `(S, R)` the circuit.
            known: what senders of blocks before `first` write in this run, less what they wrote corrupted; see `wrote`.
            first: block to begin at.
        """
        diffs = self.wrote(mask, known=known, first=first)
        place = len(self.graph.readers) - 1
        x = self._read(mask[:, place : place + 1], diffs, self.corrupted.end)
        return _numbers(self.measure(x[0])[0])

    @torch.no_grad()
    def wrote(self, mask: Mask, *, known: Mapping[int, Tensor] | None = None, first: int = 0) -> dict[int, Tensor]:
        """Return what senders write in a run of the circuit less what they wrote corrupted, `(B, T, D)` by sender;
        senders whose inputs are all corrupted are left out. Arguments are those of `run`.
        """
        graph, base = self.graph, self.corrupted
        diffs = dict(known or {})
        if first == 0 and not known:
            diffs[0] = self.clean.writes[0] - base.writes[0]
        for number, layer in enumerate(graph.layers[first:], first):
            start = graph.heads_at[number]
            if layer.heads:
                self._attend(number, layer, mask, diffs, start)
            if layer.has_mlp:
                place = graph.at[number, MLP]
                if any(mask[s, place] for s in diffs):
                    x = self._read(mask[:, place : place + 1], diffs, base.mlp_inputs[number])[0]
                    diffs[start + layer.heads] = self.model.mlp(number, x) - base.writes[start + layer.heads]
        self.passes += (len(graph.layers) - first) / max(1, len(graph.layers))
        return diffs

    def _attend(self, number: int, layer: Layer, mask: Mask, diffs: dict[int, Tensor], start: int) -> None:
        graph, base = self.graph, self.corrupted
        spans = {kind: graph.at[number, kind] for kind in (QUERY, KEY, VALUE)}
        counts = {QUERY: layer.heads, KEY: layer.groups, VALUE: layer.groups}
        known = sorted(diffs)
        live = {kind: mask[known, at : at + counts[kind]].any(0) for kind, at in spans.items()}
        if not any(one.any() for one in live.values()):
            return
        active: Mask = np.array(live[QUERY])
        for group in np.flatnonzero(live[KEY] | live[VALUE]).tolist():
            active[list(layer.heads_of(group))] = True
        read = [
            self._read(mask[:, at : at + counts[kind]], diffs, base.attention_inputs[number])
            for kind, at in spans.items()
        ]
        z = self.model.heads(number, *read)
        is_active = torch.as_tensor(active, device=z.device)[None, None, :, None]
        written = self.model.write(number, torch.where(is_active, z, base.z[number]))
        for head in np.flatnonzero(active).tolist():
            diffs[start + head] = written[head] - base.writes[start + head]

    def _read(self, mask: Mask, diffs: Mapping[int, Tensor], corrupted: Tensor) -> Tensor:
        """Return what readers read, `(r, B, T, D)`, from the columns `(S, r)` of their edges."""
        senders = [s for s in sorted(diffs) if mask[s].any()]
        if not senders:
            return corrupted[None].expand(mask.shape[1], *corrupted.shape)
        weights = torch.as_tensor(mask[senders].T.copy(), dtype=corrupted.dtype, device=corrupted.device)
        added = weights @ torch.stack([diffs[s] for s in senders]).flatten(1)
        return corrupted + added.reshape(-1, *corrupted.shape)

    @torch.no_grad()
    def changed(self, mask: Mask, others: Sequence[Mask]) -> Floats:
        """Return the metric of circuits that differ little from `mask`, `(n, B)`; what comes before the first block in
        which a reader differs is not run again.
        """
        whole, graph = self.wrote(mask), self.graph
        found = np.empty((len(others), len(self.rows)))
        for place, other in enumerate(others):
            readers = np.flatnonzero((other != mask).any(0))
            layer = min(int(graph.readers[int(readers[0])].layer) if len(readers) else ALL_LAYERS, len(graph.layers))
            limit = graph.heads_at[layer] if layer < len(graph.layers) else len(graph.senders)
            known = {s: diff for s, diff in whole.items() if s < limit}
            found[place] = self.run(other, known=known, first=layer)
        return found

    @torch.no_grad()
    def removals(
        self, edges: Sequence[tuple[int, int]], *, shifts: Tensor | None = None, advance: Advance | None = None
    ) -> Floats:
        """Return how much the metric falls if one edge at a time is corrupted and all others are not, `(n, B)`: exact
        patching. What comes before the reader is not run again, and edges are run together in batches.

        Args:
            edges: sender and reader of each edge.
            shifts: `(S, B, T, D)` what is added to what each sender wrote, instead of the corruption.
            advance: called after each batch with its number of edges.
        """
        deltas = -self.differences if shifts is None else shifts
        full = self.measure(self.clean.end)[0]
        found = np.empty((len(edges), len(self.rows)))
        by_reader: dict[tuple[int, str], list[int]] = {}
        for place, (_, reader) in enumerate(edges):
            one = self.graph.readers[reader]
            by_reader.setdefault((one.layer, one.kind), []).append(place)
        size = max(1, TOKENS // max(1, self.clean.end[..., 0].numel()))
        for (layer, kind), places in sorted(by_reader.items()):
            for start in range(0, len(places), size):
                part = places[start : start + size]
                chosen = [edges[k] for k in part]
                x = self._after(layer, kind, chosen, deltas[[s for s, _ in chosen]])
                found[part] = _numbers(full - self.measure(x))
                left = 0 if layer == ALL_LAYERS else len(self.graph.layers) - layer
                self.passes += len(part) * left / max(1, len(self.graph.layers))
                if advance is not None:
                    advance(len(part))
        return found

    def _after(self, layer: int, kind: str, edges: Sequence[tuple[int, int]], deltas: Tensor) -> Tensor:
        """Return the last states, `(n · B, T, D)`, if in copy i reader i reads `deltas[i]` more than on clean
        prompts.
        """
        graph, clean, n = self.graph, self.clean, len(edges)

        def copies(one: Tensor) -> Tensor:
            return one.expand(n, *one.shape).flatten(0, 1)

        read = (clean.inputs(layer, kind) + deltas).flatten(0, 1)
        if kind == LOGITS:
            return read
        shape = graph.layers[layer]
        if kind == MLP:
            sender = graph.heads_at[layer] + shape.heads
            change = self.model.mlp(layer, read) - copies(clean.writes[sender])
            x = copies(self._leaving(layer)) + change
        else:
            plain = copies(clean.attention_inputs[layer])
            inputs = [(read if one == kind else plain)[None] for one in (QUERY, KEY, VALUE)]
            z, changed = copies(clean.z[layer]).clone(), self.model.heads(layer, *inputs)
            start, size = graph.heads_at[layer], len(self.rows)
            for i, (_, reader) in enumerate(edges):
                mine = [node - start for node in graph.readers[reader].nodes]
                z[i * size : (i + 1) * size, :, mine] = changed[i * size : (i + 1) * size, :, mine]
            x = self._with_mlp(layer, plain + self.model.attention(layer, z), plain)
        return self._through(layer + 1, x)

    def _leaving(self, layer: int) -> Tensor:
        """Return what leaves a block on clean prompts."""
        deeper = layer + 1 < len(self.graph.layers)
        return self.clean.attention_inputs[layer + 1] if deeper else self.clean.end

    def _with_mlp(self, layer: int, middle: Tensor, entered: Tensor) -> Tensor:
        if not self.graph.layers[layer].has_mlp:
            return middle
        return middle + self.model.mlp(layer, entered if self.graph.is_parallel else middle)

    def _through(self, layer: int, x: Tensor) -> Tensor:
        for number in range(layer, len(self.graph.layers)):
            x = self.model.block(number, x)
        return x

    @torch.no_grad()
    def node_removals(
        self, senders: Sequence[int], *, shifts: Tensor | None = None, advance: Advance | None = None
    ) -> Floats:
        """Return how much the metric falls if one sender at a time is corrupted for all its readers, `(n, B)`; the
        arguments are those of `removals`.
        """
        full, deltas = self.measure(self.clean.end)[0], -self.differences if shifts is None else shifts
        found = np.empty((len(senders), len(self.rows)))
        for place, sender in enumerate(senders):
            if sender == 0:
                x = self._through(0, self.clean.attention_inputs[0] + deltas[0])
            else:
                layer = max(k for k, start in enumerate(self.graph.heads_at) if start <= sender)
                is_mlp = sender == self.graph.heads_at[layer] + self.graph.layers[layer].heads
                if is_mlp:
                    x = self._leaving(layer) + deltas[sender]
                else:
                    entered = self.clean.attention_inputs[layer]
                    middle = entered + self.model.attention(layer, self.clean.z[layer]) + deltas[sender]
                    x = self._with_mlp(layer, middle, entered)
                x = self._through(layer + 1, x)
            found[place] = _numbers(full - self.measure(x)[0])
            if advance is not None:
                advance(1)
        self.passes += len(senders) / 2
        return found

    @torch.enable_grad()
    def gradients(self, x: Tensor, *, by_reader: bool) -> Tensor:
        """Return derivatives of the metric, `(R, B, T, D)` by what each reader reads; or by what each sender writes,
        `(S, B, T, D)`, if not `by_reader`. `x` is what enters the first block.
        """
        graph, x = self.graph, x.detach()
        leaves: list[Tensor] = []

        def leaf(like: Tensor, count: int) -> Tensor:
            leaves.append(torch.zeros((count if by_reader else 1, *like.shape), device=like.device, dtype=like.dtype))
            leaves[-1].requires_grad_()
            return leaves[-1]

        x = x if by_reader else x + leaf(x, 1)[0]
        for number, layer in enumerate(graph.layers):
            entered = middle = x
            if layer.heads:
                counts = (layer.heads, layer.groups, layer.groups)
                read = [x[None] + leaf(x, count) if by_reader else x[None] for count in counts]
                middle = x + self.model.attention(number, self.model.heads(number, *read))
                middle = middle if by_reader else middle + leaf(x, 1)[0]
            x = middle
            if layer.has_mlp:
                read_by_mlp = entered if graph.is_parallel else middle
                x = middle + self.model.mlp(number, read_by_mlp + leaf(x, 1)[0] if by_reader else read_by_mlp)
                x = x if by_reader else x + leaf(x, 1)[0]
        x = x + leaf(x, 1)[0] if by_reader else x
        self.passes += 2.0  # a backward pass is counted as one more
        return self._slopes(x, leaves, by_reader=by_reader)

    @torch.enable_grad()
    def _slopes(self, end: Tensor, leaves: Sequence[Tensor], *, by_reader: bool) -> Tensor:
        """Return derivatives of the metric of last states by leaves, as in `gradients`."""
        total = self.model.measure(end, self.answers).sum()
        slopes = list(torch.autograd.grad(total, list(leaves), allow_unused=True, materialize_grads=True))
        return torch.cat(slopes if by_reader else self._by_sender(slopes))

    def _attributed_to_nodes(self, slopes: Tensor) -> Floats:
        return _numbers((self.differences * slopes).flatten(1).sum(1))

    def _by_sender(self, slopes: Sequence[Tensor]) -> list[Tensor]:
        found, places = [slopes[0]], iter(slopes[1:])
        for layer in self.graph.layers:
            found += [next(places).expand(layer.heads, *slopes[0].shape[1:])] if layer.heads else []
            found += [next(places)] if layer.has_mlp else []
        return found

    def attributed(self, *, steps: int, by_reader: bool) -> Floats:
        """Return first-order estimates of `removals`, `(S, R)` summed over pairs, or of `node_removals`, `(S,)`, if not
        `by_reader`.

        Args:
            steps: 1 takes derivatives on the clean prompts (EAP); more take their mean at points between the corrupted
                and the clean embeddings (EAP-IG).
            by_reader: whether edges are estimated, or nodes.

        References:
            Syed, Rager and Conmy 2023, Attribution Patching Outperforms Automated Circuit Discovery (EAP). Hanna,
            Pezzelle and Belinkov 2024, Have Faith in Faithfulness, eq. 3 (EAP-IG).
        """
        first, last = self.corrupted.writes[0], self.clean.writes[0]
        slopes: Tensor | None = None
        for k in range(1, steps + 1):
            one = self.gradients(first + (last - first) * (k / steps), by_reader=by_reader) / steps
            slopes = one if slopes is None else slopes + one
        assert slopes is not None  # there is a step
        if by_reader:
            return _numbers(self.differences.flatten(1) @ slopes.flatten(1).T)
        return self._attributed_to_nodes(slopes)


def _numbers(values: Tensor) -> Floats:
    return np.asarray(values.detach().double().cpu().numpy())
