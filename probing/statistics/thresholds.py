"""Chooses a threshold of scores on dev for a wanted rate of false positives, and measures its recall and false
positives on test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, t

from probing.errors import BadParameter, DegenerateDesign
from probing.statistics.bootstrap import LEVEL, RESAMPLES, Clusters, cluster_weights

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_ASKED = re.compile(r"fpr=(?P<fpr>[0-9.eE-]+)(,label=(?P<label>[^,]+))?(,by=(?P<by>[^,]+))?")


@dataclass(frozen=True)
class Rate:
    """Holds a share of rows (words or texts) with its 95 % interval.

    Attributes:
        value: the share.
        low, high: ends of its interval.
        count: number of flagged rows.
        n: number of rows.
        clusters: number of clusters (such as documents) that the rows are in; if every row is a cluster of its own,
            this is `n`, and the interval is the exact binomial one.
    """

    value: float
    low: float
    high: float
    count: int
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] ({self.count:,} of {self.n:,})"


@dataclass(frozen=True)
class Threshold:
    """Holds a threshold and its performance on test: a row is flagged if its score is above the threshold.

    Attributes:
        value: the threshold, in the unit of the scores; for probes the natural log odds of `label`.
        label: class whose rows are to be flagged; "" if not named.
        fpr: share of the other rows that may be flagged on average.
        dev_negatives: number of dev rows of other classes.
        dev_positives: number of dev rows of the class.
        recall: share of the test rows of the class that are flagged; None if there are no such rows.
        false_positives: share of the other test rows that are flagged; None if there are none.
        by: what the test rows are grouped by, such as the name of a column; "" if they are not.
        groups: by name of a group, its (recall, false positives).
        dev_clusters: number of clusters that the dev rows of other classes are in; 0 if not recorded.
    """

    value: float
    label: str
    fpr: float
    dev_negatives: int
    dev_positives: int
    recall: Rate | None = None
    false_positives: Rate | None = None
    by: str = ""
    groups: Mapping[str, tuple[Rate | None, Rate | None]] = field(default_factory=dict)
    dev_clusters: int = 0

    def __str__(self) -> str:
        within = f" in {self.dev_clusters:,} groups" if 0 < self.dev_clusters < self.dev_negatives else ""
        return (
            f"above {self.value:.4g} is flagged: {self.fpr:g} of other rows may be, chosen on {self.dev_negatives:,} "
            f"of dev{within}; on test recall {self.recall or 'unknown'}, "
            f"false positives {self.false_positives or 'unknown'}"
        )

    def flags(self, scores: ArrayLike) -> Flags:
        """Return which of these scores are above the threshold, `(N,)`."""
        return np.asarray(np.asarray(scores, np.float64) > self.value)

    def facts(self) -> dict[str, Any]:
        """Return the threshold and its performance on test, as a mapping that JSON can hold."""
        return asdict(self) | {"groups": {name: list(map(_facts, both)) for name, both in self.groups.items()}}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Return the threshold that a mapping returned by `facts` describes."""
        groups = {name: (_rate(a), _rate(b)) for name, (a, b) in facts["groups"].items()}
        rates = {name: _rate(facts[name]) for name in ("recall", "false_positives")}
        return cls(**{**facts, **rates, "groups": groups})


