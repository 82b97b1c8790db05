"""Pooling pieces when they are read is pooling them at extraction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probing.errors import BadParameter
from probing.states.extraction import extract
from probing.states.store import Store
from probing.text.corpus import Corpus, Example
from probing.training import train
from probing.training.pooling import POOLINGS, PooledStore, with_rows
from tests.samples.tiny_models import corpus_of, language_model

TEXTS = ("the thing is being", "a", "", "über the 日本 thing", "one two three four five", "  ", "the thing is being")
SHARED = Example(id="shared", text="cannot go", words=((0, 6), (0, 6), (6, 6), (7, 9)))
CORPUS = Corpus((*corpus_of(*TEXTS).examples, SHARED))


def stores(folder: Path, rows: str, **options: object) -> tuple[Store, Store]:
    """The corpus in pieces, and in rows pooled at extraction."""
    model = language_model("bert")
    return tuple(
        extract(model, CORPUS, rows=r, to=folder / r.replace(":", "-"), progress=False, **options)
        for r in ("piece", rows)
    )


@pytest.mark.parametrize("max_length", [None, 12])
@pytest.mark.parametrize("rows", POOLINGS)
def test_pooling_when_read_equals_pooling_at_extraction(tmp_path: Path, rows: str, max_length: int | None) -> None:
    pieces, expected = stores(tmp_path, rows, max_length=max_length)
    pooled = PooledStore(pieces, CORPUS, rows)
    assert (max_length is None) != any(reason == "truncated" for *_, reason in pieces.missing_words)
    for name in ("example", "word", "piece_start", "piece_end"):
        np.testing.assert_array_equal(getattr(pooled.rows, name), getattr(expected.rows, name), err_msg=name)
    for site in expected.sites:
        assert pooled.width(site) == expected.width(site)
        np.testing.assert_allclose(pooled.read(site), expected.read(site), atol=1e-5)
    some = np.array([5, 0, 3, 3])
    np.testing.assert_array_equal(pooled.read("resid.1", some), pooled.read("resid.1")[some])


def test_words_of_one_span_share_its_pieces(tmp_path: Path) -> None:
    pooled = PooledStore(stores(tmp_path, "word:mean")[0], CORPUS, "word:mean")
    mine = pooled.rows.example == len(CORPUS) - 1
    assert pooled.rows.word[mine].tolist() == [0, 1, 3]
    states = pooled.read("resid.2")[mine]
    assert (states[0] == states[1]).all() and (states[0] != states[2]).any()


def test_only_a_piece_store_is_pooled(tmp_path: Path) -> None:
    pieces, words = stores(tmp_path, "word:mean")
    assert with_rows(words, CORPUS, None, "word") is words is with_rows(words, CORPUS, "word:mean", "word")
    with pytest.raises(BadParameter, match="only a piece store"):
        with_rows(words, CORPUS, "word:last", "word")
    with pytest.raises(BadParameter, match="did you mean 'word:mean'"):
        with_rows(pieces, CORPUS, "word:meen", "word")


def test_a_piece_store_trains_as_the_pooled_store_does(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    corpus = Corpus.read({split: str(file) for split, file in small_corpus.items()})
    model = str(Path("datasets/reference/model").resolve())
    found = []
    for rows in ("piece", "word:mean"):
        store = extract(model, corpus, sites="resid.1", rows=rows, to=tmp_path / rows[:4], progress=False)
        result = train(store, corpus, task="upos", probes=["linear"], controls=["word_type:draws=2"], progress=False)
        found.append(result.selectivity("accuracy"))
        assert next(iter(result)).provenance["rows"] == ("word:mean of pieces" if rows == "piece" else rows)
    assert abs(found[0].value - found[1].value) < 0.01
