"""Labels pairs of words by whether an edge of the dependency tree joins them."""

from __future__ import annotations

import hashlib
from typing import Any

from probing.tasks._columns import ROOT, TreeTask, heads
from probing.text.corpus import Example

EDGE, NONE = "edge", "no edge"


class DependencyEdge(TreeTask):
    """`dependency_edge`: the label says whether a pair of words is joined by an edge of the dependency tree. The pairs
    are all edges and, where the sentence has enough of them, as many pairs without an edge, the earlier word first.

    For each edge, a pair without an edge is chosen from the same sentence, with the same distance between its words or
    the nearest possible, so that distance says little about the label. The choice is pseudo-random but the same in
    every run, whatever else the corpus holds. `dependency_edge:difference` and `:product` give the probe the difference
    or product of the two states.
    """

    def places(self, example: Example) -> list[tuple[int, int]]:
        """Return pairs of words (a, b), counted from 0, a before b: first those joined by an edge, then as many without
        one (fewer if the sentence has no more).
        """
        edges = _edges(example)
        return edges + _without_edge(example, edges)

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return `edge` or `no edge` for every pair of `places(example)`."""
        n_edges = len(_edges(example))
        return (EDGE,) * n_edges + (NONE,) * (len(self.places(example)) - n_edges)


def _edges(example: Example) -> list[tuple[int, int]]:
    above = heads(example).tolist()
    return [(min(word, head), max(word, head)) for word, head in enumerate(above) if head > ROOT]


def _without_edge(example: Example, edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return one pair without an edge for every edge, while there are any left."""
    above, n = heads(example).tolist(), len(example.words)
    taken = set(edges)
    known = [word for word in range(n) if above[word] >= ROOT]  # of a word without annotation nothing is known
    free: dict[int, list[tuple[int, int]]] = {}
    for i, a in enumerate(known):
        for b in known[i + 1 :]:
            if (a, b) not in taken:
                free.setdefault(b - a, []).append((a, b))
    found: list[tuple[int, int]] = []
    drawn: dict[int, list[tuple[int, int]]] = {}
    for a, b in edges:
        if not free:
            break
        nearest = min(free, key=lambda apart: (abs(apart - (b - a)), apart))
        if nearest not in drawn:
            drawn[nearest] = sorted(free[nearest], key=lambda pair: _lot(example, pair))
        found.append(drawn[nearest].pop())
        if not drawn[nearest]:
            del free[nearest]
    return found


def _lot(example: Example, pair: tuple[int, int]) -> bytes:
    return hashlib.sha256(f"{example.id}\x1f{pair[0]}\x1f{pair[1]}".encode()).digest()


MEMBER = DependencyEdge
