"""What nothing here ever does: unpickle, run a model's own code, write through links, let a name lead elsewhere."""

from __future__ import annotations

import ast
import itertools
import json
import pickle
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import BadParameter, ConfigError, ProbingError, RemoteCodeRefused, StoreError, UnsupportedModel
from probing.files.strict_json import strict_json
from probing.jobs.study import Study
from probing.models.site import Site
from probing.states.store import StoreWriter
from probing.states.store.export import export
from tests.cli.test_study import GOOD
from tests.conftest import REFERENCE, ROOT
from tests.samples import store_samples as sample

FILES = sorted((ROOT / "probing").rglob("*.py"))


class Payload:
    """Unpickling it writes a canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def called(node: ast.Call) -> str:
    """The function that is called, with what leads to it: `a.b.c`, and `.c` of what is not a name."""
    return dotted(node.func)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def opened_by(node: ast.AST) -> str:
    """Return the name of the function that a node calls, or nothing."""
    return called(node) if isinstance(node, ast.Call) else ""


def forbidden(source: str) -> list[str]:
    """Calls, imports and arguments that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and all(alias.name.endswith("Error") for alias in node.names):
            continue  # what a library raises can be caught without it
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [
                n
                for n in names
                if n.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
            ]
        elif isinstance(node, ast.Call):
            name = called(node)
            if name in ("eval", "exec", "compile", "__import__", "os.system", "yaml.unsafe_load", "yaml.full_load"):
                found.append(name)
            if name.endswith(("to_csv", "csv.writer", "csv.DictWriter")):  # its cells would have to be defused first
                found.append(name)
            if name == "yaml.load" and "Loader=_StrictLoader" not in ast.unparse(node):
                found.append(name)
            if name.endswith("torch.load") and "weights_only=True" not in ast.unparse(node):
                found.append(name)
            for argument in node.keywords:
                bad = {"allow_pickle": "False", "trust_remote_code": "False", "weights_only": "True", "shell": "False"}
                if argument.arg not in bad:
                    continue
                if (value := ast.unparse(argument.value)) not in (bad[argument.arg], "allow_pickle_weights"):
                    found.append(f"{argument.arg}={value}")
            if name.endswith("from_pretrained") and "trust_remote_code=False" not in ast.unparse(node):
                found.append(name)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f)",
        "eval(s)",
        "frame.to_csv(f)",
        "A.from_pretrained(n)",
        "A.from_pretrained(n, trust_remote_code=True)",
        "of(a)[0].from_pretrained(n)",
        "run(c, shell=True)",
    ],
)
def test_the_lint_sees_what_it_forbids(source: str) -> None:
    assert forbidden(source)


def test_no_source_file_can_unpickle_or_run_what_a_file_says() -> None:
    assert {str(file): found for file in FILES if (found := forbidden(file.read_text(encoding="utf-8")))} == {}
    # One function reads a pickle of tensors, after its flag (tests/lenses/test_lens_files.py).
    texts = [(file, file.read_text(encoding="utf-8")) for file in FILES]
    trees = [(file, ast.walk(ast.parse(text))) for file, text in texts if "torch.load" in text]
    loads = [file.name for file, nodes in trees for node in nodes if "torch.load" in opened_by(node)]
    assert loads == ["pickles.py"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REFERENCE / "model", tmp_path / "model"))


def as_pickle(model: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def test_pickled_weights_need_a_flag_and_are_recorded(
    model: Path, tmp_path: Path, small_corpus: dict[str, Path]
) -> None:
    plain = pb.LanguageModel.load(str(model)).identity()["model"]
    as_pickle(model)
    with pytest.raises(UnsupportedModel, match="--allow-pickle-weights"):
        pb.LanguageModel.load(str(model))
    command = ["extract", "--model", str(model), "--corpus", str(small_corpus["dev"]), "--sites", "embed", "--to"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "b"), "--allow-pickle-weights"])
    assert done.exit_code == 0, done.output
    identity = pb.Store.open(tmp_path / "b").identity["model"]
    assert identity["pickle_weights"] is True and list(identity["weights"]) == ["pytorch_model.bin"]
    assert "pickle_weights" not in plain


def test_a_pickle_that_runs_code_is_refused_even_where_pickles_are_allowed(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "canary"), protocol=2))
    torch.save({"w": Payload(tmp_path / "canary")}, model / "pytorch_model-00001-of-00001.bin")
    with pytest.raises(ProbingError):
        pb.LanguageModel.load(str(model), allow_pickle_weights=True)
    torch.save({"w": Payload(tmp_path / "canary")}, model / "pytorch_model.bin")
    with pytest.raises(ProbingError):
        pb.LanguageModel.load(str(model), allow_pickle_weights=True)
    assert not (tmp_path / "canary").exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)  # the naive double
    assert (tmp_path / "canary").exists()


