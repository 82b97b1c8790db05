"""Similarity that means something for behaviour: probes trained on one store and scored on another, and the KL
divergence of the outputs of two models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnsupportedModel
from probing.measures._rows import predict, tempers_of
from probing.provenance import tokenizer_digest, weights_digest
from probing.similarities.linear import Estimate, Map, upper_bound
from probing.similarities.rows import Floats, cluster_permutations, resampled_sums
from probing.similarities.sums import Pair
from probing.statistics.bootstrap import Clusters, replicates
from probing.text.corpus import SPLITS, Corpus
from probing.training.fitting import baseline_scores, fits_of
from probing.training.plan import Plan, make_plan
from probing.training.scoring import Sampled, score_label_set, score_of
from probing.training.states import rows_read

if TYPE_CHECKING:
    from probing.models.language_model import LanguageModel

States = dict[str, NDArray[np.float32]]
_KL_ROWS, _KL_BATCH = 256, 8


@dataclass(frozen=True)
class ProbeTransfer:
    """Holds the score of a probe on mapped states, the scores of probes on their own stores, and the best baseline's.

    Attributes:
        score: score of the probe of the first store on the second, with interval and null.
        own_a, own_b: scores, on the same rows, of a probe of each store on that store.
        baseline: score of the best baseline, which reads no states.
        measure, unit: measure and unit of all of them.
        rows, clusters: numbers of test rows and of their clusters.
        higher_is_better: whether a higher score is better.
    """

    score: Estimate
    own_a: float
    own_b: float
    baseline: float | None
    measure: str
    unit: str
    rows: int
    clusters: int
    higher_is_better: bool


def plans_of(
    stores: Sequence[Any], sites: Sequence[Sequence[str]], corpus: Corpus, *, task: str, probe: str | None, seed: int
) -> list[Plan]:
    """Return the plans of the task's probe on each store.

    Raises:
        BadParameter: rows of the task are not rows of the store, or the probe reads no states.
        ProvenanceMismatch, UnknownName, DegenerateDesign: see `train`.
    """
    plans = [
        make_plan(
            store,
            corpus,
            task=task,
            probes=None if probe is None else [probe],
            controls=[],
            measures=None,
            analyses=(),
            seeds=1,
            root_seed=seed,
            sites=list(of_store),
            resample_by="auto",
            rows=None,
        )
        for store, of_store in zip(stores, sites, strict=True)
    ]
    plan = plans[0]  # the stores have the same rows: one set of labels and clusters serves all
    plans = [replace(one, labels=plan.labels, resamplers=plan.resamplers) for one in plans]
    if plan.labels.row_form not in ("row", "mean"):
        raise BadParameter(
            f"probes of {plan.task} cannot be transferred between stores",
            needed="a task with one state per label, such as upos or column:NAME",
            found=f"rows of two states ({plan.labels.row_form})",
            where="task",
        )
    for name, one in plan.probes.items():
        if one.input != "states":
            raise BadParameter(
                f"{name} cannot be transferred", needed="a probe that reads states", found=one.input, where="probe"
            )
    return plans


class _Trained:
    """Holds the states of one store by site, and the fits of the probe on them."""

    def __init__(self, plan: Plan, store: Any) -> None:
        self.plan, self.store = plan, store
        (self.name, self.probe), *_ = plan.probes.items()
        self.measures = dict([next(iter(plan.measures_for(self.probe).items()))])

    def states(self, site: str, labels: Any) -> States:
        """Return the states of the rows of `labels` by split."""
        return {split: rows_read(self.plan.store, site, labels, split) for split in SPLITS}

    def fit(self, states: States) -> Callable[[States], tuple[Sampled, Any]]:
        """Fit the probe, and return a function that scores it on other states of the same rows."""
        plan = self.plan
        fits = fits_of(plan, self.probe, states, (plan.labels,))[0]
        tempers = tempers_of(fits, plan.labels, states["dev"], self.measures.values())
        judged = {"test": plan.judged("test")}

        def score(other: States) -> tuple[Sampled, Any]:
            scores = score_label_set(fits, plan.labels, other, self.measures, judged, seen=None, tempers=tempers)
            return next(iter(scores.values())), fits[0]

        return score


def probe_transfer(
    plans: Sequence[Plan], pairs: Sequence[Pair], *, permutations: int, seed: int, advance: Callable[[], None]
) -> dict[Pair, ProbeTransfer]:
    """Return, for pairs of sites, the score of the probe that was trained on the first store's train rows on the test
    rows of the second.

    States of the second store are moved by the orthogonal map (with one scale) that fits those of the first best on the
    train rows. The null permutes test rows of the second store by whole clusters.

    Args:
        plans: the plans of both stores, see `plans_of`.
        pairs: pairs of sites.
        permutations: number of permutations of the null.
        seed: root of every random draw.
        advance: called once for every pair.
    """
    first, second = (_Trained(plan, plan.store) for plan in plans)
    labels, judged = first.plan.labels, first.plan.judged("test")
    measure = next(iter(first.measures.values())).informed(labels)
    name = next(iter(first.measures))
    floors = [s[name, "test"].value for s in baseline_scores(first.plan).values() if (name, "test") in s]
    best = (max if measure.higher_is_better else min)(floors, default=None)
    own_b: dict[str, float] = {}
    found: dict[Pair, ProbeTransfer] = {}
    for site_a in dict.fromkeys(a for a, _ in pairs):
        states_a = first.states(site_a, labels)
        score = first.fit(states_a)
        own_a = score(states_a)[0].value
        for site_b in (b for a, b in pairs if a == site_a):
            states_b = second.states(site_b, labels)
            if site_b not in own_b:
                own_b[site_b] = second.fit(states_b)(states_b)[0].value
            mapped = _moved(states_b, states_a["train"])
            sampled, fit = score(mapped)
            scored = score_of(sampled, measure, judged)
            null = _permuted_scores(measure, fit, mapped["test"], first.plan, permutations, seed)
            sign = 1.0 if measure.higher_is_better else -1.0
            null_bounds = (float(null.mean()), sign * upper_bound(sign * null)) if permutations else (None, None)
            found[site_a, site_b] = ProbeTransfer(
                Estimate(sampled.value, scored.low, scored.high, *null_bounds),
                own_a,
                own_b[site_b],
                best,
                name,
                measure.unit,
                len(judged.rows),
                judged.clusters.count,
                measure.higher_is_better,
            )
            advance()
    return found


def _moved(states: States, train: NDArray[np.float32]) -> States:
    """Return the states of all splits, moved by the map that is fitted from their train rows to `train`."""
    mean_b, mean_a = states["train"].mean(0, dtype=np.float64), train.mean(0, dtype=np.float64)
    b, a = states["train"] - mean_b.astype(np.float32), train - mean_a.astype(np.float32)
    fitted = Map.fitted((b.T @ a).astype(np.float64), float((b.astype(np.float64) ** 2).sum()))
    turn = (fitted.scale * fitted.rotation).astype(np.float32)
    shift = mean_a.astype(np.float32)
    return {split: (X - mean_b.astype(np.float32)) @ turn + shift for split, X in states.items()}


def _permuted_scores(measure: Any, fit: Any, X: NDArray[np.float32], plan: Plan, count: int, seed: int) -> Floats:
    """Return the scores `(P,)` of the predictions for test rows that are permuted by cluster."""
    judged = plan.judged("test")
    test = plan.labels.take(plan.labels.rows("test"))
    predicted, y = predict(fit, X, test).take(judged.within), plan.labels.y[judged.rows]
    scores = [
        measure.value(y, predicted.take(permutation))
        for permutation in cluster_permutations(judged.groups, count, seed)
    ]
    return np.array(scores)


# Outputs.


@dataclass(frozen=True)
class OutputDivergence:
    """Holds the mean KL divergence of the next-token distributions of two models in bits, and the numbers of tokens and
    texts.
    """

    kl: Estimate
    tokens: int
    texts: int


def check_models(models: Sequence[LanguageModel], stores: Mapping[str, Any]) -> None:
    """Refuse models whose outputs cannot be compared, or that are not those of the stores.

    Raises:
        BadParameter: there are not as many models as stores.
        UnsupportedModel: a model does not predict the next token.
        ProvenanceMismatch: a store was made by another model, or the tokenizers differ.
    """
    if len(models) != len(stores):
        raise BadParameter(
            "one model for each store is needed to compare outputs",
            needed=f"{len(stores)} models, in the order of the stores",
            found=str(len(models)),
            where="models",
        )
    tokenizers = []
    for model, (name, store) in zip(models, stores.items(), strict=True):
        if model.suffix.head != "causal":
            raise UnsupportedModel(
                f"the outputs of {model.name} are no distribution of the next token",
                needed="a causal language model with its head",
                found=model.suffix.head or "no head over the vocabulary",
                where=f"models, store {name}",
                next_step="leave `models` out: measures of states need no output",
            )
        identity = model.identity()
        ours, theirs = weights_digest(identity["model"]), weights_digest(store.identity["model"])
        if ours and theirs and ours != theirs:
            raise ProvenanceMismatch(
                f"the store {name} was made by another model than {model.name}",
                needed=f"weights {theirs[:12]}…",
                found=f"weights {ours[:12]}…",
                where="models",
                next_step="name the models in the order of the stores",
            )
        tokenizers.append(tokenizer_digest(identity["tokenizer"]))
    if len(set(tokenizers)) > 1:
        raise ProvenanceMismatch(
            "the models have different tokenizers, so that their outputs are over different tokens",
            needed="one tokenizer",
            found=f"{len(set(tokenizers))} tokenizers",
            where="models",
            next_step="leave `models` out: measures of states need no output",
        )


def output_divergence(
    first: LanguageModel,
    second: LanguageModel,
    corpus: Corpus,
    examples: Sequence[int],
    *,
    permutations: int,
    seed: int,
) -> OutputDivergence:
    """Return the mean KL divergence, in bits per token, of the second model's next-token distribution from the first's,
    at the tokens of some texts.

    Its interval resamples texts. The null matches each distribution of the first model with that of another token, by
    whole texts, on at most 256 tokens; its bound is the value that 95 % of permutations exceed.

    Args:
        first, second: the models, see `check_models`.
        corpus: the corpus.
        examples: ordinals of the texts.
        permutations: number of permutations of the null.
        seed: root of every random draw.

    Raises:
        DegenerateDesign: there are fewer than two texts with tokens.
    """
    sums, groups, ours, theirs = [], [], [], []
    left = _KL_ROWS
    per_text = max(1, math.ceil(_KL_ROWS / max(1, len(examples))))
    for text, (p, q) in enumerate(_distributions(first, second, corpus, examples)):
        sums.append((float((np.exp(p) * (p - q)).sum()), len(p)))
        if left > 0:
            taken = np.linspace(0, len(p) - 1, min(per_text, left, len(p))).round().astype(int)
            ours.append(p[taken])
            theirs.append(q[taken])
            groups += [text] * len(taken)
            left -= len(taken)
    table = np.array(sums)
    if len(table) < 2:
        raise DegenerateDesign(
            "too few texts to compare outputs on", needed="two or more texts with tokens", found=str(len(table))
        )
    value = table[:, 0].sum() / table[:, 1].sum()
    drawn = np.concatenate(list(resampled_sums(table, seed)))
    spread = replicates((drawn[:, 0] / drawn[:, 1])[None, None], clusters=Clusters.of_sizes(table[:, 1]), seed=seed)
    null = _permuted_divergences(np.concatenate(ours), np.concatenate(theirs), np.array(groups), permutations, seed)
    low, high = (bound / math.log(2) for bound in spread.interval)
    bounds = (float(null.mean()), -upper_bound(-null)) if permutations else (None, None)
    found = Estimate(float(value / math.log(2)), max(0.0, low), high, *bounds)
    return OutputDivergence(found, int(table[:, 1].sum()), len(table))


def _distributions(
    first: LanguageModel, second: LanguageModel, corpus: Corpus, examples: Sequence[int]
) -> Iterator[tuple[Floats, Floats]]:
    """Yield, for each text, the log probabilities `(T, V)` of both models at its tokens."""
    limit = min(filter(None, (first.max_length, second.max_length)), default=None)
    for start in range(0, len(examples), _KL_BATCH):
        texts = [corpus.examples[ordinal].text for ordinal in examples[start : start + _KL_BATCH]]
        batch = [one if limit is None else one.truncated(limit) for one in first.encode(texts)]
        batch = [one for one in batch if (~one.special).any()]
        if not batch:
            continue
        logits = [model.logits(batch).float().log_softmax(-1).cpu().numpy() for model in (first, second)]
        if logits[0].shape != logits[1].shape:
            raise ProvenanceMismatch(
                "the models have vocabularies of different sizes",
                needed=f"{logits[0].shape[-1]:,} outputs, as {first.name}",
                found=f"{logits[1].shape[-1]:,}",
                where=second.name,
                next_step="leave `models` out: measures of states need no output",
            )
        for at, one in enumerate(batch):
            columns = int(first.first_piece(batch)[at]) + np.flatnonzero(~one.special)
            yield logits[0][at, columns], logits[1][at, columns]


def _permuted_divergences(p: Floats, q: Floats, groups: NDArray[np.int64], count: int, seed: int) -> Floats:
    """Return the mean KL divergence in bits under each permutation of the rows of q."""
    chances = np.exp(p)
    own = (chances * p).sum(1)
    crossed = chances @ q.T
    every = np.arange(len(p))
    draws = [(own - crossed[every, moved]).mean() for moved in cluster_permutations(groups, count, seed)]
    return np.array(draws) / math.log(2)
