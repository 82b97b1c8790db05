"""How fast tables are read beside pandas, both in one run: cells to typed columns, and on to a corpus.

    python scripts/bench_tables.py [--rows 1000000] [--corpus-rows 100000] [--repeats 7] [--folder DIR]

Figure to reach: `columns` at half of pandas' rate or more (1.00 is pandas' own). `columns` is what pandas does, too:
checked cells, typed, in memory (of JSONL: one dict a row, every key once). In `quoted.csv` every text has quotation
marks, which pandas does not look over for ones that merge lines. `corpus` is `Corpus.read`, which cuts words,
groups copies and splits at random: pandas does none of it, and its ratio says what that costs. The best of the repeats.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probing.readers.jsonl import read_lines
from probing.readers.table import read_table
from probing.text.corpus import Corpus

WORDS = np.array(["the", "old", "painter", "sees", "a", "small", "bird", "near", "cold", "water", "and", "runs"])
KINDS = ("csv", "quoted.csv", "tsv", "parquet", "jsonl")


def made_up(rows: int) -> pd.DataFrame:
    """Texts of nine words that are all different, a label, a whole number and a fraction."""
    rng = np.random.default_rng(0)
    words = WORDS[rng.integers(0, len(WORDS), (rows, 8))].tolist()
    texts = [f"{' '.join(row)} {number}" for number, row in enumerate(words)]
    labels = np.array(["past", "present", "future"])[rng.integers(0, 3, rows)]
    return pd.DataFrame(
        {"text": texts, "label": labels, "year": rng.integers(1900, 2000, rows), "score": rng.random(rows).round(4)}
    )


def write(table: pd.DataFrame, folder: Path) -> None:
    """The same rows in each format; in quoted.csv every text holds a comma."""
    table.to_csv(folder / "rows.csv", index=False)
    table.assign(text=table["text"].str.replace(" ", ", ", n=1)).to_csv(folder / "rows.quoted.csv", index=False)
    table.to_csv(folder / "rows.tsv", index=False, sep="\t")
    table.to_parquet(folder / "rows.parquet")
    table.to_json(folder / "rows.jsonl", orient="records", lines=True)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The least wall time of several calls."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found)


def by_pandas(path: str) -> Any:
    """The file as a DataFrame."""
    if path.endswith(".parquet"):
        return pd.read_parquet(path)
    if path.endswith(".jsonl"):
        return pd.read_json(path, lines=True)
    return pd.read_csv(path, sep="\t" if path.endswith(".tsv") else ",")


def by_us(path: str) -> Any:
    """The file as typed columns; of JSONL as rows."""
    if path.endswith(".jsonl"):
        return list(read_lines(path).values)
    return read_table(path, {})


def measured(folder: Path, rows: int, ours: Callable[[str], Any], repeats: int) -> None:
    """Print rows a second of both sides and their ratio, format by format."""
    for kind in KINDS:
        path = str(folder / f"rows.{kind}")
        theirs, mine = seconds(lambda p=path: by_pandas(p), repeats), seconds(lambda p=path: ours(p), repeats)
        print(
            f"{kind:12} pandas {rows / theirs:12,.0f} rows/s   here {rows / mine:12,.0f} rows/s   {theirs / mine:.2f}"
        )


def main() -> None:
    """Write the files, read them in both ways, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--corpus-rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        for title, rows, ours in (("columns", options.rows, by_us), ("corpus", options.corpus_rows, Corpus.read)):
            write(made_up(rows), Path(made))
            print(f"{title}: {rows:,} rows")
            measured(Path(made), rows, ours, options.repeats if title == "columns" else 1)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
