"""The page: one HTML file that opens without a network, rendered from one template."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from probing.errors import printable
from probing.files.whole_files import write_atomically
from probing.reporting import drawing
from probing.reporting.across_models import AcrossModels
from probing.reporting.across_sections import section
from probing.reporting.blocks import Block, Figure, Fold, Section, Table, Words, map_table, maps_figure
from probing.reporting.circuit_sections import circuit_section
from probing.reporting.grids import HeatMap
from probing.reporting.latent_sections import contexts_section, training_section
from probing.reporting.lens_sections import lens_section
from probing.reporting.overview import Entry, Overview, entries, overview
from probing.reporting.sections import overview_figure, side_by_side, task_section
from probing.reporting.similarity_sections import similarity_section
from probing.reporting.task_results import TaskResults
from probing.reporting.transfer_sections import transfer_section
from probing.reporting.use_panels import Use
from probing.reporting.use_sections import use_section
from probing.reporting.wording import plural, sentence_case
from probing.results.analysis import Failure
from probing.results.circuit import CircuitResult
from probing.results.dictionary_training import DictionaryTraining
from probing.results.latent_contexts import LatentContexts
from probing.results.lens import LensResult
from probing.results.models import ModelFacts
from probing.results.similarity import SimilarityResults
from probing.results.transfer import CrossResult

MAX_BYTES = 3_000_000
_TEMPLATES = files("probing.reporting") / "templates"


@dataclass(frozen=True)
class Contents:
    """Holds the contents of a page: results of tasks, in one model and across models, and of edits; maps of patching;
    results of transfer, of similarity, of lenses and of dictionaries; circuits; failed tasks; and properties whose rows
    could not be matched, with the reason.
    """

    tasks: Sequence[TaskResults] = ()
    uses: Sequence[Use] = ()
    patching: Sequence[HeatMap] = ()
    transfer: Sequence[CrossResult] = ()
    failures: Sequence[Failure] = ()
    across: Sequence[AcrossModels] = ()
    similarity: SimilarityResults = field(default_factory=lambda: SimilarityResults(()))
    lenses: Sequence[LensResult] = ()
    dictionary: DictionaryTraining | None = None
    contexts: LatentContexts | None = None
    circuits: Sequence[CircuitResult] = ()
    unmatched: Sequence[tuple[str, str]] = ()

    @property
    def has_results(self) -> bool:
        """Whether there is anything to show."""
        return any(getattr(self, one.name) for one in fields(self) if one.name != "failures")

    def entries(self) -> list[Entry]:
        """Return the results that the section of each property shows, see `overview.entries`."""
        return entries(self.tasks, self.uses)


@dataclass(frozen=True)
class Size:
    """Limits the size of a page: bytes of drawings for browsers without script, and rows of each table."""

    drawings: int
    rows: int


_MOST_SHRUNK = 300  # pixels of a chart without its axes, beyond which it is scrolled on a narrow screen
_SIZES = (Size(2_000_000, 400), Size(1_000_000, 120), Size(300_000, 40), Size(0, 12), Size(0, 0))


def rendered(contents: Contents) -> bytes:
    """Return the page as HTML in UTF-8. To keep it below 3 MB where possible, table rows and drawings for browsers
    without script are left out, and the page says so.
    """
    found = overview(contents.entries())
    return _fitted(_document(contents, found, _sections(contents, found)))


def _sections(contents: Contents, found: Overview) -> list[Section]:
    sections = [section(one, f"models-{i}") for i, one in enumerate(contents.across, start=1)]
    for task, uses, anchor in contents.entries():
        rows = [row for row in found.rows if row.anchor == anchor]
        claims = list(dict.fromkeys(row.decodability for row in rows if row.decodability))
        claims += [f"{row.name}: {row.use}" if len(rows) > 1 else row.use for row in rows if row.use]
        names = tuple(row.name for row in rows)
        claims = [claim + "." if claim.startswith(names) else sentence_case(claim) + "." for claim in claims]
        sections.append(task_section(task, uses, anchor, claims) if task else use_section(uses[0], anchor, claims))
    if contents.patching:
        blocks: list[Block] = [Words("p", [_PATCHING]), maps_figure(contents.patching)]
        fold = Fold("The same numbers as tables", [map_table(one) for one in contents.patching])
        sections.append(Section("patching", "Patching", blocks=blocks, folds=[fold]))
    if contents.transfer:
        sections.append(transfer_section(contents.transfer, "transfer"))
    if contents.similarity:
        sections.append(similarity_section(contents.similarity, "similarity"))
    sections += _of_models([lens_section(one, "lens") for one in contents.lenses])
    if contents.dictionary is not None:
        sections.append(training_section(contents.dictionary, "dictionary"))
    if contents.contexts is not None:
        sections.append(contexts_section(contents.contexts, "latents"))
    return sections + _of_models([circuit_section(one, "circuit") for one in contents.circuits])


def _of_models(sections: Sequence[Section]) -> list[Section]:
    """Return sections of one kind, which say in their titles whose they are if there are several."""
    if len(sections) < 2:
        return list(sections)
    return [
        replace(one, anchor=f"{one.anchor}-{i}", title=f"{one.title}: {', '.join(one.models)}")
        for i, one in enumerate(sections, start=1)
    ]


_PATCHING = (
    "States of one prompt put into another, place by place: 0 changes nothing, 1 gives the other prompt's behaviour. "
    "It shows where a difference travels, for these prompts; it tests no hypothesis."
)


class _Drawer:
    """Draws each chart once, however often a page that holds it is laid out."""

    def __init__(self) -> None:
        self._specs: dict[int, dict[str, Any]] = {}
        self._drawings: dict[int, str] = {}

    def spec(self, chart: Any) -> dict[str, Any]:
        """Return the chart's specification, with text that is safe to show."""
        if id(chart) not in self._specs:
            self._specs[id(chart)] = drawing.spec(chart)
        return self._specs[id(chart)]

    def drawing(self, chart: Any) -> Markup:
        """Return the chart as SVG."""
        if id(chart) not in self._drawings:
            self._drawings[id(chart)] = drawing.svg(self.spec(chart), f"c{len(self._drawings)}")
        return Markup(self._drawings[id(chart)])


