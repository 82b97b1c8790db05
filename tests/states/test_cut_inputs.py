"""Inputs that the model did not read whole are counted, and warned of wherever their states are used, for every kind
of rows.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import DoubtfulData
from probing.states.store import Store, store_info
from probing.states.store.views import cut_inputs_warning
from probing.text.corpus import Corpus
from probing.text.example import Example

MODEL = "probing:reference"
LIMIT = 6
TENSES = {"past": "formerly", "present": "nowadays"}


def corpus() -> Corpus:
    """Ninety sentences, of which every third has six tokens more than the others."""
    examples = []
    for i in range(90):
        tense = ("past", "present")[i // 3 % 2]
        words = [TENSES[tense], "the", "painter", *(["near", "the", "garden"] * 2 if i % 3 == 0 else [])]
        text, split = " ".join(words), ("train", "dev", "test")[i // 6 % 3]
        starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])]).tolist()
        spans = tuple((start, start + len(word)) for start, word in zip(starts, words, strict=True))
        tags = {"upos": tuple("XY"[j % 2] for j in range(len(words)))}
        examples.append(
            Example(
                str(i), text, spans, columns={"tense": tense}, word_columns=tags, split=split, spans={"a": spans[1]}
            )
        )
    return Corpus(tuple(examples))


def extracted(tmp_path: Path, **options: object) -> tuple[Store, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = pb.extract(MODEL, corpus(), sites="resid.1", to=tmp_path / "s", progress=False, **options)  # type: ignore[arg-type]
    return store, [str(one.message) for one in caught if issubclass(one.category, DoubtfulData)]


@pytest.mark.parametrize("rows", ["sentence:last", "sentence:mean", "word:mean", "piece", "position:a,end"])
@pytest.mark.parametrize("subset", [None, list(range(10, 90))])
def test_inputs_cut_are_counted_and_warned_of_for_every_kind_of_rows(
    tmp_path: Path, rows: str, subset: list[int] | None
) -> None:
    store, warned = extracted(tmp_path, rows=rows, max_length=LIMIT, subset=subset)
    wanted = [i for i in subset or range(90) if i % 3 == 0]
    assert store.cut_inputs.tolist() == wanted
    assert store_info(store.path)["cut_inputs"] == len(wanted)
    assert any(f"{len(wanted)} inputs were cut at {LIMIT} tokens" in sentence for sentence in warned)


@pytest.mark.parametrize("long_inputs", ["window", "skip", "truncate"])
def test_inputs_read_in_windows_left_out_or_short_enough_are_not_cut(tmp_path: Path, long_inputs: str) -> None:
    limit = None if long_inputs == "truncate" else LIMIT
    store, warned = extracted(tmp_path, rows="sentence:mean", max_length=limit, long_inputs=long_inputs)
    assert not len(store.cut_inputs) and not any("cut" in sentence for sentence in warned)
    assert store_info(store.path)["cut_inputs"] == 0


@pytest.mark.parametrize(
    "rows, task", [("sentence:last", "column:tense"), ("piece", "column:tense"), ("word:mean", "upos")]
)
def test_training_warns_and_the_page_has_the_number_as_a_fact(tmp_path: Path, rows: str, task: str) -> None:
    store, _ = extracted(tmp_path, rows=rows, max_length=LIMIT)
    with pytest.warns(DoubtfulData, match=f"30 inputs were cut at {LIMIT} tokens"):
        results = pb.train(store, corpus(), task=task, to=tmp_path / "r", progress=False)
    assert results[0].facts["cut_inputs"] == {"inputs": 30, "tokens": LIMIT}
    pb.report(tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert f"30 inputs cut at {LIMIT} tokens" in page and f"30 inputs were cut at {LIMIT} tokens" in page


def test_the_commands_warn_too(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text(
        "text,tense,split\n" + "\n".join(f"{one.text},{one.columns['tense']},{one.split}" for one in corpus()), "utf-8"
    )
    given = ["--model", MODEL, "--corpus", str(file), "--rows", "sentence:last", "--max-length", str(LIMIT)]
    done = CliRunner().invoke(app, ["extract", *given, "--sites", "resid.1", "--to", str(tmp_path / "s")])
    assert done.exit_code == 0 and "warning: 30 inputs were cut" in done.stderr, done.output
    assert "cut inputs" in done.stdout
    trained = CliRunner().invoke(
        app,
        ["train", str(tmp_path / "s"), "--task", "column:tense", "--corpus", str(file), "--to", str(tmp_path / "r")],
    )
    assert "30 inputs were cut at 6 tokens" in " ".join(trained.output.split()), trained.output


def test_the_warning_counts_in_words_and_is_empty_for_none() -> None:
    assert cut_inputs_warning(0, 128) == ""
    assert cut_inputs_warning(1, 1).startswith("1 input was cut at 1 token:")
    assert cut_inputs_warning(1200, None).startswith("1,200 inputs were cut: ")
