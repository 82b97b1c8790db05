"""A model that is probed while it is trained is trained as without, and its results are those of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.trainer_callback import TrainerCallback

import probing as pb
from probing.errors import BadParameter, ConfigError, ProbingWarning, UnknownName
from probing.results.models import ModelFacts
from tests.conftest import REFERENCE

TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE / "model")
OPTIONS: dict[str, Any] = {"probes": ["linear"], "controls": ["word_type:draws=2"]}


def network() -> GPT2LMHeadModel:
    """A tiny model with dropout, so that training depends on the generator."""
    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), **sizes))


@pytest.fixture(scope="module")
def corpus(small_corpus: dict[str, Path]) -> pb.Corpus:
    return pb.Corpus.read(small_corpus)


@pytest.fixture(scope="module")
def rows(small_corpus: dict[str, Path]) -> list[dict[str, list[int]]]:
    """Sentences as the Trainer takes them, all of one length."""
    texts = [json.loads(line)["text"] for line in small_corpus["train"].read_text(encoding="utf-8").splitlines()]
    ids = [TOKENIZER(text)["input_ids"][:6] for text in texts]
    return [{"input_ids": one, "labels": one} for one in ids if len(one) == 6]


def callback(corpus: pb.Corpus, to: Path, **more: Any) -> pb.ProbingCallback:
    given: dict[str, Any] = {"task": "upos", "to": to, "every": 3, "sites": "resid.1", "tokenizer": TOKENIZER}
    return pb.ProbingCallback(corpus, **given | OPTIONS | more)


def trained(folder: Path, rows: Any, *callbacks: Any, steps: int = 7) -> Any:
    """A model trained by the real Trainer, which saves a checkpoint every three steps."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate: pip install 'probing-toolkit[trainer]'")
    options = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_steps=3,
        seed=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = network()
    trainer = transformers.Trainer(model=model, args=options, train_dataset=rows, callbacks=list(callbacks))
    trainer.train()
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: pb.Corpus, rows: Any) -> tuple[Path, Any]:
    """A training run that was probed, its folder, and the model."""
    folder = tmp_path_factory.mktemp("run")
    return folder, trained(folder / "model", rows, callback(corpus, folder / "results"))


def scores(results: Any) -> dict[tuple[str, str], Any]:
    return {(one.site, one.probe): (one.measures, one.confusion) for one in results}


def at(folder: Path, step: int) -> list[Any]:
    return [one for one in pb.ProbeResults.read(folder) if ModelFacts.of_result(one).step == step]


def test_it_probes_at_the_first_step_every_n_and_the_last_and_writes_the_page(run: tuple[Path, Any]) -> None:
    results = pb.ProbeResults.read(run[0] / "results")
    assert list(dict.fromkeys(ModelFacts.of_result(one).step for one in results)) == [0, 3, 6, 7]
    page = (run[0] / "results" / "report.html").read_text(encoding="utf-8")
    assert "Over training, step 0 to 7" in page and "GPT2LMHeadModel [step 3" in page
    assert not any((run[0] / "results" / "states").iterdir())  # not kept, unless asked for
    assert results.plot("models").to_dict()["concat"]


def test_training_is_what_it_is_without(run: tuple[Path, Any], tmp_path: Path, rows: Any) -> None:
    alone = trained(tmp_path, rows).state_dict()
    assert all(torch.equal(alone[name], tensor) for name, tensor in run[1].state_dict().items())
    assert run[1].training


@pytest.mark.parametrize("step", [3, 6])
def test_results_are_those_of_the_saved_checkpoint(
    run: tuple[Path, Any], tmp_path: Path, corpus: pb.Corpus, step: int
) -> None:
    saved = run[0] / "model" / f"checkpoint-{step}"
    TOKENIZER.save_pretrained(saved)
    model = pb.LanguageModel.load(str(saved), step=step)
    store = pb.extract(model, corpus, sites="resid.1", to=tmp_path / "states", progress=False)
    afterwards = pb.train(store, corpus, task="upos", to=tmp_path / "results", progress=False, **OPTIONS)
    found = at(run[0] / "results", step)
    assert found and scores(found) == scores(afterwards)
    assert {one.facts["model"]["parameters"] for one in found} == {
        one.facts["model"]["parameters"] for one in afterwards
    }


