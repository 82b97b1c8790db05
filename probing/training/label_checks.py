"""Refuses, before any training, labels from which nothing can be learned, or whose score would mean nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

import numpy as np

from probing.contracts.measure import Measure
from probing.errors import DegenerateDesign
from probing.labels import Labels
from probing.text.corpus import SPLITS, Corpus
from probing.text.grouping import first_crossing, group_keys


def check_labels(labels: Labels, corpus: Corpus) -> None:
    """Refuse a design from which nothing can be learned, or whose score would mean nothing.

    Raises:
        DegenerateDesign: no rows, an empty split, one class, fewer rows than classes, evaluation labels that never
            occur in train, or groups that cross splits; with what, where and the next step.
    """
    where = f"task {labels.task} on {corpus.source}"
    if not len(labels):
        raise DegenerateDesign(
            "no row has a label",
            needed="labelled rows",
            found=_listed(labels.excluded) or "no rows",
            where=where,
            next_step="check that splits are named train, dev and test, and that the column has values",
        )
    counts = {split: len(labels.rows(split)) for split in SPLITS}
    empty = [split for split, n in counts.items() if not n]
    if empty:
        raise DegenerateDesign(
            f"no labelled rows in {' and '.join(empty)}",
            needed="rows in train, dev and test",
            found=f"{_listed(counts)}; splits of the corpus: {', '.join(corpus.splits)}",
            where=where,
            next_step="give at least three sentences or documents (and for a judgement 200): fewer cannot be split"
            if len(set(corpus.units.tolist())) < len(SPLITS)
            else "give train=FILE dev=FILE test=FILE, or one file without a column `split`: it is split at random",
        )
    _check_variety(labels, counts["train"], where)
    _check_groups(labels, corpus, where)


def _check_variety(labels: Labels, n_train: int, where: str) -> None:
    if labels.kind == "labels":
        _check_label_sets(labels, where)
        return
    trained = np.unique(labels.y[labels.rows("train")])
    if len(trained) < 2:
        only = labels.classes[int(trained[0])] if labels.kind == "classes" else f"{trained[0]:g}"
        raise DegenerateDesign(
            "all train rows have one label",
            needed="at least two different labels",
            found=f"only {only!r}",
            where=where,
            next_step="choose another task or more data",
        )
    if labels.kind == "real":
        return
    if n_train < len(labels.classes):
        raise DegenerateDesign(
            "fewer train rows than classes",
            needed=f"at least {len(labels.classes)} rows",
            found=str(n_train),
            where=where,
            next_step="use more data, or a task with fewer classes (for numbers: column:NAME:real)",
        )
    for split in ("dev", "test"):
        present = np.unique(labels.y[labels.rows(split)])
        if not np.isin(present, trained).any():
            shown = ", ".join(labels.classes[code] for code in present[:10])
            raise DegenerateDesign(
                f"no label of {split} occurs in train",
                needed="labels that train has seen",
                found=shown,
                where=where,
                next_step="check that all files name their labels alike",
            )


def _check_label_sets(labels: Labels, where: str) -> None:
    share = labels.y[labels.rows("train")].mean(axis=0)
    if not ((share > 0) & (share < 1)).any():
        raise DegenerateDesign(
            "no label tells train rows apart",
            needed="a label that some rows of train have and others have not",
            found=", ".join(labels.classes[:10]) or "no label at all",
            where=where,
            next_step="use another column",
        )
    for split in ("dev", "test"):
        if not labels.y[labels.rows(split)][:, share > 0].any():
            raise DegenerateDesign(
                f"no label of {split} occurs in train",
                needed="labels that train has seen",
                found=f"none in {split}",
                where=where,
                next_step="check that all files name their labels alike",
            )


def _check_groups(labels: Labels, corpus: Corpus, where: str) -> None:
    labelled = [corpus.examples[ordinal] for ordinal in np.unique(labels.example)]
    crossing = first_crossing(zip(group_keys(labelled), (e.split for e in labelled), strict=True))
    if crossing:
        (_, name), here, there = crossing
        raise DegenerateDesign(
            "a group crosses splits",
            needed=f"every {corpus.unit} or sentence id in one split",
            found=f"{name!r} in {here} and {there}",
            where=where,
            next_step="correct the splits, or split at random by group with split_seed=0",
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def refuse_one_class(measures: Mapping[str, Measure], label_sets: Iterable[Labels], splits: Iterable[str]) -> None:
    """Refuse measures that contrast classes where all rows have one class, since they are undefined there.

    Raises:
        DegenerateDesign: with measure, split and label set.
    """
    wanting = [name for name, measure in measures.items() if measure.needs_two_classes]
    if not wanting:
        return
    for labels, split in product(label_sets, splits):
        if len(np.unique(labels.y[labels.rows(split)])) < 2:
            raise DegenerateDesign(
                f"{wanting[0]} is undefined on {split}: all its labels are the same",
                needed="at least two classes",
                found="one",
                where=f"task {labels.task}" + (f", control {labels.control}" if labels.control else ""),
                next_step="leave the measure out, or split the corpus otherwise",
            )
