"""Subcommand `similarity` of `bench_looking.py`."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import probing as pb
from probing.states.store import ShardContent, StoreWriter

SHARDS = 10


def similarity(given: argparse.Namespace) -> None:
    """Compare two made stores, and print times and memory."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        paths = [_store(Path(folder) / name, given, name == "second") for name in ("first", "second")]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        wall, used = time.perf_counter(), time.process_time()
        found = pb.similarity(*paths, progress=False)
        wall, used = time.perf_counter() - wall, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        alone = _products(paths[0], given.sites)
    states = 2 * given.sites * given.rows * given.width * 4 >> 20
    print(
        f"similarity: {given.rows:,} rows × {given.width} × {given.sites} × {given.sites} sites, {len(found)} numbers"
    )
    print(
        f"  wall {wall:.1f} s, processor {used:.1f} s; of the cross-products alone {alone:.1f} s: {used / alone:.1f} ×"
    )
    print(f"  memory: peak {peak:,} MiB ({before:,} MiB before); states {states:,} MiB")


def _store(path: Path, given: argparse.Namespace, is_second: bool) -> Path:
    """Write a store of sentences of 20 words, and return its path. Variances fall with the coordinate, as those of
    models do; states of the second store are those of the first, turned, with noise that grows with the layer.
    """
    sites, words = [f"resid.{layer}" for layer in range(given.sites)], 20
    examples = given.rows // words // SHARDS
    identity = {
        "model": {"source": path.name},
        "tokenizer": {},
        "corpus": {"fingerprint": "0" * 64},
        "extraction": {"sites": sites, "rows": "word:mean", "dtype": "float32"},
        "plan": {"starts": [k * examples for k in range(SHARDS)], "count": SHARDS * examples},
    }
    spread = np.exp(-np.arange(given.width) / 60).astype(np.float32)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((given.width, given.width)))[0].astype(np.float32)
    writer = StoreWriter.open(path, identity=identity, environment={})
    for shard in range(SHARDS):
        random, noise = np.random.default_rng(shard), np.random.default_rng(100 + shard)
        states = {}
        for layer, site in enumerate(sites):
            made = random.standard_normal((examples * words, given.width), np.float32) * spread
            if is_second:
                made = made @ turn + 0.1 * layer * noise.standard_normal(made.shape, np.float32)
            states[site] = made
        writer.commit(shard, _content(shard * examples, examples, words, states))
    writer.seal()
    return path


def _content(first: int, examples: int, words: int, states: dict[str, np.ndarray]) -> ShardContent:
    word = np.tile(np.arange(words), examples)
    ordinals = np.arange(first, first + examples)
    rows = dict.fromkeys(("char_start", "char_end"), word) | {"piece_start": word + 1, "piece_end": word + 2}
    return ShardContent(
        example_start=first,
        n_examples=examples,
        rows=rows | {"word": word, "example": np.repeat(ordinals, words)},
        examples={
            "offset": np.arange(examples + 1) * words,
            "ordinal": ordinals,
            "text_sha256": np.zeros((examples, 32), np.uint8),
            "flags": np.zeros(examples, np.uint8),
        },
        sites=states,
        modules=dict.fromkeys(states, "made-up"),
    )


def _products(path: Path, sites: int) -> float:
    store = pb.Store.open(path)
    states = [store.read(site) for site in store.sites]
    begun = time.process_time()
    for a in states:
        for b in states:
            a.T @ b
    return time.process_time() - begun


def add(commands: Any) -> None:
    """Add the subcommand `similarity`."""
    alike = commands.add_parser("similarity")
    alike.add_argument("--rows", type=int, default=65_000)
    alike.add_argument("--width", type=int, default=384)
    alike.add_argument("--sites", type=int, default=7)
    alike.add_argument("--folder", help="where the stores are made (default: the system's temporary folder)")
    alike.set_defaults(run=similarity)
