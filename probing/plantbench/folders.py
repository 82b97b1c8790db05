"""Cases on disk: a model folder, a corpus, minimal pairs, and the truth.

model/          config.json, model.safetensors, a word-level tokenizer: loaded like any model
readout.safetensors     for an encoder without a head: weights of the readout from the mean of its last states
corpus.jsonl    text, a column for each property, group, identity, template, spans (`subject`, `query`), split
pairs.jsonl     in the twins track only: two lines per minimal pair, which differ in the property that they name
truth.json      case, configuration, behaviour, hashes of the files, and the certified truth about each cell
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from probing._renamed import takes_old_names
from probing.contracts.behaviour import Behaviour
from probing.errors import CorpusError
from probing.files.strict_json import strict_json
from probing.files.whole_files import write_atomically
from probing.models.language_model import LanguageModel
from probing.plantbench.built import THRESHOLDS, VERSION, Built, cells_as_json, joints_as_json, truth_from_json
from probing.plantbench.case import Case, Ints, Truth, Values
from probing.plantbench.prompts import POSITIONS, SPECIAL, Language, Prompts
from probing.provenance import file_sha256
from probing.seeds import generator
from probing.text.corpus import Corpus
from probing.use.behaviours.masked_token import MaskedToken
from probing.use.behaviours.next_token import NextToken
from probing.use.behaviours.readout import FinalStates
from probing.use.edited_models.text import TextInstrument

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
    """Write a certified case into a folder.

    Args:
        folder: path of the folder, which is made if it does not exist.
        built: the model and its description.
        truth: truth about its cells.
        rows: number of rows of the corpus: new prompts in groups of four.
        pairs: number of minimal pairs for each property, for the twins track; 0: no pairs.jsonl is written.
        facts: further facts for truth.json, such as the accuracy of a trained model.
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
    """Write truth.json, with the hashes of `files`, into the folder of these files."""
    hashes = {name: file_sha256(folder / name) for name in files}
    text = json.dumps(_truth(built, truth, hashes, facts), indent=1) + "\n"
    write_atomically(folder / "truth.json", text.encode())


def tokenizer_of(language: Language) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer that splits text at white space and adds no special tokens."""
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
    """Return the names of a property's classes, in order; empty for real values."""
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


_WRITTEN = "truth.json as write_case writes it"
_PARTS = {
    "generator_version": int,
    "case": dict,
    "configuration": dict,
    "configuration_sha256": str,
    "behaviour": dict,
    "properties": dict,
    "sha256": dict,
    "cells": list,
    "joints": list,
}
_CASE = {"tier": int, "number": int, "name": str, "twin": str, "family": str, "seed": int}


@takes_old_names
def read_case(
    folder: str | Path, *, split: str | None = None, rows: int = 8000, minimal_pairs: str = "", check: bool = True
) -> tuple[Case, Truth]:
    """Read a case from a folder and return it with its truth; its rows are those of corpus.jsonl.

    Args:
        folder: folder that `write_case` wrote.
        split: split of the corpus to use; None means all rows.
        rows: largest number of rows.
        minimal_pairs: name of a property; the rows are then its minimal pairs from pairs.jsonl, and only cells of this
            property are kept. "": the rows of corpus.jsonl and all cells.
        check: whether to run the model's self-check.

    Raises:
        CorpusError: a file is missing, malformed, or has changed since certification.
    """
    source = Path(folder)
    told = read_truth_file(source)
    truth = truth_from_json(told["cells"], str(source / "truth.json"), told["joints"])
    model = LanguageModel.load(str(source / "model"), kind=_kind(told), check=check)
    corpus = _corpus_read(source, told, minimal_pairs)
    names = list(told["properties"])
    instrument = TextInstrument.from_spans(
        model, corpus, _behaviour(source, told), positions=POSITIONS, columns=names, split=split, max_rows=rows
    )
    chosen = [corpus.examples[k] for k in instrument.rows.ordinal]
    labels = {name: _values([e.columns[name] for e in chosen], told["properties"][name], name) for name in names}
    about = told["case"]
    identities = np.unique([str(e.columns["identity"]) for e in chosen], return_inverse=True)[1].astype(np.int64)
    case = Case(
        tier=about["tier"],
        number=about["number"],
        name=about["name"],
        twin=about["twin"],
        seed=about["seed"],
        instrument=instrument,
        labels=labels,
        n_classes={name: len(told["properties"][name]) for name in names},
        groups=instrument.rows.groups,
        cells=tuple(cell for cell in truth.cells if minimal_pairs in ("", cell.property)),
        types=identities,
        twins=_twins([e.group for e in chosen]) if minimal_pairs else None,
    )
    return case, truth


