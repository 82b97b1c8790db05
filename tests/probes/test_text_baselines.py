"""What the text alone tells: baselines of sentence tasks, and where training puts them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from probing.errors import BadParameter
from probing.probes.bag_of_words import BagOfWordsProbe, BagOfWordsRegressorProbe
from probing.probes.character_ngrams import CharacterNgramsProbe
from probing.probes.text_length import TextLengthProbe, TextLengthRegressorProbe
from probing.probes.tfidf import TfidfProbe, TfidfRegressorProbe
from probing.text.corpus import Corpus, Example
from probing.training import train
from tests.samples.training_samples import SPLIT_SIZES, MemoryStore, word_corpus, word_store

TEXTS = ("text_length", "bag_of_words", "tfidf", "character_ngrams", "nearest_text")
FILLERS = [f"w{i}" for i in range(30)]


def sentences(n, seed=0, *, told_by):
    """Texts of random words whose label is told by a word, by the length, or by the order of two words."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    texts = []
    for label in y:
        words = list(rng.choice(FILLERS, 6 + (4 * label if told_by == "length" else 0)))
        if told_by == "word":
            words.insert(rng.integers(6), "now" if label else "then")
        if told_by == "order":
            words[2:2] = ["now", "then"] if label else ["then", "now"]
        texts.append(" ".join(words))
    return np.array(texts, dtype=object)[:, None], y


def scores(told_by):
    X, y = sentences(400, told_by=told_by)
    X_test, y_test = sentences(400, seed=1, told_by=told_by)
    return {kind: kind().fit(X, y).score(X_test, y_test) for kind in (TextLengthProbe, BagOfWordsProbe, TfidfProbe)}


def test_a_telling_word_is_read_by_words_and_not_by_length():
    found = scores("word")
    assert found[BagOfWordsProbe] > 0.98 and found[TfidfProbe] > 0.98 and found[TextLengthProbe] < 0.65


def test_length_is_read_by_length_and_by_counts():
    found = scores("length")
    assert found[TextLengthProbe] > 0.98 and found[BagOfWordsProbe] > 0.9


def test_order_is_read_by_none_of_them_but_by_pairs_of_words():
    assert max(scores("order").values()) < 0.65
    X, y = sentences(400, told_by="order")
    X_test, y_test = sentences(400, seed=1, told_by="order")
    assert BagOfWordsProbe(ngrams=2).fit(X, y).score(X_test, y_test) > 0.98


def test_tfidf_is_scikit_learns_on_the_same_words():
    X, y = sentences(200, told_by="word")
    flat = X[:, 0].tolist()
    vectors = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]").fit(flat)
    oracle = LogisticRegression(C=10.0, tol=1e-6, max_iter=1000).fit(vectors.transform(flat), y)
    np.testing.assert_allclose(
        TfidfProbe().fit(X, y).predict_proba(X), oracle.predict_proba(vectors.transform(flat)), atol=0.01
    )
    ridge = Ridge(alpha=0.1).fit(vectors.transform(flat).toarray(), y)
    found = TfidfRegressorProbe().fit(X, y).predict(X)
    np.testing.assert_allclose(found, ridge.predict(vectors.transform(flat).toarray()), atol=1e-3)


def test_words_are_unicode_letters_in_any_case_and_signs_count():
    X = np.array(["Straße?", "straße.", "Ünï!", "ünï."] * 10, dtype=object)
    assert BagOfWordsProbe().fit(X, [0, 0, 1, 1] * 10).score(X, [0, 0, 1, 1] * 10) == 1.0
    signs = BagOfWordsProbe().fit(X, [1, 0, 1, 0] * 10)
    assert signs.score(X, [1, 0, 1, 0] * 10) == 1.0 and {"?", ".", "!", "straße"} <= set(signs.words_)


def test_only_the_commonest_words_are_known_and_unknown_words_count_for_nothing():
    X, y = sentences(300, told_by="word")
    probe = BagOfWordsProbe(most_words=5).fit(X, y)
    assert len(probe.words_) == 5
    np.testing.assert_allclose(
        probe.predict_proba(np.array([["zzz qqq"]], object)), probe.predict_proba(np.array([[""]], object))
    )
    assert np.isfinite(BagOfWordsProbe().fit(np.array([[" "], [""]] * 4, object), [0, 1] * 4).coef_).all()


