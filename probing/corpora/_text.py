"""The text of a corpus file: UTF-8, without NUL, not empty; and the checks on options that readers share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from probing.errors import BadParameter, CorpusError, unknown_name
from probing.sources import check_file


def read_text(source: str) -> str:
    """The whole text of a file, without a byte order mark.

    Raises:
        CorpusError: missing, unreadable, empty, not UTF-8 or with a NUL, with file and line.
    """
    check_file(source)
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise CorpusError("the corpus file cannot be read", found=str(error), where=source) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            "the corpus file is not UTF-8 text", needed="UTF-8", found=f"byte 0x{data[error.start]:02x}",
            where=f"{source}:{data.count(bytes([10]), 0, error.start) + 1}",
            next_step="convert it, e.g. with iconv -t UTF-8",
        ) from None  # fmt: skip
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise CorpusError("the corpus file holds a NUL character", needed="plain text", where=f"{source}:{line}")
    if not text.strip():
        raise CorpusError("the corpus file is empty", needed="at least one example", where=source)
    return text


def check_options(options: Iterable[str], known: Iterable[str], reader: str) -> None:
    """Refuse options that a reader does not have.

    Raises:
        BadParameter: with the nearest option.
    """
    for name in options:
        if name not in known:
            raise unknown_name(f"option of the {reader} reader", name, known, error=BadParameter)
