"""Training says what its numbers may claim: adjustment, detectable differences, decodability, measures by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probing.errors import BadParameter, DegenerateDesign
from probing.reporting import finding
from probing.statistics.bootstrap import ALPHA, detectable
from probing.statistics.multiplicity import adjust, level_after
from probing.text.corpus import Corpus
from probing.training import train
from probing.training.results import NO_SITE, ProbeResults
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_store

CORPUS = word_corpus(ambiguous=0.3)
NEW = ("auroc", "recall_at_fpr:fpr=0.05", "balanced_accuracy", "brier", "calibration", "usable_information")


def tag_store(corpus: Corpus = CORPUS, noise: float = 0.7) -> MemoryStore:
    random = np.random.default_rng(1)
    return word_store(corpus, lambda form, tag: vector_of(tag, 4) + noise * random.standard_normal(4))


def run(store: Any, corpus: Corpus = CORPUS, **options: Any) -> ProbeResults:
    return train(store, corpus, **({"task": "upos", "progress": False} | options))


@pytest.fixture(scope="module")
def results() -> ProbeResults:
    return run(tag_store(), controls=["word_type:draws=3"], measures=["accuracy", "log_loss", *NEW])


def test_every_measure_can_be_asked_for_by_name_and_has_interval_control_and_gain(results: ProbeResults) -> None:
    best = results.best()
    for name in NEW:
        found = best.measure(name)
        (control,) = found.comparisons
        assert found.score.low <= found.score.value <= found.score.high and found.score.low < found.score.high
        assert control.selectivity.low <= control.selectivity.value <= control.selectivity.high
        assert {gain.baseline for gain in found.gains} == {"prior", "word_type"}
        assert (found.score.value > control.score.value) == found.higher_is_better or name == "calibration"


def test_usable_information_is_the_gain_in_log_loss_and_what_over_confidence_costs(results: ProbeResults) -> None:
    best = results.best()
    information, loss = best.measure("usable_information"), best.measure("log_loss")
    over_prior = next(gain for gain in loss.gains if gain.baseline == "prior")
    (t,), least = best.provenance["temperatures"], 2e-3  # the prior probe is smoothed
    assert t != [1.0]
    assert over_prior.gain.value - least < information.score.value < over_prior.gain.value + 0.02
    prior = next(r for r in results if r.probe == "prior").measure("usable_information")
    assert prior.score.value == pytest.approx(0.0, abs=2e-3)
    assert information.score.unit == loss.score.unit == "bits" and next(iter(information.gains)).margin == 0.05


def test_detectable_differences_are_those_of_the_formula_at_the_adjusted_level(results: ProbeResults) -> None:
    gains = [
        gain
        for r in results
        for found in r.measures
        if (found.measure, found.split) == ("accuracy", "test")
        for gain in found.gains
    ]
    level = level_after([gain.p for gain in gains], "holm")
    assert level == ALPHA / len(gains)
    for gain in gains:
        assert gain.error is not None and gain.df is not None and gain.detectable is not None
        assert gain.detectable == pytest.approx(detectable(gain.error, gain.df, margin=0.02, alpha=level))
        assert gain.detectable > gain.margin + (gain.gain.high - gain.gain.low) / 2
    (control,) = results.best().measure("accuracy").comparisons
    half = (control.selectivity.high - control.selectivity.low) / 2
    assert control.detectable == pytest.approx(half * (1 + 0.8416 / 1.96), rel=0.25) and control.detectable > half


def test_decodable_is_what_the_rule_says(results: ProbeResults) -> None:
    for result in (r for r in results if r.site != NO_SITE):
        for found in result.measures:
            least = min(found.gains, key=lambda gain: gain.gain.value)
            shown = least.gain.value > least.margin and least.p_adjusted <= ALPHA
            assert found.is_beyond == shown
    assert results.best().measure("accuracy").is_beyond
    noise = tag_store(noise=50.0)
    assert run(noise, controls=[]).best().measure("accuracy").is_beyond is False
    assert results[0].measure("accuracy").is_beyond is None  # a baseline gains over nothing


def test_correction_is_recorded_changes_p_alone_and_goes_for_the_whole_folder(tmp_path: Path) -> None:
    options: dict[str, Any] = {"controls": [], "measures": ["accuracy"], "to": tmp_path}
    holm = run(tag_store(noise=1.5), **options)
    store = tag_store(noise=1.5)
    bh = run(store, **options, correction="bh")
    assert store.reads == []  # nothing is fitted again
    for one, two in zip(holm, bh, strict=True):
        for a, b in zip(one.measures, two.measures, strict=True):
            assert a.score == b.score
            assert [(g.p, g.correction, h.correction) for g, h in zip(a.gains, b.gains, strict=True)] == [
                (h.p, "holm", "bh") for h in b.gains
            ]
    gains = bh.best().measure("accuracy").gains
    assert [g.p_adjusted for g in gains] == adjust([g.p for g in gains], "bh")
    assert "Benjamini-Hochberg-adjusted p" in finding(list(bh)).sentence
    assert "Holm-adjusted p" in finding(list(holm)).sentence
    frame = pd.read_parquet(tmp_path / "results.parquet")
    told = frame[frame.site != NO_SITE]
    assert set(told.correction) == {"bh"} and set(told.baseline) <= {"prior", "word_type"}
    assert told.gain_detectable.notna().all() and (told.gain_family == 2).all()
    assert frame[frame.site == NO_SITE].gain_detectable.isna().all()
    with pytest.raises(BadParameter, match="did you mean 'holm'"):
        run(store, correction="hol")


def test_measures_that_contrast_classes_refuse_a_split_with_one() -> None:
    examples = [
        e if e.split != "test" else replace(e, word_columns=dict(e.word_columns) | {"upos": ("T0",) * len(e.words)})
        for e in CORPUS.examples
    ]
    corpus = Corpus(tuple(examples))
    store = tag_store(corpus)
    with pytest.raises(DegenerateDesign, match="auroc is undefined on test"):
        run(store, corpus, measures=["auroc"], controls=[])
    assert store.reads == []


def test_renaming_labels_and_permuting_sentences_changes_no_score() -> None:
    names = {"T0": "Z", "T1": "A", "T2": "M"}
    order = np.random.default_rng(0).permutation(len(CORPUS))
    moved = [CORPUS.examples[i] for i in order]
    renamed = Corpus(
        tuple(
            replace(e, word_columns=dict(e.word_columns) | {"upos": tuple(names[t] for t in e.word_columns["upos"])})
            for e in moved
        )
    )
    states = {
        (e.id, w): state
        for (e, w), state in zip(
            [(e, w) for e in CORPUS.examples for w in range(len(e.words))], tag_store().states["resid.0"], strict=True
        )
    }
    store = word_store(renamed, lambda form, tag: np.zeros(4))
    rows = [(e.id, w) for e in renamed.examples for w in range(len(e.words))]
    store = MemoryStore(renamed, {"resid.0": np.stack([states[row] for row in rows])}, store.rows)
    options: dict[str, Any] = {"controls": [], "measures": ["accuracy", "macro_f1", "log_loss", "auroc", "brier"]}
    one, two = run(tag_store(), **options).best(), run(store, renamed, **options).best()
    for a, b in zip(one.measures, two.measures, strict=True):
        assert b.score.value == pytest.approx(a.score.value, abs=0.004)
        assert (b.score.low, b.score.high) == pytest.approx((a.score.low, a.score.high), abs=0.02)
