"""Computes the share of gold edges that are in the minimum spanning tree of the predicted distances."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.measures._rows import runs, words_of


class UUAS(Measure):
    """Computes the share of the gold edges (pairs of words at true distance 1) that are in the minimum spanning tree of
    the predicted distances.

    It is the undirected unlabelled attachment score. If the corpus has UPOS tags, punctuation (PUNCT) is left out of
    gold edges and spanning tree, as in the paper. Edges are counted over all sentences. With the labels of a control,
    the gold edges are the pairs whose random label is 1; they form no tree, so a spanning tree cannot contain them all.

    References:
        Hewitt & Manning 2019, A Structural Probe for Finding Syntax in Word Representations, section 4.1.
    """

    kinds = ("real",)
    unit = "fraction"
    needs: ClassVar[str] = "pair"
    scores_parts: ClassVar[bool] = False

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two numbers per row, `(N, 2)`: whether the pair is a gold edge that is in the spanning tree, and
        whether it is a gold edge. Arguments are those of `Measure.row_statistics`.

        Raises:
            BadParameter: the rows are not pairs.
        """
        labels, a, b = words_of(prediction, "uuas")
        kept = np.arange(len(labels))
        if labels.punctuation is not None:
            kept = np.flatnonzero(~labels.punctuation)
        statistics = np.zeros((len(labels), 2))
        statistics[kept, 1] = np.asarray(y)[kept] == 1.0
        a, b = a[kept], b[kept]
        values = np.asarray(prediction.values, np.float64)[kept]
        order, starts = runs(labels.example[kept])
        for low, high in pairwise(starts.tolist()):
            rows = order[low:high]
            tree = rows[spanning_tree(a[rows], b[rows], values[rows])]
            statistics[kept[tree], 0] = statistics[kept[tree], 1]
        return statistics

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return, for each sample, the share of the gold edges that are in the spanning tree of the predicted
        distances; NaN without gold edges.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2,)` for one sample, or `(R, 2)` for R
                resamples.
        """
        found, gold = totals[..., 0], totals[..., 1]
        return np.asarray(np.where(gold > 0, found / np.where(gold > 0, gold, 1.0), np.nan))


def spanning_tree(a: NDArray[np.int64], b: NDArray[np.int64], length: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find the minimum spanning tree by Prim's algorithm (a forest, if the graph is not connected), and return the
    indices of its edges. Edge i joins the words a[i] and b[i] and has the length length[i].

    If edges to several words are equally long, the earliest word is added first.
    """
    if not len(length):
        return np.zeros(0, dtype=np.int64)
    words, ends = np.unique(np.stack([a, b]), return_inverse=True)
    a, b = ends.reshape(2, -1)
    n = len(words)
    edge = np.full((n, n), -1, dtype=np.int64)
    edge[a, b] = edge[b, a] = np.arange(len(length))
    cost = np.where(edge >= 0, length[edge], np.inf)
    nearest, way, outside = cost[0].copy(), edge[0].copy(), np.ones(n, dtype=bool)
    outside[0] = False
    chosen = []
    for _ in range(n - 1):
        word = int(np.where(outside, nearest, np.inf).argmin())
        if not outside[word] or nearest[word] == np.inf:  # another tree of the forest begins
            word = int(outside.argmax())
        else:
            chosen.append(int(way[word]))
        outside[word] = False
        closer = outside & (cost[word] < nearest)
        nearest[closer], way[closer] = cost[word][closer], edge[word][closer]
    return np.array(chosen, dtype=np.int64)


MEMBER = UUAS
