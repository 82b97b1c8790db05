"""Generates text with a decoder, and passes the states of every token to a listener while the model reads it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probing.errors import BadParameter, UnsupportedModel
from probing.models.batching import padded, padding_id
from probing.models.discovery.tracing import first_tensor, given_state
from probing.models.reading.hooked import HookedModule
from probing.text.alignment import Encoded
from probing.text.chat import ChatTemplate

Chat = Sequence[tuple[str, str]]

_REFUSED = {"num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None, "prompt_lookup_num_tokens": None}


@dataclass(frozen=True, eq=False)
class Generated:
    """Holds the continuation of one prompt.

    Attributes:
        prompt: the prompt as the model reads it, special tokens and chat markup included.
        text: the generated text, without special tokens.
        ids: `(n,)` ids of the generated tokens, before the token that ends the text.
        is_cut: whether the largest number of tokens was reached before the text ended.
    """

    prompt: str
    text: str
    ids: NDArray[np.int64]
    is_cut: bool


def continued(
    model: nn.Module,
    trunk: HookedModule,
    tokenizer: Any,
    limit: int | None,
    where: str,
    encode: Callable[[Sequence[str]], list[Encoded]],
    prompts: Sequence[str | Chat],
    new: int,
    options: Mapping[str, Any],
) -> list[Generated]:
    """Continue prompts by at most `new` tokens each, and return the continuations; see `LanguageModel.generate`.

    Args:
        model: the Hugging Face model.
        trunk: the part of the model whose sites are read.
        tokenizer: the fast tokenizer.
        limit: largest number of tokens of an input; None if no limit is known.
        where: name of the model, for messages.
        encode: function that tokenises texts.
        prompts: texts, or chats as lists of (role, content) pairs.
        new: largest number of new tokens.
        options: options of Hugging Face's `generate`.
    """
    check_generates(model, trunk)
    batch = _prompts(tokenizer, prompts, encode, where)
    lengths = [len(one) for one in batch]
    check_room(max(lengths), new, limit, where)
    padding = padding_id(tokenizer.pad_token_id, trunk)
    ids, mask = padded(batch, [max(lengths) - n for n in lengths], padding, trunk.device)
    given = {"do_sample": False, "pad_token_id": padding, "max_new_tokens": new} | dict(options)
    generate: Any = model.generate
    with torch.no_grad():
        output = generate(input_ids=ids, attention_mask=mask, **given)
    whole = output if isinstance(output, Tensor) else output.sequences
    config: Any = options.get("generation_config") or model.generation_config
    stops = stop_ids(options.get("eos_token_id", getattr(config, "eos_token_id", None)))
    found = []
    for row, pieces in enumerate(whole[:, ids.shape[1] :].cpu().numpy().astype(np.int64)):
        ended = np.flatnonzero(np.isin(pieces, list(stops)))
        own = pieces[: ended[0]] if len(ended) else pieces
        prompt = tokenizer.decode(batch[row * len(batch) // len(whole)].ids)
        found.append(Generated(prompt, tokenizer.decode(own, skip_special_tokens=True), own, not len(ended)))
    return found


def _prompts(
    tokenizer: Any, prompts: Sequence[str | Chat], encode: Callable[[Sequence[str]], list[Encoded]], where: str
) -> list[Encoded]:
    """Return the pieces of prompts: texts, or chats that end where the assistant's answer begins.

    Raises:
        BadParameter: there is none, or one without pieces; or chats, and the tokenizer has no chat template.
    """
    given: list[Any] = [prompts] if isinstance(prompts, str) else [_prompt(prompt) for prompt in prompts]
    chats = [prompt for prompt in given if not isinstance(prompt, str)]
    template = ChatTemplate(tokenizer, where) if chats else None
    found = [
        encode([prompt])[0] if isinstance(prompt, str) or template is None else template.opened(tuple(prompt))
        for prompt in given
    ]
    if not found or not all(map(len, found)):
        raise BadParameter("a prompt without pieces", needed="prompts of at least one piece", found="none", where=where)
    return found


def _prompt(prompt: Any) -> Any:
    """Return a text, or a chat as pairs of role and content; turns may be mappings, as of Hugging Face.

    Raises:
        BadParameter: it is neither.
    """
    if isinstance(prompt, str):
        return prompt
    turns = [prompt] if isinstance(prompt, Mapping) else list(prompt) if isinstance(prompt, Sequence) else [prompt]
    pairs = [
        (turn["role"], turn["content"]) if isinstance(turn, Mapping) and set(turn) >= {"role", "content"} else turn
        for turn in turns
    ]
    are = [isinstance(p, Sequence) and not isinstance(p, str) and [*map(type, p)] == [str, str] for p in pairs]
    if not pairs or not all(are):
        raise BadParameter(
            "a prompt that is neither a text nor a chat",
            needed='texts, or chats such as [("user", "…")] or [{"role": "user", "content": "…"}]',
            found=repr(prompt)[:200],
        )
    return [tuple(pair) for pair in pairs]


def stop_ids(stops: Any) -> frozenset[int]:
    """Return the ids that end a text (None, an integer, a list or a tensor) as a set."""
    known = stops.tolist() if isinstance(stops, Tensor) else stops
    return frozenset([] if known is None else [known] if isinstance(known, int) else known)


class Listener(Protocol):
    """Receives the course of a generation: the prompts first, then every forward pass, then all ids."""

    def begins(self, ids: Tensor, mask: Tensor, stops: frozenset[int]) -> None:
        """Receive ids and mask `(B, T)` of the prompts (the mask is 0 at padding), and the ids that end a text."""

    def reads(self, start: int, ids: Tensor, states: Mapping[str, Tensor]) -> None:
        """Receive a forward pass over ids `(B, t)`, which are the columns from `start` to `start + t - 1` of the batch,
        with states `(B, t, D)` by site.
        """

    def ends(self, ids: Tensor) -> None:
        """Receive the ids `(B, T + n)` of prompts and continuations, after the model has read all of them."""


def check_generates(model: nn.Module, trunk: HookedModule) -> None:
    """Check that the model is a decoder with a language-model head, so that it continues texts.

    Raises:
        UnsupportedModel: the model is of another kind.
    """
    is_decoded = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    can = getattr(model, "can_generate", None)
    if is_decoded or not callable(can) or not can() or trunk.lead:
        raise UnsupportedModel(
            "this model does not continue texts",
            needed="a decoder with a language-model head",
            found="an encoder-decoder" if is_decoded else type(model).__name__,
            where=trunk.family,
            next_step="load a causal model, with kind='causal'",
        )


def check_room(length: int, new: int, limit: int | None, where: str) -> None:
    """Check before anything is computed that a prompt of `length` tokens and a continuation of `new` tokens fit into a
    model with this limit (None: no limit is known); `where` names the model in messages.

    Raises:
        BadParameter: prompt and continuation are longer than the limit, or `new` is below 1.
    """
    if new < 1 or (limit is not None and length + new > limit):
        raise BadParameter(
            "the generation would be cut: prompt and continuation are longer than the model reads",
            needed=f"at least 1 new piece and at most {limit} pieces in all",
            found=f"{length} of the prompt and {new} new",
            where=where,
            next_step="give a shorter prompt or a smaller max_new_tokens",
        )


@dataclass
class _Run:
    """Holds what is known about the generation that is running; nothing is known before `begins`."""

    is_on: bool = False
    start: int = 0
    done: int = 0
    ids: Tensor | None = None
    cache: Any = None
    seen: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def listening(
    model: nn.Module, trunk: HookedModule, sites: Sequence[str], listener: Listener, where: str
) -> Iterator[None]:
    """Return a context manager in whose block every generation by `model.generate` is passed to the listener, with the
    states at `sites`. Afterwards all hooks are removed, also after an error.

    Generation does not read the last token, since nothing follows it; an additional pass reads it.

    Raises:
        UnknownSite: the model has no such site.
        UnsupportedModel: the model does not continue texts.
    """
    check_generates(model, trunk)
    trunk.check_sites(sites)
    run, own = _Run(), model.__dict__.get("generate")
    original: Callable[..., Any] = model.generate  # type: ignore[assignment]

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not run.is_on:
            return
        ids = args[0] if args else kwargs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise UnsupportedModel("generation without ids of pieces is not watched", needed="input_ids", where=where)
        run.cache = kwargs.get("past_key_values")
        run.start = 0 if run.cache is None else int(run.cache.get_seq_length())
        run.ids, run.seen = ids, {}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if not run.is_on or run.ids is None:
            return
        states = {site: trunk.aligned(state, run.ids, site) for site, state in run.seen.items()}
        run.done = run.start + run.ids.shape[1]
        listener.reads(run.start, run.ids, states)
        run.ids, run.seen = None, {}

    def generate(*args: Any, **kwargs: Any) -> Any:
        ids, mask, stops = _inputs(model, trunk, args, kwargs, where)
        listener.begins(ids, mask, stops)
        run.is_on, run.done = True, 0
        try:
            with torch.no_grad():
                output = original(*args, **kwargs)
                whole = output if isinstance(output, Tensor) else output.sequences
                if run.done < whole.shape[1]:
                    _read_last(trunk, whole, mask, run)
        finally:
            run.is_on, run.cache = False, None
        listener.ends(whole)
        return output

    handles = [trunk.trunk.register_forward_pre_hook(before, with_kwargs=True, prepend=True)]
    try:
        handles += [_hook(trunk, site, run) for site in sites]
        handles.append(trunk.trunk.register_forward_hook(after))
        model.__dict__["generate"] = generate
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.__dict__.pop("generate", None)
        if own is not None:
            model.__dict__["generate"] = own


def _hook(trunk: HookedModule, site: str, run: _Run) -> Any:
    module = trunk.trunk.get_submodule(trunk.modules[site])

    def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(given_state(args, kwargs))

    def made(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        take(first_tensor(output))

    def take(state: object) -> None:
        if run.is_on and isinstance(state, Tensor):
            run.seen[site] = state.detach()

    if site in trunk.reads_input:
        return module.register_forward_pre_hook(given, with_kwargs=True)
    return module.register_forward_hook(made)


def _inputs(
    model: Any, trunk: HookedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str
) -> tuple[Tensor, Tensor, frozenset[int]]:
    """Return ids and mask `(B, T)` of the prompts, and the ids that end a text.

    Raises:
        BadParameter: there are no ids, padding without a mask, beams or another search that leaves the text's order, or
            no room for the text.
    """
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.shape[1]:
        raise BadParameter("generation is watched from ids of pieces", needed="input_ids (B, T)", where=where)
    config = kwargs.get("generation_config") or model.generation_config

    def option(name: str) -> Any:
        return kwargs[name] if name in kwargs else getattr(config, name, None)

    odd = [name for name, usual in _REFUSED.items() if option(name) not in (None, usual)]
    if odd or kwargs.get("assistant_model") is not None:
        raise BadParameter(
            "only generation piece by piece is watched",
            needed="greedy search or sampling",
            found=", ".join(odd) or "assistant_model",
            where=where,
            next_step="leave it out",
        )
    mask = kwargs.get("attention_mask")
    padding = option("pad_token_id")
    if mask is None and len(ids) > 1 and padding is not None and bool((ids == padding).any()):
        raise BadParameter("padded prompts need their mask", needed="attention_mask", found="none", where=where)
    mask = torch.ones_like(ids) if mask is None else mask
    new = option("max_new_tokens")
    new = (option("max_length") or ids.shape[1] + 1) - ids.shape[1] if new is None else new
    check_room(int(mask.sum(1).max()), int(new), trunk.max_positions, where)
    times = option("num_return_sequences") or 1
    stops = stop_ids(option("eos_token_id"))
    return ids.repeat_interleave(times, 0), mask.repeat_interleave(times, 0), stops


def _read_last(trunk: HookedModule, whole: Tensor, mask: Tensor, run: _Run) -> None:
    """Run the pieces that no pass has read, so that they are read as all others."""
    more = torch.ones((len(whole), whole.shape[1] - mask.shape[1]), dtype=mask.dtype, device=mask.device)
    full = torch.cat([mask, more], 1)
    first = run.done if run.cache is not None else 0
    given = {"input_ids": whole[:, first:], "attention_mask": full, "past_key_values": run.cache}
    given["position_ids"] = (full.cumsum(1) - 1).clamp(min=0)[:, first:]
    given["use_cache"] = run.cache is not None
    known = inspect.signature(trunk.trunk.forward).parameters
    cache = run.cache
    trunk.trunk(**{name: value for name, value in given.items() if name in known and value is not None})
    if cache is not None and hasattr(cache, "crop"):  # whoever asked for the cache gets it as generation left it
        cache.crop(first - whole.shape[1])
