"""Identity of a model: everything that determines its states, its origin, and its untrained twin."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from probing.errors import BadParameter, UnsupportedModel
from probing.models.discovery.parts import Sides
from probing.provenance import canonical_json, file_sha256
from probing.reference import PREFIX, REFERENCE, shipped

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
)


def model_identity(
    model: nn.Module,
    source: str,
    revision: str | None,
    folder: Path | None,
    untrained: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Return the `model` block of a store's identity.

    Args:
        model: the loaded model.
        source: hub name or folder name.
        revision: hub commit, if known.
        folder: where the files lie; None for a model built in memory, whose parameters are hashed instead.
        untrained: the seed, if the weights are random; both the files and the parameters are then hashed.
        checkpoint: step and training run of the weights, if the caller named them.
    """
    config: Any = getattr(model, "config", None)
    dtype = next(model.parameters()).dtype
    weights = _hashes(folder, "*.safetensors")
    pickles = {} if weights else _hashes(folder, "pytorch_model*.bin")
    twin = {} if untrained is None else {"untrained": {"seed": untrained, "parameters": _parameters_sha256(model)}}
    return (
        twin
        | (checkpoint.identity() if checkpoint else {})
        | ({"pickle_weights": True} if pickles else {})
        | {
            "source": source,
            "revision": revision,
            "weights": weights or pickles or {"parameters": _parameters_sha256(model)},
            "config": file_sha256(folder / "config.json") if folder else _config_sha256(model),
            "class": type(model).__name__,
            "dtype": str(dtype).removeprefix("torch."),
            "attention": str(getattr(config, "_attn_implementation", "")),
            "remote_code": False,
        }
    )


@dataclass(frozen=True)
class Checkpoint:
    """Names the training step, and the training run, at which weights were saved.

    Attributes:
        step: number of steps trained.
        run: name of the training run, if there are several; "": the only run.
    """

    step: int
    run: str = ""

    def __post_init__(self) -> None:
        is_number = isinstance(self.step, int) and not isinstance(self.step, bool)
        if not is_number or not 0 <= self.step < 10**15:
            raise BadParameter(
                "a step that is no number of steps",
                needed="a whole number, 0 or more",
                found=repr(self.step)[:80],
                next_step="such as step=1000; a branch or tag of the hub is a revision: name@step1000:step=1000",
            )

    @classmethod
    def of(cls, step: int | None, run: str | None) -> Checkpoint | None:
        """Return the checkpoint, or None if no step is named.

        Raises:
            BadParameter: the step is no number of steps, or a run is named without a step.
        """
        if step is None and run:
            raise BadParameter("a run without a step", needed=f"step=N beside run={run}", found="no step")
        return None if step is None else cls(step, run or "")

    def identity(self) -> dict[str, Any]:
        """Return the entry `checkpoint` of the `model` block of a store's identity: step and, if named, run."""
        return {"checkpoint": {"step": self.step} | ({"run": self.run} if self.run else {})}


def model_facts(model: nn.Module, name: str) -> dict[str, Any]:
    """Return the descriptive facts of a model: `name`, `architecture`, `layers`, `width` and number of `parameters`.

    They are recorded with states and results, but are not part of an identity. Shared parameters count once. Facts that
    the configuration does not contain are left out.
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    found = {
        "architecture": getattr(config, "model_type", None) or type(model).__name__,
        "layers": getattr(config, "num_hidden_layers", None),
        "width": getattr(config, "hidden_size", None),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    whole = {key: value for key, value in found.items() if isinstance(value, str | int) and value != ""}
    return {"name": name} | whole


def source_names(given: str, path: str) -> tuple[str, str]:
    """Return two names of a model: the name in its identity, and the name shown to users.

    For a folder, the first is the name of the folder; the second also contains the name of its parent, since many
    folders are called `model` or `checkpoint-1000`. The model that ships with the package is shown as
    `probing:reference`.

    Args:
        given: name as the caller gave it.
        path: the folder that this name stands for, or a hub name.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path, path
    folder = folder.resolve()
    is_shipped = given.startswith(PREFIX) or folder == Path(shipped(REFERENCE, "model")).resolve()
    return folder.name, REFERENCE if is_shipped else f"{folder.parent.name}/{folder.name}".lstrip("/")


def tokenizer_identity(
    tokenizer: Any, source: str, revision: str | None, folder: Path | None, padding_side: str
) -> dict[str, Any]:
    """Return the `tokenizer` block of a store's identity."""
    files = {name: file_sha256(folder / name) for name in _TOKENIZER_FILES if folder and (folder / name).is_file()}
    whole = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return {
        "source": source,
        "revision": revision,
        "files": files or {"backend": whole},
        "special_pieces": sorted(str(piece) for piece in tokenizer.all_special_tokens),
        "padding_side": padding_side,
    }


def _hashes(folder: Path | None, pattern: str) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.glob(pattern))} if folder else {}


def _parameters_sha256(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        state.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        state.update(raw.numpy().tobytes())
    return state.hexdigest()


def _config_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of the configuration, or of the modules and their sizes where there is none."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return hashlib.sha256(str(model).encode()).hexdigest()
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k != "transformers_version"}
    return hashlib.sha256(canonical_json(values)).hexdigest()


@dataclass(frozen=True)
class ModelSource:
    """Holds the arguments of `LanguageModel.load`, with a folder as an absolute path and the hub revision that was
    loaded.
    """

    name: str
    device: str
    dtype: str
    attention: str | None
    kind: Literal["auto", "base", "causal", "masked"]
    padding_side: str | None
    revision: str | None
    untrained: int | None
    side: Sides | None
    by_blocks: bool
    allow_pickle_weights: bool
    step: int | None = None
    run: str | None = None

    def anywhere(self) -> ModelSource:
        """Return a source that another process can load from, whatever its working directory."""
        path = Path(self.name).expanduser()
        return replace(self, name=str(path.resolve()), revision=None) if path.is_dir() else self

    def for_worker(self, slot: int | None) -> ModelSource:
        """Return the source for one of several workers; if there are several GPUs, the device `cuda` is replaced by a
        different GPU for each worker.
        """
        if self.device != "cuda" or slot is None or torch.cuda.device_count() < 2:
            return self
        return replace(self, device=f"cuda:{slot % torch.cuda.device_count()}")


def untrained_twin(model: nn.Module, seed: int) -> nn.Module:
    """Return a model of the same class and configuration with random weights, drawn by the initialisation of that
    class.

    The model is built anew from its configuration: in recent versions of transformers, `init_weights` on a loaded model
    changes nothing, so a "random" baseline made that way would be the pretrained model.

    Args:
        model: a pretrained model.
        seed: seed of the random weights; the global generator is not changed.

    Raises:
        UnsupportedModel: a weight matrix equals that of the pretrained model.
    """
    parameter = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin: nn.Module = type(model)(copy.deepcopy(model.config))
    trained = dict(model.named_parameters())
    same = [
        name
        for name, weight in twin.named_parameters()
        if weight.ndim > 1 and torch.equal(weight, trained[name].detach().cpu().to(weight.dtype))
    ]
    if same:
        raise UnsupportedModel(
            "the untrained twin has pretrained weights",
            needed="new draws in every weight matrix",
            found=f"{len(same)} the same: {', '.join(same[:3])}",
            where=type(model).__name__,
            next_step="report this family",
        )
    return twin.to(device=parameter.device, dtype=parameter.dtype).eval()
