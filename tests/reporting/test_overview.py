"""Laws of what is said first: sites, positions, what would overturn a finding, and what is missing."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from probing.errors import BadParameter, InputError
from probing.reporting import report
from probing.reporting.findings import finding
from probing.reporting.overview import entries, overview, ranges
from probing.reporting.tables import print_results
from probing.reporting.task_results import by_task
from probing.reporting.use_panels import uses
from probing.reporting.warnings import warnings_of_task
from probing.training.results import ProbeResults
from probing.verdicts.verdict import write_use_run
from tests.samples.page_samples import results_of
from tests.samples.use_report_samples import a_result, run_of

MODEL = "tiny-gpt2"


@given(st.sets(st.integers(0, 40), min_size=1), st.sets(st.integers(0, 40)))
def test_sites_that_are_named_are_those_that_are_meant(some: set[int], others: set[int]) -> None:
    sites = [f"resid.{layer}" for layer in sorted(some | others)]
    words = ranges([f"resid.{layer}" for layer in sorted(some)], sites)
    named: set[int] = set()
    for part in re.sub(r" and \d+ more", "", words).replace("resid.", "").split(", "):
        first, _, last = part.partition("–")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == some if " more" not in words else named < some


def test_streams_are_named_apart() -> None:
    sites = ["embed", "resid.0", "resid.1", "final_norm", "attn_out.0", "attn_out.1"]
    assert ranges(sites, sites) == "embed, resid.0–1, final_norm, attn_out.0–1"


def test_two_results_of_one_question_say_in_what_they_differ() -> None:
    def beside(*names: str, rows: int = 500) -> Any:
        one = a_result("column:tense")
        return replace(one, n_rows=rows, settings=one.settings | {"comparisons": names})

    one, other = (f"latents:dictionary=d,latents={latent}" for latent in ("0|1", "5|7"))
    for several, told in (
        ((beside(one), beside(other)), ("0|1", "5|7")),
        ((beside(one), beside()), ("0|1", "no other edits")),
        ((beside(one), beside(one, rows=300)), ("500 rows", "300 rows")),
    ):
        rows = overview(entries((), uses(run_of(*several)))).rows
        by_result = [row.name for row in rows][:: len(rows) // 2]
        assert len({row.name for row in rows}) == len(rows)
        assert all(words in name for words, name in zip(told, by_result, strict=True))
    assert all(use.apart == "" for use in uses(run_of(a_result("column:tense"), a_result("column:number"))))


def test_edits_at_a_position_stand_beside_the_probes_of_that_position() -> None:
    results = [
        one for at in ("query", "end") for one in results_of(f"column:tense at {at}", rows=f"position:{at}", run=at)
    ]
    rows = overview(entries(by_task(results), uses(run_of(a_result("column:tense"))))).rows
    assert [row.name for row in rows] == ["column:tense at query", "column:tense at end"]
    assert all(row.use and row.decodability for row in rows)
    alone = overview(entries(by_task(results[: len(results) // 2]), uses(run_of(a_result("column:tense"))))).rows
    assert [(row.name, bool(row.decodability), bool(row.use)) for row in alone] == [
        ("column:tense at query", True, True),
        ("column:tense", False, True),
    ]


def test_what_would_overturn_a_negative_finding_could() -> None:
    low = results_of("column:tense", best=0.5)
    hidden = [
        replace(
            one,
            measures=tuple(replace(m, gains=tuple(replace(g, p_adjusted=1.0) for g in m.gains)) for m in one.measures),
        )
        for one in low
    ]
    found = finding(hidden)
    said = " ".join(found.overturned_by)
    assert found.status.startswith("not ") and "stronger baseline" not in said and "control" not in said
    assert "selectivity" not in said
    assert "stronger baseline" in " ".join(finding(results_of("column:tense")).overturned_by)
    positions = {"word": True, "sentence": False}
    for level, is_named in positions.items():
        of_level = [replace(one, facts=one.facts | {"level": level}) for one in results_of("column:tense")]
        assert ("position of the word" in " ".join(finding(of_level).overturned_by)) == is_named


def test_one_test_label_is_no_sign_of_labels_mixed_up() -> None:
    results = results_of("column:tense", best=0.2)
    assert any("below the label frequencies" in said for said in warnings_of_task(by_task(results)[0]))
    of_one = [replace(one, facts=one.facts | {"one_label": {"test": "yes"}}) for one in results]
    assert not any("below the label frequencies" in said for said in warnings_of_task(by_task(of_one)[0]))


def test_selectivity_is_of_one_task_and_one_model() -> None:
    two = ProbeResults([*results_of("column:tense"), *results_of("upos")])
    with pytest.raises(BadParameter, match="several tasks"):
        two.selectivity("accuracy")
    assert two.selectivity("accuracy", task="upos") == ProbeResults(results_of("upos")).selectivity("accuracy")
    with pytest.raises(BadParameter, match="several models"):
        ProbeResults([*results_of("upos"), *results_of("upos", model="gpt2")]).selectivity()


def test_a_folder_from_which_results_are_gone_is_refused(tmp_path: Path) -> None:
    ProbeResults([*results_of("column:tense"), *results_of("upos")]).write(tmp_path)
    write_use_run(run_of(a_result("column:tense")), tmp_path)
    report(tmp_path)
    use = (tmp_path / "use.jsonl").read_bytes()
    (tmp_path / "use.jsonl").unlink()
    with pytest.raises(InputError, match="results of use are missing"):
        report(tmp_path)
    (tmp_path / "use.jsonl").write_bytes(use)
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
    with pytest.raises(InputError, match="results of probes are missing"):
        report(tmp_path)


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 100, 140])
def test_a_column_that_has_no_room_is_named_and_no_number_is_cut(width: int) -> None:
    results = results_of("column:tense")
    out = io.StringIO()
    print_results(results, Console(file=out, width=width))
    text = out.getvalue()
    head = next(line for line in text.splitlines() if line.startswith("site"))
    left_out = re.sub(r"\s+", " ", text).partition("left out for want of room: ")[2].partition(" (")[0]
    for name in ("control", "selectivity", "ceiling", "bits", "gain"):
        assert name in head.split() or name in left_out.split(", "), (width, name)
    for one in results:
        assert re.search(rf"(?m)^{re.escape(one.site if one.site != '(none)' else 'baseline')}\b", text), (
            width,
            one.site,
        )
