"""Exports directions to GGUF and other formats of steering vectors; each file carries the verdicts."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from probing.errors import BadParameter
from probing.files.whole_files import write_atomically
from probing.neuronpedia.writing import vector, write_vectors
from probing.system.machine import with_typed_errors
from probing.use.directions.files import is_evidence
from probing.use.directions.record import Evidence

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_UINT32, _STRING = 4, 8  # types of metadata
_F32 = 0  # type of tensors
_LONGEST_NAME = 64
FORMATS = ("gguf", "safetensors", "npz", "npy", "neuronpedia")


def gguf_bytes(metadata: Mapping[str, str | int], tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the bytes of a GGUF file.

    Args:
        metadata: texts and whole numbers from 0 to 2³² − 1, by key.
        tensors: `(n,)` float32 arrays, by name of at most 64 bytes.
    """
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    head += [_text(key) + _value(value) for key, value in metadata.items()]
    data, at = [], 0
    for name, tensor in tensors.items():
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"a tensor's name of more than {_LONGEST_NAME} bytes: {name}")
        head.append(_text(name) + struct.pack("<IQIQ", 1, len(tensor), _F32, at))
        content = _aligned(np.ascontiguousarray(tensor, "<f4").tobytes())
        data.append(content)
        at += len(content)
    return _aligned(b"".join(head)) + b"".join(data)


def _value(value: str | int) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    return struct.pack("<II", _UINT32, value)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _aligned(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)


KEY = "probing.evidence"
_NOTE = "added to the residual stream at every position; each verdict is about one position, named in its evidence"


def export_control_vector(
    path: str | Path, evidence: Sequence[Evidence], *, model_hint: str, start: float = 0, goal: float = 1
) -> Path:
    """Write a GGUF control vector, which llama.cpp reads with `--control-vector`.

    llama.cpp adds `direction.n`, times a strength, to the output of block n (counted from 0), for n ≥ 1; this is the
    site `resid.(n + 1)`. Strength 1 moves states by the whole difference between the class means of `start` and `goal`,
    averaged over strata by the weights that the evidence records.
    The evidence is in the metadata, by layer, with `start` and `goal`.

    Args:
        path: path of the file.
        evidence: directions of one model and property at sites `resid.2` and higher, one per site.
        model_hint: llama.cpp's name of the architecture, such as `llama` or `gpt2`.
        start: code of the class (or real value) that the direction leads away from.
        goal: code of the class (or real value) that it leads to; for real values, the default 0 and 1 give the shift
            per unit.

    Raises:
        BadParameter: there is no evidence; some of it is not a direction at a site `resid.2` or higher; or it is of
            several models or properties.
    """
    vectors = {_block(one): one for one in _together(evidence)}
    if len(vectors) < len(evidence):
        raise BadParameter(
            "a control vector has one direction a layer",
            needed="one position of each site",
            found=", ".join(one.header.place for one in evidence)[:400],
            next_step="name one file of evidence a site, or choose safetensors or npz",
        )
    layers = sorted(vectors)
    metadata: dict[str, str | int] = {
        "general.architecture": "controlvector",
        "controlvector.model_hint": model_hint,
        "controlvector.layer_count": len(layers),
        "probing.note": _NOTE,
    }
    metadata |= {f"probing.evidence.{n}": json.dumps(_told(vectors[n], start, goal), sort_keys=True) for n in layers}
    tensors = {f"direction.{n}": vectors[n].direction(start=start, goal=goal).astype(np.float32) for n in layers}
    write_atomically(Path(path), gguf_bytes(metadata, tensors))
    return Path(path)


