"""Measures how many bits are needed to send the labels, block by block, to a receiver who has the states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from probing.analyses._fits import FRACTIONS, UNIFORM_WEIGHT, CodedRows, coded
from probing.contracts.analysis import Analysis, SiteData
from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.labels import Labels
from probing.measures._rows import gives_probabilities
from probing.results.analysis import Point

BITS, MIXED = "bits", "mixed nats+bits"
_Z = 1.96


@dataclass(frozen=True, kw_only=True)
class CodeLength(Analysis):
    """Measures how many bits an online code of the labels needs: L = t₁ log₂ K − Σ_blocks log₂ p(labels of the block |
    states, a probe fitted on all blocks before), where t₁ is the number of rows of the first block and K the number of
    classes.

    Blocks end at 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50 and 100 % of the train rows, at the next end of a
    sentence or document (what is resampled for intervals). Every probability is mixed with the uniform one at weight
    0.0001, so that the code of a label never seen before has at most log₂(10,000 K) bits. Where all rows so far have
    one class and no probe can be fitted, labels are coded by their frequencies so far, with 1 added to each count. A
    probe that is easy to fit makes the code short early: length measures how well, and from how little data, labels can
    be read.

    It reports, for the task and every draw of every control: `code_length`; two code lengths without a probe,
    `uniform_code`, n log₂ K for n train rows, and `marginal_code`, n H(Y) with the entropy H(Y) of the train labels;
    `compression` and `marginal_compression`, these two divided by the code length; `data_part`, the cross-entropy of
    the train rows under the probe fitted on all of them, and `model_part`, the rest of the length; `learning_curve`,
    the code length per label of the block that begins after x rows. The intervals cover the order of the data (by
    Student's t; not covered with one order) and the sampling of train sentences or documents, given their number; they
    do not cover other fits on the same rows.

    It misleads across data of different sizes: lengths grow with n, so compare lengths only on the same rows, and
    compression otherwise. A probe that overfits small blocks has a longer code, so the code of labels that are noise
    can be longer than n log₂ K, and longer for wide states than for narrow ones.

    Args:
        orders: number of orders of the data, each a random permutation of the groups.
        compatible: whether to compute as the implementation published with the paper does: a block's probe is stopped
            early by the dev split (by default, by a part of the rows sent so far), and losses in nats are added to the
            first block's bits. Such a sum is neither bits nor nats, but published figures are such sums.
            `code_length_in_bits` is the length of the same fits in bits.

    References:
        Voita and Titov 2020, Information-Theoretic Probing with Minimum Description Length, eq. 3, §2.3.
    """

    orders: int = 3
    compatible: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.orders, bool) or not isinstance(self.orders, int) or self.orders < 1:
            raise BadParameter("orders must be a positive whole number", needed="1 or more", found=repr(self.orders))

    def accepts(self, probe: Probe) -> bool:
        """Return whether the probe has class probabilities."""
        return gives_probabilities(probe)

    def settings(self, data: SiteData) -> Mapping[str, Any]:
        """Return the numbers of rows and groups, the ends of the blocks and the smoothing, as values that JSON can
        hold. `data` are the states and labels that the analysis is run on.
        """
        train = data.labels.rows("train")
        return {
            "rows": len(train),
            "groups": len(np.unique(data.labels.groups[train])),
            "fractions": list(FRACTIONS),
            "uniform_weight": UNIFORM_WEIGHT,
            "stops_by": "outside dev" if self.compatible else "data already sent",
            "interval": "data orders (t) and clusters" if self.orders > 1 else "clusters only, one data order",
        }

    def run(self, probe: Probe, data: SiteData) -> Sequence[Point]:
        """Compute online code lengths and return them as results (`Point`). In every data order, a probe is fitted on
        each growing block of rows and encodes the next block; all sets of labels are fitted together.
        """
        by_order = [coded(probe, data, order, outside_dev=self.compatible) for order in range(self.orders)]
        points: list[Point] = []
        for m, (control, draw, labels) in enumerate(data.label_sets):
            points += points_of(
                [of_order[m] for of_order in by_order], labels, control, draw, compatible=self.compatible
            )
        return points


def points_of(codes: Sequence[CodedRows], labels: Labels, control: str, draw: int, *, compatible: bool) -> list[Point]:
    """Compute the results for one set of labels from the code lengths of its rows in every data order, and return them,
    one `Point` each.

    Args:
        codes: code lengths of the rows, for each data order.
        labels: the set of labels.
        control: name of the control that drew the labels; "" for the task's own.
        draw: number of the draw of that control; -1 for the task's own.
        compatible: whether the first block counts in bits and the others in nats, as in the code of Voita and Titov.
    """
    in_bits = [code.nats / math.log(2.0) for code in codes]
    costs = [
        np.where(code.block == 0, bits, code.nats) if compatible else bits
        for code, bits in zip(codes, in_bits, strict=True)
    ]
    per_nat, unit = (1.0, MIXED) if compatible else (1.0 / math.log(2.0), BITS)
    finals = [code.final_nats * per_nat for code in codes]
    n, marginal = len(codes[0].nats), _entropy(labels.y[labels.rows("train")])
    uniform = n * math.log2(len(labels.classes))
    length = _total(costs, codes)
    found = [_point("code_length", length, unit)]
    if compatible:
        found.append(_point("code_length_in_bits", _total(in_bits, codes), BITS))
    found += [
        _point("compression", _ratio(uniform, length), "ratio"),
        _point("marginal_compression", _ratio(n * marginal, length), "ratio"),
        Point("uniform_code", uniform, BITS),
        Point("marginal_code", n * marginal, BITS),
        _point("model_part", _total([a - b for a, b in zip(costs, finals, strict=True)], codes), unit),
        _point("data_part", _total(finals, codes), "nats" if compatible else BITS),
        *_curve(costs, codes, "nats per label" if compatible else "bits per label"),
    ]
    return [replace(point, control=control, draw=draw) for point in found]


Estimate = tuple[float, float, float]  # value, low, high


def _total(costs: Sequence[NDArray[np.float64]], codes: Sequence[CodedRows]) -> Estimate:
    values = [float(cost.sum()) for cost in costs]
    return _estimate(values, [_cluster_error(cost, code.groups) for cost, code in zip(costs, codes, strict=True)])


def _estimate(values: Sequence[float], errors: Sequence[float]) -> Estimate:
    """Return the mean over data orders, ± √((t s/√O)² + (z · cluster error)²)."""
    orders, value = len(values), float(np.mean(values))
    by_order = 0.0
    if orders > 1:
        by_order = float(stdtrit(orders - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(orders)
    half = math.hypot(by_order, _Z * math.sqrt(float(np.mean(np.square(errors)))))
    return value, value - half, value + half


def _cluster_error(cost: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Return the standard error of the sum of costs when groups are drawn anew, given the number of rows; 0 for one
    group.
    """
    _, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index.reshape(-1), cost), np.bincount(index.reshape(-1))
    if len(sums) < 2:
        return 0.0
    residuals = sums - cost.sum() / len(cost) * sizes
    return math.sqrt(len(sums) / (len(sums) - 1) * float((residuals**2).sum()))


