"""What part of the effect of the class-mean swap another edit has that gives states another value of the property: its
effect in the three rotations of the verdict's protocol, as a share of the natural contrast and of the swap's effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.contracts.intervention import Edit, Intervention, Targets
from probing.results.use import LATENT, NEVER_ACTIVE
from probing.seeds import child_seed
from probing.use.contrasts import FromTo
from probing.use.effect_sums import EffectSums
from probing.use.effects import EditMeasurement
from probing.use.experiment import FOLDS
from probing.use.inference import Effect, effect, ratio_interval
from probing.use.swapping import swapped

Ints = NDArray[np.int64]


def targets_of(bench: EditMeasurement, rows: Ints) -> Targets:
    """Return the labels and strata of rows of an experiment."""
    e = bench.experiment
    return Targets(e.z[rows], e.strata[rows], e.n_classes)


def fitted_edits(bench: EditMeasurement, place: Place, intervention: Intervention, *, name: str) -> list[Edit]:
    """Return the edits of an intervention in the three rotations, each fitted on F1.

    Args:
        bench: the experiment with its model.
        place: place of the edits.
        intervention: the intervention.
        name: name of the intervention, for its seeds.
    """
    states, edits = bench.states(place), []
    for r in range(FOLDS):
        f1 = bench.folds(r)[0]
        seed = child_seed(bench.seed, "comparison", name, r)
        edits.append(intervention.fit(states[f1], targets_of(bench, f1), seed=seed))
    return edits


def chosen_latents(edits: Sequence[Edit]) -> dict[str, float]:
    """Return `latent_N` for each latent N that some of the edits set: the share of the edits that set it; and, if any
    of them is active on no row that the edits were fitted on, how many are (`never_active`).
    """
    counts = Counter(latent for edit in edits for latent in edit.latents)
    silent = len(set(counts) - {latent for edit in edits for latent in edit.active_latents})
    found = {f"{LATENT}{latent}": counts[latent] / len(edits) for latent in sorted(counts)}
    return found | ({NEVER_ACTIVE: float(silent)} if silent else {})


def edited_effect(bench: EditMeasurement, place: Place, edits: Sequence[Edit]) -> Effect:
    """Measure edits that give each row another value of the property, and return their effect: fitted on F1, measured
    along the contrast of F2 on all rows of F3, in each rotation, as the class-mean swap is.

    Args:
        bench: the experiment with its model.
        place: place of the edits.
        edits: the edit of each rotation, as `fitted_edits` returns them; rows keep the goals that they have in the
            swap.
    """
    states, naturals = bench.states(place), bench.naturals
    edited = [
        _applied(edit, states[one.f3], targets_of(bench, one.f3), one.sides)
        for edit, one in zip(edits, naturals, strict=True)
    ]
    changes = bench.run_folds(place.site, [one.f3 for one in naturals], {place.position: edited})
    slopes = bench.sampled_slopes(place, edited, [[one.aim] for one in naturals])
    tally = EffectSums(bench.dependence, is_single=bench.is_single)
    for r, natural in enumerate(naturals):
        rows = natural.f3[bench.samples[r][0]]
        sides, sensitivity = slopes[r]
        through = edits[r].influence(states[rows], targets_of(bench, rows), sides.goal, sensitivity[0])
        of_fit = None if through is None else (bench.folds(r)[0], through)
        tally.add(natural, changes[r], through_edit=of_fit)
    return effect(tally, bench.experiment, bench.spread)


def _applied(edit: Edit, states: NDArray[Any], targets: Targets, sides: FromTo) -> NDArray[Any]:
    return np.asarray(edit.apply(states, targets, sides.goal), states.dtype)


def shares(bench: EditMeasurement, place: Place, found: Effect, swap: Effect | None) -> dict[str, float]:
    """Return `mediated_fraction` (τ / T) and `share_of_swap` (τ / τ of the class-mean swap at dose 1), each with the
    ends of its 95 % interval (`…_low`, `…_high`); a share is left out where what it is a share of is not established.

    Args:
        bench: the experiment with its model.
        place: place of the edits.
        found: effect of the edit.
        swap: effect of the swap at dose 1; None: it is measured.
    """
    if swap is None:
        swap = effect(swapped(bench, place, with_u=False), bench.experiment, bench.spread)
    numbers = {"effect_size": found.effect_size}
    ends = found.mediated_fraction_interval()
    if ends is not None and found.mediated_fraction is not None:
        numbers |= _with_ends("mediated_fraction", found.mediated_fraction, ends)
    covariance = float(found.tau_full.by_group @ swap.tau_full.by_group)
    ends = ratio_interval(found.tau_full, swap.tau_full, covariance)
    if ends is not None:
        numbers |= _with_ends("share_of_swap", found.tau.value / swap.tau.value, ends)
    return numbers


def _with_ends(name: str, value: float, ends: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}
