"""A user's own model: what the arrays instrument holds, and what it refuses before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Place
from probing.errors import BadParameter, EditFailed, NoBehaviour, NonFiniteStates, ReplayUnavailable, UnknownName
from probing.use.edited_models.arrays import ArrayInstrument

ONE, TWO, LATER = Place("layer.0", "one"), Place("layer.0", "two"), Place("layer.1")
N, D, V = 50, 6, 3


def states() -> dict[Place, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(N, D)).astype(np.float32) for _ in range(2))
    return {ONE: first, TWO: second, LATER: np.tanh(first + second)}


class Model:
    """layer.1 is tanh of the sum of both positions of layer.0; the behaviour is a normed linear read of it."""

    def __init__(self, clean: Mapping[Place, NDArray[np.float32]]) -> None:
        self.clean = {place: torch.from_numpy(h) for place, h in clean.items()}
        self.reads = torch.from_numpy(np.random.default_rng(1).normal(size=(D, V)).astype(np.float32))

    def __call__(self, site: str, rows: NDArray[np.int64], given: Mapping[str, Tensor], frozen_norms: bool) -> Tensor:
        before = self.clean[LATER][rows]
        if site == "layer.1":
            h = given.get("", before)
        else:
            h = torch.tanh(sum(given.get(p.position, self.clean[p][rows]) for p in (ONE, TWO)))  # type: ignore[arg-type]
        return (h / (before if frozen_norms else h).norm(dim=1, keepdim=True)) @ self.reads


def instrument(**options: Any) -> ArrayInstrument:
    return ArrayInstrument(states(), Model(states()), has_norms=True, **options)


def test_clean_outputs_come_from_run_from_and_the_checks_hold() -> None:
    made = instrument()
    made.check()
    assert (made.n_rows, made.places, made.clean().shape) == (N, (ONE, TWO, LATER), (N, V))
    assert made.has_norms
    assert not made.logits


def test_a_donor_at_every_position_gives_the_donors_output() -> None:
    made = instrument()
    rows, donors = np.arange(10), np.arange(10, 20)
    given = {p.position: torch.from_numpy(made.states(p)[donors]) for p in (ONE, TWO)}
    np.testing.assert_allclose(made.run_from("layer.0", rows, given).numpy(), made.clean()[donors], rtol=1e-5)
    one = made.run_from("layer.0", rows, {"one": given["one"]}).numpy()
    assert np.abs(one - made.clean()[donors]).max() > 0.01


def test_gradients_flow_and_held_norms_change_edited_rows_only() -> None:
    made = instrument()
    rows = np.array([3, 3, 7])
    h = torch.from_numpy(made.states(LATER)[rows] * 2).requires_grad_(True)
    free, held = (made.run_from("layer.1", rows, {"": h}, frozen_norms=frozen) for frozen in (False, True))
    np.testing.assert_allclose(free.detach().numpy(), made.clean()[rows], rtol=1e-5)
    np.testing.assert_allclose(held.detach().numpy(), 2 * made.clean()[rows], rtol=1e-5)
    (slope,) = torch.autograd.grad(held.sum(), h)
    assert slope.shape == h.shape
    assert slope.abs().sum() > 0


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, BadParameter),
        ({ONE: np.zeros((N, D)), TWO: np.zeros((N + 1, D))}, BadParameter),
        ({ONE: np.zeros(N)}, BadParameter),
        ({ONE: np.zeros((N, 0))}, BadParameter),
        ({ONE: np.array([["a"]])}, BadParameter),
        ({ONE: np.full((N, D), np.nan)}, NonFiniteStates),
        ({ONE: np.full((N, D), 1e300)}, NonFiniteStates),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_states_of_the_wrong_kind_are_refused(given: dict[Place, NDArray[Any]], error: type[Exception]) -> None:
    with pytest.raises(error):
        ArrayInstrument(given, Model(states()))


@pytest.mark.parametrize(
    ("clean", "error"),
    [
        (np.zeros((N, V)), NoBehaviour),
        (np.full((N, V), np.inf), NoBehaviour),
        (np.zeros((N - 1, V)), BadParameter),
        (np.zeros(N), BadParameter),
    ],
)
def test_behaviour_that_says_nothing_is_refused(clean: NDArray[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        instrument(clean=clean)


def test_a_constant_model_has_no_behaviour() -> None:
    with pytest.raises(NoBehaviour):
        ArrayInstrument({LATER: states()[LATER]}, lambda site, rows, given, frozen: torch.ones(len(rows), V))


def test_a_model_that_is_not_the_same_twice_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)

    def dropout(site: str, rows: NDArray[np.int64], given: Mapping[str, Tensor], frozen: bool) -> Tensor:
        return given[""] * (torch.rand(len(rows), D, generator=generator) > 0.5)

    with pytest.raises(EditFailed, match="second call"):
        ArrayInstrument({LATER: states()[LATER]}, dropout)


@pytest.mark.parametrize(
    "found", [np.zeros((N, V)), torch.zeros(V), torch.zeros(N + 1, V)], ids=["numpy", "1d", "rows"]
)
def test_run_from_must_give_one_row_of_torch_for_each_row(found: Any) -> None:
    with pytest.raises(EditFailed, match="something else than outputs"):
        ArrayInstrument({LATER: states()[LATER]}, lambda site, rows, given, frozen: found)


def test_outputs_that_are_not_those_of_run_from_fail_the_check() -> None:
    made = instrument(clean=instrument().clean() + 1e-2)
    with pytest.raises(EditFailed):
        made.check()


def test_rows_that_depend_on_their_neighbours_fail_the_check() -> None:
    h = states()[LATER]
    made = ArrayInstrument(
        {LATER: h}, lambda site, rows, given, frozen: given[""] + torch.cumsum(given[""], 0) * (rows[0] > 0)
    )
    with pytest.raises(EditFailed, match="another order"):
        made.check()


def test_unknown_places_wrong_shapes_and_norms_that_cannot_be_held_are_refused() -> None:
    made = instrument()
    rows = np.arange(4)
    with pytest.raises(UnknownName):
        made.states(Place("layer.9"))
    with pytest.raises(UnknownName):
        made.run_from("layer.9", rows, {})
    with pytest.raises(UnknownName):
        made.run_from("layer.0", rows, {"three": torch.zeros(4, D)})
    with pytest.raises(BadParameter):
        made.run_from("layer.1", rows, {"": torch.zeros(3, D)})
    plain = ArrayInstrument(states(), Model(states()))
    with pytest.raises(ReplayUnavailable):
        plain.run_from("layer.1", rows, {"": torch.zeros(4, D)}, frozen_norms=True)
