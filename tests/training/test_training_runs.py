"""Training by executors: the same bytes whoever fits, failures set aside, and results that meet on the disk."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probing as pb
from probing.contracts.analysis import Analysis, SiteData
from probing.contracts.probe import Probe, RowBlocks
from probing.errors import BadParameter, NonFiniteStates, ProbingWarning, ProvenanceMismatch, UnitFailed
from probing.results.analysis import Point
from probing.results.probe import read_results
from probing.states.store import Store
from probing.text.corpus import Corpus
from probing.training import train
from probing.training.results import ProbeResults
from probing.training.running import Threads
from tests.conftest import REFERENCE
from tests.samples.training_samples import MemoryStore, word_corpus
from tests.training.test_training import tag_store

CORPUS = word_corpus(ambiguous=0.3)
HAS_RAY = importlib.util.find_spec("ray") is not None
RAY = pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")])
SECOND = "linear:l2=0.1"


def two_sites() -> MemoryStore:
    one, two = tag_store(CORPUS), tag_store(CORPUS, noise=2.0)
    return MemoryStore(CORPUS, {"resid.0": one.states["resid.0"], "resid.1": two.states["resid.0"]}, one.rows)


def run(store: Any, corpus: Corpus = CORPUS, **options: Any) -> ProbeResults:
    return train(store, corpus, **({"task": "upos", "controls": ["word_type:draws=1"], "progress": False} | options))


@pytest.fixture(scope="module")
def read(small_corpus: dict[str, Path]) -> Corpus:
    return pb.Corpus.read({split: str(file) for split, file in small_corpus.items()})


@pytest.fixture(scope="module")
def stores(read: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """States of the reference model and of its untrained twin."""
    folder = tmp_path_factory.mktemp("states")
    made = [
        pb.extract(
            pb.LanguageModel.load(str(REFERENCE / "model"), untrained=untrained),
            read,
            sites="resid.*",
            to=folder / str(untrained),
            progress=False,
        )
        for untrained in (None, 0)
    ]
    return made[0], made[1]


class NormAnalysis(Analysis):
    """The mean norm of the test states."""

    def run(self, probe: Probe, data: SiteData) -> list[Point]:
        return [Point("norm", float(np.linalg.norm(data.states["test"], axis=1).mean()), "")]


def test_rows_of_another_split_are_left_out_with_a_warning_that_counts_them() -> None:
    odd = tuple(replace(e, split="holdout") if n % 7 == 0 else e for n, e in enumerate(CORPUS.examples))
    corpus = replace(CORPUS, examples=odd)
    n = sum(len(e.words) for e in odd if e.split == "holdout")
    with pytest.warns(ProbingWarning, match=f"{n:,} of the split holdout"):
        results = run(tag_store(corpus), corpus, probes=["linear"])
    assert results[0].facts["excluded"]["split holdout"] == n


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", RAY])
def test_every_executor_gives_the_bytes_of_an_inline_run(
    executor: str, stores: tuple[Store, Store], read: Corpus, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "sites": "resid.0,resid.2",
        "probes": ["linear", "mlp:hidden=8,max_epochs=2"],
        "seeds": 2,
        "analyses": [NormAnalysis()],
        "controls": ["word_type:draws=1", "random_states:draws=1", "static", f"untrained_model:store={stores[1].path}"],
    }
    for name, more in {"inline": {}, executor: {"executor": executor, "workers": 2}}.items():
        run(stores[0], read, to=tmp_path / name, **options, **more)
    for file in ("results.jsonl", "analyses.jsonl"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("inline", executor))
        assert one == two and b"inline" not in one and executor.encode() not in two
    results = read_results(tmp_path / executor / "results.jsonl")
    assert {r.site for r in results} == {"(none)", "resid.0", "resid.2"}
    assert sorted(p.name for p in (tmp_path / executor / "units").iterdir()) == sorted(
        p.name for p in (tmp_path / "inline" / "units").iterdir()
    )
    assert os.fsencode(str(stores[1].path)) not in (tmp_path / "inline" / "results.jsonl").read_bytes()


def test_processes_that_share_units_write_results_when_none_is_left(
    stores: tuple[Store, Store], read: Corpus, tmp_path: Path
) -> None:
    whole = run(stores[0], read, to=tmp_path / "whole")
    first = run(stores[0], read, to=tmp_path / "shared", array_size=2, array_index=1)
    assert first.missing == len(whole) - len(first) > 0
    assert not (tmp_path / "shared" / "results.jsonl").exists()
    last = run(stores[0], read, to=tmp_path / "shared", array_size=2, array_index=0)
    assert (last.missing, len(last)) == (0, len(whole))
    one, two = ((tmp_path / name / "results.jsonl").read_bytes() for name in ("whole", "shared"))
    assert one == two


@pytest.mark.parametrize("options", [{"executor": "processes"}, {"array_size": 2}])
def test_several_processes_need_a_folder(options: dict[str, Any]) -> None:
    with pytest.raises(BadParameter, match="need a folder"):
        run(two_sites(), **options)
    with pytest.raises(BadParameter, match="no such part of the array"):
        run(two_sites(), array_size=2, array_index=2)


@pytest.mark.parametrize("executor", ["inline", pytest.param("processes", marks=pytest.mark.slow)])
def test_what_fails_is_set_aside_while_the_rest_is_done_and_written(executor: str, tmp_path: Path) -> None:
    store = two_sites()
    good = store.states["resid.0"].copy()
    store.states["resid.0"][7, 2] = np.nan
    with pytest.raises(UnitFailed, match="2 of the units of work failed") as failure:
        run(store, probes=["linear", SECOND], to=tmp_path, executor=executor)
    assert set(failure.value.errors) == {"linear at resid.0", f"{SECOND} at resid.0"}
    assert all(type(error) is NonFiniteStates for error in failure.value.errors.values())
    done = [(r.site, r.probe) for r in read_results(tmp_path / "results.jsonl")]
    assert done == [("(none)", "prior"), ("(none)", "word_type"), ("resid.1", "linear"), ("resid.1", SECOND)]
    store.states["resid.0"][:] = good
    store.reads.clear()
    results = run(store, probes=["linear", SECOND], to=tmp_path)
    assert set(store.reads) == {"resid.0"} and len(results) == 6  # only what failed was done again


def test_a_single_failure_is_raised_as_it_is_and_more_than_three_do_not_stop_the_rest(tmp_path: Path) -> None:
    store = two_sites()
    store.states["resid.0"][7, 2] = np.nan
    with pytest.raises(NonFiniteStates, match=r"site resid\.0") as error:
        run(store, to=tmp_path)
    assert "everything but linear at resid.0 is done" in error.value.__notes__[0]
    probes = [f"linear:l2={l2}" for l2 in (0.001, 0.01, 0.1, 1)]
    with pytest.raises(UnitFailed) as failure:
        run(store, probes=probes, to=tmp_path)
    assert len(failure.value.errors) == len(probes) > 3
    assert sum(r.site == "resid.1" for r in read_results(tmp_path / "results.jsonl")) == 1 + len(probes)


def test_a_site_is_read_once_for_all_its_probes_and_analyses() -> None:
    store = two_sites()
    run(store, probes=["linear", SECOND], analyses=[NormAnalysis()])
    assert store.reads == ["resid.0"] * 3 + ["resid.1"] * 3


def test_a_store_that_changed_is_not_read_by_a_worker(stores: tuple[Store, Store]) -> None:
    import pickle

    sent = pickle.dumps(stores[0])
    assert pickle.loads(sent).content_id == stores[0].content_id and len(sent) < 1000
    changed = replace_content(stores[0], "d" * 64)
    with pytest.raises(ProvenanceMismatch, match="changed while"):
        pickle.loads(pickle.dumps(changed))


def replace_content(store: Store, content_id: str) -> Store:
    other = Store.open(store.path)
    other.content_id = content_id
    return other


def test_threads_are_a_setting_of_the_block_and_given_back() -> None:
    before = Threads.here()
    with Threads.equal(before.torch + 1).used():
        assert Threads.here().torch == before.torch + 1
    assert Threads.here() == before == Threads.equal(None)
    assert replace(before, torch=3) == Threads(3, before.blas)


def test_states_beyond_the_memory_are_streamed_to_who_can_and_give_the_same_scores(
    stores: tuple[Store, Store], read: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(stores[0], read, probes=["linear", "mlp:hidden=4,max_epochs=2"], sites="resid.1")
    streamed, blocks = [], RowBlocks.blocks

    def watched(self: RowBlocks) -> Any:
        streamed.append(len(self))
        return blocks(self)

    monkeypatch.setattr(RowBlocks, "blocks", watched)
    enough = run(stores[0], read, probes=["linear"], sites="resid.1", max_memory_mib=16)
    assert not streamed
    monkeypatch.setattr(RowBlocks, "fits", property(lambda self: False))
    parts = run(stores[0], read, probes=["linear", "mlp:hidden=4,max_epochs=2"], sites="resid.1", max_memory_mib=16)
    assert len(streamed) > 10
    for one, other in [(whole[2], enough[2]), (whole[2], parts[2]), (whole[3], parts[3])]:
        for name in ("accuracy", "log_loss"):
            assert other.measure(name).score.value == pytest.approx(one.measure(name).score.value, abs=2e-3)
    with pytest.raises(BadParameter, match="memory"):
        run(stores[0], read, max_memory_mib=1)
