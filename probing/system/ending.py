"""The end of a command: every command ends with an exit code and, if it failed, with one readable block of text.

Exit codes: 0 done, 1 a ProbingError or an interruption, printed as one block, 2 wrong usage, 75 stopped by SIGTERM or
SIGUSR1, as a batch system sends them: start the same command again. If the reader of the output has closed it
(`| head`), the code is 1 and nothing is printed, as is usual for Python programs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from probing.errors import CannotReachFile, Interrupted, ProbingError, UnitFailed
from probing.system import machine, stopping

_SHOWN = 20


@contextmanager
def typed_ending() -> Iterator[None]:
    """Within the block, replace an error that ends a command by a readable message on standard error and an exit code.
    Other exceptions, which are bugs, keep their traceback.

    Raises:
        SystemExit: carries the exit code.
    """
    try:
        yield
    except stopping.Requeue:
        _end(stopping.SAID, stopping.REQUEUE)
    except KeyboardInterrupt:
        _end(block(Interrupted("interrupted", next_step="run the same command again: what is done is kept")), 1)
    except BrokenPipeError:
        _end("", 1)
    except Exception as error:
        found = machine.typed(error)
        if found is None:
            raise
        if isinstance(error, OSError) and not isinstance(error, ProbingError) and error.filename is None:
            found = _of_output(error) or found
        _end("\n\n".join([block(found), *(f"{name}: {block(cause)}" for name, cause in causes(found)[:_SHOWN])]), 1)


def _end(text: str, code: int) -> NoReturn:
    """Print the error and leave without printing more: a stream that takes nothing would complain at the very end."""
    stopping.over()
    with suppress(OSError, ValueError):
        if text and sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
    silence_broken_streams()
    sys.exit(code)


def _of_output(error: OSError) -> ProbingError | None:
    """Return the error if it is of standard output, which took no more, as of a file on a full disk."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        return CannotReachFile(
            "the output cannot be written",
            found=error.strerror or str(error),
            where="standard output",
            next_step="see what it was sent to, and run the same command again: what is done is kept",
        )
    return None


def silence_broken_streams() -> None:
    """Redirect standard output and error to the null device if they are broken, since the interpreter flushes them when
    it ends.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def open_streams() -> None:
    """Open closed standard streams on the null device, and let all of them replace characters they cannot encode.

    Otherwise the next file to be opened would get the descriptor of a closed stream, and output would be written into
    it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                continue
            with suppress(OSError):
                handle = os.open(os.devnull, os.O_RDWR)
                if handle != number:
                    os.dup2(handle, number)
                    os.close(handle)
        if getattr(sys, name) is None:
            with suppress(OSError):
                setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif mode == "w" and hasattr(getattr(sys, name), "reconfigure"):
            with suppress(OSError, ValueError):
                getattr(sys, name).reconfigure(errors="backslashreplace")


def block(error: ProbingError) -> str:
    """Return the text of an error for the terminal: its class, its message and its notes."""
    notes = "".join(f"\n  note: {note}" for note in getattr(error, "__notes__", []))
    return f"{type(error).__name__}: {error}{notes}"


def causes(error: ProbingError, within: str = "") -> list[tuple[str, ProbingError]]:
    """Return the errors inside a `UnitFailed`, also of nested ones, as pairs (name of the failed unit, error); empty
    for other errors.
    """
    if not isinstance(error, UnitFailed):
        return []
    named = [(f"{within}{name}", cause) for name, cause in error.errors.items()]
    return [leaf for name, cause in named for leaf in (causes(cause, f"{name}, ") or [(name, cause)])]
