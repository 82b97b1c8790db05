"""What a verdict costs: one property at all sites of a model, against one forward pass over the same texts.

    python scripts/bench_use.py [--model DIR] [--corpus FILE] [--task TASK] [--behaviour B] [--position P] [--rows 2000]

Both sides run in one process and take turns; the figure to reach is 10 forward passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

import probing as pb
from probing.batching import length_sorted_batches
from probing.intervening.options import UseOptions

REFERENCE = Path(__file__).resolve().parents[1] / "datasets" / "reference"


def forward(model: pb.LanguageModel, corpus: pb.Corpus, rows: int) -> float:
    """Seconds of one pass over the first texts, in length-sorted batches."""
    encoded = model.encode([example.text for example in corpus.examples[:rows]])
    begin = time.perf_counter()
    with torch.inference_mode():
        for batch in length_sorted_batches([len(one) for one in encoded], 2048):
            model.states([encoded[k] for k in batch], [model.sites[-1]])
    return time.perf_counter() - begin


def verdict(model: pb.LanguageModel, corpus: pb.Corpus, given: argparse.Namespace) -> float:
    """Seconds from labels to verdicts: states, both edits, standard errors, the computed null."""
    options = UseOptions(curve=False, details=False)
    positions = [] if given.position == "" else [given.position]
    begin = time.perf_counter()
    pb.intervene(
        model, corpus, tasks=given.task, behaviour=given.behaviour, positions=positions, max_rows=given.rows,
        options=options, progress=False,
    )  # fmt: skip
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REFERENCE / "model"))
    parser.add_argument("--corpus", default=str(REFERENCE / "train.jsonl"))
    parser.add_argument("--task", default="column:tense")
    parser.add_argument("--behaviour", default="next_token:answers=was|were|is|are")
    parser.add_argument("--position", default="end")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    model, corpus = pb.LanguageModel.load(given.model), pb.Corpus.read(given.corpus)
    ratios = []
    for pair in range(given.pairs):
        passed, judged = forward(model, corpus, given.rows), verdict(model, corpus, given)
        ratios.append(judged / passed)
        print(f"pair {pair + 1}: verdicts at all sites {judged:.2f} s, one forward pass {passed:.2f} s")
    print(f"verdicts of one property / one forward pass   {statistics.median(ratios):.1f}   (target <= 10)")


if __name__ == "__main__":
    main()
