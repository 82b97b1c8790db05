"""Latents are what the formulas say, row by row; a saved dictionary is read back equal, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probing as pb
from probing.errors import BadParameter, InputError, NonFiniteStates, ProbingError

D, M, N = 12, 40, 60


def arrays(seed: int = 0, out: int = D) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "encoder": rng.standard_normal((D, M)).astype("f4"),
        "encoder_bias": (0.3 * rng.standard_normal(M)).astype("f4"),
        "decoder": rng.standard_normal((M, out)).astype("f4"),
        "decoder_bias": rng.standard_normal(out).astype("f4"),
    }


def states(seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((N, D)) * 2 + 0.5).astype("f4")


def by_hand(given: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """One row after another, in float64, as the papers write it."""
    rows = []
    for row in x.astype("f8"):
        if given.get("normalization") == "layer_norm":
            row = (row - row.mean()) / (row.std(ddof=1) + 1e-5)
        elif given.get("normalization") == "constant_norm_rescale":
            row = row * np.sqrt(D) / np.linalg.norm(row)
        if given.get("subtract_decoder_bias"):
            row = row - given["decoder_bias"]
        product = row @ given["encoder"].astype("f8")
        if given["architecture"] == "gated":
            size = np.maximum(product * np.exp(given["gate_scale"]) + given["encoder_bias"], 0)
            rows.append(np.where(product + given["gate_bias"] > 0, size, 0))
            continue
        pre = product + given["encoder_bias"]
        if given.get("grouped"):
            groups = pre.reshape(given["k"], -1)
            kept = np.where(groups == groups.max(axis=1, keepdims=True), groups, 0).ravel()
        elif given.get("k") and given["architecture"] != "batchtopk":
            kept = np.where(pre >= np.sort(pre)[-given["k"]], pre, 0)
        else:
            kept = np.where(pre > given["threshold"], pre, 0) if given.get("threshold") is not None else pre
        rows.append(np.maximum(kept, 0))
    return np.array(rows)


THRESHOLDS = np.linspace(-0.5, 4, M).astype("f4")
GATE = {"gate_bias": np.linspace(-3, 1, M).astype("f4"), "gate_scale": np.linspace(-1, 1, M).astype("f4")}
FORMS: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "standard, bias subtracted": {"architecture": "standard", "subtract_decoder_bias": True},
    "topk": {"architecture": "topk", "k": 5, "subtract_decoder_bias": True},
    "topk, more than are positive": {"architecture": "topk", "k": M - 1},
    "groups": {"architecture": "topk", "k": 8, "grouped": True},
    "batchtopk": {"architecture": "batchtopk", "k": 5, "threshold": np.array([2.5], "f4")},
    "jumprelu": {"architecture": "jumprelu", "threshold": THRESHOLDS},
    "gated": {"architecture": "gated", **GATE, "subtract_decoder_bias": True},
    "layer_norm": {"architecture": "jumprelu", "threshold": THRESHOLDS, "normalization": "layer_norm"},
    "constant_norm": {"architecture": "topk", "k": 4, "normalization": "constant_norm_rescale"},
}


@pytest.mark.parametrize("name", FORMS)
def test_latents_are_what_the_formula_says(name: str) -> None:
    given, x = arrays() | FORMS[name], states()
    made = pb.Dictionary(**given)
    latents = made.encode(x)
    assert latents.shape == (N, M) and latents.dtype == np.float32 and latents.has_sorted_indices
    assert (latents.data > 0).all()
    expected = by_hand(given, x)
    np.testing.assert_allclose(latents.toarray(), expected, atol=1e-5 * np.abs(expected).max())
    decoded = expected @ given["decoder"] + given["decoder_bias"]
    if given.get("normalization") == "layer_norm":
        decoded = decoded * x.std(axis=1, ddof=1, keepdims=True) + x.mean(axis=1, keepdims=True)
    elif given.get("normalization") == "constant_norm_rescale":
        decoded = decoded * np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(D)
    np.testing.assert_allclose(made.reconstruct(x), decoded, atol=2e-5 * np.abs(decoded).max())
    np.testing.assert_allclose(made.error(x), x - decoded, atol=2e-5 * np.abs(decoded).max())
    dense, sparse = made.decode(latents.toarray(), states=x), made.decode(latents, states=x)
    np.testing.assert_allclose(dense, sparse, atol=2e-5 * np.abs(decoded).max())


@pytest.mark.parametrize("activation", [{}, {"k": 4}, {"threshold": THRESHOLDS}])
def test_a_transcoder_decodes_another_place_and_a_skip_is_added(activation: dict[str, Any]) -> None:
    x, skip = states(), np.random.default_rng(5).standard_normal((7, D)).astype("f4")
    given = arrays(out=7) | {"architecture": "transcoder"} | activation
    plain = pb.Dictionary(**given)
    latents = by_hand(given, x)
    np.testing.assert_allclose(plain.encode(x).toarray(), latents, atol=1e-4)
    decoded = latents @ given["decoder"] + given["decoder_bias"]
    np.testing.assert_allclose(plain.reconstruct(x), decoded, atol=1e-4)
    both = pb.Dictionary(**given | {"architecture": "skip_transcoder", "skip": skip})
    np.testing.assert_allclose(both.reconstruct(x), decoded + x @ skip.T, atol=1e-4)
    with pytest.raises(BadParameter, match="targets"):
        plain.error(x)
    np.testing.assert_allclose(plain.error(x, decoded), 0, atol=1e-4)


@pytest.mark.parametrize("kind", ["normal", "ties", "few positive", "none positive", "one group"])
@pytest.mark.parametrize(("latents", "k"), [(640, 1), (640, 40), (640, 64), (640, 161), (37, 5)])
def test_the_largest_of_a_row_are_found_without_a_sort(kind: str, latents: int, k: int) -> None:
    import torch

    from probing.dictionaries.encoding import _largest

    pre = np.random.default_rng(latents + k).standard_normal((50, latents)).astype("f4")
    if kind == "ties":
        pre = np.round(pre)
    elif kind == "few positive":
        pre -= 2.5
    elif kind == "none positive":
        pre = -np.abs(pre) - 1
    elif kind == "one group":  # the largest share a remainder: they are in one group
        pre[:, ::40] += 9
    counts, columns, values = _largest(torch.from_numpy(pre), k)
    ends = np.cumsum(counts)
    for row, (first, end) in enumerate(zip(ends - counts, ends, strict=True)):
        positive = np.sort(pre[row][pre[row] > 0])[::-1][:k]
        assert sorted(values[first:end], reverse=True) == positive.tolist()
        assert (np.diff(columns[first:end]) > 0).all() and (pre[row][columns[first:end]] == values[first:end]).all()


def test_active_latents_are_the_same_by_torch_and_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices choose latents by torch: here on the processor, where both can be run."""
    import torch

    from probing.dictionaries import encoding

    pre, floor = torch.randn(40, 70, generator=torch.Generator().manual_seed(0)), torch.full((70,), 0.5)
    by_numpy, largest = encoding._active(pre, floor), encoding._largest(pre, 9)
    monkeypatch.setattr(encoding, "_is_cpu", lambda tensor: False)
    for ours, theirs in ((by_numpy, encoding._active(pre, floor)), (largest, encoding._largest(pre, 9))):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype and (one == other).all()


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = pb.Dictionary(**arrays() | FORMS["topk"]), states()
    whole = made.encode(x)
    monkeypatch.setattr("probing.dictionaries.encoding._BLOCK", 7 * M)
    in_blocks = made.encode(x)
    assert (whole.indptr == in_blocks.indptr).all() and (whole.indices == in_blocks.indices).all()
    np.testing.assert_allclose(whole.data, in_blocks.data, rtol=1e-5)
    assert made.encode(x[:0]).shape == (0, M)


