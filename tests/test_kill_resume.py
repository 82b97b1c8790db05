"""An extraction killed at random moments and resumed ends as an uninterrupted one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_models import corpus_of, language_model

from probing.extraction import extract
from probing.store import Store

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("PROBING_KILLS", "50"))
CORPUS = corpus_of(*(f"the thing {'in ' * (i % 7)}being {i} the" for i in range(160)))
PROGRAM = """
import sys
from tests.test_kill_resume import run
print("ready", flush=True)
run(sys.argv[1])
"""


def run(folder: str | Path) -> Store:
    return extract(language_model("gpt2"), CORPUS, to=folder, shard_bytes=1200, tokens_per_batch=64, progress=False)


def killed_after(folder: Path, seconds: float) -> bool:
    """Start an extraction, kill it some time after its imports; whether it was still running."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        },
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(seconds)
        was_running = child.poll() is None
        child.kill()
    return was_running


def check(tmp_path: Path, kills: int) -> None:
    began = time.perf_counter()
    whole = run(tmp_path / "whole")
    length = time.perf_counter() - began
    moments, interrupted, part = random.Random(7), 0, 0
    folder = tmp_path / "part0"
    for _ in range(kills):
        interrupted += killed_after(folder, moments.uniform(0, 0.6 * length))
        if (folder / "seal.json").exists():
            same(whole, run(folder))
            part += 1
            folder = tmp_path / f"part{part}"
    same(whole, run(folder))
    assert interrupted >= kills // 2


def same(whole: Store, other: Store) -> None:
    other.verify()
    for site in ("resid.0", "resid.1", "resid.2"):
        np.testing.assert_array_equal(np.asarray(whole.states(site)), np.asarray(other.states(site)))
    np.testing.assert_array_equal(np.asarray(whole.rows.word), np.asarray(other.rows.word))


def test_two_kills_then_resume_give_the_same_store(tmp_path):
    check(tmp_path, 2)


@pytest.mark.slow
def test_many_kills_then_resume_give_the_same_store(tmp_path):
    check(tmp_path, KILLS)
