"""What a comparison of a dictionary shows: the page, the terminal, figures and the command line answer in sentences."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from probing import reporting
from probing.cli.commands import app
from probing.reporting.features_sections import (
    AUROC_OF_ONE,
    UNSEEN,
    features_panel,
    latents_table,
    methods_table,
    name_of,
    print_features,
    sentences,
    used_sentences,
)
from probing.reporting.latent_words import OPTIMISTIC, OVER, edit_title, is_of, mediated, use_of_latents
from probing.reporting.use_panels import Use
from probing.reporting.use_sections import use_section
from probing.results.features import FeatureScores
from probing.verdicts.judging import judge
from tests.dictionaries.test_comparing import PLANTED, absorbed_scores, absorbed_store, compared, folded_store, scores
from tests.samples.basis_dictionaries import WIDTH, basis, both_ways, dictionary
from tests.samples.use_report_samples import a_result


@cache
def folded_scores() -> FeatureScores:
    return scores(folded_store(), dictionary(both_ways(basis())))


def test_the_first_sentence_answers_whether_the_dictionary_reads_the_property_better() -> None:
    yes, same = sentences(folded_scores())[0], sentences(absorbed_scores())[0]
    assert "read upos better than the plain probe at resid.0? Yes: AUROC on test is" in yes
    assert "? Not shown, neither better nor worse:" in same
    assert "the whole state" in yes and "48 latents" in yes


def test_further_sentences_tell_the_quiver_rule_the_latents_and_what_was_not_asked() -> None:
    said = " ".join(sentences(absorbed_scores()))
    assert "Quiver rule:" in said
    assert "Latent 5 is the best single one for T1" in said
    assert "Others fire where it does not (splitting or absorption): 9 on" in said
    assert "Does the model use these latents? Not asked yet" in said


def with_edits(**edits: dict[str, float]) -> Use:
    """Use at which latents were edited, by the options of each edit's recipe."""
    result = a_result()
    found = {f"latents:dictionary=/a/b,{options.replace('_', '|')}": numbers for options, numbers in edits.items()}
    cells = tuple(replace(cell, comparisons=found) for cell in result.cells)
    result = replace(result, cells=cells)
    return Use(result, tuple(judge([result])))


def edit(share: float, width: float = 0.02, **more: float) -> dict[str, float]:
    ends = {"share_of_swap_low": share - width / 2, "share_of_swap_high": share + width / 2}
    random = {"above_random_latents": 1.0, "above_random_directions": 1.0}
    return {"rank": 2.0, "change": 0.5, "along": -0.5, "share_of_swap": share} | ends | random | more


def of_site(site: str) -> FeatureScores:
    return FeatureScores(replace(absorbed_scores().result, site=site))


EDITS = {
    "latents=43_45": edit(0.62, 0.2),
    "latents=0_1": edit(0.01),
    "latents=7_8": edit(0.3, 0.8),
    "latents=5_6": edit(0.3, above_random_latents=0.5),
    "latents=2_3": edit(-0.3),
    "latents=9_10": edit(1.04),
    "top=2": edit(0.2) | {"latent_110": 1.0, "latent_11": 1.0, "latent_12": 0.33},
}


def test_the_answer_about_latents_names_them_and_is_theirs_alone() -> None:
    """Each edit has an answer of its own; the verdict on the property is the same for all, and stands apart."""
    use = with_edits(**EDITS)
    place = use.result.cells[-1]
    of_place = [one for one in used_sentences(of_site(place.site), [use]) if place.place in one]
    asked, apart = of_place[:-1], of_place[-1]
    assert len(asked) == len(EDITS) and len({one.partition("?")[0] for one in asked}) == len(EDITS)
    for sentence, name in zip(asked, ("43, 45", "0, 1", "7, 8", "5, 6", "2, 3", "9, 10", "11"), strict=True):
        assert "latents" in sentence.partition("?")[0] or name == "11"
        assert name in sentence.partition("?")[0] and "of b" in sentence.partition("?")[0]
    starts = [one.partition("? ")[2].split(" ")[0].rstrip(",.:") for one in asked]
    assert starts == ["Yes", "Hardly", "Not", "Not", "Not", "Yes", "Yes"]
    assert "2 latents reproduce 62 % [52, 72] of the class-mean swap's effect" in asked[0]
    assert "by 0.50 SD, further than 100 % of random latents and 100 % of random directions that move" in asked[0]
    assert "in more than 5 % of the draws" in asked[3] and "holds 0" in asked[2] and "the other way" in asked[4]
    assert [OVER in one for one in asked] == [False] * 5 + [True, False]
    assert "(latents 11, 110, in some of the three folds latent 12)" in asked[6]
    words = [verdict.word.value for verdict in use.verdicts]
    assert all(word not in one and "erdict" not in one for word in words for one in asked)
    assert apart.startswith(f"Apart from latents, the verdict on the property {use.result.task} at {place.place}: ")
    assert used_sentences(of_site(place.site), [use])[-1] == OPTIMISTIC
    assert used_sentences(of_site("elsewhere"), [use]) == []
    folds = str(use_section(use, "a", ()).folds)
    assert all(one.partition("?")[0] in folds for one in asked) and OPTIMISTIC in folds


