"""Reads the states of any torch module, which need not be a Transformer, at the paths of modules inside it."""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from probing.errors import BadParameter
from probing.models.batching import read_alone
from probing.models.reading.hooked import HookedModule

Call = Callable[[nn.Module, Tensor, Tensor], Any]
_MASKS = ("attention_mask", "mask", "padding_mask")


class ModuleTrunk(HookedModule):
    """Reads the states of any PyTorch module that takes vocabulary ids, at named sites.

    It assumes that the module at each path runs once per pass and outputs one state per token, `(B, T, D)` (batch,
    tokens, width), or a tuple that begins with it; `LanguageModel.self_check` verifies this. If `forward` takes no
    mask, inputs are run one by one, without padding.

    Args:
        module: the module.
        sites: by name of a site, the path of the module whose output is read.
        call: function `call(module, ids, mask)` that runs the module on ids and mask `(B, T)`; the mask is 1 at tokens
            and 0 at padding. None: it is inferred from the module's `forward`.
        vocabulary: number of ids in the vocabulary.
        max_positions: largest number of tokens of an input; None means no limit.

    Attributes:
        takes_mask: whether `forward` takes a mask, so that batches may be padded.
        call_sha256: hash of the source of the function `call`, if one was given; else "".
    """

    def __init__(
        self,
        module: nn.Module,
        sites: Mapping[str, str],
        *,
        call: Call | None = None,
        vocabulary: int,
        max_positions: int | None = None,
    ) -> None:
        """Store the module, its sites and how it is called; the class describes the arguments.

        Raises:
            UnknownSite: a site's name does not have the form of one, or there is no such module; the message names the
                nearest.
            BadParameter: no site is named, or the module has no parameters.
        """
        super().__init__()
        self.model = self.trunk = module
        self.family = str(getattr(getattr(module, "config", None), "model_type", type(module).__name__))
        self._vocabulary = vocabulary
        self._limit = max_positions
        if next(module.parameters(), None) is None:
            raise BadParameter("the module has no parameters", needed="a model with weights", found=self.family)
        self._call, self.takes_mask = (call, True) if call else _call_of(module)
        self.call_sha256 = _source_sha256(call) if call else ""
        for site, path in sites.items():
            self.add_site(site, path)

    @property
    def vocabulary(self) -> int:
        """Number of ids in the vocabulary."""
        return self._vocabulary

    @property
    def max_positions(self) -> int | None:
        """Largest number of tokens of an input; None means no limit."""
        return self._limit

    def identity(self) -> dict[str, Any]:
        """Return what stores record about this module: the hash of the function `call`; an empty dictionary if none was
        given.
        """
        return {"call": self.call_sha256} if self.call_sha256 else {}

    def run(self, ids: Tensor, mask: Tensor) -> Any:
        """Run one forward pass of the module on ids and mask `(B, T)` (0 at padding), and return its output."""
        return self._call(self.model, ids, mask)

    def read(self, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Run one forward pass on ids and mask `(B, T)` (0 at padding), and return the states `(B, T, D)` by site; if
        the module takes no mask, states at padding are 0.

        Raises:
            UnknownSite: the module does not have one of the sites.
            UnsupportedModel: a module to be read did not run, or ran more than once.
        """
        if self.takes_mask:
            return super().read(ids, mask, sites)
        return read_alone(super().read, ids, mask, sites)


def _call_of(module: nn.Module) -> tuple[Call, bool]:
    """Return how a module's forward takes ids and mask, from the names of its parameters, and whether it takes a
    mask.
    """
    parameters = inspect.signature(module.forward).parameters
    mask_name = next((name for name in _MASKS if name in parameters), None)
    ids_name = "input_ids" if "input_ids" in parameters else None

    def call(module: nn.Module, ids: Tensor, mask: Tensor) -> Any:
        given = {mask_name: mask} if mask_name else {}
        return module(**{ids_name: ids}, **given) if ids_name else module(ids, **given)

    return call, mask_name is not None


def _source_sha256(call: Call) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(call))
    except (OSError, TypeError):
        text = f"{getattr(call, '__module__', '')}.{getattr(call, '__qualname__', type(call).__qualname__)}"
    return hashlib.sha256(text.encode()).hexdigest()


def vocabulary_of(module: nn.Module, tokenizer: Any) -> int:
    """Return the number of ids of the tokenizer, at most the number of rows of the module's first embedding."""
    tables = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return min([len(tokenizer), *tables[:1]])


MEMBER = ModuleTrunk
