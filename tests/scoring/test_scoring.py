"""Laws of scores: as in training, one by one as together, streamed as whole; refused where the model is another."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import BadParameter, ConfigError, CorpusError, ProvenanceMismatch, UnknownName, UnknownSite
from probing.probes._estimator import load_probe
from probing.reporting.probe_card import UNKNOWN, card_rows
from probing.scoring import recipe_of, stream
from probing.states.store import Store
from probing.training.pooling import with_rows
from tests.conftest import REFERENCE, ROOT

MODEL = str(REFERENCE / "model")
TURNS = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}assistant {% endif %}"
# rows of the store, how they are pooled when read, chat
KINDS = {
    "mean": ("sentence:mean", None, False),
    "last": ("sentence:last", None, False),
    "max": ("sentence:max", None, False),
    "pieces-max": ("piece", "sentence:max", False),
    "position": ("position:end", None, False),
    "words": ("word:mean", None, False),
    "chat": ("sentence:mean", None, True),
}
TASK = "column:subject_number"


def model_of(chat: bool = False) -> pb.LanguageModel:
    model = pb.LanguageModel.load(MODEL, check=False)
    if chat:
        model.tokenizer.chat_template = TEMPLATE
    return model


class Trained:
    """Stores and saved probes of the small corpus, made once each."""

    def __init__(self, folder: Path, files: dict[str, Path]) -> None:
        self.folder, self.corpus = folder, pb.Corpus.read({split: str(file) for split, file in files.items()})
        self._made: dict[tuple[str, str], tuple[Path, Any]] = {}

    def of(self, kind: str, probe: str = "linear") -> tuple[Path, Any]:
        """Return the file of a saved probe, and the store that it was trained on."""
        if (kind, probe) not in self._made:
            rows, pooled, chat = KINDS[kind]
            place = self.folder / kind
            store = pb.extract(
                model_of(chat), self.corpus, sites="resid.2", rows=rows, chat_template=chat, to=place / "store"
            )
            pb.train(
                store,
                self.corpus,
                task="upos" if kind == "words" else TASK,
                probes=[probe],
                controls=[],
                rows=pooled,
                threshold=None if kind == "words" else "fpr=0.1,by=tense",
                to=place / "results",
                progress=False,
            )
            (file,) = (place / "results" / "probes").glob(f"*/resid.2/{probe}/*.json")
            self._made[kind, probe] = file, Store.open(place / "store")
        return self._made[kind, probe]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_corpus: dict[str, Path]) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"), small_corpus)


def in_training(file: Path, store: Any, corpus: pb.Corpus, kind: str) -> np.ndarray:
    """Log probabilities of the rows of the store, as in training."""
    rows = with_rows(store, corpus, KINDS[kind][1], "sentence")
    probe: Any = load_probe(file)
    every = np.arange(len(rows.rows.example))
    X = rows.pieces("resid.2", every) if probe.input == "pieces" else rows.read("resid.2", every)
    return np.asarray(probe.predict_log_proba(X))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_training(trained: Trained, kind: str) -> None:
    file, store = trained.of(kind)
    expected = in_training(file, store, trained.corpus, kind)
    found = pb.score(file, model_of(KINDS[kind][2]), trained.corpus)
    rows = [row for text in found for row in text.rows]
    probabilities = np.array([list(row.probabilities.values()) for row in rows])
    np.testing.assert_allclose(probabilities, np.exp(expected), atol=1e-6)
    if kind != "words":
        np.testing.assert_allclose(found.scores, expected[:, 1] - expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("probe", ["attention_pooling", "softmax_pooling"])
def test_probes_of_pieces_score_as_in_training(trained: Trained, probe: str) -> None:
    file, store = trained.of("pieces-max", probe)
    expected = in_training(file, store, trained.corpus, "pieces-max")
    found = pb.score(file, model_of(), trained.corpus)
    np.testing.assert_allclose(found.scores, expected[:, 1] - expected[:, 0], atol=1e-5)


def test_a_new_process_gives_the_same_scores(trained: Trained, small_corpus: dict[str, Path], warm: list[str]) -> None:
    file, store = trained.of("mean")
    expected = in_training(file, store, trained.corpus, "mean")
    corpus = [part for split, path in small_corpus.items() for part in ("--corpus", f"{split}={path}")]
    command = [*warm, "-m", "probing", "score", str(file), "--model", MODEL, *corpus, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    scores = [json.loads(line)["score"] for line in done.stdout.splitlines()]
    np.testing.assert_allclose(scores, expected[:, 1] - expected[:, 0], atol=1e-5)


def test_batched_is_one_by_one_and_streamed_is_whole(trained: Trained) -> None:
    model, (file, _) = model_of(), trained.of("mean")
    texts = [example.text for example in trained.corpus.examples[:40]]
    whole = pb.score(file, model, texts, pieces=True)
    alone = pb.score(file, model, texts, pieces=True, batch=1)
    parts = list(stream(recipe_of(file, model), model, [texts[:3], texts[3:4], texts[4:]], pieces=True))
    joined = [text for part in parts for text in part]
    for other in (alone, joined):
        assert [text.id for text in other] == [text.id for text in whole]
        for a, b in zip(whole, other, strict=True):
            for one, two in zip((*a.rows, *a.pieces), (*b.rows, *b.pieces), strict=True):
                assert (one.start, one.end, one.label) == (two.start, two.end, two.label)
                assert one.score == pytest.approx(two.score, abs=1e-5)


def test_standard_input_is_scored_line_by_line(trained: Trained, warm: list[str]) -> None:
    file, _ = trained.of("mean")
    texts = [example.text for example in trained.corpus.examples[:5]]
    command = [*warm, "-m", "probing", "score", str(file), "-", "--model", MODEL, "--batch", "2"]
    done = subprocess.run(command, input="\n".join(texts), capture_output=True, text=True, check=True, cwd=ROOT)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in found] == texts
    expected = pb.score(file, model_of(), texts).scores
    np.testing.assert_allclose([row["score"] for row in found], expected, atol=1e-5)


def test_files_of_scores_hold_the_same(trained: Trained, tmp_path: Path) -> None:
    file, _ = trained.of("mean")
    text = 'formerly the <script>alert("x")</script> old & painter'
    scores = pb.score(file, model_of(), [text, "nowadays the doctor"], pieces=True)
    written = [scores.write(tmp_path / f"s.{end}") for end in ("jsonl", "parquet", "html")]
    lines = [json.loads(line) for line in written[0].read_text(encoding="utf-8").splitlines()]
    assert [row["score"] for row in lines] == pd.read_parquet(written[1])["score"].tolist()
    assert "".join(row["text"] for row in lines if row["kind"] == "row") == text + "nowadays the doctor"
    page = written[2].read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;" in page and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in html.unescape(page) and re.search(r'class="(up|down)\d', page)
    with pytest.raises(BadParameter, match="not written"):
        scores.write(tmp_path / "s.csv")


# Refusals.


def test_another_model_is_refused_and_accepted_only_by_name(trained: Trained) -> None:
    file, _ = trained.of("mean")
    other = pb.LanguageModel.load(MODEL, untrained=1, check=False)
    with pytest.raises(ProvenanceMismatch, match="another model"):
        pb.score(file, other, ["nowadays the doctor"])
    scores = pb.score(file, other, ["nowadays the doctor"], any_model=True)
    assert "model is" in scores.records()[0]["remarks"] and "weights" in scores.page()


def test_another_template_or_none_is_refused(trained: Trained) -> None:
    file, _ = trained.of("chat")
    with pytest.raises(BadParameter, match="no chat template"):
        pb.score(file, model_of(), ["nowadays the doctor"])
    other = model_of(chat=True)
    other.tokenizer.chat_template = TEMPLATE.replace("assistant {%", "was {%")
    with pytest.raises(ProvenanceMismatch, match="chat template"):
        pb.score(file, other, ["nowadays the doctor"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"site": "resid.9"}, UnknownSite),
        ({"site": ""}, BadParameter),
        ({"model_facts": {"revision": "b" * 40}}, ProvenanceMismatch),
        ({"model_facts": {"dtype": "float16"}}, ProvenanceMismatch),
        ({"model_facts": {"tokenizer": "f" * 64}}, ProvenanceMismatch),
        ({"read": {"row_form": "pair"}}, BadParameter),
    ],
)
def test_a_card_of_other_states_is_refused(trained: Trained, change: dict[str, Any], error: type[Exception]) -> None:
    probe, model = load_probe(trained.of("mean")[0]), model_of()
    about = dict(probe.about)
    for name, value in change.items():
        about[name] = about[name] | value if isinstance(value, dict) else value
    probe.about = about
    if change.get("model_facts", {}).get("revision"):
        model._identity = None
        identity = model.identity()
        identity["model"]["revision"] = "a" * 40
        model._identity = identity
    with pytest.raises(error):
        pb.score(probe, model, ["nowadays the doctor"])


def test_another_width_is_refused(trained: Trained) -> None:
    probe = load_probe(trained.of("mean")[0])
    probe.n_features_in_ = 63
    with pytest.raises(BadParameter, match="another width"):
        pb.score(probe, model_of(), ["nowadays the doctor"])


def test_labels_of_another_set_are_refused(trained: Trained) -> None:
    file, _ = trained.of("mean")
    corpus = trained.corpus
    first = replace(corpus.examples[0], columns=dict(corpus.examples[0].columns) | {"subject_number": "dual"})
    with pytest.raises(BadParameter, match="labels that the probe does not know"):
        pb.score(file, model_of(), pb.Corpus((first,)))
    with pytest.raises(UnknownName, match="dual"):
        pb.score(file, model_of(), ["nowadays the doctor"], label="dual")


@pytest.mark.parametrize("texts", [[], [""], ["nowadays the doctor", "  "]])
def test_texts_without_pieces_are_refused(trained: Trained, texts: list[str]) -> None:
    with pytest.raises(CorpusError):
        pb.score(trained.of("mean")[0], model_of(), texts)


def test_a_probe_of_words_needs_words(trained: Trained) -> None:
    file, _ = trained.of("words")
    with pytest.raises(BadParameter, match="not divided into words"):
        pb.score(file, model_of(), ["nowadays the doctor"])
    assert len(pb.score(file, model_of(), ["nowadays the doctor"], pieces=True)[0].pieces) == 3


@pytest.mark.parametrize("given", [[], ["-", "--text", "x"], ["nonsense"], ["--text", "x", "--to", "x.csv"]])
def test_texts_come_from_one_place(trained: Trained, given: list[str]) -> None:
    ended = CliRunner().invoke(app, ["score", str(trained.of("mean")[0]), "--model", MODEL, *given])
    assert ended.exit_code != 0 and not isinstance(ended.exception, ProvenanceMismatch)
    assert ConfigError.__name__ in ended.output or "BadParameter" in ended.output


# A probe describes itself.


def test_a_saved_probe_says_what_it_is(trained: Trained) -> None:
    probe = load_probe(trained.of("mean")[0])
    rows = dict(card_rows(probe))
    assert rows["labels"] == "plural, singular" and rows["rows"] == "sentence:mean" and rows["chat template"] == "no"
    assert "[" in rows["accuracy (test)"] and "false positives" in rows["threshold"]
    assert "recall" in rows["tense past"]
    assert "column:subject_number by linear at resid.2" in repr(probe) and len(repr(probe)) < 300
    assert "<table" in probe._repr_html_() and "plural, singular" in probe._repr_html_()
    shown = CliRunner().invoke(app, ["probe", "show", str(trained.of("mean")[0])])
    assert shown.exit_code == 0 and "chat template" in shown.output


def test_a_card_of_an_earlier_version_is_loaded_and_its_gaps_are_named(trained: Trained) -> None:
    probe = load_probe(trained.of("mean")[0])
    probe.about = {k: v for k, v in probe.about.items() if k in ("task", "site", "probe", "kind", "labels", "rows")}
    rows = dict(card_rows(probe))
    assert rows["chat template"] == rows["scores"] == rows["threshold"] == UNKNOWN
    with pytest.raises(ProvenanceMismatch, match="earlier one"):
        pb.score(probe, model_of(), ["nowadays the doctor"])
    assert len(pb.score(probe, model_of(), ["nowadays the doctor"], any_model=True)) == 1


@pytest.mark.parametrize("wrong", [pd.DataFrame({"text": ["a", "b"]}), {"text": "a"}, [1], [{"text": "a"}]])
def test_what_is_no_text_is_refused(trained: Trained, wrong: Any) -> None:
    with pytest.raises(BadParameter, match="no texts"):
        pb.score(trained.of("mean")[0], model_of(), wrong)


def test_empty_lines_of_standard_input_are_left_out_and_named(trained: Trained, warm: list[str]) -> None:
    file, _ = trained.of("mean")
    command = [*warm, "-m", "probing", "score", str(file), "-", "--model", MODEL]
    done = subprocess.run(command, input="the doctor\n\nthe painters\n", capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "line 2" in done.stderr
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["the doctor", "the painters"]
    broken = subprocess.run(command, input=b"the doctor\n\xff\n", capture_output=True, cwd=ROOT)
    assert broken.returncode == 1 and b"UTF-8" in broken.stderr


@pytest.mark.parametrize(
    ("before", "found"),
    [("", "an empty"), ("printf '' |", "an empty"), ("printf ' \n\n\t\n' |", "no line with")],
)
def test_a_standard_input_without_texts_is_an_error(
    trained: Trained, warm: list[str], tmp_path: Path, before: str, found: str
) -> None:
    python = warm if before else [sys.executable]  # a warm process cannot be handed what is closed
    command = [*python, "-m", "probing", "score", str(trained.of("mean")[0]), "-", "--model", MODEL]
    line = f"{before} {shlex.join([*command, '--to', str(tmp_path / 's.jsonl')])}{'' if before else ' <&-'}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and not done.stdout
    said = " ".join(done.stderr.split())
    assert "there are no texts to score" in said and found in said and "next step: send lines" in said
    assert not list(tmp_path.iterdir())


def test_a_threshold_without_a_folder_is_refused(trained: Trained) -> None:
    _, store = trained.of("mean")
    with pytest.raises(BadParameter, match="saved probes"):
        pb.train(store, trained.corpus, task=TASK, controls=[], threshold="fpr=0.1")
