"""Laws of graphs and of the choice of circuits from scores."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from probing.circuits.graph import Graph, ten_sizes
from probing.errors import BadParameter, UnknownName
from probing.models.splitting import Layer

GRAPH = Graph([Layer(2, 2), Layer(4, 2), Layer(2, 1, has_mlp=False)])


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def scores_of(random: np.random.Generator) -> np.ndarray:
    return random.standard_normal(GRAPH.allowed.shape)


def test_names_are_read_back() -> None:
    names = GRAPH.names(GRAPH.allowed)
    assert len(set(names)) == int(GRAPH.allowed.sum())
    assert (GRAPH.mask(names) == GRAPH.allowed).all()
    assert {"input->a0.h1<q>", "a0.h1->m0", "m0->a1.g1<k>", "a2.h0->logits", "m1->a2.g0<v>"} <= set(names)
    with pytest.raises(UnknownName, match=r"a0\.h1->m0"):
        GRAPH.edge("a0.h1->m00")
    with pytest.raises(UnknownName):
        GRAPH.among(["a9.h0"])


def test_no_reader_reads_what_is_written_later() -> None:
    for name in GRAPH.names(GRAPH.allowed):
        sender, _, reader = name.partition("->")
        assert reader == "logits" or depth(sender) < depth(reader)
    parallel = Graph([Layer(2, 2)], is_parallel=True)
    assert "a0.h0->m0" not in parallel.names(parallel.allowed)


def depth(name: str) -> float:
    return -1.0 if name == "input" else int(name[1]) + (0.5 if name[0] == "m" else 0.0)


def test_circuits_are_paths_and_grow(random: np.random.Generator) -> None:
    sizes = ten_sizes(int(GRAPH.allowed.sum()))
    masks = GRAPH.greedy(scores_of(random), sizes)
    for size, mask in zip(sizes, masks, strict=True):
        assert mask.sum() <= size
        assert (GRAPH.on_paths(mask) == mask).all()
        assert not (mask & ~GRAPH.allowed).any()
    for small, large in pairwise(masks):
        assert not (small & ~large).any()
    assert masks[-1].sum() == GRAPH.allowed.sum()


def test_every_edge_that_is_left_lies_on_a_path(random: np.random.Generator) -> None:
    """By an independent walk from the input and back from the logits."""
    for _ in range(20):
        mask = GRAPH.allowed & (random.random(GRAPH.allowed.shape) < 0.08)
        edges = [(int(s), int(r)) for s, r in np.argwhere(mask)]

        def leads(edge: tuple[int, int], edges: list[tuple[int, int]] = edges) -> bool:
            nodes = GRAPH.readers[edge[1]].nodes
            return not nodes or any(leads(other) for other in edges if other[0] in nodes)

        def begins(edge: tuple[int, int], edges: list[tuple[int, int]] = edges) -> bool:
            return edge[0] == 0 or any(begins(other) for other in edges if edge[0] in GRAPH.readers[other[1]].nodes)

        expected = {GRAPH.name(*edge) for edge in edges if begins(edge) and leads(edge)}
        assert set(GRAPH.names(GRAPH.on_paths(mask))) == expected


def test_rewired_circuits_have_the_same_degrees(random: np.random.Generator) -> None:
    mask = GRAPH.greedy(scores_of(random), [40])[0]
    other = GRAPH.rewired(mask, random)
    assert (other.sum(0) == mask.sum(0)).all() and (other.sum(1) == mask.sum(1)).all()
    assert not (other & ~GRAPH.allowed).any()
    assert (other != mask).any()


def test_sizes() -> None:
    assert ten_sizes(1000)[0] == 1 and ten_sizes(1000)[-1] == 1000 and len(ten_sizes(1000)) == 10
    assert ten_sizes(2) == [1, 2]
    with pytest.raises(BadParameter):
        ten_sizes(0)
