"""Defines `Study`, which extracts states, trains probes, edits the running model and writes the report, as one YAML
file asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

import probing as pb
from probing.errors import ConfigError, ProbingError, UnitFailed, unknown_name
from probing.files.strict_json import strict_json
from probing.jobs import CorpusOptions, ExtractOptions, Files, Job, Many, TrainOptions
from probing.jobs.circuit import CircuitOptions
from probing.jobs.inspect import InspectOptions
from probing.jobs.lens import LensOptions
from probing.jobs.models import ModelOptions, Models, models_of
from probing.jobs.study_file import load_yaml
from probing.jobs.study_looks import StudyLooks, StudySimilarity
from probing.jobs.use import UseOptionsOfJob
from probing.provenance import canonical_json
from probing.reference import shipped
from probing.results.analysis import failed_with, run_all
from probing.system.machine import check_target

if TYPE_CHECKING:
    from probing.text.corpus import Corpus
    from probing.training.results import ProbeResults

Stores = dict[tuple[str, int | None], Path]  # by rows and seed of the untrained model

TWIN = "untrained_model"
_POSITION = "position:"
_AS_NAME = str.maketrans({":": "-", ",": "_", "+": "p"})  # rows as a folder's name


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class StudyTrain(TrainOptions):
    """Holds one entry of the list `train` in a study's YAML file. If several extractions of the study have states for
    the tasks, the key `rows` selects one; for a store of all tokens, it says how states are pooled.
    """

    tasks: Many = Field(alias="task")


class StudyUse(UseOptionsOfJob):
    """Holds one entry of the list `use` in a study's YAML file: the properties that are edited, and options of the
    edits.
    """

    tasks: Many = Field(alias="task")


class KnownTruth(Job):
    """Holds the options that name a file with the known truth about a study's model, which the report shows beside the
    verdicts.
    """

    file: str = Field(description="JSON file of known truth: cells with property, site, position and certified")
    positions: dict[str, str] = Field(
        default={},
        description="for each position that the file calls by another name, that name",
    )


class Study(Job):
    """Holds a study as read from a YAML file: which states to extract, which probes to train, which edits to make.
    `run` does what is not done yet, and writes the report.
    """

    name: str = Field(
        pattern=r"^[a-z0-9](\.?[a-z0-9_-]){0,99}$",
        max_length=100,
        description="name of the study and, unless --to names another, of its folder in cache/results",
    )
    model: str | None = Field(None, description="Hugging Face model name, or a folder")
    models: Models = Field(
        default=[],
        description="several models instead of one, each a name, or a mapping {name: FOLDER, step: 1000}: pretrained, "
        "untrained, checkpoints, sizes; in any order",
    )
    corpus: Files = Field(description="mapping of splits to files, {train: FILE, dev: FILE, test: FILE}; or one file")
    reader_options: Many = Field(default=[])
    split_seed: int | None = None
    group: str | None = None
    extract: Annotated[list[ExtractOptions], BeforeValidator(_listed)] = Field(
        description="which states are extracted from the model, one entry for each `rows`"
    )
    train: Annotated[list[StudyTrain], BeforeValidator(_listed)] = Field(
        description="which probes are trained on which tasks, beside which controls"
    )
    use: Annotated[list[StudyUse], BeforeValidator(_listed)] = Field(
        default=[], description="which properties are exchanged in the running model"
    )
    inspect: InspectOptions | None = Field(
        default=None, description="a look at states and attention on the corpus, in a folder of its own"
    )
    lens: LensOptions | None = Field(
        default=None, description="lenses, which read the state of every site as an output of the model"
    )
    similarity: StudySimilarity | None = Field(
        default=None, description="how alike extracted states are: of several models, or of one and its untrained twin"
    )
    circuit: CircuitOptions | None = Field(
        default=None, description="which heads and MLPs, through which edges, give the answers to pairs of prompts"
    )
    truth: KnownTruth | None = Field(default=None, description="file of known truth, shown beside the verdicts")
    root: Path = Path()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read the study file `path`, or the one that ships with the package (`probing:reference`), and return the
        study; relative paths in the file refer to its folder.

        Raises:
            ConfigError: the file is missing or not YAML, or has duplicate, unknown or missing keys.
            UnknownName: a name after `probing:` does not ship with the package.
        """
        file = Path(shipped(str(path), "study.yaml"))
        values = load_yaml(file)
        if "root" in values:
            raise unknown_name("key", "root", cls.model_fields, where=str(file), error=ConfigError)
        study = cls.read(values | {"root": file.parent}, where=str(file))
        _refuse_equal_extractions(study.extract, str(file))
        _refuse_other_models(study, str(file))
        return study

    def all_models(self) -> list[ModelOptions]:
        """Return the models of the study, checked and in order.

        Raises:
            ConfigError: a model is named twice or with a malformed option, two checkpoints have the same step and run,
                or checkpoints of one run have different architectures.
        """
        return models_of(self.models or [self.model or ""], self.root)

    def run(self, to: str | Path | None = None, *, progress: bool = True) -> Path:
        """Extract states, train probes, measure use, inspect the models, write the report, and return its path.
        `progress`: whether to show progress on standard error. `to` is the folder of the results (see `folder`).

        Raises:
            UnitFailed: some tasks failed. All other parts of the study were run and are in the report.
            ProbingError: the only task failed, or all tasks failed for the same reason; nothing is reported.
        """
        out = self.folder(to)
        check_target(out)
        models = self.all_models()
        corpus = CorpusOptions(
            corpus=self.corpus, reader_options=self.reader_options, split_seed=self.split_seed, group=self.group
        ).read_corpus(self.root)
        self._check_tasks(corpus)
        looks = StudyLooks(self.inspect, self.lens, self.similarity, self.circuit).rooted(self.root)
        looks.check(models, self.extract, corpus, f"study {self.name}")
        stores = [
            self._extracted(one, corpus, out / "states" / (one.folder if len(models) > 1 else ""), progress)
            for one in models
        ]
        attempts = [
            (
                f"{task}{suffix}" + (f", {model}" if len(models) > 1 else ""),
                partial(self._train, of_model, corpus, out, progress, entry, task),
            )
            for entry, suffix in self._entries()
            for task in entry.tasks
            for model, of_model in zip(models, stores, strict=True)
        ]
        failure: UnitFailed | None = None
        try:
            run_all(attempts, out, "tasks")
        except UnitFailed as error:
            failure = error
        except ProbingError as error:
            parts = ("use", "inspect", "lens", "similarity", "circuit")
            if not_run := [part for part in parts if getattr(self, part)]:
                error.add_note(f"not run, since training failed: {', '.join(not_run)}")
            raise
        try:
            self._use(models, corpus, out, progress)
            looks.run(models, stores, self.extract, corpus, out, progress=progress)
        except ProbingError as error:
            if failure is None and not isinstance(error, UnitFailed):
                raise
            failure = failed_with(failure, error)
        if failure is None or (out / "results.jsonl").is_file():
            page = pb.report(out)
        if failure is not None:
            raise failure
        return page

    def _check_tasks(self, corpus: Corpus) -> None:
        """Check, before any work, that the corpus has the columns of all tasks and covariates, and that the study
        extracts states for those that probes are trained on.

        Raises:
            UnknownName, BadParameter, DegenerateDesign, CorpusError: a task does not fit the corpus.
            ConfigError: no extraction has rows for a task.
        """
        for entry in self.train:
            for task in entry.tasks:
                self._extraction_for(entry, task, corpus)
        for use in self.use:
            for task in (*use.tasks, *use.covariates):
                task_level(task, corpus)

    def _extracted(self, model: ModelOptions, corpus: Corpus, folder: Path, progress: bool) -> Stores:
        """Extract all that the study reads from one model, and return its stores.

        An untrained model has no untrained twin: extractions of twins are left out where the same rows are read anyway.
        """
        plain = {options.rows for options in self.extract if options.untrained is None}
        stores: Stores = {}
        for options in self.extract:
            if model.untrained is not None and options.untrained is not None and options.rows in plain:
                continue
            made = self._rooted(options).extract(model, corpus, folder / _folder_of(options), progress=progress)
            if options.role == "states":
                stores[options.rows, options.untrained] = made.path
        return stores

    def folder(self, to: str | Path | None) -> Path:
        """Return the folder of the results: `to`, or if `to` is None, `cache/results/NAME` with the name of the
        study.
        """
        return Path(to) if to is not None else Path("cache/results") / self.name

    def _entries(self) -> list[tuple[StudyTrain, str]]:
        """Return the entries of `train`, each with a text that tells its tasks from equal ones of other entries."""
        tasks = Counter(task for entry in self.train for task in entry.tasks)
        return [
            (entry, f" (entry {number} of train)" if any(tasks[task] > 1 for task in entry.tasks) else "")
            for number, entry in enumerate(self.train, start=1)
        ]

    def _train(
        self, stores: Stores, corpus: Corpus, out: Path, progress: bool, entry: StudyTrain, task: str
    ) -> ProbeResults:
        rows, untrained = self._extraction_for(entry, task, corpus)
        named = [control for control in entry.controls if control.strip().rstrip(":") != TWIN]
        twins = [path for (of, seed), path in stores.items() if (of, untrained) == (rows, None) and seed is not None]
        has_twin = any(
            one.rows == rows and one.untrained is not None for one in self.extract
        )  # not of an untrained one
        if len(named) < len(entry.controls) and not has_twin:
            raise ConfigError(
                f"this study has no untrained extraction for {TWIN}",
                needed=f"an extract entry with rows {rows}",
                found="none with untrained",
                where=f"study {self.name}, task {task}",
                next_step=f"add `- {{rows: '{rows}', untrained: 0}}` under extract",
            )
        build = import_module("probing.controls.untrained_model").MEMBER
        controls = [build(store=str(path)) for path in twins] if len(named) < len(entry.controls) else []
        pooled = entry.rows if rows == "piece" or rows.startswith(_POSITION) else None
        one = entry.model_copy(update={"controls": named, "rows": pooled})
        return one.train(stores[rows, untrained], corpus, out, progress=progress, task=task, controls=controls)

    def _use(self, models: Sequence[ModelOptions], corpus: Corpus, out: Path, progress: bool) -> None:
        """Run all entries of `use` on every model, and judge results that meet in one folder together."""
        for entry in self.use:
            for model in models:
                entry.use(model, corpus, out, progress=progress)

    def certified(self) -> dict[tuple[str, str], str]:
        """Read the study's file of known truth, and return whether the model uses each property: a mapping from (task,
        place) to `used`, `unused` or `band` (between the two). It is empty if the study names no such file.

        Raises:
            ConfigError: the file does not have the form of a file of known truth.
        """
        if self.truth is None:
            return {}
        file = self.root / self.truth.file
        here = {there: own for own, there in self.truth.positions.items()}
        try:
            cells = strict_json(file.read_text(encoding="utf-8"))["cells"]
            return {
                (f"column:{cell['property']}", f"{cell['site']}@{here.get(cell['position'], cell['position'])}"): str(
                    cell["certified"]
                )
                for cell in cells
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "no file of certified cells",
                needed="cells with property, site, position, certified",
                found=str(error)[:200],
                where=str(file),
            ) from None

    def _rooted(self, options: ExtractOptions) -> ExtractOptions:
        """Return the options, with a file of columns taken from the study's own folder."""
        columns = self.root / (options.columns or "")
        return options.model_copy(update={"columns": str(columns)}) if columns.is_file() else options

    def _extraction_for(self, entry: StudyTrain, task: str, corpus: Corpus) -> tuple[str, int | None]:
        """Return the rows and seed of the extraction to train on.

        Its rows have the task's level: the entry's own `rows`, else the first that fit, else pieces. Untrained ones are
        controls, and trained on only where nothing else fits.
        """
        level = task_level(task, corpus)
        known = [o for o in self.extract if o.role == "states"]
        fitting = [o for o in known if entry.rows in (None, o.rows) and o.rows.split(":")[0] == level]
        asked = entry.rows or ""  # one position of several: that of the extraction which has it
        fitting += [o for o in known if level == "sentence" and _has_position(o.rows, asked)]
        fitting += [o for o in known if o.rows == "piece"]
        fitting.sort(key=lambda o: o.untrained is not None)
        if not fitting:
            raise ConfigError(
                f"no extraction of this study has rows for task {task!r}",
                needed=f"an extract entry with rows {level}:…",
                found=", ".join(o.rows for o in known) or "replays only",
                where=f"study {self.name}",
                next_step=f"add e.g. `- {{rows: '{level}:mean'}}` under extract",
            )
        return fitting[0].rows, fitting[0].untrained

    def recipe(self) -> bytes:
        """Return everything that determines the study, as canonical JSON (sorted keys, no spaces): its options, without
        the folder it was read from.
        """
        optional = ("model", "models", "inspect", "lens", "similarity", "circuit")
        unset = {"root"} | {name for name in optional if not getattr(self, name)}
        return canonical_json(self.model_dump(mode="json", exclude=unset))


