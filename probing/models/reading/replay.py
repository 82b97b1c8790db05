"""Runs only the later blocks of a model, from given states at a site; the blocks before it are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probing.errors import EditFailed, ProbingError, ReplayUnavailable, UnsupportedModel
from probing.models.adapters.huggingface import HuggingFaceTrunk
from probing.models.batching import PaddedBatch
from probing.models.discovery.parts import head_kind
from probing.models.discovery.tracing import Layout, given_state, with_first, with_state
from probing.models.reading.hooked import HookedModule
from probing.models.site import Site


def emptied(output: Any) -> Any:
    """Return the container of a module's output (tuple, list or mapping) with every entry replaced by None; None if the
    output is a tensor.
    """
    if isinstance(output, Mapping):
        return type(output)(**dict.fromkeys(output))
    return type(output)([None] * len(output)) if isinstance(output, tuple | list) else None


def bypass(form: Any, states: Tensor | None, layout: Layout) -> Callable[..., Any]:
    """Return a `forward` method for a block that computes nothing: it returns its input, or `states` if given, in the
    form of the block's own output (a tensor, tuple, list or mapping), which `form` shows (see `emptied`).
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = given_state(args, kwargs)
        assert given is not None  # for the reader of types: a block is given states
        return with_first(form, given if states is None else layout.spread(states, given))

    return forward


def of_pieces(output: Any, mask: Tensor) -> Tensor:
    """Return the logits in a model output (the last states if there is no head) at all tokens that are not padding.
    `mask` is `(B, T)`, 0 at padding.
    """
    found: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return found[mask.bool()] if found.shape[:2] == mask.shape else found


_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}  # relative to the largest logit; half precision: 1e-2


def tolerance(dtype: torch.dtype) -> float:
    """Return the largest difference, relative to the largest logit, that two runs on the same inputs may show if the
    model computes in the data type `dtype`.
    """
    return _TOLERANCE.get(dtype, 1e-2)


