"""Planted trees: sentences with random dependency trees, and states in which the tree can be read or not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.text.corpus import Corpus, Example
from tests.samples.training_samples import MemoryStore, word_rows

SIZES = {"train": 150, "dev": 40, "test": 60}
WORDS = 8


def random_heads(random: np.random.Generator, n: int = WORDS) -> list[int]:
    """Heads (0: the root, else 1-based) of a random tree over words in random order."""
    order = random.permutation(n)
    heads = [0] * n
    for rank in range(1, n):
        heads[order[rank]] = int(order[random.integers(rank)]) + 1
    return heads


def tree_corpus(*, seed: int = 0, types: int = 40, **more: Any) -> Corpus:
    """Sentences of random words and trees; the last word is punctuation. `more`: fields of every example."""
    random = np.random.default_rng(seed)
    examples = []
    for split, count in SIZES.items():
        for number in range(count):
            forms = [f"w{i:02d}" for i in random.integers(0, types, WORDS)]
            words = tuple((4 * i, 4 * i + 3) for i in range(WORDS))
            tags = ("X",) * (WORDS - 1) + ("PUNCT",)
            columns = {"head": tuple(random_heads(random)), "upos": tags}
            examples.append(
                Example(f"{split}-{number}", " ".join(forms), words, word_columns=columns, split=split, **more)
            )
    return Corpus(tuple(examples))


def edge_vectors(heads: Any) -> NDArray[np.float64]:
    """`(n, n)` a vector a word: the sum of one axis per arc up to the root, so squared distances are path lengths."""
    n = len(heads)
    vectors = np.zeros((n, n))
    for word in range(n):
        above = word
        while heads[above]:
            vectors[word, above] = 1.0
            above = heads[above] - 1
    return vectors


def store_of(corpus: Corpus, states: NDArray[Any], site: str = "resid.0") -> MemoryStore:
    return MemoryStore(corpus, {site: states.astype(np.float32)}, word_rows(corpus))


def tree_states(corpus: Corpus, *, noise: float = 0.0, seed: int = 1) -> NDArray[np.float64]:
    """Edge vectors of all words, turned and stretched by one random map, with noise."""
    random = np.random.default_rng(seed)
    vectors = np.concatenate([edge_vectors(e.word_columns["head"]) for e in corpus.examples])
    turned = vectors @ random.standard_normal((WORDS, 12))
    return np.asarray(turned + noise * random.standard_normal(turned.shape))
