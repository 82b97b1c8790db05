"""Head selection: which word of the sentence is the head of this one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.tasks._trees import ROOT, TreeTask, heads
from probing.text.corpus import Example


class Head(TreeTask):
    """`head`: for every word but the root, each word of its sentence (itself too) is a pair; `yes` is its head.

    Word a depends, word b is the candidate; the pairs of one word a are alternatives, scored together by UAS. A word as
    its own head is never right here, but lets the `edge` control use the same pairs. `head:difference` and
    `head:product` combine the two states for probes that read one.

    References:
        Hewitt & Liang 2019, Designing and Interpreting Probes with Control Tasks, section 2.
    """

    chooses = True
    probes = ("bilinear",)
    controls = ("edge",)
    measures = ("uas", "log_loss")

    def places(self, example: Example) -> NDArray[np.int64]:
        """Return every word that has a head beside every word."""
        dependents = np.flatnonzero(heads(example) > ROOT)
        n = len(example.words)
        return np.stack([np.repeat(dependents, n), np.tile(np.arange(n), len(dependents))], axis=1)

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return `yes` for the head, `no` for all others."""
        a, b = self.places(example).T
        return tuple(["yes" if right else "no" for right in (heads(example)[a] == b).tolist()])


MEMBER = Head
