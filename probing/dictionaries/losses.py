"""Defines `check_dictionary`, which measures a dictionary on states, and how much the model's loss rises when the
states are replaced by their reconstruction.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dictionaries._options import whole
from probing.dictionaries.checking import CheckRows, DictionaryCheck, check_rows
from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.encoding import site_in
from probing.errors import BadParameter, ConfigError, CorpusError, ProbingWarning, ReplayUnavailable, UnsupportedModel
from probing.models.batching import PaddedBatch, length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.models.site import Site
from probing.results.probe import Score
from probing.seeds import generator
from probing.states.store import Store
from probing.statistics.clusters import ClusterMeans
from probing.system.machine import with_typed_errors
from probing.system.progress import steps_bar
from probing.text.alignment import Encoded

Floats = NDArray[np.float32]

TOKENS_PER_BATCH = 2048
_WAYS = ("clean", "reconstructed", "mean", "zero")


@dataclass(frozen=True)
class LossRecovered:
    """Holds the cross-entropy (nats) of a model's next tokens with states at a site replaced, means with intervals over
    texts.

    Attributes:
        clean: nothing is replaced.
        reconstructed: each state is replaced by its reconstruction.
        mean, zero: each state is replaced by the mean of all, or by 0.
        recovered: (zero − reconstructed) / (zero − clean), 1 for a perfect reconstruction.
        recovered_from_mean: the same against the mean state, which is stricter.
        tokens, texts: numbers of tokens and texts.
    """

    clean: Score
    reconstructed: Score
    mean: Score
    zero: Score
    recovered: Score
    recovered_from_mean: Score
    tokens: int
    texts: int


@with_typed_errors
def check_dictionary(
    dictionary: Dictionary,
    source: Store | LanguageModel,
    texts: Sequence[str] = (),
    *,
    site: str | None = None,
    max_rows: int = 4000,
    skip: int = 0,
    seed: int = 0,
    any_model: bool = False,
    progress: bool | None = None,
) -> DictionaryCheck:
    """Check a dictionary on the states of a store, or of a model that reads some texts, and return what was measured.

    Measured are L0, the fraction of variance unexplained, the share of dead latents, and, with a causal model and a
    site `resid.l`, the loss that the model recovers when the states are replaced by their reconstruction. L0 that is
    more than 25 % off what the file declares, and variance unexplained that is worse by more than 25 %, are problems;
    other settings, the sites one layer before and after, and the rows without first tokens are tried, to find the
    likely cause. `refuse_if_wrong` of the result raises the error.

    Args:
        dictionary: the dictionary.
        source: a finished store of states, or a model.
        texts: texts for the model to read.
        site: site that is encoded; None: the one that the file names.
        max_rows: largest number of rows, chosen at random.
        skip: number of first tokens of each text that are left out.
        seed: seed of the choice and of the intervals.
        any_model: whether a dictionary whose file names another model or site is accepted.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        ConfigError, UnknownSite, ProvenanceMismatch, BadParameter: the states do not fit the dictionary.
        CorpusError: there are no texts, or no tokens in them.
    """
    for option, value, least in (("max_rows", max_rows, 2), ("skip", skip, 0), ("seed", seed, 0)):
        whole(option, value, least)
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise BadParameter("these are no texts", needed="a list of str", found=repr(texts)[:100])
    name = site_in(dictionary, source, site, any_model=any_model)
    options: dict[str, Any] = {"max_rows": max_rows, "skip": skip, "seed": seed}
    if isinstance(source, Store):
        return check_rows(dictionary, rows_of_store(dictionary, source, name, **options), seed=seed)
    rows, inputs = rows_of_model(dictionary, source, texts, name, progress=progress, **options)
    checked = check_rows(dictionary, rows, seed=seed)
    if source.suffix.head != "causal" or dictionary.is_transcoder or Site.parse(name).stream != "resid":
        return checked
    own: dict[str, Any] = {"skip": skip, "seed": seed, "progress": progress}
    return replace(checked, loss=loss_recovered(dictionary, source, inputs, name, **own))


def rows_of_store(
    dictionary: Dictionary, store: Store, site: str, *, max_rows: int = 4000, skip: int = 0, seed: int = 0
) -> CheckRows:
    """Return random rows of a store of states, at the site, the sites one layer before and after, and where a
    transcoder decodes.

    Args:
        dictionary: the dictionary.
        store: the store.
        site: site of the dictionary.
        max_rows: largest number of rows.
        skip: number of first tokens of each text that are left out.
        seed: seed of the choice.

    Raises:
        ConfigError: the store has no states where a transcoder decodes.
        CorpusError: there are no such rows.
    """
    start = store.rows.piece_start
    able = np.flatnonzero(start >= skip)
    chosen = np.sort(generator(seed, "dictionary rows").permutation(able)[:max_rows])
    if len(chosen) < 2:
        raise _no_rows(skip, str(store.path))
    sites = [site, *(one for one in _neighbours(site) if one in store.sites and store.width(one) == store.width(site))]
    target = _target(dictionary, store.sites)
    states = {one: store.read(one, chosen) for one in sites}
    targets = None if target is None else store.read(target, chosen)
    return CheckRows(site, states, start[chosen] == 0, targets)


def rows_of_model(
    dictionary: Dictionary,
    model: LanguageModel,
    texts: Sequence[str],
    site: str,
    *,
    max_rows: int = 4000,
    skip: int = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[CheckRows, list[Encoded]]:
    """Run a model over random texts until they have `max_rows` tokens, and return rows as `rows_of_store` does, and the
    texts as the model read them. Special tokens are no rows.

    Raises:
        ConfigError: the model has no site where a transcoder decodes.
        CorpusError: no text has tokens.
    """
    target = _target(dictionary, model.sites)
    sites = [site, *(one for one in _neighbours(site) if one in model.sites)]
    inputs = _chosen(model, texts, max_rows, skip, seed)
    wanted = [*sites, *([target] if target is not None and target not in sites else [])]
    parts: dict[str, list[Floats]] = {name: [] for name in wanted}
    firsts: list[NDArray[np.bool_]] = []
    with steps_bar("reading states", "texts", len(inputs), progress) as bar:
        for done, batch in _batches(inputs):
            states = model.states(batch, wanted)
            for row, (one, first) in enumerate(zip(batch, model.first_piece(batch), strict=True)):
                places = _places(one, skip)
                firsts.append(places == 0)
                for name in wanted:
                    parts[name].append(states[name][row].float().cpu().numpy()[first + places])
            bar(done, len(inputs))
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    is_first = np.concatenate(firsts)
    if not len(is_first):
        raise _no_rows(skip, model.name)
    if len(is_first) > max_rows:  # the last text went beyond it
        chosen = np.sort(generator(seed, "dictionary rows").permutation(len(is_first))[:max_rows])
        joined, is_first = {name: array[chosen] for name, array in joined.items()}, is_first[chosen]
    targets = None if target is None else joined[target]
    return CheckRows(site, {name: joined[name] for name in sites}, is_first, targets), inputs


def loss_recovered(
    dictionary: Dictionary,
    model: LanguageModel,
    inputs: Sequence[Encoded],
    site: str,
    *,
    skip: int = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> LossRecovered:
    """Measure what a causal model loses when every state at a site `resid.l` is replaced by its reconstruction.

    States of special tokens and of the first `skip` tokens stay as they are, and no loss is measured at them.

    Args:
        dictionary: the dictionary; no transcoder.
        model: the model.
        inputs: texts, as the model reads them (`LanguageModel.encode`).
        site: the site.
        skip: first tokens of a text that stay as they are.
        seed: seed of the intervals.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        UnsupportedModel: the model predicts no next token.
        ReplayUnavailable: it is not run from this site, or the dictionary is a transcoder.
        CorpusError: no token follows another.
    """
    if model.suffix.head != "causal":
        raise UnsupportedModel(
            "this model predicts no next token",
            needed="a causal language model with its head",
            found=str(model.suffix.head),
            where=model.name,
            next_step="check the dictionary on states alone",
        )
    if dictionary.is_transcoder or Site.parse(site).stream != "resid":
        raise ReplayUnavailable(
            "a reconstruction is put in at the residual stream alone",
            needed="a dictionary of resid.l that is no transcoder",
            found=f"{dictionary.architecture} of {site}",
            next_step="check the dictionary on states alone",
        )
    mean = _mean_state(model, inputs, site, skip)
    losses: dict[str, list[Floats]] = {way: [] for way in _WAYS}
    groups: list[NDArray[np.int64]] = []
    with torch.inference_mode(), steps_bar("loss with the reconstruction", "texts", len(inputs), progress) as bar:
        for done, batch in _batches(inputs):
            padded = model.padded(batch)
            states, logits = model.suffix.read(padded, [site])
            assert logits is not None  # of a model with a head
            clean, chosen = states[site], _mask(batch, padded, skip)
            given = {"clean": logits}
            for way, rows in _replaced(dictionary, clean[chosen], mean).items():
                changed = clean.clone()
                changed[chosen] = rows.to(clean)
                given[way] = model.run_from(site, changed, padded)
            ends = chosen.clone()
            ends[:, :-1] &= padded.mask[:, 1:].bool()
            ends[:, -1] = False
            texts = torch.nonzero(ends)[:, 0].cpu().numpy()
            groups.append(texts + done - len(batch))
            for way, outputs in given.items():
                losses[way].append(_losses(outputs, padded, ends))
            bar(done, len(inputs))
    joined = {way: np.concatenate(parts).astype(np.float64) for way, parts in losses.items()}
    return _summed(joined, np.concatenate(groups), seed, model.name)


def _replaced(dictionary: Dictionary, states: Tensor, mean: Floats) -> dict[str, Tensor]:
    rows = states.float().cpu().numpy()
    made = {"reconstructed": dictionary.reconstruct(rows), "mean": np.broadcast_to(mean, rows.shape).copy()}
    return {way: torch.from_numpy(value) for way, value in (made | {"zero": np.zeros_like(rows)}).items()}


def _losses(logits: Tensor, inputs: PaddedBatch, ends: Tensor) -> Floats:
    """Return the cross-entropy of the next token at the chosen places, in nats."""
    places = torch.nonzero(ends)
    true = inputs.ids[places[:, 0], places[:, 1] + 1]
    found = torch.nn.functional.cross_entropy(logits[ends].float(), true, reduction="none")
    losses: Floats = found.cpu().numpy()
    return losses


def _summed(losses: dict[str, NDArray[np.float64]], groups: NDArray[np.int64], seed: int, name: str) -> LossRecovered:
    count = len(groups)
    if not count:
        raise CorpusError("no token follows another", needed="texts of several tokens", found="none", where=name)
    means = ClusterMeans(groups, seed=seed)

    def score(values: Any, unit: str = "nat", over: Any = None) -> Score:
        value, low, high = means.mean(values, unit, over=over, least=float("-inf"))
        return Score(value, value if low is None else low, value if high is None else high, count, unit)

    def share(worst: str) -> Score:
        lost = losses[worst] - losses["clean"]
        return score(losses[worst] - losses["reconstructed"], "share", lost)

    parts = {way: score(losses[way]) for way in _WAYS}
    return LossRecovered(
        **parts, recovered=share("zero"), recovered_from_mean=share("mean"), tokens=count, texts=means.count
    )


def _mean_state(model: LanguageModel, inputs: Sequence[Encoded], site: str, skip: int) -> Floats:
    total, count = np.zeros(model.width(site)), 0
    for _, batch in _batches(inputs):
        states = model.states(batch, [site])[site].float().cpu().numpy()
        for row, (one, first) in enumerate(zip(batch, model.first_piece(batch), strict=True)):
            chosen = states[row][first + _places(one, skip)]
            total, count = total + chosen.sum(axis=0, dtype=np.float64), count + len(chosen)
    mean: Floats = (total / max(1, count)).astype(np.float32)
    return mean


def _mask(batch: Sequence[Encoded], inputs: PaddedBatch, skip: int) -> Tensor:
    """Return which tokens `(B, T)` are replaced and measured; padding lies where the mask of the batch is 0."""
    chosen = torch.zeros_like(inputs.ids, dtype=torch.bool)
    for row, one in enumerate(batch):
        first = int(torch.nonzero(inputs.mask[row])[0, 0])  # of padding on the left
        chosen[row, torch.from_numpy(first + _places(one, skip)).to(chosen.device)] = True
    return chosen


def _places(one: Encoded, skip: int) -> NDArray[np.int64]:
    """Return the places of a text's own tokens from number `skip` on."""
    own = np.flatnonzero(~one.special)
    return own[own >= skip]


