"""Subcommands `train` and `planted` of `bench_dictionaries.py`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import probing as pb
from probing.dictionaries.training.fitting import DictionaryOptions, Fit, fit_dictionary
from probing.dictionaries.training.token_states import Standard, TokenStates
from tests.samples.planted_dictionaries import RECOVERED, PlantedStates, interval, matched, planted_states

SETTINGS: dict[str, dict[str, Any]] = {
    "easy": {"zipf": 0.0, "children": 0.0, "correlation": 0.0},
    "Zipf": {"zipf": 0.8, "children": 0.0, "correlation": 0.0},
    "Zipf, hierarchy, correlation": {"zipf": 0.8, "children": 0.25, "correlation": 0.5},
}


def add(commands: Any) -> None:
    """Add the subcommands."""
    one = commands.add_parser("train", help="time and quality of training on a store of tokens, or on made states")
    one.add_argument("--store", type=Path, help="store of tokens (default: made states of --rows and --width)")
    one.add_argument("--site", default="")
    one.add_argument("--model", help="for the recovered loss")
    one.add_argument("--corpus", type=Path, help="file of the corpus of the store")
    one.add_argument("--twin", type=Path, help="store of the untrained twin")
    one.add_argument("--to", type=Path, help="folder of the dictionary, from which a killed run resumes")
    one.add_argument("--rows", type=int, default=100_000)
    one.add_argument("--width", type=int, default=576)
    one.add_argument("--latents", type=int, default=4608)
    one.add_argument("--k", type=int, default=32)
    one.add_argument("--epochs", type=int, default=1)
    one.add_argument("--batch", type=int)
    one.add_argument("--rate", type=float)
    one.add_argument("--architecture", default="batchtopk")
    one.add_argument("--million", type=int, default=1_000_000, help="tokens that the time is scaled to")
    one.add_argument("--passes", type=int, default=10, help="passes that the time is scaled to")
    one.set_defaults(run=train)
    other = commands.add_parser("planted", help="recovery of planted features, beside published settings")
    other.add_argument("--rows", type=int, default=30_000)
    other.add_argument("--features", type=int, default=128)
    other.add_argument("--width", type=int, default=64)
    other.add_argument("--l0", type=float, default=6.0)
    other.add_argument("--steps", type=int, default=4000)
    other.add_argument("--seeds", type=int, default=1)
    other.add_argument("--setting", choices=tuple(SETTINGS), help="only this one (default: all)")
    other.set_defaults(run=planted)


def train(given: argparse.Namespace) -> None:
    """Train on a store or on made states; print time, time scaled to a million tokens, and quality beside controls."""
    made = given.store is None
    states: Any = _made_states(given) if made else given.store
    more: dict[str, Any] = {"twin": given.twin, "to": given.to}
    if given.model:
        more |= {"model": pb.LanguageModel.load(given.model, kind="causal"), "corpus": pb.Corpus.read(given.corpus)}
    names = ("latents", "k", "epochs", "batch", "rate", "architecture")
    wall, used = time.perf_counter(), time.process_time()
    done = pb.train_dictionary(
        states, given.site, **{name: getattr(given, name) for name in names} | more, progress=True
    )
    wall, used = time.perf_counter() - wall, time.process_time() - used
    one = done.training
    assert one.seconds is not None, "resumed: the time is not known"
    scaled = one.seconds * given.million * given.passes / (one.train_tokens * one.epochs)
    load = os.getloadavg()[0]
    print(f"train: {one.train_tokens:,} tokens × {one.width}, {one.latents:,} latents, k {one.k}, {one.epochs} passes")
    print(f"  {one.precision}, {torch.get_num_threads()} threads, load {load:.1f}")
    print(f"  training {one.seconds:.1f} s; with measuring wall {wall:.1f} s, processor {used:.1f} s")
    print(f"  scaled to {given.million:,} tokens × {given.passes} passes: {scaled / 60:.1f} minutes")
    print(done.training.table().drop(columns=["model", "site", "architecture", "latents", "k"]).T.to_string())


def _made_states(given: argparse.Namespace) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return sums of few of twice as many directions as the width, with noise."""
    random, many = np.random.default_rng(0), 2 * given.width
    directions = random.standard_normal((many, given.width)).astype(np.float32) / given.width**0.5
    made = np.empty((given.rows, given.width), np.float32)
    for at in range(0, given.rows, 10_000):
        part = made[at : at + 10_000]
        fires = random.random((len(part), many), np.float32) < given.k / many
        part[:] = (fires * random.exponential(1.0, fires.shape)).astype(np.float32) @ directions
        part += 0.02 * random.standard_normal(part.shape, np.float32)
    return made