def _folder_of(options: ExtractOptions) -> str:
    if options.role == "replay":
        return "replay"
    seed = "" if options.untrained is None else f"-untrained-{options.untrained}"
    return options.rows.translate(_AS_NAME) + seed


def _refuse_other_models(study: Study, where: str) -> None:
    """Refuse a study without a model, with both `model` and `models`, or with a truth that is of one model of several.

    Raises:
        ConfigError: in these cases.
    """
    if bool(study.models) == bool(study.model):
        raise ConfigError(
            "a study has one `model`, or several `models`",
            needed="model: NAME, or models: [NAME, {name: FOLDER, step: 1000}, …]",
            found="both" if study.model else "neither of them",
            where=where,
        )
    if study.truth is not None and len(study.models) > 1:
        raise ConfigError(
            "a certified truth is of one model",
            needed="`model`, beside `truth`",
            found=f"{len(study.models)} models",
            where=where,
            next_step="leave `truth` out, or run a study of that model alone",
        )


def _refuse_equal_extractions(extract: list[ExtractOptions], where: str) -> None:
    for folder, count in Counter(map(_folder_of, extract)).items():
        if count > 1:
            raise ConfigError(
                "two extractions of the same rows",
                needed="one extract entry for each `rows` (and `untrained`)",
                found=f"{count} that would be states/{folder}",
                where=where,
                next_step="name all sites in one entry: sites: 'embed,resid.*'",
            )


def task_level(task: str, corpus: Corpus) -> str:
    """Return the kind of rows that a task needs in a store of this corpus: `word` or `sentence`."""
    built = import_module("probing.recipes").build_task(task, corpus)
    built.prepare(corpus)
    return str(built.read_from)


def _has_position(rows: str, asked: str) -> bool:
    """Return whether an extraction has the position asked for; if none is asked for, whether it has only one."""
    if not rows.startswith(_POSITION) or not (asked or "," not in rows):
        return False
    parse = import_module("probing.text.positions").parse_positions
    names = [position.name for position in parse(rows.removeprefix(_POSITION))]
    return not asked or (asked.startswith(_POSITION) and parse(asked.removeprefix(_POSITION))[0].name in names)
