"""Laws of controls: one label per key everywhere, drawn from the task's training rows, known only through the key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from inspect import signature
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from probing import registry
from probing.contracts.control import Control
from probing.controls._draws import _inverse_distribution, uniform_of, usable_keys
from probing.controls.keyed import KeyedControl
from probing.controls.shuffled_labels import ShuffledLabelsControl
from probing.controls.word_type import WordTypeControl
from probing.errors import BadParameter, DegenerateDesign, DoubtfulData, UnknownName
from probing.labels import Labels
from probing.training.build import _drawn, lacks_origin
from tests.samples.training_samples import labels_of

CONTROLS = (WordTypeControl(), KeyedControl(key="lemma"), ShuffledLabelsControl())
SPLIT = np.array(["train"] * 600 + ["dev"] * 200 + ["test"] * 200)


def word_labels(seed: int = 0, types: int = 150, kind: Any = "classes") -> Labels:
    """1,000 rows in mixed order; three forms share a lemma; 60 % are A, 30 % C, 10 % D, and B is in test only."""
    random = np.random.default_rng(seed)
    word = random.integers(0, types, 1000)
    split = random.permutation(SPLIT)
    y: Any = random.choice([0, 2, 3], 1000, p=[0.6, 0.3, 0.1])
    y[np.flatnonzero(split == "test")[:3]] = 1
    if kind == "real":
        y = np.where(split == "train", random.exponential(size=1000), -random.exponential(size=1000))
    keys = {"lemma": [f"l{w // 3}" for w in word]}
    return labels_of(y, list(split), types=[f"w{w}" for w in word], classes=tuple("ABCD"), kind=kind, keys=keys)


LABELS = word_labels()


def agreement(one: Any, two: Any) -> float:
    return float((one == two).mean())


@pytest.mark.parametrize(("control", "key"), [(WordTypeControl(), "type"), (KeyedControl(key="lemma"), "lemma")])
@pytest.mark.parametrize("kind", ["classes", "real"])
def test_rows_of_one_key_carry_one_label_in_every_split(control: Any, key: str, kind: str) -> None:
    labels = word_labels(kind=kind)
    made = control.apply(labels, draw=0, seed=0)
    pairs = set(zip(labels.keys[key].tolist(), made.y.tolist(), strict=True))
    assert len(pairs) == len(np.unique(labels.keys[key]))
    assert len(set(zip(labels.keys[key].tolist(), labels.y.tolist(), strict=True))) > len(pairs)
    assert made.y.dtype == labels.y.dtype


def test_a_types_label_depends_on_no_order_no_coding_and_no_other_type() -> None:
    made = WordTypeControl().apply(LABELS, draw=1, seed=2)
    order = np.random.default_rng(1).permutation(len(LABELS))
    assert (WordTypeControl().apply(LABELS.take(order), draw=1, seed=2).y == made.y[order]).all()
    recoded = replace(
        LABELS, keys={"type": 149 - LABELS.keys["type"]}, key_names={"type": LABELS.key_names["type"][::-1]}
    )
    assert (WordTypeControl().apply(recoded, draw=1, seed=2).y == made.y).all()
    few = np.sort(np.r_[LABELS.rows("train"), LABELS.rows("test")[:5]])
    assert (WordTypeControl().apply(LABELS.take(few), draw=1, seed=2).y == made.y[few]).all()


def test_form_is_case_sensitive() -> None:
    words = [f"{letter}{i}" for i in range(50) for letter in "aA"]
    labels = labels_of([0, 1] * 50, ["train"] * 100, types=words)
    y = WordTypeControl().apply(labels, draw=0, seed=0).y
    assert 10 < (y[::2] != y[1::2]).sum() < 40


def test_another_process_with_other_string_hashes_draws_the_same_labels() -> None:
    code = (
        "import json, tests.controls.test_controls as t; print(json.dumps([c.apply(t.LABELS, draw=2, seed=7).y.tolist()"
    )
    code += " for c in t.CONTROLS]))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "12"}, capture_output=True, check=True
    )
    assert json.loads(run.stdout) == [control.apply(LABELS, draw=2, seed=7).y.tolist() for control in CONTROLS]


def test_labels_follow_the_training_tokens_not_types_and_not_other_splits() -> None:
    # Tokens of train: A 60, B none, C 30, D 10 %. Types: "a" alone has A; C and D have one type a token.
    random = np.random.default_rng(0)
    y = np.repeat([0, 2, 3, 1], [600, 300, 100, 4000])
    types = ["a"] * 600 + [f"t{i}" for i in range(400)] + [f"u{i}" for i in range(4000)]
    split = ["train"] * 1000 + ["test"] * 4000
    order = random.permutation(5000)
    labels = labels_of(y, split, types=types, classes=tuple("ABCD")).take(order)
    made = WordTypeControl().apply(labels, draw=0, seed=0)
    counts = np.bincount(made.y[made.split == "test"], minlength=4)
    assert counts[1] == 0
    expected = 4000 * np.array([0.6, 0.3, 0.1])
    assert ((counts[[0, 2, 3]] - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 2)


def test_draws_seeds_and_task_agree_no_more_than_chance_and_the_same_draw_is_the_same() -> None:
    labels = word_labels(types=2000, seed=3)
    made = {(draw, seed): WordTypeControl().apply(labels, draw=draw, seed=seed) for draw in (0, 1) for seed in (0, 1)}
    share = np.bincount(labels.y[labels.rows("train")]) / 600
    chance = pytest.approx((share**2).sum(), abs=0.08)
    ys = [one.y for one in made.values()] + [labels.y]
    assert all(agreement(ys[i], ys[j]) == chance for i in range(5) for j in range(i))
    again = WordTypeControl().apply(labels, draw=1, seed=0)
    assert (again.y == made[1, 0].y).all() and again.ceiling == made[1, 0].ceiling
    assert made[1, 0].control == "word_type#1"


def test_draws_of_a_key_are_uniform_and_uncorrelated_over_keys_draws_and_seeds() -> None:
    cube = np.array([[[uniform_of(f"w{k}", draw=d, seed=s) for k in range(300)] for d in range(5)] for s in range(3)])
    assert cube.min() >= 0 and cube.max() < 1
    assert kstest(cube.ravel(), "uniform").pvalue > 0.01
    between = np.corrcoef(cube.reshape(15, 300))[np.triu_indices(15, 1)]
    assert np.abs(between).max() < 4.5 / np.sqrt(300)


def test_the_inverse_distribution_is_exact_at_its_edges_and_never_gives_an_absent_class() -> None:
    uniforms = np.array([0.0, np.nextafter(0.75, 0), 0.75, 1 - 2**-53])
    train = np.arange(4)
    classes = labels_of([3, 1, 1, 1], ["train"] * 4, classes=tuple("ABCDE"))
    assert _inverse_distribution(classes, train, uniforms).tolist() == [1, 1, 3, 3]
    real = labels_of([0.4, 0.1, 0.3, 0.2], ["train"] * 4, kind="real")
    assert _inverse_distribution(real, train, uniforms).tolist() == [0.1, 0.3, 0.4, 0.4]


def test_ceiling_and_seen_are_those_counted_by_hand() -> None:
    split = ["train"] * 4 + ["dev"] * 2 + ["test"] * 5
    labels = labels_of(
        [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 1], split, types=["the", "the", "dog", "cat", "cow", "the", *"xy", "the", *"xd"]
    )
    made = WordTypeControl().apply(labels, draw=0, seed=0)
    assert made.seen is not None
    assert made.seen.tolist() == [True] * 4 + [False, True] + [False, False, True, False, False]
    # One of five test rows is seen; the other four are guessed by the commonest of train, 3 of 4.
    assert made.ceiling == pytest.approx((1 + 4 * 0.75) / 5)


def test_who_knows_every_seen_type_and_guesses_the_commonest_label_scores_the_ceiling_on_average() -> None:
    labels = word_labels(types=900)
    test = labels.rows("test")
    scores, ceilings = [], []
    for draw in range(200):
        made = WordTypeControl().apply(labels, draw=draw, seed=0)
        assert made.seen is not None
        scores.append(np.where(made.seen, True, made.y == 0)[test].mean())
        ceilings.append(made.ceiling)
    assert len(set(ceilings)) == 1 and 0.6 < ceilings[0] < 0.9
    assert np.mean(scores) == pytest.approx(ceilings[0], abs=4 * np.std(scores) / np.sqrt(200))
    assert np.std(scores) > 0


def test_keyed_control_reads_type_for_words_and_text_for_sentences_unless_told_otherwise() -> None:
    made = KeyedControl().apply(LABELS, draw=0, seed=0)
    assert made.control == "keyed:key=type#0"
    assert (made.y == WordTypeControl().apply(LABELS, draw=0, seed=0).y).all()
    texts = [f"s{i // 2}" for i in range(40)]
    sentences = labels_of([0, 1, 1, 2] * 10, ["train"] * 40, keys={"text": texts, "tense": ["x", "y"] * 20})
    assert KeyedControl().apply(sentences, draw=0, seed=0).control == "keyed:key=text#0"
    by_lemma = KeyedControl(key="lemma").apply(LABELS, draw=0, seed=0)
    assert by_lemma.seen is not None and by_lemma.seen.all() and by_lemma.ceiling == 1.0
    assert not np.array_equal(by_lemma.y, made.y)


def test_real_keys_draw_from_the_training_values_alone() -> None:
    labels = word_labels(types=3000, kind="real")
    made = KeyedControl().apply(labels, draw=0, seed=0)
    train = labels.y[labels.rows("train")]
    assert np.isin(made.y, train).all() and made.y.min() > 0
    _, first = np.unique(labels.keys["type"], return_index=True)
    assert kstest(made.y[first], "expon").pvalue > 0.01
    assert made.ceiling is None
    assert made.seen is not None and 0.1 < made.seen.mean() < 0.9
    assert abs(np.corrcoef(made.y, np.abs(labels.y))[0, 1]) < 0.1


def test_shuffled_labels_permute_each_split_and_nothing_else() -> None:
    made = [ShuffledLabelsControl().apply(LABELS, draw=draw, seed=seed) for draw, seed in ((0, 0), (1, 0), (0, 1))]
    for one in made:
        for split in ("train", "dev", "test"):
            rows = LABELS.rows(split)
            assert sorted(one.y[rows]) == sorted(LABELS.y[rows])
    share = np.bincount(LABELS.y) / 1000
    ys = [LABELS.y, *(one.y for one in made)]
    chance = pytest.approx((share**2).sum(), abs=0.08)
    assert all(agreement(ys[i], ys[j]) == chance for i in range(4) for j in range(i))
    assert made[1].control == "shuffled_labels#1" and made[1].ceiling is None and made[1].seen is None
    assert not ShuffledLabelsControl.is_selectivity
    assert WordTypeControl.is_selectivity and KeyedControl.is_selectivity


class Permuting(Control):
    """Permutes labels within each split, as a whole or within rows of one lemma, and says from where or forgets to."""

    def __init__(self, key: str, forgets: bool) -> None:
        self.key, self.forgets = key, forgets

    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        strata = labels.split if not self.key else np.char.add(labels.split, labels.keys[self.key].astype(str))
        order = np.arange(len(labels))
        for stratum in np.unique(strata):
            rows = np.flatnonzero(strata == stratum)
            order[rows] = np.random.default_rng([seed, draw, *rows[:1]]).permutation(rows)
        return replace(labels, y=labels.y[order]) if self.forgets else labels.permuted(order)


def rows_of_every_kind() -> dict[str, Labels]:
    """Words, words with numbers, words with sets of labels, and sentences, in clusters of five rows."""
    words, texts = word_labels(), [f"s{i % 300}" for i in range(1000)]
    several = np.random.default_rng(4).integers(0, 2, (1000, 4))
    sentences = replace(labels_of(words.y, SPLIT.tolist(), classes=tuple("ABCD"), keys={"text": texts, "lemma": texts}))
    found = {"words": words, "numbers": word_labels(kind="real"), "sentences": sentences}
    found["sets"] = replace(words, kind="labels", y=several)
    return {name: replace(labels, groups=np.arange(1000) // 5) for name, labels in found.items()}


def label_controls() -> list[Control]:
    """Every registered control that changes labels; one that needs a key has the lemma."""
    members = [registry.get("controls", name).MEMBER for name in registry.names("controls")]
    own = [member for member in members if issubclass(member, Control) and "pair" not in member.levels]
    return [member(key="lemma") if "key" in signature(member).parameters else member() for member in own]


@pytest.mark.parametrize("kind", ["words", "numbers", "sets", "sentences"])
def test_a_control_that_permutes_labels_says_which_clusters_they_come_from(kind: str) -> None:
    labels = rows_of_every_kind()[kind]
    fit = [one for one in label_controls() if kind != "sentences" or "sentence" in one.levels]
    assert any(isinstance(one, ShuffledLabelsControl) for one in fit)
    for control in (*fit, Permuting("", False), Permuting("lemma", False)):
        draws = [control.apply(labels, draw=draw, seed=0) for draw in range(2)]
        assert not lacks_origin(labels, draws), (
            f"{control} permutes labels and returns no origin: end its `apply` in `return labels.permuted(order)`"
        )
        for one in draws:
            if one.origin is not None:  # a label of this value occurs in the cluster that is named
                there = {(o, *np.ravel(v)) for o, v in zip(labels.groups.tolist(), labels.y.tolist(), strict=True)}
                assert {(o, *np.ravel(v)) for o, v in zip(one.origin.tolist(), one.y.tolist(), strict=True)} <= there
    for key in ("", "lemma"):
        with pytest.warns(DoubtfulData, match=r"Permuting seems to permute.*labels\.permuted"):
            assert _drawn(Permuting(key, True), labels, 0).draws[0].origin is None


def test_permuted_labels_name_their_clusters_also_when_permuted_twice_and_alternatives_are_refused() -> None:
    labels = replace(LABELS, groups=np.arange(1000) // 5)
    first, second = np.random.default_rng(0).permutation(1000), np.random.default_rng(1).permutation(1000)
    twice = labels.permuted(first).permuted(second)
    assert (twice.y == labels.y[first[second]]).all() and (twice.origin == labels.groups[first[second]]).all()
    with pytest.raises(DegenerateDesign, match="alternatives cannot be permuted"):
        replace(labels, choice=np.arange(1000)).permuted(first)


@pytest.mark.parametrize("control", CONTROLS)
def test_only_the_labels_change_and_those_given_are_not_touched(control: Any) -> None:
    before = LABELS.y.copy()
    made = control.apply(LABELS, draw=0, seed=0)
    assert (LABELS.y == before).all() and not (made.y == before).all()
    changed = {f.name for f in fields(Labels) if getattr(made, f.name) is not getattr(LABELS, f.name)}
    assert {"y", "control"} <= changed <= {"y", "control", "seen", "ceiling", "origin"}


@pytest.mark.parametrize("control", CONTROLS)
def test_one_label_in_train_is_refused(control: Any) -> None:
    y = np.where(LABELS.split == "train", 0, LABELS.y)
    with pytest.raises(DegenerateDesign, match="fewer than two distinct labels in train"):
        control.apply(replace(LABELS, y=y), draw=0, seed=0)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_key_that_leaves_a_split_one_real_value_is_refused_and_one_class_only_in_train(split: str) -> None:
    names = np.where(split == SPLIT, "same" if split == "train" else "k0", [f"k{i % 20}" for i in range(1000)]).tolist()
    real = labels_of(np.arange(1000.0), SPLIT.tolist(), kind="real", keys={"text": names})
    with pytest.raises(DegenerateDesign, match=f"distinct labels in {split}"):
        KeyedControl().apply(real, draw=0, seed=0)
    classes = labels_of([0, 1] * 500, SPLIT.tolist(), keys={"text": names})
    if split == "train":
        with pytest.raises(DegenerateDesign, match="distinct labels in train"):
            KeyedControl().apply(classes, draw=0, seed=0)
    else:
        assert len(set(KeyedControl().apply(classes, draw=0, seed=0).y[split == SPLIT])) == 1


def test_rows_without_words_or_keys_and_unknown_keys_are_refused_with_a_way_out() -> None:
    sentences = labels_of([0, 1], ["train"] * 2, keys={"text": ["a", "b"]})
    with pytest.raises(DegenerateDesign, match=r"(?s)text.*keyed:key=COLUMN"):
        WordTypeControl().apply(sentences, draw=0, seed=0)
    with pytest.raises(DegenerateDesign, match="needs a key"):
        KeyedControl().apply(labels_of([0, 1], ["train"] * 2), draw=0, seed=0)
    with pytest.raises(UnknownName, match="did you mean 'lemma'"):
        KeyedControl(key="lema").apply(LABELS, draw=0, seed=0)


@pytest.mark.parametrize("draws", [0, -1, True, 2.0, "3"])
@pytest.mark.parametrize("control", [WordTypeControl, KeyedControl, ShuffledLabelsControl])
def test_draws_must_be_a_positive_whole_number(control: Any, draws: Any) -> None:
    with pytest.raises(BadParameter, match="draws"):
        control(draws=draws)


def test_a_key_that_is_the_label_or_never_recurs_is_refused_and_not_offered() -> None:
    split = ["train"] * 40 + ["test"] * 40
    label = [0, 1] * 40
    keys = {
        "text": [f"s{i}" for i in range(80)],
        "tense": ["past", "present"] * 40,
        "subject": [f"n{i % 7}" for i in range(80)],
    }
    labels = labels_of(label, split, classes=("past", "present"), keys=keys)
    with pytest.raises(DegenerateDesign, match=r"(?s)'text' hardly recurs.*found: 0%.*one of: subject$"):
        KeyedControl().apply(labels, draw=0, seed=0)
    with pytest.raises(DegenerateDesign, match=r"(?s)'tense' says the same as the label.*one of: subject$"):
        KeyedControl(key="tense").apply(labels, draw=0, seed=0)
    with pytest.raises(UnknownName, match="needed: one of: subject\n"):
        KeyedControl(key="template").apply(labels, draw=0, seed=0)
    assert KeyedControl(key="subject").apply(labels, draw=0, seed=0).ceiling == 1.0
    assert "tense" in usable_keys(replace(labels, y=np.array([*label[:-1], 0])))  # one row apart: no longer the label


def test_the_ceiling_is_what_memory_of_train_reaches_on_average_and_luck_can_exceed_it() -> None:
    labels = word_labels(types=900)
    test, train = labels.rows("test"), labels.rows("train")
    reached, ceilings = [], []
    for draw in range(200):
        made = WordTypeControl().apply(labels, draw=draw, seed=0)
        guess = np.bincount(labels.y[train]).argmax()
        assert made.seen is not None and made.ceiling is not None
        reached.append(np.where(made.seen[test], True, made.y[test] == guess).mean())
        ceilings.append(made.ceiling)
    assert np.mean(reached) == pytest.approx(np.mean(ceilings), abs=0.01)
    assert max(reached) > ceilings[0] > min(reached)


class Wrong(Control):
    """Returns no labels, too few, or is drawn not once."""

    def __init__(self, how: str) -> None:
        self.how, self.draws = how, 0 if how == "never" else 2

    def apply(self, labels: Labels, *, draw: int, seed: int) -> Any:
        return {"none": None, "short": replace(labels, y=labels.y[:5])}[self.how]


@pytest.mark.parametrize("how", ["none", "short", "never"])
def test_a_control_that_gives_no_labels_of_the_rows_is_refused_by_name(how: str) -> None:
    with pytest.raises(BadParameter, match="Wrong"):
        _drawn(Wrong(how), word_labels(), 0)
