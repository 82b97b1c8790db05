"""Subjects: provides, for each task of a use run, the instrument with the rows to edit, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.behaviour import Behaviour
from probing.errors import BadParameter, DegenerateDesign, unknown_name
from probing.models.language_model import LanguageModel
from probing.provenance import digest
from probing.text.corpus import Corpus, Example
from probing.text.deciding_words import deciding_words
from probing.text.example import named
from probing.use.contrasts import check_groups, check_twins, sampled_pairs, twin_rows
from probing.use.edited_models.text import TextInstrument
from probing.use.experiment import check_number
from probing.use.measure import Property
from probing.use.row_weights import labelled_corpus, rare_classes, task_levels, without


class Subjects:
    """Builds the instrument and the labels of each task when they are needed. Tasks of sentences share one instrument;
    each task of words has its own.

    Raises:
        UnknownName, BadParameter: see `labelled_corpus` and `task_levels`.
    """

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        tasks: Sequence[str],
        behaviour: Behaviour | str,
        *,
        sites: str | Sequence[str],
        positions: Sequence[str],
        covariates: Sequence[str],
        split: str | None,
        max_rows: int,
        seed: int,
        minimal_pairs: str | None = None,
    ) -> None:
        self._model, self._behaviour, self._sites, self._split = model, behaviour, sites, split
        self._tasks, self._positions, self._covariates = tuple(tasks), tuple(positions), tuple(covariates)
        self._max_rows, self._seed = max_rows, seed
        self._corpus = labelled_corpus(corpus, [*tasks, *covariates])
        self._level, self._twins = task_levels(corpus, tasks, positions), minimal_pairs
        if minimal_pairs is not None:
            self._check_twins(minimal_pairs)
            self._corpus = sampled_pairs(self._corpus, minimal_pairs, split=split, most=max_rows, seed=seed)
        self._shared: TextInstrument | None = None

    def others(self, task: str) -> tuple[str, ...]:
        """Return the covariates of a task by name."""
        beside = self._tasks if self._level == "sentence" else ()
        return tuple(dict.fromkeys(name for name in [*beside, *self._covariates] if name != task))

    def left_out(self, task: str) -> tuple[str, ...]:
        """Return the classes of a word task that are left out since they are too rare; () for a task of sentences."""
        return rare_classes(self._corpus, task) if self._level == "word" else ()

    def labels_digest(self, task: str) -> str:
        """Return the hash of all labels, groups, splits and spans that a task's measurement depends on."""
        names = (task, *self.others(task))
        twins = [] if self._twins is None else [[e.id, e.columns.get(self._twins)] for e in self._corpus.examples]
        return digest(
            [
                *(
                    [unit, e.split, sorted(e.spans.items()), [e.word_columns.get(n, e.columns.get(n)) for n in names]]
                    for e, unit in zip(self._corpus.examples, self._corpus.unit_names, strict=True)
                ),
                *twins,
            ]
        )

    def check(self, task: str) -> None:
        """Check the labels of a task before the model is run.

        Raises:
            DegenerateDesign: the property has fewer than two values.
            TooFewGroups: for sentences, there are too few groups for three folds.
            BadTwin, OverlappingGroups: rows are not minimal pairs; see `check_twins` and `check_groups`.
        """
        named = dict(zip(map(id, self._corpus.examples), self._corpus.unit_names, strict=True))
        chosen = [e for e in self._corpus.examples if self._split in (None, e.split)]
        of_words = (label for e in chosen for label in e.word_columns.get(task, ()))
        labels = list(of_words) if self._level == "word" else [e.columns.get(task) for e in chosen]
        found = {label for label in labels if label is not None}
        if len(found) < 2:
            n = sum(label is not None for label in labels)
            raise DegenerateDesign(
                f"{task} has one value" if found else f"{task} has no value",
                needed="two or more",
                found=f"{', '.join(map(repr, found)) or 'none'} in {n:,} rows",
                where=self._corpus.source,
                next_step="choose another task" + (", or all splits" if self._split else ""),
            )
        if self._level == "sentence":
            names = (task, *self.others(task))
            chosen = [e for e in chosen if None not in {e.columns.get(name) for name in names}]
            units = [named[id(e)] for e in chosen]
            check_number(len(set(units)))
            if self._twins is not None:
                self._check_pairs(chosen, units, task)

    def doubts(self, task: str) -> tuple[str, ...]:
        """Return a sentence on a property that one of a few words in each text decides (see `deciding_words`), if the
        corpus has no groups that could keep texts with the same word together; () otherwise.
        """
        if self._level == "word" or self._twins is not None or any(e.document for e in self._corpus.examples):
            return ()
        labelled = [
            e for e in self._corpus.examples if self._split in (None, e.split) and e.columns.get(task) is not None
        ]
        words = deciding_words([e.text for e in labelled], [named(e.columns[task]) for e in labelled])
        if not words:
            return ()
        return (
            f"{task}: one of about {len(words)} words in each text decides it ({', '.join(words[:3])}, …), and "
            "intervals take texts with the same word as independent. By chance, a property of so few words can go with "
            "another one: give the word a column and keep its texts together (--group COLUMN).",
        )

    def _check_pairs(self, examples: Sequence[Example], units: Sequence[str], task: str) -> None:
        ids = [example.id for example in examples]
        twins = twin_rows(ids, [example.columns.get(self._twins or "") for example in examples])
        codes = {name: _codes([e.columns[name] for e in examples]) for name in (task, *self.others(task))}
        z = codes.pop(task)
        check_twins(twins, z=z, n_classes=int(z.max()) + 1, covariates=codes, names=ids)
        check_groups(twins, _codes(units), ids)

    def of(self, task: str) -> tuple[TextInstrument, Property]:
        """Return the instrument of a task, after its `check` has passed, and the labels of its rows.

        Raises:
            NoBehaviour, EditFailed, UnknownSite: see `TextInstrument`.
            BadTwin: a row names a twin whose id none of the rows has, or two.
        """
        if self._level == "word":
            corpus = without(self._corpus, task, self.left_out(task))
            instrument = TextInstrument.from_words(
                self._model,
                corpus,
                self._behaviour,
                columns=[task, *self.others(task)],
                sites=self._sites,
                split=self._split,
                max_rows=self._max_rows,
                seed=self._seed,
            )
            instrument.check()
        else:
            instrument = self._of_sentences()
        rows = instrument.rows
        z, n_classes = rows.values(task)
        covariates = {other: rows.values(other) for other in self.others(task)}
        types = rows.types if self._level == "word" else None
        if self._twins is None:
            return instrument, Property(task, z, n_classes, rows.groups, covariates, types)
        examples = [self._corpus.examples[k] for k in rows.ordinal]
        ids = [example.id for example in examples]
        twins = twin_rows(ids, [example.columns.get(self._twins) for example in examples])
        return instrument, Property(task, z, n_classes, rows.groups, covariates, types, twins, ids)

    def _check_twins(self, column: str) -> None:
        if self._level == "word":
            raise BadParameter(
                "words have no twins",
                needed="a task of sentences",
                found=", ".join(self._tasks),
                next_step="leave --minimal-pairs out",
            )
        if len(self._tasks) > 1:
            raise BadParameter(
                "twins differ in one property",
                needed="one task",
                found=", ".join(self._tasks),
                next_step="run one task at a time, and give the others as covariates",
            )
        levels = self._corpus.column_names()
        if levels.get(column) != "sentence":
            raise unknown_name(
                "column of minimal pairs",
                column,
                [n for n, level in levels.items() if level == "sentence"],
                where=self._corpus.source,
            )

    def _of_sentences(self) -> TextInstrument:
        if self._shared is None:
            columns = list(dict.fromkeys([*self._tasks, *self._covariates]))
            self._shared = TextInstrument.from_spans(
                self._model,
                self._corpus,
                self._behaviour,
                columns=columns,
                sites=self._sites,
                split=self._split,
                positions=self._positions,
                max_rows=self._max_rows,
                seed=self._seed,
            )
            self._shared.check()
        return self._shared


def _codes(values: Sequence[Any]) -> NDArray[np.int64]:
    """Return equal codes for equal values, `(n,)`."""
    known = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return np.array([known[value] for value in values], dtype=np.int64)
