"""The self-check: what is right passes, what is read wrongly is refused with its cause, on planted truths."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import probing as pb
from probing.dictionaries.checking import DictionaryCheck, check_rows, measure_fit
from probing.errors import BadParameter, ProbingError, WrongDictionary
from tests.conftest import some
from tests.dictionaries.planted import Planted, dictionary_of, planted, saelens_folder

KINDS = ("k", "relu", "normalisation", "site", "decoder")
TRUTHS = 6


@cache
def truth(seed: int, normalization: str) -> Planted:
    return planted(seed, normalization)


def spoil(kind: str, folder: Path, made: pb.Dictionary, rng: np.random.Generator) -> str:
    """Spoil the files of a dictionary in one way, and return the site that is then said to be its own."""
    config = json.loads((folder / "cfg.json").read_text())
    file = folder / "sae_weights.safetensors"
    site = "resid.2"
    if kind == "k":
        config["k"] = max(1, round(config["k"] * float(rng.choice([0.25, 0.5, 2, 4]))))
    elif kind == "relu":
        config |= {"architecture": "standard"}
        config["metadata"]["l0"] = config["k"]
    elif kind == "normalisation":
        others = [name for name in ("none", "layer_norm", "constant_norm_rescale") if name != made.normalization]
        config["normalize_activations"] = str(rng.choice(others))
    elif kind == "site":
        layer = int(rng.choice([1, 3]))
        config["metadata"]["hook_name"], site = f"blocks.{layer}.hook_resid_pre", f"resid.{layer}"
    else:
        weights = load_file(file)
        turned = weights["W_dec"].T.copy()  # (width, latents): of the right shape again in half of the files
        weights["W_dec"] = turned.reshape(weights["W_dec"].shape) if rng.integers(2) else turned
        save_file(weights, file)
    (folder / "cfg.json").write_text(json.dumps(config))
    return site


def outcome(kind: str, number: int, tmp_path: Path) -> str:
    """The cause that is named for one spoiled file; "" if it passes; `shape` if it is refused when it is read."""
    rng = np.random.default_rng([number, KINDS.index(kind)])
    normalization = "layer_norm" if rng.integers(3) == 0 else "none"
    given = truth(number % TRUTHS, normalization)
    architecture = "topk" if kind in ("k", "relu") or rng.integers(2) else "jumprelu"
    made = dictionary_of(given, architecture, normalization)
    folder = saelens_folder(tmp_path / f"{kind}{number}", made)
    site = spoil(kind, folder, made, rng)
    try:
        read = pb.Dictionary.load(folder)
    except ProbingError as error:
        assert "decoder" in str(error)
        return "decoder"
    assert read.site == site
    found = check_rows(read, given.rows(site))
    if not found.problems:
        return ""
    with pytest.raises(WrongDictionary):
        found.refuse_if_wrong()
    return found.cause


@pytest.mark.parametrize("count", some([4, 40], 1))
def test_files_that_are_read_wrongly_are_caught_with_their_cause(count: int, tmp_path: Path) -> None:
    """Of 200 spoiled files (20 by default), at least 95 % are caught, and 90 % with the right cause."""
    named = {kind: Counter(outcome(kind, number, tmp_path) for number in range(count)) for kind in KINDS}
    total = count * len(KINDS)
    caught = total - sum(causes[""] for causes in named.values())
    right = sum(causes[kind] for kind, causes in named.items())
    print(f"caught {caught} of {total}, with the right cause {right}: {named}")
    assert caught >= 0.95 * total, named
    assert right >= 0.9 * total, named


def test_what_is_right_passes() -> None:
    checks = [
        check_rows(dictionary_of(truth(seed, kind), architecture, kind), truth(seed, kind).rows())
        for seed in range(TRUTHS)
        for kind in ("none", "layer_norm")
        for architecture in ("topk", "jumprelu", "batchtopk")
    ]
    assert [check.problems for check in checks if check.problems] == []
    for check in checks:
        check.refuse_if_wrong()
        assert 0 < check.fit.fvu < 0.5 and check.declared["l0"] == pytest.approx(check.fit.l0, rel=0.25)


def test_the_first_token_is_named_where_it_spoils_the_rest() -> None:
    given = truth(1, "none")
    huge = np.where(given.is_first[:, None], 400 * given.scale * np.ones(64, "f4"), given.states["resid.2"])
    rows = replace(given.rows(), states={"resid.2": huge.astype("f4")})
    found = check_rows(dictionary_of(given, "topk"), rows)
    assert found.cause == "first_token"
    with pytest.raises(WrongDictionary, match="--skip 1"):
        found.refuse_if_wrong()
    later = rows.part(~given.is_first)
    assert check_rows(dictionary_of(given, "topk"), later).problems == []


def test_a_flipped_bias_and_a_factor_of_the_states_are_named() -> None:
    given = truth(1, "none")
    made = dictionary_of(given, "topk")
    assert check_rows(replace(made, subtract_decoder_bias=False), given.rows()).cause == "bias"
    norm = np.linalg.norm(given.states["resid.2"], axis=1).mean() / 8
    jumprelu = dictionary_of(given, "jumprelu")
    unfolded = replace(
        jumprelu,
        encoder=jumprelu.encoder * norm,
        decoder=jumprelu.decoder / norm,
        decoder_bias=jumprelu.decoder_bias / norm,
    )
    assert check_rows(unfolded, given.rows()).cause == "normalisation"


def test_a_dictionary_that_is_dead_or_of_other_states_is_refused() -> None:
    given = truth(1, "none")
    dead = replace(dictionary_of(given, "jumprelu"), threshold=np.full(128, 1e9))
    check = check_rows(dead, given.rows())
    assert check.cause == "dead" and check.fit.dead == 1
    others = {"resid.2": np.random.default_rng(0).standard_normal((400, 64)).astype("f4")}
    foreign = check_rows(dictionary_of(given, "jumprelu"), replace(given.rows(), states=others))
    with pytest.raises(WrongDictionary):
        foreign.refuse_if_wrong()


def test_numbers_of_a_check_are_those_of_their_definitions() -> None:
    given, made = truth(2, "none"), dictionary_of(truth(2, "none"), "topk")
    x = given.states["resid.2"].astype("f8")
    fit = measure_fit(made, x)
    pre = (x - made.decoder_bias) @ made.encoder
    kept = np.where(pre >= np.sort(pre, axis=1)[:, -made.k, None], np.maximum(pre, 0), 0)
    error = x - kept @ made.decoder - made.decoder_bias
    assert fit.l0 == pytest.approx((kept > 0).sum() / len(x))
    assert fit.fvu == pytest.approx((error**2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)
    assert fit.dead == pytest.approx((~(kept > 0).any(axis=0)).mean())
    for wrong in (x[:0], x[:1], np.ones((5, 64))):
        with pytest.raises(BadParameter, match="nothing can be checked"):
            measure_fit(made, wrong)


@pytest.mark.parametrize("declared", [{"l0": 4 * 8}, {"fvu": 0.0001}, {"target_l0": 0.2}])
def test_what_the_file_declares_is_compared(declared: dict[str, Any]) -> None:
    given = truth(0, "none")
    check = check_rows(replace(dictionary_of(given, "jumprelu"), declared=declared), given.rows())
    assert isinstance(check, DictionaryCheck) and check.problems and check.cause == "unknown"


@pytest.mark.parametrize("factor", [0.05, 0.3, 2.0, 7.0, 30.0])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_any_constant_factor_of_the_states_is_named_with_its_size(factor: float, architecture: str) -> None:
    """The factor is estimated, whatever the norm of the states is."""
    given = truth(1, "none")
    rows = given.rows()
    scaled = {site: np.float32(factor) * states for site, states in rows.states.items()}
    found = check_rows(dictionary_of(given, architecture), replace(rows, states=scaled))
    assert found.cause == "normalisation" and "states times" in found.problems[0], found.problems
    named = float(found.problems[0].partition("states times ")[2].split()[0])
    assert named == pytest.approx(1 / factor, rel=0.15)


def test_thresholds_read_as_topk_are_named_as_that() -> None:
    """Rows with few and with many features: a threshold takes them all, TopK as many of each."""
    rng, given = np.random.default_rng(3), truth(1, "none")
    values = np.zeros((400, 128), "f4")
    for row in values:
        count = rng.choice([1, 2, 12])
        row[rng.choice(64, count, replace=False)] = rng.uniform(1, 2, count)
    states = (given.scale * (values @ given.directions + given.mean)).astype("f4")
    whole = dictionary_of(given, "batchtopk")
    alone = {"encoder": whole.encoder[:, :64], "decoder": whole.decoder[:64], "encoder_bias": whole.encoder_bias[:64]}
    made = replace(whole, **alone)
    rows = replace(given.rows(), states={"resid.2": states})
    k = round(made.encode(states).nnz / 400)
    right = replace(made, declared={"k": k})
    assert not check_rows(right, rows).problems
    found = check_rows(replace(right, architecture="topk", k=k, threshold=None), rows)
    assert found.cause == "threshold" and "BatchTopK" in found.problems[0], found.problems


def test_a_reading_that_explains_nothing_is_never_named() -> None:
    """Foreign weights of many kinds: what is named as a cause leaves at most 90 % unexplained."""
    rng = np.random.default_rng(0)
    for seed in range(6):
        given = truth(seed, "none")
        for architecture in ("topk", "jumprelu", "batchtopk"):
            made = dictionary_of(given, architecture)
            size = float(10.0 ** rng.uniform(-2, 2))
            other = size * rng.standard_normal(made.encoder.shape).astype("f4")
            found = check_rows(replace(made, encoder=other), given.rows())
            assert found.problems
            if found.cause not in ("unknown", "dead"):
                best = min(fit.fvu for name, fit in found.alternatives.items() if name.startswith(found.cause))
                assert best <= 0.9, (found.cause, found.problems)


def test_a_setting_is_named_as_one() -> None:
    given = truth(1, "none")
    found = check_rows(replace(dictionary_of(given, "topk"), normalization="layer_norm"), given.rows())
    assert "the setting 'none' does better" in found.problems[0]
