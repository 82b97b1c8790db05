"""Cards: a corpus, a model, a store, results or verdicts as a small table that a notebook shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from probing.errors import printable
from probing.provenance import model_called
from probing.reporting.overview import entries, overview
from probing.reporting.task_results import by_task
from probing.reporting.use_panels import uses
from probing.reporting.warnings import warnings_of_task
from probing.reporting.wording import plural
from probing.text.sources import split_order

_STYLE = "text-align:left;vertical-align:top;padding:.15em .8em .15em 0"
_MOST = 12


def card(thing: Any) -> str:
    """Return HTML for an object of this package; what it holds is escaped.

    Raises:
        TypeError: there is no card for its kind.
    """
    for kind in type(thing).__mro__:
        if kind.__name__ in _CARDS:
            title, rows = _CARDS[kind.__name__](thing)
            return _table(title, rows)
    raise TypeError(f"no card for {type(thing).__name__}; there is one for {', '.join(_CARDS)}")


def _table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    body = Markup("").join(
        Markup('<tr><th style="{style}">{name}</th><td style="{style}">{value}</td></tr>').format(
            style=_STYLE, name=escape(printable(name)), value=escape(printable(str(value)))
        )
        for name, value in rows
    )
    return str(Markup("<table><caption><b>{}</b></caption><tbody>{}</tbody></table>").format(printable(title), body))


def _some(names: Iterable[object]) -> str:
    listed = list(map(str, names))
    return ", ".join(listed[:_MOST]) + (f" and {len(listed) - _MOST} more" if len(listed) > _MOST else "") or "none"


def _corpus(corpus: Any) -> tuple[str, list[tuple[str, object]]]:
    sizes = Counter(example.split or "no split" for example in corpus.examples)
    words = sum(len(example.forms) for example in corpus.examples)
    first = corpus.examples[0].text if corpus.examples else ""
    return f"Corpus of {plural(len(corpus), 'example')}", [
        ("source", ", ".join(Path(part.strip()).name for part in corpus.source.split(","))),
        ("splits", ", ".join(f"{name} {sizes[name]:,}" for name in sorted(sizes, key=split_order))),
        ("words", f"{words:,}"),
        ("columns", _some(corpus.column_names())),
        ("first", first[:160] + ("…" if len(first) > 160 else "")),
    ]


def _model(model: Any) -> tuple[str, list[tuple[str, object]]]:
    return model_called(model.identity()["model"]), [
        ("sites", f"{len(model.sites)}: {_some(model.sites)}"),
        ("type of numbers", model.dtype),
        ("on", model.device),
        ("longest input", f"{model.max_length} pieces" if model.max_length else "no limit"),
    ]


def _store(store: Any) -> tuple[str, list[tuple[str, object]]]:
    return f"Store {store.path}", [
        ("model", model_called(store.identity["model"])),
        ("corpus", store.identity["corpus"].get("source", "")),
        ("sites", f"{len(store.sites)}: {_some(store.sites)}"),
        ("rows", f"{len(store.rows.example):,}"),
        ("content", store.content_id[:12]),
    ]


def _results(results: Any) -> tuple[str, list[tuple[str, object]]]:
    tasks = by_task(list(results))
    rows: list[tuple[str, object]] = [(row.name, row.line) for row in overview(entries(tasks, ())).rows]
    doubts = [(f"warning: {task.title}", said) for task in tasks for said in warnings_of_task(task)]
    return f"What probes read ({plural(len(results), 'result')})", rows + doubts


def _use(run: Any) -> tuple[str, list[tuple[str, object]]]:
    found = overview(entries((), uses(run)))
    doubts = [(f"doubtful: {one.task}", doubt) for one in run.results for doubt in one.doubts]
    return f"What edits showed ({plural(len(run.verdicts), 'verdict')})", [
        (r.name, r.line) for r in found.rows
    ] + doubts


def _verdict(verdict: Any) -> tuple[str, list[tuple[str, object]]]:
    return f"{verdict.task} at {verdict.place}: {verdict.text}", [
        ("of", verdict.model or "the model"),
        ("behaviour", verdict.behaviour or "none named"),
        ("because", verdict.reason),
        ("flags", ", ".join(verdict.flags) or "none"),
        ("overturned by", verdict.overturned_by),
    ]


_CARDS = {
    "Corpus": _corpus,
    "LanguageModel": _model,
    "Store": _store,
    "ProbeResults": _results,
    "UseRun": _use,
    "Verdict": _verdict,
}
