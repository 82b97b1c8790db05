"""The content of a shard: checks its shapes, types, order and finite states against the plan before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, NonFiniteStates, NotRepresentable
from probing.models.site import Site
from probing.states.store.commit_record import MISSING, as_array, expected_datasets, fits, is_listed
from probing.states.store.format import MEMORY_TYPES, REASONS, STATE_TYPES, StoreLayout, widen
from probing.states.store.latents import check_latents, largest_latent


@dataclass(frozen=True, eq=False)
class ShardContent:
    """Holds the content of one shard in memory: R rows of E examples.

    Attributes:
        example_start: position of the first example among those read.
        n_examples: number of examples E.
        rows: `example`, `piece_start`, `piece_end`, `char_start`, `char_end` (u4) and `word` (i4), each (R,); if rows
            are positions also `position` (u2); for a replay store also `input_id` u4, `position_id` i4 (-1: none was
            given) and `mask` u1.
        examples: `offset` u8 (E+1,), `ordinal` u4 (E,), `text_sha256` u1 (E, 32), `flags` u1 (E,). For a replay store
            also `batch` u4 (E, 2).
        sites: states (R, width) by site: float32, float16, or the raw bits of bfloat16 as uint16.
        modules: path of the hooked module, by site.
        skipped: (example ordinal, reason) of examples without rows.
        missing_words: (example ordinal, word, reason) of words without a row; if rows are positions, the number of the
            position in place of the word.
        heads: `n_heads` and `head_dim` of the sites that are heads, concatenated.
        windowed: (example ordinal, number of windows) of the inputs read in windows.
        outputs: for a replay store of a model with a head: `row` u4 (M,), `logits` (M, C) and `logsumexp` (M,) float32,
            and `column` u4 (C,) unless all are stored.
        pieces: number of content pieces of all inputs; None: not known.
        inputs: (example ordinal, number of unknown pieces, hash of the piece ids) of inputs that have unknown pieces or
            were cut.
        latents: for a store of latents: `indptr` u8 (R+1,), `indices` (Z,) and `values` (Z,), the last as `sites`.
    """

    example_start: int
    n_examples: int
    rows: Mapping[str, NDArray[Any]]
    examples: Mapping[str, NDArray[Any]]
    sites: Mapping[str, NDArray[Any]]
    modules: Mapping[str, str]
    skipped: Sequence[tuple[int, str]] = ()
    missing_words: Sequence[tuple[int, int, str]] = ()
    windowed: Sequence[tuple[int, int]] = ()
    pieces: int | None = None
    inputs: Sequence[tuple[int, int, str]] = ()
    heads: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    latents: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def narrow(states: NDArray[np.float32], dtype: str, site: str) -> NDArray[Any]:
    """Return float32 states (R, D) rounded to a stored dtype (to nearest even); bfloat16 is returned as raw bits in
    uint16.

    Raises:
        NotRepresentable: a finite state overflows the dtype.
        BadParameter: the dtype cannot be stored.
    """
    states = np.ascontiguousarray(states, dtype=np.float32)
    if dtype == "float32":
        return states
    if dtype == "float16":
        with np.errstate(over="ignore"):
            stored: NDArray[Any] = states.astype(np.float16)
    elif dtype == "bfloat16":
        bits = states.view(np.uint32)
        stored = _upper_halves(bits)
        if (bits << 1).max(initial=0) < _OVERFLOWS << 1:
            return stored
        stored[np.isnan(states)] = 0x7FC0
    else:
        raise BadParameter("unknown stored dtype", needed="float32, float16 or bfloat16", found=repr(dtype))
    finite = np.isfinite(states)
    if not np.isfinite(widen(stored, dtype))[finite].all():
        absmax = float(np.abs(states[finite]).max())
        raise NotRepresentable(
            f"states of {site} do not fit in {dtype}",
            needed=f"|x| up to {65504 if dtype == 'float16' else 3.39e38:g}",
            found=f"absmax {absmax:g}",
            where=f"site {site}",
            next_step="store as bfloat16" if dtype == "float16" else "store as float32",
        )
    return stored


def narrow_latents(
    counts: NDArray[np.int64], columns: NDArray[np.int32], values: NDArray[np.float32], dtype: str, site: str
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any], int]:
    """Return the active latents of rows in a stored dtype, without those that are 0 in it, and how many these are.

    Args:
        counts: `(n,)` number of active latents of each row.
        columns, values: `(Z,)` number and value of each, row by row.
        dtype: the stored dtype.
        site: site, for messages.

    Raises:
        NotRepresentable: a value overflows the dtype, or more than 1 in 1,000 are 0 in it.
    """
    stored = narrow(values, dtype, f"latents of {site}")
    keep = widen(stored, dtype) != 0
    lost = len(keep) - int(keep.sum())
    if not lost:
        return counts, columns, stored, 0
    if lost > _MOST_LOST * len(keep):
        never = len(np.setdiff1d(columns, columns[keep]))
        raise NotRepresentable(
            f"latents of {site} are too small for {dtype}, which holds them as 0",
            needed=f"activations of at least {_SMALLEST[dtype]:.0e}, but for 1 in 1,000",
            found=f"{lost:,} of {len(keep):,} active latents below it; {never:,} latents would never be active",
            where=f"site {site}",
            next_step="store as float32" if dtype == "bfloat16" else "store as bfloat16 or float32",
        )
    rows = np.repeat(np.arange(len(counts)), counts)[keep]
    return np.bincount(rows, minlength=len(counts)), columns[keep], stored[keep], lost


_MOST_LOST = 1e-3  # share of active latents of a shard that may be 0 in the stored dtype
_SMALLEST = {"float16": 6e-8, "bfloat16": 9e-41, "float32": 1e-45}  # above 0
_OVERFLOWS = 0x7F7F_8000  # bits of the least magnitude that rounds to infinity in bfloat16; those of NaN are above


def _upper_halves(bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Return the upper halves of float32 bits, rounded to nearest even."""
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def absolute_maximum(site: str, stored: NDArray[Any], dtype: str, content: ShardContent) -> float:
    """Return the largest absolute value of a site's states.

    Raises:
        NonFiniteStates: states are NaN or infinite; the message names the site, the number of such rows and the first
            of them.
    """
    if not stored.size:
        return 0.0
    if dtype == "bfloat16":
        absmax = float(widen((stored & np.uint16(0x7FFF)).max(keepdims=True).ravel(), dtype)[0])
    else:
        with np.errstate(invalid="ignore"):
            absmax = max(float(stored.max()), -float(stored.min()))
    if np.isfinite(absmax):
        return absmax
    bad = np.flatnonzero(~np.isfinite(widen(stored, dtype)).all(axis=1))
    example, word = (int(content.rows[name][bad[0]]) for name in ("example", "word"))
    raise NonFiniteStates(
        f"{len(bad)} of {len(stored)} rows of {site} hold NaN or infinite states",
        needed="finite states",
        found=f"first in example {example}, word {word}",
        where=f"site {site}",
        next_step="compute in float32, or leave out the examples that overflow",
    )


