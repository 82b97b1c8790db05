"""Scores circuits on models whose edges are known: how often an edge that does nothing is called material, how many of
those that matter are, and how well exact patching, EAP and EAP-IG rank them. B prompts, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from probing.circuits import TokenPairs, circuit
from probing.models.splitting import Layer, SplitModel
from probing.plantbench.edge_truth import EdgePairs, EdgeTruth, TracrParts, edge_truth, pairs_of
from probing.plantbench.tier3 import edited_tokens
from probing.plantbench.tier3_models import TracrModel, read_program, shipped
from probing.results.circuit import MATERIAL, SUFFICIENT
from probing.seeds import child_seed, generator
from probing.use.nulls import rate_interval

SCREENS = ("exact", "eap", "eap_ig")
PAIRS, TRUTH_PAIRS = 200, 512


@dataclass(frozen=True, eq=False)
class KnownModel:
    """Holds a model, pairs of prompts, and the truth about its edges on other pairs of the same kind.

    Attributes:
        name: name of the model.
        model: the model, split for `circuit`.
        pairs: the pairs that `circuit` is given.
        truth: the truth about every edge.
    """

    name: str
    model: SplitModel
    pairs: TokenPairs
    truth: Sequence[EdgeTruth]


@dataclass(frozen=True)
class CircuitScore:
    """Counts how circuits of one model agree with the truth about its edges.

    Attributes:
        name: name of the model.
        material, inert: numbers of edges that matter (an effect of 0.1 or more) and that do nothing.
        hits: material edges that are called material.
        false: inert edges that are called material.
        weak, weak_called: edges between the two, and those of them that are called material.
        by_threshold: material and inert edges whose effect on discovery is at least δ: exact patching without a test.
        auroc: by method, the area under the ROC curve of the size of estimated effects, material against inert edges;
            None if there are not both.
        sufficient: whether the circuit is called sufficient.
        missed: number of material edges that the circuit lacks.
    """

    name: str
    material: int
    inert: int
    hits: int
    false: int
    weak: int
    weak_called: int
    by_threshold: tuple[int, int]
    auroc: Mapping[str, float | None]
    sufficient: bool
    missed: int


def scored(known: KnownModel, *, seed: int = 0, progress: bool | None = False) -> CircuitScore:
    """Find the circuit of a model by exact patching, rank its edges by all methods, and compare with the truth."""
    results = {
        method: circuit(known.model, known.pairs, method=method, random_circuits=0, seed=seed, progress=progress)
        for method in SCREENS
    }
    exact = results["exact"]
    called = {part.name for part in exact.parts if part.word == MATERIAL}
    beyond = {part.name for part in exact.parts if abs(part.effect or 0.0) >= exact.facts["delta"]}
    by_label = {label: {e.name for e in known.truth if e.label == label} for label in ("material", "weak", "inert")}
    material, inert, weak = by_label["material"], by_label["inert"], by_label["weak"]
    rankings = {
        method: {part.name: abs(part.effect or 0.0) for part in result.parts} for method, result in results.items()
    }
    return CircuitScore(
        known.name,
        len(material),
        len(inert),
        len(material & called),
        len(inert & called),
        len(weak),
        len(weak & called),
        (len(material & beyond), len(inert & beyond)),
        {method: auroc(effects, material, inert) for method, effects in rankings.items()},
        any(word.word == SUFFICIENT for word in exact.words),
        len(material - set(exact.edges)),
    )


def auroc(effects: Mapping[str, float], material: set[str], inert: set[str]) -> float | None:
    """Return the share of pairs of a material and an inert edge of which the material has the larger effect, ties
    counted half; None if there are no such pairs.
    """
    if not material or not inert:
        return None
    high, low = ([effects.get(name, 0.0) for name in sorted(names)] for names in (material, inert))
    ranks = rankdata([*high, *low])[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def table(scores: Sequence[CircuitScore]) -> str:
    """Return a text table of scores, a line for each model, and rates over all with 95 % Clopper-Pearson intervals."""
    width = max([5, *(len(one.name) for one in scores)])
    heads = ("material called so", "inert called so", "weak called so", "AUROC exact, EAP, EAP-IG", "circuit")
    lines = [f"{'model':{width}}  " + "  ".join(f"{head:>26}" for head in heads)]
    for one in scores:
        curve = ", ".join("–" if area is None else f"{area:.3f}" for area in one.auroc.values())
        word = f"{'sufficient' if one.sufficient else '–'}, lacks {one.missed}"
        counts = (f"{one.hits} of {one.material}", f"{one.false} of {one.inert}", f"{one.weak_called} of {one.weak}")
        lines.append(f"{one.name:{width}}  " + "  ".join(f"{cell:>26}" for cell in (*counts, curve, word)))
    total = {name: sum(getattr(s, name) for s in scores) for name in ("material", "inert", "hits", "false")}
    sufficient = [one for one in scores if one.sufficient]
    lines += [
        "precision of material: " + _rate(total["hits"], total["hits"] + total["false"]),
        "recall of material: " + _rate(total["hits"], total["material"]),
        "inert edges called material: " + _rate(total["false"], total["inert"]),
        "sufficient circuits that lack a material edge: "
        + _rate(sum(one.missed > 0 for one in sufficient), len(sufficient)),
    ]
    plain = [sum(one.by_threshold[k] for one in scores) for k in (0, 1)]
    lines.append(
        f"exact effects of δ or more, without a test: recall {_rate(plain[0], total['material'])}, "
        f"inert {_rate(plain[1], total['inert'])}"
    )
    for method in SCREENS:
        areas = [area for one in scores if (area := one.auroc[method]) is not None]
        if areas:
            lines.append(f"mean AUROC of {method}: {np.mean(areas):.3f}, lowest {min(areas):.3f}")
    return "\n".join(lines)


def _rate(part: int, whole: int) -> str:
    if not whole:
        return "–"
    low, high = rate_interval(part, whole)
    return f"{part} of {whole}, {part / whole:.3f} [{low:.3f}, {high:.3f}]"


def tier3(seed: int, *, names: Sequence[str] = ()) -> Iterator[KnownModel]:
    """Yield the compiled programs, read out at one token, with pairs of random prompts of one length."""
    for folder in shipped():
        if names and folder.name not in names:
            continue
        model = read_program(folder)
        program, token = model.program, edited_tokens(model)[0]
        parts = TracrParts(model, token)
        drawn = program.sample(8 * TRUTH_PAIRS, generator(child_seed(seed, program.name), "edges"))
        lengths = (drawn != program.padding).sum(1)
        drawn = drawn[np.argsort(lengths, kind="stable")]
        first, second = drawn[0::2], drawn[1::2]
        alike = (first != program.padding).sum(1) == (second != program.padding).sum(1)
        order = generator(seed, "order", program.name).permutation(int(alike.sum()))
        first, second = first[alike][order], second[alike][order]
        if not _answers_vary(parts, first, second):
            continue
        truth, given = _divided(parts, first, second)
        is_number = not program.variable(program.output).values
        answers = given.signs[:, None].expand(-1, 2) if is_number else given.answers
        split = TracrSplit(model, token)
        yield KnownModel(program.name, split, _token_pairs(given, answers.numpy(), program.padding), truth)


def _answers_vary(parts: Any, first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    return len(pairs_of(parts, first, second, 2 * PAIRS).clean) >= 2 * PAIRS


def _divided(parts: Any, first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[list[EdgeTruth], EdgePairs]:
    """Return the truth from most of the pairs with different answers, and the other `PAIRS` of them."""
    every = pairs_of(parts, first, second, TRUTH_PAIRS + PAIRS)
    some, given = every.take(slice(PAIRS, None)), every.take(slice(0, PAIRS))
    return edge_truth(parts, some.clean, some.corrupted, some.metric), given


def _token_pairs(given: EdgePairs, answers: NDArray[Any], padding: int | None) -> TokenPairs:
    rows = [[[int(i) for i in row if i != padding] for row in ids.tolist()] for ids in (given.clean, given.corrupted)]
    return TokenPairs(rows[0], rows[1], answers, np.arange(len(answers)))


class TracrSplit(SplitModel):
    """Splits a compiled program into senders and readers.

    Args:
        model: the program.
        token: number of the token whose outputs are read.
    """

    def __init__(self, model: TracrModel, token: int) -> None:
        self._model, self._token = model, token
        self._is_number = not model.program.variable(model.program.output).values
        self.name, self.identity = model.program.name, {"name": model.program.name, "token": token}
        self._numbers = [self._active(block) for block in model.blocks]
        self.layers = [
            Layer(number, number, bool(block.down.weight.any()))  # type: ignore[union-attr, operator]
            for number, block in zip(self._numbers, model.blocks, strict=True)
        ]

    @staticmethod
    def _active(block: Any) -> int:
        """Return the number of heads that write; those after them are not used."""
        sizes = block.output.weight.abs().sum(0).reshape(block.heads, block.key_size).sum(1)
        return int((sizes > 0).sum())

    def embed(self, ids: Tensor) -> Tensor:
        return self._model.embed(ids)

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        block: Any = self._model.blocks[layer]
        found = []
        for head in range(self._numbers[layer]):
            own = slice(head * block.key_size, (head + 1) * block.key_size)
            read = (x[head if len(x) > 1 else 0] for x in (q, k, v))
            layers = (block.query, block.key, block.value)
            query, key, value = (x @ one.weight[own].T + one.bias[own] for x, one in zip(read, layers, strict=True))
            shares = (query @ key.transpose(-1, -2) / block.key_size**0.5).softmax(-1)
            found.append(shares @ value)
        return torch.stack(found, dim=2)

    def write(self, layer: int, z: Tensor) -> Tensor:
        block: Any = self._model.blocks[layer]
        size = block.key_size
        weights = [block.output.weight[:, h * size : (h + 1) * size].T for h in range(self._numbers[layer])]
        return torch.stack([z[:, :, h] @ weight for h, weight in enumerate(weights)])

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        block: Any = self._model.blocks[layer]
        written: Tensor = block.mlp(x)
        return written

    def measure(self, x: Tensor, answers: Tensor) -> Tensor:
        outputs = self._model.outputs(x)[:, self._token]
        if self._is_number:
            return outputs[:, 0] * answers[:, 0]
        chosen = outputs.gather(1, answers.long())
        return chosen[:, 0] - chosen[:, 1]
