"""The reference pages name all there is: public names, options, keys of study files, columns of Parquet files."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import probing as pb
from probing import contracts, errors, registry
from probing.cli.commands import app
from probing.scoring.scores import RowScore, TextScore, TextScores
from probing.training.leaving_out import leave_one_out
from probing.training.transferring import transfer
from probing.verdicts.verdict import write_use_run
from tests.conftest import REFERENCE, ROOT, module_at
from tests.samples.basis_dictionaries import basis, dictionary
from tests.samples.circuit_samples import CANCELLING, Planted, planted_pairs
from tests.samples.page_samples_of_parts import dictionary_and_contexts
from tests.samples.training_samples import vector_of, word_corpus, word_store
from tests.samples.use_report_samples import a_result, run_of

pytest.importorskip("sphinx", reason="the documentation's packages are not installed: pip install -e '.[docs]'")

MODEL = str(REFERENCE / "model")
WRITERS = re.compile(r"\b(?:write_parquet|to_parquet|write_table)\(")
# Where Parquet is written; a file that joins them says in docs/_columns.yaml what its columns are.
KNOWN_WRITERS = {
    "files/whole_files.py",
    "jobs/patch.py",
    "states/store/export.py",
    "training/results.py",
    "results/dictionary_training.py",
    "results/latent_contexts.py",
    "results/similarity.py",
    "results/lens.py",
    "results/circuit.py",
    "results/inspection.py",
    "results/transfer.py",
    "scoring/scores.py",
    "verdicts/verdict.py",
}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The extension, without Sphinx around it."""
    return module_at(ROOT / "docs" / "_reference.py")


@pytest.fixture(scope="module")
def pages(reference: ModuleType) -> dict[str, str]:
    made: dict[str, str] = reference.pages()
    return made


def test_every_public_name_is_documented_once(pages: dict[str, str]) -> None:
    text = "".join(page for name, page in pages.items() if name != "api/index")
    found = re.findall(r"^\.\. (?:autoclass|autofunction|py:exception):: probing\.(\w+)(?:\(.*\))?$", text, re.M)
    assert sorted(found) == pb.__all__
    assert [name for name in pb.__all__ if f"<probing.{name}>" not in pages["api/index"]] == ["ProbingError"]


def test_every_contract_and_every_error_is_documented_once(pages: dict[str, str]) -> None:
    assert re.findall(r":: probing\.contracts\.(\w+)$", pages["api/contracts"], re.M) == contracts.__all__
    kinds = (errors.ProbingError, errors.ProbingWarning)
    known = {name for name, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, kinds)}
    found = re.findall(r"^\.\. py:exception:: (?:\w+\.)+(\w+)$", pages["api/errors"], re.M)
    assert sorted(found) == sorted(known)


def test_every_command_and_option_is_documented(reference: ModuleType, pages: dict[str, str]) -> None:
    """Compared with what `--help` prints, which is found without the generator."""
    sections = dict(
        re.findall(r"^\.\. program:: ([^\n]+)\n\n(.*?)(?=^\.\. _command-|\Z)", pages["command-line"], re.M | re.S)
    )
    assert {tuple(name.split()[1:]) for name in sections} == set(_commands(()))
    for name, section in sections.items():
        shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        options = set(re.findall(r"^│ (?:\*)? *(--[a-z-]+)", shown, re.M)) - {"--help"}
        assert set(re.findall(r"^\.\. option:: (--[a-z-]+)", section, re.M)) == options, name
    assert "Default: ``resid.*``" in sections["probing extract"]


