"""Exports of Neuronpedia are read with fields missing and unknown; damaged ones are typed errors."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probing.errors import InputError, ProbingError, ProvenanceMismatch
from probing.neuronpedia.reading import read_export

OWNER = {"modelId": "gpt2-small", "layer": "6-res-jb"}


def write(file: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(OWNER | line)) + "\n" for line in lines)
    file.write_bytes(gzip.compress(text.encode(), mtime=0) if file.suffix == ".gz" else text.encode())
    return file


def export(folder: Path) -> Path:
    """An export as the public ones are: numbers as text, fields of no use here, parts in several batches."""
    features = [
        {
            "index": "3",
            "maxActApprox": 7.5,
            "frac_nonzero": 0.012,
            "pos_str": [" is"],
            "pos_values": [1.0],
            "vector": [],
        },
        {"index": "4", "maxActApprox": None, "frac_nonzero": 0, "neuron_alignment_l1": [0.1], "hasVector": False},
    ]
    write(folder / "features" / "batch-0.jsonl.gz", features)
    write(folder / "features" / "batch-10.jsonl.gz", [{"index": 40}])
    explained = [
        {"index": "3", "description": " plural \n nouns ", "typeName": "oai_token-act-pair", "authorId": "x"},
        {"index": "3", "description": "plural nouns"},
        {"index": "3", "description": "words that end in s"},
        {"index": "4", "description": ""},
        {"index": "40"},
    ]
    write(folder / "explanations" / "batch-0.jsonl.gz", explained)
    texts = [
        {
            "index": 3,
            "tokens": [" the", " cats", " sat"],
            "values": [0.0, 2.5, 0.5],
            "maxValue": 2.5,
            "dfaValues": None,
        },
        {"index": 3, "tokens": [" dogs"], "values": [7.5], "maxValueTokenIndex": 0},
        {"index": 3, "tokens": [], "values": []},
    ]
    write(folder / "activations" / "batch-0.jsonl", texts)
    return folder


def test_latents_get_names_densities_and_contexts(tmp_path: Path) -> None:
    found = read_export(export(tmp_path))
    assert (found.model, found.source) == ("gpt2-small", "6-res-jb")
    assert found.name(3) == "plural nouns; words that end in s" and found.name(4) == found.name(99) == ""
    assert found.densities == {3: 0.012, 4: 0.0} and found.largest == {3: 7.5}
    first, second = found.contexts[3]
    assert first.tokens == (" dogs",) and second.tokens[second.largest] == " cats"
    assert found.page(3) == "https://www.neuronpedia.org/gpt2-small/6-res-jb/3"
    assert 3 in found and 4 in found and 40 not in found


def test_only_the_latents_asked_for_are_read(tmp_path: Path) -> None:
    found = read_export(export(tmp_path), latents=[4], most_contexts=1)
    assert not found.names and list(found.densities) == [4] and not found.contexts
    assert len(read_export(tmp_path, most_contexts=1).contexts[3]) == 1


def test_a_part_alone_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "explanations" / "batch-0.jsonl.gz", [{"index": 1, "description": "x"}])
    assert read_export(tmp_path).names == {1: ("x",)}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ('{"modelId": "gpt2-small", "layer": "6-res-jb"}', "index"),
        ('{"modelId": "gpt2-small", "layer": "6-res-jb", "index": -1}', "index"),
        ('{"modelId": "gpt2-small", "layer": "6-res-jb", "index": 1, "index": 2}', "twice"),
        ('{"modelId": "gpt2-small", "layer": "6-res-jb", "index": 1, "maxActApprox": NaN}', "NaN"),
        ('{"modelId": "gpt2-small", "layer": "6-res-jb", "index": 1, "maxActApprox": 1e999}', "too large"),
        ("[1]", "object"),
        ("\xff", "UTF-8"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "features" / "batch-0.jsonl.gz"
    good = json.dumps(OWNER | {"index": 1})
    file.parent.mkdir()
    file.write_bytes(gzip.compress(f"{good}\n{line}\n".encode("latin-1")))
    with pytest.raises(InputError) as raised:
        read_export(tmp_path)
    assert words in str(raised.value) and "line 2" in str(raised.value)


def test_values_that_do_not_fit_their_tokens_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "activations" / "batch-0.jsonl", [{"index": 1, "tokens": ["a"], "values": [1.0, 2.0]}])
    with pytest.raises(InputError, match="1 tokens and 2 values"):
        read_export(tmp_path)


def test_lines_of_another_dictionary_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "features" / "batch-0.jsonl", [{"index": 1}, {"index": 1, "layer": "7-res-jb"}])
    with pytest.raises(ProvenanceMismatch, match="several dictionaries"):
        read_export(tmp_path)


def test_a_latent_twice_is_refused_and_addresses_are_quoted(tmp_path: Path) -> None:
    owner = {"modelId": "../x?a=<b>", "layer": "6 res#y"}
    line = owner | {"index": 1, "frac_nonzero": 0.5}
    write(tmp_path / "features" / "batch-0.jsonl", [line])
    address = read_export(tmp_path).page(1)
    assert address == "https://www.neuronpedia.org/..%2Fx%3Fa%3D%3Cb%3E/6%20res%23y/1"
    write(tmp_path / "features" / "batch-1.jsonl", [line | {"frac_nonzero": 0.9}])
    with pytest.raises(InputError, match="latent 1 twice"):
        read_export(tmp_path)


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="no export of Neuronpedia"):
            read_export(folder)


def test_spoiled_files_are_typed_errors_or_read(tmp_path: Path) -> None:
    """200 files with a cut or turned bytes: never another error than one of this package."""
    file = export(tmp_path) / "features" / "batch-0.jsonl.gz"
    whole, random, refused = file.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        spoiled = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(spoiled), random.integers(0, 4)):
            spoiled[place] = random.integers(0, 256)
        file.write_bytes(bytes(spoiled))
        try:
            read_export(tmp_path)
        except ProbingError:
            refused += 1
    assert refused > 150
