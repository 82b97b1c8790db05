"""A folder of results keeps every run of every model, says whose they are, and trusts no file that was changed."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression

import probing as pb
from probing.errors import BadParameter, DamagedUnit, InputError, UnknownName
from probing.files.whole_files import sealed, sweep, unsealed, write_atomically
from probing.probes.linear import LinearProbe
from probing.provenance import model_called
from probing.reporting import print_results
from probing.reporting.task_results import by_task
from probing.reporting.warnings import warnings_of
from probing.results.probe import ProbeResult, to_json
from probing.results.use import UseResult
from probing.training import train
from probing.training.plan import VERSION
from probing.training.results import ProbeResults
from probing.training.units import probe_name, sweep_results
from probing.use.run import ResultCache
from tests.conftest import some
from tests.reporting.test_reporting import Page
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_store
from tests.samples.use_report_samples import a_result

CORPUS = word_corpus(types=30, words=4)
TRAINED: dict[str, Any] = {"source": "gpt2", "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e", "dtype": "float32"}


@dataclass
class NamedStore(MemoryStore):
    """A store of a model with a name."""

    model: Mapping[str, Any] = field(default_factory=lambda: TRAINED)

    @property
    def identity(self) -> dict[str, Any]:
        return super().identity | {"model": dict(self.model)}


def a_store(*, noise: float = 0.3, **changes: Any) -> NamedStore:
    random = np.random.default_rng(3)
    made = word_store(CORPUS, lambda form, tag: vector_of(tag, 5) + noise * random.standard_normal(5))
    return NamedStore(CORPUS, made.states, made.rows, **changes)


def untrained() -> NamedStore:
    return a_store(noise=9.0, store_id="t" * 64, model=TRAINED | {"untrained": {"seed": 0}})


def run(store: Any, to: Path | None, **options: Any) -> ProbeResults:
    given = {"task": "upos", "controls": [], "measures": ["accuracy"], "to": to, "progress": False}
    return train(store, options.pop("corpus", CORPUS), **(given | options))


RUNS: dict[str, tuple[Callable[[], NamedStore], dict[str, Any]]] = {
    "another model": (lambda: a_store(store_id="t" * 64, model=TRAINED | {"source": "distilgpt2"}), {}),
    "an untrained twin": (untrained, {}),
    "another revision": (lambda: a_store(store_id="t" * 64, model=TRAINED | {"revision": "0" * 40}), {}),
    "another store of the model": (lambda: a_store(store_id="t" * 64), {}),
    "other states in the store": (lambda: a_store(content_id="d" * 64), {}),
    "another pooling": (lambda: a_store(scope="word:last"), {}),
    "other labels": (a_store, {"corpus": word_corpus(types=30, words=4, ambiguous=0.3)}),
    "more seeds": (a_store, {"seeds": 2}),
    "another root seed": (a_store, {"root_seed": 1}),
    "a control": (a_store, {"controls": ["word_type:draws=2"]}),
    "another measure": (a_store, {"measures": ["accuracy", "macro_f1"]}),
}


@pytest.mark.parametrize("what", some(RUNS, 4))
def test_no_run_into_a_folder_replaces_what_another_left_there(what: str, tmp_path: Path) -> None:
    make, options = RUNS[what]
    first = run(a_store(), tmp_path, analyses=["information"])
    second = run(make(), tmp_path, **({"analyses": ["information"]} | options))
    held = ProbeResults.read(tmp_path)
    values = {(r.provenance["unit"], r.measure("accuracy").score.value) for r in held}
    wanted = {(r.provenance["unit"], r.measure("accuracy").score.value) for r in (*first, *second)}
    assert values == wanted and len(held) == len(first) + len(second) == 6
    assert len(held.analyses) == len(pd.read_parquet(tmp_path / "analyses.parquet").run.unique()) == 2
    assert held.table().groupby("run").size().tolist() == [3, 3]
    assert pd.read_parquet(tmp_path / "results.parquet").run.nunique() == 2
    titles = re.findall(r"<h2 id=\"task-\d\"><bdi>(.*?)</bdi></h2>", pb.report(tmp_path).read_text())
    assert len(titles) == len(set(titles)) == 2 and all(title.startswith("upos, gpt2 [") for title in titles[:1])
    assert len({path.name for path in (tmp_path / "figures").glob("curves-upos*.pdf")}) == 2
    for result in (*first, *second):  # the first's probes are still there, beside the second's
        assert pb.load_probe(tmp_path / result.provenance["saved"]).about["unit"] == result.provenance["unit"]
    again = run(a_store(), tmp_path, analyses=["information"])
    assert len(ProbeResults.read(tmp_path)) == 6 and [r.provenance for r in again] == [r.provenance for r in first]


def test_what_is_asked_to_be_replaced_is_and_nothing_else(tmp_path: Path) -> None:
    for store in (a_store(), untrained()):
        run(store, tmp_path, analyses=["information"])
    run(a_store(), tmp_path, seeds=2, analyses=["information"], replace=True)
    held = ProbeResults.read(tmp_path)
    assert sorted((r.provenance["model"], r.seed_count) for r in held if r.probe == "linear") == [
        ("gpt2 [revision 607a30d783df, float32]", 2),
        ("gpt2 [revision 607a30d783df, untrained (seed 0), float32]", 1),
    ]
    assert len(held.analyses) == 2


def test_models_stand_side_by_side_in_tables_terminal_and_page(tmp_path: Path) -> None:
    names = [f"gpt2 [revision 607a30d783df, {twin}float32]" for twin in ("", "untrained (seed 0), ")]
    for store in (a_store(), untrained()):
        run(store, tmp_path)
    held = ProbeResults.read(tmp_path)
    assert sorted(set(held.table().model)) == sorted(set(held.long().model)) == names
    assert [set(held.of_model(part).table().model) for part in ("untrained", "gpt2")] == [{names[1]}, set(names)]
    assert held.of_model("untrained").best().provenance["model"] == names[1]
    with pytest.raises(UnknownName, match="model"):
        held.of_model("bert")
    terminal = shown(held)
    page = Page(pb.report(tmp_path).read_bytes()).text
    for name in names:
        assert f"states of {name}" in terminal and f"from resid.0 of {name} by the probe linear" in terminal
        assert f"upos, {name}" in page and f"We probed the hidden states of {name} at resid.0" in page
        assert f"from resid.0 of {name} by the probe linear" in page
    beside = " ".join(page.split("upos in 2 models")[-1].split("Scores at each site")[0].split())
    for name in (n.replace(", float32", "") for n in names):
        assert re.search(
            re.escape(name) + r" (not judged|not beyond \w+|\w*ly decodable|decodable) – resid.0, linear", beside
        )
    pairs = pb.compare(tmp_path, task="upos")
    assert [tuple(row) for row in pairs[["model_a", "model_b"]].to_numpy()] == [tuple(names)]
    assert pairs.difference[0] > 0.1


def shown(results: ProbeResults) -> str:
    stream = io.StringIO()
    print_results(list(results), Console(file=stream, width=400, color_system=None), results.analyses)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("model", "stored", "called"),
    [
        (TRAINED, "", "gpt2 [revision 607a30d783df, float32]"),
        (TRAINED, "float16", "gpt2 [revision 607a30d783df, float32 stored as float16]"),
        (
            TRAINED | {"untrained": {"seed": 0, "parameters": "x"}},
            "float32",
            "gpt2 [revision 607a30d783df, untrained (seed 0), float32]",
        ),
        ({"source": "t5", "revision": None, "dtype": "bfloat16", "side": "decoder"}, "", "t5 [decoder side, bfloat16]"),
        (
            {"source": "imported from x", "revision": "unknown", "weights": "unknown", "dtype": "unknown"},
            "float16",
            "imported from x",
        ),
        ({"source": "planted"}, "", "planted"),
    ],
)
def test_a_model_is_called_by_all_that_is_known_of_it(model: dict[str, Any], stored: str, called: str) -> None:
    assert model_called(model, stored) == called


def test_two_models_in_folders_of_one_name_are_told_apart_by_their_weights() -> None:
    one, other = (model_called({"source": "model", "weights": {"w": h}, "dtype": "float32"}) for h in "ab")
    assert one != other and one.startswith("model [weights ") and one.endswith(", float32]")


def test_a_saved_probe_says_all_about_itself_and_predicts_labels_by_name(tmp_path: Path) -> None:
    store = a_store()
    for result in run(store, tmp_path, probes=["linear", "mass_mean", "k_nearest", "mlp"]):
        probe = pb.load_probe(tmp_path / result.provenance["saved"])
        assert probe.classes_.tolist() == probe.about["labels"] == ["T0", "T1", "T2"]
        told = {name: probe.about[name] for name in ("task", "site", "probe", "model", "rows", "corpus", "unit")}
        assert told == {
            "task": "upos",
            "site": result.site,
            "probe": result.probe,
            "model": model_called(TRAINED),
            "rows": "word:mean",
            "corpus": CORPUS.fingerprint,
            "unit": result.provenance["unit"],
        }
        if result.site != "(none)":
            test = np.array([CORPUS.examples[e].split == "test" for e in store.rows.example])
            predicted = probe.predict(store.states["resid.0"][test])
            assert [int((predicted == name).sum()) for name in result.classes] == np.sum(result.confusion, 0).tolist()
    words = next(r for r in run(store, tmp_path) if r.probe == "word_type")
    assert "w7" in pb.load_probe(tmp_path / words.provenance["saved"]).about["keys"]


class Mine(LinearProbe):
    """Of a notebook: no registry knows it."""


@pytest.mark.parametrize("probe", [LogisticRegression(), Mine()], ids=["scikit-learn", "unregistered"])
def test_a_probe_that_cannot_be_saved_says_so_wherever_it_is_told(probe: Any, tmp_path: Path) -> None:
    results = run(a_store(), tmp_path, probes=["linear", probe])
    (mine,) = [r for r in results if r.provenance.get("not_saved")]
    assert mine.provenance["saved"] == "" and f"not saved: probe {mine.probe} (" in shown(results)
    assert f"Not saved is the probe {mine.probe}" in Page(pb.report(tmp_path).read_bytes()).text
    assert set(pd.read_parquet(tmp_path / "results.parquet").query("saved == ''").probe) == {mine.probe}
    assert len(list((tmp_path / "probes").rglob("*.json"))) == 3


def test_names_that_differ_never_share_a_file() -> None:
    (result, *_) = run(a_store(), None)
    names = [
        "column:a-b",
        "column:a:b",
        "column-a-b",
        "a/b",
        "a_b",
        "a b",
        "a.b",
        "A.b",
        "..",
        ".",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "e\N{COMBINING ACUTE ACCENT}",
        "a" * 200,
        "a" * 201,
        "(none)",
        "none",
        "none-33d74835",
        "-a",
        "CON",
    ]
    made = [replace(result, **{part: name}) for name in names for part in ("task", "site", "probe")]
    folders = {probe_name(one).rpartition("/")[0] for one in made}
    assert len(folders) == len(made)
    assert all(re.fullmatch(r"probes(/(?!\.)[A-Za-z0-9._=,-]{1,90}){3}", one) for one in folders)
    other = replace(result, provenance=result.provenance | {"unit": "0" * 64})
    assert probe_name(other) != probe_name(result)


def test_a_probe_of_another_run_under_a_unit_s_name_is_not_taken_for_its_own(tmp_path: Path) -> None:
    first, second = (next(r for r in run(s, tmp_path) if r.probe == "linear") for s in (a_store(), untrained()))
    files = [(tmp_path / one.provenance["saved"]).with_suffix(".safetensors") for one in (first, second)]
    own = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    with pytest.warns(DamagedUnit, match="linear at resid.0"):
        again = run(a_store(), tmp_path)
    assert files[0].read_bytes() == own
    assert [to_json(r) for r in again if r.probe == "linear"] == [to_json(first)]


def edited(text: str) -> str:
    """With another number somewhere in it, and still of its form."""
    value = re.search(r'"value": (0\.\d+)', text)
    assert value is not None
    return text.replace(value.group(1), "0.4242")


@pytest.mark.parametrize("kind", ["fit", "analysis", "samples", "card"])
def test_a_file_of_a_unit_that_was_edited_is_seen_and_the_unit_done_again(kind: str, tmp_path: Path) -> None:
    first = run(a_store(), tmp_path, analyses=["information"])
    best = first.best()
    file = {
        "fit": tmp_path / "units" / f"{best.provenance['unit']}.json",
        "analysis": tmp_path / "units" / f"{first.analyses[0].provenance['unit']}.json",
        "samples": tmp_path / "units" / f"{best.provenance['unit']}.safetensors",
        "card": (tmp_path / str(best.provenance["saved"])).with_suffix(".json"),
    }[kind]
    whole = file.read_bytes()
    file.write_bytes(edited(whole.decode()).encode() if kind in ("fit", "analysis") else whole[:-2] + b" }")
    store = a_store()
    with pytest.warns(DamagedUnit, match="done again"):
        again = run(store, tmp_path, analyses=["information"])
    assert store.reads and file.read_bytes() == whole
    assert [to_json(r) for r in again] == [to_json(r) for r in first] and again.analyses == first.analyses
    store.reads.clear()
    run(store, tmp_path, analyses=["information"])
    assert store.reads == []


def test_a_use_result_that_was_edited_is_measured_again(tmp_path: Path) -> None:
    done, key = ResultCache(tmp_path, {"model": "m"}), {"task": "upos"}
    done.put(key, a_result())
    known = done.get(key)
    assert known is not None and known.to_json() == a_result().to_json()
    (file,) = (tmp_path / "use").iterdir()
    file.write_text(re.sub(r'"es": 0\.\d+', '"es": 0.4242', file.read_text(), count=1))
    with pytest.warns(DamagedUnit, match="upos is measured again"):
        assert done.get(key) is None
    file.write_text(a_result().to_json())  # as earlier versions wrote it
    with pytest.warns(DamagedUnit, match="earlier version"):
        assert done.get(key) is None


@pytest.mark.parametrize("text", ["{}", "a\nb\n", "", "é\n"])
def test_a_sealed_text_comes_back_and_no_change_of_a_byte_goes_unseen(text: str) -> None:
    content = sealed(text)
    assert unsealed(content) == (text if text.endswith("\n") else text + "\n")
    changed = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(len(content))]
    cut = [content[:at] for at in range(len(content))]
    assert all(unsealed(one) is None for one in (*changed, *cut, content + b"\n", content + content))


LEFT = (
    ".results.jsonl-ab12cd_4",
    "units/.f00d.json-ab12cd34",
    "units/.f00d.safetensors-ab12cd34",
    "use/.f00d.json-ab12cd34",
    ".verdicts.jsonl-ab12cd34",
    ".verdicts.parquet-ab12cd34",
    ".failures.jsonl-4711",
    "probes/upos/resid.0/linear/.f00d.safetensors-ab12cd34",
)
OTHERS = (".gitignore", ".notes-ab12cd34", "units/.keep", "results.jsonl-ab12cd34", ".my.txt-backup")


def test_what_killed_runs_left_half_written_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (*LEFT, *OTHERS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    run(a_store(), tmp_path)
    ResultCache(tmp_path, {})
    assert [name for name in LEFT if (tmp_path / name).exists()] == []
    assert [name for name in OTHERS if not (tmp_path / name).exists()] == []


def test_a_temporary_file_of_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    mine = tmp_path / ".results.jsonl-ab12cd34"
    with mine.open("wb") as stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        sweep_results(tmp_path)
        assert mine.exists()
    sweep_results(tmp_path)
    assert not mine.exists()


def test_a_file_is_written_though_another_process_sweeps_its_first_attempt_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "probing.files.whole_files._lock", lambda handle: True
    )  # as where locks are of one machine alone
    monkeypatch.setattr("os.fsync", lambda handle: (sweep(tmp_path), monkeypatch.undo()))
    write_atomically(tmp_path / "x.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"] and (tmp_path / "x.json").read_bytes() == b"{}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_no_file_takes_the_place_of_a_device_or_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "pipe", b"x")
    assert not (tmp_path / "pipe").is_file() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("item", [None, 3, object(), LogisticRegression])
def test_what_is_no_probe_is_refused_before_work_starts(item: object, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="no probe"):
        run(a_store(), tmp_path / "r", probes=["linear", item])
    assert not (tmp_path / "r" / "results.jsonl").exists()


def test_a_folder_of_an_earlier_version_is_read_and_added_to(tmp_path: Path) -> None:
    """Its results name no run, call the model by its source alone, and its units have no hash."""
    old = [_aged(result) for result in run(a_store(), tmp_path)]
    (tmp_path / "results.jsonl").write_text("".join(to_json(one) + "\n" for one in old))
    for file in (tmp_path / "units").glob("*.json"):
        file.unlink()
    assert {task.states for task in by_task(old)} == {"gpt2"} and "states of gpt2" in shown(ProbeResults(old))
    run(untrained(), tmp_path)
    held = ProbeResults.read(tmp_path)
    assert len(held) == 6 and set(held.table().model) == {"gpt2", model_called(untrained().model)}
    titles = re.findall(r"<h2 id=\"task-\d\"><bdi>(.*?)</bdi></h2>", pb.report(tmp_path).read_text())
    assert titles == [f"upos, {model_called(untrained().model)}", "upos, gpt2"]  # untrained models come first


def test_results_of_an_earlier_version_give_way_to_those_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side they would be one question asked twice, and p values adjusted over both."""
    monkeypatch.setattr("probing.training.plan.VERSION", VERSION - 1)
    before = run(a_store(), tmp_path)
    other = run(a_store(), tmp_path, root_seed=7)
    monkeypatch.undo()
    after = run(a_store(), tmp_path)
    held = ProbeResults.read(tmp_path)
    assert len(held) == len(after) + len(other) and len(after) == len(before)
    units = {one.provenance["unit"] for one in held}
    assert units == {one.provenance["unit"] for one in (*after, *other)}
    alone = run(a_store(), tmp_path / "alone")
    assert [one.measures[0].score for one in after] == [one.measures[0].score for one in alone]


