"""What a p covers: alone and in its family, how many tests that is, and no failed task among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probing.errors import NonFiniteStates
from probing.reporting import finding
from probing.training import train
from probing.training.results import ProbeResults
from probing.verdicts.decodability import fails, judged, not_beyond
from tests.reporting.test_reporting import page_of
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_store

CORPUS = word_corpus(ambiguous=0.3)


def store_of(broken: bool = False) -> MemoryStore:
    random = np.random.default_rng(1)
    store = word_store(CORPUS, lambda form, tag: vector_of(tag, 4) + 0.8 * random.standard_normal(4))
    states = store.states["resid.0"]
    noise = random.standard_normal(states.shape).astype(np.float32)
    store.states = {"resid.0": states, "resid.1": np.full_like(states, np.nan) if broken else noise}
    return store


def run(folder: Path, task: str, store: MemoryStore, **options: Any) -> ProbeResults:
    return train(store, CORPUS, task=task, controls=[], measures=["accuracy"], to=folder, progress=False, **options)


def gains_of(results: ProbeResults) -> list[Any]:
    return [g for r in results for m in r.measures if m.split == "test" for g in m.gains]


def test_the_family_is_told_with_both_p_in_sentence_page_and_table(tmp_path: Path) -> None:
    results = run(tmp_path, "upos", store_of())
    gains = gains_of(results)
    assert {gain.family for gain in gains} == {len(gains)} == {4}  # two sites, two baselines
    sentence = finding(list(results)).sentence
    assert "alone, Holm-adjusted p" in sentence and "over 4 tests" in sentence
    content = page_of(list(results)).decode()
    assert "p alone" in content and "Holm-adjusted p over 4 tests" in content
    frame = pd.read_parquet(tmp_path / "results.parquet")
    told = frame[(frame.site != "(none)") & (frame.split == "test")]
    assert set(told.gain_family) == {4} and (told.gain_p <= told.gain_p_adjusted).all()


def test_a_task_that_fails_in_part_is_no_test_of_the_others(tmp_path: Path) -> None:
    before = [gain.p_adjusted for gain in gains_of(run(tmp_path, "upos", store_of()))]
    with pytest.raises(NonFiniteStates):
        run(tmp_path, "column:score:classes", store_of(broken=True))
    after = ProbeResults.read(tmp_path)
    parts = {r.task: r.complete for r in after}
    assert parts["upos"] and not parts.get("column:score:classes", False)
    assert [gain.p_adjusted for gain in gains_of(after.of_tasks({"upos"}))] == before
    whole = run(tmp_path, "column:score:classes", store_of())
    assert all(r.complete for r in whole)


def test_what_does_not_beat_a_baseline_is_not_beyond_it_by_name_everywhere(tmp_path: Path) -> None:
    """The word tells the tag, and the states carry the word alone: `not decodable` would be wrong."""
    corpus = word_corpus()
    random = np.random.default_rng(2)
    store = word_store(corpus, lambda form, tag: vector_of(form, 40) + 0.1 * random.standard_normal(40))
    results = train(store, corpus, task="upos", measures=["accuracy"], to=tmp_path, progress=False)
    best = results.best()
    assert judged(best, best.judged("accuracy")).status == "not beyond word_type" and fails("not beyond word_type")
    said = finding(list(results))
    assert said.status == "not beyond word_type" and "upos is not beyond word_type" in said.sentence
    assert "not shown to be decodable" not in said.sentence + page_of(list(results)).decode()
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert "not beyond word_type" in set(frame.status.dropna()) and "decodable" not in frame
    assert not_beyond("prior") == "not shown to be decodable"
