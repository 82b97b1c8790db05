"""Dictionaries written by other libraries' own classes encode and decode here as there, to 1e-5.

Each library runs in a process of its own, by the Python that PROBING_DICTIONARY_PYTHON names (default: this one);
where it is not installed (see `tests/samples/other_libraries.py`), its test is skipped by name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import probing as pb
from tests.samples.other_libraries import run_with

MODULES = {
    "saelens": "sae_lens",
    "gemma_scope": "sae_lens",
    "sparsify": "sparsify",
    "dictionary_learning": "dictionary_learning",
}
CASES = {"saelens": 26, "gemma_scope": 4, "sparsify": 5, "dictionary_learning": 7}
SITES = {
    "saelens": {"resid.3"},
    "gemma_scope": {"resid.21", "resid.8", None},
    "sparsify": {"resid.6", None},
    "dictionary_learning": {"resid.9"},
}


@pytest.mark.dictionary_libraries
@pytest.mark.parametrize("library", MODULES)
def test_a_dictionary_of_a_library_encodes_and_decodes_as_there(library: str, tmp_path: Path, warm: list[str]) -> None:
    python, module = os.environ.get("PROBING_DICTIONARY_PYTHON", sys.executable), MODULES[library]
    done = run_with(module, "tests.dictionaries.library_files", library, str(tmp_path), warm=warm, python=python)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = sorted(file.parent for file in tmp_path.rglob("expected.npz"))
    assert len(folders) == CASES[library]
    sites = set()
    for folder in folders:
        expected = np.load(folder / "expected.npz", allow_pickle=False)
        made = pb.Dictionary.load(folder, allow_pickle_weights=library == "dictionary_learning")
        sites.add(made.site)
        latents = made.encode(expected["x"])
        size = np.abs(expected["f"]).max()
        assert size > 0 and latents.nnz == (expected["f"] > 0).sum(), folder.name
        np.testing.assert_allclose(latents.toarray() / size, expected["f"] / size, atol=1e-5, err_msg=folder.name)
        given = made.reconstruct(expected["x"]) if made.is_transcoder or made.skip is not None else None
        decoded = made.decode(latents, states=expected["x"]) if given is None else given
        size = np.abs(expected["y"]).max()
        np.testing.assert_allclose(decoded / size, expected["y"] / size, atol=1e-5, err_msg=folder.name)
    assert SITES[library] <= sites | {None}
