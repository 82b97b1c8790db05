"""One task in several models: an order of its own, curves, paired differences, and a page that shows every model."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from probing.errors import BadParameter, InputError, ProvenanceMismatch, UnknownName
from probing.reporting import report
from probing.reporting.across_models import AcrossModels, across_models, charts, claims, notes
from probing.reporting.across_sections import print_across, rows
from probing.reporting.task_results import by_task
from probing.results.models import ModelFacts, size
from probing.results.probe import ProbeResult
from probing.statistics.bootstrap import interval
from probing.training import train
from probing.training.comparing import compare
from probing.training.results import ProbeResults
from probing.training.units import load_samples
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_store

CORPUS = word_corpus(seed=1, ambiguous=0.3)
RUN = [(f"checkpoint-{step}", {"step": step}, noise) for step, noise in ((0, 9.0), (10, 3.0), (200, 0.5))]
SIZES = [("small", {"parameters": 1_000, "layers": 1, "width": 4}, 2.0), ("large", {"parameters": 70_000}, 0.2)]
TWIN = ("large", {"parameters": 70_000, "untrained": {"seed": 0}}, 6.0)


def store(name: str, facts: dict[str, Any], noise: float) -> Any:
    """States of which the tag can be read the better the less noise there is."""
    source = np.random.default_rng(sum(map(ord, name)) + int(10 * noise))

    class Store(MemoryStore):
        @property
        def identity(self) -> dict[str, Any]:
            model = {"source": name, "weights": {"all": f"{name}{noise}"}}
            model |= {key: facts[key] for key in ("untrained",) if key in facts}
            run = {key: facts[key] for key in ("step", "run") if key in facts}
            return super().identity | {"model": model | ({"checkpoint": run} if run else {})}

    made = word_store(CORPUS, lambda _, tag: vector_of(tag, 6) + noise * source.standard_normal(6))
    other = word_store(CORPUS, lambda _, tag: vector_of(tag, 6) + 2 * noise * source.standard_normal(6))
    states = dict(made.states) | {"resid.1": other.states["resid.0"]}
    known = {key: value for key, value in facts.items() if key not in ("step", "run", "untrained")}
    ids = {"store_id": f"{name}{noise}".ljust(64, "s"), "environment": {"model": {"name": f"runs/{name}"} | known}}
    return Store(CORPUS, states, made.rows, **ids)


def trained(folder: Path, models: Iterable[tuple[str, dict[str, Any], float]]) -> Path:
    for one in models:
        train(store(*one), CORPUS, task="upos", controls=["word_type:draws=2"], to=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("models"), [*RUN, *SIZES, TWIN])


@pytest.fixture(scope="module")
def across(folder: Path) -> AcrossModels:
    (found,) = across_models(by_task(ProbeResults.read(folder)), folder)
    return found


def named(results: Iterable[ProbeResult], part: str, site: str) -> ProbeResult:
    (found,) = [r for r in results if part in str(r.provenance["model"]) and r.site == site]
    return found


def test_models_stand_in_an_order_of_their_own(across: AcrossModels) -> None:
    assert across.names == ["70k, untrained", "step 0", "step 10", "step 200", "1.0k", "70k"]
    assert [(one.what, [across.names[i] for i in one.models]) for one in across.series()] == [
        ("step", ["step 0", "step 10", "step 200"]),
        ("size", ["1.0k", "70k"]),
    ]
    from_ = [across.reference(i) for i in range(6)]
    assert [None if of is None else across.names[of] for of in from_] == [
        None,
        None,
        "step 0",
        "step 0",
        None,
        "70k, untrained",
    ]


def test_checkpoints_in_any_order_give_one_page(folder: Path, tmp_path: Path) -> None:
    shuffled = [*RUN, *SIZES, TWIN]
    random.Random(3).shuffle(shuffled)
    other = trained(tmp_path / "other", shuffled)
    assert report(folder, to=tmp_path / "a.html").read_bytes() == report(other, to=tmp_path / "b.html").read_bytes()


def test_paired_differences_are_those_of_an_independent_computation(folder: Path, across: AcrossModels) -> None:
    """Samples of both models on the same resamples, subtracted by hand."""
    results = ProbeResults.read(folder)
    step = next(i for i, name in enumerate(across.names) if name == "step 200")
    later, first = (across.tasks[i].best() for i in (step, 1))
    assert later is not None and first is not None
    samples = [load_samples(folder, one)["test/accuracy/samples"][0] for one in (later, first)]
    values = [one.judged("accuracy").score.value for one in (later, first)]
    pair = across.pairs[step, 1]
    assert pair["difference"] == pytest.approx(values[0] - values[1], abs=1e-12)
    low, high = interval(samples[0] - samples[1])
    assert (pair["low"], pair["high"]) == pytest.approx((low, high), abs=0.01)
    table = compare(folder, task="upos", between="best", against="step 0")
    mine = table[table.model_a.str.contains("step 200")].iloc[0]
    assert (mine.difference, mine.low, mine.high, mine.p) == pytest.approx(
        (pair["difference"], pair["low"], pair["high"], pair["p"])
    )
    here = across.by_site[step, "resid.1"]
    by_hand = [named(results, part, "resid.1").judged("accuracy").score.value for part in ("step 200", "step 0,")]
    assert here["difference"] == pytest.approx(by_hand[0] - by_hand[1], abs=1e-12)


def test_pairs_of_models_at_one_site_have_the_later_first(folder: Path) -> None:
    found = compare(folder, task="upos", between="models", model="checkpoint")
    assert len(found) == 2 * 3 and (found.site_a == found.site_b).all()
    assert set(zip(found.model_a.str.slice(0, 14), found.model_b.str.slice(0, 13), strict=True)) == {
        ("checkpoint-200", "checkpoint-10"),
        ("checkpoint-200", "checkpoint-0 "),
        ("checkpoint-10 ", "checkpoint-0 "),
    }
    assert len(compare(folder, task="upos", between="best")) == 6 * 5 // 2


def test_the_page_shows_every_model(folder: Path, across: AcrossModels, tmp_path: Path) -> None:
    page = report(folder, to=tmp_path / "report.html").read_text(encoding="utf-8")
    for model in across.models:
        assert model.label in page and model.label.startswith("runs/")
    for words in (
        "upos in 6 models",
        "Over training, step 0 to 200",
        "By size of trained models, 1.0k to 70k",
        "step 10",
    ):
        assert words in page
    assert "runs/large against runs/large [untrained (seed 0)]" in page
    assert "1 layers × 4, 1,000 parameters" in page or "1 layer × 4, 1,000 parameters" in page
    head, body = rows(across)
    assert len(body) == 6 + 2 and head[0] == "model" and "difference" in head


def test_curves_are_drawn_once_for_page_notebook_and_paper(folder: Path, across: AcrossModels) -> None:
    steps, sizes, sites = charts(across)
    drawn = [row for row in steps["data"]["values"] if row["series"] == "accuracy"]
    assert [(row["x"], row["value"]) for row in drawn] == [
        (float(across.models[i].step or 0), pytest.approx(_best(across, i), abs=1e-5)) for i in (1, 2, 3)
    ]
    assert steps["encoding"]["x"]["scale"]["type"] == "symlog" and len(sites["data"]["values"]) == 12
    assert [row["x"] for row in sizes["data"]["values"] if row["series"] == "accuracy"] == [1_000.0, 70_000.0]
    chart = ProbeResults.read(folder).plot("models").to_dict()
    assert len(chart["concat"]) == 3
    assert (folder / "figures" / "models-upos.svg").is_file() or report(folder)


def _best(across: AcrossModels, i: int) -> float:
    best = across.tasks[i].best()
    assert best is not None
    return best.judged("accuracy").score.value


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_has_a_line_a_curve_and_a_table(across: AcrossModels, width: int) -> None:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as caught:
        print_across([across], console, details=True)
    said = caught.get()
    assert max(map(len, said.splitlines())) <= width
    assert "upos: over training, step 0 to 200" in " ".join(said.split())
    assert all(name in said for name in across.names)


def test_the_same_weights_twice_and_other_builds_in_one_run_are_said(folder: Path, across: AcrossModels) -> None:
    task = across.tasks[2]
    again = [replace(r, facts=r.facts | {"model": r.facts["model"] | {"width": 9, "step": 11}}) for r in task.all]
    copies = [replace(r, provenance=r.provenance | {"model": "a copy [step 11]", "run": "x"}) for r in again]
    (found,) = across_models(by_task([*task.all, *copies]))
    said = " ".join(notes(found))
    assert "The weights are the same" in said and "different architectures" in said
    assert not found.pairs and "difference" not in rows(found)[0]


def test_models_on_other_rows_are_shown_and_not_compared(tmp_path: Path) -> None:
    trained(tmp_path, RUN[:1])
    made = store(*RUN[1])
    few = replace(made, rows=type(made.rows)(example=made.rows.example[:-5], word=made.rows.word[:-5]))
    few.states = {site: states[:-5] for site, states in made.states.items()}
    train(few, CORPUS, task="upos", controls=["word_type:draws=2"], to=tmp_path, progress=False)
    (found,) = across_models(by_task(ProbeResults.read(tmp_path)), tmp_path)
    assert not found.pairs and "not of the same rows" in found.doubt and len(found.tasks) == 2
    assert claims(found) and "Differences between models are not tested" in " ".join(notes(found))
    with pytest.raises(ProvenanceMismatch, match="not of the same rows") as caught:
        compare(tmp_path, task="upos", between="best")
    assert "test rows" in str(caught.value) and "two tokenizers" in str(caught.value)


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="pairs"):
        compare(folder, task="upos", between="sites")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="model"):
        compare(folder, task="upos", between="best", against="gpt3")
    with pytest.raises(BadParameter, match="several models"):
        compare(folder, task="upos", between="best", against="checkpoint")
    with pytest.raises(InputError, match="nothing to compare"):
        compare(trained(tmp_path, RUN[:1]), task="upos", between="models")


def test_a_model_is_named_by_what_is_known() -> None:
    known = {"name": "reference/model", "architecture": "gpt2", "layers": 3, "width": 64, "parameters": 163_840}
    one = ModelFacts.of("model [weights fb05cb64, float32]", known)
    assert one.label == "reference/model [weights fb05cb64, float32]" and one.title == "reference/model"
    assert one.build == "gpt2, 3 layers × 64, 163,840 parameters" and one.place == "164k"
    assert ModelFacts.of("gpt2 [revision abc, untrained (seed 0), float32]", None).title == (
        "gpt2 [revision abc, untrained (seed 0)]"
    )
    assert ModelFacts.of("", None).label == "a model that is not named"
    assert [size(n) for n in (999, 44_512, 134_515_008, 7_200_000_000)] == ["999", "45k", "135M", "7.2B"]
