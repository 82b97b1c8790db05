"""Files of lenses from elsewhere: what is checked of them, what is doubted, and that a refusal writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probing as pb
from probing.errors import ConfigError, CorpusError, InputError, ProvenanceMismatch, UnknownName
from probing.lenses._reading import Tail
from probing.lenses.jacobian import JacobianLens
from probing.lenses.tuned import TunedLens, unembedding_digest
from probing.reporting.lens_sections import about
from tests.lenses.test_lens_columns import corpus_of, lens, model_of
from tests.lenses.test_trained_lenses import split_corpus, texts, their_folder

pytestmark = pytest.mark.filterwarnings("ignore")
FORM = {"n_prompts": 3, "source_layers": [0, 1], "d_model": 16}


def derivative_file(path: Path, matrices: Any = None, **form: Any) -> Path:
    given = {0: torch.eye(16), 1: torch.eye(16)} if matrices is None else matrices
    values = FORM | {"J": given, "source_layers": list(given)} | form
    torch.save({name: value for name, value in values.items() if value is not None}, path)
    return path


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.full((16, 16), torch.inf), "not finite"),
        (torch.full((16, 16), 1e300, dtype=torch.float64), "not finite"),
        (torch.ones(16, 16, dtype=torch.long), "int64"),
        (torch.ones(16, 16, dtype=torch.complex64), "complex64"),
        (torch.ones(8, 8), r"\(8, 8\)"),
        ("text", "str"),
    ],
)
def test_a_tensor_of_another_kind_is_refused_by_its_name(tmp_path: Path, tensor: Any, words: str) -> None:
    tail = Tail(model_of("gpt2"))
    values = their_folder(tmp_path / "theirs")
    for name, wrong in (("1.weight", tensor), ("1.bias", tensor[0] if isinstance(tensor, torch.Tensor) else tensor)):
        torch.save(values | {name: wrong}, tmp_path / "theirs" / "params.pt")
        with pytest.raises(InputError, match=rf"{name} (of|has).*{words if wrong is tensor else ''}"):
            TunedLens.read(tmp_path / "theirs", tail, allow_pickle_weights=True)
    file = derivative_file(tmp_path / "j.pt", {0: torch.eye(16), 1: tensor})
    with pytest.raises(InputError, match=rf"J\[1\].*{words}"):
        JacobianLens.read(file, tail, allow_pickle_weights=True)


def test_missing_tensors_and_entries_are_named(tmp_path: Path) -> None:
    tail, values = Tail(model_of("gpt2")), their_folder(tmp_path)
    for name in values:
        torch.save({key: one for key, one in values.items() if key != name}, tmp_path / "params.pt")
        with pytest.raises(InputError, match=f"no tensor {name}"):
            TunedLens.read(tmp_path, tail, allow_pickle_weights=True)
    for name in ("J", *FORM):
        with pytest.raises(InputError, match=f"no entry {name}"):
            JacobianLens.read(derivative_file(tmp_path / "j.pt", **{name: None}), tail, allow_pickle_weights=True)


@pytest.mark.parametrize("layers", [[-1], [-1, 0], [5], []])
def test_layers_that_are_no_block_of_the_model_are_refused(tmp_path: Path, layers: list[int]) -> None:
    file = derivative_file(tmp_path / "j.pt", {layer: torch.eye(16) for layer in layers})
    with pytest.raises((InputError, ProvenanceMismatch)):
        JacobianLens.read(file, Tail(model_of("gpt2")), allow_pickle_weights=True)


def test_layers_of_the_two_forms_lie_one_block_apart(tmp_path: Path) -> None:
    tail = Tail(model_of("gpt2"))
    their_folder(tmp_path)
    assert TunedLens.read(tmp_path, tail, allow_pickle_weights=True).reads(tail.sites) == ("resid.0", "resid.1")
    file = derivative_file(tmp_path / "j.pt")
    assert JacobianLens.read(file, tail, allow_pickle_weights=True).reads(tail.sites) == ("resid.1", "resid.2")


def test_the_unembedding_and_the_revision_are_checked_where_they_can_be(tmp_path: Path) -> None:
    model = model_of("gpt2")
    weight = model.suffix.model.get_output_embeddings().weight
    their_folder(tmp_path)
    options: dict[str, Any] = {"lenses": [f"tuned:{tmp_path}"], "allow_pickle_weights": True}
    assert any("Not checked" in one and "only the name" in one for one in lens(model, **options).doubts)
    change(tmp_path, unembed_hash=unembedding_digest(weight))
    assert not any("Not checked" in one for one in lens(model, **options).doubts)
    change(tmp_path, base_model_revision="v2")
    assert any("Not checked" in one and "the revision v2" in one for one in lens(model, **options).doubts)
    change(tmp_path, unembed_hash=unembedding_digest(weight + 1))
    with pytest.raises(ProvenanceMismatch, match="unembed_hash"):
        lens(model, **options)
    assert any("any_model" in one for one in lens(model, any_model=True, **options).doubts)
    change(tmp_path, unembed_hash=None, base_model_name_or_path=None)
    with pytest.raises(ProvenanceMismatch, match="base_model_name_or_path"):
        lens(model, **options)
    change(tmp_path, base_model_name_or_path="org/gpt2", lens_type="nonlinear")
    with pytest.raises(InputError, match="lens_type nonlinear"):
        lens(model, any_model=True, **options)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["tuned", "jacobian"])
def test_a_lens_too_large_for_the_model_is_refused_and_nothing_is_written(
    tmp_path: Path, family: str, kind: str
) -> None:
    """The numbers of the file are finite; their squares in the last norm are not."""
    model = model_of(family)
    if kind == "tuned":
        values = their_folder(tmp_path / "lens", name=f"org/{family}")
        torch.save({name: 1e30 * value for name, value in values.items()}, tmp_path / "lens" / "params.pt")
        name = f"tuned:{tmp_path / 'lens'}"
    else:
        name = f"jacobian:{derivative_file(tmp_path / 'j.pt', {0: 1e30 * torch.eye(16)})}"
    site = "resid.0" if kind == "tuned" else "resid.1"
    with pytest.raises(InputError, match=rf"{kind} gives no finite outputs at {site}"):
        lens(model, lenses=[name, "logit"], allow_pickle_weights=True, to=tmp_path / "out", prompts=["a cat"])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_columns_that_are_not_finite_are_refused_whatever_the_lens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("gpt2")
    measured = pb.lenses.measure

    def spoilt(*arguments: Any) -> Any:
        found = measured(*arguments)
        found.columns["logit", "resid.1"]["kl"][0] = np.nan
        return found

    monkeypatch.setattr("probing.lenses.measure", spoilt)
    with pytest.raises(InputError, match=r"logit gives no finite outputs at resid\.1"):
        lens(model, to=tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_that_are_not_finite_leave_no_file(tmp_path: Path) -> None:
    result = lens(model_of("gpt2"))
    object.__setattr__(result.means[0], "value", float("nan"))
    with pytest.raises(InputError, match="not finite"):
        result.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_words_of_a_refusal_are_ours_and_name_the_cause(tmp_path: Path) -> None:
    tail = Tail(model_of("gpt2"))
    (tmp_path / "evil.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "noise.pt").write_bytes(b"garbage")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, words in (
        ("evil.pt", "no pickle, or one of more"),
        ("noise.pt", "no pickle"),
        ("empty.pt", "cannot read"),
        ("none.pt", "no such file"),
        ("", "a folder"),
    ):
        with pytest.raises(InputError, match=words) as raised:
            JacobianLens.read(tmp_path / name, tail, allow_pickle_weights=True)
        assert not any(word in str(raised.value) for word in ("weights_only", "add_safe_globals", "Re-running"))


def test_a_name_without_a_file_or_given_twice_is_refused() -> None:
    model = model_of("gpt2")
    for names in (["tuned:"], ["jacobian:"]):
        with pytest.raises(UnknownName, match="FOLDER"):
            lens(model, lenses=names)
    for names in (["logit", "logit"], ["tuned", "tuned:here"]):
        with pytest.raises(ConfigError, match="cannot be told apart"):
            lens(model, lenses=names)


def test_a_lack_of_rows_names_its_cause() -> None:
    model = model_of("gpt2")
    for options, words in (
        ({"max_length": 2}, r"max_length\)"),
        ({"split": "later"}, "no text of later; splits: train, dev, test"),
        ({"skip": 40}, "none so long"),
    ):
        with pytest.raises(CorpusError, match=words):
            lens(model, corpus_of(), **options)
    with pytest.raises(CorpusError, match=r"too few long texts.*\n.*more than 17 tokens") as raised:
        lens(model, split_corpus(30), lenses=["jacobian"], skip=1)
    assert raised.value.where == split_corpus(30).source


def test_a_masked_model_is_read_at_any_token_and_says_so() -> None:
    model = model_of("bert")
    result = lens(model, pb.Corpus.from_texts(["cat", *texts(30)]), skip=3)
    assert set(result.rows.groupby("example")["position"].nunique()) == {1}
    assert result.rows.query("example == 0")["position"].nunique() == 1  # too short for skip, were it a causal model
    assert "left out" not in about(result) and "one masked token of each text" in about(result)
    one = lens(model, pb.Corpus.from_texts(["cat"]))
    assert about(one).startswith("1 row (one masked token of each text) of 1 text.")
    assert "the first token of each text is left out" in about(lens(model_of("gpt2")))
    assert "left out" not in about(lens(model_of("gpt2"), skip=0))


def test_the_interval_of_the_commitment_depth_lies_within_the_depths() -> None:
    for count in (2, 3, 8):
        for seed in range(5):
            result = lens(model_of("gpt2"), pb.Corpus.from_texts(texts(count, length=6, seed=seed)))
            (depth,) = [one for one in result.means if one.quantity == "commitment_depth"]
            assert depth.low is not None and depth.high is not None
            assert 0 <= depth.low <= depth.value <= depth.high <= 2
