"""What looking inside a model costs, and what it finds: one benchmark a subcommand.

    python scripts/bench_looking.py similarity [--rows 65000] [--width 384] [--sites 7] [--folder DIR]
    python scripts/bench_looking.py lens MODEL TEXTS [--tokens 20000] [--train 2048] [--threads 2] [--bf16]
    python scripts/bench_looking.py inspect --model MODEL [--text TEXT] [--blimp FOLDER --texts 200] [--to DIR]

`similarity` makes two stores of Gaussian states (the second is the first, turned, and noise), compares all pairs of
sites by all measures of states, and prints wall and processor time, their ratio to that of the cross-products of all
pairs alone as one matrix product each (measured in the same run), and the peak of memory beside the size of the states.
Figure to reach: 60 s on 2 quiet cores.

`lens` prints the time of the columns of the logit lens at all sites over the time of the forward passes of the same
tokens (states at all sites, and the model's own outputs), the multiplications that both need, the peak memory, and the
time a step of the tuned lens takes at every site. TEXTS is a corpus file. Figure to reach: 3 times, 1.5 GB.

`inspect` times the whole check of one prompt; figure to reach: 12 tokens over all 270 heads of SmolLM2-135M in 60 s on
2 quiet cores. With `--blimp`, it reads the prompts of the paradigms in that folder (what both sentences of a pair begin
with, of three words or more, different ones, by turns) and prints heads by entropy, weight on token 0 and checked
effect, and how often a head with a striking pattern (in the top decile of some score) has an effect below the median.

Where other work runs on the machine, set OMP_NUM_THREADS=1: threads that wait for one another take most of the time.
"""

from __future__ import annotations

import argparse

import _bench_inspect
import _bench_lens
import _bench_similarity


def main() -> None:
    """Run the benchmark that was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for part in (_bench_similarity, _bench_lens, _bench_inspect):
        part.add(commands)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
