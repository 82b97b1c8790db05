"""Computes latents from states: normalisation, matrix product, and the choice of active latents, block by block."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dictionaries._options import check_device
from probing.dictionaries.dictionary import Dictionary
from probing.errors import (
    BadParameter,
    ConfigError,
    NonFiniteStates,
    NotRepresentable,
    ProbingWarning,
    ProvenanceMismatch,
)
from probing.provenance import environment, model_called
from probing.states.store import ShardContent, Store, StoreWriter
from probing.states.store.commit_record import MISSING, as_words, load_record
from probing.states.store.content import narrow_latents
from probing.states.store.format import EXAMPLE_COLUMNS, STATE_TYPES, StoreLayout, widen
from probing.system.machine import check_target, with_typed_errors
from probing.system.progress import steps_bar

if TYPE_CHECKING:
    from probing.models.language_model import LanguageModel

Floats = NDArray[np.float32]
Block = tuple[NDArray[np.int64], NDArray[np.int32], Floats]

_BLOCK = 1 << 23  # pre-activations computed at once: 32 MiB
_SMALLEST = np.finfo(np.float32).smallest_subnormal
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
        self.threshold, self.gate_bias = on(dictionary.threshold), on(dictionary.gate_bias)
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
        latents = self.dictionary.n_latents
        size = min(max(1, _BLOCK // latents), max(1, len(states)))
        buffers = [torch.empty((size, latents), device=self.device) for _ in range(2 if len(states) > size else 1)]
        parts: list[Callable[[], Block]] = []
        with ThreadPoolExecutor(1) as pool:  # chooses latents while the next block, if any, is multiplied
            for number, first in enumerate(range(0, len(states), size)):
                if number >= len(buffers):
                    parts[number - len(buffers)]()  # until then its buffer is in use
                block = states[first : first + size]
                rows = self.dictionary.checked(block if dtype == "float32" else widen(block, dtype))
                pre = self._product(rows, buffers[number % len(buffers)][: len(rows)])
                parts.append(pool.submit(self._chosen, pre).result if len(buffers) > 1 else partial(self._chosen, pre))
        empty = (np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        joined = [np.concatenate(arrays) for arrays in zip(empty, *(one() for one in parts), strict=True)]
        return joined[0], joined[1], joined[2]

    def _product(self, states: Floats, out: Tensor) -> Tensor:
        """Write x' W_enc (of a gated dictionary) or x' W_enc + b_enc into `out`, and return it."""
        with torch.inference_mode():
            given = _tensor(normalized(states, self.dictionary.normalization)[0], self.device)
            given = given if self.shift is None else given - self.shift
            if self.activation == "gated":
                return torch.mm(given, self.weight, out=out)
            return torch.addmm(self.bias, given, self.weight, out=out)

    def _chosen(self, pre: Tensor) -> Block:
        """Return the active latents of a block of products."""
        with torch.inference_mode():
            if self.activation == "topk":
                return _largest(pre, min(self.k, pre.shape[1]))
            if self.activation == "groupmax":
                values, places = pre.reshape(len(pre), self.k, -1).max(dim=2)
                columns = places + torch.arange(self.k, device=pre.device) * (pre.shape[1] // self.k)
                return _parts(values, columns)
            if self.activation == "gated":
                return self._gated(pre)
            floor = torch.zeros(1, device=pre.device) if self.threshold is None else self.threshold.clamp(min=0)
            return _active(pre, floor)

    def _gated(self, product: Tensor) -> Block:
        """Return the positive magnitudes where the gate is open; magnitudes are computed there alone."""
        own = self.dictionary
        assert self.gate_bias is not None and own.gate_scale is not None
        counts, columns, values = _active(product, -self.gate_bias)
        values = values * np.exp(own.gate_scale)[columns] + own.encoder_bias[columns]
        keep = values > 0
        rows = np.repeat(np.arange(len(counts)), counts)[keep]
        return np.bincount(rows, minlength=len(counts)), columns[keep], values[keep]


def _tensor(array: Floats, device: str) -> Tensor:
    """Return an array as a tensor; what may not be written to, such as a mapped file, is copied, as torch wants it."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _is_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _largest(pre: Tensor, k: int) -> Block:
    """Return the positive ones among the k largest values of each row `(n, m)`."""
    share = next((size for size in (16, 8, 4) if pre.shape[1] % size == 0 and pre.shape[1] // size >= k), 0)
    if not _is_cpu(pre) or not share:
        values, columns = pre.topk(k, dim=1, sorted=False)
        columns, order = columns.sort(dim=1)
        return _parts(values.gather(1, order), columns)
    # The k-th largest of the maxima of m / share groups is a floor of the k largest values, and few others reach it:
    # one pass over the row, where a sort or a heap would need more.
    maxima = pre.view(len(pre), share, -1).amax(dim=1).numpy()
    floor = np.partition(maxima, maxima.shape[1] - k, axis=1)[:, -k]
    return _trimmed(*_where(pre.numpy(), pre.numpy() >= np.maximum(floor, _SMALLEST)[:, None]), k)


def _trimmed(counts: NDArray[np.int64], columns: NDArray[np.int32], values: Floats, k: int) -> Block:
    """Return the k largest values of each row, of rows of `counts` values."""
    rows = np.flatnonzero(counts > k)
    if not len(rows):
        return counts, columns, values
    starts = np.cumsum(counts) - counts
    place = starts[rows, None] + np.arange(counts[rows].max())
    is_own = np.arange(place.shape[1]) < counts[rows, None]
    padded = np.where(is_own, values[np.minimum(place, len(values) - 1)], -np.inf)
    order = np.argpartition(padded, place.shape[1] - k, axis=1)
    dropped = np.take_along_axis(place, order[:, :-k], axis=1)
    keep = np.ones(len(values), dtype=bool)
    keep[dropped[np.take_along_axis(is_own, order[:, :-k], axis=1)]] = False
    return np.minimum(counts, k), columns[keep], values[keep]


def _parts(values: Tensor, columns: Tensor) -> Block:
    """Return the positive ones of a fixed number of values `(n, k)` a row."""
    positive = values > 0
    counts = positive.sum(dim=1)
    return counts.cpu().numpy(), columns[positive].int().cpu().numpy(), values[positive].cpu().numpy()


def _active(values: Tensor, floor: Tensor) -> Block:
    """Return the values `(n, m)` above a floor `(1,)`, `(m,)` or `(n, m)`."""
    is_active = values > floor
    if _is_cpu(values):
        return _where(values.numpy(), is_active.numpy())
    places = is_active.flatten().nonzero()[:, 0]
    columns = (places % values.shape[1]).int()
    return is_active.sum(dim=1).cpu().numpy(), columns.cpu().numpy(), values.flatten()[places].cpu().numpy()


def _where(values: Floats, is_active: NDArray[np.bool_]) -> Block:
    """Return the active values `(n, m)`, as `_active` does; NumPy finds them in a tenth of the time of torch."""
    places = np.flatnonzero(is_active)
    starts = np.arange(len(values) + 1) * values.shape[1]
    counts = np.diff(np.searchsorted(places, starts))
    columns = (places - np.repeat(starts[:-1], counts)).astype(np.int32)
    return counts.astype(np.int64), columns, values.reshape(-1)[places]


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
        where, model = str(source.path), source.identity["model"]
    else:
        where, model = source.name, source.identity()["model"]
    width = source.width(name)
    others = []
    if dictionary.site is not None and dictionary.site != name:
        others.append(("site", dictionary.site, name))
    if dictionary.model is not None and is_of_another(dictionary.model, model):
        others.append(("model", dictionary.model, model_called(model)))
    for what, own, given in () if any_model else others:
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


_DTYPES = {"float32", "float16", "bfloat16"}


def is_of_another(named: str, model: Mapping[str, Any]) -> bool:
    """Return whether a dictionary's name of its model cannot be of this model.

    Names that this package wrote tell weights apart; those of other libraries are shorter or longer than those of the
    hub (`gpt2-small`), and a local folder may have any name.
    """
    source = str(model.get("source", ""))
    if named.endswith("]"):
        ours, theirs = (set(text.rpartition(" [")[2].rstrip("]").split(", ")) for text in (named, model_called(model)))
        return ours - _DTYPES != theirs - _DTYPES
    if source.startswith(("/", ".", "~")) or Path(source).exists():
        return False
    one, other = (re.sub(r"[^a-z0-9]", "", text.rpartition("/")[2].lower()) for text in (named, source))
    return one not in other and other not in one


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
    number, so that labels of a corpus are joined to both alike. `Store.latents` reads them. Activations so small that
    `dtype` holds them as 0 are left out, with a warning that counts them.

    Args:
        dictionary: the dictionary.
        store: a finished store of states.
        to: folder of the new store.
        site: site that is encoded; None: the one that the dictionary's file names.
        dtype: `float16`, `bfloat16` or `float32`, in which latents are stored.
        device: torch device to compute on; None: the processor.
        any_model: whether a dictionary whose file names another model or site is accepted.
        progress: False: show nothing; None or True: a bar or, outside a terminal and a notebook, a line every 30 s.

    Raises:
        ConfigError, UnknownSite, ProvenanceMismatch, BadParameter: the states do not fit (see `site_in`), or `to` holds
            a store of other latents.
        NonFiniteStates, NotRepresentable: a state is not finite, or a latent too large for `dtype`, or more than 1 in
            1,000 active latents of a shard too small for it; a store that this call began is then removed.
        CorruptShard: states differ from their commit record.
        CannotReachFile, DiskFull: `to` cannot be written to.
    """
    name = site_in(dictionary, store, site, any_model=any_model)
    if store.role == "latents":
        raise BadParameter("these are latents already", needed="a store of states", found=str(store.path))
    if dtype not in STATE_TYPES:
        raise BadParameter("unknown stored dtype", needed=", ".join(STATE_TYPES), found=repr(dtype))
    check_device(device or "cpu")
    check_target(Path(to))
    target = Path(to)
    is_new = not target.exists() or not any(target.iterdir())
    writer = StoreWriter.open(
        target, identity=_identity(dictionary, store, name, dtype), environment=environment(device or "cpu")
    )
    try:
        _write(writer, Encoder(dictionary, device), store, name, dtype, progress)
    except (NonFiniteStates, NotRepresentable) as error:
        # No run can finish such a store, and another type or other states would be refused in its folder.
        if is_new:
            shutil.rmtree(target)
        else:
            error.next_step += f"{', ' if error.next_step else ''}into another folder, or remove {target} first"
        raise
    writer.seal()
    return Store.open(target)


def _write(writer: StoreWriter, encoder: Encoder, store: Store, site: str, dtype: str, progress: bool | None) -> None:
    """Encode the shards that are not done yet, and commit them.

    Raises:
        NonFiniteStates, NotRepresentable: see `encode_states`.
    """
    source, done, lost, active = StoreLayout.of(store.identity), 0, 0, 0
    with steps_bar("encoding", "rows", store.n_rows, progress) as bar:
        for shard in range(writer.n_shards):
            stored = store.dataset(shard, f"/sites/{site}")
            if not writer.is_done(shard):
                block = encoder.encode(stored, source.dtype)
                counts, columns, values, small = narrow_latents(*block, dtype, site)
                content = _content(store, source, shard, site, (counts, columns, values), encoder.dictionary)
                writer.commit(shard, content)
                lost, active = lost + small, active + len(block[2])
            done += len(stored)
            bar(done, store.n_rows)
    if lost:
        warnings.warn(
            f"{lost:,} of {active:,} active latents of {site} are so small that {dtype} holds them as 0: they are "
            "stored as not active (float32 keeps them)",
            ProbingWarning,
            stacklevel=3,
        )


def _identity(dictionary: Dictionary, store: Store, site: str, dtype: str) -> dict[str, Any]:
    """Return what determines the latents: what determines the states, and the dictionary."""
    own = {name: value for name, value in store.identity["extraction"].items() if name not in ("outputs", "columns")}
    made_of = {"store_id": store.store_id, "content_id": store.content_id, "dtype": own["dtype"]}
    facts = {"content_id": dictionary.content_id, "source": dictionary.source, "architecture": dictionary.architecture}
    own |= {"role": "latents", "sites": [site], "dtype": dtype, "latents": dictionary.n_latents}
    return {**store.identity, "extraction": own | {"dictionary": facts, "states": made_of}}


def _content(
    store: Store, source: StoreLayout, shard: int, site: str, block: Sequence[NDArray[Any]], dictionary: Dictionary
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
            "values": values,
        },
    )
