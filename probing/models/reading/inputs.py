"""Turns texts into pieces (tokens), and pieces into padded tensors; reads inputs one by one where padding is not
possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probing.errors import BadParameter, UnsupportedModel
from probing.models.reading.hooked import HookedModule
from probing.text.alignment import Encoded


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[Encoded]:
    """Tokenise texts and return their pieces, with special pieces and without truncation."""
    if not texts:
        return []
    batch = tokenizer(
        list(texts),
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    columns = zip(batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True)
    none = np.zeros((0, 2), dtype=np.int64)
    return [
        Encoded(
            np.array(ids, dtype=np.int64),
            np.array(offsets, dtype=np.int64).reshape(-1, 2),
            np.array(special, dtype=bool),
            none,
        )
        for ids, offsets, special in columns
    ]


def check_ids(batch: Sequence[Encoded], limit: int | None, tokenizer: Any, where: str) -> list[Encoded]:
    """Check that every id of a batch has an embedding vector, and return the batch.

    Raises:
        UnsupportedModel: the tokenizer has a piece that the embedding lacks.
    """
    if limit is None:
        return list(batch)
    for one in batch:
        if len(one) and not 0 <= int(one.ids.min()) <= int(one.ids.max()) < limit:
            bad = next(int(i) for i in one.ids if not 0 <= i < limit)
            raise UnsupportedModel(
                "the tokenizer has a piece that the model has no vector for",
                needed=f"ids below {limit}",
                found=f"piece {tokenizer.convert_ids_to_tokens(bad)!r} with id {bad}, of {len(tokenizer)} pieces",
                where=where,
                next_step="use the tokenizer that the model was trained with",
            )
    return list(batch)


def padding_id(chosen: int | None, trunk: HookedModule) -> int:
    """Return the id to pad with: the tokenizer's padding id if it is in the model's vocabulary, else
    `counting_padding_id` of the model, else 0.
    """
    return next((i for i in (chosen, trunk.counting_padding_id) if i is not None and 0 <= i < trunk.vocabulary), 0)


def padded(
    batch: Sequence[Encoded], starts: Sequence[int], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pad a batch and return ids and mask `(B, T)`; `starts` is the column of each input's first piece.

    Raises:
        BadParameter: an input has no pieces.
    """
    if not batch or not all(len(e) for e in batch):
        raise BadParameter("an input without pieces cannot be run", needed="at least one piece", found="none")
    ids = np.full((len(batch), max(len(e) for e in batch)), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (one, start) in enumerate(zip(batch, starts, strict=True)):
        ids[row, start : start + len(one)] = one.ids
        mask[row, start : start + len(one)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def decoder_inputs(ids: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
    """Put the start piece just before the first real piece of every input, and return the arguments `decoder_input_ids`
    and `decoder_attention_mask`, `(B, T + 1)`.
    """
    before = torch.full_like(ids[:, :1], start)
    first = mask.argmax(1)
    shifted, shown = torch.cat([before, ids], 1), torch.cat([torch.zeros_like(before), mask], 1)
    rows = torch.arange(len(ids), device=ids.device)
    shifted[rows, first], shown[rows, first] = start, 1
    return {"decoder_input_ids": shifted, "decoder_attention_mask": shown}


Read = Callable[[Tensor, Tensor, Sequence[str]], dict[str, Tensor]]


def read_alone(read: Read, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
    """Run inputs one at a time and return the states `(B, T, D)` at the sites, 0 at padding."""
    found: dict[str, Tensor] = {}
    for row, real in enumerate(mask.bool()):
        alone = read(ids[row, real][None], mask[row, real][None], sites)
        for site, state in alone.items():
            if site not in found:
                found[site] = state.new_zeros((*ids.shape, state.shape[-1]))
            found[site][row, real] = state[0]
    return found
