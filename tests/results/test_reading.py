"""Files that hold one result: one that is missing is none, and what is no such result is refused by its first fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probing.errors import InputError
from probing.results import circuit, dictionary_training, latent_contexts, lens

READERS = {
    circuit.NAME: circuit.read_circuit,
    dictionary_training.NAME: dictionary_training.read_training,
    latent_contexts.NAME: latent_contexts.read_contexts,
    lens.NAME: lens.read_lens,
}


@pytest.mark.parametrize(("name", "read"), READERS.items())
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": 1}', "\x00", "[" * 10_000])
def test_a_file_that_is_no_such_result_is_refused(
    name: str, read: Callable[[Path], Any], text: str, tmp_path: Path
) -> None:
    assert read(tmp_path) is None
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert name in str(caught.value) and "validation error" not in str(caught.value)
