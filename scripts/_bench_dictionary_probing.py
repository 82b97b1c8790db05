r"""Latents of a dictionary beside the states they are of, on labelled prompt sets: which probe reads them better.

    python scripts/bench_dictionaries.py probing --model DIR --dictionary DIR --data FOLDER --to DIR [--sets 20]

FOLDER and the choice of sets and rows are those of `bench_prompt_sets.py`, chosen by the seed before any score is seen.
For each set, the state of the last token at the dictionary's site is read by linear probes: the whole state, k
coordinates of it, its first k principal components, k latents of the dictionary, and k latents of a random dictionary
of the same size and L0, for k from 1 to 512; AUROC on test with 95 % intervals (2,000 resamples of prompts), and the
gain by the quiver rule. Then means over sets, with intervals from resampling sets. It is reported as it comes out. A
set that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_prompt_sets import PIECES, binary_sets, write_rows

import probing as pb

ORDER = (("dense", None), ("dictionary", 128), ("dictionary", 16), ("dictionary", 1), ("random", 1))


def set_scores(model: Any, dictionary: Any, path: str, data: Path, to: Path, rows: int, seed: int) -> dict[str, Any]:
    """Return what one set gives: scores of every method and k, the chosen ones, the quiver rule, and seconds."""
    to.mkdir(parents=True, exist_ok=True)
    write_rows(data, to / "rows.parquet", rows, seed)
    corpus = pb.Corpus.read(to / "rows.parquet")
    started = time.perf_counter()
    store = pb.extract(
        model,
        corpus,
        sites=dictionary.site,
        rows=PIECES["last"],
        max_length=128,
        to=to / "store",
        progress=False,
    )
    extracted = time.perf_counter()
    results = pb.train(
        store,
        corpus,
        task="column:target",
        probes=["linear"],
        controls=[],
        measures=["auroc"],
        features=[path.replace(",", r"\,")],
        to=to / "results",
        progress=False,
    )
    (found,) = results.features
    active = found.active("dictionary")
    return {
        "scores": [
            {"method": one.method, "k": one.k, "chosen": one.is_chosen, "value": one.test.value}
            | {"low": one.test.low, "high": one.test.high}
            | {f"above_{name}": [gain.value, gain.low, gain.high] for name, gain in one.above.items()}
            for one in found.methods
        ],
        "quiver": {one.added: [one.gain.value, one.gain.low, one.gain.high, one.share] for one in found.quivers},
        "l0": None if active is None else active[0],
        "extraction_seconds": extracted - started,
        "seconds": time.perf_counter() - extracted,
    }


def mean_over_sets(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % interval from resampled sets."""
    given = np.asarray(values, float)
    draws = np.random.default_rng(0).integers(0, len(given), (10_000, len(given)))
    low, high = np.quantile(given[draws].mean(axis=1), [0.025, 0.975])
    return float(given.mean()), float(low), float(high)


def print_summary(sets: dict[str, dict[str, Any]]) -> None:
    table = pd.DataFrame([{"set": name, **row} for name, one in sets.items() for row in one["scores"]])
    lines = []
    for (method, k), part in table.groupby(["method", "k"], dropna=False, sort=False):
        mean, low, high = mean_over_sets(part.value)
        lines.append({"method": method, "k": k, "sets": len(part), "mean AUROC": mean, "low": low, "high": high})
    for method, part in table[table.chosen].groupby("method", sort=False):
        mean, low, high = mean_over_sets(part.value)
        lines.append({"method": f"{method}, k by dev", "sets": len(part), "mean AUROC": mean, "low": low, "high": high})
    print(pd.DataFrame(lines).to_string(index=False, float_format="%.4g", na_rep="–"))
    ours = [row for one in sets.values() for row in one["scores"] if row["method"] == "dictionary" and row["chosen"]]
    for other in ("dense", "coordinates", "pca", "random"):
        gains = [row[f"above_{other}"] for row in ours if f"above_{other}" in row]
        if gains:
            mean, low, high = mean_over_sets([gain[0] for gain in gains])
            better, worse = sum(gain[1] > 0 for gain in gains), sum(gain[2] < 0 for gain in gains)
            print(
                f"dictionary less {other}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {len(gains)} sets; shown better "
                f"on {better}, worse on {worse}"
            )
    for added in ("dictionary", "random"):
        gains = [one["quiver"][added] for one in sets.values() if added in one["quiver"]]
        if gains:
            mean, low, high = mean_over_sets([gain[0] for gain in gains])
            share = np.mean([gain[3] for gain in gains])
            print(
                f"quiver gain of {added}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]; it is chosen in {share:.0%} of "
                "resamples of dev"
            )
    rows = [{"set": name, **row} for name, one in sets.items() for row in one["scores"]]
    wanted = {key: {r["set"]: r["value"] for r in rows if (r["method"], r["k"]) == key} for key in ORDER}
    for (one, first), (other, second) in zip(wanted.items(), list(wanted.items())[1:], strict=False):
        both = sorted(set(first) & set(second))
        if both:
            mean, low, high = mean_over_sets([first[name] - second[name] for name in both])
            print(f"{one} less {other}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    seconds = [one["seconds"] for one in sets.values()]
    print(f"{sum(seconds):.1f} s of probing in all, {np.median(seconds):.1f} s a set (median), extraction apart")


def add(commands: Any) -> None:
    """Add the subcommand `probing`."""
    part = commands.add_parser(
        "probing",
        help="probes of latents beside those of states, on labelled prompt sets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    part.add_argument("--model", required=True)
    part.add_argument("--dictionary", required=True)
    part.add_argument("--data", type=Path, required=True)
    part.add_argument("--to", type=Path, required=True)
    part.add_argument("--sets", type=int, default=20)
    part.add_argument("--seed", type=int, default=20261130)
    part.add_argument("--rows", type=int, default=600)
    part.set_defaults(run=probe_sets)


def probe_sets(given: argparse.Namespace) -> None:
    """Score every chosen set that is not done, then print means over sets."""
    dictionary = pb.Dictionary.load(given.dictionary)
    names = binary_sets(given.data)
    chosen = random.Random(given.seed).sample(names, min(given.sets, len(names)))
    print(f"{dictionary!r}\n{len(chosen)} of {len(names)} sets, seed {given.seed}")
    model = pb.LanguageModel.load(given.model)
    sets = {}
    for name in chosen:
        kept = given.to / name / f"{dictionary.content_id[:16]}.json"
        if not kept.exists():
            found = set_scores(
                model, dictionary, given.dictionary, given.data / name, given.to / name, given.rows, given.seed
            )
            kept.write_text(json.dumps(found))
        sets[name] = one = json.loads(kept.read_text())
        line = "  ".join(
            f"{row['method']}{'' if row['k'] is None else '-' + str(row['k'])} {row['value']:.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}]"
            for row in one["scores"]
            if row["chosen"]
        )
        gain = one["quiver"]["dictionary"]
        quiver = f"quiver {gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]"
        print(f"{name.split('.')[0]}: {line}  {quiver}  {one['seconds']:.1f} s", flush=True)
    print_summary(sets)
