"""What a pass from a site on costs beside a full pass, mean over the sites of a model.

    python scripts/bench_replay.py [--model DIR] [--corpus FILE] [--behaviour next_token] [--rows 256] [--pairs 3]

Figure to reach: at most 0.6 x a full pass. Both sides run the same rows in the same batches, in turn, and end with the
behaviour; ratios are medians over pairs. `with slopes` also runs backward to the edited states, which a full pass is
not charged for.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from probing.contracts.edited_model import Place
from probing.models.language_model import LanguageModel
from probing.text.corpus import Corpus
from probing.use.edited_models.text import TextInstrument

REFERENCE = Path(__file__).resolve().parents[1] / "datasets" / "reference"


def full_pass(instrument: TextInstrument) -> None:
    """The behaviour of all rows, by whole passes in the batches of `run_from`."""
    rows = np.arange(instrument.n_rows)
    with torch.no_grad():
        for part in instrument.batches(rows):
            instrument.read(instrument.runner.outputs(part, instrument.runner.batch(part)))


def replay(instrument: TextInstrument, place: Place, *, slopes: bool = False) -> None:
    """The behaviour of all rows with other states at a place."""
    rows = np.arange(instrument.n_rows)
    for part in instrument.batches(rows):
        states = torch.from_numpy(instrument.states(place)[np.roll(part, 1)]).requires_grad_(slopes)
        y = instrument.run_from(place.site, part, {place.position: states})
        if slopes:
            torch.autograd.grad(y.square().sum(), states)


def seconds(run: Callable[[], None]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def ratio(instrument: TextInstrument, pairs: int, *, slopes: bool) -> dict[str, float]:
    """By site, median over pairs of the time of a replay over that of a full pass next to it."""
    found: dict[str, float] = {}
    for place in instrument.places:
        replay(instrument, place, slopes=slopes)
        shares = [
            seconds(lambda p=place: replay(instrument, p, slopes=slopes)) / seconds(lambda: full_pass(instrument))
            for _ in range(pairs)
        ]
        found[place.site] = statistics.median(shares)
    return found


def main() -> None:
    """Print a ratio by site and their mean."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default=str(REFERENCE / "model"))
    parser.add_argument("--corpus", default=str(REFERENCE / "train.jsonl"))
    parser.add_argument("--behaviour", default="next_token")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = LanguageModel.load(given.model)
    instrument = TextInstrument.from_words(
        model, Corpus.read(given.corpus), given.behaviour, max_rows=given.rows, tokens_per_batch=given.tokens
    )
    full_pass(instrument)
    whole = min(seconds(lambda: full_pass(instrument)) for _ in range(2))
    print(f"{model.name}: {instrument.n_rows} rows, full pass {whole:.3f} s, one thread")
    for name, slopes in (("replay", False), ("with slopes", True)):
        shares = ratio(instrument, given.pairs, slopes=slopes)
        sites = "  ".join(f"{site} {share:.2f}" for site, share in shares.items())
        print(f"{name}: mean {statistics.mean(shares.values()):.3f} x a full pass   ({sites})")


if __name__ == "__main__":
    main()
