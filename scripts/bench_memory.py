"""Resident memory of an extraction, by the number of sentences: it should not grow with the corpus.

    python scripts/bench_memory.py [--model DIR] [--sites SITES] [--sentences 5000 --sentences 100000]

Each extraction runs by the command line in a process of its own, on generated sentences of 4 to 30 words with one label
a word; the figure is the largest resident size that process ever had, without what the corpus takes, which is held
by design and measured by a process that only reads it. To reach: within 10 % of the smallest corpus's, which must
be large enough to fill four shards of 64 MiB (5,000 sentences of a model of width 384, all sites; not so the built-in
model).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

REFERENCE_MODEL = Path(__file__).resolve().parents[1] / "datasets" / "reference" / "model"
REFERENCE_CORPUS = REFERENCE_MODEL.with_name("train.jsonl")
READ = """
import sys
from pathlib import Path
from probing import Corpus
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
Corpus.read({"train": sys.argv[2]})
before = resident()
corpus = Corpus.read({"train": sys.argv[1]})
print(resident() - before)
"""


def write_corpus(path: Path, n_sentences: int) -> None:
    """Sentences of words that the reference model knows, in any order."""
    rng = random.Random(n_sentences)
    texts = (json.loads(line)["text"] for line in REFERENCE_CORPUS.read_text(encoding="utf-8").splitlines())
    vocabulary = sorted({word for text in texts for word in text.split()})
    with path.open("w", encoding="utf-8") as file:
        for _ in range(n_sentences):
            words = [rng.choice(vocabulary) for _ in range(rng.randint(4, 30))]
            labels = [rng.choice(("NOUN", "VERB", "ADJ", "DET")) for _ in words]
            file.write(json.dumps({"words": words, "upos": labels}) + "\n")


def peak_megabytes(corpus: Path, model: str, sites: str, to: Path) -> float:
    """Largest resident size, in MB, of one `probing extract`."""
    command = [sys.executable, "-m", "probing", "extract", "--model", model, "--corpus", f"train={corpus}"]
    with subprocess.Popen([*command, "--sites", sites, "--to", str(to), "--quiet"], stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(child.returncode)
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def corpus_megabytes(corpus: Path) -> float:
    """What a process that has read a small corpus before grows by, in MB, when it reads this one (Linux)."""
    command = [sys.executable, "-c", READ, str(corpus), str(REFERENCE_CORPUS.with_name("dev.jsonl"))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) * resource.getpagesize() / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REFERENCE_MODEL))
    parser.add_argument("--sites", default="resid.*")
    parser.add_argument("--sentences", type=int, action="append", help="repeat; default: 5000 and 100000")
    options = parser.parse_args()
    first = None
    for n_sentences in options.sentences or [5_000, 100_000]:
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder) / "corpus.jsonl"
            write_corpus(corpus, n_sentences)
            held = corpus_megabytes(corpus)
            peak = peak_megabytes(corpus, options.model, options.sites, Path(folder) / "store")
        first = first or peak - held
        print(
            f"{n_sentences:>8,} sentences: {peak:,.0f} MB, of which the corpus {held:,.0f}; without it "
            f"{(peak - held) / first:.2f} x the first",
            flush=True,
        )


if __name__ == "__main__":
    main()
