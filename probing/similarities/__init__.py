"""Measures how similar the states of two stores are: CKA, neighbours, Procrustes, transfer of probes, outputs, with
nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probing._renamed import takes_old_names
from probing.errors import BadParameter
from probing.provenance import __version__, digest, model_called
from probing.results.probe import Score
from probing.results.similarity import (
    CKA,
    NEIGHBOURS,
    OUTPUT_KL,
    PROCRUSTES,
    TRANSFER,
    SimilarityResult,
    SimilarityResults,
    committed,
    drift_table,
    joined_drift,
)
from probing.seeds import generator
from probing.similarities.linear import Estimate, LinearPair, linear_pairs
from probing.similarities.neighbours import MutualNeighbours, mutual_neighbours, sampled_rows
from probing.similarities.rows import (
    SharedRows,
    check_options,
    named,
    opened,
    refuse_store,
    refuse_trained,
    refuse_without_corpus,
    shared_rows,
)
from probing.similarities.sums import Comparison, Pair, comparisons_of
from probing.states.store import Store
from probing.states.store.views import refuse_other_corpus
from probing.system.machine import target_of
from probing.system.progress import steps_bar
from probing.text.corpus import Corpus

if TYPE_CHECKING:
    import pandas as pd

    from probing.models.language_model import LanguageModel

Outliers = Literal["apart", "leave-out"]


@dataclass(frozen=True)
class Settings:
    """Holds the options that change numbers.

    Attributes:
        neighbours, neighbour_rows: k, and the number of rows among which neighbours are sought.
        permutations: number of permutations of each null.
        outliers: `apart` (CKA also without outlier coordinates) or `leave-out` (no measure of states reads them).
        task, probe: of probe transfer; None: not asked for, and the task's first.
        kl_texts: largest number of texts on which outputs are compared.
        root_seed: root of every random draw.
    """

    neighbours: int
    neighbour_rows: int
    permutations: int
    outliers: str
    task: str | None
    probe: str | None
    kl_texts: int
    root_seed: int


@takes_old_names
def similarity(
    first: Store | str | Path,
    *others: Store | str | Path,
    twin: Store | str | Path | None = None,
    sites: str | Sequence[str] = "*",
    pairs: Literal["auto", "all", "same"] = "auto",
    corpus: Corpus | None = None,
    task: str | None = None,
    probe: str | None = None,
    models: Sequence[LanguageModel] | None = None,
    kl_texts: int = 200,
    resample_by: Literal["sentence", "document"] = "sentence",
    neighbours: int = 10,
    neighbour_rows: int = 2000,
    permutations: int = 99,
    first_token: Literal["leave-out", "keep"] = "leave-out",
    outliers: Outliers = "apart",
    root_seed: int = 0,
    to: str | Path | None = None,
    progress: bool | None = None,
) -> SimilarityResults:
    """Compare the states of one store with those of others on the same rows, site by site, and return the numbers.

    Measures are debiased linear CKA, mutual nearest neighbours, held-out Procrustes R², and if asked for the transfer
    of probes and the KL divergence of outputs. Each has an interval from resampling clusters and a null from permuting
    the rows of the other store by whole clusters; the null of CKA is computed from all coordinates on at most about
    1,500 rows, and for R² only an upper bound of the null is computed. Random halves of the first store's coordinates
    are compared as a ceiling, and its untrained twin as a floor. States are read in blocks and never all at once.

    Args:
        first: a store, or its directory.
        others: the stores it is compared with, such as checkpoints of its training; all have the same rows.
        twin: store of the untrained twin of the first store's model; refused if it is recorded as trained.
        sites: shell-style patterns of the sites of every store.
        pairs: `all` pairs of sites, or sites of the `same` name; `auto`: all if there is one other store.
        corpus: the corpus of the stores; needed for `task`, `models` and `resample_by="document"`, and for the forms
            of words in the drift.
        task: task of the probes that are transferred; None: none are.
        probe: recipe of the probe; None: the task's first.
        models: the models of the stores, in their order, whose outputs are compared; None: no outputs.
        kl_texts: largest number of texts on which outputs are compared.
        resample_by: cluster that is resampled and permuted whole: `sentence` (an example of the corpus) or `document`.
        neighbours: number of nearest neighbours k.
        neighbour_rows: number of random rows among which neighbours are sought.
        permutations: number of permutations of each null, 19 or more; 0: no null.
        first_token: `leave-out`: rows that contain token 0 of the input are left out, except where rows are whole
            sentences; `keep`: they are not.
        outliers: `apart`: CKA is also given without outlier coordinates; `leave-out`: no measure of states reads them.
        root_seed: root of every random draw.
        to: folder for similarity.jsonl, similarity.parquet, drift.parquet, and the units by which a killed run resumes;
            results there of another first store or of other options are replaced.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        ProvenanceMismatch: stores differ in their rows, or are not of the corpus or the models given; or the twin is
            recorded as trained.
        DegenerateDesign: there are too few rows or clusters, or states of a site do not vary.
        UnknownSite: a store has no such site, or no site has the same name in two stores.
        NonFiniteStates: states are NaN or infinite.
        UnsupportedModel: a model does not predict the next token.
        UnknownName, BadParameter: a name or parameter is wrong.
        CannotReachFile: `to` cannot be used; it is checked before work begins.
    """
    if not others:
        raise BadParameter("one store alone has nothing to be compared with", needed="two stores or more", found="one")
    folder = target_of(to)
    check_options(
        sites,
        pairs=pairs,
        kl_texts=kl_texts,
        resample_by=resample_by,
        neighbours=neighbours,
        neighbour_rows=neighbour_rows,
        permutations=permutations,
        first_token=first_token,
        outliers=outliers,
        root_seed=root_seed,
    )
    refuse_without_corpus(corpus, task, probe, models, resample_by)
    refuse_store(folder)
    stores = named([first, *others])
    twins = {} if twin is None else {"untrained twin": opened(twin)}
    is_known = refuse_trained(twins)
    if corpus is not None:
        for store in (*stores.values(), *twins.values()):
            refuse_other_corpus(store, corpus)
    rows = shared_rows(stores | twins, corpus=corpus, resample_by=resample_by, first_token=first_token, seed=root_seed)
    sampled_rows(rows, neighbour_rows, neighbours)
    settings = Settings(neighbours, neighbour_rows, permutations, outliers, task, probe, kl_texts, root_seed)
    comparisons = comparisons_of(stores, twins, sites, pairs, rows, outliers)
    behaviour = _Behaviour(stores, comparisons, corpus, models, settings)
    facts = {"first_token": first_token, "resample_by": rows.unit, "version": __version__}
    results: list[SimilarityResult] = []
    frames: list[pd.DataFrame] = []
    total = sum(one.steps(task) for one in comparisons)
    with steps_bar("comparing", "steps", total, progress) as update:
        for at, one in enumerate(comparisons):
            counter = _Counter(update, total, sum(before.steps(task) for before in comparisons[:at]))
            made = _provenance(one, settings, facts)
            unit = digest(["similarity", made, one.role, list(one.pairs), models is not None])
            found, drift = committed(
                folder,
                unit,
                lambda one=one, made=made, counter=counter: _compared(  # type: ignore[misc]
                    one, rows, settings, behaviour, made, corpus, counter
                ),
            )
            results += found
            frames += [] if drift is None else [drift]
            one.second.sums.clear()
    done = SimilarityResults(results, joined_drift(frames), _remarks(rows, stores, settings, is_known))
    if folder is not None:
        done.write(folder)
    return done


class _Counter:
    """Counts the steps of one comparison on a bar that shows all of them."""

    def __init__(self, update: Callable[[int, int], None], total: int, done: int) -> None:
        self._update, self._total, self._done = update, total, done

    def __call__(self) -> None:
        self._done += 1
        self._update(self._done, self._total)


def _provenance(one: Comparison, settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that enters the results of a comparison, but the pair of sites."""
    made: dict[str, Any] = dict(vars(settings)) | dict(facts)
    for side, source in (("a", one.first), ("b", one.second)):
        identity, store = source.store.identity, source.store
        made |= {f"store_id_{side}": store.store_id, f"content_id_{side}": store.content_id}
        made[f"model_{side}"] = model_called(identity["model"], str(identity["extraction"].get("dtype", "")))
        made[f"rows_{side}"] = identity["extraction"]["rows"]
    return made


