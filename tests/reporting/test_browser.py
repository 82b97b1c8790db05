"""The page in a browser: quiet, readable at every width, with numbers under the pointer, and whole without a script.

Chromium draws it. Where there is none these tests skip, and say what to install.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from probing import reporting
from probing.errors import printable
from probing.jobs.study import Study
from probing.reporting.overview import overview
from probing.reporting.page import MAX_BYTES, rendered
from probing.reporting.wording import decimal
from tests.conftest import some
from tests.samples import page_samples as samples

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SYSTEM = ("chromium", "chromium-browser", "google-chrome")
NO_PLAYWRIGHT = "playwright is not installed: pip install 'playwright>=1.48'"
NO_BROWSER = f"no browser found as {', '.join(SYSTEM)}: install one of them, or run `playwright install chromium`"
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
    "many": samples.many,
}
WIDTHS = (390, 800, 1000, 1400, 1800)
PAPER = 718  # pixels between the margins of a sheet of A4


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason=NO_PLAYWRIGHT)
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, SYSTEM)), own if Path(own).is_file() else None)
        if found is None:
            pytest.skip(NO_BROWSER)
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes each page once."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.is_file():
            path.write_bytes(rendered(PAGES[name]()))
        return path

    return write


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1400, **options: Any) -> Iterator[Page]:
    """The page in a tab of its own, which asks for nothing but its file and says nothing."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    tab, said, asked = context.new_page(), [], []
    tab.set_default_timeout(10_000)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url.partition("#")[0]))
    tab.goto(file.as_uri())
    yield tab
    assert said == []
    assert set(asked) == {file.as_uri()}
    context.close()


def draw(tab: Page, most: int = 100) -> None:
    """Open what is folded and show the first charts, each of which is then drawn."""
    tab.evaluate(
        """async (most) => {
          if (most > 50) document.querySelectorAll("details").forEach((one) => { one.open = true; });
          const shown = [...document.querySelectorAll("[data-chart]")].filter((node) => node.checkVisibility());
          for (const node of shown.slice(0, most)) {
            node.scrollIntoView();
            for (let wait = 0; wait < 500 && !node.dataset.drawn; wait++) await new Promise((go) => setTimeout(go, 10));
            if (!node.dataset.drawn) throw Error(`chart ${node.dataset.chart} is not drawn`);
          }
          scrollTo(0, 0);
        }""",
        most,
    )


