"""Labels pairs of words by whether the second word is the head of the first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.tasks._columns import ROOT, TreeTask, heads
from probing.text.corpus import Example


class Head(TreeTask):
    """`head`: the label says which word of its sentence is a word's head. Every word except the root is paired with
    each word of the sentence (itself included); the label is `yes` for its head, else `no`.

    In a pair (a, b), word a is the dependent and word b the candidate; the pairs of one word a are alternatives, scored
    together by UAS (unlabelled attachment score). A word is never its own head, but these pairs are included so that
    the `edge` control can use the same rows. `head:difference` and `head:product` combine the two states into one, for
    probes that read one state.

    References:
        Hewitt & Liang 2019, Designing and Interpreting Probes with Control Tasks, section 2.
    """

    chooses = True
    probes = ("bilinear",)
    controls = ("edge",)
    measures = ("uas", "log_loss")

    def places(self, example: Example) -> NDArray[np.int64]:
        """Return a pair of word indices (a, b), counted from 0, for every word a that has a head and every word b of
        the sentence.
        """
        dependents = np.flatnonzero(heads(example) > ROOT)
        n = len(example.words)
        return np.stack([np.repeat(dependents, n), np.tile(np.arange(n), len(dependents))], axis=1)

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return, for every pair of `places(example)`, `yes` if b is the head of a, else `no`."""
        a, b = self.places(example).T
        return tuple(["yes" if right else "no" for right in (heads(example)[a] == b).tolist()])


MEMBER = Head
