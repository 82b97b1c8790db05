"""The tuned lens: h + A h + b, with a matrix and a bias for each site, trained to give the model's own output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from probing.contracts.lens import Lens
from probing.errors import InputError, ProvenanceMismatch
from probing.files.pickles import read_pickle, refused_pickle
from probing.files.whole_files import write_atomically
from probing.lenses._reading import Tail
from probing.provenance import __version__, digest, file_sha256, model_called, tokenizer_digest, weights_digest
from probing.text.corpus import Corpus

FORMAT = 1
ABOUT, WEIGHTS = "lens.json", "lens.safetensors"
_THEIRS = ("config.json", "params.pt")  # of a folder of the package tuned-lens
_LINEAR = "linear_tuned_lens"


@dataclass(eq=False)
class TunedLens(Lens):
    """Adds a learned affine function of the state to it: h + A h + b, with A and b of its own for each site.

    Attributes:
        matrices: A `(D, D)` by site.
        biases: b `(D,)` by site.
        facts: what it was trained on, by name.

    References:
        Belrose et al. 2023, Eliciting Latent Predictions from Transformers with the Tuned Lens, §3.
    """

    matrices: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "tuned"
    about: str = "an affine function of the state, trained for the site by KL to the final output"

    def reads(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return those of the sites that it was trained for."""
        return tuple(site for site in sites if site in self.matrices)

    def at(self, site: str, states: Tensor) -> Tensor:
        """Return h + A h + b in float32."""
        h = states.float()
        return torch.addmm(h + self.biases[site].to(h.device), h, self.matrices[site].to(h.device).T)

    def write(self, folder: Path | str, tail: Tail) -> Path:
        """Write the lens as `lens.safetensors` and `lens.json` into a folder, and return it."""
        from safetensors.torch import save

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        tensors = {f"{site}.A": matrix.contiguous() for site, matrix in self.matrices.items()}
        tensors |= {f"{site}.b": bias.contiguous() for site, bias in self.biases.items()}
        write_atomically(place / WEIGHTS, save(tensors))
        about = {"format": FORMAT, "kind": "tuned", "sites": list(self.matrices), "facts": dict(self.facts)}
        text = json.dumps(about | model_facts(tail), indent=1, sort_keys=True, allow_nan=False)
        write_atomically(place / ABOUT, text.encode())
        return place

    @classmethod
    def read(cls, path: Path | str, tail: Tail, *, allow_pickle_weights: bool = False, any_model: bool = False) -> Self:
        """Read a folder that `write` wrote, or one of the package tuned-lens.

        Args:
            path: the folder.
            tail: end of the model that the lens is to read.
            allow_pickle_weights: whether `params.pt` of the package tuned-lens, a pickle, may be read.
            any_model: whether a lens of other weights or another tokenizer is accepted.

        Raises:
            InputError: there is no lens in the folder, or it is damaged.
            UntrustedFile: it is a pickle, and `allow_pickle_weights` is not set.
            ProvenanceMismatch: it is of another model, tokenizer, width or depth.
        """
        folder = Path(path)
        if (folder / ABOUT).is_file() and (folder / WEIGHTS).is_file():
            return cls._own(folder, tail, any_model)
        if all((folder / name).is_file() for name in _THEIRS):
            return cls._theirs(folder, tail, allow_pickle_weights, any_model)
        raise InputError(
            "there is no tuned lens here",
            needed=f"a folder with {ABOUT} and {WEIGHTS}, or with {' and '.join(_THEIRS)} of the package tuned-lens",
            found="a folder without them" if folder.is_dir() else "no folder",
            where=str(folder),
            next_step="give the folder that `probing lens --lens tuned` wrote, lenses/tuned in its results",
        )

    @classmethod
    def _own(cls, folder: Path, tail: Tail, any_model: bool) -> Self:
        from safetensors.torch import load

        about = read_json(folder / ABOUT)
        try:
            tensors = load((folder / WEIGHTS).read_bytes())
            sites, given = [str(site) for site in about["sites"]], {name: about[name] for name in _IDENTITY}
            if about["format"] != FORMAT or about["kind"] != "tuned":
                raise KeyError(f"format {about['format']} of kind {about['kind']}")
            matrices, biases = ({site: tensors[f"{site}.{name}"] for site in sites} for name in ("A", "b"))
        except Exception as error:
            raise damaged(folder / WEIGHTS, error) from error
        check_model(tail, given, where=str(folder), any_model=any_model)
        check_sites(tail, matrices, str(folder / WEIGHTS))
        width = tail.model.width(tail.site)
        for site in sites:
            matrices[site] = checked(matrices[site], (width, width), f"{site}.A", folder / WEIGHTS)
            biases[site] = checked(biases[site], (width,), f"{site}.b", folder / WEIGHTS)
        return cls(matrices, biases, dict(about.get("facts") or {}))

    @classmethod
    def _theirs(cls, folder: Path, tail: Tail, allow_pickle_weights: bool, any_model: bool) -> Self:
        config, file = read_json(folder / _THEIRS[0]), folder / _THEIRS[1]
        if not allow_pickle_weights:
            raise refused_pickle(file, "lens")
        if (kind := config.get("lens_type", _LINEAR)) != _LINEAR:
            raise unreadable(folder / _THEIRS[0], f"lens_type {kind}", needed=f"lens_type {_LINEAR}")
        width, layers = tail.model.width(tail.site), tail.layer
        expected = {"d_model": width, "num_hidden_layers": layers}
        if other := [f"{key} {config.get(key)}" for key, value in expected.items() if config.get(key) != value]:
            raise other_model(f"d_model {width}, num_hidden_layers {layers}", ", ".join(other), str(folder))
        unchecked = _check_theirs(tail, config, str(folder), any_model)
        values = read_pickle(file, "lens")
        has_bias = bool(config.get("bias", True))
        names = [f"{k}.{part}" for k in range(layers) for part in ("weight", *(["bias"] if has_bias else []))]
        missing = [name for name in names if not isinstance(values, dict) or name not in values]
        if missing:
            raise unreadable(file, f"no tensor {', '.join(missing[:4])}", needed=f"tensors {names[0]} to {names[-1]}")
        shapes = {"weight": (width, width), "bias": (width,)}
        found = {name: checked(values[name], shapes[name.partition(".")[2]], name, file) for name in names}
        zero = torch.zeros(width)
        matrices = {f"resid.{k}": found[f"{k}.weight"] for k in range(layers)}
        biases = {f"resid.{k}": found.get(f"{k}.bias", zero) for k in range(layers)}
        return cls(matrices, biases, {"read_from": "tuned-lens", "unchecked": unchecked})


