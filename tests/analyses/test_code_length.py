"""Code lengths are what can be worked out by hand, and land on the laws of coding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from probing.analyses._fits import CodedRows, block_ends, coded, fitted_prefixes, sending_order
from probing.analyses.code_length import MIXED, CodeLength, points_of
from probing.contracts.analysis import SiteData
from probing.errors import BadParameter
from probing.labels import Labels
from probing.probes._estimator import ClassifierProbe
from probing.probes.linear import LinearProbe
from probing.probes.mlp import MLPProbe
from probing.results.analysis import Point
from tests.samples.training_samples import labels_of

HELD = 40


class Told(ClassifierProbe):
    """A stub that gives the true class (the one column of X) the probability `p`, and the others the rest."""

    def __init__(self, p: float = 0.5, classes: int = 4) -> None:
        self.p, self.classes = p, classes

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        self.classes_, self.n_features_in_, self.dev_ = np.arange(self.classes), 1, dev
        return self

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        true = np.asarray(X)[:, 0].astype(int)
        logs = np.full((len(true), self.classes), math.log((1 - self.p) / (self.classes - 1)))
        logs[np.arange(len(true)), true] = math.log(self.p)
        return logs


def site_data(y: NDArray[Any], X: NDArray[Any], *, classes: int, groups: int = 1, seeds: tuple[int, ...] = (0,)) -> Any:
    """Train rows, then as many dev and test rows as `HELD` that repeat the first ones; `groups` rows a group."""
    n = len(y)
    everything = np.concatenate([y, y[:HELD], y[:HELD]])
    split = ["train"] * n + ["dev"] * HELD + ["test"] * HELD
    labels = labels_of(everything, split, classes=tuple(f"c{k}" for k in range(classes)))
    labels = replace(labels, groups=np.arange(len(everything)) // groups)
    states = {"train": X.astype(np.float32), "dev": X[:HELD].astype(np.float32), "test": X[:HELD].astype(np.float32)}
    return SiteData("resid.0", states, labels, {}, None, seeds, {})


def one(points: Any, quantity: str) -> Point:
    (found,) = (p for p in points if p.quantity == quantity and not p.control)
    return found  # type: ignore[no-any-return]


def balanced(n: int, classes: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(np.arange(n) % classes)


def test_by_hand_1000_labels_of_4_classes_at_probability_one_half() -> None:
    """First block a group of 10 at log₂ 4 = 2 bits, then 990 rows at 1 bit; published: 990 · ln 2 nats onto 20 bits."""
    y = balanced(1000, 4)
    data = site_data(y, y[:, None], classes=4, groups=10)
    strict, published = (CodeLength(orders=2, compatible=c).run(Told(), data) for c in (False, True))
    assert one(strict, "uniform_code").value == 2000
    # The uniform distribution at weight 0.0001 takes (1/2 - 1/4) · 0.0001 from each probability of 1/2.
    a_label = -math.log2(0.5 - 0.25e-4)
    assert one(strict, "code_length").value == pytest.approx(20 + 990 * a_label, abs=1e-9)
    assert one(strict, "code_length").value == pytest.approx(1010, abs=0.1)
    assert one(strict, "compression").value == pytest.approx(2000 / 1010, rel=1e-4)
    assert one(strict, "code_length").unit == "bits"
    mixed = one(published, "code_length")
    assert mixed.unit == MIXED
    assert mixed.value == pytest.approx(20 + 990 * math.log(2), abs=0.1)
    assert one(published, "code_length_in_bits").value == pytest.approx(one(strict, "code_length").value, abs=1e-9)
    assert one(published, "data_part").value == pytest.approx(1000 * math.log(2), abs=0.1)
    assert one(strict, "data_part").value == pytest.approx(1000, abs=0.1)
    assert one(strict, "model_part").value == pytest.approx(10.0, abs=1e-3)
    marginal = one(strict, "marginal_code").value
    assert marginal == pytest.approx(2000) and one(strict, "marginal_compression").value == pytest.approx(
        one(strict, "compression").value
    )


def test_published_figure_of_96_kbit_at_53_is_136_kbit_at_37() -> None:
    """n log₂ 45 = 5101 kbit, a first block of 4.7 kbit, 91.3 thousand nats: their sum 96.0, in bits 136.4."""
    classes, first, n = 45, 856, 928_840
    nats = np.full(n, 91_300 / (n - first))
    nats[:first] = math.log(classes)
    block = np.ones(n, np.int64)
    block[:first] = 0
    code = CodedRows(nats, nats, block, np.arange(n) // 25, (0, first))
    labels = labels_of(np.arange(n) % classes, ["train"] * n, classes=tuple(f"c{k:02}" for k in range(classes)))
    published = points_of([code], labels, "", -1, compatible=True)
    strict = points_of([code], labels, "", -1, compatible=False)
    assert one(published, "code_length").value == pytest.approx(96_000, abs=50)
    assert one(published, "compression").value == pytest.approx(53.1, abs=0.05)
    assert one(strict, "code_length").value == pytest.approx(136_400, abs=50)
    assert one(strict, "compression").value == pytest.approx(37.4, abs=0.05)


def test_noise_costs_the_uniform_code() -> None:
    random = np.random.default_rng(0)
    y = balanced(4000, 4)
    points = CodeLength(orders=2).run(LinearProbe(), site_data(y, random.standard_normal((4000, 2)), classes=4))
    assert one(points, "code_length").value == pytest.approx(8000, rel=0.02)
    assert one(points, "compression").value == pytest.approx(1.0, abs=0.02)


def test_skewed_noise_costs_the_marginal_code_and_not_the_uniform_one() -> None:
    random = np.random.default_rng(0)
    y = random.choice(4, 4000, p=[0.85, 0.05, 0.05, 0.05])
    points = CodeLength(orders=2).run(LinearProbe(), site_data(y, random.standard_normal((4000, 2)), classes=4))
    assert one(points, "marginal_compression").value == pytest.approx(1.0, abs=0.04)
    assert one(points, "compression").value > 2.0


def test_a_label_that_hardly_varies_costs_nearly_nothing() -> None:
    y = np.zeros(3000, np.int64)
    y[1700] = 1
    points = CodeLength(orders=2).run(LinearProbe(), site_data(y, np.ones((3000, 2)), classes=2))
    assert one(points, "code_length").value < 0.02 * 3000
    assert all(math.isfinite(p.value) for p in points)


def test_states_that_give_the_label_away_cost_little_and_the_curve_falls() -> None:
    random = np.random.default_rng(0)
    y = balanced(2000, 3)
    X = np.eye(3)[y] + 0.05 * random.standard_normal((2000, 3))
    points = CodeLength(orders=3).run(LinearProbe(), site_data(y, X, classes=3, groups=5))
    length = one(points, "code_length")
    assert length.low is not None and length.high is not None and length.low < length.value < length.high
    assert length.value < 0.15 * one(points, "uniform_code").value
    curve = [p for p in points if p.quantity == "learning_curve"]
    assert curve[0].value == pytest.approx(math.log2(3)) and curve[-1].value < 0.1
    assert [p.x for p in curve] == sorted(p.x for p in curve if p.x is not None)
    blocks = sum(p.value * n for p, n in zip(curve, np.diff([*(p.x or 0.0 for p in curve), 2000.0]), strict=True))
    assert blocks == pytest.approx(length.value, rel=0.03)
    assert one(points, "model_part").value + one(points, "data_part").value == pytest.approx(length.value)


def test_one_order_is_told_to_carry_clusters_only() -> None:
    data = site_data(balanced(400, 4), balanced(400, 4)[:, None], classes=4)
    assert "one data order" in CodeLength(orders=1).settings(data)["interval"]
    point = one(CodeLength(orders=1).run(Told(0.4), data), "code_length")
    assert point.low is not None and point.low < point.value


def test_groups_stay_whole_in_every_order_and_blocks_end_at_their_boundaries() -> None:
    groups = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 30, 50))
    orders = [sending_order(groups, 0, order) for order in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        sent = groups[order]
        assert len(np.flatnonzero(np.diff(sent))) == 49
        ends = block_ends(sent)
        assert ends[-1] == len(groups) and list(ends) == sorted(ends)
        assert all(end == len(sent) or sent[end - 1] != sent[end] for end in ends)
        assert ends[9] >= len(groups) / 2 > ends[9] - 30


def test_strict_code_shows_a_probe_nothing_but_what_was_sent() -> None:
    y = balanced(300, 4)
    data = site_data(y, y[:, None], classes=4)
    seen: list[tuple[int, Any]] = []

    class Spy(Told):
        def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
            seen.append((len(np.asarray(y)), dev))
            return super().fit(X, y, dev=dev)

    coded(Spy(), data, 0, outside_dev=False)
    assert [n for n, _ in seen] == sorted({n for n, _ in seen}) and all(dev is None for _, dev in seen)
    seen.clear()
    coded(Spy(), data, 0, outside_dev=True)
    assert all(dev is not None and len(np.asarray(dev[1])) == HELD for _, dev in seen)


def test_prefixes_of_one_class_get_no_probe_and_labels_unseen_in_a_prefix_stay_finite() -> None:
    y = np.array([0] * 10 + [1, 2] * 45)
    X = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)
    (first,), (second,) = fitted_prefixes(LinearProbe(), X, [y], [10, 12], 0, None)
    assert first is None and second is not None
    dev = (X[:3], [np.array([3, 3, 3])])
    assert fitted_prefixes(MLPProbe(), X, [y], [12], 0, dev) == [[None]]
    data = site_data(y, X, classes=4, groups=10)
    (code,) = coded(LinearProbe(), data, 0, outside_dev=False)
    assert np.isfinite(code.nats).all() and code.nats.max() <= math.log(4 / 1e-4) + 1e-9


def test_a_draw_of_a_control_is_coded_beside_the_task_by_the_same_blocks() -> None:
    y = balanced(600, 4)
    data = site_data(y, np.eye(4)[y], classes=4)
    noise: Labels = replace(data.labels, y=balanced(len(data.labels), 4, seed=7), control="word_type#0")
    points = CodeLength(orders=2).run(LinearProbe(), replace(data, controls={"word_type": (noise,)}))
    task, control = ([p for p in points if p.control == name] for name in ("", "word_type"))
    assert [(p.quantity, p.x) for p in task] == [(p.quantity, p.x) for p in control]
    assert {p.draw for p in task} == {-1} and {p.draw for p in control} == {0}
    assert 2 * task[0].value < control[0].value


def test_an_early_stopping_probe_is_coded_too() -> None:
    y = balanced(400, 2)
    data = site_data(y, np.eye(2)[y], classes=2, seeds=(1, 2))
    points = CodeLength(orders=2).run(MLPProbe(hidden=8, max_epochs=20, learning_rate=0.02), data)
    assert all(math.isfinite(p.value) for p in points)
    assert one(points, "code_length").value < 200


@pytest.mark.parametrize("orders", [0, -1, True])
def test_orders_must_be_a_number_of_orders(orders: Any) -> None:
    with pytest.raises(BadParameter, match="orders"):
        CodeLength(orders=orders)
