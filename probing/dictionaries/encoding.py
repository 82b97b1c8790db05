"""Computes latents from states: normalisation, matrix product, and the choice of active latents, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dictionaries.dictionary import Dictionary
from probing.errors import BadParameter, ConfigError, ProvenanceMismatch
from probing.provenance import environment
from probing.states.store import ShardContent, Store, StoreWriter, narrow
from probing.states.store.commit_record import MISSING, as_words, load_record
from probing.states.store.format import EXAMPLE_COLUMNS, STATE_TYPES, StoreLayout, widen
from probing.system.machine import check_target, with_typed_errors
from probing.system.progress import steps_bar

if TYPE_CHECKING:
    from probing.models.language_model import LanguageModel

Floats = NDArray[np.float32]
Block = tuple[NDArray[np.int64], NDArray[np.int32], Floats]

_BLOCK = 1 << 23  # pre-activations computed at once: 32 MiB
_EPSILON = 1e-5  # added to the deviation by `layer_norm`, as SAELens does


def normalized(rows: Floats, kind: str) -> tuple[Floats, Floats | float, Floats | float]:
    """Return rows `(n, d)` as they are encoded, and the means and scales that undo it: x = x' scale + mean.

    `layer_norm` divides by the unbiased deviation plus 1e-5, and is undone without the latter, as in SAELens.
    """
    if kind == "none":
        return rows, 0.0, 1.0
    if kind == "constant_norm_rescale":
        scale: Floats = np.linalg.norm(rows, axis=1, keepdims=True) / np.float32(rows.shape[1] ** 0.5)
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        return rows / scale, 0.0, scale
    mean = rows.mean(axis=1, keepdims=True)
    centred = rows - mean
    scale = centred.std(axis=1, keepdims=True, ddof=1)
    return centred / (scale + np.float32(_EPSILON)), mean, scale


class Encoder:
    """Holds the weights of a dictionary on a torch device, and encodes states block by block."""

    def __init__(self, dictionary: Dictionary, device: str | None = None) -> None:
        device = device or "cpu"

        def on(array: Floats | None) -> Tensor | None:
            return None if array is None else _tensor(array, device)

        self.dictionary, self.device = dictionary, device
        self.k, self.activation = dictionary.k or 0, dictionary.activation
        self.weight, self.bias = _tensor(dictionary.encoder, device), _tensor(dictionary.encoder_bias, device)
        self.threshold, self.gate_bias, self.gate_scale = (
            on(array) for array in (dictionary.threshold, dictionary.gate_bias, dictionary.gate_scale)
        )
        self.shift = on(dictionary.decoder_bias) if dictionary.subtract_decoder_bias else None

    def encode(self, states: Floats, dtype: str = "float32") -> Block:
        """Return the number of latents of each row, their columns (in the order of each row) and their values. What
        memory is needed besides these does not grow with the number of rows.

        Args:
            states: `(n, d)` as they are stored.
            dtype: data type that they are stored in.

        Raises:
            BadParameter, NonFiniteStates: see `Dictionary.checked`.
        """
        size = max(1, _BLOCK // self.dictionary.n_latents)
        blocks = (states[first : first + size] for first in range(0, len(states), size))
        parts = [self._block(block if dtype == "float32" else widen(block, dtype)) for block in blocks]
        empty = (np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        joined = [np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True)]
        return joined[0], joined[1], joined[2]

    def _block(self, states: Floats) -> Block:
        rows = normalized(self.dictionary.checked(states), self.dictionary.normalization)[0]
        with torch.inference_mode():
            return self._latents(rows)

    def _latents(self, rows: Floats) -> Block:
        given = _tensor(rows, self.device)
        given = given if self.shift is None else given - self.shift
        if self.activation == "gated":
            return self._gated(given @ self.weight)
        pre = torch.addmm(self.bias, given, self.weight)
        if self.activation == "topk":
            return _parts(*_largest(pre, min(self.k, pre.shape[1])))
        if self.activation == "groupmax":
            groups = pre.reshape(len(pre), self.k, -1)
            values, places = groups.max(dim=2)
            return _parts(values, places + torch.arange(self.k, device=pre.device) * groups.shape[2])
        return _active(pre, pre > 0 if self.threshold is None else pre > self.threshold.clamp(min=0))

    def _gated(self, product: Tensor) -> Block:
        assert self.gate_bias is not None and self.gate_scale is not None
        is_open = product + self.gate_bias > 0
        values = torch.addcmul(self.bias, product, self.gate_scale.exp())
        return _active(values, is_open & (values > 0))


def _tensor(array: Floats, device: str) -> Tensor:
    """Return an array as a tensor; what may not be written to, such as a mapped file, is copied, as torch wants it."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their columns, by columns."""
    values, columns = pre.topk(k, dim=1, sorted=False)
    columns, order = columns.sort(dim=1)
    return values.gather(1, order), columns


