"""A trained dictionary with its contexts, and a circuit of a planted model, as their pages show them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import probing as pb
from probing.reporting.page import Contents
from tests.conftest import REFERENCE
from tests.samples.circuit_samples import CANCELLING, Planted, planted_pairs


def dictionary_and_contexts(to: Path) -> tuple[Any, Any]:
    """A small dictionary of the reference model, trained in `to`, and what excites its latents."""
    whole = pb.Corpus.read({split: REFERENCE / f"{split}.jsonl" for split in ("train", "dev", "test")})
    chosen = [one for split in whole.splits for one in [e for e in whole.examples if e.split == split][:40]]
    corpus, model = pb.Corpus(tuple(chosen)), pb.LanguageModel.load(str(REFERENCE / "model"))
    store = pb.extract(model, corpus, rows="piece", sites="resid.2", to=to / "tokens", progress=False)
    given: dict[str, Any] = {"latents": 64, "k": 4, "epochs": 1, "batch": 64, "model": model, "corpus": corpus}
    made = pb.train_dictionary(store, "resid.2", **given, to=to, progress=False)
    property: dict[str, Any] = {"task": "column:subject_number", "rows": "sentence:last", "count": 5}
    return made, pb.top_contexts(made.dictionary, store, corpus, **property, to=to, progress=False)


@cache
def dictionary() -> Contents:
    """The page of a dictionary and of its latents."""
    with TemporaryDirectory() as folder:
        made, contexts = dictionary_and_contexts(Path(folder))
        return Contents(dictionary=made.training, contexts=contexts)


@cache
def circuit() -> Contents:
    """The page of a circuit whose paths cancel."""
    given: dict[str, Any] = {"properties": ["sign"], "random_circuits": 2, "progress": False}
    return Contents(circuits=[pb.circuit(Planted(CANCELLING), planted_pairs(), **given)])
