"""Computes the content of a shard of a replay store: whole input sequences with their states, and the model's outputs.
A *piece* is a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import BadParameter, NonFiniteStates
from probing.models.batching import PaddedBatch, length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.provenance import digest
from probing.states.extraction.shard_reading import (
    WINDOW,
    Clock,
    ReadingOptions,
    assembled,
    check_finite,
    encode_within,
    n_words,
    pages_for,
    refuse_too_large,
)
from probing.states.store import ShardContent, narrow
from probing.text.alignment import Encoded, Rows, piece_rows
from probing.text.corpus import Example

OUTPUTS = ("last", "mask", "all", "none")
MAX_FILE_BYTES = 16 << 20

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ReplayReading(ReadingOptions):
    """Describes the extraction of a replay store.

    Attributes:
        outputs: pieces whose outputs are stored: the `last` piece of each example that is not special, every `mask`
            piece, `all`, or `none`.
        columns: vocabulary ids whose outputs are stored, in rising order; None means all.
    """

    outputs: str = "none"
    columns: tuple[int, ...] | None = None

    def identity(self) -> dict[str, Any]:
        """Return the `extraction` block of a store's identity."""
        kept = None if self.columns is None else {"count": len(self.columns), "sha256": digest(list(self.columns))}
        return super().identity() | {
            "role": "replay",
            "rows": "sequence",
            "batch_rule": f"length-sorted, at most {self.tokens_per_batch} padded pieces",
            "outputs": self.outputs,
            "columns": kept,
        }

    def output_bytes(self, model: LanguageModel) -> tuple[int, int]:
        """Return two numbers: bytes of stored outputs per row, and per example."""
        if self.outputs == "none":
            return 0, 0
        width = vocabulary_size(model) if self.columns is None else len(self.columns)
        return (4 * width, 0) if self.outputs == "all" else (0, 4 * width)


def as_replay(
    model: LanguageModel, reading: ReadingOptions, outputs: str | None, columns: str | Sequence[int] | None
) -> ReplayReading:
    """Return the options as `ReplayReading`.

    Raises:
        BadParameter: an option is out of range or cannot be used for a replay store.
        ReplayUnavailable: the model is not read by its blocks.
    """
    if reading.dtype != model.dtype:
        raise BadParameter(
            "a replay store keeps states as they were computed",
            needed=f"stored dtype {model.dtype}",
            found=reading.dtype,
            next_step="leave the stored dtype out, or compute in it",
        )
    if reading.positions or reading.long_inputs == WINDOW:
        raise BadParameter(
            "a replay store holds whole sequences",
            needed="no positions, and long inputs truncate, skip or refuse",
            found="rows position" if reading.positions else "long inputs window",
        )
    model.suffix.layer("resid.0")
    kept = outputs_of(model, outputs)
    if kept == "none" and columns is not None:
        raise BadParameter("there are no outputs to choose columns of", needed="outputs last, mask or all", found=kept)
    values = vars(reading) | {"scope": "sequence", "pool": "mean"}
    return ReplayReading(**values, outputs=kept, columns=columns_of(model, columns))


def outputs_of(model: LanguageModel, outputs: str | None) -> str:
    """Return the choice of stored outputs; by default `last` for a causal model, `mask` for a masked model, `none` for
    others.

    Raises:
        BadParameter: the choice is unknown, the model has no head, or `mask` is asked of a tokenizer without a mask
            piece.
    """
    if outputs is None:
        return {"causal": "last", "masked": "mask", None: "none"}[model.suffix.head]
    if outputs not in OUTPUTS:
        raise BadParameter("unknown outputs", needed=", ".join(OUTPUTS), found=repr(outputs))
    if outputs != "none" and model.suffix.head is None:
        raise BadParameter(
            "this model has no outputs to keep",
            needed="a language-model head",
            found="none",
            where=model.name,
            next_step="use outputs none, or load a model with a head",
        )
    if outputs == "mask" and model.tokenizer.mask_token_id is None:
        raise BadParameter(
            "this tokenizer has no mask piece",
            needed="a mask piece",
            found="none",
            where=model.name,
            next_step="use outputs last or all",
        )
    return outputs


