"""Laws of paired comparison: the same resamples as every interval, planted differences found, other rows refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import BadParameter, DamagedUnit, InputError, ProvenanceMismatch, UnknownName
from probing.training import train
from probing.training.comparing import compare
from probing.training.units import load_samples
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_rows, word_store

CORPUS = word_corpus(ambiguous=0.3)


def site_states(noise: float, seed: int = 1) -> Any:
    random = np.random.default_rng(seed)
    return word_store(CORPUS, lambda form, tag: vector_of(tag, 4) + noise * random.standard_normal(4)).states["resid.0"]


# resid.1 is resid.0 with a little more noise of its own, resid.2 is the same states again, resid.3 is much worse.
BASE = site_states(1.0)
STORE = MemoryStore(
    CORPUS,
    {
        "resid.0": BASE,
        "resid.1": BASE + site_states(0.3, 2) - site_states(0.0),
        "resid.2": BASE,
        "resid.3": site_states(3.0, 3),
    },
    word_rows(CORPUS),
)
MLP = "mlp:hidden=4,max_epochs=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared")
    options: dict[str, Any] = {"task": "upos", "controls": [], "to": path, "progress": False}
    train(STORE, CORPUS, **options, measures=["accuracy", "log_loss", "auroc", "macro_f1"])
    train(STORE, CORPUS, **options, probes=[MLP], sites="resid.0", measures=["accuracy"], seeds=2)
    return path


def pair(frame: Any, a: str, b: str) -> Any:
    return frame[(frame.site_a == a) & (frame.site_b == b)].iloc[0]


@pytest.mark.parametrize("measure", ["accuracy", "log_loss", "auroc", "macro_f1"])
def test_every_pair_is_the_difference_of_the_reported_scores_with_its_own_interval(folder: Path, measure: str) -> None:
    frame = compare(folder, task="upos", measure=measure, probe="linear")
    assert len(frame) == 6 and set(frame.measure) == {measure} and set(frame.n) == {480}
    scores = {r.site: r.measure(measure).score for r in pb.ProbeResults(read(folder)) if r.probe == "linear"}
    for row in frame.itertuples():
        assert row.difference == pytest.approx(scores[row.site_a].value - scores[row.site_b].value, abs=1e-12)
        assert row.low <= row.difference <= row.high and row.p <= row.p_adjusted <= 1
        assert row.low < row.high or measure in ("log_loss",)
    far, same = pair(frame, "resid.0", "resid.3"), pair(frame, "resid.0", "resid.2")
    assert (far.p_adjusted < 0.001 and far.low > 0) or (measure == "log_loss" and far.high < 0)
    assert same.difference == 0 and same.p_adjusted == 1 and same.low <= 0 <= same.high


def read(folder: Path) -> Any:
    return pb.ProbeResults(()).merged_into(folder)


def test_pairing_narrows_the_interval_of_sites_that_err_on_the_same_rows(folder: Path) -> None:
    row = pair(compare(folder, task="upos", probe="linear"), "resid.0", "resid.1")
    alike = [r for r in read(folder) if r.probe == "linear" and r.site in ("resid.0", "resid.1")]
    widths = [r.measure("accuracy").score for r in alike]
    unpaired = np.hypot(*(score.high - score.low for score in widths))
    assert row.high - row.low < 0.7 * unpaired
    assert row.detectable < (row.high - row.low)


def test_samples_are_those_of_the_intervals_and_the_bytes_repeat(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "upos", "controls": [], "sites": "resid.0", "progress": False}
    for place in (tmp_path, tmp_path / "b"):
        train(STORE, CORPUS, **options, to=place)
    for file in sorted((tmp_path / "units").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "b" / "units" / file.name).read_bytes()
    for result in read(folder):
        arrays = load_samples(folder, result)
        assert int(arrays["test/clusters"][0]) == 60
        for found in result.measures:
            values, samples = (arrays[f"{found.split}/{found.measure}/{part}"] for part in ("value", "samples"))
            assert values.mean() == pytest.approx(found.score.value, abs=1e-12)
            assert samples.shape == (2 if result.probe == MLP else 1, 2000)
            if result.probe == "linear" and found.score.high < 1:
                inside = (samples.mean(0) >= found.score.low) & (samples.mean(0) <= found.score.high)
                assert 0.93 <= inside.mean() <= 1.0


def test_probes_are_compared_too_and_one_seed_stands_beside_several(folder: Path) -> None:
    frame = compare(folder, task="upos", split="dev", correction="bh")
    assert len(frame) == 10 and set(frame.split) == {"dev"} and set(frame.correction) == {"bh"}
    holm = compare(folder, task="upos", split="dev")
    assert (frame.p == holm.p).all() and (frame.p_adjusted <= holm.p_adjusted + 1e-12).all()
    assert ((frame.detectable <= holm.detectable) | holm.detectable.isna()).all()  # empty: beyond a perfect score


def test_a_unit_without_samples_is_computed_again(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "upos", "controls": [], "sites": "resid.0", "to": tmp_path, "progress": False}
    train(STORE, CORPUS, **options)
    (unit,) = [r.provenance["unit"] for r in read(tmp_path) if r.site == "resid.0"]
    file = tmp_path / "units" / f"{unit}.safetensors"
    content = file.read_bytes()
    file.unlink()
    with pytest.warns(DamagedUnit, match="linear at resid.0"):
        train(STORE, CORPUS, **options)
    assert file.read_bytes() == content


def test_what_cannot_be_compared_is_refused_by_type(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'upos'"):
        compare(folder, task="upo")
    with pytest.raises(UnknownName, match="probe"):
        compare(folder, task="upos", probe="ridge")
    with pytest.raises(UnknownName, match="brier"):
        compare(folder, task="upos", measure="brier")
    with pytest.raises(BadParameter, match="split"):
        compare(folder, task="upos", split="train")
    with pytest.raises(BadParameter, match="correction"):
        compare(folder, task="upos", correction="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no results to compare"):
        compare(tmp_path, task="upos")
    options: dict[str, Any] = {"task": "upos", "controls": [], "to": tmp_path, "progress": False}
    train(STORE, CORPUS, **options, sites="resid.0")
    with pytest.raises(InputError, match="nothing to compare"):
        compare(tmp_path, task="upos")
    train(STORE, CORPUS, **options, sites="resid.1", root_seed=1)
    with pytest.raises(ProvenanceMismatch, match="root_seed"):
        compare(tmp_path, task="upos")
    train(STORE, CORPUS, **options, sites="resid.1")
    with pytest.raises(InputError, match="several settings"):
        compare(tmp_path, task="upos")
    train(STORE, CORPUS, **options, sites="resid.1", replace=True)
    for file in (tmp_path / "units").glob("*.safetensors"):
        file.write_bytes(b"not such a file")
    with pytest.raises(InputError, match="samples"):
        compare(tmp_path, task="upos")


def test_the_command_prints_a_table_and_json_lines(folder: Path) -> None:
    arguments = ["compare", str(folder), "--task", "upos", "--probe", "linear", "--measure", "log_loss"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "resid.3" in shown.output and "Holm-adjusted over 6 pairs" in shown.output
    lines = CliRunner().invoke(app, [*arguments, "--correction", "bh", "--json"]).output.splitlines()
    rows = [json.loads(line) for line in lines]
    frame = compare(folder, task="upos", probe="linear", measure="log_loss", correction="bh")
    assert [row["difference"] for row in rows] == pytest.approx(frame.difference.tolist(), abs=1e-12)
    assert {row["correction"] for row in rows} == {"bh"}
