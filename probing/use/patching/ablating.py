"""Ablates components of a language model (heads, attention, MLPs, layers): replaces their output by its mean or by
zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import BadParameter, ReplayUnavailable, unknown_name
from probing.models.site import Site
from probing.use.edited_models._reading import block_input
from probing.use.edited_models._running import changing
from probing.use.edited_models.text import TextInstrument

KINDS = ("heads", "attention", "mlps", "layers")
VALUES = ("mean", "zero")
_STREAMS = {"heads": ("heads",), "attention": ("attn_out",), "mlps": ("mlp_out",), "layers": ("attn_out", "mlp_out")}


@dataclass(frozen=True, order=True)
class Component:
    """Names a part of a model: `head 3.5`, `attention 3`, `mlp 3` or `layer 3`.

    Attributes:
        layer: number of its block.
        sites: sites that hold its output.
        head: number of the head; None if the part is not a head.
        width: number of columns of a head.
    """

    layer: int
    sites: tuple[str, ...]
    head: int | None = None
    width: int = 0

    def __str__(self) -> str:
        if self.head is not None:
            return f"head {self.layer}.{self.head}"
        name = "layer" if len(self.sites) > 1 else {"attn_out": "attention"}.get(self.sites[0].split(".")[0], "mlp")
        return f"{name} {self.layer}"


@dataclass(frozen=True, eq=False)
class AblationResult:
    """Holds the effects of ablating each of C components.

    Attributes:
        components: the components, from the first layer to the last.
        by: what replaced a component's output: `mean` or `zero`.
        effect: `(C,)` root mean square change of the behaviour, in standard deviations of the unedited model's.
        flips: `(C,)` share of rows (texts) for which another logit becomes the largest; None if the behaviour is not
            logits.
        n_rows: number of rows (texts).
    """

    components: tuple[Component, ...]
    by: str
    effect: NDArray[np.float64]
    flips: NDArray[np.float64] | None
    n_rows: int

    def table(self) -> list[dict[str, str | float | None]]:
        """Return a list of dicts, one per component, with its name, its effect and its share of flips."""
        flips = self.flips if self.flips is not None else [None] * len(self.components)
        return [
            {
                "component": str(one),
                "by": self.by,
                "effect": float(effect),
                "flips": None if f is None else float(f),
                "n_rows": self.n_rows,
            }
            for one, effect, f in zip(self.components, self.effect, flips, strict=True)
        ]

    def grid(self) -> NDArray[np.float64]:
        """Return the effects as an array, `(layers, heads)` for heads and `(layers, 1)` for other components; NaN where
        there is no component.
        """
        layers = sorted({component.layer for component in self.components})
        columns = max((component.head or 0) for component in self.components) + 1
        found = np.full((len(layers), columns), np.nan)
        for component, effect in zip(self.components, self.effect, strict=True):
            found[layers.index(component.layer), component.head or 0] = effect
        return found

    def plot(self, title: str = "") -> Any:
        """Return an Altair chart, a heat map of effects by layer and head. `title` is its title.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        return import_module("probing.reporting.plots").plot_ablation(self, title)


def ablate(
    instrument: TextInstrument,
    *,
    kind: str = "heads",
    by: str = "mean",
    advance: Callable[[int, int], None] | None = None,
) -> AblationResult:
    """Ablate one component after another and return how much each ablation changes the behaviour.

    An ablation replaces the output of the component, at every token of the text, by its mean over all tokens or by
    zero; for a layer, the outputs of both its attention and its MLP. If the states at the input of the component's
    block are stored, the blocks before it are not run again.

    Args:
        instrument: the model and its rows.
        kind: `heads`, `attention`, `mlps` or `layers`.
        by: `mean` or `zero`. With zero, states are unlike any that the model computes itself, so part of the effect is
            damage, not missing information.
        advance: called after each component with two numbers: components done, and components in all.

    Raises:
        BadParameter: `kind` or `by` has another value.
        ReplayUnavailable: the attention and MLP of the model's blocks could not be located.
    """
    check_options([kind], by)
    chosen = components(instrument, kind)
    means = _means(instrument, [site for one in chosen for site in one.sites]) if by == "mean" else {}
    clean = instrument.clean()
    spread = float(np.sqrt(np.square(clean - clean.mean(0)).sum(1).mean()))
    effect, flips = np.zeros(len(chosen)), np.zeros(len(chosen))
    for c, component in enumerate(chosen):
        changes = [(site, _replacement(component, means.get(site))) for site in component.sites]
        y = _behaviour(instrument, component, changes)
        effect[c] = np.sqrt(np.square(y - clean).sum(1).mean()) / spread
        flips[c] = (y.argmax(1) != clean.argmax(1)).mean()
        if advance is not None:
            advance(c + 1, len(chosen))
    return AblationResult(chosen, by, effect, flips if instrument.logits else None, instrument.n_rows)


