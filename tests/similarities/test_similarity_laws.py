"""Similarity meets planted truths and independent formulas: copies, noise, dense kernels, intervals that cover."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.neighbors import NearestNeighbors

from probing import similarities
from probing.errors import (
    BadParameter,
    CannotReachFile,
    DegenerateDesign,
    NonFiniteStates,
    ProvenanceMismatch,
    UnknownSite,
)
from probing.reporting.similarity_words import disagreements, doubts
from probing.results.similarity import CKA, NEIGHBOURS, PROCRUSTES, TRANSFER, SimilarityResult, SimilarityResults
from probing.similarities import similarity, sums
from probing.similarities.rows import shared_rows
from probing.text.corpus import Corpus, Example
from tests.samples.counting import at_most
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_rows, word_store

Floats = NDArray[np.float64]


def sentences(count: int, words: int) -> Corpus:
    """Sentences of equal length, all in train."""
    text = " ".join("w" * words)
    spans = tuple((2 * i, 2 * i + 1) for i in range(words))
    return Corpus(tuple(Example(id=str(n), text=text, words=spans, split="train") for n in range(count)))


def store_of(corpus: Corpus, states: dict[str, Any], name: str, **rows: Any) -> MemoryStore:
    table = word_rows(corpus)
    if rows:
        table = SimpleNamespace(**(vars(table) | rows))
    wide = {site: np.asarray(X, np.float32) for site, X in states.items()}
    return MemoryStore(corpus, wide, table, path=name, content_id=name.ljust(64, "0"), store_id=name.ljust(64, "1"))


def stores(X: Any, Y: Any, *, words: int = 4) -> tuple[MemoryStore, MemoryStore]:
    corpus = sentences(len(X) // words, words)
    return store_of(corpus, {"resid.0": X}, "a"), store_of(corpus, {"resid.0": Y}, "b")


def one(results: SimilarityResults, measure: str, role: Any = "pair") -> SimilarityResult:
    (found,) = results.of(measure, role=role)
    return found


def compared(X: Any, Y: Any, **options: Any) -> SimilarityResults:
    return similarity(*stores(X, Y), progress=False, **{"permutations": 39} | options)


def cloud(n: int, d: int, seed: int) -> Floats:
    """Gaussian states of uneven variances, far from the origin."""
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)) * np.linspace(0.3, 2.0, d) + 20.0


def rotation(d: int, seed: int) -> Floats:
    found: Floats = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    return found


def test_a_rotated_and_scaled_copy_is_the_same() -> None:
    X = cloud(800, 16, 0)
    found = compared(X, 3.0 * (X - 7.0) @ rotation(16, 1) + 5.0)
    assert one(found, CKA).score.value == pytest.approx(1.0, abs=1e-5)
    assert one(found, PROCRUSTES).score.value == pytest.approx(1.0, abs=1e-4)
    assert one(found, NEIGHBOURS).score.value == pytest.approx(1.0, abs=1e-3)
    for result in found.of(CKA), found.of(PROCRUSTES), found.of(NEIGHBOURS):
        assert result[0].score.low > 0.95 and (result[0].null_bound or 0.0) < 0.1


def test_independent_states_are_within_their_null_and_the_biased_number_is_not_near_0() -> None:
    n, d, k = 400, 64, 10
    values, shares, within = [], [], []
    for seed in range(12):
        random = np.random.default_rng(seed)
        found = compared(*random.standard_normal((2, n, d)), root_seed=seed, neighbour_rows=n)
        cka, near = one(found, CKA), one(found, NEIGHBOURS)
        values.append(cka.score.value)
        within.append(cka.score.value <= (cka.null_bound or 0.0))
        assert cka.biased_if_unrelated == pytest.approx(d / (n + d))
        assert cka.biased == pytest.approx(d / (n + d), rel=0.05)
        shares.append(near.score.value)
        assert near.null_mean == pytest.approx(k / (n - 1), abs=0.003)
        assert one(found, PROCRUSTES).score.value < 0.0
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values)) and np.std(values) < 0.01
    assert np.mean(shares) == pytest.approx(k / (n - 1), abs=0.003)
    assert sum(within) >= 9  # 95 % of the time each


def dense_hsic(K: Floats, L: Floats) -> float:
    """Song et al. 2012, eq. 5, from whole kernels."""
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    ones = np.ones(n)
    middle = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    return float((np.trace(K @ L) + middle - 2 / (n - 2) * ones @ K @ L @ ones) / (n * (n - 3)))


@pytest.mark.parametrize("block", [37, 8192])
def test_streamed_cka_is_that_of_whole_kernels(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "block_rows", lambda widths: block)
    monkeypatch.setattr(similarities.linear, "block_rows", lambda widths: block)
    X, Y = cloud(300, 12, 1), cloud(300, 20, 2)
    Y[:, :12] += 0.7 * X
    X, Y = X.astype(np.float32).astype(float), Y.astype(np.float32).astype(float)
    K, L = X @ X.T, Y @ Y.T
    expected = dense_hsic(K, L) / np.sqrt(dense_hsic(K, K) * dense_hsic(L, L))
    found = one(compared(X, Y), CKA)
    assert found.score.value == pytest.approx(expected, abs=1e-6)
    X, Y = X - X.mean(0), Y - Y.mean(0)
    usual = np.sum((X.T @ Y) ** 2) / np.sqrt(np.sum((X.T @ X) ** 2) * np.sum((Y.T @ Y) ** 2))
    assert found.biased == pytest.approx(usual, abs=1e-6)


@pytest.mark.parametrize("widths", [(10, 10), (6, 10), (10, 6)])
def test_held_out_r2_is_that_of_procrustes_on_the_other_half(widths: tuple[int, int]) -> None:
    """With zeros for missing coordinates, so that the map is an isometry."""
    X, Y = cloud(400, widths[0], 3), cloud(400, widths[1], 4)
    Y[:, : min(widths)] += X[:, : min(widths)]
    half = shared_rows(dict(zip("ab", stores(X, Y), strict=True))).half
    wide = max(widths)
    P, Q = (np.pad(Z, ((0, 0), (0, wide - Z.shape[1]))) for Z in (X, Y))
    errors = total = 0.0
    for h in (0, 1):
        train, test = half == h, half != h
        p, q = P[train].mean(0), Q[train].mean(0)
        turn, scale = orthogonal_procrustes(P[train] - p, Q[train] - q)
        put = scale / np.sum((P[train] - p) ** 2) * (P[test] - p) @ turn + q
        errors += np.sum((Q[test] - put) ** 2)
        total += np.sum((Q[test] - q) ** 2)
    found = compared(X, Y)
    assert one(found, PROCRUSTES).score.value == pytest.approx(1 - errors / total, abs=1e-5)
    assert found.drift is not None
    assert found.drift["drift"].mean() == pytest.approx(1 - one(found, PROCRUSTES).score.value, abs=1e-5)


def test_mutual_neighbours_are_those_of_scikit_learn() -> None:
    X = cloud(240, 8, 5)
    Y = X + np.random.default_rng(6).standard_normal(X.shape)
    near = [
        NearestNeighbors(n_neighbors=6, metric="cosine").fit(Z - Z.mean(0)).kneighbors(return_distance=False)[:, :5]
        for Z in (X, Y)
    ]
    expected = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*near, strict=True)])
    found = one(compared(X, Y, neighbours=5), NEIGHBOURS)
    assert found.score.value == pytest.approx(expected, abs=1e-9) and found.score.n == 240


def covered(seed: int, clusters: int = 60, words: int = 4) -> bool:
    """Whether the interval of CKA covers that of the population, whose covariances are known."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(0).standard_normal((5, 5))
    shared = np.repeat(random.standard_normal((clusters, 5)), words, axis=0) * np.sqrt(0.5)
    X = shared + np.sqrt(0.5) * random.standard_normal(shared.shape)
    Y = X @ mix + 1.5 * random.standard_normal(X.shape)
    of_y = mix.T @ mix + 2.25 * np.eye(5)
    truth = np.sum(mix**2) / (np.sqrt(5.0) * np.linalg.norm(of_y))
    score = one(compared(X, Y, permutations=0, neighbours=1, neighbour_rows=20), CKA).score
    return bool(score.low <= truth <= score.high)