def _compared(
    one: Comparison,
    rows: SharedRows,
    settings: Settings,
    behaviour: _Behaviour,
    made: dict[str, Any],
    corpus: Corpus | None,
    advance: Callable[[], None],
) -> tuple[list[SimilarityResult], pd.DataFrame | None]:
    """Return all results of one comparison, and the drift of rows."""
    for source in (one.first, one.second):
        source.measure(advance)
    measured = tuple((a, b) for a, b in one.pairs if a in one.first.sums and b in one.second.sums)
    one = replace(one, pairs=measured)
    if not measured:
        return [], None
    shared: dict[str, Any] = {"rows": rows, "permutations": settings.permutations, "advance": advance}
    linear = linear_pairs(one.first, one.second, one.pairs, drift=one.role == "pair", **shared)
    near = mutual_neighbours(
        one.first, one.second, one.pairs, k=settings.neighbours, sample=settings.neighbour_rows, **shared
    )
    checkpoint = one.second.store.identity["model"].get("checkpoint")
    common = _result(one, made, rows, checkpoint.get("step") if isinstance(checkpoint, Mapping) else None)
    found = [
        result
        for pair in one.pairs
        for result in _of_states(common, one, pair, linear[pair], near[pair], min(len(rows), settings.neighbour_rows))
    ]
    found += behaviour.results(one, common, advance)
    moved = {a: pair.drift for (a, _), pair in linear.items() if pair.drift is not None}
    return found, drift_table(
        one.first.name, one.second.name, moved, rows.example, rows.word, corpus
    ) if moved else None


