"""Twins as donors: the property alone is exchanged, the natural contrast is theirs, and what is no twin is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.contracts.edited_model import Place
from probing.errors import BadTwin, OverlappingGroups
from probing.reporting.use_words import use_paragraph
from probing.text.corpus import Corpus, Example
from probing.use.contrasts import sampled_pairs, twin_rows
from probing.use.edited_models.arrays import ArrayInstrument
from probing.use.effects import UseOptions
from probing.use.measure import Property, measure_property
from probing.verdicts.judging import judge, read_use_run
from probing.verdicts.verdict import Word
from tests.conftest import ROOT

QUICK = UseOptions(curve=False, details=False, null=False)
D, NOISE = 12, 0.5


def planted(*, read: str, n: int = 800, confounded: int = 0, seed: int = 0) -> tuple[ArrayInstrument, Property]:
    """n pairs of twins, equal in all but z, and so many rows without, whose unlabelled c goes with z.

    z is coded at coordinate 0, c at 1, and a linear read takes z's coordinate, c's, or both, besides others' noise.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(0, NOISE, (n + confounded, D)).astype(np.float32)
    z = rng.integers(0, 2, n + confounded)
    c = np.where(np.arange(n + confounded) < n, rng.integers(0, 2, n + confounded), z)
    base[:, 1] += 2 * c - 1
    rows = np.r_[np.arange(n + confounded), np.arange(n)]  # the second twin of each pair comes last
    states, z = base[rows], np.r_[z, 1 - z[:n]]
    states[:, 0] += 2 * z - 1
    reads = 0.3 * np.random.default_rng(1).normal(size=(D, 4))
    reads[:2] = [[1.0, -1, 0, 0] if name in read else [0.0] * 4 for name in "zc"]
    twins = np.full(len(rows), -1)
    twins[:n], twins[n + confounded :] = np.arange(n) + n + confounded, np.arange(n)
    weights = reads.astype(np.float32)
    instrument = ArrayInstrument(
        {Place("h"): states}, lambda site, rows, given, frozen: given[""] @ torch.from_numpy(weights)
    )
    return instrument, Property("z", z, 2, rows, {}, twins=twins)


def test_the_contrast_of_twins_is_their_own_and_all_of_it_is_mediated() -> None:
    """Of a linear read the noise of donors cancels between twins, and T is known but for the contrast's direction."""
    instrument, prop = planted(read="z")
    by_twins = measure_property(instrument, prop, options=QUICK)
    matched = measure_property(instrument, replace(prop, twins=None), options=QUICK)
    assert (by_twins.twin_pairs, matched.twin_pairs) == (800, None)
    one, other = by_twins.cells[0].whole, matched.cells[0].whole
    assert one.mediated_fraction == pytest.approx(1.0, abs=1e-5) and one.mediated_fraction_low == pytest.approx(
        1.0, abs=1e-3
    )
    assert (
        one.mediated_fraction_high is not None
        and one.mediated_fraction_low is not None
        and other.mediated_fraction_high is not None
        and other.mediated_fraction_low is not None
    )
    # On some processors both are exact: below 1e-6 there is nothing to compare but last bits.
    widths = [e.mediated_fraction_high - e.mediated_fraction_low for e in (one, other)]
    assert widths[0] <= max(0.1 * widths[1], 1e-6)
    # Without groups to keep together, rows take the states of any others, whose noise then counts.
    alone = measure_property(instrument, replace(prop, twins=None, groups=np.arange(len(prop.z))), options=QUICK)
    assert max(one.tau_error, other.tau_error) < 0.1 * alone.cells[0].whole.tau_error
    y, c = instrument.clean(), prop.z == 1
    apart = (y[prop.twins] - y)[~c].mean(0)
    assert one.total == pytest.approx(float(np.linalg.norm(apart)), rel=1e-3)
    assert {judge([found])[0].word for found in (by_twins, matched)} == {Word.USED_SUBSPACE}


def test_a_confound_that_goes_with_the_property_is_not_taken_for_it_where_donors_are_twins() -> None:
    instrument, prop = planted(read="c", n=600, confounded=600)
    by_twins = measure_property(instrument, prop, options=QUICK)
    matched = measure_property(instrument, replace(prop, twins=None), options=QUICK)
    assert matched.cells[0].whole.effect_size > 0.2 and judge([matched])[0].word.coarse == "used"
    assert abs(by_twins.cells[0].whole.effect_size) < 1e-4 and judge([by_twins])[0].word.coarse != "used"
    assert "exceeds site" in judge([by_twins])[0].flags