def test_intervals_cover_the_population() -> None:
    assert sum(covered(seed) for seed in range(24)) >= 20


@pytest.mark.slow
def test_intervals_cover_the_population_in_many_studies() -> None:
    missed: list[bool] = []

    def misses(seed: int) -> bool:
        missed.append(not covered(1000 + seed))
        return missed[-1]

    assert at_most(27, misses, range(300))  # 9 %
    while sum(missed) < 5 and len(missed) < 300:
        misses(len(missed))
    assert sum(missed) >= 5  # nor are they so wide that they miss in fewer than 1.5 %


def test_rows_that_are_matched_wrongly_are_within_chance() -> None:
    """The same states, of other sentences: words of a sentence are alike, so single rows are no fair permutation."""
    random = np.random.default_rng(0)
    within = []
    for seed in range(8):
        by_sentence = np.repeat(random.standard_normal((60, 6)), 8, axis=0)
        X = by_sentence + 0.3 * random.standard_normal((480, 6))
        moved = X.reshape(60, 8, 6)[random.permutation(60)].reshape(480, 6)
        corpus = sentences(60, 8)
        pair = store_of(corpus, {"resid.0": X}, "a"), store_of(corpus, {"resid.0": moved}, "b")
        cka = one(similarity(*pair, root_seed=seed, progress=False), CKA)
        within.append(cka.score.value <= (cka.null_bound or 0.0))
    assert sum(within) >= 6


