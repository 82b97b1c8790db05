"""Rows that are spans and pairs: the right states, labels and keys, and what cannot be placed is refused or counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter, CorpusError, DegenerateDesign, NonFiniteStates, UnknownName
from probing.labels import MOST_BYTES, Labels, Pairs
from probing.probes.linear import LinearProbe
from probing.states.extraction import extract
from probing.text.corpus import SPLITS, Corpus, Example
from probing.training import train
from probing.training.labelling import label_rows
from probing.training.pooling import with_rows
from probing.training.row_facts import facts
from probing.training.states import rows_read
from tests.samples.tiny_models import language_model, spans
from tests.samples.training_samples import MemoryStore, word_rows
from tests.samples.tree_samples import store_of, tree_corpus

CORPUS = tree_corpus()


def task_of(spec: str) -> Task:
    name, _, argument = spec.partition(":")
    made: Task = registry.get("tasks", name).MEMBER(argument)
    return made


def labelled(spec: str | Task, corpus: Corpus = CORPUS, rows: Any = None, scope: str = "word") -> Labels:
    task = task_of(spec) if isinstance(spec, str) else spec
    return label_rows(rows or word_rows(corpus), scope, corpus, task)


def states_of(corpus: Corpus, width: int = 3) -> MemoryStore:
    n = sum(len(e.words) for e in corpus.examples)
    return store_of(corpus, np.random.default_rng(0).standard_normal((n, width)))


def tagged(*tags: str | None, text: str = "a bb c d") -> Corpus:
    """Twelve sentences with the same tags in the column `ner`, of which every other one's types are renamed."""
    words = tuple((text.index(w), text.index(w) + len(w)) for w in text.split())
    examples = []
    for i in range(12):
        renamed = tuple(t if t is None or i % 2 else t.replace("-P", "-Q") for t in tags)
        examples.append(Example(f"s{i}", text, words, word_columns={"ner": renamed}, split=SPLITS[i % 3]))
    return Corpus(tuple(examples))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (("B-P", "I-P", "O", "B-R"), [(0, 1, "P"), (3, 3, "R")]),
        (("B-P", "B-P", "I-P", None), [(0, 0, "P"), (1, 2, "P")]),
        (("I-P", "I-P", "I-R", "O"), [(0, 1, "P"), (2, 2, "R")]),
        (("S-P", "E-P", "B-R", "E-R"), [(0, 0, "P"), (1, 1, "P"), (2, 3, "R")]),
    ],
)
def test_spans_are_those_of_their_tags(tags: tuple[str | None, ...], spans: list[tuple[int, int, str]]) -> None:
    corpus = tagged(*tags)
    task = task_of("span:ner")
    task.prepare(corpus)
    places = [(int(a), int(b)) for a, b in task.places(corpus.examples[1])]
    assert [(a, b, kind) for (a, b), kind in zip(places, task.labels(corpus.examples[1]), strict=True)] == spans


def test_a_column_without_tags_is_refused_with_its_sentence() -> None:
    with pytest.raises(CorpusError, match=r"no BIO tags(.|\n)*sentence s0"):
        labelled("span:ner", tagged("NOUN", "O", "O", "O"))
    for spec in ("span", "span:ners"):
        with pytest.raises(BadParameter if spec == "span" else UnknownName, match="ner"):
            labelled(spec, tagged("B-P", "O", "O", "O"))


def test_the_state_of_a_span_is_the_mean_of_its_words_or_both_ends_in_any_order_of_rows() -> None:
    corpus = tagged("B-P", "I-P", "I-P", "B-R")
    store = states_of(corpus)
    order = np.random.default_rng(3).permutation(len(store.rows.example))
    shuffled = MemoryStore(
        corpus,
        {"resid.0": store.states["resid.0"][order]},
        SimpleNamespace(example=store.rows.example[order], word=store.rows.word[order]),
    )
    X = store.states["resid.0"].reshape(12, 4, 3)
    for one in (store, shuffled):
        means, ends = labelled("span:ner", corpus, one.rows), labelled("span:ner:ends", corpus, one.rows)
        for split in SPLITS:
            e, a, b = (values[means.rows(split)] for values in (means.example, means.word, means.other_word))
            wanted = np.stack([X[i, j : k + 1].mean(0) for i, j, k in zip(e, a, b, strict=True)])
            np.testing.assert_allclose(rows_read(one, "resid.0", means, split), wanted, rtol=1e-6)
            wanted = np.concatenate([X[e, a], X[e, b]], axis=1)
            np.testing.assert_array_equal(np.asarray(rows_read(one, "resid.0", ends, split)), wanted)
    assert means.key_names["type"] == ("a bb c", "d") and facts(means, corpus)["level"] == "span"
    assert set(means.keys) == {"type", "length"}


