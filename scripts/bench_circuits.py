"""What words on circuits are worth: identity by family of models, edges of compiled models against an oracle, and cost.

    scripts/bench_circuits.py [--cases 0,1,…] [--pairs 80] [--seeds 1] [--model DIR --file PAIRS.jsonl --nodes 30]

Identity: random models of each family; the sum of what senders wrote against the residual stream at every reader, all
edges against the model, none against the corrupted run. Compiled models (tier 1 of Plantbench): the oracle below is a
GPT-2 in NumPy that shares no code with `probing.circuits`; it corrupts one edge at a time. An edge is certified if its
effect is 2 δ or more, and inert below δ / 5; the others are not counted. With `--model`: the cost of nodes by EAP and
of exact edges, in seconds and in forward passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from probing.circuits import circuit
from probing.circuits.running import Batch
from probing.circuits.traces import TokenPairs, read_token_pairs
from probing.errors import DegenerateDesign
from probing.models.language_model import LanguageModel
from probing.models.splitting import SplitTransformer
from probing.plantbench.built import compiled
from probing.plantbench.tier1_cases import CASES, plant
from probing.results.circuit import MATERIAL, SUFFICIENT
from probing.seeds import generator

DELTA = 0.05
NOISE = 1e-3  # of the weights of compiled blocks, which the oracle has, too
_SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
_GROUPED = _SIZE | {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 3, "n_embd": 32, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "gpt_neox": _SIZE,
    "opt": {"num_hidden_layers": 3, "hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4}
    | {"word_embed_proj_dim": 32},
    "gemma2": _GROUPED | {"head_dim": 8, "sliding_window": 4},
    "gemma3_text": _GROUPED | {"head_dim": 8, "sliding_window": 4},
}


def tokenizer_of(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words."""
    inner = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token=words[1]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=words[1], pad_token=words[0])


def identity() -> None:
    """Print the identity of random models of every family."""
    print("identity, largest difference as a share of the scale: residual at readers, all edges, no edges")
    for family, config in FAMILIES.items():
        torch.manual_seed(1)
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=100, **config))
        with torch.no_grad():
            for weight in network.parameters():
                weight += 0.1 * torch.randn_like(weight)
        words = tuple(f"w{k}" for k in range(100))
        split = SplitTransformer(LanguageModel.from_modules(network.eval(), tokenizer_of(words), name=family))
        ids = np.random.default_rng(0).integers(0, 100, (16, 12))
        other = ids.copy()
        other[:, 3] = (other[:, 3] + 1) % 100
        pairs = TokenPairs(ids.tolist(), other.tolist(), np.tile([[4, 9]], (16, 1)), np.arange(16))
        batch = Batch(split, pairs, np.arange(16))
        full, corrupted = batch.ends()
        scale = max(np.abs(full).max(), np.abs(corrupted).max())
        every = np.abs(batch.run(batch.graph.allowed) - full).max() / scale
        none = np.abs(batch.run(np.zeros_like(batch.graph.allowed)) - corrupted).max() / scale
        print(f"  {family:12} {split.check(torch.tensor(ids)):.1e} {every:.1e} {none:.1e}")


