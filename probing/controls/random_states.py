"""Replaces states by one random vector per word form, which identifies the form and carries nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.control import Ints, Probed, StateControl, StateSource, StateTable
from probing.controls._draws import check_draws, refuse_label_as_key, refuse_missing_key, refuse_rare_key, usable_keys
from probing.errors import DegenerateDesign, unknown_name
from probing.labels import Labels


@dataclass(frozen=True, kw_only=True)
class RandomStatesControl(StateControl):
    """Replaces the states of every word form (word type) by one Gaussian vector, to show what a probe reads from the
    form alone.

    The vector depends on form, seed and number of the draw alone, is as wide as the states of the site, and is the same
    at every occurrence of the form. From it, a probe of great capacity learns the commonest label of each form in
    train, as the baseline `word_type` does; what a probe of the true states scores above it comes from more than the
    form.

    Args:
        key: name of a field; rows with the same value of it get the same vector. It is `type` (the word form), `lemma`,
            or another field (for sentences, one whose values several sentences share).
        draws: number of independent sets of vectors.

    References:
        Pimentel et al. 2020, Information-Theoretic Probing for Linguistic Structure, §6 (random embeddings).
    """

    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = "any vector that tells words apart would do"

    key: str = "type"
    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self.draws)

    def key_of(self, labels: Labels) -> str:
        """Return the name of the key; rows with the same value of it get the same random vector."""
        return self.key

    def source(self, probed: Probed) -> RandomStates:
        """Return a source that gives one vector for each value of the key of the labelled rows. `probed` holds the
        store, the sites and the labels.

        Raises:
            DegenerateDesign: the rows are not words and no other key is named; or the key equals the label or hardly
                recurs.
            UnknownName: there is no such key; the message names the nearest.
        """
        labels = probed.labels
        if self.key == "type" and "type" not in labels.keys:
            usable = usable_keys(labels)
            raise DegenerateDesign(
                "random_states needs to know what has one vector",
                needed="rows that are words, or a key",
                found="rows without word types",
                where=f"task {labels.task}",
                next_step=f"use random_states:key=NAME with one of: {', '.join(usable)}"
                if usable
                else "add a column that sentences share, such as a template's name, or leave the control out",
            )
        if self.key not in labels.keys:
            raise unknown_name("key of random_states", self.key, usable_keys(labels), where=f"rows of {labels.task}")
        refuse_missing_key(labels.keys[self.key], self.key, f"task {labels.task}")
        if self.key != "type":
            refuse_label_as_key(labels, self.key)
        refuse_rare_key(labels, self.key)
        codes = labels.keys[self.key]
        name = "random_states" if self.key == "type" else f"random_states:key={self.key}"
        seen = np.isin(codes, codes[labels.rows("train")])
        return RandomStates(probed.table, labels, self.key, probed.seed, name, seen)


@dataclass(frozen=True, eq=False)
class RandomStates(StateSource):
    """Gives one random vector for every value of a field of the rows.

    Attributes:
        table: the store of the probed states.
        labels: labels of the task.
        key: name of the field.
        seed: root seed of the vectors.
        name, above, seen: as in `StateSource`.
    """

    table: StateTable
    labels: Labels
    key: str
    seed: int
    name: str
    seen: NDArray[np.bool_] | None
    above: str = "random states"

    def stand_in(self, site: str) -> str:
        """Return a name made from the width of the site, since sites of the same width share their vectors."""
        return f"width {self.table.width(site)}"

    def read(self, site: str, rows: Ints, *, draw: int) -> NDArray[np.float32]:
        """Return the vectors `(N, D)` for the values of the field in these N rows of the store; `draw` is the number of
        the random version, and D the width of `site`.

        Raises:
            DegenerateDesign: a row has no label, so its key is not known.
        """
        names, order = self.labels.key_names[self.key], np.argsort(self.labels.row, kind="stable")
        known = self.labels.row[order]
        place = np.minimum(np.searchsorted(known, rows), len(known) - 1)
        if not np.array_equal(known[place], rows):
            raise DegenerateDesign(
                "random_states knows no key of rows without a label", where=f"task {self.labels.task}"
            )
        present, position = np.unique(self.labels.keys[self.key][order[place]], return_inverse=True)
        width = self.table.width(site)
        vectors = np.stack([vector_of(names[code], width, draw=draw, seed=self.seed) for code in present])
        return vectors[position]

    def recipe(self) -> dict[str, str]:
        """Return `{"key": name}`, the name of the field whose values each have their own vector."""
        return {"key": self.key}


def vector_of(key: str, width: int, *, draw: int, seed: int) -> NDArray[np.float32]:
    """Return `(width,)` standard Gaussian numbers that depend on key, seed and draw only. A shorter vector is a prefix
    of a longer one.
    """
    text = f"random states\x1f{seed}\x1f{draw}\x1f{key}".encode()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text).digest()[:16], "big")))
    return random.standard_normal(width, dtype=np.float32)


MEMBER = RandomStatesControl
