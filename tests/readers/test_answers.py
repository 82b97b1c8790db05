"""Answers from the command line, a study file and Python are one: to the space, in the record, in what is shown."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.contracts.edited_model import Place
from probing.errors import CorpusError, DoubtfulAnswer, NotResumed, UnknownName
from probing.jobs.study import Study
from probing.readers import jsonl, table
from probing.results.use import UseResult
from probing.states.extraction import extract
from probing.use.behaviours.next_token import NextToken
from probing.use.behaviours.readout import FinalStates
from probing.use.edited_models.text import TextInstrument
from probing.use.effects import UseOptions
from probing.use.patching.prompt_pairs import PromptPairs
from tests.samples.tiny_models import build, byte_tokenizer

RECIPE = "next_token:answers= t|t"
QUICK = UseOptions(curve=False, details=False, null=False, slope_rows=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of bytes, 150 labelled texts of unequal length, and pairs of prompts."""
    place = tmp_path_factory.mktemp("answers")
    build("gpt2").save_pretrained(place / "model")
    byte_tokenizer().save_pretrained(place / "model")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for k in range(150):
        label = int(rng.integers(2))
        text = f"{'abc'[k % 3] * (1 + k % 4)} {'in' if label else 'on'} {'the ' * (k % 3)}{chr(97 + k % 26)}{k % 7}"
        rows.append({"id": str(k), "text": text, "label": "xy"[label], "spans": {"word": text.split()[1]}})
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "pairs.csv").write_text(
        "clean,corrupted,answer,corrupted_answer,a,b\nx ab in,x cd in, t,t,ab,cd\nh ef in,h gh in,t, t,ef,gh\n"
    )
    return place


def records(place: Path) -> list[UseResult]:
    return [UseResult.from_json(line) for line in (place / "use.jsonl").read_text().splitlines()]


def command(folder: Path, to: Path, behaviour: str, *more: str) -> Any:
    return CliRunner().invoke(
        app,
        [
            "use",
            "--model",
            str(folder / "model"),
            "--corpus",
            str(folder / "texts.jsonl"),
            "--task",
            "column:label",
            "--behaviour",
            behaviour,
            "--position",
            "end",
            "--sites",
            "resid.1",
            "--to",
            str(to),
            "--quiet",
            *more,
        ],
    )


def pieces_of(*texts: str) -> tuple[Any, ...]:
    ids = byte_tokenizer().convert_tokens_to_ids
    return tuple(((ids(text.replace(" ", "Ġ")), text),) for text in texts)


def test_command_study_and_python_measure_the_same_pieces(folder: Path, tmp_path: Path) -> None:
    by_command = command(folder, tmp_path / "command", RECIPE)
    assert by_command.exit_code == 0, by_command.output
    assert f"Answers as measured, with piece ids: ␣t ({pieces_of(' t')[0][0][0]}) | t (" in by_command.output
    (folder / "study.yaml").write_text(
        f"""
name: answers
model: model
corpus: texts.jsonl
extract: {{rows: "sentence:last", sites: resid.1}}
train: {{task: "column:label", controls: []}}
use:
  - task: column:label
    behaviour: {RECIPE}
    positions: [end]
    sites: resid.1
"""
    )
    Study.from_yaml(folder / "study.yaml").run(tmp_path / "study", progress=False)
    model, corpus = pb.LanguageModel.load(str(folder / "model")), pb.Corpus.read(str(folder / "texts.jsonl"))
    for k, behaviour in enumerate((RECIPE, NextToken(answers=[" t", "t"]))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DoubtfulAnswer)
            pb.intervene(
                model,
                corpus,
                tasks="column:label",
                behaviour=behaviour,
                positions=["end"],
                sites="resid.1",
                to=tmp_path / str(k),
                progress=False,
            )
    (first,) = records(tmp_path / "command")
    assert first.answers == pieces_of(" t", "t") and first.behaviour == RECIPE
    for name in ("study", "0", "1"):
        assert records(tmp_path / name) == [first], name
    table = pd.read_parquet(tmp_path / "command" / "verdicts.parquet")
    assert set(table["answers"]) == {"␣t | t"}
    page = (tmp_path / "study" / "report.html").read_text()
    assert (
        f"Answers as measured, with piece ids: ␣t ({first.answers[0][0][0]}) | t (" in page
        and "(pieces ␣t | t)" in page
    )


def test_an_object_resumes_like_its_text_and_a_function_says_that_it_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, corpus = pb.LanguageModel.load(str(folder / "model")), pb.Corpus.read(str(folder / "texts.jsonl"))
    given: dict[str, Any] = {
        "tasks": "column:label",
        "positions": ["end"],
        "sites": "resid.1",
        "options": QUICK,
        "to": tmp_path,
        "progress": False,
    }
    function = FinalStates(function=lambda states, real: states[:, 0, :2])
    first = pb.intervene(model, corpus, behaviour=NextToken(answers=["h", "a"]), **given)
    with pytest.warns(NotResumed, match="measured anew"):
        pb.intervene(model, corpus, behaviour=function, **given | {"to": tmp_path / "other"})
    monkeypatch.setattr("probing.use.run.measure_property", None)
    for behaviour in (NextToken(answers=("h", "a")), "next_token:answers=h|a", "next_token: answers=h|a,position=end"):
        again = pb.intervene(model, corpus, behaviour=behaviour, **given)
        assert [r.to_json() for r in again.results] == [r.to_json() for r in first.results]
    with pytest.raises(TypeError):  # other answers are measured, not found
        pb.intervene(model, corpus, behaviour="next_token:answers=h| t", **given)
    with pytest.raises(TypeError), pytest.warns(NotResumed):
        pb.intervene(model, corpus, behaviour=function, **given | {"to": tmp_path / "other"})


