"""Directions of a finished run, written beside its verdicts."""

from __future__ import annotations

from pathlib import Path

from probing.models.language_model import LanguageModel
from probing.provenance import model_called
from probing.use.directions.files import write_evidence
from probing.use.directions.fitting import Source, controls_of, directions_of, stratum_names
from probing.use.effects import Bench
from probing.use.options import UseOptions
from probing.use.subjects import Subjects
from probing.verdicts.use_run import UseRun


def keep_directions(
    model: LanguageModel, subjects: Subjects, run: UseRun, options: UseOptions, folder: Path
) -> list[Path]:
    """Write one file for every verdict: the class means that the swap put in, and the verdict on them.

    Args:
        model, subjects, options: as the run had them.
        run: with its verdicts.
        folder: where `TASK.PLACE.HASH.safetensors` are written.
    """
    identity = model.identity()["model"]
    written = []
    for result in run.results:
        instrument, prop = subjects.of(result.task)
        bench = Bench.of(instrument, prop.plan(options), seed=options.seed)
        covariates = {name: values for name, (values, _) in prop.covariates.items()}
        source = Source(
            model=model_called(identity),
            revision=str(identity.get("revision") or ""),
            identity=str(identity.get("weights_sha256") or ""),
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
