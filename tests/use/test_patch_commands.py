"""`probing patch` and `probing ablate`: from pairs of prompts, or texts, to tables and heat maps."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from probing import reporting
from probing.cli.commands import app
from probing.errors import CorpusError
from probing.results.patching import read_patching
from probing.use.patching.prompt_pairs import PromptPairs
from tests.conftest import REFERENCE

MODEL = str(REFERENCE / "model")
HEADER = "clean,corrupted,answer,corrupted_answer,subject,corrupted_subject"
ROWS = (
    "formerly the old painter near the tall gardens clearly,formerly the old painters near the tall gardens clearly,"
    "was,were,painter,painters",
    "nowadays the doctor behind the window clearly,nowadays the doctors behind the window clearly,"
    "is,are,doctor,doctors",
)


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [command, "--model", MODEL, *map(str, arguments), "--quiet"])


def pairs(folder: Path, *rows: str, header: str = HEADER) -> Path:
    file = folder / "number.csv"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def test_patching_finds_where_the_number_of_the_subject_is(tmp_path: Path) -> None:
    """The model is certified: it reads the number of the subject, from its word to the end."""
    file, to = pairs(tmp_path, *ROWS), tmp_path / "to"
    where = ["--span", "subject=subject,corrupted_subject", "--position", "subject", "--position", "end"]
    result = run("patch", "--pairs", file, *where, "--sites", "resid.0,resid.3", "--to", to)
    assert result.exit_code == 0, result.output
    found = read_patching(to)
    assert list(found) == ["number, activation", "number, attribution"]
    exact, rough = found.values()
    assert exact.normalised.round(1).tolist() == [[1, 0], [0, 1]] and exact.n_pairs == 2
    assert "2 pairs, corrupted prompts run with one state of their clean ones" in result.output
    said = exact.error_of(rough)
    assert f"largest {said.largest:.3f}" in " ".join(result.output.split())
    table = pd.read_parquet(to / "patching-number.parquet")
    assert list(table.columns) == ["method", "site", "position", "effect", "normalised"] and len(table) == 8
    for method in ("activation", "attribution"):
        drawn = ET.parse(to / "figures" / f"patching-number-{method}.svg").getroot()
        texts = {node.text for node in drawn.iter() if node.tag.endswith("text")}
        assert {"resid.0", "subject", "end"} <= texts
    before = (to / "figures" / "patching-number-activation.svg").read_bytes()
    more = ["--title", "other", "--json", "--no-attribution"]
    again = run("patch", "--pairs", file, *where, "--sites", "resid.0,resid.3", "--to", to, *more)
    rows = [json.loads(line) for line in again.output.splitlines()]
    assert [(row["title"], row["method"]) for row in rows] == [("other", "activation")] * 4
    assert list(read_patching(to)) == ["number, activation", "number, attribution", "other, activation"]
    assert (to / "figures" / "patching-number-activation.svg").read_bytes() == before
    assert {one.model for one in read_patching(to).values()} == {"model [weights fb05cb64, float32]"}
    for _ in range(2):  # other numbers under a title that is taken get another; the same ones do not
        assert (
            run("patch", "--pairs", file, *where, "--sites", "resid.0", "--to", to, "--no-attribution").exit_code == 0
        )
        assert "number (2), activation" in read_patching(to) and len(read_patching(to)) == 4
    assert (to / "figures" / "patching-number-activation.svg").read_bytes() == before
    page = reporting.report(to).read_text()
    assert "number, activation" in page and "0 tasks" not in page


def test_every_piece_is_a_position_of_prompts_of_one_length_and_clean_prompts_can_be_run(tmp_path: Path) -> None:
    result = run("patch", "--pairs", pairs(tmp_path, ROWS[0]), "--sites", "resid.0", "--to", tmp_path, "--run", "clean")
    assert "start+3 'painter' / 'painters'" in " ".join(result.output.split()), result.output
    (exact, _) = read_patching(tmp_path).values()
    assert exact.positions[3] == "start+3" and len(exact.positions) == 9
    assert exact.normalised[0].round(2).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("header", "rows", "options", "says"),
    [
        (HEADER, ROWS, [], "BadParameter: prompts of different lengths"),
        (HEADER, ROWS, ["--position", "nosuch"], "nosuch"),
        (HEADER, ROWS, ["--position", "end", "--sites", "resid.9"], "UnknownSite"),
        (HEADER, ROWS, ["--span", "subject=subject"], "ConfigError: --span subject=subject names one column"),
        (HEADER, ROWS, ["--span", "subject=subject,nosuch"], "nosuch"),
        ("clean,wrong", ["a,b"], [], "note: a file of pairs has columns clean and corrupted"),
        ("clean,corrupted,answer", ["a,b,was"], [], "CorpusError: one answer of each pair is missing"),
        ("clean,corrupted,answer,corrupted_answer", ["a,b,was,was"], [], "two different answers"),
        ("clean,corrupted,answer,corrupted_answer", ["a,b,was,xyz"], [], "NoBehaviour: the answer 'xyz'"),
        ("clean,corrupted", ["the painter,the painter"], ["--position", "end"], "NoBehaviour: the behaviour never"),
    ],
)
def test_pairs_that_cannot_be_patched_are_refused_by_type(
    header: str, rows: list[str], options: list[str], says: str, tmp_path: Path
) -> None:
    result = run("patch", "--pairs", pairs(tmp_path, *rows, header=header), *options, "--to", tmp_path / "to")
    assert result.exit_code == 1 and says in result.stderr and "Traceback" not in result.output, result.output
    assert not (tmp_path / "to").exists()


def test_pairs_know_their_answers_and_their_spans(tmp_path: Path) -> None:
    found = PromptPairs.read(str(pairs(tmp_path, *ROWS)), spans={"subject": ("subject", "corrupted_subject")})
    assert len(found) == 2 and found.alternatives == ("was", "were", "is", "are")
    directions = found.directions()
    assert directions is not None and directions.tolist() == [[1, -1, 0, 0], [0, 0, 1, -1]]
    texts = [e.text[slice(*e.spans["subject"])] for e in found.corpus.examples]
    assert texts == ["painter", "doctor", "painters", "doctors"]
    with pytest.raises(CorpusError, match="no text in column 'corrupted'"):
        PromptPairs.read(str(pairs(tmp_path, "a,b", "c,", header="clean,corrupted")))


def test_ablation_writes_a_table_and_a_map_for_each_kind_of_part(tmp_path: Path) -> None:
    texts = ["--corpus", f"train={REFERENCE / 'train.jsonl'}", "--max-rows", 40, "--to", tmp_path]
    behaviour = ["--behaviour", "next_token:answers=was|were|is|are"]
    result = run("ablate", *texts, *behaviour, "--part", "heads", "--part", "layers")
    assert result.exit_code == 0, result.output
    heads, layers = (pd.read_parquet(tmp_path / f"ablation-{part}-mean.parquet") for part in ("heads", "layers"))
    assert heads["component"].tolist()[:2] == ["head 0.0", "head 0.1"] and len(heads) == 12 and len(layers) == 3
    assert (
        "Answers as measured, with piece ids: was (" in result.output
        and result.output.count("Answers as measured") == 1
    )
    assert f"largest: {heads.loc[heads['effect'].idxmax(), 'component']} {heads['effect'].max():.2f}" in result.output
    assert (heads["n_rows"] == 40).all() and layers["effect"].max() > heads["effect"].min()
    drawn = ET.parse(tmp_path / "figures" / "ablation-heads-mean.svg").getroot()
    assert "layer 2" in {node.text for node in drawn.iter() if node.tag.endswith("text")}
    assert set(heads["model"]) == {"model [weights fb05cb64, float32]"}
    for _ in range(2):
        assert run("ablate", *texts, "--behaviour", "next_token:answers=was|is", "--part", "layers").exit_code == 0
    tables = {path.name for path in tmp_path.glob("*.parquet")}
    assert tables == {f"ablation-{name}.parquet" for name in ("heads-mean", "layers-mean", "layers-mean-2")}
    assert pd.read_parquet(tmp_path / "ablation-layers-mean.parquet").equals(layers)
    for options, says in (([], "NoBehaviour"), ([*behaviour, "--part", "nose"], "unknown kind of component 'nose'")):
        refused = run("ablate", *texts[:-1], tmp_path / "none", *options)
        assert refused.exit_code == 1 and says in refused.stderr and not (tmp_path / "none").exists()
