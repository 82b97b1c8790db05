"""ArrayInstrument: an instrument made of arrays of states and your own function, for models of any library."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Instrument, Place, RunFrom, expect_equal
from probing.errors import BadParameter, EditFailed, NoBehaviour, NonFiniteStates, ReplayUnavailable, unknown_name

PROBED_ROWS = 32


class ArrayInstrument(Instrument):
    """An instrument for a model of any library, made from its states and a function that continues a run from edited
    states.

    You write `run_from(site, rows, states_by_position, frozen_norms)`. It returns the behaviour `(n, V)` of the n rows
    when the positions in `states_by_position` have those states `(n, D)` at the site, and all other positions their
    clean states. It must be differentiable by torch, deterministic, and treat rows independently. With `frozen_norms`
    it uses the scales that later norms have in the clean run; set `has_norms=True` if it can.

    Args:
        states: states `(N, D)` float32 by place, in the order of depth; D may differ between places.
        run_from: the function described above.
        clean: behaviour `(N, V)` of the unedited model; None: what `run_from` returns for the clean states.
        logits: whether the behaviour is logits of alternatives.
        has_norms: whether `run_from` can freeze norms.
        offsets: `(N,)` distance of each row from the beginning of its text.

    Raises:
        BadParameter: an array does not have the shape given above.
        NonFiniteStates: states are NaN or infinite.
        NoBehaviour: outputs are not finite, or the same for all rows.
        EditFailed: `run_from` gives a second call other values, or an array of another shape.

    Example:
        >>> import numpy as np, torch
        >>> from probing.contracts.edited_model import Place
        >>> states = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
        >>> reads = torch.eye(8)[:, :2]
        >>> instrument = ArrayInstrument(
        ...     {Place("layer.0"): states}, lambda site, rows, given, frozen_norms: torch.tanh(given[""] @ reads)
        ... )
        >>> instrument.clean().shape
        (100, 2)
    """

    def __init__(
        self,
        states: Mapping[Place, NDArray[np.floating]],
        run_from: RunFrom,
        *,
        clean: NDArray[np.floating] | None = None,
        logits: bool = False,
        has_norms: bool = False,
        offsets: NDArray[np.int64] | None = None,
    ) -> None:
        self._states = {place: _checked_states(place, given) for place, given in states.items()}
        lengths = {len(given) for given in self._states.values()}
        if len(lengths) != 1:
            raise BadParameter(
                "places disagree about the number of rows",
                needed="states (N, D) of the same N rows at every place",
                found=", ".join(f"{place}: {len(s)}" for place, s in self._states.items()) or "no place",
            )
        self._n_rows = lengths.pop()
        self._run_from, self._logits, self._has_norms, self._offsets = run_from, logits, has_norms, offsets
        self._clean = _checked_behaviour(self._all_clean() if clean is None else np.asarray(clean), self._n_rows)
        self._clean.setflags(write=False)
        self._expect_same_again()

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(self._states)

    @property
    def n_rows(self) -> int:
        return self._n_rows

    @property
    def logits(self) -> bool:
        return self._logits

    @property
    def has_norms(self) -> bool:
        return self._has_norms

    @property
    def offsets(self) -> NDArray[np.int64] | None:
        return self._offsets

    def clean(self) -> NDArray[np.float64]:
        return self._clean

    def states(self, place: Place) -> NDArray[np.float32]:
        self.check_places([place])
        return self._states[place]

    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        for position, given in states.items():
            place = Place(site, position)
            self.check_places([place])
            wanted = (len(rows), self._states[place].shape[1])
            if tuple(given.shape) != wanted:
                raise BadParameter(
                    "states of the wrong shape", needed=str(wanted), found=str(tuple(given.shape)), where=str(place)
                )
        if not any(place.site == site for place in self._states):
            raise unknown_name("site", site, {place.site for place in self._states})
        if frozen_norms and not self._has_norms:
            raise ReplayUnavailable(
                "this run_from cannot hold the scales of norms",
                needed="has_norms=True",
                found="has_norms=False",
                where=site,
                next_step="let run_from heed frozen_norms and say has_norms=True",
            )
        found = self._run_from(site, rows, states, frozen_norms)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(rows):
            raise EditFailed(
                "run_from gives something else than outputs",
                needed=f"a tensor ({len(rows)}, V)",
                found=_said(found),
                where=site,
            )
        return found

    def check(self) -> None:
        """Check that clean states give the clean outputs at every place, one place at a time and several together, in
        any order of the rows.

        Raises:
            EditFailed: some outputs differ; the message says which check failed.
        """
        super().check()
        rows = np.arange(min(self._n_rows, PROBED_ROWS))[::-1].copy()
        wanted = torch.from_numpy(self._clean[rows])
        for site in dict.fromkeys(place.site for place in self._states):
            expect_equal(
                self._clean_run(site, rows), wanted, "rows run in another order give their clean outputs", site
            )
            if self._has_norms:
                held = self._clean_run(site, rows, frozen_norms=True)
                expect_equal(held, wanted, "norms held at their clean scales change nothing", site)

    def _clean_run(self, site: str, rows: NDArray[np.int64], *, frozen_norms: bool = False) -> Tensor:
        here = {p.position: torch.from_numpy(s[rows]) for p, s in self._states.items() if p.site == site}
        with torch.no_grad():
            return self.run_from(site, rows, here, frozen_norms=frozen_norms).double()

    def _all_clean(self) -> NDArray[np.float64]:
        site = next(iter(self._states)).site
        every = np.arange(self._n_rows)
        return np.concatenate([self._clean_run(site, every[part]).numpy() for part in self.batches(every)])

    def _expect_same_again(self) -> None:
        rows = np.arange(min(self._n_rows, PROBED_ROWS))
        for site in dict.fromkeys(place.site for place in self._states):
            first, second = (self._clean_run(site, rows) for _ in range(2))
            expect_equal(second, first, "a second call with the same states gives the same", site)


def _checked_states(place: Place, given: NDArray[np.floating]) -> NDArray[np.float32]:
    states = np.asarray(given)
    if states.ndim != 2 or states.dtype.kind not in "fiu" or 0 in states.shape:
        raise BadParameter(
            "states must be a matrix of numbers",
            needed="(N, D), N and D at least 1",
            found=_said(states),
            where=str(place),
        )
    states = np.ascontiguousarray(states, np.float32)
    bad = np.flatnonzero(~np.isfinite(states).all(1))
    if len(bad):
        raise NonFiniteStates(
            "states are not finite",
            needed="finite numbers in float32",
            found=f"{len(bad)} bad rows",
            where=f"{place}, first in row {bad[0]}",
        )
    return states


def _checked_behaviour(given: NDArray[np.floating], n_rows: int) -> NDArray[np.float64]:
    if given.ndim != 2 or len(given) != n_rows or given.shape[1] == 0:
        raise BadParameter("clean outputs of the wrong shape", needed=f"({n_rows}, V)", found=str(given.shape))
    clean = np.array(given, np.float64)
    if not np.isfinite(clean).all():
        raise NoBehaviour(
            "outputs are not finite",
            needed="finite numbers",
            found=f"{int((~np.isfinite(clean).all(1)).sum())} rows with NaN or infinity",
        )
    if (clean == clean[0]).all():
        raise NoBehaviour(
            "the behaviour never varies",
            needed="outputs that differ between rows",
            found=f"{n_rows} equal rows",
            next_step="measure something that the rows change",
        )
    return clean


def _said(found: object) -> str:
    return f"{type(found).__name__} {tuple(getattr(found, 'shape', ()))}"
