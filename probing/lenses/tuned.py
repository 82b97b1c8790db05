"""The tuned lens: h + A h + b, with a matrix and a bias for each site, trained to give the model's own output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from probing.contracts.lens import Lens
from probing.errors import InputError, ProvenanceMismatch, UntrustedFile
from probing.files.whole_files import write_atomically
from probing.lenses._reading import Tail
from probing.provenance import model_called, tokenizer_digest, weights_digest

FORMAT = 1
ABOUT, WEIGHTS = "lens.json", "lens.safetensors"
_THEIRS = ("config.json", "params.pt")  # of a folder of the package tuned-lens
_SAFE = "give the flag only for a file whose origin you trust; it is read by torch.load(weights_only=True)"


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
    def read(cls, path: Path | str, tail: Tail, *, allow_pickle: bool = False, any_model: bool = False) -> Self:
        """Read a folder that `write` wrote, or one of the package tuned-lens.

        Args:
            path: the folder.
            tail: end of the model that the lens is to read.
            allow_pickle: whether `params.pt` of the package tuned-lens, a pickle, may be read.
            any_model: whether a lens of other weights or another tokenizer is accepted.

        Raises:
            InputError: there is no lens in the folder, or it is damaged.
            UntrustedFile: it is a pickle, and `allow_pickle` is not set.
            ProvenanceMismatch: it is of another model, tokenizer, width or depth.
        """
        folder = Path(path)
        if (folder / ABOUT).is_file() and (folder / WEIGHTS).is_file():
            return cls._own(folder, tail, any_model)
        if all((folder / name).is_file() for name in _THEIRS):
            return cls._theirs(folder, tail, allow_pickle, any_model)
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
        check_shapes(tail, matrices, str(folder / WEIGHTS))
        return cls(matrices, biases, dict(about.get("facts") or {}))

    @classmethod
    def _theirs(cls, folder: Path, tail: Tail, allow_pickle: bool, any_model: bool) -> Self:
        config = read_json(folder / _THEIRS[0])
        if not allow_pickle:
            raise refused_pickle(folder / _THEIRS[1])
        width, layers = tail.model.width(tail.site), tail.layer
        expected = {"d_model": width, "num_hidden_layers": layers}
        if other := [f"{key} {config.get(key)}" for key, value in expected.items() if config.get(key) != value]:
            raise other_model(f"d_model {width}, num_hidden_layers {layers}", ", ".join(other), str(folder))
        check_name(tail, str(config.get("base_model_name_or_path") or ""), str(folder), any_model)
        values = read_pickle(folder / _THEIRS[1])
        zero = torch.zeros(width)
        try:
            matrices = {f"resid.{k}": values[f"{k}.weight"].float() for k in range(layers)}
            biases = {
                f"resid.{k}": values[f"{k}.bias"].float() if config.get("bias", True) else zero for k in range(layers)
            }
        except (KeyError, AttributeError, TypeError) as error:
            raise damaged(folder / _THEIRS[1], error) from error
        check_shapes(tail, matrices, str(folder / _THEIRS[1]))
        return cls(matrices, biases, {"read_from": "tuned-lens"})


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


def other_model(needed: str, found: str, where: str, step: str = "") -> ProvenanceMismatch:
    """Return the error for a lens of another model."""
    return ProvenanceMismatch(
        "this lens is of another model",
        needed=needed,
        found=found,
        where=where,
        next_step=f"give a lens of this model, or train one with --lens tuned{step}",
    )


def check_shapes(tail: Tail, matrices: Mapping[str, Tensor], where: str) -> None:
    """Check that every matrix is `(D, D)`, finite, and of a site of the model.

    Raises:
        ProvenanceMismatch: a site is unknown, or a matrix has another shape.
        InputError: a matrix has entries that are not finite.
    """
    width = tail.model.width(tail.site)
    for site, matrix in matrices.items():
        if site not in tail.sites or tuple(matrix.shape) != (width, width):
            raise other_model(
                f"({width}, {width}) at sites {tail.sites[0]} to {tail.site}", f"{tuple(matrix.shape)} at {site}", where
            )
        if not bool(torch.isfinite(matrix).all()):
            raise damaged(Path(where), ValueError(f"the matrix of {site} is not finite"))


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


def read_pickle(path: Path) -> Any:
    """Return what `torch.load(weights_only=True)` reads from a file.

    Raises:
        InputError: it cannot be read so.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise damaged(path, error) from error


def refused_pickle(path: Path) -> UntrustedFile:
    """Return the error for a pickle without the flag."""
    return UntrustedFile(
        "this lens is a pickle, which is not read by default",
        needed="allow_pickle_weights (--allow-pickle-weights)",
        found=path.name,
        where=str(path),
        next_step=_SAFE,
    )


def damaged(path: Path, error: Exception) -> InputError:
    """Return the error for a file that holds no lens."""
    return InputError(
        "this file holds no lens that can be read",
        needed="a lens as it was written",
        found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
        where=str(path),
        next_step="fetch or train it again",
    )
