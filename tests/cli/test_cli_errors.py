"""Bad input through the command line: a typed error in one readable block, exit code 1, nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from probing.cli.commands import app
from probing.jobs import CorpusOptions
from probing.states.store import Store, StoreWriter
from tests.conftest import REFERENCE, with_field

MODEL = str(REFERENCE / "model")
JOBS = (
    "extract",
    "train",
    "use",
    "patch",
    "ablate",
    "inspect",
    "lens",
    "plantbench",
    "report",
    "transfer",
    "leave-one-out",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result: Result, error: str, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith(f"{error}: "), result.stderr
    for part in parts:
        assert part in result.stderr, (part, result.stderr)
    assert "Traceback" not in result.output


def flags(files: dict[str, Path]) -> list[str]:
    return [part for split, file in files.items() for part in ("--corpus", f"{split}={file}")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corpus_flags: list[str]) -> Path:
    place = tmp_path_factory.mktemp("states") / "small"
    result = run("extract", "--model", MODEL, *corpus_flags, "--to", place, "--quiet")
    assert result.exit_code == 0, result.output
    return place


def test_missing_corpus_names_the_file(tmp_path: Path) -> None:
    result = run("extract", "--model", MODEL, "--corpus", f"train={tmp_path / 'none.jsonl'}", "--to", tmp_path / "s")
    refused(result, "CorpusError", "none.jsonl")
    assert not (tmp_path / "s").exists()


def test_malformed_corpus_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.conllu"
    file.write_text("# text = a b\n1\ta\ta\tNOUN\t_\t_\t0\troot\t_\t_\n2\tb\tb\tNOUN\n\n", encoding="utf-8")
    result = run("extract", "--model", MODEL, "--corpus", f"train={file}", "--to", tmp_path / "s")
    refused(result, "CorpusError", "bad.conllu", "3", "10")


def test_head_out_of_range_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.conllu"
    file.write_text("1\ta\ta\tNOUN\t_\t_\t7\troot\t_\t_\n\n", encoding="utf-8")
    refused(run("extract", "--model", MODEL, "--corpus", f"train={file}", "--to", tmp_path / "s"), "CorpusError", "7")


def test_files_of_a_corpus_in_one_flag_are_refused_with_the_flags_to_write(tmp_path: Path) -> None:
    for given in ("train=a.jsonl,dev=b.jsonl", "train=a.jsonl, dev=b.jsonl"):
        result = run("extract", "--model", MODEL, "--corpus", given, "--to", tmp_path / "s")
        refused(result, "ConfigError", "--corpus train=a.jsonl --corpus dev=b.jsonl")
    crossed = ["--source", "a=x", "--source", "b=y", "--task", "upos", "--to", tmp_path / "t"]
    result = run("transfer", *crossed, "--corpus", "a.train=1.jsonl,b.train=2.jsonl")
    refused(result, "ConfigError", "--corpus a.train=1.jsonl --corpus b.train=2.jsonl")
    file = tmp_path / "a,dev=b.jsonl"  # such a name is read where there is such a file
    file.write_text('{"text": "the doctor"}\n', encoding="utf-8")
    assert len(CorpusOptions(corpus=[f"train={file}"]).read_corpus()) == 1


def test_unknown_model_is_refused(tmp_path: Path, corpus_flags: list[str]) -> None:
    result = run("extract", "--model", "no/such-model", *corpus_flags, "--to", tmp_path / "s")
    refused(result, "UnsupportedModel", "no/such-model", "next step")
    assert not (tmp_path / "s").exists()


def test_unknown_site_gets_the_nearest(tmp_path: Path, corpus_flags: list[str]) -> None:
    result = run("extract", "--model", MODEL, *corpus_flags, "--sites", "resd.1", "--to", tmp_path / "s")
    refused(result, "UnknownSite", "resd.1", "did you mean 'resid.1'?")
    assert not (tmp_path / "s").exists()


def test_unknown_task_gets_the_nearest(tmp_path: Path, store: Path, corpus_flags: list[str]) -> None:
    result = run("train", store, *corpus_flags, "--task", "uposs", "--to", tmp_path / "r")
    refused(result, "UnknownName", "did you mean 'upos'?")
    assert not (tmp_path / "r").exists()


def test_unknown_probe_gets_the_nearest(tmp_path: Path, store: Path, corpus_flags: list[str]) -> None:
    result = run("train", store, *corpus_flags, "--task", "upos", "--probe", "linaer", "--to", tmp_path / "r")
    refused(result, "UnknownName", "did you mean 'linear'?")
    result = run("train", store, *corpus_flags, "--task", "upos", "--probe", "mlp:hiden=3", "--to", tmp_path / "r")
    refused(result, "BadParameter", "hidden")
    assert not (tmp_path / "r").exists()


def test_unknown_column_gets_the_nearest(tmp_path: Path, store: Path, corpus_flags: list[str]) -> None:
    result = run("train", store, *corpus_flags, "--task", "column:subject_numbr", "--to", tmp_path / "r")
    refused(result, "UnknownName", "did you mean 'subject_number'?")


def test_one_class_is_refused(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    files = flags(with_field(small_corpus, tmp_path, "topic", "same"))
    assert run("extract", "--model", MODEL, *files, "--rows", "sentence:last", "--to", tmp_path / "s").exit_code == 0
    result = run("train", tmp_path / "s", *files, "--task", "column:topic", "--to", tmp_path / "r")
    refused(result, "DegenerateDesign", "topic", "class")
    assert not (tmp_path / "r").exists()


def test_nan_states_name_site_and_rows(tmp_path: Path, corpus_flags: list[str]) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(name for name in weights if "h.1." in name and name.endswith("c_fc.weight"))
    weights[name][:] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    result = run("extract", "--model", tmp_path / "model", *corpus_flags, "--to", tmp_path / "s")
    assert result.exit_code == 1
    assert result.stderr.startswith(("NonFiniteStates", "UnsupportedModel")), result.stderr
    assert "resid.2" in result.stderr


def test_empty_split_is_refused(tmp_path: Path, store: Path, small_corpus: dict[str, Path]) -> None:
    empty = tmp_path / "dev.jsonl"
    empty.write_text("", encoding="utf-8")
    result = run("train", store, *flags(small_corpus | {"dev": empty}), "--task", "upos", "--to", tmp_path / "r")
    refused(result, "CorpusError", "dev.jsonl")


def test_missing_split_is_refused(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    files = flags({split: small_corpus[split] for split in ("train", "test")})
    assert run("extract", "--model", MODEL, *files, "--to", tmp_path / "s").exit_code == 0
    result = run("train", tmp_path / "s", *files, "--task", "upos", "--to", tmp_path / "r")
    refused(result, "DegenerateDesign", "dev")


def test_store_of_another_corpus_is_refused(tmp_path: Path, store: Path, small_corpus: dict[str, Path]) -> None:
    swapped = flags(small_corpus | {"dev": small_corpus["test"], "test": small_corpus["dev"]})
    refused(run("train", store, *swapped, "--task", "upos", "--to", tmp_path / "r"), "ProvenanceMismatch", "corpus")


def test_store_of_another_recipe_is_refused(store: Path, corpus_flags: list[str]) -> None:
    before = sorted(p.name for p in store.rglob("*"))
    result = run("extract", "--model", MODEL, *corpus_flags, "--rows", "word:first", "--to", store)
    refused(result, "ProvenanceMismatch", "extraction.rows")
    assert sorted(p.name for p in store.rglob("*")) == before


def test_directory_that_is_no_store_is_left_alone(tmp_path: Path, corpus_flags: list[str]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    refused(run("extract", "--model", MODEL, *corpus_flags, "--to", tmp_path / "thesis"), "NotAStore")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_word_task_on_sentence_rows_says_how_to_extract(tmp_path: Path, corpus_flags: list[str]) -> None:
    assert (
        run("extract", "--model", MODEL, *corpus_flags, "--rows", "sentence:last", "--to", tmp_path / "s").exit_code
        == 0
    )
    refused(
        run("train", tmp_path / "s", *corpus_flags, "--task", "upos", "--to", tmp_path / "r"), "BadParameter", "word"
    )


def test_report_without_results_says_what_to_run(tmp_path: Path) -> None:
    result = run("report", tmp_path)
    assert result.exit_code == 1 and "probing train" in result.stderr


def test_wrong_usage_has_exit_code_2() -> None:
    assert run("extract").exit_code == 2
    assert run("no-such-command").exit_code == 2


@pytest.mark.slow
def test_full_disk_is_one_block_and_resume_finishes(tmp_path: Path, corpus_flags: list[str], store: Path) -> None:
    command = ["extract", "--model", MODEL, *corpus_flags, "--to", str(tmp_path / "s"), "--quiet"]
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, -1));"
        "sys.argv = ['probing', *sys.argv[1:]]; from probing.cli.commands import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "DiskFull: " in done.stderr and "Traceback" not in done.stderr
    assert run(*command).exit_code == 0
    assert_same_states(tmp_path / "s", store)


def test_a_want_of_memory_is_one_readable_block(
    tmp_path: Path, corpus_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(StoreWriter, "commit", exhausted)
    refused(
        run("extract", "--model", MODEL, *corpus_flags, "--to", tmp_path / "s", "--quiet"),
        "UnitFailed",
        "not enough memory",
        "kept",
    )


def test_interruption_keeps_what_is_done_and_resume_finishes(
    tmp_path: Path, corpus_flags: list[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ["extract", "--model", MODEL, *corpus_flags, "--to", tmp_path / "s", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", interrupted)
        refused(run(*command), "Interrupted", "next step")
    assert run(*command).exit_code == 0
    assert_same_states(tmp_path / "s", store)


@pytest.mark.slow
def test_sigint_ends_a_running_command_with_exit_code_1(tmp_path: Path, corpus_flags: list[str], store: Path) -> None:
    command = ["extract", "--model", MODEL, *corpus_flags, "--to", str(tmp_path / "s"), "--quiet"]
    child = subprocess.Popen(
        [sys.executable, "-m", "probing", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    while not (tmp_path / "s").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1, errors
    assert "Interrupted" in errors and "Traceback" not in errors
    assert run(*command).exit_code == 0
    assert_same_states(tmp_path / "s", store)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_batch_system_s_signal_ends_with_75_and_the_same_command_goes_on(
    tmp_path: Path, corpus_flags: list[str], store: Path, name: str
) -> None:
    command = ["extract", "--model", MODEL, *corpus_flags, "--to", str(tmp_path / "s"), "--quiet"]
    child = subprocess.Popen(
        [sys.executable, "-m", "probing", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "s").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(getattr(signal, name))
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 75, errors
    assert "goes on from here" in errors and "Traceback" not in errors
    assert run(*command).exit_code == 0
    assert_same_states(tmp_path / "s", store)


def test_sigint_inside_an_exec_of_text_ends_with_exit_code_1() -> None:
    program = """
import signal
from probing.cli import commands
commands.store_app.command("stop")(lambda: exec("signal.raise_signal(signal.SIGINT)", {"signal": signal}))
commands.main()
"""
    child = subprocess.run(
        [sys.executable, "-c", program, "store", "stop"], capture_output=True, text=True, check=False
    )
    assert child.returncode == 1, child.stderr
    assert child.stderr.startswith("Interrupted")


def assert_same_states(one: Path, other: Path) -> None:
    a, b = Store.open(one), Store.open(other)
    assert a.verify() == []
    assert a.sites == b.sites
    for site in a.sites:
        assert (a.read(site) == b.read(site)).all()


@pytest.mark.parametrize("command", [[name] for name in JOBS] + [["store", "import"]], ids=" ".join)
def test_the_list_of_commands_says_what_the_help_of_each_says_first(command):
    """The list is shown without importing what the commands are made of."""
    group = typer.main.get_command(app)
    for name in command[:-1]:
        group = group.commands[name]
    listed = group.commands[command[-1]].help.split()
    shown = [word for word in run(*command, "--help").output.split() if word != "│"]
    begin = shown.index(listed[0])
    assert shown[begin : begin + len(listed)] == listed
