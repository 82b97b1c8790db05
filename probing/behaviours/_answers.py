"""Answers as pieces of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from probing.behaving import Outputs, Readout
from probing.errors import BadParameter, NoBehaviour

SEPARATOR = "|"


def parsed(answers: Sequence[str] | str | None) -> tuple[str, ...]:
    """Answers given one by one, or as `yes|no`; empty: none were given.

    Raises:
        BadParameter: only one, or one twice.
    """
    found = tuple(answers.split(SEPARATOR)) if isinstance(answers, str) else tuple(answers or ())
    if found and (len(found) < 2 or len(set(found)) < len(found)):
        raise BadParameter("answers are compared with each other", needed="two or more different ones",
                           found=", ".join(map(repr, found)))  # fmt: skip
    return found


def ids_of(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """The vocabulary id of each answer, as it is written.

    Raises:
        NoBehaviour: an answer that the vocabulary does not have, or that is cut in several pieces.
    """
    found = []
    for answer in answers:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        unknown = getattr(tokenizer, "unk_token_id", None)
        if len(ids) != 1 or ids[0] == unknown:
            pieces = tokenizer.convert_ids_to_tokens(ids)
            raise NoBehaviour(
                f"the answer {answer!r} is no single piece", needed="answers that are one piece each",
                found="a piece that the vocabulary lacks" if unknown in ids else f"{len(ids)} pieces {pieces}",
                next_step="write it as it follows the text, such as ' yes' with its space, or choose another",
            )  # fmt: skip
        found.append(int(ids[0]))
    if len(set(found)) < len(found):
        raise NoBehaviour("two answers are one piece", needed="different pieces", found=", ".join(map(repr, answers)))
    return found


def centred(ids: Sequence[int]) -> Readout:
    """Logits of the answers less their mean."""

    def read(outputs: Outputs) -> torch.Tensor:
        chosen = outputs.values[:, torch.tensor(ids, device=outputs.values.device)].float()
        return chosen - chosen.mean(1, keepdim=True)

    return read
