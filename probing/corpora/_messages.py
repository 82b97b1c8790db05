"""Chat messages of a row: the field `messages`, a list of `{"role": …, "content": …}`; the text is the last user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probing.errors import CorpusError

FIELD = "messages"


def has_messages(values: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the field is there, and has the form of messages in every row."""
    return any(row.get(FIELD) for row in values) and all(_has_form(row.get(FIELD)) for row in values)


def _has_form(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in value)
    )


def messages_of(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(role, content) of every message."""
    return tuple((message["role"], message["content"]) for message in row.get(FIELD) or ())


def with_text(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The row with the last user message as its field `text`.

    Raises:
        CorpusError: no user message.
    """
    contents = [content for role, content in messages_of(row) if role == "user"]
    if not contents:
        raise CorpusError(
            "messages without a user's", needed="a message of role user, or a field `text`",
            found=", ".join(role for role, _ in messages_of(row)) or "no messages", where=place,
        )  # fmt: skip
    return {**row, "text": contents[-1]}
