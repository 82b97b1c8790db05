"""Laws of labelling: the right label on the right row, keys equal in every split, degenerate designs refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from probing import registry
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch
from probing.text.corpus import SPLITS, Corpus, Example
from probing.training.labelling import label_rows
from probing.training.row_facts import facts
from tests.conftest import real_data


def example(index: int, split: str, **changes: Any) -> Example:
    made = Example(
        f"s{index}",
        "the dog barks",
        ((0, 3), (4, 7), (8, 13)),
        {"tense": "past" if index % 2 else "present", "w": 0.5},
        {"upos": ("DET", "NOUN", "VERB" if index % 2 else None), "lemma": ("the", "dog", "bark")},
        None,
        split,
    )
    return replace(made, **changes)


def corpus(**changes: Any) -> Corpus:
    return Corpus(tuple(example(i, SPLITS[i % 3], **changes) for i in range(12)))


def word_rows(source: Corpus) -> Any:
    pairs = [(e, w) for e, one in enumerate(source.examples) for w in range(len(one.words))]
    return SimpleNamespace(example=np.array([e for e, _ in pairs]), word=np.array([w for _, w in pairs]))


def sentence_rows(source: Corpus) -> Any:
    return SimpleNamespace(example=np.arange(len(source)), word=np.full(len(source), -1))


def label(source: Corpus, name: str = "upos", argument: str = "", rows: Any = None, **options: str) -> Any:
    task = registry.get("tasks", name).MEMBER(argument)
    scope = options.pop("scope", "word")
    rows = rows or (word_rows(source) if scope == "word" else sentence_rows(source))
    return label_rows(rows, scope, source, task, **options)


def test_rows_in_any_order_carry_their_own_words_label_and_missing_ones_are_counted() -> None:
    source = corpus()
    rows = word_rows(source)
    order = np.random.default_rng(0).permutation(len(rows.example))[5:]
    shuffled = SimpleNamespace(example=rows.example[order], word=rows.word[order])
    labels = label(source, rows=shuffled)
    for i in range(len(labels)):
        one = source.examples[labels.example[i]]
        assert labels.classes[labels.y[i]] == one.word_columns["upos"][labels.word[i]]
        assert labels.key_names["type"][labels.keys["type"][i]] == one.forms[labels.word[i]]
        assert labels.key_names["lemma"][labels.keys["lemma"][i]] == one.word_columns["lemma"][labels.word[i]]
        assert labels.split[i] == one.split
        assert (
            labels.row[i]
            == np.flatnonzero((shuffled.example == labels.example[i]) & (shuffled.word == labels.word[i]))[0]
        )
    unlabelled = sum(
        source.examples[e].word_columns["upos"][w] is None for e, w in zip(*vars(shuffled).values(), strict=True)
    )
    assert labels.excluded == {"no label": unlabelled}
    assert len(labels) + unlabelled == len(order)


def test_sentence_tasks_have_texts_and_label_columns_as_keys() -> None:
    labels = label(corpus(document=None), "column", "tense", scope="sentence")
    assert labels.classes == ("past", "present")
    assert set(labels.keys) == {"text", "tense"}
    assert facts(labels, corpus())["level"] == "sentence"
    assert facts(labels, corpus())["type_overlap"] is None
    assert facts(labels, corpus())["duplicate_sentences"] == 8


def test_clusters_are_sentences_or_documents() -> None:
    source = Corpus(tuple(replace(e, document=f"{e.split}{i // 6}") for i, e in enumerate(corpus().examples)))
    source = Corpus(tuple(replace(e, text=f"{e.text} {i}") for i, e in enumerate(source.examples)))
    assert len(np.unique(label(source).groups)) == 12
    assert len(np.unique(label(source, resample_by="document").groups)) == 6
    assert len(label(source).key_names["document"]) == 6
    with pytest.raises(BadParameter, match="resampling"):
        label(source, resample_by="word")


@pytest.mark.parametrize(
    ("name", "scope", "flag"),
    [
        ("upos", "sentence", 'rows="word:mean", --rows word:mean. to another folder'),
        ("upos", "sentence", "--rows word"),
        ("upos", "piece", "--rows word"),
        ("sentence_length", "word", "--rows sentence"),
    ],
)
def test_rows_of_another_level_name_the_flag_to_extract_with(name: str, scope: str, flag: str) -> None:
    with pytest.raises(BadParameter, match=flag):
        label(corpus(), name, rows=word_rows(corpus()), scope=scope)


def changed(part: str, **changes: Any) -> Corpus:
    return Corpus(tuple(replace(e, **changes) if e.split == part else e for e in corpus().examples))


def upos(*tags: str | None) -> dict[str, Any]:
    return {"word_columns": {"upos": tags}}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (changed("dev", split="extra"), "no labelled rows in dev"),
        (changed("test", **upos(None, None, None)), "no labelled rows in test"),
        (changed("train", **upos("X", "X", "X")), "one label"),
        (changed("test", **upos("P", "Q", "R")), "no label of test occurs in train"),
        (Corpus(tuple(replace(e, id="same") for e in corpus().examples)), "crosses splits"),
        (Corpus(tuple(replace(e, split="other") for e in corpus().examples)), "no row has a label"),
        (
            Corpus(
                tuple(
                    replace(e, **upos(*(f"{t}{i}" if e.split != "train" else t for t in "XYX")))
                    for i, e in enumerate(corpus().examples)
                )
            ),
            "no label of dev|fewer train rows",
        ),
    ],
)
def test_designs_that_teach_nothing_are_refused_before_training(source: Corpus, said: str) -> None:
    with pytest.raises(DegenerateDesign, match=said):
        label(source)


def test_fewer_train_rows_than_classes_is_refused() -> None:
    tags = [("A", "B", None), ("A", "C", "D"), ("A", "E", "F")]
    source = Corpus(tuple(example(i, SPLITS[i], **upos(*tags[i])) for i in range(3)))
    with pytest.raises(DegenerateDesign, match="fewer train rows"):
        label(source)


def test_a_few_classes_unseen_in_train_stay_and_are_counted() -> None:
    source = changed("test", **upos("DET", "NOUN", "INTJ"))
    labels = label(source)
    assert "INTJ" in labels.classes
    found = facts(labels, source)
    assert found["unseen_classes"] == 1 and found["unseen_rows"] == 4
    assert "unseen_rows" not in facts(label(corpus()), corpus())


def test_rows_outside_the_corpus_are_refused() -> None:
    rows = word_rows(corpus())
    for bad in (
        SimpleNamespace(example=rows.example + 1, word=rows.word),
        SimpleNamespace(example=rows.example, word=rows.word + 1),
    ):
        with pytest.raises(ProvenanceMismatch):
            label(corpus(), rows=bad)


def test_facts_are_json_and_say_what_was_planted() -> None:
    source = corpus()
    found = facts(label(source), source)
    assert json.loads(json.dumps(found)) == found
    assert found["rows"] == {"train": 10, "dev": 10, "test": 10}
    assert found["sentences"] == {"train": 1, "dev": 1, "test": 1}  # one text, four times each
    assert found["shared_inputs"]["test"] == {"rows": 10, "texts": 1, "new_rows": 0, "new_sentences": 0}
    assert found["majority"] == pytest.approx(0.4)
    assert found["entropy_bits"] == pytest.approx(-(2 * 0.4 * np.log2(0.4) + 0.2 * np.log2(0.2)))
    assert found["type_overlap"] == 1.0


def test_facts_of_a_real_target_are_its_mean_and_deviation() -> None:
    source = Corpus(tuple(replace(e, columns={"x": i + 0.5}) for i, e in enumerate(corpus().examples)))
    found = facts(label(source, "column", "x", scope="sentence"), source)
    assert found["classes"] == 0 and found["majority"] is None
    assert (found["mean"], found["std"]) == pytest.approx((5.0, np.std([0.5, 3.5, 6.5, 9.5])))


@pytest.mark.real_data
def test_lines_upos_has_the_reference_majority_and_type_overlap() -> None:
    source = Corpus.read(str(real_data() / "ud" / "en_lines-*.conllu"))
    labels = label(source)
    found = facts(labels, source)
    assert found["majority_label"] == "NOUN"
    assert found["majority"] == pytest.approx(0.178, abs=5e-4)
    assert found["type_overlap"] == pytest.approx(0.908, abs=5e-4)
    assert found["rows"] == {"train": 64684, "dev": 21637, "test": 19984}
    assert not found["excluded"]
