"""Laws of the tasks, controls, measures and probes of trees, on trees that are planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.stats import spearmanr

from probing.contracts.measure import Prediction
from probing.controls.edge import EdgeControl
from probing.controls.shuffled_labels import ShuffledLabelsControl
from probing.errors import BadParameter, CorpusError, DegenerateDesign
from probing.labels import Labels, Pairs
from probing.measures.distance_spearman import DistanceSpearman
from probing.measures.log_loss import LogLoss
from probing.measures.uas import UAS
from probing.measures.uuas import UUAS, spanning_tree
from probing.probes.bilinear import BilinearProbe
from probing.probes.linear import LinearProbe
from probing.probes.structural import StructuralProbe
from probing.tasks._columns import path_lengths
from probing.text.corpus import SPLITS, Corpus
from probing.training import train
from probing.training.results import NO_SITE
from probing.training.states import rows_read
from tests.conftest import some
from tests.samples.tree_samples import SIZES, WORDS, edge_vectors, store_of, tree_corpus, tree_states
from tests.tasks.test_places import labelled

CORPUS = tree_corpus()
HEAD, DISTANCE = labelled("head"), labelled("tree_distance")


def test_path_lengths_are_those_of_a_search_and_infinite_between_trees() -> None:
    example = CORPUS.examples[3]
    vectors = edge_vectors(example.word_columns["head"])
    np.testing.assert_array_equal(path_lengths(example), ((vectors[:, None] - vectors[None]) ** 2).sum(-1))
    parted = replace(example, word_columns={"head": (0, 1, None, 3, 2, 0, 6, None)})
    found = path_lengths(parted)
    assert found[0, 4] == 2 and found[2, 3] == 1 and found[5, 6] == 1
    assert np.isinf(found[[0, 0, 0, 7], [2, 5, 7, 6]]).all()


def test_distances_are_of_every_two_words_once_and_words_without_a_way_have_none() -> None:
    n_sentences = sum(SIZES.values())
    assert len(DISTANCE) == n_sentences * WORDS * (WORDS - 1) // 2 and (DISTANCE.word < DISTANCE.other_word).all()
    e, a, b = DISTANCE.example[999], DISTANCE.word[999], DISTANCE.other_word[999]
    assert DISTANCE.y[999] == path_lengths(CORPUS.examples[e])[a, b]
    parted = replace(CORPUS.examples[0], word_columns={"head": (0, 1, 0, 3, 3, 3, 3, 3)})
    less = labelled("tree_distance", Corpus((parted, *CORPUS.examples[1:])))
    assert less.excluded == {"no label": 12}
    with pytest.raises(CorpusError, match="circle"):
        bad = replace(parted, word_columns={"head": (2, 1, 0, 3, 3, 3, 3, 3)})
        labelled("tree_distance", Corpus((bad, *CORPUS.examples[1:])))
    with pytest.raises(BadParameter, match="difference"):
        labelled("tree_distance:sum")


def test_every_word_but_the_root_chooses_among_all_words_and_has_one_head() -> None:
    n_sentences = sum(SIZES.values())
    assert len(HEAD) == n_sentences * (WORDS - 1) * WORDS and len(np.unique(HEAD.choice)) == n_sentences * (WORDS - 1)
    right = HEAD.take(np.flatnonzero(HEAD.y == 1))
    heads = np.array([e.word_columns["head"] for e in CORPUS.examples])
    np.testing.assert_array_equal(heads[right.example, right.word] - 1, right.other_word)
    assert HEAD.classes == ("no", "yes")


def test_pairs_without_edge_are_as_many_as_far_apart_and_the_same_in_every_corpus() -> None:
    edge = labelled("dependency_edge")
    is_edge = np.array(
        [
            path_lengths(CORPUS.examples[e])[a, b] == 1
            for e, a, b in zip(edge.example, edge.word, edge.other_word, strict=True)
        ]
    )
    np.testing.assert_array_equal(is_edge, np.array(edge.classes)[edge.y] == "edge")
    assert is_edge.mean() == 0.5 and (edge.word < edge.other_word).all()
    assert len({*zip(edge.example, edge.word, edge.other_word, strict=True)}) == len(edge)
    apart = edge.other_word - edge.word
    assert abs(apart[is_edge].mean() - apart[~is_edge].mean()) < 0.5
    # sentences of eight words: seven edges use up many distances; short edges still find a partner as short
    short = np.bincount(apart[~is_edge], minlength=WORDS)[1] / np.bincount(apart[is_edge], minlength=WORDS)[1]
    assert short > 0.95
    backwards = Corpus(CORPUS.examples[::-1])
    other = labelled("dependency_edge", backwards)
    last = len(CORPUS) - 1
    assert {*zip(edge.example, edge.word, edge.other_word, strict=True)} == {
        *zip(last - other.example, other.word, other.other_word, strict=True)
    }


def test_equal_types_have_equal_rules_in_the_edge_control_and_each_word_one_head() -> None:
    made = EdgeControl(draws=1).apply(HEAD, draw=0, seed=0)
    right = made.take(np.flatnonzero(made.y == 1))
    assert len(right) == len(np.unique(HEAD.choice)) and made.control == "edge#0"
    rules: dict[int, set[str]] = {}
    for a, b, form in zip(right.word, right.other_word, right.keys["first"], strict=True):
        fits = {name for name, place in (("self", a), ("first", 0), ("last", WORDS - 1)) if b == place}
        assert fits
        rules[int(form)] = rules.get(int(form), fits) & fits
    assert all(rules.values())  # one rule explains every occurrence of a type
    assert len({min(rule) for rule in rules.values() if len(rule) == 1}) == 3
    order = np.random.default_rng(0).permutation(len(HEAD))
    np.testing.assert_array_equal(EdgeControl().apply(HEAD.take(order), draw=0, seed=0).y, made.y[order])
    assert (EdgeControl().apply(HEAD, draw=1, seed=0).y != made.y).any()
    assert made.ceiling == 1.0 and made.seen is not None and made.seen.all()
    with pytest.raises(DegenerateDesign, match="choose their head"):
        EdgeControl().apply(DISTANCE, draw=0, seed=0)


def test_the_ceiling_of_the_edge_control_is_what_guessing_reaches_on_types_never_met() -> None:
    test = HEAD.split == "test"
    unmet = replace(HEAD, split=np.where(HEAD.split == "train", "other", HEAD.split))
    found = EdgeControl().apply(unmet, draw=0, seed=0).ceiling
    own = np.unique(np.stack([HEAD.choice[test], HEAD.word[test]]), axis=1)[1]
    assert found == pytest.approx(np.where((own == 0) | (own == WORDS - 1), 2 / 3, 1 / 3).mean())


def test_shuffled_choices_keep_one_right_row_each() -> None:
    made = ShuffledLabelsControl().apply(HEAD, draw=0, seed=0)
    assert (np.bincount(HEAD.choice, made.y) == 1).all()
    assert (made.y[HEAD.y == 1]).mean() == pytest.approx(1 / WORDS, abs=0.03)


def predicted(labels: Labels, values: Any, logs: Any = None) -> Prediction:
    return Prediction(np.asarray(values), logs, labels)


def test_uas_is_the_share_of_choices_whose_best_row_is_right_and_ties_are_shared() -> None:
    part = HEAD.take(np.random.default_rng(0).permutation(HEAD.rows("test")))
    logs = np.log(np.random.default_rng(1).random((len(part), 2)))
    wanted = np.mean(
        [
            part.y[rows[logs[rows, 1].argmax()]]
            for c in np.unique(part.choice)
            for rows in [np.flatnonzero(part.choice == c)]
        ]
    )
    assert UAS().value(part.y, predicted(part, part.y, logs)) == pytest.approx(wanted)
    assert UAS().value(part.y, predicted(part, part.y, np.zeros_like(logs))) == pytest.approx(1 / WORDS)
    with pytest.raises(BadParameter, match="choices"):
        UAS().value(DISTANCE.y, predicted(DISTANCE, DISTANCE.y))


def test_log_loss_of_choices_is_bits_per_choice() -> None:
    part = HEAD.take(HEAD.rows("test"))
    flat = np.log(np.full((len(part), 2), 0.5))
    assert LogLoss().value(part.y, predicted(part, part.y, flat)) == pytest.approx(np.log2(WORDS))
    sure = np.log(np.where(part.y[:, None] == [0, 1], 1.0, 1e-30))
    assert LogLoss().value(part.y, predicted(part, part.y, sure)) == pytest.approx(0.0, abs=1e-9)


def test_the_spanning_tree_is_that_of_scipy_and_a_forest_where_parts_do_not_meet() -> None:
    random = np.random.default_rng(0)
    a, b = np.triu_indices(9, 1)
    length = random.random(len(a)) + 0.01
    table = np.zeros((9, 9))
    table[a, b] = length
    assert length[spanning_tree(a, b, length)].sum() == pytest.approx(minimum_spanning_tree(table).sum())
    parted = (a < 4) == (b < 4)
    assert len(spanning_tree(a[parted], b[parted], length[parted])) == 3 + 4


def test_uuas_finds_all_edges_of_true_distances_without_punctuation() -> None:
    part = DISTANCE.take(DISTANCE.rows("test"))
    assert UUAS().value(part.y, predicted(part, part.y)) == 1.0
    rows = UUAS().row_statistics(part.y, predicted(part, part.y))
    assert not rows[(part.other_word == WORDS - 1)].any()
    assert rows[:, 1].sum() == ((part.y == 1) & (part.other_word < WORDS - 1)).sum()
    whole = replace(part, punctuation=None)
    assert UUAS().row_statistics(part.y, predicted(whole, part.y))[:, 1].sum() == SIZES["test"] * (WORDS - 1)
    assert UUAS().value(part.y, predicted(part, -part.y)) < 0.2


def test_the_rank_correlation_of_distances_is_that_of_each_word_averaged() -> None:
    part = DISTANCE.take(DISTANCE.rows("test"))
    values = np.random.default_rng(0).random(len(part))
    found = []
    for e in np.unique(part.example):
        rows = np.flatnonzero(part.example == e)
        tables = np.zeros((2, WORDS, WORDS))
        for table, lengths in zip(tables, (part.y, values), strict=True):
            table[part.word[rows], part.other_word[rows]] = table[part.other_word[rows], part.word[rows]] = lengths[
                rows
            ]
        others = ~np.eye(WORDS, dtype=bool)
        found.append(
            [
                spearmanr(tables[0, w, others[w]], tables[1, w, others[w]]).statistic
                for w in range(WORDS)
                if np.ptp(tables[0, w, others[w]]) > 0
            ]
        )
    wanted = np.mean([np.sum(one) / WORDS for one in found])
    assert DistanceSpearman().value(part.y, predicted(part, values)) == pytest.approx(wanted)
    assert DistanceSpearman().value(part.y, predicted(part, part.y)) > 0.98


@pytest.mark.parametrize("measure", [UAS(), LogLoss(), UUAS(), DistanceSpearman()], ids=lambda one: type(one).__name__)
def test_a_resample_of_sentences_scores_what_those_sentences_alone_would(measure: Any) -> None:
    labels = HEAD if "classes" in measure.kinds else DISTANCE
    part = labels.take(labels.rows("test"))
    random = np.random.default_rng(0)
    logs = np.log(random.dirichlet([1, 1], len(part))) if labels is HEAD else None
    said = predicted(part, random.random(len(part)), logs)
    sentences, groups = np.unique(part.groups, return_inverse=True)
    weights = random.integers(0, 2, (5, len(sentences))).astype(float)
    rows = [np.flatnonzero(weight[groups]) for weight in weights]
    alone = [measure.value(part.y[r], said.take(r)) for r in rows]
    assert measure.resampled(part.y, said, groups, weights) == pytest.approx(alone)
    assert np.std(alone) > 0.001


@pytest.mark.slow
def test_states_that_hold_a_tree_give_it_to_the_structural_probe_and_noise_gives_no_more_than_word_order() -> None:
    found = {}
    for name, states in (("tree", tree_states(CORPUS, noise=0.05)), ("noise", None)):
        noise = np.random.default_rng(5).standard_normal((len(CORPUS) * WORDS, 12))
        results = train(
            store_of(CORPUS, noise if states is None else states),
            CORPUS,
            task="tree_distance",
            probes=["structural:rank=8,learning_rate=0.01"],
            controls=[],
            progress=False,
        )
        found[name] = results.best().measure("uuas").score
        order = next(r for r in results if r.probe == "linear_order").measure("uuas").score
        assert results.best().measures[0].measure == "uuas"
    assert found["tree"].value > 0.95 > 0.5 > order.value
    assert abs(found["noise"].value - order.value) < 0.1


def test_states_that_hold_a_depth_give_it_to_the_structural_probe_as_one_word() -> None:
    results = train(
        store_of(CORPUS, tree_states(CORPUS, noise=0.02)),
        CORPUS,
        task="tree_depth",
        probes=["structural:rank=8,learning_rate=0.01"],
        controls=[],
        progress=False,
    )
    scores = {r.probe.partition(":")[0]: r.measure("r2").score.value for r in results if r.site != NO_SITE}
    assert scores["structural"] > 0.75


def head_states(corpus: Corpus, width: int = 6) -> np.ndarray[Any, Any]:
    """Each word's own random vector beside that of its head."""
    own = np.random.default_rng(2).standard_normal((len(corpus), WORDS, width))
    heads = np.array([e.word_columns["head"] for e in corpus.examples])
    of_head = np.take_along_axis(own, np.maximum(heads - 1, 0)[:, :, None], axis=1)
    return np.concatenate([own, of_head], axis=2).reshape(-1, 2 * width)


