"""Trains TopK and BatchTopK dictionaries on the tokens of a store, and compares them with a random dictionary and with
one of an untrained twin.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probing.dictionaries._options import whole
from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.losses import LossRecovered, loss_recovered
from probing.dictionaries.training.fitting import Architecture, DictionaryOptions, Fit
from probing.dictionaries.training.folder import EVALUATION, TWINS, fitted, make_room
from probing.dictionaries.training.token_states import TokenStates, no_variance
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnsupportedModel
from probing.neuronpedia.writing import write_evaluation
from probing.probes._rows import low_precision_helps
from probing.provenance import __version__, digest, model_called, weights_digest
from probing.results.dictionary_training import RANDOM, TRAINED, TWIN, DictionaryQuality, DictionaryTraining
from probing.seeds import child_seed
from probing.states.store import Store
from probing.states.store.views import refuse_other_corpus
from probing.system.machine import target_of, with_typed_errors

if TYPE_CHECKING:
    from probing.models.language_model import LanguageModel
    from probing.text.alignment import Encoded
    from probing.text.corpus import Corpus

Floats = NDArray[np.float32]

_AT_ONCE = 8192
_FAR = 4.0  # median distances from the mean, beyond which a state counts as an outlier
_SAMPLE = 16_384
_LOSS_TOKENS, _LEAST_TEXTS = 4096, 16  # that the loss is measured on


@dataclass(frozen=True)
class TrainedDictionary:
    """Holds a dictionary that was trained, and what is known of it.

    Attributes:
        dictionary: the dictionary.
        training: how it was trained, and what it and its controls do on held-out tokens.
    """

    dictionary: Dictionary
    training: DictionaryTraining


@with_typed_errors
def train_dictionary(
    states: Store | str | Path | Floats,
    site: str = "",
    *,
    latents: int | None = None,
    k: int = 32,
    architecture: Architecture = "batchtopk",
    epochs: int = 10,
    batch: int | None = None,
    rate: float | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    skip: int = 1,
    max_rows: int | None = None,
    twin: Store | str | Path | None = None,
    model: LanguageModel | None = None,
    corpus: Corpus | None = None,
    controls: bool = True,
    seed: int = 0,
    to: str | Path | None = None,
    replace: bool = False,
    progress: bool | None = None,
) -> TrainedDictionary:
    """Train a sparse dictionary of the tokens' states at a site, measure it and its controls on held-out texts, and
    return the dictionary with these numbers.

    TopK (Gao et al. 2024) keeps the k largest latents of each token. BatchTopK (Bussmann et al. 2024) keeps the n · k
    largest latents of a batch of n tokens in training, and afterwards uses a threshold above which k latents per token
    are active on average. An auxiliary loss revives dead latents; directions of the decoder have norm 1. Rows are read
    from the store in parts, so that memory does not grow with it. The controls are a random dictionary of the same size
    and, if its store is given, the dictionary of an untrained twin of the model.

    Args:
        states: a store of tokens (`rows="piece"`), its directory, or states `(N, D)`.
        site: site of the store.
        latents: number of latents M; None: 8 times the width.
        k: number of active latents per token.
        architecture: `topk` or `batchtopk`.
        epochs: passes over the tokens.
        batch: number of tokens per training step; None: 1/128 of all, but at least 256 and at most 2048.
        rate: largest learning rate; None: 0.1 / √D. A larger one explains more in few passes, and more latents die.
        precision: precision of the encoder's matrix products: `float32`, `bfloat16`, or `auto`: bfloat16 where the
            processor has it.
        skip: number of first tokens of each text that are left out; many models have states of another kind there.
        max_rows: largest number of tokens, in whole texts chosen at random; None: all.
        twin: store of the untrained twin of the model on the same corpus.
        model, corpus: the model and corpus of the store, for the loss that the model recovers with reconstructed
            states; None: it is not measured.
        controls: whether a random dictionary is measured beside it.
        seed: root of every random draw.
        to: folder for the dictionary, dictionary_training.json and .parquet, evaluation.json (the same in the form of
            SAEBench), and the state of training, from which a killed run resumes to the same result.
        replace: whether a dictionary in `to` of other states, options or twin is deleted, with its twin's; else it is
            refused.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        ConfigError: `to` holds another dictionary, and `replace` is not set.
        BadParameter: an option is out of range, or rows of the store are not tokens.
        DegenerateDesign: there are more latents than tokens, or too few tokens, the states do not vary, all latents are
            dead, or training does not converge (of several passes, the last leaves all variance unexplained).
        NonFiniteStates: a state is not finite.
        UnsupportedModel: a model was given that is not causal, or the site is not `resid.l`.
        ProvenanceMismatch: the twin is of a trained model or of another corpus, or the corpus or model is not that of
            the store.
        UnknownSite: the store has no such site.
        CannotReachFile: `to` cannot be used; it is checked before work begins.
    """
    folder = target_of(to)
    whole("seed", seed, 0)
    rows = TokenStates(states, site, skip=skip, max_rows=max_rows, seed=seed)
    if precision not in ("auto", "float32", "bfloat16"):
        raise BadParameter("unknown precision", needed="auto, float32 or bfloat16", found=repr(precision))
    low = precision == "bfloat16" or (precision == "auto" and low_precision_helps())
    options = DictionaryOptions(
        latents=8 * rows.width if latents is None else latents,
        k=k,
        architecture=architecture,
        epochs=epochs,
        batch=min(2048, max(256, len(rows.train) // 128)) if batch is None else batch,
        rate=0.1 / rows.width**0.5 if rate is None else rate,
        low_precision=low,
        seed=seed,
    )
    options.check(len(rows.train), rows.name)
    twins = None if twin is None else TokenStates(twin, site, skip=skip, max_rows=max_rows, seed=seed)
    if twins is not None:
        _refuse_trained_twin(rows, twins)
    _refuse_others(rows, model, corpus)
    if folder is not None:
        make_room(folder, rows, options, twins, replace=replace)
    fit = fitted(rows, options, folder, "training", progress)
    mean = rows.sample(_SAMPLE, seed).mean(0)
    named = {TRAINED: fit.dictionary}
    qualities = [_quality(TRAINED, fit.dictionary, rows, mean, fit.alive)]
    if controls:
        sample = rows.sample(_SAMPLE, seed)
        l0 = min(qualities[0].l0, options.latents // 4)
        named[RANDOM] = Dictionary.random(
            rows.width, options.latents, l0=l0, states=sample, seed=child_seed(seed, "random dictionary")
        )
        qualities.append(_quality(RANDOM, named[RANDOM], rows, mean))
    if twins is not None:
        other = fitted(twins, options, None if folder is None else folder / TWINS, "training on the twin", progress)
        at = twins.sample(_SAMPLE, seed).mean(0)
        qualities.insert(1, _quality(TWIN, other.dictionary, twins, at, other.alive))
    if model is not None and corpus is not None:
        texts = _texts(model, corpus, rows)
        qualities = [
            _with_loss(
                one, loss_recovered(named[one.role], model, texts, site, skip=skip, seed=seed, progress=progress)
            )
            if one.role in named
            else one
            for one in qualities
        ]
    training = _training(rows, options, fit, qualities)
    if folder is not None:
        training.write(folder)
        write_evaluation(_evaluation(training), folder / EVALUATION)
    return TrainedDictionary(fit.dictionary, training)


def _quality(
    role: str, dictionary: Dictionary, rows: TokenStates, mean: Floats, alive: float | None = None
) -> DictionaryQuality:
    """Return what a dictionary does on the held-out rows.

    Raises:
        DegenerateDesign: no latent is active on any of them.
    """
    fires, active, parts = np.zeros(dictionary.n_latents, bool), 0, []
    for at in range(0, len(rows.dev), _AT_ONCE):
        states = rows.read(rows.dev[at : at + _AT_ONCE])
        latents = dictionary.encode(states)
        fires[latents.indices] = True
        active += latents.nnz
        made = dictionary.decode(latents)
        parts.append([np.square(states - of, dtype=np.float64).sum(1) for of in (made, mean)])
    if role == TRAINED and not active:
        raise DegenerateDesign(
            "all latents are dead",
            needed="latents that are active on held-out tokens",
            found="none",
            where=rows.name,
            next_step="give more tokens, fewer latents or a smaller learning rate",
        )
    wrong, spread = np.concatenate(parts, axis=1)
    usual = spread <= _FAR**2 * np.median(spread)
    if not spread[usual].sum() > 0:
        raise no_variance(rows.name, f"{int(usual.sum()):,} of {len(usual):,} held-out rows that are the mean of train")
    return DictionaryQuality(
        role,
        l0=active / len(rows.dev),
        unexplained=float(wrong[usual].sum() / spread[usual].sum()),
        alive=float(fires.mean()),
        unexplained_of_all=float(wrong.sum() / spread.sum()),
        outliers=float(1.0 - usual.mean()),
        alive_in_training=alive,
    )


def _texts(model: LanguageModel, corpus: Corpus, rows: TokenStates) -> list[Encoded]:
    """Return the first held-out texts, as the model reads them, that have 4,096 tokens together, or 16 texts."""
    texts = model.encode([corpus[int(text)].text for text in rows.dev_texts])
    texts = [one if model.max_length is None else one.truncated(model.max_length) for one in texts]
    within = np.cumsum([len(one) for one in texts]) <= _LOSS_TOKENS
    return texts[: max(_LEAST_TEXTS, int(within.sum()))]


def _with_loss(one: DictionaryQuality, loss: LossRecovered) -> DictionaryQuality:
    return changed(
        one,
        loss_clean=loss.clean.value,
        loss_replaced=loss.reconstructed.value,
        loss_removed=loss.mean.value,
        loss_recovered=loss.recovered_from_mean.value,
        loss_recovered_low=loss.recovered_from_mean.low,
        loss_recovered_high=loss.recovered_from_mean.high,
    )


def _training(
    rows: TokenStates, options: DictionaryOptions, fit: Fit, qualities: Sequence[DictionaryQuality]
) -> DictionaryTraining:
    return DictionaryTraining(
        model=fit.dictionary.model or "",
        site=rows.site,
        architecture=options.architecture,
        latents=options.latents,
        width=rows.width,
        k=options.k,
        train_tokens=len(rows.train),
        held_out_tokens=len(rows.dev),
        first_tokens=rows.skipped,
        epochs=options.epochs,
        batch=min(options.batch, len(rows.train)),
        rate=options.rate,
        seed=options.seed,
        precision="bfloat16" if options.low_precision else "float32",
        errors=fit.errors,
        qualities=tuple(qualities),
        seconds=fit.seconds,
        facts={"dictionary": fit.dictionary.content_id, "states": rows.identity, "version": __version__},
    )


def _evaluation(training: DictionaryTraining) -> dict[str, Any]:
    """Return the numbers of a dictionary as SAEBench's evaluation `core` names them; those of controls beside them."""
    own = training.trained
    metrics: dict[str, dict[str, float | None]] = {
        "sparsity": {"l0": own.l0},
        "reconstruction_quality": {"explained_variance": 1.0 - own.unexplained},
        "misc_metrics": {"frac_alive": own.alive},
    }
    if own.loss_clean is not None:
        metrics["model_performance_preservation"] = {
            "ce_loss_score": own.loss_recovered,
            "ce_loss_without_sae": own.loss_clean,
            "ce_loss_with_sae": own.loss_replaced,
            "ce_loss_with_ablation": own.loss_removed,
        }
    settings = ("architecture", "latents", "width", "k", "model", "site")
    return {
        "eval_type_id": "core",
        "eval_config": {name: getattr(training, name) for name in ("held_out_tokens", "first_tokens", "seed")},
        "eval_id": digest(training.facts)[:32],
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "sae_cfg_dict": {name: getattr(training, name) for name in settings},
        "eval_result_unstructured": {
            "verdict": " ".join(training.doubts) or "no doubt of the dictionary itself; see the controls",
            "controls": [asdict(one) for one in training.qualities if one is not own],
        },
    }


