"""A process that reads spoiled files, one a line of its input, and says after each what came of it.

    python -m tests.reliability.reading_child

Input lines: KIND PATH. Answers: `right`, `refused NAME` for a typed error, `untyped …` for any other. Memory is limited
to what the process has once its libraries are loaded, and a gigabyte.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from probing.errors import ProbingError
from probing.jobs.study import Study
from probing.probes._estimator import load_probe
from probing.registry import get, names
from probing.results.probe import read_results
from probing.states.store import Store, store_info
from probing.text.alignment import check_words
from probing.text.corpus import Corpus
from probing.training.results import ProbeResults
from tests.reliability.job import WIDTHS, Job

SPARE = 1 << 30
STORE = Job(2)


def read_corpus(path: Path) -> bool:
    """Whether a corpus that was read keeps its own laws."""
    examples = Corpus.read(str(path)).examples
    check_words([e.words for e in examples], [len(e.text) for e in examples], [e.id for e in examples])
    return all(len(column) == len(e.words) for e in examples for column in e.word_columns.values())


def read_store(path: Path) -> bool:
    """Whether a store that was read gives the only right states."""
    store_info(path)
    store = Store.open(path, allow_partial=True)
    store.verify()
    store.rows  # noqa: B018
    for site in WIDTHS:
        store.read(site)
    return not STORE.wrong(STORE.found(path))


def read_probe(path: Path) -> bool:
    """Whether a saved probe predicts a class for each row."""
    probe = load_probe(path)
    return len(probe.predict(np.zeros((3, 4), np.float32))) == 3


def read_table(path: Path) -> bool:
    """Whether results make a table."""
    results = ProbeResults(read_results(path))
    return len(results.table()) == len(results) and len(results.long()) >= 0


def read_study(path: Path) -> bool:
    """Whether a study has a name that can be a directory."""
    return Study.from_yaml(path).name not in ("", ".", "..")


READERS: dict[str, Callable[[Path], bool]] = {
    "corpus": read_corpus,
    "store": read_store,
    "probe": read_probe,
    "results": read_table,
    "study": read_study,
}


def answer(kind: str, path: Path) -> str:
    """What came of reading one file."""
    try:
        return "right" if READERS[kind](path) else "wrong"
    except ProbingError as error:
        return f"refused {type(error).__name__}"
    except Exception as error:
        return f"untyped {type(error).__name__}: {str(error)[:150]!r}"


def main() -> None:
    """Answer until the input ends."""
    for name in names("probes"):
        with contextlib.suppress(ImportError):
            get("probes", name)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE, size + SPARE))
    print("ready", flush=True)
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition(" ")
        print(answer(kind, Path(path)).replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
