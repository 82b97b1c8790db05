"""What others wrote is shown with nothing in it that a terminal or a page obeys; imports refuse links and bombs."""

from __future__ import annotations

import ast
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import BadParameter, ConfigError, InputError, ProbingError, UntrustedFile, printable
from probing.files.fact_shapes import check_settings, check_shapes
from probing.jobs.study import Study
from probing.reporting.drawing import spec
from probing.reporting.page import _environment
from probing.results.probe import read_results
from probing.states.importing import import_states
from probing.system import screen
from tests.conftest import REFERENCE, ROOT, with_field

HOSTILE = "name\x1b]0;owned\x07\x1b[2J\u202eabc\u2066\x9b31m\r\x7f"
SHOWN = r"name\x1b]0;owned\x07\x1b[2J\u202eabc\u2066\u009b31m\x0d\u007f"
CONTROLS = [
    *map(chr, range(9)),
    *map(chr, range(0xB, 0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029",
    "\ud800",
]
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("character", CONTROLS, ids=lambda c: f"{ord(c):04x}")
def test_no_control_character_is_left(character: str) -> None:
    code = f"{ord(character):02x}" if ord(character) < 0x20 else f"{ord(character):04x}"
    assert printable(f"a{character}b") in (rf"a\x{code}b", rf"a\u{code}b")


def test_other_text_stays_as_it_is() -> None:
    text = "naïve 日本 \U0001f600 עברית \tand\nlines a\u200db ␣is"
    assert printable(text) == text == printable(printable(text))


def test_errors_tables_and_pages_show_it_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert SHOWN in str(BadParameter("no", found=HOSTILE))
    template = _environment().from_string('<td title="{{ x }}">{{ x }}</td>')
    assert template.render(x=HOSTILE) == f'<td title="{SHOWN}">{SHOWN}</td>'
    assert spec({"title": HOSTILE, "data": {"values": [{"x": HOSTILE}]}})["data"]["values"] == [{"x": SHOWN}]
    assert SHOWN in pb.Corpus((), source=HOSTILE)._repr_html_()
    assert str(BadParameter("no", where="a\nnext step: run it")) == "no\n  where: a\\nnext step: run it"
    screen.say(HOSTILE)
    assert capsys.readouterr().out == SHOWN + "\n"
    console = screen.console()
    console.file, console.width = io.StringIO(), 200
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE.replace("[", ""))
    console.print(table)
    said = console.file.getvalue()
    assert not OBEYED.search(said) and said.count(r"\u202eabc\u2066") == 3


def test_a_console_still_draws_colours() -> None:
    console = screen.console()
    console.file = io.StringIO()
    console._force_terminal, console._color_system = True, console._detect_color_system()
    console.print("plain")
    assert "plain" in console.file.getvalue()


def test_nothing_else_writes_to_the_terminal() -> None:
    """`typer.echo`, `print` and consoles of rich stand in one file."""
    for file in (ROOT / "probing").rglob("*.py"):
        if file.name in ("screen.py", "ending.py", "supervising.py", "stopping.py"):
            continue
        calls = [
            ast.unparse(n.func)
            for n in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(n, ast.Call)
        ]
        used = {"typer.echo", "print", "Console", "rich.print", "click.echo"} & set(calls)
        if file.name == "use_tables.py":
            used -= {"Console"}  # to measure a width
        assert not used, (file.name, used)


def test_commands_and_page_show_hostile_labels_escaped(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    files = with_field(small_corpus, tmp_path, "tone", HOSTILE)
    for file in files.values():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        kept = [row | ({"tone": "plain"} if k % 2 else {}) for k, row in enumerate(rows)]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    flags = [part for split, file in files.items() for part in ("--corpus", f"{split}={file}")]

    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    model = REFERENCE / "model"
    said = run(
        "extract", "--model", model, *flags, "--rows", "sentence:last", "--sites", "resid.1", "--to", tmp_path / "s"
    )
    said += run("train", tmp_path / "s", *flags, "--task", "column:tone", "--to", tmp_path / "r", "--quiet")
    said += run("report", tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert not OBEYED.search(said) and not OBEYED.search(page)
    assert r"\u202eabc\u2066" in page


@pytest.mark.parametrize("kind", ["a file", "a folder", "a store"])
def test_what_is_imported_is_no_symbolic_link(kind: str, tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    corpus = pb.Corpus.read(small_corpus)
    real = tmp_path / "real"
    real.mkdir()
    np.save(real / "resid.1.npy", np.zeros((sum(len(e.words) for e in corpus.examples), 4), np.float32))
    if kind == "a store":
        import_states(real, corpus, to=tmp_path / "made")
        source = tmp_path / "made"
    else:
        source = real / "resid.1.npy" if kind == "a file" else real
    link = tmp_path / f"link{source.suffix}"
    link.symlink_to(source)
    with pytest.raises(UntrustedFile, match="symbolic"):
        import_states(link, corpus, to=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert import_states(source, corpus, to=tmp_path / "t").n_rows


def test_a_sparse_file_is_refused_by_its_apparent_size(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    file = tmp_path / "bomb.npy"
    np.lib.format.open_memmap(file, "w+", np.float32, (4, 4))
    os.truncate(file, 1 << 40)
    if file.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system stores holes")
    with pytest.raises(UntrustedFile, match="store at least"):
        import_states(file, pb.Corpus.read(small_corpus), to=tmp_path / "s")


@pytest.mark.parametrize("field", ["seeds", "root_seed", "memory"])
@pytest.mark.parametrize("value", ["1" * 6000, "0x" + "f" * 6000, "0b" + "1" * 20_000, "1:" * 3000 + "1"])
def test_integers_of_thousands_of_digits_are_refused_by_type(field: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(_study(field, value))
    with pytest.raises(ConfigError) as caught:
        Study.from_yaml(file)
    assert "study.yaml" in str(caught.value)


def _study(field: str, value: str) -> str:
    return (
        "name: s\nmodel: m\ncorpus: {train: a.jsonl}\nextract: [{rows: 'word:mean'}]\n"
        f"train: [{{task: upos, {field}: {value}}}]\n"
    )


WRONG: list[tuple[str, Any]] = [
    ("rows", []),
    ("rows", {"train": "x"}),
    ("excluded", 3),
    ("like_groups", {"a": 1}),
    ("shared_inputs", {"test": []}),
    ("one_label", ["a"]),
    ("alike_labels", {"a": 1}),
    ("majority", "most"),
    ("entropy_bits", {}),
    ("unit_reason", [1]),
    ("clusters", "many"),
    ("unknown_pieces", "x"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_facts_of_another_shape_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"facts.{name}"):
        check_shapes({name: value}, {})
    check_shapes({name: None, "a later fact": value}, {"a later one": value})


@pytest.mark.parametrize("provenance", [{"recipe": 3}, {"recipe": {"probe": []}}, {"root_seed": "x"}, {"model": {}}])
def test_provenance_of_another_shape_is_refused(provenance: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="provenance"):
        check_shapes({}, provenance)


def test_settings_of_another_shape_are_refused() -> None:
    for settings in ({"criteria": []}, {"criteria": {"q": "x"}}, {"permutations": "many"}):
        with pytest.raises(ValueError, match="settings"):
            check_settings(settings)
    check_settings({"criteria": {"q": 0.1, "later": 1.0}})


def test_a_report_of_edited_facts_is_a_typed_error(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    corpus = pb.Corpus.read(small_corpus)
    store = pb.extract(str(REFERENCE / "model"), corpus, sites="resid.1", to=tmp_path / "s", progress=False)
    pb.train(store, corpus, task="upos", to=tmp_path / "r", progress=False)
    file = tmp_path / "r" / "results.jsonl"
    good = file.read_text()
    assert read_results(file)
    for wrong in ('"rows": [1], "x": {', '"excluded": 4, "rows": {', '"like_groups": {"a": [2]}, "rows": {'):
        file.write_text(good.replace('"rows": {', wrong))
        with pytest.raises(InputError):
            pb.report(tmp_path / "r")
    with pytest.raises(ProbingError):
        pb.report(tmp_path / "r")
