"""What sparse dictionaries cost and find: one benchmark a subcommand.

    python scripts/bench_dictionaries.py encode [--rows 65000] [--width 576] [--latents 16384] [--k 64]
    python scripts/bench_dictionaries.py train [--store STORE --site resid.15 --model MODEL --corpus FILE]
    python scripts/bench_dictionaries.py planted [--rows 30000] [--features 128] [--steps 4000]
    python scripts/bench_dictionaries.py probing --model DIR --dictionary DIR --data FOLDER --to DIR

`encode`: rows a second of encoding, against rows a second of the matrix product alone (torch.mm into a buffer, the same
block of rows); the largest memory, for two numbers of rows; and the size of the latents on disk against values and
columns alone. Figure to reach: 70 % of the product's rate, 1.1 times the size.

`train` trains a dictionary on a store of tokens (or on made states), and prints its time, that time scaled to a million
tokens, and its quality beside the controls. Figure to reach: 4,608 latents on SmolLM2 `resid.15` from a million tokens
in 30 minutes of 2 cores, L0 as asked for, 90 % alive.

`planted` prints how well planted features are recovered (mean |cos| after Hungarian matching), beside TopK, BatchTopK
and L1 in the settings that their papers give, on the same states and steps. Figure to reach: the best of these.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _bench_dictionary_encoding
import _bench_dictionary_probing
import _bench_dictionary_training


def main() -> None:
    """Run the benchmark that was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for part in (_bench_dictionary_encoding, _bench_dictionary_training, _bench_dictionary_probing):
        part.add(commands)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