def _parts(values: Tensor, columns: Tensor) -> Block:
    """Return the positive ones of a fixed number of values `(n, k)` a row."""
    positive = values > 0
    counts = positive.sum(dim=1)
    return counts.cpu().numpy(), columns[positive].int().cpu().numpy(), values[positive].cpu().numpy()


def _active(values: Tensor, is_active: Tensor) -> Block:
    """Return the values at the places `(n, m)` that are active."""
    places = is_active.flatten().nonzero()[:, 0]
    counts = is_active.sum(dim=1)
    columns = (places % is_active.shape[1]).int()
    return counts.cpu().numpy(), columns.cpu().numpy(), values.flatten()[places].cpu().numpy()


def site_in(dictionary: Dictionary, source: Store | LanguageModel, site: str | None, *, any_model: bool = False) -> str:
    """Return the site of a store or model that a dictionary is for, and check that its states are those.

    Args:
        dictionary: the dictionary.
        source: the store or model.
        site: the site; None: the one that the file names.
        any_model: whether another model or site than the file names is accepted.

    Raises:
        ConfigError: the site is not given, and the file names none.
        UnknownSite: there is no such site.
        ProvenanceMismatch: the file names another model or site.
        BadParameter: the states have another width.
    """
    name = site or dictionary.site
    if name is None:
        raise ConfigError(
            "the file of this dictionary names no site that has a name here",
            needed="a site (--site)",
            found=str(dictionary.declared.get("hook") or "no place at all"),
        )
    if isinstance(source, Store):
        where, theirs = str(source.path), str(source.identity["model"].get("source"))
    else:
        where, theirs = source.name, source.name
    width = source.width(name)
    for what, own, given in (
        ("site", dictionary.site, name),
        ("model", _last(dictionary.model), _last(theirs)),
    ):
        if own is not None and given is not None and own != given and not any_model:
            raise ProvenanceMismatch(
                f"the dictionary is of another {what}",
                needed=f"{what} {own}",
                found=f"{what} {given}",
                where=where,
                next_step="give states of that one, or accept others with any_model (--any-model)",
            )
    if width != dictionary.width:
        raise BadParameter(
            "the states do not fit the dictionary",
            needed=f"states of width {dictionary.width}",
            found=f"{name} of width {width}",
            where=where,
            next_step="give states of the model and site that the dictionary was trained on",
        )
    return name


def _last(name: str | None) -> str | None:
    """Return the last part of a model's name, by which other libraries call it, in small letters."""
    last = Path(name).name.lower() if name else ""
    return {"gpt2-small": "gpt2"}.get(last, last) or None  # TransformerLens calls it so