def test_a_loop_of_ones_own_resumes_and_replaces_a_step_that_became_another(
    tmp_path: Path, corpus: pb.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, watch = network(), callback(corpus, tmp_path)
    model.train()
    first = watch.probe(model, 0)
    assert model.training and len(first)
    monkeypatch.setattr("probing.jobs.callback.pb.extract", lambda *_, **__: pytest.fail("it is done already"))
    again = callback(corpus, tmp_path).probe(model, 0)
    assert scores(again) == scores(first)
    monkeypatch.undo()
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    with pytest.warns(ProbingWarning, match="step 0 has other weights"):
        other = watch.probe(model, 0)
    assert scores(other) != scores(first) and scores(watch.results) == scores(other)


def test_two_trainings_in_one_folder_are_never_one_curve(tmp_path: Path, corpus: pb.Corpus) -> None:
    watch, elsewhere = callback(corpus, tmp_path), callback(corpus, tmp_path, run="elsewhere")
    one, two = network(), network()
    with torch.no_grad():
        two.transformer.wte.weight += 1.0
    first = [watch.probe(one, step) for step in (0, 3, 6)]
    elsewhere.probe(one, 6)
    with pytest.warns(ProbingWarning, match="step 3 has other weights"):
        watch.probe(two, 3)
    of = [(ModelFacts.of_result(one).run, ModelFacts.of_result(one).step) for one in watch.results]
    assert sorted(set(of)) == [("", 0), ("", 3), ("elsewhere", 6)]
    with pytest.warns(ProbingWarning, match="step 3 has other weights"):
        again = watch.probe(one, 3)  # what was dropped does not count as done
    assert scores(again) == scores(first[1]) and scores(watch.probe(one, 6)) == scores(first[2])


def test_bad_options_are_refused_before_training(tmp_path: Path, corpus: pb.Corpus) -> None:
    with pytest.raises(BadParameter, match="every how many steps"):
        callback(corpus, tmp_path, every=0)
    with pytest.raises(UnknownName, match="opus"):
        callback(corpus, tmp_path, task="opus")
    with pytest.raises(BadParameter, match="did you mean 'seeds'"):
        callback(corpus, tmp_path, seed=3)
    with pytest.raises(ConfigError, match="needs other rows"):
        callback(corpus, tmp_path, rows="sentence:last")
    with pytest.raises(BadParameter, match="no number of steps"):
        callback(corpus, tmp_path).probe(network(), "last")  # type: ignore[arg-type]
    with pytest.raises(BadParameter, match="no tokenizer"):
        callback(corpus, tmp_path, tokenizer=None).probe(network(), 1)


def test_an_error_in_the_middle_of_training_is_a_warning(tmp_path: Path, corpus: pb.Corpus, rows: Any) -> None:
    class Failing(pb.ProbingCallback):
        def probe(self, model: Any, step: int, *, tokenizer: Any = None) -> Any:
            if step:
                raise ConfigError("it failed")

    with pytest.warns(ProbingWarning, match="step 3 was not probed: it failed"):
        trained(tmp_path / "m", rows, Failing(corpus, task="upos", to=tmp_path / "r", every=3), steps=3)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_that_is_stopped_early_is_probed_at_its_last_step(
    tmp_path: Path, corpus: pb.Corpus, rows: Any, is_first: bool
) -> None:
    class Stop(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            control.should_training_stop = state.global_step == 2

    watch = callback(corpus, tmp_path / "r", page=False)
    model = trained(tmp_path / "m", rows, *([Stop(), watch] if is_first else [watch, Stop()]))
    assert {ModelFacts.of_result(one).step for one in watch.results} == {0, 2}
    assert scores(watch.results[-1:]) == scores(callback(corpus, tmp_path / "again").probe(model, 2)[-1:])
