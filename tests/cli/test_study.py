"""A study file says what a study needs, or the error says where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probing.errors import ConfigError, NonFiniteStates, ProbingError, UnitFailed, UnknownName
from probing.jobs import CorpusOptions, TrainJob
from probing.jobs.study import Study, StudyTrain, StudyUse
from probing.states.store import Store
from probing.text.corpus import Corpus
from tests.conftest import REFERENCE

GOOD = """
name: small
model: model
corpus: {train: a.jsonl, dev: b.jsonl, test: c.jsonl}
extract: {rows: "word:mean", sites: "resid.*"}
train: {task: upos, probes: linear, controls: ["word_type:draws=2"], seeds: 2}
"""


def study(tmp_path: Path, text: str) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(text, encoding="utf-8")
    return Study.from_yaml(file)


def test_the_shipped_study_is_valid() -> None:
    assert Study.from_yaml(REFERENCE / "study.yaml").name == "reference"


def test_single_entries_become_lists(tmp_path: Path) -> None:
    read = study(tmp_path, GOOD)
    assert [entry.tasks for entry in read.train] == [["upos"]]
    assert read.train[0].probes == ["linear"]
    assert read.corpus == ["train=a.jsonl", "dev=b.jsonl", "test=c.jsonl"]
    assert read.root == tmp_path


def test_the_recipe_does_not_depend_on_where_the_file_lies(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert study(tmp_path, GOOD).recipe() == study(tmp_path / "other", GOOD).recipe()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "seed: 2", "did you mean 'seeds'"),
        ("seeds: 2", "seeds: many", "train.0.seeds"),
        ("seeds: 2", "seeds: 0", "train.0.seeds"),
        ("name: small", "name: ../up", "name"),
        ("name: small\n", "", "name"),
        ("model: model", "model: model\nmodel: other", "twice"),
        ("model: model", "model: &m model\nname: *m", "alias"),
        ("model: model", "model: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("model: model", "root: /", "root"),
        ("model: model", "model: [", "not valid YAML"),
    ],
)
def test_a_wrong_study_is_refused_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match="(?s)" + message.replace("(", r"\(")) as caught:
        study(tmp_path, GOOD.replace(old, new))
    assert "study.yaml" in str(caught.value)


def test_a_study_may_keep_a_replay_of_a_subset_beside_the_states_it_trains_on(
    tmp_path: Path, small_corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    monkeypatch.setattr(StudyTrain, "train", lambda entry, store, *_, **__: trained.append(store))
    monkeypatch.setattr("probing.jobs.study.pb.report", lambda out: out)
    corpus = ", ".join(f"{split}: {file}" for split, file in small_corpus.items())
    text = GOOD.replace("model: model", f"model: {REFERENCE / 'model'}").replace("resid.*", "resid.0")
    text = text.replace("{train: a.jsonl, dev: b.jsonl, test: c.jsonl}", "{" + corpus + "}")
    replay = "{role: replay, subset: '0:5,9', outputs: all, columns: ids, sites: resid.1}"
    read = study(tmp_path, text.replace("extract: {", f"extract:\n- {replay}\n- {{"))
    (tmp_path / "ids").write_text("3\n5\n", encoding="utf-8")
    read.run(tmp_path / "out", progress=False)
    kept, states = (Store.open(tmp_path / "out" / "states" / name) for name in ("replay", "word-mean"))
    assert kept.identity["corpus"]["subset"] == [0, 1, 2, 3, 4, 9]
    assert kept.dataset(0, "/outputs/column").tolist() == [3, 5]
    assert states.identity["corpus"]["subset"] is None
    assert trained == [states.path]


def test_a_task_is_not_trained_on_a_replay(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    replays = GOOD.replace("extract: {", "extract: {role: replay, ")
    with pytest.raises(ConfigError, match="replays only"):
        study(tmp_path, replays)._extraction_for(
            study(tmp_path, GOOD).train[0], "upos", Corpus.read({s: str(f) for s, f in small_corpus.items()})
        )


def test_corpus_flags_must_name_each_split_once() -> None:
    for wrong in (["train=a", "train=b"], ["train="], ["a.csv", "b.csv"]):
        with pytest.raises(ConfigError):
            CorpusOptions(corpus=wrong).read_corpus()


def test_unknown_flags_values_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="resample_by"):
        values = {"store": "s", "to": "t", "corpus": ["a"], "tasks": ["upos"], "resample_by": "word"}
        TrainJob.read(values, where="here")


USE = """
use: {task: "column:tense", behaviour: "next_token:answers=was|is", positions: end, sites: resid.1}
"""


def of_two_tasks(tmp_path: Path, small_corpus: dict[str, Path], more: str = USE) -> Study:
    corpus = ", ".join(f"{split}: {file}" for split, file in small_corpus.items())
    text = GOOD.replace("model: model", f"model: {REFERENCE / 'model'}").replace("resid.*", "resid.0")
    text = text.replace("{train: a.jsonl, dev: b.jsonl, test: c.jsonl}", "{" + corpus + "}")
    return study(tmp_path, text.replace("task: upos", "task: [upos, xpos]") + more)


@pytest.mark.parametrize("place", ["train", "use", "covariate"])
def test_columns_that_the_corpus_lacks_are_named_before_any_work(
    tmp_path: Path, small_corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("probing.jobs.ExtractOptions.extract", lambda *_, **__: pytest.fail("work began"))
    read = of_two_tasks(tmp_path, small_corpus)
    entry = read.train[0] if place == "train" else read.use[0]
    names = entry.covariates if place == "covariate" else entry.tasks
    names[:] = [*names, "column:nosuch"]
    read.train[0].tasks[:] = [name for name in read.train[0].tasks if name != "xpos"]
    if place != "use":
        read.use[0].tasks[:] = ["column:tense"]
    with pytest.raises(UnknownName, match="nosuch"):
        read.run(tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "states").exists()


def fails(name: str) -> Any:
    def train(entry: StudyTrain, *_: object, task: str, **__: object) -> None:
        if name in (task, "all"):
            raise NonFiniteStates(f"no states for {'any' if name == 'all' else task}")

    return train


@pytest.mark.parametrize("also", [False, True])
def test_a_task_that_fails_leaves_the_sections_after_it(
    tmp_path: Path, small_corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch, also: bool
) -> None:
    ran = []
    read = of_two_tasks(tmp_path, small_corpus)
    read.train[0].tasks[:] = ["upos", "column:tense"]
    monkeypatch.setattr(Study, "_extraction_for", lambda *_: ("word:mean", None))
    monkeypatch.setattr(StudyTrain, "train", fails("upos"))

    def use(*_: object, **__: object) -> None:
        ran.append("use")
        if also:
            raise NonFiniteStates("nor for use")

    monkeypatch.setattr(StudyUse, "use", use)
    with pytest.raises(UnitFailed) as caught:
        read.run(tmp_path / "out", progress=False)
    assert ran == ["use"] and "upos" in caught.value.errors and len(caught.value.errors) == 1 + also


def test_where_all_tasks_fail_alike_the_error_says_what_was_not_run(
    tmp_path: Path, small_corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = of_two_tasks(tmp_path, small_corpus)
    read.train[0].tasks[:] = ["upos", "column:tense"]
    monkeypatch.setattr(Study, "_extraction_for", lambda *_: ("word:mean", None))
    monkeypatch.setattr(StudyTrain, "train", fails("all"))
    monkeypatch.setattr(StudyUse, "use", lambda *_, **__: pytest.fail("use ran"))
    with pytest.raises(ProbingError, match="no states for any") as caught:
        read.run(tmp_path / "out", progress=False)
    assert any("not run" in note and "use" in note for note in caught.value.__notes__)
