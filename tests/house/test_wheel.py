"""The wheel holds the package and what it reads, nothing else, and works where the repository is not.

`probing quickstart` takes a minute: it is run once, and its page is looked at in a browser as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from probing.reporting.page import MAX_BYTES
from tests.conftest import REFERENCE, ROOT
from tests.house.test_architecture import PACKAGE
from tests.house.test_public import blocks
from tests.samples.browsing import FAINT, OVERFLOWING, chromium, draw, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
# Python reads this file first: whatever would reach another machine ends the process.
WITHOUT_NETWORK = """
import os, socket

def refuse(own, address):
    if own.family != socket.AF_UNIX:
        os.write(2, f"reached for {address}".encode())
        os._exit(99)

socket.socket.connect = socket.socket.connect_ex = refuse
"""


def pip(*arguments: object, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(PACKAGE, copy / "probing", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REFERENCE, copy / "datasets" / "reference")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", copy / "dist", copy, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """The wheel in a folder of its own, run where the repository cannot be imported."""

    site: Path

    def python(self, folder: Path, *arguments: object) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        done = subprocess.run(
            [sys.executable, "-P", *map(str, arguments)],
            cwd=folder,
            env=kept | {"PYTHONPATH": str(self.site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command(self, folder: Path, *words: str) -> str:
        return self.python(folder, self.site / "bin" / "probing", *words)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", site, wheel, cwd=site)
    (site / "sitecustomize.py").write_text(WITHOUT_NETWORK, encoding="utf-8")
    found = Installed(site)
    assert Path(found.python(site, "-c", "import probing; print(probing.__file__)").strip()).is_relative_to(site)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@dataclass(frozen=True)
class Quickstart:
    """A folder in which `probing quickstart` was run, and what it printed."""

    folder: Path
    output: str

    @property
    def results(self) -> Path:
        return self.folder / "probing-quickstart"


@pytest.fixture(scope="module")
def quickstart(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("work")
    return Quickstart(folder, installed.command(folder, "quickstart", "--quiet"))


def files_under(folder: Path) -> set[str]:
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_every_file_of_the_package_and_of_the_reference_study_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {info.filename: info.compress_size for info in archive.infolist()}
    own = {name for name in held if not re.match(r"[^/]+\.dist-info/", name)}
    data = {f"probing/reference_data/{name}" for name in files_under(REFERENCE)}
    assert own == {f"probing/{name}" for name in files_under(PACKAGE)} | data
    assert sum(held[name] for name in data) < 1_000_000


@pytest.mark.slow
def test_quickstart_runs_from_the_wheel_without_a_network_and_resumes(
    installed: Installed, quickstart: Quickstart
) -> None:
    folder, said = quickstart.results, quickstart.output
    page = re.fullmatch(r"Open (.*) in a browser\.", said.splitlines()[-1])
    assert page and Path(page[1]) == (folder / "report.html").resolve()
    assert "<html" in Path(page[1]).read_text(encoding="utf-8")
    agreed = re.search(r"(\d+) of (\d+) verdicts are right", said)
    assert agreed and agreed[1] == agreed[2] == "12"
    states = {file: file.stat().st_mtime_ns for file in folder.rglob("shards/*")}
    assert states and installed.command(quickstart.folder, "quickstart", "--quiet") == said
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("shards/*")} == states
    assert [file.name for file in quickstart.folder.iterdir()] == ["probing-quickstart"]


@pytest.mark.slow
def test_the_quickstarts_page_is_short_small_and_quiet(browser: Browser, quickstart: Quickstart) -> None:
    file = quickstart.results / "report.html"
    assert file.stat().st_size < MAX_BYTES
    with opened(browser, file) as tab:
        assert len(tab.locator("body").inner_text().split()) <= 2500
        draw(tab)
        assert tab.evaluate(OVERFLOWING) == []
        assert tab.evaluate(FAINT)[2] == []


@pytest.mark.slow
def test_readme_python_runs_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    said = installed.python(tmp_path, "-c", blocks("python")[0])
    assert "resid.1" in said and "Score(" in said and "decodable and used" in said
    assert (tmp_path / "cache/results/readme/report.html").is_file()
