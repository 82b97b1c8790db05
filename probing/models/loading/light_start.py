"""A light start of the command line: transformers without PyTorch's compiler and without its distributed tensors.

`import transformers` loads both, which takes longer than MiniLM needs for a treebank: the compiler for decorators that
concern compiled models only, distributed tensors for models on several machines. A command of this package compiles
nothing and shards nothing, so a stand-in takes the compiler's place, and transformers is told what it is told by a
PyTorch built without distributed computing. No number depends on it: the kernels are the same.

Only the command line calls this, since in a notebook others may compile; and only before transformers is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
_SCOPES = f"{COMPILER}._trace_wrapped_higher_order_op"
_DECORATORS = ("disable", "assume_constant_result", "allow_in_graph", "disallow_in_graph", "forbid_in_graph")


def start_lightly() -> None:
    """Put stand-ins in the place of what transformers loads and this package never uses.

    It does nothing if transformers or the compiler is loaded already.
    """
    if "transformers" in sys.modules or COMPILER in sys.modules:
        return
    torch, distributed = import_module("torch"), import_module("torch.distributed")
    distributed.is_available = _never  # type: ignore[attr-defined]
    for name in (COMPILER, _SCOPES):
        sys.modules[name] = _StandIn(name)
    import_module("transformers.utils").is_scipy_available = _never  # type: ignore[attr-defined]
    if hasattr(torch, "_check_with"):
        _check_plainly(torch)
    _draw_nothing_on_meta(import_module("torch.nn.init"))


def _never() -> bool:
    """Say that something is not there: distributed tensors, or SciPy, which a loss on boxes in images loads."""
    return False


def _check_plainly(torch: ModuleType) -> None:
    """Let PyTorch's checks of shapes pass a plain True at once: for symbols, which only its compiler has, the check
    loads SymPy, as soon as a model without values is built.
    """
    check = torch._check_with

    def _check_with(error: Any, condition: Any, *given: Any, **options: Any) -> None:
        if condition is not True:
            check(error, condition, *given, **options)

    torch._check_with = _check_with  # type: ignore[attr-defined]


def _draw_nothing_on_meta(init: ModuleType) -> None:
    """Let `normal_` leave a weight without values as it is: PyTorch draws it by Python code that loads SymPy, too, and
    random numbers are neither taken nor given.
    """
    normal = init.normal_

    def normal_(tensor: Any, *given: Any, **options: Any) -> Any:
        return tensor if tensor.is_meta else normal(tensor, *given, **options)

    init.normal_ = normal_  # type: ignore[attr-defined]


class _StandIn(ModuleType):
    """Stands for a module of the compiler, and is replaced by it as soon as more than its decorators is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == COMPILER and name in _DECORATORS:
            return _unchanged
        if self.__name__ == _SCOPES:
            return lambda *given, **options: getattr(_real(self.__name__), name)(*given, **options)
        return getattr(_real(self.__name__), name)


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    """Return the function that is decorated, or a decorator that returns it."""
    return function if callable(function) else _as_it_is


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _real(name: str) -> ModuleType:
    """Load the compiler itself, and return the module of it."""
    for stand_in in (COMPILER, _SCOPES):
        if isinstance(sys.modules.get(stand_in), _StandIn):
            del sys.modules[stand_in]
    return import_module(name)
