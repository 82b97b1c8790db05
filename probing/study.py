"""Study: extract, train and report from one YAML file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

import probing as pb
from probing.errors import ConfigError, unknown_name
from probing.jobs import CorpusOptions, ExtractOptions, Files, Job, Many, TrainOptions
from probing.provenance import canonical_json
from probing.strict_yaml import strict_yaml

if TYPE_CHECKING:
    from probing.corpus import Corpus

MAX_STUDY_BYTES = 1_000_000


class StudyTrain(TrainOptions):
    """One entry of a study's `train` list; `rows` names the extraction if several would do, or pools one of pieces."""

    tasks: Many = Field(alias="task")


class Study(Job):
    """Extract, train and report from one YAML file; whatever is done already is not done again."""

    name: str = Field(pattern=r"^[a-z0-9](\.?[a-z0-9_-]){0,99}$", max_length=100)
    model: str
    corpus: Files
    reader_options: Many = Field(default=[])
    split_seed: int | None = None
    extract: Annotated[list[ExtractOptions], BeforeValidator(lambda v: v if isinstance(v, list) else [v])]
    train: Annotated[list[StudyTrain], BeforeValidator(lambda v: v if isinstance(v, list) else [v])]
    root: Path = Path()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read a study file; its relative paths are taken from its own folder.

        Raises:
            ConfigError: missing file, not YAML, duplicate, unknown or missing keys.
        """
        file = Path(path)
        values = _load_yaml(file)
        if "root" in values:
            raise unknown_name("key", "root", cls.model_fields, where=str(file), error=ConfigError)
        return cls.read(values | {"root": file.parent}, where=str(file))

    def run(self, to: str | Path | None = None, *, progress: bool = True) -> Path:
        """Run all of it and return the path of the page."""
        out = Path(to) if to is not None else Path("cache/results") / self.name
        corpus = CorpusOptions(
            corpus=self.corpus, reader_options=self.reader_options, split_seed=self.split_seed
        ).read_corpus(self.root)
        stores = {
            _store_name(options): self._rooted(options).extract(
                self._model_source(), corpus, out / "states" / _store_name(options), progress=progress
            )
            for options in self.extract
        }
        for entry in self.train:
            for task in entry.tasks:
                rows = self._rows_for(entry, task, corpus)
                one = entry.model_copy(update={"tasks": [task], "rows": entry.rows if rows == "piece" else None})
                one.train(stores[rows.replace(":", "-")].path, corpus, out, progress=progress)
        return pb.report(out)

    def _model_source(self) -> str:
        local = self.root / self.model
        return str(local) if local.is_dir() else self.model

    def _rooted(self, options: ExtractOptions) -> ExtractOptions:
        """The same, with a file of columns taken from the study's own folder."""
        columns = self.root / (options.columns or "")
        return options.model_copy(update={"columns": str(columns)}) if columns.is_file() else options

    def _rows_for(self, entry: StudyTrain, task: str, corpus: Corpus) -> str:
        """The extraction whose rows have the task's level: its own `rows`, else the first that fits, else pieces."""
        level = task_level(task, corpus)
        known = [o.rows for o in self.extract if o.role == "states"]
        fitting = [rows for rows in known if entry.rows in (None, rows) and rows.split(":")[0] == level]
        fitting += [rows for rows in known if rows == "piece"]
        if not fitting:
            raise ConfigError(
                f"no extraction of this study has rows for task {task!r}",
                needed=f"an extract entry with rows {level}:…",
                found=", ".join(known) or "replays only", where=f"study {self.name}",
                next_step=f"add e.g. `- {{rows: '{level}:mean'}}` under extract",
            )  # fmt: skip
        return fitting[0]

    def recipe(self) -> bytes:
        """Canonical JSON of the study without machine paths."""
        return canonical_json(self.model_dump(mode="json", exclude={"root"}))


def _store_name(options: ExtractOptions) -> str:
    return "replay" if options.role == "replay" else options.rows.replace(":", "-")


def task_level(task: str, corpus: Corpus) -> str:
    """`word` or `sentence`: the level of the rows this task labels in this corpus."""
    built = import_module("probing.specs").build_task(task, corpus)
    built.prepare(corpus)
    return str(built.level)


def _load_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError("study file not found", found=str(file), next_step="see datasets/reference/study.yaml")
    if file.stat().st_size > MAX_STUDY_BYTES:
        raise ConfigError("study file too large", needed="at most 1 MB", found=f"{file.stat().st_size} bytes")
    try:
        values = strict_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("study file is not valid YAML", found=str(error)[:500], where=str(file)) from None
    if not isinstance(values, dict):
        raise ConfigError(
            "a study file is a mapping", needed="keys name, model, corpus, extract, train", where=str(file)
        )
    return values
