"""Power: rates of rules on tier 0 as one knob moves: rows, gain, correlation, effect, classes, width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from probing.errors import unknown_name
from probing.plantbench.knobs import Knobs
from probing.plantbench.scoring import Rates, Rule, answers, rates
from probing.plantbench.suite import vectors


@dataclass(frozen=True)
class Sweep:
    """A range of values of one knob of tier 0.

    Attributes:
        meaning: in a few words.
        values: of the knob.
        numbers: cases.
        knobs: of a value.
    """

    meaning: str
    values: tuple[float, ...]
    numbers: tuple[int, ...]
    knobs: Callable[[float], Knobs]


Curve = Mapping[float, Mapping[str, Rates]]
SWEEPS: Mapping[str, Sweep] = MappingProxyType(
    {
        "n": Sweep("rows", (250, 500, 1000, 2000, 4000, 8000), (1, 5, 8), lambda v: Knobs(n=int(v))),
        "gain": Sweep("of B, as a share of A's and C's", (0.02, 0.05, 0.1, 0.2, 0.5), (8,), lambda v: Knobs(weak=v)),
        "rho": Sweep("correlation with A", (0.0, 0.5, 0.8, 0.9, 0.95), (5,), lambda v: Knobs(rhos=(v,))),
        "effect": Sweep(
            "of B, in units of ε", (1.25, 1.6, 2.0, 3.0), (35,), lambda v: Knobs(multiples=(*Knobs().multiples[:3], v))
        ),
        "classes": Sweep(
            "of B, even and Zipf", (3, 4, 6, 10, 17), (23, 24), lambda v: Knobs(many=(int(v), *Knobs().many[1:]))
        ),
        "width": Sweep("width of the states", (48, 64, 128, 256, 512), (1, 5, 8), lambda v: Knobs(width=int(v))),
    }
)


def power_curve(rules: Mapping[str, Rule], knob: str, *, seeds: Sequence[int]) -> Curve:
    """Return the rates of every rule at every value of a knob; all other knobs are those of development.

    Args:
        rules: by name.
        knob: one of `SWEEPS`.
        seeds: of the cases.

    Raises:
        UnknownName: no such knob.
    """
    if knob not in SWEEPS:
        raise unknown_name("knob", knob, SWEEPS)
    sweep, found = SWEEPS[knob], dict[float, Mapping[str, Rates]]()
    for value in sweep.values:
        suite = vectors(sweep.knobs(value), seeds=seeds, numbers=sweep.numbers)
        found[value] = {name: rates(scored) for name, scored in answers(rules, suite).items()}
    return found


def power_table(knob: str, curve: Curve) -> str:
    """Return a table with a line a value: by rule, the share of used cells that it finds and of unused ones that it
    calls used.
    """
    names = list(next(iter(curve.values())))
    width = max(13, *(len(name) for name in names))
    sweep = SWEEPS[knob]
    title = f"power against {knob} ({sweep.meaning}), tier 0, cases {', '.join(map(str, sweep.numbers))}"
    lines = [f"{title}: used cells found / unused ones called used"]
    lines.append(f"{knob:>8}  {'used, unused':>12}  " + "  ".join(f"{name:>{width}}" for name in names))
    for value, row in curve.items():
        cells = next(iter(row.values()))
        shares = [f"{_share(one.recall_used)} / {_share(one.fpr)}" for one in row.values()]
        counts = f"{cells.used}, {cells.unused}"
        lines.append(f"{value:>8g}  {counts:>12}  " + "  ".join(f"{share:>{width}}" for share in shares))
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
