"""Makes the parts of the page on use: a table of effects, and folded verdicts and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probing.reporting.blocks import Block, Cell, Figure, Fold, Number, Section, Table, Words, number, panels_figure
from probing.reporting.latent_words import OPTIMISTIC, edit_title, edits_of_latents, use_of_latents
from probing.reporting.panels import Panel
from probing.reporting.use_panels import Use, use_panels
from probing.reporting.use_words import (
    SHORT,
    adjusted_p,
    answers_sentence,
    doubts_of,
    effect,
    mediated,
    rows_sentence,
    use_bibtex,
    use_paragraph,
    verdict_sentences,
)
from probing.reporting.wording import Interval, decimal, p_value
from probing.results.use import UseCell


def use_section(use: Use, anchor: str, claims: Sequence[str]) -> Section:
    """Return the section of a property that has results of edits but no results of probes."""
    methods = [Words("p", [use_paragraph(use.result)]), Words("pre", [use_bibtex(use.result)])]
    return Section(
        anchor,
        f"{use.result.task}: use{f' ({use.apart})' if use.apart else ''}",
        models=[use.model.label],
        about=f"By {use.model.label}" if use.result.model else "",
        claims=claims,
        notes=use_notes(use),
        blocks=[use_figure(use_panels(use), use), use_table(use)],
        folds=[*use_folds(use, False), Fold("Methods and papers", methods)],
    )


def use_notes(use: Use) -> list[str]:
    """Return a sentence for each doubt about the behaviour."""
    return [f"Doubtful: {doubt}" for doubt in doubts_of(use.result)]


def use_figure(panels: Sequence[Panel], use: Use) -> Figure:
    """Return panels of edits as a figure with caption and description."""
    said = (
        f"What edits do; bars are 95 % intervals. Shaded: effects of no interest, within ±{use.result.epsilon:g} SD. "
        "The shape of a mark is the verdict; dashed lines are exchanges of whole states."
    )
    return panels_figure(panels, said)


def use_table(use: Use) -> Table:
    """Return a table of the effect of the swap at every place, with its verdict."""
    head = ["place", "use", "probes", "swap, SD", "mediated", "adjusted p", "flags"]
    rows: list[list[Cell]] = [
        [
            cell.place,
            SHORT[verdict.word],
            decimal(verdict.decodability.accuracy if verdict.decodability else None),
            number(effect(cell.subspace), 2),
            number(mediated(cell.subspace), 2),
            p_value(adjusted_p(cell.subspace)),
            ", ".join(verdict.flags) or "–",
        ]
        for cell, verdict in zip(use.result.cells, use.verdicts, strict=True)
    ]
    behaviour = f" in {use.result.behaviour}" if use.result.behaviour else ""
    said = f"What edits did{behaviour}: swap of the property, SDs of the clean output, share of its natural difference"
    is_over = any((cell.subspace.mediated_fraction or 0.0) > 1 for cell in use.result.cells)
    said += "; above 1: the swap moves the output further than the values naturally differ." if is_over else "."
    return Table(said, head, rows, (0, 1, 6), source="verdicts.parquet")


def use_folds(use: Use, several: bool) -> list[Fold]:
    """Return the folded parts on edits: the verdicts in full, and all numbers with doses."""
    of = f" ({'; '.join(filter(None, (use.result.behaviour, use.apart)))})" if several or use.apart else ""
    doses = [panel for panel in use_panels(use) if panel.x_label]
    figures = [use_figure(doses, use)] if doses else []
    about = [sentence for sentence in (rows_sentence(use.result), answers_sentence(use.result)) if sentence]
    return [
        Fold(
            f"Each verdict, and what would overturn it{of}",
            [Words("p", about), Words("ul", [verdict_sentences(v) for v in use.verdicts])],
        ),
        Fold(f"Every number of the edits{of}", [*figures, _whole_table(use), _states_table(use), *_comparisons(use)]),
    ]


def _whole_table(use: Use) -> Table:
    head = ["place", "whole state, SD", "adjusted p", "equivalence p", "smallest detectable effect, SD"]
    rows: list[list[Cell]] = [
        [
            cell.place,
            number(effect(cell.whole), 2),
            p_value(adjusted_p(cell.whole)),
            p_value(max(cell.subspace.equivalence_p, cell.whole.equivalence_p)),
            decimal(cell.subspace.smallest_detectable_effect, 2),
        ]
        for cell in use.result.cells
    ]
    said = "Exchange of whole states; p adjusted over edits, statistics and places."
    return Table(said, head, rows, source="verdicts.parquet")


_STATES = {
    "dose": "dose",
    "completeness": "complete",
    "selectivity": "selective",
    "reliability": "reliable",
    "displacement": "displaced",
    "off_distribution": "off-distribution",
    "frozen_share": "frozen-norm share",
    "shared_ratio": "one shift / all",
    "joint_over_largest": "joint / single",
    "kl": "KL, nats",
    "flips": "flips",
    "p_permutation": "permutation p",
}


def _states_table(use: Use) -> Table:
    """Return what the swap does to states and what carries its effect; empty columns are left out."""
    cells = use.result.cells
    kept = [name for name in _STATES if any(getattr(cell, name) is not None for cell in cells)]
    doses = sorted({dose for cell in cells for dose, _ in cell.dose_curve})
    rows: list[list[Cell]] = []
    for cell in cells:
        by_dose = dict(cell.dose_curve)
        numbers = [*(getattr(cell, name) for name in kept), *(by_dose.get(dose) for dose in doses)]
        rows.append([cell.place, *(decimal(value, 2) for value in numbers)])
    said = (
        "The swap: complete, selective and reliable by probes on states; displacement over the median distance of two "
        "rows; share of swapped states outside 99 % of the clean ones; share of the effect that later norms carry; "
        "effect, in SD, by dose."
    )
    head = ["place", *(_STATES[name] for name in kept), *(f"SD at {dose:g}" for dose in doses)]
    return Table(said, head, rows, source="verdicts.parquet")


_OF_ALL = ("draws", "rank", "change", "change_high", "displacement", "accuracy", "above_random")
_HEADS = {"above_random": "above random subspaces"}
_OF_SWAPS = ("along", "along_high", "effect_size", "mediated_fraction", "share_of_swap")


def _comparisons(use: Use) -> list[Block]:
    """Return other interventions, for comparison with the literature; they are never part of a verdict."""
    cells: list[UseCell] = [cell for cell in use.result.cells if cell.comparisons]
    if not cells:
        return []
    said = (
        "Other interventions at the same places; they never enter a verdict. Change: of the output, in its SDs; "
        "accuracy: of a probe fitted after the edit; above random subspaces: share of random subspaces of the "
        "property's rank that change it less, in any direction (not scaled to move states as far as the edit)."
    )
    blocks: list[Block] = [_compared(cells, said, _OF_ALL)]
    if any(name in found for cell in cells for found in cell.comparisons.values() for name in _OF_SWAPS[2:]):
        said = (
            "Interventions that give states another value of the property. Along: change of the output along the "
            "natural contrast, in its SDs (of random edits the median size, and the 95th percentile); mediated "
            "fraction: share of the natural difference; share of swap: share of the class-mean swap's effect. Above 1: "
            "the edit moves the output further than that."
        )
        edits = [use_of_latents(cell.place, name, cell) for cell in cells for name in edits_of_latents(cell)]
        blocks += [_compared(cells, said, _OF_SWAPS), Words("p", [*edits, *([OPTIMISTIC] if edits else [])])]
    return blocks


def _compared(cells: Sequence[UseCell], said: str, wanted: Sequence[str]) -> Table:
    """Return a table of those numbers of interventions that are wanted; a share with the ends of its interval."""
    every = [(cell, name, found) for cell in cells for name, found in cell.comparisons.items()]
    names = [name for name in wanted if any(name in found for _, _, found in every)]
    rows: list[list[Cell]] = [
        [cell.place, edit_title(name), *(_with_ends(found, key) for key in names)]
        for cell, name, found in every
        if any(key in found for key in names)
    ]
    head = ["place", "intervention", *(_HEADS.get(key, key.replace("_", " ")) for key in names)]
    return Table(said, head, rows, (0, 1))


def _with_ends(found: Mapping[str, float], name: str) -> Number:
    if name not in found:
        return Number("–")
    return number(Interval(found[name], found.get(f"{name}_low"), found.get(f"{name}_high")), 2)