def _ratio(code: float, length: Estimate) -> Estimate:
    value, low, high = length
    return code / value, code / high, code / low if low > 0 else math.inf


def _curve(costs: Sequence[NDArray[np.float64]], codes: Sequence[CodedRows], unit: str) -> list[Point]:
    """Return the cost per label of every block that has rows in all data orders; x is the mean number of rows before
    it.
    """
    points = []
    for block in sorted(set.intersection(*({*code.block.tolist()} for code in codes))):
        values, errors = [], []
        for cost, code in zip(costs, codes, strict=True):
            here = code.block == block
            values.append(float(cost[here].mean()))
            errors.append(_cluster_error(cost[here], code.groups[here]) / int(here.sum()))
        x = float(np.mean([code.starts[block] for code in codes]))
        estimate = _estimate(values, errors)
        points.append(_point("learning_curve", estimate, unit if block else "bits per label", x=x))
    return points


def _point(quantity: str, estimate: Estimate, unit: str, *, x: float | None = None) -> Point:
    value, low, high = estimate
    known = math.isfinite(high)
    name = "" if x is None else "rows"
    return Point(quantity, value, unit, low if known else None, high if known else None, x=x, x_name=name)


def _entropy(y: NDArray[np.int64]) -> float:
    p = np.bincount(y) / len(y)
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


MEMBER = CodeLength