class Oracle:
    """A GPT-2 of compiled weights in NumPy, on which one edge at a time is corrupted."""

    def __init__(self, network: Any) -> None:
        self.w = {name: value.detach().double().numpy() for name, value in network.named_parameters()}
        self.layers, self.heads = network.config.n_layer, network.config.n_head
        self.eps = network.config.layer_norm_epsilon

    def _norm(self, x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return centred / scale * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def run(self, ids: Any, answers: Any, edge: str = "", other: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Return the metric of prompts `(N, T)`, and what each node wrote; `edge` carries what its sender wrote in
        `other`.
        """
        wrote = {"input": self.w["transformer.wte.weight"][ids] + self.w["transformer.wpe.weight"][: ids.shape[1]]}
        bias = np.zeros(wrote["input"].shape[-1])

        def read(reader: str) -> Any:
            source = edge.partition("->")[0] if edge.endswith(f"->{reader}") else None
            return sum((other or {})[k] if k == source else v for k, v in wrote.items()) + bias

        causal = np.tril(np.ones((ids.shape[1],) * 2, dtype=bool))
        for layer in range(self.layers):
            at = f"transformer.h.{layer}"
            qkv, b = self.w[f"{at}.attn.c_attn.weight"], self.w[f"{at}.attn.c_attn.bias"]
            out = self.w[f"{at}.attn.c_proj.weight"]
            width, size = out.shape[0], out.shape[0] // self.heads
            new = {}
            for head in range(self.heads):
                parts = []
                for place, kind in enumerate("qkv"):
                    columns = slice(place * width + head * size, place * width + (head + 1) * size)
                    state = self._norm(read(f"a{layer}.h{head}<{kind}>"), f"{at}.ln_1")
                    parts.append(state @ qkv[:, columns] + b[columns])
                logits = np.where(causal, parts[0] @ parts[1].transpose(0, 2, 1) / np.sqrt(size), -np.inf)
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                mixed = weights / weights.sum(-1, keepdims=True) @ parts[2]
                new[f"a{layer}.h{head}"] = mixed @ out[head * size : (head + 1) * size]
            wrote |= new
            bias = bias + self.w[f"{at}.attn.c_proj.bias"]
            state = self._norm(read(f"m{layer}"), f"{at}.ln_2")
            hidden = np.maximum(0, state @ self.w[f"{at}.mlp.c_fc.weight"] + self.w[f"{at}.mlp.c_fc.bias"])
            written = hidden @ self.w[f"{at}.mlp.c_proj.weight"] + self.w[f"{at}.mlp.c_proj.bias"]
            wrote[f"m{layer}"] = written
        last = self._norm(read("logits"), "transformer.ln_f")[:, -1] @ self.w["lm_head.weight"].T
        rows = np.arange(len(ids))
        return last[rows, answers[:, 0]] - last[rows, answers[:, 1]], wrote


def compiled_cases(numbers: list[int], pairs: int, seeds: int) -> Iterator[tuple[str, Any, TokenPairs]]:
    """Yield the compiled models of tier 1 that use property B, with pairs of prompts that differ in it."""
    for seed in range(seeds):
        for number in numbers:
            if "used" not in CASES[number].twins:
                continue
            planted = plant(number, "used", seed=seed)
            network, language = compiled(planted).claim.planted.model, planted.language
            clean, other = language.pairs(pairs, "B", generator(seed, "bench circuits", number))
            with torch.no_grad():  # blocks that write exactly nothing are not told apart from one another
                for weight in network.transformer.h.parameters():
                    weight += NOISE * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
                logits = [network(torch.from_numpy(one.ids)).logits[:, -1] for one in (clean, other)]
            first, count = language.first_answer, language.answers
            change = (logits[0] - logits[1])[:, first : first + count]
            answers = torch.stack([change.argmax(1), change.argmin(1)], 1).numpy() + first
            data = TokenPairs(clean.ids.tolist(), other.ids.tolist(), answers, np.arange(pairs))
            model = LanguageModel.from_modules(
                network, tokenizer_of(language.vocabulary), name=planted.name, check=False
            )
            yield planted.name, (network, SplitTransformer(model)), data


def truth(network: Any, pairs: TokenPairs, edges: list[str]) -> dict[str, float]:
    """Return the effect of every edge by the oracle, as a share."""
    oracle, clean, other = Oracle(network), np.array(pairs.clean), np.array(pairs.corrupted)
    full, _ = oracle.run(clean, pairs.answers)
    corrupted, wrote = oracle.run(other, pairs.answers)
    total = (full - corrupted).sum()
    return {edge: float((full - oracle.run(clean, pairs.answers, edge, wrote)[0]).sum() / total) for edge in edges}


def upper(wrong: int, count: int) -> float:
    """Return the upper end of the exact binomial 95 % interval."""
    return float(beta.ppf(0.975, wrong + 1, count - wrong)) if wrong < count else 1.0


def planted(numbers: list[int], pairs: int, seeds: int) -> None:
    """Print precision, recall and errors of words on compiled models, and AUROC of the screens."""
    counts = dict.fromkeys(("found", "right", "certified", "recalled", "inert", "false", "sufficient", "missing"), 0)
    areas: dict[str, list[float]] = {"exact": [], "eap": [], "eap_ig": []}
    print(f"compiled models, {pairs} pairs each, δ {DELTA}")
    for name, (network, split), data in compiled_cases(numbers, pairs, seeds):
        begun = time.perf_counter()
        try:
            results = {
                method: circuit(split, data, method=method, delta=DELTA, random_circuits=0, progress=False)
                for method in areas
            }
        except DegenerateDesign as error:
            print(f"  {name:44} not counted: {error.args[0]}")
            continue
        result = results["exact"]
        effects = truth(network, data, [part.name for part in result.parts])
        certified = {edge for edge, effect in effects.items() if abs(effect) >= 2 * DELTA}
        inert = {edge for edge, effect in effects.items() if abs(effect) < DELTA / 5}
        material = set(result.material)
        counted = material & {edge for edge, e in effects.items() if abs(e) >= DELTA or abs(e) < DELTA / 5}
        is_sufficient = result.word("sufficient").word == SUFFICIENT
        missed = certified - set(result.edges)
        row = {"found": len(counted), "right": len(counted - inert), "certified": len(certified)}
        row |= {"recalled": len(certified & material), "inert": len(inert), "false": len(material & inert)}
        row |= {"sufficient": int(is_sufficient), "missing": int(is_sufficient and bool(missed))}
        counts = {key: value + row[key] for key, value in counts.items()}
        known = [edge for edge in effects if edge in certified or edge in inert]
        for method, one in results.items():
            scores = {part.name: abs(part.effect) for part in one.parts}
            areas[method].append(
                float(roc_auc_score([edge in certified for edge in known], [scores[e] for e in known]))
            )
        print(
            f"  {name:44} {result.word('sufficient').word:14} {result.word('necessary').word:13} "
            f"{len(result.edges)} edges, {len(material)} {MATERIAL}; certified {len(certified & material)} of "
            f"{len(certified)}, inert called material {len(material & inert)} of {len(inert)}; "
            f"AUROC eap {areas['eap'][-1]:.3f}, eap_ig {areas['eap_ig'][-1]:.3f}; {time.perf_counter() - begun:.0f} s"
        )
    if not areas["exact"]:
        return
    print(f"precision {counts['right']} of {counts['found']} = {counts['right'] / max(1, counts['found']):.3f}")
    print(f"recall {counts['recalled']} of {counts['certified']} = {counts['recalled'] / counts['certified']:.3f}")
    share = counts["false"] / counts["inert"]
    print(f"inert called material {counts['false']} of {counts['inert']} = {share:.4f}, ", end="")
    print(f"upper end of 95 % {upper(counts['false'], counts['inert']):.4f}")
    print(f"sufficient circuits that miss an edge of 2 δ: {counts['missing']} of {counts['sufficient']}")
    print("AUROC, mean over models: " + ", ".join(f"{name} {np.mean(values):.3f}" for name, values in areas.items()))


def cost(folder: str, file: str, nodes: int, count: int) -> None:
    """Print seconds and forward passes of nodes by EAP, and of exact edges among the best nodes."""
    model = LanguageModel.load(folder, kind="causal")
    split = SplitTransformer(model)
    pairs = read_token_pairs(model, file, None, ())
    pairs = pairs.chosen(np.arange(min(count, len(pairs))))
    seconds = dict.fromkeys(("nodes", "edges"), 0.0)
    begun = time.perf_counter()
    for rows in pairs.batches():
        Batch(split, pairs, rows)
    plain = time.perf_counter() - begun
    begun = time.perf_counter()
    batches = [Batch(split, pairs, rows, is_attributed=True) for rows in pairs.batches()]
    seconds["nodes"] = time.perf_counter() - begun - plain
    graph, scores = batches[0].graph, np.sum([batch.node_effects for batch in batches], axis=0)
    passes = sum(batch.passes * len(batch.rows) for batch in batches)
    print(
        f"nodes by EAP: {len(graph.senders) - 1} nodes, {passes / len(pairs):.1f} passes a pair (one backward), ",
        end="",
    )
    print(f"{seconds['nodes']:.1f} s for {len(pairs)} pairs beside {plain:.1f} s of two forward passes each")
    best = np.argsort(-np.abs(scores[1:]))[:nodes] + 1
    edges = [(int(s), int(r)) for s, r in np.argwhere(graph.among([graph.senders[k] for k in best]))]
    begun, before = time.perf_counter(), sum(batch.passes * len(batch.rows) for batch in batches)
    for batch in batches:
        batch.removals(edges)
    seconds["edges"] = time.perf_counter() - begun
    after = sum(batch.passes * len(batch.rows) for batch in batches)
    print(f"exact: {len(edges)} edges among {nodes} nodes, {(after - before) / len(pairs):.0f} passes a pair, ", end="")
    print(f"{seconds['edges']:.0f} s for {len(pairs)} pairs; for 200 pairs {seconds['edges'] / len(pairs) * 200:.0f} s")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(map(str, CASES)), help="numbers of tier-1 cases")
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", default="", help="folder of a causal model whose cost is measured")
    parser.add_argument("--file", default="", help="its pairs")
    parser.add_argument("--nodes", type=int, default=30)
    parser.add_argument("--cost-pairs", type=int, default=200)
    given = parser.parse_args()
    if given.model:
        cost(given.model, given.file, given.nodes, given.cost_pairs)
        return
    identity()
    planted([int(number) for number in given.cases.split(",")], given.pairs, given.seeds)


if __name__ == "__main__":
    main()