def test_states_that_name_their_head_give_it_to_the_bilinear_probe_with_selectivity() -> None:
    results = train(
        store_of(CORPUS, head_states(CORPUS)),
        CORPUS,
        task="head",
        controls=["edge:draws=1"],
        probes=["bilinear:rank=8,learning_rate=0.01"],
        progress=False,
    )
    uas = results.best().measure("uas")
    assert uas.score.value > 0.75 and uas.comparisons[0].selectivity.low > 0.2 and uas.comparisons[0].ceiling == 1.0
    assert {gain.baseline for gain in uas.gains} == {"prior", "word_type", "linear_order"}
    assert all(gain.gain.low > 0.3 for gain in uas.gains)
    assert next(r for r in results if r.probe == "prior").measure("uas").score.value == pytest.approx(1 / WORDS)


def planted_form(n: int, seed: int) -> tuple[Pairs, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    table = random.standard_normal((n, 5)).astype(np.float32)
    index = random.integers(0, n, (4 * n, 2))
    form = np.random.default_rng(9).standard_normal((5, 5))
    y = (np.einsum("nd,de,ne->n", table[index[:, 0]], form, table[index[:, 1]]) > 0).astype(np.int64)
    return Pairs(table, index, np.arange(4 * n) // 4), y


@pytest.mark.parametrize("rank", [5, None])
def test_a_planted_form_is_found_by_bilinear_where_linear_is_at_chance(rank: int | None) -> None:
    X, y = planted_form(500, 0)
    X_test, y_test = planted_form(300, 1)
    probe = BilinearProbe(rank=rank, learning_rate=1e-2).fit(X, y)
    assert (probe.predict(X_test) == y_test).mean() > 0.93
    assert abs((LinearProbe().fit(X, y).predict(X_test) == y_test).mean() - 0.5) < 0.06


def test_pairs_laid_out_and_factored_give_the_same_predictions() -> None:
    X, y = planted_form(200, 0)
    three = np.where(np.arange(len(y)) % 3 == 0, 2, y)
    for target in (y, three):
        probe = BilinearProbe(rank=3, max_epochs=3).fit(X, target)
        np.testing.assert_allclose(probe.predict_log_proba(X), probe.predict_log_proba(np.asarray(X)), rtol=1e-12)
    distance = StructuralProbe(rank=3, max_epochs=3).fit(X, y)
    np.testing.assert_allclose(distance.predict(X), distance.predict(np.asarray(X)), rtol=1e-12)
    with pytest.raises(ValueError, match="features"):
        distance.predict(Pairs(X.table[:, :4], X.index, X.group))


def test_probabilities_of_alternatives_sum_to_one_within_a_choice_and_need_one_right_row() -> None:
    store = store_of(CORPUS, head_states(CORPUS))
    X, y = rows_read(store, "resid.0", HEAD, "train"), HEAD.y[HEAD.rows("train")]
    probe = BilinearProbe(rank=4, max_epochs=2).fit(X, y)
    proba = probe.predict_proba(X)
    _, choice = np.unique(X.choice, return_inverse=True)
    np.testing.assert_allclose(np.bincount(choice, proba[:, 1]), 1.0)
    np.testing.assert_allclose(proba.sum(1), 1.0)
    with pytest.raises(DegenerateDesign, match="exactly one right"):
        probe.fit(X, np.where(np.arange(len(y)) == np.flatnonzero(y)[0], 0, y))


@pytest.mark.parametrize("kind", some([StructuralProbe, BilinearProbe], 1))
def test_probes_of_pairs_repeat_exactly_by_seed_keep_their_best_epoch_and_refuse_bad_options(kind: Any) -> None:
    X, y = planted_form(200, 0)
    one, again, other = (kind(rank=3, max_epochs=4, random_state=s).fit(X, y).predict(X) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    scores = [kind(rank=3, max_epochs=4, random_state=s).fit(X, y).dev_losses_ for s in (1, 2)]
    assert scores[0] != scores[1] or not np.array_equal(one, other)
    probe = kind(rank=3, max_epochs=30, learning_rate=0.1, patience=2).fit(X, y)
    assert probe.best_epoch_ == 1 + int(np.argmin(probe.dev_losses_)) and probe.converged_
    for options in ({"rank": 0}, {"patience": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(BadParameter):
            kind(**options).fit(X, y)
    with pytest.raises(BadParameter, match="not combined"):
        kind().fit(replace(X, row_form="product"), y)


def test_states_of_each_split_hold_only_its_own_words() -> None:
    store = store_of(CORPUS, head_states(CORPUS))
    sizes = {split: len(rows_read(store, "resid.0", HEAD, split).table) for split in SPLITS}
    assert sizes == {split: count * WORDS for split, count in SIZES.items()}