def planted(given: argparse.Namespace) -> None:
    """Print how well planted features are recovered, here and by published settings, on the same data and steps."""
    print(f"planted: {given.features} features of width {given.width}, {given.rows:,} states, {given.steps} steps")
    print("  mean |cos| after Hungarian matching (MCC) with 95 % intervals over features, share above 0.9, L0")
    for name, options in SETTINGS.items():
        if given.setting not in (None, name):
            continue
        for seed in range(given.seeds):
            data = planted_states(
                given.rows, width=given.width, features=given.features, l0=given.l0, seed=seed, **options
            )
            print(f"  {name} (seed {seed}), true L0 {data.l0:.1f}")
            for method, (directions, l0, seconds) in _recovered(data, given, seed).items():
                found = matched(data.features, directions)
                low, high = interval(found)
                share = float((found > RECOVERED).mean())
                print(
                    f"    {method:34} {found.mean():.3f} [{low:.3f}, {high:.3f}] {share:6.1%} "
                    f"L0 {l0:5.1f} {seconds:6.1f} s",
                    flush=True,
                )


def _recovered(data: PlantedStates, given: argparse.Namespace, seed: int) -> dict[str, tuple[Any, float, float]]:
    k, found = max(1, round(data.l0)), {}
    for architecture in ("batchtopk", "topk"):
        begun = time.perf_counter()
        fit = _ours(data, given, architecture, k, seed)
        l0 = fit.dictionary.encode(data.states[:4096]).nnz / min(4096, len(data.states))
        found[f"here, {architecture}"] = (fit.dictionary.decoder, l0, time.perf_counter() - begun)
    for name, model in _published(data, given, k, seed).items():
        begun = time.perf_counter()
        l0 = _fit(model, data, given, seed)
        found[name] = (model.decoder.detach().numpy(), l0, time.perf_counter() - begun)
    drawn = np.random.default_rng(seed + 1000).standard_normal(data.features.shape).astype(np.float32)
    found["random directions"] = (drawn, float(k), 0.0)
    return found


