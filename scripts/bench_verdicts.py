"""How often verdicts and claims of decodability are wrong, on planted truths: realised rates with binomial intervals.

    python scripts/bench_verdicts.py [use] [corrections] [gate] [train] [plantbench] [--short] [--seeds N]

Without a part named, all of them. `use`: false *used* of properties that nobody reads, by classes, rows and documents,
and the power to find one. `corrections`: standard errors for few and uneven groups compared. `gate`: whether what is
readable passes, and what is not does not. `train`: claims of `probing train` on labels at random, and the coverage of
intervals of selectivity. `plantbench`: the held-out configuration, all tiers (--short: a development seed of tier 0);
its score card is `probing plantbench`. In full some hours on one core; --short minutes.
A line with FAIL is a figure that is not reached; `corrections` and `train` print tables and judge nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from scipy.stats import beta, binom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from probing.errors import DegenerateDesign, TooFewGroups
from probing.use.effects import UseOptions
from probing.use.measure import measure_property
from probing.verdicts.judging import judge
from scripts._bench_use import Planted, planted

QUICK = UseOptions(curve=False, details=False, null=False)
LEVEL = 0.05
SHORT, FULL = 20, 200


def words(p: Planted, seeds: int) -> Counter[str]:
    """Coarse words of the one place, over seeds; `refused` where rows cannot be matched."""
    found: Counter[str] = Counter()
    for seed in range(seeds):
        instrument, prop = planted(p, seed)
        try:
            found[judge([measure_property(instrument, prop, options=QUICK)])[0].word.coarse] += 1
        except (DegenerateDesign, TooFewGroups):
            found["refused"] += 1
    return found


def within(k: int, n: int, level: float = LEVEL) -> bool:
    """Whether k of n errors lie inside the binomial 95 % interval of the level, or under it."""
    return k <= int(binom.ppf(0.975, n, level))


def interval(k: int, n: int) -> str:
    """Rate with its Clopper-Pearson interval."""
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return f"{k / n:.3f} [{low:.3f}, {high:.3f}]"


def nulls() -> Iterator[Planted]:
    """Properties that nobody reads."""
    for k in (2, 3, 4, 6, 17):
        for zipf in (False, True):
            for n in (1500, 3000):
                yield Planted(k=k, zipf=zipf, n=n)
    for groups in ("fours", "documents", "zipf", "treebank"):
        for k in (2, 4):
            for n in (1500, 3000):
                yield Planted(k=k, n=n, groups=groups)


def use(seeds: int, short: bool) -> bool:
    """False *used* by classes, rows and groups; power; false *no material use* above ε."""
    good = True
    print(
        f"{'classes':>7} {'shares':6} {'rows':>5} {'groups':9} {'false used':>22} {'no material':>11} {'abstains':>8}"
    )
    for p in nulls():
        if short and (p.n > 1500 or p.k in (3, 6)):
            continue
        found = words(p, seeds)
        passed = within(found["used"], seeds)
        good &= passed
        rest = seeds - found["used"] - found["decodable only"]
        print(
            f"{p.k:7} {'zipf' if p.zipf else 'even':6} {p.n:5} {p.groups:9} {interval(found['used'], seeds):>22} "
            f"{found['decodable only'] / seeds:11.3f} {rest / seeds:8.3f}{'' if passed else '   FAIL'}",
            flush=True,
        )
    print(f"\n{'effect, SD':>10} {'rows':>5} {'outputs':>7} {'used':>22} {'no material use':>22}")
    for effect, n, answers in product((0.08, 0.1, 0.125, 0.16, 0.2), (1500, 3000, 6000), (1, 3)):
        if short and (n != 1500 or answers == 3):
            continue
        found = words(Planted(effect=effect, n=n, answers=answers), seeds)
        passed = effect < 0.125 or within(found["decodable only"], seeds)
        good &= passed
        print(
            f"{effect:10.3f} {n:5} {answers:7} {interval(found['used'], seeds):>22} "
            f"{interval(found['decodable only'], seeds):>22}{'' if passed else '   FAIL'}",
            flush=True,
        )
    return good


def corrections(seeds: int, short: bool) -> None:
    """The table of docs/use.md."""
    from scripts._bench_corrections import table

    for line in table(seeds):
        print(line, flush=True)


def gate(seeds: int, short: bool) -> bool:
    """Power where accuracy is clear of the prior, false passes, and no refusal beside a clear accuracy."""
    from scripts import _bench_gate

    good = True
    for row in _bench_gate.run(short=short):
        low = int(binom.ppf(0.025, row.clear, 0.95))  # a power of .95 or more, up to chance
        passed = within(row.passed, row.seeds) if row.what == "false passes" else row.clear_passed >= low
        if not passed or row.contradictions:
            good = False
            print(f"FAIL: {row}", flush=True)
    return good


def train(seeds: int, short: bool) -> None:
    """See _bench_train.py."""
    from scripts import _bench_train

    _bench_train.run(short=short)


def plantbench(seeds: int, short: bool) -> bool:
    """Precision and recall of the protocol, false *no material use*, and false *used* by case."""
    import probing as pb
    from probing.plantbench.knobs import held_out_version
    from probing.plantbench.scorecard import run

    if short:
        card = run(tiers=[0], seeds=1, rules=["protocol"], progress=False)
    else:
        card = run(tiers=[0, 1, 2], heldout=held_out_version(pb.__version__), rules=["protocol"], progress=False)
    print(card.table(), card.case_tables(), sep="\n", flush=True)
    found = card.rates()["protocol"]
    figures = {
        "precision of used >= .95": (found.precision_used or 0) >= 0.95,
        "recall of used >= .90": (found.recall_used or 0) >= 0.90,
        "precision of no material use >= .95": (found.precision_unused or 0) >= 0.95,
        "false no material use <= .05": within(found.material_unused, found.material),
        "false used, by case": all(
            within(row["protocol"].false_used, row["protocol"].unused)
            for row in card.by(lambda s: f"{s.tier}.{s.number}").values()
        ),
    }
    for figure, passed in figures.items():
        if not passed:
            print(f"FAIL: {figure}", flush=True)
    return all(figures.values())


PARTS: dict[str, Callable[[int, bool], bool | None]] = {
    "use": use,
    "corrections": corrections,
    "gate": gate,
    "train": train,
    "plantbench": plantbench,
}


def main() -> int:
    """Measure, print, and fail where a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--short", action="store_true", help="few seeds and designs")
    parser.add_argument(
        "--seeds", type=int, default=None, help=f"of use and corrections (default {FULL}, short {SHORT})"
    )
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: one of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    seeds, good = given.seeds or (SHORT if given.short else FULL), True
    for name in given.parts or PARTS:
        print(f"== {name} ({seeds} seeds)" if name in ("use", "corrections") else f"== {name}", flush=True)
        begin, passed = time.monotonic(), PARTS[name](seeds, given.short)
        good &= passed is not False
        said = {True: "reached", False: "NOT REACHED", None: "no figure is judged here, read the table"}[passed]
        print(f"{name}: {said}, {time.monotonic() - begin:.0f} s\n", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