OVERFLOWING = """() => {
  const wide = document.documentElement.clientWidth, inside = (node) => node.closest(".scroll, .chart, pre, .skip");
  const found = [...document.body.querySelectorAll("*")].filter((node) => node.checkVisibility()
    && node.getBoundingClientRect().right > wide + 1 && !inside(node.parentElement));
  return document.documentElement.scrollWidth > wide || found.length
    ? [document.documentElement.scrollWidth, ...found.slice(0, 5).map((node) => node.outerHTML.slice(0, 120))] : [];
}"""
# Every text of a chart that its drawing cuts, that was cut at its end, or that is drawn too small; and every legend,
# title or name of a row that a reader would have to scroll to.
CUT_NAMES = """() => {
  const found = [];
  for (const svg of [...document.querySelectorAll(".chart svg")].filter((one) => one.checkVisibility())) {
    const whole = svg.getBoundingClientRect(), shown = svg.closest(".chart").getBoundingClientRect();
    const scale = whole.width / svg.viewBox.baseVal.width;
    if (scale < 0.85) found.push(["small", scale]);
    const place = (text) => text.getAttribute("transform").match(/translate\\(([^,]+),([^)]+)/)[1];
    const rows = new Set([...svg.querySelectorAll(".role-axis")].flatMap((axis) => {
      const labels = [...axis.querySelectorAll(".role-axis-label text")];
      return new Set(labels.map(place)).size === 1 && labels.length > 1 ? labels : [];
    }));
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect(), said = text.textContent;
      const room = getComputedStyle(svg).overflow === "visible" ? Math.max(whole.right, shown.right) : whole.right;
      if (box.left < whole.left - 1 || box.right > room + 1 || box.top < whole.top - 1
        || box.bottom > whole.bottom + 1) found.push(["outside", said]);
      if (said.endsWith("…")) found.push(["ends", said]);
      if ((rows.has(text) || text.closest(".role-legend, .role-title")) && box.right > shown.right + 1)
        found.push(["beyond", said, box.right - shown.right]);
    }
  }
  return found.slice(0, 8);
}"""
# Every visible text whose colour is too near to what lies behind it: boxes, and of a chart the rectangles drawn before.
FAINT = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => a * c + (1 - a) * under[i]);
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, two) => {
    const [a, b] = [light(one), light(two)]; return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const once = (of) => { const known = new Map(); return (node) => {
    if (!known.has(node)) known.set(node, of(node));
    return known.get(node); }; };
  const opacity = once((node) => node ? Number(getComputedStyle(node).opacity) * opacity(node.parentElement) : 1);
  const behind = once((node) => node
    ? over(parse(getComputedStyle(node).backgroundColor), behind(node.parentElement)) : [255, 255, 255]);
  const page = parse(getComputedStyle(document.body).backgroundColor);
  const rectangles = new Map();
  const drawn = (text) => {
    const svg = text.ownerSVGElement, box = text.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    if (!rectangles.has(svg)) rectangles.set(svg, [...svg.querySelectorAll(".mark-rect path")].map((path) =>
      [path.getBoundingClientRect(), path]));
    let under = behind(svg);
    for (const [own, path] of rectangles.get(svg)) {
      const style = getComputedStyle(path), inside = own.left <= x && x <= own.right && own.top <= y && y <= own.bottom;
      if (!inside || style.fill === "none") continue;
      const [r, g, b, a] = parse(style.fill);
      under = over([r, g, b, a * Number(style.fillOpacity) * opacity(path)], under);
    }
    return under;
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement, text = node.textContent.trim();
    if (!text || parent.closest("script, .skip") || !parent.checkVisibility({ visibilityProperty: true })) continue;
    const inChart = parent.closest("svg"), style = getComputedStyle(parent);
    const [r, g, b, a] = parse(inChart ? style.fill : style.color);
    const under = inChart ? drawn(parent) : behind(parent);
    const share = a * opacity(parent) * (inChart ? Number(style.fillOpacity) : 1);
    const measured = ratio(over([r, g, b, share], under), under);
    if (measured < 4.5) found.push([text.slice(0, 40), measured.toFixed(2), String(under.map(Math.round))]);
  }
  return [ratio(parse("rgb(119, 119, 119)"), [255, 255, 255]).toFixed(2), page[3], found.slice(0, 8)];
}"""


@pytest.mark.parametrize("name", some(PAGES, len(PAGES) - 1))  # the last takes a minute
def test_a_page_is_quiet_fits_and_can_be_read(browser: Browser, file_of: Callable[[str], Path], name: str) -> None:
    file = file_of(name)
    assert file.stat().st_size < MAX_BYTES
    with opened(browser, file) as tab:
        draw(tab, 3 if name == "many" else 100)
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for width in WIDTHS:
                tab.set_viewport_size({"width": width, "height": 900})
                assert tab.evaluate(OVERFLOWING) == [], (scheme, width)
                assert tab.evaluate(CUT_NAMES) == [], (scheme, width)
            known, is_opaque, faint = tab.evaluate(FAINT)
            assert (known, is_opaque, faint) == ("4.48", 1, []), scheme


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


@pytest.mark.slow
def test_the_quickstarts_page_is_short_small_and_quiet(browser: Browser, reference: Path, tmp_path: Path) -> None:
    Study.from_yaml(reference / "study.yaml").run(tmp_path, progress=False)
    file = reporting.report(tmp_path)
    assert file.stat().st_size < MAX_BYTES
    with opened(browser, file) as tab:
        assert len(tab.locator("body").inner_text().split()) <= 2500
        draw(tab)
        assert tab.evaluate(OVERFLOWING) == []
        assert tab.evaluate(FAINT)[2] == []


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
