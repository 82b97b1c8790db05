"""What `.plot()` returns is Vega-Lite that Altair accepts, and every part says of which property or probe it is."""

from __future__ import annotations

from typing import Any

import altair
import pytest

import probing as pb
from probing.errors import BadParameter, CannotReachFile, MachineError, UnknownName
from probing.reporting.drawing import save
from probing.reporting.plots import plot_results, plot_use
from probing.results.analysis import AnalysisResult, Point
from tests.reporting.test_reporting import upos_like
from tests.samples.use_report_samples import a_result, run_of


def parts(chart: Any) -> list[dict[str, Any]]:
    """Return the parts of a chart, after Altair has held all of it to the schema."""
    told: dict[str, Any] = chart.to_dict()
    found: list[dict[str, Any]] = told.get("concat", [told])
    return found


def words(part: dict[str, Any]) -> str:
    title = part["title"]
    return f"{title['text']}: {title.get('subtitle', '')}" if isinstance(title, dict) else str(title)


@pytest.mark.parametrize("what", ["overview", "scores", "confusion"])
def test_charts_of_probes_are_valid(what: str) -> None:
    assert parts(plot_results(upos_like(), what=what))


def test_with_several_tasks_each_part_names_its_own() -> None:
    titles = [words(part) for part in parts(plot_results([*upos_like(), *upos_like("xpos")], what="scores"))]
    assert {title.split(": ")[-1] for title in titles} == {"upos", "xpos"}


def test_with_one_task_only_the_probe_is_named() -> None:
    assert not any("upos" in words(part) for part in parts(plot_results(upos_like(), what="scores")))


def test_analyses_of_two_probes_name_the_probe() -> None:
    results = upos_like()
    analyses = [
        AnalysisResult(
            "capacity",
            "upos",
            "resid.0",
            probe,
            (Point("accuracy", 0.9, "fraction", x=1.0, x_name="rank"),),
            provenance=results[0].provenance,
        )
        for probe in ("linear", "mlp")
    ]
    titles = [words(part) for part in parts(plot_results(results, analyses, "analyses"))]
    assert [title.split(": ")[-1] for title in titles] == ["linear", "mlp"]


def test_charts_of_use_are_valid_and_name_the_property() -> None:
    titles = [words(part) for part in parts(plot_use(run_of(a_result("column:tense"), a_result("column:animacy"))))]
    assert {title.split(": ")[-1] for title in titles} == {"column:tense", "column:animacy"}
    assert len(set(titles)) == len(titles)


def test_each_part_has_legends_of_its_own() -> None:
    told = plot_use(run_of(a_result())).to_dict()
    encoded = {channel for part in told["concat"] for layer in part["layer"] for channel in layer["encoding"]}
    with_legend = encoded & {"color", "fill", "stroke", "shape", "strokeDash"}
    assert with_legend <= set(told["resolve"]["scale"])


def test_a_chart_that_there_is_not_and_nothing_to_draw() -> None:
    with pytest.raises(UnknownName):
        plot_results(upos_like(), what="curves")
    with pytest.raises(BadParameter):
        plot_results(upos_like(), what="analyses")


def test_a_notebook_shows_charts_without_a_network_but_by_the_renderer_that_was_chosen() -> None:
    chart = plot_results(upos_like(), what="scores")
    shown = chart._repr_mimebundle_()
    assert set(shown) == {"application/vnd.vegalite.v6+json", "image/svg+xml", "text/plain"}
    assert shown["image/svg+xml"].startswith("<svg ")
    assert "src=" not in shown["image/svg+xml"]
    with altair.renderers.enable("mimetype"):
        assert "image/svg+xml" not in chart._repr_mimebundle_()[0]
    assert isinstance(chart, altair.ConcatChart)
    assert chart.properties(title="mine").to_dict()["title"] == "mine"


def test_the_card_of_a_corpus_names_files_without_their_folders_and_splits_in_order() -> None:
    examples = (pb.Example("a", "a", split="test"), pb.Example("b", "b", split="dev"), pb.Example("c", "c"))
    shown = pb.Corpus(examples, source="/home/me/train.csv, /home/me/test.csv")._repr_html_()
    assert "train.csv, test.csv" in shown
    assert "/home" not in shown
    assert "train 1, dev 1, test 1" in shown


def test_what_the_system_refuses_the_drawing_library_is_a_typed_error(monkeypatch, tmp_path):
    class PanicException(BaseException):
        pass

    def panic(*given):
        raise PanicException('called `unwrap()` on an `Err` value: Os { code: 24, message: "Too many open files" }')

    monkeypatch.setattr("vl_convert.vegalite_to_svg", panic)
    with pytest.raises(CannotReachFile, match="open files"):
        save({"data": {"values": []}, "mark": "point", "title": "drawn nowhere else"}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_thread_of_the_drawing_library_that_ended_is_a_typed_error(monkeypatch, tmp_path):
    def ended(*given):
        raise ValueError("Vega-Lite to SVG conversion failed:\nFailed to retrieve conversion result: oneshot canceled")

    monkeypatch.setattr("vl_convert.vegalite_to_svg", ended)
    with pytest.raises(MachineError, match="could not be drawn"):
        save({"data": {"values": []}, "mark": "point", "title": "drawn nowhere at all"}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
