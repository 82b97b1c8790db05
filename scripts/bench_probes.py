#!/usr/bin/env python
"""Probes against what they are compared with, both sides in one run. One benchmark a subcommand:

    python scripts/bench_probes.py linear   --states DIR --conllu DIR --model DIR [--pairs 1] [--sites 0,3,6] [--sets 6]
    python scripts/bench_probes.py prefixes --states DIR --conllu DIR --model DIR [--sites 3]
    python scripts/bench_probes.py mlp      --states DIR --conllu DIR --model DIR [--sites 3] [--seeds 3] [--hidden 64]
    python scripts/bench_probes.py --shapes [table | all | 4000x4096x6x2,…] [--pairs 1] [--kept FILE] [--memory 8]
    python scripts/bench_probes.py memory   [--budget 16777216] [--times 20] [--width 384]

`--shapes`: `fit_many` against a loop of `LogisticRegression` over shapes ROWSxFEATURESxSETSxCLASSES: the table's, or
the whole grid's besides; none may be slower (`--equal`: scikit-learn's time to our objective, too). `linear`: the
sweep of UPOS and word-type control draws by `LinearProbe` against a loop of scikit-learn's `LogisticRegression`;
figures to reach: 20 times as fast at an objective ratio of at most 1.0001. `prefixes`: fits after each of 11 growing
prefixes against the plain fit on all rows; at most 3 times its cost. `mlp`: stacked networks against training one by
one in torch; 4 times as fast, dev losses within the seeds' spread. `memory`: growth of the peak resident size by
training on a store `--times` the budget; at most the budget. DIR of `--states` keeps word-mean states as .npy files,
made on the first run from a treebank folder and a model folder. Times are wall seconds and, beside them, seconds of
the processor, which a shared machine disturbs less (with `--threads 1`, hardly).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _bench_mlp import stacked_against_alone
from _bench_shapes import shapes, timed
from _bench_states import SPLITS, label_sets, made_up_labels, made_up_store, objective, prepared, resident
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from probing.contracts.probe import RowBlocks
from probing.probes import _softmax_parts
from probing.probes._rows import moments, standardise
from probing.probes.linear import LinearProbe
from probing.probes.ridge import RidgeProbe
from probing.states.store import Store

SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
COUNTED = {"products": 0.0, "evaluations": 0}  # GFLOP of products, gradients of one label set


def count_evaluations() -> None:
    """Count the products of the solver from here on."""
    gradient, logits = _softmax_parts.Problems.gradient, _softmax_parts.Problems.logits

    def gflop(self: Any) -> float:
        return 2e-9 * self.n * self.width * self.k * len(self)

    def counted_gradient(self: Any, Z: Any, change: Any = None) -> Any:
        COUNTED["products"] += gflop(self) * (1 if change is None else 2)  # of a step: its direction too
        COUNTED["evaluations"] += len(self)
        return gradient(self, Z, change)

    def counted_logits(self: Any, W: Any, **options: bool) -> Any:
        COUNTED["products"] += gflop(self)
        return logits(self, W, **options)

    _softmax_parts.Problems.gradient, _softmax_parts.Problems.logits = counted_gradient, counted_logits


def linear(options: argparse.Namespace) -> None:
    """The batched sweep against scikit-learn one by one."""
    prepared(options.states, options.conllu, options.model)
    targets = label_sets(options.states, 5)[: options.sets]
    count_evaluations()
    totals, facts = [], []
    for pair in range(options.pairs):
        sides = np.zeros((2, 2))
        for site in map(int, options.sites.split(",")):
            seconds, found = one_site(options.states, site, targets, ours_first=pair % 2 == 0)
            sides, facts = sides + seconds, facts + found
            ratio = seconds[1] / seconds[0]
            print(f"resid.{site}: batched {seconds[0][0]:.2f} s (processor {seconds[0][1]:.2f}), scikit-learn", end=" ")
            print(f"{seconds[1][0]:.2f} s ({seconds[1][1]:.2f}); {ratio[0]:.1f} x wall, {ratio[1]:.1f} x processor")
            for number, fact in enumerate(found):
                print("   set {}: objective {:.6f} / {:.6f}   accuracy {:.4f} / {:.4f}".format(number, *fact))
        totals.append(sides)
    ratios = [sides[1] / sides[0] for sides in totals]
    for place, name in enumerate(("wall", "processor")):
        print(f"{name} ratio, aim 20: median {median(ratio[place] for ratio in ratios):.1f} x")
    print(f"worst objective ratio, at most 1.0001: {max(fact[0] / fact[1] for fact in facts):.6f}")
    print(f"largest accuracy difference, at most 0.0020: {max(abs(fact[2] - fact[3]) for fact in facts):.4f}")
    if (options.states / "forward_seconds.npy").exists():
        forward = float(np.load(options.states / "forward_seconds.npy"))
        print(f"one sweep / forward passes, aim 1.0: {totals[0][0][0] / forward:.2f} of {forward:.1f} s when made")
    spent = sum(sides[0][0] for sides in totals)
    print(f"{COUNTED['evaluations'] / len(facts):.1f} gradients a problem, {COUNTED['products']:.0f} GFLOP of", end=" ")
    print(f"products, {COUNTED['products'] / spent:.0f} GFLOP/s of the batched side's wall time")


def one_site(states: Path, site: int, targets: list[Any], *, ours_first: bool) -> tuple[np.ndarray, list[Any]]:
    """Seconds of both sides; for each label set both objectives and both test accuracies."""
    X, X_test = (np.load(states / f"{split}.{site}.npy") for split in SPLITS)
    mean, scale = moments(X)
    Z, Z_test = standardise(X, mean, scale), standardise(X_test, mean, scale)
    sides = [
        lambda: [row[0] for row in LinearProbe().fit_many(X, [y for y, _ in targets], [0])],
        lambda: [LogisticRegression(C=1.0, max_iter=1000).fit(Z, y) for y, _ in targets],
    ]
    found: dict[int, Any] = {side: timed(sides[side]) for side in ((0, 1) if ours_first else (1, 0))}
    facts = []
    for (y, y_test), ours, theirs in zip(targets, found[0][0], found[1][0], strict=True):
        codes = np.searchsorted(ours.classes_, y)
        both = ((ours.coef_, ours.intercept_), (theirs.coef_.T, theirs.intercept_))
        scores = (float((ours.predict(X_test) == y_test).mean()), float((theirs.predict(Z_test) == y_test).mean()))
        facts.append((*(objective(Z, codes, *weights) for weights in both), *scores))
    return np.stack([found[0][1], found[1][1]]), facts


def prefixes(options: argparse.Namespace) -> None:
    """Fits after growing prefixes of shuffled rows against the plain fit."""
    prepared(options.states, options.conllu, options.model)
    for site in map(int, options.sites.split(",")):
        X = np.load(options.states / f"train.{site}.npy")
        order = np.random.default_rng(0).permutation(len(X))
        X, targets = X[order], [y[order] for y, _ in label_sets(options.states, 5)[: options.sets]]
        ends = [max(2, round(share * len(X))) for share in SHARES]
        _, plain = timed(lambda X=X, targets=targets: LinearProbe().fit_many(X, targets, [0]))
        _, all_of_them = timed(
            lambda X=X, targets=targets, ends=ends: LinearProbe().fit_prefixes(X, targets, ends, [0])
        )
        ratio = all_of_them / plain
        print(f"resid.{site}: {len(ends)} prefixes {all_of_them[0]:.2f} s, plain {plain[0]:.2f} s;", end=" ")
        print(f"aim 3: {ratio[0]:.2f} x wall, {ratio[1]:.2f} x processor")


def mlp(options: argparse.Namespace) -> None:
    """Stacked networks against one by one."""
    prepared(options.states, options.conllu, options.model)
    stacked_against_alone(options)


def memory(options: argparse.Namespace) -> None:
    """Peak of a fresh process that trains on a store of `times` the budget."""
    with tempfile.TemporaryDirectory() as folder:
        made_up_store(Path(folder) / "s", options.budget * options.times, options.width)
        command = [sys.executable, __file__, "child", "--folder", f"{folder}/s", "--budget", str(options.budget)]
        for name in ("linear", "ridge"):
            subprocess.run([*command, "--probe", name], check=True)


def child(options: argparse.Namespace) -> None:
    """Train on the store's rows and say by how much the peak grew."""
    store = Store.open(options.folder)
    warm_up = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    LinearProbe().fit(warm_up, np.arange(20_000) % 3)  # libraries and their buffers, which no budget covers
    y = made_up_labels(store, "resid.0")
    X = RowBlocks(store, "resid.0", budget=options.budget)
    before = resident("VmRSS")
    probe = RidgeProbe() if options.probe == "ridge" else LinearProbe()
    (fit,), seconds = timed(lambda: probe.fit_many(X, [y], [0])[0])
    size, grown = X.shape[0] * X.shape[1] * 4, resident("VmHWM") - before
    print(f"{options.probe}: {size / 2**20:.0f} MiB of states, {size / options.budget:.1f} x the budget;", end=" ")
    print(f"peak {grown / 2**20:.1f} MiB over what was there before, {grown / options.budget:.2f} of it;", end=" ")
    print(f"{seconds[0]:.1f} s; score {float((fit.predict(X.head(5000)).round() == y[:5000]).mean()):.3f}")


BENCHMARKS = {"linear": linear, "prefixes": prefixes, "mlp": mlp, "memory": memory, "child": child, "shapes": shapes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS, nargs="?", default="shapes")
    parser.add_argument("--shapes", nargs="?", const="table", default="table")
    parser.add_argument("--kept", type=Path, help="JSON lines of shapes that are done, which are not done again")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB; larger shapes are left out")
    parser.add_argument("--equal", action="store_true", help="scikit-learn's time to our objective as well")
    parser.add_argument("--states", type=Path)
    parser.add_argument("--conllu", type=Path, default=Path())
    parser.add_argument("--model", default="")
    parser.add_argument("--sites", default="0,1,2,3,4,5,6")
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=int, default=2**24)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--probe", default="linear", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        BENCHMARKS[options.benchmark](options)


if __name__ == "__main__":
    main()