def _check_theirs(tail: Tail, config: Mapping[str, Any], where: str, any_model: bool) -> list[str]:
    """Check name, revision and unembedding in a `config.json` of the package tuned-lens, and return what of them could
    not be checked.

    Raises:
        ProvenanceMismatch: the name is missing or another one, or the revision or the unembedding is another one, and
            `any_model` is not set.
    """
    if any_model:
        return ["that it is of this model (any_model)"]
    name, step = str(config.get("base_model_name_or_path") or ""), "; if it is the same model, accept it with any_model"
    if not name:
        raise other_model("a lens that names its model", "no base_model_name_or_path", where, step)
    check_name(tail, name, where, any_model)
    unchecked = []
    given, own = config.get("base_model_revision"), tail.model.identity()["model"].get("revision")
    if given and own and len(str(given)) == len(str(own)):  # commits; a branch or tag may name the same weights
        if given != own:
            raise other_model(f"base_model_revision {own}", str(given), where, step)
    elif given:
        unchecked.append(f"the revision {given} of its model (that of this model is {own or 'not known'})")
    get = getattr(tail.model.suffix.model, "get_output_embeddings", None)
    weight, digest = getattr(get() if get is not None else None, "weight", None), config.get("unembed_hash")
    if digest and isinstance(weight, Tensor):
        if digest != (same := unembedding_digest(weight)):
            raise other_model(f"unembed_hash {same[:16]}…", f"{str(digest)[:16]}…", where, step)
    else:
        why = "this model has no single matrix" if digest else "it has no unembed_hash"
        unchecked.append(f"the weights of its model ({why}), only the name")
    return unchecked


def unembedding_digest(weight: Tensor) -> str:
    """Return the `unembed_hash` of the package tuned-lens: SHA-256 of the matrix as NumPy prints it, to one place."""
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75):
        text = np.array_str(weight.detach().cpu().float().numpy(), precision=1)
    return hashlib.sha256(text.encode()).hexdigest()


_IDENTITY = ("model", "weights", "tokenizer", "width", "last_site")


def model_facts(tail: Tail) -> dict[str, Any]:
    """Return what identifies the model that a lens is of."""
    identity = tail.model.identity()
    return {
        "model": model_called(identity["model"]),
        "weights": weights_digest(identity["model"]),
        "tokenizer": tokenizer_digest(identity["tokenizer"]),
        "width": tail.model.width(tail.site),
        "last_site": tail.site,
    }


def recipe_of(tail: Tail, corpus: Corpus, names: Iterable[str], options: Sequence[Any]) -> str:
    """Return a digest of all that results of lenses depend on: model, texts with their splits and groups, the contents
    of the files of lenses (`KIND:PATH`) and options.
    """
    paths = [Path(name.partition(":")[2]).expanduser() for name in names]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    hashes = [file_sha256(file) for file in files if file.is_file()]
    texts = [corpus.fingerprint, [one.split for one in corpus.examples], corpus.units.tolist()]
    facts = [model_facts(tail), str(tail.dtype), tail.model.device, tail.model.suffix.head]
    return digest([__version__, facts, texts, hashes, *options])


