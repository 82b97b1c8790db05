"""Draw docs/page.png: the head of the page that `probing quickstart` writes, in Chromium, 1,240 by 628 pixels.

    python scripts/make_page_picture.py [DIR]

DIR is a folder of `probing quickstart --to DIR`, whose page is written anew; without it the quickstart is run (a
minute). Needs playwright and a Chromium, as the tests of the page do.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from probing.jobs.study import Study
from probing.reporting import report

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "page.png"
WIDTH, HEIGHT = 1240, 628
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRAWN = """() => document.querySelector("section[aria-labelledby=overview] [data-chart]").dataset.drawn === "yes" """


def draw(page: Path, to: Path) -> None:
    """Write the picture of the top of a page, in light colours."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS)), None), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_function(DRAWN)
        tab.screenshot(path=to)
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if len(sys.argv) < 2:
            Study.from_yaml(ROOT / "datasets" / "reference" / "study.yaml").run(folder, progress=True)
        draw(report(folder, to=Path(temporary) / "report.html"), PICTURE)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
