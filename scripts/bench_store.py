"""The store against plain files, and what writing it adds to an extraction.

    python scripts/bench_store.py [--rows 40000] [--width 768] [--sites 7] [--model DIR] [--corpus FILE] [--pairs 5]

Figures to reach: a verified read of one site, hot, at least 1 GB/s; 2,000 random rows, hot, at most 10 ms; the writer
at most 5 % of an extraction's time. Beside each stands the same read from one HDF5 file with an (N, sites, width)
array, as a notebook would keep it. Both sides run in turn; figures are medians. The built-in model computes so little
that its writer's share says nothing of others: give one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import torch

from probing.errors import IncompleteStore
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.states.store import ShardContent, Store, StoreWriter
from probing.text.corpus import Corpus

REFERENCE = Path(__file__).resolve().parents[1] / "datasets" / "reference"
ROWS_PER_EXAMPLE = 20
SHARDS = 8


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def shard_content(shard: int, examples: int, sites: list[str], width: int) -> ShardContent:
    """Random states, `ROWS_PER_EXAMPLE` rows an example."""
    n_rows = examples * ROWS_PER_EXAMPLE
    random = np.random.default_rng(shard)
    ordinals = np.arange(shard * examples, (shard + 1) * examples)
    word = np.tile(np.arange(ROWS_PER_EXAMPLE), examples)
    rows = dict.fromkeys(("word", "piece_start", "piece_end", "char_start", "char_end"), word)
    return ShardContent(
        example_start=shard * examples,
        n_examples=examples,
        rows=rows | {"example": np.repeat(ordinals, ROWS_PER_EXAMPLE)},
        examples={
            "offset": np.arange(examples + 1) * ROWS_PER_EXAMPLE,
            "ordinal": ordinals,
            "text_sha256": np.zeros((examples, 32), np.uint8),
            "flags": np.zeros(examples, np.uint8),
        },
        sites={site: random.standard_normal((n_rows, width), np.float32) for site in sites},
        modules=dict.fromkeys(sites, "made-up"),
    )


def write_both(folder: Path, rows: int, width: int, n_sites: int) -> tuple[float, float]:
    """Seconds to write the store, and the same states as one HDF5 array."""
    sites = [f"resid.{layer}" for layer in range(n_sites)]
    examples = rows // ROWS_PER_EXAMPLE // SHARDS
    identity = {
        "model": {},
        "tokenizer": {},
        "corpus": {"fingerprint": "0" * 64},
        "extraction": {"sites": sites, "rows": "word:mean", "dtype": "float32"},
        "plan": {"starts": [k * examples for k in range(SHARDS)], "count": SHARDS * examples},
    }
    writer = StoreWriter.open(folder / "store", identity=identity, environment={})
    ours = theirs = 0.0
    with h5py.File(folder / "plain.h5", "w") as file:
        array = file.create_dataset("states", (SHARDS * examples * ROWS_PER_EXAMPLE, n_sites, width), np.float32)
        for shard in range(SHARDS):
            content = shard_content(shard, examples, sites, width)
            ours += seconds(lambda shard=shard, content=content: writer.commit(shard, content))
            low = shard * examples * ROWS_PER_EXAMPLE
            stacked = np.stack([content.sites[site] for site in sites], axis=1)
            theirs += seconds(
                lambda low=low, stacked=stacked: array.write_direct(stacked, dest_sel=np.s_[low : low + len(stacked)])
            )
    writer.seal()
    return ours, theirs


def reads(folder: Path, pairs: int) -> None:
    """One site, whole and at random rows, hot: the store, each time newly opened, and the plain array."""
    store = Store.open(folder / "store")
    chosen = np.random.default_rng(0).choice(store.n_rows, 2000, replace=False)
    n_bytes = store.n_rows * store.width("resid.3") * 4
    times: dict[str, list[float]] = {name: [] for name in ("store", "plain", "store rows", "plain rows")}
    with h5py.File(folder / "plain.h5") as file:
        for _ in range(pairs + 1):
            fresh = Store.open(folder / "store")
            times["store"].append(seconds(lambda fresh=fresh: fresh.read("resid.3")))
            times["plain"].append(seconds(lambda: file["states"][:, 3]))
            times["store rows"].append(seconds(lambda fresh=fresh: fresh.read("resid.3", chosen)))
            times["plain rows"].append(seconds(lambda: file["states"][np.sort(chosen), 3]))
    median = {name: statistics.median(found[1:]) for name, found in times.items()}
    print(
        f"one site, verified, hot     {n_bytes / median['store'] / 1e9:.2f} GB/s   (target >= 1); "
        f"plain HDF5 {n_bytes / median['plain'] / 1e9:.2f} GB/s"
    )
    print(
        f"2,000 random rows, hot      {1e3 * median['store rows']:.1f} ms   (target <= 10); "
        f"plain HDF5 {1e3 * median['plain rows']:.1f} ms"
    )


def writer_share(model_name: str, files: str, pairs: int) -> None:
    """An extraction with and without its commits."""
    model, corpus = LanguageModel.load(model_name), Corpus.read(files)
    with_commits, without = [], []
    for _ in range(pairs + 1):
        with tempfile.TemporaryDirectory() as folder:
            with_commits.append(seconds(lambda: extract(model, corpus, to=Path(folder) / "s", progress=False)))
        with tempfile.TemporaryDirectory() as folder, uncommitted(), suppress(IncompleteStore):
            begin = time.perf_counter()
            extract(model, corpus, to=Path(folder) / "s", progress=False)
        without.append(time.perf_counter() - begin)
    whole, bare = statistics.median(with_commits[1:]), statistics.median(without[1:])
    print(f"writer, of an extraction    {100 * (whole / bare - 1):.1f} %   (target <= 5); {whole:.2f} s, {bare:.2f} s")


@contextmanager
def uncommitted() -> Iterator[None]:
    """Commits that only remember which shards they were given."""
    done: set[int] = set()
    with (
        patch.object(StoreWriter, "commit", lambda writer, shard, content: done.add(shard)),
        patch.object(StoreWriter, "_is_done", lambda writer, shard: shard in done),
        patch.object(StoreWriter, "seal", lambda writer: ""),
    ):
        yield


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--sites", type=int, default=7)
    parser.add_argument("--model", default=str(REFERENCE / "model"))
    parser.add_argument("--corpus", default=str(REFERENCE / "train.jsonl"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", help="where the files are made; default: the folder for temporary files")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ours, theirs = write_both(Path(folder), options.rows, options.width, options.sites)
        size = options.rows * options.width * options.sites * 4 / 1e9
        print(f"write, durable              {size / ours:.2f} GB/s; plain HDF5, not durable {size / theirs:.2f} GB/s")
        reads(Path(folder), options.pairs)
    writer_share(options.model, options.corpus, options.pairs)


if __name__ == "__main__":
    main()
