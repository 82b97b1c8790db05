"""`pb.probe` on arrays is `pb.train` on a store with the same states: same numbers, words and refusals."""

from __future__ import annotations

import ast
import warnings
from dataclasses import asdict
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import escape
from scipy.sparse import csr_matrix

import probing as pb
from probing.errors import (
    BadParameter,
    CorpusError,
    DegenerateDesign,
    NonFiniteStates,
    ProbingWarning,
    UnitFailed,
    UnknownName,
)
from probing.reporting.overview import entries, overview
from probing.reporting.task_results import by_task
from probing.training.array_checks import check_order, check_types
from probing.training.array_words import FOREIGN, step_for_arrays
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_rows, word_store

CORPUS = word_corpus(seed=1, ambiguous=0.3)
RANDOM = np.random.default_rng(0)
STORE: Any = word_store(CORPUS, lambda form, tag: vector_of(tag, 6) + 0.3 * RANDOM.standard_normal(6))
SITE = STORE.sites[0]
ROWS = STORE.rows
PACKAGE = Path(pb.__file__).parent
GIVEN: dict[str, Any] = {"measures": ["accuracy", "log_loss"], "seeds": 1, "progress": False}


def per_row(column: str) -> list[Any]:
    return [CORPUS[e].word_columns[column][w] for e, w in zip(ROWS.example, ROWS.word, strict=True)]


GROUPS = [CORPUS[e].id for e in ROWS.example]
KEYS = [CORPUS[e].forms[w] for e, w in zip(ROWS.example, ROWS.word, strict=True)]
SPLIT = [CORPUS[e].split for e in ROWS.example]
X = STORE.read(SITE, np.arange(len(ROWS.example)))


def numbers(results: pb.ProbeResults) -> list[Any]:
    """Everything that was measured, without the names of sites and of the unit of resampling."""
    return [
        (
            r.probe,
            r.kind,
            [without_unit(asdict(m)) for m in r.measures],
            r.classes,
            r.confusion,
            r.fit_count,
            r.draw_count,
        )
        for r in results
    ]


def without_unit(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_unit(one) for key, one in value.items()}
    return [without_unit(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("column", ["upos", "score"])
def test_words_reach_the_numbers_of_a_store(column: str) -> None:
    given = GIVEN if column == "upos" else {"progress": False}
    trained = pb.train(STORE, CORPUS, task=f"column:{column}", **given)
    found = pb.probe(X, per_row(column), groups=GROUPS, keys=KEYS, split=SPLIT, **given)
    assert numbers(found) == numbers(trained)
    assert [r.site for r in found if r.site != "(none)"] == ["states"]
    assert {r.probe for r in found} >= {"prior", "word_type"}
    shown, held = found.table(), trained.table()
    left_out = ["site", "task", "model", "store", "run", "rows"]
    pd.testing.assert_frame_equal(shown.drop(columns=left_out), held.drop(columns=left_out))


def test_the_order_of_rows_and_the_kind_of_array_change_nothing() -> None:
    y = per_row("upos")
    base = numbers(pb.probe(X, y, groups=GROUPS, keys=KEYS, split=SPLIT, **GIVEN))
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])])
    labels = pd.Series(y, dtype="category", index=range(7, 7 + len(y)))
    assert numbers(pb.probe(frame, labels, groups=pd.Series(GROUPS), keys=np.array(KEYS), split=SPLIT, **GIVEN)) == base
    tensor = torch.tensor(X, dtype=torch.float64, requires_grad=True)
    assert (
        numbers(pb.probe(tensor, np.array(y, object), groups=GROUPS, keys=KEYS, split=np.array(SPLIT), **GIVEN)) == base
    )


