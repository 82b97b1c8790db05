"""A task that others determine is inconclusive, with the names of those that do; other tasks are measured and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import DegenerateDesign, DoubtfulData
from probing.results.use import read_use_results
from probing.use.effects import UseOptions
from probing.use.measure import Property
from probing.use.unmatched import determining
from probing.verdicts.judging import judge, read_use_run
from probing.verdicts.verdict import Word
from tests.conftest import ROOT

REFERENCE = ROOT / "datasets" / "reference"
BEHAVIOUR = "next_token:answers=was|were|is|are"
QUICK = UseOptions(curve=False, details=False, null=False)
GIVEN: dict[str, Any] = {"behaviour": BEHAVIOUR, "positions": ["end"], "sites": "resid.2", "max_rows": 240}


def corpus() -> pb.Corpus:
    """The reference corpus with a copy of tense under other names, as `epoch`."""
    read = pb.Corpus.read({split: str(REFERENCE / f"{split}.jsonl") for split in ("train", "dev", "test")})
    copied = [replace(e, columns={**e.columns, "epoch": f"copy of {e.columns['tense']}"}) for e in read.examples]
    return replace(read, examples=tuple(copied))


@pytest.fixture(scope="module")
def model() -> pb.LanguageModel:
    return pb.LanguageModel.load(str(REFERENCE / "model"))


def test_a_task_that_another_determines_is_inconclusive_and_the_others_are_kept(
    model: pb.LanguageModel, tmp_path: Path
) -> None:
    given = GIVEN | {"options": QUICK, "covariates": ["column:tense"], "to": tmp_path, "progress": False}
    with pytest.warns(DoubtfulData, match="column:epoch: use inconclusive.* determined by column:tense"):
        found = pb.intervene(model, corpus(), tasks=["column:animacy", "column:epoch"], **given)
    animacy, epoch = found.verdicts
    assert animacy.evidence is not None and epoch.evidence is None
    assert epoch.word is Word.INCONCLUSIVE and epoch.decodability is not None and epoch.decodability.passes
    assert "column:epoch is determined by column:tense" in epoch.reason and "@" not in epoch.site
    held = read_use_run(tmp_path)
    assert [v.to_json() for v in held] == [v.to_json() for v in found]
    assert [one.task for one in read_use_results(tmp_path / "use.jsonl")] == ["column:animacy", "column:epoch"]
    assert judge(held.results[:1])[0].to_json() == animacy.to_json()  # it takes no part in corrections
    page = pb.report(tmp_path).read_text("utf-8")
    assert "column:epoch is determined by column:tense" in page and '<h2 id="use-' in page


def test_the_command_prints_what_was_measured_and_ends_as_one_that_failed(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"

    lines = [json.dumps({"text": e.text, **{n: e.columns[n] for n in ("tense", "animacy", "epoch")}}) for e in corpus()]
    file.write_text("\n".join(lines), encoding="utf-8")
    given = ["--behaviour", BEHAVIOUR, "--position", "end", "--sites", "resid.2", "--max-rows", "240", "--quiet"]
    tasks = ["--task", "column:animacy", "--task", "column:epoch", "--covariate", "column:tense"]
    place = ["--model", "probing:reference", "--corpus", str(file), "--to", str(tmp_path / "u")]
    shown = CliRunner().invoke(app, ["use", *place, *given, *tasks])
    assert shown.exit_code == 1, shown.output
    assert "column:animacy" in shown.stdout and "verdicts.parquet" in shown.stdout
    assert "column:epoch is determined by column:tense" in shown.output
    assert {v.task for v in read_use_run(tmp_path / "u")} == {"column:animacy", "column:epoch"}


def test_a_task_too_rare_to_be_measured_at_all_is_named_and_leaves_the_others(
    model: pb.LanguageModel, tmp_path: Path
) -> None:
    rare = corpus()
    examples = [replace(e, columns={**e.columns, "rare": "x" if i < 3 else "y"}) for i, e in enumerate(rare.examples)]
    given = GIVEN | {"options": QUICK, "to": tmp_path, "progress": False}
    with pytest.raises(DegenerateDesign, match="column:rare"):
        pb.intervene(model, replace(rare, examples=tuple(examples)), tasks=["column:rare"], **given)
    with pytest.raises(pb.errors.UnitFailed, match="column:rare"):
        pb.intervene(model, replace(rare, examples=tuple(examples)), tasks=["column:animacy", "column:rare"], **given)
    assert [one.task for one in read_use_results(tmp_path / "use.jsonl")] == ["column:animacy"]


def test_the_fewest_covariates_that_determine_a_property_are_named() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 2, 400) for _ in range(3))
    fine, unlike = np.arange(400), rng.standard_normal(400)

    def names(z: np.ndarray, **given: np.ndarray) -> tuple[str, ...]:
        return determining(Property("z", z, 2, fine, {name: (v, 2) for name, v in given.items()}))

    assert names(1 - a, a=a, b=b, c=c) == ("a",)
    assert names(a ^ b, a=a, b=b, c=c) == ("a", "b")
    assert names(a ^ b ^ c, a=a, b=b, c=c) == ("a", "b", "c")
    assert names(a, b=b, c=c) == ()
    assert names(a, fine=fine, b=b) == ()  # values that do not recur determine nothing
    assert names(a, unlike=unlike) == ()
    assert names(np.where(c == 1, a, -1), a=a, b=b) == ("a",)  # rows without a label do not count
