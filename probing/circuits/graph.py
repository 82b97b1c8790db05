"""The graph of a circuit: what writes into the residual stream (senders), what reads from it (readers), and the edges
between them; the choice of circuits from the scores of edges. S senders, R readers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, unknown_name
from probing.models.splitting import Layer

INPUT, LOGITS = "input", "logits"
QUERY, KEY, VALUE, MLP = "q", "k", "v", "m"
ALL_LAYERS = 1 << 30

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """Names an input: the query, keys or values of a head (or group of heads), an MLP, or the logits.

    Attributes:
        layer: number of the block; `ALL_LAYERS` for the logits.
        kind: `q`, `k`, `v`, `m` (MLP) or `logits`.
        index: number of the head (for `q`) or group (for `k` and `v`).
        nodes: senders whose writes depend on it, as indices.
    """

    layer: int
    kind: str
    index: int
    nodes: tuple[int, ...]


class Graph:
    """Lists the senders and readers of a model in the order of its computation, and which reads from which.

    Names are those of the MIB benchmark: `input`, `a3.h2`, `m3` and `logits`, and an edge is `a0.h1->a3.h2<q>`. If
    heads share keys and values, their readers are named by group: `a3.g0<k>`.

    Attributes:
        layers: description of each block.
        is_parallel: whether the MLP of a block reads what attention reads, without what attention wrote.
        senders: names of the senders.
        readers: the readers.
    """

    def __init__(self, layers: Sequence[Layer], *, is_parallel: bool = False) -> None:
        self.layers, self.is_parallel = tuple(layers), is_parallel
        senders, readers, before = [INPUT], list[Reader](), list[int]()
        for number, layer in enumerate(self.layers):
            start = len(senders)
            heads = range(start, start + layer.heads)
            for kind, count in ((QUERY, layer.heads), (KEY, layer.groups), (VALUE, layer.groups)):
                for i in range(count):
                    mine = (i,) if kind == QUERY else layer.heads_of(i)
                    readers.append(Reader(number, kind, i, tuple(heads[h] for h in mine)))
                    before.append(start)
            senders += [f"a{number}.h{h}" for h in range(layer.heads)]
            if layer.has_mlp:
                readers.append(Reader(number, MLP, 0, (len(senders),)))
                before.append(start if is_parallel else len(senders))
                senders.append(f"m{number}")
        readers.append(Reader(ALL_LAYERS, LOGITS, 0, ()))
        self.senders, self.readers = tuple(senders), tuple(readers)
        self.before = np.array([*before, len(senders)])

    @cached_property
    def allowed(self) -> Mask:
        """All edges, `(S, R)`: whether a reader reads what a sender wrote."""
        return np.asarray(np.arange(len(self.senders))[:, None] < self.before[None])

    @cached_property
    def at(self) -> dict[tuple[int, str], int]:
        """Index of the first reader of each (layer, kind)."""
        found: dict[tuple[int, str], int] = {}
        for place, reader in enumerate(self.readers):
            found.setdefault((reader.layer, reader.kind), place)
        return found

    @cached_property
    def heads_at(self) -> tuple[int, ...]:
        """Index of the first head of each block among the senders."""
        found, place = [], 1
        for layer in self.layers:
            found.append(place)
            place += layer.heads + layer.has_mlp
        return tuple(found)

    def reader_name(self, place: int) -> str:
        """Return the name of a reader: `a3.h2<q>`, `a3.g0<k>`, `m3` or `logits`."""
        reader = self.readers[place]
        if reader.kind in (LOGITS, MLP):
            return LOGITS if reader.kind == LOGITS else f"m{reader.layer}"
        layer = self.layers[reader.layer]
        letter = "h" if reader.kind == QUERY or layer.groups == layer.heads else "g"
        return f"a{reader.layer}.{letter}{reader.index}<{reader.kind}>"

    def name(self, sender: int, reader: int) -> str:
        """Return the name of an edge, such as `a0.h1->a3.h2<q>`."""
        return f"{self.senders[sender]}->{self.reader_name(reader)}"

    def names(self, mask: Mask) -> list[str]:
        """Return the names of the edges of a mask `(S, R)`."""
        return [self.name(int(s), int(r)) for s, r in np.argwhere(mask)]

    @cached_property
    def _by_name(self) -> dict[str, tuple[int, int]]:
        return {self.name(int(s), int(r)): (int(s), int(r)) for s, r in np.argwhere(self.allowed)}

    def edge(self, name: str) -> tuple[int, int]:
        """Return the indices of sender and reader of an edge.

        Raises:
            UnknownName: there is no such edge.
        """
        if name not in self._by_name:
            raise unknown_name("edge", name, self._by_name)
        return self._by_name[name]

    def mask(self, names: Iterable[str]) -> Mask:
        """Return the mask `(S, R)` of edges given by name; see `edge`."""
        found = np.zeros_like(self.allowed)
        for name in names:
            found[self.edge(name)] = True
        return found

    def among(self, nodes: Iterable[str]) -> Mask:
        """Return the mask of all edges between nodes given by name, the input and the logits.

        Raises:
            UnknownName: there is no such node.
        """
        chosen = np.zeros(len(self.senders), dtype=bool)
        chosen[0] = True
        for name in nodes:
            if name not in self.senders:
                raise unknown_name("node", name, self.senders)
            chosen[self.senders.index(name)] = True
        reads = np.array([not one.nodes or bool(chosen[list(one.nodes)].any()) for one in self.readers])
        return np.asarray(self.allowed & chosen[:, None] & reads[None])

    def without(self, mask: Mask, sender: int) -> Mask:
        """Return a mask without the edges that leave a sender."""
        found = mask.copy()
        found[sender] = False
        return found

    def reach(self, mask: Mask) -> tuple[Mask, Mask]:
        """Return which senders the input reaches through the edges of a mask, and from which the logits are reached,
        `(S,)` each.
        """
        reached = np.zeros(len(self.senders), dtype=bool)
        reached[0] = True
        for place, reader in enumerate(self.readers):  # in the order of computation
            if reader.nodes and mask[:, place][reached].any():
                reached[list(reader.nodes)] = True
        useful = np.zeros(len(self.senders), dtype=bool)
        for place in reversed(range(len(self.readers))):
            nodes = self.readers[place].nodes
            if not nodes or useful[list(nodes)].any():
                useful |= mask[:, place]
        return reached, useful

    def on_paths(self, mask: Mask) -> Mask:
        """Return the mask without edges that are on no path from the input to the logits."""
        reached, useful = self.reach(mask)
        on_path = reached & useful
        reads = np.array([not one.nodes or bool(on_path[list(one.nodes)].any()) for one in self.readers])
        return np.asarray(mask & on_path[:, None] & reads[None])

    def greedy(self, scores: Floats, sizes: Sequence[int], *, within: Mask | None = None) -> list[Mask]:
        """Return circuits of at most the given numbers of edges, grown from the logits: each step adds the edge with
        the highest score among those whose reader belongs to a node that is in the circuit.

        A circuit then loses its edges that are on no path from the input to the logits, so it may be smaller.

        Args:
            scores: `(S, R)` score of each edge: the effect for circuits by sign, its absolute value for the others.
            sizes: numbers of edges, in rising order.
            within: edges to choose from; None: all.

        References:
            Hanna, Pezzelle and Belinkov 2024, Have Faith in Faithfulness, §3.2 (greedy construction).
        """
        allowed = self.allowed if within is None else within & self.allowed
        of_node: dict[int, list[int]] = {}
        for place, reader in enumerate(self.readers):
            for node in reader.nodes:
                of_node.setdefault(node, []).append(place)
        heap: list[tuple[float, int, int]] = []
        opened, entered = set[int](), {0}
        mask, found, count = np.zeros_like(self.allowed), list[Mask](), 0

        def open_reader(place: int) -> None:
            if place not in opened:
                opened.add(place)
                for sender in np.flatnonzero(allowed[:, place]).tolist():
                    heapq.heappush(heap, (-float(scores[sender, place]), sender, place))

        open_reader(len(self.readers) - 1)
        for size in sizes:
            while count < size and heap:
                _, sender, place = heapq.heappop(heap)
                mask[sender, place] = True
                count += 1
                if sender not in entered:
                    entered.add(sender)
                    for reader_of_node in of_node.get(sender, []):
                        open_reader(reader_of_node)
            found.append(self.on_paths(mask))
        return found

    def rewired(self, mask: Mask, random: np.random.Generator, *, within: Mask | None = None) -> Mask:
        """Return a random circuit in which every sender has as many edges, and every reader as many, as in `mask`: the
        senders of two edges change places, twenty times as often as there are edges, where the order of computation
        allows it.

        References:
            Maslov and Sneppen 2002, Specificity and Stability in Topology of Protein Networks.
        """
        allowed = self.allowed if within is None else within & self.allowed
        edges = np.argwhere(mask)
        found = mask.copy()
        for first, second in random.integers(0, max(1, len(edges)), (20 * len(edges), 2)).tolist():
            (a, x), (b, y) = edges[first].tolist(), edges[second].tolist()
            if not (allowed[b, x] and allowed[a, y]) or found[b, x] or found[a, y]:
                continue
            found[a, x] = found[b, y] = False
            found[b, x] = found[a, y] = True
            edges[first, 0], edges[second, 0] = b, a
        return found


def ten_sizes(most: int, count: int = 10) -> list[int]:
    """Return at most ten numbers of edges between 1 and `most`, spaced evenly on a logarithmic scale.

    Raises:
        BadParameter: there is no edge.
    """
    if most < 1:
        raise BadParameter("a graph without edges has no circuit", needed="one edge or more", found=str(most))
    return sorted({max(1, round(most ** (k / (count - 1)))) for k in range(count)})