def check_model(tail: Tail, given: Mapping[str, Any], *, where: str, any_model: bool) -> None:
    """Check that a lens is of this model.

    Raises:
        ProvenanceMismatch: width or depth differ, or, unless `any_model`, weights or tokenizer.
    """
    own = model_facts(tail)
    names = ("width", "last_site") if any_model else ("width", "last_site", "weights", "tokenizer")
    if other := [name for name in names if given.get(name) != own[name]]:
        raise other_model(
            "; ".join(f"{name} {str(own[name])[:24]}" for name in other),
            "; ".join(f"{name} {str(given.get(name))[:24]}" for name in other) + f" of {given.get('model')}",
            where,
        )


def check_name(tail: Tail, name: str, where: str, any_model: bool) -> None:
    """Check the only fact by which a file from elsewhere names its model: the last part of its name.

    Raises:
        ProvenanceMismatch: the name is another one, and `any_model` is not set.
    """
    own = [str(known) for known in (tail.model.name, tail.model.facts().get("name")) if known]
    if any_model or not name or Path(name).name.lower() in {Path(known).name.lower() for known in own}:
        return
    raise other_model(
        f"a lens of {own[0]}", f"one of {name}", where, "; if it is the same model, accept it with any_model"
    )


def other_model(needed: str, found: str, where: str, step: str = "", kind: str = "tuned") -> ProvenanceMismatch:
    """Return the error for a lens of another model."""
    return ProvenanceMismatch(
        "this lens is of another model",
        needed=needed,
        found=found,
        where=where,
        next_step=f"give a lens of this model, or make one with --lens {kind}{step}",
    )


def check_sites(tail: Tail, sites: Iterable[str], where: str) -> None:
    """Check that the model has the sites of a lens.

    Raises:
        ProvenanceMismatch: it lacks one.
    """
    if other := [site for site in sites if site not in tail.sites]:
        raise other_model(f"sites {tail.sites[0]} to {tail.site}", ", ".join(other[:4]), where)


def checked(value: Any, shape: tuple[int, ...], name: str, path: Path) -> Tensor:
    """Return a tensor of a lens in float32.

    Raises:
        InputError: it is no tensor of real floating-point numbers, has another shape, or numbers that are not finite.
    """
    needed = f"{name}: {shape} finite floating-point numbers"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        raise unreadable(path, f"{name} of {found}", needed=needed)
    if tuple(value.shape) != shape:
        raise unreadable(path, f"{name} of shape {tuple(value.shape)}", needed=needed)
    real: Tensor = value.detach().float()
    if not bool(torch.isfinite(real).all()):
        raise unreadable(path, f"{name} has numbers that are not finite in float32", needed=needed)
    return real


def check_outputs(tail: Tail, lens: Lens, states: Mapping[str, Tensor]) -> None:
    """Check on some states `(n, D)` of each site that the model's end can read what a lens makes of them.

    Raises:
        InputError: a moved state is too large for the model's end, or outputs are not finite.
    """
    for site in lens.reads(tuple(states)):
        with torch.inference_mode():
            moved = lens.at(site, states[site]).to(tail.dtype)
            sizes, outputs = moved.float().square().sum(-1), tail.logits(moved)
        if not bool(torch.isfinite(sizes).all() and torch.isfinite(outputs).all()):
            raise not_finite(tail, lens.name, site)


def not_finite(tail: Tail, lens: str, site: str) -> InputError:
    """Return the error for a lens whose outputs at a site are not finite."""
    return InputError(
        f"the lens {lens} gives no finite outputs at {site}",
        needed=f"states that the end of the model can read in {str(tail.dtype).removeprefix('torch.')}",
        found="states that are too large, or outputs that are not finite",
        where=f"{lens} at {site} of {tail.model.name}",
        next_step="leave the site out, or give a lens of this model; a file may be damaged",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: the file cannot be read as one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(value, dict):
        raise damaged(path, TypeError("no JSON object"))
    return value


def damaged(path: Path, error: Exception) -> InputError:
    """Return the error for a file that cannot be read."""
    return unreadable(path, f"{type(error).__name__}: {error}".splitlines()[0][:200])


def unreadable(
    path: Path, found: str, next_step: str = "fetch or make it again", *, needed: str = "a lens as it was written"
) -> InputError:
    """Return the error for a file that holds no lens."""
    return InputError(
        "this file holds no lens that can be read", needed=needed, found=found, where=str(path), next_step=next_step
    )
