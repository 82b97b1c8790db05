"""`LinearProbe.fit_many` against a loop of scikit-learn over shapes of problems, both sides in one run."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from probing.probes._rows import moments, standardise
from probing.probes.linear import LinearProbe
from probing.seeds import generator

# Rows, features, label sets, classes, and the least wall ratio aimed at.
TABLE = {
    (4000, 576, 6, 2): 45,
    (1000, 4096, 6, 2): 22,
    (4000, 4096, 6, 2): 12,
    (20000, 4096, 2, 2): 5,
    (2000, 4096, 1, 2): 3,
    (4000, 4096, 1, 2): 2,
    (8000, 8192, 6, 2): 8,
    (64000, 1024, 6, 17): 15,
}
GRID = tuple(itertools.product((500, 1000, 4000, 20000), (576, 2048, 4096, 8192), (1, 2, 6), (2, 17)))
Shape = tuple[int, int, int, int]


def made_up(n: int, width: int, sets: int, classes: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return rows `(n, width)`: 64 common directions with standard deviations 8 … 0.5, noise 0.3 and three outlier
    coordinates × 60; and label sets: the first is linear in the directions plus noise, the others are random.
    """
    random = generator(0, "shapes", n, width)
    directions = random.standard_normal((min(64, width), width), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    factors = random.standard_normal((n, len(directions)), np.float32)
    X = (factors * np.linspace(8, 0.5, len(directions), dtype=np.float32)) @ directions
    X += 0.3 * random.standard_normal((n, width), np.float32)
    X[:, random.choice(width, 3, replace=False)] *= 60
    scores = factors @ random.standard_normal((len(directions), classes)) / len(directions) ** 0.5
    linear = np.argmax(2 * scores + random.gumbel(size=(n, classes)), axis=1)
    return X, [linear, *(random.integers(0, classes, n) for _ in range(sets - 1))]


def timed(work: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What `work` gives, and its seconds: wall, processor."""
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, np.array([time.perf_counter() - wall, time.process_time() - processor])


def objective(Z: np.ndarray, codes: np.ndarray, W: np.ndarray, b: np.ndarray) -> float:
    """Mean log loss + ½ λ‖W‖² in float64, for centred weights `(D, K)`; two classes count ‖w₁ - w₀‖² as scikit-learn
    does.
    """
    total = 0.0
    for low in range(0, len(Z), 4096):
        logits = torch.from_numpy(Z[low : low + 4096].astype(np.float64) @ W + b)
        total += float(
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(codes[low : low + 4096]), reduction="sum")
        )
    return (total + 0.5 * (2 if W.shape[1] == 2 else 1) * float((W**2).sum())) / len(Z)


def weights(fit: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's weights in our form: one column a class."""
    if len(fit.classes_) > 2:
        return fit.coef_.T.astype(np.float64), fit.intercept_.astype(np.float64)
    return np.stack([-fit.coef_[0] / 2, fit.coef_[0] / 2], 1).astype(np.float64), np.array(
        [-0.5, 0.5]
    ) * fit.intercept_[0]


def to_our_objective(Z: np.ndarray, problems: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> float | None:
    """Return the wall seconds that scikit-learn needs to come within 1e-4 of our objective in every `(labels, codes,
    our objective)`, at the loosest tolerance that does, or None if none does. At its default tolerance it stops
    earlier on wide rows.
    """
    total = 0.0
    for y, codes, ours in problems:
        for tolerance in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            estimator = LogisticRegression(C=1.0, max_iter=10000, tol=tolerance)
            fit, seconds = timed(lambda estimator=estimator, y=y: estimator.fit(Z, y))
            if objective(Z, codes, *weights(fit)) <= ours * (1 + 1e-4):
                total += float(seconds[0])
                break
        else:
            return None
    return total


def one_shape(shape: Shape, pairs: int, equal: bool = False) -> dict[str, Any]:
    """Measure interleaved pairs of fits of one shape; with `equal`, scikit-learn's time to our objective as well."""
    X, targets = made_up(*shape)
    Z = standardise(X, *moments(X))
    seconds, excess, converged = [], -np.inf, True
    problems: list[tuple[np.ndarray, np.ndarray, float]] = []
    for pair in range(pairs):
        sides = [
            lambda: [row[0] for row in LinearProbe().fit_many(X, targets, [0])],
            lambda: [LogisticRegression(C=1.0, max_iter=1000).fit(Z, y) for y in targets],
        ]
        found: dict[int, Any] = {side: timed(sides[side]) for side in ((0, 1) if pair % 2 == 0 else (1, 0))}
        seconds.append((found[0][1], found[1][1]))
        if pair:
            continue
        for y, ours, theirs in zip(targets, found[0][0], found[1][0], strict=True):
            codes = np.searchsorted(ours.classes_, y)
            best = objective(Z, codes, *weights(theirs))
            reached = objective(Z, codes, ours.coef_, ours.intercept_)
            problems.append((y, codes, reached))
            excess = max(excess, reached / best - 1)
            converged = converged and ours.converged_
    ratios = np.array(seconds)[:, 1] / np.array(seconds)[:, 0]
    return {
        "shape": shape,
        "seconds": [[median(one[side][clock] for one in seconds) for clock in (0, 1)] for side in (0, 1)],
        "wall": [float(part) for part in (np.median(ratios[:, 0]), ratios[:, 0].min(), ratios[:, 0].max())],
        "processor": [float(part) for part in (np.median(ratios[:, 1]), ratios[:, 1].min(), ratios[:, 1].max())],
        "excess": float(excess),
        "converged": bool(converged),
        "equal": to_our_objective(Z, problems) if equal else None,
    }


def shapes(options: argparse.Namespace) -> None:
    """Print a line a shape; with `--kept`, finished shapes are kept there as JSON lines and not measured again."""
    wanted: Sequence[Shape] = tuple(TABLE) + GRID
    if options.shapes not in ("all", "table"):
        wanted = [tuple(map(int, one.split("x"))) for one in options.shapes.split(",")]  # type: ignore[misc]
    elif options.shapes == "table":
        wanted = tuple(TABLE)
    kept: dict[Shape, dict[str, Any]] = {}
    if options.kept and options.kept.exists():
        lines = (json.loads(line) for line in options.kept.read_text().splitlines())
        kept = {tuple(line["shape"]): line for line in lines}
    LinearProbe().fit(*_small())  # libraries are loaded, kernels chosen
    print("rows x features, sets, classes: ours, scikit-learn; ratio of wall and processor seconds (least, most);")
    print("worst objective over scikit-learn's, less 1 (at most 1e-4); aim")
    for shape in dict.fromkeys(wanted):
        if 4 * shape[0] * shape[1] * 5 > options.memory * 2**30:
            print(f"{shape}: left out, it needs more than --memory {options.memory} GiB")
            continue
        if shape not in kept:
            kept[shape] = one_shape(shape, options.pairs, options.equal)
            if options.kept:
                with options.kept.open("a") as file:
                    file.write(json.dumps(kept[shape]) + "\n")
        one = kept[shape]
        (ours, _), (theirs, _) = one["seconds"]
        spread = "; ".join("{:.1f} ({:.1f}, {:.1f})".format(*one[clock]) for clock in ("wall", "processor"))
        end = f"{one['excess']:+.0e}" + ("" if one["converged"] else ", not converged")
        if one.get("equal"):
            end += f"; {one['equal'] / ours:.1f} at our objective"
        aim = f"aim {TABLE[shape]}" if shape in TABLE else "aim 1"
        print(
            f"{shape[0]} x {shape[1]}, {shape[2]}, {shape[3]}: {ours:.2f} s, {theirs:.2f} s; {spread}; {end}; {aim}",
            flush=True,
        )
    slow = [shape for shape, one in kept.items() if one["wall"][0] < 1]
    print(f"shapes slower than scikit-learn: {slow or 'none'}")


def _small() -> tuple[np.ndarray, np.ndarray]:
    X, (y,) = made_up(600, 600, 1, 2)
    return X, y
