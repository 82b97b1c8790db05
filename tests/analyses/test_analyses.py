"""Analyses are asked for by name, run, resumed and written; information and capacity land on planted truths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from typer.testing import CliRunner

from probing import registry
from probing.analyses.capacity import Capacity
from probing.cli.commands import app
from probing.contracts.analysis import Analysis
from probing.errors import BadParameter, DamagedUnit, UnknownName, UnknownSite
from probing.probes.linear import LinearProbe
from probing.recipes import build, normalised
from probing.results.analysis import read_analyses
from probing.training import train
from probing.training.results import ProbeResults
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_rows, word_store

CORPUS = word_corpus(ambiguous=0.3)


def tag_store(noise: float = 0.3) -> MemoryStore:
    random = np.random.default_rng(1)
    return word_store(CORPUS, lambda form, tag: vector_of(tag, 4) + noise * random.standard_normal(4))


def run(store: Any, analyses: list[Any], **options: Any) -> ProbeResults:
    given = {"task": "upos", "progress": False, "controls": ["word_type:draws=2"], "measures": ["accuracy", "log_loss"]}
    return train(store, CORPUS, analyses=analyses, **(given | options))


def values(results: ProbeResults, quantity: str, control: str | None = "", site: str = "") -> list[float]:
    return [p.value for r in results.analyses if site in ("", r.site) for p in r.of(quantity, control=control)]


@pytest.mark.parametrize("name", registry.names("analyses"))
def test_every_member_is_an_analysis_named_by_its_file(name: str) -> None:
    analysis = build("analyses", name)
    assert isinstance(analysis, Analysis) and analysis == registry.get("analyses", name).MEMBER()
    assert hash(analysis) == hash(build("analyses", name))


def test_results_are_in_memory_in_json_lines_and_in_parquet(tmp_path: Path) -> None:
    results = run(tag_store(), ["code_length:orders=1", "information"], to=tmp_path)
    assert [(r.analysis, r.site, r.probe) for r in results.analyses] == [
        ("code_length:orders=1", "resid.0", "linear"),
        ("information", "resid.0", "linear"),
    ]
    assert tuple(read_analyses(tmp_path / "analyses.jsonl")) == results.analyses
    frame = pd.read_parquet(tmp_path / "analyses.parquet")
    assert len(frame) == len(results.analysis_table()) == sum(len(r.points) for r in results.analyses)
    assert set(frame.control) == {"", "word_type"} and set(frame.draw) == {-1, 0, 1}
    assert results.analyses[0].settings["fractions"][-1] == 1.0


def test_a_finished_analysis_is_loaded_and_a_damaged_one_is_run_again(tmp_path: Path) -> None:
    first = run(tag_store(), ["information"], to=tmp_path)
    store = tag_store()
    again = run(store, ["information"], to=tmp_path)
    assert store.reads == [] and again.analyses == first.analyses
    unit = tmp_path / "units" / f"{first.analyses[0].provenance['unit']}.json"
    unit.write_text(unit.read_text()[:100])
    with pytest.warns(DamagedUnit, match="information"):
        assert run(store, ["information"], to=tmp_path).analyses == first.analyses
    assert store.reads == ["resid.0"] * 3


def test_a_new_analysis_fits_only_what_is_new_and_keeps_what_was_told(tmp_path: Path) -> None:
    run(tag_store(), ["information"], to=tmp_path)
    units = {file.name for file in (tmp_path / "units").iterdir()}
    second = run(tag_store(), ["code_length:orders=1"], to=tmp_path)
    assert len({file.name for file in (tmp_path / "units").iterdir()} - units) == 1
    assert [r.analysis for r in second.analyses] == ["code_length:orders=1"]
    kept = [json.loads(line)["analysis"] for line in (tmp_path / "analyses.jsonl").read_text().splitlines()]
    assert sorted(kept) == ["code_length:orders=1", "information"]


def test_an_analysis_given_as_an_object_is_named_by_its_recipe() -> None:
    results = run(tag_store(), [Capacity(parameter="l2", values="1|10")], controls=[])
    assert results.analyses[0].analysis == "capacity:parameter=l2,values=1|10"
    assert normalised("analyses", "capacity:values=1|10, parameter=l2") == results.analyses[0].analysis


@pytest.mark.parametrize(
    ("analyses", "options", "error", "message"),
    [
        (["code_lenght"], {}, UnknownName, "did you mean 'code_length'"),
        (["code_length:order=3"], {}, BadParameter, "did you mean 'orders'"),
        (["code_length", "code_length"], {}, BadParameter, "given twice"),
        (["code_length:orders=0"], {}, BadParameter, "orders"),
        (["information:given=resid.7"], {}, UnknownSite, "resid.0"),
        (["capacity:parameter=depth"], {}, BadParameter, "values="),
        (["capacity:values=1|x"], {}, BadParameter, "joined by"),
        (["capacity:values=1|1"], {}, BadParameter, "joined by"),
        (["capacity:parameter=hidden"], {}, BadParameter, "no probe of this run"),
        (["code_length"], {"probes": [LinearSVC()], "measures": ["accuracy"]}, BadParameter, "no probe of this run"),
        (
            ["code_length"],
            {"task": "column:score", "measures": None},
            BadParameter,
            "cannot be run on a target of kind",
        ),
    ],
)
def test_bad_analyses_are_refused_before_any_state_is_read(
    analyses: list[str], options: Any, error: type[Exception], message: str
) -> None:
    store = tag_store()
    with pytest.raises(error, match=message):
        run(store, analyses, **options)
    assert store.reads == []


def test_probes_that_an_analysis_does_not_accept_are_passed_over() -> None:
    results = run(tag_store(), ["information"], probes=["linear", LinearSVC()], measures=["accuracy"], controls=[])
    assert [r.probe for r in results.analyses] == ["linear"]


def test_usable_information_is_the_entropy_less_what_the_probe_pays_and_the_measure_of_that_name() -> None:
    results = run(tag_store(), ["information"], measures=["log_loss", "usable_information"])
    measured = results.best("log_loss").measure("usable_information").score
    assert values(results, "usable_information") == pytest.approx([measured.value])
    log_loss = results.best("log_loss").measure("log_loss").score
    prior = next(r for r in results if r.probe == "prior").measure("log_loss").score
    (paid,) = values(results, "conditional_entropy")
    assert paid < log_loss.value  # as sure as dev bears out, less than as it is
    assert values(results, "label_entropy") == pytest.approx([prior.value])
    (point,) = results.analyses[0].of("usable_information")
    assert point.value == pytest.approx(prior.value - paid)
    assert point.low is not None and 0.5 < point.low < point.value
    by_draw = results.analyses[0].of("usable_information", control="word_type")
    assert [p.draw for p in by_draw] == [0, 1, -1]
    assert by_draw[2].value == pytest.approx((by_draw[0].value + by_draw[1].value) / 2)


def two_bits() -> tuple[MemoryStore, Any]:
    """Four tags, two fair bits: `resid.0` holds one of them, `resid.1` the other, `resid.2` both."""
    corpus = word_corpus(types=80, tags=4, words=10)
    tags = np.array([int(t[1:]) for e in corpus.examples for t in e.word_columns["upos"]])
    noise = 0.05 * np.random.default_rng(0).standard_normal((len(tags), 4))
    first, second = np.sign(tags % 2 - 0.5), np.sign(tags // 2 - 0.5)
    columns = np.stack([first, second], axis=1)
    states = {
        "resid.0": columns[:, :1] + noise[:, :1],
        "resid.1": columns[:, 1:] + noise[:, 1:2],
        "resid.2": columns + noise[:, 2:],
        "resid.3": noise[:, :2],
    }
    return MemoryStore(corpus, {s: X.astype(np.float32) for s, X in states.items()}, word_rows(corpus)), corpus


def test_conditional_information_is_what_a_site_adds_to_another() -> None:
    store, corpus = two_bits()
    results = train(
        store,
        corpus,
        task="upos",
        controls=[],
        measures=["accuracy"],
        progress=False,
        analyses=["information", "information:given=resid.0"],
    )
    found = {
        (r.analysis, r.site): r.of("usable_information") or r.of("conditional_information") for r in results.analyses
    }
    alone = [found["information", f"resid.{site}"][0].value for site in range(4)]
    given = [found["information:given=resid.0", f"resid.{site}"][0].value for site in range(4)]
    assert alone == pytest.approx([1, 1, 2, 0], abs=0.1)
    assert given == pytest.approx([0, 1, 1, 0], abs=0.1)
    (point,) = found["information:given=resid.0", "resid.1"]
    assert point.low is not None and point.low > 0.9


def xor_store() -> MemoryStore:
    """Tags that are the exclusive or of two signs, beside a vector of the word's form."""
    random = np.random.default_rng(3)

    def state(form: str, tag: str) -> Any:
        sign = random.choice([-1.0, 1.0])
        return np.array([sign, sign if tag == "T0" else -sign]) + 0.1 * random.standard_normal(2)

    return word_store(word_corpus(tags=2), state)


