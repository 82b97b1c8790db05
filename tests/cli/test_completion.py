"""Completion scripts and `--version` say what is declared."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import probing
from probing import registry
from probing.cli.commands import app
from probing.jobs import ExtractJob, TrainJob

RUN = CliRunner()
COMPLETE = """
source "$0"
COMP_WORDS=("$@" ); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
_probing; printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str) -> str:
    done = RUN.invoke(app, ["completion", shell])
    assert done.exit_code == 0, done.output
    return done.output


def completed(file: Path, *words: str) -> list[str]:
    done = subprocess.run(["bash", "-c", COMPLETE, str(file), "probing", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")
def test_bash_completes_commands_options_and_members(tmp_path: Path) -> None:
    file = tmp_path / "probing.bash"
    file.write_text(script("bash"), encoding="utf-8")
    assert {"extract", "train", "store", "completion", "--version"} <= set(completed(file, ""))
    assert completed(file, "store", "ex") == ["export"]
    assert {"ls", "import", "verify"} <= set(completed(file, "store", ""))
    assert completed(file, "train", "cache/x", "--probe", "bil") == ["bilinear"]
    assert set(completed(file, "train", "cache/x", "--control", "")) == set(registry.names("controls"))
    for name, job in {"extract": ExtractJob, "train": TrainJob}.items():
        flags = {
            "--" + key.replace("_", "-") for key in job.model_fields if key in ("to", "sites", "rows", "root_seed")
        }
        assert flags <= set(completed(file, name, "--"))
    assert completed(file, "extract", "datasets/") == []  # files are the shell's own


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_in_every_script(shell: str) -> None:
    text = script(shell)
    for option in ("reader-option", "array-index", "correction", "json", "resample-by", "version"):
        assert option in text


def test_an_unknown_shell_is_refused() -> None:
    assert RUN.invoke(app, ["completion", "tcsh"]).exit_code == 2


def test_version_is_that_of_the_package() -> None:
    assert RUN.invoke(app, ["--version"]).output == f"probing {probing.__version__}\n"


def test_dir_shows_public_names_only() -> None:
    assert dir(probing) == probing.__all__
