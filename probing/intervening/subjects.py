"""Subjects: for each task of a run the rows that are edited, in a running model, and their labels."""

from __future__ import annotations

from collections.abc import Sequence

from probing.behaving import Behaviour
from probing.corpus import Corpus
from probing.instruments.text import TextInstrument
from probing.intervening.labelled import labelled_corpus, rare_classes, task_levels, without
from probing.intervening.running import Property
from probing.language_model import LanguageModel
from probing.provenance import digest


class Subjects:
    """Built when asked for; properties of sentences share one instrument, those of words have rows of their own.

    Raises:
        UnknownName, BadParameter: see `labelled_corpus` and `task_levels`.
    """

    def __init__(
        self, model: LanguageModel, corpus: Corpus, tasks: Sequence[str], behaviour: Behaviour | str, *,
        sites: str | Sequence[str], positions: Sequence[str], covariates: Sequence[str], split: str | None,
        max_rows: int, seed: int,
    ) -> None:  # fmt: skip
        self._model, self._behaviour, self._sites, self._split = model, behaviour, sites, split
        self._tasks, self._positions, self._covariates = tuple(tasks), tuple(positions), tuple(covariates)
        self._max_rows, self._seed = max_rows, seed
        self._corpus = labelled_corpus(corpus, [*tasks, *covariates])
        self._level = task_levels(corpus, tasks, positions)
        self._shared: TextInstrument | None = None

    def others(self, task: str) -> tuple[str, ...]:
        """The covariates of a task."""
        beside = self._tasks if self._level == "sentence" else ()
        return tuple(dict.fromkeys(name for name in [*beside, *self._covariates] if name != task))

    def left_out(self, task: str) -> tuple[str, ...]:
        """Classes that are too rare for three folds."""
        return rare_classes(self._corpus, task) if self._level == "word" else ()

    def labels_digest(self, task: str) -> str:
        """Of all labels that enter the measurement of a task, with groups, splits and spans."""
        names = (task, *self.others(task))
        return digest([
            [e.group, e.split, sorted(e.spans.items()), [e.word_columns.get(n, e.columns.get(n)) for n in names]]
            for e in self._corpus.examples
        ])  # fmt: skip

    def of(self, task: str) -> tuple[TextInstrument, Property]:
        """The instrument, which has checked itself, and the labels of its rows.

        Raises:
            NoBehaviour, EditFailed, UnknownSite: see `TextInstrument`.
        """
        if self._level == "word":
            corpus = without(self._corpus, task, self.left_out(task))
            instrument = TextInstrument.from_words(
                self._model, corpus, self._behaviour, columns=[task, *self.others(task)], sites=self._sites,
                split=self._split, max_rows=self._max_rows, seed=self._seed,
            )  # fmt: skip
            instrument.check()
        else:
            instrument = self._of_sentences()
        rows = instrument.rows
        z, n_classes = rows.values(task)
        covariates = {other: rows.values(other) for other in self.others(task)}
        types = rows.types if self._level == "word" else None
        return instrument, Property(task, z, n_classes, rows.groups, covariates, types)

    def _of_sentences(self) -> TextInstrument:
        if self._shared is None:
            columns = list(dict.fromkeys([*self._tasks, *self._covariates]))
            self._shared = TextInstrument.from_spans(
                self._model, self._corpus, self._behaviour, columns=columns, sites=self._sites, split=self._split,
                positions=self._positions, max_rows=self._max_rows, seed=self._seed,
            )  # fmt: skip
            self._shared.check()
        return self._shared