def columns_of(model: LanguageModel, columns: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return vocabulary ids in rising order, from numbers, a text such as `11,262`, or a file with one id per line;
    None if `columns` is None.

    Raises:
        BadParameter: an entry is not an id of the vocabulary, or there is none.
    """
    if columns is None:
        return None
    given = _read_ids(columns) if isinstance(columns, str) else columns
    count = vocabulary_size(model)
    try:
        ids = sorted({int(one) for one in given})
    except ValueError as error:
        raise BadParameter("columns are vocabulary ids", needed=f"0 to {count - 1}", found=str(error)) from None
    if not ids or ids[0] < 0 or ids[-1] >= count:
        raise BadParameter("columns are vocabulary ids", needed=f"0 to {count - 1}", found=f"{ids[:1]} … {ids[-1:]}")
    return tuple(ids)


def vocabulary_size(model: LanguageModel) -> int:
    """Return the number of outputs V of the model's head.

    Raises:
        BadParameter: the model has no head.
    """
    one = torch.ones((1, 1), dtype=torch.long, device=model.device)
    _, logits = model.suffix.read(PaddedBatch(one, one, None), [])
    if logits is None:
        raise BadParameter("this model has no outputs", needed="a language-model head", found="none", where=model.name)
    return int(logits.shape[-1])


def _read_ids(columns: str) -> list[str]:
    if all(part.strip().isdigit() for part in columns.split(",")):
        return columns.split(",")
    file = Path(columns)
    if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
        raise BadParameter(
            "columns are neither numbers nor a file", needed="11,262 or a file with one id a line", found=repr(columns)
        )
    return file.read_text(encoding="utf-8", errors="replace").split()


def read_replay_shard(
    model: LanguageModel, examples: Sequence[Example], start: int, reading: ReplayReading, advance: Clock | None = None
) -> ShardContent:
    """Run one full pass per batch and return the content of one shard. Weights are not packed and passes are not run in
    parallel, since a replay must reproduce every bit.

    Raises:
        NonFiniteStates: a state is NaN or infinite; the message names the site and the sentence.
    """
    encoded, too_long = encode_within(model, examples, reading)
    for e in too_long:
        encoded[e] = _nothing()
    rows = piece_rows([e.text for e in examples], [e.words for e in examples], encoded, with_special=True)
    refuse_too_large(model, examples, rows, reading)
    states, given, outputs = _run(model, examples, encoded, rows, reading, advance)
    content = assembled(model, examples, start, reading, encoded, too_long, rows, states)
    return replace(
        content,
        rows={**content.rows, **{name: given[name] for name in ("input_id", "position_id", "mask")}},
        examples={**content.examples, "batch": given["batch"]},
        outputs=outputs,
    )


def _nothing() -> Encoded:
    none = np.zeros((0, 2), dtype=np.int64)
    return Encoded(np.zeros(0, dtype=np.int64), none, np.zeros(0, dtype=bool), none)


def _run(
    model: LanguageModel,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    rows: Rows,
    reading: ReplayReading,
    advance: Clock | None,
) -> tuple[Arrays, Arrays, Arrays]:
    """Return states by site, the model's inputs, and its outputs."""
    stored = np.uint16 if reading.dtype == "bfloat16" else np.dtype(reading.dtype)
    states: Arrays = {site: pages_for((len(rows), model.width(site)), stored) for site in reading.sites}
    given: Arrays = {
        "input_id": np.zeros(len(rows), "<u4"),
        "position_id": np.full(len(rows), -1, "<i4"),
        "mask": np.zeros(len(rows), "u1"),
        "batch": np.zeros((len(encoded), 2), "<u4"),
    }
    kept: list[tuple[NDArray[np.int64], Tensor, Tensor]] = []
    lengths = [len(one) for one in encoded]
    for number, batch in enumerate(length_sorted_batches(lengths, reading.tokens_per_batch)):
        inputs = model.padded([encoded[e] for e in batch])
        found, logits = model.suffix.read(inputs, reading.sites)
        start, length = model.first_piece([encoded[e] for e in batch]), lengths[batch[0]]
        row = np.concatenate([np.arange(rows.offset[e], rows.offset[e + 1]) for e in batch])
        flat = np.concatenate([k * length + start[k] + np.arange(lengths[e]) for k, e in enumerate(batch)])
        place = torch.from_numpy(flat).to(inputs.ids.device)
        given["batch"][batch] = (number, length)
        given["input_id"][row] = inputs.ids.reshape(-1)[place].cpu().numpy()
        given["mask"][row] = inputs.mask.reshape(-1)[place].cpu().numpy()
        if inputs.position_ids is not None:
            given["position_id"][row] = inputs.position_ids.reshape(-1)[place].cpu().numpy()
        for site, state in found.items():
            wide = state.reshape(-1, state.shape[-1])[place].float().cpu().numpy()
            check_finite(wide, site, rows, row, examples)
            states[site][row] = narrow(wide, reading.dtype, site)
        if logits is not None and reading.outputs != "none":
            chosen = np.flatnonzero(np.concatenate([_is_kept(model, encoded[e], reading.outputs) for e in batch]))
            kept.append((row[chosen], *_outputs(logits, place[torch.from_numpy(chosen)], reading.columns)))
        if advance is not None:
            advance(sum(n_words(examples[e]) for e in batch))
    return states, given, _joined(model, kept, reading)


def _is_kept(model: LanguageModel, one: Encoded, outputs: str) -> NDArray[np.bool_]:
    """Return whether the outputs at each piece are kept, `(T,)`."""
    content = np.flatnonzero(~one.special)
    last = content[-1] if len(content) else len(one) - 1
    wanted = {"last": np.arange(len(one)) == last, "all": np.ones(len(one), dtype=bool)}
    return np.asarray(wanted.get(outputs, one.ids == model.tokenizer.mask_token_id), dtype=np.bool_)


def _outputs(logits: Tensor, place: Tensor, columns: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """Return logits `(M, C)` and log-sum-exp `(M,)` over the whole vocabulary, float32."""
    whole = logits.reshape(-1, logits.shape[-1])[place].float()
    some = whole if columns is None else whole[:, torch.tensor(columns, device=whole.device)]
    return some.cpu(), whole.logsumexp(-1).cpu()


def _joined(
    model: LanguageModel, kept: list[tuple[NDArray[np.int64], Tensor, Tensor]], reading: ReplayReading
) -> Arrays:
    """Return the outputs of all batches, rows rising."""
    if reading.outputs == "none":
        return {}
    columns = {} if reading.columns is None else {"column": np.array(reading.columns, "<u4")}
    if not kept:
        width = vocabulary_size(model) if reading.columns is None else len(reading.columns)
        none = {"row": np.zeros(0, "<u4"), "logits": np.zeros((0, width), "<f4"), "logsumexp": np.zeros(0, "<f4")}
        return none | columns
    row = np.concatenate([part for part, _, _ in kept])
    order = np.argsort(row)
    logits = torch.cat([part for _, part, _ in kept]).numpy()[order]
    sums = torch.cat([part for _, _, part in kept]).numpy()[order]
    if not np.isfinite(sums).all():
        raise NonFiniteStates(
            "the model's outputs are not finite",
            needed="finite numbers",
            found="NaN or infinity",
            where=model.name,
            next_step="compute in float32",
        )
    return {"row": row[order].astype("<u4"), "logits": logits, "logsumexp": sums} | columns
