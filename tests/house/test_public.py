"""The public names, the errors and the README are what they say."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

import probing
from probing import contracts, errors
from probing.errors import ProbingError
from tests.conftest import REFERENCE, ROOT

ERRORS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ProbingError)]


def test_every_public_name_is_importable_and_sorted() -> None:
    assert probing.__all__ == sorted(probing.__all__)
    for name in probing.__all__:
        assert getattr(probing, name) is not None


def test_every_contract_is_importable_from_the_folder() -> None:
    assert contracts.__all__ == sorted(contracts.__all__) == sorted(contracts._HOMES)
    for name in contracts.__all__:
        assert getattr(contracts, name) is not None


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_every_error_shows_its_facts_and_survives_a_process_boundary(error: type[ProbingError]) -> None:
    raised = error("it failed", needed="one", found="two", where="there", next_step="mend it")
    copy = pickle.loads(pickle.dumps(raised))
    assert type(copy) is error
    assert str(copy) == str(raised)
    for part in ("it failed", "needed: one", "found: two", "where: there", "next step: mend it"):
        assert part in str(raised)


def test_the_drawn_tree_names_every_error() -> None:
    for error in ERRORS:
        assert error.__name__ in (errors.__doc__ or "")


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.mark.slow
def test_python_of_the_commands_page_runs(warm: list[str], tmp_path: Path) -> None:
    command = [*warm, "-c", blocks("python", "docs/commands.md")[0]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "false_unused=0.0" in done.stdout and "recall_used=1.0" in done.stdout  # a rule that always says "used"


def test_the_probe_that_the_readme_adds_is_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "centroid_of_the_readme.py").write_text(blocks("python")[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    probe = importlib.import_module("centroid_of_the_readme").MEMBER()
    check_estimator(probe, on_skip=None)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    X = rng.normal(size=(300, 4)) + 4 * np.eye(3, 4)[y]
    assert probe.fit(X[:200], y[:200]).score(X[200:], y[200:]) > 0.9
    assert (type(probe)().with_state(probe.state()).predict(X) == probe.predict(X)).all()


@pytest.mark.slow
def test_readme_shell_runs(warm: list[str], tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "third")
    for split in ("train", "dev", "test"):  # a third of the sentences: `scripts/least_versions` runs the study on all
        file = tmp_path / "third" / f"{split}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[: len(lines) // 3]), encoding="utf-8")
    (tmp_path / "probing_a_third.py").write_text(
        "from pathlib import Path\n"
        "from probing import reference\n"
        "reference.folder = lambda: Path('third')\n"
        "from probing.__main__ import main\n"
        "main()\n",
        encoding="utf-8",
    )
    block = next(b for b in blocks("sh", "docs/commands.md") if b.startswith("C="))
    command = f'set -e\nprobing() {{ {shlex.join(warm)} -m probing_a_third "$@"; }}\n{block}'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "cache/results/readme-shell/results.parquet").is_file()
    assert (tmp_path / "cache/results/reference/report.html").is_file()
