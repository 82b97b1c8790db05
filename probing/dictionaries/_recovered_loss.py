"""Measures the loss of a causal model with states of a site replaced by what a dictionary makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dictionaries.dictionary import Dictionary
from probing.errors import UnsupportedModel
from probing.models.batching import length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.results.dictionary_training import DictionaryQuality
from probing.seeds import child_seed
from probing.statistics.bootstrap import cluster_weights, interval
from probing.text.corpus import Corpus

Floats = NDArray[np.float32]
MOST_TOKENS, LEAST_TEXTS = 4096, 16  # that the loss is measured on
_TOKENS = 512  # of a batch
_BITS = 1.0 / float(np.log(2.0))
_CLEAN, _REMOVED = "clean", "removed"


def refuse_without_loss(model: LanguageModel, site: str) -> None:
    """Refuse a model whose loss with other states at the site cannot be computed.

    Raises:
        UnsupportedModel: the model does not predict the next token, or the site is not `resid.l`.
    """
    if model.suffix.head != "causal" or not site.startswith("resid."):
        raise UnsupportedModel(
            "the recovered loss is that of next tokens, with states of the residual stream replaced",
            needed="a causal model and a site resid.l",
            found=f"{model.suffix.head or 'no'} head, {site}",
            where=model.name,
            next_step="leave the model out: all else is measured without it",
        )


def with_losses(
    qualities: Sequence[DictionaryQuality],
    dictionaries: Mapping[str, Dictionary],
    *,
    model: LanguageModel,
    corpus: Corpus,
    texts: NDArray[np.int64],
    site: str,
    mean: Floats,
    skip: int,
    seed: int,
    advance: Callable[[int, int], None],
) -> list[DictionaryQuality]:
    """Return the qualities of dictionaries with the losses of the model on some texts of the corpus.

    States of special tokens and of the first `skip` tokens stay as they are. The interval is by resampling texts.
    """
    centre = torch.from_numpy(mean).to(model.device)
    edits: dict[str, Callable[[Tensor], Tensor]] = {
        name: lambda rows, own=own: torch.from_numpy(own.reconstruct(rows.float().cpu().numpy())).to(rows)  # type: ignore[misc]
        for name, own in dictionaries.items()
    }
    edits[_REMOVED] = lambda rows: centre.to(rows).expand_as(rows)
    sums, tokens = _losses(model, corpus, texts, site, skip, edits, advance)
    clean, removed, weights = sums[_CLEAN], sums[_REMOVED], cluster_weights(len(tokens), seed=child_seed(seed, "loss"))
    done = []
    for one in qualities:
        if one.role not in dictionaries:
            done.append(one)
            continue
        replaced = sums[one.role]
        gap = (removed - clean).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = (weights @ (removed - replaced)) / (weights @ (removed - clean))
        low, high = interval(samples, df=len(tokens) - 1)
        values = [float(part.sum() / tokens.sum()) for part in (clean, replaced, removed)]
        recovered = (float((removed - replaced).sum() / gap), low, high) if gap > 0 else (None, None, None)
        done.append(
            replace(
                one,
                loss_clean=values[0],
                loss_replaced=values[1],
                loss_removed=values[2],
                loss_recovered=recovered[0],
                loss_recovered_low=recovered[1],
                loss_recovered_high=recovered[2],
            )
        )
    return done


def _losses(
    model: LanguageModel,
    corpus: Corpus,
    texts: NDArray[np.int64],
    site: str,
    skip: int,
    edits: Mapping[str, Callable[[Tensor], Tensor]],
    advance: Callable[[int, int], None],
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Return the summed loss of each text in bits, by name of the edit, and the number of tokens it is summed over; of
    the first texts that have 4,096 tokens together, or 16.
    """
    encoded = model.encode([corpus[int(text)].text for text in texts])
    encoded = [one if model.max_length is None else one.truncated(model.max_length) for one in encoded]
    within = np.cumsum([len(one) for one in encoded]) <= MOST_TOKENS
    encoded = encoded[: max(LEAST_TEXTS, int(within.sum()))]
    sums = {name: np.zeros(len(encoded)) for name in (_CLEAN, *edits)}
    tokens, done = np.zeros(len(encoded)), 0
    for batch in length_sorted_batches([len(one) for one in encoded], _TOKENS):
        given = [encoded[i] for i in batch]
        inputs = model.padded(given)
        read, outputs = model.suffix.read(inputs, [site])
        assert outputs is not None  # a causal model has a head
        edited, scored = _places(model, given, inputs.mask.shape[1], skip)
        edited, scored = edited.to(inputs.ids.device), scored.to(inputs.ids.device)
        tokens[batch] = scored.sum(1).cpu().numpy()
        sums[_CLEAN][batch] = _bits(outputs, inputs.ids, scored)
        for name, edit in edits.items():
            states = read[site].clone()
            states[edited] = edit(states[edited])
            with torch.inference_mode():
                outputs = model.run_from(site, states, inputs)
            sums[name][batch] = _bits(outputs, inputs.ids, scored)
        done += len(batch)
        advance(done, len(encoded))
    return sums, tokens


def _places(model: LanguageModel, given: Sequence[object], length: int, skip: int) -> tuple[Tensor, Tensor]:
    """Return which tokens `(B, T)` are replaced, and which are predicted from a token before them."""
    first = model.first_piece(given)  # type: ignore[arg-type]
    edited = torch.zeros((len(given), length), dtype=torch.bool)
    scored = edited.clone()
    for line, (one, start) in enumerate(zip(given, first.tolist(), strict=True)):
        own = torch.from_numpy(~one.special)  # type: ignore[attr-defined]
        edited[line, start : start + len(own)] = own & (torch.arange(len(own)) >= skip)
        scored[line, start : start + len(own)] = own
        scored[line, start] = False  # nothing comes before it
    return edited, scored


def _bits(outputs: Tensor, ids: Tensor, scored: Tensor) -> NDArray[np.float64]:
    """Return the summed −log₂ p of the scored tokens of each input."""
    logs = torch.log_softmax(outputs[:, :-1].float(), -1).gather(2, ids[:, 1:, None])[..., 0]
    return np.asarray(-(logs * scored[:, 1:]).double().sum(1).cpu().numpy() * _BITS)
