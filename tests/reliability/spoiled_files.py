"""F6: thousands of spoiled files, read in a child process: a typed error or a correct read, soon, within memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probing.probes.linear import LinearProbe
from probing.states.store.format import parse_signed, record_file, shard_file, signed_json
from tests.reliability.job import Job
from tests.reliability.mutations import altered, altered_object, spoiled, spoiled_text
from tests.reliability.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5.0
Make = Callable[[Path, random.Random], Path]


@dataclass(frozen=True)
class Subject:
    """One kind of file.

    Attributes:
        name: what it is.
        reader: which reader of `reading_child` reads it.
        make: writes a spoiled one into a folder and says what to read.
    """

    name: str
    reader: str
    make: Make


class Reader:
    """A child process that reads files; a new one takes its place when it crashes or hangs."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def read(self, kind: str, path: Path) -> tuple[str, str]:
        """What came of it: ("", answer), or the kind of problem and more about it."""
        child = self._alive()
        assert child.stdin and child.stdout
        child.stdin.write(f"{kind} {path}\n".encode())
        child.stdin.flush()
        if not select.select([child.stdout], [], [], SECONDS)[0]:
            self.close()
            return "hang", f"more than {SECONDS:g} s"
        said = child.stdout.readline().decode("utf-8", "replace").strip()
        if not said:
            self.close()
            return "crash", f"ended with {child.returncode}"
        kinds = {"right": "", "refused": "", "wrong": "wrong"}
        return kinds.get(said.split(" ")[0], "crash"), said

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            command = [sys.executable, "-m", "tests.reliability.reading_child"]
            variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            variables["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # as a command under a limit sets it
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._child = subprocess.Popen(command, cwd=ROOT, env=variables, **pipes)
            assert self._child.stdout
            if self._child.stdout.readline() != b"ready\n":
                raise RuntimeError("the reading process does not start")
        return self._child

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _plain(name: str, data: bytes, *, is_text: bool = True) -> Make:
    def make(folder: Path, rng: random.Random) -> Path:
        (folder / name).write_bytes(spoiled_text(data, rng) if is_text else spoiled(data, rng))
        return folder / name

    return make


def _store_json(sound: Path) -> Make:
    """One JSON file of a store: bytes spoiled, or a value altered and signed again."""

    def make(folder: Path, rng: random.Random) -> Path:
        copy = Path(shutil.copytree(sound, folder / "store"))
        file = rng.choice(sorted(copy.rglob("*.json")))
        data = file.read_bytes()
        file.write_bytes(
            spoiled(data, rng) if rng.random() < 0.3 else signed_json(altered_object(parse_signed(data), rng))
        )
        return copy

    return make


def _store_shard(sound: Path) -> Make:
    """One shard of a store spoiled, mostly in what HDF5 says of it, and its record forged to match."""

    def make(folder: Path, rng: random.Random) -> Path:
        copy = Path(shutil.copytree(sound, folder / "store"))
        file = copy / "shards" / record_file(0)
        record = parse_signed(file.read_bytes())
        entries = [entry for entry in record["datasets"].values() if entry["nbytes"] >= 512]
        ends = sorted([(0, 0), *((entry["offset"], entry["offset"] + entry["nbytes"]) for entry in entries)])
        between = [(a[1], b[0]) for a, b in itertools.pairwise(ends) if a[1] < b[0]]
        data = spoiled((copy / "shards" / record["file"]).read_bytes(), rng, between)
        sha256 = hashlib.sha256(data).hexdigest()
        (copy / "shards" / shard_file(0, sha256)).write_bytes(data)
        record |= {"sha256": sha256, "file": shard_file(0, sha256), "bytes": len(data)}
        file.write_bytes(signed_json(record))
        return copy

    return make


def _probe(sound: Path, suffix: str) -> Make:
    """One of the two files of a saved probe."""

    def make(folder: Path, rng: random.Random) -> Path:
        for ending in (".json", ".safetensors"):
            data = sound.with_suffix(ending).read_bytes()
            header = 8 + int.from_bytes(data[:8], "little") if ending == ".safetensors" else len(data)
            changed = spoiled(data, rng, [(0, header)]) if ending == suffix else data
            if ending == suffix == ".json" and rng.random() < 0.5:
                changed = json.dumps(altered(json.loads(data), rng)).encode()
            (folder / f"probe{ending}").write_bytes(changed)
        return folder / "probe"

    return make


def subjects(folder: Path) -> list[Subject]:
    """Every kind of file that is read, made from sound ones."""
    samples, store = ROOT / "tests" / "reliability" / "samples", folder / "sound"
    Job(2).write(store)
    rng = np.random.default_rng(0)
    probe = LinearProbe().fit(rng.standard_normal((40, 4)).astype(np.float32), np.array(["a", "b"] * 20))
    probe.save(folder / "probe")
    text = [
        Subject(name.partition(".")[2], reader, _plain(name, (samples / name).read_bytes()))
        for name, reader in (
            ("corpus.conllu", "corpus"),
            ("corpus.jsonl", "corpus"),
            ("corpus.csv", "corpus"),
            ("study.yaml", "study"),
            ("results.json", "results"),
        )
    ]
    table = folder / "corpus.parquet"
    pq.write_table(pa.table({"text": ["They see it.", "Straße, 東京!"] * 20, "tense": ["present", None] * 20}), table)
    return [
        *text,
        Subject("parquet", "corpus", _plain(table.name, table.read_bytes(), is_text=False)),
        Subject("store json", "store", _store_json(store)),
        Subject("hdf5", "store", _store_shard(store)),
        Subject("safetensors", "probe", _probe(folder / "probe", ".safetensors")),
        Subject("probe json", "probe", _probe(folder / "probe", ".json")),
    ]


def spoiled_files(folder: Path, *, each: int, seed: int = 6) -> Tally:
    """F6: so many files of each kind."""
    tally = Tally("F6", "a typed error or a correct read; 0 crashes, none over 5 s, memory within 1 GiB")
    reader = Reader()
    try:
        for subject in subjects(folder):
            for number in range(each):
                place = folder / "spoiled"
                place.mkdir()
                kind, said = reader.read(
                    subject.reader, subject.make(place, random.Random(f"{seed} {subject.name} {number}"))
                )
                if kind:
                    tally.problems.append((kind, f"{subject.name} {number}: {said}"))
                tally.done[kind or said.split(" ")[0]] += 1
                shutil.rmtree(place)
    finally:
        reader.close()
    tally.done = type(tally.done)({"files": sum(tally.done.values())}) + tally.done
    return tally
