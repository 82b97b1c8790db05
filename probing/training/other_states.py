"""Fits a probe on the states of state controls, only once for sites that share them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from probing.contracts.probe import Probe
from probing.errors import ProbingError
from probing.measures._rows import tempers_of
from probing.training.build import StateSet
from probing.training.fitting import OtherFits, Unit, fits_of, has_converged
from probing.training.plan import Plan
from probing.training.scoring import ControlScores, Scores, score_label_set
from probing.training.states import site_states

_Done = tuple[Scores, int, bool]  # scores, how many fits, whether all converged


@dataclass
class OtherStates:
    """Fits probes on the states of state controls, and caches each fit by probe, control, draw and name of the states,
    so that sites with the same control states share the fit.

    A fit is the same, bit for bit, in every process, so it makes no difference which process computes it.
    """

    plan: Plan
    _known: dict[tuple[str, str, int, str], _Done] = field(default_factory=dict)

    def fits(self, unit: Unit) -> list[OtherFits]:
        """Return the fits of one probe on every state control that has states for its site; an empty list for a probe
        that does not read a single state per row.
        """
        site, name, probe = unit
        if probe.input != "states":
            return []
        return [
            self._of_control(one, site, name, probe) for one in self.plan.state_controls if one.source.stand_in(site)
        ]

    def _of_control(self, one: StateSet, site: str, name: str, probe: Probe) -> OtherFits:
        done = []
        for draw in range(one.draw_count):
            key = name, one.name, draw, one.source.stand_in(site)
            if key not in self._known:
                self._known[key] = self._fitted(one, site, probe, draw)
            done.append(self._known[key])
        scores = [scored for scored, _, _ in done]
        return OtherFits(
            one.name,
            ControlScores(False, [None] * len(scores), scores, above=one.source.above),
            sum(count for _, count, _ in done),
            all(converged for _, _, converged in done),
        )

    def _fitted(self, one: StateSet, site: str, probe: Probe, draw: int) -> _Done:
        plan = self.plan
        try:
            states = site_states(plan, site, partial(one.source.read, draw=draw))
        except ProbingError as error:
            error.add_note(f"the states are those of the control {one.name}")
            raise
        (fits,) = fits_of(plan, probe, states, (plan.labels,))
        seen = plan.seen if one.source.seen is None else one.source.seen
        measures = plan.measures_for(probe)
        tempers = tempers_of(fits, plan.labels, states["dev"], measures.values())
        scores = score_label_set(fits, plan.labels, states, measures, plan.resamplers, seen=seen, tempers=tempers)
        return scores, len(fits), has_converged(fits)
