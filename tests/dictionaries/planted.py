"""States whose features are known, in a stream of several sites, and the dictionaries that hold these features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import probing as pb
from probing.dictionaries.checking import CheckRows

WIDTH, ROWS = 64, 400
SITES = ("resid.1", "resid.2", "resid.3")


@dataclass(frozen=True, eq=False)
class Planted:
    """Sparse features in a stream: at each site half of the features of the site before are replaced by others.

    Attributes:
        states: `(ROWS, WIDTH)` by site.
        directions: the features' unit directions at resid.2, `(2 WIDTH, WIDTH)`.
        mean: what is added to every state.
        k: active features of a row.
        scale: factor of all states, whose mean norm is far from the root of the width.
        is_first: which rows are first tokens.
    """

    states: dict[str, np.ndarray]
    directions: np.ndarray
    mean: np.ndarray
    k: int
    scale: float
    is_first: np.ndarray

    def rows(self, site: str = "resid.2") -> CheckRows:
        """Rows of a site, with those of the sites beside it."""
        place = SITES.index(site)
        sites = [site, *(other for other in SITES if abs(SITES.index(other) - place) == 1)]
        return CheckRows(site, {name: self.states[name] for name in sites}, self.is_first)


def orthonormal(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype("f4")


def planted(seed: int, normalization: str = "none") -> Planted:
    """Draw features and states. With `layer_norm`, each state is a row of its own size and mean around its features."""
    rng = np.random.default_rng(seed)
    k, scale = int(rng.choice([4, 6, 8])), float(rng.choice([0.2, 3.0, 12.0]))
    bases = [orthonormal(rng) for _ in range(4)]
    mean = (0.6 * rng.standard_normal(WIDTH)).astype("f4")
    values = [active(rng, k // 2) for _ in range(4)]
    # Two bases at a time: a site drops the older and adds a new one.
    sums = {site: sum(values[at + shift] @ bases[at + shift] for shift in (0, 1)) for at, site in enumerate(SITES)}
    noise = {site: 0.03 * rng.standard_normal((ROWS, WIDTH)) for site in SITES}
    states = {site: (sums[site] + noise[site] + mean).astype("f4") for site in SITES}
    if normalization == "layer_norm":
        states = {
            site: resized(rows - mean - (rows - mean).mean(axis=1, keepdims=True), rng) for site, rows in states.items()
        }
        mean = 0 * mean
    directions = np.concatenate(bases[1:3])
    is_first = np.arange(ROWS) % 25 == 0
    return Planted({site: scale * rows for site, rows in states.items()}, directions, mean, k, scale, is_first)


def active(rng: np.random.Generator, count: int) -> np.ndarray:
    """Values `(ROWS, WIDTH)` of features, `count` of each row active."""
    values = np.zeros((ROWS, WIDTH), "f4")
    for row in values:
        row[rng.choice(WIDTH, count, replace=False)] = rng.uniform(1, 2, count)
    return values


def resized(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of other sizes and means, which layer_norm takes away."""
    return (rows * rng.uniform(0.3, 3, (ROWS, 1)) + rng.uniform(-2, 2, (ROWS, 1))).astype("f4")


def dictionary_of(truth: Planted, architecture: str, normalization: str = "none") -> pb.Dictionary:
    """The dictionary of the features at resid.2: tied, with thresholds between noise and signal where it has them."""
    scale = truth.scale
    given: dict[str, Any] = {"normalization": normalization, "subtract_decoder_bias": True, "site": "resid.2"}
    if normalization == "layer_norm":  # features have the size that they have in a row of deviation 1
        x = truth.states["resid.2"]
        z = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True)
        scale = float(np.sort(z @ truth.directions.T, axis=1)[:, -truth.k :].mean()) / 1.5
    decoder = truth.directions
    given |= {"encoder": decoder.T, "decoder": decoder, "decoder_bias": scale * truth.mean}
    given |= {"encoder_bias": np.zeros(len(decoder), "f4"), "declared": {"k": truth.k}}
    if architecture == "topk":
        return pb.Dictionary(architecture="topk", k=truth.k, **given)
    threshold = np.full(len(decoder) if architecture == "jumprelu" else 1, 0.85 * scale, "f4")
    own = pb.Dictionary(architecture=architecture, threshold=threshold, **given)
    rows = truth.states["resid.2"]
    pre = own.encode(rows)
    l0 = pre.nnz / ROWS
    return pb.Dictionary(architecture=architecture, threshold=threshold, **given | {"declared": {"l0": l0}})


def saelens_folder(folder: Path, made: pb.Dictionary, **config: Any) -> Path:
    """Write a dictionary as SAELens does; `config` replaces settings."""
    import json

    from safetensors.numpy import save_file

    layer = int(str(made.site)[6:])
    architecture = {"batchtopk": "jumprelu"}.get(made.architecture, made.architecture)
    own: dict[str, Any] = {"architecture": architecture, "d_in": made.width, "d_sae": made.n_latents}
    own |= {"apply_b_dec_to_input": made.subtract_decoder_bias, "normalize_activations": made.normalization}
    own |= {"metadata": {"sae_lens_version": "6.54.12", "hook_name": f"blocks.{layer}.hook_resid_pre"}}
    own["metadata"] |= {"l0": made.declared["l0"]} if "l0" in made.declared else {}
    own |= {"k": made.k} if made.k is not None else {}
    arrays = {"W_enc": made.encoder, "b_enc": made.encoder_bias, "W_dec": made.decoder, "b_dec": made.decoder_bias}
    if made.threshold is not None:
        arrays["threshold"] = np.broadcast_to(made.threshold, (made.n_latents,)).copy()
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(own | config))
    save_file(arrays, folder / "sae_weights.safetensors")
    return folder
