"""Completes Vega-Lite specifications and draws them as SVG, PDF or Altair objects."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from probing.errors import BadParameter, MachineError, printable
from probing.files.whole_files import write_atomically
from probing.reporting.charts import Chart
from probing.reporting.names import lines_of
from probing.system.machine import with_typed_errors

_CONFIG: Chart = {
    "font": "system-ui, Segoe UI, Helvetica, Arial, sans-serif",
    "background": "transparent",
    "aria": False,
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "gridOpacity": 0.6},
    "title": {"fontSize": 12.5, "fontWeight": 600, "subtitleFontSize": 11, "anchor": "start", "frame": "bounds"},
    "legend": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titleLimit": 0,
        "symbolOpacity": 1,
    },
}
_TITLE_ROOM, _MOST_LINES = {"text": 25.0, "subtitle": 30.0}, 4  # in units of the size of letters, see `names`
_STACKED = {"layout": {"bottom": {"direction": "vertical"}}}  # of legends: Vega knows it, Altair's schema does not


def together(charts: Sequence[Chart], title: str = "") -> Chart:
    """Return one chart with the given charts side by side, three in a row.

    Raises:
        BadParameter: there is no chart.
    """
    if not charts:
        raise BadParameter("nothing to draw", needed="a result with numbers", found="none")
    if len(charts) == 1:
        return charts[0]
    channels = ("color", "shape", "fill", "stroke", "strokeDash", "x", "y")
    own = {"resolve": {"scale": dict.fromkeys(channels, "independent")}}
    named = [_renamed(chart, str(number)) for number, chart in enumerate(charts)]
    return {"concat": named, "columns": 3, **own, **({"title": title} if title else {})}


def _renamed(value: Any, mark: str) -> Any:
    """Return a chart whose parameters have names of their own among several."""
    if isinstance(value, dict):
        names = {key: f"{value[key]}_{mark}" for key in ("param",) if key in value}
        if "select" in value:
            names["name"] = f"{value['name']}_{mark}"
        rest = {
            key: item if key == "values" else _renamed(item, mark) for key, item in value.items() if key not in names
        }
        return rest | names
    return [_renamed(item, mark) for item in value] if isinstance(value, list) else value


def spec(chart: Chart, *, is_drawn_here: bool = True) -> Chart:
    """Return the complete Vega-Lite specification of a chart, with its theme. Control characters in texts are escaped.
    `is_drawn_here` is False if Altair draws the chart; legends are then not stacked.
    """
    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    config = _CONFIG | {"legend": _CONFIG["legend"] | (_STACKED if is_drawn_here else {})}
    whole: Chart = _shown({"$schema": schema, "config": config} | _titled(chart))
    return whole


def _titled(chart: Chart) -> Chart:
    """Return a chart, or charts side by side, with titles in lines that a narrow screen has room for."""
    parts = {"concat": [_titled(part) for part in chart["concat"]]} if "concat" in chart else {}
    title = chart.get("title")
    if not title:
        return chart | parts
    known = title if isinstance(title, dict) else {"text": title}
    lines = {key: lines_of(str(known[key]), room, _MOST_LINES) for key, room in _TITLE_ROOM.items() if key in known}
    shown: Chart = {key: found if len(found) > 1 else found[0] for key, found in lines.items()}
    return chart | parts | {"title": known | shown if len(known) > 1 else shown["text"]}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value


def altair_chart(chart: Chart) -> Any:
    """Return the chart as an Altair object; `.save("x.pdf")` writes it to a file.

    A notebook shows it without a network, as Vega-Lite if the notebook can draw it, else as SVG; a renderer that was
    enabled in Altair (`altair.renderers.enable("html")`) takes precedence.
    """
    import altair
    from altair.utils.schemapi import debug_mode

    told = spec(chart, is_drawn_here=False)
    kind = altair.ConcatChart if "concat" in told else altair.LayerChart if "layer" in told else altair.Chart
    with debug_mode(False):  # the whole is held to the schema, and not each of its parts once more
        made: Any = kind.from_dict(told)
    object.__setattr__(made, "__class__", _drawn_offline(made.__class__))
    return made


@cache
def _drawn_offline(kind: Any) -> Any:
    """Return a kind of Altair's charts whose default way to be shown needs no script from elsewhere."""
    import altair

    def shown(self: Any, *options: Any, **more: Any) -> Any:
        if altair.renderers.active != "default":
            return kind._repr_mimebundle_(self, *options, **more)
        told = self.to_dict()
        return {"application/vnd.vegalite.v6+json": told, "image/svg+xml": svg(told), "text/plain": repr(self)}

    return type(kind.__name__, (kind,), {"_repr_mimebundle_": shown, "__module__": kind.__module__})


def svg(specification: Mapping[str, Any], name: str = "chart") -> str:
    """Return a Vega-Lite specification drawn as SVG text, with coordinates rounded to a tenth of a pixel. Ids in the
    SVG begin with `name`, since the library numbers them over all drawings of a process.
    """
    drawn = _drawn(json.dumps(dict(specification)))
    ids = {old: f"{name}-{i}" for i, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', drawn)))}
    for old, new in ids.items():
        drawn = drawn.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})")
    drawn = re.sub(r'(href=")[^"#]+#', r"\1#", drawn)  # the library takes links as of its own site
    return re.sub(r"<[^<>]*>", lambda tag: re.sub(r"(\d+\.\d)\d+", r"\1", tag[0]), drawn)  # not in what is read


@lru_cache(maxsize=128)  # a report draws its charts for the page and for files, and is often made again
def _drawn(specification: str) -> str:
    """Return a Vega-Lite specification, given as JSON, as the library draws it."""
    return str(drawn_by("vegalite_to_svg", json.loads(specification)))


def drawn_by(call: str, *arguments: Any) -> Any:
    """Call a function of the drawing library (vl-convert) and return its result.

    Raises:
        OSError: the library panicked because the operating system refused a request.
        MachineError: the library, or a thread of its own, panicked for another reason.
    """
    import vl_convert

    try:
        return getattr(vl_convert, call)(*arguments)
    except ValueError as error:
        if "oneshot canceled" not in str(error):
            raise
        raise MachineError("a chart could not be drawn", found=f"the library's thread ended: {error}"[:300]) from None
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        number = re.search(r"code: (\d+)", str(panic))
        if number is None:
            raise MachineError("a chart could not be drawn", found=str(panic)[:300]) from None
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


@with_typed_errors
def save(chart: Chart, stem: Path) -> list[Path]:
    """Save a chart as SVG and PDF, each completely or not at all, and return their paths. Equal charts give equal SVG;
    the bytes of a PDF differ each time, so it is written only if the SVG has changed.

    Args:
        chart: the chart.
        stem: path of the files without their endings.
    """
    drawn = svg(spec(chart) | {"background": "white"})
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "pdf")]
    if all(path.is_file() for path in paths) and paths[0].read_bytes() == drawn.encode():
        return paths
    printed = drawn_by("svg_to_pdf", drawn)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path, data in zip(paths, (drawn.encode(), printed), strict=True):
        write_atomically(path, data)
    return paths


def file_name(title: str) -> str:
    """Return a title in a form for file names: letters, digits, dots, underscores and dashes, with a hash appended if
    characters were replaced or removed.
    """
    kept = re.sub(r"[^A-Za-z0-9._]+", "-", title).strip("-.")[:60]
    marked = kept if kept == title else f"{kept}-{hashlib.sha256(title.encode('utf-8', 'replace')).hexdigest()[:6]}"
    return marked.strip("-")
