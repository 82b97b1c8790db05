"""The parent's side of rendering chat templates: a child that is ended where it takes too long or too much."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

from probing.errors import AlignmentError, BadParameter
from probing.system.child_processes import child_environment
from probing.text.chat_rendering import OUTPUT, SECONDS

START = 60.0  # seconds that the child may take to load its libraries


class Renderer:
    """Renders conversations by one template in a child process, which is started when it is first needed."""

    def __init__(self, template: str, pieces: dict[str, Any]) -> None:
        self.seconds = SECONDS
        self._setting = json.dumps({"template": template, "pieces": pieces}) + "\n"
        self._child: subprocess.Popen[str] | None = None

    def render(self, messages: list[dict[str, str]], *, is_open: bool) -> str:
        """Return the prompt of a conversation.

        Raises:
            BadParameter: the template takes more memory, time or characters than any prompt.
            AlignmentError: the template refuses the messages.
        """
        answer = self._answer(json.dumps({"messages": messages, "is_open": is_open}) + "\n")
        if "limit" in answer:
            raise BadParameter(
                "the chat template takes more than any prompt needs",
                needed=f"at most {OUTPUT:,} characters, {self.seconds:g} s",
                found=answer["limit"],
                where="chat template",
                next_step="leave the chat template out, or choose a model whose template ends",
            )
        if "error" in answer:
            raise AlignmentError(
                "the chat template refuses these messages",
                needed="messages as the model's authors order them",
                found=answer["error"],
                where=", ".join(message["role"] for message in messages),
            )
        return answer["text"]

    def _answer(self, job: str) -> dict[str, str]:
        if self._child is None:
            self._child = _started()
            weakref.finalize(self, _end, self._child)
            if not _exchange(self._child, self._setting, START):
                self._child = None
                return {"limit": f"a process that does not start within {START:g} s"}
        line = _exchange(self._child, job, self.seconds)
        if line:
            found: dict[str, str] = json.loads(line)
            return found
        self._child = None
        return {"limit": f"more than {self.seconds:g} s, or more memory than there is"}


def _started() -> subprocess.Popen[str]:
    """Start the child, which waits for the template and then for conversations."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "probing.text.chat_rendering"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        env=child_environment(),
        cwd="/",
    )


def _exchange(child: subprocess.Popen[str], line: str, seconds: float) -> str:
    """Return the child's answer to a line; empty: it gave none in time, and is gone."""
    assert child.stdin is not None and child.stdout is not None  # for the reader of types: both are pipes
    watch = threading.Timer(seconds, child.kill)
    watch.daemon = True
    watch.start()
    answer = ""
    try:
        child.stdin.write(line)
        child.stdin.flush()
        answer = child.stdout.readline()
    except BrokenPipeError:
        pass
    finally:
        watch.cancel()
    if not answer.endswith("\n"):
        child.kill()
        child.wait()
        return ""
    return answer


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
