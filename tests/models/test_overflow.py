"""States beyond a data type's range are refused with the data type as cause, and nothing half-made stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from probing.errors import NonFiniteStates, NotRepresentable
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.states.store import Store
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of

HALF = torch.float16


def loud(value: float, dtype: torch.dtype = torch.float32, letter: str = "") -> LanguageModel:
    """A GPT-2 whose embedding of a letter, or of all, holds a value that float16 does not reach."""
    network = build("gpt2")
    with torch.no_grad():
        chosen = slice(None) if not letter else ord(letter) - ord("!")
        network.transformer.wte.weight[chosen] = value
    return LanguageModel.from_modules(network.to(dtype), byte_tokenizer())


@pytest.mark.parametrize("value", [1e5, -1e6, 65520.0])
def test_an_overflow_of_float16_is_named_with_the_dtypes_that_reach_further(value: float) -> None:
    with pytest.raises(NonFiniteStates, match=r"float16(.|\n)*next step: compute in float32 or bfloat16") as caught:
        loud(value, HALF)
    assert "family" not in str(caught.value) and "another model" not in str(caught.value)
    for dtype in (torch.float32, torch.bfloat16):
        assert loud(value, dtype).sites


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_numbers_are_not_laid_to_float16(dtype: torch.dtype) -> None:
    with pytest.raises(NonFiniteStates, match="check the weights") as caught:
        loud(float("nan"), dtype)
    assert "float16" not in str(caught.value).replace("bfloat16", "")


def test_a_store_of_one_shard_that_cannot_be_stored_leaves_nothing_and_claims_nothing(tmp_path: Path) -> None:
    model, corpus = loud(1e5, letter="c"), corpus_of("the cat", "a thing is in")
    given: dict[str, Any] = {"sites": "embed", "rows": "piece", "to": tmp_path / "s", "progress": False}
    with pytest.raises(NotRepresentable) as caught:
        extract(model, corpus, dtype="float16", **given)
    assert not (tmp_path / "s").exists() and not getattr(caught.value, "__notes__", [])
    assert extract(model, corpus, **given).shards_done == 1  # other options may use the folder


def test_shards_that_were_written_beside_one_that_fails_are_kept_and_said(tmp_path: Path) -> None:
    model, corpus = loud(1e5, letter="c"), corpus_of("a thing is in", "the cat", "in a thing")
    with pytest.raises(NotRepresentable) as caught:
        extract(
            model,
            corpus,
            sites="embed",
            rows="piece",
            dtype="float16",
            to=tmp_path / "s",
            shard_bytes=1,
            progress=False,
        )
    assert any("is done and kept" in note for note in caught.value.__notes__)
    assert Store.open(tmp_path / "s", allow_partial=True).shards_done == 2
