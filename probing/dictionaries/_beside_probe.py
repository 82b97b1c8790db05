"""Sets latents beside a probe of a property: which differ most between its classes, and where the two disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.probe import Probe
from probing.dictionaries.dictionary import Dictionary
from probing.errors import BadParameter, ProvenanceMismatch, unknown_name
from probing.probes._estimator import load_probe
from probing.results.latent_contexts import Disagreement, ProbeBeside
from probing.states.store import Store
from probing.text.corpus import Corpus
from probing.training.fitting import fits_of
from probing.training.plan import Plan, make_plan
from probing.training.states import held, rows_read, site_states

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]


class Texts:
    """Gives rows in their context."""

    def __init__(self, store: Store, corpus: Corpus, window: int) -> None:
        self._corpus, self._window, self._rows = corpus, window, store.rows

    def of_row(self, row: int) -> dict[str, Any]:
        """Return the text, and its parts before, in and after a row of the store."""
        rows, example = self._rows, int(self._rows.example[row])
        first, last = max(0, row - self._window), min(len(rows.example) - 1, row + self._window)
        while rows.example[first] != example:
            first += 1
        while rows.example[last] != example:
            last -= 1
        ends = (rows.char_start[first], rows.char_start[row], rows.char_end[row], rows.char_end[last])
        return self._parts(example, *map(int, ends))

    def of_word(self, example: int, word: int) -> dict[str, Any]:
        """Return the text, and its parts before, in and after a word; of a whole text (-1), its end."""
        text, words = self._corpus[example].text, self._corpus[example].words
        if word < 0 or not words:
            return self._parts(example, max(0, len(text) - 8 * self._window), len(text), len(text), len(text))
        first, last = max(0, word - self._window), min(len(words) - 1, word + self._window)
        return self._parts(example, words[first][0], *words[word], words[last][1])

    def _parts(self, example: int, begin: int, start: int, end: int, stop: int) -> dict[str, Any]:
        one = self._corpus[example]
        parts = {"left": one.text[begin:start], "token": one.text[start:end], "right": one.text[end:stop]}
        return {"example": example, "id": str(one.id), "char_start": start, "char_end": end} | parts


@dataclass(frozen=True, eq=False)
class Property:
    """A property with two sides: the rows of train and test, and a probe of it."""

    plan: Plan
    site: str
    probe: Probe
    name: str
    label: str

    def is_label(self, split: str) -> NDArray[np.bool_]:
        """Return whether each row of a split has the label."""
        labels = self.plan.labels
        return np.asarray(labels.y[labels.rows(split)] == labels.classes.index(self.label))

    def states(self, split: str) -> NDArray[np.float32]:
        """Return the states `(N, D)` of the rows of a split."""
        labels = self.plan.labels
        states: NDArray[np.float32] = rows_read(self.plan.store, self.site, labels, split)
        return states

    def log_odds(self, states: NDArray[np.float32]) -> Floats:
        """Return the natural log odds of the label `(N,)`."""
        logs = np.asarray(self.probe.predict_log_proba(states), np.float64)  # type: ignore[attr-defined, unused-ignore]
        code = self.plan.labels.classes.index(self.label)
        with np.errstate(divide="ignore"):
            return np.asarray(logs[:, code] - np.logaddexp.reduce(np.delete(logs, code, axis=1), axis=1))


def property_of(
    store: Store,
    corpus: Corpus,
    site: str,
    task: str | None,
    probe: str | Path | None,
    label: str | None,
    rows: str | None,
) -> Property | None:
    """Return the property to compare with, and a probe of it, trained if none is given; None if none is asked for."""
    fitted = None if probe is None else load_probe(probe)
    about: Mapping[str, Any] = {} if fitted is None else fitted.about
    task = task or about.get("task")
    if task is None:
        return None
    if fitted is not None and about.get("site") != site:
        raise ProvenanceMismatch(
            "the probe reads another site", needed=site, found=str(about.get("site")), where=str(probe)
        )
    plan = make_plan(
        store,
        corpus,
        task=task,
        probes=["linear"],
        controls=[],
        measures=None,
        analyses=(),
        seeds=1,
        root_seed=0,
        sites=site,
        resample_by="auto",
        rows=rows,
    )
    classes = plan.labels.classes
    if plan.labels.kind != "classes" or plan.labels.row_form != "row":
        raise BadParameter("latents are compared on classes of single rows", needed="such a task", found=task)
    if label is None and len(classes) != 2:
        raise BadParameter("several classes", needed="the class to look for (--label)", found=", ".join(classes))
    wanted = label or classes[1]
    if wanted not in classes:
        raise unknown_name("class", wanted, classes, where=task)
    name, made = next(iter(plan.probes.items()))
    if fitted is None:
        return Property(
            plan, site, fits_of(plan, made, held(site_states(plan, site)), (plan.labels,))[0][0], name, wanted
        )
    if tuple(map(str, getattr(fitted, "classes_", ()))) != classes:
        raise ProvenanceMismatch(
            "the probe knows other classes",
            needed=", ".join(classes),
            found=", ".join(map(str, getattr(fitted, "classes_", ()))) or "none",
            where=str(probe),
            next_step="give a probe of this property, or leave it out: a linear one is trained then",
        )
    return Property(plan, site, fitted, str(about.get("probe")), wanted)


def mean_differences(latents: csr_array, is_label: NDArray[np.bool_]) -> Floats:
    """Return, for each latent, the difference of its means on rows with and without the label, in its SDs."""
    squares = latents.copy()
    squares.data = squares.data.astype(np.float64) ** 2
    ours, others = (np.asarray(latents[rows].sum(0), np.float64) / max(1, rows.sum()) for rows in (is_label, ~is_label))
    mean = np.asarray(latents.sum(0), np.float64) / len(is_label)
    spread = np.sqrt(np.maximum(np.asarray(squares.sum(0)) / len(is_label) - mean**2, 0))
    return np.where(spread > 0, (ours - others) / np.maximum(spread, 1e-12), 0.0)


def compared(
    dictionary: Dictionary, latents: Sequence[int], beside: Property, texts: Texts, most: int
) -> tuple[list[ProbeBeside], list[Disagreement]]:
    """Return how the probe and each latent agree on test, and the rows where they do not, the surest first."""
    columns = np.asarray(latents)
    train, test = (dictionary.encode(beside.states(split))[:, columns].toarray() for split in ("train", "test"))
    is_train, is_test = beside.is_label("train"), beside.is_label("test")
    odds = beside.log_odds(beside.states("test"))
    labels, probes, apart = beside.plan.labels, [], []
    rows = labels.rows("test")
    for place, latent in enumerate(latents):
        sign, threshold = _threshold(train[:, place], is_train)
        says, probe_says = _says(test[:, place], sign, threshold), odds > 0
        probes.append(
            ProbeBeside(
                int(latent),
                beside.plan.task,
                beside.label,
                beside.name,
                sign,
                threshold,
                int((says & probe_says).sum()),
                int((~says & probe_says).sum()),
                int((says & ~probe_says).sum()),
                int((~says & ~probe_says).sum()),
                _balanced(probe_says, is_test),
                _balanced(says, is_test),
            )
        )
        for kind, where, surest in (
            ("probe only", probe_says & ~says, odds),
            ("latent only", says & ~probe_says, sign * test[:, place].astype(np.float64)),
        ):
            found = np.flatnonzero(where)
            found = found[np.argsort(-surest[found], kind="stable")][:most]
            for rank, at in enumerate(found.tolist(), start=1):
                row = rows[at]
                own = labels.classes[int(labels.y[row])]
                text = texts.of_word(int(labels.example[row]), int(labels.word[row]))
                numbers = (float(test[at, place]), float(np.clip(odds[at], -1e6, 1e6)))
                apart.append(Disagreement(int(latent), kind, rank, *numbers, own, **text))
    return probes, apart


def _threshold(values: NDArray[Any], is_label: NDArray[np.bool_]) -> tuple[int, float]:
    """Return the sign, and the activation above which a latent says yes (or no), of the best balanced accuracy; sign 0
    where no activation separates the rows, as of a latent that is never active.
    """
    order = np.argsort(values, kind="stable")
    sorted_values, ours = values[order].astype(np.float64), is_label[order]
    below_ours, below = np.cumsum(ours) / max(1, ours.sum()), np.cumsum(~ours) / max(1, (~ours).sum())
    gain = below - below_ours  # share of others less that of the label at or below each value
    is_last = np.append(sorted_values[1:] > sorted_values[:-1], True)
    gain = np.where(is_last, gain, 0.0)
    best = int(np.abs(gain).argmax())
    return int(np.sign(gain[best])), float(sorted_values[best])


def _says(values: NDArray[Any], sign: int, threshold: float) -> NDArray[np.bool_]:
    """Return on which rows a latent says yes; without a direction (sign 0) it never does."""
    return np.zeros(len(values), bool) if sign == 0 else np.asarray((values > threshold) == (sign > 0))


def _balanced(says: NDArray[np.bool_], is_label: NDArray[np.bool_]) -> float:
    parts = [
        says[is_label].mean() if is_label.any() else None,
        (~says[~is_label]).mean() if (~is_label).any() else None,
    ]
    return float(np.mean([part for part in parts if part is not None]))
