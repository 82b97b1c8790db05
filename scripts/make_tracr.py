"""Compile the programs of Plantbench's tier 3 with tracr, and write their weights and names of directions.

`python scripts/make_tracr.py [FOLDER] [PROGRAM …]` (default: datasets/plantbench/tracr, all). It needs tracr and jax
beside this package, best in an environment of their own:

    python -m venv tracr && tracr/bin/pip install tracr-pypi==1.0.0 -e .
    tracr/bin/python scripts/make_tracr.py

The programs are ours, in tracr's language RASP; the weights are what tracr (Lindner et al. 2023, Apache-2.0) makes of
them. Before a folder is written, 1,000 prompts are run through the compiled model in jax and through the weights in
PyTorch: final states must be equal within 1e-4, outputs the same; and every variable that the states hold must have the
value that RASP's interpreter computes. A second run writes the same bytes. 5 to 20 s a program.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from tracr.compiler import compiling
from tracr.rasp import rasp
from tracr.rasp.rasp import Aggregate, Comparison, LinearSequenceMap, Map, Select, SequenceMap, SOp, indices, tokens

from probing.files.whole_files import write_atomically
from probing.plantbench.tier3_models import (
    FACTS,
    FORMAT,
    SHIPPED,
    WEIGHTS,
    TracrModel,
    as_entries,
    facts_text,
    model_from,
)
from probing.provenance import digest, file_sha256
from probing.seeds import generator

INPUTS, TOLERANCE = 1000, 1e-4
ATTENTION = "_selector_width_attn_output"  # tracr's name of what attention writes for a count


def counted(keys: SOp, queries: SOp, test: Any, name: str) -> SOp:
    """Return how many tokens' keys pass a test with the own query."""
    return rasp.SelectorWidth(Select(keys, queries, test)).named(name)


def share_so_far(of: SOp, name: str) -> SOp:
    """Return the share of the tokens up to the own place of which something is true."""
    until_here = Select(indices, indices, Comparison.LEQ)
    return rasp.numerical(Aggregate(until_here, rasp.numerical(of), default=0)).named(name)


def placed(rank: SOp, name: str) -> SOp:
    """Return the tokens in the order of their ranks."""
    return Aggregate(Select(rank, indices, Comparison.EQ), tokens).named(name)


def ignoring(wanted: SOp, decoy: SOp) -> SOp:
    """Return a variable unchanged, from an MLP that reads another variable, too."""
    return SequenceMap(lambda value, _: value, wanted, decoy).named("output")


def length() -> SOp:
    return counted(tokens, tokens, Comparison.TRUE, "length")


def count() -> SOp:
    return counted(tokens, tokens, Comparison.EQ, "count")


def count_of(word: str) -> SOp:
    return counted(tokens, tokens, lambda key, _: key == word, f"count_{word}")


def fraction() -> SOp:
    return share_so_far((tokens == "x").named("is_x"), "fraction")


def reverse() -> SOp:
    opposite = SequenceMap(lambda n, i: n - 1 - i, length(), indices).named("opposite")
    return Aggregate(Select(indices, opposite, Comparison.EQ), tokens).named("reversed")


def sort_distinct() -> SOp:
    return placed(counted(tokens, tokens, Comparison.LT, "rank"), "sorted")


def sort() -> SOp:
    key = SequenceMap(lambda token, i: token + i / 5, tokens, indices).named("key")
    return placed(counted(key, key, Comparison.LT, "rank"), "sorted")


def sort_by_frequency() -> SOp:
    key = SequenceMap(lambda n, i: i / 5 - n, count(), indices).named("key")
    return placed(counted(key, key, Comparison.LT, "rank"), "sorted")


def most_frequent() -> SOp:
    first = Select(indices, indices, lambda key, _: key == 0)
    return Aggregate(first, sort_by_frequency()).named("most_frequent")


def previous() -> SOp:
    return Aggregate(Select(indices, indices, lambda key, query: query == key + 1), tokens).named("previous")


def pattern() -> SOp:
    return SequenceMap(lambda before, here: before == "a" and here == "b", previous(), tokens).named("is_ab")