@pytest.mark.parametrize("has_texts", [True, False])
def test_sentences_reach_the_numbers_of_a_store(has_texts: bool) -> None:
    random = np.random.default_rng(3)
    n = 300
    tense = random.integers(0, 2, n)
    texts = [f"sentence {i} w{random.integers(0, 40)} w{random.integers(0, 40)}" for i in range(n)]
    places = [f"p{i // 3}" for i in range(n)]
    states = (random.standard_normal((n, 5)) + tense[:, None]).astype(np.float32)
    labels = [["past", "present"][t] for t in tense]
    corpus = pb.Corpus.from_texts(texts, {"y": labels, "group": places}, split_seed=4)
    rows = type(ROWS)(**vars(word_rows(corpus)))
    rows.example, rows.word = np.arange(n), np.full(n, -1)
    store: Any = MemoryStore(corpus, {"resid.1": states}, rows, scope="sentence:mean")
    trained = pb.train(store, corpus, task="column:y", resample_by="document", **GIVEN)
    split = [e.split for e in corpus]
    found = pb.probe(
        {"resid.1": states}, labels, groups=places, split=split, texts=texts if has_texts else None, **GIVEN
    )
    if has_texts:
        assert numbers(found) == numbers(trained)
        return
    of_states = next(r for r in numbers(found) if r[0] == "linear")
    theirs = next(r for r in numbers(trained) if r[0] == "linear")
    assert [m["score"] for m in of_states[2]] == [m["score"] for m in theirs[2]]
    assert {r.probe for r in found} == {"prior", "linear"}  # nothing reads texts that only number the rows


