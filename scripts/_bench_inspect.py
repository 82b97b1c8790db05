"""Subcommand `inspect` of `bench_looking.py`."""

from __future__ import annotations

import argparse
import json
import sys
import time
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


def add(commands: Any) -> None:
    """Add the subcommand `inspect`."""
    part = commands.add_parser("inspect")
    part.add_argument("--model", required=True)
    part.add_argument("--text", default=PROMPT)
    part.add_argument("--blimp")
    part.add_argument("--texts", type=int, default=200)
    part.add_argument("--replacement", action="append", help="repeatable; default: all")
    part.add_argument("--to")
    part.set_defaults(run=inspect)
