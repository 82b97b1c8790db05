"""Corpora of rows in memory are those of files that hold the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import probing as pb
from probing.errors import BadParameter, CorpusError, NoSuchExample, UnknownName

ROWS: dict[str, list[Any]] = {
    "text": [f"the old dog number {n} barks" for n in range(30)],
    "tense": [["past", "present", None][n % 3] for n in range(30)],
    "score": [None if n == 4 else n / 7 for n in range(30)],
    "count": list(range(30)),
    "upos": [["DET", "ADJ", "NOUN", "NOUN", "NUM", "VERB"]] * 30,
    "tags": [["a"] * (n % 3) for n in range(30)],
    "place": [f"p{n // 3}" for n in range(30)],
}
SPLIT = ["train"] * 21 + ["validation"] * 3 + ["test"] * 6
OPTIONS: list[dict[str, Any]] = [{}, {"split_seed": 3}, {"group": "place"}, {"document": "place", "split_seed": 1}]


def same(a: pb.Corpus, b: pb.Corpus) -> None:
    assert a.examples == b.examples
    assert (a.unit, a.left_out, a.fingerprint, a.splits) == (b.unit, b.left_out, b.fingerprint, b.splits)
    assert a.column_names() == b.column_names()


@pytest.mark.parametrize("more", [{}, {"split": SPLIT}, {"id": [f"s{n}" for n in range(30)]}], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_in_memory_are_read_as_from_a_file(tmp_path: Path, more: Any, options: Any) -> None:
    if "split" in more:
        options = {name: value for name, value in options.items() if name != "split_seed"}
    rows = ROWS | more
    lines, table = tmp_path / "r.jsonl", tmp_path / "r.parquet"
    columns = {name: values for name, values in rows.items() if name != "text"}
    lines.write_text(
        "".join(json.dumps({n: v[i] for n, v in rows.items()}) + "\n" for i in range(30)), encoding="utf-8"
    )
    frame = pd.DataFrame(rows, index=pd.Index(range(100, 130)))
    frame.to_parquet(table, index=False)
    same(pb.Corpus.from_texts(rows["text"], columns, name=str(lines), **options), pb.Corpus.read(lines, **options))
    same(pb.Corpus.from_dataframe(frame, name=str(table), **options), pb.Corpus.read(table, **options))


def test_a_mapping_of_frames_is_a_mapping_of_files(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS | {"document": ROWS["place"]})
    parts = {"train": frame[:18], "valid": frame[18:24], "test": frame[24:]}
    files = {}
    for split, part in parts.items():
        files[split] = str(tmp_path / f"{split}.parquet")
        part.to_parquet(files[split], index=False)
    ours, theirs = pb.Corpus.from_dataframe(parts), pb.Corpus.read(files)
    assert ours.splits == theirs.splits == ("train", "dev", "test")
    assert [(e.text, e.columns, e.word_columns, e.document, e.split) for e in ours] == [
        (e.text, e.columns, e.word_columns, e.document, e.split) for e in theirs
    ]
    crossing = {"train": frame[:19], "dev": frame[19:24], "test": frame[24:]}
    with pytest.raises(CorpusError, match="is in two splits"):
        pb.Corpus.from_dataframe(crossing)


def test_a_data_set_in_memory_is_read_as_one_from_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": ROWS["text"], "label": [n % 2 for n in range(30)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    both = datasets.DatasetDict(
        train=whole.select(range(20)), validation=whole.select(range(20, 25)), test=whole.select(range(25, 30))
    )
    corpus = pb.Corpus.from_dataset(both)
    assert corpus.splits == ("train", "dev", "test")
    assert {e.columns["label"] for e in corpus} == {"no", "yes"}
    for split, part in both.items():
        part.to_parquet(str(tmp_path / f"{split}-0.parquet"))
    folder = pb.Corpus.read(f"hub:{tmp_path}")
    assert [(e.text, e.columns["label"], e.split) for e in corpus] == [
        (e.text, e.columns["label"], e.split) for e in folder
    ]
    alone = pb.Corpus.from_dataset(whole, split_seed=2)
    same(
        alone,
        pb.Corpus.from_texts(
            rows["text"], {"label": [["no", "yes"][n % 2] for n in range(30)]}, name="dataset", split_seed=2
        ),
    )
    with pytest.raises(CorpusError, match="no data set in memory"):
        pb.Corpus.from_dataset(whole.to_iterable_dataset())


def test_no_table_of_a_data_set_takes_the_place_of_another(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": ROWS["text"], "count": ROWS["count"]})
    both = datasets.DatasetDict(train=whole, validation=whole.select(range(5)), dev=whole.select(range(5, 10)))
    with pytest.raises(CorpusError, match="cannot be told apart"):
        pb.Corpus.from_dataset(both)
    same(pb.Corpus.from_dataset(whole.with_format("torch")), pb.Corpus.from_dataset(whole))


def test_lists_of_words_are_words() -> None:
    corpus = pb.Corpus.from_texts([["Dogs", "bark", "."], ["It", "rains"]], {"upos": [["N", "V", "P"], ["P", "V"]]})
    assert [e.text for e in corpus] == ["Dogs bark .", "It rains"]
    assert corpus[1].forms == ("It", "rains")
    assert corpus[0].word_columns["upos"] == ("N", "V", "P")


def test_numpy_values_are_plain_ones() -> None:
    texts = [f"text {n}" for n in range(6)]
    corpus = pb.Corpus.from_texts(texts, {"a": np.arange(6), "b": np.array([0.5, np.nan, 1, 2, 3, 4]), "c": [None] * 6})
    assert [type(e.columns["a"]) for e in corpus] == [int] * 6
    assert corpus[1].columns["b"] is None


def test_tensors_are_numbers_and_what_is_not_a_time_is_missing() -> None:
    values = {"a": torch.arange(3), "t": [pd.NaT, "x", pd.NA], "d": np.array(["NaT", "2020", "2021"], "datetime64[D]")}
    corpus = pb.Corpus.from_texts(["one", "two", "three"], values)
    assert [e.columns["a"] for e in corpus] == [0, 1, 2]
    assert [e.columns["t"] for e in corpus] == [None, "x", None]
    assert corpus[0].columns["d"] is None


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (lambda: pb.Corpus.from_texts([]), CorpusError, "no texts"),
        (lambda: pb.Corpus.from_texts("a text"), CorpusError, "one string"),
        (lambda: pb.Corpus.from_texts(None), CorpusError, "NoneType"),  # type: ignore[arg-type]
        (lambda: pb.Corpus.from_texts(t for t in "ab"), CorpusError, "generator"),  # type: ignore[arg-type]
        (lambda: pb.Corpus.from_texts(["a", "b"], {"y": 1}), CorpusError, "int"),  # type: ignore[dict-item]
        (lambda: pb.Corpus.from_texts(["a"], pd.DataFrame({"y": [1]})), CorpusError, "from_dataframe"),  # type: ignore[arg-type]
        (lambda: pb.Corpus.from_texts(["a", ""]), CorpusError, "texts:2"),
        (lambda: pb.Corpus.from_texts(["a", "b"], {"y": [1]}), CorpusError, "does not fit the texts"),
        (lambda: pb.Corpus.from_texts(["a", "b"], {"y": [1, float("inf")]}), CorpusError, "not finite"),
        (lambda: pb.Corpus.from_texts(["a", "b"], {"y": [1, 2]}, colour="y"), BadParameter, "no option|unknown option"),
        (lambda: pb.Corpus.from_texts(["a", "b"], {"y": [1, 2]}, group="z"), UnknownName, "unknown column"),
        (lambda: pb.Corpus.from_dataframe([1]), CorpusError, "no DataFrame"),
        (lambda: pb.Corpus.from_dataframe({}), CorpusError, "no DataFrame was given"),
        (lambda: pb.Corpus.from_dataframe(pd.DataFrame({"text": ["a", "b"], "y": [1, "x"]})), CorpusError, "kinds"),
        (lambda: pb.Corpus.from_dataframe(pd.DataFrame({"text": ["a"], "y": [float("inf")]})), CorpusError, "finite"),
        (lambda: pb.Corpus.from_dataframe(pd.DataFrame([["a", 1]], columns=["text", "text"])), CorpusError, "twice"),
    ],
)
def test_what_no_file_could_hold_is_refused(made: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        made()


@given(st.lists(st.sampled_from(["train", "dev", "test", "extra"]), max_size=12), st.integers(-15, 15))
def test_a_corpus_is_indexed_as_a_sequence_and_by_its_splits(splits: list[str], index: int) -> None:
    corpus = pb.Corpus(tuple(pb.Example(str(n), f"text {n}", split=split) for n, split in enumerate(splits)), "here")
    if -len(splits) <= index < len(splits):
        assert corpus[index] is corpus.examples[index] is corpus[np.int64(index)]
    else:
        with pytest.raises(IndexError) as raised:
            corpus[index]
        assert isinstance(raised.value, NoSuchExample) and str(index) in str(raised.value)
    ordinals = iter(range(100))
    assert [corpus[next(ordinals)] for _ in splits] == list(corpus)
    for name, spelling in {"train": "Train", "dev": "validation", "test": "test", "extra": "extra"}.items():
        if name in splits:
            assert corpus[name].examples == tuple(e for e in corpus if e.split == name) == corpus[spelling].examples
            assert (corpus[name].source, corpus[name].unit) == (corpus.source, corpus.unit)
        else:
            with pytest.raises(UnknownName, match="unknown split") as missing:
                corpus[spelling]
            assert all(split in missing.value.needed for split in corpus.splits)


@pytest.mark.parametrize("index", [1.5, None, (0, 1), [0, 1], {"a": 1}, np.array([0, 1])], ids=str)
def test_what_is_no_index_is_refused_in_words(index: Any) -> None:
    with pytest.raises(BadParameter, match="not indexed in this way"):
        pb.Corpus.from_texts(["a", "b"])[index]


def test_iteration_by_index_ends_as_python_expects() -> None:
    class Listed:
        corpus = pb.Corpus.from_texts(["a", "b", "c"])

        def __getitem__(self, index: int) -> pb.Example:
            return self.corpus[index]

    assert [example.text for example in Listed()] == ["a", "b", "c"]


def test_a_slice_is_a_corpus_and_an_index_an_example() -> None:
    corpus = pb.Corpus.from_texts(ROWS["text"], {"split": SPLIT, "tense": ROWS["tense"]})
    assert len(corpus) == len(list(corpus)) == 30
    assert corpus[3] is corpus.examples[3] and corpus[-1] is corpus.examples[-1]
    part = corpus[10:20]
    assert isinstance(part, pb.Corpus) and part.examples == corpus.examples[10:20]
    assert (part.source, part.unit) == (corpus.source, corpus.unit)
    assert part.fingerprint == pb.Corpus.from_texts(ROWS["text"][10:20]).fingerprint
    assert corpus[:] == corpus


@pytest.mark.parametrize("values", [np.arange(3) + 1j, [1j, 2j, None]], ids=["array", "list"])
def test_complex_numbers_are_refused_and_the_step_says_what_to_give(values: Any) -> None:
    texts = ["a b", "c d", "e f"]
    frame = pd.DataFrame({"text": texts, "z": values})
    for read in (lambda: pb.Corpus.from_texts(texts, columns={"z": values}), lambda: pb.Corpus.from_dataframe(frame)):
        with pytest.raises(CorpusError, match="complex numbers") as raised:
            read()
        assert "imaginary part" in raised.value.next_step