@with_typed_errors
def encode_states(
    dictionary: Dictionary,
    store: Store,
    to: Path | str,
    *,
    site: str | None = None,
    dtype: str = "float16",
    device: str | None = None,
    any_model: bool = False,
    progress: bool | None = None,
) -> Store:
    """Encode the states of a store, and return a store of their latents; a killed run resumes where it was.

    Latents are kept as compressed sparse rows. Each shard has the rows and examples of the shard of states of the same
    number, so that labels of a corpus are joined to both alike. `Store.latents` reads them.

    Args:
        dictionary: the dictionary.
        store: a finished store of states.
        to: folder of the new store.
        site: site that is encoded; None: the one that the dictionary's file names.
        dtype: `float16`, `bfloat16` or `float32`, in which latents are stored.
        device: torch device to compute on; None: the processor.
        any_model: whether a dictionary whose file names another model or site is accepted.
        progress: whether to show progress on standard error; None: if it is a terminal.

    Raises:
        ConfigError, UnknownSite, ProvenanceMismatch, BadParameter: the states do not fit (see `site_in`), or `to` holds
            a store of other latents.
        NonFiniteStates, NotRepresentable: a state is not finite, or a latent too large for `dtype`.
        CorruptShard: states differ from their commit record.
        CannotReachFile, DiskFull: `to` cannot be written to.
    """
    name = site_in(dictionary, store, site, any_model=any_model)
    if store.role == "latents":
        raise BadParameter("these are latents already", needed="a store of states", found=str(store.path))
    if dtype not in STATE_TYPES:
        raise BadParameter("unknown stored dtype", needed=", ".join(STATE_TYPES), found=repr(dtype))
    check_target(Path(to))
    source = StoreLayout.of(store.identity)
    writer = StoreWriter.open(
        Path(to), identity=_identity(dictionary, store, name, dtype), environment=environment(device or "cpu")
    )
    encoder, done = Encoder(dictionary, device), 0
    with steps_bar("encoding", "rows", store.n_rows, progress) as bar:
        for shard in range(writer.n_shards):
            stored = store.dataset(shard, f"/sites/{name}")
            if not writer.is_done(shard):
                block = encoder.encode(stored, source.dtype)
                writer.commit(shard, _content(store, source, shard, name, block, dtype, dictionary))
            done += len(stored)
            bar(done, store.n_rows)
    writer.seal()
    return Store.open(Path(to))


def _identity(dictionary: Dictionary, store: Store, site: str, dtype: str) -> dict[str, Any]:
    """Return what determines the latents: what determines the states, and the dictionary."""
    own = {name: value for name, value in store.identity["extraction"].items() if name not in ("outputs", "columns")}
    made_of = {"store_id": store.store_id, "content_id": store.content_id, "dtype": own["dtype"]}
    facts = {"content_id": dictionary.content_id, "source": dictionary.source, "architecture": dictionary.architecture}
    own |= {"role": "latents", "sites": [site], "dtype": dtype, "latents": dictionary.n_latents}
    return {**store.identity, "extraction": own | {"dictionary": facts, "states": made_of}}


def _content(
    store: Store, source: StoreLayout, shard: int, site: str, block: Block, dtype: str, dictionary: Dictionary
) -> ShardContent:
    """Return the latents of a shard with the rows and examples of its states."""
    record: Mapping[str, Any] = load_record(store.path, source, shard) or {}
    missing = [(int(example), int(word), str(reason)) for example, word, reason in record["missing_words"]]
    missing += as_words(store.dataset(shard, MISSING)) if MISSING in record["datasets"] else []
    counts, indices, values = block
    first, end = source.span(shard)
    columns = {name: store.dataset(shard, f"/rows/{name}") for name in source.row_columns}
    return ShardContent(
        example_start=first,
        n_examples=end - first,
        rows={name: values for name, values in columns.items() if name not in ("input_id", "position_id", "mask")},
        examples={name: store.dataset(shard, f"/examples/{name}") for name in EXAMPLE_COLUMNS},
        sites={},
        modules={site: f"latents of the dictionary {dictionary.content_id[:16]}"},
        skipped=[(int(example), str(reason)) for example, reason in record["skipped"]],
        missing_words=missing,
        windowed=[(int(example), int(count)) for example, count in record.get("windowed", ())],
        pieces=record.get("pieces"),
        inputs=[(int(example), int(count), str(ids)) for example, count, ids in record.get("inputs", ())],
        latents={
            "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64),
            "indices": indices,
            "values": narrow(values, dtype, f"latents of {site}"),
        },
    )
