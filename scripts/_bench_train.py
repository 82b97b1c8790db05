"""How often `probing train` calls labels decodable that are drawn at random, and how often its intervals cover.

Corpora and states are planted: nothing here is read from a model, all of it goes through `probing.train` as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from probing import registry
from probing.controls.word_type import WordTypeControl
from probing.probes.linear import LinearProbe
from probing.recipes import build_task
from probing.text.corpus import Corpus, Example
from probing.training import train
from probing.training.labelling import label_rows
from probing.verdicts.decodability import DECODABLE, SELECTIVE, judged

D = 16
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdgklmnrst"]
Floats = NDArray[np.float64]


@dataclass
class Planted:
    """What training asks of a store, from an array `(R, D)` of states."""

    corpus: Corpus
    states: NDArray[np.float32]
    rows: Any
    scope: str
    sites: tuple[str, ...] = ("resid.0",)
    store_id: str = "planted"
    content_id: str = "planted"
    path: str = "planted"
    environment: dict[str, Any] = field(default_factory=dict)
    inputs: dict[int, tuple[int, str]] = field(default_factory=dict)
    unknown_pieces: float | None = None
    cut_inputs: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    max_length: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "corpus": {"fingerprint": self.corpus.fingerprint},
            "extraction": {"rows": self.scope},
            "model": {"source": "planted"},
        }

    def width(self, site: str) -> int:
        return self.states.shape[1]

    def read(self, site: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.states[rows]


def sentence_store(corpus: Corpus, states: Floats) -> Planted:
    rows = SimpleNamespace(example=np.arange(len(corpus)), word=np.full(len(corpus), -1))
    return Planted(corpus, states.astype(np.float32), rows, "sentence:mean")


def word_store(corpus: Corpus, states: Floats) -> Planted:
    example = np.repeat(np.arange(len(corpus)), [len(e.words) for e in corpus.examples])
    word = np.concatenate([np.arange(len(e.words)) for e in corpus.examples])
    return Planted(corpus, states.astype(np.float32), SimpleNamespace(example=example, word=word), "word:mean")


def example(number: int, forms: list[str], **more: Any) -> Example:
    starts = np.cumsum([0, *(len(form) + 1 for form in forms[:-1])]).tolist()
    words = tuple((start, start + len(form)) for start, form in zip(starts, forms, strict=True))
    return Example(f"s{number}", " ".join(forms), words, **more)


def forms(random: np.random.Generator, length: int = 7) -> list[str]:
    return [WORDS[i] for i in random.integers(0, len(WORDS), length)]


def noise(random: np.random.Generator, *shape: int) -> Floats:
    return random.standard_normal((*shape, D))


@dataclass(frozen=True)
class Study:
    """One planted study and how it is asked."""

    store: Planted
    corpus: Corpus
    task: str = "column:label"
    controls: tuple[str, ...] = ()


def split(corpus: Corpus, random: np.random.Generator) -> Corpus:
    return corpus.with_random_split(int(random.integers(1 << 30)), (0.6, 0.1, 0.3))


def by_sentence(random: np.random.Generator) -> Study:
    """A label by lot for every sentence."""
    examples = [example(i, forms(random), columns={"label": "ab"[random.integers(2)]}) for i in range(300)]
    corpus = split(Corpus(tuple(examples)), random)
    return Study(sentence_store(corpus, noise(random, len(corpus))), corpus)


def by_sentence_of_words(random: np.random.Generator) -> Study:
    """The words of a sentence share one label by lot, and what their states have of the sentence."""
    found = [forms(random, int(random.integers(3, 12))) for _ in range(200)]
    labels = random.integers(0, 2, len(found))
    examples = [
        example(i, f, word_columns={"label": ("ab"[k],) * len(f)})
        for i, (f, k) in enumerate(zip(found, labels, strict=True))
    ]
    corpus = split(Corpus(tuple(examples)), random)
    sentence = np.repeat(np.arange(len(found)), [len(f) for f in found])
    states = noise(random, len(found))[sentence] + noise(random, len(sentence))
    return Study(word_store(corpus, states), corpus, controls=("word_type:draws=5",))


def by_word_type(random: np.random.Generator) -> Study:
    """A label by lot for every word type, in states that carry the type."""
    weights = 1 / np.arange(1, 121)
    words = [random.choice(120, int(random.integers(4, 10)), p=weights / weights.sum()) for _ in range(220)]
    label, vectors = random.integers(0, 3, 120), noise(random, 120)
    examples = [
        example(i, [WORDS[k] for k in of], word_columns={"label": tuple("abc"[label[k]] for k in of)})
        for i, of in enumerate(words)
    ]
    corpus = split(Corpus(tuple(examples)), random)
    states = vectors[np.concatenate(words)] + 0.5 * noise(random, sum(map(len, words)))
    return Study(word_store(corpus, states), corpus, controls=("word_type:draws=5",))


def by_document(random: np.random.Generator, sizes: NDArray[np.int64]) -> Study:
    """A label by lot for every document, whose sentences share half of the variance of their states."""
    document = np.repeat(np.arange(len(sizes)), sizes)
    label = random.integers(0, 2, len(sizes))
    examples = [
        example(i, forms(random), document=f"d{d}", columns={"label": "ab"[label[d]]})
        for i, d in enumerate(document.tolist())
    ]
    corpus = split(Corpus(tuple(examples)), random)
    states = noise(random, len(sizes))[document] + noise(random, len(document))
    return Study(sentence_store(corpus, states), corpus)


def even(random: np.random.Generator) -> Study:
    """Sixty documents of ten sentences."""
    return by_document(random, np.full(60, 10))


def uneven(random: np.random.Generator) -> Study:
    """Sixty documents, a few of which hold most of the sentences (Zipf)."""
    return by_document(random, np.maximum(1, 170 / np.arange(1, 61)).astype(np.int64))


def by_copies(random: np.random.Generator) -> Study:
    """Sixty texts, ten copies of each, with a label by lot for every text."""
    texts = [forms(random) for _ in range(60)]
    label, states = random.integers(0, 2, 60), noise(random, 60)
    places = random.permutation(np.repeat(np.arange(60), 10))
    examples = [example(i, texts[t], columns={"label": "ab"[label[t]]}) for i, t in enumerate(places.tolist())]
    corpus = split(Corpus(tuple(examples)), random)
    return Study(sentence_store(corpus, states[places]), corpus)


def words_of_copies(random: np.random.Generator) -> Study:
    """Sixty texts of which every word has a label by lot, ten copies of each."""
    texts = [forms(random, 5) for _ in range(60)]
    labels, states = random.integers(0, 2, (60, 5)), noise(random, 60, 5)
    places = random.permutation(np.repeat(np.arange(60), 10)).tolist()
    examples = [
        example(i, texts[t], word_columns={"label": tuple("ab"[k] for k in labels[t])}) for i, t in enumerate(places)
    ]
    corpus = split(Corpus(tuple(examples)), random)
    return Study(word_store(corpus, states[places].reshape(-1, D)), corpus, controls=("word_type:draws=5",))


def by_template(random: np.random.Generator, *, grouped: bool) -> Study:
    """Forty templates with three slots, ten sentences of each, and a label by lot for every template."""
    templates = [forms(random, 5) for _ in range(40)]
    label, vectors = random.integers(0, 2, 40), noise(random, 40)
    places = np.repeat(np.arange(40), 10)
    examples = [
        example(
            i,
            [*templates[t][:2], *forms(random, 3), *templates[t][2:]],
            columns={"label": "ab"[label[t]], "template": f"t{t}"},
        )
        for i, t in enumerate(places.tolist())
    ]
    corpus = Corpus(tuple(examples))
    corpus = split(corpus.grouped_by("template") if grouped else corpus, random)
    states = vectors[places] + noise(random, len(places))
    return Study(sentence_store(corpus, states), corpus, controls=() if grouped else ("keyed:key=template",))


def templates_grouped(random: np.random.Generator) -> Study:
    """As below, with the template as the group."""
    return by_template(random, grouped=True)


def templates(random: np.random.Generator) -> Study:
    """Templates that are no group: the words of a template tell its label."""
    return by_template(random, grouped=False)


NULLS: dict[str, Callable[[np.random.Generator], Study]] = {
    "sentence": by_sentence,
    "sentence, rows are words": by_sentence_of_words,
    "word type": by_word_type,
    "document, even": even,
    "document, Zipf": uneven,
    "text, 10 copies": by_copies,
    "word of a text, 10 copies": words_of_copies,
    "template, grouped": templates_grouped,
    "template": templates,
}


def outcome(study: Study, seed: int) -> str:
    """What the criterion says at the only site."""
    results = train(
        study.store,
        study.corpus,
        task=study.task,
        controls=study.controls or None,
        measures=["accuracy"],
        root_seed=seed,
        progress=False,
    )  # type: ignore[arg-type]
    best = results.best()
    return judged(best, best.judged("accuracy")).status


def false_claims(count: int) -> Iterator[str]:
    """A line for every way in which labels at random are drawn."""
    yield f"labels at random by          n  decodable{'':18}selectively"
    for number, (name, plant) in enumerate(NULLS.items()):
        said = [outcome(plant(np.random.default_rng([number, seed])), seed) for seed in range(count)]
        claims = sum(status in (DECODABLE, SELECTIVE) for status in said)
        yield f"{name:26}{count:>4}  {share(claims, count)}  {share(said.count(SELECTIVE), count)}"


def share(hits: int, count: int) -> str:
    """`0.030 [0.011, 0.064]`."""
    found = binomtest(hits, count).proportion_ci()
    return f"{hits / count:.3f} [{found.low:.3f}, {found.high:.3f}] "


@dataclass(frozen=True)
class Population:
    """Endless sentences and control draws for one training set, so that the true selectivity is known."""

    corpus: Corpus
    states: Floats
    sizes: dict[str, int]
    truth: float


def population(random: np.random.Generator, *, test: int = 3000, draws: int = 60) -> Population:
    """Word types by Zipf, a tag that states carry beside the type, and what sentences share."""
    weights = 1 / np.arange(1, 101)
    sizes = {"train": 120, "dev": 30, "test": test}
    splits = [name for name, n in sizes.items() for _ in range(n)]
    words = [random.choice(100, int(random.integers(4, 12)), p=weights / weights.sum()) for _ in splits]
    tags, types, means = random.integers(0, 4, 100), noise(random, 100), noise(random, 4)
    flat = np.concatenate(words)
    y = np.where(random.random(len(flat)) < 0.25, random.integers(0, 4, len(flat)), tags[flat])
    sentence = np.repeat(np.arange(len(words)), [len(of) for of in words])
    states = types[flat] + means[y] + 0.7 * noise(random, len(words))[sentence] + noise(random, len(flat))
    ends = np.cumsum([len(of) for of in words])
    examples = [
        example(
            i, [WORDS[k] for k in of], split=s, word_columns={"label": tuple("abcd"[k] for k in y[e - len(of) : e])}
        )
        for i, (of, s, e) in enumerate(zip(words, splits, ends.tolist(), strict=True))
    ]
    corpus = Corpus(tuple(examples))
    store, task = word_store(corpus, states), build_task("column:label", corpus)
    labels = label_rows(store.rows, "word", corpus, task)
    sets = [labels, *(WordTypeControl().apply(labels, draw=d, seed=99_991) for d in range(draws))]
    rows, tested = labels.rows("train"), labels.rows("test")
    fits = LinearProbe().fit_many(
        store.states[rows],
        [one.y[rows] for one in sets],
        [0],
        dev=(store.states[:0], [one.y[:0] for one in sets]),
    )
    scores = [
        float((fit[0].predict(store.states[tested]) == one.y[tested]).mean())
        for fit, one in zip(fits, sets, strict=True)
    ]
    return Population(corpus, states, sizes, scores[0] - float(np.mean(scores[1:])))


def drawn(of: Population, sentences: int, random: np.random.Generator) -> Study:
    """The training set with so many of the test sentences."""
    first = of.sizes["train"] + of.sizes["dev"]
    chosen = np.concatenate([np.arange(first), first + random.choice(of.sizes["test"], sentences, replace=False)])
    lengths = np.array([len(e.words) for e in of.corpus.examples])
    starts = np.cumsum(lengths) - lengths
    rows = np.concatenate([np.arange(starts[e], starts[e] + lengths[e]) for e in chosen])
    corpus = replace(of.corpus, examples=tuple(of.corpus.examples[e] for e in chosen))
    return Study(word_store(corpus, of.states[rows]), corpus)


def coverage(populations: int, count: int) -> Iterator[str]:
    """Share of the intervals of selectivity that hold the truth, by number of draws and of test sentences."""
    yield f"\n{'draws':>5} {'sentences':>9} {'n':>5}  intervals of selectivity that hold the truth"
    found = [population(np.random.default_rng([77, seed])) for seed in range(populations)]
    for draws in (3, 5, 10):
        for sentences in (25, 80, 250):
            hits = 0
            for number in range(count):
                of = found[number % populations]
                study = drawn(of, sentences, np.random.default_rng([number, sentences]))
                results = train(
                    study.store,
                    study.corpus,
                    task="column:label",
                    controls=[f"word_type:draws={draws}"],
                    measures=["accuracy"],
                    root_seed=number,
                    progress=False,
                )  # type: ignore[arg-type]
                told = results.selectivity("accuracy")
                hits += told.low <= of.truth <= told.high
            yield f"{draws:>5} {sentences:>9} {count:>5}  {share(hits, count)}"


def run(short: bool = False, only: str = "") -> None:
    """Print both tables, or `only` one, `nulls` or `coverage`; `short` shows that they can be made, and little more."""
    registry._entry_points = cache(registry._entry_points)  # asked for thousands of times here, a third of all the time
    made = {
        "nulls": false_claims(12 if short else 200),
        "coverage": coverage(1 if short else 6, 12 if short else 200),
    }
    for line in (line for name, lines in made.items() if only in ("", name) for line in lines):
        print(line, flush=True)


if __name__ == "__main__":
    run("--short" in sys.argv, next((name for name in ("nulls", "coverage") if name in sys.argv), ""))
