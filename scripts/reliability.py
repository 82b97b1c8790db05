"""The reliability figures F1 to F13 in one table; docs/reliability.md says what each means.

    python scripts/reliability.py [--short] [--only F1 F5 …] [--folder DIR]

Beside the store stands what the same kills, power cuts, full disks and flipped bits do to a careless writer, which
appends to one HDF5 file in place: a figure counts only if that fails. Exit status 1 if any figure fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reliability.figures import FIGURES, run
from tests.reliability.tally import KINDS, Tally

COLUMNS = "{:<4}  {:<62}  {:>4}  {:>5}  {:>7}  {:>5}  {:<32}  {:<7}  {:>6}"


def line(tally: Tally, seconds: float) -> str:
    """One row of the table."""
    if tally.unrun:
        return COLUMNS.format(tally.figure, tally.unrun, *"----", "", "not run", "")
    done = ", ".join([f"{count:,} {what}" for what, count in tally.done.items()] + tally.notes)
    naive = ", ".join(f"{count} {kind}" for kind, count in sorted((tally.naive or {}).items()))
    counts = [tally.count(kind) for kind in KINDS]
    outcome = "pass" if tally.passed else "FAIL"
    return COLUMNS.format(
        tally.figure, done, *counts, naive or ("0" if tally.naive is not None else ""), outcome, f"{seconds:.0f} s"
    )


def main() -> int:
    """Run, print, and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small counts: under a minute")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="F", help="figures to run")
    parser.add_argument("--folder", type=Path, help="where files are made; default: the folder for temporary files")
    options = parser.parse_args()
    print(COLUMNS.format("", "done", "lost", "wrong", "crashed", "hung", "a careless writer", "", ""))
    failed = False
    for name in options.only:
        began = time.perf_counter()
        tally = run(name, short=options.short, base=options.folder)
        print(line(tally, time.perf_counter() - began), flush=True)
        for kind, what in tally.problems[:10]:
            print(f"      {kind}: {what}", flush=True)
        if len(tally.problems) > 10:
            print(f"      and {len(tally.problems) - 10} more")
        failed |= not (tally.passed or (tally.unrun and options.short))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
