"""An extraction killed at random moments and resumed ends as an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.states.store import Store
from tests.conftest import ROOT
from tests.samples.tiny_models import corpus_of

KILLS = int(os.environ.get("PROBING_KILLS", "50"))
CORPUS = corpus_of(*(f"the thing {'in ' * (i % 7)}being {i} the" for i in range(32)))  # one a shard
# One warm process forks a child for every extraction: a kill costs no import and builds no model.
PROGRAM = """
import os, sys, torch
torch.set_num_threads(1)
from tests.states.test_kill_resume import run
from tests.samples.tiny_models import language_model
model = language_model("gpt2")
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(line.strip(), model)
        os._exit(0)
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
"""


def run(folder: str | Path, model: LanguageModel) -> Store:
    return extract(model, CORPUS, to=folder, shard_bytes=1200, tokens_per_batch=64, progress=False)


@contextmanager
def extractor() -> Iterator[subprocess.Popen[str]]:
    """The process that extracts into each folder it is told, in a child that can be killed."""
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", PROGRAM]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, env=os.environ | variables, **pipes) as process:
        assert answer(process) == "ready"
        yield process
        process.stdin.close()


def answer(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def start(process: subprocess.Popen[str], folder: Path) -> int:
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    return int(answer(process))


def killed_after(process: subprocess.Popen[str], folder: Path, seconds: float) -> bool:
    """Extract into `folder` and kill -9 after some time; whether it was still running."""
    child = start(process, folder)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    outcome = answer(process)
    assert outcome in ("killed", "ended 0"), outcome
    return outcome == "killed"


def finished(process: subprocess.Popen[str], folder: Path) -> Store:
    """Extract into `folder` to the end; as every part is, in one thread: matrix products differ with their number."""
    start(process, folder)
    assert answer(process) == "ended 0"
    return Store.open(folder)


def check(tmp_path: Path, kills: int) -> None:
    moments, interrupted, part = random.Random(7), 0, 0
    with extractor() as process:
        began = time.perf_counter()
        whole = finished(process, tmp_path / "whole")
        length = time.perf_counter() - began
        for _ in range(kills):
            folder = tmp_path / f"part{part}"
            interrupted += killed_after(process, folder, moments.uniform(0, 0.4 * length))
            if (folder / "seal.json").exists():
                same(whole, finished(process, folder))
                part += 1
        same(whole, finished(process, tmp_path / f"part{part}"))
    assert interrupted >= kills // 2


def same(whole: Store, other: Store) -> None:
    assert other.verify() == []
    for site in ("resid.0", "resid.1", "resid.2"):
        np.testing.assert_array_equal(np.asarray(whole.read(site)), np.asarray(other.read(site)))
    np.testing.assert_array_equal(np.asarray(whole.rows.word), np.asarray(other.rows.word))


@pytest.mark.slow
def test_many_kills_then_resume_give_the_same_store(tmp_path):
    check(tmp_path, KILLS)