def _result(one: Comparison, made: dict[str, Any], rows: SharedRows, step: int | None) -> SimilarityResult:
    """Return a result without its measure and sites, from which the others are made."""
    nothing = Score(0.0, 0.0, 0.0, len(rows), "")
    names = (one.first.name, one.second.name)
    return SimilarityResult(
        "", one.role, *names, "", "", nothing, None, None, rows.clusters, 0, 0, step, provenance=made
    )


def _with(common: SimilarityResult, measure: str, found: Estimate, n: int, unit: str, **more: Any) -> SimilarityResult:
    score = Score(found.value, found.low, found.high, n, unit)
    nulls: dict[str, Any] = {"null_mean": found.null_mean, "null_bound": found.null_bound}
    return replace(common, measure=measure, score=score, **nulls, **more)


def _of_states(
    common: SimilarityResult, one: Comparison, pair: Pair, linear: LinearPair, near: MutualNeighbours, sampled: int
) -> list[SimilarityResult]:
    """Return the results of a pair of sites that are made from states."""
    a, b, n = one.first.sums[pair[0]], one.second.sums[pair[1]], common.score.n
    common = replace(common, site_a=pair[0], site_b=pair[1], width_a=a.width, width_b=b.width)
    cka = {
        "biased": linear.biased,
        "biased_if_unrelated": float(np.sqrt(a.width * b.width / ((n + a.width) * (n + b.width)))),
        "without_outliers": linear.without_outliers,
        "outliers_a": len(a.outliers),
        "outliers_b": len(b.outliers),
        "outlier_share_a": a.outlier_share,
        "outlier_share_b": b.outlier_share,
    }
    return [
        _with(common, CKA, linear.cka, n, "CKA", **cka),
        _with(common, NEIGHBOURS, near.share, sampled, "fraction", ties=near.ties),
        _with(common, PROCRUSTES, linear.procrustes, n, "R²"),
    ]


