"""Programs that tracr compiled into transformers: `TracrModel` runs their weights in PyTorch, and `Program` says what
they compute and which directions of the residual stream hold which variable. B prompts, T tokens, D width, K outputs.

References:
    Lindner et al. 2023, Tracr: Compiled Transformers as a Laboratory for Interpretability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from probing.errors import CorpusError, unknown_name
from probing.files.strict_json import strict_json
from probing.provenance import file_sha256

SHIPPED = Path(__file__).resolve().parents[2] / "datasets" / "plantbench" / "tracr"
FORMAT = 1
WEIGHTS, FACTS = "weights.safetensors", "program.json"
FLAT, VALUES = ".at", ".values"  # weights are stored as the entries that are not zero

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = Literal["uniform", "distinct", "brackets"]


@dataclass(frozen=True)
class Variable:
    """Describes a variable of a program, which has directions of its own.

    Attributes:
        name: name of the variable in the program.
        dims: its directions, as columns of the residual stream.
        values: for a categorical variable, the value of each direction; empty for a number, which has one direction.
        parents: variables from which it is computed.
    """

    name: str
    dims: tuple[int, ...]
    values: tuple[Any, ...]
    parents: tuple[str, ...]

    def codes(self, states: NDArray[np.floating]) -> Ints:
        """Return codes `(N,)` of the variable's values in states `(N, D)`: for a category the index of its value,
        `len(values)` for none; for a number the rank of its value among those that occur.
        """
        own = np.asarray(states[:, list(self.dims)], np.float64)
        if not self.values:
            return np.unique(own[:, 0].round(5), return_inverse=True)[1].astype(np.int64).reshape(-1)
        return np.where(own.max(1) > 0.5, own.argmax(1), len(self.values)).astype(np.int64)


@dataclass(frozen=True)
class Program:
    """Describes a compiled program.

    Attributes:
        name: name of the program.
        about: what it computes, in a sentence.
        vocabulary: the tokens, by id; the last two begin a prompt and fill up shorter ones.
        words: ids of the tokens that prompts are made of.
        length: largest number of tokens of a prompt, without the first.
        shortest: smallest number of tokens of a prompt.
        prompts: how prompts are drawn (see `sample`).
        shape: numbers of layers, heads, key size, MLP units, width.
        variables: all variables, each after those from which it is computed.
        output: name of the variable that is read out.
        checked: what was compared with the original when the weights were converted.
    """

    name: str
    about: str
    vocabulary: tuple[Any, ...]
    words: tuple[int, ...]
    length: int
    shortest: int
    prompts: Kind
    shape: Mapping[str, int]
    variables: tuple[Variable, ...]
    output: str
    checked: Mapping[str, Any]

    def variable(self, name: str) -> Variable:
        """Return a variable by name.

        Raises:
            UnknownName: there is no such variable.
        """
        found = {variable.name: variable for variable in self.variables}
        if name not in found:
            raise unknown_name("variable", name, found)
        return found[name]

    @cached_property
    def first(self) -> int:
        """Id of the token that begins every prompt."""
        return self.vocabulary.index("BOS")

    @cached_property
    def padding(self) -> int:
        """Id of the token that fills up shorter prompts."""
        return self.vocabulary.index("PAD")

    def ancestors(self, name: str) -> set[str]:
        """Return the names of all variables from which a variable is computed, directly or not."""
        found: set[str] = set()
        for parent in self.variable(name).parents:
            found |= {parent, *self.ancestors(parent)}
        return found

    def sample(self, n: int, rng: np.random.Generator) -> Ints:
        """Draw n prompts, ids `(n, 1 + length)` with the first token in front and shorter prompts filled up.

        `uniform` draws every token independently, `distinct` draws without repetition; of `brackets`, half are
        uniform, and half have equally many opening and closing brackets of each pair in random order.
        """
        words = np.array(self.words)
        if self.prompts == "distinct":
            drawn = words[rng.random((n, len(words))).argsort(1)[:, : self.length]]
        else:
            drawn = words[rng.integers(len(words), size=(n, self.length))]
        if self.prompts == "brackets":
            drawn = np.where((np.arange(n) % 2 == 0)[:, None], self._balanced(n, rng), drawn)
        lengths = rng.integers(self.shortest, self.length + 1, size=n)
        drawn = np.where(np.arange(self.length) < lengths[:, None], drawn, self.padding)
        return np.concatenate([np.full((n, 1), self.first), drawn], axis=1).astype(np.int64)

    def _balanced(self, n: int, rng: np.random.Generator) -> Ints:
        """Return `(n, length)` brackets, of each pair as many opening as closing ones; pairs are two ids in order."""
        pairs = np.array(self.words).reshape(-1, 2)
        chosen = pairs[rng.integers(len(pairs), size=(n, self.length // 2))].reshape(n, -1)
        return np.take_along_axis(chosen, rng.random(chosen.shape).argsort(1), axis=1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, key_size: int, units: int) -> None:
        super().__init__()
        self.heads, self.key_size = heads, key_size
        inner = heads * key_size
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.output, self.up, self.down = nn.Linear(inner, width), nn.Linear(width, units), nn.Linear(units, width)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Return the outputs of heads `(…, H, E)` from queries, keys and values `(…, H E)` of `(B, T)` tokens."""
        q, k, v = (x.reshape(*x.shape[:-1], self.heads, self.key_size) for x in (q, k, v))
        scores = torch.einsum("bthe,bshe->bhts", q, k) / math.sqrt(self.key_size)
        shares = scores.masked_fill(~mask[:, None, None, :], -1e30).softmax(-1)
        return torch.einsum("bhts,bshe->bthe", shares, v)

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return what attention adds to states `(B, T, D)`."""
        mixed = self.mixed(self.query(x), self.key(x), self.value(x), mask)
        added: Tensor = self.output(mixed.flatten(-2))
        return added

    def mlp(self, x: Tensor) -> Tensor:
        """Return what the MLP adds to states `(B, T, D)`."""
        added: Tensor = self.down(torch.relu(self.up(x)))
        return added

    def writes(self, *, mlp: bool) -> bool:
        """Return whether the MLP, else attention, adds anything but 0: programs leave many of them empty."""
        last = self.down if mlp else self.output
        return bool(last.weight.any() or last.bias.any())


class TracrModel(nn.Module):
    """Runs a compiled program: blocks of attention and MLP without norms, where every token sees every other.

    Its sites are `resid.0` (what enters the first block), `mid.0` (after its attention), `resid.1` and so on.

    Attributes:
        program: what the model computes.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program, shape = program, program.shape
        self.tokens = nn.Embedding(len(program.vocabulary), shape["width"])
        self.places = nn.Embedding(1 + program.length, shape["width"])
        sizes = shape["width"], shape["heads"], shape["key_size"], shape["units"]
        self.blocks = nn.ModuleList(_Block(*sizes) for _ in range(shape["layers"]))

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites in the order of computation."""
        inner = [name for layer in range(len(self.blocks)) for name in (f"resid.{layer}", f"mid.{layer}")]
        return (*inner, f"resid.{len(self.blocks)}")

    @property
    def writing_sites(self) -> tuple[str, ...]:
        """The sites whose state differs from that of the site before: where attention or MLP in between write nothing,
        a site is left out.
        """
        found = ["resid.0"]
        for layer, block in enumerate(self.blocks):
            found += [f"mid.{layer}"] if bool(block.output.weight.any()) else []  # type: ignore[union-attr, operator]
            found += [f"resid.{layer + 1}"] if bool(block.down.weight.any()) else []  # type: ignore[union-attr, operator]
        return tuple(found)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the states `(B, T, D)` that enter the first block."""
        embedded: Tensor = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return embedded

    def run(self, ids: Tensor, *, site: str = "resid.0", states: Tensor | None = None) -> dict[str, Tensor]:
        """Run prompts `(B, T)`, from `states` `(B, T, D)` at a site if these are given, and return the states at that
        site and all later ones.
        """
        mask, x = ids != self.program.padding, self.embed(ids) if states is None else states
        found: dict[str, Tensor] = {site: x}
        sites = self.sites
        for number in range(sites.index(site), len(sites) - 1):
            block = self.blocks[number // 2]
            if block.writes(mlp=bool(number % 2)):  # type: ignore[operator]
                x = x + (block.mlp(x) if number % 2 else block.attention(x, mask))  # type: ignore[operator]
            found[sites[number + 1]] = x
        return found

    def outputs(self, states: Tensor) -> Tensor:
        """Return what is read out of final states `(…, D)`: the coordinates of the output variable, `(…, K)`."""
        return states[..., list(self.program.variable(self.program.output).dims)]

    def forward(self, ids: Tensor) -> Tensor:
        """Return the outputs `(B, T, K)` of prompts `(B, T)`."""
        return self.outputs(self.run(ids)[self.sites[-1]])

    def decided(self, ids: Tensor) -> Tensor:
        """Return what the outputs say, `(B, T)`: the number itself, or the index of the value, -1 for none."""
        outputs: Tensor = self(ids)
        if not self.program.variable(self.program.output).values:
            return outputs[..., 0]
        return torch.where(outputs.amax(-1) > 0.5, outputs.argmax(-1), -1)


def shipped() -> list[Path]:
    """Return the folders of all programs in the repository, sorted by name.

    Raises:
        CorpusError: there is none; installed packages do not contain them.
    """
    found = sorted(path.parent for path in SHIPPED.glob(f"*/{FACTS}"))
    if not found:
        raise CorpusError(
            "the compiled programs of tier 3 are not here",
            needed=f"folders with {FACTS}; they are part of the repository, not of an installed package",
            found="none",
            next_step="leave tier 3 out (--tier 0 --tier 1), or run in a clone of the repository",
        )
    return found


def read_program(folder: Path) -> TracrModel:
    """Return the model in a folder that scripts/make_tracr.py wrote, in evaluation mode.

    Raises:
        CorpusError: a file is missing or malformed, or the weights have changed since they were checked.
    """
    source = folder / FACTS
    if not source.is_file() or not (folder / WEIGHTS).is_file():
        raise CorpusError("no program", needed=f"{FACTS} and {WEIGHTS}", found="no such file", where=str(folder))
    try:
        facts = strict_json(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(
            "no JSON", needed="the file as it was written", found=str(error), where=str(source)
        ) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CorpusError("unknown format", needed=f"format {FORMAT}", found="another", where=str(source))
    if file_sha256(folder / WEIGHTS) != facts["sha256"]:
        raise CorpusError(
            "the weights are not those that were checked",
            needed="the file whose outputs were compared with the original",
            found="another SHA-256",
            where=str(folder / WEIGHTS),
        )
    return model_from(facts, load_file(folder / WEIGHTS))


def model_from(facts: Mapping[str, Any], entries: Mapping[str, NDArray[Any]]) -> TracrModel:
    """Return the model of a program, in evaluation mode, from its description and its weights (see `as_entries`)."""
    with torch.random.fork_rng(devices=[]):
        model = TracrModel(program_from(facts))
    _fill(model, entries)
    return model.eval().requires_grad_(False)


def program_from(facts: Mapping[str, Any]) -> Program:
    """Return the program that program.json describes."""
    directions = [tuple(entry) for entry in facts["directions"]]
    variables = []
    for name, parents in facts["variables"].items():
        dims = tuple(i for i, (owner, _) in enumerate(directions) if owner == name)
        values = tuple(value for owner, value in directions if owner == name)
        variables.append(Variable(name, dims, () if values == (None,) else values, tuple(parents)))
    return Program(
        facts["name"],
        facts["about"],
        tuple(facts["vocabulary"]),
        tuple(facts["words"]),
        facts["length"],
        facts["shortest"],
        facts["prompts"],
        facts["shape"],
        tuple(variables),
        facts["output"],
        facts["checked"],
    )


def _fill(model: TracrModel, stored: Mapping[str, NDArray[Any]]) -> None:
    """Set all weights: zero, but for the stored entries at their flat indices."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if name + FLAT in stored:
                at = torch.from_numpy(stored[name + FLAT].astype(np.int64))
                weight.view(-1)[at] = torch.from_numpy(stored[name + VALUES])


def as_entries(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Return weights as they are stored, the flat indices and the values of entries that are not zero."""
    found: dict[str, NDArray[Any]] = {}
    for name, weight in weights.items():
        flat = weight.reshape(-1)
        at = np.flatnonzero(flat)
        if len(at):
            found[name + FLAT], found[name + VALUES] = at.astype(np.int32), flat[at].astype(np.float32)
    return found


def facts_text(facts: Mapping[str, Any]) -> str:
    """Return program.json as text."""
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
