"""Chat prompts: renders texts by a chat template in a child process, with offsets that refer to the original text."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from probing.errors import AlignmentError, BadParameter
from probing.provenance import digest
from probing.system.stopping import child_environment
from probing.text.alignment import Encoded
from probing.text.chat_rendering import OUTPUT, SECONDS
from probing.text.corpus import Corpus, Example

START = 60.0  # seconds that the child may take to load its libraries


class Renderer:
    """Renders conversations by a chat template in a child process, which starts at the first call; threads wait."""

    def __init__(self, template: str, pieces: dict[str, Any]) -> None:
        self.seconds = SECONDS
        self._setting = json.dumps({"template": template, "pieces": pieces}) + "\n"
        self._child: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def render(self, messages: list[dict[str, str]], *, is_open: bool) -> str:
        """Render a conversation and return the prompt; with `is_open`, the prompt ends where the assistant's answer
        begins.

        Raises:
            BadParameter: the template takes more memory, time or characters than a prompt can need.
            AlignmentError: the template refuses the messages.
        """
        with self._turn:
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


@lru_cache(maxsize=2)
def _renderer_of(template: str, pieces: str, process: int) -> Renderer:
    """Return the renderer of a template and special pieces (JSON), the same for all who ask for it in a process."""
    return Renderer(template, json.loads(pieces))


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


Messages = tuple[tuple[str, str], ...]
_STAND_IN = "text5f0d9c27"  # what no template changes: rendered in the place of a text, it shows where texts go


class ChatTemplate:
    """Renders examples as prompts, by the tokenizer's chat template. The text of an example is a user's message, or
    part of its `messages`.

    If the last message has another role than `assistant`, the template adds the generation prompt.
    """

    def __init__(self, tokenizer: Any, where: str) -> None:
        """Keep the tokenizer's template.

        Raises:
            BadParameter: it has none.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise BadParameter(
                "the tokenizer has no chat template",
                needed="a model made for chat",
                found="none",
                where=where,
                next_step="leave the chat template out, or choose an instruction-tuned model",
            )
        self._tokenizer = tokenizer
        pieces = json.dumps(tokenizer.special_tokens_map)
        self._renderer = _renderer_of(tokenizer.get_chat_template(), pieces, os.getpid())
        self._frames: dict[Messages, tuple[str, str]] = {}

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Render and tokenise prompts and return them. Pieces outside the text count as special; offsets are relative
        to the text.

        Raises:
            AlignmentError: the template changes a text, or the messages do not contain it exactly once.
        """
        if not examples:
            return []
        frames = [self._frame(example) for example in examples]
        prompts = [before + example.text + after for (before, after), example in zip(frames, examples, strict=True)]
        batch = self._tokenizer(
            prompts,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        columns = zip(batch["input_ids"], batch["offset_mapping"], frames, examples, strict=True)
        return [_inside(ids, offsets, len(frame[0]), len(example.text)) for ids, offsets, frame, example in columns]

    def opened(self, messages: Messages) -> Encoded:
        """Return the pieces of a chat up to and including the mark that opens the assistant's answer; all of them count
        as special.

        Raises:
            AlignmentError: the template refuses the messages.
        """
        conversation = [{"role": role, "content": content} for role, content in messages]
        ids = self._tokenizer(self._renderer.render(conversation, is_open=True), add_special_tokens=False)["input_ids"]
        return _inside(ids, [(0, 0)] * len(ids), 0, 0)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the template."""
        return hashlib.sha256(self._tokenizer.get_chat_template().encode()).hexdigest()

    def identity(self, corpus: Corpus) -> dict[str, Any]:
        """Return, for a store's identity, hashes of the template, of a prompt rendered now (a template may contain the
        date), and of the messages.
        """
        rendered = self._render((("user", _STAND_IN),))
        messages = [example.messages for example in corpus.examples]
        return {
            "template_sha256": self.sha256,
            "rendered_sha256": hashlib.sha256(rendered.encode()).hexdigest(),  # a template may write the date
            "messages_sha256": digest(messages) if any(messages) else None,
        }

    def _frame(self, example: Example) -> tuple[str, str]:
        """Return what the prompt has before and after the text."""
        messages = example.messages or (("user", example.text),)
        if example.text and sum(content.count(example.text) for _, content in messages) != 1:
            raise AlignmentError(
                "the text is not in the messages exactly once",
                needed="one message that holds it once",
                found=f"{sum(content.count(example.text) for _, content in messages)} times",
                where=f"sentence {example.id}",
                next_step="give a text that occurs once",
            )
        if not example.text:
            return self._render(messages), ""
        skeleton = tuple((role, content.replace(example.text, _STAND_IN)) for role, content in messages)
        if skeleton not in self._frames:
            before, found, after = self._render(skeleton).partition(_STAND_IN)
            if not found or _STAND_IN in after:
                raise AlignmentError(
                    "the chat template does not write the text exactly once",
                    needed="one place for the text",
                    found="several" if found else "none",
                    where=f"sentence {example.id}",
                    next_step="leave the chat template out, or render the prompts yourself",
                )
            self._frames = {skeleton: (before, after)} | (self._frames if len(self._frames) < 1000 else {})
        before, after = self._frames[skeleton]
        if self._render(messages) != before + example.text + after:
            raise AlignmentError(
                "the chat template changes the text",
                needed="the text, character by character",
                found=repr(example.text[:40]),
                where=f"sentence {example.id}",
                next_step="remove white space at its ends, which many templates trim",
            )
        return before, after

    def _render(self, messages: Messages) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        return self._renderer.render(conversation, is_open=messages[-1][0] != "assistant")


def _inside(ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, length: int) -> Encoded:
    places = np.array(offsets, dtype=np.int64).reshape(-1, 2) - start
    is_outside = (places[:, 1] <= 0) | (places[:, 0] >= length) | (places[:, 0] == places[:, 1])
    inside = np.where(is_outside[:, None], 0, places.clip(0, length))
    return Encoded(np.array(ids, dtype=np.int64), inside, is_outside, np.zeros((0, 2), dtype=np.int64))
