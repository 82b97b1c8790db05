"""Dictionaries are trained to the L0 asked for, find planted features, resume to the same bits, and refuse what
nothing can be learned from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probing as pb
from probing.dictionaries.training import fitting
from probing.dictionaries.training.learner import Learner, above, per_row
from probing.dictionaries.training.token_states import TokenStates
from probing.errors import (
    BadParameter,
    ConfigError,
    DegenerateDesign,
    InputError,
    NonFiniteStates,
    ProbingError,
    ProvenanceMismatch,
    UnknownSite,
    UnsupportedModel,
)
from probing.results.dictionary_training import RANDOM, TRAINED, TWIN, read_training
from probing.states.store import Store
from tests.conftest import REFERENCE
from tests.samples.planted_dictionaries import matched, planted_states

MODEL = str(REFERENCE / "model")
SMALL: dict[str, Any] = {"latents": 64, "k": 4, "epochs": 3, "batch": 256, "rate": 1e-2, "progress": False}


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_states(6000, features=48, width=24, l0=3.0, seed=3)


@pytest.fixture(scope="module")
def corpus(small_corpus: dict[str, Path]) -> pb.Corpus:
    return pb.Corpus.read(small_corpus)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, corpus: pb.Corpus) -> dict[str, Store]:
    """Stores of tokens at resid.2: of the reference model and of its untrained twin; and a store of words."""
    folder, made = tmp_path_factory.mktemp("stores"), {}
    for name, seed, rows in (("trained", None, "piece"), ("twin", 0, "piece"), ("words", None, "word:mean")):
        model = pb.LanguageModel.load(MODEL, untrained=seed)
        made[name] = pb.extract(model, corpus, to=folder / name, sites="resid.2", rows=rows, progress=False)
    return made


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_it_has_the_l0_that_was_asked_for_and_directions_of_norm_1(planted: Any, architecture: Any) -> None:
    made = pb.train_dictionary(planted.states, **SMALL | {"architecture": architecture})
    own = made.training.trained
    assert own.l0 == pytest.approx(4, rel=0.1) and own.alive_in_training is not None
    np.testing.assert_allclose(np.linalg.norm(made.dictionary.decoder, axis=1), 1.0, rtol=1e-5)
    assert made.dictionary.architecture == architecture
    control = next(one for one in made.training.qualities if one.role == RANDOM)
    assert own.unexplained < control.unexplained and round(own.l0) == control.l0
    latents = made.dictionary.encode(planted.states)
    left = (
        np.square(made.dictionary.error(planted.states)).sum()
        / np.square(planted.states - planted.states.mean(0)).sum()
    )
    assert left == pytest.approx(own.unexplained, rel=0.25)  # held-out rows and all rows
    assert latents.nnz / len(planted.states) == pytest.approx(own.l0, rel=0.1)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_planted_features_are_recovered(planted: Any, architecture: Any) -> None:
    options = SMALL | {"latents": 48, "k": 3, "epochs": 30, "architecture": architecture}
    made = pb.train_dictionary(planted.states, **options)
    drawn = np.random.default_rng(9).standard_normal((48, 24)).astype(np.float32)
    found, chance = matched(planted.features, made.dictionary.decoder), matched(planted.features, drawn)
    assert found.mean() > 0.8 > chance.mean() + 0.2
    assert (found > 0.9).mean() > 0.6 and (chance > 0.9).mean() < 0.1


@pytest.mark.parametrize("at", [1, 40])
def test_a_killed_training_goes_on_to_the_same_bits(
    planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = pb.train_dictionary(planted.states, **SMALL, to=tmp_path / "whole")
    monkeypatch.setattr(fitting, "_SAVE_SECONDS", 0.0)
    step, done = Learner.step, 0

    def stopping(learner: Learner, *given: Any) -> float:
        nonlocal done
        done += 1
        if done == at + 1:
            raise KeyboardInterrupt
        return step(learner, *given)

    monkeypatch.setattr(Learner, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        pb.train_dictionary(planted.states, **SMALL, to=tmp_path / "cut")
    assert not (tmp_path / "cut" / "dictionary.json").exists() and (tmp_path / "cut" / fitting.STATE).exists()
    again = pb.train_dictionary(planted.states, **SMALL, to=tmp_path / "cut")
    assert done == 22 * 3 + 1  # 5,700 rows of train in steps of 256: no step twice
    assert again.dictionary.content_id == whole.dictionary.content_id
    assert again.training.errors == whole.training.errors and again.training.seconds is None
    assert not (tmp_path / "cut" / fitting.STATE).exists()


def test_a_finished_training_is_not_done_again_unless_options_change(
    planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pb.train_dictionary(planted.states, **SMALL | {"epochs": 1}, to=tmp_path)
    assert pb.Dictionary.load(tmp_path).content_id == first.dictionary.content_id
    training = read_training(tmp_path)
    assert training == first.training
    with pytest.raises(ConfigError, match="another dictionary"):
        pb.train_dictionary(planted.states, **SMALL | {"epochs": 1, "seed": 1}, to=tmp_path)
    assert pb.Dictionary.load(tmp_path).content_id == first.dictionary.content_id
    (tmp_path / "twin").mkdir()
    first.dictionary.save(tmp_path / "twin")
    other = pb.train_dictionary(planted.states, **SMALL | {"epochs": 1, "seed": 1}, to=tmp_path, replace=True)
    assert not list((tmp_path / "twin").glob("*.*")) and len(list(tmp_path.glob("weights.*"))) == 1
    assert other.dictionary.content_id != first.dictionary.content_id
    monkeypatch.setattr(Learner, "step", lambda *given: pytest.fail("trained again"))
    same = pb.train_dictionary(planted.states, **SMALL | {"epochs": 1, "seed": 1}, to=tmp_path)
    assert same.training == other.training


def test_a_damaged_state_of_training_is_not_taken_up(planted: Any, tmp_path: Path) -> None:
    whole = pb.train_dictionary(planted.states, **SMALL | {"epochs": 1}, to=tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / fitting.STATE).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    again = pb.train_dictionary(planted.states, **SMALL | {"epochs": 1}, to=tmp_path / "cut")
    assert again.dictionary.content_id == whole.dictionary.content_id


@pytest.mark.parametrize(("latents", "k"), [(40, 3), (33, 5), (640, 4), (100, 60)])
def test_the_largest_latents_of_each_row_are_chosen(latents: int, k: int) -> None:
    pre = torch.randn(50, latents, generator=torch.Generator().manual_seed(1))
    active = per_row(pre, k)
    expected = pre.topk(k, dim=1)
    dense = torch.zeros_like(pre)
    dense[active.rows, active.columns] = active.values
    reference = torch.zeros_like(pre).scatter_(1, expected.indices, expected.values.relu())
    torch.testing.assert_close(dense, reference)
    values, columns, rows = above(pre, 0.5)
    assert torch.equal(values, pre[pre > 0.5]) and torch.equal(
        torch.stack([rows, columns], 1), torch.nonzero(pre > 0.5)
    )


def test_gradients_are_those_of_the_loss() -> None:
    """Compared with automatic differentiation of dense products."""
    random = torch.Generator().manual_seed(0)
    states = torch.randn(30, 8, generator=random)
    learner = Learner(
        torch.randn(20, 8, generator=random), k=3, per_row=True, idle_after=10**9, rate=1e-3, low_precision=False
    )
    learner.decoder_bias.normal_(generator=random).mul_(0.1)
    weights = [one.clone().requires_grad_() for one in learner._weights]
    encoder, decoder, bias, centre = weights
    pre = (states - centre) @ encoder.T + bias
    values, columns = pre.topk(3, dim=1)
    latents = torch.zeros_like(pre).scatter(1, columns, values.relu())
    loss = (latents @ decoder + centre - states).square().sum() / 2
    expected = list(torch.autograd.grad(loss, weights))
    expected[1] = expected[1] - (expected[1] * decoder).sum(1, keepdim=True) * decoder
    learner._move = lambda rate: None  # type: ignore[method-assign]
    with torch.no_grad():
        error = learner.step(states, 1e-3)
    assert error == pytest.approx(float(loss.detach()) * 2 / states.numel(), rel=1e-5)
    for k, (gradient, wanted) in enumerate(zip(learner._gradients, expected, strict=True)):
        own = gradient - (gradient * learner.decoder).sum(1, keepdim=True) * learner.decoder if k == 1 else gradient
        torch.testing.assert_close(own, wanted.detach(), rtol=1e-4, atol=1e-4)


def test_every_row_of_train_comes_once_an_epoch_in_another_order(planted: Any) -> None:
    rows = TokenStates(planted.states, "", skip=0, max_rows=None, seed=0)
    assert not set(rows.train) & set(rows.dev) and len(rows.train) + len(rows.dev) == len(planted.states)
    first, second = (np.concatenate(list(rows.batches(100, epoch, 0))) for epoch in (0, 1))
    assert len(first) == len(rows.train) // 100 * 100 and not np.array_equal(first, second)
    known = {row.tobytes() for row in planted.states[rows.train]}
    assert len({row.tobytes() for row in first}) == len(first) and {row.tobytes() for row in first} <= known
    later = list(rows.batches(100, 0, 0, first=7))
    np.testing.assert_array_equal(np.concatenate(later), first[700:])


def test_a_store_of_tokens_with_its_twin_and_its_loss(
    stores: dict[str, Store], corpus: pb.Corpus, tmp_path: Path
) -> None:
    model = pb.LanguageModel.load(MODEL)
    made = pb.train_dictionary(
        stores["trained"],
        "resid.2",
        **SMALL | {"latents": 128, "k": 8},
        twin=stores["twin"],
        model=model,
        corpus=corpus,
        to=tmp_path,
    )
    own, twin, control = made.training.qualities
    assert [own.role, twin.role, control.role] == [TRAINED, TWIN, RANDOM]
    assert own.loss_recovered is not None and control.loss_recovered is not None and twin.loss_recovered is None
    assert own.loss_clean is not None and own.loss_removed is not None and own.loss_replaced is not None
    assert own.loss_clean < own.loss_replaced < own.loss_removed and own.loss_clean == control.loss_clean
    assert own.loss_recovered > control.loss_recovered
    assert made.dictionary.site == "resid.2" and made.dictionary.model == made.training.model
    dev = TokenStates(stores["trained"], "resid.2", skip=1, max_rows=None, seed=0)
    texts = stores["trained"].rows.example
    assert not set(texts[dev.train]) & set(texts[dev.dev])  # whole texts are held out
    assert stores["trained"].rows.piece_start[dev.train].min() == 1
    page = pb.report(tmp_path).read_text(encoding="utf-8")
    assert "Dictionary of resid.2" in page and "untrained twin" in page


def test_a_trained_dictionary_is_of_its_own_store_and_model_and_of_no_twin(
    stores: dict[str, Store], corpus: pb.Corpus, tmp_path: Path
) -> None:
    pb.train_dictionary(stores["trained"], "resid.2", **SMALL, to=tmp_path / "d")
    made = pb.Dictionary.load(tmp_path / "d")
    texts = [example.text for example in corpus.examples[:20]]
    model = pb.LanguageModel.load(MODEL)
    check = pb.check_dictionary(made, stores["trained"], skip=1, progress=False)
    assert not check.problems and pb.check_dictionary(made, model, texts, progress=False).loss is not None
    assert pb.encode_states(made, stores["trained"], tmp_path / "latents", progress=False).role == "latents"
    with pytest.raises(ProvenanceMismatch, match="another model"):
        pb.check_dictionary(made, stores["twin"], progress=False)
    with pytest.raises(ProvenanceMismatch, match="another model"):
        pb.encode_states(made, stores["twin"], tmp_path / "others", progress=False)


def test_no_copy_of_a_held_out_text_or_row_is_in_train(planted: Any, tmp_path: Path) -> None:
    twice = np.concatenate([planted.states[:500], planted.states[:700]])
    rows = TokenStates(twice, "", skip=0, max_rows=None, seed=0)
    assert len(rows.dev) and not {row.tobytes() for row in twice[rows.dev]} & {r.tobytes() for r in twice[rows.train]}
    words = ("old", "new", "quiet", "heavy", "native", "famous", "dark", "official")
    texts = [f"the {one} doctor beyond the {other} ladder" for one in words for other in words] * 3
    given = pb.Corpus.from_texts(texts)
    store = pb.extract(
        pb.LanguageModel.load(MODEL),
        given,
        to=tmp_path,
        sites="resid.1",
        rows="piece",
        shard_bytes=1 << 16,
        progress=False,
    )
    split = TokenStates(store, "resid.1", skip=1, max_rows=None, seed=0)
    train, dev = ({texts[int(one)] for one in store.rows.example[part]} for part in (split.train, split.dev))
    assert train and dev and not train & dev


@pytest.mark.parametrize("factor", [1e30, 1e-15, 1e-25, 1.0])
def test_the_size_of_the_states_does_not_matter(planted: Any, factor: float) -> None:
    plain, scaled = (
        pb.train_dictionary(planted.states * np.float32(by), **SMALL | {"precision": "float32"}).training.trained
        for by in (1.0, factor)
    )
    assert scaled.unexplained == pytest.approx(plain.unexplained, rel=0.15)
    assert scaled.l0 == pytest.approx(plain.l0, rel=0.1)


@pytest.mark.parametrize(
    "states",
    [
        np.ones((600, 24), np.float32),
        np.full((600, 24), 0.1, np.float32),
        np.zeros((600, 24), np.float32),
        np.repeat(np.random.default_rng(0).standard_normal((1, 24)).astype("f4"), 600, 0),
        np.float32(1e6) + np.random.default_rng(0).integers(0, 2, (600, 24)).astype("f4") / 16,
    ],
)
def test_rounding_is_not_learned_from(states: np.ndarray) -> None:
    with pytest.raises(DegenerateDesign, match="do not vary"):
        pb.train_dictionary(states, **SMALL)


def test_training_that_explains_nothing_is_refused(planted: Any) -> None:
    with pytest.raises(DegenerateDesign, match="does not converge"):
        pb.train_dictionary(planted.states, **SMALL | {"rate": 0.9, "architecture": "topk", "k": 32})


def test_options_of_another_type_or_range_are_typed_errors(planted: Any, tmp_path: Path) -> None:
    """Any value that an option cannot take, for every option; before anything is written."""
    wrong = [1.5, "4", float("nan"), float("inf"), -1, [], True]
    wholes = ("latents", "k", "epochs", "batch", "seed", "skip", "max_rows")
    cases = [(name, value) for name in wholes for value in wrong]
    cases += [("max_rows", 0), ("latents", 0), ("batch", 0), ("seed", None), ("k", None), ("epochs", None)]
    cases += [("rate", value) for value in ("0.1", float("nan"), float("inf"), -1, 0, 1, [], True)]
    for name, value in cases:
        with pytest.raises(BadParameter):
            pb.train_dictionary(planted.states, **SMALL | {name: value}, to=tmp_path / "to")
    for states in (planted.states[:20].tolist(), planted.states[0], planted.states.astype(int), None, 3):
        with pytest.raises(BadParameter, match="no states"):
            pb.train_dictionary(states, **SMALL, to=tmp_path / "to")
    for few in (planted.states[:0], planted.states[:1], planted.states[:2]):
        with pytest.raises(DegenerateDesign):
            pb.train_dictionary(few, **SMALL, to=tmp_path / "to")
    with pytest.raises(NonFiniteStates):
        pb.train_dictionary(planted.states.astype(float) * 1e39, **SMALL)
    with pytest.raises(ProbingError):
        pb.train_dictionary(planted.states, **SMALL, to="/proc/x")
    assert not (tmp_path / "to").exists()


def test_a_store_without_such_tokens_is_a_typed_error(stores: dict[str, Store]) -> None:
    with pytest.raises(DegenerateDesign, match="too few tokens"):
        pb.train_dictionary(stores["trained"], "resid.2", **SMALL, skip=1000)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"latents": 9000}, DegenerateDesign, "more latents than tokens"),
        ({"k": 40}, BadParameter, "too many active latents"),
        ({"k": 0}, BadParameter, "k is too small"),
        ({"rate": 0.0}, BadParameter, "learning rate"),
        ({"architecture": "relu"}, BadParameter, "unknown architecture"),
        ({"precision": "int8"}, BadParameter, "unknown precision"),
        ({"epochs": 0}, BadParameter, "epochs is too small"),
        ({"max_rows": 1}, DegenerateDesign, "too few tokens"),
    ],
)
def test_options_out_of_range_are_refused_before_work(
    planted: Any, tmp_path: Path, changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pb.train_dictionary(planted.states, **SMALL | changed, to=tmp_path)
    assert not list(tmp_path.iterdir())


def test_states_that_cannot_be_learned_from_are_refused(planted: Any, tmp_path: Path) -> None:
    constant = np.ones((500, 8), np.float32)
    with pytest.raises(DegenerateDesign, match="do not vary"):
        pb.train_dictionary(constant, **SMALL, to=tmp_path)
    broken = planted.states.copy()
    broken[7, 3] = np.nan
    with pytest.raises(NonFiniteStates):
        pb.train_dictionary(broken, **SMALL, to=tmp_path)
    assert not (tmp_path / "dictionary.json").exists() and not (tmp_path / "dictionary_training.json").exists()


def test_other_stores_models_and_twins_are_refused(stores: dict[str, Store], corpus: pb.Corpus) -> None:
    model = pb.LanguageModel.load(MODEL)
    with pytest.raises(BadParameter, match="trained on tokens"):
        pb.train_dictionary(stores["words"], "resid.2", **SMALL)
    with pytest.raises(UnknownSite):
        pb.train_dictionary(stores["trained"], "resid.9", **SMALL)
    with pytest.raises(ProvenanceMismatch, match="no untrained twin"):
        pb.train_dictionary(stores["trained"], "resid.2", **SMALL, twin=stores["trained"])
    with pytest.raises(ProvenanceMismatch, match="another model"):
        pb.train_dictionary(stores["twin"], "resid.2", **SMALL, model=model, corpus=corpus)
    with pytest.raises(BadParameter, match="needs a model and its corpus"):
        pb.train_dictionary(stores["trained"], "resid.2", **SMALL, model=model)
    base = pb.LanguageModel.load(MODEL, kind="base")
    with pytest.raises((UnsupportedModel, ProvenanceMismatch)):
        pb.train_dictionary(stores["trained"], "resid.2", **SMALL, model=base, corpus=corpus)


def test_a_file_of_another_form_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "dictionary_training.json").write_text(json.dumps({"site": "resid.2"}), encoding="utf-8")
    with pytest.raises(InputError, match="no training of a dictionary"):
        read_training(tmp_path)
