"""Many wide sites within a limit of memory: `probing train` with `--max-memory-mib` against the same without.

    python scripts/bench_sites.py --to DIR [--sites 33] [--rows 20000] [--width 4096] [--limit 2000] [--pairs 1]

States are drawn at random in 64 directions, one of which carries a label of two classes, and kept as float16 in DIR,
where a second run finds them (5.4 GB, and as much while the store is made). Both sides run as whole processes, in turn,
with their tables written; peaks are the largest resident sizes. Aim: 33 × 20,000 × 4,096 within 2,000 MiB, in at most
1.5 × the time without a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import probing as pb

DIRECTIONS = 64


def make_store(to: Path, sites: int, rows: int, width: int) -> None:
    """Write corpus and store, unless they lie there."""
    if (to / "store").exists():
        return
    arrays = to / "arrays"
    arrays.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    factors = random.standard_normal((rows, DIRECTIONS), np.float32)
    label = factors[:, 0] + 0.5 * random.logistic(size=rows) > 0
    with (to / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            split = "train" if i < 0.8 * rows else "dev" if i < 0.9 * rows else "test"
            text = f"statement number {i} about {random.integers(1000)}"
            row = {"id": f"s{i}", "text": text, "label": "yes" if label[i] else "no", "split": split}
            file.write(json.dumps(row) + "\n")
    for site in range(sites):
        draws = np.random.default_rng(site + 1)
        directions = draws.standard_normal((DIRECTIONS, width), np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        states = (factors * np.linspace(8, 0.5, DIRECTIONS, dtype=np.float32)) @ directions
        states += 0.3 * draws.standard_normal((rows, width), np.float32)
        np.save(arrays / f"resid.{site}.npy", states.astype(np.float16))
    pb.import_states(arrays, pb.Corpus.read(to / "corpus.jsonl"), to=to / "store", rows="sentence", dtype="float16")
    shutil.rmtree(arrays)


def run(to: Path, limit: int | None) -> tuple[float, float, float]:
    """Return seconds, processor seconds and the peak in MiB of one `probing train`."""
    results = to / f"results-{limit}"
    shutil.rmtree(results, ignore_errors=True)
    command = [sys.executable, "-m", "probing", "train", str(to / "store"), "--corpus", str(to / "corpus.jsonl")]
    command += ["--task", "column:label", "--to", str(results), "--quiet"]
    command += [] if limit is None else ["--max-memory-mib", str(limit)]
    begun = time.perf_counter()
    _, status, used = os.wait4(subprocess.Popen(command, stdout=subprocess.DEVNULL).pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} stopped with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    """Compare both, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    for name, value in (("sites", 33), ("rows", 20_000), ("width", 4096), ("limit", 2000), ("pairs", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    # In a process of its own: what this one has ever held would count for those that it starts.
    made = get_context("spawn").Process(target=make_store, args=(given.to, given.sites, given.rows, given.width))
    made.start()
    made.join()
    found = np.array([[run(given.to, limit) for limit in (given.limit, None)] for _ in range(given.pairs)])
    limited, free = np.median(found, axis=0)
    size = given.sites * given.rows * given.width * 2 / 2**20
    print(f"{given.sites} sites × {given.rows:,} × {given.width:,} float16, {size:,.0f} MiB, {given.pairs} pairs")
    print(f"limit {given.limit:,} MiB: peak {limited[2]:,.0f} MiB, {limited[0]:.0f} s, {limited[1]:.0f} s of processor")
    print(f"no limit: peak {free[2]:,.0f} MiB, {free[0]:.0f} s, {free[1]:.0f} s of processor")
    print(f"ratio (aim 1.5): {limited[0] / free[0]:.2f} wall, {limited[1] / free[1]:.2f} processor")


if __name__ == "__main__":
    main()
