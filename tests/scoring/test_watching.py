"""Laws of watching and steering: generating is finished, hooks go, strength 0 changes nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

import probing as pb
from probing.errors import BadParameter, DegenerateDesign, OtherRows, ProvenanceMismatch, UnknownName, UnsupportedModel
from probing.labels import Pieces
from probing.probes._estimator import load_probe
from probing.scoring.alarms import Alarm, AlarmThreshold
from probing.scoring.steering import NOT_TESTED
from probing.statistics.aggregations import AGGREGATIONS, running
from probing.text.alignment import Encoded
from tests.samples.tiny_models import language_model
from tests.scoring.test_scoring import Trained, model_of

PROMPTS = ["nowadays the young doctor", "formerly the old painters near the garden", "the"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_corpus: dict[str, Path]) -> Trained:
    return Trained(tmp_path_factory.mktemp("watched"), small_corpus)


def hooks_of(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.suffix.model.modules())


def finished(model: pb.LanguageModel, prompt: str, ids: np.ndarray, site: str) -> np.ndarray:
    """States of the new pieces when the finished text is read at once."""
    first = model.encode([prompt])[0].ids
    whole = np.concatenate([first, ids])
    n = len(whole)
    one = Encoded(whole, np.zeros((n, 2), np.int64), np.zeros(n, bool), np.zeros((0, 2), np.int64))
    return model.states([one], [site])[site][0, len(first) :].numpy()


@pytest.mark.parametrize("cache", [True, False])
def test_scores_while_generating_are_those_of_the_finished_text(trained: Trained, cache: bool) -> None:
    model = model_of()
    files = {"mean": trained.of("mean")[0], "last": trained.of("last")[0]}
    files |= {"attention": trained.of("pieces-max", "attention_pooling")[0]}
    with pb.watch(model, files) as scores:
        made = model.generate(PROMPTS, max_new_tokens=12, use_cache=cache)
    assert len(scores) == 3 and all(text.is_complete for text in scores)
    for prompt, one, text in zip(PROMPTS, made, scores, strict=True):
        assert text.ids.tolist() == one.ids.tolist() and one.is_cut
        for name, recipe in scores.recipes.items():
            X = finished(model, prompt, one.ids, recipe.site)
            own = Pieces.of_rows(X) if recipe.probe.input == "pieces" else X
            np.testing.assert_allclose(text.scores[name], recipe.scored(own)[0], atol=2e-4)
        mean = finished(model, prompt, one.ids, "resid.2").mean(0, keepdims=True)
        assert text.as_trained("mean") == pytest.approx(scores.recipes["mean"].scored(mean)[0][0], abs=2e-4)
        assert text.as_trained("last") == pytest.approx(text.scores["last"][-1], abs=1e-6)


def test_hugging_face_generate_is_watched_too_and_what_follows_the_end_is_not(trained: Trained) -> None:
    model = model_of()
    ids = torch.from_numpy(model.encode([PROMPTS[0]])[0].ids)[None]
    network: Any = model.suffix.model
    free = network.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    stop = int(free[3])
    until = free.tolist().index(stop)
    with pb.watch(model, trained.of("mean")[0]) as scores:
        network.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=stop)
    assert scores[0].ids.tolist() == free[:until].tolist()
    assert "generate" not in network.__dict__


def test_the_prompt_is_scored_only_if_all_roles_are_asked_for(trained: Trained) -> None:
    model = model_of(chat=True)
    chat = [("user", "nowadays the young doctor")]
    with pb.watch(model, trained.of("chat")[0]) as new, pb.watch(model, trained.of("chat")[0], role="all") as every:
        model.generate([chat], max_new_tokens=5)
    assert len(new[0].ids) == 5 < len(every[0].ids)
    (name,) = new.recipes
    np.testing.assert_allclose(every[0].scores[name][-5:], new[0].scores[name], atol=1e-6)
    # The finished chat, read at once, by the template's own marks.
    example = pb.Example("x", new[0].text, messages=(*chat, ("assistant", new[0].text)))
    read = pb.score(trained.of("chat")[0], model, [example], pieces=True)
    assert read[0].role == "assistant"
    np.testing.assert_allclose([one.score for one in read[0].pieces], new[0].scores[name], atol=2e-4)
    assert read.scores[0] == pytest.approx(new[0].as_trained(name), abs=2e-4)


def test_hooks_are_gone_after_the_end_and_after_errors(trained: Trained) -> None:
    model, file = model_of(), trained.of("mean")[0]
    before, plain = hooks_of(model), model.generate(PROMPTS, max_new_tokens=6)

    class Stop(Exception):
        pass

    def stop(alarm: Alarm) -> None:
        raise Stop

    with pytest.raises(Stop), pb.watch(model, file, callback=stop, threshold=-1e9) as scores:
        model.generate(PROMPTS, max_new_tokens=6)
    assert not any(text.is_complete for text in scores) and any(len(text.ids) for text in scores)
    with pytest.raises(Stop), pb.steer(model, file, strength=3):
        raise Stop
    assert hooks_of(model) == before and "generate" not in model.suffix.model.__dict__
    assert [one.text for one in model.generate(PROMPTS, max_new_tokens=6)] == [one.text for one in plain]


def test_the_callback_is_called_once_past_the_threshold(trained: Trained) -> None:
    model, file = model_of(), trained.of("mean")[0]
    called: list[Alarm] = []
    with pb.watch(model, {"p": file}, callback=called.append, threshold=0.0, alarm_on="exponential") as scores:
        model.generate(PROMPTS, max_new_tokens=8)
    for n, text in enumerate(scores):
        over = np.flatnonzero(running(text.scores["p"], "exponential") > 0)
        mine = [alarm for alarm in called if alarm.sequence == n]
        assert [alarm.piece for alarm in mine] == over[:1].tolist()
    probe = load_probe(file)
    probe.about = dict(probe.about) | {"threshold": None}
    with pytest.raises(BadParameter, match="needs a threshold"), pb.watch(model, probe, callback=called.append):
        pass


def test_aggregations_are_their_definitions() -> None:
    x = np.array([1.0, -2.0, 4.0, 0.0])
    expected = {
        "last": x,
        "mean": [1, -0.5, 1, 0.75],
        "max": [1, 1, 4, 4],
        "exponential": [1, -0.5, 1.75, 0.875],
        "rolling": [1, -0.5, 1, 2],
        "rolling_max": [1, 1, 1, 2],
    }
    assert set(expected) == set(AGGREGATIONS)
    for how, values in expected.items():
        np.testing.assert_allclose(running(x, how, decay=0.5, width=2), values)
    with pytest.raises(BadParameter):
        running(x, "median")


def test_multimax_sums_each_probes_highest(trained: Trained) -> None:
    model = model_of()
    with pb.watch(model, {"a": trained.of("mean")[0], "b": trained.of("last")[0]}) as scores:
        model.generate(PROMPTS[:1], max_new_tokens=5)
    assert scores[0].multimax() == pytest.approx(scores[0].scores["a"].max() + scores[0].scores["b"].max())
    assert len(scores.records()) == 10 and "5 pieces" in repr(scores)
    with pytest.raises(UnknownName):
        scores[0].aggregate("c")


def test_a_generation_that_would_be_cut_is_refused_before_it_starts(trained: Trained) -> None:
    model = model_of()
    with pytest.raises(BadParameter, match="would be cut"), pb.watch(model, trained.of("mean")[0]) as scores:
        model.generate(PROMPTS, max_new_tokens=64)
    assert len(scores) == 0
    with pytest.raises(BadParameter, match="piece by piece"), pb.watch(model, trained.of("mean")[0]):
        model.generate(PROMPTS, max_new_tokens=4, num_beams=2)
    with pytest.raises(BadParameter, match="no chat template"):
        model.generate([[("user", "the doctor")]])
    with pytest.raises(BadParameter, match="without pieces"):
        model.generate([])
    with pytest.raises(UnsupportedModel, match="does not continue"):
        language_model("bert").generate(["the"])


# Steering.


def test_strength_0_changes_nothing_to_the_bit(trained: Trained) -> None:
    model = model_of()
    inputs = model.encode(PROMPTS)
    plain, states = model.logits(inputs), model.states(inputs, model.sites)
    with pb.steer(model, trained.of("mean")[0], strength=0) as steering:
        assert torch.equal(model.logits(inputs), plain)
        again = model.states(inputs, model.sites)
    assert all(torch.equal(states[site], again[site]) for site in model.sites)
    assert steering.use == NOT_TESTED


def test_strength_raises_the_log_odds_by_so_much(trained: Trained) -> None:
    model, file = model_of(), trained.of("mean")[0]
    with pb.steer(model, file, strength=2.5):
        steered = pb.score(file, model, PROMPTS).scores
    np.testing.assert_allclose(steered - pb.score(file, model, PROMPTS).scores, 2.5, atol=1e-4)


def test_the_report_says_what_a_strength_does(trained: Trained) -> None:
    model, file = model_of(), trained.of("mean")[0]
    texts = [example.text for example in trained.corpus.examples[:20]]
    report = pb.steering_report(model, file, texts, strengths=(0.0, 1.0, 20.0), answers=["is"])
    none, little, much = report.effects
    assert none.kl == (0.0, 0.0, 0.0) and none.perplexity == none.clean_perplexity and none.changed == 0
    assert 0 < little.kl[0] < much.kl[0] and much.answers["is"][0] != 0
    assert NOT_TESTED in str(report) and report.records()[2]["strength"] == 20
    with pytest.raises(BadParameter, match="single piece"):
        pb.steering_report(model, file, texts, answers=["is is"])
    with pytest.raises(BadParameter, match="a strength is a number"), pb.steer(model, file, strength=float("nan")):
        pass


def test_a_chat_is_of_pairs_or_of_mappings_and_nothing_else() -> None:
    model = model_of(chat=True)
    pairs = model.generate([[("user", "nowadays the young doctor")]], max_new_tokens=4)
    named = model.generate([[{"role": "user", "content": "nowadays the young doctor", "name": "x"}]], max_new_tokens=4)
    assert pairs[0].prompt == named[0].prompt and pairs[0].text == named[0].text
    for wrong in ([("user", "Hi")], [[("user", "Hi", "there")]], [["user", "Hi"]], [[]], [3], [{"role": "user"}]):
        with pytest.raises(BadParameter):
            model.generate(wrong, max_new_tokens=4)  # type: ignore[arg-type]


def test_a_prompt_of_another_form_than_in_training_is_refused(trained: Trained) -> None:
    model, chat = model_of(chat=True), [[("user", "nowadays the young doctor")]]
    for file, prompts in ((trained.of("chat")[0], PROMPTS), (trained.of("mean")[0], chat)):
        with pytest.raises(ProvenanceMismatch, match="another form"), pb.watch(model, file):
            model.generate(prompts, max_new_tokens=4)
        with pb.watch(model, file, any_model=True) as scores:
            model.generate(prompts, max_new_tokens=4)
        assert len(scores) == len(prompts)


def test_a_threshold_of_whole_texts_is_told_from_one_of_pieces(trained: Trained) -> None:
    model, file = model_of(), trained.of("mean")[0]
    for how in ("last", "mean", "as_trained_so_far"):
        with pytest.warns(OtherRows, match="unfinished"), pb.watch(model, file, callback=print, alarm_on=how):
            pass
    with pytest.warns(OtherRows, match="generates without their prompts"), pb.watch(model, file, callback=print):
        pass
    with pytest.warns(OtherRows, match="model generates[.]"), pb.watch(model, file, callback=print, role="all"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pb.watch(model, file, callback=print, threshold=1.0), pb.watch(model, file):
            pass


@pytest.mark.parametrize("kind", ["mean", "last", "max", "pieces-max", "position"])
def test_an_alarm_as_trained_is_what_score_says_of_the_finished_text(trained: Trained, kind: str) -> None:
    model, file = model_of(), trained.of(kind)[0]
    raised: list[Alarm] = []
    with (
        pytest.warns(OtherRows, match="of a corpus"),
        pb.watch(model, {"n": file}, callback=raised.append, role="all") as scores,
    ):
        model.generate(PROMPTS + list(TEXTS[:20]), max_new_tokens=6)
    assert scores.rule.alarm_on == "as_trained" and scores.recipes["n"].threshold is not None
    limit = scores.recipes["n"].threshold.value
    over = [n for n, text in enumerate(scores) if text.as_trained("n") > limit]
    assert [alarm.sequence for alarm in raised] == over
    assert all(alarm.piece == len(scores[alarm.sequence].ids) - 1 for alarm in raised)


def texts_of(seed: int, count: int) -> list[str]:
    """Beginnings of texts, each drawn in the same way from the words of the reference model."""
    random = np.random.default_rng(seed)
    first, second = ["nowadays", "formerly", "the"], ["young", "old"]
    nouns = ["doctor", "painters", "doctors", "painter", "friend", "lawyers"]
    return [f"{random.choice(first)} the {random.choice(second)} {random.choice(nouns)} near" for _ in range(count)]


TEXTS = texts_of(0, 20)


@pytest.mark.parametrize("how", ["as_trained", "as_trained_so_far", *(a for a in AGGREGATIONS if a != "rolling")])
def test_the_share_of_texts_that_raise_an_alarm_is_as_promised(trained: Trained, how: str) -> None:
    """Of new texts no more raise an alarm than chance allows: the k-th of n of dev, so a beta-binomial share."""
    model, file, fpr, count = model_of(), trained.of("mean")[0], 0.1, 120
    # A model that generates at random: texts are exchangeable, and no two are alike.
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True}
    network: Any = model.suffix.model

    def generate(seed: int) -> None:
        torch.manual_seed(seed)
        ids = torch.from_numpy(np.stack([one.ids for one in model.encode(["nowadays the young"] * count)]))
        network.generate(ids, pad_token_id=0, eos_token_id=None, **options)

    with pb.watch(model, {"n": file}, alarm_on=how) as dev:
        generate(0)
    limit = dev.threshold("n", fpr=fpr)
    raised: list[Alarm] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pb.watch(model, {"n": file}, callback=raised.append, threshold=limit) as scores:
            generate(1)
    k = int(fpr * (count + 1))
    least, most = betabinom(count, k, count + 1 - k).ppf([0.0005, 0.9995])
    assert scores.rule == dev.rule and len({alarm.sequence for alarm in raised}) == len(raised)
    assert least <= len(raised) <= most
    over = np.flatnonzero(scores.peaks("n") > limit.value)  # a rounding apart at most
    assert len({alarm.sequence for alarm in raised} ^ set(over.tolist())) <= 1


def test_a_threshold_of_one_comparison_is_not_one_of_another(trained: Trained) -> None:
    model, file = model_of(), trained.of("mean")[0]
    with pb.watch(model, {"n": file}, alarm_on="mean") as dev:
        for _ in range(4):
            model.generate(TEXTS[:5], max_new_tokens=4)
    limit = dev.threshold("n", fpr=0.1)
    assert isinstance(limit, AlarmThreshold) and limit.dev_negatives == 20
    assert limit.value in dev.peaks("n")
    for other in ({"alarm_on": "max"}, {"role": "all"}):
        with (
            pytest.warns(OtherRows, match="chosen on mean") as caught,
            pb.watch(model, {"n": file}, callback=print, threshold=limit, **other),  # type: ignore[arg-type]
        ):
            pass
        assert caught[0].filename == __file__
    with pytest.raises(DegenerateDesign, match="at least 99"):
        dev.threshold("n", fpr=0.01)
    with pytest.raises(UnknownName):
        dev.threshold("m", fpr=0.1)


def test_a_probe_of_words_gives_a_finished_text_no_score(trained: Trained) -> None:
    with (
        pytest.raises(BadParameter, match="as a whole no score"),
        pb.watch(model_of(), trained.of("words")[0], alarm_on="as_trained"),
    ):
        pass


@pytest.mark.parametrize("options", [{"threshold": np.nan}, {"threshold": {"typo": 1.0}}, {"callback": 5}])
def test_an_alarm_that_could_never_be_raised_is_refused(trained: Trained, options: dict[str, Any]) -> None:
    given = {"callback": print} | options
    with pytest.raises(BadParameter), pb.watch(model_of(), trained.of("mean")[0], **given):
        pass


@pytest.mark.filterwarnings("ignore::probing.errors.OtherRows")
def test_what_is_scored_is_the_class_that_the_threshold_flags(trained: Trained) -> None:
    """Whichever of the two it is: by watching, scoring and steering; another class has no threshold of its own."""
    model, probe = model_of(), load_probe(trained.of("mean")[0])
    facts, classes = probe.about["threshold"], [str(one) for one in probe.classes_]
    of: dict[str, np.ndarray] = {}
    for label in classes:
        probe.about = {**probe.about, "threshold": {**facts, "label": label, "value": -1e3}}
        raised: list[Alarm] = []
        with pb.watch(model, {"p": probe}, callback=raised.append) as scores:
            model.generate(PROMPTS, max_new_tokens=4)
        assert {alarm.label for alarm in raised} == {label} and scores.recipes["p"].label == label
        of[label] = scores[0].scores["p"]
        np.testing.assert_allclose(
            pb.score(probe, model, PROMPTS).scores, pb.score(probe, model, PROMPTS, label=label).scores
        )
        with pb.watch(model, {"p": probe}, label={"p": label}) as asked:
            model.generate(PROMPTS, max_new_tokens=4)
        np.testing.assert_allclose(asked[0].scores["p"], of[label])
        other = next(one for one in classes if one != label)
        with pytest.raises(BadParameter, match=label), pb.watch(model, {"p": probe}, label=other, callback=print):
            pass
        with pytest.raises(UnknownName), pb.watch(model, {"p": probe}, label={"q": label}):
            pass
    np.testing.assert_allclose(of[classes[0]], -of[classes[1]], atol=1e-4)
