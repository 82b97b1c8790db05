"""Texts inside a chat prompt: the tokenizer's own template, and offsets that still point into the text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from probing.errors import AlignmentError, BadParameter
from probing.provenance import digest
from probing.text.alignment import Encoded
from probing.text.chat_process import Renderer
from probing.text.corpus import Corpus, Example

Messages = tuple[tuple[str, str], ...]
_STAND_IN = "text5f0d9c27"  # what no template changes: rendered in the place of a text, it shows where texts go


class ChatTemplate:
    """Renders examples as prompts. A text is a user's message, or what it is in the example's own messages.

    After a user's message (any role but `assistant`) the template adds what makes the model answer.
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
        self._renderer = Renderer(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
        self._frames: dict[Messages, tuple[str, str]] = {}

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return prompts as the model reads them. Pieces outside the text are special; offsets are those in the text.

        Raises:
            AlignmentError: the template changes a text, or the messages do not hold it exactly once.
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

    def identity(self, corpus: Corpus) -> dict[str, Any]:
        """Return part of a store's identity: hashes of the template, of what it writes today, and of the messages."""
        template = self._tokenizer.get_chat_template()
        rendered = self._render((("user", _STAND_IN),))
        messages = [example.messages for example in corpus.examples]
        return {
            "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
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
