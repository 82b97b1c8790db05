"""What version 0.1 called otherwise still works, with a warning that names the new: modules, kinds, entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import warnings

import pytest

from probing import _moved, registry
from tests.conftest import ROOT


@pytest.mark.parametrize("old", sorted(_moved._MOVED))
def test_a_module_is_found_by_its_old_name(old: str) -> None:
    new = f"probing.{_moved._MOVED[old]}"
    sys.modules.pop(f"probing.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"probing\.{old} is now {new}"):
        found = importlib.import_module(f"probing.{old}")
    assert found is importlib.import_module(new)
    above, _, child = new.rpartition(".")
    assert getattr(importlib.import_module(above), child) is found  # the old name did not take another's place
    _, _, old_child = old.rpartition(".")
    taken = f"{importlib.import_module(f'probing.{old}'.rpartition('.')[0]).__name__}.{old_child}"
    assert sys.modules.get(taken, found) is getattr(importlib.import_module(taken.rpartition(".")[0]), old_child)


def test_patching_is_found_by_its_old_name_and_its_folder_stays_what_it_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = importlib.import_module("probing.intervening.patching")
    new = importlib.import_module("probing.use.patching")
    assert old is new and importlib.import_module("probing.use").patching is new
    assert new.patch is importlib.import_module("probing.use.patching.patching").patch
    assert importlib.import_module("probing.use.patching.prompt_pairs") is new.prompt_pairs


def test_a_file_of_a_moved_folder_is_no_second_copy() -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from probing.corpora.jsonl import MEMBER as old\nfrom probing.store import Store\n"
        "from probing.readers.jsonl import MEMBER as new\nimport probing.states.store\nimport probing as pb\n"
        "assert old is new and Store is pb.Store"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_readers_are_found_by_their_old_kind_and_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(DeprecationWarning, match="`corpora` are called `readers` now"):
        assert registry.names("corpora") == registry.names("readers")
    with pytest.warns(DeprecationWarning, match="`corpora` are called `readers` now"):
        assert registry.get("corpora", "jsonl") is registry.get("readers", "jsonl")
    point = importlib.metadata.EntryPoint("mine", "probing.readers.jsonl", "probing.corpora")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda *, group: [point] if group == "probing.corpora" else []
    )
    with pytest.warns(DeprecationWarning, match=r"entry-point group `probing\.corpora` is called"):
        assert "mine" in registry.names("readers")