def test_a_doubtful_answer_warns_and_stands_in_record_terminal_and_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextInstrument, "doubts", property(lambda self: ("the answer t is hardly said <here>",)))
    result = command(folder, tmp_path, RECIPE)
    assert result.exit_code == 0 and result.stderr.count("warning: the answer t is hardly said <here>") == 1
    assert records(tmp_path)[0].doubts == ("the answer t is hardly said <here>",)
    page = Path(pb.report(tmp_path)).read_text()
    assert page.count("Doubtful: ") == 1 and "the answer t is hardly said &lt;here&gt;" in page
    model, corpus = pb.LanguageModel.load(str(folder / "model")), pb.Corpus.read(str(folder / "texts.jsonl"))
    with pytest.warns(DoubtfulAnswer, match="hardly said"):
        pb.intervene(
            model,
            corpus,
            tasks="column:label",
            behaviour=RECIPE,
            positions=["end"],
            sites="resid.1",
            options=QUICK,
            progress=False,
        )


def test_answers_of_pairs_are_read_and_recorded_to_the_space(folder: Path, tmp_path: Path) -> None:
    assert PromptPairs.read(str(folder / "pairs.csv")).answers == ((" t", "t"), ("t", " t"))
    result = CliRunner().invoke(
        app,
        [
            "patch",
            "--model",
            str(folder / "model"),
            "--pairs",
            str(folder / "pairs.csv"),
            "--span",
            "s=a,b",
            "--position",
            "s",
            "--sites",
            "resid.1",
            "--to",
            str(tmp_path),
            "--quiet",
        ],
    )
    assert result.exit_code == 0 and "answers as measured: ␣t | t" in result.output, result.output
    found = json.loads((tmp_path / "patching.json").read_text())
    assert [tuple(tuple(map(tuple, one)) for one in f["answers"]) for f in found.values()] == [pieces_of(" t", "t")] * 2
    assert "in ␣t | t" in Path(pb.report(tmp_path)).read_text()
    as_lines = tmp_path / "pairs.jsonl"
    as_lines.write_text(json.dumps({"clean": " a", "corrupted": "b ", "answer": " 1", "corrupted_answer": 1}) + "\n")
    pairs = PromptPairs.read(str(as_lines))
    assert pairs.answers == ((" 1", "1"),) and [e.text for e in pairs.corpus.examples] == [" a", "b "]
    for value in (1.5, True):
        as_lines.write_text(
            json.dumps({"clean": "a", "corrupted": "b", "answer": "x", "corrupted_answer": value}) + "\n"
        )
        with pytest.raises(CorpusError, match="cannot be told how they were written"):
            PromptPairs.read(str(as_lines))


def test_cells_columns_and_spans_keep_their_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label,part\n" a b ", x ," b"\n"c d",y," d"\n')
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in (
                {"text": " a b ", "label": " x ", "part": " b"},
                {"text": "c d", "label": "y", "part": " d"},
            )
        )
    )
    for reader, name in ((table, "a.csv"), (jsonl, "a.jsonl")):
        first, second = (
            reader.MEMBER().read(str(tmp_path / name), split="train", **{"span.p": "part", "text": "text"}).examples
        )
        assert (first.text, first.columns["label"], first.spans["p"]) == (" a b ", " x ", (2, 4)), name
        assert second.spans["p"] == (1, 3)


def test_a_bare_span_is_the_same_states_in_extract_and_use(folder: Path, tmp_path: Path) -> None:
    model, corpus = pb.LanguageModel.load(str(folder / "model")), pb.Corpus.read(str(folder / "texts.jsonl"))
    names = ["word", "word.first", "word.last"]
    store = extract(
        model, corpus, rows=f"position:{','.join(names)}", sites="resid.1", to=tmp_path / "s", progress=False
    )
    found = TextInstrument.from_spans(model, corpus, RECIPE, positions=names, sites="resid.1", max_rows=500)
    assert store.position_names == tuple(names) == tuple(place.position for place in found.places)
    states = [found.states(Place("resid.1", name)) for name in names]
    assert np.abs(states[0] - states[2]).max() > 1e-2
    for k, expected in enumerate(states):
        own = np.flatnonzero(store.rows.position == k)
        np.testing.assert_array_equal(store.rows.example[own], found.rows.ordinal)
        np.testing.assert_allclose(store.read("resid.1", own), expected, atol=1e-5)
    behaviour = NextToken(answers=[" t", "t"], position="word")  # logits are read at one piece: the span's last
    at = TextInstrument.from_spans(model, corpus, behaviour, positions=names, sites="resid.1").runner.texts
    np.testing.assert_array_equal(at.last_of("word"), at.last_of("word.last"))
    with pytest.raises(UnknownName, match="did you mean 'word'"):
        TextInstrument.from_spans(model, corpus, "next_token:answers= t|t,position= word", positions=names)


def test_extract_says_which_positions_are_means_of_several_pieces(folder: Path, tmp_path: Path) -> None:
    for rows, says in (("position:word,end", True), ("position:word.last,end", False)):
        result = CliRunner().invoke(
            app,
            [
                "extract",
                "--model",
                str(folder / "model"),
                "--corpus",
                str(folder / "texts.jsonl"),
                "--sites",
                "resid.1",
                "--rows",
                rows,
                "--to",
                str(tmp_path / str(says)),
                "--quiet",
            ],
        )
        assert result.exit_code == 0, result.output
        assert ("warning: word: whole spans, the mean of their pieces" in result.stderr) == says
        assert ("word.last" in result.stderr) == says
