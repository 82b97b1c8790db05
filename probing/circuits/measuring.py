"""Runs circuits on whole sets of pairs, and measures how much they keep, with intervals over groups of pairs.

f = Σ (m(circuit) − m(corrupted)) / Σ (m(model) − m(corrupted)) over pairs; effects are in the same unit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.circuits.graph import Graph, Mask
from probing.circuits.running import Batch
from probing.circuits.traces import Means, TokenPairs
from probing.errors import DegenerateDesign, TooFewGroups
from probing.files.whole_files import read_sealed, sealed, write_atomically
from probing.models.splitting import SplitModel
from probing.provenance import digest
from probing.results.circuit import Estimated
from probing.statistics.bootstrap import Clusters, cluster_weights, interval, unvaried_interval
from probing.system.progress import steps_bar
from probing.use.inference import Estimate

Floats = NDArray[np.float64]
LEAST_GROUPS = 8  # in each half: t of 7 degrees of freedom is still near the normal
ALIKE = 1e-5  # shares of groups that differ by less are equal, up to rounding
_KEPT_BYTES = 3 << 30  # of traces of a set of pairs that stay in memory
Unit = tuple[int, int] | int  # an edge, or a node


def check_groups(groups: NDArray[Any], least: int, where: str) -> None:
    """Check that pairs are of enough groups.

    Raises:
        TooFewGroups: there are fewer than `least`.
    """
    count = len(np.unique(groups))
    if count < least:
        raise TooFewGroups(
            "too few pairs for a test",
            needed=f"{least} groups of pairs or more",
            found=f"{count} groups of {len(groups)} pairs, in {where}",
            next_step="give more pairs, or a column of groups with more values; without one each pair is a group, and "
            "copies of a pair are one",
        )


@dataclass(frozen=True, eq=False)
class Scale:
    """Holds the metric of n pairs at both ends, in whose difference shares are counted.

    Attributes:
        full, corrupted: `(n,)` metric of the model, and with all edges corrupted.
        groups: `(n,)` what is resampled together.
        seed: seed of the resampling.
    """

    full: Floats
    corrupted: Floats
    groups: NDArray[Any]
    seed: int = 0

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """Group of each pair, counted from 0."""
        return np.unique(self.groups, return_inverse=True)[1].reshape(-1)

    @cached_property
    def clusters(self) -> Clusters:
        """Description of the groups, each with the weight that it has in a share: the metric's fall on its pairs.
        Groups on whose pairs it does not fall are no evidence of what is kept of it, and those on which it rises count
        against the others: the variance of Σ w u / Σ w is in proportion to Σ w² / (Σ w)², whatever the signs of w.
        """
        return Clusters.of_sizes(np.bincount(self.codes, self.full - self.corrupted))

    @cached_property
    def _weights(self) -> NDArray[Any]:
        return cluster_weights(int(self.codes.max()) + 1, seed=self.seed)

    @property
    def total(self) -> float:
        """Σ (m(model) − m(corrupted))."""
        return float((self.full - self.corrupted).sum())

    def check(self, where: str) -> None:
        """Check that the metric differs between clean and corrupted prompts, and that there are enough groups.

        Raises:
            TooFewGroups: there are fewer than eight groups.
            DegenerateDesign: the metric is not finite, or does not fall, by its 95 % interval.
        """
        check_groups(self.groups, LEAST_GROUPS, where)
        difference = self.full - self.corrupted
        wrong = int((~np.isfinite(self.full) | ~np.isfinite(self.corrupted)).sum())
        if wrong:
            raise DegenerateDesign(
                "the metric is not finite",
                needed="finite logits (or numbers of `measure`) on every prompt",
                found=f"NaN or infinite on {wrong} of {len(difference)} pairs",
                where=where,
                next_step="check the weights and the number type of the model",
            )
        if not np.abs(difference).max() > 1e-9 * max(1e-30, float(np.abs(self.full).max())):
            raise self._flat("the metric is the same on clean and corrupted prompts", 0.0, 0.0, where)
        error = _error_of(difference - difference.mean(), self.codes)[0] / len(difference)
        low = difference.mean() - 2 * error
        if low <= 0:
            raise self._flat(
                "the metric does not fall from clean to corrupted prompts", difference.mean(), error, where
            )

    def _flat(self, what: str, mean: float, error: float, where: str) -> DegenerateDesign:
        return DegenerateDesign(
            what,
            needed="a mean difference above 0, by its 95 % interval: shares are counted in it",
            found=f"{mean:.3g} ± {2 * error:.2g}",
            where=where,
            next_step="choose pairs on which the model prefers the answer on the clean prompt, or another corruption",
        )

    def spread(self, changes: Floats) -> Floats:
        """Return the mean absolute change `(K,)` of the metric of single pairs, from changes `(K, n)`, as a share."""
        return np.asarray(np.abs(np.atleast_2d(changes)).sum(1) / self.total)

    def samples(self, values: Floats) -> tuple[Floats, Floats]:
        """Return f of metrics `(n,)` or `(K, n)` and its bootstrap samples `(K, resamples)`."""
        rows = np.atleast_2d(values) - self.corrupted
        count = int(self.codes.max()) + 1
        tops = np.stack([np.bincount(self.codes, row, count) for row in rows])
        bottom = np.bincount(self.codes, self.full - self.corrupted, count)
        with np.errstate(invalid="ignore", divide="ignore"):
            return tops.sum(1) / bottom.sum(), (tops @ self._weights.T) / (self._weights @ bottom)

    def share(self, values: Floats, *, level: float = 0.95) -> Estimated:
        """Return f of the metric `(n,)` of a circuit, with its interval."""
        value, samples = self.samples(values)
        return self.estimated(float(value[0]), samples[0], level=level)

    def estimated(self, value: float, samples: Floats, *, level: float = 0.95) -> Estimated:
        """Return a value with the interval of its bootstrap samples."""
        low, high = interval(samples, df=self.clusters.df, level=level)
        if high - low <= ALIKE:
            low, high = self.unvaried(value, level=level)
        return Estimated(value, low, high)

    def unvaried(self, value: float, *, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of a share that all groups agree on (`unvaried_interval`): a group that was not seen may
        have anything from 0 to 1, or down to −1 if the share is negative; from −1 to 1 if it is 0.
        """
        least, most = _range(value)
        return unvaried_interval(value, self.clusters.effective, least=least, most=most, level=level)

    def bounded(self, estimate: Estimate) -> Estimated:
        """Return an estimate with its interval over groups; where all groups agree, that of `unvaried`."""
        is_alike = 2 * estimate.error <= ALIKE
        return Estimated(estimate.value, *(self.unvaried(estimate.value) if is_alike else estimate.interval()))

    def areas(self, curves: Floats, edges: Sequence[int], most: int) -> tuple[Estimated, Estimated]:
        """Return CPR and CMD: the area under f, and between f and 1, over the share of edges, by the trapezoid rule.

        Args:
            curves: `(K, n)` metric of circuits of K sizes; 0 edges keep nothing, and are added.
            edges: `(K,)` their numbers of edges.
            most: number of all edges, which is a share of 1.

        References:
            Mueller et al. 2025, MIB: A Mechanistic Interpretability Benchmark, §3 (CPR and CMD).
        """
        value, samples = self.samples(np.concatenate([self.corrupted[None], curves]))
        order = np.argsort([0, *edges], kind="stable")
        x = np.array([0, *edges])[order] / max(1, most)
        found = []
        for f, drawn in ((value, samples), (np.abs(1.0 - value), np.abs(1.0 - samples))):
            area = float(np.trapezoid(f[order], x))
            found.append(self.estimated(area, np.asarray(np.trapezoid(drawn[order], x, axis=0))))
        return found[0], found[1]

    def estimates(self, values: Floats) -> list[Estimate]:
        """Return Σ d / Σ (m(model) − m(corrupted)) of differences d `(K, n)`, each with its error over groups."""
        total, found = self.total, []
        for row in np.atleast_2d(values):
            mean = float(row.sum() / total)
            error, by_group = _error_of((row - mean * (self.full - self.corrupted)) / total, self.codes)
            found.append(Estimate(mean, error, self.clusters.df, by_group))
        return found