def test_the_ceiling_is_of_random_halves_and_the_floor_of_the_twin() -> None:
    random = np.random.default_rng(0)
    redundant = random.standard_normal((400, 3)) @ random.standard_normal((3, 60))
    independent = random.standard_normal((400, 60))
    corpus = sentences(100, 4)
    first = store_of(corpus, {"resid.0": redundant, "resid.1": independent}, "a")
    twin = store_of(corpus, {"resid.0": independent[::-1], "resid.1": independent + 0.5 * redundant}, "t")
    found = similarity(first, first, twin=twin, pairs="same", permutations=19, progress=False)
    high, low = found.of(CKA, role="ceiling")
    assert high.score.value > 0.8 and abs(low.score.value) < 0.05 and high.width_a == 30
    floors = found.of(CKA, role="floor")
    assert floors[0].score.value < 0.05 < floors[1].score.value and floors[0].second == "untrained twin"
    assert not found.of(CKA)[0].score.value < 1 - 1e-6


def test_an_outlier_coordinate_is_told_apart_or_left_out() -> None:
    random = np.random.default_rng(0)
    X, Y = random.standard_normal((2, 400, 12))
    X[:, 5] = Y[:, 5] = 40.0 * random.standard_normal(400)
    found = compared(X, Y)
    cka = one(found, CKA)
    assert cka.score.value > 0.98 and abs(cka.without_outliers or 1.0) < 0.05
    assert (cka.outliers_a, cka.outliers_b) == (1, 1) and cka.outlier_share_a > 0.9
    assert any("Outlier coordinates change CKA" in sentence for sentence in doubts(list(found)))
    left = one(compared(X, Y, outliers="leave-out"), CKA)
    assert left.score.value == pytest.approx(cka.without_outliers, abs=1e-5) and left.width_a == 11


