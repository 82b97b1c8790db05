"""Prompts: texts as the tokens of a model, in batches of equal length, so that no token is padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, CorpusError
from probing.models.language_model import LanguageModel
from probing.seeds import generator
from probing.states.extraction.reading_options import subset_of
from probing.text.alignment import Encoded
from probing.text.chat import ChatTemplate
from probing.text.corpus import Corpus, Example
from probing.text.example import unit_names, units_of

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Prompt:
    """Holds a text as T tokens.

    Attributes:
        number: its number among the prompts that are read, which seeds its random draws.
        id: id of the text.
        group: name of the unit by which texts are resampled.
        text: the text.
        encoded: its tokens.
        tokens: the tokens as text.
    """

    number: int
    id: str
    group: str
    text: str
    encoded: Encoded
    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_punctuation(self) -> NDArray[np.bool_]:
        """Whether a token holds visible characters but no letter and no digit, `(T,)`; special tokens do not count."""
        plain = [bool(t.strip()) and not any(c.isalnum() for c in t) for t in self.tokens]
        return np.array(plain, dtype=bool) & ~self.encoded.special


Texts = str | Sequence[str] | Sequence[Example] | Corpus


def prompts_of(
    model: LanguageModel,
    texts: Texts,
    *,
    chat_template: bool = False,
    subset: str | Sequence[int] | None = None,
    max_texts: int = 500,
    seed: int = 0,
) -> tuple[list[Prompt], int]:
    """Return texts as prompts, and the number of texts there were; of more than `max_texts`, a random choice is read.

    Raises:
        CorpusError: there is no text.
        BadParameter: a text has no tokens or more than the model takes, the subset is not of the corpus, or the
            tokenizer has no chat template.
        AlignmentError: the chat template changes a text.
        UnsupportedModel: the tokenizer has a token that the model has no vector for.
    """
    examples = _examples(texts, subset)
    count = len(examples)
    if not count:
        raise CorpusError("there are no texts to inspect", needed="at least one text", found="none")
    names = unit_names(examples, units_of(examples))
    chosen = range(count)
    if count > max_texts:
        chosen = np.sort(generator(seed, "texts").permutation(count)[:max_texts]).tolist()
    kept = [examples[k] for k in chosen]
    if chat_template:
        encoded = ChatTemplate(model.tokenizer, model.name).encode(kept)
    else:
        encoded = model.encode([example.text for example in kept])
    for example, one in zip(kept, encoded, strict=True):
        _check_length(model, example, one)
    return [
        Prompt(number, example.id, names[k], example.text, one, _tokens(model.tokenizer, one))
        for number, (k, example, one) in enumerate(zip(chosen, kept, encoded, strict=True))
    ], count


def _examples(texts: Texts, subset: str | Sequence[int] | None) -> list[Example]:
    if isinstance(texts, Corpus):
        corpus = texts
    else:
        given = _given(texts)
        corpus = Corpus(tuple(t if isinstance(t, Example) else Example(str(k), t) for k, t in enumerate(given)))
    ordinals = subset_of(corpus, subset) if len(corpus) else None
    return [corpus.examples[k] for k in (range(len(corpus)) if ordinals is None else ordinals)]


def _given(texts: Any) -> list[str | Example]:
    """Return texts as a list.

    Raises:
        CorpusError: they are no text, nor some texts or examples.
    """
    given = [texts] if isinstance(texts, str | Example) else texts
    if isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | Mapping):
        given = list(given)
        if all(isinstance(one, str | Example) for one in given):
            return given
        texts = next(one for one in given if not isinstance(one, str | Example))
    raise CorpusError(
        "these are no texts",
        needed="a text, or a list of texts or examples, or a corpus",
        found=f"{type(texts).__name__} {texts!r}"[:80],
        next_step="give the text as a string, such as 'the old doctor'",
    )


def _check_length(model: LanguageModel, example: Example, one: Encoded) -> None:
    limit = model.max_length
    if len(one) and (limit is None or len(one) <= limit):
        return
    raise BadParameter(
        "a text has no tokens" if not len(one) else "a text is too long for the model",
        needed="at least one token" + ("" if limit is None else f", at most {limit}"),
        found=f"{len(one)} tokens",
        where=f"text {example.id}",
        next_step="leave the text out, or shorten it",
    )


def _tokens(tokenizer: Any, one: Encoded) -> tuple[str, ...]:
    return tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in one.ids.tolist())


def batches(prompts: Sequence[Prompt], tokens: int = BATCH_TOKENS) -> Iterator[list[Prompt]]:
    """Yield prompts of equal length together, at most `tokens` tokens at a time (and at least one prompt)."""
    by_length: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt), []).append(prompt)
    for length, some in sorted(by_length.items()):
        size = max(1, tokens // length)
        for first in range(0, len(some), size):
            yield some[first : first + size]
