"""Commands that refuse an option given twice if it takes one value only, instead of using the last one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand


class OnceOnly(TyperCommand):
    """A command that takes each option once, except those that may be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and refuse an option that is given twice; otherwise the last value would
        silently win.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param, times in Counter(order).items():
            if times > 1 and param.param_type_name == "option" and not getattr(param, "multiple", False):
                ctx.fail(f"{param.opts[0]} is given {times} times and takes one value: give it once.")
        return super().parse_args(ctx, args)
