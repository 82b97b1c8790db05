"""`probing direction`: what the commands print, what they refuse, and that they leave nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import probing as pb
from probing.cli.commands import app
from probing.errors import BadParameter, ConfigError, ProbingError, ProvenanceMismatch, UnknownName, UntrustedFile
from probing.use.directions import write_evidence
from probing.verdicts.verdict import Word
from tests.conftest import REFERENCE
from tests.use.test_directions import ANSWERS, PROMPTS, erasing, model, planted

MODEL = str(REFERENCE / "model")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["direction", *map(str, arguments)])


def refused(error: type[ProbingError], *arguments: object) -> str:
    """The one block that a command ends with."""
    result = run(*arguments)
    assert result.exit_code == 1 and not result.stdout, result.output
    assert result.stderr.startswith(f"{error.__name__}: ") and "\n\n" not in result.stderr.strip(), result.stderr
    return result.stderr


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    write_evidence(tmp_path / "use" / "evidence" / "z.safetensors", planted(labels=("past", "present")))
    return tmp_path / "use"


def test_show_prints_all_that_is_asked_of_a_direction(evidence: Path) -> None:
    write_evidence(evidence / "evidence" / "y.safetensors", erasing("resid.1"))
    write_evidence(evidence / "evidence" / "x.safetensors", planted("resid.3", word=Word.INCONCLUSIVE))
    result = run("show", evidence)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    length = np.linalg.norm(planted().direction())
    assert "column:z (past → present) in model [weights fb05cb64, float32], for next_token:answers=was" in said
    assert f"resid.2 end class_mean 64 {length:.2f} 1.50 [1.00, 2.00] used" in said
    assert "resid.1 end leace, rank 1 64 – 1.50 [1.00, 2.00]" in said
    assert "inconclusive" in said
    (warning,) = result.stderr.splitlines()
    assert (
        "resid.3@end is decodable, use inconclusive: that the model uses this direction is not established" in warning
    )
    lines = [json.loads(line) for line in run("show", evidence, "--json").stdout.splitlines()]
    assert [line["site"] for line in lines] == ["resid.3", "resid.1", "resid.2"]
    assert lines[2] | {"verdict": str(Word.USED_SUBSPACE), "dimensions": 64, "effect_low": 1.0} == lines[2]
    assert lines[2]["norm"] == pytest.approx(length) and Path(lines[2]["file"]).is_file()


@pytest.mark.parametrize("form", ["gguf", "safetensors", "npz", "npy"])
def test_export_writes_each_format_once(evidence: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / f"v.{form}"
    result = run("export", evidence, "--to", file)
    assert result.exit_code == 0 and f"exported: {file}" in result.stdout and not result.stderr, result.output
    assert "column:z at resid.2@end: decodable and used (class-mean subspace)" in result.stdout
    before = file.read_bytes()
    assert "--replace" in refused(BadParameter, "export", evidence, "--to", file)
    assert run("export", evidence, "--to", file, "--replace").exit_code == 0
    assert file.read_bytes() == before
    assert run("export", evidence, "--to", tmp_path / "other", "--format", form).exit_code == 0
    assert (tmp_path / "other").read_bytes() == before


def test_export_never_replaces_evidence(evidence: Path) -> None:
    (source,) = (evidence / "evidence").iterdir()
    before = source.read_bytes()
    for form in ("safetensors", "npz"):
        said = refused(BadParameter, "export", evidence, "--to", source, "--format", form, "--replace")
        assert "evidence is not replaced by an export" in said
    assert source.read_bytes() == before


def test_export_says_that_a_direction_is_not_established(tmp_path: Path) -> None:
    file = write_evidence(tmp_path / "e.safetensors", planted(word=Word.NO_MATERIAL_USE))
    result = run("export", file, "--to", tmp_path / "v.npy")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: column:z at resid.2@end is decodable, no material use found: ")
    assert np.load(tmp_path / "v.npy").shape == (64,)


def test_apply_shows_pieces_and_answers_side_by_side(evidence: Path) -> None:
    asked = ["apply", evidence, "--model", MODEL, "--quiet", *(part for text in PROMPTS for part in ("--prompt", text))]
    result = run(*asked, "--strength", "-1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("column:z (past → present) added at resid.2@end, strength -1")
    assert all(text in result.stdout for text in PROMPTS) and result.stdout.count("without ") >= len(PROMPTS)
    answers = run(*asked, "--behaviour", ANSWERS, "--start", "present")
    assert "(present → past)" in answers.stdout and "p without" in answers.stdout
    wanted = pb.apply_direction(model(), planted(), PROMPTS, behaviour=ANSWERS, start="b", progress=False)
    lines = run(*asked, "--behaviour", ANSWERS, "--start", "present", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == wanted.rows()
    assert json.loads(lines[0])["clean_probability"] == pytest.approx((wanted.probabilities() or [None])[0][0, 0])


def test_apply_to_a_corpus_shows_means_by_the_behaviour_of_the_verdict(evidence: Path) -> None:
    corpus = ["--corpus", f"dev={REFERENCE / 'dev.jsonl'}", "--max-rows", 30, "--quiet"]
    result = run("apply", evidence, "--model", MODEL, *corpus)
    assert result.exit_code == 0, result.output
    assert "means over 30 rows; the most probable answer changes in" in result.stdout and "were" in result.stdout
    still = run("apply", evidence, "--model", MODEL, *corpus, "--strength", 0, "--json")
    assert all((row := json.loads(line))["clean"] == row["edited"] for line in still.stdout.splitlines())


def test_what_is_wrong_ends_in_one_block(evidence: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    damaged, foreign = tmp_path / "damaged.safetensors", REFERENCE / "model" / "model.safetensors"
    damaged.write_bytes((evidence / "evidence" / "z.safetensors").read_bytes()[:-9])
    prompt, to = ("--model", MODEL, "--prompt", "the doctor", "--quiet"), ("--to", tmp_path / "v.npz")
    for path, error in (
        (tmp_path / "nowhere", BadParameter),
        (tmp_path / "empty", BadParameter),
        (REFERENCE, BadParameter),
        (damaged, UntrustedFile),
        (foreign, UntrustedFile),
        (REFERENCE / "dev.jsonl", UntrustedFile),
    ):
        refused(error, "show", path)
        refused(error, "export", path, *to)
        refused(error, "apply", path, *prompt)
    refused(BadParameter, "export", evidence, "--to", tmp_path / "v.txt")
    refused(BadParameter, "export", evidence, *to, "--format", "pickle")
    refused(UnknownName, "export", evidence, *to, "--start", "pasts")
    assert "any-model" in refused(ProvenanceMismatch, "apply", evidence, *prompt, "--untrained", 0)
    refused(ConfigError, "apply", evidence, "--model", MODEL)
    refused(ConfigError, "apply", evidence, *prompt, "--corpus", "a.csv")
    refused(ConfigError, "apply", evidence, *prompt, "--strength", "much")
    refused(UnknownName, "apply", evidence, *prompt, "--goal", "future")
    thin = planted()
    thin.arrays["means"] = thin.arrays["means"][..., :5]  # type: ignore[index]
    file = write_evidence(tmp_path / "thin.safetensors", thin)
    assert "another width" in refused(BadParameter, "apply", file, *prompt, "--any-model")
    write_evidence(evidence / "evidence" / "a.safetensors", planted("resid.3"))
    assert "a.safetensors" in refused(BadParameter, "apply", evidence, *prompt)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "v"))]


@pytest.mark.parametrize("command", ["show", "export", "apply"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"Example: probing direction {command}" in " ".join(result.stdout.split())
