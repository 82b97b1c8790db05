"""Fits directions, erasers and probes on the rows of an experiment, and writes them to files with their verdicts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.contracts.intervention import Targets
from probing.errors import BadParameter
from probing.models.language_model import LanguageModel
from probing.probes.linear import LinearProbe
from probing.provenance import model_called, weights_digest
from probing.results.use import UseResult
from probing.use.contrasts import ClassMeans, Slopes, contrast
from probing.use.directions.files import write_evidence
from probing.use.directions.record import CONVENTION, OPERATIONS, Evidence, Header, Kind, Stated
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.experiment import Experiment
from probing.use.interventions.leace import Leace
from probing.use.subjects import Subjects
from probing.verdicts.verdict import UseRun, Verdict

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Holds facts about the evidence that cannot be derived from its numbers.

    Attributes:
        model, revision, identity: full name, hub commit and hash of the weights of the model; "" if not known.
        labels: names of the classes, in the order of their codes; () for real values.
        label_definition: what the labels mean, and where they come from.
        position_rule: how positions are located in a text.
        strata: description of each stratum (see `stratum_names`).
        controls: descriptions of the controls of the measurement (see `controls_of`).
    """

    model: str
    revision: str = ""
    identity: str = ""
    labels: tuple[str, ...] = ()
    label_definition: str = ""
    position_rule: str = ""
    strata: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()


def directions(
    bench: EditMeasurement,
    place: Place,
    verdict: Verdict | None,
    source: Source,
    *,
    rows: Ints | None = None,
    dose: float = 1.0,
) -> Evidence:
    """Fit the class means of each stratum (for real values the slopes), which define the class-mean swap, and return
    them as evidence.

    Args:
        bench: the experiment, with the model that it runs on.
        place: site and position.
        verdict: the verdict on this property at this place.
        source: names of the model, the classes and so on, written into the evidence.
        rows: rows of the experiment to fit on; None means all. (The verdict itself rests on means of one fold at a
            time.)
        dose: dose of the swap at which the verdict was reached.

    Raises:
        BadParameter: the verdict is missing or of another place or model, or the number of class names is not that of
            the classes.
    """
    e = bench.experiment
    chosen = np.arange(len(e.rows)) if rows is None else rows
    states = bench.states(place)
    found = contrast(states[chosen], e.z[chosen], e.strata[chosen], n_classes=e.n_classes)
    shares = np.asarray(e.shares, np.float64)
    n_strata, width = len(shares), states.shape[1]
    arrays: dict[str, NDArray[Any]] = {"shares": shares}
    if isinstance(found, ClassMeans):
        arrays["means"] = _padded(found.means, n_strata * e.n_classes).reshape(n_strata, e.n_classes, width)
        arrays["counts"] = _padded(found.counts[:, None], n_strata * e.n_classes).reshape(n_strata, e.n_classes)
    elif isinstance(found, Slopes):
        arrays["slopes"] = _padded(found.slopes, n_strata)
    return _evidence("class_mean", bench, place, verdict, source, arrays, chosen, dose)


def eraser(
    bench: EditMeasurement, place: Place, verdict: Verdict | None, source: Source, *, rows: Ints | None = None
) -> Evidence:
    """Fit the LEACE eraser of the property on the rows, and return it as evidence. Arguments and errors are those of
    `directions`.
    """
    e = bench.experiment
    chosen = np.arange(len(e.rows)) if rows is None else rows
    targets = Targets(e.z, e.strata, e.n_classes).take(chosen)
    edit = Leace().fit(bench.states(place)[chosen], targets)
    arrays = {"left": edit.left, "right": edit.right, "centre": edit.centre}
    return _evidence("leace", bench, place, verdict, source, arrays, chosen, 1.0)


def probe(
    bench: EditMeasurement, place: Place, verdict: Verdict | None, source: Source, *, fitted: LinearProbe, rows: Ints
) -> Evidence:
    """Return a fitted linear probe as evidence, with the standardisation folded into its weights and bias.

    Args:
        fitted: a probe fitted on the states of these rows, with classes in the order of `source.labels`.
        rows: rows of the experiment that it was fitted on.

    Raises:
        BadParameter: see `directions`.
    """
    weights = fitted.coef_ / fitted.scale_[:, None]
    arrays = {"weights": weights, "bias": fitted.intercept_ - fitted.mean_ @ weights}
    return _evidence("probe", bench, place, verdict, source, arrays, rows, 1.0)


def directions_of(
    bench: EditMeasurement, result: UseResult, verdicts: Sequence[Verdict], source: Source
) -> list[Evidence]:
    """Fit directions at every place of a measurement, each at the dose of its verdict, and return them as evidence.
    `verdicts` are in the order of the places. Errors are those of `directions`.
    """
    return [
        directions(bench, Place(cell.site, cell.position), verdict, source, dose=cell.dose)
        for cell, verdict in zip(result.cells, verdicts, strict=True)
    ]


def stratum_names(experiment: Experiment, covariates: Mapping[str, Sequence[Any] | NDArray[Any]]) -> tuple[str, ...]:
    """Return a description of each stratum: the covariate values that its rows share, or the number of its bin."""
    names = []
    for w in range(len(experiment.shares)):
        inside = experiment.rows[experiment.strata == w]
        if experiment.stratified_by == "nothing":
            names.append("all rows")
        elif experiment.stratified_by == "crossing":
            names.append(", ".join(f"{name}={np.asarray(values)[inside[0]]}" for name, values in covariates.items()))
        else:
            names.append(f"{experiment.stratified_by}, bin {w}: {len(inside)} rows")
    return tuple(names)


