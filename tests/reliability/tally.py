"""What a figure came to: what was done, what went wrong, and what the same did to a careless writer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

KINDS = ("lost", "wrong", "crash", "hang")


@dataclass
class Tally:
    """The outcome of one figure.

    Attributes:
        figure: F1 to F13.
        reach: what has to hold.
        done: counts of what was done.
        problems: (kind, what happened) for everything that must not happen; kinds: lost, wrong, crash, hang.
        naive: problems of the careless double, by kind; None: the figure has none.
        naive_must_fail: the figure counts only if the careless double had problems.
        notes: what was measured.
        unrun: why it was not run; "" if it was.
    """

    figure: str
    reach: str
    done: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    naive: Counter[str] | None = None
    naive_must_fail: bool = True
    notes: list[str] = field(default_factory=list)
    unrun: str = ""

    def add(self, kind: str, found: Iterable[object], where: str) -> None:
        """Note a problem for each thing found."""
        self.problems += [(kind, f"{where}: {one}") for one in found]

    def add_naive(self, problems: Iterable[tuple[str, str]]) -> None:
        """Note what the careless double did."""
        self.naive = (self.naive or Counter()) + Counter(kind for kind, _ in problems)

    @property
    def passed(self) -> bool:
        """Nothing went wrong, something was done, and the careless double failed."""
        discriminates = self.naive is None or not self.naive_must_fail or sum(self.naive.values()) > 0
        return not self.unrun and not self.problems and sum(self.done.values()) > 0 and discriminates

    def count(self, kind: str) -> int:
        """Problems of one kind."""
        return sum(found == kind for found, _ in self.problems)
