"""Follow every link of a built site, without a network, and see that its pages load nothing from elsewhere.

    python scripts/check_links.py docs/_build/html

Ends with code 1 where a page, file or anchor that is linked does not exist, and where a page loads a script, style,
font or picture from another place. Links to other places are not followed; they are listed in external-links.txt
beside the folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
NOT_LOADED = {"canonical", "next", "prev", "search", "index", "alternate", "author"}  # kinds of <link> that only name
_ADDRESS = re.compile(r"^(?:[a-z][a-z0-9+.-]*:)?//", re.I)
_IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", re.I)
_IN_SCRIPT = re.compile(r"""(?:\bfrom\s*|\bimport\s*\(?\s*|\bfetch\(\s*|\bsrc\s*=\s*)["'](https?://[^"']+)""")


@dataclass
class Page(HTMLParser):
    """The links and anchors of one page.

    Attributes:
        links: what `href` and `src` hold, in the order of the page.
        loaded: those of them that a browser fetches by itself.
        anchors: every `id` and `name`.
        addresses: addresses in styles and scripts that stand in the page.
    """

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    addresses: list[str] = field(default_factory=list)
    _inside: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def read(cls, file: Path) -> Page:
        """Return what a file links to."""
        page = cls()
        page.feed(file.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the links and the anchors of a tag."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]
        names_only = tag == "link" and bool(NOT_LOADED & set(given.get("rel", "").lower().split()))
        if LOADED.get(tag) in given and not names_only:
            self.loaded.append(given[LOADED[tag]])
        self.addresses += _IN_STYLE.findall(given.get("style", ""))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_data(self, data: str) -> None:
        """Take the addresses of a style or script in the page."""
        if self._inside:
            self.addresses += (_IN_STYLE if self._inside == "style" else _IN_SCRIPT).findall(data)
        self._inside = ""


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        faults: dead links and loaded addresses, one sentence each.
        elsewhere: links that lead to other places.
        followed: how many links were followed.
        pages: how many pages there are.
    """

    faults: list[str]
    elsewhere: list[str]
    followed: int
    pages: int


def check(site: Path) -> Checked:
    """Follow the links of all pages of a folder."""
    site = site.resolve()
    files = [file for file in sorted(site.rglob("*.html")) if "_static" not in file.parts]  # templates of the theme
    pages = {file: Page.read(file) for file in files}
    faults, elsewhere, followed = [], set(), 0
    for file, page in pages.items():
        name = file.relative_to(site)
        faults += [f"{name} loads {link}" for link in page.loaded if _ADDRESS.match(link)]
        faults += [f"{name} loads {address}" for address in page.addresses]
        for link in page.links:
            if urlsplit(link).scheme or _ADDRESS.match(link):
                elsewhere.add(link)
            else:
                followed += 1
                faults += [f"{name}: {link} {fault}" for fault in _faults_of(link, file, site, pages)]
    for style in sorted(site.rglob("*.css")):
        found = _IN_STYLE.findall(style.read_text(encoding="utf-8"))
        faults += [f"{style.relative_to(site)} loads {address}" for address in found]
    return Checked(list(dict.fromkeys(faults)), sorted(elsewhere), followed, len(pages))


def _faults_of(link: str, file: Path, site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    parts = urlsplit(link)
    path = unquote(parts.path)
    target = file if not path else site / path[1:] if path.startswith("/") else file.parent / path
    target = target.resolve()
    if target.is_dir():
        target /= "index.html"
    if site not in target.parents:
        yield "leads out of the site"
    elif not target.is_file():
        yield "does not exist"
    elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        yield "has no such anchor"


def main() -> int:
    """Check the folder that is named, and say what was found."""
    if len(sys.argv) != 2 or not (site := Path(sys.argv[1])).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    found = check(site)
    site.with_name("external-links.txt").write_text("".join(f"{link}\n" for link in found.elsewhere), encoding="utf-8")
    for fault in found.faults:
        print(fault, file=sys.stderr)
    print(
        f"links: {found.followed} followed on {found.pages} pages, {len(found.faults)} faults, "
        f"{len(found.elsewhere)} elsewhere (not followed)"
    )
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
