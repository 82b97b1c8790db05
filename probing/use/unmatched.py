"""Gives the result of a property whose rows have no counterparts, since other properties leave it no variation: probes
are asked whether it can be read, nothing is edited, and the result says which properties determine it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Instrument
from probing.errors import DegenerateDesign
from probing.results.use import UseResult
from probing.use.decoding import decoded
from probing.use.discriminant import FoldStates
from probing.use.effects import UseOptions
from probing.use.experiment import FOLDS, LEAST_GROUPS, LEAST_ROWS
from probing.use.measure import Property, gate_of

MOST_TOGETHER = 3  # covariates that are searched for a combination which determines the property


def unmatched_result(
    instrument: Instrument, prop: Property, error: DegenerateDesign, *, behaviour: str, model: str, options: UseOptions
) -> UseResult:
    """Return the result of a property that no row can be matched for: it has no cells, and `unmatched` says why.

    Args:
        instrument: instrument whose `check` has passed.
        prop: labels of the instrument's rows.
        error: the error of the measurement.
        behaviour, model: names that are written into the result.
        options: see `UseOptions`.

    Raises:
        DegenerateDesign: the property cannot be measured without covariates either; the message names it.
    """
    named = DegenerateDesign(
        f"{prop.name}: {error.message}",
        needed=error.needed,
        found=error.found,
        where=f"task {prop.name}",
        next_step=error.next_step or "give more rows or texts, or a task whose classes are less rare",
    )
    if not prop.covariates or not options.stratify or _is_matched(prop, options):
        raise named from error
    try:
        experiment = prop.plan(replace(options, stratify=False))
    except DegenerateDesign:
        raise named from error
    found = {}
    for place in instrument.places:
        states = FoldStates.of(experiment, instrument.states(place)[experiment.rows])
        found[str(place)] = gate_of(decoded(experiment, states, seed=options.seed))
    return UseResult(
        task=prop.name,
        behaviour=behaviour,
        model=model,
        cells=(),
        decodability=found,
        n_rows=0,
        coverage=0.0,
        least_groups=0.0,
        n_classes=experiment.n_classes,
        stratified_by="crossing",
        n_strata=0,
        covariates=tuple(prop.covariates),
        grouped_by=experiment.grouped_by,
        epsilon=options.epsilon,
        settings=dict(vars(options)),
        is_matched=False,
        unmatched=why_unmatched(prop),
    )


def _is_matched(prop: Property, options: UseOptions) -> bool:
    """Return whether rows can be matched, so that an error of the measurement was about something else."""
    try:
        prop.plan(options)
    except DegenerateDesign:
        return False
    return True


def why_unmatched(prop: Property) -> str:
    """Return a clause that names the covariates which leave the property no variation."""
    several = determining(prop)
    if several:
        given = " and ".join(several)
        together = " together" if len(several) > 1 else ""
        return f"{prop.name} is determined by {given}{together}: no two rows differ in it that agree in {given}"
    return (
        f"among rows that agree in {' and '.join(prop.covariates)}, {prop.name} has nowhere two classes with "
        f"{LEAST_ROWS} rows and {LEAST_GROUPS} groups each in every one of {FOLDS} folds"
    )


def determining(prop: Property) -> tuple[str, ...]:
    """Return the names of the fewest covariates (up to `MOST_TOGETHER`) whose values, or combinations of values, each
    have one value of the property and recur; () if there are none.
    """
    codes = {name: _codes(values) for name, (values, _) in prop.covariates.items() if values.dtype.kind != "f"}
    real = prop.z.dtype.kind == "f"
    has = np.isfinite(prop.z) if real else prop.z >= 0
    z = _codes(prop.z[has])
    for size in range(1, min(MOST_TOGETHER, len(codes)) + 1):
        for names in combinations(codes, size):
            if _determines([codes[name][has] for name in names], z):
                return names
    return ()


def _determines(given: Sequence[NDArray[np.int64]], z: NDArray[np.int64]) -> bool:
    combined = np.unique(np.stack(given, 1), axis=0, return_inverse=True)[1].reshape(-1)
    n_values = int(combined.max(initial=-1)) + 1
    pairs = np.unique(np.stack([combined, z], 1), axis=0)
    return len(pairs) == n_values and 2 * n_values <= len(z)


def _codes(values: NDArray[np.generic]) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)
    return codes
