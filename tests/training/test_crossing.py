"""What is trained on some rows and scored on others lands on planted truths, and says what it could not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import (
    BadParameter,
    CannotReachFile,
    ConfigError,
    DamagedUnit,
    DegenerateDesign,
    ProvenanceMismatch,
    UnknownName,
    UnknownSite,
)
from probing.reporting import report
from probing.reporting.transfer_sections import doubts, print_transfer
from probing.results.transfer import CrossResult, CrossResults
from probing.text.corpus import Corpus
from probing.training import train
from probing.training.leaving_out import leave_one_out
from probing.training.results import NO_SITE
from probing.training.transferring import transfer
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_store


def renamed(corpus: Corpus, name: Callable[[str], str]) -> Corpus:
    """The corpus with other tags."""
    examples = (
        replace(e, word_columns=dict(e.word_columns) | {"upos": tuple(name(str(t)) for t in e.word_columns["upos"])})
        for e in corpus.examples
    )
    return Corpus(tuple(examples), corpus.source)


def source(seed: int, *, offset: float = 0.0, tags: int = 3, name: Callable[[str], str] = str) -> tuple[Any, Corpus]:
    """States that carry the tag, moved by `offset` along a direction of their own."""
    corpus = word_corpus(seed=seed, ambiguous=0.3, tags=tags)
    random = np.random.default_rng(seed)
    away = offset * vector_of("away", 6)
    store = word_store(corpus, lambda form, tag: vector_of(tag, 6) + away + 0.3 * random.standard_normal(6))
    corpus = renamed(corpus, name)
    return replace(store, corpus=corpus, content_id=str(seed) * 64), corpus


def pair(results: CrossResults, trained: str, tested: str, measure: str = "accuracy") -> CrossResult:
    (found,) = [
        r for r in results if (r.trained_on, r.tested_on, r.measure) == (trained, tested, measure) and r.site != NO_SITE
    ]
    return found


def test_alike_corpora_transfer_and_a_moved_one_does_not() -> None:
    results = transfer({"a": source(1), "b": source(2), "far": source(3, offset=8.0)}, task="upos")
    assert len([r for r in results if r.measure == "accuracy" and r.site != NO_SITE]) == 9
    near, far, own = pair(results, "a", "b"), pair(results, "a", "far"), pair(results, "far", "far")
    assert near.score.value > 0.95 and own.score.value > 0.95 and own.difference is None
    assert near.difference is not None and near.difference.low <= 0.0 <= near.difference.high + 0.01
    assert far.difference is not None and far.difference.high < -0.2
    assert far.difference.value == pytest.approx(far.score.value - own.score.value)
    loss = pair(results, "a", "far", "log_loss")
    assert loss.difference is not None and loss.difference.value < 0  # worse is negative, in bits too
    floor = [r for r in results if r.site == NO_SITE and r.measure == "accuracy"]
    assert len(floor) == 9 and {r.probe for r in floor} == {"prior"} and max(r.score.value for r in floor) < 0.6


def test_the_diagonal_is_what_train_says_of_that_source() -> None:
    sources = {"a": source(1), "b": source(2)}
    results = transfer(sources, task="upos")
    store, corpus = sources["b"]
    alone = train(store, corpus, task="upos", controls=[], progress=False).best()
    for measure in ("accuracy", "log_loss"):  # bits by the temperature that the source's own dev gives
        assert pair(results, "b", "b", measure).score == alone.measure(measure).score


def test_classes_are_united_and_labels_unseen_in_training_are_counted_and_named() -> None:
    """Codes differ between the two: T0 T1 T2 beside T0 T1 T2 X3, and the first knows nothing of X3."""
    sources = {"three": source(1), "four": source(2, tags=4, name=lambda tag: "A3" if tag == "T3" else tag)}
    results = transfer(sources, task="upos")
    up, down = pair(results, "three", "four"), pair(results, "four", "three")
    assert (up.unseen_labels, down.unseen_labels, down.unseen_rows) == (("A3",), (), 0)
    assert 0.1 < up.unseen_rows / up.score.n < 0.4
    assert up.known is not None and up.known > 0.95
    assert up.score.value == pytest.approx(up.known * (1 - up.unseen_rows / up.score.n))
    assert down.score.value > 0.9


def test_transfer_writes_its_files_and_resumes(tmp_path: Path) -> None:
    sources = {"a": source(1), "b": source(2)}
    first = transfer(sources, task="upos", to=tmp_path)
    frame = pd.read_parquet(tmp_path / "transfer.parquet")
    assert len(frame) == len(first) == len((tmp_path / "transfer.jsonl").read_text().splitlines())
    assert {"trained_on", "tested_on", "difference_low", "unseen_labels"} <= set(frame.columns)
    for store, _ in sources.values():
        store.reads.clear()
    assert list(transfer(sources, task="upos", to=tmp_path)) == list(first)
    assert [store.reads for store, _ in sources.values()] == [[], []]
    damaged = max((tmp_path / "units").iterdir(), key=lambda file: file.stat().st_size)
    damaged.write_text(damaged.read_text()[:-20])
    with pytest.warns(DamagedUnit, match=damaged.name):
        assert list(transfer(sources, task="upos", to=tmp_path)) == list(first)
    transfer(sources, task="upos", probes=["mass_mean"], to=tmp_path)
    assert set(pd.read_parquet(tmp_path / "transfer.parquet").probe) == {"prior", "linear", "mass_mean"}


def test_a_real_target_transfers_in_r2() -> None:
    corpora = [word_corpus(seed=seed, types=50) for seed in (1, 2)]
    stores = [word_store(c, lambda form, tag: np.array([float(form[1:]), 1.0])) for c in corpora]
    sources = {name: (store, corpus) for name, store, corpus in zip("ab", stores, corpora, strict=True)}
    results = transfer(sources, task="column:score")
    assert pair(results, "a", "b", "r2").score.value > 0.99 and pair(results, "a", "b", "r2").unseen_labels == ()


class Other(MemoryStore):
    """A store of another model."""

    @property
    def identity(self) -> dict[str, Any]:
        return super().identity | {"model": {"source": "another"}}


def test_stores_that_cannot_be_crossed_are_refused_before_any_state_is_read() -> None:
    a, b = source(1), source(2)
    other = Other(b[0].corpus, b[0].states, b[0].rows)
    elsewhere = replace(b[0], states={"resid.5": b[0].states["resid.0"]})
    strange = source(2, name=lambda tag: "strange" + tag)
    wide = replace(b[0], scope="word:last")
    for stores, options, error, message in (
        ({"a": a}, {}, BadParameter, "two sources"),
        ({"a": a, "b": (other, b[1])}, {}, ProvenanceMismatch, "same model"),
        ({"a": a, "b": (wide, b[1])}, {}, ProvenanceMismatch, "same rows"),
        ({"a": a, "b": (elsewhere, b[1])}, {}, UnknownSite, "resid.5"),
        ({"a": a, "b": strange}, {}, DegenerateDesign, "no test label of b"),
        ({"a": a, "b": b}, {"probes": ["word_type"]}, BadParameter, "cannot be transferred"),
        ({"a": a, "b": (b[0], a[1])}, {}, ProvenanceMismatch, "another corpus"),
    ):  # type: ignore[var-annotated]
        with pytest.raises(error, match=message):
            transfer(stores, task="upos", **options)
    assert a[0].reads == b[0].reads == []


def grouped(genres: dict[str, int], *, odd: str = "") -> tuple[Any, Corpus]:
    """Sentences of a genre each, `genres` of them in turn; states carry the tag, but in genre `odd` another one."""
    store, corpus = source(4)
    turn = [name for name, count in genres.items() for _ in range(count)]
    examples = tuple(replace(e, columns={"genre": turn[i % len(turn)]}) for i, e in enumerate(corpus.examples))
    corpus = Corpus(examples, "planted")
    if odd:
        rows = np.array([examples[e].columns["genre"] == odd for e in store.rows.example])
        store.states["resid.0"][rows] = -store.states["resid.0"][rows]
    return replace(store, corpus=corpus), corpus


def accuracies(results: CrossResults) -> dict[str, CrossResult]:
    return {r.tested_on: r for r in results if r.measure == "accuracy" and r.site == "resid.0"}


def test_every_group_is_tested_by_a_probe_of_the_others_and_the_odd_one_is_found() -> None:
    store, corpus = grouped({"news": 2, "mail": 2, "verse": 1}, odd="verse")
    found = accuracies(leave_one_out(store, corpus, task="upos", group="genre"))
    assert list(found) == ["mail", "news", "verse", "(mean)"]
    assert found["news"].score.value > 0.9 and found["mail"].score.value > 0.9 and found["verse"].score.value < 0.6
    total = len(store.rows.example)
    for name in ("mail", "news", "verse"):
        of_group = sum(len(e.words) for e in corpus.examples if e.columns["genre"] == name)
        dev = sum(len(e.words) for e in corpus.examples if e.columns["genre"] != name and e.split == "dev")
        assert found[name].score.n == of_group and found[name].train_rows == total - of_group - dev
    mean, values = found["(mean)"].score, [found[name].score.value for name in ("mail", "news", "verse")]
    assert mean.value == pytest.approx(np.mean(values)) and mean.n == 3
    assert mean.low < min(0.9, mean.value) and mean.high <= 1.0


def test_small_groups_are_tested_together_named_and_kept_out_of_the_mean() -> None:
    store, corpus = grouped({"news": 30, "mail": 30, "a": 1, "b": 1})
    results = leave_one_out(store, corpus, task="upos", group="genre", least_rows=30)
    found = accuracies(results)
    assert list(found) == ["mail", "news", "(small groups)", "(mean)"] and found["(mean)"].score.n == 2
    assert results.remarks[0].endswith("tested together as (small groups): a, b")
    alone = leave_one_out(store, corpus, task="upos", group="genre", least_rows=100)
    assert "(small groups)" not in accuracies(alone) and "only trained on" in alone.remarks[0]


def test_documents_are_groups_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    store, corpus = source(4)
    examples = (replace(e, document=f"{e.split}-{i % 2}") for i, e in enumerate(corpus.examples))
    corpus = Corpus(tuple(examples))
    store = replace(store, corpus=corpus)
    results = leave_one_out(store, corpus, task="upos", to=tmp_path)
    assert len(accuracies(results)) == 7
    assert len(pd.read_parquet(tmp_path / "leave_one_out.parquet")) == len(results)
    assert {r.probe for r in results if r.site == NO_SITE} == {"prior", "word_type"}
    store.reads.clear()
    assert list(leave_one_out(store, corpus, task="upos", to=tmp_path)) == list(results)
    assert store.reads == []


@pytest.mark.parametrize(
    ("group", "options", "error", "message"),
    [
        ("genra", {}, UnknownName, "genre"),
        ("upos", {}, BadParameter, "column of words"),
        ("document", {}, DegenerateDesign, "without a document"),
        ("one", {}, DegenerateDesign, "one group only"),
        ("gappy", {}, DegenerateDesign, "without a gappy"),
        ("genre", {"least_rows": 10**6}, DegenerateDesign, "too small"),
        ("genre", {"least_rows": 0}, BadParameter, "least_rows"),
        ("own", {}, DegenerateDesign, "no label of test occurs in train"),
    ],
)
def test_groups_that_cannot_be_left_out_are_refused_before_any_state_is_read(
    group: str, options: Any, error: type[Exception], message: str
) -> None:
    store, corpus = grouped({"news": 2, "mail": 2})
    more = [{"one": "x", "gappy": None if i == 3 else "ab"[i % 2], "own": "abc"[i % 3]} for i in range(len(corpus))]
    examples = [replace(e, columns={**e.columns, **columns}) for e, columns in zip(corpus.examples, more, strict=True)]
    examples = [
        replace(e, word_columns=dict(e.word_columns) | {"upos": tuple(str(e.columns["own"]) for _ in e.words)})
        if group == "own"
        else e
        for e in examples
    ]
    changed = Corpus(tuple(examples))
    store = replace(store, corpus=changed)
    with pytest.raises(error, match=message):
        leave_one_out(store, changed, task="upos", group=group, **options)
    assert store.reads == []


@pytest.mark.slow
def test_the_commands_do_what_the_functions_do(
    reference: Path, small_corpus: dict[str, Path], corpus_flags: list[str], tmp_path: Path
) -> None:
    model = ["--model", str(reference / "model"), "--sites", "resid.1", "--to", str(tmp_path / "s"), "--quiet"]
    assert CliRunner().invoke(app, ["extract", *model, *corpus_flags]).exit_code == 0
    sources = ["--source", f"a={tmp_path / 's'}", "--source", f"b={tmp_path / 's'}"]
    files = [part for name in "ab" for s, file in small_corpus.items() for part in ("--corpus", f"{name}.{s}={file}")]
    done = CliRunner().invoke(
        app, ["transfer", *sources, *files, "--task", "upos", "--to", str(tmp_path / "t"), "--json"]
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    crossed = [r for r in lines if r["trained_on"] == "a" and r["tested_on"] == "b" and r["measure"] == "accuracy"]
    assert all(r["difference"]["value"] == 0.0 for r in crossed) and len(crossed) == 2
    odd = CliRunner().invoke(app, ["transfer", *sources, "--corpus", "c=x.jsonl", "--task", "upos", "--to", "t"])
    assert isinstance(odd.exception, SystemExit) and odd.exit_code == 1
    left = CliRunner().invoke(
        app,
        [
            "leave-one-out",
            str(tmp_path / "s"),
            *corpus_flags,
            "--task",
            "upos",
            "--least-rows",
            "10",
            "--to",
            str(tmp_path / "l"),
        ],
    )
    assert left.exit_code == 0, left.output
    assert "(mean)" in left.output and (tmp_path / "l" / "leave_one_out.parquet").is_file()


def test_a_source_without_a_corpus_is_refused() -> None:
    from probing.jobs.cross import TransferJob

    with pytest.raises(ConfigError, match="source b has no corpus"):
        TransferJob(sources=["a=x", "b=y"], corpus=["a.train=f"], task="upos", to="t").run()
    with pytest.raises(ConfigError, match="did you mean 'a'"):
        TransferJob(sources=["a=x", "b=y"], corpus=["aa.train=f"], task="upos", to="t").run()


def test_page_and_terminal_show_a_matrix_name_the_model_and_warn_of_few_rows(tmp_path: Path) -> None:
    found = transfer({"a": source(1), "b": source(2)}, task="upos", to=tmp_path)
    few = [replace(one, score=replace(one.score, n=12)) if one.tested_on == "b" else one for one in found]
    assert [said[:34] for said in doubts(few)] == ["Only 12 test rows (60 different te"] and not doubts(list(found))
    console = Console(width=80, record=True)
    with console.capture() as caught:
        print_transfer(list(found), console, details=False)
    lines = caught.get().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("upos: linear at resid.0, accuracy"))
    assert lines[0].startswith("model planted") and lines[start + 1].split()[-2:] == ["a", "b"]
    for line, name in zip(lines[start + 2 : start + 4], "ab", strict=True):
        scores = [pair(found, name, tested).score.value for tested in "ab"]
        assert line.split()[0] == name and [round(float(part), 3) for part in line.split()[1::2]] == [
            pytest.approx(score, abs=6e-4) for score in scores
        ]
    text = report(tmp_path).read_text(encoding="utf-8")
    assert "States of planted" in text and "upos: linear at resid.0, accuracy on test, with 95 % intervals." in text


@pytest.mark.parametrize("call", ["train", "transfer", "leave_one_out", "intervene", "probe"])
def test_a_place_that_results_cannot_go_to_is_refused_before_work(call: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    corpus, nothing = word_corpus(), cast(Any, None)  # no model is looked at before
    calls: dict[str, Callable[..., Any]] = {
        "train": lambda **to: train(source(1)[0], corpus, task="upos", **to),
        "transfer": lambda **to: transfer({"a": source(1), "b": source(2)}, task="upos", **to),
        "leave_one_out": lambda **to: leave_one_out(source(1)[0], corpus, task="upos", group="form", **to),
        "intervene": lambda **to: pb.intervene(nothing, corpus, tasks="upos", behaviour="readout", **to),
        "probe": lambda **to: pb.probe(np.arange(800.0).reshape(400, 2), np.arange(400) % 2, **to),
    }
    for place in ("file", "file/below"):
        with pytest.raises(CannotReachFile, match="Not a directory"):
            calls[call](to=tmp_path / place)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
