"""Defines PatchJob and AblateJob, the checked options of patching between pairs of prompts, and of ablating
components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import probing as pb
from probing.errors import ConfigError, NoBehaviour
from probing.files.whole_files import write_parquet
from probing.jobs import MODEL_HELP, CorpusOptions, Job, Many, option
from probing.jobs.flag_values import named_pairs

if TYPE_CHECKING:
    from probing.jobs.models import ModelOptions
    from probing.models.language_model import LanguageModel
    from probing.results.patching import PatchingResult
    from probing.results.use import Answers
    from probing.use.patching.ablating import AblationResult
    from probing.use.patching.prompt_pairs import PairPatching


class LoadingOptions(Job):
    """Holds the options with which a model is loaded."""

    device: str = option("cpu", help="torch device")
    dtype: str = option("float32", help="data type to compute in: float32, float16 or bfloat16")
    kind: Literal["auto", "base", "causal", "masked"] = option("auto", help="head to load: auto, base, causal, masked")
    revision: str | None = option(None, help="revision of a hub model")

    def loaded(self, model: str | ModelOptions) -> LanguageModel:
        """Load a model, run its self-check, and return it. Options in a `ModelOptions` take precedence."""
        name, own = (model, {}) if isinstance(model, str) else (model.name, model.loaded_with())
        return pb.LanguageModel.load(name, **self.given_to(pb.LanguageModel.load) | own)


class LoadedModel(LoadingOptions):
    """Holds the options of the model to run."""

    model: str = option(help=MODEL_HELP)

    def load(self) -> LanguageModel:
        """Load the model, run its self-check, and return it."""
        return self.loaded(self.model)


class RunningModel(LoadedModel):
    """Holds the options of the model to run and of where results are written."""

    to: str = option(help="directory of the results")


@dataclass(frozen=True)
class Patched:
    """Holds the results of patching.

    Attributes:
        found: the effects.
        title: title of the results in the report.
        run_prompt: which prompt of each pair was run, `corrupted` or `clean`.
        files: paths of the files written.
    """

    found: PairPatching
    title: str
    run_prompt: str
    files: tuple[Path, ...]


class PatchJob(RunningModel):
    """Patch activations: run one prompt of each pair with one state of the other prompt, for every site and position in
    turn.

    The pairs are a JSONL file or a table with the columns clean, corrupted, answer and corrupted_answer. A share of 1
    means that this one state gives all of the difference between the prompts. Attribution patching, an approximation by
    gradients, is computed too and shown with its error. Writes patching.json (which the report shows), Parquet and heat
    maps.
    """

    pairs: str = option(help="file of pairs: columns clean, corrupted, answer, corrupted_answer")
    behaviour: str = option("next_token", help="what is measured: next_token, masked_token, head, readout, …")
    sites: str = option("resid.*", help="sites, comma-separated, with wildcards: resid.*, attn_out.1, heads.*")
    positions: Many = option(
        [],
        help="end, start+3, SPAN.last, SPAN (all its tokens, one by one) (repeatable; default: every token)",
        flag="position",
    )
    spans: Many = option([], help="span: NAME=COLUMN,CORRUPTED_COLUMN with substrings (repeatable)", flag="span")
    run_prompt: Literal["corrupted", "clean"] = option(
        "corrupted", help="the prompt that is run: corrupted, or clean", flag="run"
    )
    no_attribution: bool = option(False, help="skip attribution patching")
    title: str | None = option(None, help="name of the result (default: that of the file of pairs)")

    def run(self, *, progress: bool = True) -> Patched:
        """Read the pairs, patch at every site and position, write the results and return them. `progress`: whether to
        show progress on standard error.
        """
        module = import_module("probing.use.patching.prompt_pairs")
        pairs, model = module.PromptPairs.read(self.pairs, spans=self._span_columns()), self.load()
        with import_module("probing.system.progress").steps_bar(
            "patch", "places", None, None if progress else False
        ) as bar:
            own = {"model": model, "pairs": pairs, "attribution": not self.no_attribution, "advance": bar}
            found: PairPatching = module.patch_pairs(**self.given_to(module.patch_pairs) | own)
        rough = None if found.rough is None else replace(found.rough, model=called(model))
        found = replace(found, exact=replace(found.exact, model=called(model)), rough=rough)
        keeping, folder = import_module("probing.results.patching"), Path(self.to)
        listed = [found.exact, *([rough] if rough is not None else [])]
        title = keeping.free_title(keeping.read_patching(folder), self.title or Path(self.pairs).stem, listed)
        results = {keeping.titled(title, one): one for one in listed}
        return Patched(found, title, self.run_prompt, tuple(self._write(title, results)))

    def _span_columns(self) -> dict[str, tuple[str, str]]:
        found = {}
        for name, columns in named_pairs(self.spans, "span", "subject=subject,corrupted_subject"):
            clean, comma, corrupted = columns.partition(",")
            if not (clean and comma and corrupted):
                raise ConfigError(
                    f"--span {name}={columns} names one column",
                    found=repr(columns),
                    needed="two: NAME=COLUMN,CORRUPTED_COLUMN",
                )
            found[name] = (clean, corrupted)
        return found

    def _write(self, title: str, results: Mapping[str, PatchingResult]) -> list[Path]:
        folder = Path(self.to)
        drawing, keeping = import_module("probing.reporting.plots"), import_module("probing.results.patching")
        rows = [{"method": one.method, **row} for one in results.values() for row in one.table()]
        stem = drawing.file_name(f"patching-{title}")
        written = [
            keeping.write_patching(keeping.read_patching(folder) | dict(results), folder),
            _write_table(rows, folder / f"{stem}.parquet"),
        ]
        return [
            *written,
            *(
                path
                for name, one in results.items()
                for path in drawing.save_map(
                    drawing.patching_map(one, name), folder / "figures" / f"{stem}-{one.method}"
                )
            ),
        ]


@dataclass(frozen=True)
class Ablated:
    """Holds the results of ablation.

    Attributes:
        found: the effects, one result per kind of component.
        files: paths of the files written.
        answers: for each answer, the tokens whose logits were measured; an empty tuple if there are no answers.
        doubts: reasons to doubt that the answers are right, as sentences.
    """

    found: tuple[AblationResult, ...]
    files: tuple[Path, ...]
    answers: Answers = ()
    doubts: tuple[str, ...] = ()


class AblateJob(CorpusOptions, RunningModel):
    """Take heads, attention, MLPs or whole layers out of a model, one at a time, and measure what its output loses.

    The output of a part is replaced, at every token of the text, by its mean over the texts (or by zero). Writes
    Parquet and a heat map for each kind of part. An output that changes shows that the part matters here, not what it
    is for.
    """

    behaviour: str = option("", help="what is measured: next_token:answers=A|B, masked_token:…, head, readout, …")
    parts: Many = option(
        ["heads"], help="what is taken out: heads, attention, mlps or layers (repeatable)", flag="part"
    )
    by: Literal["mean", "zero"] = option("mean", help="what replaces its output: mean or zero")
    positions: Many = option(
        ["end"], help="position that texts must have, for the behaviour (repeatable)", flag="position"
    )
    split: str | None = option(None, help="only this split (default: all)")
    max_rows: int = Field(default=500, ge=2, description="largest number of texts", json_schema_extra={"flag": ""})
    seed: int = option(0, help="seed of the choice of texts")

    def run(self, *, progress: bool = True) -> Ablated:
        """Ablate the components one at a time, write the effects and return them. `progress`: whether to show progress
        on standard error.

        Raises:
            NoBehaviour: no behaviour is named.
        """
        if not self.behaviour:
            raise NoBehaviour(
                "no behaviour was declared",
                needed="what of the outputs is measured",
                found="nothing",
                next_step="such as --behaviour next_token for a causal model, readout for an encoder",
            )
        module, corpus = import_module("probing.use.patching.ablating"), self.read_corpus()
        module.check_options(self.parts, self.by)
        model = self.load()
        from_spans = import_module("probing.use.edited_models.text").TextInstrument.from_spans
        instrument = from_spans(**self.given_to(from_spans) | {"model": model, "corpus": corpus})
        instrument.check()
        found: list[AblationResult] = []
        for part in self.parts:
            with import_module("probing.system.progress").steps_bar(
                part, "parts", None, None if progress else False
            ) as bar:
                found.append(module.ablate(instrument, kind=part, by=self.by, advance=bar))
        return Ablated(tuple(found), tuple(self._write(found, called(model))), instrument.answers, instrument.doubts)

    def _write(self, found: Sequence[AblationResult], model: str) -> list[Path]:
        folder, written = Path(self.to), []
        drawing = import_module("probing.reporting.plots")
        for part, one in zip(self.parts, found, strict=True):
            rows = [{"model": model, "behaviour": self.behaviour, **row} for row in one.table()]
            stem = _free_stem(folder, f"ablation-{part}-{self.by}", rows)
            chart = drawing.ablation_map(one, f"{self.by} ablation of {part} of {model}")
            written.append(_write_table(rows, folder / f"{stem}.parquet"))
            written += drawing.save_map(chart, folder / "figures" / stem)
        return written


def called(model: LanguageModel) -> str:
    """Return the full name of a model as it appears in results."""
    return str(import_module("probing.provenance").model_called(model.identity()["model"]))


def _free_stem(folder: Path, stem: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a name for a table: the first of NAME, NAME-2, NAME-3, … that is free, or whose file is this very table up
    to rounding.
    """
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(name for name in names if _is_free(folder / f"{name}.parquet", rows))


def _is_free(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    import pandas as pd

    if not path.is_file():
        return True
    try:
        pd.testing.assert_frame_equal(pd.read_parquet(path), pd.DataFrame(list(rows)), check_dtype=False)
    except AssertionError:
        return False
    return True


def _write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    import pandas as pd

    write_parquet(pd.DataFrame(list(rows)), path)
    return path