def _document(contents: Contents, found: Overview, sections: Sequence[Section]) -> dict[str, Any]:
    """Return the values of the page's template."""
    return {
        "overview": found,
        "grids": overview_figure(found),
        "runs": side_by_side(contents.tasks),
        "sections": sections,
        "title": ", ".join(section.title for section in sections) or "nothing",
        "heading": _heading(contents),
        "about": _about(contents),
        "models": found.models if len(found.models) > 1 else (),
        "failures": contents.failures,
        "unmatched": contents.unmatched,
        "failed": plural(len(contents.failures), "task"),
        "has_use": bool(contents.uses),
    }


def rendered_sections(sections: Sequence[Section], *, heading: str, about: Sequence[str]) -> bytes:
    """Return a page of sections alone as HTML in UTF-8, within the size of `rendered`."""
    values = _document(Contents(), overview([]), sections)
    return _fitted(values | {"title": heading, "heading": heading, "about": about})


def _fitted(values: dict[str, Any]) -> bytes:
    """Return a page in the first of the sizes in which it is below 3 MB, or in the last."""
    drawer, found = _Drawer(), b""
    for size in _SIZES:
        found = _filled(values, drawer, size).encode()
        if len(found) < MAX_BYTES:
            break
    return found


def _filled(given: dict[str, Any], drawer: _Drawer, size: Size) -> str:
    """Return the page's template filled with values, its charts and its script."""
    specs: list[dict[str, Any]] = []
    left = size.drawings

    def chart(one: Any) -> dict[str, Any]:
        nonlocal left
        specs.append(drawer.spec(one))
        drawing = drawer.drawing(one) if left > 0 else Markup()
        left -= len(drawing)
        return {"number": len(specs) - 1, "svg": drawing if left >= 0 else "", "is_wide": _width(one) > _MOST_SHRUNK}

    script, style = _script(), (_TEMPLATES / "page.css").read_text("utf-8")
    values = given | {
        "chart": chart,
        "most_rows": size.rows,
        "style": Markup(style),
        "script": Markup(script),
        "policy": _policy(style, script),
        "is_table": lambda block: isinstance(block, Table),
        "is_figure": lambda block: isinstance(block, Figure),
    }
    text = _environment().get_template("page.html.jinja").render(**values).lstrip()
    return text.replace("@@CHARTS@@", _packed(specs), 1)


def _width(chart: Any) -> float:
    """Return the width of a chart without its axes, in pixels; where it is a step, that times the number of columns."""
    width = chart["width"]
    if not isinstance(width, dict):
        return float(width)
    name = chart["encoding"]["x"]["field"]
    return float(width["step"]) * len({row[name] for row in chart["data"]["values"]})


