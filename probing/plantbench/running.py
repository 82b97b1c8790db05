"""Scoring the protocol and the field's rules on a suite: each case is made once for all rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from probing.errors import BadParameter
from probing.plantbench.baselines import field_rules
from probing.plantbench.case import Case, Truth
from probing.plantbench.knobs import CI_SEEDS, DEVELOPMENT_SEEDS
from probing.plantbench.protocol import RULES
from probing.plantbench.scorecard import Scorecard
from probing.plantbench.scoring import Rule, answers
from probing.plantbench.suite import Suite, development, held_out_suite


def rules_of(names: Sequence[str], tiers: Sequence[int]) -> dict[str, Rule]:
    """Rules by name: `protocol`, its variants, and `field`, those of the literature, whose thresholds are fitted on two
    development seeds.

    Raises:
        BadParameter: another name.
    """
    found: dict[str, Rule] = {}
    for name in names:
        if name == "field":
            seeds = DEVELOPMENT_SEEDS[-2:]
            found |= field_rules(development(seeds=seeds, tiers=[tier for tier in tiers if tier == 0] or [0]))
        elif name in RULES:
            found[name] = RULES[name]
        else:
            raise BadParameter("no such rule", needed=f"{', '.join(RULES)} or field", found=repr(name))
    return found


def run(
    *, tiers: Sequence[int], heldout: str = "", seeds: int = len(CI_SEEDS),
    rules: Sequence[str] = ("protocol", "field"), more: Mapping[str, Rule] | None = None, progress: bool | None = None,
) -> Scorecard:  # fmt: skip
    """Score rules on a suite.

    Args:
        tiers: 0, 1, 2.
        heldout: version whose held-out configuration is run; "": development seeds.
        seeds: how many seeds (of the held-out configuration: draws of tier 0).
        rules: names, see `rules_of`.
        more: further rules, yours.
        progress: what is at work, on standard error; None: where that is a terminal.

    Raises:
        BadParameter: no such tier, rule or number of seeds.
    """
    if not 1 <= seeds <= len(DEVELOPMENT_SEEDS) or not tiers:
        raise BadParameter("no such suite", needed=f"1 to {len(DEVELOPMENT_SEEDS)} seeds, one tier or more",
                           found=f"{seeds} seeds, tiers {list(tiers)}")  # fmt: skip
    suite = (held_out_suite(heldout, tiers=tiers, draws=seeds) if heldout
             else development(seeds=DEVELOPMENT_SEEDS[:seeds], tiers=tiers))  # fmt: skip
    chosen = rules_of(rules, tiers) | dict(more or {})
    with _told(suite, progress) as cases:
        return Scorecard(answers(chosen, cases))


@contextmanager
def _told(suite: Suite, show: bool | None) -> Iterator[Iterator[tuple[Case, Truth]]]:
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as bar:
        task = bar.add_task("plantbench")

        def cases() -> Iterator[tuple[Case, Truth]]:
            for number, (case, truth) in enumerate(suite, start=1):
                bar.update(task, description=f"case {number}: tier {case.tier}, {case.name} ({case.twin or 'trained'})")
                yield case, truth

        yield cases()
