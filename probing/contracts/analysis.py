"""Analysis, SiteData: the contract of analyses, which fit a probe many times at one site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from probing.contracts.probe import Probe
from probing.labels import Kind, Labels
from probing.results.analysis import Point
from probing.statistics.clusters import Resampler


@dataclass(frozen=True)
class SiteData:
    """The data that an analysis reads at one site.

    Attributes:
        site: its name.
        states: `(n, D)` states by split.
        labels: of the task, all splits; `labels.rows(split)` are the rows of `states[split]`, in that order.
        controls: the labels of every draw, by name of the control.
        given: states by split of the site that the analysis names in `given`, else None.
        seeds: of the run.
        resamplers: clusters and their weights, by split (dev and test).
        chance_checks: controls against which selectivity is not defined.
    """

    site: str
    states: Mapping[str, NDArray[Any]]
    labels: Labels
    controls: Mapping[str, tuple[Labels, ...]]
    given: Mapping[str, NDArray[Any]] | None
    seeds: tuple[int, ...]
    resamplers: Mapping[str, Resampler]
    chance_checks: frozenset[str] = frozenset()

    @property
    def label_sets(self) -> list[tuple[str, int, Labels]]:
        """Triples (control, draw, labels): the task's own first, with control "" and draw -1, then every draw of every
        control.
        """
        drawn = [(name, draw, labels) for name, draws in self.controls.items() for draw, labels in enumerate(draws)]
        return [("", -1, self.labels), *drawn]


class Analysis(ABC):
    """An analysis fits one probe many times at one site: it gives a curve, a code length or conditional information."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    @property
    def given(self) -> str:
        """Another site of the store whose states are read too; "" for none."""
        return ""

    def accepts(self, probe: Probe) -> bool:
        """Return whether the analysis can be run on this probe; probes that it does not accept are skipped."""
        return True

    def settings(self, data: SiteData) -> Mapping[str, Any]:
        """Return the settings that enter the numbers and are no parameters, ready for JSON."""
        return {}

    @abstractmethod
    def run(self, probe: Probe, data: SiteData) -> Sequence[Point]:
        """Return the numbers, in the order in which they are reported. `probe` is never fitted itself, only its
        clones.
        """
