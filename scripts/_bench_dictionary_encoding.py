"""Subcommand `encode` of `bench_dictionaries.py`."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ACTIVATIONS = ("topk", "jumprelu", "standard", "gated")


def made(width: int, latents: int, k: int, architecture: str, rows: np.ndarray):  # type: ignore[no-untyped-def]
    """A dictionary of random weights with about k active latents of a row."""
    import probing as pb

    rng = np.random.default_rng(0)
    encoder = (rng.standard_normal((width, latents)) / width**0.5).astype("f4")
    level = float(np.quantile(rows @ encoder, 1 - k / latents))
    zeros = np.zeros(latents, "f4")
    own = {
        "topk": {"k": k},
        "jumprelu": {"threshold": np.full(latents, level, "f4")},
        "standard": {"encoder_bias": np.full(latents, -level, "f4")},
        "gated": {"gate_bias": np.full(latents, -level, "f4"), "gate_scale": zeros},
    }[architecture]
    decoder = np.ascontiguousarray(encoder.T)
    shared = {"encoder": encoder, "encoder_bias": zeros, "decoder": decoder, "decoder_bias": np.zeros(width, "f4")}
    return pb.Dictionary(architecture=architecture, **shared | own)


def gemm_seconds(width: int, latents: int, rows: int, block: int) -> float:
    """Seconds of the matrix product alone, block by block into one buffer."""
    import torch

    x, weight = torch.randn(rows, width), torch.randn(width, latents)
    out = torch.empty(block, latents)
    with torch.inference_mode():
        torch.mm(x[:block], weight, out=out)
        begun = time.perf_counter()
        for first in range(0, rows, block):
            part = x[first : first + block]
            torch.mm(part, weight, out=out[: len(part)])
        return time.perf_counter() - begun


def encode(options: argparse.Namespace) -> None:
    """Print rates, their ratio, memory, and sizes."""
    import torch

    from probing.dictionaries import encoding

    width, latents, count = options.width, options.latents, options.rows
    rows = np.random.default_rng(1).standard_normal((count, width), dtype=np.float32)
    block = max(1, encoding._BLOCK // latents)
    print(
        f"{count:,} x {width} into {latents:,} latents, k {options.k}, {torch.get_num_threads()} threads, "
        f"blocks of {block} rows"
    )
    for architecture in ACTIVATIONS:
        dictionary = made(width, latents, options.k, architecture, rows[:512])
        dictionary.encode(rows[: 2 * block])
        gemm, own = [], []
        for _ in range(options.repeats):  # in turn: what else runs on the machine meets both
            gemm.append(gemm_seconds(width, latents, count, block))
            begun = time.perf_counter()
            found = dictionary.encode(rows)
            own.append(time.perf_counter() - begun)
        ratio = min(gemm) / min(own)
        print(
            f"{architecture:10} L0 {found.nnz / count:6.1f}: product {min(gemm):6.2f} s "
            f"({2 * count * width * latents / min(gemm) / 1e9:5.0f} GFLOP/s), encoding {min(own):6.2f} s "
            f"({count / min(own):6,.0f} rows/s): {ratio:.1%} of the product's rate"
        )
    on_disk(options)
    for share in (4, 1):
        with tempfile.TemporaryDirectory() as folder:
            call(f"states_store(Path({folder!r}) / 'states', {width}, {count // share})")
            peak = call(f"peak_of_encoding(Path({folder!r}), {latents}, {options.k})")
            print(f"largest memory of a process that encodes a store of {count // share:,} rows: {peak}")


def call(code: str) -> str:
    """Run a function of this file in a process of its own, and return what it prints."""
    program = f"from pathlib import Path\nfrom scripts._bench_dictionary_encoding import *\n{code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def states_store(folder: Path, width: int, count: int):  # type: ignore[no-untyped-def]
    """A store of random states, in shards of 8,192 rows of one example each."""
    import probing as pb
    from probing.states.store import ShardContent, StoreWriter

    starts, rng = list(range(0, count, 8192)), np.random.default_rng(2)
    identity = {
        "model": {"source": "bench", "dtype": "float32"},
        "tokenizer": {"source": "bench"},
        "corpus": {"source": "bench", "fingerprint": "0" * 64, "subset": None},
        "extraction": {"role": "states", "sites": ["resid.0"], "rows": "sentence:mean", "dtype": "float32"},
        "plan": {"starts": starts, "count": count},
    }
    writer = StoreWriter.open(folder, identity=identity, environment={})
    for shard, first in enumerate(starts):
        size = min(8192, count - first)
        example = np.arange(first, first + size)
        zeros = np.zeros(size, np.int64)
        writer.commit(
            shard,
            ShardContent(
                example_start=first,
                n_examples=size,
                rows={"example": example, "word": zeros, "piece_start": zeros, "piece_end": zeros + 1}
                | {"char_start": zeros, "char_end": zeros + 1},
                examples={"offset": np.arange(size + 1), "ordinal": example, "flags": zeros}
                | {"text_sha256": np.zeros((size, 32), np.uint8)},
                sites={"resid.0": rng.standard_normal((size, width), dtype=np.float32)},
                modules={"resid.0": "bench"},
            ),
        )
    writer.seal()
    return pb.Store.open(folder)


def peak_of_encoding(folder: Path, latents: int, k: int) -> None:
    """Encode a store of states and print the largest memory of this process."""
    import probing as pb

    store = pb.Store.open(folder / "states")
    dictionary = made(store.width("resid.0"), latents, k, "topk", store.read("resid.0", np.arange(64)))
    pb.encode_states(dictionary, store, folder / "latents", site="resid.0", progress=False)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def on_disk(options: argparse.Namespace) -> None:
    """Print the size of the three arrays, and of the whole store, against values and columns alone."""
    import probing as pb
    from probing.states.store.latents import INDICES, INDPTR, VALUES

    with tempfile.TemporaryDirectory() as folder:
        count = min(options.rows, 20_000)
        store = states_store(Path(folder) / "states", options.width, count)
        rows = store.read("resid.0", np.arange(512))
        dictionary = made(options.width, options.latents, options.k, "topk", rows)
        begun = time.perf_counter()
        made_store = pb.encode_states(dictionary, store, Path(folder) / "latents", site="resid.0", progress=False)
        seconds = time.perf_counter() - begun
        sizes = [
            sum(made_store.dataset(shard, path).nbytes for shard in made_store.shards)
            for path in (INDPTR, INDICES, VALUES)
        ]
        whole = sum(file.stat().st_size for file in (Path(folder) / "latents").rglob("*") if file.is_file())
        alone = sizes[1] + sizes[2]
        print(
            f"on disk, {count:,} rows: values and columns {alone:,} bytes; with row ends {sum(sizes) / alone:.3f} of "
            f"that; the whole store, with rows and examples, {whole / alone:.3f}; written in {seconds:.1f} s"
        )


def add(commands: Any) -> None:
    """Add the subcommand."""
    one = commands.add_parser("encode", help="rate beside the matrix product's, memory, sizes")
    one.add_argument("--rows", type=int, default=65_000)
    one.add_argument("--width", type=int, default=576)
    one.add_argument("--latents", type=int, default=16_384)
    one.add_argument("--k", type=int, default=64)
    one.add_argument("--repeats", type=int, default=2)
    one.set_defaults(run=encode)
