"""Files of other libraries: what is encoded, where, and that what is damaged, unsafe or unknown is refused by name."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import probing as pb
from probing.dictionaries.formats._sites import site_of
from probing.errors import ConfigError, InputError, ProbingError, UnsupportedFormat, UntrustedFile
from tests.dictionaries.folders import FORMATS, D, M, drawn, gemma_scope, gemma_scope_2, saelens, sparsify, states
from tests.dictionaries.folders import dictionary_learning as of_dictionary_learning


def relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)


def largest(values: np.ndarray, k: int) -> np.ndarray:
    return np.where(values >= np.sort(values, axis=1)[:, -k, None], relu(values), 0)


@pytest.mark.parametrize(
    ("name", "site", "source"),
    [
        ("saelens", "resid.4", "saelens"),
        ("gemma_scope", "resid.21", "gemma_scope"),
        ("gemma_scope_2", "resid.8", "gemma_scope"),
        ("sparsify", "resid.6", "sparsify"),
        ("dictionary_learning", "resid.9", "dictionary_learning"),
        ("ours", "resid.2", "arrays"),
    ],
)
def test_every_format_encodes_by_its_own_formula(name: str, site: str, source: str, tmp_path: Path) -> None:
    a, x = drawn(), states()
    plain, shifted = x @ a["W_enc"] + a["b_enc"], (x - a["b_dec"]) @ a["W_enc"] + a["b_enc"]
    latents = {
        "sparsify": largest(shifted, 4),
        "dictionary_learning": relu(shifted) * (shifted > 1.5),
        "ours": largest(plain, 4),
    }.get(name, relu(plain) * (plain > a["threshold"]))
    made = pb.Dictionary.load(FORMATS[name](tmp_path / name), allow_pickle_weights=True)
    assert (made.site, made.source, made.width, made.n_latents) == (site, source, D, M)
    np.testing.assert_allclose(made.encode(x).toarray(), latents, atol=1e-4)
    np.testing.assert_allclose(made.reconstruct(x), latents @ a["W_dec"] + a["b_dec"], atol=1e-4)


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.7.hook_resid_pre", "resid.7"),
        ("blocks.7.hook_resid_post", "resid.8"),
        ("blocks.7.hook_mlp_out", "mlp_out.7"),
        ("blocks.7.hook_attn_out", "attn_out.7"),
        ("blocks.7.attn.hook_z", "heads.7"),
        ("hook_embed", "embed"),
        ("model.layers.7", "resid.8"),
        ("layers.7", "resid.8"),
        ("transformer.h.7", "resid.8"),
        ("gpt_neox.layers.7.mlp", "mlp_out.7"),
        ("model.layers.7.self_attn", "attn_out.7"),
        ("model.layers.7.self_attn.o_proj.input", "heads.7"),
        ("model.layers.7.post_feedforward_layernorm.output", "mlp_out.7"),
        ("model.embed_tokens", "embed"),
        ("blocks.7.hook_resid_mid", None),
        ("blocks.7.hook_mlp_in", None),
        ("blocks.7.hook_resid_post.more", None),
        ("blocks.99999.hook_resid_pre", None),
        (None, None),
    ],
)
def test_places_of_other_libraries_have_our_names(hook: str | None, site: str | None) -> None:
    assert site_of(hook) == site


def test_a_module_before_a_norm_is_not_what_the_sublayer_adds() -> None:
    assert site_of("model.layers.7.mlp", "google/gemma-2-2b") is None
    assert site_of("blocks.7.hook_mlp_out", "google/gemma-2-2b") == "mlp_out.7"
    assert site_of("model.layers.7.post_feedforward_layernorm.output", "google/gemma-3-1b-pt") == "mlp_out.7"


def test_a_pickle_is_read_with_the_flag_alone(tmp_path: Path) -> None:
    folder = of_dictionary_learning(tmp_path / "theirs")
    with pytest.raises(UntrustedFile, match="allow_pickle_weights"):
        pb.Dictionary.load(folder)
    (folder / "ae.pt").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(InputError):
        pb.Dictionary.load(folder, allow_pickle_weights=True)


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    folder = gemma_scope(tmp_path)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    np.savez(folder / "params.npz", **drawn() | {"W_enc": np.array([Trap()], dtype=object)})
    with pytest.raises(UntrustedFile, match="never unpickled"):
        pb.Dictionary.load(folder)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [
        (saelens, {"architecture": "matching_pursuit"}, "matching_pursuit"),
        (saelens, {"architecture": ["standard"]}, "standard"),
        (saelens, {"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        (saelens, {"normalize_activations": {}}, "normalisation"),
        (saelens, {"normalize_activations": "expected_average_only_in"}, "norm_factor"),
        (saelens, {"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        (saelens, {"hook_head_index": 3}, "hook_head_index 3"),
        (sparsify, {"activation": "gelu"}, "gelu"),
        (sparsify, {"signed": True}, "signed"),
        (gemma_scope_2, {"architecture": "relu"}, "relu"),
        (gemma_scope_2, {"type": "crosscoder"}, "crosscoder"),
        (of_dictionary_learning, {"dict_class": "IdentityDict"}, "IdentityDict"),
    ],
)
def test_what_is_unknown_is_refused_by_its_name(make: Any, change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormat, match=named):
        pb.Dictionary.load(make(tmp_path / "theirs", **change), allow_pickle_weights=True)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (saelens, {"architecture": "topk"}),
        (saelens, {"architecture": "topk", "k": "5"}),
        (saelens, {"architecture": "topk", "k": M + 1}),
        (saelens, {"architecture": "gated"}),
        (saelens, {"architecture": "skip_transcoder"}),
        (sparsify, {"k": 0}),
        (sparsify, {"d_in": D + 1}),
        (sparsify, {"skip_connection": True}),
        (saelens, {"d_in": D + 1}),
        (saelens, {"d_in": str(D)}),
        (saelens, {"d_sae": M - 1}),
        (saelens, {"d_sae": True}),
        (saelens, {"apply_b_dec_to_input": "yes"}),
        (saelens, {"apply_b_dec_to_input": None}),
        (sparsify, {"num_latents": M + 1}),
        (gemma_scope_2, {"width": M + 1}),
        (gemma_scope_2, {"affine_connection": True}),
        (gemma_scope_2, {"affine_connection": "no"}),
        (gemma_scope_2, {"hf_hook_point_in": None}),
        (gemma_scope_2, {"type": "transcoder"}),
        (gemma_scope_2, {"l0": "many"}),
        (of_dictionary_learning, {"activation_dim": D + 1}),
        (of_dictionary_learning, {"dict_size": M + 1}),
        (of_dictionary_learning, {"k": 5}),
        (of_dictionary_learning, {"k": True}),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(make: Any, change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        pb.Dictionary.load(make(tmp_path / "theirs", **change), allow_pickle_weights=True)


OWN = {  # arrays of each architecture beside W_enc, W_dec and b_dec
    "standard": ("b_enc",),
    "gated": ("b_gate", "r_mag", "b_mag"),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "batchtopk": ("b_enc", "topk_threshold"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc", "W_skip"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
}


@pytest.mark.parametrize("architecture", OWN)
def test_arrays_foreign_to_an_architecture_are_refused_by_name(architecture: str, tmp_path: Path) -> None:
    """Every array of every other architecture: none is left out or applied without a word."""
    arrays = drawn()
    given = {name: arrays[name] for name in ("W_enc", "W_dec", "b_dec")}
    others = dict.fromkeys(("b_enc", "b_gate", "r_mag", "b_mag", "threshold", "log_threshold"), arrays["threshold"])
    others |= {"topk_threshold": np.ones(1, "f4"), "W_skip": np.zeros((D, D), "f4")}
    folder = saelens(tmp_path / "a", architecture=architecture, k=4)
    own = given | {name: others[name] for name in OWN[architecture]}
    save_file(own, folder / "sae_weights.safetensors")
    assert pb.Dictionary.load(folder).n_latents == M
    same = {"jumprelu": {"log_threshold"}, "jumprelu_transcoder": {"log_threshold"}, "batchtopk": {"threshold"}}
    for name in set(others) - set(own) - same.get(architecture, set()):
        save_file(own | {name: others[name]}, folder / "sae_weights.safetensors")
        with pytest.raises(InputError, match=name):
            pb.Dictionary.load(folder)


def test_unknown_arrays_and_cross_layer_transcoders_are_refused(tmp_path: Path) -> None:
    file = saelens(tmp_path / "a") / "sae_weights.safetensors"
    save_file(load_file(file) | {"W_extra": np.zeros(3, "f4")}, file)
    with pytest.raises(UnsupportedFormat, match="W_extra"):
        pb.Dictionary.load(file.parent)
    file = gemma_scope_2(tmp_path / "b") / "params.safetensors"
    save_file(load_file(file) | {"w_dec": np.zeros((M, 3, D), "f4")}, file)
    with pytest.raises(UnsupportedFormat, match="cross-layer"):
        pb.Dictionary.load(file)


def test_a_factor_of_the_states_is_folded_in(tmp_path: Path) -> None:
    folder, a, x = saelens(tmp_path / "a", normalize_activations="expected_average_only_in"), drawn(), states()
    pre = 0.25 * x @ a["W_enc"] + a["b_enc"]
    latents = relu(pre) * (pre > a["threshold"])
    for way in ({"norm_factor": 0.25}, {}):
        made = pb.Dictionary.load(folder, **way)
        np.testing.assert_allclose(made.encode(x).toarray(), latents, atol=1e-4)
        np.testing.assert_allclose(made.reconstruct(x), (latents @ a["W_dec"] + a["b_dec"]) / 0.25, atol=1e-3)
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.25}))
    with pytest.raises(ConfigError, match="no factor"):
        pb.Dictionary.load(saelens(tmp_path / "b"), norm_factor=0.25)


def test_a_flat_file_of_before_is_read_by_its_old_names(tmp_path: Path) -> None:
    old = {"metadata": None, "architecture": None, "hook_point": "blocks.3.hook_resid_pre", "activation_fn_str": "topk"}
    folder = saelens(tmp_path / "a", **old, activation_fn_kwargs={"k": 4}, apply_b_dec_to_input=True)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    weights = load_file(folder / "sae_weights.safetensors")
    del weights["threshold"]
    save_file(weights | {"scaling_factor": np.ones(M, "f4")}, folder / "sae_weights.safetensors")
    made = pb.Dictionary.load(folder)
    assert (made.architecture, made.k, made.site, made.subtract_decoder_bias) == ("topk", 4, "resid.3", True)


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "a")
    shutil.copy(sparsify(tmp_path / "b") / "sae.safetensors", folder)
    with pytest.raises(InputError, match=r"sae_weights\.safetensors, sae\.safetensors"):
        pb.Dictionary.load(folder)
    assert pb.Dictionary.load(folder / "sae_weights.safetensors").source == "saelens"


def spoiled(content: bytes, rng: np.random.Generator, trial: int) -> bytes:
    """Cut, change, repeat or exchange some bytes; mostly near the start, where headers are."""
    place = int(rng.integers(len(content)) if trial % 2 else rng.integers(min(len(content), 400)))
    if trial % 5 == 0:
        return content[:place]
    made = bytearray(content)
    if trial % 5 == 1:
        return bytes(made[:place] + made[place // 2 : place] + made[place:])
    for offset in range(int(rng.integers(1, 9))):
        made[(place + offset) % len(made)] = int(rng.integers(256))
    return bytes(made)


@pytest.mark.parametrize("name", FORMATS)
def test_spoiled_files_give_typed_errors_or_a_whole_dictionary(name: str, tmp_path: Path) -> None:
    """200 spoiled files in all, some 33 of each format: what is read is finite and encodes, or is refused."""
    folder = FORMATS[name](tmp_path / name)
    files = {file: file.read_bytes() for file in sorted(folder.iterdir())}
    rng, refused = np.random.default_rng(len(name)), 0
    for trial in range(34):
        file = list(files)[trial % len(files)]
        file.write_bytes(spoiled(files[file], rng, trial))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = pb.Dictionary.load(folder, allow_pickle_weights=True)
                assert made.encode(np.zeros((2, made.width))).shape == (2, made.n_latents)
            except ProbingError:
                refused += 1
        file.write_bytes(files[file])
    assert refused > 10
    pb.Dictionary.load(folder, allow_pickle_weights=True)


def test_a_member_of_a_size_that_is_not_there_is_refused_before_memory_is_set_aside(tmp_path: Path) -> None:
    import zipfile

    folder, header = gemma_scope(tmp_path), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 10)})
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(InputError, match="as many bytes"):
        pb.Dictionary.load(folder)
