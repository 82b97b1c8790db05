"""Commands that refuse an option given twice if it takes a single value, instead of using the last value."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand


class OnceOnly(TyperCommand):
    """A command whose options may each be given once, except options that may be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments and return those left over; an option given twice ends the command with an error, instead
        of silently using the last value.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param, times in Counter(order).items():
            if times > 1 and param.param_type_name == "option" and not getattr(param, "multiple", False):
                ctx.fail(f"{param.opts[0]} is given {times} times and takes one value: give it once.")
        return super().parse_args(ctx, args)
