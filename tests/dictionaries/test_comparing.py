"""Probes of latents beside probes of states: planted properties that only latents, only states or both give away."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probing.contracts.control import StateControl, StateSource
from probing.dictionaries.comparing import DictionaryComparison, Source, refuse_other_states
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnknownSite
from probing.probes.linear import LinearProbe
from probing.reporting.features_sections import AUROC_OF_ONE, sentences
from probing.results.features import FeatureScores, LatentScore
from probing.training import train
from probing.training.results import ProbeResults
from tests.samples.basis_dictionaries import WIDTH, basis, both_ways, dictionary
from tests.samples.training_samples import MemoryStore, word_corpus, word_store

CORPUS = word_corpus(tags=2, ambiguous=0.5)
AXES = basis()
MAIN, ABSORBED = 5, 9
PLANTED = dictionary(AXES)


def absorbed_store(seed: int = 0) -> MemoryStore:
    """Latent 5 fires for T1, but on a fifth of its rows latent 9 fires in its place; others fire at random."""
    random = np.random.default_rng(seed)

    def state(form: str, tag: str) -> Any:
        latents = (random.random(WIDTH) < 0.2) * random.uniform(0.5, 1.5, WIDTH)
        latents[[MAIN, ABSORBED]] = 0
        if tag == "T1":
            latents[ABSORBED if random.random() < 0.2 else MAIN] = random.uniform(0.8, 1.2)
        return latents @ AXES + 0.02 * random.standard_normal(WIDTH)

    return word_store(CORPUS, state)


def folded_store(seed: int = 0) -> MemoryStore:
    """T1 is far from 0 along one direction, on either side: no linear probe of the state can tell."""
    random = np.random.default_rng(seed)

    def state(form: str, tag: str) -> Any:
        h = 0.3 * random.standard_normal(WIDTH)
        return h + (tag == "T1") * random.choice([-1.5, 1.5]) * AXES[0]

    return word_store(CORPUS, state)


def compared(store: MemoryStore, features: Any = PLANTED, **options: Any) -> ProbeResults:
    given = {"task": "upos", "controls": ["word_type:draws=2"], "measures": ["accuracy"], "progress": False}
    return train(store, CORPUS, features=[features], **given | options)


def scores(store: MemoryStore, features: Any = PLANTED, **options: Any) -> FeatureScores:
    (found,) = compared(store, features, **options).features
    return found


@cache
def absorbed_scores() -> FeatureScores:
    return scores(absorbed_store())


def test_the_probe_of_the_whole_state_is_that_of_the_run() -> None:
    asked = DictionaryComparison(dictionary=Source.of(PLANTED), measure="accuracy")
    results = compared(absorbed_store(), asked)
    own = next(r for r in results if r.site == "resid.0")
    dense, (found,) = own.judged("accuracy").score, results.features
    again = found.chosen["dense"].test
    assert (again.value, again.low, again.high, again.n) == (dense.value, dense.low, dense.high, dense.n)
    control = own.judged("accuracy").comparisons[0]
    score, selectivity = found.chosen["dense"].controls["word_type"]
    assert score.value == pytest.approx(control.score.value)
    assert selectivity.value == pytest.approx(control.selectivity.value)


def test_two_planted_latents_read_what_takes_a_linear_probe_many_coordinates() -> None:
    by_k = {(one.method, one.k): one.test for one in absorbed_scores().methods}
    assert absorbed_scores().measure == "auroc"
    assert by_k["dictionary", 2].value > 0.99 > by_k["dictionary", 1].value > by_k["coordinates", 2].value
    assert by_k["dictionary", 2].low > by_k["random", 2].high if ("random", 2) in by_k else True
    assert by_k["dense", None].value > 0.99
    assert max(k for method, k in by_k if method in ("coordinates", "pca") and k) <= WIDTH


def test_differences_and_selectivity_are_of_the_scores_beside_them() -> None:
    chosen = absorbed_scores().chosen
    ours = chosen["dictionary"]
    for name, above in ours.above.items():
        assert above.value == pytest.approx(ours.test.value - chosen[name].test.value)
        assert above.low <= above.value <= above.high
    assert set(ours.above) == set(chosen) - {"dictionary"}
    for one in chosen.values():
        score, selectivity = one.controls["word_type"]
        assert selectivity.value == pytest.approx(one.test.value - score.value)
        assert 0 <= score.low <= score.value <= score.high <= 1


def test_the_k_with_the_best_score_on_dev_is_chosen() -> None:
    for method, one in absorbed_scores().chosen.items():
        tried = [other for other in absorbed_scores().methods if other.method == method]
        assert one.dev.value == max(other.dev.value for other in tried)


def test_the_latent_of_a_property_is_reported_and_the_one_that_absorbs_a_part_of_it() -> None:
    main, absorbing = (one for one in absorbed_scores().latents if one.label == "T1")
    assert (main.latent, main.is_main, absorbing.latent, absorbing.is_main) == (MAIN, True, ABSORBED, False)
    assert main.scores["precision"].value > 0.95
    assert main.scores["recall"].low < 0.8 < main.scores["recall"].high
    assert absorbing.scores["recovers"].value > 0.95
    assert absorbing.scores["false_alarms"].value < 0.05
    missed = (1 - main.scores["recall"].value) * _of_t1()
    assert absorbing.numbers["missed"] == pytest.approx(missed)
    assert main.numbers["searched"] <= WIDTH
    assert main.numbers["p"] < 1e-6
    assert main.numbers["cosine_with_main"] == pytest.approx(1, abs=1e-5)
    assert abs(absorbing.numbers["cosine_with_main"]) < 1e-5  # the planted directions are orthogonal
    assert absorbing.numbers["cosine_with_probe"] > 0.3


def _of_t1() -> int:
    return sum(tag == "T1" for e in CORPUS.examples if e.split == "test" for tag in e.word_columns["upos"])


def test_a_property_that_no_linear_probe_reads_is_read_by_two_latents_and_the_quiver_rule_says_so() -> None:
    found = scores(folded_store(), dictionary(both_ways(AXES)))
    assert found.chosen["dense"].test.high < 0.7
    assert found.chosen["dictionary"].test.low > 0.95
    gain = next(one for one in found.quivers if one.added == "dictionary")
    assert gain.gain.low > 0.2
    assert (gain.chosen[0], gain.share) == ("dictionary", 1.0)
    assert gain.gain.value == pytest.approx(gain.chosen[2] - gain.without[2])


def test_a_dictionary_of_other_directions_adds_nothing() -> None:
    random = np.random.default_rng(3)
    other = dictionary(random.standard_normal((96, WIDTH)) / WIDTH**0.5, bias=0.8)
    found = scores(absorbed_store(), other)
    assert found.chosen["dictionary"].above["dense"].high < 0
    assert all(one.gain.low <= 0 <= one.gain.high for one in found.quivers)
    assert [one.added for one in found.quivers] == ["dictionary", "random"]  # small L0: there is a random one
    active, by_lot = found.active("dictionary"), found.active("random")
    assert active is not None and by_lot is not None
    assert abs(active[0] - by_lot[0]) <= 0.5
    chance = found.best_at_random("T1")
    assert chance is not None and chance.value < 0.95


class TwinSource(StateSource):
    """States that say nothing, under the name that those of an untrained twin have."""

    name, above = "untrained_model:seed=0", "the untrained twin"

    def stand_in(self, site: str) -> str:
        return site

    def read(self, site: str, rows: Any, *, draw: int) -> Any:
        return np.random.default_rng(0).standard_normal((2000, WIDTH)).astype(np.float32)[rows]

    def recipe(self) -> dict[str, str]:
        return {"content_id": "twin"}


@dataclasses.dataclass(frozen=True)
class TwinControl(StateControl):
    draws: int = 1

    def source(self, probed: Any) -> TwinSource:
        return TwinSource()


def test_the_twin_dictionary_reads_the_twin_states() -> None:
    asked = DictionaryComparison(dictionary=Source.of(PLANTED), twin=Source.of(dictionary(basis(seed=7))))
    found = scores(absorbed_store(), asked, controls=[TwinControl()])
    twin = found.chosen["twin"]
    assert twin.test.high < 0.65 < found.chosen["dictionary"].test.low


def test_equal_runs_give_equal_numbers_and_a_finished_one_reads_no_states(tmp_path: Path) -> None:
    first = compared(absorbed_store(), to=tmp_path)
    store = absorbed_store()
    again = compared(store, to=tmp_path)
    assert store.reads == [] and again.analyses == first.analyses
    assert first.features[0].result.points == absorbed_scores().result.points
    frame = pd.read_parquet(tmp_path / "features.parquet")
    assert len(frame) == len(absorbed_scores().methods)
    assert set(frame.method) >= {"dense", "coordinates", "pca", "dictionary"}
    assert ProbeResults.read(tmp_path).features[0].latents == first.features[0].latents


def test_three_classes_are_scored_by_accuracy_and_have_a_latent_each() -> None:
    corpus = word_corpus(tags=3, ambiguous=0.5)
    random = np.random.default_rng(0)
    store = word_store(corpus, lambda form, tag: AXES[int(tag[1])] + 0.1 * random.standard_normal(WIDTH))
    found = train(store, corpus, task="upos", features=[PLANTED], controls=[], progress=False).features[0]
    mains: list[LatentScore] = [one for one in found.latents if one.is_main]
    assert found.measure == "accuracy"
    assert [(one.label, one.latent) for one in mains] == [("T0", 0), ("T1", 1), ("T2", 2)]


@pytest.mark.parametrize(
    ("named", "model", "fits"),
    [
        ("planted [weights 12ab, float32]", {"source": "planted", "dtype": "bfloat16"}, False),
        ("gpt2-small", {"source": "gpt2"}, True),
        ("gpt2-small", {"source": "openai-community/gpt2"}, True),
        ("google/gemma-2-2b", {"source": "gpt2"}, False),
        ("google/gemma-2-2b", {"source": "/models/mine"}, True),
        ("gpt2 [revision 607a30d783df, float32]", {"source": "gpt2", "revision": "607a30d783df" + "0" * 28}, True),
        ("gpt2 [revision 607a30d783df]", {"source": "gpt2", "revision": "1" * 40, "dtype": "float32"}, False),
        (None, {"source": "gpt2"}, True),
    ],
)
def test_the_model_that_a_dictionary_names_is_compared(named: str | None, model: dict[str, Any], fits: bool) -> None:
    made = dictionary(AXES, model=named)
    if fits:
        refuse_other_states(made, "resid.0", WIDTH, model)
    else:
        with pytest.raises(ProvenanceMismatch, match="another model"):
            refuse_other_states(made, "resid.0", WIDTH, model)


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        (dictionary(basis(8)), {}, ProvenanceMismatch, "width"),
        (dictionary(AXES, site="resid.7"), {}, UnknownSite, "resid.7"),
        (dictionary(AXES, site=None), {}, UnknownSite, "does not say"),  # type: ignore[arg-type]
        (dictionary(AXES, model="google/gemma-2-2b"), {}, ProvenanceMismatch, "another model"),
        (DictionaryComparison(dictionary=Source.of(PLANTED), k=(1, 512)), {}, BadParameter, "fewer latents"),
        (PLANTED, {"task": "column:score"}, BadParameter, "target of kind"),
        (PLANTED, {"probes": ["mass_mean"]}, BadParameter, "no probe of this run"),
        (
            DictionaryComparison(dictionary=Source.of(PLANTED), twin=Source.of(PLANTED)),
            {},
            BadParameter,
            "untrained_model",
        ),
        (
            DictionaryComparison(dictionary=Source.of(PLANTED), twin=Source.of(dictionary(AXES[:7]))),
            {},
            ProvenanceMismatch,
            "another size",
        ),
        (DictionaryComparison(dictionary=Source.of(PLANTED), measure="acuracy"), {}, Exception, "accuracy"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_state_is_read(
    features: Any, options: Any, error: type[Exception], message: str
) -> None:
    store = absorbed_store()
    more = {"measures": None} if "task" in options else {}
    with pytest.raises(error, match=message):
        compared(store, features, **options, **more)
    assert store.reads == []


@pytest.mark.parametrize("text", ["D,k=0", "D,k=1|x", "D,kk=3", "D,seed=-1"])
def test_options_of_the_text_are_checked_before_the_dictionary_is_read(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadParameter):
        DictionaryComparison.parse(text)


def test_a_saved_dictionary_is_named_by_its_folder_and_hash(tmp_path: Path) -> None:
    PLANTED.save(tmp_path / "planted")
    found = scores(absorbed_store(), f"{tmp_path / 'planted'},k=1|2")
    assert found.dictionary["name"] == f"planted-{PLANTED.content_id[:8]}"
    assert {one.k for one in found.methods} == {None, 1, 2}
    text = repr(found.result.provenance["recipe"])
    assert str(tmp_path) not in text  # what a result is of does not depend on where its dictionary lies


def noise_store(seed: int = 0) -> MemoryStore:
    """States that say nothing of the property."""
    random = np.random.default_rng(seed)
    return word_store(CORPUS, lambda form, tag: random.standard_normal(WIDTH))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("is_constant", [False, True])
def test_latents_that_say_nothing_are_not_called_the_best_and_have_no_followers(seed: int, is_constant: bool) -> None:
    """Also latents that are equally active on every row."""
    one = dictionary(AXES)
    made = (
        dataclasses.replace(one, encoder=0 * one.encoder, encoder_bias=0 * one.encoder_bias + 1) if is_constant else one
    )
    found = scores(noise_store(seed), made, controls=[])
    assert found.latents and all(latent.is_main and not latent.is_shown for latent in found.latents)
    said = " ".join(sentences(found))
    assert "No latent is shown to stand for T1" in said
    assert not any(text in said for text in ("best single one", "splitting", AUROC_OF_ONE))


def test_a_dictionary_that_is_never_active_is_refused_before_anything_is_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LinearProbe, "fit_many", lambda *_, **__: pytest.fail("a probe was fitted"))
    with pytest.raises(DegenerateDesign, match="no latent"):
        compared(absorbed_store(), dictionary(AXES, bias=1e6))


@pytest.mark.parametrize("bias", [0.3, -3.0])
def test_a_random_dictionary_stands_beside_it_or_the_page_says_why_not(bias: float) -> None:
    """With a bias of -3 nearly all latents are active on every row."""
    found = scores(absorbed_store(), dictionary(AXES, bias=bias), controls=[])
    said = " ".join(sentences(found))
    assert ("random" in found.chosen) == ("There is no random dictionary beside it" not in said) == (bias > 0)
