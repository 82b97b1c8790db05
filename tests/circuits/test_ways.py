"""Every way of calling that the how-to names ends with files that are written, read back and shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import probing as pb
from probing.circuits import circuit
from probing.cli.output import finish_circuit
from probing.errors import InputError, ProvenanceMismatch
from probing.results.circuit import CircuitResult, read_circuit
from tests.samples.circuit_samples import NORMED, Planted, planted_pairs, split

pytestmark = pytest.mark.filterwarnings("ignore")
FAST: dict[str, Any] = {"random_circuits": 3, "progress": False}
WAYS: list[dict[str, Any]] = [
    {},
    {"method": "eap"},
    {"method": "eap_ig", "steps": 3},
    {"level": "node"},
    {"by": "mean"},
    {"nodes": 3},
    {"size": 6},
    {"properties": ["sign"]},
    {"random_circuits": 0},
]


def check_written(folder: Path, result: CircuitResult) -> None:
    for name in ("circuit.json", "circuit-mib.json", "circuit-neuronpedia.json"):
        assert json.loads((folder / name).read_text())
    for name in ("edges", "sizes", "flows"):
        assert (folder / f"circuit_{name}.parquet").is_file()
    again = read_circuit(folder)
    assert again is not None and again.edges == list(result.edges)
    assert "of these prompts" in pb.report(folder).read_text("utf-8")


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_each_way_ends_with_files(options: dict[str, Any], tmp_path: Path) -> None:
    result = circuit(Planted(NORMED), planted_pairs(), to=tmp_path / "one", **FAST | options)
    check_written(tmp_path / "one", result)
    level = {"level": options.get("level", "edge")}
    given = tmp_path / "one" / "circuit.json"
    judged = circuit(Planted(NORMED), planted_pairs(seed=3), given=given, to=tmp_path / "two", **FAST | level)
    check_written(tmp_path / "two", judged)
    assert judged.edges == list(result.edges)


def pairs_file(path: Path, start: int, count: int = 24) -> str:
    """Write pairs whose answers are chosen so that the metric of a random model falls in every one."""
    model, rows = split("gpt2").model, []
    ids = [model.tokenizer.encode(answer)[0] for answer in ("a", "b")]
    for k in range(start, start + count):
        clean, corrupted = f"{chr(97 + k % 26)}{chr(97 + k // 26)}a the", f"{chr(97 + k % 26)}{chr(97 + k // 26)}b the"
        logits = model.logits(model.encode([clean, corrupted]))[:, -1].numpy()
        fall = np.subtract(*(one[ids[0]] - one[ids[1]] for one in logits))
        answers = ("a", "b") if fall > 0 else ("b", "a")
        rows.append(
            dict(zip(("clean", "corrupted", "answer", "corrupted_answer"), (clean, corrupted, *answers), strict=True))
        )
    path.write_text("".join(json.dumps(row | {"set": f"{k // 2}"}) + "\n" for k, row in enumerate(rows)))
    return str(path)


def test_a_language_model_with_other_pairs(tmp_path: Path) -> None:
    model = split("gpt2").model
    mine, theirs = pairs_file(tmp_path / "pairs.jsonl", 0, 40), pairs_file(tmp_path / "more.jsonl", 60)
    options = {"nodes": 4, "method": "eap", "group": "set"} | FAST
    result = circuit(model, mine, transfer=[theirs], to=tmp_path / "one", **options)
    check_written(tmp_path / "one", result)
    assert f"pairs: {theirs}" in result.elsewhere
    given = circuit(model, theirs, given=tmp_path / "one", to=tmp_path / "two", **FAST)
    check_written(tmp_path / "two", given)


def test_what_is_no_circuit_is_refused_in_plain_words(tmp_path: Path) -> None:
    for name, text in (("no.json", None), ("pairs.csv", "clean,corrupted\na,b\n"), ("other.json", '{"model": "m"}')):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(InputError, match="circuit") as caught:
            circuit(Planted(NORMED), planted_pairs(), given=path, **FAST)
        assert "validation error" not in str(caught.value)


def test_the_same_model_with_other_weights_is_named_so(tmp_path: Path) -> None:
    circuit(Planted(NORMED), planted_pairs(), to=tmp_path, **FAST)
    other = Planted(NORMED)
    other.identity = {"plan": "normed", "weights": "others"}
    with pytest.raises(ProvenanceMismatch, match="weights"):
        circuit(other, planted_pairs(), given=tmp_path, **FAST)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_the_caller_has_turned_them_off(without: Any) -> None:
    plain = circuit(Planted(NORMED), planted_pairs(), method="eap", **FAST)
    with without():
        assert circuit(Planted(NORMED), planted_pairs(), method="eap", **FAST).edges == plain.edges


def test_json_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each word and each part, without NaN."""
    result = circuit(Planted(NORMED), planted_pairs(), to=tmp_path, **FAST)
    job = SimpleNamespace(run=lambda progress: result, to=str(tmp_path))
    finish_circuit(job, quiet=True, as_json=True, details=False)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [row["word"] for row in rows[: len(result.words)]] == [one.word for one in result.words]
    assert len(rows) == len(result.words) + len(result.parts)
