"""UseOptions: settings of an intervention run besides its rows."""

from __future__ import annotations

from dataclasses import dataclass

from probing.errors import BadParameter

DOSES = (0.5, 1.0, 1.5, 2.0)
SLOPE_ROWS = 64


@dataclass(frozen=True)
class UseOptions:
    """Options of `intervene`.

    Attributes:
        seed: of folds, goals, pairs, samples and draws.
        epsilon: smallest effect of interest, in SDs of the clean output.
        doses: of class-mean swaps.
        curve: measure all doses, not only the primary one.
        details: what explains an effect: selectivity over others, one shared shift, joint edits, frozen norms.
        null: variance of τ under shuffled labels, by its derivative.
        deals: how often the groups outside the measured fold are dealt out anew between what fits the shift and what
            fits the contrast: a verdict that turns with it is none.
        slope_rows: about how many rows of a fold derivatives are taken of, for standard errors; 0: all.
        permutations: of labels, with the shift refitted, at the place of the largest effect; 0: none.
        control_properties: random properties of word types that go through the same measurement; 0: none.
        comparisons: other interventions that stand beside, as specs such as `leace` or `random_subspace:rank=1`.
        stratify: False: without strata; shared: one shift for all strata; folds: False: the same rows fit and are
            measured. All for comparison only.
    """

    seed: int = 0
    epsilon: float = 0.1
    doses: tuple[float, ...] = DOSES
    curve: bool = True
    details: bool = True
    null: bool = True
    deals: int = 4
    slope_rows: int = SLOPE_ROWS
    permutations: int = 0
    control_properties: int = 0
    comparisons: tuple[str, ...] = ()
    stratify: bool = True
    shared: bool = False
    folds: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 2:
            raise BadParameter("epsilon out of range", needed="0 < ε < 2 SD", found=str(self.epsilon))
        if not self.doses or min(self.doses) <= 0:
            raise BadParameter("doses must be positive", needed="such as 0.5, 1, 1.5, 2", found=str(self.doses))
        if min(self.permutations, self.control_properties, self.slope_rows, self.deals) < 0:
            raise BadParameter("a number of draws or rows is negative", needed="0 or more", found="less")
