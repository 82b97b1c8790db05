"""Labels every two words of a sentence with their distance in the dependency tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.labels import Kind
from probing.tasks._columns import TreeTask, path_lengths
from probing.text.corpus import Example


class TreeDistance(TreeTask):
    """`tree_distance`: the label is the number of arcs between two words of a sentence. Every two words are one pair,
    the earlier word first.

    Two words in different trees (which occur if a head is missing) have no label. `tree_distance:difference` and
    `:product` combine the two states into one, for probes that read one state.

    References:
        Hewitt & Manning 2019, A Structural Probe for Finding Syntax in Word Representations, section 2.
    """

    kind: Kind = "real"
    probes = ("structural",)
    measures = ("uuas", "distance_spearman", "r2")

    def places(self, example: Example) -> NDArray[np.int64]:
        """Return the word indices, counted from 0, of every two words of the sentence, once, the earlier word first."""
        return np.stack(np.triu_indices(len(example.words), 1), axis=1)

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the number of arcs between the two words of every pair of `places(example)`."""
        lengths = path_lengths(example)[np.triu_indices(len(example.words), 1)]
        return tuple([None if length == np.inf else length for length in lengths.tolist()])


MEMBER = TreeDistance
