"""How long the audit of a shard takes, and how fast states from elsewhere are imported, beside reading them bare.

    python scripts/bench_import.py [--sentences 1000] [--width 256] [--layers 7] [--folder DIR]

Figure to reach: a good shard is audited in less than 10 ms. Medians of five; imports once each, after one to warm up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import load_file, save_file

from probing.states.importing import import_states
from probing.states.store.verify import audit
from probing.text.corpus import Corpus, Example

WORDS = 20


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def made_up(sentences: int) -> Corpus:
    """Sentences of different words."""
    examples = []
    for number in range(sentences):
        forms = [f"w{number}x{place}" for place in range(WORDS)]
        starts = np.cumsum([0, *(len(form) + 1 for form in forms[:-1])]).tolist()
        spans = tuple((start, start + len(form)) for start, form in zip(starts, forms, strict=True))
        examples.append(Example(str(number), " ".join(forms), spans))
    return Corpus(tuple(examples), "made up")


def write(folder: Path, corpus: Corpus, layers: int, width: int) -> None:
    """The same states in each format, JSON of the first fiftieth."""
    states = np.random.default_rng(0).standard_normal((len(corpus), layers, WORDS, width), np.float32)
    texts = {example.text: str(number) for number, example in enumerate(corpus.examples)}
    with h5py.File(folder / "neurox.hdf5", "w") as file:
        for number, array in enumerate(states):
            file[str(number)] = array
        file.create_dataset("sentence_to_index", (1,), h5py.string_dtype())[0] = json.dumps(texts)
    flat = {f"resid.{layer}": states[:, layer].reshape(-1, width) for layer in range(layers)}
    save_file(flat, folder / "flat.safetensors")
    (folder / "npy").mkdir()
    for name, array in flat.items():
        np.save(folder / "npy" / f"{name}.npy", array)
    with (folder / "neurox.json").open("w", encoding="utf-8") as file:
        for number in range(len(corpus) // 50):
            form = corpus.examples[number].forms
            features = [
                {"token": form[w], "layers": [{"index": i, "values": rows[w].tolist()} for i, rows in enumerate(array)]}
                for array in (states[number],)
                for w in range(WORDS)
            ]
            file.write(json.dumps({"linex_index": number, "features": features}) + "\n")


def read_bare(path: Path) -> None:
    """What a trusting reader does."""
    if path.suffix == ".hdf5":
        with h5py.File(path) as file:
            for name in file:
                file[name][()]
    elif path.suffix == ".json":
        with path.open(encoding="utf-8") as file:
            for line in file:
                json.loads(line)
    elif path.suffix == ".safetensors":
        load_file(path)
    else:
        for file in path.iterdir():
            np.load(file)


def audited(path: Path) -> None:
    """One audit, with the opening."""
    with h5py.File(path, "r") as file:
        audit(file)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--folder", help="where the files are made; default: the folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, corpus = Path(name), made_up(options.sentences)
        write(folder, corpus, options.layers, options.width)
        first = Corpus(corpus.examples[: len(corpus) // 50], "made up")
        for number, source in enumerate(("npy", "flat.safetensors", "npy", "neurox.hdf5", "neurox.json", "s0")):
            path, of = folder / source, first if source == "neurox.json" else corpus
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            size = sum(file.stat().st_size for file in files) / 1e6
            took = seconds(lambda path=path, of=of, number=number: import_states(path, of, to=folder / f"s{number}"))
            bare = 0.0 if source == "s0" else seconds(lambda path=path: read_bare(path))
            if number:
                print(f"import {source:17} {size:7.1f} MB in {took:5.2f} s; read bare {bare:5.2f} s")
        shard = max((folder / "s0" / "shards").glob("*.h5"), key=lambda file: file.stat().st_size)
        times = [seconds(lambda: audited(shard)) for _ in range(6)][1:]
        size = shard.stat().st_size / 1e6
        print(f"audit of a shard of {size:.0f} MB: {1e3 * statistics.median(times):.1f} ms   (target < 10)")
        took = seconds(lambda: audited_sentences(folder / "neurox.hdf5"))
        print(f"audit of {len(corpus)} data sets: {1e3 * took:.0f} ms")


def audited_sentences(path: Path) -> None:
    """The audit of a NeuroX file."""
    with h5py.File(path, "r") as file:
        audit(file, text="sentence_to_index")


if __name__ == "__main__":
    main()