def test_rows_with_token_0_are_left_out_and_counted() -> None:
    X = cloud(400, 8, 0)
    Y = X + np.random.default_rng(1).standard_normal(X.shape)
    corpus = sentences(100, 4)
    start = np.tile(np.arange(4), 100)
    sunk = Y.copy()
    sunk[start == 0] += 1e4 * np.random.default_rng(2).standard_normal((100, 8))
    pair = [store_of(corpus, {"resid.0": Z}, name, piece_start=start) for Z, name in ((X, "a"), (sunk, "b"))]
    found = similarity(*pair, permutations=0, progress=False)
    assert one(found, CKA).score.n == 300 and "100 rows are left out" in found.remarks[0]
    clean = compared(X.reshape(100, 4, 8)[:, 1:].reshape(300, 8), Y.reshape(100, 4, 8)[:, 1:].reshape(300, 8))
    assert one(found, CKA).score.value == pytest.approx(one(clean, CKA).score.value, abs=1e-6)
    kept = similarity(*pair, permutations=0, first_token="keep", progress=False)
    assert one(kept, CKA).score.n == 400 and one(kept, CKA).score.value < 0.5 * one(found, CKA).score.value


def test_a_word_that_moved_is_named() -> None:
    corpus = word_corpus(seed=1)
    forms = np.array([form for example in corpus.examples for form in example.forms])
    X = cloud(len(forms), 8, 0)
    Y = X @ rotation(8, 1)
    Y[forms == "w7"] += 6.0 * np.random.default_rng(2).standard_normal((int((forms == "w7").sum()), 8))
    pair = [store_of(corpus, {"resid.0": Z}, name) for Z, name in ((X, "a"), (Y, "b"))]
    found = similarity(*pair, corpus=corpus, permutations=0, progress=False)
    moved = found.moved(3)
    assert moved["form"].iloc[0] == "w7" and moved["drift"].iloc[0] > 5 * moved["drift"].iloc[1]
    assert list(similarity(*pair, permutations=0, progress=False).moved(1).columns[3:5]) == ["example", "word"]


def planted(seed: int, turn: Floats | None = None) -> tuple[MemoryStore, Corpus]:
    corpus = word_corpus(seed=1, ambiguous=0.3)
    random = np.random.default_rng(seed)
    store = word_store(corpus, lambda form, tag: vector_of(tag, 6) + 0.3 * random.standard_normal(6))
    if turn is not None:
        store = replace(store, states={s: (4.0 * X @ turn - 2.0).astype(np.float32) for s, X in store.states.items()})
    return replace(store, path=f"s{seed}", content_id=f"{seed}" * 64), corpus


def test_a_probe_is_as_good_through_a_rotation_and_at_chance_on_noise() -> None:
    first, corpus = planted(3)
    turned, _ = planted(3, rotation(6, 1).astype(np.float64))
    random = np.random.default_rng(0).standard_normal(first.states["resid.0"].shape).astype(np.float32)
    noise = replace(first, states={"resid.0": random}, path="noise", content_id="e" * 64)
    found = similarity(first, turned, noise, corpus=corpus, task="upos", permutations=39, progress=False)
    same, other = found.of(TRANSFER)
    assert same.own_a is not None and same.own_a > 0.95
    assert same.score.value == pytest.approx(same.own_a, abs=0.003) and same.own_b == pytest.approx(
        same.own_a, abs=0.02
    )
    assert same.score.value > 0.9 > 0.5 > (same.null_bound or 1.0)
    assert other.score.value <= (other.null_bound or 0.0) + 0.02 and other.own_b is not None and other.own_b < 0.5
    assert same.task == "upos" and same.probe_measure == "accuracy" and same.baseline is not None


