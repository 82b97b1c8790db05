"""The link checker finds what is dead, and what a page would load from elsewhere, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT, module_at


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    return module_at(ROOT / "scripts" / "check_links.py")


GOOD = """<html><head><link rel="stylesheet" href="style.css"><link rel="canonical" href="https://example.org/a"></head>
<body id="top"><a href="b/c.html#here">c</a> <a href="#top">top</a> <a href="https://example.org/x">x</a>
<a href="b/">folder</a> <img src="data:image/png;base64,AAAA"> <a href="mailto:a@example.org">mail</a></body></html>"""


def site(folder: Path, index: str = GOOD, style: str = "") -> Path:
    built = folder / "html"
    (built / "b").mkdir(parents=True)
    (built / "index.html").write_text(index, encoding="utf-8")
    (built / "style.css").write_text(style, encoding="utf-8")
    (built / "b" / "c.html").write_text('<p id="here">c</p><a href="../index.html?q=1">up</a>', encoding="utf-8")
    (built / "b" / "index.html").write_text("<p>b</p>", encoding="utf-8")
    return built


def test_a_sound_site_has_no_faults(checker: ModuleType, tmp_path: Path) -> None:
    found = checker.check(site(tmp_path))
    assert found.faults == []
    assert (found.pages, found.followed) == (3, 5)
    assert "https://example.org/x" in found.elsewhere


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('<a href="gone.html">x</a>', "gone.html does not exist"),
        ('<a href="b/c.html#gone">x</a>', "#gone has no such anchor"),
        ('<a href="#gone">x</a>', "#gone has no such anchor"),
        ('<a href="../../outside.html">x</a>', "leads out of the site"),
        ('<img src="gone.png">', "gone.png does not exist"),
        ('<script src="https://cdn.example.org/a.js"></script>', "loads https://cdn.example.org/a.js"),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "loads //fonts.example.org/a.css"),
        ('<img src="https://badge.example.org/a.svg">', "loads https://badge.example.org/a.svg"),
        ('<script type="module">import x from "https://cdn.example.org/a"</script>', "loads https://cdn.example.org/a"),
        ("<style>@import 'https://fonts.example.org/a';</style>", "loads https://fonts.example.org/a"),
    ],
)
def test_a_fault_is_found(checker: ModuleType, tmp_path: Path, added: str, fault: str) -> None:
    (found,) = checker.check(site(tmp_path, GOOD.replace("</body>", f"{added}</body>"))).faults
    assert fault in found


def test_a_style_that_loads_a_font_is_found(checker: ModuleType, tmp_path: Path) -> None:
    style = "@font-face{src:url('https://fonts.example.org/a.woff2')} b{background:url(here.png)}"
    assert checker.check(site(tmp_path, style=style)).faults == ["style.css loads https://fonts.example.org/a.woff2"]
