"""Any Hugging Face Transformer, read by forward hooks on its blocks: no code per family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probing.errors import UnknownSite, UnsupportedModel, unknown_name
from probing.models._discovery import find_blocks, find_final_norm, find_trunk, first_tensor


class HuggingFaceTrunk:
    """The sites of one loaded model, and how to read them.

    Assumes blocks that run once each, in order, on `(B, T, D)` states; `LanguageModel.self_check` proves it.

    Attributes:
        model: the model as loaded, with its head if it has one.
        trunk: the part that is run for states.
        family: the model type of the configuration, for messages.
        sites: site names, in the order of a forward pass.
        modules: for each site, the module path in the trunk.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the blocks, the final norm and the embedding.

        Raises:
            UnsupportedModel: a model without a list of blocks or without a piece embedding.
        """
        self.model = model
        self.family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
        self.trunk = find_trunk(model)
        path, self.blocks = find_blocks(self.trunk, self.family)
        norm = find_final_norm(self.trunk, path)
        self.final_norm = None if norm is None else norm[1]
        embedding = self.trunk.get_input_embeddings()  # type: ignore[operator]
        if not isinstance(embedding, nn.Embedding):
            raise UnsupportedModel(
                f"models of the family {self.family!r} are not read", needed="a piece embedding",
                found=type(embedding).__name__, next_step="choose a model of text",
            )  # fmt: skip
        self.embedding = embedding
        L = len(self.blocks)
        self.modules = {"embed": _path_of(self.trunk, embedding)}
        self.modules |= {f"resid.{i}": f"{path}.{i}" for i in range(L)} | {f"resid.{L}": f"{path}.{L - 1}"}
        if norm is not None:
            self.modules["final_norm"] = norm[0]
        self.sites = tuple(self.modules)
        self._parameters = set(inspect.signature(self.trunk.forward).parameters)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.embedding.weight.dtype

    @property
    def has_padding_positions(self) -> bool:
        """Whether positions are counted from the padding id on, as in RoBERTa: they must then be left to the model."""
        return self._position_table_padding() is not None

    @property
    def max_positions(self) -> int | None:
        """How many pieces the positions allow; None where there is no limit."""
        limit = getattr(self.trunk.config, "max_position_embeddings", None)
        if not isinstance(limit, int) or limit <= 0:
            return None
        padding = self._position_table_padding()
        return limit if padding is None else limit - padding - 1

    def _position_table_padding(self) -> int | None:
        for name, module in self.trunk.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return module.padding_idx
        return None

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Arguments of a forward pass; positions count from the first real piece, also behind left padding."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        is_left_padded = bool((mask[:, 0] == 0).any())
        if is_left_padded and "position_ids" in self._parameters and not self.has_padding_positions:
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "use_cache" in self._parameters:
            given["use_cache"] = False
        return given

    def read(self, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """States `(B, T, D)` at the sites, from one forward pass of the trunk.

        Raises:
            UnknownSite: a site this model does not have.
            UnsupportedModel: a hook that did not fire exactly once.
        """
        self.check_sites(sites)
        with self._hooks([site for site in sites if site != "embed"]) as seen:
            if set(sites) != {"embed"}:
                self.trunk(**self.inputs(ids, mask))
        if "embed" in sites:
            seen["embed"] = [nn.functional.embedding(ids, self.embedding.weight)]
        for site in sites:
            if len(seen[site]) != 1:
                raise self.unsupported(f"site {site} was met {len(seen[site])} times", "once in a forward pass")
        return {site: seen[site][0] for site in sites}

    def broken_link(self, ids: Tensor, mask: Tensor) -> str | None:
        """The first site `resid.l` that is not the output of block l-1, or is changed after it was read; else None."""
        blocks = len(self.blocks)
        outputs: dict[int, list[Tensor]] = {layer: [] for layer in range(blocks)}
        inputs: dict[int, list[Tensor]] = {layer: [] for layer in range(blocks)}
        handles = [b.register_forward_hook(_output_reader(outputs[i])) for i, b in enumerate(self.blocks)]
        handles += [b.register_forward_hook(_copier(inputs[i]), with_kwargs=True) for i, b in enumerate(self.blocks)]
        try:
            states = self.read(ids, mask, [f"resid.{layer}" for layer in range(blocks + 1)])
        finally:
            for handle in handles:
                handle.remove()
        for layer in range(blocks + 1):
            state = states[f"resid.{layer}"]
            chained = layer == 0 or torch.equal(state, outputs[layer - 1][0])
            if not chained or (layer < blocks and not torch.equal(state, inputs[layer][0])):
                return f"resid.{layer}"
        return None

    def check_sites(self, sites: Sequence[str]) -> None:
        """Refuse unknown sites.

        Raises:
            UnknownSite: with the nearest name.
        """
        for site in sites:
            if site not in self.modules:
                raise unknown_name("site", site, self.modules, where=f"model {self.family}", error=UnknownSite)

    def unsupported(self, found: str, needed: str) -> UnsupportedModel:
        """The error for a model that does not work as the hooks assume."""
        return UnsupportedModel(
            f"models of the family {self.family!r} are not read: the self-check failed", needed=needed, found=found,
            where=type(self.model).__name__, next_step="choose another model, or report this family",
        )  # fmt: skip

    @contextmanager
    def _hooks(self, sites: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
        """Hooks on what is wanted only; always removed."""
        seen: dict[str, list[Tensor]] = {site: [] for site in sites}
        handles = [self._hook(site, seen[site]) for site in sites]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, site: str, into: list[Tensor]) -> torch.utils.hooks.RemovableHandle:
        module = self.trunk.get_submodule(self.modules[site])
        layer = int(site.partition(".")[2]) if "." in site else -1
        if 0 <= layer < len(self.blocks):
            return module.register_forward_pre_hook(_input_reader(into), with_kwargs=True)
        return module.register_forward_hook(_output_reader(into))


def _input_reader(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append(args[0] if args else kwargs["hidden_states"])

    return hook


def _copier(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        into.append((args[0] if args else kwargs["hidden_states"]).clone())

    return hook


def _output_reader(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        state = first_tensor(output)
        if isinstance(state, Tensor):
            into.append(state)

    return hook


def _path_of(root: nn.Module, wanted: nn.Module) -> str:
    return next((path for path, module in root.named_modules() if module is wanted), "")


MEMBER = HuggingFaceTrunk
