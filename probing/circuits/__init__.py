"""Finds circuits (heads, MLPs and edges between them that produce a model's output) and tests them on new prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probing.circuits.checking import (
    Options,
    check_lengths,
    check_others,
    check_paths,
    check_same,
    check_unused,
    given_facts,
    read_given,
    shared_doubt,
    with_properties,
)
from probing.circuits.doubting import cancelling, doubles, material_of, only_on_average
from probing.circuits.graph import Mask, ten_sizes
from probing.circuits.judging import (
    PartVerdict,
    doubts_of,
    judge_necessary,
    judge_parts,
    judge_random,
    judge_sufficient,
    range_of,
    redundant,
)
from probing.circuits.measuring import Floats, Half
from probing.circuits.screening import screen_doubts
from probing.circuits.searching import Search
from probing.circuits.traces import TokenPairs, read_token_pairs
from probing.errors import BadParameter, DegenerateDesign
from probing.models.language_model import LanguageModel
from probing.models.splitting import SplitModel, SplitTransformer
from probing.results.circuit import (
    JUDGED,
    CircuitPart,
    CircuitResult,
    CircuitSize,
    Estimated,
)
from probing.seeds import child_seed, generator
from probing.system.machine import target_of, with_typed_errors
from probing.system.progress import steps_bar

__all__ = ["SplitModel", "TokenPairs", "circuit"]


@with_typed_errors
@torch.inference_mode(mode=False)  # gradients are needed, whatever the caller has turned off
def circuit(
    model: LanguageModel | SplitModel | str,
    pairs: str | TokenPairs,
    *,
    level: str = "edge",
    method: str = "exact",
    by: str = "corrupted",
    nodes: int | None = None,
    size: int | None = None,
    steps: int = 5,
    epsilon: float = 0.1,
    delta: float | None = None,
    group: str | None = None,
    properties: Sequence[str] = (),
    transfer: Sequence[str] = (),
    given: str | Path | None = None,
    random_circuits: int = 200,
    random_pairs: int = 16,
    seed: int = 0,
    to: str | Path | None = None,
    progress: bool | None = None,
) -> CircuitResult:
    """Find the circuit that produces a model's answers on pairs of prompts, measure on other pairs how much of the
    metric it keeps, compare it with random circuits, and return it with these numbers and conclusions in words.

    Half of the groups of pairs are for discovery: edges are ranked and the circuit is chosen on them. All reported
    numbers about it are measured on the other half. They are shares of the fall of the metric (logit of the answer −
    logit of the corrupted answer) from clean to corrupted prompts.

    Args:
        model: a causal language model, its folder or hub name; or a `SplitModel`.
        pairs: file with the columns clean, corrupted, answer and corrupted_answer; or pairs as tokens.
        level: `edge`, or `node` (all edges between the best nodes).
        method: how effects are measured on discovery: `exact` (each edge corrupted in turn), `eap` or `eap_ig`
            (estimates from gradients).
        by: what a corrupted edge carries: `corrupted` (what its sender wrote on the corrupted prompt) or `mean` (over
            all prompts of discovery, by token from the end).
        nodes: only edges between this many nodes with the largest estimated effects; None: all.
        size: number of edges (or nodes) of the circuit; None: the fewest that keep the metric on discovery.
        steps: steps of `eap_ig`.
        epsilon: ε, the share of the metric that a sufficient circuit may lack.
        delta: δ, the change of the metric that the removal of a material edge must exceed; None: ε / 2.
        group: column whose equal values form a group, such as a template; None: each pair. Pairs of the same two
            prompts are always in one group.
        properties: columns with a property of the clean prompt; `corrupted_NAME` has that of the corrupted prompt.
        transfer: files of other pairs on which the circuit is measured, too.
        given: circuit.json of an earlier run: its circuit is judged instead of a new one, with a doubt if it was found
            on some of the test pairs, or if that is not known.
        random_circuits: number of random circuits that the circuit of each size is compared with; 0: none.
        random_pairs: number of pairs on which random circuits, and candidate parts during the search, are measured.
        seed: root of every random draw.
        to: folder for the results; a run that was stopped continues there.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        UnsupportedModel: the model's residual stream is not the sum of the outputs of its heads and MLPs.
        BadParameter: prompts of a pair differ in length, a prompt is longer than the model can read, or an option is
            out of range.
        NoBehaviour: the pairs have no answers, or an answer is not a single token.
        TooFewGroups: there are too few groups of pairs; the message says how many are needed.
        DegenerateDesign: the metric is not finite or does not fall from clean to corrupted prompts, or the chosen
            edges form no path from the input to the logits.
        ProvenanceMismatch: `given` is of another model.
    """
    options = Options(level, method, by, nodes, size, steps, epsilon, delta, random_circuits, random_pairs, seed)
    check_unused(given, nodes, size)
    folder, earlier = target_of(to), None if given is None else read_given(given)
    source = pairs if isinstance(pairs, str) else "pairs of tokens"
    loaded = LanguageModel.load(model, kind="causal") if isinstance(model, str) else model
    split = loaded if isinstance(loaded, SplitModel) else SplitTransformer(loaded)
    if earlier is not None:
        check_same(earlier, split, str(given))
    read = _read(loaded, pairs, group, properties)
    others = {path: _read(loaded, path, group, ()) for path in transfer}
    for path, some in {source: read, **others}.items():
        check_lengths(some, split, path)
    check_others(read, pairs, others)
    search = Search(split, read, options, folder=folder, progress=progress)
    identity = search.check_identity()
    elsewhere = {path: search.half(other, by) for path, other in others.items()}
    for path, half in elsewhere.items():
        half.scale.check(path)
    if earlier is None:
        search.rank()
        chosen = search.choose()
    else:
        chosen = search.graph.on_paths(search.graph.mask(earlier.edges))
        search.notes |= given_facts(str(given), earlier, search.test.pairs)
    check_paths(search.graph, chosen, options, given)
    result = _report(search, chosen, source, identity, elsewhere, earlier)
    if folder is not None:
        result.write(folder)
    return result


def _read(
    model: LanguageModel | SplitModel, pairs: str | TokenPairs, group: str | None, properties: Sequence[str]
) -> TokenPairs:
    """Return pairs as tokens.

    Raises:
        BadParameter: a file is given, and the model has no tokenizer to read it with.
    """
    if isinstance(pairs, TokenPairs):
        return with_properties(pairs, group, properties)
    owner = model.model if isinstance(model, SplitTransformer) else model
    if isinstance(owner, SplitModel):
        raise BadParameter(
            "a split model without a tokenizer reads no files",
            needed="pairs of tokens: TokenPairs",
            found=pairs,
            where=owner.name,
        )
    return read_token_pairs(owner, pairs, group, properties)


def _report(
    search: Search,
    chosen: Mask,
    source: str,
    identity: float,
    others: Mapping[str, Half],
    earlier: CircuitResult | None,
) -> CircuitResult:
    """Measure a circuit, of an earlier result if it was given, on test and return the result."""
    options, graph, test = search.options, search.graph, search.test
    rest = graph.allowed & ~chosen
    judged, without = test.metrics([chosen, rest], "judge")
    units = search.units(chosen)
    falls = judged - test.changed(chosen, [search.less(chosen, unit) for unit in units]) if units else None
    verdicts = judge_parts(test.scale, falls, options.least) if falls is not None else []
    words = [
        judge_sufficient(test.scale, judged, options.epsilon),
        judge_necessary(test.scale, without, options.epsilon),
    ]
    by_unit = dict(zip(units, verdicts, strict=True))
    material = material_of(by_unit)
    in_model, weaker = doubles(search, chosen, material)
    by_pair = {} if falls is None else dict(zip(units, falls, strict=True))
    weaker += cancelling(search, chosen, material, by_pair) + only_on_average(search, judged, words[0].word)
    weaker += screen_doubts(options.method, search.notes)
    idle = search.idle(chosen, units)
    if len(idle) > 1:
        less = chosen
        for unit in idle:
            less = search.less(less, unit)
        words.append(redundant(test.scale, judged - test.changed(chosen, [less])[0], options.least))
    random, different = _random(search, chosen, "judged")
    if random is not None:
        few = search.some_of(test)
        words.append(judge_random(few.scale, few.metrics([chosen])[0], random, different))
    sizes, areas = _sizes(search) if earlier is None else ([], {})
    edges = int(chosen.sum())
    sizes = [CircuitSize(JUDGED, len(units), edges, test.scale.share(judged), *range_of(random)), *sizes]
    elsewhere, doubts, overlap = _elsewhere(search, chosen, others)
    carried = {name: _carried(search, name, units, doubts) for name in search.pairs.values}
    facts = _facts(search) | {
        "pairs": source,
        "identity_check": identity,
        "overlap_with_other_corruption": overlap,
        "removals_from_model": in_model,
        "passes": _passes(search),
    }
    effects: Mapping[Any, float | None]
    if earlier is None:
        effects = search.effects()
    else:
        known = {part.name: part.effect for part in earlier.parts}
        effects = {unit: known.get(search.unit_name(unit)) for unit in units}
    parts = _parts(search, effects, by_unit, carried)
    return CircuitResult(
        search.model.name,
        dict(search.model.identity),
        facts,
        parts,
        graph.names(chosen),
        sizes,
        areas,
        words,
        elsewhere,
        doubts=[*doubts_of(test.scale, words, search.notes), *weaker, *doubts],
    )


def _parts(
    search: Search,
    effects: Mapping[Any, float | None],
    verdicts: Mapping[Any, PartVerdict],
    carried: Mapping[str, Mapping[str, Mapping[Any, Estimated]]],
) -> list[CircuitPart]:
    found = []
    for unit, effect in effects.items():
        verdict = verdicts.get(unit)
        flows = {label: of[unit] for both in carried.values() for label, of in both.items() if unit in of}
        found.append(
            CircuitPart(
                search.unit_name(unit),
                effect,
                verdict is not None,
                verdict.removal if verdict else None,
                verdict.p_adjusted if verdict else None,
                verdict.detectable if verdict else None,
                verdict.word if verdict else "",
                flows,
            )
        )
    return sorted(found, key=lambda part: (not part.in_circuit, -abs(part.effect or 0.0)))


def _sizes(search: Search) -> tuple[list[CircuitSize], dict[str, Estimated]]:
    """Return f of circuits of ten sizes on test, chosen in three ways, beside random circuits, and their areas."""
    test, options, most = search.test, search.options, int(search.candidates.sum())
    sizes, areas = list[CircuitSize](), dict[str, Estimated]()
    for choice in ("absolute", "signed", "nodes"):
        if choice == "nodes" and options.level == "node":
            continue
        asked = ten_sizes(search.most(choice))
        masks = search.circuits(asked, choice)
        metrics = test.metrics(masks, f"circuits by {choice}")
        edges = [int(mask.sum()) for mask in masks]
        for k, mask in enumerate(masks):
            bounds = range_of(_random(search, mask, k)[0]) if choice == "absolute" else (None, None)
            sizes.append(CircuitSize(choice, asked[k], edges[k], test.scale.share(metrics[k]), *bounds))
        cpr, cmd = test.scale.areas(metrics, edges, most)
        areas |= {f"CPR {choice}": cpr, f"CMD {choice}": cmd}
    return sizes, areas


def _random(search: Search, mask: Mask, number: int | str) -> tuple[Floats | None, int]:
    """Return f of random circuits with as many edges at every node as `mask`, without those draws that are `mask`
    itself (None if none are left), and how many of them are different.
    """
    options, random = search.options, generator(search.options.seed, "random circuits", number)
    drawn = [search.graph.rewired(mask, random, within=search.candidates) for _ in range(options.random_circuits)]
    drawn = [one for one in drawn if (one != mask).any()]
    if not drawn:
        return None, 0
    some = search.some_of(search.test)
    with steps_bar(f"random circuits of {int(mask.sum())} edges", "circuits", len(drawn), search.progress) as bar:
        values = some.scale.samples(np.stack([some.metrics([one])[0] for one in _counted(drawn, bar)]))[0]
    return values, len({one.tobytes() for one in drawn})


def _counted(items: Sequence[Mask], bar: Any) -> Any:
    for number, item in enumerate(items):
        yield item
        bar(number + 1, len(items))


def _elsewhere(
    search: Search, chosen: Mask, others: Mapping[str, Half]
) -> tuple[dict[str, Estimated], list[str], float | None]:
    """Return f of a circuit under the other corruption and on other pairs, doubts, and the overlap of the circuits of
    its size that EAP finds under both corruptions (shared edges over all edges).
    """
    found, doubts, overlap = dict[str, Estimated](), list[str](), None
    known = set(search.notes.get("discovery_pairs") or search.discovery.pairs.digests)
    other = "mean" if search.options.by == "corrupted" else "corrupted"
    try:
        half = search.half(search.test.pairs, other)
        half.scale.check(f"test, corrupted by {other}")
        found[f"corruption: {other}"] = half.scale.share(half.metrics([chosen])[0])
        overlap = search.overlap(int(chosen.sum()), other)
    except DegenerateDesign as error:
        doubts.append(f"Not measured with the other corruption ({other}): {error.args[0]}.")
    for path, half in others.items():
        found[f"pairs: {path}"] = half.scale.share(half.metrics([chosen])[0])
        doubts += shared_doubt(path, half.pairs, known)
    return found, doubts, overlap


def _carried(search: Search, name: str, units: Sequence[Any], doubts: list[str]) -> dict[str, dict[Any, Estimated]]:
    """Return for each edge of the circuit the share of the metric's fall that follows if it alone carries the other
    class's mean instead of its own, beside the same with labels in random order.
    """
    found = {}
    for label, seed in ((name, None), (f"{name} (shuffled)", child_seed(search.options.seed, "labels", name))):
        falls = search.shifted(name, units, seed)
        known = search.test.scale.estimates(falls) if len(falls) else []
        found[label] = {unit: search.test.scale.bounded(one) for unit, one in zip(units, known, strict=True)}
    return found


def _facts(search: Search) -> dict[str, Any]:
    """Return what is recorded of the search."""
    options, scale = search.options, search.test.scale
    names = (
        "level",
        "method",
        "by",
        "nodes",
        "size",
        "steps",
        "epsilon",
        "random_circuits",
        "random_pairs",
        "seed",
    )
    example = search.pairs.texts[0] if search.pairs.texts else ("", "")
    found_here = {"given": None, "discovery_pairs": sorted(set(search.discovery.pairs.digests))}
    return (
        found_here
        | search.notes
        | {
            **{name: getattr(options, name) for name in names},
            "delta": options.least,
            "metric": "logit of the answer − logit of the corrupted answer, at the last token",
            "pairs_of_discovery": len(search.discovery.pairs),
            "pairs_of_test": len(search.test.pairs),
            "groups_of_test": scale.clusters.count,
            "candidates": int(search.candidates.sum()),
            "all_edges": int(search.graph.allowed.sum()),
            "metric_full": float(scale.full.mean()),
            "metric_corrupted": float(scale.corrupted.mean()),
            "right": float((scale.full > 0).mean()),
            "nodes_of_readers": _nodes_of_readers(search),
            "example": example[0],
            "example_corrupted": example[1],
            "shape": {
                "n_layers": len(search.graph.layers),
                "n_heads": max(layer.heads for layer in search.graph.layers),
                "parallel_attn_mlp": search.graph.is_parallel,
            },
        }
    )


def _passes(search: Search) -> dict[str, float]:
    """Return forward passes per pair, of discovery and of test; a backward pass counts as one."""
    halves = {"discovery": search.discovery, "test": search.test}
    return {name: round(half.passes / len(half.pairs), 1) for name, half in halves.items()}


def _nodes_of_readers(search: Search) -> dict[str, list[str]]:
    """Return, for the readers that several heads share, these heads."""
    graph = search.graph
    return {
        graph.reader_name(place): [graph.senders[node] for node in reader.nodes]
        for place, reader in enumerate(graph.readers)
        if len(reader.nodes) > 1
    }
