"""One label in two Unicode forms is one label; so are keys, groups and the names of columns and spans."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from probing.errors import CorpusError
from probing.recipes import build, build_task
from probing.reporting.task_results import by_task
from probing.reporting.warnings import warnings_of_task
from probing.text.corpus import Corpus, Example
from probing.training import train
from tests.samples.training_samples import MemoryStore

COMPOSED, DECOMPOSED = "é", unicodedata.normalize("NFD", "é")


def table(folder: Path, header: str = "text,label") -> Path:
    lines = [f"sentence number {i},{(COMPOSED, DECOMPOSED, 'e')[i % 3]}" for i in range(120)]
    (folder / "t.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder / "t.csv"


def test_two_forms_of_a_label_are_one_class_and_that_is_said(tmp_path: Path) -> None:
    corpus = Corpus.read(table(tmp_path))
    rows = type("Rows", (), {"example": np.arange(120), "word": np.full(120, -1)})
    states = np.random.default_rng(0).standard_normal((120, 4)).astype(np.float32)
    results = train(
        MemoryStore(corpus, {"resid.0": states}, rows, "sentence:mean"),
        corpus,
        task="column:label",
        measures=["accuracy"],
        progress=False,
    )
    assert results[0].classes == ("e", COMPOSED)
    said = warnings_of_task(by_task(list(results))[0])
    assert any("another Unicode form" in line and "label (40 examples)" in line for line in said)


def test_names_of_columns_groups_spans_and_keys_are_found_however_they_are_typed(tmp_path: Path) -> None:
    for header in (f"text,{COMPOSED}", f"text,{DECOMPOSED}"):
        corpus = Corpus.read(table(tmp_path, header))
        for typed in (COMPOSED, DECOMPOSED):
            assert build_task(f"column:{typed}", corpus).argument == COMPOSED
            assert corpus.level_of(typed) == "sentence"
            assert corpus.grouped_by(typed).unit == COMPOSED
            assert build("controls", f"keyed:key={typed}").key == COMPOSED
    made = Example("a", "x y", spans={DECOMPOSED: (0, 1)}, columns={DECOMPOSED: DECOMPOSED}, document=DECOMPOSED)
    assert set(made.spans) == set(made.columns) == {COMPOSED}
    assert made.columns[COMPOSED] == made.document == COMPOSED
    assert made.recomposed == (COMPOSED,)


def test_one_field_in_two_forms_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f"text,{COMPOSED},{DECOMPOSED}\na b,1,2\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="one field name in two Unicode forms"):
        Corpus.read(file)


def test_the_text_itself_and_what_a_model_answers_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"text,label\ncaf{DECOMPOSED} noir,a\n", encoding="utf-8")
    (one,) = Corpus.read(tmp_path / "t.csv").examples
    assert one.text == f"caf{DECOMPOSED} noir"
    assert DECOMPOSED in build("behaviours", f"next_token:answers={DECOMPOSED}|e").answers
