"""Running edited rows through an instrument: what the behaviour becomes, and its derivative in the edited states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from probing.errors import EditFailed
from probing.instrument import Instrument

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def behaviour(
    instrument: Instrument, site: str, rows: Ints, states: Mapping[str, NDArray[np.floating]], *,
    frozen_norms: bool = False,
) -> Floats:  # fmt: skip
    """`(n, V)` behaviour of the rows with these `(n, D)` states, by position.

    Raises:
        EditFailed: the behaviour is not finite.
    """
    return _run(instrument, site, rows, states, None, frozen_norms)[0]


def behaviour_and_slopes(
    instrument: Instrument,
    site: str,
    position: str,
    rows: Ints,
    states: NDArray[np.floating],
    coefficients: Floats,
    *,
    frozen_norms: bool = False,
) -> tuple[Floats, Floats]:
    """Behaviour `(n, V)`, and `(n, D)` the derivatives of each row's ⟨coefficients, behaviour⟩ in its states."""
    found, slopes = _run(instrument, site, rows, {position: states}, coefficients, frozen_norms)
    assert slopes is not None
    return found, slopes


def _run(
    instrument: Instrument, site: str, rows: Ints, states: Mapping[str, NDArray[np.floating]],
    coefficients: Floats | None, frozen_norms: bool,
) -> tuple[Floats, Floats | None]:  # fmt: skip
    outputs: list[Floats] = []
    slopes: list[Floats] = []
    order: list[Ints] = []
    for part in instrument.batches(rows):
        given = {k: torch.from_numpy(np.ascontiguousarray(v[part])) for k, v in states.items()}
        if coefficients is None:
            with torch.no_grad():
                y = instrument.run_from(site, rows[part], given, frozen_norms=frozen_norms)
        else:
            (edited,) = given.values()
            edited.requires_grad_(True)
            y = instrument.run_from(site, rows[part], given, frozen_norms=frozen_norms)
            weights = torch.from_numpy(coefficients[part]).to(y.dtype).to(y.device)
            depends = y.requires_grad  # a place may lie where nothing is read any more
            (slope,) = torch.autograd.grad((y * weights).sum(), edited) if depends else (torch.zeros_like(edited),)
            slopes.append(slope.double().cpu().numpy())
        outputs.append(y.detach().double().cpu().numpy())
        order.append(part)
    back = np.argsort(np.concatenate(order), kind="stable")
    found = np.concatenate(outputs)[back]
    if not np.isfinite(found).all():
        raise EditFailed(
            "an edit gives outputs that are not finite", needed="finite outputs", found="NaN or infinity", where=site,
            next_step="choose smaller doses, or compute in float32",
        )  # fmt: skip
    return found, np.concatenate(slopes)[back] if slopes else None
