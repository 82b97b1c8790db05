"""Moments of a made-up job: what they must be, told twice, and how they are gathered."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from probing.states.extraction.gathering import Gathering
from probing.states.store import FileOps, Moments, Store
from probing.text.corpus import Corpus, Example
from tests.reliability.job import EXAMPLES, WIDTHS, Job, QuickFiles

SELECTIONS = ("train", "all")
Name = tuple[str, str]
NAMES: list[Name] = [(site, selection) for site in WIDTHS for selection in SELECTIONS]


@lru_cache
def corpus(job: Job) -> Corpus:
    """The examples of a job: every third one is of the dev split."""
    splits = ("train", "dev", "train")
    return Corpus(tuple(
        Example(id=str(k), text="a", words=((0, 1),), split=splits[k % 3]) for k in range(job.n_shards * EXAMPLES)
    ))  # fmt: skip


def gather(path: Path, job: Job, site: str, selection: str, files: FileOps | None = None) -> Moments:
    """Moments of one site of a finished store, kept in it."""
    store = Store.open(path)
    return Gathering([site], corpus(job), selection).finish(store, files=files or QuickFiles())[0]


def in_bytes(moments: Moments) -> bytes:
    """All numbers that moments hold."""
    arrays = (np.array([moments.count]), moments.total, moments.cross, moments.examples, moments.empty)
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


@lru_cache
def truth(job: Job) -> dict[Name, bytes]:
    """The bytes of each moments, from a store that nothing happened to; the same numbers by numpy, or it is no truth.

    Raises:
        AssertionError: gathering gives other numbers than numpy does.
    """
    with tempfile.TemporaryDirectory() as folder:
        job.write(Path(folder) / "s", QuickFiles())
        found = {name: gather(Path(folder) / "s", job, *name) for name in NAMES}
    for (site, selection), moments in found.items():
        ordinals = [k for k, e in enumerate(corpus(job).examples) if selection in ("all", e.split)]
        rows = np.concatenate([job.states(shard, site).astype(np.float64) for shard in range(job.n_shards)])
        rows = rows[np.isin(np.arange(len(rows)) // job.rows, ordinals)]
        assert moments.count == len(rows) and moments.examples.tolist() == ordinals
        np.testing.assert_allclose(moments.total, rows.sum(axis=0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moments.cross, rows.T @ rows, rtol=1e-9, atol=1e-9)
    return {name: in_bytes(moments) for name, moments in found.items()}
