"""What a comparison of a dictionary shows: the page, the terminal, figures and the command line answer in sentences."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from probing import reporting
from probing.cli.commands import app
from probing.reporting.features_sections import (
    features_panel,
    latents_table,
    methods_table,
    print_features,
    sentences,
    used_sentences,
)
from probing.reporting.use_panels import Use
from probing.reporting.use_words import edit_title, mediated
from probing.results.features import FeatureScores
from probing.verdicts.judging import judge
from tests.dictionaries.test_comparing import ABSORBED_SCORES, PLANTED, absorbed_store, compared, folded_store, scores
from tests.samples.basis_dictionaries import WIDTH, basis, both_ways, dictionary
from tests.samples.use_report_samples import a_result

FOLDED = scores(folded_store(), dictionary(both_ways(basis())))


def test_the_first_sentence_answers_whether_the_dictionary_reads_the_property_better() -> None:
    yes, same = sentences(FOLDED)[0], sentences(ABSORBED_SCORES)[0]
    assert "read upos better than the plain probe at resid.0? Yes: AUROC on test is" in yes
    assert "? Not shown, neither better nor worse:" in same
    assert "the whole state" in yes and "48 latents" in yes


def test_further_sentences_tell_the_quiver_rule_the_latents_and_what_was_not_asked() -> None:
    said = " ".join(sentences(ABSORBED_SCORES))
    assert "Quiver rule:" in said
    assert "Latent 5 is the best single one for T1" in said
    assert "Others fire where it does not (splitting or absorption): 9 on" in said
    assert "Does the model use these latents? Not asked yet" in said


def with_edits(share: float | None) -> Use:
    result = a_result()
    numbers = {"rank": 2.0, "change": 0.5, "above_random_latents": 1.0}
    if share is not None:
        numbers |= {"share_of_swap": share, "share_of_swap_low": share - 0.1, "share_of_swap_high": share + 0.1}
    cells = tuple(replace(cell, comparisons={"latents:dictionary=/a/b,top=2": numbers}) for cell in result.cells)
    result = replace(result, cells=cells)
    return Use(result, tuple(judge([result])))


def of_site(site: str) -> FeatureScores:
    return FeatureScores(replace(ABSORBED_SCORES.result, site=site))


def test_results_of_edits_answer_whether_the_model_uses_the_latents() -> None:
    use = with_edits(0.62)
    place = use.result.cells[0]
    said = used_sentences(of_site(place.site), [use])[0]
    assert said.startswith(f"Does the model use these latents at {place.place}? Verdict: ")
    assert "2 latents reproduce 62 % [52, 72] of the class-mean swap's effect" in said
    assert "further than 100 % of random latents" in said
    assert used_sentences(of_site("elsewhere"), [use]) == []
    assert (
        "no effect of which 2 latents could mediate a part"
        in used_sentences(of_site(place.site), [with_edits(None)])[0]
    )
    assert edit_title("latents:dictionary=/a/b,top=2") == "latents:dictionary=b,top=2"
    assert "1 latent reproduces" in mediated(
        {"rank": 1, "share_of_swap": 1, "share_of_swap_low": 1, "share_of_swap_high": 1}
    )


def test_tables_have_a_row_for_each_method_and_each_latent() -> None:
    every = methods_table(ABSORBED_SCORES, every_k=True)
    chosen = methods_table(ABSORBED_SCORES)
    assert len(every.rows) == len(ABSORBED_SCORES.methods)
    assert len(chosen.rows) == len(ABSORBED_SCORES.chosen)
    assert "selectivity" in chosen.head and len(chosen.head) == len(chosen.rows[0])
    latents = latents_table(ABSORBED_SCORES)
    assert [row[1] for row in latents.rows if row[0] == "T1"] == ["5", "9"]
    assert len(latents.head) == len(latents.rows[0])


def test_the_figure_has_a_curve_for_each_method_and_the_whole_state_as_a_level() -> None:
    panel = features_panel(ABSORBED_SCORES)
    methods = {one.method for one in ABSORBED_SCORES.methods if one.k is not None}
    assert len(panel.curves) == len(methods)
    assert panel.levels[0].points[0].value == ABSORBED_SCORES.chosen["dense"].test.value
    assert panel.sites == ("1", "2", "5", "16")


@pytest.mark.parametrize("details", [False, True])
def test_the_terminal_shows_sentences_and_a_table(details: bool) -> None:
    shown = io.StringIO()
    print_features([ABSORBED_SCORES], Console(file=shown, width=80), details=details)
    text = shown.getvalue()
    assert "latents of the dictionary" in text and "Quiver rule" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert ("fires where" in text) == details


def test_the_page_and_its_figures_are_written(tmp_path: Path) -> None:
    compared(absorbed_store(), to=tmp_path)
    page = reporting.report(tmp_path).read_text(encoding="utf-8")
    assert "Does the dictionary" in page and "Latents of the dictionary" in page
    assert "Kantamneni" in page
    assert [file.name for file in (tmp_path / "figures").glob("*features*.svg")]


def test_the_command_line_takes_a_dictionary_and_refuses_one_that_does_not_fit(tmp_path: Path) -> None:
    PLANTED.save(tmp_path / "d")
    dictionary(both_ways(basis(64)), bias=0.0).save(tmp_path / "fits")
    store, corpus = str(tmp_path / "store"), ["--corpus", "probing:reference", "--quiet"]
    made = ["extract", "--model", "probing:reference", *corpus, "--sites", "resid.0", "--rows", "sentence:last"]
    assert CliRunner().invoke(app, [*made, "--to", store]).exit_code == 0
    given = ["train", store, *corpus, "--task", "column:tense", "--control", "shuffled_labels"]
    given += ["--to", str(tmp_path / "out"), "--features"]
    ended = CliRunner().invoke(app, [*given, str(tmp_path / "d")])
    assert ended.exit_code != 0 and f"states of width {WIDTH}" in ended.output
    ended = CliRunner().invoke(app, [*given, f"{tmp_path / 'fits'},k=1|4"])
    assert ended.exit_code == 0, ended.output
    assert "better than the plain probe" in " ".join(ended.output.split())
    assert (tmp_path / "out" / "features.parquet").is_file()
