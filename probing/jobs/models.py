"""Defines ModelOptions, the options of one model, from a study file or `--model`, and checks and sorts several
models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from probing.errors import ConfigError, unknown_name
from probing.jobs import Job
from probing.provenance import digest
from probing.reference import PREFIX, shipped

_TAIL = re.compile(r"^(?P<name>.+?):(?P<values>[A-Za-z_]+=[^:]*)$", re.S)
_VARIED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")


class ModelOptions(Job):
    """Holds the options that name one model. A study's `models` are a list of such options, and `--model` has them in
    the form `NAME:step=1000,run=a`.
    """

    name: str = Field(min_length=1, description="Hugging Face model name, perhaps NAME@REVISION, or a folder")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    step: int | None = Field(None, description="for a checkpoint: the number of steps trained")
    run: str | None = Field(None, description="name of the training run, where there are checkpoints of several")
    untrained: int | None = Field(None, description="seed: random weights in the model's architecture")

    def __str__(self) -> str:
        """Return the recipe: `NAME@REVISION:step=1000`."""
        given = {key: getattr(self, key) for key in ("step", "run", "untrained")}
        values = ",".join(f"{key}={value}" for key, value in given.items() if value is not None)
        return self.name + (f"@{self.revision}" if self.revision else "") + (f":{values}" if values else "")

    @property
    def order(self) -> tuple[Any, ...]:
        """Key by which models are sorted: those without a step first, then one training run after another, each from
        its first step to its last.
        """
        return (
            self.step is not None,
            self.run or "",
            -1 if self.step is None else self.step,
            self.name,
            self.revision or "",
            -1 if self.untrained is None else self.untrained,
        )

    @property
    def folder(self) -> str:
        """Name of the folder for the states of the model, unique in the study."""
        words = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(Path(self.name).parts[-2:])).strip("-.")[-40:]
        return f"{words}-{digest(self.model_dump(mode='json'))[:8]}"

    def loaded_with(self) -> dict[str, Any]:
        """Return the options of `LanguageModel.load` that are set for this model: revision, step, run and untrained."""
        return {
            key: value for key in ("revision", "step", "run", "untrained") if (value := getattr(self, key)) is not None
        }

    def rooted(self, root: Path | None) -> ModelOptions:
        """Return the options with `name` replaced by the path `root / name` if such a folder exists."""
        local = (root or Path()) / self.name
        is_there = root is not None and not self.name.startswith(PREFIX) and local.is_dir()
        return self.model_copy(update={"name": str(local)}) if is_there else self

    def at_one_place(self) -> tuple[str, str | None, int | None]:
        """Return where the weights come from, as (path or hub name, revision, seed of random weights); two models for
        which this is equal are the same model.
        """
        path = Path(shipped(self.name, "model")).expanduser()
        return str(path.resolve()) if path.is_dir() else self.name, self.revision, self.untrained


def parsed(value: Any) -> Any:
    """Parse a recipe such as `runs/checkpoint-200:step=200` or `org/name@step1000` and return its options as a
    dictionary; a value that is not a string is returned unchanged.

    Raises:
        ConfigError: a key in the recipe is unknown, occurs twice or has no valid value.
    """
    if not isinstance(value, str) or Path(value).expanduser().is_dir():
        return value if not isinstance(value, str) else {"name": value}
    found = _TAIL.match(value)
    name, values = (found["name"], found["values"]) if found else (value, "")
    given: dict[str, str] = {}
    for part in filter(None, values.split(",")):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if key not in ModelOptions.model_fields or key == "name":
            known = [key for key in ModelOptions.model_fields if key != "name"]
            raise unknown_name("key", key, known, where=f"model {value}", error=ConfigError)
        if not equals or not text or key in given:
            raise ConfigError(f"model {value}: {key} has no value, or two", needed=f"{key}=VALUE", found=part)
        given[key] = text
    bare, at, revision = name.partition("@")
    if at and not Path(name).expanduser().is_dir() and "revision" not in given:
        name, given["revision"] = bare, revision
    return {"name": name, **{key: _whole(key, text, value) for key, text in given.items()}}


def _whole(key: str, text: str, where: str) -> str | int:
    """Return the text, or a number where the key wants one."""
    if key not in ("step", "untrained"):
        return text
    if not re.fullmatch(r"\d{1,15}", text):
        raise ConfigError(
            f"a {'step' if key == 'step' else 'seed'} that is no number",
            needed=f"{key}= and a whole number, 0 or more",
            found=f"{key}={text}",
            where=f"model {where}",
            next_step="such as runs/checkpoint-200:step=200, or org/name@step1000:step=1000" if key == "step" else "",
        )
    return int(text)


def _each(value: Any) -> Any:
    return [parsed(one) for one in (value if isinstance(value, list) else [value])]


Models = Annotated[list[ModelOptions], BeforeValidator(_each)]


def models_of(recipes: Iterable[str | ModelOptions], root: Path | None = None) -> list[ModelOptions]:
    """Return the models of flags or of a study in a fixed order, whatever order they are given in, after checking their
    steps and, within a run, their configurations.

    Raises:
        ConfigError: a recipe is malformed, a model is named twice, two checkpoints have the same step and run, or
            checkpoints of one run have different architectures.
        BadParameter: a step is out of range, or a run is named without a step.
        UnsupportedModel: the configuration of one of several checkpoints of a run cannot be read.
    """
    read = [ModelOptions.read(parsed(one), f"model {one}") if isinstance(one, str) else one for one in recipes]
    models = sorted((one.rooted(root) for one in read), key=lambda one: one.order)
    for one in models:
        import_module("probing.models.loading.identity").Checkpoint.of(one.step, one.run)
    if len(models) > 1:
        _refuse_twice(models)
        _refuse_mixed_runs(models)
    return models


def _refuse_twice(models: Sequence[ModelOptions]) -> None:
    for at, count in Counter(one.at_one_place() for one in models).items():
        if count > 1:
            same = [str(one) for one in models if one.at_one_place() == at]
            raise ConfigError(
                "the same model is named twice",
                needed="each folder, revision and seed once",
                found="; ".join(same),
                next_step="leave one out, or name the folder of the other checkpoint",
            )
    steps = Counter((one.run or "", one.step) for one in models if one.step is not None)
    for (run, step), count in steps.items():
        if count > 1:
            same = [str(one) for one in models if (one.run or "", one.step) == (run, step)]
            raise ConfigError(
                f"two checkpoints are of step {step} of one run",
                needed="each step of a run once",
                found="; ".join(same),
                next_step="if they are of two training runs, name them: run=a and run=b",
            )


def _refuse_mixed_runs(models: Sequence[ModelOptions]) -> None:
    """Refuse checkpoints of one run whose configurations differ: a curve over its steps would compare architectures."""
    for run in dict.fromkeys(one.run or "" for one in models if one.step is not None):
        first, *others = [one for one in models if one.step is not None and (one.run or "") == run]
        known = _configuration(first) if others else {}
        for other in others:
            found = _configuration(other)
            keys = sorted(key for key in known.keys() | found.keys() if known.get(key) != found.get(key))
            if keys:
                raise ConfigError(
                    "checkpoints of one run have different architectures",
                    needed=f"as {first}: " + ", ".join(f"{key} {known.get(key)}" for key in keys[:3]),
                    found=", ".join(f"{key} {found.get(key)}" for key in keys[:3]),
                    where=str(other),
                    next_step="name their runs (run=small, run=large), or leave the steps out to compare them by size",
                )


def _configuration(model: ModelOptions) -> dict[str, Any]:
    """Return the values of a model's configuration that shape its network."""
    read = import_module("probing.models.loading.pretrained").configuration
    values: dict[str, Any] = read(shipped(model.name, "model"), model.revision)
    return {key: value for key, value in values.items() if key not in _VARIED}
