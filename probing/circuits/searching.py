"""Ranks edges or nodes on pairs of discovery, and chooses a circuit from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.circuits.checking import Options
from probing.circuits.graph import Graph, Mask, ten_sizes
from probing.circuits.measuring import LEAST_GROUPS, Half, Unit, check_groups
from probing.circuits.running import Batch
from probing.circuits.screening import agreement, left_out
from probing.circuits.traces import Means, TokenPairs
from probing.errors import BadParameter, DegenerateDesign
from probing.models.splitting import SplitModel
from probing.seeds import child_seed, generator

Floats = NDArray[np.float64]
SAMPLE = 200  # edges on which a screen is compared with exact patching
_HALVINGS = 5
_ROUNDS, _MOST_LOST = 3, 4


class Search:
    """Finds a circuit on the pairs of discovery.

    Attributes:
        model, pairs, options: what was given.
        graph: senders and readers of the model.
        discovery, test: both halves of the pairs.
        candidates: `(S, R)` edges that a circuit is chosen from.
        node_scores: `(S,)` estimated effect of every node (EAP), on discovery.
        notes: facts that were noted on the way, such as rank correlations.
        both_signs: mean size of effects on single pairs of discovery, of 2 δ or more, of the edges or nodes whose mean
            effect is below δ and a quarter of it.
        scores: effect of every edge `(S, R)` or node `(S,)` on discovery, as a share; 0 where it was not measured.
    """

    candidates: Mask
    scores: Floats
    node_scores: Floats

    def __init__(
        self, model: SplitModel, pairs: TokenPairs, options: Options, *, folder: Path | None, progress: bool | None
    ) -> None:
        """Check model and pairs, divide the groups of pairs, and run all prompts once.

        Raises:
            TooFewGroups, DegenerateDesign, UnsupportedModel: see `circuit`.
        """
        self.model, self.pairs, self.options = model, pairs, options
        self.folder, self.progress = folder, progress
        self.graph = Graph(model.layers, is_parallel=model.is_parallel)
        self._means: Means | None = None
        self.notes: dict[str, Any] = {}
        self.both_signs: dict[Unit, float] = {}
        for name, (mine, theirs) in pairs.values.items():
            if all(a == b for a, b in zip(mine, theirs, strict=True)):
                raise DegenerateDesign(
                    f"the property {name!r} is the same in both prompts of every pair",
                    needed=f"pairs that differ in it: columns {name} and corrupted_{name}",
                    found="none",
                )
        first, second = self._halves()
        self.discovery = self.half(pairs.chosen(first), options.by, is_attributed=True)
        self.notes["passes_per_pair_nodes_eap"] = self.discovery.passes / len(self.discovery.pairs)
        self.discovery.scale.check("discovery")
        assert self.discovery.node_effects is not None  # asked for
        self.node_scores = self.discovery.node_effects / self._total
        self.test = self.half(pairs.chosen(second), options.by)
        self.test.scale.check("test")
        self.notes["exchanges"] = self.test.pairs.exchanges
        self.candidates = self.graph.allowed

    def _halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return indices of the pairs of discovery and of test: half of the groups each, at random.

        Raises:
            TooFewGroups: there are too few groups.
        """
        check_groups(self.pairs.groups, 2 * LEAST_GROUPS, "the pairs: half of the groups are for discovery")
        names, codes = np.unique(self.pairs.groups, return_inverse=True)
        order = generator(self.options.seed, "circuit halves").permutation(len(names))
        is_first = np.isin(codes.reshape(-1), order[: len(names) // 2])
        return np.flatnonzero(is_first), np.flatnonzero(~is_first)

    def half(self, pairs: TokenPairs, by: str, *, is_attributed: bool = False) -> Half:
        """Return pairs, run once, with a corruption: `corrupted` or `mean`; see `Half`."""
        means, seed = self.means if by == "mean" else None, child_seed(self.options.seed, "circuit")
        return Half(self.model, self.graph, pairs, means, seed, self.progress, is_attributed=is_attributed)

    @property
    def means(self) -> Means:
        """Means over all prompts of discovery."""
        if self._means is None:
            known = self.pairs.chosen(self._halves()[0])
            self._means = Means(self.model, [*known.clean, *known.corrupted])
        return self._means

    def check_identity(self) -> float:
        """Check that the parts add up to the model on a batch of pairs, that all edges give the model and none the
        corrupted run; return the largest difference as a share of the scale.

        Raises:
            UnsupportedModel: the parts do not add up.
        """
        batch = next(iter(self.discovery.batches()))
        rows = [self.discovery.pairs.clean[k] for k in batch.rows]
        worst = self.model.check(torch.tensor([list(row) for row in rows]))
        full, corrupted = batch.ends()
        whole, none = batch.run(self.graph.allowed), batch.run(np.zeros_like(self.graph.allowed))
        scale = max(float(np.abs(full).max()), float(np.abs(corrupted).max()))
        self.notes["all_edges_difference"] = float(np.abs(whole - full).max()) / scale
        self.notes["no_edges_difference"] = float(np.abs(none - corrupted).max()) / scale
        return worst

    def rank(self) -> None:
        """Measure the effect of every edge or node that may be in the circuit."""
        options = self.options
        if options.nodes is not None:
            best = np.argsort(-np.abs(self.node_scores[1:]), kind="stable")[: options.nodes] + 1
            self.candidates = self.graph.among([self.graph.senders[k] for k in best])
            self.notes["best_nodes"] = [self.graph.senders[k] for k in best]
            self._measure_left_out(sorted(set(range(1, len(self.graph.senders))) - set(best.tolist())))
        most = self.most("absolute")
        if options.size is not None and options.size > most:
            raise BadParameter(
                "size is larger than all there is to choose from",
                needed=f"{most} or less",
                found=str(options.size),
                where=f"candidate {options.level}s",
            )
        units, by_reader, total = self.every_unit(), options.level == "edge", self._total
        eap = self._screen(1, by_reader) if by_reader else self.node_scores
        screens = {"eap": eap, "eap_ig": self._screen(options.steps, by_reader)}
        some = units
        if options.method != "exact" and len(units) > SAMPLE:
            chosen = generator(options.seed, "circuit sample").permutation(len(units))[:SAMPLE]
            some = [units[k] for k in sorted(chosen.tolist())]
        before, title = self.discovery.passes, f"exact patching of {len(some)} {options.level}s"
        exact = self.discovery.removals(some, folder=self.folder, title=title)
        self.notes["passes_per_pair_exact"] = (self.discovery.passes - before) / len(self.discovery.pairs)
        measured = exact.mean(1) / total
        sizes, least = self.discovery.scale.spread(exact), options.least
        is_both = (np.abs(measured) < np.minimum(least, sizes / 4)) & (sizes >= 2 * least)
        self.both_signs = {some[k]: float(sizes[k]) for k in np.argsort(-sizes) if is_both[k]}
        names = [self.unit_name(unit) for unit in some]
        for name, scores in screens.items():
            rough = np.array([scores[unit] for unit in some])
            self.notes |= agreement(name, names, rough, measured, options.least)
        self.notes |= {"rank_correlation_on": len(some), "measured": len(units)}
        self.scores = np.zeros_like(screens["eap"])
        for place, unit in enumerate(some if options.method == "exact" else units):
            self.scores[unit] = measured[place] if options.method == "exact" else screens[options.method][unit]

    def _measure_left_out(self, nodes: Sequence[int]) -> None:
        """Note which nodes that EAP leaves out have exact effects of δ or more, on some of the pairs."""
        if nodes:
            few = self.some_of(self.discovery)
            falls = few.removals(nodes, folder=self.folder, title=f"{len(nodes)} nodes that are left out")
            names, shares = [self.graph.senders[k] for k in nodes], falls.sum(1) / few.scale.total
            self.notes |= left_out(names, shares, self.options.least, len(few.pairs))

    def _screen(self, steps: int, by_reader: bool) -> Floats:
        title = "EAP" if steps == 1 else f"EAP-IG in {steps} steps"
        return self.discovery.attributed(steps=steps, by_reader=by_reader, title=title) / self._total

    @property
    def _total(self) -> float:
        return self.discovery.scale.total / len(self.discovery.pairs)

    def every_unit(self) -> list[Unit]:
        """Return all edges (or nodes) that may be in the circuit."""
        return self.units(self.candidates)

    def units(self, mask: Mask) -> list[Unit]:
        """Return the edges of a circuit, or its nodes without the input."""
        if self.options.level == "edge":
            return [(int(s), int(r)) for s, r in np.argwhere(mask)]
        return [int(s) for s in np.flatnonzero(mask.any(1)) if s]

    def less(self, mask: Mask, unit: Unit) -> Mask:
        """Return a circuit without one edge or node."""
        if isinstance(unit, int):
            return self.graph.without(mask, unit)
        found = mask.copy()
        found[unit] = False
        return found

    def unit_name(self, unit: Unit) -> str:
        """Return the name of an edge or node."""
        return self.graph.senders[unit] if isinstance(unit, int) else self.graph.name(*unit)

    def effects(self) -> dict[Unit, float]:
        """Return the effect of every edge or node that was measured."""
        return {unit: float(self.scores[unit]) for unit in self.every_unit()}

    def most(self, choice: str) -> int:
        """Return the largest size of circuits chosen in one way: a number of edges, or of nodes."""
        if choice == "nodes" or self.options.level == "node":
            return len(self._nodes(self.node_scores))
        return int(self.candidates.sum())

    def _nodes(self, scores: Floats) -> list[int]:
        """Return the nodes that may be in the circuit, the best first."""
        live = [int(s) for s in np.flatnonzero(self.candidates.any(1)) if s]
        return sorted(live, key=lambda s: -scores[s])

    def circuits(self, sizes: Sequence[int], choice: str) -> list[Mask]:
        """Return circuits of the given sizes, chosen by `absolute` or `signed` effects, or by `nodes` (EAP)."""
        if choice == "nodes" or self.options.level == "node":
            scores = self.node_scores if choice == "nodes" else self.scores
            order = self._nodes(scores if choice == "signed" else np.abs(scores))
            masks = [self.graph.among([self.graph.senders[s] for s in order[:size]]) for size in sizes]
            return [self.graph.on_paths(mask & self.candidates) for mask in masks]
        scores = self.scores if choice == "signed" else np.abs(self.scores)
        return self.graph.greedy(scores, sizes, within=self.candidates)

    def choose(self) -> Mask:
        """Return the circuit that is judged: of those tried, the one with the fewest edges that keeps between 1 − ε/2
        and 1 + ε/2 of the metric on discovery. `size` fixes its size.

        Tried are ten sizes, and a bisection below the first that does, of edges (or nodes) in order of absolute and of
        signed effects, each with all edges that have an effect of δ or more. Where none keeps the metric, these edges
        alone are taken.
        """
        options = self.options
        if options.size is not None:
            return self._sized(options.size, "absolute")
        tried = [self._smallest(choice) for choice in ("absolute", "signed")]
        within = [mask for off, mask in tried if off < options.epsilon / 2]
        if within:
            return min(within, key=lambda mask: int(mask.sum()))
        self.notes["size_rule"] = "no size keeps the metric on discovery: all edges of δ or more were taken"
        return self._large if self._large.any() else min(tried, key=lambda one: one[0])[1]

    def _smallest(self, choice: str) -> tuple[float, Mask]:
        """Return the smallest circuit tried in one order that keeps the metric on discovery, or else the one nearest to
        it; and how far it is from it, as a share.
        """
        bound, sizes = self.options.epsilon / 2, ten_sizes(self.most(choice))
        masks = [self._sized(size, choice) for size in sizes]
        values = self.discovery.metrics(masks, f"sizes by {choice} effect")
        off = np.abs(1 - self.discovery.scale.samples(values)[0])
        within = np.flatnonzero(off < bound)
        if not len(within):
            nearest = int(np.argmin(off))
            return float(off[nearest]), masks[nearest]
        first = int(within[0])
        low, high, best = (sizes[first - 1] if first else 0), sizes[first], (float(off[first]), masks[first])
        for _ in range(_HALVINGS):
            middle = (low + high) // 2
            if middle in (low, high):
                break
            mask = self._sized(middle, choice)
            share = float(self.discovery.scale.samples(self.discovery.metrics([mask])[0])[0][0])
            if abs(1 - share) < bound:
                high, best = middle, (abs(1 - share), mask)
            else:
                low = middle
        return best

    def _sized(self, size: int, choice: str) -> Mask:
        """Return a circuit of a size, with all edges or nodes that have an effect of δ or more."""
        known = self.circuits([size], choice)[0]
        return known if self.options.size is not None else self.graph.on_paths(known | self._large)

    @cached_property
    def _large(self) -> Mask:
        """The edges (or edges between nodes) with an effect of δ or more, and those that these need in order to have it
        in a circuit.

        What leads to paths that cancel has no effect on the whole model; it is looked for where one of them is cut.
        What follows an edge may be there twice; it is looked for where all of it is cut but one part.
        """
        scores = self.scores if self.options.level == "edge" else self.scores[1:]
        large = [unit for unit in self.every_unit() if abs(self.scores[unit]) >= self.options.least]
        cuts: dict[Unit, Mask] = {unit: self.less(self.candidates, unit) for unit in large}
        mask = self._of(large) | self.circuits([int((np.abs(scores) >= self.options.least).sum())], "absolute")[0]
        for _ in range(_ROUNDS):
            new = dict[Unit, Mask]()
            for unit in self._lost(mask, large, list(cuts))[:_MOST_LOST]:
                new |= {one: cuts[unit] for one in self._needed(mask, unit, cuts[unit]) if one not in cuts}
            if not new:
                break
            cuts |= new
            mask = mask | self._of(list(cuts))
        whole, core = self.graph.on_paths(mask), self.graph.on_paths(self._of(list(cuts)))
        return core if core.any() and (core >= whole & self._of(large)).all() else whole  # without what only led there

    def _of(self, units: Sequence[Unit]) -> Mask:
        """Return the circuit of these edges or nodes."""
        if self.options.level == "node":
            return self.graph.among([self.graph.senders[s] for s in units if isinstance(s, int)]) & self.candidates
        found = np.zeros_like(self.graph.allowed)
        for unit in units:
            found[unit] = True
        return found

    def _lost(self, mask: Mask, large: Sequence[Unit], all_of: Sequence[Unit]) -> list[Unit]:
        """Return the units that are on no path of a circuit, or that have half of δ in it no more."""
        whole = self.graph.on_paths(mask)
        is_off = {unit: not (whole[unit].any() if isinstance(unit, int) else whole[unit]) for unit in all_of}
        present = [unit for unit in large if not is_off[unit]]
        few = self.some_of(self.discovery)
        change = few.changed(whole, [*(self.less(whole, unit) for unit in present), whole])
        falls = np.abs((change[:-1] - change[-1]).sum(1)) / few.scale.total
        weak = [unit for unit, fall in zip(present, falls, strict=True) if fall < self.options.least / 2]
        return [*(unit for unit in all_of if is_off[unit]), *weak]

    def _needed(self, mask: Mask, unit: Unit, base: Mask) -> list[Unit]:
        """Return the units that matter where `base` is all that is left: those before a unit; and after it, if nothing
        that it writes to reaches the logits.
        """
        if isinstance(unit, int):
            nodes = [s for s in self.units(self.candidates) if s != unit]
            return self._mattering(base, nodes, [self.less(base, s) for s in nodes])
        sender, reader = unit
        into = [place for place, one in enumerate(self.graph.readers) if sender in one.nodes]
        before: list[Unit] = [(int(s), r) for r in into for s in np.flatnonzero(self.candidates[:, r])]
        found = self._mattering(base, before, [self.less(base, edge) for edge in before])
        nodes_after = list(self.graph.readers[reader].nodes)
        if not nodes_after or self.graph.reach(mask)[1][nodes_after].any():
            return found
        after: list[Unit] = [(n, int(r)) for n in nodes_after for r in np.flatnonzero(self.candidates[n])]
        for cut in (self.candidates.copy(), base.copy()):  # with the unit, and without: another may take away its part
            cut[nodes_after] = False
            found += self._mattering(cut, after, [cut | self._of([edge]) for edge in after])
        return list(dict.fromkeys(found))

    def _mattering(self, base: Mask, units: Sequence[Unit], others: Sequence[Mask]) -> list[Unit]:
        """Return the units whose circuits in `others` differ from `base` by δ or more on discovery; where none does,
        the one that differs most, if by a quarter of δ.
        """
        if not units:
            return []
        few = self.some_of(self.discovery)
        change = few.changed(base, [*others, base])
        share = np.abs((change[:-1] - change[-1]).sum(1)) / few.scale.total
        found = [unit for unit, one in zip(units, share, strict=True) if one >= self.options.least]
        best = int(np.argmax(share))
        return found or ([units[best]] if share[best] >= self.options.least / 4 else [])

    def idle(self, mask: Mask, units: Sequence[Unit]) -> list[Unit]:
        """Return the units of a circuit without which its metric changes by less than δ on discovery."""
        if not units:
            return []
        change = self.discovery.changed(mask, [*(self.less(mask, unit) for unit in units), mask])
        share = np.abs((change[:-1] - change[-1]).sum(1)) / self.discovery.scale.total
        return [unit for unit, of in zip(units, share, strict=True) if of < self.options.least]

    def some_of(self, half: Half) -> Half:
        """Return the first pairs of a half, on which what takes many runs is measured: `random_pairs` of them."""
        known: dict[int, Half] = self.__dict__.setdefault("_some", {})
        if id(half) not in known:
            rows = np.arange(min(len(half.pairs), max(2, self.options.random_pairs)))
            known[id(half)] = self.half(half.pairs.chosen(rows), self.options.by)
        return known[id(half)]

    def overlap(self, size: int, other: str) -> float:
        """Return the share of edges that circuits of one size have in common, found by EAP under both corruptions."""
        masks = []
        for by in (self.options.by, other):
            half = self.discovery if by == self.options.by else self.half(self.discovery.pairs, by)
            scores = np.abs(half.attributed(steps=1, by_reader=True))
            masks.append(self.graph.greedy(scores, [size], within=self.candidates)[0])
        return float((masks[0] & masks[1]).sum() / max(1, (masks[0] | masks[1]).sum()))

    def shifted(self, name: str, units: Sequence[Unit], seed: int | None) -> Floats:
        """Return how much the metric of each test pair falls if one edge or node at a time carries what senders write
        in the other class of a property: the means by class are those of discovery; in random order if there is a
        seed.
        """
        mine, theirs = self.discovery.pairs.values[name]
        labels = np.array([*mine, *theirs])
        if seed is not None:
            labels = np.random.default_rng(seed).permutation(labels)
        prompts = [*self.discovery.pairs.clean, *self.discovery.pairs.corrupted]
        means = {
            value: Means(self.model, [prompts[k] for k in np.flatnonzero(labels == value)]) for value in set(labels)
        }
        clean, corrupted = self.test.pairs.values[name]

        def shifts(batch: Batch) -> torch.Tensor:
            found = torch.zeros_like(batch.clean.writes)
            by_class = {value: one.trace(batch.clean).writes for value, one in means.items()}
            for place, row in enumerate(batch.rows):
                own, other = clean[row], corrupted[row]
                if own in by_class and other in by_class:
                    found[:, place] = by_class[other][:, place] - by_class[own][:, place]
            return found

        return self.test.removals(units, shifts=shifts)
