"""Cases on disk: a model folder, a corpus, minimal pairs, and the truth.

model/          config.json, model.safetensors, a word-level tokenizer: loaded like any model
readout.safetensors     of an encoder without a head: what the behaviour reads off the mean of its last states
corpus.jsonl    text, a column for each property, group, identity, template, spans (`subject`, `query`), split
pairs.jsonl     in the twins track only: two lines a pair, equal but for the property that they name
truth.json      case, configuration, behaviour, files and their hashes, and per cell what is true
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from probing.files.whole_files import write_atomically
from probing.plantbench.built import THRESHOLDS, VERSION, Built, cells_as_json, joints_as_json
from probing.plantbench.case import Truth
from probing.plantbench.prompts import SPECIAL, Language, Prompts
from probing.provenance import file_sha256
from probing.seeds import generator

FORMAT = 2  # 1 had S over the SD of the whole output, and no joints
ROWS, ROWS_PER_GROUP, PAIRS = 3000, 4, 200
SHARES = (("train", 0.6), ("dev", 0.2), ("test", 0.2))


def write_case(
    folder: str | Path,
    built: Built,
    truth: Truth,
    *,
    rows: int = ROWS,
    pairs: int = 0,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write a certified case.

    Args:
        folder: is made if it is not there.
        built: the model and its description.
        truth: of its cells.
        rows: of the corpus: fresh prompts in groups of four.
        pairs: for each property, for the twins track; 0: no pairs.jsonl.
        facts: what else truth.json is to say, such as the accuracy of a trained model.
    """
    target, planted = Path(folder), built.planted
    target.mkdir(parents=True, exist_ok=True)
    planted.model.save_pretrained(target / "model")
    (target / "model" / "generation_config.json").unlink(missing_ok=True)
    (target / "model" / "model.safetensors").chmod(0o644)
    tokenizer_of(planted.language).save_pretrained(target / "model")
    files = ["model/config.json", "model/model.safetensors", "model/tokenizer.json", "corpus.jsonl"]
    if planted.pooled is not None:
        write_atomically(target / "readout.safetensors", save({"weights": planted.pooled.numpy()}))
        files.append("readout.safetensors")
    language, rng = planted.language, generator(built.seed, "corpus")
    write_atomically(target / "corpus.jsonl", _json_lines(_corpus(language, rows, rng)))
    if pairs:
        write_atomically(target / "pairs.jsonl", _json_lines(_pairs(language, pairs, rng)))
        files.append("pairs.jsonl")
    write_truth(target, built, truth, files, facts or {})


def write_truth(folder: Path, built: Built, truth: Truth, files: Sequence[str], facts: dict[str, Any]) -> None:
    """Write truth.json beside the files that it names."""
    hashes = {name: file_sha256(folder / name) for name in files}
    text = json.dumps(_truth(built, truth, hashes, facts), indent=1) + "\n"
    write_atomically(folder / "truth.json", text.encode())


def tokenizer_of(language: Language) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words between spaces, which adds nothing before or after them."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(language.vocabulary)}, unk_token=SPECIAL[1]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    mask = {"mask_token": language.query} if language.query == "[MASK]" else {}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        pad_token=SPECIAL[0],
        unk_token=SPECIAL[1],
        model_max_length=language.length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **mask,
    )


def classes_of(language: Language, name: str) -> list[str]:
    """Return the labels of a property's classes in order; empty for real values."""
    if name in language.lexicon.values:
        return []
    return [f"{name.lower()}{code}" for code in range(int(language.lexicon.codes(name).max()) + 1)]


def _truth(built: Built, truth: Truth, hashes: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    language = built.planted.language
    kind = "readout" if built.planted.pooled is not None else "masked_token" if built.family == "bert" else "next_token"
    answers = [] if kind == "readout" else list(language.answer_words)
    directions = {key: [float(f"{x:.6g}") for x in vector] for key, vector in built.claim.directions.items()}
    return {
        "format": FORMAT,
        "generator_version": VERSION,
        "case": {
            "tier": built.tier,
            "number": built.number,
            "name": built.name,
            "twin": built.twin,
            "family": built.family,
            "seed": built.seed,
        },
        "configuration": dict(built.configuration),
        "configuration_sha256": built.configuration_sha256,
        "behaviour": {"kind": kind, "position": "query", "answers": answers},
        "properties": {name: classes_of(language, name) for name in language.lexicon.properties},
        "sha256": hashes,
        **facts,
        "thresholds": THRESHOLDS,
        "planted_directions": directions,
        "cells": cells_as_json(truth),
        "joints": joints_as_json(truth),
    }


def _corpus(language: Language, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    groups = np.arange(n) // ROWS_PER_GROUP
    order = rng.permutation(int(groups.max()) + 1)
    bounds = np.cumsum([share for _, share in SHARES])[:-1] * len(order)
    splits = [SHARES[int(np.searchsorted(bounds, order[g], side="right"))][0] for g in groups]
    names = [f"group-{g:05d}" for g in groups]
    return [
        row | {"split": split}
        for row, split in zip(_rows(language, language.sample(n, rng), names), splits, strict=True)
    ]


def _pairs(language: Language, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for name in language.lexicon.properties:
        x, other = language.pairs(n, name, rng)
        groups = [f"pair-{name}-{i:05d}" for i in range(n)]
        for one, twin in zip(_rows(language, x, groups), _rows(language, other, groups), strict=True):
            found += [one | {"property": name}, twin | {"property": name}]
    return found


def _rows(language: Language, prompts: Prompts, groups: Sequence[str]) -> list[dict[str, Any]]:
    lexicon, width = language.lexicon, len(str(int(language.lexicon.identities.max())))
    columns = {name: _labels(language, name, prompts.words) for name in lexicon.properties}
    return [
        {
            "text": text,
            **{name: labels[i] for name, labels in columns.items()},
            "group": groups[i],
            "identity": f"i{lexicon.identities[prompts.words[i]]:0{width}d}",
            "template": f"subject-{prompts.subject[i]}",
            "spans": {name: list(span) for name, span in spans.items()},
        }
        for i, (text, spans) in enumerate(zip(language.texts(prompts), language.spans(prompts), strict=True))
    ]


def _labels(language: Language, name: str, words: NDArray[np.int64]) -> list[Any]:
    classes = classes_of(language, name)
    if not classes:
        return list(language.lexicon.real(name)[words].tolist())
    return [classes[code] for code in language.lexicon.codes(name)[words]]


def _json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