def arrays_of(content: ShardContent, recipe: StoreLayout, shard: int) -> dict[str, NDArray[Any]]:
    """Return every dataset of a shard by path, little-endian and contiguous.

    Raises:
        BadParameter: the content contradicts the plan, the identity or itself.
    """
    first, end = recipe.span(shard)
    if (content.example_start, content.n_examples) != (first, end - first):
        raise BadParameter(
            f"the content is not that of shard {shard}",
            needed=f"{end - first} examples from {first}",
            found=f"{content.n_examples} from {content.example_start}",
        )
    wanted = set() if recipe.role == "latents" else set(recipe.sites)
    if set(content.sites) != wanted or not set(recipe.sites) <= set(content.modules):
        raise BadParameter("other sites than planned", needed=", ".join(recipe.sites), found=", ".join(content.sites))
    given: dict[str, NDArray[Any]] = {
        f"/{group}/{name}": array
        for group, arrays in (
            ("rows", content.rows),
            ("examples", content.examples),
            ("sites", content.sites),
            ("outputs", content.outputs),
            ("latents", content.latents),
        )
        for name, array in arrays.items()
    }
    n_rows = len(content.rows["example"])
    expected = expected_datasets(recipe, n_rows, content.n_examples)
    if set(given) != set(expected):
        raise BadParameter("other columns than the format has", found=", ".join(sorted(given.keys() ^ expected.keys())))
    sizes: dict[str, int] = {}
    arrays = {path: _checked(path, given[path], *expected[path], sizes) for path in sorted(expected)}
    _check_index(arrays, n_rows)
    if recipe.positions and n_rows and int(arrays["/rows/position"].max()) >= len(recipe.positions):
        raise BadParameter("a row is at a position without a name", needed=f"0 to {len(recipe.positions) - 1}")
    _check_outputs(arrays, n_rows)
    if recipe.role == "latents":
        check_latents(arrays, recipe)
    unknown = {str(entry[-1]) for entry in (*content.skipped, *content.missing_words)} - set(REASONS)
    if unknown:
        raise BadParameter("unknown reason", needed=", ".join(REASONS), found=", ".join(sorted(unknown)))
    return arrays if is_listed(content.missing_words) else arrays | {MISSING: as_array(content.missing_words)}