def controls_of(result: UseResult) -> tuple[str, ...]:
    """Return phrases that name the strata, control properties, label permutations and other interventions of a
    measurement.
    """
    told = [f"strata: {result.stratified_by}" + (f" of {', '.join(result.covariates)}" if result.covariates else "")]
    if result.false_positives is not None:
        rate, low, high, n = result.false_positives
        told.append(f"random properties of word types: {rate:.3f} [{low:.3f}, {high:.3f}] of {n} discovered")
    told += [f"{result.settings['permutations']} label permutations"] if result.settings.get("permutations") else []
    beside = dict.fromkeys(name for cell in result.cells for name in cell.comparisons)
    return (*told, *(f"beside it: {name}" for name in beside))


def _padded(rows: NDArray[Any], n: int) -> NDArray[Any]:
    """Return the rows with zeros for strata that the chosen rows lack."""
    return np.concatenate([rows, np.zeros((n - len(rows), *rows.shape[1:]), rows.dtype)])


def _evidence(
    kind: Kind,
    bench: EditMeasurement,
    place: Place,
    verdict: Verdict | None,
    source: Source,
    arrays: dict[str, NDArray[Any]],
    rows: Ints,
    dose: float,
) -> Evidence:
    known = _checked(verdict, place, source)
    e = bench.experiment
    every = len(rows) == len(e.rows)
    return Evidence(
        Header(
            kind=kind,
            operation=OPERATIONS[kind],
            model=source.model,
            revision=source.revision,
            identity=source.identity,
            site=place.site,
            convention=CONVENTION,
            position=place.position,
            position_rule=source.position_rule,
            task=known.task,
            labels=_labels(source, e),
            label_definition=source.label_definition,
            behaviour=known.behaviour,
            strata=source.strata or tuple(f"stratum {w}" for w in range(len(e.shares))),
            sign="from the class (value) of start to that of goal",
            scale="the states as they are, not standardised",
            dose=dose,
            data=_data_hash(bench, place),
            rows=len(rows),
            fitted_on="all rows of the experiment" if every else f"{len(rows)} of {len(e.rows)} rows of the experiment",
            folds=f"the verdict: three folds by {e.grouped_by}, fitted on one, measured on another; seed {bench.seed}",
            controls=source.controls,
            verdict=Stated.of(known),
        ),
        arrays,
    )


def _checked(verdict: Verdict | None, place: Place, source: Source) -> Verdict:
    if verdict is None:
        raise BadParameter(
            "no evidence without its verdict",
            needed="the verdict of this place",
            found="none",
            where=str(place),
            next_step="measure and judge first: probing.intervene",
        )
    if verdict.place != str(place) or verdict.model != source.model:
        raise BadParameter(
            "a verdict of another place or model",
            needed=f"{source.model} at {place}",
            found=f"{verdict.model} at {verdict.place}",
        )
    return verdict


def _labels(source: Source, e: Experiment) -> tuple[str, ...]:
    labels = source.labels or tuple(str(k) for k in range(e.n_classes))
    if len(labels) != e.n_classes:
        raise BadParameter("names for other classes", needed=f"{e.n_classes}", found=f"{len(labels)}")
    return labels


def _data_hash(bench: EditMeasurement, place: Place) -> str:
    """Return the SHA-256 of states, labels, strata and groups of the experiment's rows."""
    e, found = bench.experiment, hashlib.sha256()
    for array in (bench.states(place), e.z, e.strata, e.groups, e.rows):
        found.update(str((array.shape, array.dtype.str)).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def keep_directions(
    model: LanguageModel, subjects: Subjects, run: UseRun, options: UseOptions, folder: Path
) -> list[Path]:
    """Write one file of evidence for every verdict, with the class means of the swap, and return the paths.

    Args:
        model, subjects, options: those of the run.
        run: the run with its verdicts.
        folder: folder for the files `TASK.PLACE.HASH.safetensors`.
    """
    identity = model.identity()["model"]
    written = []
    for result in run.results:
        if result.unmatched:  # nothing was edited
            continue
        instrument, prop = subjects.of(result.task)
        bench = EditMeasurement.of(instrument, prop.plan(options), seed=options.seed)
        covariates = {name: values for name, (values, _) in prop.covariates.items()}
        source = Source(
            model=model_called(identity),
            revision=str(identity.get("revision") or ""),
            identity=weights_digest(identity),
            labels=instrument.rows.names(result.task),
            label_definition=f"task {result.task}",
            position_rule=", ".join(instrument.rows.pieces) or "the word",
            strata=stratum_names(bench.experiment, covariates),
            controls=controls_of(result),
        )
        verdicts = [v for v in run.verdicts if v.unit == result.unit]
        for evidence, verdict in zip(directions_of(bench, result, verdicts, source), verdicts, strict=True):
            name = f"{result.task}.{verdict.place}.{result.unit[:8]}".replace(":", "-").replace("/", "-")
            written.append(write_evidence(folder / f"{name}.safetensors", evidence))
    return written
