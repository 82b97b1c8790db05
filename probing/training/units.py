"""Units of a training run on disk: one result each, committed by a rename, so that a killed run resumes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from probing import analysis as analyses
from probing.analysis import AnalysisResult
from probing.contracts import Probe
from probing.design import Labels
from probing.errors import InputError
from probing.provenance import digest
from probing.records import ProbeResult, from_json, to_json
from probing.whole_files import write_atomically

VERSION = 7  # raised by any change that alters a score


def labels_digest(labels: Labels) -> str:
    """SHA-256 (hex) of everything about labels that enters a score."""
    state = hashlib.sha256()
    arrays = [labels.y, labels.split, labels.groups, labels.row, *(labels.keys[name] for name in sorted(labels.keys))]
    arrays += [one for one in (labels.other_row, labels.choice, labels.punctuation, labels.fresh) if one is not None]
    for array in arrays:
        values = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else np.ascontiguousarray(array)
        state.update(f"{values.dtype.kind}{values.shape}".encode())
        state.update(values.tobytes())
    names = {name: list(labels.key_names[name]) for name in sorted(labels.keys)}
    reading = [] if labels.reading == "row" else [labels.reading]
    state.update(digest([labels.kind, list(labels.classes), names, *reading]).encode())
    return state.hexdigest()


def load_unit(folder: Path | None, unit: str) -> ProbeResult | None:
    """The committed result of a unit, or None if there is none that is whole."""
    if folder is None:
        return None
    try:
        result = from_json((folder / "units" / f"{unit}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    saved = not result.provenance.get("saved") or probe_stem(folder, result).with_name("seed0.json").is_file()
    whole = saved and _samples_path(folder, unit).is_file()
    return result if result.provenance.get("unit") == unit and whole else None


def commit_unit(folder: Path | None, result: ProbeResult, probe: Probe, samples: Mapping[str, NDArray[Any]]) -> None:
    """Save the task's fitted probe (first seed) if it can be saved, its bootstrap samples, then the result.

    The result is the commit.
    """
    if folder is None:
        return
    if result.provenance["saved"]:
        probe.save(probe_stem(folder, result))
    unit: Any = result.provenance["unit"]
    write_atomically(_samples_path(folder, unit), save({name: samples[name] for name in sorted(samples)}))
    write_atomically(folder / "units" / f"{unit}.json", (to_json(result) + "\n").encode())


def load_samples(folder: Path, result: ProbeResult) -> dict[str, NDArray[Any]]:
    """The bootstrap samples of a committed result, by the names that `scoring.kept` gives.

    Raises:
        InputError: they are missing or damaged.
    """
    path = _samples_path(folder, str(result.provenance.get("unit")))
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"the bootstrap samples of {result.probe} at {result.site} cannot be read", needed="the file of its unit",
            found=str(error)[:200], where=str(path),
            next_step="delete it and run `probing train … --to` on that directory again",
        ) from None  # fmt: skip


def _samples_path(folder: Path, unit: str) -> Path:
    return folder / "units" / f"{unit}.safetensors"


def load_analysis(folder: Path | None, unit: str) -> AnalysisResult | None:
    """The committed result of an analysis, or None if there is none that is whole."""
    if folder is None:
        return None
    try:
        result = analyses.from_json((folder / "units" / f"{unit}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.provenance.get("unit") == unit else None


def commit_analysis(folder: Path | None, result: AnalysisResult) -> None:
    """Save the result of an analysis."""
    if folder is not None:
        unit: Any = result.provenance["unit"]
        write_atomically(folder / "units" / f"{unit}.json", (analyses.to_json(result) + "\n").encode())


def probe_stem(folder: Path, result: ProbeResult) -> Path:
    """`probes/TASK/SITE/PROBE/seed0` in `folder`, without suffix."""
    return folder / "probes" / _slug(result.task) / _slug(result.site) / _slug(result.probe) / "seed0"


def _slug(name: str) -> str:
    """A file name that tells names apart: `:` becomes `-`; a name with other odd characters also gets a hash."""
    plain = re.sub(r"[^A-Za-z0-9._=,-]", "_", name.replace(":", "-").strip("()"))[:80].strip(".") or "_"
    return plain if re.fullmatch(r"[A-Za-z0-9._=,:-]{1,80}|\(none\)", name) else f"{plain}-{digest(name)[:8]}"