def _checked(
    path: str, array: NDArray[Any], dtype: str, shape: tuple[int | str | None, ...], sizes: dict[str, int]
) -> NDArray[Any]:
    memory = np.dtype(MEMORY_TYPES[dtype])
    states, is_float = path.startswith("/sites/"), dtype in STATE_TYPES
    if not fits(shape, array.shape, sizes) or (is_float and array.dtype != memory) or (states and not array.shape[1]):
        raise BadParameter(
            f"{path} has another shape or type", needed=f"{dtype} {shape}", found=f"{array.dtype} {array.shape}"
        )
    if not is_float and array.size:
        limits = np.iinfo(memory)
        if array.dtype.kind not in "iu" or int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise BadParameter(f"{path} holds values that are no {dtype}", found=str(array.dtype))
    return np.ascontiguousarray(array, dtype=memory)


def _check_index(arrays: Mapping[str, NDArray[Any]], n_rows: int) -> None:
    offset = arrays["/examples/offset"].astype(np.int64)
    ordinal, example = arrays["/examples/ordinal"], arrays["/rows/example"]
    counts = np.diff(offset)
    if offset[0] != 0 or offset[-1] != n_rows or (counts < 0).any():
        raise BadParameter("/examples/offset does not partition the rows", needed=f"0 … {n_rows}, never falling")
    if (np.diff(ordinal.astype(np.int64)) <= 0).any() or not np.array_equal(np.repeat(ordinal, counts), example):
        raise BadParameter("rows are not ordered by example", needed="/rows/example to follow /examples/offset")


def _check_outputs(arrays: Mapping[str, NDArray[Any]], n_rows: int) -> None:
    if "/outputs/row" not in arrays:
        return
    row = arrays["/outputs/row"].astype(np.int64)
    if (np.diff(row) <= 0).any() or (row >= n_rows).any():
        raise BadParameter("/outputs/row is not rows of the shard", needed=f"rising, below {n_rows}")
    if np.isnan(arrays["/outputs/logits"]).any() or np.isnan(arrays["/outputs/logsumexp"]).any():
        raise NonFiniteStates(
            "the model's outputs are not numbers", needed="logits", found="NaN", next_step="compute in float32"
        )


def _largest(site: str, recipe: StoreLayout, content: ShardContent) -> float:
    if recipe.role == "latents":
        return largest_latent(content.latents["values"], recipe.dtype)
    return absolute_maximum(site, content.sites[site], recipe.dtype, content)


def site_facts(content: ShardContent, recipe: StoreLayout) -> dict[str, dict[str, Any]]:
    """Return the attributes of each site: `order`, `module`, `dtype`, `finite`, `absmax`; for sites of heads also
    `n_heads` and `head_dim`.

    Raises:
        NonFiniteStates: states are NaN or infinite.
    """
    ordered = sorted(recipe.sites, key=lambda name: Site.parse(name).order)
    return {
        name: {
            "order": order,
            "module": content.modules[name].encode("ascii", "backslashreplace").decode() or " ",
            "dtype": recipe.dtype,
            "finite": 1,
            "absmax": _largest(name, recipe, content),
            **content.heads.get(name, {}),
        }
        for order, name in enumerate(ordered)
    }