def test_capacity_of_an_mlp_buys_the_xor_that_one_unit_cannot_read() -> None:
    store = xor_store()
    results = train(
        store,
        store.corpus,
        task="upos",
        controls=["word_type:draws=1", "shuffled_labels:draws=1"],
        probes=["mlp:max_epochs=25,patience=8,learning_rate=0.03"],
        analyses=["capacity:parameter=hidden,values=1|16"],
        measures=["accuracy"],
        progress=False,
    )
    (told,) = results.analyses
    narrow, wide = told.of("accuracy")
    assert (narrow.x, wide.x, narrow.x_name) == (1.0, 16.0, "hidden")
    assert narrow.value < 0.85 and wide.value > 0.95
    assert wide.low is not None and wide.high is not None and wide.low < wide.value <= wide.high <= 1.0
    gains, scores = (told.of(quantity, control="word_type") for quantity in ("selectivity", "accuracy"))
    for gain, task, control in zip(gains, (narrow, wide), scores, strict=True):
        assert gain.value == pytest.approx(task.value - control.value)
    assert not told.of("selectivity", control="shuffled_labels")
    assert len(told.of("above_chance", control="shuffled_labels")) == 2
    assert [p.x for p in told.of("dev_accuracy")] == [1.0, 16.0]


def test_more_l2_is_less_memorising() -> None:
    corpus = word_corpus(types=40)
    store = word_store(corpus, lambda form, tag: vector_of(form, 48))
    results = train(
        store,
        corpus,
        task="upos",
        controls=["word_type:draws=2"],
        measures=["accuracy"],
        progress=False,
        analyses=["capacity:parameter=l2,values=0.1|100000"],
    )
    loose, tight = results.analyses[0].of("accuracy", control="word_type")
    assert loose.x_name == "l2" and loose.value > tight.value + 0.2