def _ours(data: PlantedStates, given: argparse.Namespace, architecture: Any, k: int, seed: int) -> Fit:
    rows = TokenStates(data.states, "", skip=0, max_rows=None, seed=seed)
    epochs = max(1, round(given.steps / (len(rows.train) // 512)))
    options = DictionaryOptions(given.features, k, architecture, epochs, 512, 0.1 / given.width**0.5, False, seed)
    return fit_dictionary(rows, options)


class Published(nn.Module):
    """A dictionary as papers train it, by automatic differentiation of dense products; the states are scaled alike."""

    rate, betas, clip = 1e-4, (0.9, 0.999), 0.0

    def __init__(self, decoder: Tensor, centre: Tensor, k: int) -> None:
        super().__init__()
        self.decoder = nn.Parameter(nn.functional.normalize(decoder, dim=1))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.encoder_bias = nn.Parameter(torch.zeros(len(decoder)))
        self.decoder_bias = nn.Parameter(centre.clone())
        self.k, self.idle = k, torch.zeros(len(decoder), dtype=torch.long)
        self.idle_after = 100_000

    def latents(self, pre: Tensor) -> Tensor:
        """Return the latents of pre-activations."""
        best = pre.topk(self.k, dim=1)
        return torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())

    def loss(self, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return the loss and the latents; `share` is how much of the training is done."""
        pre = (x - self.decoder_bias) @ self.encoder.T + self.encoder_bias
        latents = self.latents(pre)
        error = x - latents @ self.decoder - self.decoder_bias
        loss = error.square().sum(1).mean() / (x - x.mean(0)).square().sum(1).mean()
        self.idle = torch.where((latents > 0).any(0), 0, self.idle + len(x))
        dead = torch.nonzero(self.idle > self.idle_after)[:, 0]
        if len(dead):
            values = pre[:, dead].relu()
            best = values.topk(min(len(dead), x.shape[1] // 2), dim=1)
            chosen = torch.zeros_like(values).scatter(1, best.indices, best.values)
            left = error.detach()
            auxiliary = (left - chosen @ self.decoder[dead]).square().mean() / left.square().mean()
            loss = loss + torch.nan_to_num(auxiliary) / 32
        return loss, latents

    def after(self) -> None:
        """Do what follows each step: directions of norm 1."""
        self.decoder.data = nn.functional.normalize(self.decoder.data, dim=1)


class BatchTopK(Published):
    """Bussmann et al. 2024: rate 3e-4, betas 0.9 and 0.99, gradients clipped to norm 1."""

    rate, betas, clip = 3e-4, (0.9, 0.99), 1.0

    def latents(self, pre: Tensor) -> Tensor:
        """Return the k largest a row in the mean."""
        flat = pre.relu().flatten()
        best = flat.topk(self.k * len(pre))
        return torch.zeros_like(flat).scatter(0, best.indices, best.values).view_as(pre)


class WeightedL1(Published):
    """Bricken et al. 2023 with the changes of April 2024: ReLU, L1 weighted by the norms of directions, rate 5e-5,
    gradients clipped to norm 1, the weight of L1 rising over the first 5 % of the steps.
    """

    rate, clip = 5e-5, 1.0

    def __init__(self, decoder: Tensor, centre: Tensor, k: int, weight: float) -> None:
        super().__init__(decoder, centre, k)
        self.decoder.data *= 0.1
        self.encoder.data = self.decoder.data.clone()
        self.weight = weight

    def loss(self, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return squared error and weighted L1."""
        latents = ((x - self.decoder_bias) @ self.encoder.T + self.encoder_bias).relu()
        error = (x - latents @ self.decoder - self.decoder_bias).square().sum(1).mean()
        norms = self.decoder.norm(dim=1)
        return error + self.weight * min(1.0, share / 0.05) * (latents * norms).sum(1).mean(), latents

    def after(self) -> None:
        """Directions are free."""


def _published(data: PlantedStates, given: argparse.Namespace, k: int, seed: int) -> dict[str, Published]:
    random = torch.Generator().manual_seed(seed)
    start, centre = torch.randn(data.features.shape, generator=random), torch.zeros(data.features.shape[1])
    models: dict[str, Published] = {"TopK (Gao et al. 2024)": Published(start, centre, k)}
    models["BatchTopK (Bussmann et al. 2024)"] = BatchTopK(start, centre, k)
    for factor in (1.0, 4.0):
        models[f"L1 (Bricken et al. 2023), weight {factor:g}"] = WeightedL1(start, centre, k, factor)
    for one in models.values():
        if not isinstance(one, WeightedL1 | BatchTopK):
            one.rate = 2e-4 / (given.features / 2**14) ** 0.5  # their scaling law, at this number of latents
    return models


def _fit(model: Published, data: PlantedStates, given: argparse.Namespace, seed: int) -> float:
    """Train on the same rows, standardised alike, and return the L0 of the last step."""
    rows = TokenStates(data.states, "", skip=0, max_rows=None, seed=seed)
    standard = Standard.of(rows.sample(16_384, seed), "planted states")
    optimizer = torch.optim.Adam(model.parameters(), lr=model.rate, betas=model.betas)
    step, l0, epoch = 0, 0.0, 0
    while step < given.steps:
        for part in rows.batches(512, epoch, seed):
            share = step / given.steps
            for group in optimizer.param_groups:
                group["lr"] = model.rate * min(1.0, (1 - share) / 0.2)
            loss, latents = model.loss(standard(part), share)
            optimizer.zero_grad()
            loss.backward()
            if model.clip:
                nn.utils.clip_grad_norm_(model.parameters(), model.clip)
            optimizer.step()
            model.after()
            l0, step = float((latents > 0).sum(1).float().mean()), step + 1
            if step == given.steps:
                break
        epoch += 1
    return l0