def _commands(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    _, found, listed = shown.partition("─ Commands ")
    names = re.findall(r"^│ ([a-z-]+)", listed, re.M)
    if not found:
        yield path
    for name in names:
        yield from _commands((*path, name))


def test_every_key_of_a_study_file_is_documented(pages: dict[str, str]) -> None:
    """Compared with the schema that pydantic makes of a study."""
    schema = pb.Study.model_json_schema()
    keys = set(schema["properties"]) - {"root"}
    for part, name in {
        "extract": "ExtractOptions",
        "train": "StudyTrain",
        "use": "StudyUse",
        "inspect": "InspectOptions",
        "lens": "LensOptions",
        "similarity": "StudySimilarity",
        "circuit": "CircuitOptions",
        "truth": "KnownTruth",
        "models": "ModelOptions",
    }.items():
        keys |= {f"{part}.{key}" for key in schema["$defs"][name]["properties"]}
    found = re.findall(r"^\.\. confval:: (\S+)\n\n   (.*) \(\*.*\)$", pages["study-files"], re.M)
    assert {key for key, _ in found} == keys
    assert [key for key, about in found if not re.search(r"\w", about)] == []


def test_every_member_is_documented(pages: dict[str, str]) -> None:
    found = re.findall(r"^\.\. describe:: (\w+)", pages["members"], re.M)
    assert found == [name for folder in registry.FOLDERS for name in registry.names(folder)]


# Columns.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[pd.DataFrame]]:
    """Every kind of Parquet file, as the package writes it, by its name in docs/_columns.yaml."""
    to = tmp_path_factory.mktemp("written")
    corpus = _in_groups(word_corpus(seed=1, ambiguous=0.3))
    random = np.random.default_rng(0)
    store = word_store(corpus, lambda form, tag: vector_of(tag, 6) + 0.3 * random.standard_normal(6))
    options: dict[str, Any] = {"task": "upos"}
    options |= {"features": [dictionary(basis(6), site="resid.0")]}
    pb.train(store, corpus, analyses=["information"], controls=["word_type:draws=2"], to=to, progress=False, **options)  # type: ignore[arg-type]
    options.pop("features")
    transfer({"a": (store, corpus), "b": (store, corpus)}, **options).write(to)  # type: ignore[dict-item]
    checkpoint = _as_checkpoint(store)
    pb.similarity(store, checkpoint, corpus=corpus, task="upos", permutations=19, progress=False).write(to)  # type: ignore[arg-type]
    leave_one_out(store, corpus, group="template", least_rows=10, **options).write(to)  # type: ignore[arg-type]
    write_use_run(run_of(a_result()), to)
    pb.lens(MODEL, pb.Corpus.from_texts(["nowadays the doctor clearly"]), use_rows=0, to=to, progress=False)
    pairs = planted_pairs()
    pb.circuit(Planted(CANCELLING), pairs, properties=["sign"], random_circuits=2, to=to, progress=False)
    _patch_and_ablate(to)
    _export(to)
    _score(to)
    _inspect(to)
    dictionary_and_contexts(to)
    kinds = {"patching-*": "patching-{title}", "ablation-*": "ablation-{part}-{by}", "export-*": "{name}"}
    names = [
        "results",
        "analyses",
        "features",
        "transfer",
        "similarity",
        "drift",
        "leave_one_out",
        "verdicts",
        "scores",
        "circuit_edges",
        "circuit_sizes",
        "circuit_flows",
        "lens",
        "lens_differences",
        "lens_rows",
        "dictionary_training",
        "latent_contexts",
        "latent_disagreements",
    ]
    names += [file.stem for file in sorted(to.glob("inspection-*.parquet"))]
    found = {f"{name}.parquet": [pd.read_parquet(to / f"{name}.parquet")] for name in names}
    read = {
        kind: [pd.read_parquet(file) for file in sorted(to.glob(f"{files}.parquet"))] for files, kind in kinds.items()
    }
    return found | {f"{kind}.parquet": tables for kind, tables in read.items()}


def _as_checkpoint(store: Any) -> Any:
    """The store with one coordinate of huge variance, as of a model at step 10."""
    identity = store.identity | {"model": {"source": "planted", "checkpoint": {"step": 10}}}
    states = {site: X * np.array([40.0] + [1.0] * (X.shape[1] - 1), np.float32) for site, X in store.states.items()}
    other = replace(store, states=states, path="step-10", content_id="d" * 64)
    other.__class__ = type("Checkpoint", (type(store),), {"identity": identity})
    return other


def _in_groups(corpus: pb.Corpus) -> pb.Corpus:
    marked = (replace(e, columns=dict(e.columns) | {"template": "ab"[n % 2]}) for n, e in enumerate(corpus.examples))
    return pb.Corpus(tuple(marked))


def _patch_and_ablate(to: Path) -> None:
    pairs = to / "pairs.csv"
    texts = "formerly the old painter near the garden probably", "nowadays the old painter near the garden probably"
    pairs.write_text(f"clean,corrupted,answer,corrupted_answer\n{texts[0]},{texts[1]},was,is\n", encoding="utf-8")
    given = ["--model", MODEL, "--to", str(to), "--quiet"]
    behaviour = ["--behaviour", "next_token:answers=was|is", "--max-rows", "20"]
    corpus = ["--corpus", f"test={REFERENCE / 'test.jsonl'}"]
    for command in (
        ["patch", *given, "--pairs", str(pairs), "--sites", "resid.0", "--position", "end"],
        ["ablate", *given, *corpus, *behaviour, "--part", "mlps"],
    ):
        ended = CliRunner().invoke(app, command)
        assert ended.exit_code == 0, ended.output


def _score(to: Path) -> None:
    threshold = SimpleNamespace(value=0.1, label="b")
    recipe: Any = SimpleNamespace(label="b", remarks=("model is another",), threshold=threshold)
    row = RowScore(0, 3, -1, 0.5, "b", {"a": 0.4, "b": 0.6}, True)
    TextScores(recipe, "model", [TextScore("1", "the", (row,), (row,))]).write(to / "scores.parquet")


def _inspect(to: Path) -> None:
    model = pb.LanguageModel.load(MODEL, attention="eager")
    one, other = "nowadays the doctor clearly", "nowadays the painter clearly"
    pb.inspect(model, one, against=other, check=True, to=to, progress=False)


def _export(to: Path) -> None:
    texts = ["nowadays the doctor clearly", "formerly the old painter probably"]
    corpus = pb.Corpus(tuple(pb.Example(id=str(n), text=text, split="train") for n, text in enumerate(texts)))
    model = pb.LanguageModel.load(MODEL)
    given: dict[str, Any] = {"sites": "resid.0", "progress": False}
    positions = pb.extract(model, corpus, rows="position:end", to=to / "positions", **given)
    replay = pb.extract(model, corpus, role="replay", to=to / "replay", **given)
    for name, store in {"positions": positions, "replay": replay}.items():
        ended = CliRunner().invoke(
            app, ["store", "export", str(store.path), "--to", str(to / f"export-{name}.parquet")]
        )
        assert ended.exit_code == 0, ended.output


def _declared(reference: ModuleType, name: str) -> dict[str, str]:
    """Return the declared columns of a file, each as the pattern of its real names, with its kind."""
    stands_for = {
        "{label}": r"[^()]+",
        "{edit}": "(?:swap|interchange)",
        "{dose}": r"[\d.]+",
        "{site}": r"(?:resid\.\d+|embed|final_norm)",
    }
    found = {}
    for column, (kind, _) in reference.columns()[name]["columns"].items():
        pattern = re.escape(column)
        for part, real in stands_for.items():
            pattern = pattern.replace(re.escape(part), real)
        found[pattern] = kind
    return found


def test_columns_are_those_of_the_files(reference: ModuleType, written: dict[str, list[pd.DataFrame]]) -> None:
    assert set(written) == set(reference.columns())
    for name, tables in written.items():
        declared, real = _declared(reference, name), {column for table in tables for column in table}
        assert tables, name
        assert [c for c in real if not any(re.fullmatch(pattern, c) for pattern in declared)] == [], name
        assert [p for p in declared if not any(re.fullmatch(p, c) for c in real)] == [], name


def test_kinds_of_columns_are_those_of_the_files(reference: ModuleType, written: dict[str, list[pd.DataFrame]]) -> None:
    for name, tables in written.items():
        for pattern, kind in _declared(reference, name).items():
            real = [table[c] for table in tables for c in table if re.fullmatch(pattern, c)]
            assert all(_is_of(kind, column) for column in real), f"{name}: {pattern} is no {kind}"


def _is_of(kind: str, column: pd.Series[Any]) -> bool:
    filled = column.dropna()
    if filled.empty:
        return True
    if kind == "list":
        return all(isinstance(value, np.ndarray) for value in filled)
    kinds: dict[str, Any] = {
        "text": pd.api.types.is_string_dtype,
        "number": pd.api.types.is_float_dtype,
        "count": pd.api.types.is_integer_dtype,
        "yes/no": pd.api.types.is_bool_dtype,
    }
    return bool(kinds[kind](filled))


def test_every_column_is_on_the_page(reference: ModuleType, pages: dict[str, str]) -> None:
    for name, file in reference.columns().items():
        assert f"\n{name}\n" in pages["result-files"]
        assert [column for column in file["columns"] if f"``{column}``" not in pages["result-files"]] == []


def test_no_other_file_of_the_package_writes_parquet() -> None:
    package = ROOT / "probing"
    found = {f.relative_to(package).as_posix() for f in package.rglob("*.py") if WRITERS.search(f.read_text("utf-8"))}
    assert found == KNOWN_WRITERS
