"""Fits a dictionary to the states of tokens, by steps over all of them in random order; a killed fit resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from probing.dictionaries._options import is_real, whole
from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.training.learner import Learner, above
from probing.dictionaries.training.token_states import Standard, TokenStates
from probing.errors import BadParameter, DegenerateDesign
from probing.files.whole_files import write_atomically
from probing.provenance import model_called
from probing.seeds import child_seed

Floats = NDArray[np.float64]
Architecture = Literal["topk", "batchtopk"]

STATE = "training.safetensors"  # in the folder of a training that has not ended
_SAVE_SECONDS = 30.0
_THRESHOLD_ROWS = 65_536  # rows of train on which the threshold of BatchTopK is chosen
_MEDIAN_ROWS = 16_384
_WARM_UP, _DECAY_FROM = 0.02, 0.3  # shares of the steps
_AT_ONCE = 8192
_MOST = (1 << 31) - 1


@dataclass(frozen=True)
class DictionaryOptions:
    """Options that change a trained dictionary.

    Attributes:
        latents: number of latents M.
        k: active latents of a row: of each (`topk`), or in the mean over rows (`batchtopk`).
        architecture: `topk` or `batchtopk`.
        epochs: passes over the rows of train.
        batch: rows of a step.
        rate: learning rate; it rises over the first 2 % of the steps and falls linearly to 0 over the last 70 %.
        low_precision: whether the encoder's products are computed in bfloat16.
        seed: root of every random draw.
    """

    latents: int
    k: int
    architecture: Architecture
    epochs: int
    batch: int
    rate: float
    low_precision: bool
    seed: int

    def check(self, rows: int, where: str) -> None:
        """Refuse values out of range, and more latents than there are rows of train.

        Raises:
            BadParameter: a value is out of range.
            DegenerateDesign: there are more latents than rows.
        """
        if self.architecture not in ("topk", "batchtopk"):
            raise BadParameter("unknown architecture", needed="topk or batchtopk", found=repr(self.architecture))
        for name in ("latents", "k", "epochs", "batch"):
            whole(name, getattr(self, name), 1, _MOST)
        whole("seed", self.seed, 0)
        if self.k > self.latents // 2:
            raise BadParameter(
                "too many active latents", needed=f"k of at most half of {self.latents} latents", found=str(self.k)
            )
        if not is_real(self.rate) or not 0 < self.rate < 1:
            raise BadParameter("a learning rate out of range", needed="above 0, below 1", found=repr(self.rate))
        if self.latents > rows:
            raise DegenerateDesign(
                "more latents than tokens to train them on",
                needed=f"at most {rows:,} latents, better a hundredth of that",
                found=f"{self.latents:,}",
                where=where,
                next_step="extract more text, or give fewer latents",
            )


def _begun(states: TokenStates, standard: Standard, options: DictionaryOptions) -> Learner:
    """Return a learner whose first directions are those of random rows of train, and random ones."""
    seed = child_seed(options.seed, "dictionary start")
    drawn = torch.randn((options.latents, states.width), generator=torch.Generator().manual_seed(seed))
    return Learner(
        drawn,
        k=options.k,
        per_row=options.architecture == "topk",
        idle_after=len(states.train) // 4,
        rate=options.rate,
        low_precision=options.low_precision,
    )


def _rate_at(step: int, total: int, rate: float) -> float:
    """Return the learning rate of a step."""
    share = (step + 1) / total
    return rate * min(1.0, share / _WARM_UP, (1.0 - share + 1 / total) / (1.0 - _DECAY_FROM))


def fit_dictionary(
    states: TokenStates,
    options: DictionaryOptions,
    *,
    folder: Path | None = None,
    mark: str = "",
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Train a dictionary and return it.

    The state of training is written to `folder` every 30 s, and a killed run goes on from there to the same result.

    Raises:
        DegenerateDesign: the states do not vary, or training does not converge: the last pass explains nothing.
        NonFiniteStates: a state is not finite.
    """
    size = min(options.batch, len(states.train))
    steps = len(states.train) // size
    total, errors = steps * options.epochs, np.zeros(options.epochs)
    standard = Standard.of(states.sample(_MEDIAN_ROWS, options.seed), states.name)
    learner = _begun(states, standard, options)
    done = _resumed(folder, mark, learner, errors)
    begun = saved = time.monotonic()
    is_whole = done == 0
    with torch.no_grad():
        for epoch in range(done // steps, options.epochs):
            for rows in states.batches(size, epoch, options.seed, first=done - epoch * steps):
                errors[epoch] += learner.step(standard(rows), _rate_at(done, total, options.rate)) / steps
                done += 1
                _check_finite(errors[epoch], options)
                if folder is not None and time.monotonic() - saved >= _SAVE_SECONDS:
                    _save(folder, mark, learner, done, errors)
                    saved = time.monotonic()
                advance(done, total)
    _check_converged(errors, options, states.name)
    active = float((learner.idle < steps * size).float().mean())
    dictionary = _dictionary(learner, states, standard, options)
    seconds = time.monotonic() - begun if is_whole else None
    return Fit(dictionary, tuple(errors.tolist()), active, seconds)


@dataclass(frozen=True)
class Fit:
    """Holds a trained dictionary, the share of variance unexplained in each epoch, the share of latents that were
    active in the last, and the wall time in seconds (None if training was resumed).
    """

    dictionary: Dictionary
    errors: tuple[float, ...]
    alive: float
    seconds: float | None


def _check_converged(errors: Floats, options: DictionaryOptions, where: str) -> None:
    """Refuse a training whose last pass leaves as much unexplained as the mean of the states does."""
    if options.epochs > 1 and errors[-1] >= 1.0:
        raise DegenerateDesign(
            "training does not converge",
            needed="a last pass that leaves less unexplained than the mean state does",
            found=f"{errors[-1]:.1%} of the variance unexplained, after {errors[0]:.1%} in the first pass, at a "
            f"learning rate of {options.rate:g}",
            where=where,
            next_step="give a smaller learning rate, more passes, or another k",
        )


def _check_finite(error: float, options: DictionaryOptions) -> None:
    if not np.isfinite(error):
        raise DegenerateDesign(
            "training does not converge",
            needed="a finite error",
            found=f"{error} at a learning rate of {options.rate:g}",
            next_step="give a smaller learning rate",
        )


def _save(folder: Path, mark: str, learner: Learner, done: int, errors: Floats) -> None:
    """Write the state of training."""
    from safetensors.torch import save

    tensors = {name: value.contiguous().clone() for name, value in learner.tensors().items()}
    tensors |= {"done": torch.tensor(done), "errors": torch.from_numpy(errors)}
    write_atomically(folder / STATE, save(tensors, {"mark": mark}))


def _resumed(folder: Path | None, mark: str, learner: Learner, errors: Floats) -> int:
    """Take up the state of training in a folder, and return the number of steps done; 0 if there is none."""
    from safetensors import safe_open

    if folder is None or not (folder / STATE).is_file():
        return 0
    try:
        with safe_open(folder / STATE, "pt") as file:
            if (file.metadata() or {}).get("mark") != mark:
                return 0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        own = learner.tensors()
        if any(tensors[name].shape != value.shape for name, value in own.items()):
            return 0
        errors[:] = tensors["errors"].numpy()
        done = int(tensors["done"])
    except Exception:  # damaged, or of another version: trained anew
        return 0
    learner.take_up(tensors)
    return done


def _dictionary(learner: Learner, states: TokenStates, standard: Standard, options: DictionaryOptions) -> Dictionary:
    """Return what was learned as a dictionary of states as they are: the factor of the states goes into biases and
    threshold, and directions keep their norm of 1.
    """
    threshold = (
        None
        if options.architecture == "topk"
        else np.array([_threshold(learner, states, standard, options)], np.float32)
    )
    store = states.source
    return Dictionary(
        architecture=options.architecture,
        encoder=learner.encoder.T.numpy(),
        encoder_bias=(standard.scale * learner.encoder_bias).numpy(),
        decoder=learner.decoder.numpy(),
        decoder_bias=(standard.centre + standard.scale * learner.decoder_bias).numpy(),
        threshold=threshold,
        k=options.k,
        subtract_decoder_bias=True,
        model=None if store is None else model_called(store.identity["model"]),
        site=states.site or None,
        declared={"k": options.k, "l0": options.k},
        source="trained",
    )


def _threshold(learner: Learner, states: TokenStates, standard: Standard, options: DictionaryOptions) -> float:
    """Return the threshold above which rows of train have k latents in the mean."""
    rows = states.sample(_THRESHOLD_ROWS, child_seed(options.seed, "threshold"))
    wanted, least = options.k * len(rows), 0.5 * learner.threshold
    while True:
        parts = []
        for at in range(0, len(rows), _AT_ONCE):
            centred = standard(rows[at : at + _AT_ONCE]) - learner.decoder_bias
            pre = torch.addmm(learner.encoder_bias, centred, learner.encoder.T)
            parts.append(above(pre, least)[0])
        values = torch.cat(parts).numpy()
        if len(values) > wanted:
            return standard.scale * float(np.partition(values, len(values) - wanted - 1)[len(values) - wanted - 1])
        if least == 0.0:
            return 0.0
        least = 0.0
