"""The Jacobian lens: the state times the mean derivative of the last state by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from probing.contracts.lens import Lens
from probing.errors import CorpusError, UnsupportedModel
from probing.files.pickles import read_pickle, refused_pickle
from probing.lenses._reading import Tail
from probing.lenses.tuned import (
    check_sites,
    checked,
    damaged,
    other_model,
    unreadable,
)
from probing.models.discovery.tracing import given_state
from probing.text.alignment import Encoded

SKIPPED = 16  # first positions of a text, whose states are unlike all others
_KEYS = ("J", "n_prompts", "source_layers", "d_model")  # of a file
_TOGETHER = 1 << 14  # tokens of the copies of a text that are differentiated together


@dataclass(eq=False)
class JacobianLens(Lens):
    """Moves a state to the last site by the mean derivative of the last states by it: J h.

    Attributes:
        matrices: J `(D, D)` by site.
        changes: relative difference ‖J₁ − J₂‖ / ‖J‖ between the means over two halves of the texts, by site; empty
            for a lens from a file.
        facts: how it was made.
    """

    matrices: Mapping[str, Tensor]
    changes: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "jacobian"
    about: str = "the state times the mean derivative of the last states by it"

    def reads(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return those of the sites that have a derivative."""
        return tuple(site for site in sites if site in self.matrices)

    def at(self, site: str, states: Tensor) -> Tensor:
        """Return J h in float32."""
        return states.float() @ self.matrices[site].to(states.device).T

    @classmethod
    def read(cls, path: Path | str, tail: Tail, *, allow_pickle_weights: bool = False, any_model: bool = False) -> Self:
        """Read a file `{"J": {layer: (D, D)}, "n_prompts", "source_layers", "d_model"}`; layer l is the output of block
        l, our site `resid.{l+1}`. The file does not name its model, so only the width can be checked.

        Raises:
            UntrustedFile: it is a pickle, and `allow_pickle_weights` is not set.
            InputError: it cannot be read, or has another form.
            ProvenanceMismatch: it is of another width or depth.
        """
        file = Path(path)
        if not allow_pickle_weights and file.is_file():
            raise refused_pickle(file, "lens")
        values, width = read_pickle(file, "lens"), tail.model.width(tail.site)
        missing = [key for key in _KEYS if not isinstance(values, dict) or key not in values]
        if missing:
            raise unreadable(file, f"no entry {', '.join(missing)}", needed=f"a dictionary with {', '.join(_KEYS)}")
        try:
            given = {int(layer): matrix for layer, matrix in values["J"].items()}
            facts = {"texts": int(values["n_prompts"]), "read_from": "a file"}
            layers, own = sorted(int(layer) for layer in values["source_layers"]), int(values["d_model"])
        except Exception as error:
            raise damaged(file, error) from error
        if layers != sorted(given) or not layers or layers[0] < 0:
            found = f"J of layers {sorted(given)}, source_layers {layers}"
            raise unreadable(file, found, needed="the same layers in both, from 0 on")
        if own != width:
            raise other_model(f"d_model {width}", f"d_model {own}", str(file), kind="jacobian")
        check_sites(tail, [f"resid.{layer + 1}" for layer in layers], str(file))
        matrices = {
            f"resid.{layer + 1}": checked(given[layer], (width, width), f"J[{layer}]", file) for layer in layers
        }
        return cls(matrices, facts=facts | {"unchecked": ["that it is of this model: its file names none"]})

    @classmethod
    def fit(
        cls,
        tail: Tail,
        inputs: Sequence[Encoded],
        sites: Sequence[str],
        *,
        skip: int = SKIPPED,
        where: str = "",
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> Self:
        """Compute the mean derivative over texts and positions, and how far it has converged.

        At a position t of a text, the derivative is Σ ∂h_L[t′] / ∂h_l[t] over all later positions t′ ≥ t. The first
        `skip` positions and the last one are left out, of t and of t′. Each text costs a forward pass and one backward
        pass for each of the D features.

        Args:
            tail: end of the model.
            inputs: the texts.
            sites: sites `resid.l` below the last.
            skip: number of first positions that are left out.
            where: where the texts are from, named in errors.
            advance: called with the numbers of texts done and of all.

        Raises:
            CorpusError: fewer than two texts are longer than `skip` + 1 tokens.
        """
        chosen = [one for one in inputs if len(one) > skip + 1]
        if len(chosen) < 2:
            raise CorpusError(
                "too few long texts for a Jacobian lens",
                needed=f"two texts of more than {skip + 1} tokens",
                found=f"{len(chosen)} of {len(inputs)}",
                where=where or tail.model.name,
                next_step="give longer texts, in the split train",
            )
        halves: list[dict[str, Tensor]] = [{}, {}]
        for number, one in enumerate(chosen):
            for site, matrix in derivatives(tail, one, sites, skip).items():
                sums = halves[number % 2]
                sums[site] = sums[site] + matrix if site in sums else matrix
            advance(number + 1, len(chosen))
        counts = (len(chosen) + 1) // 2, len(chosen) // 2
        means = {site: (halves[0][site] + halves[1][site]) / len(chosen) for site in sites}
        changes = {
            site: float((halves[0][site] / counts[0] - halves[1][site] / counts[1]).norm() / means[site].norm())
            for site in sites
        }
        return cls(means, changes, {"texts": len(chosen), "skip": skip})


def derivatives(tail: Tail, one: Encoded, sites: Sequence[str], skip: int) -> dict[str, Tensor]:
    """Return the derivatives of one text by site, each `(D, D)`, mean over its positions."""
    model, trunk = tail.model, tail.model.suffix.trunk
    width, length = model.width(tail.site), len(one)
    copies = max(1, min(width, _TOGETHER // length))
    inputs = model.padded([one] * copies)
    ordered = sorted(sites, key=tail.sites.index)
    clean = model.states([one], [ordered[0]])[ordered[0]]
    leaf = clean.clone().repeat(copies, 1, 1).requires_grad_()
    with torch.enable_grad(), frozen(model.suffix.model):
        last, inner = _inner_states(tail, leaf, inputs, ordered)
        places = torch.arange(skip, length - 1, device=last.device)
        sums = {site: torch.zeros((width, width), device=last.device) for site in ordered}
        for begin in range(0, width, copies):
            features = torch.arange(begin, min(begin + copies, width), device=last.device)
            weights = torch.zeros_like(last)
            weights[torch.arange(len(features))[:, None], places[None], features[:, None]] = 1.0
            gradients = torch.autograd.grad(
                last, [inner[site] for site in ordered], weights, retain_graph=begin + copies < width
            )
            for site, gradient in zip(ordered, gradients, strict=True):
                sums[site][features] = gradient[: len(features), places].float().mean(1)
    if not all(bool(torch.isfinite(matrix).all()) for matrix in sums.values()):
        raise trunk.unsupported("derivatives that are not finite", "finite derivatives")
    return sums


def _inner_states(tail: Tail, leaf: Tensor, inputs: Any, sites: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the states at the last site and at `sites` of a run from the first of them, as one graph."""
    suffix = tail.model.suffix
    blocks = suffix.trunk.blocks  # type: ignore[attr-defined]  # `suffix.layer` refused models without blocks
    inner = {sites[0]: leaf}

    def note(site: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state = given_state(args, kwargs)
            if state is not None:
                inner[site] = state

        return hook

    handles = [blocks[suffix.layer(site)].register_forward_pre_hook(note(site), with_kwargs=True) for site in sites[1:]]
    try:
        last = suffix.states_from(sites[0], leaf, inputs, [tail.site])[tail.site]
    finally:
        for handle in handles:
            handle.remove()
    if other := [site for site in sites if site not in inner or inner[site].shape != leaf.shape]:
        raise UnsupportedModel(
            "no derivative can be taken in this model",
            needed="states (batch, tokens, width) that a block is given",
            found=f"another form at {', '.join(other[:3])}",
            where=tail.model.name,
            next_step="use the logit lens or a tuned lens",
        )
    return last, inner


@contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    """Within the block, the weights of a module need no gradients."""
    weights = [one for one in module.parameters() if one.requires_grad]
    for one in weights:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in weights:
            one.requires_grad_(True)
