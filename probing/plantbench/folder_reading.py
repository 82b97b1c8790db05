"""Cases read from their folders: any tool's model and corpus, and beside them the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from probing.contracts.behaviour import Behaviour
from probing.errors import CorpusError
from probing.files.strict_json import strict_json
from probing.models.language_model import LanguageModel
from probing.plantbench.built import truth_from_json
from probing.plantbench.case import Case, Ints, Truth, Values
from probing.plantbench.folders import FORMAT
from probing.plantbench.prompts import POSITIONS
from probing.provenance import file_sha256
from probing.text.corpus import Corpus
from probing.use.behaviours.masked_token import MaskedToken
from probing.use.behaviours.next_token import NextToken
from probing.use.behaviours.readout import FinalStates
from probing.use.edited_models.text import TextInstrument

_WRITTEN = "truth.json as write_case writes it"
_PARTS = {
    "generator_version": int,
    "case": dict,
    "configuration": dict,
    "configuration_sha256": str,
    "behaviour": dict,
    "properties": dict,
    "sha256": dict,
    "cells": list,
    "joints": list,
}
_CASE = {"tier": int, "number": int, "name": str, "twin": str, "family": str, "seed": int}


def read_case(
    folder: str | Path, *, split: str | None = None, rows: int = 8000, twins: str = "", check: bool = True
) -> tuple[Case, Truth]:
    """Return the case of a folder, whose rows are those of corpus.jsonl.

    Args:
        folder: written by `write_case`.
        split: of the corpus; None: all rows.
        rows: the most rows.
        twins: a property: the rows are then those of its minimal pairs in pairs.jsonl, and its cells the only ones.
        check: run the model's own self-check when it is loaded.

    Raises:
        CorpusError: a file that is missing, malformed, or not the one that was certified.
    """
    source = Path(folder)
    told = read_truth_file(source)
    truth = truth_from_json(told["cells"], str(source / "truth.json"), told["joints"])
    model = LanguageModel.load(str(source / "model"), kind=_kind(told), check=check)
    corpus = _corpus(source, told, twins)
    names = list(told["properties"])
    instrument = TextInstrument.from_spans(
        model, corpus, _behaviour(source, told), positions=POSITIONS, columns=names, split=split, max_rows=rows
    )
    chosen = [corpus.examples[k] for k in instrument.rows.ordinal]
    labels = {name: _values([e.columns[name] for e in chosen], told["properties"][name], name) for name in names}
    about = told["case"]
    identities = np.unique([str(e.columns["identity"]) for e in chosen], return_inverse=True)[1].astype(np.int64)
    case = Case(
        tier=about["tier"],
        number=about["number"],
        name=about["name"],
        twin=about["twin"],
        seed=about["seed"],
        instrument=instrument,
        labels=labels,
        n_classes={name: len(told["properties"][name]) for name in names},
        groups=instrument.rows.groups,
        cells=tuple(cell for cell in truth.cells if twins in ("", cell.property)),
        types=identities,
        twins=_twins([e.group for e in chosen]) if twins else None,
    )
    return case, truth


def read_truth_file(folder: Path) -> dict[str, Any]:
    """Return the content of truth.json, once the files that it names were checked to be the same.

    Raises:
        CorpusError: missing, malformed, of another format, or files that differ.
    """
    path = folder / "truth.json"
    try:
        told = strict_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorpusError("no truth of a case", needed=_WRITTEN, found=str(error)[:200], where=str(path)) from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        found = repr(told.get("format")) if isinstance(told, dict) else type(told).__name__
        raise CorpusError("a truth of another format", needed=f"format {FORMAT}", found=found, where=str(path))
    _check_types(told, _PARTS, str(path))
    _check_types(told["case"], _CASE, f"{path}: case")
    for name, expected in told["sha256"].items():
        _check_file(folder, name, expected)
    return told


def _check_types(given: dict[str, Any], wanted: dict[str, type], where: str) -> None:
    for name, kind in wanted.items():
        if type(given.get(name)) is not kind:
            raise CorpusError(
                f"a truth without a sound {name!r}", needed=_WRITTEN, found=repr(given.get(name))[:80], where=where
            )


def _check_file(folder: Path, name: str, expected: Any) -> None:
    path = folder / name
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    found = file_sha256(path) if is_inside and path.is_file() else "no such file"
    if found != expected:
        raise CorpusError(
            f"{name} is not the file that was certified",
            needed=f"sha256 {expected}",
            found=found,
            where=str(folder),
            next_step="write the case again, or fetch it whole",
        )


def _kind(told: dict[str, Any]) -> Any:
    return {"next_token": "causal", "masked_token": "masked"}.get(told["behaviour"].get("kind"), "base")


def _behaviour(folder: Path, told: dict[str, Any]) -> Behaviour:
    about = told["behaviour"]
    kind, answers, position = (about.get(key) for key in ("kind", "answers", "position"))
    if kind in ("next_token", "masked_token") and isinstance(answers, list) and isinstance(position, str):
        make = NextToken if kind == "next_token" else MaskedToken
        return make(answers=tuple(map(str, answers)), position=position)
    if kind != "readout":
        raise CorpusError(
            "an unknown behaviour",
            needed="next_token, masked_token or readout",
            found=repr(kind),
            where=str(folder / "truth.json"),
        )
    weights = torch.from_numpy(load_file(folder / "readout.safetensors")["weights"])

    def pooled(states: Tensor, real: Tensor) -> Tensor:
        shares = real.to(states.dtype) / real.sum(1, keepdim=True)
        return (shares[:, :, None] * states).sum(1) @ weights.to(states)

    return FinalStates(function=pooled)


def _corpus(folder: Path, told: dict[str, Any], twins: str) -> Corpus:
    if not twins:
        return Corpus.read(str(folder / "corpus.jsonl"))
    if twins not in told["properties"] or "pairs.jsonl" not in told["sha256"]:
        raise CorpusError(
            "no minimal pairs of this property",
            needed="pairs.jsonl, and one of its properties",
            found=twins,
            where=str(folder),
            next_step="write the case with pairs=…",
        )
    corpus = Corpus.read(str(folder / "pairs.jsonl"), split_column="none")
    return Corpus(tuple(e for e in corpus.examples if e.columns["property"] == twins), corpus.source)


def _values(labels: list[Any], classes: list[str], name: str) -> Values:
    if not classes:
        return np.array(labels, dtype=np.float64)
    if not set(labels) <= set(classes):
        raise CorpusError(
            f"labels of {name!r} that are no class of it",
            needed=", ".join(classes),
            found=repr(sorted(set(map(str, labels)) - set(classes)))[:80],
        )
    return np.array([classes.index(label) for label in labels], dtype=np.int64)


def _twins(groups: list[str]) -> Ints:
    """Return the other row of each row's pair."""
    found = np.empty(len(groups), dtype=np.int64)
    first: dict[str, int] = {}
    for row, group in enumerate(groups):
        other = first.setdefault(group, row)
        found[row], found[other] = other, row
    return found
