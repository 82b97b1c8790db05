"""Proof on small inputs that the hooks of a loaded model read what the site names say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probing.models.adapters.huggingface import HuggingFaceTrunk
from probing.models.discovery.parts import refusing
from probing.models.discovery.tracing import broken_link, repeated_block
from probing.models.reading.hooked import HookedModule
from probing.text.alignment import Encoded

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative; half precision: 2e-2


@dataclass(frozen=True)
class SelfCheck:
    """Checks that the sites of one model are what their names say.

    Attributes:
        trunk: the model to check.
        states: a function that returns the states `(B, T, D)` of a batch by site.
        padded: a function that returns ids and mask of a batch.
        first_piece: a function that returns the column of each input's first piece.
        special: ids that do not occur in ordinary text.
    """

    trunk: HookedModule
    states: Callable[[Sequence[Encoded], Sequence[str]], dict[str, Tensor]]
    padded: Callable[[Sequence[Encoded]], tuple[Tensor, Tensor]]
    first_piece: Callable[[Sequence[Encoded]], Any]
    special: Sequence[int]

    def model(self) -> None:
        """Check that blocks, if there are any, run once each in a chain, that states do not depend on the batch, and
        that `final_norm` is the norm after the last block.

        Raises:
            UnsupportedModel: a check failed; the message names the model's family.
        """
        with refusing(self.trunk.family, "it is checked", type(self.trunk.model).__name__):
            self._model()

    def _model(self) -> None:
        long, trunk = self.input_of(7), self.trunk
        if not isinstance(trunk, HuggingFaceTrunk) or not len(trunk.blocks):
            self.batches(trunk.sites)
            return
        with torch.inference_mode():
            repeated = repeated_block(trunk, *self.padded([long]))
        if repeated:
            raise trunk.unsupported(repeated, "once in a forward pass")
        self.batches(trunk.sites)
        with torch.inference_mode():
            broken = broken_link(trunk, *self.padded([long]))
        if broken:
            raise trunk.unsupported(f"{broken} is not what the block before it gave", "a chain of blocks")
        self._final_norm(trunk, long)

    def batches(self, sites: Sequence[str]) -> None:
        """Check that states are finite, one a piece, and equal whether an input is run alone or in a batch.

        Raises:
            UnsupportedModel: a check failed; the message names the site.
        """
        trunk = self.trunk
        unsupported, short, long = trunk.unsupported, self.input_of(3), self.input_of(7)
        with torch.inference_mode():
            met = trunk.times_met(*self.padded([long]), [site for site in sites if site in trunk.added])
        for site, times in met.items():
            if times != 1:
                raise unsupported(f"site {site} is met {times} times", "a module that runs once in a forward pass")
        together, starts = self.states([short, long], sites), self.first_piece([short, long])
        for row, one in enumerate((short, long)):
            alone = self.states([one], sites)
            for site in sites:
                state = together[site]
                if state.ndim != 3 or state.shape[:2] != (2, len(long)):
                    raise unsupported(f"{site} has shape {tuple(state.shape)}", f"(2, {len(long)}, width)")
                mine = state[row, starts[row] : starts[row] + len(one)].float()
                if not bool(torch.isfinite(mine).all()):
                    raise unsupported(
                        f"{site} is not finite in {trunk.dtype}", "finite states: try dtype bfloat16 or float32"
                    )
                if not self._is_close(mine, alone[site][0].float()):
                    if not self._is_close(self.states([one], sites)[site].float(), alone[site].float()):
                        raise unsupported(f"{site} is another each time", "equal states of equal texts, in eval mode")
                    how = " padded on the left" if starts.any() else ""
                    raise unsupported(f"{site} changes with the batch{how}", "the same states alone and in a batch")

    def input_of(self, length: int) -> Encoded:
        """Return an input of the given number of ordinary pieces."""
        special = set(self.special)
        ids = [i for i in range(min(self.trunk.vocabulary, 1000 + len(special))) if i not in special]
        chosen = np.array([(ids or [0])[(7 * k) % len(ids or [0])] for k in range(1, length + 1)], dtype=np.int64)
        none = np.zeros((0, 2), dtype=np.int64)
        return Encoded(chosen, np.zeros((length, 2), dtype=np.int64), np.zeros(length, dtype=bool), none)

    def _final_norm(self, trunk: HuggingFaceTrunk, one: Encoded) -> None:
        """Check that the norm is the final one: norm(resid.L) is what the trunk returns."""
        if trunk.final_norm is None:
            return
        last = f"resid.{len(trunk.blocks)}"
        with torch.inference_mode():
            states = trunk.read(*self.padded([one]), (last, "final_norm"))
            normed = trunk.final_norm(states[last]).float()
        if not self._is_close(normed, states["final_norm"].float()):
            raise trunk.unsupported("the final norm is not applied to the last block's output", f"norm({last})")

    def _is_close(self, a: Tensor, b: Tensor) -> bool:
        tolerance = _TOLERANCE.get(self.trunk.dtype, 2e-2) * (float(b.abs().max()) or 1.0)
        return a.shape == b.shape and float((a - b).abs().max()) <= tolerance
