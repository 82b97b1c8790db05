"""Files with a few wrong bytes are read or are a typed error; nothing else, and at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probing as pb
from probing.errors import ProbingError
from probing.jobs.study import Study
from probing.probes._estimator import load_probe
from probing.probes.linear import LinearProbe
from tests.cli.test_study import GOOD
from tests.conftest import some

CONLLU = """# sent_id = a
# text = Dogs bark.
1\tDogs\tdog\tNOUN\tNNS\tNumber=Plur\t2\tnsubj\t_\t_
2\tbark\tbark\tVERB\tVBP\t_\t0\troot\t_\tSpaceAfter=No
3\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_

# sent_id = b
# text = Don't.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
1\tDo\tdo\tAUX\tVB\t_\t0\troot\t_\t_
2\tn't\tnot\tPART\tRB\t_\t1\tadvmod\t_\t_
3\t.\t.\tPUNCT\t.\t_\t1\tpunct\t_\t_

"""
ROWS = [{"text": "Dogs bark.", "upos": ["NOUN", "VERB", "PUNCT"], "n": 1.5, "id": str(i)} for i in range(5)]


def _text(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text, encoding="utf-8") and None


def _table(path: Path) -> None:
    frame = pd.DataFrame([{"text": row["text"], "label": row["n"]} for row in ROWS])
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".feather":
        frame.to_feather(path)
    else:
        frame.to_csv(path, index=False)


def _probe(path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    LinearProbe().fit(X, (X[:, 0] > 0).astype(int)).save(path.with_suffix(""))


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "a.conllu": (_text(CONLLU), lambda path: pb.Corpus.read(str(path))),
    "a.jsonl": (_text("".join(json.dumps(row) + "\n" for row in ROWS)), lambda path: pb.Corpus.read(str(path))),
    "a.csv": (_table, lambda path: pb.Corpus.read(str(path))),
    "a.parquet": (_table, lambda path: pb.Corpus.read(str(path))),
    "a.feather": (_table, lambda path: pb.Corpus.read(str(path))),
    "study.yaml": (_text(GOOD), Study.from_yaml),
    "probe.json": (_probe, load_probe),
    "probe.safetensors": (_probe, load_probe),
}


def mutated(good: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed; at times cut off, or a stretch doubled."""
    spoiled = bytearray(good)
    for position in rng.integers(0, len(good), rng.integers(1, 6)):
        spoiled[position] = rng.integers(256)
    kind = rng.random()
    if kind < 0.15:
        return bytes(spoiled[: rng.integers(len(spoiled))])
    if kind < 0.3:
        first, end = sorted(rng.integers(0, len(spoiled), 2))
        return bytes(spoiled[:end] + spoiled[first:])
    return bytes(spoiled)


def survive(name: str, folder: Path, count: int) -> dict[str, int]:
    """Outcomes of reading that many mutated files."""
    write, read = FORMATS[name]
    path = folder / name
    write(path)
    good, rng, outcomes = path.read_bytes(), np.random.default_rng(11), {"read": 0, "refused": 0}
    read(path)
    for _ in range(count):
        path.write_bytes(mutated(good, rng))
        begin = time.monotonic()
        try:
            read(path)
            outcomes["read"] += 1
        except ProbingError:
            outcomes["refused"] += 1
        assert time.monotonic() - begin < 5
    return outcomes


@pytest.mark.parametrize("name", some(FORMATS, 4))
def test_a_mutated_file_is_read_or_a_typed_error(tmp_path: Path, name: str) -> None:
    assert survive(name, tmp_path, 25)["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_mutated_files_are_read_or_typed_errors(tmp_path: Path, name: str) -> None:
    outcomes = survive(name, tmp_path, 150)
    assert outcomes["refused"] > 10
