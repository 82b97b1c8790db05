"""Planted truths of lenses that are trained or computed, and files from here and elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probing as pb
from probing.errors import CorpusError, InputError, ProvenanceMismatch, UntrustedFile
from probing.lenses import _fitting
from probing.lenses._fitting import FitOptions, FitStates, Wanted, fit_lenses
from probing.lenses._reading import Tail
from probing.lenses.jacobian import JacobianLens, derivatives
from probing.lenses.tuned import TunedLens
from probing.models.language_model import LanguageModel
from probing.reporting.lens_sections import claims
from tests.lenses.test_lens_columns import lens, model_of
from tests.samples.tiny_models import LETTERS

pytestmark = pytest.mark.filterwarnings("ignore")


def rotation(width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]


def replace_block(model: LanguageModel, number: int, function: Any) -> None:
    """Let a block give a function of its input in place of its own output; its parts still run."""
    block = model.suffix.trunk.blocks[number]  # type: ignore[attr-defined]
    honest = block.forward

    def forward(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = honest(states, *args, **kwargs)
        return (function(states), *output[1:]) if isinstance(output, tuple) else function(states)

    block.forward = forward


def rotating(matrices: dict[int, torch.Tensor]) -> LanguageModel:
    """A model whose blocks of these numbers rotate the state, and do nothing else."""
    model = model_of("llama")
    for number, matrix in matrices.items():
        replace_block(model, number, lambda states, matrix=matrix: states @ matrix)
    return model


def texts(count: int, letters: str = LETTERS, length: int = 12, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(letters), length)) for _ in range(count)]


def split_corpus(count: int = 90, **options: Any) -> pb.Corpus:
    splits = ["train", "dev", "test"] * (count // 3)
    return pb.Corpus.from_texts(texts(count, **options), {"split": splits})


def test_a_tuned_lens_recovers_the_rotation_of_a_block() -> None:
    model, matrix = rotating({1: rotation(16)}), rotation(16)
    result = lens(model, split_corpus(180), lenses=["tuned", "logit"], epochs=6, controls=False)
    kl = {name: result.mean(name, "resid.1", "kl") for name in ("tuned", "logit")}
    assert kl["tuned"] is not None and kl["logit"] is not None
    assert kl["tuned"].value < 0.01 * kl["logit"].value
    tail = Tail(model)
    made = _trained(tail, split_corpus(180))
    moved = torch.eye(16) + made.matrices["resid.1"]
    # The end of the model scales a state to length 1: the rotation is seen up to its size.
    close = (moved * matrix.T).sum() / (moved.norm() * matrix.norm())
    assert float(close) > 0.99
    assert float((torch.eye(16) * matrix.T).sum() / 16) < 0.5


def _trained(tail: Tail, corpus: pb.Corpus, folder: Path | None = None, **options: Any) -> TunedLens:
    model = tail.model
    batch = model.encode([one.text for one in corpus.examples])
    states = [model.states([one], tail.sites) for one in batch]
    at = {site: torch.cat([state[site][0] for state in states]) for site in tail.sites}
    inner = {site: value for site, value in at.items() if site != tail.site}
    data = FitStates(inner, at[tail.site], int(0.8 * len(at[tail.site])))
    given = {"epochs": 4, "batch": 64} | options
    return fit_lenses(tail, data, [Wanted("tuned", "")], FitOptions(**given), recipe="r", folder=folder)[0]


@pytest.mark.parametrize("has_context", [False, True])
def test_a_state_of_the_current_token_alone_gives_no_gain_over_the_translator_of_the_first_site(
    has_context: bool,
) -> None:
    """Eight letters in 16 features: a linear map of their embeddings can give any output for each."""
    model = model_of("llama")
    for block in model.suffix.trunk.blocks:  # type: ignore[attr-defined]
        block.self_attn.o_proj.weight.data *= 4.0 if has_context else 0.0
    corpus = split_corpus(240, letters="abcdefgh")
    result = lens(model, corpus, lenses=["tuned"], epochs=12, dev_rows=400)
    gain = result.difference("tuned", "resid.1", "first_site")
    assert gain is not None and gain.low is not None and gain.high is not None
    if has_context:
        assert gain.high < -0.01
    else:
        assert abs(gain.value) < 0.005
        assert result.mean("tuned", "resid.0", "kl").value < 0.01  # type: ignore[union-attr]


def test_controls_lie_where_they_must() -> None:
    """A lens of permuted targets and the untrained twin know less than the tuned lens of the model."""
    model = model_of("gpt2")
    result = lens(model, split_corpus(240), lenses=["tuned", "logit"], epochs=4)
    assert list(result.lenses)[:2] == ["tuned", "logit"]
    assert set(result.lenses) == {
        "tuned",
        "logit",
        "bias_only",
        "permuted_targets",
        "first_site",
        "untrained_twin",
        "unigram",
    }
    for control in ("permuted_targets", "bias_only", "unigram", "untrained_twin"):
        gain = result.difference("tuned", "resid.1", control)
        assert gain is not None and gain.high is not None and gain.high < 0, control


def test_a_killed_training_goes_on_to_the_same_lens(tmp_path: Path) -> None:
    tail, corpus = Tail(model_of("gpt2")), split_corpus(60)
    whole = _trained(tail, corpus)
    saved, calls = _fitting._save, []

    def killed(*arguments: Any) -> None:
        saved(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fitting, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            _trained(tail, corpus, tmp_path)
    again = _trained(tail, corpus, tmp_path)
    for site in whole.matrices:
        torch.testing.assert_close(again.matrices[site], whole.matrices[site], rtol=0, atol=0)
        torch.testing.assert_close(again.biases[site], whole.biases[site], rtol=0, atol=0)


def test_a_trained_lens_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus = model_of("gpt2"), split_corpus(60)
    first = lens(model, corpus, lenses=["tuned"], epochs=1, to=tmp_path)
    monkeypatch.setattr("probing.lenses.fit_lenses", None)
    again = lens(model, corpus, lenses=["tuned"], epochs=1, to=tmp_path)
    assert [m.value for m in again.means] == [m.value for m in first.means]
    assert not list((tmp_path / "lenses").glob("*/training.*"))
    named = lens(model, corpus, lenses=[f"tuned:{tmp_path / 'lenses' / 'tuned'}"], split="test")
    assert named.mean("tuned", "resid.1", "kl") == first.mean("tuned", "resid.1", "kl")


def test_a_lens_of_other_weights_is_refused_unless_accepted(tmp_path: Path) -> None:
    tail = Tail(model_of("gpt2"))
    _trained(tail, split_corpus(30), epochs=1).write(tmp_path, tail)
    other = model_of("gpt2")
    next(other.suffix.model.parameters()).data += 0.1
    with pytest.raises(ProvenanceMismatch, match="of another model"):
        TunedLens.read(tmp_path, Tail(other))
    assert TunedLens.read(tmp_path, Tail(other), any_model=True).reads(["resid.0", "resid.9"]) == ("resid.0",)
    (tmp_path / "lens.safetensors").write_bytes(b"no lens")
    with pytest.raises(InputError, match="no lens that can be read"):
        TunedLens.read(tmp_path, tail)
    with pytest.raises(InputError, match="no tuned lens here"):
        TunedLens.read(tmp_path / "none", tail)


def their_folder(folder: Path, width: int = 16, layers: int = 2, name: str = "org/gpt2") -> dict[str, torch.Tensor]:
    """Write a folder as the package tuned-lens does."""
    generator = torch.Generator().manual_seed(1)
    values = {f"{k}.weight": torch.randn(width, width, generator=generator) for k in range(layers)}
    values |= {f"{k}.bias": torch.randn(width, generator=generator) for k in range(layers)}
    config = {"base_model_name_or_path": name, "d_model": width, "num_hidden_layers": layers, "bias": True}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(values, folder / "params.pt")
    return values


def test_a_folder_of_the_package_tuned_lens_is_read_and_equal(tmp_path: Path) -> None:
    tail, values = Tail(model_of("gpt2")), their_folder(tmp_path)
    read = TunedLens.read(tmp_path, tail, allow_pickle_weights=True)
    h = torch.randn(5, 16)
    for layer in (0, 1):
        linear = torch.nn.Linear(16, 16)
        linear.load_state_dict({"weight": values[f"{layer}.weight"], "bias": values[f"{layer}.bias"]})
        with torch.no_grad():
            torch.testing.assert_close(read.at(f"resid.{layer}", h), h + linear(h))
    result = lens(tail.model, lenses=[f"tuned:{tmp_path}"], allow_pickle_weights=True)
    assert result.mean("tuned", "resid.1", "kl") is not None and result.mean("tuned", "resid.2", "kl") is None


def test_their_folder_is_refused_without_the_flag_or_of_another_model(tmp_path: Path) -> None:
    tail = Tail(model_of("gpt2"))
    their_folder(tmp_path / "a")
    with pytest.raises(UntrustedFile, match="pickle"):
        lens(tail.model, lenses=[f"tuned:{tmp_path / 'a'}"])
    their_folder(tmp_path / "b", width=8)
    their_folder(tmp_path / "c", layers=3)
    their_folder(tmp_path / "d", name="org/other")
    for name in "bcd":
        with pytest.raises(ProvenanceMismatch, match="of another model"):
            TunedLens.read(tmp_path / name, tail, allow_pickle_weights=True)
    assert TunedLens.read(tmp_path / "d", tail, allow_pickle_weights=True, any_model=True).reads(["resid.1"])
    (tmp_path / "a" / "params.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="no lens that can be read"):
        TunedLens.read(tmp_path / "a", tail, allow_pickle_weights=True)


def test_the_derivative_of_rotations_is_their_product(tmp_path: Path) -> None:
    one, other = rotation(16), rotation(16, 1)
    model = rotating({0: one, 1: other})
    tail = Tail(model)
    made = JacobianLens.fit(tail, model.encode(texts(4, length=30)), ["resid.0", "resid.1"], skip=3)
    torch.testing.assert_close(made.matrices["resid.1"], other.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.matrices["resid.0"], (one @ other).T, atol=1e-5, rtol=0)
    assert made.changes["resid.0"] < 1e-5
    result = lens(model, split_corpus(60, length=30), lenses=["jacobian"], sites="resid.*")
    assert result.mean("jacobian", "resid.1", "kl").value < 1e-5  # type: ignore[union-attr]
    assert result.facts["jacobian"]["texts"] > 10
    (said,) = [sentence for sentence in claims(result) if "Jacobian" in sentence]
    assert f"{max(result.facts['jacobian']['change_between_halves'].values()):.0%} of their size" in said


def test_a_derivative_is_the_slope_of_later_states() -> None:
    model = model_of("gpt2")
    tail, (one,) = Tail(model), model.encode(texts(1, length=12))
    matrix = derivatives(tail, one, ["resid.1"], skip=4)["resid.1"]
    inputs = model.padded([one])
    clean = model.states([one], ["resid.1"])["resid.1"].clone()
    places = range(4, len(one) - 1)
    feature, step, slopes = 5, 1e-2, []
    for t in places:
        ends = []
        for sign in (1, -1):
            moved = clean.clone()
            moved[0, t, feature] += sign * step
            ends.append(model.suffix.states_from("resid.1", moved, inputs, ["resid.2"])["resid.2"][0, 4 : len(one) - 1])
        slopes.append((ends[0] - ends[1]).sum(0) / (2 * step))
    torch.testing.assert_close(matrix[:, feature], torch.stack(slopes).mean(0), atol=2e-3, rtol=1e-2)


def test_a_file_of_derivatives_is_read_with_layers_as_block_outputs(tmp_path: Path) -> None:
    model = model_of("gpt2")
    tail, file, matrix = Tail(model), tmp_path / "j.pt", torch.randn(16, 16)
    torch.save({"J": {0: matrix.half()}, "n_prompts": 7, "source_layers": [0], "d_model": 16}, file)
    with pytest.raises(UntrustedFile):
        JacobianLens.read(file, tail)
    read = JacobianLens.read(file, tail, allow_pickle_weights=True)
    h = torch.randn(3, 16)
    torch.testing.assert_close(read.at("resid.1", h), h @ matrix.half().float().T)
    assert read.reads(tail.sites) == ("resid.1",)
    torch.save({"J": {0: torch.eye(8)}, "n_prompts": 7, "source_layers": [0], "d_model": 8}, file)
    with pytest.raises(ProvenanceMismatch):
        JacobianLens.read(file, tail, allow_pickle_weights=True)
    torch.save({"jacobian_sum": {}}, file)
    with pytest.raises(InputError):
        JacobianLens.read(file, tail, allow_pickle_weights=True)


def test_too_little_text_is_refused_by_name() -> None:
    model = model_of("gpt2")
    with pytest.raises(CorpusError, match="too few long texts"):
        lens(model, split_corpus(30), lenses=["jacobian"])
    with pytest.raises(CorpusError, match="no token whose output can be read"):
        lens(model, pb.Corpus.from_texts(texts(3), {"split": ["train", "train", "test"]}), lenses=["tuned"])
