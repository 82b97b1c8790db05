"""Chat messages of a row: a list of `{"role": …, "content": …}`; without a text, the last user's is the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probing.errors import CorpusError

Messages = tuple[tuple[str, str], ...]


def are_messages(value: Any) -> bool:
    """Return whether a value has the form of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in value)
    )


def messages_of(row: Mapping[str, Any], field: str, place: str) -> Messages:
    """Return (role, content) of every message of one row; none where the field is "" or null.

    Raises:
        CorpusError: another form.
    """
    value = row.get(field) if field else None
    if value is None:
        return ()
    if not are_messages(value):
        raise CorpusError(
            f"{field} is no list of messages",
            needed='[{"role": "user", "content": "…"}, …]',
            found=repr(value)[:80],
            where=place,
            next_step=f"correct it, or read with {field}=none",
        )
    return tuple((message["role"], message["content"]) for message in value)


def last_of_user(messages: Messages, place: str) -> str:
    """Return the last user message.

    Raises:
        CorpusError: there is none.
    """
    contents = [content for role, content in messages if role == "user"]
    if not contents:
        raise CorpusError(
            "messages without a user's",
            needed="a message of role user, or a field `text`",
            found=", ".join(role for role, _ in messages) or "no messages",
            where=place,
        )
    return contents[-1]
