"""Shared fixtures: the reference data that ships, and a small slice of it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer import testing

from tests.samples.warm_python import warm_python

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# Run in the background of a script, this process ignores SIGINT, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "datasets" / "reference"


# Begun first, so that all processes end at about the same time: a file's tests go to one process, in this order.
LONGEST = (
    "test_executors.py",
    "test_how_to.py",
    "test_model_survey.py",
    "test_shard_work.py",
    "test_verdict_laws.py",
    "test_reliability.py",
    "test_gate.py",
    "test_reference_model.py",
    "test_wheel.py",
    "test_public.py",
    "test_plantbench_models.py",
    "test_use_statistics.py",
    "test_plantbench_latents.py",
    "test_plantbench_tracr.py",
    "test_browser.py",
    "test_kill_resume.py",
    "test_ray_nodes.py",
    "test_training_runs.py",
    "test_coverage.py",
    "test_plantbench_scoring.py",
    "test_slurm_script.py",
    "test_notebooks.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of files, which pytest-xdist would change: it begins with those of most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order within a file stays."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Force nothing to the disk, for which tests would only wait: no power is cut here. What such a cut leaves is a law
    of tests/reliability and tests/states, which count these calls and model the disk.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: os.fstat(handle) and None)  # what is closed is still refused
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_are_made_once() -> Iterator[None]:
    """Make the commands of an app for the first run of its command line alone, as in a process that has one run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(testing._get_command))
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the reference corpus, model and study."""
    return REFERENCE


@pytest.fixture(scope="session")
def warm() -> Iterator[list[str]]:
    """The words that stand for `python` where no test is of how it starts: a process with the libraries loaded."""
    with warm_python() as words:
        yield words


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first sentences of each split of the reference corpus, as JSONL files by split."""
    folder = tmp_path_factory.mktemp("corpus")
    files = {}
    for split, count in (("train", 150), ("dev", 50), ("test", 60)):
        lines = (REFERENCE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


@pytest.fixture(scope="session")
def corpus_flags(small_corpus: dict[str, Path]) -> list[str]:
    """`--corpus` flags of the small corpus."""
    return [part for split, file in small_corpus.items() for part in ("--corpus", f"{split}={file}")]


def some(cases: Iterable[Any], count: int) -> list[Any]:
    """Cases for `parametrize` of which the default suite runs the first `count`; the rest are marked slow."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] * (number >= count))
        for number, case in enumerate(cases)
    ]


def real_data() -> Path:
    """The folder that PROBING_REAL_DATA names, of treebanks we may not ship; tests that need it skip without it."""
    place = os.environ.get("PROBING_REAL_DATA")
    if not place:
        pytest.skip("PROBING_REAL_DATA is not set")
    return Path(place)


def with_field(files: dict[str, Path], folder: Path, field: str, value: object) -> dict[str, Path]:
    """A copy of JSONL files in which `field` is `value` everywhere."""
    copies = {}
    for split, file in files.items():
        rows = [json.loads(line) | {field: value} for line in file.read_text(encoding="utf-8").splitlines()]
        copies[split] = folder / f"{split}.jsonl"
        copies[split].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return copies


def module_at(file: Path) -> ModuleType:
    """Return a module of the repository that belongs to no package, imported from its file."""
    place = importlib.util.spec_from_file_location(file.stem, file)
    assert place is not None and place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module
    place.loader.exec_module(module)
    return module