Change = Callable[[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], None]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda twins, z, c, g: twins.__setitem__(0, 5), BadTwin, "not each other's twins"),
        (lambda twins, z, c, g: z.__setitem__(0, 1 - z[0]), BadTwin, "same label"),
        (lambda twins, z, c, g: z.__setitem__(0, -1), BadTwin, "one has no label"),
        (lambda twins, z, c, g: c.__setitem__(0, 1 - c[0]), BadTwin, "differ in colour, too"),
        (lambda twins, z, c, g: g.__setitem__(0, 10**6), OverlappingGroups, "different groups"),
        (lambda twins, z, c, g: twins.__setitem__(slice(20, 780), -1), BadTwin, "not each other's twins"),
        (lambda twins, z, c, g: twins.fill(-1), BadTwin, "too few rows have a twin"),
        (lambda twins, z, c, g: twins.__setitem__(0, 10**6), BadTwin, "twins are rows"),
    ],
)
def test_what_is_no_twin_is_refused_before_anything_runs(change: Change, error: type[Exception], says: str) -> None:
    instrument, prop = planted(read="z", n=400)
    twins, z, groups = (np.array(v) for v in (prop.twins, prop.z, prop.groups))
    colour = groups % 2
    change(twins, z, colour, groups)
    bad = replace(prop, twins=twins, z=z, groups=groups, covariates={"colour": (colour, 2)})
    with pytest.raises(error, match=says):
        measure_property(instrument, bad, options=QUICK)
    named = replace(bad, row_names=[f"r{k}" for k in range(len(z))])
    with pytest.raises(error) as caught:
        named.plan(QUICK)
    assert says not in ("same label", "different groups") or "'r0' and 'r400'" in str(caught.value)


def test_twins_are_found_by_id() -> None:
    assert twin_rows(["a", "b", "7", "d"], ["b", "a", None, 7.0]).tolist() == [1, 0, -1, 2]
    with pytest.raises(BadTwin, match="'a' names 'x'"):
        twin_rows(["a"], ["x"])
    with pytest.raises(BadTwin, match="two rows with that id"):
        twin_rows(["a", "b", "b"], ["b", None, None])


def test_a_sample_keeps_pairs_whole() -> None:
    examples = [Example(f"r{k}", "x", columns={"twin": f"r{k ^ 1}" if k < 40 else None}) for k in range(60)]
    kept = sampled_pairs(Corpus(tuple(examples)), "twin", split=None, most=31, seed=0).examples
    ids = {e.id for e in kept}
    assert len(kept) in (30, 31) and all(e.columns["twin"] in {None, *ids} for e in kept)
    assert any(e.columns["twin"] for e in kept)
    assert len(sampled_pairs(Corpus(tuple(examples)), "twin", split=None, most=60, seed=0)) == 60


def test_the_command_exchanges_states_between_the_twins_that_a_column_names(tmp_path: Path) -> None:
    """Minimal pairs of a shipped model, as its folder has them, given ids."""
    pairs = ROOT / "datasets" / "plantbench" / "llama" / "pairs.jsonl"
    rows = [row for row in map(json.loads, pairs.read_text().splitlines()) if row["property"] == "A"]
    for k, row in enumerate(rows):
        row |= {"id": f"p{k}", "twin": f"p{k ^ 1}"}
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "use",
        "--model",
        str(pairs.parent / "model"),
        "--corpus",
        str(file),
        "--task",
        "column:A",
        "--behaviour",
        "next_token:answers=answer00|answer01|answer02|answer03",
        "--covariate",
        "column:B",
        "--covariate",
        "column:C",
        "--position",
        "subject",
        "--position",
        "query",
        "--sites",
        "resid.2",
        "--max-rows",
        "400",
        "--minimal-pairs",
        "twin",
        "--quiet",
        "--to",
    ]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    assert "column:A: whole states were exchanged between 200 pairs of twins" in done.output
    (result,) = read_use_run(tmp_path / "to").results
    subject, query = result.cells
    assert abs(subject.whole.effect_size) < 0.1 and query.whole.mediated_fraction == pytest.approx(1.0, abs=0.02)
    assert "between 200 pairs of twins" in use_paragraph(result)
    rows[0]["B"] = "other"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unlike = CliRunner().invoke(app, [*command, str(tmp_path / "no")])
    assert unlike.exit_code == 1 and "'p0' and 'p1' are twins that differ in column:B, too" in unlike.stderr
    refused = CliRunner().invoke(app, [*command[:-3], "twn", "--to", str(tmp_path / "no")])
    assert refused.exit_code == 1 and "did you mean 'twin'" in refused.stderr and not (tmp_path / "no").exists()