def test_capacity_of_a_regression_is_told_in_r2_and_of_a_wrapped_estimator_by_its_own_parameter() -> None:
    store = word_store(CORPUS, lambda form, tag: np.array([float(form[1:]), 1.0, 0.0]))
    real = run(store, ["capacity"], task="column:score", measures=None).analyses[0]
    assert {p.unit for p in real.of("r2")} == {"R²"} and real.of("r2")[0].value > 0.99
    assert real.of("r2")[0].value > real.of("r2")[-1].value
    wrapped = run(
        tag_store(), ["capacity:parameter=estimator__C,values=0.001|1"], probes=[LogisticRegression()], controls=[]
    ).analyses[0]
    assert [p.x for p in wrapped.of("accuracy")] == [0.001, 1.0]


class Pathed(LinearProbe):
    """A probe that keeps a path: its strongest coordinates, each scored by how much weight it has."""

    PATH_COLUMNS = ("train accuracy", "dev log loss")

    def fit_many(self, X: Any, targets: Any, seeds: Any, *, dev: Any = None) -> Any:
        fits = super().fit_many(X, targets, seeds, dev=dev)
        for (fit,) in fits:
            strength = np.abs(fit.coef_).sum(1)
            fit.coordinates_ = np.argsort(-strength)[:2]
            fit.path_ = np.stack([strength[fit.coordinates_], [np.nan, 0.5]], axis=1)
        return fits


def test_the_path_of_a_sparse_probe_names_its_coordinates_in_order() -> None:
    """Coordinate 2 holds the tag; where no dev score was kept there is no point."""
    store = word_store(CORPUS, lambda form, tag: np.array([0.0, *vector_of(form, 1), 3.0 * (tag == "T1"), 0.0]))
    results = run(store, ["coordinates"], probes=["linear", Pathed()])
    (told,) = results.analyses
    first, second = told.of("train_accuracy")
    assert (first.label, first.x, second.x, first.x_name) == ("2", 1.0, 2.0, "coordinates")
    assert first.value > second.value and first.unit == "fraction"
    (only,) = told.of("dev_log_loss")
    assert (only.x, only.value, only.unit, only.label) == (2.0, 0.5, "bits per label", second.label)
    scored = next(r for r in results if r.probe == told.probe).measure("accuracy").score
    assert [(p.x, p.value, p.low, p.high) for p in told.of("accuracy")] == [
        (2.0, scored.value, scored.low, scored.high)
    ]
    assert {p.draw for p in told.of("train_accuracy", control="word_type")} == {0, 1}


def test_the_command_line_lists_every_analysis_and_asks_for_one(
    reference: Path, corpus_flags: list[str], tmp_path: Path
) -> None:
    listed = CliRunner().invoke(app, ["list", "analyses", "--json"])
    assert set(json.loads(listed.output)) == set(registry.names("analyses"))
    model = ["--model", str(reference / "model"), "--sites", "resid.0", "--to", str(tmp_path / "states")]
    assert CliRunner().invoke(app, ["extract", *model, *corpus_flags, "--quiet"]).exit_code == 0
    asked = ["--task", "upos", "--analysis", "code_length:orders=1", "--control", "word_type:draws=1"]
    command = ["train", str(tmp_path / "states"), *corpus_flags, *asked, "--to", str(tmp_path / "out"), "--quiet"]
    assert CliRunner().invoke(app, command).exit_code == 0
    (told,) = read_analyses(tmp_path / "out" / "analyses.jsonl")
    assert told.of("compression")[0].value > 1.5 * told.of("compression", control="word_type")[0].value