class _Behaviour:
    """Makes the results that need a task or models; both are checked before work begins."""

    def __init__(
        self,
        stores: Mapping[str, Any],
        comparisons: Sequence[Comparison],
        corpus: Corpus | None,
        models: Sequence[LanguageModel] | None,
        settings: Settings,
    ) -> None:
        self._corpus, self._settings = corpus, settings
        self._models, self._plans = {}, {}
        if models is not None:
            import_module("probing.similarities.behaviour").check_models(models, stores)
            self._models = dict(zip(stores, models, strict=True))
        if settings.task is not None:
            sources = {s.name: s for one in comparisons if one.role != "ceiling" for s in (one.first, one.second)}
            plans = import_module("probing.similarities.behaviour").plans_of(
                [source.store for source in sources.values()],
                [source.sites for source in sources.values()],
                corpus,
                task=settings.task,
                probe=settings.probe,
                seed=settings.root_seed,
            )
            self._plans = dict(zip(sources, plans, strict=True))

    def results(self, one: Comparison, common: SimilarityResult, advance: Callable[[], None]) -> list[SimilarityResult]:
        """Return the results of a comparison; none for halves of a store."""
        if one.role == "ceiling":
            return []
        return [*self._transferred(one, common, advance), *self._outputs(one, common)]

    def _transferred(
        self, one: Comparison, common: SimilarityResult, advance: Callable[[], None]
    ) -> list[SimilarityResult]:
        if not self._plans:
            return []
        module, options = import_module("probing.similarities.behaviour"), self._settings
        plans = [self._plans[one.first.name], self._plans[one.second.name]]
        draws = {"permutations": options.permutations, "seed": options.root_seed}
        found = module.probe_transfer(plans, one.pairs, advance=advance, **draws)
        probe = next(iter(plans[0].probes))
        return [
            _with(
                replace(common, clusters=moved.clusters),
                TRANSFER,
                moved.score,
                moved.rows,
                moved.unit,
                site_a=a,
                site_b=b,
                width_a=one.first.store.width(a),
                width_b=one.second.store.width(b),
                task=plans[0].task,
                probe=probe,
                probe_measure=moved.measure,
                own_a=moved.own_a,
                own_b=moved.own_b,
                baseline=moved.baseline,
                higher_is_better=moved.higher_is_better,
            )
            for (a, b), moved in found.items()
        ]

    def _outputs(self, one: Comparison, common: SimilarityResult) -> list[SimilarityResult]:
        if one.second.name not in self._models:
            return []
        options = self._settings
        examples = np.unique(one.first.rows.example)
        chosen = generator(options.root_seed, "texts").permutation(examples)[: options.kl_texts]
        models = (self._models[one.first.name], self._models[one.second.name])
        found = import_module("probing.similarities.behaviour").output_divergence(
            *models, self._corpus, chosen.tolist(), permutations=options.permutations, seed=options.root_seed
        )
        common = replace(common, clusters=found.texts)
        return [_with(common, OUTPUT_KL, found.kl, found.tokens, "bits per token", higher_is_better=False)]


def _remarks(rows: SharedRows, stores: Mapping[str, Any], settings: Settings, is_twin_known: bool) -> list[str]:
    """Return sentences on what was left out and in what the stores differ."""
    found = []
    if rows.first_tokens:
        found.append(f"{rows.first_tokens:,} rows are left out, since they contain token 0 of their input")
    if not rows.knows_tokens:
        found.append("the stores do not say which rows contain token 0 of their input: such rows are not left out")
    if not is_twin_known:
        found.append(
            "whether the model of the twin is untrained is not recorded in its store: the floor rests on your word"
        )
    pooled = {name: str(store.identity["extraction"]["rows"]) for name, store in stores.items()}
    if len(set(pooled.values())) > 1:
        ways = ", ".join(f"{name} {how}" for name, how in pooled.items())
        found.append(f"the stores make the state of a row from its tokens in different ways: {ways}")
    if settings.outliers == "leave-out":
        found.append("outlier coordinates are left out of all measures of states; probes read them")
    return found