def test_real_targets_are_read_off_length():
    X, _ = sentences(300, told_by="length")
    y = np.array([len(text) for text in X[:, 0]]) * 3.0
    assert TextLengthRegressorProbe(l2=1e-3).fit(X, y).score(X, y) > 0.999
    assert BagOfWordsRegressorProbe().fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize("kind", [TextLengthProbe, BagOfWordsProbe, TfidfProbe, CharacterNgramsProbe])
def test_many_label_sets_share_the_features_and_give_the_same_fits(kind):
    X, y = sentences(200, told_by="word")
    fits = kind().fit_many(X, [y, 1 - y, np.arange(200) % 3], [0, 1])
    assert [len(row) for row in fits] == [2, 2, 2]
    dev, sets = sentences(60, seed=1, told_by="word"), [y, np.arange(200) % 3]
    held = dev[0], [dev[1], np.arange(60) % 3]
    for (together,), labels, of_dev in zip(kind().fit_many(X, sets, [0], dev=held), sets, held[1], strict=True):
        by_itself = kind().fit(X, labels, dev=(dev[0], of_dev))
        assert together.l2_ == by_itself.l2_
        np.testing.assert_array_equal(together.coef_, by_itself.coef_)
    alone = kind().fit(X, np.arange(200) % 3).predict_proba(X)
    np.testing.assert_allclose(fits[2][1].predict_proba(X), alone, atol=2e-3)
    np.testing.assert_allclose(fits[0][0].predict_proba(X), fits[1][0].predict_proba(X)[:, ::-1], atol=2e-3)