def read_truth_file(folder: Path) -> dict[str, Any]:
    """Check that the files named in truth.json are unchanged, and return its content.

    Raises:
        CorpusError: the file is missing, malformed or of another format, or a file named in it has changed.
    """
    path = folder / "truth.json"
    try:
        told = strict_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorpusError("no truth of a case", needed=_WRITTEN, found=str(error)[:200], where=str(path)) from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        found = repr(told.get("format")) if isinstance(told, dict) else type(told).__name__
        raise CorpusError("a truth of another format", needed=f"format {FORMAT}", found=found, where=str(path))
    _check_types(told, _PARTS, str(path))
    _check_types(told["case"], _CASE, f"{path}: case")
    for name, expected in told["sha256"].items():
        _check_file(folder, name, expected)
    return told


def _check_types(given: dict[str, Any], wanted: dict[str, type], where: str) -> None:
    for name, kind in wanted.items():
        if type(given.get(name)) is not kind:
            raise CorpusError(
                f"a truth without a sound {name!r}", needed=_WRITTEN, found=repr(given.get(name))[:80], where=where
            )


def _check_file(folder: Path, name: str, expected: Any) -> None:
    path = folder / name
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    found = file_sha256(path) if is_inside and path.is_file() else "no such file"
    if found != expected:
        raise CorpusError(
            f"{name} is not the file that was certified",
            needed=f"sha256 {expected}",
            found=found,
            where=str(folder),
            next_step="write the case again, or fetch it whole",
        )


def _kind(told: dict[str, Any]) -> Any:
    return {"next_token": "causal", "masked_token": "masked"}.get(told["behaviour"].get("kind"), "base")


def _behaviour(folder: Path, told: dict[str, Any]) -> Behaviour:
    about = told["behaviour"]
    kind, answers, position = (about.get(key) for key in ("kind", "answers", "position"))
    if kind in ("next_token", "masked_token") and isinstance(answers, list) and isinstance(position, str):
        make = NextToken if kind == "next_token" else MaskedToken
        return make(answers=tuple(map(str, answers)), position=position)
    if kind != "readout":
        raise CorpusError(
            "an unknown behaviour",
            needed="next_token, masked_token or readout",
            found=repr(kind),
            where=str(folder / "truth.json"),
        )
    weights = torch.from_numpy(load_file(folder / "readout.safetensors")["weights"])

    def pooled(states: Tensor, real: Tensor) -> Tensor:
        shares = real.to(states.dtype) / real.sum(1, keepdim=True)
        return (shares[:, :, None] * states).sum(1) @ weights.to(states)

    return FinalStates(function=pooled)


def _corpus_read(folder: Path, told: dict[str, Any], twins: str) -> Corpus:
    if not twins:
        return Corpus.read(str(folder / "corpus.jsonl"))
    if twins not in told["properties"] or "pairs.jsonl" not in told["sha256"]:
        raise CorpusError(
            "no minimal pairs of this property",
            needed="pairs.jsonl, and one of its properties",
            found=twins,
            where=str(folder),
            next_step="write the case with pairs=…",
        )
    corpus = Corpus.read(str(folder / "pairs.jsonl"), split_column="none")
    return Corpus(tuple(e for e in corpus.examples if e.columns["property"] == twins), corpus.source)


def _values(labels: list[Any], classes: list[str], name: str) -> Values:
    if not classes:
        return np.array(labels, dtype=np.float64)
    if not set(labels) <= set(classes):
        raise CorpusError(
            f"labels of {name!r} that are no class of it",
            needed=", ".join(classes),
            found=repr(sorted(set(map(str, labels)) - set(classes)))[:80],
        )
    return np.array([classes.index(label) for label in labels], dtype=np.int64)


def _twins(groups: list[str]) -> Ints:
    """Return the other row of each row's pair."""
    found = np.empty(len(groups), dtype=np.int64)
    first: dict[str, int] = {}
    for row, group in enumerate(groups):
        other = first.setdefault(group, row)
        found[row], found[other] = other, row
    return found