def plain(template: str, own_style: str, *, is_fragment: bool = False, **values: Any) -> str:
    """Return a page without script, or a fragment, made from a template and a style sheet.

    Args:
        template, own_style: names of files in the folder `templates`.
        is_fragment: whether the result is shown inside another page, such as a notebook; it then lacks the style sheet
            of the report.
        values: values for the template; all of them are escaped.
    """
    style = "" if is_fragment else (_TEMPLATES / "page.css").read_text("utf-8")
    style += (_TEMPLATES / own_style).read_text("utf-8")
    given = {"style": Markup(style), "policy": _policy(style, ""), "is_fragment": is_fragment}
    return _environment().get_template(template).render(**values, **given).lstrip()


def _packed(specs: Sequence[dict[str, Any]]) -> str:
    """Return the charts as base64 of compressed JSON, which the page's script reads."""
    text = json.dumps(specs, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(lambda name: (_TEMPLATES / name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )


def _policy(style: str, script: str) -> str:
    """Return a content security policy: this style and this script, and nothing from anywhere else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def _script() -> str:
    """Return the script of the page: the drawing library as vl-convert bundles it, and what this page adds."""
    return f"{_library()}\n{(_TEMPLATES / 'page.js').read_text('utf-8')}".replace("</script", "<\\/script")


def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script; bundled once for each version, for that takes seconds."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "probing"
    known = home / f"vega-{version('vl-convert-python')}.js"
    try:
        text, _, seal = known.read_text("utf-8").rpartition("\n//")
        if hashlib.sha256(text.encode()).hexdigest() == seal:
            return text
    except (OSError, UnicodeError):
        pass
    text = str(drawing.drawn_by("javascript_bundle"))
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_atomically(known, f"{text}\n//{hashlib.sha256(text.encode()).hexdigest()}".encode())
    except Exception:  # a home that cannot be written to costs seconds at the next page, and nothing else
        pass
    return text


def _heading(contents: Contents) -> str:
    if contents.tasks or contents.uses:
        return "What hidden states encode" + (", and what the model uses" if contents.uses else "")
    is_lens_first = contents.lenses and not (contents.patching or contents.transfer)
    others = (contents.patching, contents.transfer, contents.similarity, contents.lenses)
    titles = (
        (contents.circuits and not any(others), "Which parts give the answers"),
        (is_lens_first, "What lenses read at each site"),
        (contents.dictionary is not None, "What a dictionary makes of hidden states"),
        (contents.contexts is not None, "What excites latents"),
        (contents.patching, "Where a difference between prompts travels"),
        (contents.transfer, "What transfers between sources"),
        (True, "How alike states are"),
    )
    return next(title for is_shown, title in titles if is_shown)


_MOST_MODELS = 3  # named in the head of a page


def _about(contents: Contents) -> list[str]:
    probed = {}
    for task in contents.tasks:
        identity = str(task.any.provenance.get("model_identity") or "")[:12]
        probed[task.model.model] = _named(task.model) + (f" (identity {identity})" if identity else "")
    edited = {use.model.model: _named(use.model) for use in contents.uses if use.model.model}
    models = list((edited | probed).values())
    names = {task.label for task in contents.tasks} | {use.result.task for use in contents.uses}
    prints = sorted({str(f)[:12] for t in contents.tasks if (f := t.any.provenance.get("corpus_fingerprint"))})
    about = [f"{'Models' if len(models) > 1 else 'Model'}: {'; '.join(models)}"] if any(models) else []
    about = about if len(models) <= _MOST_MODELS else [plural(len(models), "model")]  # each section names its own
    about += [plural(len(names), "property", "properties")] if names else []
    about += [f"corpus {', '.join(prints)}"] if prints else []
    imported = [task.any.provenance.get("imported") for task in contents.tasks]
    if any(isinstance(one, dict) and one.get("provenance") == "unknown" for one in imported):
        kind = "states given as arrays" if all(t.any.is_of_arrays for t in contents.tasks) else "imported states"
        about.append(f"How the {kind} were computed is not known")
    return about


def _named(model: ModelFacts) -> str:
    """Return the name of a model, with what it is: `reference/model [float32]: gpt2, 3 layers × 64, …`."""
    return ": ".join(filter(None, (model.label, model.build)))
