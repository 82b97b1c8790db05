"""The page in a browser: quiet, readable at every width, with numbers under the pointer, and whole without a script.

Chromium draws it. Where there is none these tests skip, and say what to install.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from probing import reporting
from probing.errors import printable
from probing.reporting.overview import overview
from probing.reporting.page import MAX_BYTES, Contents, rendered
from probing.reporting.wording import decimal
from tests.conftest import some
from tests.samples import page_samples as samples
from tests.samples import page_samples_of_looks as looks
from tests.samples import page_samples_of_parts as parts
from tests.samples.browsing import CUT_NAMES, FAINT, OVERFLOWING, chromium, draw, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PAGES: dict[str, Callable[[], Any]] = {
    "study": samples.study,
    "several models": samples.several_models,
    "use alone": samples.use_alone,
    "patching and transfer": samples.maps,
    "checkpoints": samples.checkpoints,
    "hostile names": samples.hostile,
    "an older version": samples.of_an_older_version,
    "names of every kind": samples.names_of_every_kind,
    "one site": samples.one_site,
    "500 labels": samples.many_labels,
    "other streams": samples.two_sites_of_other_streams,
    "lenses and prompts": looks.lenses,
    "similarity": looks.similarities,
    "inspection": looks.inspection,
    "dictionary": parts.dictionary,
    "circuit": parts.circuit,
    "many": samples.many,
}
WIDTHS = (390, 800, 1000, 1400, 1800)
PAPER = 718  # pixels between the margins of a sheet of A4


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes each page once."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.is_file():
            made = PAGES[name]()
            path.write_bytes(made if isinstance(made, bytes) else rendered(made))
        return path

    return write


def test_a_page_of_every_kind_of_result_is_drawn() -> None:
    made = [one for name, make in PAGES.items() if name != "many" and isinstance(one := make(), Contents)]
    assert [kind.name for kind in fields(Contents) if not any(getattr(one, kind.name) for one in made)] == []


@pytest.mark.parametrize("name", some(PAGES, len(PAGES) - 1))  # the last takes a minute
def test_a_page_is_quiet_fits_and_can_be_read(browser: Browser, file_of: Callable[[str], Path], name: str) -> None:
    file = file_of(name)
    assert file.stat().st_size < MAX_BYTES
    with opened(browser, file) as tab:
        draw(tab, 3 if name == "many" else 100)
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                assert tab.evaluate(OVERFLOWING) == [], (scheme, width)
                assert tab.evaluate(CUT_NAMES) == [], (scheme, width)
                if width == WIDTHS[-1]:
                    known, is_opaque, faint = tab.evaluate(FAINT)
                    assert (known, is_opaque, faint) == ("4.48", 1, []), scheme


def test_the_dark_page_is_the_light_one_in_other_colours() -> None:
    style = (Path(reporting.__file__).parent / "templates" / "page.css").read_text("utf-8")
    blocks = re.findall(r"@media[^{]*prefers-color-scheme[^{]*\{((?:[^{}]*\{[^{}]*\})*)", style)
    rules = [rule for block in blocks for rule in re.findall(r"\{([^{}]*)\}", block)]
    names = {part.split(":")[0].strip() for rule in rules for part in rule.split(";") if part.strip()}
    assert len(blocks) == style.count("prefers-color-scheme") == 3
    assert {name for name in names if not name.startswith("--")} == {"fill", "filter", "stroke"}
    variables = {name for name in names if name.startswith("--")}
    of_colours = r"(?:color|background|border|border-[a-z]+|fill|stroke|outline|outline-color)"
    uses = re.findall(r"([a-z-]+):[^;{}]*var\((--[a-z]+)\)", style)
    assert variables and all(re.fullmatch(of_colours, name) for name, variable in uses if variable in variables)


@pytest.mark.parametrize("name", ["study", "hostile names", "names of every kind", "patching and transfer"])
def test_without_a_script_no_name_is_cut_and_each_stands_whole_in_words(
    browser: Browser, file_of: Callable[[str], Path], name: str
) -> None:
    with opened(browser, file_of(name), java_script_enabled=False) as tab:
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate(CUT_NAMES) == [], width
        contents = PAGES[name]()
        words = " ".join(tab.evaluate(WORDS).split())
        for row in overview(contents.entries()).rows:
            assert " ".join(printable(row.name).split()) in words
        for drawn in contents.patching:
            assert all(" ".join(printable(one).split()) in words for one in (*drawn.rows, *drawn.columns))


def test_a_chart_as_wide_as_its_columns_is_scrolled_only_where_it_is_wide(
    browser: Browser, file_of: Callable[[str], Path]
) -> None:
    """A prompt of eleven tokens is wider than a narrow screen, one of a token is not."""
    with opened(browser, file_of("lenses and prompts"), 390) as tab:
        draw(tab)
        charts = tab.locator(".chart:has(.mark-rect.role-mark):has-text('most probable token')")
        wide = charts.evaluate_all("(all) => all.map((one) => [one.classList.contains('wide'), one.tabIndex === 0])")
        assert wide == [[True, True], [False, False]] * 2
        assert charts.first.evaluate("(one) => one.scrollWidth > one.clientWidth")


def test_a_hint_fits_a_narrow_screen(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("names of every kind"), 390) as tab:
        grid = tab.locator("section[aria-labelledby=overview] [data-chart][data-drawn]").first
        cells = grid.locator(".mark-rect").first.locator("path")
        cells.first.wait_for()
        for place in (0, 2):
            point_at(tab, cells.nth(place))
            assert told(tab)
            box = tab.locator("#vg-tooltip-element").bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390


def point_at(tab: Page, shape: Locator) -> None:
    """Move the pointer to the middle of a shape."""
    shape.evaluate("(node) => node.scrollIntoView({ block: 'center' })")
    box = shape.bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + box["width"] / 2 - 3, box["y"] + box["height"] / 2 - 3)
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def told(tab: Page) -> str:
    """Text under the pointer."""
    hint = tab.locator("#vg-tooltip-element.visible")
    hint.wait_for()
    assert hint.evaluate("(node) => node.scrollWidth <= node.clientWidth")
    return " ".join(hint.inner_text().split())


def no_gap(text: str) -> bool:
    return not re.search("undefined|null|NaN", text)


def column(table: Locator, index: int) -> list[str]:
    return [cell.strip() for cell in table.locator(f"tbody tr > :nth-child({index + 1})").all_inner_texts()]


def test_the_pointer_shows_numbers_and_a_click_goes_to_the_section(
    browser: Browser, file_of: Callable[[str], Path]
) -> None:
    contents = samples.study()
    with opened(browser, file_of("study")) as tab:
        grid = tab.locator("section[aria-labelledby=overview] [data-chart][data-drawn]")
        cells = grid.locator(".mark-rect").first.locator("path")
        cells.first.wait_for()
        assert cells.count() == sum(len(row.cells) for row in overview(contents.entries()).rows)
        point_at(tab, cells.nth(7))  # the second property at its second site
        best = contents.tasks[1].best()
        assert best is not None
        shown = contents.tasks[1].at("resid.1", best.probe)
        assert shown is not None
        score = next(m for m in shown.measures if (m.measure, m.split) == ("accuracy", "test")).score
        text = told(tab)
        for number in (score.value, score.low, score.high):
            assert decimal(number) in text and no_gap(text), text
        assert "resid.1" in text and "column:subject_number" in text
        tab.mouse.down()
        tab.mouse.up()
        tab.wait_for_url("**#task-2")
        assert abs(tab.locator("#task-2").bounding_box()["y"]) < 100  # type: ignore[index]
        curves = tab.locator("section[aria-labelledby=task-2] [data-chart][data-drawn]").first
        points = curves.locator("g.mark-symbol.role-mark").last.locator("path")
        points.first.wait_for()
        point_at(tab, points.nth(2))
        text = told(tab)
        assert re.search(r"site resid\.2 .*value 0\.\d{3}", text) and no_gap(text), text


@pytest.mark.parametrize("name", ["study", "use alone", "hostile names", "names of every kind", "several models"])
def test_every_cell_of_the_overview_is_seen(browser: Browser, file_of: Callable[[str], Path], name: str) -> None:
    rows = overview(PAGES[name]().entries()).rows
    with opened(browser, file_of(name), color_scheme="dark", java_script_enabled=False) as tab:
        cells = tab.locator("section[aria-labelledby=overview] [data-chart]").evaluate_all(
            """(all) => all.flatMap((one) => [...one.querySelectorAll(".mark-rect.role-mark path")]
                 .map((cell) => getComputedStyle(cell)).filter((style) => style.fillOpacity !== "0")
                 .map((style) => style.fill))"""
        )
    assert len(cells) == sum(len(row.cells) for row in rows)
    grey = sum(cell.value is None for row in rows for cell in row.cells)
    assert "none" not in cells and sum(fill == "rgb(213, 218, 223)" for fill in cells) == grey


def test_a_click_on_a_legend_fades_the_other_curves(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("study")) as tab:
        chart = tab.locator("section[aria-labelledby=task-1] [data-chart]").first
        chart.scroll_into_view_if_needed()
        chart.locator(".mark-line path").first.wait_for()

        def faint() -> list[bool]:
            return chart.locator(".mark-line path").evaluate_all(
                "(all) => all.map((one) => +(one.getAttribute('opacity') ?? 1) < 0.5)"
            )

        tab.wait_for_function("(node) => node.dataset.drawn", arg=chart.element_handle())
        assert not any(faint())
        chart.locator(".role-legend-label text", has_text="control").click()
        tab.wait_for_function(
            "(node) => node.querySelector('.mark-line path[opacity=\"0.12\"]')", arg=chart.element_handle()
        )
        assert sum(not is_faint for is_faint in faint()) == 1 < len(faint())


def test_the_filter_hides_rows_grids_and_sections_of_a_model(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("several models")) as tab:
        boxes = tab.locator(".filter input")
        assert boxes.count() == 3

        def seen() -> dict[str, int]:
            parts = {
                "rows": ".lines > div",
                "grids": "section[aria-labelledby=overview] .charts",
                "sections": "section[data-models]",
            }
            return {name: tab.locator(f"{at} >> visible=true").count() for name, at in parts.items()}

        assert seen() == {"rows": 7, "grids": 3, "sections": 6}
        boxes.nth(1).uncheck()
        assert seen() == {"rows": 5, "grids": 2, "sections": 4}
        assert "untrained" not in tab.locator(".lines").inner_text()
        boxes.nth(0).uncheck()
        boxes.nth(2).uncheck()
        assert seen() == {"rows": 0, "grids": 0, "sections": 0}
        boxes.nth(1).check()
        assert seen() == {"rows": 2, "grids": 1, "sections": 2}


def test_a_heading_sorts_numbers_as_numbers_and_says_so(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("study")) as tab:
        table = tab.locator("section[aria-labelledby=task-1] table").first
        heads = table.locator("thead th")
        names = heads.all_inner_texts()
        before = column(table, 0)
        for name, is_number in (("selectivity", True), ("gain over baseline", True), ("site", False)):
            index = next(i for i, text in enumerate(names) if text.strip().startswith(name))
            for order in ("descending", "ascending"):
                heads.nth(index).locator("button").click()
                assert heads.nth(index).get_attribute("aria-sort") == order
                assert table.locator("[aria-sort]").count() == 1
                found: list[Any] = [text.split()[0].replace("−", "-") for text in column(table, index)]
                if is_number:
                    missing = [i for i, text in enumerate(found) if text == "–"]
                    assert missing == list(range(len(found) - len(missing), len(found))), (name, order)
                    found = [float(text) for text in found if text != "–"]
                assert found == sorted(found, reverse=order == "descending"), (name, order)
        assert sorted(column(table, 0)) == sorted(before)


def test_links_open_what_is_folded_and_all_is_reached_by_keys(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("one site")) as tab:
        reached: dict[str, int] = {}
        for _ in range(60):
            tab.keyboard.press("Tab")
            name = tab.evaluate("document.activeElement.tagName + (document.activeElement.getAttribute('role') || '')")
            reached[name] = reached.get(name, 0) + 1
            if reached.get("SUMMARY", 0) == 2:
                break
        assert {"A", "DIVregion", "BUTTON", "SUMMARY"} <= set(reached)
        fold = tab.locator("details").nth(1)
        assert fold.get_attribute("open") is None
        tab.keyboard.press("Enter")
        assert fold.get_attribute("open") is not None
        button = tab.locator("thead th button").first
        button.focus()
        assert button.evaluate("(node) => getComputedStyle(node).outlineStyle") != "none"
        tab.keyboard.press("Enter")
        assert tab.locator("thead th").first.get_attribute("aria-sort") is not None
        tab.evaluate("location.hash = '#limits'")
        tab.wait_for_function("document.getElementById('limits').open")


def specs_of(file: Path) -> list[dict[str, Any]]:
    """The charts that a page holds."""
    packed = re.findall(r'<script type="application/json" id="charts">([^<]*)<', file.read_text("utf-8"))[0]
    return list(json.loads(gzip.decompress(base64.b64decode(packed))))


def values_of(spec: dict[str, Any]) -> set[float]:
    """Values and ends of intervals that a chart draws."""
    rows = [
        *spec["data"]["values"],
        *(row for layer in spec["layer"] for row in layer.get("data", {}).get("values", [])),
    ]
    return {
        row[key]
        for row in rows
        if "series" in row or "ink" in row
        for key in ("value", "low", "high")
        if row.get(key) is not None
    }


@pytest.mark.parametrize(
    "name", ["study", "use alone", "patching and transfer", "checkpoints", "an older version", "hostile names"]
)
def test_figures_have_words_and_their_numbers_stand_in_the_tables(
    browser: Browser, file_of: Callable[[str], Path], name: str
) -> None:
    specs = specs_of(file_of(name))
    with opened(browser, file_of(name)) as tab:
        labels = tab.locator(".charts").evaluate_all(
            "(all) => all.map((one) => [one.getAttribute('role'), one.ariaLabel])"
        )
        assert labels and all(role == "img" and len(label) > 10 for role, label in labels)
        assert tab.locator("figure:has(.charts)").count() == len(labels)
        for section in tab.locator("section[aria-labelledby]:not([aria-labelledby=overview])").all():
            text = section.evaluate("(node) => [...node.querySelectorAll('table')].map((t) => t.textContent).join(' ')")
            for number in section.locator(":scope > figure [data-chart]").evaluate_all(
                "(all) => all.map((n) => +n.dataset.chart)"
            ):
                missing = {
                    value
                    for value in values_of(specs[number])
                    if not {decimal(value), decimal(value, 2)} & set(re.findall(r"−?\d+\.\d+", text))
                }
                assert not missing, (section.get_attribute("aria-labelledby"), specs[number]["title"])


WORDS = """() => {
  const whole = document.querySelector("main").cloneNode(true);
  whole.querySelectorAll("[data-chart], .filter").forEach((one) => one.remove());
  return whole.textContent.split(/\\s+/).join(" ");
}"""
DRAWN = """() => [...document.querySelectorAll("[data-chart] svg")].map((one) =>
  [...one.querySelectorAll("text")].map((text) => text.textContent)
    .filter((text) => /^[−\\d.,]+$/.test(text)).sort())"""


@pytest.mark.parametrize("name", ["study", "several models", "patching and transfer", "hostile names"])
def test_without_a_script_every_figure_is_drawn_and_every_word_stands(
    browser: Browser, file_of: Callable[[str], Path], name: str
) -> None:
    file = file_of(name)
    with opened(browser, file, java_script_enabled=False) as tab:
        assert tab.locator("[data-chart]").count() == tab.locator("[data-chart] > svg").count() == len(specs_of(file))
        links = tab.locator("[href]").evaluate_all("(all) => all.map((one) => one.getAttribute('href'))")
        links += re.findall(r'xlink:href="([^"]*)"', file.read_text("utf-8"))
        assert {link[:1] for link in links} <= {"#"}
        assert not tab.locator(".filter").is_visible()
        words, drawn = tab.evaluate(WORDS), tab.evaluate(DRAWN)
    with opened(browser, file) as tab:
        assert tab.evaluate(WORDS) == words
        draw(tab)
        assert tab.evaluate(DRAWN) == drawn


@pytest.mark.parametrize("name", ["study", "several models", "patching and transfer", "hostile names", "500 labels"])
def test_nothing_is_cut_on_paper(browser: Browser, file_of: Callable[[str], Path], name: str) -> None:
    with opened(browser, file_of(name), PAPER) as tab:
        draw(tab, 4)
        assert tab.pdf(format="A4").startswith(b"%PDF")
        assert tab.locator("details:not([open])").count() == 0
        tab.emulate_media(media="print")
        assert tab.evaluate(OVERFLOWING) == []
        assert tab.evaluate(CUT) == []


CUT = """() => [...document.querySelectorAll(".scroll, .chart, pre")]
  .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1)
  .map((one) => [one.scrollWidth, one.clientWidth, one.textContent.slice(0, 60)])"""


def test_a_page_as_the_quickstarts_is_short(browser: Browser, file_of: Callable[[str], Path]) -> None:
    with opened(browser, file_of("study")) as tab:
        assert len(tab.locator("body").inner_text().split()) <= 2500


def test_figures_that_are_left_out_of_a_large_page_are_drawn_by_its_script(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probing.reporting.page.MAX_BYTES", 1_200_000)
    file = tmp_path / "page.html"
    file.write_bytes(rendered(samples.several_models()))
    assert file.stat().st_size < 1_200_000
    with opened(browser, file) as tab:
        waiting = tab.locator("[data-chart]:has(> p) >> visible=true").last
        number = waiting.get_attribute("data-chart")
        waiting.scroll_into_view_if_needed()
        tab.locator(f"[data-chart='{number}'] > svg").wait_for()
