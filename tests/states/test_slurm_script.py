"""The array job for SLURM, run as its tasks with the variables that SLURM sets and a stand-in for scontrol."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probing.states.store import Store
from tests.conftest import REFERENCE, ROOT

SCRIPT = ROOT / "scripts" / "slurm_extract.sh"


@pytest.fixture
def bin_folder(tmp_path: Path, warm: list[str]) -> Path:
    """A folder for PATH with `probing` of this environment and an `scontrol` that notes what it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    as_command(folder / "probing", f'exec {shlex.join(warm)} -m probing "$@"')
    as_command(folder / "scontrol", f'echo "$@" >> "{tmp_path}/requeued"')
    return folder


def as_command(file: Path, line: str) -> None:
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)


def task(bin_folder: Path, index: int, count: int, store: Path, corpus_flags: list[str]) -> subprocess.Popen[str]:
    variables = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_JOB_ID": str(78 + index),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": "5",
        "SLURM_ARRAY_TASK_ID": str(5 + index),
    }
    command = [str(SCRIPT), "--model", str(REFERENCE / "model"), *corpus_flags, "--to", str(store)]
    return subprocess.Popen(
        command, env=os.environ | variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_tasks_of_an_array_make_one_store(tmp_path: Path, bin_folder: Path, corpus_flags: list[str]) -> None:
    for index in (1, 0):
        child = task(bin_folder, index, 2, tmp_path / "s", corpus_flags)
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    assert Store.open(tmp_path / "s").verify() == []
    assert not (tmp_path / "requeued").exists()


@pytest.mark.slow
def test_a_task_that_is_told_to_end_puts_itself_back_and_goes_on(
    tmp_path: Path, bin_folder: Path, corpus_flags: list[str]
) -> None:
    warm = (bin_folder / "probing").read_text()
    as_command(bin_folder / "probing", f'exec "{sys.executable}" -m probing "$@"')  # signals end a process of its own
    child = task(bin_folder, 0, 1, tmp_path / "s", corpus_flags)
    while not (tmp_path / "s").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGUSR1)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 75, errors
    assert (tmp_path / "requeued").read_text() == "requeue 77_5\n"
    (bin_folder / "probing").write_text(warm)
    again = task(bin_folder, 0, 1, tmp_path / "s", corpus_flags)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert Store.open(tmp_path / "s").verify() == []
