"""Scoring the protocol and the field's rules on a suite: each case is made once for all rules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from probing.errors import BadParameter
from probing.plantbench.baselines import FIELD_RULES, field_rules
from probing.plantbench.case import Case, Truth
from probing.plantbench.knobs import CI_SEEDS, DEVELOPMENT_SEEDS, HELD_OUT_DRAWS
from probing.plantbench.power import SWEEPS, Curve, power_curve
from probing.plantbench.protocol import RULES
from probing.plantbench.scorecard import Scorecard
from probing.plantbench.scoring import Rule, answers
from probing.plantbench.suite import Suite, development, held_out_suite
from probing.system.screen import console


def rules_of(names: Sequence[str], tiers: Sequence[int]) -> dict[str, Rule]:
    """Return rules by name: `protocol`, its variants, and `field`, the rules of the literature, whose thresholds are
    fitted on two development seeds.

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
    *,
    tiers: Sequence[int],
    heldout: str = "",
    seeds: int | None = None,
    rules: Sequence[str] = ("protocol", "field"),
    more: Mapping[str, Rule] | None = None,
    power: Sequence[str] = (),
    progress: bool | None = None,
) -> Scorecard:
    """Score rules on a suite.

    The field's rules are asked about tier 0 alone where it is among the tiers: each of their erasures stands beside 60
    random ones, which in transformers takes some ten times as long as the protocol.

    Args:
        tiers: 0, 1, 2.
        heldout: version whose held-out configuration is run; "": development seeds.
        seeds: how many seeds (of the held-out configuration: draws of tier 0); None: 3 of development, 10 held out.
        rules: names, see `rules_of`.
        more: further rules, yours.
        power: knobs of tier 0, see `power.SWEEPS`: rates are also scored at several values of each.
        progress: what is at work, on standard error; None: where that is a terminal.

    Raises:
        BadParameter: no such tier, rule, number of seeds or knob.
    """
    unknown = [knob for knob in power if knob not in SWEEPS]
    if unknown:
        raise BadParameter("no such knob", needed=", ".join(SWEEPS), found=", ".join(unknown))
    if seeds is None:
        seeds = HELD_OUT_DRAWS if heldout else len(CI_SEEDS)
    if not 1 <= seeds <= len(DEVELOPMENT_SEEDS) or not tiers:
        raise BadParameter(
            "no such suite",
            needed=f"1 to {len(DEVELOPMENT_SEEDS)} seeds, one tier or more",
            found=f"{seeds} seeds, tiers {list(tiers)}",
        )
    suite = (
        held_out_suite(heldout, tiers=tiers, draws=seeds)
        if heldout
        else development(seeds=DEVELOPMENT_SEEDS[:seeds], tiers=tiers)
    )
    chosen = rules_of(rules, tiers) | dict(more or {})
    with _told(progress) as tell:
        scored = answers(chosen, _telling(suite, tell), tiers=_asked(chosen, rules, tiers))
        return Scorecard(scored, {knob: _power(knob, chosen, seeds, tell) for knob in power})


def _asked(chosen: Mapping[str, Rule], rules: Sequence[str], tiers: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the tiers of those rules that are not asked about all tiers."""
    if "field" not in rules or 0 not in tiers:
        return {}
    return {name: (0,) for name in chosen if name in FIELD_RULES}


def _telling(suite: Suite, tell: Callable[[str], None]) -> Iterator[tuple[Case, Truth]]:
    for number, (case, truth) in enumerate(suite, start=1):
        tell(f"case {number}: tier {case.tier}, {case.name} ({case.twin or 'trained'})")
        yield case, truth


def _power(knob: str, rules: Mapping[str, Rule], seeds: int, tell: Callable[[str], None]) -> Curve:
    tell(f"power against {knob}")
    return power_curve(rules, knob, seeds=DEVELOPMENT_SEEDS[:seeds])


@contextmanager
def _told(show: bool | None) -> Iterator[Callable[[str], None]]:
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console(err=True), disable=not is_shown) as bar:
        task = bar.add_task("plantbench")

        def tell(what: str) -> None:
            bar.update(task, description=what)

        yield tell
