"""What the use stage found is told whole: in the terminal, on the page, in figures, methods and papers."""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from probing import reporting
from probing.errors import ConfigError, InputError
from probing.reporting.charts import panel_chart
from probing.reporting.methods import keys_of
from probing.reporting.overview import entries, overview
from probing.reporting.page import Contents
from probing.reporting.plots import save_figures
from probing.reporting.use_panels import use_panels, uses
from probing.reporting.use_words import MARKS, SHORT, flags_said, in_full, use_bibtex, use_names, use_paragraph
from probing.reporting.wording import CEILING
from probing.results.patching import read_patching, write_patching
from probing.results.probe import json_lines
from probing.results.use import UseResult
from probing.use.patching.patching import PatchingResult
from probing.verdicts.verdict import UseRun, Word, write_use_run
from tests.reporting.test_reporting import HOSTILE, Page, page_of, upos_like
from tests.samples.page_samples import results_of
from tests.samples.use_report_samples import a_result, run_of


@pytest.fixture(scope="module")
def run() -> UseRun:
    return run_of(a_result())


def with_cells(result: UseResult, **changes: object) -> UseResult:
    return replace(result, cells=tuple(replace(cell, **changes) for cell in result.cells))  # type: ignore[arg-type]


def shapes() -> Iterator[tuple[str, UseRun]]:
    plain = a_result()
    one = replace(
        plain,
        cells=tuple(replace(c, position="") for c in plain.cells[:1]),
        decodability={plain.cells[0].site: plain.decodability[plain.cells[0].place]},
    )
    yield "two positions", run_of(plain)
    yield "one place", run_of(one)
    yield "long names", run_of(a_result(prefix="attn_out.1", task="feature:" + "Long" * 30, behaviour="b" * 90))
    yield "few matched", run_of(replace(plain, coverage=0.5))
    yield "miscalibrated", run_of(replace(plain, false_positives=(0.4, 0.2, 0.6, 20)))
    yield (
        "not decodable",
        run_of(replace(plain, decodability={k: replace(v, passes=False) for k, v in plain.decodability.items()})),
    )
    flagged = with_cells(
        plain,
        off_distribution=0.9,
        completeness=0.3,
        joint_over_largest=2.0,
        exceeds_low=0.5,
        frozen_low90=-0.01,
        frozen_high90=0.01,
        frozen_share=0.99,
        kl=0.2,
        flips=0.1,
    )
    yield "all flags", run_of(flagged)
    open_end = tuple(
        replace(
            c,
            subspace=replace(
                c.subspace, mediated_fraction=0.4, mediated_fraction_low=-math.inf, mediated_fraction_high=math.inf
            ),
        )
        for c in plain.cells
    )
    yield "unbounded", run_of(replace(plain, cells=open_end))
    yield "no doses, no others", run_of(with_cells(plain, dose_curve=(), comparisons={}))
    yield "real values", run_of(replace(plain, n_classes=0, stratified_by="propensity in 5"))
    yield "two behaviours", run_of(plain, a_result(behaviour="head"))
    yield "nothing", UseRun((), ())


SHAPES = dict(shapes())


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> UseRun:
    return SHAPES[request.param]


