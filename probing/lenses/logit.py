"""The logit lens: the state of an inner site, put in at the end of the model as it is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from probing.contracts.lens import Lens


class LogitLens(Lens):
    """Puts the state of an inner site in at the end of the model as it is.

    References:
        nostalgebraist 2020, interpreting GPT: the logit lens.
    """

    name = "logit"
    about = "the state as it is, read by the model's own end"

    def reads(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return the sites, all of which it reads."""
        return tuple(sites)

    def at(self, site: str, states: Tensor) -> Tensor:
        """Return the states themselves."""
        return states
