"""Makes the command line start faster: transformers is imported without PyTorch's compiler and distributed tensors.

`import transformers` loads both, which takes longer than MiniLM needs for a treebank: the compiler for decorators that
concern compiled models only, distributed tensors for models on several machines. Building a model on the meta device
also loads SymPy. A command of this package compiles nothing and distributes nothing, so placeholder modules replace the
compiler and the symbolic shapes, and `torch.distributed.is_available` returns False. Results do not change, since the
kernels are the same.

Only the command line calls this function, since a notebook may use the compiler; it must run before transformers is
imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
_SCOPES = f"{COMPILER}._trace_wrapped_higher_order_op"
SYMBOLS = "torch.fx.experimental.symbolic_shapes"
_GUARDS = ("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious", "statically_known_true")
_DECORATORS = ("disable", "assume_constant_result", "allow_in_graph", "disallow_in_graph", "forbid_in_graph")


def start_lightly() -> None:
    """Replace modules that transformers imports and this package never uses by placeholders.

    Nothing is changed if transformers or the compiler is loaded already.
    """
    if "transformers" in sys.modules or COMPILER in sys.modules:
        return
    distributed = import_module("torch.distributed")
    distributed.is_available = _never  # type: ignore[attr-defined]
    for name in (COMPILER, _SCOPES, SYMBOLS):
        sys.modules[name] = _StandIn(name)
    import_module("transformers.utils").is_scipy_available = _never  # type: ignore[attr-defined]
    _draw_nothing_on_meta(import_module("torch.nn.init"))


def _never() -> bool:
    """Say that something is not there: distributed tensors, or SciPy, which a loss on boxes in images loads."""
    return False


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
        if self.__name__ == SYMBOLS and name in _GUARDS:
            return partial(_guarded, name)
        if self.__name__ == SYMBOLS and name == "sym_eq":
            return _equal
        if self.__name__ == SYMBOLS and name == "is_nested_int":
            return _is_nested
        if self.__name__ == _SCOPES:
            return lambda *given, **options: getattr(_real(self.__name__), name)(*given, **options)
        return getattr(_real(self.__name__), name)


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    """Return the function that is decorated, or a decorator that returns it."""
    return function if callable(function) else _as_it_is


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _guarded(name: str, condition: Any, *given: Any, **options: Any) -> Any:
    """Return a plain truth as it is, as the guard of this name does; only those of symbols, which a compiler has, are
    looked into.
    """
    return condition if isinstance(condition, bool) else getattr(_real(SYMBOLS), name)(condition, *given, **options)


def _equal(one: Any, other: Any) -> Any:
    """Return whether two shapes are equal, where both are of plain numbers."""
    plain = all(type(x) is tuple and all(type(n) is int for n in x) for x in (one, other))
    return one == other if plain else _real(SYMBOLS).sym_eq(one, other)


def _is_nested(size: Any) -> Any:
    """Return whether a size is that of a nested tensor; a plain number is not."""
    return False if type(size) is int else _real(SYMBOLS).is_nested_int(size)


def _real(name: str) -> ModuleType:
    """Load what the stand-ins stand for, and return the module of that name."""
    for stand_in in (COMPILER, _SCOPES, SYMBOLS):
        if isinstance(sys.modules.get(stand_in), _StandIn):
            del sys.modules[stand_in]
    return import_module(name)