def test_where_cka_and_transfer_disagree_is_found() -> None:
    """The tag is a small part of states that are alike; it is gone in the second site, which CKA does not see."""
    first, corpus = planted(3)
    tags = first.states["resid.0"]
    big = 5.0 * np.random.default_rng(0).standard_normal((len(tags), 6)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((3, *tags.shape)).astype(np.float32)
    a = replace(first, states={"resid.0": np.hstack([big, tags])})
    others = {
        "resid.0": np.hstack([big, 0.3 * noise[0]]),
        "resid.1": np.hstack([big + 4.0 * noise[1], tags]),
        "resid.2": np.hstack([5.0 * noise[2], tags]),
    }
    b = replace(first, states=others, path="other", content_id="d" * 64)
    found = similarity(a, b, corpus=corpus, task="upos", permutations=0, progress=False)
    rho, pairs = disagreements(found)
    assert rho is not None and rho < 0.0
    assert (pairs[0].cka.site_b, pairs[0].cka_rank, pairs[0].transfer_rank) == ("resid.0", 1, 3)


# What is refused, before any state is read.


def test_stores_with_other_rows_are_refused_by_name() -> None:
    X = cloud(400, 4, 0)
    a, b = stores(X, X)
    other = store_of(sentences(101, 4), {"resid.0": cloud(404, 4, 0)}, "longer")
    table = word_rows(b.corpus)
    shifted = replace(b, rows=SimpleNamespace(example=table.example, word=np.where(table.word == 1, 9, table.word)))
    fewer = replace(b, rows=SimpleNamespace(example=table.example[:-1], word=table.word[:-1]))
    for bad, said in (
        (other, "another corpus"),
        (replace(b, scope="sentence:mean"), "another kind of rows"),
        (fewer, "another number of rows"),
        (shifted, "another word of 100 rows"),
    ):
        with pytest.raises(ProvenanceMismatch, match=said) as raised:
            similarity(a, bad, progress=False)
        assert f"a and {bad.path}" in str(raised.value) and "next step" in str(raised.value)
    spans = {"char_start": np.arange(400), "char_end": np.arange(400) + 1}
    tokens = replace(a, scope="piece", rows=SimpleNamespace(**(vars(table) | spans)))
    longer = replace(b, scope="piece", rows=SimpleNamespace(**(vars(table) | spans | {"char_end": np.arange(400) + 2})))
    with pytest.raises(ProvenanceMismatch, match="char end of 400 rows") as raised:
        similarity(tokens, longer, progress=False)
    assert "extract words instead" in str(raised.value)
    assert not [read for store in (a, b, other, tokens, longer) for read in store.reads]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"task": "upos"}, BadParameter, "task needs the corpus"),
        ({"resample_by": "document"}, BadParameter, "needs the corpus"),
        ({"sites": "resid.7"}, UnknownSite, "resid.7"),
        ({"neighbours": 400}, BadParameter, "not so many neighbours"),
        ({"permutations": -1}, BadParameter, "permutations is too small"),
        ({"permutations": 18}, BadParameter, "19 or more"),
        ({"permutations": 19.5}, BadParameter, "permutations is no whole number"),
        ({"permutations": "9"}, BadParameter, "permutations is no whole number"),
        ({"neighbours": 2.0}, BadParameter, "neighbours is no whole number"),
        ({"neighbour_rows": True}, BadParameter, "neighbour_rows is no whole number"),
        ({"root_seed": -1}, BadParameter, "root_seed is too small"),
        ({"sites": []}, BadParameter, "names no site"),
        ({"sites": ""}, BadParameter, "names no site"),
        ({"probe": "linear"}, BadParameter, "probe needs a task"),
        ({"outliers": "drop"}, BadParameter, "outliers"),
        ({"to": f"{__file__}/results"}, CannotReachFile, "test_similarity_laws"),
    ],
)
def test_wrong_options_are_refused_before_work(options: Any, error: Any, said: str) -> None:
    a, b = stores(*np.random.default_rng(0).standard_normal((2, 400, 4)))
    with pytest.raises(error, match=said):
        similarity(a, b, progress=False, **options)
    assert not a.reads and not b.reads


