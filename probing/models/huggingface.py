"""Any Hugging Face Transformer, read by forward hooks on its blocks: no code per family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from probing.errors import UnknownSite, UnsupportedModel, unknown_name
from probing.models._discovery import find_blocks, find_final_norm, find_trunk, first_tensor
from probing.models._sublayers import find_sublayers
from probing.site import Site


class HuggingFaceTrunk:
    """The sites of one loaded model, and how to read them.

    Assumes blocks that run once each, in order, on `(B, T, D)` states; `LanguageModel.self_check` proves it.

    Attributes:
        model: the model as loaded, with its head if it has one.
        trunk: the part that is run for states.
        family: the model type of the configuration, for messages.
        modules: for each site, the module path in the trunk.
        reads_input: sites that are the input of their module, not its output.
        added: sites that `add_site` made.
        n_heads: attention heads of a block; None: unknown.
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
        self._parameters = set(inspect.signature(self.trunk.forward).parameters)
        self.n_heads: int | None = getattr(self.trunk.config, "num_attention_heads", None)
        self.modules = {"embed": _path_of(self.trunk, embedding)}
        self.reads_input: set[str] = set()
        self.added: set[str] = set()
        sublayers = find_sublayers(self.blocks, self._run_once, self.n_heads)
        for layer in range(len(self.blocks)):
            self._add(f"resid.{layer}", f"{path}.{layer}", reads_input=True)
            if sublayers is not None:
                self._add(f"heads.{layer}", f"{path}.{layer}.{sublayers.projection}", reads_input=True)
                self._add(f"attn_out.{layer}", f"{path}.{layer}.{sublayers.attention}")
                self._add(f"mlp_out.{layer}", f"{path}.{layer}.{sublayers.mlp}")
        self._add(f"resid.{len(self.blocks)}", f"{path}.{len(self.blocks) - 1}")
        if norm is not None:
            self._add("final_norm", norm[0])

    def _add(self, site: str, path: str, *, reads_input: bool = False) -> None:
        self.modules[site] = path
        if reads_input:
            self.reads_input.add(site)

    def add_site(self, site: str, path: str) -> None:
        """Give a module's output a site name.

        Args:
            site: a name in the form of a site.
            path: the module, from the model as loaded or from its trunk on.

        Raises:
            UnknownSite: a name that has another form or another meaning, or no such module, with the nearest.
        """
        Site.parse(site)
        if self.modules.get(site, path) != path:
            raise UnknownSite(f"site {site} is {self.modules[site]}", needed="another name", found=f"{site}={path}")
        inside = {id(module): name for name, module in self.trunk.named_modules()}
        modules = {name: inside[id(m)] for name, m in self.model.named_modules() if id(m) in inside}
        modules |= {name: name for name in inside.values()}
        if path not in modules:
            raise unknown_name("module", path, modules, where=f"model {self.family}", error=UnknownSite)
        self._add(site, modules[path])
        self.added.add(site)

    def remove_site(self, site: str) -> None:
        """Forget a site that `add_site` made."""
        self.added.remove(site)
        del self.modules[site]

    def _run_once(self) -> None:
        """A forward pass over one small input."""
        count = self.embedding.num_embeddings
        ids = torch.tensor([[(11 + 7 * i) % count for i in range(7)]], device=self.device)
        with torch.inference_mode():
            self.trunk(**self.inputs(ids, torch.ones_like(ids)))

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, in the order of a forward pass; added ones last."""
        return tuple(self.modules)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.embedding.weight.dtype

    @property
    def counting_padding_id(self) -> int | None:
        """The id that positions skip and count from, as in RoBERTa, which must then be left to the model; else None."""
        for name, module in self.trunk.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return module.padding_idx
        return None

    @property
    def max_positions(self) -> int | None:
        """How many pieces the positions allow; None where there is no limit."""
        limit = getattr(self.trunk.config, "max_position_embeddings", None)
        if not isinstance(limit, int) or limit <= 0:
            return None
        padding = self.counting_padding_id
        return limit if padding is None else limit - padding - 1

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Arguments of a forward pass; positions count from the first real piece, also behind left padding."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        is_left_padded = bool((mask[:, 0] == 0).any())
        if is_left_padded and "position_ids" in self._parameters and self.counting_padding_id is None:
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "use_cache" in self._parameters:
            given["use_cache"] = False
        return given

    def read(self, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """States `(B, T, D)` at the sites, from one forward pass of the trunk that ends once it has met them all.

        Raises:
            UnknownSite: a site this model does not have.
            UnsupportedModel: a hook that did not fire, or fired more than once.
        """
        self.check_sites(sites)
        with self._hooks([site for site in sites if site != "embed"]) as seen, suppress(_AllRead):
            if set(sites) != {"embed"}:
                self.trunk(**self.inputs(ids, mask))
        if "embed" in sites:
            seen["embed"] = [nn.functional.embedding(ids, self.embedding.weight)]
        return self._met(seen, sites, ids)

    def read_whole(
        self, model: nn.Module, arguments: dict[str, Any], sites: Sequence[str]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The output of a whole pass of the trunk, or of the model around it, and the states at the sites.

        Raises:
            UnknownSite, UnsupportedModel: as `read`.
        """
        self.check_sites(sites)
        ids = arguments["input_ids"]
        with self._hooks([*(site for site in sites if site != "embed"), _END]) as seen:
            output = model(**arguments)
        if "embed" in sites:
            seen["embed"] = [nn.functional.embedding(ids, self.embedding.weight)]
        return output, self._met(seen, sites, ids)

    def _met(self, seen: dict[str, list[Tensor]], sites: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
        for site in sites:
            if len(seen[site]) != 1:
                raise self.unsupported(f"site {site} was met {len(seen[site])} times", "once in a forward pass")
            if seen[site][0].shape[:2] != ids.shape and seen[site][0].shape[0] != ids.numel():
                raise self.unsupported(
                    f"{site} has shape {tuple(seen[site][0].shape)}", f"({ids.numel()} pieces, width)"
                )
        # Some blocks flatten (B, T) for their MLP.
        return {site: seen[site][0].reshape(*ids.shape, -1) for site in sites}

    def repeated_block(self, ids: Tensor, mask: Tensor) -> str | None:
        """What a block that does not run exactly once in a forward pass does instead; else None."""
        calls = [0] * len(self.blocks)

        def counter(layer: int) -> Callable[..., None]:
            def hook(*_: object) -> None:
                calls[layer] += 1

            return hook

        handles = [block.register_forward_hook(counter(layer)) for layer, block in enumerate(self.blocks)]
        try:
            self.trunk(**self.inputs(ids, mask))
        finally:
            for handle in handles:
                handle.remove()
        return next((f"block {i} runs {n} times" for i, n in enumerate(calls) if n != 1), None)

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
        handles = [self._hook(site, seen) for site in sites if site != _END]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, site: str, seen: dict[str, list[Tensor]]) -> torch.utils.hooks.RemovableHandle:
        module = self.trunk.get_submodule(self.modules[site])

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            take(args[0] if args else kwargs.get("hidden_states"))

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            take(first_tensor(output))

        def take(state: object) -> None:
            if isinstance(state, Tensor):
                seen[site].append(state)
            if all(seen.values()):
                raise _AllRead

        if site in self.reads_input:
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)


_END = ""  # a site that is never met: the pass goes on to its end


class _AllRead(Exception):
    """Nothing that comes later in the forward pass is wanted."""


def _path_of(root: nn.Module, wanted: nn.Module) -> str:
    return next((path for path, module in root.named_modules() if module is wanted), "")


MEMBER = HuggingFaceTrunk
