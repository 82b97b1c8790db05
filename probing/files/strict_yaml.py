"""Reads YAML from untrusted sources: plain values only; refuses aliases, repeated keys and excessive nesting."""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH = 32
MAX_DIGITS = 1000


def strict_yaml(text: str) -> Any:
    """Parse a YAML text strictly and return its value.

    Raises:
        ValueError: the text is not YAML, has an alias, a repeated key, a tag of another type than plain values or an
            overlong integer, or is nested too deeply.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)[:500]) from None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        # What the library's own constructors raise for dates, numbers and tags that are none.
        raise ValueError(f"a value that cannot be read: {error}"[:500]) from None


class _StrictLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses aliases, duplicate keys, deep nesting and overlong integers."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed, line {line}")
        if self._depth >= MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep, line {line}")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_yaml_int(self, node: Any) -> int:
        """Return an integer, and refuse one of more digits than Python writes, in any base, for no message could show
        it.
        """
        if len(str(node.value)) > MAX_DIGITS:
            raise ValueError(f"an integer of {len(str(node.value)):,} digits, line {node.start_mark.line + 1}")
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key that is no plain value, line {key.start_mark.line + 1}")
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} occurs twice, line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