def _range(value: float) -> tuple[float, float]:
    """Return the least and the largest share of a group that was not seen, if all that were seen have `value`."""
    return (0.0 if value > ALIKE else min(-1.0, value)), (0.0 if value < -ALIKE else max(1.0, value))


def _error_of(influence: Floats, codes: NDArray[np.int64]) -> tuple[float, Floats]:
    """Return the standard error of a sum of influence values over groups, and what each group adds."""
    by_group = np.bincount(codes, influence)
    by_group = by_group * np.sqrt(len(by_group) / max(1, len(by_group) - 1))
    return float(np.sqrt(np.square(by_group).sum())), by_group


class Half:
    """Runs circuits on some of the pairs.

    Attributes:
        pairs: the pairs.
        scale: the metric of each at both ends.
        passes: forward passes that were run, times pairs.
        node_effects: `(S,)` mean first-order estimates of the removals of nodes (EAP), if asked for.
    """

    def __init__(
        self,
        model: SplitModel,
        graph: Graph,
        pairs: TokenPairs,
        means: Means | None,
        seed: int,
        show: bool | None,
        *,
        is_attributed: bool = False,
    ) -> None:
        self.model, self.pairs, self._graph, self._means, self._show = model, pairs, graph, means, show
        self.is_by_mean = means is not None
        self.passes = 0.0
        self._kept: list[Batch] | None = None
        full, corrupted = np.empty((2, len(pairs)))
        effects: Floats = np.zeros(len(graph.senders))
        self._is_attributed = is_attributed
        for batch in self.batches():
            full[batch.rows], corrupted[batch.rows] = batch.ends()
            effects += 0.0 if batch.node_effects is None else batch.node_effects
        self._is_attributed = False  # batches that are run again need no derivatives
        self.node_effects = effects / len(pairs) if is_attributed else None
        self.scale = Scale(full, corrupted, pairs.groups, seed)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of pairs; they stay in memory if they are small enough."""
        if self._kept is not None:
            yield from self._kept
            return
        made: list[Batch] | None = []
        for rows in self.pairs.batches():
            batch = Batch(self.model, self.pairs, rows, self._means, self._graph, is_attributed=self._is_attributed)
            self.passes += batch.passes * len(rows)
            yield batch
            if made is not None:
                made.append(batch)
                size = batch.clean.writes.numel() * batch.clean.writes.element_size() * 2
                made = made if size * len(self.pairs) / len(rows) < _KEPT_BYTES else None
        self._kept = made

    def _each(self, count: int, run: Callable[[Batch], Floats], title: str = "") -> Floats:
        found = np.empty((count, len(self.pairs)))
        with steps_bar(title, "pairs", len(self.pairs), self._show if title else False) as bar:
            done = 0
            for batch in self.batches():
                before = batch.passes
                found[:, batch.rows] = run(batch)
                self.passes += (batch.passes - before) * len(batch.rows)
                done += len(batch.rows)
                bar(done, len(self.pairs))
        return found

    def metrics(self, masks: Sequence[Mask], title: str = "") -> Floats:
        """Return the metric of circuits on every pair, `(K, n)`."""
        return self._each(len(masks), lambda batch: np.stack([batch.run(mask) for mask in masks]), title)

    def changed(self, mask: Mask, others: Sequence[Mask]) -> Floats:
        """Return the metric of circuits that differ little from `mask`, `(K, n)`."""
        title = "one part less" if len(others) > 1 else ""
        return self._each(len(others), lambda batch: batch.changed(mask, others), title)

    def removals(
        self, units: Sequence[Unit], *, folder: Path | None = None, title: str = "", shifts: Any = None
    ) -> Floats:
        """Return how much the metric of the whole model falls without each edge or node, `(K, n)`.

        Args:
            units: edges, or nodes.
            folder: where results of each batch are committed, so that a run that was stopped continues.
            title: title of the progress that is shown; "": none.
            shifts: function that returns for a batch what is added to what senders wrote, instead of the corruption.
        """
        total, count = len(units) * len(self.pairs), 0

        def run(batch: Batch) -> Floats:
            def advance(some: int) -> None:
                nonlocal count
                count += some * len(batch.rows)
                bar(count, total)

            return _committed(folder, self, batch, units, lambda: _removals(batch, units, shifts, advance))

        with steps_bar(title, "measurements", total, self._show if title else False) as bar:
            return self._each(len(units), run)

    def attributed(self, *, steps: int, by_reader: bool, title: str = "") -> Floats:
        """Return mean estimates of `removals` from gradients over pairs: `(S, R)`, or `(S,)` if not `by_reader`."""
        total: list[Floats] = []

        def run(batch: Batch) -> Floats:
            total.append(batch.attributed(steps=steps, by_reader=by_reader))
            return np.empty((0, len(batch.rows)))

        self._each(0, run, title)
        return np.asarray(sum(total)) / len(self.pairs)


def _removals(batch: Batch, units: Sequence[Unit], shifts: Any, advance: Callable[[int], None]) -> Floats:
    given = None if shifts is None else shifts(batch)
    if units and isinstance(units[0], tuple):
        return batch.removals([unit for unit in units if isinstance(unit, tuple)], shifts=given, advance=advance)
    return batch.node_removals([unit for unit in units if isinstance(unit, int)], shifts=given, advance=advance)


def _committed(
    folder: Path | None, half: Half, batch: Batch, units: Sequence[Unit], compute: Callable[[], Floats]
) -> Floats:
    """Return effects that were committed to a folder, or compute and commit them."""
    if folder is None:
        return compute()
    prompts = [(half.pairs.clean[k], half.pairs.corrupted[k], half.pairs.answers[k].tolist()) for k in batch.rows]
    key = digest(
        [
            "with passes",
            dict(half.model.identity),
            [[*map(int, a)] for p in prompts for a in p],
            list(units),
            half.is_by_mean,
        ]
    )
    path = folder / "units" / f"effects-{key[:16]}.json"
    known = read_sealed(path)
    if known is not None:
        read = json.loads(known)
        batch.passes += read["passes"]  # what it cost, in whichever run
        return np.array(read["effects"])
    before = batch.passes
    found = compute()
    values = {"effects": found.tolist(), "passes": batch.passes - before}
    write_atomically(path, sealed(json.dumps(values) + "\n"))
    return found