def export_vectors(
    path: str | Path,
    evidence: Sequence[Evidence],
    *,
    start: float = 0,
    goal: float = 1,
    format: str | None = None,
) -> Path:
    """Write one float32 vector per place, under the place's name, with the headers of the evidence as JSON, to which
    the names of the classes (or the values) are added as `start` and `goal`.

    The JSON is the array `probing.evidence` of an npz file, or has that key in the metadata of a safetensors file. An
    npy file holds one vector and nothing else; its JSON is written beside it as `NAME.npy.json`.

    Args:
        path: path of the file.
        evidence: directions of one model and property, one per place.
        start: code of the class (or real value) that the direction leads away from.
        goal: code of the class (or real value) that it leads to; for real values, the default 0 and 1 give the shift
            per unit.
        format: `safetensors`, `npz` or `npy`; None means that the ending of the name decides.

    Raises:
        BadParameter: see `export_control_vector` (but any site is allowed); or the format is unknown, or several
            vectors are to go into an npy file.
    """
    file = Path(path)
    together = _together(evidence)
    vectors: dict[str, NDArray[np.float32]] = {
        one.header.place: one.direction(start=start, goal=goal).astype(np.float32) for one in together
    }
    told = json.dumps({one.header.place: _told(one, start, goal) for one in together}, sort_keys=True)
    form, buffer = file.suffix.removeprefix(".") if format is None else format, BytesIO()
    if form == "safetensors":
        buffer.write(save(vectors, metadata={KEY: told}))
    elif form == "npz":
        np.savez(buffer, **{**vectors, KEY: np.array(told)})  # type: ignore[arg-type]
    elif form == "npy":
        if len(vectors) > 1:
            raise BadParameter(
                "an npy file holds one vector",
                needed="one direction",
                found=f"{len(vectors)}: {', '.join(vectors)}",
                next_step="name one file of evidence, or choose safetensors or npz",
            )
        np.save(buffer, next(iter(vectors.values())))
        is_new = not beside(file).exists()
        write_atomically(beside(file), (told + "\n").encode())  # first: no vector without its verdict
        try:
            write_atomically(file, buffer.getvalue())
        except BaseException:
            if is_new:
                beside(file).unlink(missing_ok=True)
            raise
        return file
    else:
        raise BadParameter(
            "no such format of vectors",
            needed=".npz, .npy or .safetensors",
            found=form if format else file.suffix or "none",
            where=str(path),
        )
    write_atomically(file, buffer.getvalue())
    return file


def export_to_neuronpedia(
    path: str | Path, evidence: Sequence[Evidence], *, model: str, start: float = 0, goal: float = 1
) -> Path:
    """Write vectors of residual streams as a JSON list, each entry in the form that Neuronpedia's `vector/new` accepts;
    the label contains the verdict.

    Args:
        path: path of the file.
        evidence: directions of one model and property, one per place.
        model: Neuronpedia's id of the model.
        start, goal: codes of the classes that a direction leads away from and to.

    Raises:
        BadParameter: see `export_control_vector`; or a site is no residual stream, or the model has no id.
    """
    if not model or model == "unknown":
        raise BadParameter(
            "a vector for Neuronpedia names its model",
            needed="Neuronpedia's id of the model, as model_hint (--model-hint)",
            found=model or "none",
        )
    vectors = []
    for one in _together(evidence):
        head = one.header
        label = f"{head.task} ({one.said(start)} → {one.said(goal)})"
        behaviour = f", for {head.behaviour}" if head.behaviour else ""
        said = f"{head.verdict.word}{behaviour} (at {head.place} of {head.model})"
        values = one.direction(start=start, goal=goal)
        vectors.append(vector(model=model, site=head.site, layers=None, values=values, label=label, verdict=said))
    return write_vectors(vectors, path)


def beside(file: Path) -> Path:
    """Return the path of the JSON file that holds the evidence of an npy file: its name with `.json` appended."""
    return file.with_name(f"{file.name}.json")