def check_options(kinds: Sequence[str], by: str) -> None:
    """Check that the kinds of components (`kinds`) and the replacement (`by`, `mean` or `zero`) are known.

    Raises:
        BadParameter: a kind or the replacement is unknown, or a kind is given twice.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of component", kind, KINDS, error=BadParameter)
    if len(set(kinds)) < len(kinds):
        raise BadParameter("a kind of component is given twice", needed="different ones", found=", ".join(kinds))
    if by not in VALUES:
        raise unknown_name("value", by, VALUES, error=BadParameter)


def components(instrument: TextInstrument, kind: str) -> tuple[Component, ...]:
    """Return all components of a kind (`heads`, for example) that the instrument's model has.

    Raises:
        ReplayUnavailable: the attention and MLP of the model's blocks could not be located.
    """
    model = instrument.runner.model
    streams = _STREAMS[kind]
    layers = [Site.parse(site).layer for site in model.sites if Site.parse(site).stream == streams[0]]
    found: list[Component] = []
    for layer in sorted(layer for layer in layers if layer is not None):
        sites = tuple(f"{stream}.{layer}" for stream in streams)
        if kind != "heads":
            found.append(Component(layer, sites))
            continue
        size = model.head_size(sites[0])
        found += [Component(layer, sites, head, size["head_dim"]) for head in range(size["n_heads"])]
    if not found:
        raise ReplayUnavailable(
            "the sublayers of this model are not known",
            needed=f"sites {streams[0]}.l",
            found="none",
            where=model.name,
            next_step="choose another model; `probing inspect` lists the sites",
        )
    return tuple(found)


def _behaviour(
    instrument: TextInstrument, component: Component, changes: list[tuple[str, Callable[[Tensor], Tensor]]]
) -> NDArray[np.float64]:
    runner, rows = instrument.runner, np.arange(instrument.n_rows)
    base = block_input(component.sites[0])
    site = base if base in runner.sequences.states else None
    found, order = [], instrument.batches(rows)
    with torch.no_grad():
        for part in order:
            with ExitStack() as stack:
                for where, change in changes:
                    stack.enter_context(changing(runner.model, where, change))
                found.append(instrument.read(runner.outputs(part, runner.batch(part), site)))
    return np.concatenate(found)[np.argsort(np.concatenate(order), kind="stable")]


def _replacement(component: Component, mean: Tensor | None) -> Callable[[Tensor], Tensor]:
    columns = slice(None)
    if component.head is not None:
        columns = slice(component.head * component.width, (component.head + 1) * component.width)

    def change(states: Tensor) -> Tensor:
        value = states.new_zeros(()) if mean is None else mean.to(states.device, states.dtype)[columns]
        edited = states.clone()
        edited[..., columns] = value
        return edited

    return change


def _means(instrument: TextInstrument, sites: list[str]) -> dict[str, Tensor]:
    """Return the mean over all pieces of the examples, `(D,)` by site."""
    totals: dict[str, Tensor] = {}
    for _, states in instrument.runner.sequences.read(list(dict.fromkeys(sites))):
        for site, flat in states.items():
            totals[site] = totals.get(site, torch.zeros(flat.shape[1], dtype=torch.float64)) + flat.double().sum(0)
    count = int(instrument.runner.sequences.lengths.sum())
    return {site: total / count for site, total in totals.items()}