def _refuse_trained_twin(rows: TokenStates, twins: TokenStates) -> None:
    """Refuse a twin whose model is trained, or whose rows are not those of the store."""
    assert twins.source is not None  # an array is no twin
    mine = None if rows.source is None else rows.source.identity["corpus"]["fingerprint"]
    facts = twins.source.identity
    is_drawn = facts["model"].get("untrained") is not None
    if is_drawn and facts["corpus"]["fingerprint"] == mine:
        return
    raise ProvenanceMismatch(
        "this is no untrained twin",
        needed="a store of the same corpus, extracted with --untrained SEED",
        found=f"states of {model_called(facts['model'])}" + ("" if not is_drawn else ", on another corpus"),
        where=twins.name,
        next_step="extract the twin's states with `probing extract … --untrained 0 --rows piece`",
    )


def _refuse_others(rows: TokenStates, model: LanguageModel | None, corpus: Corpus | None) -> None:
    """Refuse a model or corpus that is not that of the store, or one of them alone."""
    if (model is None) != (corpus is None):
        raise BadParameter(
            "the recovered loss needs a model and its corpus",
            needed="both, or neither",
            found="a corpus alone" if model is None else "a model alone",
        )
    if model is None or corpus is None:
        return
    if rows.source is None:
        raise BadParameter("states in an array have no texts", needed="a store", found="an array and a model")
    refuse_other_corpus(rows.source, corpus)
    ours, theirs = (weights_digest(one) for one in (rows.source.identity["model"], model.identity()["model"]))
    if ours != theirs:
        raise ProvenanceMismatch(
            "the states of this store are of another model",
            needed=model_called(rows.source.identity["model"]),
            found=model_called(model.identity()["model"]),
            where=str(rows.source.path),
            next_step="load the model that the store was extracted from",
        )
    if model.suffix.head != "causal" or not rows.site.startswith("resid."):
        raise UnsupportedModel(
            "the recovered loss is that of next tokens, with states of the residual stream replaced",
            needed="a causal model and a site resid.l",
            found=f"{model.suffix.head or 'no'} head, {rows.site}",
            where=model.name,
            next_step="leave the model out: all else is measured without it",
        )