def is_same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether two outputs are equal within the `tolerance` of `dtype`, the data type that the model computes
    in.
    """
    found, expected = found.detach().float(), expected.detach().float()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return found.shape == expected.shape and bool(((found - expected).abs() <= tolerance(dtype) * scale).all())


class SuffixReplay:
    """Runs only the blocks after a site such as `resid.6`, from given states there, for any family of models.

    For one call, the `forward` of each block before the site is replaced by one that returns its input in the form of
    the block's output (a tensor or a tuple). So the model around the blocks runs as usual and computes masks, positions
    and rotary tables, but the replaced blocks compute nothing. A hook on the block after the site, which runs before
    all other hooks, replaces its input by the given states; at the site after the last block, the replaced last block
    returns them. Hooks of other code stay registered.

    Attributes:
        model: the model with its head.
        trunk: the part of the model whose sites are read.
    """

    def __init__(self, model: nn.Module, trunk: HookedModule) -> None:
        self.model, self.trunk = model, trunk
        self._forms: list[Any] | None = None
        self._proved: set[int] = set()

    def layer(self, site: str) -> int:
        """Return the number of the layer in the name of a site: 6 for `resid.6`.

        Raises:
            UnknownSite: the model has no such site.
            ReplayUnavailable: the site is not `resid.l`.
        """
        self._blocks()
        self.trunk.check_sites([site])
        parsed = Site.parse(site)
        if parsed.stream != "resid" or parsed.layer is None:
            raise ReplayUnavailable(
                f"a model is not run from {site}",
                needed="a site resid.l",
                found=site,
                where=self.trunk.family,
                next_step="run from the input of the block that the site lies in",
            )
        return parsed.layer

    def _blocks(self) -> HuggingFaceTrunk:
        """Return the trunk, if it has blocks that read the model's inputs.

        Raises:
            ReplayUnavailable: a module read by its paths, or a decoder beside an encoder.
        """
        if not isinstance(self.trunk, HuggingFaceTrunk) or not len(self.trunk.blocks) or self.trunk.lead:
            raise ReplayUnavailable(
                "this model is not run from the middle",
                needed="a Hugging Face model read by its blocks",
                found=f"{self.trunk.family}, without blocks or with a decoder",
                where=type(self.model).__name__,
                next_step="load it without side= and module paths",
            )
        if self.trunk.reads_alone:
            raise ReplayUnavailable(
                "this model is not run from the middle",
                needed="states that padding does not change",
                found="a model that reads inputs one by one",
                where=type(self.model).__name__,
                next_step="choose another model to edit; its states can be extracted and probed",
            )
        return self.trunk

    @property
    def head(self) -> str | None:
        """Kind of the head, `causal` or `masked`; None if there is no head that returns logits over the vocabulary for
        each token that is read.
        """
        return head_kind(self.model, self.trunk.trunk)

    def padded(self, ids: Tensor, mask: Tensor) -> PaddedBatch:
        """Return a padded batch of ids and mask `(B, T)` (0 at padding) with the position ids that the model reads."""
        return PaddedBatch(ids, mask, self._blocks().inputs(ids, mask).get("position_ids"))

    def read(self, inputs: PaddedBatch, sites: Sequence[str]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run one pass over the batch `inputs` and return the states `(B, T, D)` by site, for `sites`, and the logits
        `(B, T, V)` (None if there is no head).
        """
        with torch.inference_mode():
            output, states = self.run(inputs, sites)
        return states, None if self.head is None else self.logits(output)

    def run_from(self, site: str, states: Tensor, inputs: PaddedBatch) -> Tensor:
        """Run only the blocks after the site `resid.l`, with the given states there, and return the logits `(B, T, V)`:
        batch, tokens, vocabulary.

        Before a site is first used, a run from it with unedited states is compared with a full pass.

        Args:
            site: the site `resid.l` to run from.
            states: `(B, T, D)` states in the data type that the model computes in; gradients are computed for a tensor
                that requires them.
            inputs: the batch that the states belong to; masks and positions are made from it.

        Raises:
            UnknownSite: the model has no such site.
            ReplayUnavailable: the site is not `resid.l`, the states have another shape, or the blocks of this family
                pass on more than states.
            UnsupportedModel: the model has no head.
        """
        with torch.set_grad_enabled(states.requires_grad):
            return self.logits(self.run(inputs, site=site, states=states)[0])

    def states_from(self, site: str, states: Tensor, inputs: PaddedBatch, sites: Sequence[str]) -> dict[str, Tensor]:
        """Run as `run_from` does, but return the states `(B, T, D)` at the later `sites` instead of logits; no head is
        needed.
        """
        with torch.set_grad_enabled(states.requires_grad):
            return self.run(inputs, sites, site=site, states=states)[1]

    def arguments(self, inputs: PaddedBatch) -> dict[str, Any]:
        """Return the arguments of a forward pass over `inputs`, with their positions."""
        given = self._blocks().inputs(inputs.ids, inputs.mask)
        given.pop("position_ids", None)
        return given if inputs.position_ids is None else given | {"position_ids": inputs.position_ids}

    def run(
        self, inputs: PaddedBatch, sites: Sequence[str] = (), *, site: str | None = None, states: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run one pass over the batch `inputs`, from `states` at `site` if these are given, and return the model's
        output and the states at `sites`.

        Raises:
            UnknownSite: the model has no such site.
            ReplayUnavailable: the site is not `resid.l`, the states have another shape, or the family of models does
                not allow it.
        """
        if site is None or states is None:
            return self._pass(inputs, sites)
        layer = self.layer(site)
        if states.shape[:2] != inputs.ids.shape or states.dtype != self.trunk.dtype:
            raise ReplayUnavailable(
                f"these are no states of this batch at {site}",
                needed=f"({inputs.ids.shape[0]}, {inputs.ids.shape[1]}, width) {self.trunk.dtype}",
                found=f"{tuple(states.shape)} {states.dtype}",
                where=self.trunk.family,
                next_step="give the states in the compute dtype, padded as the batch is",
            )
        self.prove(site)
        with self._from(layer, states):
            return self._pass(inputs, sites)

    def _pass(self, inputs: PaddedBatch, sites: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
        is_decoded = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        whole, given = self.trunk.trunk if is_decoded else self.model, self.arguments(inputs)
        inner = [site for site in sites if site != "embed"]
        output, states = self.trunk.read_whole(lambda: whole(**given), inputs.ids, inner)
        if "embed" in sites:
            states["embed"] = nn.functional.embedding(inputs.ids, self._blocks().embedding)
        return output, states

    def logits(self, output: Any) -> Tensor:
        """Return the logits in a model output.

        Raises:
            UnsupportedModel: the model has no head over the vocabulary.
        """
        found = getattr(output, "logits", None)
        if not isinstance(found, Tensor):
            raise UnsupportedModel(
                "this model has no logits",
                needed="a language-model head",
                found=type(self.model).__name__,
                where=self.trunk.family,
                next_step="load it with kind='causal' or kind='masked'",
            )
        return found

    def prove(self, site: str) -> None:
        """Check, once per site, that a run from the site with unedited states equals a full pass; no registered hook
        may change states during this check.

        Raises:
            UnknownSite: the model has no such site.
            ReplayUnavailable: the site is not `resid.l`, or the outputs differ.
            EditFailed: two passes over the same text give different outputs.
        """
        layer = self.layer(site)
        if layer not in self._proved:
            self._prove(layer)

    def _prove(self, layer: int) -> None:
        """Prove that replay equals the full pass, on a small padded batch, before it is first used from this layer.

        Raises:
            ReplayUnavailable: it does not.
        """
        count = self.trunk.vocabulary
        ids = torch.tensor([[(11 + 7 * i + 3 * row) % count for i in range(7)] for row in range(2)])
        mask = torch.ones_like(ids)
        ids, mask = ids.to(self.trunk.device), mask.to(self.trunk.device)
        mask[1, 4:] = 0
        inputs = PaddedBatch(ids, mask, None)
        with torch.no_grad():
            output, read = self._pass(inputs, [f"resid.{layer}"])
            again = self._again(layer, read[f"resid.{layer}"], inputs)
            twice, _ = self._pass(inputs, [])
        if not is_same(of_pieces(twice, mask), of_pieces(output, mask), self.trunk.dtype):
            raise EditFailed(
                "the model gives other outputs each time it is run",
                needed="two equal passes of the same text",
                found="outputs that differ",
                where=type(self.model).__name__,
                next_step="switch off what draws at random (dropout, sampling), or choose another model",
            )
        if not is_same(of_pieces(again, mask), of_pieces(output, mask), self.trunk.dtype):
            raise self._unavailable(layer)
        self._proved.add(layer)

    def _again(self, layer: int, states: Tensor, inputs: PaddedBatch) -> Any:
        """Return the output of a replay.

        Raises:
            ReplayUnavailable: a block above the site needs what those below it hand on beside states.
        """
        try:
            with self._from(layer, states):
                return self._pass(inputs, [])[0]
        except ProbingError:
            raise
        except Exception as error:
            raise self._unavailable(layer) from error

    def _unavailable(self, layer: int) -> ReplayUnavailable:
        return ReplayUnavailable(
            f"models of the family {self.trunk.family!r} are not run from resid.{layer}",
            needed="the outputs of a full pass",
            found="others, for its blocks pass on more than states",
            where=type(self.model).__name__,
            next_step="choose another model",
        )

    @contextmanager
    def _from(self, layer: int, states: Tensor) -> Iterator[None]:
        """Within the block a pass of the model begins at `resid.layer`."""
        blocks, forms, layout = self._blocks().blocks, self._output_forms(), self._blocks().layout
        bypassed = list(zip(blocks[:layer], forms, strict=False))
        own = {block: block.__dict__.get("forward") for block, _ in bypassed}
        fired = 0

        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            nonlocal fired
            fired += 1
            raw = given_state(args, kwargs)
            return with_state(args, kwargs, states if raw is None else layout.spread(states, raw))

        handle = None
        try:
            for index, (block, form) in enumerate(bypassed):
                block.__dict__["forward"] = bypass(form, states if index + 1 == len(blocks) else None, layout)
            if layer < len(blocks):
                handle = blocks[layer].register_forward_pre_hook(put, with_kwargs=True, prepend=True)
            yield
        finally:
            if handle is not None:
                handle.remove()
            for block, forward in own.items():
                block.__dict__.pop("forward", None)
                if forward is not None:
                    block.__dict__["forward"] = forward
        if layer < len(blocks) and fired != 1:
            raise self.trunk.unsupported(f"block {layer} ran {fired} times", "once in a forward pass")

    def _output_forms(self) -> list[Any]:
        """Return for each block an output without tensors, in the form that it has: None where it is a tensor alone."""
        if self._forms is None:
            forms: dict[int, Any] = {}
            blocks = self._blocks().blocks

            def note(layer: int) -> Callable[..., None]:
                def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                    forms[layer] = emptied(output)

                return hook

            handles = [block.register_forward_hook(note(k)) for k, block in enumerate(blocks)]
            ids = torch.zeros((1, 2), dtype=torch.long, device=self.trunk.device) + 1
            try:
                with torch.no_grad():
                    self._pass(PaddedBatch(ids, torch.ones_like(ids), None), [])
            finally:
                for handle in handles:
                    handle.remove()
            self._forms = [forms[layer] for layer in range(len(blocks))]
        return self._forms
