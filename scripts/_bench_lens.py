"""Subcommand `lens` of `bench_looking.py`."""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch

import probing as pb


def clock() -> tuple[float, float]:
    """Return seconds of wall and of processor."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Return seconds of wall and of processor since `start`."""
    return time.perf_counter() - start[0], time.process_time() - start[1]


def lens(given: argparse.Namespace) -> None:
    """Measure the columns of the logit lens and a step of the tuned lens."""
    from probing.lenses import LogitLens
    from probing.lenses._fitting import FitOptions, Wanted, fit_lenses, read_fit_states
    from probing.lenses._measuring import Reading, measure
    from probing.lenses._reading import Tail, fast, final_outputs, states_of, token_rows

    torch.set_num_threads(given.threads)
    model = pb.LanguageModel.load(given.model, check=False)
    corpus = pb.Corpus.read(given.texts)
    tail = Tail(model)
    shared: dict[str, Any] = {"split": None, "skip": 1, "max_length": 512}
    rows = token_rows(model, corpus, max_rows=given.tokens, seed=0, **shared).first(given.tokens)
    print(f"identity at {tail.site}: {tail.check([rows.inputs[0], rows.inputs[-1]]):.1e} of the spread")
    start = clock()
    with fast(model):
        for members, states in states_of(model, rows, tail.sites):
            for at in range(0, len(members), tail.chunk):
                chosen = members[at : at + tail.chunk]
                final_outputs(tail, states[tail.site][at : at + tail.chunk], rows.target[chosen])
    passes = since(start)
    start = clock()
    measure(tail, rows, [Reading(LogitLens(), tail.sites)], None, False)
    columns = since(start)
    width, blocks = model.width(tail.site), sum(p.numel() for p in model.suffix.trunk.blocks.parameters())  # type: ignore[attr-defined]
    end = width * tail.vocabulary
    print(f"{len(rows):,} tokens × {len(tail.sites)} sites of width {width}, vocabulary {tail.vocabulary:,}")
    for name, (wall, processor) in (("forward passes", passes), ("lens columns", columns)):
        print(f"{name}: {wall:.1f} s of wall, {processor:.1f} s of processor")
    if given.bf16:
        _in_bfloat16(tail, rows, passes)
    print(f"ratio: {columns[0] / passes[0]:.2f} of wall, {columns[1] / passes[1]:.2f} of processor")
    bound = (blocks + end * (1 + len(tail.sites))) / (blocks + end)
    print(f"multiplications alone: {bound:.2f} (blocks {blocks:,}, end {end:,} a token and site)")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if given.train:
        train = token_rows(model, corpus, max_rows=given.train, seed=1, **shared).first(given.train)
        dev = token_rows(model, corpus, max_rows=256, seed=2, **shared).first(256)
        inner = tail.sites[:-1]
        data = read_fit_states(tail, model, train, dev, inner, lambda count: None)
        start = clock()
        fit_lenses(tail, data, [Wanted("tuned", "")], FitOptions(epochs=1), recipe="bench")
        wall, processor = since(start)
        print(
            f"tuned lens, {len(inner)} sites, one pass over {len(train):,} tokens, with starts and dev: "
            f"{wall:.1f} s of wall, {processor:.1f} s of processor"
        )


def _in_bfloat16(tail: Any, rows: Any, passes: tuple[float, float]) -> None:
    """Measure the columns with products in bfloat16 (sums in float32), and how far they are from the others."""
    from probing.lenses import LogitLens
    from probing.lenses._measuring import Reading, measure

    some = rows.first(min(len(rows), 500))
    exact = measure(tail, some, [Reading(LogitLens(), tail.sites)], None, False).columns
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    start = clock()
    rough = measure(tail, some, [Reading(LogitLens(), tail.sites)], None, False).columns
    wall, processor = since(start)
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # type: ignore[attr-defined]
    share = len(some) / len(rows)
    print(f"in bfloat16: {wall / share / passes[0]:.2f} of wall, {processor / share / passes[1]:.2f} of processor")
    for name in ("kl", "cross_entropy"):
        worst = max(float(abs(exact[key][name] - rough[key][name]).max()) for key in exact if key[0] == "logit")
        print(f"  largest error of a row's {name}: {worst:.4f} bits")


def add(commands: Any) -> None:
    """Add the subcommand `lens`."""
    one = commands.add_parser("lens")
    one.add_argument("model")
    one.add_argument("texts")
    one.add_argument("--tokens", type=int, default=20_000)
    one.add_argument("--train", type=int, default=2048)
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--bf16", action="store_true", help="measure products in bfloat16 too")
    one.set_defaults(run=lens)