def once() -> SOp:
    numbers = count()
    return counted(numbers, numbers, lambda key, _: key <= 1, "once")


def balance(opening: str, closing: str) -> SOp:
    names = {"(": "round", ")": "round_end", "{": "curly", "}": "curly_end"}
    shares = [share_so_far((tokens == t).named(f"is_{names[t]}"), f"share_{names[t]}") for t in (opening, closing)]
    return rasp.numerical(LinearSequenceMap(*shares, 1, -1)).named(f"balance_{names[opening]}")


def balanced(*pairs: str) -> SOp:
    """Return whether brackets of every pair, apart from one another, are balanced."""
    balances = [balance(*pair) for pair in pairs]
    below = [(b < 0).named(f"below_{i}") for i, b in enumerate(balances)]
    even = [(b == 0).named(f"even_{i}") for i, b in enumerate(balances)]
    any_below, all_even = below[0], even[0]
    for other_below, other_even in zip(below[1:], even[1:], strict=True):
        any_below = (any_below | other_below).named("any_below")
        all_even = (all_even & other_even).named("all_even")
    everywhere = Select(indices, indices, Comparison.TRUE)
    is_below = rasp.numerical(Map(lambda value: value, any_below)).named("is_below")
    ever = rasp.numerical(Aggregate(everywhere, is_below, default=0)).named("ever_below")
    last = Select(indices, (length() - 1).named("last"), Comparison.EQ)
    closed = Aggregate(last, all_even).named("closed")
    return (closed & (~ever).named("never_below")).named("balanced")


@dataclass(frozen=True)
class Recipe:
    """Says how a program is compiled: what it computes, its tokens, its length, and how prompts are drawn."""

    about: str
    program: Callable[[], SOp]
    words: tuple[Any, ...]
    length: int
    shortest: int = 0
    prompts: str = "uniform"


def with_decoy(program: Callable[[], SOp], decoy: Callable[[], SOp]) -> Callable[[], SOp]:
    return lambda: ignoring(program(), decoy())


RECIPES = {
    "fraction": Recipe("the share of x among the tokens so far", fraction, ("x", "a", "b", "c"), 7),
    "histogram": Recipe("how often the own token occurs", count, ("a", "b", "c", "d"), 6),
    "histogram-decoy": Recipe(
        "how often the own token occurs; an MLP also reads how often a occurs, and ignores it",
        with_decoy(count, lambda: count_of("a")),
        ("a", "b", "c", "d"),
        6,
    ),
    "length": Recipe("the number of tokens", length, ("a", "b", "c"), 7, shortest=2),
    "reverse": Recipe("the tokens in reverse order", reverse, ("a", "b", "c", "d"), 6, shortest=3),
    "reverse-decoy": Recipe(
        "the tokens in reverse order; an MLP also reads how often the own token occurs, and ignores it",
        with_decoy(reverse, count),
        ("a", "b", "c"),
        5,
        shortest=3,
    ),
    "sort-distinct": Recipe(
        "the tokens, which are distinct, sorted", sort_distinct, (1, 2, 3, 4, 5, 6, 7), 5, 0, "distinct"
    ),
    "sort": Recipe("the tokens sorted", sort, (1, 2, 3, 4), 5),
    "sort-by-frequency": Recipe("the tokens, the most frequent first", sort_by_frequency, ("a", "b", "c"), 5),
    "most-frequent": Recipe("the most frequent token; of several, the first", most_frequent, ("a", "b", "c"), 5),
    "copy-previous": Recipe("the token before", previous, ("a", "b", "c", "d"), 6),
    "pattern": Recipe("whether the token is b after a", pattern, ("a", "b", "c"), 6),
    "once": Recipe("how many tokens occur once", once, ("a", "b", "c", "d"), 6),
    "dyck-1": Recipe("whether round brackets are balanced", lambda: balanced("()"), ("(", ")"), 6, 0, "brackets"),
    "shuffle-dyck-2": Recipe(
        "whether round and curly brackets are balanced, each by themselves",
        lambda: balanced("()", "{}"),
        ("(", ")", "{", "}"),
        6,
        0,
        "brackets",
    ),
}


