"""The command line starts without the compiler and SymPy, and nothing but the time of its start depends on that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REFERENCE, ROOT

HEAVY = ["torch._dynamo.convert_frame", "torch.distributed.tensor", "sympy", "sklearn", "pandas", "datasets"]
PROGRAM = """
import json, sys
light = sys.argv[1] == "light"
if light:
    from probing.models.loading.light_start import start_lightly
    start_lightly()
import probing as pb
model = pb.LanguageModel.load(sys.argv[2])
corpus = pb.Corpus.from_texts(["nowadays the doctor clearly", "formerly the old painter probably"])
store = pb.extract(model, corpus, to=sys.argv[3], progress=False)
loaded = [name for name in HEAVY if name in sys.modules]
{more}
print(json.dumps([store.store_id, store.content_id, loaded]))
"""
COMPILES = """
import torch
from torch._dynamo import is_compiling
import torch.fx.experimental.symbolic_shapes as symbols
assert symbols.guard_or_false(False) is False and symbols.sym_eq((1, 2), (1, 2)) and not symbols.is_nested_int(3)
assert isinstance(symbols.ShapeEnv, type) and sys.modules["torch._dynamo"].config is not None
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
"""


def ran(kind: str, to: Path, more: str = "", python: tuple[str, ...] = (sys.executable,)) -> tuple[str, str, list[str]]:
    program = PROGRAM.replace("HEAVY", repr(HEAVY)).replace("{more}", more)
    command = [*python, "-c", program, kind, str(REFERENCE / "model"), str(to)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store, content, loaded = json.loads(done.stdout.splitlines()[-1])
    return store, content, loaded


def test_a_light_start_loads_less_and_gives_the_same_store(tmp_path: Path, warm: list[str]) -> None:
    light, usual = ran("light", tmp_path / "a"), ran("usual", tmp_path / "b", python=tuple(warm))
    assert light[:2] == usual[:2]
    assert light[2] == []


@pytest.mark.slow
def test_who_compiles_after_a_light_start_gets_the_compiler(tmp_path: Path) -> None:
    ran("light", tmp_path / "a", COMPILES)
