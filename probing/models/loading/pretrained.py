"""Loads a Hugging Face model and its tokenizer by name or folder: by default safetensors only, and never remote
code.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from probing.errors import BadParameter, ModelError, ProbingError, UnsupportedModel, unknown_name
from probing.models.loading.weight_files import (
    check_file,
    check_files,
    check_sizes,
    load_weights,
    refuse_remote_code,
    remote_code,
    warn_of_unused,
)
from probing.system.machine import check_device


def is_recomputed(model: Any, key: str) -> bool:
    """Return whether initialisation alone determines a weight that the files lack, whatever the seed (for example a
    table of positions).

    A trained weight may also start as a constant, as the scales of norms do; so a constant counts only if the weight is
    not trained.

    Args:
        model: the loaded model.
        key: the weight's path.
    """
    path, _, name = key.rpartition(".")
    try:
        owner = model.get_submodule(path)
        weight: Tensor = getattr(owner, name)
        found = [_fresh(model, owner, name, seed) for seed in (0, 1)]
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    is_constant = bool((weight == weight.flatten()[0]).all())
    is_trained = isinstance(weight, nn.Parameter) and weight.requires_grad
    return not (is_constant and is_trained) and all(torch.equal(weight, fresh) for fresh in found)


def _fresh(model: Any, owner: nn.Module, name: str, seed: int) -> Tensor:
    """Return the weight as initialisation gives it in a copy of its module, which holds another before."""
    twin = copy.deepcopy(owner)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for tensor in [*twin.parameters(recurse=False), *twin.buffers(recurse=False)]:
            tensor.fill_(seed + 7)
            tensor.__dict__.pop("_is_hf_initialized", None)
        twin.__dict__.pop("_is_hf_initialized", None)
        model._init_weights(twin)
    found: Tensor = getattr(twin, name)
    return found


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KINDS = ("auto", "base", "causal", "masked")


@dataclass(frozen=True)
class Loaded:
    """Holds a model and its tokenizer, the folder of their files, and the hub revision (None: an ordinary folder)."""

    model: nn.Module
    tokenizer: Any
    folder: Path
    revision: str | None


def load(
    name: str,
    *,
    device: str,
    dtype: str,
    attention: str | None,
    kind: str,
    revision: str | None,
    allow_pickle_weights: bool = False,
) -> Loaded:
    """Load model and tokenizer of `name`, a local folder or a hub name, and return them with their folder.

    Raises:
        UnsupportedModel: there is no such folder or hub model, safetensors are missing or damaged, the model is too
            large for this machine, weights are missing, or it has no fast tokenizer.
        RemoteCodeRefused: the model needs Python code in its folder.
        BadParameter: the dtype, kind or device is unknown, or a folder is given a revision that it is not.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES, error=BadParameter)
    if kind not in KINDS:
        raise unknown_name("model kind", kind, KINDS, error=BadParameter)
    check_device(device)
    _check_local(name)
    _check_revision(name, revision)
    refuse_remote_code(name)
    check_files(name)
    check_file(name)
    with _quiet(), _typed(name):
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        _check_quantization(config, name)
        loader = _loader(config, kind)
        build = partial(getattr(loader, "from_config", None) or loader._from_config, copy.deepcopy(config))
        check_sizes(config, build, dtype=DTYPES[dtype], device=device, name=name)
        from_pretrained = partial(
            loader.from_pretrained,
            name,
            config=config,
            revision=revision,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
        model, report = load_weights(from_pretrained, name, allow_pickle=allow_pickle_weights)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        folder = _folder(name, revision)
    check_tokenizer(tokenizer, name)
    warn_of_unused(model, report["unexpected_keys"], name)
    lacking = (key for key in report["missing_keys"] if not _is_beside_the_trunk(key, kind))
    missing = sorted(key for key in lacking if not is_recomputed(model, key))
    if missing:
        raise UnsupportedModel(
            "the weight files lack parameters, which would be random",
            needed="every weight of the trunk",
            found=f"{len(missing)} missing: {', '.join(missing[:3])}",
            where=name,
            next_step="complete the download, or choose the model's own kind= (base, causal, masked)",
        )
    return Loaded(model.eval().to(device), tokenizer, folder, revision or _snapshot(folder))


def configuration(name: str, revision: str | None) -> dict[str, Any]:
    """Return the configuration of a local folder or a hub model as a dictionary; no weights are read.

    Raises:
        UnsupportedModel: there is no such folder or model, or its configuration cannot be read.
        RemoteCodeRefused: the model needs Python code in its folder.
        BadParameter: a folder is given a revision that it is not.
    """
    _check_local(name)
    _check_revision(name, revision)
    refuse_remote_code(name)
    check_file(name)
    with _quiet(), _typed(name):
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    found: dict[str, Any] = config.to_dict()
    return found


def _is_beside_the_trunk(key: str, kind: str) -> bool:
    """Return whether a weight does not enter the states: poolers come after them; a missing head matters only if it was
    asked for.
    """
    return "pooler" in key or (kind == "auto" and ("lm_head" in key or key.startswith("cls.")))


def _loader(config: Any, kind: str) -> Any:
    loaders = {
        "base": transformers.AutoModel,
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
    }
    saved = (getattr(config, "architectures", None) or [""])[0]
    if kind != "auto":
        return loaders[kind]
    if saved in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return loaders["causal"]
    if saved in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
        return loaders["masked"]
    if type(config) in transformers.AutoModelForImageTextToText._model_mapping:  # these write text, too
        return transformers.AutoModelForImageTextToText
    own = getattr(transformers, str(saved), None)
    if type(config) not in transformers.AutoModel._model_mapping and getattr(own, "config_class", None) is type(config):
        return own
    return loaders["base"]


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Check that a tokenizer works and gives the character offsets of its pieces.

    Raises:
        UnsupportedModel: it is not a fast tokenizer, fails on a plain text, or has a length limit that is not a number.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(
            "the tokenizer cannot tell character offsets",
            needed="a fast tokenizer (tokenizer.json)",
            found=type(tokenizer).__name__,
            where=name,
            next_step="convert it to tokenizer.json",
        )
    own = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - set(tokenizer.get_added_vocab())
    if not own or not _has_vocabulary(name):
        raise UnsupportedModel(
            "the tokenizer has no pieces",
            needed="tokenizer.json, or the vocabulary of the tokenizer",
            found=f"special pieces, and {len(own)} others",
            where=name,
            next_step="copy the files of the tokenizer that the model was trained with into the folder",
        )
    limit = tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit != limit:
        raise UnsupportedModel(
            "the tokenizer's limit of an input is no number",
            needed="model_max_length in tokenizer_config.json",
            found=repr(limit)[:100],
            where=name,
            next_step="write the number of pieces there, or leave it out",
        )
    with _typed(name, "the tokenizer fails on a plain text"):
        tokenizer("A plain text, of 2 parts.", return_offsets_mapping=True, verbose=False)


_VOCABULARIES = ("tokenizer*.json", "*vocab*", "*.model", "*.tiktoken", "tekken.json", "*.bpe", "bpe.codes")


def _has_vocabulary(name: str) -> bool:
    """Return whether a folder holds a vocabulary file; without one, transformers invents a tokenizer. A hub name is
    taken to have one.
    """
    folder = Path(name).expanduser()
    files = [file for pattern in _VOCABULARIES for file in folder.glob(pattern)]
    return not folder.is_dir() or any(file.name != "tokenizer_config.json" for file in files)


def _check_quantization(config: Any, name: str) -> None:
    """Refuse weights that are packed in a way that is not known here: they would be read as plain numbers.

    Raises:
        UnsupportedModel: with the way.
    """
    given = getattr(config, "quantization_config", None)
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    if given is not None and str(getattr(method, "value", method)) not in AUTO_QUANTIZER_MAPPING:
        raise UnsupportedModel(
            "the weights are quantised in an unknown way",
            needed="plain weights, or a quant_method of transformers",
            found=repr(method)[:80],
            where=name,
            next_step="save the model with plain weights (dequantised)",
        )


@contextmanager
def _typed(name: str, message: str | None = None) -> Iterator[None]:
    """Within the block, whatever files from elsewhere make libraries raise becomes an error of the model."""
    try:
        yield
    except ProbingError:
        raise
    except Exception as error:
        raise _load_error(name, error, message) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of tokenizers, which is written in Rust
            raise
        raise _load_error(name, error, message) from error


def _check_local(name: str) -> None:
    """Refuse a name that can only be a folder and is none, with the nearest folder beside it."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModel(
                f"{name} is not a model folder",
                needed="config.json, *.safetensors and tokenizer files",
                found="no config.json",
                where=name,
                next_step="give the folder that holds config.json",
            )
        return
    is_path = path.is_absolute() or name.startswith((".", "~")) or (name.count("/") != 1 and "/" in name)
    if is_path or (path.parent.is_dir() and "/" in name):
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.4)
        raise UnsupportedModel(
            f"no model folder {name}",
            needed="a folder with config.json, or a hub name such as gpt2",
            found="no such folder",
            where=name,
            next_step=f"did you mean {path.parent / near[0]}?" if near else "check the path",
        )


def _check_revision(name: str, revision: str | None) -> None:
    """Refuse a revision of a folder, which transformers would ignore: states would be said to be of another model."""
    folder = Path(name).expanduser()
    if revision is None or not folder.is_dir() or revision == _snapshot(folder):
        return
    raise BadParameter(
        "a local folder has no revisions",
        needed="a revision of a hub model only",
        found=f"revision {revision!r}",
        where=name,
        next_step="leave the revision out, or give the model's hub name",
    )


def _load_error(name: str, error: BaseException, message: str | None = None) -> ModelError:
    reason = _reason(error)
    if "trust_remote_code" in str(error):
        return remote_code(name, reason)
    is_local = Path(name).expanduser().is_dir()
    siblings = [p.name for p in Path.cwd().iterdir() if p.is_dir()] if not is_local else []
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    step = (
        "give a folder with config.json, *.safetensors and tokenizer files of a text model"
        if is_local
        else f"did you mean the folder ./{near[0]}?"
        if near
        else "check the spelling and the network; offline, give a local folder or a model already in the cache"
    )
    return UnsupportedModel(
        message or f"model {name!r} cannot be loaded",
        needed="a local model folder or a model on the hub",
        found=reason[:300],
        where=name,
        next_step=step,
    )


def _reason(error: BaseException) -> str:
    """Return the first sentence of an error: transformers begins some with a line that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "above report" in str(error):  # transformers has printed it, where we let it print nothing
        return "weights of other shapes than config.json says"
    first = next((k for k, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: first + 1]) or type(error).__name__


def _folder(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    return path if path.is_dir() else Path(str(cached_file(name, "config.json", revision=revision))).parent


def _snapshot(folder: Path) -> str | None:
    """Return the commit of a hub snapshot; None for an ordinary folder."""
    return folder.name if folder.parent.name == "snapshots" else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, no progress bars or load reports are shown: what matters in them is checked here."""
    level, had_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
