"""Messages to somebody who mistyped: each names what was meant, in words that can be typed as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from probing.errors import BadParameter, CorpusError, DegenerateDesign, NotAStore, UnknownName, UnknownSite
from probing.models.site import select_sites
from probing.recipes import build_task
from probing.states.store import Store
from probing.text.corpus import Corpus, Example
from probing.training.label_checks import check_labels
from tests.conftest import REFERENCE
from tests.samples.training_samples import labels_of


def csv(folder: Path, text: str, name: str = "my.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("asked", ["tense", "tens", " tense"])
def test_a_column_asked_for_as_a_task_is_suggested_as_one(asked: str) -> None:
    corpus = Corpus((Example("a", "x", columns={"tense": "past", "form": "plural"}, word_columns={"upos": ()}),))
    with pytest.raises(UnknownName, match=r"(?s)did you mean 'column:tense'\?.*form, tense, upos"):
        build_task(asked, corpus)
    with pytest.raises(UnknownName, match="did you mean 'upos'"):
        build_task("uposs", corpus)
    with pytest.raises(UnknownName, match="did you mean 'feature'"):
        build_task("feture:Number", corpus)
    assert build_task("column:tense", corpus).argument == "tense"


def test_a_csv_line_with_a_missing_cell_says_so_and_one_with_too_many_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"(?s)my\.csv:3.*label cell missing\?"):
        Corpus.read(csv(tmp_path, "text,tense\na b,past\nc d\n"))
    with pytest.raises(CorpusError, match=r"--reader-option separator=';'"):
        Corpus.read(csv(tmp_path, "text,tense\na b,past\nc, d,past\n"))


@pytest.mark.parametrize(("mark", "flag"), [(";", "separator=';'"), ("\t", r"separator=\$'\\t'")])
def test_another_separator_is_seen_in_the_header_before_any_row(tmp_path: Path, mark: str, flag: str) -> None:
    file = csv(tmp_path, f"text{mark}tense\na, b{mark}past\nc{mark}past\n")
    with pytest.raises(CorpusError, match=rf"(?s)my\.csv:1.*{flag}"):
        Corpus.read(file)
    assert [e.columns["tense"] for e in Corpus.read(file, separator=mark).examples] == ["past", "past"]


def test_usual_column_names_are_known_in_upper_case_and_the_exact_one_wins(tmp_path: Path) -> None:
    (one,) = Corpus.read(csv(tmp_path, "Sentence,Topic,Group\na b,art,g1\n")).examples
    assert (one.text, one.columns["Topic"], one.document) == ("a b", "art", "g1")
    (one,) = Corpus.read(csv(tmp_path, "Text,text\nlabel,a b\n")).examples
    assert (one.text, one.columns["Text"]) == ("a b", "label")
    with pytest.raises(CorpusError, match="--reader-option text=Left"):
        Corpus.read(csv(tmp_path, "Left,Right\na,b\n"))


def test_a_pattern_of_sites_gets_a_pattern() -> None:
    sites = [f"resid.{layer}" for layer in range(4)] + ["embed", "mlp_out.0"]
    with pytest.raises(UnknownSite, match=r"did you mean 'resid\.\*'\?"):
        select_sites("residual.*", sites)
    with pytest.raises(UnknownSite, match=r"did you mean 'resid\.1'\?"):
        select_sites("resd.1", sites)


@pytest.mark.parametrize(("asked", "meant"), [("sentences", "sentence:mean"), ("word", "word:mean")])
def test_a_row_scope_without_pooling_gets_the_scopes_and_the_mean(tmp_path: Path, asked: str, meant: str) -> None:
    from probing.states.extraction import extract

    corpus = Corpus((Example("a", "the cook", ((0, 3), (4, 8))),))
    with pytest.raises(
        BadParameter, match=rf"(?s)sentence:last, sentence:max, sentence:mean, word:first.*did you mean '{meant}'"
    ):
        extract(str(REFERENCE / "model"), corpus, rows=asked, to=tmp_path / "s")


def test_a_missing_store_gets_the_nearest_store_beside_it(tmp_path: Path) -> None:
    (tmp_path / "gpt2-mine").mkdir()
    (tmp_path / "gpt2-mine" / "store.json").write_text("{}")
    (tmp_path / "gpt2-mina").mkdir()  # no store
    with pytest.raises(NotAStore) as caught:
        Store.open(tmp_path / "gpt2-min")
    assert caught.value.next_step == f"did you mean '{tmp_path / 'gpt2-mine'}'?"
    with pytest.raises(NotAStore, match="probing store ls"):
        Store.open(tmp_path / "zzz")


def test_a_corpus_too_small_to_be_split_is_said_to_be_that() -> None:
    corpus = Corpus((Example("a", "x"), Example("b", "y")))
    with pytest.raises(DegenerateDesign, match="at least three sentences"):
        check_labels(labels_of([0, 1], ["train", "train"]), corpus)
    more = Corpus(tuple(Example(name, name) for name in "abcd"))
    with pytest.raises(DegenerateDesign, match="split at random"):
        check_labels(labels_of([0, 1, 0, 1], ["train"] * 4), more)


def test_only_files_that_a_reader_reads_are_suggested(tmp_path: Path) -> None:
    csv(tmp_path, "text\na\n")
    (tmp_path / "myy.py").write_text("")
    with pytest.raises(CorpusError) as caught:
        Corpus.read(tmp_path / "myy.csv")
    assert caught.value.next_step == f"did you mean '{tmp_path / 'my.csv'}'?"
