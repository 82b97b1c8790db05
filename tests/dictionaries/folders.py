"""Folders of every format, written by hand, as its library writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import probing as pb

D, M = 12, 40


def drawn(seed: int = 0, width: int = D, latents: int = M) -> dict[str, np.ndarray]:
    """W_enc, b_enc, W_dec, b_dec and a threshold."""
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (width, latents), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
    arrays = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    return arrays | {"threshold": np.abs(rng.standard_normal(latents)).astype("f4")}


def states(count: int = 30, seed: int = 1) -> np.ndarray:
    return (2 * np.random.default_rng(seed).standard_normal((count, D)) + 0.3).astype("f4")


def saelens(folder: Path, **config: Any) -> Path:
    """Version 6; a jumprelu dictionary unless `config` says otherwise."""
    own = {"architecture": "jumprelu", "d_in": D, "d_sae": M, "dtype": "float32", "apply_b_dec_to_input": False}
    own |= {"metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}}
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(own | config))
    save_file(drawn(), folder / "sae_weights.safetensors")
    return folder


def gemma_scope(folder: Path) -> Path:
    place = folder / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_7"
    place.mkdir(parents=True)
    np.savez(place / "params.npz", **drawn())
    return place


def gemma_scope_2(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    own = {"architecture": "jump_relu", "model_name": "gemma-3-1b-pt", "hf_hook_point_in": "model.layers.7.output"}
    (folder / "config.json").write_text(json.dumps(own | config))
    save_file({name.lower(): array for name, array in drawn().items()}, folder / "params.safetensors")
    return folder


def sparsify(folder: Path, **config: Any) -> Path:
    place, arrays = folder / "layers.5", drawn()
    place.mkdir(parents=True)
    (place / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": M, "k": 4, "activation": "topk"} | config))
    weights = {"encoder.weight": arrays["W_enc"].T.copy(), "encoder.bias": arrays["b_enc"]}
    save_file(weights | {"W_dec": arrays["W_dec"], "b_dec": arrays["b_dec"]}, place / "sae.safetensors")
    return place


def dictionary_learning(folder: Path, **trainer: Any) -> Path:
    import torch

    own = {"dict_class": "BatchTopKSAE", "k": 4, "layer": 8, "lm_name": "a/b", "submodule_name": "resid_post_layer_8"}
    arrays = {name: torch.from_numpy(array) for name, array in drawn().items()}
    weights = {
        "encoder.weight": arrays["W_enc"].T,
        "encoder.bias": arrays["b_enc"],
        "decoder.weight": arrays["W_dec"].T,
    }
    weights |= {"b_dec": arrays["b_dec"], "k": torch.tensor(4), "threshold": torch.tensor(1.5)}
    folder.mkdir(parents=True)
    torch.save(weights, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": own | trainer, "buffer": {"ctx_len": 128}}))
    return folder


def ours(folder: Path) -> Path:
    arrays = drawn()
    names = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
    given: dict[str, Any] = {name: arrays[theirs] for name, theirs in names.items()}
    pb.Dictionary(**given, architecture="topk", k=4, site="resid.2").save(folder)
    return folder


FORMATS = {
    "saelens": saelens,
    "gemma_scope": gemma_scope,
    "gemma_scope_2": gemma_scope_2,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "ours": ours,
}