@pytest.mark.parametrize("name", FORMS)
def test_a_dictionary_is_read_back_equal(name: str, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"model": "gpt2", "site": "resid.3", "declared": {"l0": 5.0, "hook": "blocks.2"}}
    made = pb.Dictionary(**arrays() | FORMS[name] | facts)
    made.save(tmp_path)
    again = pb.Dictionary.load(tmp_path)
    assert again.content_id == made.content_id and (again.encode(states()) != made.encode(states())).nnz == 0
    assert (again.model, again.site, again.declared) == ("gpt2", "resid.3", facts["declared"])
    other = pb.Dictionary(**arrays(3) | FORMS[name])
    other.save(tmp_path)
    assert pb.Dictionary.load(tmp_path / "dictionary.json").content_id == other.content_id != made.content_id
    assert len(list(tmp_path.iterdir())) == 2


def test_every_change_of_a_saved_file_is_refused(tmp_path: Path) -> None:
    made = pb.Dictionary(**arrays() | FORMS["jumprelu"])
    made.save(tmp_path)
    rng = np.random.default_rng(0)
    for file in sorted(tmp_path.iterdir()):
        content = file.read_bytes()
        for trial in range(60):
            place = int(rng.integers(len(content)))
            spoiled = bytearray(content)
            spoiled[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(bytes(spoiled) if trial % 3 else content[:place])
            with pytest.raises(ProbingError):
                pb.Dictionary.load(tmp_path)
        file.write_bytes(content)
    assert pb.Dictionary.load(tmp_path).content_id == made.content_id


def test_settings_of_another_type_are_refused_although_signed(tmp_path: Path) -> None:
    from probing.states.store.format import signed_json

    pb.Dictionary(**arrays() | FORMS["topk"]).save(tmp_path)
    facts = json.loads((tmp_path / "dictionary.json").read_bytes())
    del facts["self_sha256"]
    for change in (
        {"k": "5"},
        {"k": True},
        {"k": M + 1},
        {"architecture": 3},
        {"architecture": "sparse"},
        {"normalization": []},
        {"site": 7},
        {"site": "../x"},
        {"weights": "../w.safetensors"},
        {"grouped": 1},
        {"content_id": "0"},
        {"format_version": "2.0"},
        {"declared": 3},
        {"subtract_decoder_bias": None},
    ):
        (tmp_path / "dictionary.json").write_bytes(signed_json(facts | change))
        with pytest.raises(ProbingError):
            pb.Dictionary.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_bias": np.zeros(M + 1)},
        {"decoder": np.zeros((D, M))},
        {"decoder_bias": np.zeros(D + 1)},
        {"encoder": np.zeros(D)},
        {"encoder": np.full((D, M), np.nan)},
        {"encoder": np.full((D, M), 1e300)},
        {"threshold": np.zeros(3)},
        {"k": 0},
        {"k": 2.0},
        {"architecture": "topk", "k": None},
        {"architecture": "jumprelu"},
        {"architecture": "gated"},
        {"architecture": "skip_transcoder"},
        {"architecture": "matching_pursuit"},
        {"normalization": "whitening"},
        {"k": 7, "grouped": True},
        {"skip": np.zeros((D, D + 1))},
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        pb.Dictionary(**arrays() | {"architecture": "standard"} | change)


def test_states_that_do_not_fit_are_refused() -> None:
    made = pb.Dictionary(**arrays() | FORMS["layer_norm"])
    for bad in (np.zeros((3, D + 1)), np.zeros(D), np.zeros((3, D), complex), [["a"] * D]):
        with pytest.raises(BadParameter):
            made.encode(bad)
    with pytest.raises(NonFiniteStates):
        made.encode(np.full((3, D), np.inf))
    with pytest.raises(BadParameter, match="alone"):
        made.decode(made.encode(states()))
    with pytest.raises(BadParameter):
        made.decode(np.zeros((3, M + 1)))


def test_the_random_control_has_the_size_and_l0_that_are_asked_for() -> None:
    x = states()
    made = pb.Dictionary.random(D, 64, l0=6.2, states=x, seed=3)
    assert (made.width, made.n_latents) == (D, 64)
    assert (np.diff(made.encode(x).indptr) == 6).all()
    np.testing.assert_allclose(np.linalg.norm(made.decoder, axis=1), 1, rtol=1e-5)
    assert made.content_id == pb.Dictionary.random(D, 64, l0=6.2, states=x, seed=3).content_id
    assert made.content_id != pb.Dictionary.random(D, 64, l0=6.2, states=x, seed=4).content_id
    assert (made.error(x) ** 2).sum() < ((x - x.mean(axis=0)) ** 2).sum()
    for wrong in ({"l0": 20.0}, {"states": x[:0]}, {"states": x[:, :3]}):
        with pytest.raises(BadParameter):
            pb.Dictionary.random(D, 64, **{"l0": 6.2, "states": x, "seed": 3} | wrong)


def test_a_path_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbingError, match="No such file"):
        pb.Dictionary.load(tmp_path / "none")
    with pytest.raises(InputError, match=r"dictionary\.json"):
        pb.Dictionary.load(tmp_path)


