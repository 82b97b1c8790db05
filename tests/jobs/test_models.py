"""Several models of a study: how they are named, ordered and refused; and one result for any order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import BadParameter, ConfigError, UnsupportedModel
from probing.jobs.models import ModelOptions, models_of, parsed
from probing.jobs.study import Study
from probing.results.models import ModelFacts
from probing.states.store import Store
from tests.conftest import REFERENCE

MODEL = REFERENCE / "model"
STUDY = """
name: many
models: {models}
corpus: {corpus}
extract: {{rows: "word:mean", sites: "resid.0,resid.1"}}
train: {{task: upos, probes: linear, controls: ["word_type:draws=2"]}}
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of the reference model's architecture with other weights, and one of another width."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("run")
    for name, width, seed in (("checkpoint-0", 16, 0), ("checkpoint-10", 16, 1), ("wide", 32, 2)):
        torch.manual_seed(seed)
        sizes = {"n_positions": 32, "n_embd": width, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("gpt2", {"name": "gpt2"}),
        ("runs/c-200:step=200", {"name": "runs/c-200", "step": 200}),
        ("org/name@step1000:step=1000,run=a", {"name": "org/name", "revision": "step1000", "step": 1000, "run": "a"}),
        ("probing:reference", {"name": "probing:reference"}),
        ("probing:reference:untrained=0", {"name": "probing:reference", "untrained": 0}),
        ("gpt2:revision=main", {"name": "gpt2", "revision": "main"}),
    ],
)
def test_a_recipe_is_read_and_written(recipe: str, given: dict[str, Any]) -> None:
    assert parsed(recipe) == given
    model = ModelOptions.read(given, "here")
    assert parsed(str(model)) == given and model.loaded_with() == {k: v for k, v in given.items() if k != "name"}


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (["{run}/checkpoint-0:step=final"], "a step that is no number"),
        (["{run}/checkpoint-0:step=-3"], "a step that is no number"),
        (["{run}/checkpoint-0:steps=3"], "did you mean 'step'"),
        (["{run}/checkpoint-0:run=a"], "a run without a step"),
        (["{run}/checkpoint-0:step="], "has no value"),
        (["{run}/checkpoint-0:step=0", "{run}/checkpoint-0:step=10"], "the same model is named twice"),
        (["{run}/checkpoint-0", "{run}/./checkpoint-0"], "the same model is named twice"),
        (["{run}/checkpoint-0:step=10", "{run}/checkpoint-10:step=10"], "two checkpoints are of step 10 of one run"),
        (["{run}/checkpoint-0:step=0", "{run}/wide:step=10"], "different architectures"),
        (["{run}/checkpoint-0:step=0", "{run}/checkpoint-11:step=11"], "no model folder"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(checkpoints: Path, recipes: list[str], message: str) -> None:
    with pytest.raises((ConfigError, BadParameter, UnsupportedModel), match=message):
        models_of([recipe.format(run=checkpoints) for recipe in recipes])


def test_runs_and_sizes_may_differ(checkpoints: Path) -> None:
    recipes = [
        f"{checkpoints}/wide:step=10,run=b",
        f"{checkpoints}/checkpoint-10:step=10,run=a",
        f"{checkpoints}/wide:untrained=1",
    ]
    found = models_of(recipes)
    assert [one.run for one in found] == [None, "a", "b"] and len({one.folder for one in found}) == 3
    assert found == models_of(reversed(recipes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [gpt2]\nmodel: gpt2", "one `model`, or several `models`"),
        ("name: x", "one `model`, or several `models`"),
        ("models: [{name: gpt2, step: last}]", "models.0.step"),
        ("models: [{name: gpt2, setp: 3}]", "did you mean 'step'"),
        ("models: [gpt2, other]\ntruth: {file: truth.json}", "truth is of one model"),
    ],
)
def test_a_study_says_what_is_wrong_with_its_models(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "study.yaml"
    rest = "corpus: a.jsonl\nextract: {rows: 'word:mean'}\ntrain: {task: upos}\n"
    file.write_text(("" if text.startswith("name") else "name: small\n") + text + "\n" + rest, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Study.from_yaml(file)


def test_checkpoints_in_any_order_give_one_result(
    checkpoints: Path, small_corpus: dict[str, Path], tmp_path: Path
) -> None:
    named = [
        f"{{name: {checkpoints}/checkpoint-10, step: 10}}",
        f"'{checkpoints}/checkpoint-0:step=0'",
        f"{{name: {checkpoints}/wide, untrained: 3}}",
    ]
    corpus = "{" + ", ".join(f"{split}: {file}" for split, file in small_corpus.items()) + "}"
    pages = []
    for place, models in (("a", named), ("b", named[::-1])):
        file = tmp_path / f"{place}.yaml"
        file.write_text(STUDY.format(models=f"[{', '.join(models)}]", corpus=corpus), encoding="utf-8")
        pages.append(Study.from_yaml(file).run(tmp_path / place, progress=False))
    assert pages[0].read_bytes() == pages[1].read_bytes()
    lines = [(page.parent / "results.jsonl").read_bytes() for page in pages]
    assert lines[0] == lines[1]
    results = pb.ProbeResults.read(pages[0].parent)
    facts = list(dict.fromkeys(ModelFacts.of_result(one) for one in results))
    assert [(one.step, one.is_untrained, one.width) for one in facts] == [
        (None, True, 32),
        (0, False, 16),
        (10, False, 16),
    ]
    assert all(one.parameters for one in facts) and "upos in 3 models" in pages[0].read_text(encoding="utf-8")


def test_model_is_repeated_on_the_command_line(checkpoints: Path, corpus_flags: list[str], tmp_path: Path) -> None:
    models = [f"{checkpoints}/checkpoint-0:step=0", f"{checkpoints}/checkpoint-10:step=10"]
    flags = [part for model in models for part in ("--model", model)]
    extract = ["extract", *flags, *corpus_flags, "--sites", "resid.1", "--to", str(tmp_path / "states"), "--quiet"]
    done = CliRunner().invoke(app, extract)
    assert done.exit_code == 0, done.output
    stores = sorted((tmp_path / "states").iterdir())
    steps = [Store.open(place).identity["model"]["checkpoint"] for place in stores]
    assert sorted(one["step"] for one in steps) == [0, 10]
    train = [
        "train",
        str(tmp_path / "states"),
        *corpus_flags,
        "--task",
        "upos",
        "--to",
        str(tmp_path / "out"),
        "--quiet",
    ]
    done = CliRunner().invoke(app, train)
    assert done.exit_code == 0, done.output
    assert "upos: over training, step 0 to 10" in " ".join(done.output.split())
    compared = CliRunner().invoke(
        app, ["compare", str(tmp_path / "out"), "--task", "upos", "--between", "best", "--json"]
    )
    (row,) = map(json.loads, compared.output.splitlines())
    assert "step 10" in row["model_a"] and "step 0" in row["model_b"]


def test_what_ships_is_named_so_and_a_folder_with_its_parent(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "mine" / "model")
    for given, name in ((str(MODEL), "probing:reference"), (str(tmp_path / "mine" / "model"), "mine/model")):
        facts = pb.LanguageModel.load(given, check=False).facts()
        assert facts["name"] == name and (facts["layers"], facts["width"]) == (3, 64) and facts["parameters"] > 1e5