def make(name: str, recipe: Recipe, folder: Path) -> None:
    """Compile, convert, check and write one program."""
    start = time.perf_counter()
    program = recipe.program()
    compiled = compiling.compile_rasp_to_model(
        program, vocab=set(recipe.words), max_seq_len=recipe.length, compiler_bos="BOS", compiler_pad="PAD"
    )
    seconds = time.perf_counter() - start
    entries, facts = as_entries(weights_of(compiled)), facts_of(name, recipe, compiled, program)
    facts["checked"] = checked(model_from(facts, entries), compiled, program)
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / WEIGHTS, save(entries))
    facts["sha256"] = file_sha256(target / WEIGHTS)
    write_atomically(target / FACTS, facts_text(facts).encode())
    size = sum(path.stat().st_size for path in target.iterdir())
    print(
        f"{name}: {seconds:.0f} s of compiling, {size:,} bytes, {dict(facts['shape'])}, {facts['checked']}", flush=True
    )


def weights_of(compiled: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights under the names and in the layout of `TracrModel`."""
    params = {key: {name: np.asarray(value) for name, value in part.items()} for key, part in compiled.params.items()}
    found = {"tokens.weight": params["token_embed"]["embeddings"], "places.weight": params["pos_embed"]["embeddings"]}
    names = {
        "query": "attn/query",
        "key": "attn/key",
        "value": "attn/value",
        "output": "attn/linear",
        "up": "mlp/linear_1",
        "down": "mlp/linear_2",
    }
    for layer in range(compiled.model_config.num_layers):
        for ours, theirs in names.items():
            part = params[f"transformer/layer_{layer}/{theirs}"]
            found[f"blocks.{layer}.{ours}.weight"] = part["w"].T
            found[f"blocks.{layer}.{ours}.bias"] = part["b"]
    return {name: np.ascontiguousarray(weight, dtype=np.float32) for name, weight in found.items()}


def facts_of(name: str, recipe: Recipe, compiled: Any, program: SOp) -> dict[str, Any]:
    """Return program.json without its check."""
    parents = dict(parents_of(program))
    directions = [direction(label, parents, compiled) for label in compiled.residual_labels]
    held = {owner for owner, _ in directions}
    written = {ours: list(above) for ours, above in parents.items() if ours in held}
    for owner in sorted(held - set(written)):  # what attention writes for a count, and the constant
        count_name = owner.removesuffix(".attention")
        written[owner] = [] if count_name == owner else parents[count_name]
        if count_name != owner:
            written[count_name] = [owner]
    config, encoder = compiled.model_config, compiled.input_encoder
    vocabulary = [token for token, _ in sorted(encoder.encoding_map.items(), key=lambda pair: pair[1])]
    return {
        "format": FORMAT,
        "name": name,
        "about": recipe.about,
        "made_by": "scripts/make_tracr.py with tracr-pypi 1.0.0",
        "vocabulary": vocabulary,
        "words": [vocabulary.index(word) for word in recipe.words],
        "length": recipe.length,
        "shortest": recipe.shortest or recipe.length,
        "prompts": recipe.prompts,
        "shape": {
            "layers": config.num_layers,
            "heads": config.num_heads,
            "key_size": config.key_size,
            "units": config.mlp_hidden_size,
            "width": len(compiled.residual_labels),
        },
        "variables": {one: written[one] for one in ordered(written)},
        "output": plain_name(program.label),
        "directions": directions,
        "checked": {},
    }


def plain_name(label: str) -> str:
    """Return the name that we gave, without the number that tracr adds."""
    if label.endswith(ATTENTION):
        return plain_name(label.removesuffix(ATTENTION)) + ".attention"
    return re.sub(r"(?<=[a-z0-9])_\d+$", "", label)


def direction(label: str, parents: dict[str, list[str]], compiled: Any) -> list[Any]:
    """Return the variable of a direction and the value that it stands for, None for a number."""
    owner, separator, text = label.partition(":")
    return [plain_name(owner), value_from(text) if separator else None]


def value_from(text: str) -> Any:
    """Return a value from tracr's label of its direction."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


def parents_of(program: SOp) -> Iterator[tuple[str, list[str]]]:
    """Yield every variable of a program, with the variables from which it is computed."""
    for expression in every(program):
        if isinstance(expression, SOp):
            parents = [
                p for child in expression.children for p in ([child] if isinstance(child, SOp) else child.children)
            ]
            yield plain_name(expression.label), list(dict.fromkeys(plain_name(p.label) for p in parents))


def every(program: SOp) -> list[Any]:
    found: dict[int, Any] = {}

    def visit(expression: Any) -> None:
        if id(expression) not in found:
            for child in expression.children:
                visit(child)
            found[id(expression)] = expression

    visit(program)
    return list(found.values())


def ordered(parents: dict[str, list[str]]) -> list[str]:
    """Return the names, each after those from which it is computed."""
    found: list[str] = []

    def visit(name: str) -> None:
        if name not in found:
            for parent in parents.get(name, ()):
                visit(parent)
            found.append(name)

    for name in sorted(parents):
        visit(name)
    return found


def checked(model: TracrModel, compiled: Any, program: SOp) -> dict[str, Any]:
    """Compare 1,000 prompts with the original and with RASP's interpreter, and return what was compared.

    Raises:
        SystemExit: an output, a state or a variable differs.
    """
    ours = model.program
    ids = ours.sample(INPUTS, generator(0, "tracr", ours.name))
    lengths = (ids != ours.padding).sum(1)
    worst, equal, values = 0.0, 0, 0
    outputs: list[Any] = []
    for n in np.unique(lengths).tolist():
        rows = ids[lengths == n][:, :n]
        theirs = compiled.forward(compiled.params, np.asarray(rows))
        final = np.asarray(theirs.transformer_output.output)
        states = model.run(torch.from_numpy(rows))[model.sites[-1]].numpy()
        padded = model.run(torch.from_numpy(ids[lengths == n]))[model.sites[-1]].numpy()[:, :n]
        worst = max(worst, float(np.abs(final - states).max()), float(np.abs(padded - states).max()))
        decided = model.decided(torch.from_numpy(rows)).numpy()[:, 1:]
        differs = (np.abs(np.asarray(theirs.unembedded_output)[:, 1:] - decided) > TOLERANCE) & (decided >= 0)
        equal += int((~differs).all(1).sum())
        values += sum(agree(ours, row, state, program) for row, state in zip(rows, states, strict=True))
        outputs.append(decided.round(3).tolist())
    found = {"inputs": INPUTS, "outputs_equal": equal, "variables_equal": values, "largest_difference": worst}
    if equal < INPUTS or values < INPUTS or worst > TOLERANCE:
        raise SystemExit(f"{ours.name} is not the original: {found}")
    return found | {"largest_difference": float(f"{worst:.1g}"), "outputs": digest(outputs)}


def agree(ours: Any, row: Any, state: Any, program: SOp) -> bool:
    """Return whether the final state of one prompt holds, for every variable, what RASP's interpreter computes."""
    words = [ours.vocabulary[i] for i in row[1:].tolist()]
    for expression in every(program):
        name = plain_name(getattr(expression, "label", ""))
        if not isinstance(expression, SOp) or name not in {v.name for v in ours.variables}:
            continue
        variable = ours.variable(name)
        for place, expected in enumerate(expression(words), start=1):
            own = state[place, list(variable.dims)]
            if variable.values:
                if expected is not None and (variable.values[own.argmax()] != expected or own.max() <= 0.5):
                    return False
            elif abs(float(own[0]) - float(expected)) > 0.01:
                return False
    return True


def main(arguments: list[str]) -> None:
    """Make the programs named on the command line, or all."""
    names = [one for one in arguments if one in RECIPES] or list(RECIPES)
    folders = [Path(one) for one in arguments if one not in RECIPES] or [SHIPPED]
    for name in names:
        make(name, RECIPES[name], folders[0])


if __name__ == "__main__":
    main(sys.argv[1:])
