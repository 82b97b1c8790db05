r"""Recipes as text: turns `mlp:hidden=64,layers=2` into a member object and back.

Values are not stripped: `next_token:answers= is| are` names pieces that begin with a space. White space around a
recipe's name and around a parameter's key is ignored. A comma inside a value is written `\,`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import types
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter, ProbingError, UnknownName, unknown_name
from probing.labels import Kind
from probing.text.corpus import Corpus
from probing.text.example import composed

_PRESET = "preset"
# Published settings, `mlp:preset=hewitt-liang-default`: Hewitt & Liang 2019, "Designing and Interpreting Probes with
# Control Tasks", §4 (default settings; dropout), and those they find most selective for part of speech ("designed").
_TRAINING = {"learning_rate": 1e-3, "learning_rate_factor": 0.5, "weight_decay": 0.0, "max_epochs": 40, "patience": 4}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "hewitt-liang-default": {
        "linear": {"rank": 1000},
        "mlp": {"hidden": 1000, "dropout": 0.0} | _TRAINING,
    },
    "hewitt-liang-designed": {
        "linear": {"rank": 10},
        "mlp": {"hidden": 45, "dropout": 0.0} | _TRAINING,
    },
    "dropout-0.4": {
        "mlp": {"hidden": 1000, "dropout": 0.4} | _TRAINING,
    },
}
_USE = {"real": "ridge", "classes": "linear"}


def build(folder: str, spec: str, *, kind: Kind | None = None) -> Any:
    """Build the member that `spec` names, as `name` or `name:parameter=value,…` (for tasks `name:argument`), and return
    it.

    For a probe, `preset=NAME` sets published parameters; parameters given beside it override them.

    Args:
        folder: `tasks`, `probes`, `controls`, …
        spec: the recipe.
        kind: target kind that a probe must predict; for `real` the regression form of the probe is built.

    Raises:
        UnknownName: there is no such member; the message names the nearest.
        BadParameter: a parameter is unknown or missing, its value has the wrong form, or the probe cannot predict this
            kind.
    """
    name, text = _name_and_values(spec)
    member = _member(folder, name, kind)
    if folder != "behaviours":  # names of columns are kept composed, what a model answers is kept as it is
        text = composed(text)
    if folder == "tasks":
        return member(text)
    given = _parsed(member, name, text)
    if _PRESET in given and _takes_presets(member, name):
        given = preset(given.pop(_PRESET), name, _parameters(member)) | given
    missing = [key for key, one in _parameters(member).items() if one.default is one.empty and key not in given]
    if missing:
        raise BadParameter(
            f"{name} needs {', '.join(missing)}",
            needed=f"{name}:" + ",".join(f"{key}=…" for key in missing),
            found=spec,
            next_step="give every parameter that has no default",
        )
    return member(**given)


def build_task(spec: str, corpus: Corpus) -> Task:
    """Build the task that `spec` names and return it; `prepare` is not called yet.

    Raises:
        UnknownName: there is no such task; the message names the nearest, or `column:NAME` if the corpus has a column
            of that name.
    """
    name = normalised("tasks", spec)
    columns = corpus.column_names()
    nearest = difflib.get_close_matches(name, columns, n=1, cutoff=0.8)
    known, head = registry.names("tasks"), name.partition(":")[0]
    is_task = bool(difflib.get_close_matches(head, known, n=1, cutoff=0.7)) and name not in columns
    if head in known or is_task or not nearest:
        return build("tasks", name)  # type: ignore[no-any-return]
    raise UnknownName(
        f"unknown task {name!r}",
        needed=f"one of: {', '.join(known)}",
        found=repr(name),
        where=corpus.source,
        next_step=f"did you mean 'column:{nearest[0]}'? The corpus has the label columns {', '.join(sorted(columns))}",
    )


def normalised(folder: str, spec: str) -> str:
    """Return the recipe in canonical form: the given parameters, in the order of the member's signature, with parsed
    values.
    """
    name, text = _name_and_values(spec)
    if folder == "tasks":
        return composed(f"{name}:{text}" if ":" in spec else name)
    member = _member(folder, name, None)
    return _joined(name, [(key, value) for key, value in _in_order(member, _parsed(member, name, text))])


def spec_of(obj: Any, *, without: str = "", called: str = "") -> str:
    """Return the recipe of an object: its registered name (or its class) and every parameter that differs from its
    default.

    Args:
        obj: a member.
        without: a parameter to leave out.
        called: a name to use in place of the registered one; "": the registered one.
    """
    name = called or registry.member_name(type(obj))
    if isinstance(obj, Task):
        return f"{name}:{obj.argument}" if obj.argument else name
    given = [(key, value) for key, value, default in _values(obj) if repr(value) != repr(default) and key != without]
    return _joined(name, given)


def text_of(folder: str, obj: Any) -> str | None:
    """Return the recipe of an object if `build` makes an equal object from it; None if its class is not that of the
    folder's member, or a parameter (a function, say) cannot be written as text.
    """
    spec = spec_of(obj)
    try:
        again = build(folder, spec)
    except ProbingError:
        return None
    return spec if full_recipe(again) == full_recipe(obj) else None


def parts_of(text: str, mark: str) -> list[str]:
    """Split a text at a mark and return the parts. A mark after a backslash does not split, and two backslashes stand
    for one.
    """
    parts = [""]
    for piece in re.findall(rf"\\\\|\\{re.escape(mark)}|.", text, re.DOTALL):
        if piece == mark:
            parts.append("")
        else:
            parts[-1] += piece[1:] if len(piece) == 2 else piece
    return parts


def escaped(part: str, mark: str) -> str:
    """Return the text of a part with backslashes where they are needed, so that `parts_of` returns the part
    unchanged.
    """
    return re.sub(rf"\\(?=\\|{re.escape(mark)}|$)|{re.escape(mark)}", lambda found: "\\" + found[0], part)


def full_recipe(obj: Any) -> dict[str, str]:
    """Return the registered name (or the class) and every parameter as text, which identifies a recipe even if defaults
    change or the member's file moves.
    """
    parameters = {"argument": obj.argument} if isinstance(obj, Task) else {k: v for k, v, _ in _values(obj)}
    return {"class": registry.identity_of(type(obj))} | {key: _shown(value) for key, value in parameters.items()}


def _name_and_values(spec: str) -> tuple[str, str]:
    name, _, text = spec.partition(":")
    return name.strip(), text


def _member(folder: str, name: str, kind: Kind | None) -> Any:
    module = registry.get(folder, name)
    if folder != "probes" or kind is None:
        return module.MEMBER
    candidates = [module.MEMBER, getattr(module, "REGRESSION_MEMBER", None)]
    for member in candidates:
        if member is not None and kind in member.kinds:
            return member
    found = "classes" if kind == "real" else "real numbers"
    raise BadParameter(
        f"probe {name} predicts {found}; use {_USE[kind]}",
        needed=f"a probe for a target of kind {kind!r}",
        found=name,
        next_step=f"use {_USE[kind]}",
    )


@lru_cache(maxsize=1024)
def _parameters(member: Any) -> Mapping[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(member).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def _values(obj: Any) -> list[tuple[str, Any, Any]]:
    kind: Any = type(obj)
    return [(name, getattr(obj, name), parameter.default) for name, parameter in _parameters(kind).items()]


def _takes_presets(member: Any, name: str) -> bool:
    contract = sys.modules.get("probing.contracts.probe")  # a probe has loaded it; others do without scikit-learn
    is_probe = contract is not None and isinstance(member, type) and issubclass(member, contract.Probe)
    return is_probe and has_preset(name)


def _in_order(member: Any, given: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, given[name]) for name in dict.fromkeys([_PRESET, *_parameters(member)]) if name in given]


def _joined(name: str, given: list[tuple[str, Any]]) -> str:
    values = [(key, escaped(value, ",") if isinstance(value, str) else _shown(value)) for key, value in given]
    return name + (":" + ",".join(f"{key}={value}" for key, value in values) if values else "")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    # An address in a repr would make equal recipes differ from run to run.
    return re.sub(r" at 0x[0-9a-f]+", "", re.sub(r"\s+", " ", repr(value)))


def _parsed(member: Any, name: str, text: str) -> dict[str, Any]:
    """Return the typed values of `key=value,…`.

    Raises:
        BadParameter: not of that form, unknown, twice, or of the wrong type.
    """
    known = [*_parameters(member), *([_PRESET] if _takes_presets(member, name) else [])]
    hints = get_type_hints(member.__init__)
    values: dict[str, Any] = {}
    for part in parts_of(text, ","):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals and not key:
            continue
        if not equals:
            comma = _comma_said(*list(values.items())[-1], part) if values else ""
            raise BadParameter(
                f"{part!r} is not a parameter",
                needed="name=value",
                found=repr(part),
                where=f"{name}:{text}",
                next_step=f"parameters of {name}: {', '.join(known) or '(none)'}{comma}",
            )
        if key not in known:
            raise unknown_name(f"parameter of {name}", key, known, where=f"{name}:{text}", error=BadParameter)
        if key in values:
            raise BadParameter(f"parameter {key} of {name} is given twice", where=f"{name}:{text}")
        values[key] = _typed(value, hints.get(key, str), f"{name}:{key}")
    return values


def _comma_said(key: str, value: Any, part: str) -> str:
    """Return what may be meant by a part without a name, after the value of a parameter: another value, or a comma."""
    if isinstance(value, str) and value.isdecimal() and part.strip().isdecimal():
        return f"; several values are joined by |: {key}={value}|{part.strip()}"
    return " (several values are joined by |; a comma inside a value is written \\,)"


def _typed(text: str, hint: Any, where: str) -> Any:
    union = get_origin(hint) in (Union, types.UnionType)
    choices = get_args(hint) if union else (hint,)
    given = text if str in choices else text.strip()  # of numbers and truth values white space is no part
    for reader in (r for kind in _ORDER for choice in choices if choice is kind for r in (_READERS[kind],)):
        try:
            return reader(given)
        except ValueError:
            continue
    needed = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise BadParameter(f"{where} cannot be {text!r}", needed=needed, found=repr(text), where=where)


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


_READERS: dict[Any, Callable[[str], Any]] = {type(None): _none, bool: _bool, int: int, float: float, str: str}
_ORDER = tuple(_READERS)


def has_preset(probe: str) -> bool:
    """Return whether there are presets for the probe of this registered name."""
    return any(probe in probes for probes in PRESETS.values())


def preset(name: str, probe: str, parameters: Collection[str]) -> dict[str, Any]:
    """Return the parameters that a preset sets for a probe.

    Args:
        name: name of the preset.
        probe: registered name of the probe.
        parameters: names of the probe's parameters.

    Raises:
        UnknownName: this probe has no such preset; the message names the nearest.
        BadParameter: the probe lacks parameters that the preset sets.
    """
    known = [one for one, probes in PRESETS.items() if probe in probes]
    if name not in known:
        raise unknown_name(f"preset of {probe}", name, known, where=f"{probe}:preset")
    given = dict(PRESETS[name][probe])
    missing = sorted(set(given) - set(parameters))
    if missing:
        raise BadParameter(
            f"{probe} cannot take the preset {name}",
            needed=f"its parameters {', '.join(given)}",
            found=f"no parameter {', '.join(missing)}",
            where=f"{probe}:preset",
        )
    return given
