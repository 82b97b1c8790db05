"""Laws of controls of states: the labels stay, the states are others, and what is above them is no selectivity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probing as pb
from probing.controls.random_states import RandomStates, vector_of
from probing.controls.untrained_model import UntrainedModelControl
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnknownName, UnknownSite
from probing.reporting import finding
from probing.results.probe import Comparison, ProbeResult
from probing.states.store import Store
from probing.text.corpus import Corpus
from probing.training import train
from tests.conftest import REFERENCE, ROOT
from tests.samples.training_samples import MemoryStore, labels_of, word_corpus, word_rows, word_store
from tests.samples.training_samples import vector_of as of_text

CORPUS = word_corpus(types=40, ambiguous=0.3)


def two_sites(corpus: Corpus = CORPUS) -> MemoryStore:
    """At resid.0 a vector for each word, at resid.1 beside it the tag of the token."""
    words = word_store(corpus, lambda form, tag: of_text(form, 24)).states["resid.0"]
    tags = word_store(corpus, lambda form, tag: np.concatenate([of_text(form, 20), 2 * of_text(tag, 4)]))
    return MemoryStore(corpus, {"resid.0": words, "resid.1": tags.states["resid.0"]}, word_rows(corpus))


def run(store: Any, *controls: Any, **options: Any) -> dict[str, ProbeResult]:
    given = {"task": "upos", "controls": list(controls), "progress": False} | options
    return {r.site: r for r in train(store, CORPUS, **given) if r.site != "(none)"}


def against(result: ProbeResult, name: str) -> Comparison:
    return next(c for c in result.measure("accuracy").comparisons if c.control == name)


def test_a_word_s_vector_depends_on_form_seed_and_draw_alone() -> None:
    one = vector_of("house", 64, draw=0, seed=3)
    assert np.array_equal(one[:8], vector_of("house", 8, draw=0, seed=3))
    others = [vector_of(f, 64, draw=d, seed=s) for f, d, s in (("House", 0, 3), ("house", 1, 3), ("house", 0, 4))]
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 0.5 for other in others)
    many = np.stack([vector_of(f"w{i}", 50, draw=0, seed=0) for i in range(400)])
    assert abs(many.mean()) < 0.02 and many.std() == pytest.approx(1, abs=0.02)


def test_rows_of_a_word_share_its_vector_in_any_order_of_the_rows() -> None:
    labels = labels_of([0, 1, 0, 1], ["train"] * 4, types=["a", "b", "a", "c"])
    labels = replace(labels, row=np.array([7, 2, 5, 0]))
    table: Any = two_sites()
    source = RandomStates(table, labels, "type", 0, "random_states", None)
    states = source.read("resid.0", np.array([0, 5, 7, 2]), draw=0)
    assert np.array_equal(states[1], states[2]) and not np.array_equal(states[0], states[1])
    assert np.array_equal(states[3], vector_of("b", 24, draw=0, seed=0))
    with pytest.raises(DegenerateDesign, match="without a label"):
        source.read("resid.0", np.array([1]), draw=0)


def test_states_that_say_which_word_it_is_are_not_above_random_states_and_tags_are() -> None:
    results = run(two_sites(), "random_states:draws=3")
    identity, tags = (against(results[site], "random_states") for site in ("resid.0", "resid.1"))
    assert identity.selectivity.low <= 0.02 and abs(identity.selectivity.value) < 0.03
    assert tags.selectivity.low > 0.1
    assert len(tags.draws) == 3 and len(set(tags.draws)) > 1 and tags.ceiling is None
    assert identity.score == tags.score  # of one width: the same fits


def test_static_compares_every_site_but_itself_and_shows_what_was_added() -> None:
    results = run(two_sites(), "static")
    assert results["resid.0"].measure("accuracy").comparisons == ()
    added = against(results["resid.1"], "static:site=resid.0")
    assert added.above == "resid.0" and added.selectivity.low > 0.1
    assert added.score.value == results["resid.0"].measure("accuracy").score.value
    named = run(two_sites(), "static:site=resid.1")
    assert against(named["resid.0"], "static:site=resid.1").selectivity.high < -0.1


def test_what_is_above_other_states_is_never_called_selectivity() -> None:
    results = train(two_sites(), CORPUS, task="upos", controls=["random_states:draws=1", "static"], progress=False)
    with pytest.raises(UnknownName, match="selectivity"):
        results.selectivity()
    best = results.best()
    assert not any(c.is_selectivity for m in best.measures for c in m.comparisons)
    frame: pd.DataFrame = results.long()
    shown = frame[(frame.site == "resid.1") & (frame.measure == "accuracy") & (frame.split == "test")]
    assert shown.selectivity.isna().all() and shown.above_chance.isna().all() and (shown.above_states > 0.1).all()
    said = finding(list(results))
    assert said.status == "decodable"
    text = " ".join(said.evidence)
    assert "above random states." in text and "above resid.0." in text and "Chance check" not in text


def test_counts_of_fits_do_not_depend_on_which_were_shared() -> None:
    results = run(two_sites(), "word_type:draws=2", "random_states:draws=3", "static")
    assert {site: r.fit_count for site, r in results.items()} == {"resid.0": 1 + 2 + 3, "resid.1": 1 + 2 + 3 + 1}
    assert {r.draw_count for r in results.values()} == {3}


def test_sites_that_share_other_states_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from probing.training import fitting

    fitted = []
    fit = fitting.OtherStates._fitted
    monkeypatch.setattr(fitting.OtherStates, "_fitted", lambda *given: fitted.append(given[1]) or fit(*given))
    run(two_sites(), "random_states:draws=2", "static", probes=["linear", "mlp:hidden=4,max_epochs=1"])
    assert len(fitted) == 2 * (2 + 1)


@pytest.mark.parametrize(
    ("control", "error", "message"),
    [
        ("static:site=resid.7", UnknownSite, "resid.0"),
        ("static:site=embed", UnknownSite, "site of the control static"),
        ("random_states:key=lema", UnknownName, "key of random_states"),
        ("random_states:draws=0", BadParameter, "draws"),
        ("untrained_model", BadParameter, "--untrained 0"),
    ],
)
def test_bad_options_are_refused_before_any_state_is_read(control: str, error: type[Exception], message: str) -> None:
    store = two_sites()
    with pytest.raises(error, match=message):
        run(store, control)
    assert store.reads == []


def test_one_site_alone_has_nothing_static_below_it_and_a_control_is_given_once() -> None:
    with pytest.raises(BadParameter, match="nothing to compare"):
        run(two_sites(), "static", sites="resid.0")
    with pytest.raises(BadParameter, match="given twice"):
        run(two_sites(), "static", "static:site=resid.0")


@pytest.fixture(scope="module")
def files(small_corpus: dict[str, Path]) -> Corpus:
    return pb.Corpus.read({split: str(file) for split, file in small_corpus.items()})


def extracted(corpus: Corpus, to: Path, untrained: int | None = None, **options: Any) -> Store:
    model = pb.LanguageModel.load(str(REFERENCE / "model"), untrained=untrained)
    return pb.extract(model, corpus, to=to, progress=False, **({"sites": "resid.1"} | options))


@pytest.fixture(scope="module")
def stores(files: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("twins")
    other = replace(files, examples=files.examples[::-1])
    made: dict[str, tuple[Corpus, int | None, dict[str, Any]]] = {
        "trained": (files, None, {}),
        "twin": (files, 0, {}),
        "second": (files, 1, {}),
        "last": (files, 0, {"rows": "word:last"}),
        "site": (files, 0, {"sites": "resid.0"}),
        "other": (other, 0, {}),
        "short": (files, 0, {"max_length": 5}),
    }
    return {n: extracted(c, folder / n, seed, **more) for n, (c, seed, more) in made.items()}


def test_a_trained_model_reads_tags_from_context_and_its_twin_does_not(files: Corpus, stores: dict[str, Store]) -> None:
    twins = [UntrainedModelControl(store=str(stores[name].path)) for name in ("twin", "second")]
    (result,) = train(stores["trained"], files, task="upos", controls=twins, progress=False)[-1:]
    for seed in (0, 1):
        found = against(result, f"untrained_model:seed={seed}")
        assert found.above == "the untrained twin" and found.selectivity.low > 0
    assert against(result, "untrained_model:seed=0").score != against(result, "untrained_model:seed=1").score


@pytest.mark.parametrize(
    ("probed", "control", "message"),
    [
        ("trained", "trained", "not of an untrained model"),
        ("twin", "twin", "is the probed one"),
        ("trained", "last", "other rows"),
        ("trained", "site", "lacks sites"),
        ("trained", "other", "another corpus"),
        ("trained", "short", "other words"),
    ],
)
def test_a_store_that_is_no_twin_is_refused(
    stores: dict[str, Store], files: Corpus, probed: str, control: str, message: str
) -> None:
    with pytest.raises(ProvenanceMismatch, match=message) as error:
        train(stores[probed], files, task="upos", controls=[UntrainedModelControl(store=str(stores[control].path))])
    assert "--untrained SEED" in str(error.value) and str(stores[control].path) in error.value.where


def test_a_twin_of_another_architecture_is_refused(stores: dict[str, Store], files: Corpus) -> None:
    other = Store.open(stores["trained"].path)
    other.identity = other.identity | {"model": other.identity["model"] | {"config": "x"}}
    with pytest.raises(ProvenanceMismatch, match="another configuration"):
        train(other, files, task="upos", controls=[UntrainedModelControl(store=str(stores["twin"].path))])


def test_what_the_second_store_holds_and_not_where_it_lies_tells_results_apart(
    stores: dict[str, Store], files: Corpus, tmp_path: Path
) -> None:
    import shutil

    moved = shutil.copytree(stores["twin"].path, tmp_path / "elsewhere")
    units = []
    for place in (stores["twin"].path, moved, stores["second"].path):
        control = UntrainedModelControl(store=str(place))
        units.append(train(stores["trained"], files, task="upos", controls=[control], progress=False)[-1])
    ids = [unit.provenance["unit"] for unit in units]
    assert ids[0] == ids[1] != ids[2]
    assert units[0].measures == units[1].measures


def test_every_control_says_what_it_answers_in_the_list_and_in_the_methods() -> None:
    from typer.testing import CliRunner

    from probing import registry
    from probing.cli.commands import app

    methods = (ROOT / "docs" / "decodability.md").read_text(encoding="utf-8")
    listed = " ".join(CliRunner().invoke(app, ["list", "controls"], env={"COLUMNS": "300"}).stdout.split())
    for name in registry.names("controls"):
        member = registry.get("controls", name).MEMBER
        rows = [line for line in methods.splitlines() if line.startswith(f"| {member.answers} |")]
        levels = ", ".join(f"{level}s" for level in member.levels)
        wanted = f"| {member.answers} | `{name}` | {levels} |"
        where = "docs/decodability.md, in the table `an objection | is answered by`"
        assert len(rows) == 1, f"{len(rows)} rows for control {name}; write one in {where}: {wanted}"
        assert f"`{name}" in rows[0] and all(f"{level}s" in rows[0] for level in member.levels), f"{wanted}\nin {where}"
        assert f'"{member.answers}" {name} ({", ".join(member.levels)})' in listed
