"""Probes of a language model on labelled prompt sets: which probe, which pieces, what transfers.

    python scripts/bench_prompt_sets.py --model DIR --data FOLDER --to DIR [--sets 20] [--seed 20261130] [--rows 600]

FOLDER holds one CSV file a set, with the columns `prompt` and `target` (Kantamneni et al. 2025 published 113 sets of
two classes in this form). The sets are drawn by the seed before anything is read but the labels; rows are drawn by the
same seed, split at random (equal prompts together). For each set: AUROC on test, with 95 % intervals, of `linear`,
`mass_mean` with both intercepts, at the last piece and at the mean of all pieces, and of `attention_pooling`; accuracy,
in which the two intercepts differ; recall at 1 % false positives. Then the transfer matrix of the first six sets. It
is reported as it comes out. A set that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probing as pb

SITE = "resid.20"  # two thirds of 30 layers, chosen before any score was seen
PIECES = {"last": "sentence:last", "mean": "sentence:mean"}
POOLED = ("linear", "mass_mean", "mass_mean:intercept=midpoint")
MEASURES = ("auroc", "accuracy", "recall_at_fpr:fpr=0.01")
TRANSFERS = 6


def binary_sets(folder: Path) -> list[str]:
    """Return the names of the sets with two classes, sorted."""
    files = sorted(folder.glob("*.csv*"))
    return [file.name for file in files if pd.read_csv(file, usecols=["target"]).target.nunique() == 2]


def write_rows(file: Path, to: Path, rows: int, seed: int) -> None:
    """Write rows drawn at random as a table with the columns `text` and `target`; targets are `0` and `1`."""
    table = pd.read_csv(file)
    table = table.sample(n=min(rows, len(table)), random_state=seed)
    codes = table.target.map({value: f"c{code}" for code, value in enumerate(sorted(table.target.unique()))})
    pd.DataFrame({"text": table.prompt.astype(str), "target": codes}).to_parquet(to)


def scored(store: Any, corpus: Any, to: Path) -> Iterator[dict[str, Any]]:
    """Yield the test scores of every probe on every kind of pooled row."""
    runs: list[tuple[str, dict[str, Any]]] = [
        (name, {"probes": list(POOLED), "rows": rows}) for name, rows in PIECES.items()
    ]
    runs.append(("all", {"probes": ["attention_pooling"]}))
    for name, options in runs:
        results = pb.train(
            store,
            corpus,
            task="column:target",
            controls=[],
            measures=list(MEASURES),
            to=to / name,
            progress=False,
            **options,
        )
        for result in results:
            for one in result.measures:
                if one.split == result.judged_split():
                    row = {"probe": result.probe, "pieces": name, "measure": one.measure}
                    yield row | {"score": one.score.value, "low": one.score.low, "high": one.score.high}


def done(to: Path, name: str, model: Any, data: Path, rows: int, seed: int) -> list[dict[str, Any]]:
    """Return the scores of one set, from its file where it was done before."""
    kept = to / name / "scores.json"
    if kept.exists():
        return list(json.loads(kept.read_text()))
    (to / name).mkdir(parents=True, exist_ok=True)
    table = to / name / "rows.parquet"
    write_rows(data / name, table, rows, seed)
    corpus = pb.Corpus.read(table)
    store = pb.extract(
        model(), corpus, sites=SITE, rows="piece", max_length=128, to=to / name / "store", progress=False
    )
    found = list(scored(store, corpus, to / name / "results"))
    kept.write_text(json.dumps(found))
    return found


def summary(scores: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Return the mean over sets of each probe's scores, with the interval of the mean over sets resampled."""
    table = pd.DataFrame([{"set": name, **row} for name, rows in scores.items() for row in rows])
    random_rows, lines = np.random.default_rng(0), []
    for (probe, pieces, measure), part in table.groupby(["probe", "pieces", "measure"]):
        values = part.score.to_numpy(float)
        draws = values[random_rows.integers(0, len(values), (2000, len(values)))].mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        lines.append(
            {"measure": measure, "probe": probe, "pieces": pieces, "mean": values.mean(), "low": low, "high": high}
        )
    return pd.DataFrame(lines)


def transfer(to: Path, names: Sequence[str]) -> pd.DataFrame:
    """Return AUROC on test of the linear probe at the last piece, trained on each set (rows) and scored on each."""
    sources = {name.split(".")[0]: to / name for name in names}
    found = pb.transfer(
        {
            name: (pb.Store.open(folder / "store"), pb.Corpus.read(folder / "rows.parquet"))
            for name, folder in sources.items()
        },
        task="column:target",
        probes=["linear"],
        measures=["auroc"],
        rows=PIECES["last"],
        to=to / "transfer",
    )
    return found.table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--seed", type=int, default=20261130)
    parser.add_argument("--rows", type=int, default=600)
    given = parser.parse_args()
    names = binary_sets(given.data)
    chosen = random.Random(given.seed).sample(names, min(given.sets, len(names)))
    print(f"{len(chosen)} of {len(names)} sets, seed {given.seed}: {', '.join(name.split('.')[0] for name in chosen)}")
    loaded: list[Any] = []

    def model() -> Any:
        if not loaded:
            loaded.append(pb.LanguageModel.load(given.model))
        return loaded[0]

    scores = {}
    for name in chosen:
        scores[name] = done(given.to, name, model, given.data, given.rows, given.seed)
        best = [row for row in scores[name] if row["measure"] == "auroc"]
        line = "  ".join(
            f"{row['probe']}@{row['pieces']} {row['score']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in best
        )
        print(f"{name.split('.')[0]}: {line}", flush=True)
    print(summary(scores).to_string(index=False, float_format="%.3f"))
    print(transfer(given.to, chosen[:TRANSFERS]).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
