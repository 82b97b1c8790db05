"""Training lands on planted truths, resumes, and refuses what cannot be trained."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from probing.contracts import Control
from probing.errors import (
    BadParameter,
    DamagedUnit,
    NonFiniteStates,
    NotForThisTask,
    ProbingError,
    ProvenanceMismatch,
    UnknownName,
    UnknownSite,
)
from probing.labels import Labels
from probing.measures.accuracy import Accuracy
from probing.probes.linear import LinearProbe
from probing.reporting.findings import finding
from probing.reporting.task_results import by_task
from probing.reporting.warnings import warnings_of_task
from probing.results.probe import from_json, to_json
from probing.text.corpus import Corpus
from probing.training import train
from probing.training.results import NO_SITE, ProbeResults
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_rows, word_store

CORPUS = word_corpus(ambiguous=0.3)


def tag_store(corpus: Corpus = CORPUS, noise: float = 0.3) -> MemoryStore:
    """States that carry the tag and nothing of the word."""
    random = np.random.default_rng(1)
    return word_store(corpus, lambda form, tag: vector_of(tag, 6) + noise * random.standard_normal(6))


def run(store: Any, corpus: Corpus = CORPUS, **options: Any) -> ProbeResults:
    return train(store, corpus, **({"task": "upos", "progress": False} | options))


def test_states_that_carry_the_tag_and_not_the_word_are_decodable_with_selectivity() -> None:
    results = run(tag_store())
    best = results.best()
    accuracy = best.measure("accuracy")
    (control,) = accuracy.comparisons
    assert accuracy.score.value > 0.95
    assert control.selectivity.low > 0.3
    assert control.selectivity.value == pytest.approx(accuracy.score.value - control.score.value)
    assert {gain.baseline for gain in accuracy.gains} == {"prior", "word_type"}
    assert all(gain.gain.low > 0.02 and gain.p_adjusted < 0.001 for gain in accuracy.gains)
    assert accuracy.score.n == 480


def test_intervals_of_fractions_have_width_and_stay_within_what_a_fraction_can_be() -> None:
    results = run(tag_store(noise=0.0), probes=["linear", "prior"], controls=["word_type:draws=2"])
    best = results.best()
    assert best.measure("accuracy").score.value == best.measure("macro_f1").score.value == 1.0
    for result in results:
        for found in (m for m in result.measures if m.score.unit == "fraction"):
            differences = [*(c.selectivity for c in found.comparisons), *(gain.gain for gain in found.gains)]
            for low, score in [(0.0, found.score), *((-1.0, difference) for difference in differences)]:
                assert low <= score.low <= score.value <= score.high <= 1.0
                assert score.high - score.low > 0.01
    assert best.measure("accuracy").score.low == pytest.approx(0.025 ** (1 / 60))


def test_a_random_vector_per_type_is_decodable_but_not_selective() -> None:
    corpus = word_corpus(types=40)
    results = run(word_store(corpus, lambda form, tag: vector_of(form, 64)), corpus)
    accuracy = results.best().measure("accuracy")
    (control,) = accuracy.comparisons
    assert accuracy.score.value > 0.97
    assert control.selectivity.low <= 0 <= control.selectivity.high
    word_type = next(gain for gain in accuracy.gains if gain.baseline == "word_type")
    assert word_type.p_adjusted > 0.5


def test_shuffled_labels_score_the_majority_rate_and_are_no_selectivity() -> None:
    results = run(tag_store(), controls=["shuffled_labels:draws=3"])
    result = results.best()
    (check,) = result.measure("accuracy").comparisons
    assert not check.is_selectivity
    assert check.score.value == pytest.approx(result.facts["majority"], abs=0.06)
    row = next(row for row in result.rows() if row["measure"] == "accuracy" and row["split"] == "test")
    assert row["selectivity"] is None and row["above_chance"] == pytest.approx(check.selectivity.value)
    with pytest.raises(UnknownName, match="selectivity"):
        results.selectivity()


def test_baselines_are_reported_once_and_are_what_counting_gives() -> None:
    store = tag_store()
    two = MemoryStore(CORPUS, {"resid.0": store.states["resid.0"], "resid.1": store.states["resid.0"]}, store.rows)
    results = run(two, controls=[])
    assert [(r.site, r.probe) for r in results] == [
        (NO_SITE, "prior"),
        (NO_SITE, "word_type"),
        ("resid.0", "linear"),
        ("resid.1", "linear"),
    ]
    assert results[0].measure("accuracy").score.value == pytest.approx(results[0].facts["majority"])
    assert two.reads == ["resid.0"] * 3 + ["resid.1"] * 3
    assert results[2].measures[0].score == results[3].measures[0].score


def test_same_inputs_give_identical_files_and_no_time_is_in_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {"controls": ["word_type:draws=2"], "probes": ["mlp:hidden=8,max_epochs=3"], "seeds": 2}
    for name in ("a", "b"):
        run(tag_store(), to=tmp_path / name, **options)
    one, two = ((tmp_path / name / "results.jsonl").read_bytes() for name in ("a", "b"))
    assert one == two
    assert b'"time"' not in one
    assert "time" in json.loads((tmp_path / "a" / "environment.json").read_text())


def test_another_root_seed_changes_control_labels_but_not_the_tasks_score() -> None:
    one, two = (run(tag_store(), root_seed=seed).best().measure("accuracy") for seed in (0, 1))
    assert one.score.value == two.score.value
    assert one.comparisons[0].draws != two.comparisons[0].draws


def test_a_finished_unit_is_not_computed_again(tmp_path: Path) -> None:
    first = run(tag_store(), to=tmp_path)
    store = tag_store()
    again = run(store, to=tmp_path)
    assert store.reads == []
    assert [to_json(r) for r in again] == [to_json(r) for r in first]


def test_a_damaged_or_missing_unit_is_computed_again(tmp_path: Path) -> None:
    first = run(tag_store(), to=tmp_path)
    unit = tmp_path / "units" / f"{first.best().provenance['unit']}.json"
    unit.write_text(unit.read_text()[:100])
    store = tag_store()
    with pytest.warns(DamagedUnit, match="linear at resid.0"):
        again = run(store, to=tmp_path)
    assert store.reads == ["resid.0"] * 3
    assert to_json(again.best()) == to_json(first.best())


def test_other_labels_or_states_are_another_unit(tmp_path: Path) -> None:
    units = set()
    stores = [tag_store(), replace(tag_store(), content_id="d" * 64)]
    for store in stores:
        units.add(run(store, controls=[], to=tmp_path).best().provenance["unit"])
    changed = word_corpus(ambiguous=0.0)
    assert changed.fingerprint == CORPUS.fingerprint
    units.add(run(tag_store(), changed, controls=[], to=tmp_path).best().provenance["unit"])
    assert len(units) == 3


def test_tasks_share_a_folder_and_a_rerun_replaces_nothing_unless_asked(tmp_path: Path) -> None:
    run(tag_store(), controls=[], to=tmp_path)
    run(tag_store(), task="column:score", controls=[], to=tmp_path)
    for replaces, seeds in ((False, {1, 2}), (True, {2})):
        run(tag_store(), controls=[], seeds=2, to=tmp_path, replace=replaces)
        lines = [from_json(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        keys = [(r.task, r.site, r.probe, r.seed_count) for r in lines]
        assert len(keys) == len(set(keys)) == 3 + 3 * len(seeds)
        assert {r.seed_count for r in lines if r.task == "upos"} == seeds


def test_parquet_has_the_promised_columns_and_rows(tmp_path: Path) -> None:
    results = run(tag_store(), controls=["word_type:draws=2", "shuffled_labels:draws=2"], to=tmp_path)
    frame = pd.read_parquet(tmp_path / "results.parquet")
    wanted = "site task probe measure split value low high unit control control_value ceiling selectivity "
    wanted += "selectivity_low selectivity_high n seed_count draw_count"
    assert set(wanted.split()) <= set(frame.columns)
    assert len(frame) == len(results) * 3 * 2 * 2
    assert frame.value.dtype == np.float64 and frame.n.dtype == np.int64


def test_saved_probe_predicts_as_the_result_says(tmp_path: Path) -> None:
    from probing.probes._estimator import load_probe

    store = tag_store()
    result = run(store, to=tmp_path).best()
    probe = load_probe(tmp_path / result.provenance["saved"])
    test = np.array([CORPUS.examples[e].split == "test" for e in store.rows.example])
    predicted = probe.predict(store.states["resid.0"][test])
    counts = [int((predicted == name).sum()) for name in result.classes]
    assert counts == np.array(result.confusion).sum(0).tolist()


def test_deterministic_probe_is_fitted_once_whatever_the_seeds_and_a_stochastic_one_every_time() -> None:
    results = run(tag_store(), probes=["linear", "mlp:hidden=8,max_epochs=2"], controls=["word_type:draws=2"], seeds=3)
    counts = {r.probe: (r.fit_count, r.seed_count, r.draw_count) for r in results if r.site != NO_SITE}
    assert counts == {"linear": (3, 3, 2), "mlp:hidden=8,max_epochs=2": (9, 3, 2)}


def test_real_target_has_ridge_r2_and_a_real_valued_control() -> None:
    corpus = word_corpus(types=50)
    store = word_store(corpus, lambda form, tag: np.array([float(form[1:]), 1.0, 0.0]))
    results = run(store, corpus, task="column:score")
    best = results.best()
    assert (best.kind, best.probe) == ("real", "ridge")
    r2 = best.measure("r2")
    assert r2.score.value > 0.99 and best.measure("spearman").score.value > 0.99
    assert r2.comparisons[0].selectivity.low > 0.5
    assert r2.comparisons[0].score.value < 0.3


def test_control_scores_seen_and_unseen_types_apart() -> None:
    corpus = word_corpus(types=900, words=6)
    results = run(word_store(corpus, lambda form, tag: vector_of(form, 200)), corpus)
    baseline = next(r for r in results if r.probe == "word_type")
    (control,) = baseline.measure("accuracy").comparisons
    assert control.seen == pytest.approx(1.0)
    assert control.unseen is not None and control.unseen < 0.6
    assert control.ceiling == pytest.approx(control.score.value, abs=0.06)
    assert control.ceiling >= max(control.draws) - 0.06


def test_table_names_the_best_site_chosen_on_dev() -> None:
    good, bad = tag_store(noise=0.2), tag_store(noise=5.0)
    states = {"resid.0": bad.states["resid.0"], "resid.1": good.states["resid.0"]}
    results = run(MemoryStore(CORPUS, states, word_rows(CORPUS)))
    assert results.best().site == results.best("log_loss").site == "resid.1"
    assert results.selectivity("accuracy") == results.selectivity("accuracy", site="resid.1")
    table = results.table()
    assert list(table.columns) == [
        "model",
        "rows",
        "site",
        "task",
        "probe",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "control",
        "selectivity",
        "selectivity_low",
        "selectivity_high",
        "status",
        "macro_f1",
        "bits",
        "store",
        "run",
    ]
    assert len(table) == len(results) == 4


def test_scikit_learn_estimators_are_probes() -> None:
    results = run(tag_store(), probes=[LogisticRegression(C=0.5), LinearSVC(), LinearProbe()], controls=[])
    measures = {r.probe: {m.measure for m in r.measures} for r in results if r.site != NO_SITE}
    names = list(measures)
    assert names == ["sklearn:estimator=LogisticRegression(C=0.5)", "sklearn:estimator=LinearSVC()", "linear"]
    assert "log_loss" in measures[names[0]] and "log_loss" not in measures[names[1]]
    with pytest.raises(BadParameter, match="probabilities"):
        run(tag_store(), probes=[LinearSVC()], measures=["log_loss"])


def test_a_store_of_another_corpus_is_refused() -> None:
    with pytest.raises(ProvenanceMismatch, match=r"(?s)another corpus.*next step"):
        run(tag_store(), word_corpus(seed=5))


def test_states_that_are_not_finite_are_refused_with_site_and_row() -> None:
    store = tag_store()
    store.states["resid.0"][7, 2] = np.nan
    with pytest.raises(NonFiniteStates, match=r"site resid\.0, train, rows 7"):
        run(store)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "column:score", "probes": ["linear"]}, BadParameter, "linear predicts classes; use ridge"),
        ({"probes": ["liner"]}, UnknownName, "did you mean 'linear'"),
        ({"probes": ["mlp:hiden=3"]}, BadParameter, "did you mean 'hidden'"),
        ({"probes": ["linear", "linear"]}, BadParameter, "given twice"),
        ({"controls": ["word_type", "word_type:draws=2"]}, BadParameter, "given twice"),
        ({"controls": ["keyed:key=lema"]}, UnknownName, "key of the control"),
        ({"measures": ["r2"]}, BadParameter, "does not score"),
        ({"sites": "resid.9"}, UnknownSite, "resid.0"),
        ({"seeds": 0}, BadParameter, "seeds"),
        ({"resample_by": "word"}, BadParameter, "sentence or document"),
    ],
)
def test_bad_input_is_refused_before_any_state_is_read(options: Any, error: type[Exception], message: str) -> None:
    store = tag_store()
    with pytest.raises(error, match=message):
        run(store, **options)
    assert store.reads == []


@pytest.mark.parametrize("constant", [("test",), ("dev",), ("dev", "test")])
def test_numbers_that_are_all_equal_in_a_split_are_scored_by_rmse_and_end_nothing(constant: tuple[str, ...]) -> None:
    examples = [
        replace(e, word_columns=dict(e.word_columns) | {"score": (1.5,) * len(e.words)}) if e.split in constant else e
        for e in CORPUS.examples
    ]
    corpus = Corpus(tuple(examples))
    with pytest.warns(NotForThisTask, match=f"all values in {constant[0]} are 1.5, where r2 and spearman are not"):
        results = run(tag_store(corpus), corpus, task="column:score")
    best = results.best()
    assert [one.measure for one in best.measures if one.split == "test"] == ["rmse"]
    assert best.facts["one_label"] == dict.fromkeys(constant, "1.5")
    (task,) = by_task(list(results))
    assert (finding(task).status == "not judged") == ("test" in constant)
    assert any("all test labels are '1.5'" in line for line in warnings_of_task(task)) == ("test" in constant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = run(tag_store(corpus), corpus, task="column:score", measures=["rmse", "r2"])
    assert [one.measure for one in asked.best().measures if one.split == "test"] == ["rmse"]


def test_selectivity_of_sentence_rows_advises_a_control_that_sentences_can_have() -> None:
    corpus = Corpus(tuple(replace(e, columns={"half": "ab"[i % 2]}) for i, e in enumerate(word_corpus().examples)))
    rows = SimpleNamespace(example=np.arange(len(corpus)), word=np.full(len(corpus), -1))
    states = np.random.default_rng(0).standard_normal((len(corpus), 3)).astype(np.float32)
    store = MemoryStore(corpus, {"resid.0": states}, rows, scope="sentence:mean")
    with pytest.raises(UnknownName) as caught:
        run(store, corpus, task="column:half").selectivity("accuracy")
    assert "keyed:key=COLUMN" in str(caught.value) and "word_type" not in str(caught.value)
    with pytest.raises(UnknownName, match="controls=\\['word_type'\\]"):
        run(tag_store(), controls=[]).selectivity("accuracy")


@dataclass(frozen=True, kw_only=True)
class SuffixControl(Control):
    """Draws a label for the last letters of every word; says nothing of draws, nor of its name."""

    levels = ("word",)
    letters: int = 2

    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        keys = [str(word)[-self.letters :] for word in labels.keys["type"]]
        y = np.array([crc32(f"{key} {seed} {draw}".encode()) % 2 for key in keys])
        return replace(labels, y=y.astype(labels.y.dtype))


def test_controls_of_other_parameters_are_other_controls_and_one_draw_is_enough():
    result = run(tag_store(), controls=[SuffixControl(), SuffixControl(letters=1)], probes=["linear"])
    (scored,) = [r for r in result if r.probe == "linear"]
    names = [c.control for c in scored.measures[0].comparisons]
    assert names == ["SuffixControl", "SuffixControl:letters=1"]
    with pytest.raises(BadParameter, match="SuffixControl is given twice"):
        run(tag_store(), controls=[SuffixControl(), SuffixControl(letters=2)], probes=["linear"])


class Undefined(Accuracy):
    """A measure that no rows define."""

    def from_totals(self, totals: Any) -> Any:
        return totals[..., 0] * np.nan


def test_a_measure_that_is_not_defined_is_named() -> None:
    store = word_store(CORPUS, lambda form, tag: vector_of(form, 8))
    with pytest.raises(ProbingError, match="units of work failed") as caught:
        run(store, measures=["accuracy", Undefined()])
    assert "the measure Undefined is not defined here" in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:63", "no_such_kind", "meta"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_done(device: str, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="no device"):
        run(tag_store(), device=device, to=tmp_path / "out")
    assert not (tmp_path / "out" / "units").exists()


def test_a_run_that_was_begun_on_one_device_is_finished_on_another(tmp_path: Path) -> None:
    probes = ["linear", "mlp:hidden=4,max_epochs=2"]
    begun = run(tag_store(), probes=probes[:1], to=tmp_path)
    ended = run(tag_store(), probes=probes, device="cpu:0", to=tmp_path)
    (before,) = (result for result in begun if result.probe == "linear")
    (after,) = (result for result in ended if result.probe == "linear")
    assert before.measure("accuracy").score == after.measure("accuracy").score
