"""Writes small dictionaries by the classes of other libraries, and what these make of some states.

    python -m tests.dictionaries.library_files LIBRARY FOLDER

Each case is a folder with the library's own files and `expected.npz`: states x, latents f and decoded states y, which
the library computed from its own files, loaded by its own function.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import accelerate  # noqa: F401 - and datasets: they look for optional packages, before there are stand-ins
import datasets  # noqa: F401
import numpy as np
import torch

UNUSED = ("wandb", "nnsight", "zstandard")  # imported by the libraries, and nothing that their dictionaries use
D, M, OUT, N = 16, 48, 12, 40
ABOUT = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_pre", "prepend_bos": True}


def randomised(module: Any, seed: int = 0) -> Any:
    """Give every parameter and buffer of numbers random values; thresholds stay in reach."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point() and not name.startswith(("k", "hook")):
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
                value.copy_(drawn.abs() if "threshold" in name else drawn)
    return module


def states() -> torch.Tensor:
    return torch.randn((N, D), generator=torch.Generator().manual_seed(7)) * 1.5 + 0.2


def expect(folder: Path, latents: torch.Tensor, decoded: torch.Tensor) -> None:
    arrays = {"x": states(), "f": latents, "y": decoded}
    np.savez(folder / "expected.npz", **{name: value.detach().float().numpy() for name, value in arrays.items()})


def saelens(to: Path) -> None:
    from sae_lens import saes

    def loaded(folder: Path, is_transcoder: bool = False) -> None:
        sae = saes.SAE.load_from_disk(folder)
        latents = sae.encode(states())
        sae.encode(states())  # decoding uses up what normalisation left
        expect(folder, latents, sae(states()) if is_transcoder else sae.decode(latents))

    sizes: dict[str, Any] = {"d_in": D, "d_sae": M}
    plain = {
        "standard": ("Standard", {}),
        "standard_no_bias": ("Standard", {"apply_b_dec_to_input": False}),
        "standard_layer_norm": ("Standard", {"normalize_activations": "layer_norm"}),
        "standard_constant_norm": ("Standard", {"normalize_activations": "constant_norm_rescale"}),
        "gated": ("Gated", {}),
        "gated_layer_norm": ("Gated", {"normalize_activations": "layer_norm"}),
        "topk": ("TopK", {"k": 5}),
        "topk_rescaled": ("TopK", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        "topk_layer_norm": ("TopK", {"k": 7, "normalize_activations": "layer_norm"}),
        "jumprelu": ("JumpReLU", {"apply_b_dec_to_input": False}),
        "jumprelu_layer_norm": ("JumpReLU", {"normalize_activations": "layer_norm"}),
    }
    for name, (kind, options) in plain.items():
        config = getattr(saes, f"{kind}SAEConfig")(**sizes, **options, metadata=saes.sae.SAEMetadata(**ABOUT))
        randomised(getattr(saes, f"{kind}SAE")(config)).save_model(to / name)
        loaded(to / name)
    for name, kind in (
        ("transcoder", "Transcoder"),
        ("skip_transcoder", "SkipTranscoder"),
        ("jumprelu_transcoder", "JumpReLUTranscoder"),
        ("jumprelu_skip_transcoder", "JumpReLUSkipTranscoder"),
    ):
        metadata = saes.sae.SAEMetadata(**ABOUT, hook_name_out="blocks.3.hook_mlp_out")
        options = {"apply_b_dec_to_input": False, "metadata": metadata}
        config = getattr(saes, f"{kind}Config")(**sizes, d_out=OUT, **options)
        randomised(getattr(saes, kind)(config)).save_model(to / name)
        loaded(to / name, is_transcoder=True)
    for name, kind, options in (
        ("batchtopk", "BatchTopK", {}),
        ("batchtopk_rescaled", "BatchTopK", {"rescale_acts_by_decoder_norm": True}),
        ("matryoshka", "MatryoshkaBatchTopK", {"matryoshka_widths": [16, M]}),
    ):
        config = getattr(saes, f"{kind}TrainingSAEConfig")(**sizes, k=5, **options)
        config.metadata = saes.sae.SAEMetadata(**ABOUT)
        made = randomised(getattr(saes, f"{kind}TrainingSAE")(config))
        made.save_model(to / f"{name}_checkpoint")
        made.save_inference_model(to / name)
        loaded(to / name)  # what is written for use is what the checkpoint is to encode as
        (to / f"{name}_checkpoint" / "expected.npz").write_bytes((to / name / "expected.npz").read_bytes())
    for name, fold in (("scaled", 0.37),):
        config = saes.StandardSAEConfig(**sizes, normalize_activations="expected_average_only_in")
        made = randomised(saes.StandardSAE(config))
        made.save_model(to / name)
        (to / name / "activation_scaler.json").write_text(json.dumps({"scaling_factor": fold}))
        made.fold_activation_norm_scaling_factor(fold)
        expect(to / name, made.encode(states()), made.decode(made.encode(states())))
    flat = {"model_name": "gpt2", "hook_point": "blocks.3.hook_resid_pre", "d_in": D, "d_sae": M, "dtype": "float32"}
    flat |= {"device": "cpu", "normalize_activations": False, "prepend_bos": True}
    for name, source, more in (
        ("old_standard", "standard", {}),
        ("old_gated", "gated", {"architecture": "gated"}),
        ("old_jumprelu", "jumprelu", {"architecture": "jumprelu", "apply_b_dec_to_input": False}),
        ("old_topk", "topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}),
    ):
        (to / name).mkdir()
        weights = (to / source / "sae_weights.safetensors").read_bytes()
        (to / name / "sae_weights.safetensors").write_bytes(weights)
        (to / name / "cfg.json").write_text(json.dumps(flat | more))
        loaded(to / name)


def gemma_scope(to: Path) -> None:
    """The library that reads these files is SAELens; what it fetches is given to it."""
    from sae_lens import saes
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors.numpy import save_file

    def drawn(out: int = D, names: str = "W_enc W_dec b_enc b_dec threshold") -> dict[str, np.ndarray]:
        rng, shapes = np.random.default_rng(2), ((D, M), (M, out), (M,), (out,), (M,))
        return {n: rng.standard_normal(s).astype("f4") for n, s in zip(names.split(), shapes, strict=True)}

    def check(folder: Path, load: Any, repository: str, name: str, part: str, is_transcoder: bool = False) -> None:
        def fetched(*parts: Any, filename: str = "", **options: Any) -> str:
            file = folder / Path(filename or str(parts[1])).name
            if not file.exists():
                raise loaders.EntryNotFoundError("none", response=mock.Mock())
            return str(file)

        shapes = {"w_enc": [D, M], "w_dec": [M, OUT if is_transcoder else D]}
        with (
            mock.patch.object(loaders, "hf_hub_download", fetched),
            mock.patch.object(loaders, "get_safetensors_tensor_shapes", lambda *_: shapes),
        ):
            sizes = {"d_in": D, "d_sae": M} | ({"d_out": OUT} if is_transcoder else {})
            config, weights, *_ = load(repository, part, "cpu", cfg_overrides=sizes)
        config = loaders.handle_config_defaulting(config)
        made = saes.SAE.get_sae_class_for_architecture(config["architecture"])(
            saes.SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config)
        )
        made.load_state_dict(weights)
        expect(folder, made.encode(states()), made(states()))

    folder = to / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **drawn())
    part = "layer_20/width_16k/average_l0_71"
    check(folder, loaders.gemma_2_sae_huggingface_loader, "google/gemma-scope-2b-pt-res", folder.name, part)
    folder = to / "gemma-scope-2b-pt-transcoders" / "layer_3" / "width_16k" / "average_l0_9"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **drawn(OUT))
    load, name = loaders.gemma_2_transcoder_huggingface_loader, "google/gemma-scope-2b-pt-transcoders"
    check(folder, load, name, folder.name, "layer_3/width_16k/average_l0_9", True)
    lower = "w_enc w_dec b_enc b_dec threshold"
    for kind, more in (("resid_post", {}), ("transcoder_all", {"affine_connection": True})):
        is_transcoder = "transcoder" in kind
        folder = to / "gemma-scope-2-1b-pt" / kind / "layer_7_width_16k_l0_medium"
        folder.mkdir(parents=True)
        arrays = drawn(OUT if is_transcoder else D, lower)
        arrays |= {"affine_skip_connection": np.ones((D, OUT), "f4") * 0.3} if is_transcoder else {}
        save_file(arrays, folder / "params.safetensors")
        block = "model.layers.7"
        config = {"architecture": "jump_relu", "model_name": "gemma-3-1b-pt", "hf_hook_point_in": f"{block}.output"}
        if is_transcoder:
            config["hf_hook_point_in"] = f"{block}.pre_feedforward_layernorm.output"
            config["hf_hook_point_out"] = f"{block}.post_feedforward_layernorm.output"
        (folder / "config.json").write_text(json.dumps(config | more))
        load, part = loaders.gemma_3_sae_huggingface_loader, f"{kind}/layer_7_width_16k_l0_medium"
        check(folder, load, "google/gemma-scope-2-1b-pt", folder.name, part, is_transcoder)