def with_own_code(model: Path, canary: Path, model_type: str) -> None:
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
    (model / "own_code.py").write_text(code, encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.Own", "AutoModelForCausalLM": "own_code.Own"}
    config |= {"model_type": model_type, "auto_map": names}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_a_model_of_its_own_code_is_refused_and_nothing_of_it_is_imported(model: Path, tmp_path: Path) -> None:
    with_own_code(model, tmp_path / "canary", "their-own")
    with pytest.raises(RemoteCodeRefused, match=r"own_code\.Own"):
        pb.LanguageModel.load(str(model))
    assert not (tmp_path / "canary").exists()
    assert not [name for name in sys.modules if "own_code" in name]


def test_own_code_beside_a_known_model_is_left_alone(model: Path, tmp_path: Path) -> None:
    known = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    with_own_code(model, tmp_path / "canary", known)
    card = model / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "own_code.Own"]}}
    card.write_text(json.dumps(json.loads(card.read_text(encoding="utf-8")) | own), encoding="utf-8")
    try:
        loaded = pb.LanguageModel.load(str(model))
        assert loaded.identity()["model"]["remote_code"] is False
    except RemoteCodeRefused:
        pass
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"{", b'{"model_type": "gpt2", "model_type": "bert"}', b"[" * 100_000])
def test_a_config_that_is_not_sound_json_is_a_typed_error(model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        pb.LanguageModel.load(str(model))


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', "NaN", "[Infinity]", "-Infinity", "1e999", "[" * 100_000, '{"a":' * 100_000, "", "{,}"],
)
def test_unsound_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        strict_json(text)
    with pytest.raises(ValueError, match=r".+"):
        strict_json(text.encode())


BOMB = "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghi"))


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]",
        "? [x]\n: 1\n? [x]\n: 2",
        "? {x: 1}\n: 1",
        "name: 2024-99-99",
        "name: !!int abc",
        "name: !!binary é",
        "name: !!timestamp x",
        "name: !!python/object/apply:os.system [id]",
        "name: !!python/name:os.system",
        "name: .nan",
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000 + "x",
        "a: 1\na: 2",
        "<<: {name: x}\nname: y\n<<: {model: z}",
        "name: \0",
        "\x01",
        "name: \ud800",
        "--- a\n--- b",
        "!!set {a, a}",
        "!!omap [a: 1]",
        "name: " + "1" * 5000,
        "name: 0b2",
        "name: 1:99999999999:1",
        "a: " * 300_000,
    ],
)
def test_a_hostile_study_is_a_config_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        Study.from_yaml(file)


def test_a_study_has_at_most_a_megabyte(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(GOOD + "#" * 1_000_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="1 MB"):
        Study.from_yaml(file)


NAMES = ["../x", "/x", "x/../../y", "a\0b", "n" * 300, "", ".", "..", "-x", "con\n", "x.", "a b", "é"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProbingError):
        Site.parse(name)
    with pytest.raises(ConfigError):
        Study.read(
            {"name": name, "model": "m", "corpus": "c.jsonl", "extract": {}, "train": {"task": "upos"}}, where="here"
        )
    if "/" not in name and name not in ("", "."):
        with pytest.raises(BadParameter):
            StoreWriter.open(tmp_path / name, identity=sample.identity(), environment={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["column:../../x", "column:<script>" + "n" * 300])
def test_names_of_tasks_do_not_lead_out_of_the_results(tmp_path: Path, task: str) -> None:
    column = task.partition(":")[2]
    known = ("the", "was", ".")  # words of the model, so that no two texts are one input to it
    for k, split in enumerate(("train", "dev", "test")):
        texts = [" ".join(known[(180 * k + i) // 3**place % 3] for place in range(6)) for i in range(180)]
        rows = [{"text": text, column: ("yes", "no")[i % 2], "id": str(i)} for i, text in enumerate(texts)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = pb.Corpus.read({s: str(tmp_path / f"{s}.jsonl") for s in ("train", "dev", "test")}, document="none")
    model = pb.LanguageModel.load(str(REFERENCE / "model"))
    store = pb.extract(model, corpus, sites="embed", rows="sentence:mean", to=tmp_path / "store")
    before = set(tmp_path.iterdir()) | {tmp_path / "results"}
    pb.train(store, corpus, task=task, to=tmp_path / "results", progress=False)
    page = pb.report(tmp_path / "results")
    assert set(tmp_path.iterdir()) == before and list((tmp_path / "results" / "probes").iterdir())
    assert "<script>n" not in page.read_text(encoding="utf-8")  # the page's own script is another


def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "shards").symlink_to(outside)
    with pytest.raises(StoreError):
        sample.write(tmp_path / "store")
    sample.write(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "shards")
    (tmp_path / "other" / "shards").symlink_to(outside)
    with pytest.raises(StoreError):
        sample.write(tmp_path / "other")
    assert list(outside.iterdir()) == []
    sample.write(tmp_path / "good")
    for name in ("dangling.h5", "dangling"):
        (tmp_path / name).symlink_to(outside / name)
        with pytest.raises(BadParameter):
            export(tmp_path / "good", tmp_path / name)
    assert list(outside.iterdir()) == []


def test_a_saved_probe_and_a_report_replace_links_and_do_not_follow_them(tmp_path: Path) -> None:
    import numpy as np

    from probing.probes.linear import LinearProbe

    mine = tmp_path / "mine"
    mine.write_text("mine", encoding="utf-8")
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"probe{suffix}").symlink_to(mine)
    X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    LinearProbe().fit(X, (X[:, 0] > 0).astype(int)).save(tmp_path / "probe")
    assert mine.read_text(encoding="utf-8") == "mine"


def test_the_terminal_obeys_no_name(tmp_path: Path) -> None:
    identity = sample.identity(model="\x1b]0;title\x07[red]not red[/red]\x1b[2J")
    writer = StoreWriter.open(tmp_path / "store", identity=identity, environment={})
    for shard in writer.missing():
        writer.commit(shard, sample.content(shard))
    done = CliRunner().invoke(app, ["store", "info", str(tmp_path / "store")])
    assert "\x1b" not in done.output and "\x07" not in done.output and "[red]not red" in done.output


def test_a_local_model_is_loaded_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    pb.LanguageModel.load(str(REFERENCE / "model"), check=False)