def test_the_state_of_a_pair_is_both_words_their_difference_or_their_product() -> None:
    corpus = Corpus(tuple(replace(e, pairs={"rel": ((2, 5, "x"), (4, 1, "y"))}) for e in CORPUS.examples))
    store = states_of(corpus)
    X = store.states["resid.0"].reshape(len(corpus), -1, 3)
    for ending, combined in (("", None), (":difference", np.subtract), (":product", np.multiply)):
        labels = labelled(f"pair:rel{ending}", corpus)
        chosen = labels.take(labels.rows("dev"))
        found = rows_read(store, "resid.0", labels, "dev")
        a, b = X[chosen.example, chosen.word], X[chosen.example, chosen.other_word]
        wanted = np.concatenate([a, b], axis=1) if combined is None else combined(a, b)
        np.testing.assert_array_equal(np.asarray(found), wanted)
        assert found.shape == wanted.shape and found.nbytes == wanted.nbytes
        np.testing.assert_array_equal(np.asarray(found[np.array([5, 0])]), wanted[[5, 0]])
    assert labels.classes == ("x", "y") and labels.level == "pair"


def test_keys_of_a_pair_are_its_forms_and_how_far_apart_they_are() -> None:
    corpus = Corpus(tuple(replace(e, pairs={"rel": ((2, 5, "x"), (4, 1, "y"))}) for e in CORPUS.examples))
    labels = labelled("pair:rel", corpus)
    for i in (0, 1, 77):
        forms = corpus.examples[labels.example[i]].forms
        a, b = forms[labels.word[i]], forms[labels.other_word[i]]
        told = {name: labels.key_names[name][codes[i]] for name, codes in labels.keys.items()}
        assert told == {"type": f"{a}\t{b}", "first": a, "second": b, "offset": "+3" if labels.y[i] == 0 else "-3"}
    long = Example("l", " ".join("abcdefghijklmnopqrstuvwxyz"), tuple((2 * i, 2 * i + 1) for i in range(26)))
    examples = [
        replace(long, id=str(i), split=SPLITS[i % 3], pairs={"rel": ((0, 25, "x"), (25, 2, "y"))}) for i in range(9)
    ]
    far = labelled("pair:rel", Corpus(tuple(examples)))
    assert [far.key_names["offset"][code] for code in far.keys["offset"][:2]] == ["+20", "-20"]


def test_places_whose_words_own_no_row_are_counted_and_a_choice_without_its_right_word_goes_whole() -> None:
    rows = word_rows(CORPUS)
    kept = ~((rows.example == 0) & (rows.word == 3))
    fewer = SimpleNamespace(example=rows.example[kept], word=rows.word[kept])
    whole, less = labelled("head"), labelled("head", rows=fewer)
    heads = CORPUS.examples[0].word_columns["head"]
    below = sum(head == 4 for head in heads)
    others = sum(head != 0 for i, head in enumerate(heads) if i != 3)
    assert less.excluded["a word of the pair has no row"] == (8 if heads[3] else 0) + others
    assert less.excluded.get("the right word has no row", 0) == 7 * below
    lost = (8 if heads[3] else 0) + others + 7 * below
    assert len(whole) - len(less) == lost
    spans = tagged("B-P", "I-P", "I-P", "B-R")
    rows = word_rows(spans)
    kept = ~((rows.example < 2) & (rows.word == 1))
    less = labelled("span:ner", spans, SimpleNamespace(example=rows.example[kept], word=rows.word[kept]))
    assert less.excluded == {"a word of the span has no row": 2} and len(less) == 22