def worded(n, seed, *, words, rare=1.0):
    """Texts of four fillers and one of `words`, each of which has a number and a class of its own; `rare`: how much
    less often the last word occurs than the first.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.choice(words, n, p=(share := np.geomspace(1.0, rare, words)) / share.sum())
    texts = [" ".join([*rng.choice(FILLERS, 4), f"own{word}"]) for word in chosen]
    return np.array(texts, dtype=object)[:, None], np.random.default_rng(7).normal(size=words)[chosen], chosen % 3


@pytest.mark.parametrize("kind", [BagOfWordsRegressorProbe, TfidfRegressorProbe])
@pytest.mark.parametrize("words", [3, 8, 40])
def test_a_number_that_one_word_fixes_is_read_by_the_penalty_chosen_on_dev(kind, words):
    (X, y, _), (X_dev, y_dev, _), (X_test, y_test, _) = (
        worded(n, i, words=words) for i, n in enumerate((400, 80, 400))
    )
    chosen, fixed = kind().fit(X, y, dev=(X_dev, y_dev)), kind(l2=1.0).fit(X, y, dev=(X_dev, y_dev))
    assert chosen.l2_ < 0.2 and fixed.l2_ == 1.0
    assert chosen.score(X_test, y_test) > (0.9999 if kind is BagOfWordsRegressorProbe else 0.98)
    assert chosen.score(X_test, y_test) > fixed.score(X_test, y_test)


@pytest.mark.parametrize("kind", [BagOfWordsProbe, TfidfProbe])
@pytest.mark.parametrize(("words", "rare"), [(3, 1.0), (12, 0.05), (40, 1.0)])
def test_a_class_that_one_word_gives_away_is_read_without_mistake_and_surely(kind, words, rare):
    (X, _, y), (X_dev, _, y_dev), (X_test, _, y_test) = (
        worded(n, i, words=words, rare=rare) for i, n in enumerate((600, 120, 600))
    )
    fit = kind().fit(X, y, dev=(X_dev, y_dev))
    bits = -np.log2(fit.predict_proba(X_test)[np.arange(len(y_test)), y_test])
    assert fit.score(X_test, y_test) > 0.99 and bits.mean() < 0.05


def test_labels_that_the_words_do_not_tell_get_the_largest_penalty_and_few_rows_the_default():
    X, y = sentences(300, told_by="order")
    X_dev, y_dev = sentences(100, seed=1, told_by="order")
    assert BagOfWordsProbe().fit(X, y, dev=(X_dev, y_dev)).l2_ == 10.0
    for dev in (None, (X_dev[:9], y_dev[:9]), (X, y)):  # the last: texts of train tell nothing
        assert BagOfWordsProbe().fit(X, y, dev=dev).l2_ == 1.0 and TfidfProbe().fit(X, y, dev=dev).l2_ == 0.1
    random = np.random.default_rng(0)
    noise = BagOfWordsRegressorProbe().fit(X, random.normal(size=300), dev=(X_dev, random.normal(size=100)))
    assert noise.l2_ == 10.0


def test_bad_options_and_numbers_after_texts_are_refused():
    X, y = sentences(50, told_by="word")
    for probe in (
        TextLengthProbe(l2=0.0),
        BagOfWordsProbe(most_words=0),
        TfidfProbe(ngrams=0),
        CharacterNgramsProbe(longest=0),
    ):
        with pytest.raises(BadParameter):
            probe.fit(X, y)
    with pytest.raises(ValueError, match="fitted on texts"):
        BagOfWordsProbe().fit(X, y).predict(np.zeros((2, 1)))


def sentence_study(told_by, *, real=False):
    """A corpus of labelled texts, and states that carry the label in full."""
    examples, states = [], []
    for seed, (split, count) in enumerate(SPLIT_SIZES.items()):
        X, y = sentences(count, seed=seed + 5, told_by=told_by)
        for i, (text, label) in enumerate(zip(X[:, 0], y.tolist(), strict=True)):
            words = tuple(match.span() for match in re.finditer(r"\S+", text))
            columns = {"mood": len(text) + 0.5 if real else f"m{label}"}
            examples.append(Example(id=f"{split}-{i}", text=text, words=words, columns=columns, split=split))
            states.append([len(text) + 0.5 if real else 4.0 * label, 1.0])
    corpus = Corpus(tuple(examples))
    rows = SimpleNamespace(example=np.arange(len(examples)), word=np.full(len(examples), -1))
    return MemoryStore(corpus, {"resid.0": np.array(states, np.float32)}, rows, "sentence:mean"), corpus


def gains(results, measure):
    (linear,) = [result for result in results if result.site == "resid.0"]
    (found,) = [one for one in linear.measures if one.measure == measure and one.split == "test"]
    return {gain.baseline: gain.gain.value for gain in found.gains}


def test_sentence_tasks_are_compared_with_every_text_baseline():
    results = train(*sentence_study("word"), task="column:mood", controls=[], progress=False)
    assert {result.probe for result in results if result.site == "(none)"} == {"prior", *TEXTS}
    found = gains(results, "accuracy")
    assert found["bag_of_words"] == pytest.approx(0, abs=0.05) and found["text_length"] > 0.2
    order = gains(train(*sentence_study("order"), task="column:mood", controls=[], progress=False), "accuracy")
    assert min(order.values()) > 0.2


def test_real_sentence_tasks_are_compared_with_the_regression_forms(tmp_path):
    results = train(*sentence_study("length", real=True), task="column:mood", controls=[], to=tmp_path, progress=False)
    assert set(gains(results, "r2")) == {"prior", *TEXTS}
    assert gains(results, "r2")["text_length"] < 0.1
    again = train(*sentence_study("length", real=True), task="column:mood", controls=[], to=tmp_path, progress=False)
    assert list(again) == list(results)


def test_word_tasks_have_no_text_baselines_and_cannot_be_given_one():
    corpus = word_corpus()
    store = word_store(corpus, lambda form, tag: np.ones(2))
    results = train(store, corpus, task="upos", controls=[], progress=False)
    assert {result.probe for result in results if result.site == "(none)"} == {"prior", "word_type"}
    with pytest.raises(BadParameter, match="reads the text"):
        train(store, corpus, task="upos", probes=["bag_of_words"], controls=[], progress=False)