@with_typed_errors
def export_directions(
    evidence: Evidence | Sequence[Evidence],
    to: str | Path,
    *,
    format: str | None = None,
    start: str | None = None,
    goal: str | None = None,
    model_hint: str = "unknown",
    replace: bool = False,
) -> tuple[Path, ...]:
    """Write directions in a format that other tools read, with their verdicts, and return the files written.

    Args:
        evidence: class means from `read_directions`, of one model and property, one per place (site and position).
        to: path of the file.
        format: `gguf` (see `export_control_vector`), `safetensors`, `npz` or `npy` (see `export_vectors`), or
            `neuronpedia` (see `export_to_neuronpedia`); None means that the ending of the name decides.
        start: name of the class (for real values, number) that the direction leads away from; None means the other of
            two classes if `goal` names one, else the first, or the number 0.
        goal: name of the class (or number) that it leads to; None means the other of two classes than `start`, or the
            number 1.
        model_hint: for gguf, llama.cpp's name of the architecture, such as `llama`; for neuronpedia, its id of the
            model, such as `gpt2-small`.
        replace: whether an existing file is replaced; a file that `probing use --save-directions` wrote never is.

    Raises:
        BadParameter: the format is unknown, the file exists, or the directions are of several models or properties or
            cannot be written in this format.
        UnknownName: there is no such class.
    """
    file, several = Path(to), [evidence] if isinstance(evidence, Evidence) else list(evidence)
    form = file.suffix.removeprefix(".") if format is None else format
    if form not in FORMATS:
        raise BadParameter(
            "unknown format of directions",
            needed=", ".join(FORMATS),
            found=repr(form) if form else "a name without an ending",
            where=str(to),
            next_step="choose one as the format, or by the ending of the file's name",
        )
    files = (file, beside(file)) if form == "npy" else (file,)
    for one in files:
        if one.is_dir() or (not replace and (one.exists() or one.is_symlink())):
            or_replace = "" if one.is_dir() else ", or replace it (--replace)"
            raise BadParameter(
                "there is something already", found=str(one), next_step=f"choose another name{or_replace}"
            )
    if is_evidence(file):
        raise BadParameter(
            "evidence is not replaced by an export",  # which could not be applied again
            needed="another file",
            found="a file of evidence",
            where=str(file),
            next_step="choose another name",
        )
    first, last = _together(several)[0].codes(start, goal)
    if form == "gguf":
        export_control_vector(file, several, model_hint=model_hint, start=first, goal=last)
    elif form == "neuronpedia":
        export_to_neuronpedia(file, several, model=model_hint, start=first, goal=last)
    else:
        export_vectors(file, several, start=first, goal=last, format=form)
    return files


def _told(one: Evidence, start: float, goal: float) -> dict[str, Any]:
    # The header is of means of all classes; a vector is of two, and its sign is nowhere else.
    return {**asdict(one.header), "start": one.said(start), "goal": one.said(goal)}


def _together(evidence: Sequence[Evidence]) -> Sequence[Evidence]:
    """Return directions of one model and property at different places."""
    kinds = {one.header.kind for one in evidence}
    if kinds != {"class_mean"}:
        raise BadParameter(
            "vectors are made of directions",
            needed="class_mean evidence, one or more",
            found=", ".join(sorted(kinds)) or "none",
        )
    about = {(one.header.model, one.header.revision, one.header.task, one.header.labels, one.width) for one in evidence}
    places = [one.header.place for one in evidence]
    of = dict.fromkeys(f"{one.header.task} of {one.header.model}" for one in evidence)
    if len(about) > 1 or len(set(places)) < len(places):
        raise BadParameter(
            "vectors of one file belong together",
            needed="one model and property, each place once",
            found=f"{', '.join(of)}; places {', '.join(places)}"[:400],
            next_step="name only files that belong together",
        )
    return evidence


def _block(one: Evidence) -> int:
    """Return the block whose output is the site."""
    found = re.fullmatch(r"resid\.([0-9]+)", one.header.site)
    if found is None or int(found[1]) < 2:
        raise BadParameter(
            "a control vector cannot be at this site",
            needed="resid.2 or higher: what leaves a block",
            found=one.header.site,
            next_step="choose safetensors, npz or npy (export_vectors)",
        )
    return int(found[1]) - 1
