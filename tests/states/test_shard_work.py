"""Laws of extraction by any executor: one content whoever computes it, whatever dies; errors as they were raised."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from probing import registry
from probing.cli.commands import app
from probing.contracts.executor import Executor, Outcome, Report, Worker, WorkerFactory, WorkerSlot, WorkPlan, WorkUnit
from probing.errors import (
    BadParameter,
    MissingDependency,
    NonFiniteStates,
    ProvenanceMismatch,
    Stalled,
    UnitFailed,
    WorkerLost,
    WorkError,
)
from probing.jobs import ExtractJob
from probing.models.language_model import LanguageModel
from probing.models.loading.identity import ModelSource
from probing.states.extraction import StoreToFill, WorkersThatLoad, extract, shard_units, threads_set
from probing.states.extraction.reading_options import reading_of
from probing.states.store import Store, StoreWriter
from probing.states.store.leases import Leases
from probing.text.corpus import Corpus
from tests.conftest import REFERENCE
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of

HAS_RAY = importlib.util.find_spec("ray") is not None
RAY = [pytest.mark.slow, pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: probing-toolkit[ray]")]
MODEL = str(REFERENCE / "model")


@dataclass(frozen=True)
class DeadlyFactory:
    """Its workers read as others do, but the first to be in the middle of shard 2 is killed."""

    inner: WorkerFactory
    flag: Path

    def __call__(self, place: WorkerSlot) -> Worker:
        return DeadlyWorker(self.inner(place), self.flag)


class DeadlyWorker(Worker):
    def __init__(self, inner: Worker, flag: Path) -> None:
        self.inner = inner
        self.flag = flag

    def start(self, unit: WorkUnit, report: Report) -> Callable[[], None]:
        def deadly(size: int) -> None:
            if unit.payload.shard == 2 and not self.flag.exists():
                self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            report(size)

        return self.inner.start(unit, deadly)

    def close(self) -> None:
        self.inner.close()


class Killing(Executor):
    """An executor one of whose workers is killed."""

    def __init__(self, inner: Executor, flag: Path) -> None:
        self.inner = inner
        self.flag = flag
        self.threads = inner.threads

    def run(self, plan: WorkPlan, factory: WorkerFactory, report: Report) -> Iterator[Outcome]:
        yield from self.inner.run(plan, DeadlyFactory(factory, self.flag), report)


@pytest.fixture(scope="module")
def corpus(small_corpus: dict[str, Path]) -> Corpus:
    return Corpus(Corpus.read(small_corpus).examples[:120])


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(MODEL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel, corpus: Corpus) -> Store:
    """What one process makes, in one thread."""
    return run(tmp_path_factory.mktemp("states") / "whole", model, corpus, threads=1)


def run(folder: Path, model: LanguageModel, corpus: Corpus, **options: object) -> Store:
    return extract(model, corpus, to=folder, shard_bytes=60_000, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", pytest.param("ray", marks=RAY)])
def test_two_workers_one_of_which_is_killed_make_the_content_that_one_process_makes(
    name: str, tmp_path: Path, model: LanguageModel, corpus: Corpus, whole: Store
) -> None:
    inner = registry.get("executors", name).MEMBER(workers=2, threads=1)
    store = run(tmp_path / "s", model, corpus, executor=Killing(inner, tmp_path / "killed"))
    assert (tmp_path / "killed").exists() and whole.shards_planned >= 5
    assert store.content_id == whole.content_id and store.verify() == []
    assert Leases(store.path).expired() == [] == list(Leases(store.path).held())
    assert {record["produced"]["threads"] for record in store._records.values()} == {1}


def test_four_parts_in_any_order_make_the_same_content(
    tmp_path: Path, model: LanguageModel, corpus: Corpus, whole: Store
) -> None:
    order = list(range(4))
    random.Random(3).shuffle(order)
    for index in order:
        run(tmp_path / "s", model, corpus, threads=1, array_size=4, array_index=index)
    assert Store.open(tmp_path / "s").content_id == whole.content_id


def extracting(to: Path, corpus_flags: list[str], executor: str) -> list[str]:
    flags = ["--model", MODEL, *corpus_flags, "--to", str(to), "--threads", "1", "--quiet"]
    return ["extract", *flags, "--executor", executor, "--workers", "1"]


@pytest.mark.parametrize(
    ("executor", "name", "code", "says"),
    [
        pytest.param("processes", "SIGTERM", 75, "goes on from here", marks=pytest.mark.slow),
        pytest.param("processes", "SIGINT", 1, "Interrupted", marks=pytest.mark.slow),
        pytest.param("processes", "SIGUSR1", 75, "goes on from here", marks=pytest.mark.slow),
        pytest.param("ray", "SIGTERM", 75, "goes on from here", marks=RAY),
        pytest.param("ray", "SIGINT", 1, "Interrupted", marks=RAY),
    ],
)
def test_a_signal_to_the_whole_group_stops_all_workers_and_the_same_command_goes_on(
    executor: str, name: str, code: int, says: str, tmp_path: Path, corpus_flags: list[str]
) -> None:
    command = extracting(tmp_path / "s", corpus_flags, executor)
    child = subprocess.Popen(
        [sys.executable, "-m", "probing", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "s" / "leases").exists():  # a worker is at work
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(child.pid, getattr(signal, name))
    _, errors = child.communicate(timeout=60)
    wait_until_gone(child.pid)
    assert child.returncode == code, errors
    assert says in errors and "Traceback" not in errors, errors
    holders = {holder.pid for holder in Leases(tmp_path / "s").held().values()}
    assert holders <= {0}  # 0: killed between making the lease and writing it, which counts ten seconds
    result = CliRunner().invoke(app, [*command[:-4], "--json"])
    assert result.exit_code == 0, result.output
    assert Store.open(tmp_path / "s").verify() == []


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 20
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        pytest.fail("a process outlived the command")


def test_a_model_built_in_memory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    built = LanguageModel.from_modules(build("gpt2"), byte_tokenizer())
    with pytest.raises(BadParameter, match="save_pretrained"):
        extract(built, corpus_of("a b"), to=tmp_path / "s", executor="processes", progress=False)
    assert not (tmp_path / "s").exists()


def test_without_ray_its_executor_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_flags: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    flags = ["--model", MODEL, *corpus_flags, "--to", str(tmp_path / "s"), "--executor", "ray"]
    result = CliRunner().invoke(app, ["extract", *flags])
    assert result.exit_code == 1 and result.stderr.startswith("MissingDependency: "), result.output
    assert "probing-toolkit[ray]" in result.stderr and not (tmp_path / "s").exists()
    with pytest.raises(MissingDependency):
        registry.get("executors", "ray").MEMBER()


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        (["--executor", "procesess"], "UnknownName", "did you mean 'processes'?"),
        (["--workers", "2"], "BadParameter", "use the executor processes"),
        (["--executor", "processes:stall=3"], "BadParameter", "stall_seconds"),
        (["--threads", "0"], "BadParameter", "at least 1"),
    ],
)
def test_executors_that_cannot_be_are_refused(
    flags: list[str], error: str, says: str, tmp_path: Path, corpus_flags: list[str]
) -> None:
    result = CliRunner().invoke(app, ["extract", "--model", MODEL, *corpus_flags, "--to", str(tmp_path / "s"), *flags])
    assert result.exit_code == 1 and result.stderr.startswith(f"{error}: ") and says in result.stderr, result.output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("error", [WorkError, UnitFailed, WorkerLost, Stalled])
def test_errors_of_work_reach_the_command_line(
    error: type[WorkError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_flags: list[str]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error("it did not go", where="there", next_step="again")

    monkeypatch.setattr(ExtractJob, "run", failing)
    result = CliRunner().invoke(app, ["extract", "--model", MODEL, *corpus_flags, "--to", str(tmp_path / "s")])
    assert result.exit_code == 1
    assert result.stderr == f"{error.__name__}: it did not go\n  where: there\n  next step: again\n"


def poisoned(letter: str) -> LanguageModel:
    """A model whose states are not numbers where the letter stands."""
    inner = build("gpt2")
    with torch.no_grad():
        inner.transformer.wte.weight[ord(letter) - ord("!")] = float("nan")
    return LanguageModel.from_modules(inner, byte_tokenizer(), check=False)


def test_shards_that_fail_are_listed_and_the_others_are_there(tmp_path: Path) -> None:
    corpus = corpus_of("a b c", "x y z", "d e f", "g h y", "i j k")
    with pytest.raises(UnitFailed, match=r"2 of the units[\s\S]*shard 1 \(examples 1 to 1\)") as failure:
        extract(poisoned("y"), corpus, to=tmp_path, shard_bytes=1, progress=False)
    assert [type(error) for error in failure.value.errors.values()] == [NonFiniteStates] * 2
    kept = Store.open(tmp_path, allow_partial=True)
    assert sorted(kept._records) == [0, 2, 4] and kept.verify() == []
    assert not Leases(tmp_path).held()


def test_what_one_shard_alone_fails_of_is_raised_itself(tmp_path: Path) -> None:
    corpus = corpus_of("a b c", "x y z", "d e f")
    with pytest.raises(NonFiniteStates, match="sentence s1") as failure:
        extract(poisoned("y"), corpus, to=tmp_path, shard_bytes=1, progress=False)
    assert "everything but shard 1" in failure.value.__notes__[0]
    assert Store.open(tmp_path, allow_partial=True).shards_done == 2


def test_a_full_disk_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def full(self: StoreWriter, shard: int, content: object) -> None:
        asked.append(shard)
        raise importlib.import_module("probing.errors").DiskFull("no room left on the disk")

    monkeypatch.setattr(StoreWriter, "commit", full)
    with pytest.raises(OSError, match="no room"):
        extract(poisoned("~"), corpus_of(*"abcdefgh"), to=tmp_path, shard_bytes=1, progress=False)
    assert len(asked) <= 2  # one was begun beside the first


def a_factory(model: LanguageModel, path: Path, store: Store, **modules: str) -> WorkersThatLoad:
    reading = reading_of(model, sites=store.sites, rows="word:mean")
    assert model.source is not None
    return WorkersThatLoad(model.source, modules, reading, StoreToFill(path, store.identity))


def test_a_worker_refuses_a_model_that_is_no_longer_the_one_planned_for(tmp_path: Path, corpus: Corpus) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    model = LanguageModel.load(str(tmp_path / "model"))
    store = run(tmp_path / "s", model, corpus)
    a_factory(model, store.path, store)(WorkerSlot(0, 1)).close()
    weights = load_file(tmp_path / "model" / "model.safetensors")
    next(iter(weights.values()))[:] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProvenanceMismatch, match=r"model\."):
        a_factory(model, store.path, store)(WorkerSlot(0, 1))


def test_a_worker_makes_the_sites_that_were_added(tmp_path: Path, corpus: Corpus) -> None:
    model = LanguageModel.load(MODEL)
    store = run(tmp_path / "s", model, corpus, sites="resid.0,inner.1=transformer.h.1.mlp.c_fc", threads=1)
    for file in [*(tmp_path / "s" / "shards").iterdir(), tmp_path / "s" / "seal.json"]:
        file.unlink()
    modules = store.identity["extraction"]["modules"]
    with closing(a_factory(model, store.path, store, **modules)(WorkerSlot(0, 1))) as worker:
        plan = shard_units(store.store_id, corpus, store.identity["plan"]["starts"], range(store.shards_planned))
        for unit in plan.units:
            worker.start(unit, lambda size: None)()
    assert Store.open(store.path, allow_partial=True).content_id == store.content_id


def test_threads_are_set_within_a_run_only(tmp_path: Path, corpus: Corpus, model: LanguageModel) -> None:
    with threads_set(2):
        store = run(tmp_path / "s", model, Corpus(corpus.examples[:5]), threads=1)
        assert torch.get_num_threads() == 2
    assert store.environment["threads"] == 1
    assert {record["produced"]["threads"] for record in store._records.values()} == {1}


def test_workers_share_the_gpus_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource("gpt2", "cuda", "float32", None, "auto", None, "abc", None, None, True, False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [source.for_worker(slot).device for slot in (0, 1, 2, 3)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert source.for_worker(None).device == "cuda"
    assert replace(source, device="cuda:2").for_worker(0).device == "cuda:2"
    assert replace(source, device="cpu").for_worker(0).device == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert source.for_worker(1).device == "cuda"
