"""Measures what watching costs: generation with probes at several sites, beside the same generation alone, in pairs.

    python scripts/bench_score.py MODEL --probes 10 --tokens 64 --pairs 8 [--every-piece]

Prints the median over pairs of the time watched over the time alone, with the quartiles, of wall and processor time;
`--every-piece` scores each piece at once, as a callback needs. The probes are linear ones on random labels: their cost
does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import probing as pb
from probing.probes.linear import LinearProbe
from probing.provenance import model_called, tokenizer_digest, weights_digest

PROMPT = "The history of the city begins with"


def probe_at(model: Any, site: str, seed: int) -> LinearProbe:
    """Return a linear probe fitted on random rows, with the card of one that `train` saved."""
    random = np.random.default_rng(seed)
    X = random.standard_normal((200, model.width(site))).astype(np.float32)
    probe = LinearProbe().fit(X, np.where(random.random(200) < 0.5, "no", "yes"))
    identity = model.identity()
    facts = {name: identity["model"].get(name) for name in ("source", "revision", "dtype", "side")}
    facts |= {"weights": weights_digest(identity["model"]), "tokenizer": tokenizer_digest(identity["tokenizer"])}
    probe.about = {
        "card": 2,
        "task": "column:random",
        "probe": "linear",
        "site": site,
        "kind": "classes",
        "labels": ["no", "yes"],
        "rows": "sentence:mean",
        "model": model_called(identity["model"]),
        "model_facts": facts,
        "read": {"rows": "sentence:mean", "row_form": "row", "dtype": model.dtype, "long_inputs": "truncate"},
        "threshold": None,
    }
    return probe


def main() -> None:
    """Run the pairs and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probes", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--every-piece", action="store_true")
    given = parser.parse_args()
    model = pb.LanguageModel.load(given.model)
    resid = [site for site in model.sites if site.startswith("resid.")]
    sites = [resid[round(k)] for k in np.linspace(0, len(resid) - 1, given.probes)]
    probes = [probe_at(model, site, seed) for seed, site in enumerate(sites)]
    options: dict[str, Any] = {"max_new_tokens": given.tokens, "min_new_tokens": given.tokens}
    watching: dict[str, Any] = {"callback": lambda alarm: None, "threshold": 1e9} if given.every_piece else {}
    model.generate([PROMPT], **options)
    ratios, alone, watched, processor = [], [], [], []
    for pair in range(given.pairs):
        times = {}
        for is_watched in (pair % 2 == 0, pair % 2 == 1):
            start, used = time.perf_counter(), time.process_time()
            if is_watched:
                with pb.watch(model, probes, **watching) as scores:
                    began = time.perf_counter(), time.process_time()  # probes are checked once, before the generation
                    model.generate([PROMPT], **options)
                assert len(scores) == 1 and len(next(iter(scores[0].scores.values()))) > 0
                start, used = began
            else:
                model.generate([PROMPT], **options)
            times[is_watched] = time.perf_counter() - start, time.process_time() - used
        alone.append(times[False][0])
        watched.append(times[True][0])
        ratios.append(times[True][0] / times[False][0])
        processor.append(times[True][1] / times[False][1])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    first, half, third = np.quantile(processor, [0.25, 0.5, 0.75])  # less disturbed by what else the machine does
    what = (
        f"{given.probes} probes at {len(set(sites))} sites of {model.name}, {given.tokens} pieces, {given.pairs} pairs"
    )
    seconds = f"alone {np.median(alone):.2f} s, watched {np.median(watched):.2f} s"
    print(f"{what}: {seconds}, ratio {middle:.3f} [{low:.3f}, {high:.3f}]")
    print(f"of processor time: ratio {half:.3f} [{first:.3f}, {third:.3f}]")


if __name__ == "__main__":
    main()
