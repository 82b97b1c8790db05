"""Answers as pieces of the vocabulary, not a character stripped, and readouts over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from probing.contracts.behaviour import Outputs, Readout, Texts
from probing.errors import BadParameter, NoBehaviour
from probing.recipes import escaped, parts_of
from probing.results.use import Answers
from probing.seeds import child_seed

SEPARATOR = "|"
ALIKE = "/"
_BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"  # the space of SentencePiece


def parsed(answers: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return answers given as a sequence, or as `yes|no` (a stroke inside an answer is `\\|`); empty: none were given.

    Raises:
        BadParameter: only one, or one twice.
    """
    found = tuple(parts_of(answers, SEPARATOR) if isinstance(answers, str) else answers or ())
    if found and (len(found) < 2 or len(set(found)) < len(found)):
        raise BadParameter(
            "answers are compared with each other",
            needed="two or more different ones",
            found=", ".join(map(repr, found)),
        )
    return found


def as_text(answers: Sequence[str]) -> str | None:
    """Return the text that `parsed` reads as these answers; None for None."""
    return SEPARATOR.join(escaped(answer, SEPARATOR) for answer in answers) or None


def measured(tokenizer: Any, answers: Sequence[str]) -> Answers:
    """Return, for each answer, the id and the text of its pieces."""
    return tuple(tuple((piece, piece_text(tokenizer, piece)) for piece in ids) for ids in ids_of(tokenizer, answers))


def piece_text(tokenizer: Any, piece: int) -> str:
    """Return what a piece stands for in a text, with the space it begins with; its name where it is no whole
    character.
    """
    name = str(tokenizer.convert_ids_to_tokens(piece))
    if _BLOCK in name:
        return name.replace(_BLOCK, " ")  # decoding one piece by itself would drop it
    text = str(tokenizer.decode([piece], clean_up_tokenization_spaces=False))
    return name if "\N{REPLACEMENT CHARACTER}" in text or not text else text


