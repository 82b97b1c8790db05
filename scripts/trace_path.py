"""Measures the path of a newcomer: which files of the package a small `extract`, `train` and `use` enter, and which
frames lie between `probing.train` and the solver.

A file counts if a function of it is called (bodies of modules and classes, and functions called by them while they are
imported, do not count). `extract` and `use` read the reference corpus and load the reference model, too.

    python scripts/trace_path.py [--files]
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import probing as pb

PACKAGE = Path(pb.__file__).resolve().parent
SOLVER = (str(PACKAGE / "probes" / "_softmax.py"), "solve")
MEASURED = ("extract", "train", "use")


class Entered:
    """Within the block, notes the files whose functions are called, and the frames at the first call of the solver."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.stack: list[str] = []
        self._seen: set[CodeType] = set()

    def __enter__(self) -> Entered:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self._seen or not code.co_filename.startswith(str(PACKAGE)):
            return
        above = _above(frame)
        if not code.co_flags & inspect.CO_OPTIMIZED or any(one.co_name == "<module>" for one in above[1:-1]):
            return
        self._seen.add(code)
        self.files.add(_short(code))
        if (code.co_filename, code.co_name) == SOLVER:
            own = [one for one in above if one.co_filename.startswith(str(PACKAGE))]
            self.stack = [f"{_short(one)}: {one.co_qualname}" for one in reversed(own)]


def _above(frame: FrameType | None) -> list[CodeType]:
    """Return the code of a frame and of all frames that called it; the last is that of this script."""
    found = []
    while frame is not None:
        found.append(frame.f_code)
        frame = frame.f_back
    return found


def _short(code: CodeType) -> str:
    return str(Path(code.co_filename).relative_to(PACKAGE))


def main() -> None:
    """Print the number of files that each run enters, and the frames from `train` to the solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="list the files, too")
    chosen = parser.parse_args()
    quiet: dict[str, Any] = {"progress": False}
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Entered() for name in MEASURED}
        with runs["extract"]:
            model, corpus = pb.LanguageModel.load("probing:reference"), pb.Corpus.read("probing:reference")
            few = corpus.filter(lambda example: example.id.endswith(("1", "5")))
            pb.extract(model, few, sites="resid.1", rows="word:mean", to=f"{folder}/store", **quiet)
        with runs["train"]:
            pb.train(f"{folder}/store", few, task="upos", to=f"{folder}/results", **quiet)
        with runs["use"]:
            model, corpus = pb.LanguageModel.load("probing:reference"), pb.Corpus.read("probing:reference")
            of = {"tasks": ["column:tense"], "behaviour": "next_token:answers=was|is", "sites": "resid.1"}
            pb.intervene(model, corpus, positions=["end"], max_rows=280, to=f"{folder}/results", **of, **quiet)
    for name, run in runs.items():
        print(f"{name}: {len(run.files)} files", *(sorted(run.files) if chosen.files else ()), sep="\n  ")
    print(f"train to solver: {len(runs['train'].stack)} frames", *runs["train"].stack, sep="\n  ")


if __name__ == "__main__":
    main()
