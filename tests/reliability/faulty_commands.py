"""F13, what is run: every command on a small world of inputs, as it would be typed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.children import Ended, run

REFERENCE = Path(__file__).resolve().parents[2] / "datasets" / "reference"
MODEL = str(REFERENCE / "model")
SIZES = {"train": 150, "dev": 40, "test": 40}
ANSWERS = "next_token:answers=was|were|is|are"
PAIRS = """clean,corrupted,answer,corrupted_answer
nowadays the doctor behind the window clearly,nowadays the doctors behind the window clearly,is,are
"""
STUDY = """name: small
model: {model}
corpus: {{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}}
extract: [{{rows: "word:mean", sites: resid.1}}]
train: [{{task: upos, probes: [linear]}}]
"""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        words: its arguments; `{input}`, `{to}` and names of the world's files are filled in.
        input: the file or folder that `{input}` is.
        writes: whether it writes into `{to}`.
        made: what of the world `{to}` begins as, where the command needs something there; "": nothing.
        seconds: whether it takes only some: else only what keeps it from starting is asked of it.
    """

    words: Sequence[str]
    input: str = ""
    writes: bool = True
    made: str = ""
    is_quick: bool = True


_CORPUS = ("--corpus", "train={train}", "--corpus", "dev={dev}", "--corpus", "test={test}")

COMMANDS: Mapping[str, Command] = {
    "extract": Command(
        (
            "extract",
            "--model",
            MODEL,
            "--corpus",
            "train={input}",
            "--corpus",
            "dev={dev}",
            "--corpus",
            "test={test}",
            "--sites",
            "resid.1",
            "--to",
            "{to}",
            "--quiet",
        ),
        "train.jsonl",
    ),
    "train": Command(("train", "{input}", *_CORPUS, "--task", "upos", "--to", "{to}", "--quiet"), "store"),
    "train by processes": Command(
        (
            "train",
            "{input}",
            *_CORPUS,
            "--task",
            "upos",
            "--to",
            "{to}",
            "--quiet",
            "--executor",
            "processes",
            "--workers",
            "1",
        ),
        "store",
    ),
    "use": Command(
        (
            "use",
            "--model",
            MODEL,
            "--corpus",
            "train={input}",
            "--task",
            "column:tense",
            "--behaviour",
            ANSWERS,
            "--position",
            "end",
            "--sites",
            "resid.1",
            "--max-rows",
            "100",
            "--permutations",
            "20",
            "--to",
            "{to}",
            "--quiet",
        ),
        "train.jsonl",
    ),
    "patch": Command(
        ("patch", "--model", MODEL, "--pairs", "{input}", "--sites", "resid.1", "--to", "{to}", "--quiet"),
        "pairs.csv",
    ),
    "ablate": Command(
        (
            "ablate",
            "--model",
            MODEL,
            "--corpus",
            "train={input}",
            "--behaviour",
            ANSWERS,
            "--part",
            "mlps",
            "--max-rows",
            "20",
            "--to",
            "{to}",
            "--quiet",
        ),
        "train.jsonl",
    ),
    "transfer": Command(
        (
            "transfer",
            "--source",
            "a={input}",
            "--source",
            "b={other}",
            "--corpus",
            "a.train={train}",
            "--corpus",
            "a.dev={dev}",
            "--corpus",
            "a.test={test}",
            "--corpus",
            "b.train={train}",
            "--corpus",
            "b.dev={dev}",
            "--corpus",
            "b.test={test}",
            "--task",
            "upos",
            "--to",
            "{to}",
            "--quiet",
        ),
        "store",
    ),
    "leave-one-out": Command(
        ("leave-one-out", "{input}", *_CORPUS, "--task", "upos", "--group", "animacy", "--to", "{to}", "--quiet"),
        "store",
    ),
    "report": Command(("report", "{to}"), made="results"),
    "compare": Command(("compare", "{input}", "--task", "upos"), "results", writes=False),
    "run": Command(("run", "{input}", "--to", "{to}", "--quiet"), "study.yaml"),
    "plantbench": Command(
        ("plantbench", "--tier", "0", "--seeds", "1", "--json", "{to}/card.json", "--quiet"), is_quick=False
    ),
    "list": Command(("list", "probes"), writes=False),
    "store ls": Command(("store", "ls", "{input}"), "store", writes=False),
    "store info": Command(("store", "info", "{input}"), "store", writes=False),
    "store verify": Command(("store", "verify", "{input}"), "store", writes=False),
    "store repair": Command(("store", "verify", "{to}", "--repair"), made="store"),
    "store merge": Command(("store", "merge", "{to}", "{input}"), "store"),
    "store gc": Command(("store", "gc", "{to}", "--yes"), made="store"),
    "store rm": Command(("store", "rm", "{to}", "--yes"), made="store"),
    "store export": Command(("store", "export", "{input}", "--to", "{to}/states.safetensors"), "store"),
    "store import": Command(("store", "import", "{input}", *_CORPUS, "--to", "{to}"), "states.npy"),
}


def filled(command: Command, world: Path, to: Path, given: Path | None = None) -> list[str]:
    """The command's words with its paths; `given`: another input."""
    names = {
        "input": str(given or world / command.input),
        "to": str(to),
        "other": str(world / "store2"),
        **{split: str(world / f"{split}.jsonl") for split in SIZES},
    }
    return [word.format(**names) if "{" in word else word for word in command.words]


def call(words: Sequence[str]) -> Callable[[], None]:
    """The command line, called in this process."""

    def work() -> None:
        import sys

        from probing.__main__ import main

        sys.argv = ["probing", *words]
        main()

    return work


def preload() -> None:
    """Import what commands import, so that each child that is forked is quick."""
    from importlib import import_module

    probing = (
        "__main__",
        "cli",
        "jobs",
        "training",
        "extraction",
        "reporting.page",
        "store.export",
        "intervening.runs",
    )
    others = (
        "torch",
        "transformers",
        "pandas",
        "pyarrow.parquet",
        "h5py",
        "sklearn.linear_model",
        "scipy.stats",
        "joblib",
        "vl_convert",
        "jinja2",
    )
    names = [*others, *(f"probing.{name}" for name in probing)]
    for name in names:
        import_module(name)


def build_world(world: Path, *, heavy: bool) -> None:
    """Inputs of all commands: corpora, stores, results, pairs of prompts, an array, a study.

    Raises:
        AssertionError: a command that makes one of them failed.
    """
    import numpy as np

    world.mkdir(parents=True)
    for split, count in SIZES.items():
        lines = (REFERENCE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (world / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (world / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    (world / "study.yaml").write_text(STUDY.format(model=MODEL), encoding="utf-8")
    _done(filled(COMMANDS["extract"], world, world / "store"))
    _done(filled(COMMANDS["train"], world, world / "results"))
    if heavy:
        from probing.states.store import Store

        shutil.copytree(world / "store", world / "store2")
        np.save(world / "states.npy", Store.open(world / "store").read("resid.1"))


def _done(words: Sequence[str]) -> Ended:
    ended = run(call(words), 300)
    assert ended.code == 0, (words, ended.output)
    return ended
