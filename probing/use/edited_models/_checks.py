"""Checks of a text instrument before anything is measured with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probing.contracts.behaviour import Outputs
from probing.contracts.edited_model import Place, expect_equal
from probing.errors import EditFailed
from probing.models.site import Site
from probing.use.edited_models._reading import Pieces, block_input
from probing.use.edited_models._rows import Batch
from probing.use.edited_models._running import Runner, depth

Ints = NDArray[np.int64]
Shift = Callable[[str, Ints, Mapping[str, Tensor], Batch], Tensor]
ROWS, FEW = 16, 4


def checksum(model: nn.Module) -> str:
    """Return a hash of every parameter and buffer, to the bit."""
    state = hashlib.blake2b()
    for name, tensor in model.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def check_all(
    runner: Runner,
    pieces: Mapping[str, Pieces],
    places: Sequence[Place],
    shift: Shift,
    states: Mapping[Place, Tensor],
) -> None:
    """Check every identity on the first rows.

    Args:
        runner: passes of the model.
        pieces: of the rows, by position.
        places: where rows are edited.
        shift: what the instrument adds.
        states: `(N, D)` by place.

    Raises:
        EditFailed: which does not hold.
    """
    n = len(runner.texts.example)
    rows = np.arange(min(n, ROWS))
    with torch.no_grad():
        _check_mode(runner)
        batch = runner.batch(rows)
        whole = runner.outputs(rows, batch)
        clean = _values(runner, whole)
        _same(runner, _values(runner, runner.outputs(rows, batch)), clean, "two clean runs are equal", "")
        for one in rows[:4]:
            alone = _values(runner, runner.outputs(rows[one : one + 1], runner.batch(rows[one : one + 1])))
            expected = whole.values[one][whole.real[one]] if runner.source == "states" else clean[one : one + 1]
            _same(runner, alone, expected, "a row alone gives what it gives in a batch", f"row {one}")
        for place in places:
            _check_place(runner, pieces[place.position], place, shift, states[place], rows, clean)
        for site in dict.fromkeys(block_input(place.site) for place in places):
            _check_donor(runner, site)
        _check_last(runner, rows, clean)
        _check_causal(runner, rows, clean)


def _values(runner: Runner, outputs: Outputs) -> Tensor:
    """Return the logits or output of a head, or final states without those of padding."""
    return outputs.values[outputs.real] if runner.source == "states" else outputs.values


def _same(runner: Runner, found: Tensor, expected: Tensor, what: str, where: str) -> None:
    expect_equal(found, expected, what, where, dtype=runner.dtype)


def _check_mode(runner: Runner) -> None:
    training = [name for name, module in runner.model.suffix.model.named_modules() if module.training]
    if training:
        raise EditFailed(
            "the model is in training mode",
            needed="model.eval()",
            found="dropout and the like at work",
            where=training[0] or runner.model.name,
            next_step="call model.eval()",
        )


def _check_place(
    runner: Runner, pieces: Pieces, place: Place, shift: Shift, states: Tensor, rows: Ints, clean: Tensor
) -> None:
    """Check that writing back changes nothing, replay is the full pass, and an edit reaches the named pieces of one row
    alone.
    """
    batch, at = runner.batch(rows), torch.from_numpy(rows)
    nothing = shift(place.site, rows, {place.position: states[at]}, batch)
    if bool(nothing.any()):
        raise EditFailed(
            "writing back what was read changes states",
            needed="no change",
            found="a change",
            where=str(place),
            next_step="report this: it is an error of the instrument",
        )
    again = _values(runner, runner.outputs(rows, batch, place.site, nothing))
    _same(runner, again, clean, "replay of what was read gives the outputs of the full pass", str(place))
    _check_reach(runner, pieces, place, shift, states, rows[:FEW])


def _check_reach(runner: Runner, pieces: Pieces, place: Place, shift: Shift, states: Tensor, rows: Ints) -> None:
    """Check that an edit reaches the named pieces of one row alone."""
    batch, sites = runner.batch(rows), [place.site]
    moved = states[torch.from_numpy(rows)].clone()
    moved[0] += 1.0
    delta = shift(place.site, rows, {place.position: moved}, batch)
    with ExitStack() as stack:
        _, before = runner.run(stack, batch, place.site, None, sites)
    with ExitStack() as stack:
        _, after = runner.run(stack, batch, place.site, delta, sites)
    real = batch.inputs.mask.bool().cpu()
    changed = (after[place.site] != before[place.site]).any(-1).cpu() & real
    which, piece = pieces.of(rows[:1])
    expected = torch.zeros_like(changed)
    expected[torch.from_numpy(which), torch.from_numpy(piece + batch.start[which])] = True
    if not torch.equal(changed, expected):
        raise EditFailed(
            "an edit changes other states than those named",
            needed=f"{int(expected.sum())} pieces of one row",
            found=f"{int(changed.sum())} pieces, {int((changed & ~expected).sum())} of them not named",
            where=str(place),
            next_step="choose another place, or another model",
        )


def _check_donor(runner: Runner, site: str) -> None:
    """Check that a donor's states at all positions of a text of the same length give the donor's outputs."""
    lengths = runner.sequences.lengths
    for size in np.unique(lengths)[::-1]:
        alike = np.flatnonzero(lengths == size)
        if len(alike) > 1 and size > 0:
            break
    else:
        return
    rows = np.array([np.flatnonzero(runner.texts.example == e)[0] for e in alike[:2]])
    donor = runner.batch(rows[1:])
    states = runner.sequences.at(runner.sequences.states[site], donor).to(runner.dtype)
    expected = _values(runner, runner.outputs(rows[1:], donor))
    read = None if runner.read is None else runner.read[rows[1:]]
    found = _values(runner, runner.outputs(rows[:1], runner.batch(rows[:1]), site, states=states, read=read))
    _same(runner, found, expected, "a donor's states at all positions give the donor's outputs", site)


def _check_last(runner: Runner, rows: Ints, clean: Tensor) -> None:
    """Check that the last layer's state where logits are read decides them."""
    last = max(runner.sequences.states, key=lambda site: Site.parse(site).order)
    if runner.read is None or runner.model.suffix.layer(last) != depth(runner.model) or len(rows) < 2:
        return
    batch = runner.batch(rows)
    states = runner.sequences.at(runner.sequences.states[last], batch).to(runner.dtype)
    which, column = torch.arange(len(rows)), torch.from_numpy(runner.read[rows] + batch.start)
    exchanged = states.clone()
    exchanged[which, column] = states[which, column].roll(1, 0)
    found = _values(runner, runner.outputs(rows, batch, last, states=exchanged))
    _same(runner, found, clean.roll(1, 0), "the last layer's state where logits are read gives the donor's", last)


def _check_causal(runner: Runner, rows: Ints, clean: Tensor) -> None:
    """Check that in a causal model what comes after the piece that is read changes nothing."""
    if runner.read is None or runner.model.suffix.head != "causal":
        return
    first = min(runner.sequences.states, key=lambda site: Site.parse(site).order)
    batch = runner.batch(rows)
    column = torch.arange(batch.inputs.ids.shape[1])[None]
    after = column > torch.from_numpy(runner.read[rows] + batch.start)[:, None]
    states = runner.sequences.at(runner.sequences.states[first], batch).to(runner.dtype)
    later = after.to(states.device)[..., None].to(states.dtype)
    found = _values(runner, runner.outputs(rows, batch, first, states=states + later))
    _same(runner, found, clean, "what comes after the piece that is read changes nothing", first)