def test_options_of_another_type_or_range_are_typed_errors(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 8)).astype("f4")
    good: dict[str, Any] = {"width": 8, "n_latents": 32, "l0": 2, "states": rows, "seed": 0}
    wrong = [("l0", value) for value in (float("nan"), float("inf"), 0, -1, "2", None, True)]
    wrong += [(name, value) for name in ("width", "n_latents", "seed") for value in (-1, 1.5, "8", None)]
    for name, value in wrong:
        with pytest.raises(BadParameter):
            pb.Dictionary.random(**good | {name: value})
    made = pb.Dictionary.random(**good)
    for device in ("foo", "cuda:99", 3.5):
        with pytest.raises(BadParameter, match="no such device"):
            made.encode(rows, device=device)  # type: ignore[arg-type]
    for latents in ("x", None, [["a"]], [[None] * 32]):
        with pytest.raises(BadParameter):
            made.decode(latents)  # type: ignore[arg-type]
    made.save(tmp_path)
    for factor in (0, -1, float("nan"), float("inf"), "x", True):
        with pytest.raises(BadParameter, match="norm_factor is out of range"):
            pb.Dictionary.load(tmp_path, norm_factor=factor)  # type: ignore[arg-type]
    for states in (np.full((2, 8), 1e39), np.array([[np.inf, -np.inf] * 4])):
        with pytest.raises(NonFiniteStates):
            made.encode(states)