def _chosen(model: LanguageModel, texts: Sequence[str], max_rows: int, skip: int, seed: int) -> list[Encoded]:
    inputs: list[Encoded] = []
    count = 0
    for number in generator(seed, "dictionary texts").permutation(len(texts)).tolist():
        one = model.encode([texts[number]])[0]
        one = one.truncated(min(model.max_length or len(one), len(one)))
        if len(_places(one, skip)):
            inputs.append(one)
            count += len(_places(one, skip))
        if count >= max_rows:
            break
    if not inputs:
        raise _no_rows(skip, model.name)
    if cut := sum(one.is_truncated for one in inputs):
        warnings.warn(
            f"{cut:,} of {len(inputs):,} texts are longer than the model's {model.max_length:,} tokens, and were cut: "
            "later tokens are no rows",
            ProbingWarning,
            stacklevel=3,
        )
    return inputs


def _batches(inputs: Sequence[Encoded]) -> Iterator[tuple[int, list[Encoded]]]:
    """Yield batches of texts, each with the number of texts up to it."""
    done = 0
    for batch in length_sorted_batches([len(one) for one in inputs], TOKENS_PER_BATCH):
        done += len(batch)
        yield done, [inputs[number] for number in batch]


def _neighbours(site: str) -> list[str]:
    """Return the sites one layer before and after, for files that count layers otherwise."""
    parsed = Site.parse(site)
    if parsed.layer is None:
        return []
    return [str(Site(parsed.stream, layer)) for layer in (parsed.layer - 1, parsed.layer + 1) if layer >= 0]


def _target(dictionary: Dictionary, sites: Sequence[str]) -> str | None:
    if not dictionary.is_transcoder:
        return None
    if dictionary.target is None or dictionary.target not in sites:
        raise ConfigError(
            "the states that this transcoder decodes are not there",
            needed=f"states at {dictionary.target or 'its output, which its file names not'}",
            found=", ".join(sites[:8]),
            next_step="extract them too, or check another dictionary",
        )
    return dictionary.target


def _no_rows(skip: int, where: str) -> CorpusError:
    return CorpusError(
        "there are no states to check on", needed=f"tokens from number {skip} on of a text", found="none", where=where
    )
