"""Finds the units that are resampled, and which rows have an input that train has as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.labels import Labels
from probing.statistics.clusters import EVALUATED
from probing.text.corpus import Corpus, Example
from probing.text.grouping import connected, group_keys
from probing.text.text_forms import as_input

Ints = NDArray[np.int64]
CLUSTERS = ("auto", "sentence", "document")
NEARLY_CONSTANT = 0.5  # agreement beyond chance of two sentences of one unit from which it is what is resampled
Inputs = Mapping[int, tuple[int, str]]


def input_names(examples: Sequence[Example], *, of_chats: bool = False) -> list[str]:
    """Return what tells the input of each example from others: its text, and with `of_chats` all messages around it."""
    names = [as_input(e.text) for e in examples]
    if of_chats:
        names = [f"{name}\x1f{e.messages}" if e.messages else name for name, e in zip(names, examples, strict=True)]
    return names


def input_codes(corpus: Corpus, inputs: Inputs, *, of_chats: bool = False) -> Ints:
    """Return equal codes for examples whose input is the same, `(E,)`: by text, or by pieces where the store knows
    them.

    Args:
        corpus: of the store.
        inputs: by example ordinal, unknown pieces and hash of the piece ids of inputs that their text does not tell.
        of_chats: whether the texts were read within their chats.
    """
    pieces = [inputs[e][1] if e in inputs else None for e in range(len(corpus))]
    return connected(input_names(corpus.examples, of_chats=of_chats), pieces)


def with_fresh(labels: Labels, codes: Ints, also_trained: NDArray[np.bool_] | None = None) -> Labels:
    """Return the labels with `fresh`: which rows of dev and test have an input that is not in train.

    The score on the others tells what was learned by heart.

    Args:
        labels: all labelled rows.
        codes: `(E,)` of `input_codes`.
        also_trained: `(E,)` whether something else that is scored on these rows trains on this input.
    """
    is_trained = np.isin(np.arange(len(codes)), labels.example[labels.rows("train")])
    is_trained = is_trained if also_trained is None else is_trained | also_trained
    fresh = ~np.isin(codes, codes[is_trained])[labels.example] | ~np.isin(labels.split, EVALUATED)
    return labels if fresh.all() else replace(labels, fresh=fresh)


def with_clusters(labels: Labels, corpus: Corpus, codes: Ints, cluster: str) -> Labels:
    """Return the labels with `groups` and `unit`: the unit asked for; of `auto` the largest that the label is constant
    in.

    A unit in which the label is all but constant gives as many observations as it has members, however many rows: the
    rows of a document that share a label share what a probe makes of the document, too. Copies of an input are always
    one cluster.

    Raises:
        BadParameter: documents asked for, and no example names one.
    """
    if cluster == "document" and all(e.document is None for e in corpus.examples):
        raise BadParameter(
            "no example names its document",
            needed="a column `document` or `group`, or --group COLUMN",
            found="none",
            where=corpus.source,
            next_step="leave cluster=document out: sentences are resampled",
        )
    constant = label_agreement(labels, corpus)
    by_document = cluster == "document" or (cluster == "auto" and constant >= NEARLY_CONSTANT)
    keys = [codes.tolist()] + ([group_keys(corpus.examples)] if by_document else [])
    return replace(
        labels,
        groups=connected(*keys)[labels.example],
        unit=corpus.unit if by_document else "sentence",
        unit_reason="asked for" if cluster != "auto" else _reason(constant, corpus) if by_document else "",
    )


def _reason(agreement: float, corpus: Corpus) -> str:
    how = "is constant" if agreement >= 1 - 1e-9 else f"agrees by {agreement:.2f} beyond chance"
    return f"the label {how} within each {corpus.unit}"


def label_agreement(labels: Labels, corpus: Corpus) -> float:
    """Return how far sentences of one document agree in their label beyond chance: 1 if it is constant, 0 without
    documents.

    Of classes (P − P₀) / (1 − P₀), with P the share of equal labels among pairs of rows of one document and two
    sentences, P₀ among all pairs. Of numbers the same with squared differences: 1 − mean within / mean of all.
    """
    document = [e.document for e in corpus.examples]
    names = {name: code for code, name in enumerate(dict.fromkeys(document))}
    of_example = np.array([-1 if name is None else names[name] for name in document], dtype=np.int64)
    units = of_example[labels.example]
    rows = np.flatnonzero(units >= 0)
    if not len(rows):
        return 0.0
    units, sentences = units[rows], labels.example[rows]
    pairs = _pairs(units) - _pairs(sentences)
    if pairs <= 0:
        return 0.0
    if labels.kind == "real":
        x = np.asarray(labels.y[rows], dtype=np.float64) - labels.y[rows].mean()
        spread = float(x @ x) / len(x)
        return (_products(units, x) - _products(sentences, x)) / pairs / spread if spread else 0.0
    codes = np.unique(labels.codes[rows], return_inverse=True)[1].reshape(-1)
    shares = np.bincount(codes) / len(codes)
    chance = float(shares @ shares)
    equal = (_equal_pairs(units, codes) - _equal_pairs(sentences, codes)) / pairs
    return (equal - chance) / (1 - chance) if chance < 1 else 0.0


def _pairs(codes: Ints) -> float:
    """Return how many ordered pairs of rows, a row with itself included, share a code."""
    counts = np.bincount(np.unique(codes, return_inverse=True)[1].reshape(-1)).astype(np.float64)
    return float(counts @ counts)


def _equal_pairs(units: Ints, codes: Ints) -> float:
    return _pairs(units * (int(codes.max()) + 1) + codes)


def _products(units: Ints, x: NDArray[np.float64]) -> float:
    """Return the sum over ordered pairs of rows of one unit of the product of their values."""
    sums = np.bincount(np.unique(units, return_inverse=True)[1].reshape(-1), x)
    return float(sums @ sums)
