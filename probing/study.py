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
_POSITION = "position:"
_AS_NAME = str.maketrans({":": "-", ",": "_", "+": "p"})  # rows as a folder's name


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
            options.rows: options.extract(
                self._model_source(), corpus, out / "states" / options.rows.translate(_AS_NAME), progress=progress
            )
            for options in self.extract
        }
        for entry in self.train:
            for task in entry.tasks:
                rows = self._rows_for(entry, task, corpus)
                one = entry.model_copy(
                    update={
                        "tasks": [task],
                        "rows": entry.rows if rows == "piece" or rows.startswith(_POSITION) else None,
                    }
                )
                one.train(stores[rows].path, corpus, out, progress=progress)
        return pb.report(out)

    def _model_source(self) -> str:
        local = self.root / self.model
        return str(local) if local.is_dir() else self.model

    def _rows_for(self, entry: StudyTrain, task: str, corpus: Corpus) -> str:
        """The extraction whose rows have the task's level: its own `rows`, else the first that fits, else pieces."""
        level = task_level(task, corpus)
        fitting = [o.rows for o in self.extract if entry.rows in (None, o.rows) and o.rows.split(":")[0] == level]
        asked = entry.rows or ""  # one position of several: that of the extraction which has it
        fitting += [o.rows for o in self.extract if level == "sentence" and _has_position(o.rows, asked)]
        fitting += [o.rows for o in self.extract if o.rows == "piece"]
        if not fitting:
            raise ConfigError(
                f"no extraction of this study has rows for task {task!r}",
                needed=f"an extract entry with rows {level}:…",
                found=", ".join(o.rows for o in self.extract), where=f"study {self.name}",
                next_step=f"add e.g. `- {{rows: '{level}:mean'}}` under extract",
            )  # fmt: skip
        return fitting[0]

    def recipe(self) -> bytes:
        """Canonical JSON of the study without machine paths."""
        return canonical_json(self.model_dump(mode="json", exclude={"root"}))


def task_level(task: str, corpus: Corpus) -> str:
    """`word` or `sentence`: the rows of a store that this task is made of in this corpus."""
    built = import_module("probing.specs").build_task(task, corpus)
    built.prepare(corpus)
    return str(built.read_from)


def _has_position(rows: str, asked: str) -> bool:
    """Whether an extraction has the position asked for; without asking, whether it has only one."""
    if not rows.startswith(_POSITION) or not (asked or "," not in rows):
        return False
    parse = import_module("probing.positions").parse_positions
    names = [position.name for position in parse(rows.removeprefix(_POSITION))]
    return not asked or (asked.startswith(_POSITION) and parse(asked.removeprefix(_POSITION))[0].name in names)


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