@dataclass(frozen=True)
class AskedThreshold:
    """Holds a request for a threshold, as in `--threshold fpr=0.01,label=NAME,by=COLUMN`.

    Attributes:
        fpr: largest share of rows of other classes that may be flagged.
        label: class whose rows are to be flagged; "" means the second of two in sorted order.
        by: column for each value of which recall and false positives are also measured; "" means none.
    """

    fpr: float
    label: str = ""
    by: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of the option and return the request.

        Raises:
            BadParameter: the text has another form, or the share is not between 0 and 1.
        """
        found = _ASKED.fullmatch(text.strip()) if isinstance(text, str) else None
        try:
            fpr = float(found["fpr"]) if found else math.nan
        except ValueError:
            fpr = math.nan
        if found is None or not 0 < fpr < 1:
            raise BadParameter(
                "not a threshold",
                needed="fpr=SHARE with a share above 0 and below 1, perhaps with ,label=CLASS and ,by=COLUMN",
                found=repr(text),
                next_step="write, for instance, fpr=0.01",
            )
        return cls(fpr, found["label"] or "", found["by"] or "")


def choose_threshold(
    dev_scores: ArrayLike,
    dev_positive: ArrayLike,
    test_scores: ArrayLike = (),
    test_positive: ArrayLike = (),
    *,
    fpr: float = 0.01,
    dev_clusters: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    by: str = "",
    label: str = "",
    seed: int = 0,
) -> Threshold:
    """Choose the lowest threshold at which a false positive has a probability of at most `fpr`, and return it with its
    performance on test. A row (a word or text) is flagged if its score is above the threshold; a false positive is a
    flagged row of another class ("other row" below).

    With n other rows on dev, the threshold is their k-th highest score, k = ⌊fpr · (n + 1)⌋: if the n rows and the new
    one are exchangeable, the new one is among the k highest with probability k / (n + 1). So n has to be at least 1/fpr
    − 1. This probability is an average over random samples of dev; the rate of the one threshold returned is measured
    on test.

    Rows of one document or group (a cluster) are not exchangeable; clusters are. Let G be the number of clusters with
    other rows on dev, and s the sum, over these clusters, of the share of their other rows that is flagged. The
    threshold is the lowest score at which (s + 1) / (G + 1) is at most `fpr`, which bounds the expected rate in a new
    cluster. So G has to be at least 1/fpr − 1.

    Intervals are 95 % intervals. If rows are independent, they are exact binomial intervals. If not, they are those of
    Korn and Graubard: exact binomial intervals for an effective number of rows, which is estimated from the variance
    over bootstrap resamples of whole clusters. Where no row (or every row) is flagged, that variance is 0, and every
    cluster counts as one row.

    Args:
        dev_scores: `(N,)` scores of the rows of dev.
        dev_positive: `(N,)` whether each of these rows has the class to be flagged.
        test_scores, test_positive: `(M,)` the same for rows of test, which were not used in any choice; if empty,
            recall and false positives are not measured.
        fpr: share of other rows that may be flagged.
        dev_clusters: `(N,)` cluster of each row of dev, such as its document or group; None means that rows are
            independent.
        clusters: `(M,)` the same for the rows of test.
        groups: `(M,)` names of groups for which recall and false positives are also given separately.
        by: what the groups are.
        label: name of the class.
        seed: seed of the resamples.

    Raises:
        BadParameter: the share is not between 0 and 1, or scores and flags differ in number or are not numbers.
        DegenerateDesign: there are too few other rows, or groups of them, on dev; the message says how many are needed.

    References:
        Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, §4.1. Clopper & Pearson 1934. Korn &
        Graubard 1998, Confidence intervals for proportions with small expected number of positive counts estimated
        from survey data, Survey Methodology 24.
    """
    if not 0 < fpr < 1:
        raise BadParameter("a share of false positives lies between 0 and 1", needed="0 < fpr < 1", found=str(fpr))
    scores, positive = _checked(dev_scores, dev_positive, "dev")
    homes = np.arange(len(scores)) if dev_clusters is None else np.asarray(dev_clusters).reshape(-1)
    if len(homes) != len(scores):
        raise BadParameter("a cluster for every row of dev", needed=str(len(scores)), found=str(len(homes)))
    others, (sizes, value) = scores[~positive], _least(scores[~positive], homes[~positive], fpr)
    if value is None:
        what = "rows" if len(sizes) == len(others) else "groups with rows"
        raise DegenerateDesign(
            f"too few {what} of other classes for a threshold of {fpr:g} false positives",
            needed=f"at least {math.ceil(1 / fpr - 1e-9) - 1:,} {what} of other classes on dev",
            found=f"{len(sizes):,}" + ("" if len(sizes) == len(others) else f" ({len(others):,} rows)"),
            where="dev",
            next_step="give more text in dev (more rows, or a column `split` with more of them in dev), or allow more "
            "false positives",
        )
    test, has = _checked(test_scores, test_positive, "test")
    home = np.arange(len(test)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    named = np.asarray([] if groups is None else groups).astype(str)
    if len(home) != len(test) or (groups is not None and len(named) != len(test)):
        raise BadParameter("clusters and groups are of the rows of test", needed=str(len(test)), found=str(len(home)))
    flagged = test > value

    def rates(rows: Flags) -> tuple[Rate | None, Rate | None]:
        return tuple(_share(flagged[kept], home[kept], seed) for kept in (rows & has, rows & ~has))  # type: ignore[return-value]

    recall, false_positives = rates(np.ones(len(test), bool))
    return Threshold(
        value=value,
        label=label,
        fpr=fpr,
        dev_negatives=len(others),
        dev_positives=int(positive.sum()),
        recall=recall,
        false_positives=false_positives,
        by=by,
        groups={name: rates(named == name) for name in sorted(set(named.tolist()))},
        dev_clusters=len(sizes),
    )


def _least(others: Floats, homes: NDArray[Any], fpr: float) -> tuple[NDArray[np.int64], float | None]:
    """Return the sizes of the clusters, and the least score above which few enough rows are; None: there is none."""
    _, codes, sizes = np.unique(homes, return_inverse=True, return_counts=True)
    order = np.argsort(-others, kind="stable")
    ranked, shares = others[order], 1.0 / sizes[codes[order]] if len(sizes) else np.zeros(0)
    above = np.concatenate([[0.0], np.cumsum(shares)[:-1]]) if len(ranked) else np.zeros(0)  # if the threshold is here
    first = np.searchsorted(-ranked, -ranked, side="left")  # equal scores: none of them is above
    allowed = (above[first] + 1.0) / (len(sizes) + 1) <= fpr + 1e-12
    return sizes, float(ranked[np.flatnonzero(allowed)[-1]]) if allowed.any() else None


def _checked(scores: ArrayLike, positive: ArrayLike, where: str) -> tuple[Floats, Flags]:
    values, has = np.asarray(scores, np.float64).reshape(-1), np.asarray(positive).reshape(-1).astype(bool)
    if values.shape != has.shape or np.isnan(values).any():
        found = "scores that are NaN" if np.isnan(values).any() else f"{len(values)} and {len(has)}"
        raise BadParameter("a score and a flag for every row", needed="as many of both", found=found, where=where)
    return values, has


def _share(flagged: Flags, home: NDArray[Any], seed: int) -> Rate | None:
    """Return the share of rows flagged with its interval; None if there are no rows."""
    n, count = len(flagged), int(flagged.sum())
    if not n:
        return None
    _, codes, sizes = np.unique(home, return_inverse=True, return_counts=True)
    value, worth = count / n, float(n)
    if len(sizes) < n:
        known = Clusters.of_sizes(sizes)
        worth = known.effective
        if 0 < count < n and len(sizes) > 1:
            worth = min(
                float(n), _worth(np.bincount(codes, flagged).astype(np.float64), sizes.astype(np.float64), value, seed)
            )
            # The variance over S clusters has S − 1 degrees of freedom: the interval is as much wider as Student's.
            worth *= float(t.ppf((1 + LEVEL) / 2, max(1.0, n - 1)) / t.ppf((1 + LEVEL) / 2, max(1.0, known.df))) ** 2
            worth = max(worth, 1.0)
    low, high = _exact(value * worth, worth)
    return Rate(value, low, high, count, n, len(sizes))


def _worth(counts: Floats, sizes: Floats, value: float, seed: int) -> float:
    """Return how many independent rows have the variance that the share has over resamples of the clusters."""
    weights = cluster_weights(len(sizes), resamples=RESAMPLES, seed=seed)
    samples = (weights @ counts) / (weights @ sizes)
    variance = float(samples.var()) * len(sizes) / (len(sizes) - 1)
    return value * (1 - value) / variance if variance > 0 else float(len(sizes))


def _exact(count: float, n: float) -> tuple[float, float]:
    """Return the ends of the exact binomial interval; count and n need not be whole."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if count <= 0 else float(beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count >= n else float(beta.ppf(1 - tail, count + 1, n - count))
    return low, high


def _rate(facts: Any) -> Rate | None:
    return None if facts is None else Rate(**facts)


def _facts(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else asdict(rate)
