"""Pages in a browser: Chromium, a tab of a page, and what is asked of every page. Without a browser, tests skip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SYSTEM = ("chromium", "chromium-browser", "google-chrome")
NO_PLAYWRIGHT = "playwright is not installed: pip install 'playwright>=1.48'"
NO_BROWSER = f"no browser found as {', '.join(SYSTEM)}: install one of them, or run `playwright install chromium`"


_CONTEXTS: WeakKeyDictionary[Browser, dict[str, Any]] = WeakKeyDictionary()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason=NO_PLAYWRIGHT)
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, SYSTEM)), own if Path(own).is_file() else None)
        if found is None:
            pytest.skip(NO_BROWSER)
        started = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--process-per-site"]
        )
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1400, **options: Any) -> Iterator[Page]:
    """The page in a tab of its own, which asks for nothing but its file and says nothing."""
    known = _CONTEXTS.setdefault(browser, {})  # tabs of one context share a process, which has to be started
    context = known[key] if (key := repr(options)) in known else known.setdefault(key, browser.new_context(**options))
    tab, said, asked = context.new_page(), [], []
    tab.set_viewport_size({"width": width, "height": 900})
    tab.set_default_timeout(10_000)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url.partition("#")[0]))
    tab.goto(file.as_uri())
    yield tab
    assert said == []
    assert set(asked) == {file.as_uri()}
    tab.close()


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
  const found = [...document.body.querySelectorAll("*")].filter((node) =>
    node.getBoundingClientRect().right > wide + 1 && node.checkVisibility() && !inside(node.parentElement));
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
