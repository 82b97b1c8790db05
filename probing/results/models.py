"""Defines ModelFacts, which describes the model that a result belongs to, names it for readers, and sorts it among
other models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probing.results.probe import ProbeResult

_IS_DETAIL = re.compile(r"weights |b?float\d+( stored as \w+)?$")
UNNAMED = "a model that is not named"


@dataclass(frozen=True)
class ModelFacts:
    """Holds the facts about a model that results record; unknown facts are None.

    Attributes:
        model: full name, which differs for different models: `checkpoint-40 [step 40, weights fb05cb64, float32]`.
        label: the full name as shown to readers; the name of a folder is preceded by that of its parent
            (`small/checkpoint-40 […]`).
        architecture: type of the model, such as `gpt2`.
        layers: number of blocks.
        width: width of a state.
        parameters: number of parameters.
        step: for a checkpoint, the number of steps trained.
        run: for a checkpoint, the name of the training run; "" if there is only one.
        is_untrained: whether the weights are random.
        weights: a hash of the weights.
    """

    model: str
    label: str
    architecture: str | None = None
    layers: int | None = None
    width: int | None = None
    parameters: int | None = None
    step: int | None = None
    run: str = ""
    is_untrained: bool = False
    weights: str | None = None

    @classmethod
    def of(cls, model: str, facts: Mapping[str, Any] | None) -> ModelFacts:
        """Return the facts about the model with this full name, from the mapping `facts` that its results record."""
        known = dict(facts or {})
        name, bracket, rest = model.partition(" [")
        label = f"{known.get('name') or name}{bracket}{rest}" if model else UNNAMED
        texts = {key: str(known[key]) for key in ("architecture", "run", "weights") if known.get(key)}
        counts = {key: int(known[key]) for key in ("layers", "width", "parameters", "step") if key in known}
        return cls(model, label, **texts, **counts, is_untrained=bool(known.get("untrained")))  # type: ignore[arg-type]

    @classmethod
    def of_result(cls, result: ProbeResult) -> ModelFacts:
        """Return the facts about the model whose states a probe read."""
        return cls.of(str(result.provenance.get("model") or ""), result.facts.get("model"))

    @property
    def order(self) -> tuple[Any, ...]:
        """Key by which models are sorted: untrained ones first; then by name of the training run, by step (models
        without a step last), and by size.
        """
        step = math.inf if self.step is None else self.step
        return not self.is_untrained, self.run, step, self.parameters or 0, self.label, self.model

    @property
    def build(self) -> str:
        """Architecture and sizes in words: `gpt2, 3 layers × 64, 151,232 parameters`; "" if nothing is known."""
        sizes = f"{self.layers} layers × {self.width}" if self.layers and self.width else ""
        count = "" if self.parameters is None else f"{self.parameters:,} parameters"
        return ", ".join(filter(None, (self.architecture, sizes, count)))

    @property
    def origin(self) -> tuple[str, str]:
        """Pair by which a model and its untrained copy are recognised, since it is the same for both: the name without
        details in brackets, and architecture and sizes in words (`build`).
        """
        return self.label.partition(" [")[0], self.build

    @property
    def title(self) -> str:
        """The attribute `label` without the hash of the weights and the data type, such as `small/checkpoint-40 [step
        40]`.
        """
        name, _, rest = self.label.partition(" [")
        parts = [part for part in rest.rstrip("]").split(", ") if part and not _IS_DETAIL.match(part)]
        return f"{name} [{', '.join(parts)}]" if parts else name

    @property
    def place(self) -> str:
        """Short label of the model for the ticks of axes: `step 40`, `151k` or `151k, untrained`; if neither step nor
        size is known, its full label.
        """
        if self.step is not None:
            return f"step {self.step:,}"
        return f"{size(self.parameters)}{', untrained' if self.is_untrained else ''}" if self.parameters else self.label


def size(parameters: int) -> str:
    """Return a number of parameters in short form: `151k`, `135M`, `7.2B`."""
    for unit, least in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if parameters >= least:
            value = parameters / least
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(parameters)