def printed(run: UseRun, width: int = 80) -> str:
    stream = io.StringIO()
    reporting.print_verdicts(run.verdicts, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


def test_the_terminal_table_fits_eighty_columns_and_has_a_row_for_each_place(shape: UseRun) -> None:
    screen = printed(shape)
    assert max([0, *map(len, screen.splitlines())]) <= 80
    rows = [re.sub(r" \([a-z,]+\)$", "", line.rstrip()) for line in screen.splitlines() if ": " not in line]
    longest_first = sorted(SHORT.values(), key=len, reverse=True)
    told = Counter(next((short for short in longest_first if row.endswith(f" {short}")), "") for row in rows)
    assert told - Counter({"": len(rows)}) == Counter(SHORT[v.word] for v in shape.verdicts)


def test_what_is_doubtful_says_why(shape: UseRun) -> None:
    screen = " ".join(printed(shape).split())
    for verdict in shape.verdicts:
        assert all(re.search(rf"\b{re.escape(flag)}\b", screen) for flag in verdict.flags)
        if verdict.word is Word.INCONCLUSIVE:
            why = verdict.reason.removeprefix("Inconclusive: ").split(" (")[0].rstrip(".")
            assert why in screen
    assert all(said for v in shape.verdicts for _, said in flags_said(v))


def test_numbers_of_the_terminal_are_those_of_the_cells(run: UseRun) -> None:
    for verdict in run.verdicts:
        assert verdict.evidence is not None
        edit = verdict.evidence.subspace
        wide = next(line for line in printed(run, 140).splitlines() if line.startswith(f"{verdict.place} "))
        numbers = [float(n.replace("−", "-")) for n in re.findall(r"[−]?\d*\.\d+", wide.removeprefix(verdict.place))]
        assert numbers[1:4] == pytest.approx(
            [edit.effect_size, edit.effect_size_low, edit.effect_size_high], abs=0.0051
        )


def test_other_interventions_stand_beside_with_their_draws(run: UseRun) -> None:
    screen = printed(run)
    assert len(re.findall(r"^other edits +leace +random_subspace$", screen, re.MULTILINE)) == 1
    for verdict in run.verdicts:
        assert verdict.evidence is not None
        change = verdict.evidence.comparisons["leace"]["change"]
        assert re.search(rf"^{re.escape(verdict.place)} +{change:.2f} +0\.02 \(0\.03\)$", screen, re.MULTILINE)
    assert "other edits" not in printed(SHAPES["no doses, no others"])


def test_the_page_with_use_is_well_formed_and_self_contained(shape: UseRun) -> None:
    for results in ([], upos_like()):
        content = page_of(results, use=shape)
        found = Page(content)
        assert "://" not in found.text + found.style
        assert not {"link", "img", "iframe"} & set(found.elements)
        assert not found.values("style")
        assert len(set(found.values("id"))) == len(found.values("id"))
        assert {value[1:] for value in found.values("href")} <= set(found.values("id"))


def test_each_verdict_is_one_item_that_ends_with_what_would_overturn_it(run: UseRun) -> None:
    content = html.unescape(page_of([], use=run).decode())
    told = {line.partition(": ")[0]: line for line in re.findall(r"<li>(resid.*?)</li>", content)}
    for verdict in run.verdicts:
        assert verdict.evidence is not None
        line = told[verdict.place]
        assert line.startswith(f"{verdict.place}: {in_full(verdict)}.")
        assert line.endswith(verdict.overturned_by)
        assert verdict.reason in line
        assert f"{verdict.evidence.subspace.effect_size:.2f}".replace("-0.00", "0.00").replace("-", "−") in line


def test_use_stands_in_the_section_of_its_task_beside_decodability(run: UseRun) -> None:
    content = page_of([*upos_like("xpos"), *upos_like()], use=run).decode()
    first, second = content.split('id="task-2"')
    assert "What edits did in next_token" in second
    assert "What edits did in next_token" not in first
    assert second.index("What probes read") < second.index("What edits did in next_token")


def test_one_line_says_what_is_used_where_and_agrees_with_the_verdicts(shape: UseRun) -> None:
    found = overview(entries((), uses(shape)))
    for row in found.rows:
        here = [cell.use[1] for cell in row.cells if cell.use is not None]
        assert ("used at" in row.use.split("together")[0]) == any(v.word is Word.USED_SUBSPACE for v in here)
        assert ("no material use found" in row.use) == any(v.word is Word.NO_MATERIAL_USE for v in here)
        assert ("inconclusive" in row.use) == any(v.word is Word.INCONCLUSIVE for v in here)


def words_of_a_page(content: bytes) -> str:
    """What a page says outside of its explanation of words and its drawings."""
    text = re.sub(
        r"(?s)<details id=.(reading|limits).*?</details>|<(svg|script|style)\b.*?</\2>", " ", content.decode()
    )
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def charts_of_a_page(content: bytes) -> str:
    return " ".join(html.unescape(one) for one in re.findall(r"<text\b[^>]*>(.*?)</text>", content.decode()))


@pytest.mark.parametrize("word", Word)
def test_decodable_has_one_sense_on_a_page(word: Word) -> None:
    plain = a_result(task="upos", model="tiny-gpt2")
    run = run_of(plain)
    one = replace(
        run.verdicts[0],
        word=word,
        decodability=replace(run.verdicts[0].decodability, passes=word is not Word.NOT_DECODABLE),
    )  # type: ignore[type-var]
    page = page_of([], use=UseRun(run.results, (one, *run.verdicts[1:])))
    assert SHORT[word] in charts_of_a_page(page) + words_of_a_page(page)
    for said in (words_of_a_page(page), charts_of_a_page(page), in_full(one), SHORT[word]):
        assert "decodab" not in said
        assert "(subspace)" not in said and "(site" not in said
    # Beside probes, every *decodable* is that of the criterion.
    both = page_of(upos_like(), use=UseRun(run.results, (one, *run.verdicts[1:])))
    words = words_of_a_page(both)
    assert "ecodable" in words
    for other_sense in ("not decodable", "decodable and used", "decodable, use", "decodable, no material"):
        assert other_sense not in words + charts_of_a_page(both)
    explained = html.unescape(re.findall(r"(?s)<details id=.reading.*?</details>", both.decode())[0])
    assert "<dt>Decodable</dt>" in explained and "<dt>Probes recover it</dt>" in explained


def test_a_ceiling_is_explained_where_it_stands() -> None:
    page = page_of([*upos_like(), *results_of("column:tense")]).decode()
    blocks = re.findall(r"(?s)<figure.*?</figure>", page)
    having = [
        block
        for block in blocks
        if "ceiling" in re.sub(r"(?s)<figcaption>.*?</figcaption>|aria-label=\"[^\"]*\"", "", block)
    ]
    assert len(having) >= 4
    for block in having:
        caption = html.unescape(" ".join(re.findall(r"(?s)<figcaption>(.*?)</figcaption>", block)))
        assert CEILING in caption, caption
    empty = [
        block for block in blocks if re.search(r"<th[^>]*>ceiling", block) and not re.search(r"0\.\d+|1\.0", block)
    ]
    assert not empty


def test_hostile_names_add_no_element_and_no_attribute() -> None:
    def parts(name: str) -> tuple[Counter[str], Counter[tuple[str, str]]]:
        result = a_result(task=name, behaviour=name, model=name)
        cells = tuple(
            replace(c, position=name if c.position == "end" else "query", comparisons={name: {name: 1.0}})
            for c in result.cells
        )
        known = {c.place: d for c, d in zip(cells, result.decodability.values(), strict=True)}
        hostile = replace(result, cells=cells, covariates=(name, name), decodability=known)
        return Page(page_of([], use=run_of(hostile))).made

    assert parts(HOSTILE) == parts("plain")


def test_points_lie_where_the_axis_says_and_the_band_covers_epsilon(run: UseRun) -> None:
    (use,) = uses(run)
    panel = next(p for p in use_panels(use) if p.title == "Use: effect of the edits")
    low, high = panel.y_range()
    chart = panel_chart(panel)
    assert chart["encoding"]["y"]["scale"]["domain"] == [low, high]
    (band,) = chart["layer"][0]["data"]["values"]
    assert band == {"low": pytest.approx(-0.1), "high": pytest.approx(0.1)}
    used = next(c for c in use.result.cells if c.place == "resid.3@query")
    row = next(r for r in chart["data"]["values"] if (r["at"], r["series"]) == ("resid.3", "query"))
    assert row["value"] == pytest.approx(used.subspace.effect_size, rel=1e-4)


def test_marks_tell_verdicts_apart_by_shape_and_the_legend_names_them(run: UseRun) -> None:
    assert len(set(MARKS.values())) == len(MARKS) == len(Word)
    (use,) = uses(run)
    words = {verdict.word for verdict in use.verdicts}
    assert len(words) > 1
    panel = next(p for p in use_panels(use) if p.title == "Use: effect of the edits")
    shapes = [
        layer["encoding"]["shape"]["scale"] for layer in panel_chart(panel)["layer"] if "shape" in layer["encoding"]
    ]
    assert set(shapes[0]["domain"]) == {SHORT[word] for word in words}
    filled = [
        layer["encoding"]["fill"]["scale"] for layer in panel_chart(panel)["layer"] if "fill" in layer["encoding"]
    ]
    looks = list(zip(shapes[0]["range"], filled[0]["range"], strict=True))
    assert len(set(looks)) == len(looks) == len(words)


def test_the_mediated_fraction_is_not_drawn_where_the_contrast_is_not_established() -> None:
    (use,) = uses(run_of(with_cells_without_mf(a_result())))
    titles = [panel.title for panel in use_panels(use)]
    assert "Use: mediated fraction" not in titles
    assert "Use: effect of the edits" in titles


def with_cells_without_mf(result: UseResult) -> UseResult:
    cells = tuple(
        replace(
            c,
            subspace=replace(
                c.subspace, mediated_fraction=None, mediated_fraction_low=None, mediated_fraction_high=None
            ),
        )
        for c in result.cells
    )
    return replace(result, cells=cells)


def test_doses_start_at_no_edit_and_mark_the_primary_one(run: UseRun) -> None:
    (use,) = uses(run)
    panel = use_panels(use)[-1]
    for curve in panel.curves:
        assert (curve.points[0].x, curve.points[0].value) == (0, 0.0)
        cell = next(c for c in use.result.cells if c.place == curve.name)
        marked = [p for p in curve.points if p.mark]
        assert [panel.sites[p.x] for p in marked] == [f"{cell.dose:g}"]
        assert marked[0].value == pytest.approx(cell.subspace.effect_size, rel=1e-6)


def test_a_folder_of_use_alone_or_beside_results_is_reported(tmp_path: Path, run: UseRun) -> None:
    write_use_run(run, tmp_path)
    alone = reporting.report(tmp_path).read_text()
    assert "upos: use" in alone and "in next_token" in alone
    assert sorted(p.suffix for p in (tmp_path / "figures").glob("use-*")) == [".pdf", ".svg"]
    (tmp_path / "results.jsonl").write_text(json_lines(upos_like()))
    figures = sorted((tmp_path / "figures").glob("use-*"))
    before = [path.read_bytes() for path in figures]
    assert b"What edits did in next_token" in reporting.report(tmp_path).read_bytes()
    assert [path.read_bytes() for path in figures] == before


def test_damaged_use_is_a_typed_error_and_leaves_the_old_page(tmp_path: Path, run: UseRun) -> None:
    write_use_run(run, tmp_path)
    old = b"old"
    (tmp_path / "report.html").write_bytes(old)
    (tmp_path / "use.jsonl").write_bytes((tmp_path / "use.jsonl").read_bytes()[:-30])
    with pytest.raises(InputError):
        reporting.report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    with pytest.raises(ConfigError):
        reporting.report(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["one place", "unbounded", "nothing"])
def test_figures_are_drawn_inside_their_folder(tmp_path: Path, name: str) -> None:
    paths = save_figures(Contents(uses=uses(SHAPES[name])), tmp_path / "figures")
    assert len(paths) == 2 * (len(SHAPES[name].results) + bool(SHAPES[name].results))
    assert all(path.parent == tmp_path / "figures" and path.stat().st_size > 1000 for path in paths)


def test_the_methods_paragraph_holds_the_numbers_and_the_papers_are_those_of_what_was_used() -> None:
    result = replace(
        a_result(),
        false_positives=(0.05, 0.0, 0.2, 20),
        stratified_by="propensity in 5",
        settings=a_result().settings | {"permutations": 99, "seed": 17},
    )
    text = use_paragraph(result)
    for told in (
        "3,000 rows",
        "resid.0 to resid.3",
        "query, end",
        "±0.1 SD",
        "99 times",
        "of 20 random properties",
        "propensity",
        "Benjamini-Hochberg",
        "leace",
        "Seed 17",
        "0.8",
    ):
        assert told in text, told
    names = use_names(result)
    assert {"geiger2021", "marks2023", "belrose2023", "rosenbaum1984", "phipson2010"} <= set(keys_of(names, always=()))
    assert "ravfogel2020" not in keys_of(names)
    entries = use_bibtex(result)
    assert entries.count("@") == len(keys_of(names, always=())) == entries.count("year = ")
    assert entries.count("{") == entries.count("}")
    plain = use_names(with_cells(a_result(), comparisons={}))
    assert {"belrose2023", "rosenbaum1984", "phipson2010"}.isdisjoint(keys_of(plain))


def a_patching() -> PatchingResult:
    effect = np.array([[0.5, np.nan], [1.0, -0.25]])
    return PatchingResult(("resid.0", "resid.1"), ("subject", "end"), effect, effect / 2, 12, "activation")


def test_patching_is_kept_beside_and_drawn(tmp_path: Path, run: UseRun) -> None:
    write_patching({"<tense>": a_patching()}, tmp_path)
    (found,) = read_patching(tmp_path).values()
    np.testing.assert_array_equal(found.effect, a_patching().effect)
    assert (found.sites, found.positions, found.n_pairs) == (("resid.0", "resid.1"), ("subject", "end"), 12)
    with_answers = replace(a_patching(), answers=(((3, " is"), (4, " was")), ((5, "are"),)))
    write_patching({"<tense>": a_patching(), "b": with_answers}, tmp_path / "other")
    told = json.loads((tmp_path / "other" / "patching.json").read_text())
    assert [one.answers for one in read_patching(tmp_path / "other").values()] == [(), with_answers.answers]
    del told["<tense>"]["answers"]  # as files were written before answers were recorded
    (tmp_path / "other" / "patching.json").write_text(json.dumps(told))
    assert [one.answers for one in read_patching(tmp_path / "other").values()] == [(), with_answers.answers]
    write_use_run(run, tmp_path)
    content = reporting.report(tmp_path).read_text()
    assert "<tense>" not in content
    assert "&lt;tense&gt;" in content
    assert "largest 0.500 at resid.1, subject" in content
    assert list((tmp_path / "figures").glob("map*.pdf"))
    assert read_patching(tmp_path / "figures") == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a": {}}',
        '{"a": 1, "a": 2}',
        '{"a": {"sites": ["s"], "positions": ["p"], "effect": [[1], [2]], '
        '"normalised": [[1]], "n_pairs": 1, "method": "m"}}',
        '{"a": {"sites": [1], "positions": ["p"], "effect": [[1]], "normalised": [[1]], "n_pairs": 1, "method": "m"}}',
        '{"a": {"sites": ["s"], "positions": ["p"], "effect": '
        '[["x"]], "normalised": [[1]], "n_pairs": 1, "method": "m"}}',
        *(
            '{"a": {"sites": ["s"], "positions": ["p"], "effect": [[1]], "normalised": [[1]], "n_pairs": 1, '
            '"method": "m", '
            f'"answers": {answers}}}}}'
            for answers in ("1", "[1]", "[[1]]", '[[["x", 1]]]', '[[[1, "x", 2]]]')
        ),
    ],
)
def test_patching_that_is_not_ours_is_refused_by_type(tmp_path: Path, text: str) -> None:
    (tmp_path / "patching.json").write_text(text)
    with pytest.raises(InputError):
        read_patching(tmp_path)