def test_without_an_effect_of_the_swap_nothing_is_answered_and_random_ones_are_told_in_numbers() -> None:
    name = "latents:dictionary=/a/b,latents=3"
    cell = replace(a_result().cells[0], comparisons={name: {"rank": 1.0}})
    said = use_of_latents("h", name, cell)
    assert said.startswith("Does the model use latent 3 of b at h? Not answered. The swap of class means has no effect")
    beside = {f"random latents for {name}": {"along": 0.01, "along_high": 0.03}}
    cell = replace(cell, comparisons={name: edit(1.0, rank=1.0)} | beside)
    assert "1 latent reproduces" in mediated(name, cell)
    assert "100 % of random latents (0.01 SD in the median, 0.03 at the 95th percentile)" in mediated(name, cell)
    assert edit_title("latents:dictionary=/a/b,top=2") == "latents:dictionary=b,top=2"


@pytest.mark.parametrize("share", [-0.004, -0.0, 0.0, 0.004])
def test_a_share_that_rounds_to_nothing_has_no_sign(share: float) -> None:
    name = "latents:dictionary=/a/b,latents=3"
    cell = replace(a_result().cells[0], comparisons={name: edit(share, width=0.0, rank=1.0)})
    assert "1 latent reproduces 0 % [0, 0] of" in mediated(name, cell)


def test_latents_that_are_never_active_are_not_answered_by_shares() -> None:
    name = "latents:dictionary=/a/b,latents=3|4"
    for silent, is_asked in ((2.0, False), (1.0, True)):
        cell = replace(a_result().cells[0], comparisons={name: edit(0.0, rank=2.0, never_active=silent)})
        said = use_of_latents("h", name, cell)
        assert ("they are never active on these rows" in said) != is_asked and ("reproduce" in said) == is_asked


def test_an_edit_is_of_the_dictionary_that_it_names() -> None:
    recipe = "latents:dictionary=runs/one/dictionary,top=2"
    assert is_of(recipe, "/x/runs/one/dictionary") and is_of(recipe, "") and not is_of(recipe, "/x/two/dictionary")


def test_tables_have_a_row_for_each_method_and_each_latent() -> None:
    every = methods_table(absorbed_scores(), every_k=True)
    chosen = methods_table(absorbed_scores())
    assert len(every.rows) == len(absorbed_scores().methods)
    assert len(chosen.rows) == len(absorbed_scores().chosen)
    assert "selectivity" in chosen.head and len(chosen.head) == len(chosen.rows[0])
    latents = latents_table(absorbed_scores())
    assert [row[1] for row in latents.rows if row[0] == "T1"] == ["5", "9"]
    assert len(latents.head) == len(latents.rows[0])


def test_the_figure_has_a_curve_for_each_method_and_the_whole_state_as_a_level() -> None:
    panel = features_panel(absorbed_scores())
    methods = {one.method for one in absorbed_scores().methods if one.k is not None}
    assert len(panel.curves) == len(methods)
    assert panel.levels[0].points[0].value == absorbed_scores().chosen["dense"].test.value
    assert panel.sites == ("1", "2", "5", "16")


@pytest.mark.parametrize("details", [False, True])
def test_the_terminal_shows_sentences_and_a_table(details: bool) -> None:
    shown = io.StringIO()
    print_features([absorbed_scores()], Console(file=shown, width=80), details=details)
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


def test_scores_at_the_ceiling_and_no_better_than_random_are_called_no_gain() -> None:
    points = [
        replace(one, value=1.0, low=0.999, high=1.0) if one.quantity == "auroc" and one.x_name != "latent" else one
        for one in folded_scores().result.points
    ]
    said = " ".join(sentences(FeatureScores(replace(folded_scores().result, points=tuple(points)))))
    assert "cannot tell them apart" in said and UNSEEN in said
    assert "cannot tell them apart" not in " ".join(sentences(folded_scores()))
    for found in (folded_scores(), absorbed_scores()):
        above = found.chosen["dictionary"].above["random"]
        assert ("shows no gain of training" in " ".join(sentences(found))) == (not above.low > 0)


@pytest.mark.parametrize("rows", ["sentence:mean", "word:mean", "sentence:last", "piece"])
def test_means_of_states_are_warned_of(rows: str) -> None:
    provenance = dict(absorbed_scores().result.provenance) | {"rows": rows}
    said = " ".join(sentences(FeatureScores(replace(absorbed_scores().result, provenance=provenance))))
    assert ("means of the states of several tokens" in said) == rows.endswith(":mean")


def test_a_dictionary_has_one_name_and_no_number_says_nothing() -> None:
    assert name_of(absorbed_scores()).startswith("dictionary (") and "active per row" in name_of(absorbed_scores())
    table = latents_table(absorbed_scores())
    column = table.head.index("cosine with main")
    main, further = (row[column] for row in table.rows if row[0] == "T1")
    assert main == "–" and further != "–"
    said = " ".join(sentences(absorbed_scores()))
    assert "When the rows of dev are resampled" in said and AUROC_OF_ONE in said