def ids_of(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Return the vocabulary ids of each answer: one id, as it is written, or those of `was/is`, one answer of two
    pieces.

    Raises:
        NoBehaviour: an answer that the vocabulary does not have, or that is cut in several pieces.
    """
    found = [_ids(tokenizer, answer) for answer in answers]
    every = [piece for ids in found for piece in ids]
    if len(set(every)) < len(every):
        raise NoBehaviour("two answers are one piece", needed="different pieces", found=", ".join(map(repr, answers)))
    return found


def _ids(tokenizer: Any, answer: str) -> list[int]:
    whole = _pieces(tokenizer, answer)
    if ALIKE in answer and not _is_one(tokenizer, whole):
        return [_one(tokenizer, part, _pieces(tokenizer, part)) for part in answer.split(ALIKE)]
    return [_one(tokenizer, answer, whole)]


def _pieces(tokenizer: Any, answer: str) -> list[int]:
    return [int(piece) for piece in tokenizer(answer, add_special_tokens=False)["input_ids"]]


def _is_one(tokenizer: Any, ids: Sequence[int]) -> bool:
    return len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None)


def _one(tokenizer: Any, answer: str, ids: Sequence[int]) -> int:
    if not _is_one(tokenizer, ids):
        unknown, pieces = getattr(tokenizer, "unk_token_id", None), tokenizer.convert_ids_to_tokens(list(ids))
        raise NoBehaviour(
            f"the answer {answer!r} is no single piece",
            needed="answers that are one piece each",
            found="a piece that the vocabulary lacks" if unknown in ids else f"{len(ids)} pieces {pieces}",
            next_step="write it as it follows the text, such as ' yes' with its space, or choose another",
        )
    return ids[0]


def centred(ids: Sequence[Sequence[int]]) -> Readout:
    """Return a readout of the logits of the answers less their mean; an answer of several pieces has the logit of any:
    log Σ exp.
    """
    alone = all(len(one) == 1 for one in ids)

    def read(outputs: Outputs) -> torch.Tensor:
        where = [torch.tensor(one, device=outputs.values.device) for one in ids]
        if alone:
            chosen = outputs.values[:, torch.cat(where)].float()
        else:
            chosen = torch.stack([outputs.values[:, one].float().logsumexp(1) for one in where], dim=1)
        return chosen - chosen.mean(1, keepdim=True)

    return read


COMPONENTS = 256
_SPARE = 32  # more random combinations than components, so that the last of these are found too
_MAX_CLASSES = 64
Clean = Callable[[], Iterable[Outputs]]


def reduced(texts: Texts, clean: Clean, *, components: int = COMPONENTS) -> Readout:
    """Return a readout of logits y as diag(√p̄)(I − 1p̄ᵀ)y, so that ½|Δy|² ≈ KL, along the leading components of the
    clean ones.

    p̄ is the mean clean prediction. The components span the clean outputs' largest principal axes, found by a random
    sketch with one power step in passes over the batches, and the differences between class means of `texts.labels`.
    Up to `components` alternatives nothing is reduced. Memory: V × components, never N × V.

    References:
        Halko, Martinsson and Tropp 2011, Finding Structure with Randomness, algorithm 4.4.
    """
    total = sum(outputs.values.float().softmax(1).double().sum(0) for outputs in clean())
    assert isinstance(total, Tensor)  # for the reader of types: there is a row
    mean = (total / total.sum()).float()
    weights = mean.sqrt()

    def weighted(logits: Tensor) -> Tensor:
        logits = logits.float()
        return (logits - (logits @ mean)[:, None]) * weights

    if len(mean) <= components:
        return lambda outputs: weighted(outputs.values)
    basis = _basis(texts, lambda: (weighted(outputs.values) for outputs in clean()), mean, components)
    return lambda outputs: weighted(outputs.values) @ basis


def _basis(texts: Texts, batches: Callable[[], Iterable[Tensor]], like: Tensor, components: int) -> Tensor:
    """Return an orthonormal basis `(V, r)`: contrasts of classes first, then leading components."""
    n, width = len(texts.example), min(components + _SPARE, len(texts.example), len(like))
    draws = torch.Generator().manual_seed(child_seed(0, "vocabulary", "sketch"))
    sketch, total = like.new_zeros((len(like), width)), like.new_zeros(len(like))
    labels = [torch.from_numpy(codes) for codes in texts.labels.values() if len(codes) and codes.max() < _MAX_CLASSES]
    sums = [like.new_zeros((int(codes.max()) + 2, len(like))) for codes in labels]
    row = 0
    for y in batches():
        sketch += y.T @ torch.randn((len(y), width), generator=draws).to(y.device)
        total += y.sum(0)
        for codes, into in zip(labels, sums, strict=True):
            into.index_add_(0, codes[row : row + len(y)].to(y.device) + 1, y)  # the first is of rows without a label
        row += len(y)
    mean = total / n
    axes = _leading(batches, mean, torch.linalg.qr(sketch)[0], components)
    contrasts = [_contrasts(into[1:], codes) for codes, into in zip(labels, sums, strict=True)]
    joined = torch.cat([*contrasts, axes], 1)
    left: Tensor
    left, sizes, _ = torch.linalg.svd(joined, full_matrices=False)
    return left[:, sizes > 1e-6 * sizes.max()].contiguous()


def _leading(batches: Callable[[], Iterable[Tensor]], mean: Tensor, start: Tensor, components: int) -> Tensor:
    """Return the principal axes `(V, r)` of the clean outputs, from a start that spans them roughly."""
    spread = torch.zeros_like(start)
    for y in batches():
        spread += (y - mean).T @ ((y - mean) @ start)
    range_: Tensor = torch.linalg.qr(spread)[0]
    gram = range_.new_zeros((range_.shape[1], range_.shape[1]), dtype=torch.float64)
    for y in batches():
        inside = ((y - mean) @ range_).double()
        gram += inside.T @ inside
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(gram)
    kept = values.flip(0)[:components] > 1e-12 * values.max().clamp(min=1e-300)
    axes: Tensor = range_ @ vectors.flip(1)[:, :components][:, kept].to(range_.dtype)
    return axes


def _contrasts(sums: Tensor, codes: Tensor) -> Tensor:
    """Return the class means less the first of them, each of length 1, `(V, K - 1)`."""
    counts = torch.bincount(codes[codes >= 0], minlength=len(sums)).to(sums.device)
    means = (sums / counts.clamp(min=1)[:, None])[counts > 0]
    apart: Tensor = (means[1:] - means[:1]).T
    lengths: Tensor = apart.norm(dim=0, keepdim=True)
    return apart / lengths.clamp(min=1e-30)
