"""Defines `Analysis`, the base class of analyses, which fit a probe many times at one site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from numpy.typing import NDArray

from probing.contracts.control import Probed, StateTable
from probing.contracts.probe import Probe
from probing.labels import Kind, Labels
from probing.results.analysis import Point
from probing.statistics.clusters import Resampler


@dataclass(frozen=True)
class SiteData:
    """Holds the data that an analysis reads at one site.

    Attributes:
        site: name of the site.
        states: `(n, D)` states by split.
        labels: labels of the task, in all splits; `labels.rows(split)` are the rows of `states[split]`, in that order.
        controls: by name of the control, the labels of each of its draws.
        given: by split, the states of the site that `Analysis.given` names; None if it names none.
        seeds: seeds of the fits, one per fit of a stochastic probe.
        resamplers: by split (dev and test), the clusters and their bootstrap weights.
        chance_checks: names of the controls that only check for chance; no selectivity is defined against them.
        others: by name of a state control, a function that reads its states of these rows at this site, by split.
    """

    site: str
    states: Mapping[str, NDArray[Any]]
    labels: Labels
    controls: Mapping[str, tuple[Labels, ...]]
    given: Mapping[str, NDArray[Any]] | None
    seeds: tuple[int, ...]
    resamplers: Mapping[str, Resampler]
    chance_checks: frozenset[str] = frozenset()
    others: Mapping[str, Callable[[], Mapping[str, NDArray[Any]]]] = field(default_factory=dict)

    @property
    def label_sets(self) -> list[tuple[str, int, Labels]]:
        """All sets of labels to fit on, as triples (control, draw, labels): first the task's own, with control "" and
        draw -1, then every draw of every control.
        """
        drawn = [(name, draw, labels) for name, draws in self.controls.items() for draw, labels in enumerate(draws)]
        return [("", -1, self.labels), *drawn]


class Analysis(ABC):
    """Base class of analyses: each fits one probe many times at one site, and reports numbers such as a learning curve,
    a code length or conditional information.

    Class attributes:
        kinds: kinds of labels that it can be used for: `classes`, `real` numbers, or both.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    @property
    def given(self) -> str:
        """Name of a second site of the store whose states are read as well; "" if there is none."""
        return ""

    @property
    def name(self) -> str:
        """Name of the analysis in results; "" means that results use its recipe (its name with options)."""
        return ""

    def reads(self, site: str) -> bool:
        """Return whether the analysis is run at this site."""
        return True

    def check(self, probed: Probed, others: Collection[str]) -> None:  # noqa: B027 (few need it)
        """Raise an error if the analysis cannot be run on these states and labels; it is called before any work.
        `others` are the names of the run's state controls.
        """

    def check_states(self, table: StateTable, labels: Labels) -> None:  # noqa: B027 (few need it)
        """Read some of the states, and raise an error if the analysis cannot be run on their values. It is called
        before any fit, unless the results of the analysis are stored already.
        """

    def accepts(self, probe: Probe) -> bool:
        """Return whether the analysis can be run on this probe; probes that it does not accept are skipped."""
        return True

    def settings(self, data: SiteData) -> Mapping[str, Any]:
        """Return, by name, the settings that affect the numbers but are not parameters of the analysis; JSON can hold
        their values. `data` are the states and labels that the analysis is run on.
        """
        return {}

    @abstractmethod
    def run(self, probe: Probe, data: SiteData) -> Sequence[Point]:
        """Run the analysis on `data` and return its numbers, one `Point` each, in the order in which they are reported.
        `probe` itself is never fitted, only clones of it.
        """
