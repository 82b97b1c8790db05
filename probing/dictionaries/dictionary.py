"""Defines `Dictionary`: a sparse autoencoder or transcoder that encodes states as latents and decodes latents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.dictionaries._options import check_device, is_real, whole
from probing.errors import BadParameter, NonFiniteStates
from probing.models.site import Site
from probing.provenance import digest
from probing.system.machine import with_typed_errors

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float32]
ARCHITECTURES = ("standard", "gated", "topk", "batchtopk", "jumprelu", "transcoder", "skip_transcoder")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
ARRAYS = (
    "encoder",
    "encoder_bias",
    "decoder",
    "decoder_bias",
    "threshold",
    "gate_bias",
    "gate_scale",
    "skip",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dictionary:
    """A sparse dictionary with m latents for states of width d: an encoder, which computes the activation of each
    latent from a state, and a decoder, which sums the latents' directions weighted by these activations.

    A state x is encoded as f = act(x' W_enc + b_enc), with x' = norm(x) − b_dec if `subtract_decoder_bias`, and decoded
    as f W_dec + b_dec, in the units of x. A transcoder decodes the output of a sublayer from its input x.

    Attributes:
        architecture: `standard` (ReLU), `gated`, `topk` (the k largest of each row), `batchtopk` (one threshold, chosen
            in training so that k latents per row are active on average), `jumprelu` (a threshold for each latent),
            `transcoder` or `skip_transcoder` (ReLU, or the k largest or a threshold if these are given).
        encoder: W_enc `(d, m)` float32.
        encoder_bias: b_enc `(m,)`; in a gated dictionary, the bias of the magnitudes.
        decoder: W_dec `(m, d)`, one direction per latent; in a transcoder `(m, d_out)`.
        decoder_bias: b_dec `(d,)`; in a transcoder `(d_out,)`.
        threshold: `(m,)` or `(1,)`: a latent is active above it; None: above 0.
        k: number of active latents per row; None if the architecture does not fix it.
        grouped: whether the k latents of a row are the largest of each of k equal groups, in order.
        subtract_decoder_bias: whether the decoder's bias is subtracted before encoding.
        normalization: `none`, `layer_norm` or `constant_norm_rescale` of each state before encoding, undone after.
        gate_bias, gate_scale: `(m,)`, for a gated dictionary: bias of the gate, and logarithm of the factor of the
            magnitudes.
        skip: `(d_out, d)`: what is added to the decoded state is x skipᵀ; None: nothing.
        model: name of the model, as the file gives it; None if it gives none.
        site: site that is encoded, such as `resid.15`; None if the file names no site, or one that this package has no
            name for.
        target: for a transcoder, the site whose states are decoded; else None.
        declared: what the file states about the dictionary: `k`, `l0`, and others.
        source: format of the file that it was read from.
    """

    architecture: str
    encoder: Floats
    encoder_bias: Floats
    decoder: Floats
    decoder_bias: Floats
    threshold: Floats | None = None
    k: int | None = None
    grouped: bool = False
    subtract_decoder_bias: bool = False
    normalization: str = "none"
    gate_bias: Floats | None = None
    gate_scale: Floats | None = None
    skip: Floats | None = None
    model: str | None = None
    site: str | None = None
    target: str | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)
    source: str = "arrays"

    def __post_init__(self) -> None:
        """Convert arrays to float32, and refuse those that do not fit one another.

        Raises:
            BadParameter: an array has another shape or numbers that are not finite, or a setting does not exist.
            UnknownSite: `site` has not the form of a site.
        """
        for name in ARRAYS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.ascontiguousarray(value, dtype=np.float32))
        _check_settings(self)
        _check_arrays(self)
        for name in filter(None, (self.site, self.target)):
            Site.parse(name)

    @property
    def width(self) -> int:
        """Width d of the states that are encoded."""
        return int(self.encoder.shape[0])

    @property
    def n_latents(self) -> int:
        """Number m of latents."""
        return int(self.encoder.shape[1])

    @property
    def is_transcoder(self) -> bool:
        """Whether the decoded states belong to another site than the encoded ones."""
        return self.architecture.endswith("transcoder")

    @property
    def activation(self) -> str:
        """Name of the function that turns pre-activations into latents: `relu`, `topk`, `groupmax`, `threshold` or
        `gated`.
        """
        if self.architecture == "gated":
            return "gated"
        if self.k is not None and self.architecture != "batchtopk":
            return "groupmax" if self.grouped else "topk"
        return "relu" if self.threshold is None else "threshold"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect encoding or decoding, by name."""
        names = ("architecture", "k", "grouped", "subtract_decoder_bias", "normalization")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def content_id(self) -> str:
        """SHA-256 (hex) of weights and settings."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        hashes = {
            name: [list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
            for name, value in arrays.items()
            if value is not None
        }
        return digest({"settings": self.settings, "arrays": hashes})

    @classmethod
    @with_typed_errors
    def load(
        cls, path: Path | str, *, allow_pickle_weights: bool = False, norm_factor: float | None = None
    ) -> Dictionary:
        """Read a dictionary from a file or folder of SAELens, Gemma Scope, sparsify, dictionary_learning or `save`.

        Args:
            path: folder of the dictionary, or its file of weights.
            allow_pickle_weights: whether `ae.pt` of dictionary_learning, a pickle, may be read, by
                `torch.load(weights_only=True)`.
            norm_factor: factor that states were multiplied by in training, for a file of SAELens that has
                `expected_average_only_in` and not this factor; the weights that are returned contain it.

        Raises:
            UntrustedFile: it is a pickle, and `allow_pickle_weights` is not set, or it has arrays of Python objects.
            UnsupportedFormat: the format, architecture, normalisation or another setting is not known.
            InputError: the file is damaged, or its arrays do not fit one another.
        """
        from probing.dictionaries.formats import read_dictionary

        return read_dictionary(
            Path(path).expanduser(), allow_pickle_weights=allow_pickle_weights, norm_factor=norm_factor
        )

    @with_typed_errors
    def save(self, path: Path | str) -> None:
        """Write a folder with `dictionary.json` and a safetensors file of the weights, which `load` reads; a dictionary
        that was there is replaced in one step.

        Raises:
            CannotReachFile: the folder cannot be written to.
        """
        from probing.dictionaries.formats import write_dictionary

        write_dictionary(self, Path(path).expanduser())

    def encode(self, states: ArrayLike, *, device: str | None = None) -> csr_array:
        """Return the latents of states.

        Args:
            states: `(n, d)` real numbers.
            device: torch device to compute on; None: the processor.

        Returns:
            `(n, m)` float32; columns are in order, and no zero is stored.

        Raises:
            BadParameter: the states have another shape.
            NonFiniteStates: a state is not finite.
        """
        from scipy.sparse import csr_array

        from probing.dictionaries.encoding import Encoder

        rows = self.checked(states)
        if device is not None:
            check_device(device)
        counts, indices, values = Encoder(self, device).encode(rows)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return csr_array((values, indices, ends), shape=(len(rows), self.n_latents))

    def decode(self, latents: csr_array | ArrayLike, *, states: ArrayLike | None = None) -> Floats:
        """Decode latents and return the states, `(n, d)` float32 (for a transcoder `(n, d_out)`).

        Args:
            latents: `(n, m)`, sparse or not.
            states: `(n, d)` states that were encoded; needed where each state was normalised, to undo that, and for
                what a skip connection adds.

        Raises:
            BadParameter: the latents have another shape, or `states` are needed.
        """
        from scipy.sparse import issparse

        from probing.dictionaries.encoding import normalized

        given: Any = latents if issparse(latents) else np.asarray(latents)
        if given.dtype.kind not in "fiub":
            raise BadParameter("latents that are no numbers", needed="real numbers", found=str(given.dtype))
        given = given if issparse(latents) else given.astype(np.float32)
        if given.ndim != 2 or given.shape[1] != self.n_latents:
            raise BadParameter("latents of another shape", needed=f"(n, {self.n_latents})", found=str(given.shape))
        rows = None if states is None else self.checked(states)
        if rows is None and ((self.normalization != "none" and not self.is_transcoder) or self.skip is not None):
            raise BadParameter(
                "these latents alone do not give the states",
                needed=f"the states that were encoded ({self.normalization}{'' if self.skip is None else ', skip'})",
                found="latents alone",
                next_step="give `states=`",
            )
        decoded = np.asarray(given @ self.decoder, dtype=np.float32) + self.decoder_bias
        if rows is None:
            return decoded
        if len(rows) != len(decoded):
            raise BadParameter("states and latents of other rows", needed=f"{len(decoded)}", found=f"{len(rows)}")
        if not self.is_transcoder:  # a transcoder's output is of another place: SAELens does not scale it back
            _, mean, scale = normalized(rows, self.normalization)
            decoded = decoded * scale + mean
        return decoded if self.skip is None else decoded + rows @ self.skip.T

    def reconstruct(self, states: ArrayLike, *, device: str | None = None) -> Floats:
        """Encode and decode states, and return the reconstruction, `(n, d)` (for a transcoder `(n, d_out)`)."""
        rows = self.checked(states)
        return self.decode(self.encode(rows, device=device), states=rows)

    def error(self, states: ArrayLike, targets: ArrayLike | None = None) -> Floats:
        """Return the states minus their reconstruction, `(n, d)`; for a transcoder, the targets `(n, d_out)` minus the
        decoded output.

        Raises:
            BadParameter: a transcoder is given no targets, or they have another shape.
        """
        made = self.reconstruct(states)
        if targets is None and self.is_transcoder:
            raise BadParameter("a transcoder reconstructs other states", needed="`targets`", found="states alone")
        own = np.asarray(states if targets is None else targets, dtype=np.float32)
        if own.shape != made.shape:
            raise BadParameter("targets of another shape", needed=str(made.shape), found=str(own.shape))
        return own - made

    @classmethod
    def random(cls, width: int, n_latents: int, *, l0: float, states: ArrayLike, seed: int) -> Self:
        """Return a dictionary of random unit directions as a control; on each row its `l0` largest latents are active.

        Directions are drawn uniformly and used by encoder and decoder; the mean of the states is the decoder's bias;
        latents are scaled by one number so that the squared error on the states is least.

        Args:
            width: width d.
            n_latents: number m of latents.
            l0: number of active latents per row, rounded to a whole number.
            states: `(n, d)` states that the dictionary is to be used on.
            seed: seed of the draw.

        Raises:
            BadParameter: there are not enough latents for this `l0`, or no states, or these are of another width.
        """
        for name, value in (("width", width), ("n_latents", n_latents)):
            whole(name, value, 1)
        whole("seed", seed, 0)
        if not is_real(l0) or l0 <= 0:
            raise BadParameter("l0 is out of range", needed="a number above 0", found=repr(l0))
        k = max(1, round(l0))
        if 4 * k > n_latents:
            raise BadParameter(
                "no random dictionary has so many active latents",
                needed="an l0 of at most a quarter of the latents",
                found=f"l0 {l0:g} of {n_latents} latents",
            )
        drawn = np.random.default_rng(seed).standard_normal((n_latents, width), dtype=np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        parts: dict[str, Any] = {"encoder_bias": np.zeros(n_latents, np.float32), "decoder": drawn, "source": "random"}
        parts |= {"architecture": "topk", "k": k, "subtract_decoder_bias": True, "declared": {"k": k, "seed": seed}}
        made = cls(encoder=drawn.T, decoder_bias=np.zeros(width, np.float32), **parts)
        rows = made.checked(states)
        if not len(rows):
            raise BadParameter("no states", needed="at least one row", found="none")
        mean = rows.mean(axis=0)
        made = cls(encoder=drawn.T, decoder_bias=mean, **parts)
        ours, theirs = made.reconstruct(rows) - mean, rows - mean
        total = float(np.sum(ours.astype(np.float64) ** 2))
        factor = float(np.sum(ours.astype(np.float64) * theirs)) / total if total else 1.0
        return cls(encoder=drawn.T * max(factor, 1e-6), decoder_bias=mean, **parts)

    def checked(self, states: ArrayLike) -> Floats:
        """Return states as `(n, d)` float32.

        Raises:
            BadParameter: they have another shape or are no real numbers.
            NonFiniteStates: a state is not finite.
        """
        given = np.asarray(states)
        if given.dtype.kind not in "fiu" or given.ndim != 2 or given.shape[1] != self.width:
            raise BadParameter(
                "the states do not fit the dictionary",
                needed=f"(n, {self.width}) real numbers",
                found=f"{given.dtype} {given.shape}",
                where=self.site or "",
                next_step="give states of the site that the dictionary was trained on",
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 does not hold is refused
            rows = np.ascontiguousarray(given, dtype=np.float32)
            total = np.sum(rows, dtype=np.float64)
        if not np.isfinite(total):
            raise NonFiniteStates("states that are not finite", needed="finite states", found="NaN or infinity")
        return rows

    def __repr__(self) -> str:
        where = f" of {self.site}" if self.site else ""
        return f"Dictionary: {self.architecture}, {self.n_latents:,} latents of width {self.width}{where}"


def _check_settings(given: Dictionary) -> None:
    for name, value, known in (
        ("architecture", given.architecture, ARCHITECTURES),
        ("normalization", given.normalization, NORMALIZATIONS),
    ):
        if value not in known:
            raise BadParameter(f"unknown {name}", needed=", ".join(known), found=repr(value))
    latents = given.encoder.shape[-1]
    if given.k is not None and (isinstance(given.k, bool) or not isinstance(given.k, int)):
        raise BadParameter("k is no whole number", needed=f"1 to {latents}", found=repr(given.k))
    if given.k is not None and not 1 <= given.k <= latents:
        raise BadParameter("k is out of range", needed=f"1 to {latents}", found=str(given.k))
    if (given.architecture == "topk" or given.grouped) and given.k is None:
        raise BadParameter("a TopK dictionary without k", needed="k", found="none")
    if given.grouped and latents % (given.k or 1):
        raise BadParameter("latents that make no k equal groups", needed=f"a multiple of {given.k}", found=str(latents))
    if given.architecture == "jumprelu" and given.threshold is None:
        raise BadParameter("a JumpReLU dictionary without thresholds", needed="threshold", found="none")
    if (given.architecture == "gated") != (given.gate_bias is not None) or (given.gate_bias is None) != (
        given.gate_scale is None
    ):
        raise BadParameter("a gate of another architecture", needed="gate_bias and gate_scale of gated", found="others")
    if given.architecture == "skip_transcoder" and given.skip is None:
        raise BadParameter("a skip transcoder without its skip connection", needed="skip", found="none")
    if given.subtract_decoder_bias and given.decoder_bias.shape != given.encoder.shape[:1]:
        raise BadParameter("a decoder's bias that cannot be subtracted", needed="width d", found="another width")


def _check_arrays(given: Dictionary) -> None:
    if given.encoder.ndim != 2 or given.decoder.ndim != 2 or 0 in (*given.encoder.shape, *given.decoder.shape):
        raise BadParameter("no matrices", needed="encoder (d, m), decoder (m, d)", found="other shapes")
    (width, latents), out = given.encoder.shape, given.decoder.shape[1] if given.is_transcoder else given.width
    shapes: dict[str, list[tuple[int, ...]]] = {
        "encoder_bias": [(latents,)],
        "decoder": [(latents, out)],
        "decoder_bias": [(out,)],
        "threshold": [(latents,), (1,)],
        "gate_bias": [(latents,)],
        "gate_scale": [(latents,)],
        "skip": [(out, width)],
    }
    for name in ARRAYS:
        value: Floats | None = getattr(given, name)
        if value is None:
            continue
        if name in shapes and value.shape not in shapes[name]:
            needed = " or ".join(map(str, shapes[name]))
            raise BadParameter(f"{name} of another shape", needed=needed, found=str(value.shape))
        if not np.isfinite(value).all():
            raise BadParameter(f"{name} is not finite", needed="finite float32", found="NaN, infinity or too large")
