"""How long a large page takes to write and to open in Chromium, and its size.

    python scripts/bench_page.py [--sites 200] [--properties 10] [--models 3] [--repeats 3]

Figures to reach: less than 3 MB, and the overview painted within 2 s of the start of loading. Opening is told thrice:
`words`, when the first text stands, which is the heading and the overview's lines; `load`, when the whole document is
read and its script has run; and `grid`, the first frame after the overview's grid is drawn by that script. Without a
browser only the writing is told. The best of the repeats; writing is done once, and the figures for papers, which
`probing report` puts beside the page, are left out.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from probing.reporting.page import rendered
from tests.samples.page_samples import many

PAINTED = """() => new Promise((done) => {
  const look = () => document.querySelector("[data-chart][data-drawn] svg .mark-rect path")
    ? requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0)) : requestAnimationFrame(look);
  look();
})"""
LOADED = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"


WORDS = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"


def opened(browser: Any, file: Path) -> list[float]:
    """Seconds from the start of loading to the first words, the load event and the overview's grid."""
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.goto(file.as_uri())
    grid = tab.evaluate(PAINTED)  # which waits for it
    found = [tab.evaluate(WORDS), tab.evaluate(LOADED), grid]
    tab.close()
    return [milliseconds / 1000 for milliseconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("sites", 200), ("properties", 10), ("models", 3), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    contents = many(given.sites, given.properties, given.models)
    begin = time.perf_counter()
    document = rendered(contents)
    print(f"{given.sites} sites, {given.properties} properties, {given.models} models")
    print(f"written in {time.perf_counter() - begin:.1f} s, {len(document) / 1e6:.2f} MB")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("not opened: pip install playwright")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        file.write_bytes(document)
        system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        times = [opened(browser, file) for _ in range(given.repeats)]
        browser.close()
    words, load, grid = map(min, zip(*times, strict=True))
    print(f"words {words:.2f} s, load {load:.2f} s, grid {grid:.2f} s")


if __name__ == "__main__":
    main()
