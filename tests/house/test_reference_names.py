"""`probing:reference` names what ships; what the package says names no file that only the repository has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import probing as pb
from probing import reference, registry
from probing.cli.commands import app
from probing.errors import UnknownName
from probing.jobs import CorpusOptions
from tests.conftest import REFERENCE, ROOT
from tests.house.test_architecture import FILES, name_of

# What an installed package lacks: folders and pages of the repository.
ELSEWHERE = re.compile(r"\b(scripts|docs|datasets|tests|cache)/\w|\b(README|CONTRIBUTING|CHANGELOG|SECURITY)\b")
WRITTEN = re.compile(r"\bcache/(results|states)\b")  # folders that commands and examples write into


def names_elsewhere(text: str) -> list[str]:
    return [match[0] for match in ELSEWHERE.finditer(WRITTEN.sub("", text))]


def docstrings(tree: ast.Module) -> set[int]:
    """Places of the strings that are statements of their own, which nothing shows to a user."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_string_names_a_file_of_the_repository(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = docstrings(tree)
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in own]
    assert not [s for s in strings if isinstance(s, str) and names_elsewhere(s)]


def commands(group: object, *path: str) -> list[tuple[str, ...]]:
    """Paths of all commands below a group."""
    below = getattr(group, "commands", None)
    return [path] if below is None else [p for name, one in below.items() for p in commands(one, *path, name)]


@pytest.mark.parametrize("path", [(), *commands(typer.main.get_command(app))], ids=" ".join)
def test_no_help_names_a_file_of_the_repository(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0 and "Example" in shown.output
    assert not names_elsewhere(shown.output)


@pytest.mark.parametrize("folder", registry.FOLDERS)
def test_no_documentation_of_a_member_names_a_file_of_the_repository(folder: str) -> None:
    members = [registry.get(folder, name) for name in registry.names(folder)]
    assert not names_elsewhere("".join((one.__doc__ or "") + (one.MEMBER.__doc__ or "") for one in members))


def test_the_corpus_by_name_is_the_corpus_by_its_files() -> None:
    files = {split: str(REFERENCE / f"{split}.jsonl") for split in ("train", "dev", "test")}
    by_files = pb.Corpus.read(files)
    assert pb.Corpus.read("probing:reference").examples == by_files.examples
    assert pb.Corpus.read(dict.fromkeys(files, "probing:reference")).examples == by_files.examples
    test = pb.Corpus.read({"test": "probing:reference"})
    assert test.examples == tuple(e for e in by_files.examples if e.split == "test")


def test_the_model_by_name_is_the_model_by_its_folder() -> None:
    by_name, by_folder = (pb.LanguageModel.load(name) for name in ("probing:reference", str(REFERENCE / "model")))
    assert by_name.identity() == by_folder.identity() and by_name.source == by_folder.source


def test_a_study_names_what_ships_wherever_its_file_lies(tmp_path: Path) -> None:
    corpus = CorpusOptions(corpus=["probing:reference"]).read_corpus(root=tmp_path)
    assert corpus.examples == pb.Corpus.read("probing:reference").examples
    shipped = pb.Study.from_yaml("probing:reference")
    assert shipped == pb.Study.from_yaml(REFERENCE / "study.yaml")


@pytest.mark.parametrize("read", [pb.Corpus.read, pb.LanguageModel.load, pb.Study.from_yaml])
def test_what_does_not_ship_is_refused_with_what_does(read: object) -> None:
    with pytest.raises(UnknownName, match="probing:reference"):
        read("probing:refrence")  # type: ignore[operator]


def test_the_installed_data_come_before_the_repository_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.folder() == ROOT / "datasets" / "reference"
    installed = tmp_path / "probing" / "reference_data"
    installed.mkdir(parents=True)
    monkeypatch.setattr(reference, "__file__", str(tmp_path / "probing" / "reference.py"))
    assert reference.folder() == installed