def test_a_split_is_made_of_whole_groups_as_for_a_corpus() -> None:
    groups = [f"g{i // 4}" for i in range(400)]
    y = np.arange(400) % 2
    states = RANDOM.standard_normal((400, 3)) + y[:, None]
    found = pb.probe(states, y, groups=groups, split_seed=5, progress=False)[0]
    corpus = pb.Corpus.from_texts([f"t{i}" for i in range(400)], {"group": groups}, split_seed=5)
    sizes = {split: sum(e.split == split for e in corpus) for split in corpus.splits}
    assert found.facts["rows"] == sizes
    assert found.facts["clusters"] == {split: n // 4 for split, n in sizes.items()}
    assert found.facts["unit"] == "group"


def test_texts_with_keys_are_controlled_by_key() -> None:
    n = 240
    y = np.arange(n) % 2
    found = pb.probe(
        RANDOM.standard_normal((n, 3)) + y[:, None],
        y,
        texts=[f"text number {i}" for i in range(n)],
        keys=[f"k{i % 30}" for i in range(n)],
        **GIVEN,
    )
    last = found[-1]
    assert [c.control for c in last.measures[0].comparisons] == ["keyed:key=key"]
    assert last.measures[0].comparisons[0].is_selectivity


def test_missing_labels_are_left_out_and_numbers_are_real() -> None:
    y = np.where(np.arange(len(X)) % 50 == 0, np.nan, X[:, 0])
    found = pb.probe(X, y, groups=GROUPS, split=SPLIT, progress=False)
    assert found[-1].kind == "real" and found[-1].probe == "ridge"
    assert found[-1].facts["excluded"] == {"no label": int(np.isnan(y).sum())}
    few = np.arange(len(X)) % 3
    assert pb.probe(X, few, groups=GROUPS, split=SPLIT, kind="real", progress=False)[-1].kind == "real"
    assert pb.probe(X, few, groups=GROUPS, split=SPLIT, progress=False)[-1].kind == "classes"


def test_results_are_kept_shown_and_not_fitted_twice(tmp_path: Path) -> None:
    y = per_row("upos")
    given = GIVEN | {"groups": GROUPS, "keys": KEYS, "split": SPLIT, "name": "tag", "model": "mine", "to": tmp_path}
    found = pb.probe(X, y, **given)
    assert (tmp_path / "results.parquet").is_file()
    assert numbers(pb.ProbeResults.read(tmp_path)) == numbers(found)
    assert numbers(pb.probe(X, y, **given)) == numbers(found)
    assert len(pb.ProbeResults.read(tmp_path)) == len(found)
    other = pb.probe(X + 1, y, **given)
    assert len(pb.ProbeResults.read(tmp_path)) == len(found) + len(other)
    assert "tag" in found._repr_html_() and "mine" in found.table().model.iloc[0]
    assert found.plot() is not None
    page = pb.report(tmp_path).read_text(encoding="utf-8")
    assert "How the states given as arrays were computed is not known" in page


def test_runs_in_one_folder_are_told_apart_by_model_and_in_words(tmp_path: Path) -> None:
    y = per_row("upos")
    base: dict[str, Any] = {"groups": GROUPS, "keys": KEYS, "split": SPLIT} | GIVEN
    for given in (
        {"X": X, "y": y},
        {"X": X + 1, "y": y},
        {"X": X, "y": y, "model": "mine"},
        {"X": X, "y": y, "keys": [key.upper() + key[:1] for key in KEYS]},
        {"X": X, "y": [f"{label}s" for label in y]},
        {"X": X, "y": y, "groups": None, "keys": None},
    ):
        pb.probe(**(base | {"to": tmp_path} | given))
    read = pb.ProbeResults.read(tmp_path)
    table = read.table()
    assert table.model.nunique() == 3 and "mine" in set(table.model)
    assert {f"arrays [{len(X):,} rows, " in model for model in set(table.model) - {"mine"}} == {True}
    tasks = by_task(list(read))
    assert len({task.states for task in tasks}) == len(tasks) == 6
    assert [row.model for row in overview(entries(tasks, ())).rows] == [task.states for task in tasks]
    page = pb.report(tmp_path).read_text(encoding="utf-8")
    assert all(str(escape(task.states)) in page for task in tasks)


N = 60
THREE = ["train"] * 40 + ["dev"] * 10 + ["test"] * 10
CROSSED = ["train"] * 41 + ["dev"] * 9 + ["test"] * 10
EVEN = [f"g{i // 2}" for i in range(N)]
FEW = {"X": np.ones((N, 2)) * np.arange(N)[:, None], "y": [i // 2 % 2 for i in range(N)]}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"X": np.ones(N)}, BadParameter, "another shape"),
        ({"X": [["a"]] * N}, BadParameter, "not numbers"),
        ({"X": np.ones((N, 2)) * 1j}, BadParameter, "complex"),
        ({"X": np.ma.masked_less(np.ones((N, 2)), 2)}, BadParameter, "masked"),
        ({"X": csr_matrix(np.ones((N, 2)))}, BadParameter, "sparse"),
        ({"X": np.c_[np.ones(N), RANDOM.standard_normal(N) + 1e9]}, BadParameter, "the first of them 1"),
        ({"X": RANDOM.standard_normal((N, 2)) * 1e-50}, BadParameter, "does not tell apart"),
        ({"X": torch.arange(N)[:, None] + 2**40}, BadParameter, "does not tell apart"),
        ({"X": {"resid.0": np.ones((N, 2)), "resid.1": np.ones((3, 2))}}, BadParameter, "different numbers of rows"),
        ({"y": [0, 1]}, BadParameter, "y does not fit"),
        ({"y": np.zeros((N, 1))}, BadParameter, r"an array \(60, 1\)"),
        ({"y": pd.DataFrame({"a": [0] * N})}, BadParameter, r"an array \(60, 1\)"),
        ({"y": [[0]] * N}, BadParameter, "several values in a row"),
        ({"y": set(range(N))}, BadParameter, "no order of rows"),
        ({"y": dict.fromkeys(range(N), 1)}, BadParameter, "no order of rows"),
        ({"groups": ["a"]}, BadParameter, "groups does not fit"),
        ({"keys": [None] * N}, BadParameter, "without a key"),
        ({"texts": [""] * N}, BadParameter, "without text"),
        ({"y": [0, "0"] * (N // 2)}, BadParameter, "nothing but their type"),
        ({"y": np.array([1.0, "1"] * (N // 2), object)}, BadParameter, "nothing but their type"),
        ({"y": [True, "True"] * (N // 2)}, BadParameter, "nothing but their type"),
        ({"groups": [3, "3"] * (N // 2)}, BadParameter, "groups has values"),
        ({"keys": [3, "3"] * (N // 2)}, BadParameter, "keys has values"),
        ({"kind": "real", "y": ["a", "b"] * (N // 2)}, BadParameter, "is not numeric"),
        ({"kind": "real", "y": [float("inf"), *range(N - 1)]}, BadParameter, "a number that is not finite"),
        ({"kind": "real", "y": ["-Infinity", *map(str, range(N - 1))]}, BadParameter, "a number that is not finite"),
        ({"controls": ["word_type"]}, DegenerateDesign, "needs words"),
        ({"controls": ["keyed"]}, UnknownName, "unknown key"),
        ({"controls": ["random_states"]}, DegenerateDesign, "random_states needs"),
        ({"controls": ["untrained_model"]}, BadParameter, "second store"),
        ({"controls": ["static"]}, BadParameter, "nothing to compare"),
        ({"keys": range(N), "controls": ["keyed:key=type"]}, DegenerateDesign, "hardly recurs"),
        ({"keys": FEW["y"], "controls": ["keyed:key=type"]}, DegenerateDesign, "same as the label"),
        ({"keys": [0] * N}, DegenerateDesign, "fewer than two distinct"),
        ({"probes": ["attention_pooling"]}, BadParameter, "reads all pieces"),
        ({"y": list(range(N)), "kind": "classes"}, DegenerateDesign, "fewer train rows than classes"),
        ({"y": ["a", "b"] * 20 + ["c"] * 10 + ["d"] * 10, "split": THREE}, DegenerateDesign, "no label of"),
        ({"measures": ["auroc"], "y": [0, 1] * 20 + [0] * 20, "split": THREE}, DegenerateDesign, "undefined"),
        ({"y": [0.5] * N}, DegenerateDesign, "one label"),
        ({"y": np.arange(N).astype("datetime64[D]")}, BadParameter, "y holds dates"),
        ({"y": [date(2020, 1, 1 + i % 28) for i in range(N)]}, BadParameter, "y holds dates"),
        ({"y": pd.Series(pd.date_range("2020", periods=N))}, BadParameter, "y holds dates"),
        ({"y": pd.timedelta_range("1s", periods=N)}, BadParameter, "y holds times"),
        ({"y": [time(i % 24) for i in range(N)]}, BadParameter, "y holds times"),
        ({"y": np.arange(N) + 1j}, BadParameter, "y holds complex numbers"),
        ({"y": [None, *(complex(i) for i in range(N - 1))]}, BadParameter, "y holds complex numbers"),
        ({"y": [0, 1] * 20 + [None] * 20, "split": THREE}, DegenerateDesign, "no labelled rows"),
        ({"groups": ["a", "b"] * 20 + ["d"] * 10 + ["t"] * 10, "split": CROSSED}, DegenerateDesign, "crosses splits"),
        ({"groups": ["a", "b"] * 20 + ["d"] * 10 + ["t"] * 10, "split": THREE}, DegenerateDesign, "to resample"),
        ({"analyses": ["capacity:values=a"]}, BadParameter, "different numbers"),
        ({"kind": "ordinal"}, BadParameter, "unknown kind"),
        ({"name": "a:b"}, BadParameter, "without a colon"),
        ({"probes": ["linaer"]}, UnknownName, "linear"),
        ({"y": [1] * N}, DegenerateDesign, "one label"),
        ({"y": [None] * N}, DegenerateDesign, "no value"),
        ({"split": ["train"] * 40 + ["test"] * 20}, DegenerateDesign, "no rows in dev"),
        ({"groups": EVEN, "split": ["train"] * 41 + ["dev"] * 9 + ["test"] * 10}, DegenerateDesign, "crosses splits"),
        (
            {"groups": EVEN, "keys": EVEN, "split": ["train"] * 41 + ["dev"] * 9 + ["test"] * 10},
            DegenerateDesign,
            "crosses splits",
        ),
        ({"groups": ["a"] * 30 + ["b"] * 30}, CorpusError, "too few groups"),
        ({"X": np.full((N, 2), np.nan)}, NonFiniteStates, "site states"),
    ],
    ids=str,
)
def test_what_cannot_be_probed_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        pb.probe(**(FEW | {"progress": False} | given))
    step = raised.value.next_step  # type: ignore[attr-defined]
    assert not FOREIGN.search(step) and "store" not in step, step


def test_every_next_step_of_training_is_one_that_a_user_of_arrays_can_take() -> None:
    folders = ("training", "tasks", "controls", "measures", "analyses", "probes", "statistics", "text")
    sources = [path for folder in folders for path in sorted((PACKAGE / folder).rglob("*.py"))]
    calls = [
        {k.arg: k.value for k in node.keywords} | {"message": node.args[0]}
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and node.args and "next_step" in {k.arg for k in node.keywords}
    ]
    pairs = [(ast.unparse(call["message"]).strip("f'\""), ast.unparse(call["next_step"])) for call in calls]
    assert len(pairs) > 60 and any(FOREIGN.search(step) for _, step in pairs)
    for message, step in pairs:
        assert not FOREIGN.search(step_for_arrays(message, step)), message


def test_errors_of_several_fits_have_next_steps_of_arrays() -> None:
    bad = X.copy()
    bad[0] = np.nan
    with pytest.raises(UnitFailed) as raised, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pb.probe({"resid.0": bad, "resid.1": bad}, per_row("upos"), groups=GROUPS, split=SPLIT, **GIVEN)
    assert len(raised.value.errors) == 2
    assert {"out of X" in one.next_step for one in raised.value.errors.values()} == {True}


PANDAS: dict[str, Any] = {
    "X": pd.DataFrame(FEW["X"], index=[f"r{i}" for i in range(N)]),
    "y": pd.Series(FEW["y"], index=[f"r{i}" for i in range(N)]),
    "groups": pd.Series(EVEN, index=[f"r{i}" for i in range(N)]),
    "keys": pd.Series([i % 7 for i in range(N)], index=[f"r{i}" for i in range(N)]),
    "split": pd.Series(["train"] * 40 + ["dev"] * 10 + ["test"] * 10, index=[f"r{i}" for i in range(N)]),
}


@pytest.mark.parametrize("moved", PANDAS)
@pytest.mark.parametrize("index", ["names", "numbers", "twice", "levels"])
def test_an_index_in_another_order_is_refused_wherever_it_is(moved: str, index: str) -> None:
    names = {
        "names": pd.Index([f"r{i}" for i in range(N)]),
        "numbers": pd.RangeIndex(N),
        "twice": pd.Index([i // 2 for i in range(N)]),
        "levels": pd.MultiIndex.from_product([range(N // 2), ["a", "b"]]),
    }[index]
    given = {name: one.set_axis(names) for name, one in PANDAS.items()}
    check_order(given)
    turned = np.roll(np.arange(N), 3)
    with pytest.raises(BadParameter, match="in another order") as raised:
        pb.probe(**(given | {moved: given[moved].iloc[turned]}), progress=False)
    other = "y" if moved == "X" else moved
    assert f"{other}.loc[X.index]" in raised.value.next_step
    check_order(given | {moved: given[moved].iloc[turned].reset_index(drop=True).set_axis(range(N, 2 * N))})
    check_order(given | {moved: given[moved].iloc[turned].to_numpy()})
    check_order({name: one.iloc[turned] for name, one in given.items()})  # all in one order


def test_states_of_each_site_have_one_order_of_rows() -> None:
    frames = {"resid.0": PANDAS["X"], "resid.1": PANDAS["X"].iloc[::-1]}
    with pytest.raises(BadParameter, match=r"X, resid\.1 has the index of X, resid\.0 in another order"):
        pb.probe(frames, FEW["y"], progress=False)


def test_labels_that_differ_by_more_than_their_type_are_labels_of_their_own() -> None:
    assert check_types([1, 2, "a", None, 1.5, True, float("inf")], "y") is None
    found = pb.probe(FEW["X"], [(1, "one")[i // 2 % 2] for i in range(N)], groups=EVEN, progress=False)
    assert found[-1].classes == ("1", "one")


def test_too_few_rows_are_not_judged() -> None:
    table = pb.probe(**FEW, progress=False).table()
    assert table.status.iloc[-1] == "not judged"


def test_columns_that_are_constant_or_vanish_beside_others_are_no_error() -> None:
    y = per_row("upos")
    constant = 1e8 * (1 + 1e-15 * RANDOM.standard_normal(len(X)))
    tiny = 1e-60 * RANDOM.random(len(X))
    found = pb.probe(np.c_[X, constant, tiny], y, groups=GROUPS, split=SPLIT, **GIVEN)
    assert found[-1].measures[0].score.value > 0.5


def test_copies_of_rows_in_train_and_test_are_warned_of() -> None:
    inputs = np.arange(200) % 40
    states, y = RANDOM.standard_normal((40, 8))[inputs], RANDOM.integers(0, 2, 40)[inputs]
    with pytest.warns(ProbingWarning, match="20 of 20 test rows have the same states as a train row"):
        pb.probe(states, y, **GIVEN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbingWarning)  # of a label in a single group of test, by chance
        warnings.filterwarnings("error", ".*the same states as a train row", ProbingWarning)
        pb.probe(states, y, groups=inputs, **GIVEN)
        pb.probe(states, y, texts=[f"text {i}" for i in inputs], **GIVEN)
