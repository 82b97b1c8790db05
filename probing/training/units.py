"""Units of a training run on disk: for each, a result with a checksum and the saved probe, so that a killed run can
resume.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from probing import registry
from probing.contracts.probe import Probe
from probing.errors import InputError, ProbingError
from probing.files.whole_files import read_sealed, sealed, sweep, write_atomically
from probing.labels import Labels
from probing.probes._estimator import ClassifierProbe
from probing.provenance import digest, file_sha256
from probing.results import analysis as analyses
from probing.results.analysis import AnalysisResult
from probing.results.probe import ProbeResult, from_json, to_json

_ABOUT = ("model", "rows", "corpus", "store_id", "content_id", "unit")


def with_saved_probe(
    result: ProbeResult, probe: Probe, about: Mapping[str, Any]
) -> tuple[ProbeResult, Mapping[str, bytes]]:
    """Return the result, with the path of its saved probe or the reason why there is none, and the files of the probe
    by suffix.

    Args:
        result: result of the probe.
        probe: the fit on the task with the first seed.
        about: facts for the probe's card, in addition to those of the result.
    """
    files, reason = _files(result, probe, about)
    told = {"saved": probe_name(result)} if files else {"saved": "", "not_saved": reason}
    return replace(result, provenance=result.provenance | told), files


def probe_name(result: ProbeResult) -> str:
    """Return the path of a saved probe below the folder of results, without suffix: `probes/TASK/SITE/PROBE/HASH`.

    The hash is of everything that determines the probe, so different probes have different files.
    """
    names = "/".join(map(_slug, (result.task, result.site, result.probe)))
    return f"probes/{names}/{str(result.provenance['unit'])[:32]}"


def _files(result: ProbeResult, probe: Probe, about: Mapping[str, Any]) -> tuple[Mapping[str, bytes], str]:
    kind = type(probe)
    if registry.name_of(kind) is None:
        return {}, f"{kind.__name__} is not registered as a probe here, so that nothing could load it"
    try:
        return _named(result, probe, about).saved(), ""
    except (ProbingError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        return {}, error.message if isinstance(error, ProbingError) else f"{kind.__name__}: {str(error)[:200]}"


def _named(result: ProbeResult, probe: Probe, about: Mapping[str, Any]) -> Probe:
    """Return a copy that gives labels by name, and says of what it is."""
    named = copy.copy(probe)
    named.about = {
        "task": result.task,
        "site": result.site,
        "probe": result.probe,
        "kind": result.kind,
        "labels": list(result.classes),
        **{name: result.provenance.get(name) for name in _ABOUT},
        **about,
    }
    if isinstance(named, ClassifierProbe) and result.kind == "classes":
        named.classes_ = np.array([result.classes[code] for code in _codes(named)], dtype=np.str_)
    return named


def _codes(probe: ClassifierProbe) -> list[int]:
    """Return the codes of the classes that a fitted probe knows, in the order of its columns."""
    codes: list[int] = np.asarray(probe.classes_, np.int64).tolist()
    return codes


def _slug(name: str) -> str:
    """Return a name as that of a folder; if it has other characters than letters, digits and `._=,-` it also gets a
    hash.
    """
    if re.fullmatch(r"(?!.*-[0-9a-f]{8}$)[A-Za-z0-9_=,-][A-Za-z0-9._=,-]{0,79}", name):
        return name
    plain = re.sub(r"[^A-Za-z0-9._=,-]+", "-", name).strip("-.")[:80]
    return f"{plain}-{digest(name)[:8]}".strip("-")


VERSION = 9  # raised by any change that alters a score or what is kept of a unit


def labels_digest(labels: Labels) -> str:
    """Return the SHA-256 (hex) of everything in the labels that affects a score."""
    state = hashlib.sha256()
    arrays = [labels.y, labels.split, labels.groups, labels.row, *(labels.keys[name] for name in sorted(labels.keys))]
    arrays += [one for one in (labels.other_row, labels.choice, labels.punctuation, labels.fresh) if one is not None]
    for array in arrays:
        values = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else np.ascontiguousarray(array)
        state.update(f"{values.dtype.kind}{values.shape}".encode())
        state.update(values.tobytes())
    names = {name: list(labels.key_names[name]) for name in sorted(labels.keys)}
    row_form = [] if labels.row_form == "row" else [labels.row_form]
    state.update(digest([labels.kind, list(labels.classes), names, *row_form]).encode())
    return state.hexdigest()


def load_unit(folder: Path | None, unit: str) -> ProbeResult | None:
    """Return the committed result of a unit, or None if there is none or one of its files has changed."""
    lines = _lines(folder, unit)
    if folder is None or len(lines) != 2:
        return None
    try:
        result, files = from_json(lines[0]), json.loads(lines[1])["files"]
        names = _file_names(result, unit)  # no path is made of what the file says
        whole = set(files) == set(names) and all(file_sha256(folder / name) == files[name] for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if result.provenance.get("unit") == unit and whole else None


def commit_unit(
    folder: Path | None, result: ProbeResult, probe: Mapping[str, bytes], samples: Mapping[str, NDArray[Any]]
) -> None:
    """Write the files of the saved probe (by suffix) and the bootstrap samples, then the result with the hashes of all
    these files.

    The unit counts as done once the result is written.
    """
    if folder is None:
        return
    unit = str(result.provenance["unit"])
    files = {f"{probe_name(result)}{suffix}": content for suffix, content in probe.items()}
    files[f"units/{unit}.safetensors"] = save({name: samples[name] for name in sorted(samples)})
    for name, content in files.items():
        write_atomically(folder / name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    write_atomically(_path(folder, unit), sealed(f"{to_json(result)}\n{json.dumps({'files': hashes})}"))


def _file_names(result: ProbeResult, unit: str) -> list[str]:
    """Return the files that belong to a unit, below the folder."""
    saved = [f"{probe_name(result)}{suffix}" for suffix in (".safetensors", ".json")]
    return [f"units/{unit}.safetensors", *(saved if result.provenance.get("saved") else [])]


def load_samples(folder: Path, result: ProbeResult) -> dict[str, NDArray[Any]]:
    """Return the bootstrap samples of a committed result, with the names of `scoring.kept`.

    Raises:
        InputError: the samples are missing or damaged.
    """
    path = _path(folder, str(result.provenance.get("unit"))).with_suffix(".safetensors")
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"the bootstrap samples of {result.probe} at {result.site} cannot be read",
            needed="the file of its unit",
            found=str(error)[:200],
            where=str(path),
            next_step="delete it and run `probing train … --to` on that directory again",
        ) from None


def load_analysis(folder: Path | None, unit: str) -> AnalysisResult | None:
    """Return the committed result of an analysis, or None if there is none or its file has changed."""
    lines = _lines(folder, unit)
    try:
        result = analyses.from_json(lines[0]) if len(lines) == 1 else None
    except ValueError:
        return None
    return result if result is not None and result.provenance.get("unit") == unit else None


def commit_analysis(folder: Path | None, result: AnalysisResult) -> None:
    """Save the result of an analysis."""
    if folder is not None:
        write_atomically(_path(folder, str(result.provenance["unit"])), sealed(analyses.to_json(result)))


def spoiled_units(folder: Path | None, units: Collection[str]) -> list[str]:
    """Return the ids of those units that count as not done because their file, or a file that belongs to it, has
    changed.
    """
    return [] if folder is None else sorted(unit for unit in units if _path(folder, unit).is_file())


def sweep_results(folder: Path) -> None:
    """Delete the files that killed runs left half written in a folder of results."""
    for place in (folder, folder / "units", folder / "use", *(folder / "probes").glob("*/*/*")):
        sweep(place)


def _lines(folder: Path | None, unit: str) -> list[str]:
    text = None if folder is None else read_sealed(_path(folder, unit))
    return [] if text is None else text.splitlines()


def _path(folder: Path, unit: str) -> Path:
    return folder / "units" / f"{unit}.json"
