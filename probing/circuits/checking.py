"""Checks the options of circuits, circuits of earlier runs, and pairs that a circuit is measured on beside its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probing.circuits.graph import Graph, Mask
from probing.circuits.measuring import LEAST_GROUPS, check_groups
from probing.circuits.traces import TokenPairs
from probing.errors import BadParameter, DegenerateDesign, InputError, ProvenanceMismatch, unknown_name
from probing.models.splitting import SplitModel
from probing.provenance import digest
from probing.results.circuit import CircuitResult, read_circuit

LEVELS, METHODS, CORRUPTIONS = ("edge", "node"), ("exact", "eap", "eap_ig"), ("corrupted", "mean")


@dataclass(frozen=True)
class Options:
    """Holds the options of `circuit` that a search needs, checked; names are those of `circuit`."""

    level: str
    method: str
    by: str
    nodes: int | None
    size: int | None
    steps: int
    epsilon: float
    delta: float | None
    random_circuits: int
    random_pairs: int
    seed: int

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UnknownName: there is no such level, method or corruption.
            BadParameter: a number is out of range.
        """
        for what, value, known in (
            ("level", self.level, LEVELS),
            ("method", self.method, METHODS),
            ("corruption", self.by, CORRUPTIONS),
        ):
            if value not in known:
                raise unknown_name(what, value, known)
        for name, number, least in (
            ("nodes", self.nodes, 1),
            ("size", self.size, 1),
            ("steps", self.steps, 1),
            ("random_circuits", self.random_circuits, 0),
            ("random_pairs", self.random_pairs, 1),
            ("seed", self.seed, 0),
        ):
            if number is not None and not (isinstance(number, int | np.integer) and number >= least):
                raise BadParameter(
                    f"{name} is out of range", needed=f"a whole number, {least} or more", found=repr(number)
                )
        for name, share in (("epsilon", self.epsilon), ("delta", self.least)):
            if not 0 < share < 1:
                raise BadParameter(f"{name} is out of range", needed="between 0 and 1", found=str(share))

    @property
    def least(self) -> float:
        """δ: the least effect of a material edge."""
        return self.epsilon / 2 if self.delta is None else self.delta


def check_paths(graph: Graph, chosen: Mask, options: Options, file: str | Path | None = None) -> None:
    """Check that a circuit has edges through which the input reaches the logits.

    Raises:
        DegenerateDesign: it has none.
    """
    if graph.on_paths(chosen).any():
        return
    given = {"nodes": options.nodes, "size": options.size}
    asked = ", ".join(f"{name} {number}" for name, number in given.items() if number is not None)
    raise DegenerateDesign(
        "the chosen edges form no path from the input to the logits",
        needed="edges through which the input reaches the logits",
        found=f"none, with {asked}" if asked else "none",
        where="" if file is None else str(file),
        next_step="give a larger size or more nodes, or leave these options out"
        if file is None
        else "give a circuit whose edges lead from the input to the logits",
    )


def check_lengths(pairs: TokenPairs, model: SplitModel, source: str) -> None:
    """Check that no prompt is longer than the model's limit.

    Raises:
        BadParameter: one is.
    """
    longest = max(range(len(pairs)), key=lambda k: len(pairs.clean[k]))
    size = len(pairs.clean[longest])
    if model.max_length is not None and size > model.max_length:
        raise BadParameter(
            "a prompt is longer than the model can read",
            needed=f"at most {model.max_length} tokens",
            found=f"{size} tokens",
            where=f"{source}, pair {longest + 1}",
            next_step="shorten the prompt or leave the pair out: circuits read whole prompts",
        )


def check_unused(given: str | Path | None, nodes: int | None, size: int | None) -> None:
    """Check that nothing is to be chosen where a circuit is given.

    Raises:
        BadParameter: `nodes` or `size` is given with a circuit.
    """
    unused = [f"{name} {number}" for name, number in (("nodes", nodes), ("size", size)) if number is not None]
    if given is not None and unused:
        raise BadParameter(
            "a given circuit is judged as it is, and nothing is chosen",
            needed="a circuit, or its size and nodes",
            found=f"{' and '.join(unused)} beside {given}",
            next_step="leave these options out, or the circuit",
        )


def check_others(pairs: TokenPairs, source: str | TokenPairs, others: Mapping[str, TokenPairs]) -> None:
    """Check that pairs of transfer are other pairs, and enough.

    Raises:
        BadParameter: they are the pairs of the circuit.
        TooFewGroups: they are of fewer than eight groups.
    """
    known = set(pairs.prompts)
    for path, other in others.items():
        is_same = isinstance(source, str) and Path(path).resolve() == Path(source).resolve()
        if is_same or set(other.prompts) <= known:
            raise BadParameter(
                "transfer to the same pairs",
                needed="other pairs than those that the circuit is found on",
                found="the same pairs" if not is_same else "the same file",
                where=path,
            )
        check_groups(other.groups, LEAST_GROUPS, path)


def given_facts(path: str, given: CircuitResult, test: TokenPairs) -> dict[str, Any]:
    """Return facts on a given circuit: its file, the pairs that it was found on, and how many of the test pairs are
    among these (None: the file does not say on which it was found).
    """
    known = given.facts.get("discovery_pairs")
    shared = None if known is None else sum(one in set(known) for one in test.digests)
    return {"given": path, "discovery_pairs": known, "test_pairs_of_discovery": shared}


def shared_doubt(path: str, other: TokenPairs, discovery: Set[str]) -> list[str]:
    """Return a sentence on pairs of transfer that are among those that the circuit was found on, by their digests."""
    count = sum(one in discovery for one in other.digests)
    if not count:
        return []
    return [
        f"{count} of the {len(other)} pairs of {path} are among those that the circuit was found on: what was chosen "
        "on a pair looks better there."
    ]


def with_properties(pairs: TokenPairs, group: str | None, properties: Sequence[str]) -> TokenPairs:
    """Return pairs that were given as tokens with the properties that are asked for; all, if none are.

    Raises:
        BadParameter: a column of groups is named.
        UnknownName: the pairs lack a property.
    """
    if group is not None:
        raise BadParameter(
            "pairs of tokens have no columns",
            needed="the groups of pairs in TokenPairs(groups=…)",
            found=f"group={group!r}",
        )
    for name in properties:
        if name not in pairs.values:
            raise unknown_name("property", name, pairs.values)
    return replace(pairs, values={name: pairs.values[name] for name in properties or pairs.values})


def read_given(path: str | Path) -> CircuitResult:
    """Return the circuit of an earlier run.

    Raises:
        InputError: there is no such file.
    """
    found = read_circuit(path)
    if found is None:
        raise InputError(
            "there is no circuit to judge",
            needed="the circuit.json of an earlier run, or its folder",
            found="no such file",
            where=str(path),
        )
    return found


def check_same(earlier: CircuitResult, split: SplitModel, where: str) -> None:
    """Check that an earlier circuit is of this model.

    Raises:
        ProvenanceMismatch: it is of another one.
    """
    mine, theirs = dict(split.identity), dict(earlier.identity)
    if digest(theirs) != digest(mine):
        keys = [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key) != theirs.get(key)]
        raise ProvenanceMismatch(
            "this circuit is of another model",
            needed=f"a circuit of {split.name}",
            found=f"one of {earlier.model}, which differs in: {', '.join(keys)}",
            where=where,
            next_step="give the model that it was found in, or leave the file out",
        )