def sparsify(to: Path) -> None:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    for name, options in (
        ("topk/layers.5", {}),
        ("groups/layers.5", {"activation": "groupmax", "k": 8}),
        ("skip/layers.5", {"skip_connection": True}),
        ("transcoder/layers.2.mlp", {"transcode": True}),
        ("skip_transcoder/layers.2.mlp", {"transcode": True, "skip_connection": True}),
    ):
        folder = to / name
        config = SparseCoderConfig(**{"num_latents": M, "k": 6} | options)
        randomised(SparseCoder(D, config)).save_to_disk(folder)
        (folder.parent / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
        made = SparseCoder.load_from_disk(folder)
        values, places, _ = made.encode(states())
        latents = torch.zeros(N, M).scatter_(1, places, values)
        expect(folder, latents, made(states()).sae_out)


def dictionary_learning(to: Path) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    def made() -> Iterator[Any]:
        yield dictionary.AutoEncoder(D, M)
        yield dictionary.AutoEncoderNew(D, M)
        yield dictionary.GatedAutoEncoder(D, M)
        yield dictionary.JumpReluAutoEncoder(D, M)
        yield AutoEncoderTopK(D, M, 5)
        yield BatchTopKSAE(D, M, 5)
        yield MatryoshkaBatchTopKSAE(D, M, 5, [16, M - 16])

    for one in made():
        name = type(one).__name__
        (to / name).mkdir()
        torch.save(randomised(one).state_dict(), to / name / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": M, "k": 5, "layer": 8, "lm_name": "a/b"}
        trainer["submodule_name"] = "resid_post_layer_8"
        (to / name / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        again, _ = load_dictionary(str(to / name), "cpu")
        latents = again.encode(states())
        expect(to / name, latents, again.decode(latents))


if __name__ == "__main__":
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
    with torch.no_grad():
        {"saelens": saelens, "gemma_scope": gemma_scope, "sparsify": sparsify}.get(sys.argv[1], dictionary_learning)(
            Path(sys.argv[2])
        )
