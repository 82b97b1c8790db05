"""Groups that are named: --group, warnings of columns that look like groups, and of scores below the prior."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.errors import BadParameter, CorpusError, UnknownName
from probing.jobs import CorpusOptions
from probing.jobs.study import Study
from probing.reporting.task_results import by_task
from probing.reporting.warnings import warnings_of_task
from probing.text.corpus import Corpus, Example
from probing.training import train
from tests.samples.training_samples import MemoryStore


def pairs_file(folder: Path, pairs: int = 90, **more: Any) -> Path:
    """Minimal pairs: two texts that differ in a word, with opposite labels."""
    lines = []
    for i in range(pairs):
        for side, verb in enumerate(("was", "were")):
            lines.append({"text": f"the thing {i} there {verb}", "label": verb, "pair": f"p{i}"} | more)
            lines[-1] |= {"item": i * 2 + side}
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def opposite(corpus: Corpus) -> MemoryStore:
    """States that tell the pair and, within it, nothing: who has learned one side says the same of the other."""
    random = np.random.default_rng(0)
    vectors = {str(e.columns["pair"]): random.standard_normal(200) for e in corpus.examples}
    states = np.array([vectors[str(e.columns["pair"])] for e in corpus.examples], np.float32)
    rows = type("Rows", (), {"example": np.arange(len(corpus)), "word": np.full(len(corpus), -1)})
    return MemoryStore(corpus, {"resid.0": states}, rows, "sentence:mean")


def trained(corpus: Corpus) -> Any:
    return train(opposite(corpus), corpus, task="column:label", measures=["accuracy"], progress=False)


def test_pairs_that_are_split_apart_are_told_and_their_group_is_named(tmp_path: Path) -> None:
    results = trained(Corpus.read(pairs_file(tmp_path)))
    assert results.best().judged("accuracy").score.value < 0.4
    said = warnings_of_task(by_task(list(results))[0])
    assert any("column 'pair' recur across splits" in line and "--group pair" in line for line in said)
    assert any("below the label frequencies by more than its interval" in line for line in said)
    assert not any("'item'" in line for line in said)


def test_named_as_the_group_pairs_stay_together_and_the_warnings_go(tmp_path: Path) -> None:
    corpus = Corpus.read(pairs_file(tmp_path), group="pair")
    assert corpus.unit == "pair" and len(set(corpus.units.tolist())) == 90
    for part in ("train", "dev", "test"):
        names = [e.columns["pair"] for e in corpus.examples if e.split == part]
        assert all(names.count(name) == 2 for name in names)
    results = trained(corpus)
    assert results.best().judged("accuracy").score.value == pytest.approx(0.5, abs=0.01)
    assert not [line for line in warnings_of_task(by_task(list(results))[0]) if "pair" in line or "below" in line]


def test_one_option_names_the_group_in_commands_study_files_and_reader_options(tmp_path: Path) -> None:
    file = str(pairs_file(tmp_path))
    for options in ({"group": "pair"}, {"reader_options": ["group=pair"]}):
        corpus = CorpusOptions.read({"corpus": [file], **options}, where="here").read_corpus()
        assert corpus.unit == "pair" and corpus.examples[0].document == "p0"
    assert "group" in Study.model_fields
    for command in ("extract", "train", "use"):
        found = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert "--group" in found.output


@pytest.mark.parametrize(
    ("column", "error", "said"),
    [
        ("pear", UnknownName, "did you mean 'pair'"),
        ("tags", BadParameter, "tags is a column of words"),
        ("none", BadParameter, "the group none has no value in any row"),
    ],
)
def test_a_group_that_is_none_is_refused(tmp_path: Path, column: str, error: type[Exception], said: str) -> None:
    file = pairs_file(tmp_path, tags=["a", "b", "c", "d", "e"], none=None)
    with pytest.raises(error, match=said):
        Corpus.read(file, group=column)


def test_a_group_in_two_given_splits_is_refused_by_its_name(tmp_path: Path) -> None:
    file = pairs_file(tmp_path)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(x | {"split": ("train", "test")[i % 2]}) + "\n" for i, x in enumerate(lines)))
    with pytest.raises(CorpusError, match=r"(?s)pair 'p0' is in two splits.*leave the group pair out"):
        Corpus.read(file, group="pair")


def test_rows_without_a_value_of_the_group_stand_alone() -> None:
    examples = [Example(f"s{i}", f"t {i}", columns={"g": f"g{i // 2}" if i < 6 else None}) for i in range(10)]
    corpus = Corpus(tuple(examples)).grouped_by("g")
    assert len(set(corpus.units.tolist())) == 3 + 4
