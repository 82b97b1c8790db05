"""What analyses say stands on the page, in figures, in the terminal and in tables; methods and papers too."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from probing import reporting
from probing.reporting.methods import bibtex, keys_of, methods_paragraph
from probing.reporting.panels import analysis_panels
from probing.reporting.task_results import by_task
from probing.results.analysis import AnalysisResult, Point
from probing.results.probe import ProbeResult
from probing.training.results import ProbeResults
from tests.reporting.test_reporting import LAYERS, Page, upos_like


def lengths(results: list[ProbeResult]) -> list[AnalysisResult]:
    """A code length a site, falling by 1,000 bits, beside two draws of a control; and a learning curve."""
    store = {"store_id": results[0].provenance.get("store_id")}
    return [
        AnalysisResult(
            "code_length",
            "upos",
            site,
            "linear",
            (
                Point("code_length", 20000 - 1000 * layer, "bits", 19000 - 1000 * layer, 21000 - 1000 * layer),
                Point("code_length", 90000, "bits", control="word_type", draw=0),
                Point("code_length", 92000, "bits", control="word_type", draw=1),
                *(Point("learning_curve", 4 / n, "bits", x=100 * n, x_name="rows") for n in (1, 2, 4)),
            ),
            provenance=store,
        )
        for layer, site in enumerate(LAYERS)
    ]


RESULTS = upos_like()
ANALYSES = lengths(RESULTS)


def test_what_has_one_value_a_site_is_drawn_over_sites_and_the_rest_along_what_was_varied() -> None:
    (task,) = by_task(RESULTS, ANALYSES)
    over_sites, along = analysis_panels(task, ANALYSES)
    own, control = over_sites.curves
    assert over_sites.sites == LAYERS
    assert [point.value for point in own.points] == [20000 - 1000 * layer for layer in range(7)]
    assert own.points[3].low == 16000
    assert {point.value for point in control.points} == {91000.0}
    assert along.sites == ("100", "200", "400")
    assert [point.value for point in along.curves[0].points] == [4.0, 2.0, 1.0]
    best = task.best("linear")
    assert best is not None
    assert best.site in along.title


def test_numbers_of_analyses_stand_on_the_page_and_in_the_terminal(tmp_path: Path) -> None:
    page = Page(reporting.write_report(RESULTS, tmp_path, ANALYSES).read_bytes())
    assert "online code length" in page.text
    assert "16,000" in page.text
    assert sorted(path.suffix for path in (tmp_path / "figures").glob("code_length*")) == [".pdf", ".svg"]
    console = Console(file=io.StringIO(), width=110)
    reporting.print_results(RESULTS, console, ANALYSES)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"resid\.4 +online code length +16,000 \[15,000, 17,000\] +bits +word_type 91,000", shown)


def test_analyses_are_written_and_read_beside_the_results(tmp_path: Path) -> None:
    ProbeResults(RESULTS, ANALYSES).write(tmp_path)
    changed = [replace(one, points=one.points[:1]) for one in ANALYSES[:1]]
    ProbeResults(RESULTS, changed).write(tmp_path)
    found = ProbeResults.read(tmp_path)
    assert len(found.analyses) == 7
    assert len(found.analyses[0].points) == 1
    table = pd.read_parquet(tmp_path / "analyses.parquet")
    assert len(table) == 6 * 6 + 1
    assert set(table["unit"]) == {"bits"}
    assert reporting.report(tmp_path).is_file()


def test_the_methods_paragraph_holds_the_settings() -> None:
    (task,) = by_task(RESULTS, ANALYSES)
    text = methods_paragraph(task)
    for told in ("resid.0 to resid.6", "linear", "mlp", "word_type", "code_length", "95 %", "Holm", "whole sentences"):
        assert told in text


def test_papers_are_those_of_what_was_used() -> None:
    assert "hewitt2019control" in keys_of(["word_type"])
    assert "voita2020" not in keys_of(["word_type"])
    text = bibtex(["code_length:orders=3", "holm"])
    assert text.count("@") == len(keys_of(["code_length", "holm"])) == text.count("year = ")
    assert text.count("{") == text.count("}")