class Given(Task):
    """Places and labels of the first sentence as given, of all others two pairs."""

    level, kind = "pair", "classes"
    row_form = "pair"

    def __init__(self, places: Any, values: tuple[Any, ...]) -> None:
        super().__init__()
        self.given = places, values

    def prepare(self, corpus: Corpus) -> None:
        """Nothing."""

    def places(self, example: Example) -> Any:
        return self.given[0] if example.id == "train-0" else [(0, 1), (1, 2)]

    def labels(self, example: Example) -> tuple[Any, ...]:
        return self.given[1] if example.id == "train-0" else ("yes", "no")


class Choosing(Given):
    chooses = True

    def places(self, example: Example) -> Any:
        return self.given[0] if example.id == "train-0" else [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [
        (Given([(0, 8)], ("yes",)), CorpusError, r"two words of one sentence(.|\n)*\[0, 8\](.|\n)*train-0"),
        (Given([(-1, 2)], ("yes",)), CorpusError, "train-0"),
        (Given([(0.5, 2.0)], ("yes",)), CorpusError, "train-0"),
        (Given([(0, 1, 2)], ("yes",)), CorpusError, "train-0"),
        (Given([(0, 1)], ()), BadParameter, r"1, one per place(.|\n)*train-0"),
        (Choosing([(0, 1), (0, 2)], ("no", "no")), DegenerateDesign, r"exactly one right(.|\n)*train-0, word 0"),
        (Choosing([(0, 1), (0, 2)], ("yes", "yes")), DegenerateDesign, "exactly one right"),
        (Choosing([(0, 1), (0, 2)], ("yes", "maybe")), BadParameter, "maybe"),
    ],
)
def test_places_that_make_no_rows_are_refused_before_training(task: Task, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        labelled(task)


def test_a_span_that_ends_before_it_begins_is_refused() -> None:
    backwards = Given([(3, 2)], ("yes",))
    backwards.level, backwards.row_form = "span", "mean"
    with pytest.raises(CorpusError, match="the first and the last word of a span"):
        labelled(backwards)


def test_stores_probes_and_measures_of_another_level_are_refused_before_training() -> None:
    sentences = SimpleNamespace(example=np.arange(len(CORPUS)), word=np.full(len(CORPUS), -1))
    with pytest.raises(BadParameter, match=r"labels pairs(.|\n)*--rows word:mean"):
        labelled("head", rows=sentences, scope="sentence")
    store = states_of(CORPUS)
    for options, said in (
        ({"task": "upos", "probes": ["bilinear"]}, "cannot read rows that are words"),
        ({"task": "head:product", "probes": ["bilinear"]}, "cannot read"),
        ({"task": "upos", "measures": ["uas"]}, "choices only"),
        ({"task": "dependency_edge", "measures": ["uas"]}, "choices only"),
        ({"task": "tree_depth", "measures": ["uuas"]}, "pairs only"),
        ({"task": "head", "controls": ["word_type"]}, "use the control edge"),
        ({"task": "dependency_edge", "controls": ["edge"]}, "words that choose"),
    ):
        with pytest.raises((BadParameter, DegenerateDesign), match=said):
            train(store, CORPUS, progress=False, **options)  # type: ignore[arg-type]
    assert not store.reads


def test_pairs_too_many_to_lay_out_are_refused_before_training_with_the_probes_that_need_not() -> None:
    table, index = np.zeros((1, 4), np.float32), np.zeros((MOST_BYTES // 32 + 1, 2), np.int64)
    pairs = Pairs(table, index, index[:, 0])
    assert pairs.nbytes > MOST_BYTES
    with pytest.raises(BadParameter, match="bilinear or structural"):
        np.asarray(pairs)
    store = states_of(CORPUS)
    store.width = lambda site: 10_000_000  # type: ignore[method-assign]
    with pytest.raises(BadParameter, match=r"GiB(.|\n)*probe linear on task dependency_edge"):
        train(store, CORPUS, task="dependency_edge", probes=["linear"], progress=False)


def test_states_that_are_not_finite_are_named_by_the_rows_of_the_store() -> None:
    store = states_of(CORPUS)
    store.states["resid.0"][9, 1] = np.nan
    with pytest.raises(NonFiniteStates, match=r"site resid\.0, train, rows 9"):
        rows_read(store, "resid.0", labelled("dependency_edge"), "train")


def test_a_probe_that_knows_no_pairs_reads_them_laid_out() -> None:
    labels = labelled("dependency_edge")
    pairs = rows_read(states_of(CORPUS), "resid.0", labels, "train")
    y = labels.y[labels.rows("train")]
    fitted, plain = LinearProbe().fit(pairs, y), LinearProbe().fit(np.asarray(pairs), y)
    np.testing.assert_array_equal(fitted.predict_log_proba(pairs), plain.predict_log_proba(np.asarray(pairs)))


def test_pairs_of_a_file_become_rows_and_malformed_ones_are_refused_with_their_line(tmp_path: Path) -> None:
    lines = [
        {"text": "Dogs bark loudly", "rel": [[0, 1, "subj"], [2, 1, "adv"]], "split": SPLITS[i % 3]} for i in range(9)
    ]
    lines[3]["rel"] = []
    lines[4]["rel"] = None  # type: ignore[assignment]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = Corpus.read(file)
    assert corpus.examples[0].pairs == {"rel": ((0, 1, "subj"), (2, 1, "adv"))} and "rel" not in corpus.column_names()
    assert len(labelled("pair:rel", corpus)) == 14
    with pytest.raises(UnknownName, match="did you mean 'rel'"):
        labelled("pair:rle", corpus)
    with pytest.raises(BadParameter, match="rel"):
        labelled("pair", corpus)
    for bad in ([[0, 3, "x"]], [[0, 1]], [["a", 1, "x"]], "no"):
        lines[7]["rel"] = bad
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if bad == "no":
            assert not Corpus.read(file).examples[0].pairs  # a field of single values and of pairs is neither
            continue
        with pytest.raises(CorpusError, match=r"no pairs of words(.|\n)*a\.jsonl:8"):
            Corpus.read(file)


def test_spans_and_pairs_are_trained_end_to_end() -> None:
    corpus = Corpus(
        tuple(
            replace(
                e,
                pairs={"rel": ((0, 1, "ab"[int(e.forms[0] < "w20")]), (3, 2, "ab"[int(e.forms[3] < "w20")]))},
                word_columns={**e.word_columns, "ner": ("B-X" if e.forms[0] < "w20" else "B-Y", *"O" * 7)},
            )
            for e in CORPUS.examples
        )
    )
    forms = [form for e in corpus.examples for form in e.forms]
    store = store_of(corpus, np.array([[form < "w20", form > "w30"] for form in forms], float))
    for task in ("pair:rel", "span:ner", "span:ner:ends"):
        results = train(store, corpus, task=task, controls=["word_type:draws=1"], progress=False)
        best = results.best()
        assert best.measure("accuracy").score.value == 1.0 and best.facts["level"] == task.partition(":")[0]
        assert ("linear_order" in {r.probe for r in results}) == (task == "pair:rel")


def test_pieces_are_pooled_to_words_before_words_make_pairs_and_spans(tmp_path: Path) -> None:
    text = "the cat is being in the hat"
    columns = {"head": (2, 4, 4, 0, 7, 7, 4), "ner": ("O", "B-A", "O", "O", "O", "B-B", "I-B")}
    corpus = Corpus(
        tuple(Example(str(i), text, spans(text), word_columns=columns, split=SPLITS[i % 3]) for i in range(9))
    )
    stores = {
        rows: extract(language_model("bert"), corpus, sites="embed", rows=rows, to=tmp_path / rows[:4], progress=False)
        for rows in ("piece", "word:mean")
    }
    pooled = with_rows(stores["piece"], corpus, None, "word")
    for spec in ("dependency_edge", "span:ner", "head"):
        labels = labelled(spec, corpus, pooled.rows)
        found, wanted = (np.asarray(rows_read(one, "embed", labels, "test")) for one in (pooled, stores["word:mean"]))
        np.testing.assert_allclose(found, wanted, atol=1e-3)