def test_what_cannot_be_compared_is_refused() -> None:
    X = cloud(400, 4, 0)
    a, b = stores(X, X)
    with pytest.raises(BadParameter, match="nothing to be compared with"):
        similarity(a, progress=False)
    for wrong in (None, 3):
        with pytest.raises(BadParameter, match="no store"):
            similarity(a, wrong, progress=False)  # type: ignore[arg-type]
    with pytest.raises(DegenerateDesign, match="too few rows"):
        similarity(*stores(X[:12], X[:12]), progress=False)
    with pytest.raises(UnknownSite, match="no site of the same name"):
        similarity(a, replace(b, states={"resid.1": b.states["resid.0"]}), pairs="same", progress=False)
    bad = X.copy()
    bad[17, 2] = np.nan
    with pytest.raises(NonFiniteStates, match="rows 17") as raised:
        similarity(*stores(X, bad), progress=False)
    assert "store b, site resid.0" in str(raised.value)


# States of unusual size, and stores of unknown origin.


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e18, 1e37])
def test_the_scale_of_states_does_not_matter(scale: float) -> None:
    X, Y = np.random.default_rng(0).standard_normal((2, 240, 6))
    plain, scaled = compared(X, X + Y), compared(X, scale * (X + Y))
    for measure in (CKA, PROCRUSTES, NEIGHBOURS):
        ours, theirs = one(plain, measure), one(scaled, measure)
        assert theirs.score.value == pytest.approx(ours.score.value, abs=1e-4)
        assert theirs.null_bound == pytest.approx(ours.null_bound, abs=1e-3)
        assert theirs.score.low <= theirs.score.value <= theirs.score.high <= 1.0


def test_states_that_do_not_vary_are_refused_by_store_and_site() -> None:
    X = np.random.default_rng(0).standard_normal((240, 6))
    spike = np.ones((240, 6))
    spike[7, 2] = 5.0
    for constant in (np.zeros((240, 6)), np.full((240, 6), 0.1), spike):
        with pytest.raises(DegenerateDesign, match="do not vary") as raised:
            compared(X, constant)
        assert "store b, site resid.0" in str(raised.value)
    half = np.hstack([X[:, :1], np.ones((240, 1))])
    assert not compared(half, X).of(CKA, role="ceiling")  # a half of the coordinates is constant


def test_a_twin_that_is_recorded_as_trained_is_refused() -> None:
    X, Y = np.random.default_rng(0).standard_normal((2, 240, 6))
    a, b = stores(X, Y)
    assert any("rests on your word" in one for one in similarity(a, b, twin=b, permutations=0, progress=False).remarks)
    for facts in ({"weights": {"parameters": "1"}}, {"weights": {"parameters": "1"}, "untrained": {"seed": 0}}):
        twin = replace(b)
        twin.__class__ = type("Recorded", (MemoryStore,), {"identity": b.identity | {"model": {"source": "m"} | facts}})
        if "untrained" in facts:
            found = similarity(a, b, twin=twin, permutations=0, progress=False)
            assert not any("rests on your word" in one for one in found.remarks)
        else:
            with pytest.raises(ProvenanceMismatch, match="made by a trained model"):
                similarity(a, b, twin=twin, permutations=0, progress=False)


def test_rows_whose_tokens_are_not_recorded_are_remarked_on() -> None:
    X, Y = np.random.default_rng(0).standard_normal((2, 240, 6))
    corpus, start = sentences(60, 4), np.tile(np.arange(4), 60)
    known = store_of(corpus, {"resid.0": X}, "a", piece_start=start)
    imported = store_of(corpus, {"resid.0": Y}, "b", piece_start=np.zeros(240, int))
    for pair, count in (((known, imported), 180), ((imported, imported), 240)):
        found = similarity(*pair, permutations=0, progress=False)
        assert one(found, CKA).score.n == count
        assert any("do not say which rows contain token 0" in said for said in found.remarks) == (count == 240)
