"""How long it takes to look inside a model, and how often a striking attention pattern has little effect.

    python scripts/bench_looking.py inspect --model SMOLLM2 [--text TEXT] [--blimp FOLDER --texts 200] [--to DIR]

`inspect`, figure to reach: the whole check of one prompt of 12 tokens over all 270 heads of SmolLM2-135M in 60 s on 2
quiet cores. With `--blimp`, the prompts of the paradigms in that folder (what both sentences of a pair begin with, of
three words or more, different ones, by turns): heads by entropy, weight on token 0 and checked effect, and
how often a head with a striking pattern (in the top decile of some score) has an effect below the median. Reported as
it comes out; seconds are wall and processor time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import chain, islice, takewhile, zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import probing as pb

PROMPT = "The keys to the old cabinet near the window are here now"  # 12 words; SmolLM2 reads one token a word


def blimp_prompts(folder: Path, count: int) -> list[str]:
    """Return prompts of BLiMP, by turns from each paradigm as long as it has different ones."""
    of_files = []
    for file in sorted(folder.glob("*.jsonl")):
        pairs = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        starts = (_shared(pair["sentence_good"].split(), pair["sentence_bad"].split()) for pair in pairs)
        of_files.append(dict.fromkeys(" ".join(words) for words in starts if len(words) > 2))
    turns = chain.from_iterable(zip_longest(*of_files))
    return list(islice((text for text in turns if text is not None), count))


def _shared(good: list[str], bad: list[str]) -> list[str]:
    """Return the words that two sentences begin with."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(good, bad, strict=False))]


def inspect(given: argparse.Namespace) -> None:
    """Time the check of one prompt; on a corpus, print the heads and how often cue and effect disagree."""
    model = pb.LanguageModel.load(given.model, attention="eager")
    texts: Any = given.text
    if given.blimp:
        texts = blimp_prompts(Path(given.blimp), given.texts)
    begin, before = time.perf_counter(), time.process_time()
    found = pb.inspect(model, texts, check=True, replacements=given.replacement, to=given.to)
    wall, processor = time.perf_counter() - begin, time.process_time() - before
    tokens = sum(len(text.tokens) for text in found.texts)
    heads = found.grid("entropy").size
    print(f"{len(found.texts)} texts, {tokens} tokens, {heads} heads, {torch.get_num_threads()} threads")
    print(f"inspect --check: {wall:.1f} s, {processor:.1f} s of processor")
    effects = {way: found.grid(way, "kl") for way in found.replacements}
    for way, effect in effects.items():
        parts = ", ".join(f"{value:.5f}" for value in np.quantile(effect, [0.1, 0.5, 0.9, 1.0]))
        print(f"KL, bits, {way}: 10 %, median, 90 %, largest: {parts}")
    print("head    entropy share  token 0  " + "  ".join(effects))
    first = effects[found.replacements[0]]
    order = np.argsort(-first, axis=None)
    for k in [*order[:15], *order[-5:]]:
        layer, head = divmod(int(k), first.shape[1])
        cells = "  ".join(f"{effect[layer, head]:.5f}" for effect in effects.values())
        shares = [found.grid(score)[layer, head] for score in ("entropy_share", "first_token")]
        print(f"{found.layers[layer]:2}.{head:<4} {shares[0]:13.3f} {shares[1]:8.3f}  {cells}")
    for way, of in found.disagreement.items():
        for score, counts in of.items():
            few = f"effect ({way}) below the median: {counts['below_median']}"
            print(f"striking by {score}: {counts['striking']} heads, {few}")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("inspect")
    part.add_argument("--model", required=True)
    part.add_argument("--text", default=PROMPT)
    part.add_argument("--blimp")
    part.add_argument("--texts", type=int, default=200)
    part.add_argument("--replacement", action="append", help="repeatable; default: all")
    part.add_argument("--to")
    part.set_defaults(run=inspect)
    asked = parser.parse_args(given)
    asked.run(asked)


if __name__ == "__main__":
    main()
