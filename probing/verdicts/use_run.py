"""UseRun: results and verdicts of one run, in files and tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import InputError
from probing.files.whole_files import write_atomically
from probing.results.use import UseResult, answers_said, write_use_results
from probing.verdicts.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class UseRun:
    """Holds the results of edits and the verdicts on them; iterating over it gives the verdicts.

    Attributes:
        results: one result per property and behaviour.
        verdicts: one verdict per property and place, in the order of the results' cells.
    """

    results: tuple[UseResult, ...]
    verdicts: tuple[Verdict, ...]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def verdict(self, task: str, place: str, *, model: str | None = None, behaviour: str | None = None) -> Verdict:
        """Return the verdict of a property at a place such as `resid.3@query`; if there are several models or
        behaviours, name one.

        Raises:
            InputError: there is no such verdict, or there are several.
        """
        found = [
            one
            for one in self.verdicts
            if (one.task, one.place) == (task, place)
            and model in (None, one.model)
            and behaviour in (None, one.behaviour)
        ]
        if not found:
            raise InputError("no such verdict", needed="a task and place of this run", found=f"{task} at {place}")
        if len(found) > 1:
            raise InputError(
                "several verdicts of that name",
                needed="one model and behaviour",
                found="; ".join(f"{one.model}, {one.behaviour}" for one in found),
                where=f"{task} at {place}",
                next_step="say which: verdict(task, place, model=…, behaviour=…)",
            )
        return found[0]

    def of_units(self, units: Collection[str]) -> UseRun:
        """Return the results with these units (hashes), and their verdicts."""
        return UseRun(
            tuple(one for one in self.results if one.unit in units),
            tuple(one for one in self.verdicts if one.unit in units),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat record (a dict) for each verdict."""
        answers = {(one.task, one.behaviour, one.model): answers_said(one.answers) for one in self.results}
        return [
            _row(v) | {"answers": answers.get((v.task, v.behaviour, v.model), ""), "unit": v.unit}
            for v in self.verdicts
        ]

    def table(self) -> pd.DataFrame:
        """Return the records as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def plot(self) -> Any:
        """Return an Altair chart of what probes read beside what edits did, over sites.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        return import_module("probing.reporting.plots").plot_use(self)

    def _repr_html_(self) -> str:
        shown: str = import_module("probing.reporting.cards").card(self)
        return shown


_EFFECT = (
    *("effect_size", "effect_size_low", "effect_size_high"),
    *("mediated_fraction", "mediated_fraction_low", "mediated_fraction_high"),
    *("p_adjusted", "smallest_detectable_effect", "equivalence_p"),
    *("whole_effect_size", "whole_effect_p_adjusted"),
)


def _row(v: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": v.task,
        "behaviour": v.behaviour,
        "model": v.model,
        "site": v.site,
        "position": v.position,
        "verdict": v.text,
        "coarse": v.word.coarse,
        "flags": ", ".join(v.flags),
        "accuracy": v.decodability.accuracy if v.decodability else None,
        "n_rows": v.n_rows,
        "coverage": v.coverage,
    }
    if v.evidence is not None:
        for name, edit in (("swap", v.evidence.subspace), ("interchange", v.evidence.whole)):
            found |= {f"{name}_{key}": getattr(edit, key) for key in _EFFECT}
        found |= {
            key: getattr(v.evidence, key)
            for key in (
                "dose",
                "completeness",
                "selectivity",
                "reliability",
                "displacement",
                "off_distribution",
                "frozen_share",
                "shared_ratio",
                "kl",
                "flips",
            )
        }
        found |= {f"swap_effect_size_at_{dose:g}": effect for dose, effect in v.evidence.dose_curve}
    return found | {"reason": v.reason, "overturned_by": v.overturned_by}


def write_use_run(run: UseRun, folder: Path) -> None:
    """Write use.jsonl and verdicts.parquet, each whole or not at all. Verdicts are written into the table only, since
    they are judged anew from the results whenever a folder is read (`read_use_run`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_use_results(run.results, folder / "use.jsonl")
    (folder / "verdicts.jsonl").unlink(missing_ok=True)  # of earlier versions: it would contradict the table
    buffer = BytesIO()
    run.table().to_parquet(buffer, index=False)
    write_atomically(folder / "verdicts.parquet", buffer.getvalue())
