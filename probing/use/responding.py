"""Runs edited rows through an instrument: the behaviour that results, and its derivative in the edited states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Instrument
from probing.errors import EditFailed

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def behaviour(
    instrument: Instrument,
    site: str,
    rows: Ints,
    states: Mapping[str, NDArray[np.floating]],
    *,
    frozen_norms: bool = False,
) -> Floats:
    """Run rows with the given states `(n, D)` by position, and return the behaviour `(n, V)`.

    Raises:
        EditFailed: the behaviour is not finite.
    """
    parts, found = instrument.batches(rows), []
    with torch.no_grad():
        for given, part in _given(parts, states):
            y = instrument.run_from(site, rows[part], given, frozen_norms=frozen_norms)
            found.append(y.double().cpu().numpy())
    outputs: Floats = np.concatenate(found)[_back(parts)]
    if not np.isfinite(outputs).all():
        raise EditFailed(
            "an edit gives outputs that are not finite",
            needed="finite outputs",
            found="NaN or infinity",
            where=site,
            next_step="choose smaller doses, or compute in float32",
        )
    return outputs


def slopes(
    instrument: Instrument,
    site: str,
    position: str,
    rows: Ints,
    states: NDArray[np.floating],
    coefficients: Floats,
    *,
    frozen_norms: bool = False,
) -> Floats:
    """Return the derivatives of each row's ⟨coefficients, behaviour⟩ with respect to its states `(n, D)`, at those
    states.

    Args:
        coefficients: `(m, n, V)`, m sets of coefficients; rows are run once for all sets.

    Returns:
        The derivatives, `(m, n, D)`.
    """
    parts, found = instrument.batches(rows), []
    with torch.enable_grad():
        for given, part in _given(parts, {position: states}):
            edited = given[position].requires_grad_(True)
            y = instrument.run_from(site, rows[part], given, frozen_norms=frozen_norms)
            if not y.requires_grad:  # a place may lie where nothing is read any more
                found.append(np.zeros((len(coefficients), *edited.shape)))
                continue
            sets = torch.from_numpy(coefficients[:, part]).to(y.device, y.dtype)
            found.append(
                np.stack(
                    [
                        torch.autograd.grad((y * one).sum(), edited, retain_graph=True)[0].double().cpu().numpy()
                        for one in sets
                    ]
                )
            )
    return np.concatenate(found, axis=1)[:, _back(parts)]


def _given(parts: list[Ints], states: Mapping[str, NDArray[np.floating]]) -> Iterator[tuple[dict[str, Tensor], Ints]]:
    for part in parts:
        yield {k: torch.from_numpy(np.ascontiguousarray(v[part])) for k, v in states.items()}, part


def _back(parts: list[Ints]) -> Ints:
    return np.argsort(np.concatenate(parts), kind="stable")
