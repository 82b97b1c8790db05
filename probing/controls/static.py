"""Uses the states of a lower site of the same store, such as the embeddings, in place of those of the probed site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.control import Ints, Probed, StateControl, StateSource, StateTable
from probing.errors import BadParameter, UnknownSite, unknown_name


@dataclass(frozen=True, kw_only=True)
class StaticControl(StateControl):
    """Uses the states of a lower site, such as the token embeddings, to show what the blocks of the model add.

    The site `embed` is the token embedding alone; `resid.0` also contains what the model adds before the first block,
    in many models the positions. Every other site is compared with the chosen one, on the same rows.

    Args:
        site: a site of the store; empty means the store's lowest.
    """

    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = "the label is in the embeddings already"
    draws: ClassVar[int] = 1  # type: ignore[misc]

    site: str = ""

    def source(self, probed: Probed) -> StaticStates:
        """Return a source of the states of that site. `probed` holds the store, the sites and the labels.

        Raises:
            UnknownSite: the store has no such site; the message names the nearest.
            BadParameter: the store has no other site, which could be compared with it.
        """
        sites = probed.table.sites
        site = self.site or sites[0]
        if site not in sites:
            raise unknown_name(
                "site of the control static", site, sites, where=str(probed.table.path), error=UnknownSite
            )
        if set(probed.sites) == {site}:
            raise BadParameter(
                "the control static has nothing to compare",
                needed="a probed site above it",
                found=f"{site} alone",
                where=str(probed.table.path),
                next_step="probe more sites, or extract a lower one, such as embed",
            )
        return StaticStates(probed.table, site, f"static:site={site}", site)


@dataclass(frozen=True, eq=False)
class StaticStates(StateSource):
    """Gives the states of one fixed site, whichever site is asked for.

    Attributes:
        table: the store of the states.
        site: name of the fixed site.
        name, above: as in `StateSource`.
    """

    table: StateTable
    site: str
    name: str
    above: str

    def stand_in(self, site: str) -> str:
        """Return the name of the fixed site for every other site, since all are given the same states and probes on
        these are fitted only once; return "" for the fixed site itself, which needs no control.
        """
        return "" if site == self.site else self.site

    def read(self, site: str, rows: Ints, *, draw: int) -> NDArray[np.float32]:
        """Return the states `(N, D)` of these N rows of the store at the fixed site; `site` and `draw` have no
        effect.
        """
        return self.table.read(self.site, rows)

    def recipe(self) -> dict[str, str]:
        """Return `{"site": name}`: the site whose states replace the others, which may have been chosen by default."""
        return {"site": self.site}


MEMBER = StaticControl
