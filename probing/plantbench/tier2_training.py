"""Training of tier-2 models: the answer from A and C, B decodable at the query, and B without effect at any place.

With x_B = x with B of the subject flipped, ỹ the centred answer logits, l and p drawn anew in every step:

    CE(answer) + decodable · Σ_{l ≥ 2} BCE(one shared linear head on the query's state at resid.l → B)
      + invariant · ( |ỹ(x_B) − ỹ(x)|² + |ỹ(x; do h_{l,p} := h_{l,p}(x_B)) − ỹ(x)|² )

The second term plants decodability. The third is invariance at each place: of the total alone, a model can keep B at
two positions with opposite effects.

References:
    Geiger, Wu, Lu, Rozner, Kreiss, Icard, Goodman & Potts 2022, Inducing Causal Structure for Interpretable Neural
    Networks: interchange as a term of training. Gupta et al. 2024, InterpBench.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from probing.plantbench.planted_model import PlantedModel
from probing.plantbench.prompts import POSITIONS, Language, Prompts
from probing.plantbench.tier2_models import Recipe, untrained
from probing.seeds import child_seed, generator


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, and how its training went.

    Attributes:
        planted: in evaluation mode.
        direction: `(D,)` weights of the head that reads B.
        loss: of the last step.
    """

    planted: PlantedModel
    direction: Tensor
    loss: float


def trained(recipe: Recipe) -> Trained:
    """Train a model as the recipe says; torch's own generators are left as they were."""
    language, rng = recipe.language, generator(recipe.seed, "prompts", recipe.family)
    with torch.random.fork_rng(devices=[]), _flushed():
        torch.manual_seed(child_seed(recipe.seed, "training", recipe.family))
        model, head = untrained(recipe), nn.Linear(recipe.width, 1)
        pooled = nn.Parameter(torch.randn(recipe.width, language.answers) * 0.1) if recipe.pooled else None
        planted = PlantedModel(model, language, pooled)
        parameters = [*model.parameters(), *head.parameters(), *([] if pooled is None else [pooled])]
        optimiser = torch.optim.AdamW(parameters, lr=recipe.peak, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: share_of_peak(step, recipe))
        loss = torch.zeros(())
        for _ in range(recipe.steps):
            loss = objective(planted, head, recipe, rng)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            schedule.step()
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    fixed = None if pooled is None else pooled.detach()
    return Trained(PlantedModel(model, language, fixed), head.weight.detach()[0], float(loss.detach()))


def objective(planted: PlantedModel, head: nn.Linear, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """Return the objective of the module's docstring on a fresh batch."""
    language, n = planted.language, recipe.batch
    prompts, flipped = language.pairs(n, "B", rng)
    layer, place = int(rng.integers(recipe.layers + 1)), str(rng.choice(POSITIONS))
    both = torch.from_numpy(np.concatenate([prompts.ids, flipped.ids]))
    with planted.reading(range(recipe.layers + 1)) as states:
        logits, y = _logits(planted, both)
    b = torch.from_numpy(language.lexicon.codes("B")[prompts.words]).float()
    decodable = torch.stack(
        [
            functional.binary_cross_entropy_with_logits(head(state[:n, -1]).squeeze(1), b)
            for state in states[recipe.decodable_from :]
        ]
    ).sum()
    total = (y[n:] - y[:n]).square().sum(1).mean()
    some = prompts.take(slice(recipe.rows))
    at = torch.from_numpy(some.position(place))
    donors = states[layer][n : n + len(some)][torch.arange(len(some)), at]
    with planted.setting(layer, [(at, donors)]):
        done = planted.answers(torch.from_numpy(some.ids))
    exchanged = (done - y[: len(some)]).square().sum(1).mean()
    first = 0 if recipe.pooled else language.first_answer
    answer = functional.cross_entropy(logits[:n], right_answers(language, prompts) + first)
    return answer + recipe.decodable * decodable + recipe.invariant * (total + exchanged)


def _logits(planted: PlantedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits that compete for the answer, `(B, V)`, and the centred ones of the answers, `(B, K)`."""
    if planted.pooled is not None:
        y = planted.answers(ids)
        return y, y
    first = planted.language.first_answer
    logits = planted.model(input_ids=ids).logits[:, -1]
    chosen = logits[:, first : first + planted.language.answers]
    return logits, chosen - chosen.mean(1, keepdim=True)


def right_answers(language: Language, prompts: Prompts) -> Tensor:
    """Return which answer is right, `(N,)`: 2 · A + C."""
    lexicon = language.lexicon
    return torch.from_numpy((2 * lexicon.codes("A") + lexicon.codes("C"))[prompts.words])


def accuracy(planted: PlantedModel, n: int, rng: np.random.Generator) -> float:
    """Return the share of n fresh prompts that get the right answer."""
    prompts = planted.language.sample(n, rng)
    with torch.no_grad():
        said = planted.answers(torch.from_numpy(prompts.ids)).argmax(1)
    return float((said == right_answers(planted.language, prompts)).double().mean())


def share_of_peak(step: int, recipe: Recipe) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a cosine to zero."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warm_up) / (recipe.steps - recipe.warm_up)))


@contextmanager
def _flushed() -> Iterator[None]:
    """Within the block, denormal numbers are zero: they slow small models several times."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
