"""Planted studies: a corpus in memory and a store of states that are what a test makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.labels import Labels
from probing.text.corpus import Corpus, Example

SPLIT_SIZES = {"train": 120, "dev": 40, "test": 60}


@dataclass
class MemoryStore:
    """What training asks of a store, from arrays."""

    corpus: Corpus
    states: Mapping[str, NDArray[np.float32]]
    rows: Any
    scope: str = "word:mean"
    reads: list[str] = field(default_factory=list)
    store_id: str = "s" * 64
    content_id: str = "c" * 64
    path: str = "memory"
    environment: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    unknown_pieces: float | None = None
    cut_inputs: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    max_length: int | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.states)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "corpus": {"fingerprint": self.corpus.fingerprint},
            "extraction": {"rows": self.scope},
            "model": {"source": "planted"},
        }

    def width(self, site: str) -> int:
        return self.states[site].shape[1]

    def read(self, site: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        self.reads.append(site)
        return self.states[site][rows]


def word_corpus(*, types: int = 60, tags: int = 3, words: int = 8, seed: int = 0, ambiguous: float = 0.0) -> Corpus:
    """Sentences of random words `w0 … w59`; word `wi` has tag `i % tags`, or with `ambiguous` chance another one."""
    random = np.random.default_rng(seed)
    examples = []
    for split, count in SPLIT_SIZES.items():
        for number in range(count):
            ids = random.integers(0, types, words)
            noise = np.where(random.random(words) < ambiguous, random.integers(0, tags, words), 0)
            forms = [f"w{i}" for i in ids]
            starts = np.cumsum([0, *(len(form) + 1 for form in forms[:-1])])
            examples.append(
                Example(
                    id=f"{split}-{number}",
                    text=" ".join(forms),
                    words=tuple((int(s), int(s) + len(f)) for s, f in zip(starts, forms, strict=True)),
                    word_columns={
                        "upos": tuple(f"T{(i + n) % tags}" for i, n in zip(ids, noise, strict=True)),
                        "score": tuple(float(i) + 0.5 for i in ids),
                    },
                    split=split,
                )
            )
    return Corpus(tuple(examples))


def word_rows(corpus: Corpus) -> Any:
    """A row for every word."""
    places = [(e, w) for e, example in enumerate(corpus.examples) for w in range(len(example.words))]
    example, word = np.array(places).T
    return SimpleNamespace(example=example, word=word)


def word_store(corpus: Corpus, state_of: Callable[[str, str], NDArray[Any]], *, site: str = "resid.0") -> MemoryStore:
    """States by form and tag of each word."""
    states = np.array(
        [state_of(f, str(t)) for e in corpus.examples for f, t in zip(e.forms, e.word_columns["upos"], strict=True)],
        dtype=np.float32,
    )
    return MemoryStore(corpus, {site: states}, word_rows(corpus))


@lru_cache(maxsize=1 << 14)
def vector_of(text: str, width: int) -> NDArray[np.float64]:
    """A Gaussian vector that depends on the text alone, to be read only."""
    vector = np.random.default_rng(list(text.encode())).standard_normal(width)
    vector.flags.writeable = False
    return vector


def labels_of(
    y: NDArray[Any] | list[Any],
    split: list[str],
    *,
    types: list[str] | None = None,
    classes: tuple[str, ...] = ("A", "B", "C"),
    kind: Any = "classes",
    keys: Mapping[str, list[str]] | None = None,
) -> Labels:
    """Labels of rows that are one sentence each."""
    texts = dict(keys or {}) | ({"type": types} if types is not None else {})
    coded = {name: np.unique(values, return_inverse=True) for name, values in texts.items()}
    n = len(split)
    return Labels(
        task="t",
        kind=kind,
        y=np.asarray(y),
        classes=classes if kind == "classes" else (),
        split=np.array(split),
        groups=np.arange(n),
        example=np.arange(n),
        word=np.zeros(n, np.int64),
        row=np.arange(n),
        keys={name: codes.astype(np.int64) for name, (_, codes) in coded.items()},
        key_names={name: tuple(map(str, names)) for name, (names, _) in coded.items()},
    )