def _aged(result: ProbeResult) -> ProbeResult:
    known = {k: v for k, v in result.provenance.items() if k != "run"} | {"model": "gpt2", "saved": True, "version": 5}
    return replace(result, provenance=json.loads(json.dumps(known)))


def test_a_results_file_that_was_cut_is_refused_with_the_way_out(tmp_path: Path) -> None:
    run(a_store(), tmp_path)
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(
        InputError, match=r"results cannot be read(.|\n)*delete the file(.|\n)*what is done is kept"
    ) as caught:
        run(a_store(), tmp_path)
    assert "pydantic" not in str(caught.value)
    file.unlink()
    assert list(run(a_store(), tmp_path)) == list(ProbeResults.read(tmp_path))


def test_rows_of_one_model_in_two_forms_are_told_apart_in_the_table() -> None:
    (row,) = run(a_store(), None).table()["rows"].unique()
    assert row == a_store().identity["extraction"]["rows"]


def test_rows_of_splits_that_are_not_used_are_counted_before_the_reader() -> None:
    (said,) = warnings_of({"excluded": {"split tst": 40}})
    assert "40 of the split tst" in said and "train, dev and test" in said


def test_results_of_use_of_an_earlier_version_are_read() -> None:
    line = json.loads(a_result().to_json())
    for cell in line["cells"]:
        for edit in (cell["subspace"], cell["whole"]):
            edit["es_u_high"] = edit.pop("off_high")
    assert UseResult.from_json(json.dumps(line)).to_json() == a_result().to_json()
