"""Units of a training run on disk: for each, a result with a checksum and the saved probe with its card (how its rows
were read, from which model, its scores and threshold), so that a killed run can resume.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from probing import registry
from probing.contracts.probe import Probe
from probing.errors import BadParameter, DegenerateDesign, InputError, ProbingError, unknown_name
from probing.files.whole_files import read_sealed, sealed, sweep, write_atomically
from probing.labels import MISSING
from probing.measures._rows import gives_probabilities, predict
from probing.probes._estimator import ClassifierProbe
from probing.provenance import digest, file_sha256, tokenizer_digest, weights_digest
from probing.results import analysis as analyses
from probing.results.analysis import AnalysisResult
from probing.results.probe import MeasureResult, ProbeResult, Score, from_json, to_json
from probing.statistics.thresholds import AskedThreshold, Threshold, choose_threshold
from probing.training.plan import Plan
from probing.training.states import States

CARD = 2  # version of the card; cards without one are of version 0.1
_READ = ("dtype", "long_inputs", "max_length", "stride", "modules", "chat", "position_names")
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


def card_facts(
    plan: Plan, probe: Probe, measures: Sequence[MeasureResult], threshold: Threshold | None
) -> dict[str, Any]:
    """Return the facts about the run that the card of a saved probe records, ready for JSON.

    Returns:
        `corpus_source`; `keys`, the names of the keys that the probe reads as codes; `read`, how its rows are made from
        texts (rows of the store, and how these were pooled when read); `model_facts`, which identify the model;
        `scores`, with intervals, controls and the best baseline; `clusters`, numbers of rows and of clusters by split;
        `threshold`.
    """
    base = getattr(plan.store, "base", plan.store)
    identity, pooled = base.identity, plan.store.identity["extraction"]["rows"]
    extraction, model = identity["extraction"], identity["model"]
    names = None if probe.input_as_text else plan.labels.key_names.get(probe.input)
    return {
        "card": CARD,
        "corpus_source": identity["corpus"].get("source", ""),
        **({} if names is None else {"keys": list(names)}),
        "read": {
            "rows": extraction["rows"],
            "pooled": "" if plan.store is base else pooled.removesuffix(" of pieces"),
            "level": plan.labels.level,
            "row_form": plan.labels.row_form,
            **{name: extraction[name] for name in _READ if name in extraction},
        },
        "model_facts": {
            "source": model.get("source"),
            "revision": model.get("revision"),
            "weights": weights_digest(model),
            "tokenizer": tokenizer_digest(identity["tokenizer"]) if "tokenizer" in identity else "",
            "dtype": model.get("dtype"),
            "side": model.get("side"),
        },
        "scores": [_scored(found) for found in measures if found.split.partition("_")[0] == "test"],
        "resampled_by": plan.labels.unit,
        "clusters": {name: one.clusters.count for name, one in plan.resamplers.items()},
        "row_counts": {name: len(plan.labels.rows(name)) for name in ("train", "dev", "test")},
        "threshold": None if threshold is None else threshold.facts(),
    }


def _scored(found: MeasureResult) -> dict[str, Any]:
    """Return a score with its interval, the first control and the baseline that it gains least over."""
    control, least = next(iter(found.comparisons), None), found.least_gain
    beside: dict[str, Any] = {}
    if control is not None:
        beside |= {"control": control.control, "control_score": control.score.value}
        beside |= {"gain_over_control": _ends(control.selectivity)}
    if least is not None:
        beside |= {"baseline": least.baseline, "gain_over_baseline": _ends(least.gain)}
    score = found.score
    return {"measure": found.measure, "split": found.split, "value": _ends(score), "n": score.n} | beside


def _ends(score: Score) -> list[float | None]:
    """Return value, low and high; None where they are not finite, which JSON cannot hold."""
    return [float(x) if np.isfinite(x) else None for x in (score.value, score.low, score.high)]


def check_threshold(plan: Plan, asked: AskedThreshold) -> None:
    """Check, before anything is fitted, that a threshold can be chosen on these labels.

    Raises:
        BadParameter: the labels are not classes, or there are more than two classes and none is named.
        UnknownName: there is no such class or column.
        DegenerateDesign: dev has too few rows of other classes; the message says how many are needed.
    """
    label = _label(plan, asked)
    if asked.by and asked.by not in plan.labels.keys:
        raise unknown_name("column", asked.by, plan.labels.keys, where=f"threshold of task {plan.task}")
    rows = plan.judged("dev").rows
    others = int((plan.labels.y[rows] != plan.labels.classes.index(label)).sum())
    try:  # of so many equal scores a threshold is chosen or refused as of others
        chosen = rows[plan.labels.y[rows] != plan.labels.classes.index(label)]
        homes = _homes(plan, chosen)
        choose_threshold(np.zeros(others), np.zeros(others, bool), fpr=asked.fpr, dev_clusters=homes)
    except DegenerateDesign as error:
        error.where = f"dev of task {plan.task}"
        raise


def threshold_of(plan: Plan, asked: AskedThreshold | None, fit: Probe, states: States) -> Threshold | None:
    """Choose the threshold of a fit on dev, and return it with its performance on test; None if none was asked for, or
    the probe gives no probabilities.
    """
    if asked is None or not gives_probabilities(fit):
        return None
    label = _label(plan, asked)
    code = plan.labels.classes.index(label)
    parts = {}
    for split in ("dev", "test"):
        one = plan.judged(split)
        rows, X = plan.labels.rows(split), np.asarray(states[split]) if fit.input == "states" else states[split]
        found = predict(fit, X, plan.labels.take(rows)).log_probabilities
        assert found is not None  # the probe gives probabilities
        parts[split] = (log_odds(found, code)[one.within], plan.labels.y[one.rows] == code)
    dev, test = plan.judged("dev"), plan.judged("test")
    codes = plan.labels.keys[asked.by][test.rows] if asked.by else None
    names = np.array([*plan.labels.key_names[asked.by], "(none)"], dtype=object) if asked.by else None
    return choose_threshold(
        *parts["dev"],
        *parts["test"],
        fpr=asked.fpr,
        dev_clusters=_homes(plan, dev.rows),
        clusters=_homes(plan, test.rows),
        groups=None if codes is None or names is None else names[np.where(codes == MISSING, len(names) - 1, codes)],
        by=asked.by,
        label=label,
        seed=test.seed,
    )


def _homes(plan: Plan, rows: Any) -> Any:
    """Return the group of each row: the document or named group that is never split, or examples of one text."""
    assert plan.example_groups is not None  # a threshold was asked for
    return plan.example_groups[plan.labels.example[rows]]


def log_odds(log_probabilities: Any, code: int) -> Any:
    """Return the natural log odds `(N,)` of one class against all others, from log probabilities `(N, K)`."""
    others = np.delete(log_probabilities, code, axis=1)
    with np.errstate(divide="ignore"):  # a class that the probe never saw has log probability -inf
        return log_probabilities[:, code] - np.logaddexp.reduce(others, axis=1)


def _label(plan: Plan, asked: AskedThreshold) -> str:
    """Return the class to be flagged: of two the second in sorted order, if none is named."""
    classes = plan.labels.classes
    if plan.labels.kind != "classes" or (len(classes) != 2 and not asked.label):
        raise BadParameter(
            "a threshold flags one class",
            needed="two classes, or the class to be flagged",
            found=f"{len(classes)} classes" if plan.labels.kind == "classes" else f"targets of kind {plan.labels.kind}",
            where=f"task {plan.task}",
            next_step="name it: fpr=0.01,label=CLASS",
        )
    if asked.label and asked.label not in classes:
        raise unknown_name("class", asked.label, classes, where=f"task {plan.task}")
    return asked.label or classes[1]
