"""Markup: elements built so that every text in them is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

from probing.errors import printable

_VOID = frozenset({"meta", "circle", "path", "line", "rect"})


class Markup(str):
    """Text that is markup already and is not escaped; all other text is escaped when it enters an element."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Return `text` with HTML characters escaped, unchanged if it is `Markup` already; control characters and marks
    that reverse the direction of text are shown as `\\x1b` and the like.
    """
    return text if isinstance(text, Markup) else Markup(html.escape(printable(str(text)), quote=True))


def join(parts: Iterable[object]) -> Markup:
    """Return all parts, one after another."""
    return Markup("".join(escape(part) for part in parts))


def el(name: str, attributes: Mapping[str, object] | None = None, *children: object) -> Markup:
    """Return one element: `el("td", {"class": "n"}, "<3")` is `<td class="n">&lt;3</td>`."""
    written = "".join(f' {key}="{escape(value)}"' for key, value in (attributes or {}).items() if value != "")
    if name in _VOID and not children:
        return Markup(f"<{name}{written}>" if name == "meta" else f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def table(
    caption: str, head: Iterable[object], rows: Iterable[Iterable[object]], css: str = "", *, marked: int | None = None
) -> Markup:
    """Return a caption and a table in a box that scrolls sideways; cells are texts, or `td` and `th` elements."""
    body = (
        el(
            "tr",
            {"class": "best" if number == marked else ""},
            *(_cell(cell, first=i == 0) for i, cell in enumerate(row)),
        )
        for number, row in enumerate(rows)
    )
    columns = el("thead", None, el("tr", None, *(el("th", {"scope": "col"}, name) for name in head)))
    whole = el("table", {"class": css, "aria-label": caption}, columns, el("tbody", None, *body))
    return join([el("p", {"class": "caption"}, caption), el("div", {"class": "scroll"}, whole)])


def _cell(cell: object, *, first: bool) -> Markup:
    if isinstance(cell, Markup) and cell.startswith(("<td", "<th")):
        return cell
    return el("th", {"scope": "row"}, cell) if first else el("td", None, cell)
