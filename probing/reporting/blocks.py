"""Blocks of the page: tables, figures, paragraphs, folded parts, and sections of such blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from probing.reporting.charts import Chart, described, panel_chart
from probing.reporting.grids import HeatMap, map_chart
from probing.reporting.panels import Panel
from probing.reporting.wording import Estimate, decimal, interval

Kind = Literal["", "yes", "half", "no"]


@dataclass(frozen=True)
class Number:
    """Holds a number of a table as text, with its interval in small type."""

    text: str
    small: str = ""


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """Holds a table of the page.

    Attributes:
        caption: text above the table.
        head: headings of the columns.
        rows: cells of each row.
        texts: indices of the columns that hold words.
        marked: index of the highlighted row; None: no row.
        source: name of the file that holds the same numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Sequence[int] = (0,)
    marked: int | None = None
    source: str = "results.parquet"


@dataclass(frozen=True)
class Figure:
    """Holds charts side by side, with a caption and a description in words for readers who cannot see them."""

    charts: Sequence[Chart]
    caption: str
    description: str


@dataclass(frozen=True)
class Words:
    """Holds text of the page; `kind` is `p` (a paragraph per line), `ul` (a list item per line) or `pre` (preformatted
    text).
    """

    kind: Literal["p", "ul", "pre"]
    lines: Sequence[str]


Block = Table | Figure | Words


@dataclass(frozen=True)
class Fold:
    """Holds a folded part of the page: its title, and the blocks that are shown when it is opened."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """Holds a section of the page.

    Attributes:
        anchor, title: anchor and text of the heading.
        models: models whose results it shows; the page hides the section when all of them are filtered out.
        about: short line on the states that were read.
        claims: sentences on the results, the most important first.
        kind: colour of the claims: `yes`, `half`, `no`, or "" for none.
        notes: warnings, which are never folded.
        blocks: figures and tables that are visible.
        folds: folded parts.
    """

    anchor: str
    title: str
    models: Sequence[str] = ()
    about: str = ""
    claims: Sequence[str] = ()
    kind: Kind = ""
    notes: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    folds: Sequence[Fold] = field(default_factory=tuple)


def number(found: Estimate | None, places: int = 3) -> Number:
    """Return a value and its interval as a table cell; a dash for None."""
    return Number("–") if found is None else Number(decimal(found.value, places), interval(found, places))


def panels_figure(panels: Sequence[Panel], caption: str = "") -> Figure:
    """Return panels as a figure, described by the ends of their curves."""
    return Figure([panel_chart(panel) for panel in panels], caption, described(panels))


def maps_figure(maps: Sequence[HeatMap], caption: str = "") -> Figure:
    """Return heat maps as a figure, described by their largest values."""
    return Figure([map_chart(one) for one in maps], caption, ". ".join(one.description for one in maps))


def map_table(found: HeatMap) -> Table:
    """Return the numbers of a heat map as a table."""
    rows = [
        [name, *(decimal(value, 2) if math.isfinite(value) else "–" for value in values)]
        for name, values in zip(found.rows, found.values.tolist(), strict=True)
    ]
    of = f" {found.y_label.capitalize()} by {found.x_label}." if found.x_label and found.y_label else ""
    return Table(f"{found.title}: {found.label}.{of}", [found.y_label, *found.columns], rows, source="the data")


READING = (
    (
        "Site",
        "where in the model the state was read. resid.l enters block l; the last one leaves the last block, "
        "before any final norm; embed is the embedding of the piece alone.",
    ),
    (
        "Baselines",
        "prior knows only how frequent the labels are; word_type gives each word the label it most often has "
        "in train; of whole texts, text_length knows how long they are, bag_of_words and tfidf which words they have. "
        "None reads a hidden state, so a claim about states has to beat the best of them.",
    ),
    (
        "Control task",
        "the same rows, classes and splits, with labels that mean nothing: each key (a word type, or the "
        "field named) drew its label by lot. A probe can be good at it only by memorising keys. Its ceiling is what a "
        "probe that memorised every key of train would reach there on average: below 1, because the labels of keys "
        "that do not occur in train have to be guessed. It is about the control alone, not about the task or its "
        "baselines.",
    ),
    (
        "Selectivity",
        "the score on the task less the score on the control task, for the same probe, site, split and "
        "budget. A large one says that the probe's success is not memory for keys.",
    ),
    ("Chance check", "labels permuted over rows. It should land at the majority rate; it is never called selectivity."),
    (
        "Other states",
        "the same labels, read from states that lack something: random_states (which word it is, and "
        "nothing else), untrained_model (the architecture without its training), static (a lower site, without the "
        "context that blocks mix in). What a site scores above them is what it adds; it is never called selectivity, "
        "since no label became meaningless.",
    ),
    (
        "Gain",
        "the score less that of the best baseline, on the same rows, paired. The p value is one-sided, against "
        "the margin, and adjusted over the sites, probes, baselines and tasks of one store: by Holm (the chance of any "
        "false claim), or by Benjamini and Hochberg (the share of false claims), as the column says. Intervals of "
        "selectivity are not adjusted.",
    ),
    (
        "Intervals",
        "95 %, from resampling whole sentences (or documents), with the seeds of the probe and the draws of "
        "the control.",
    ),
    (
        "Decodable",
        "a probe reads the label from the state better than the best baseline, which reads no state: the gain on test "
        "clears the margin (0.02 of accuracy) with a one-sided adjusted p of at most 0.025. Selectively decodable: the "
        "interval of selectivity also lies above 0, for every control. Not beyond bag_of_words (or another baseline): "
        "probes may read the label well, but the words predict it as well; this does not say that the states lack it.",
    ),
)

LIMITS = (
    "Decodability is a property of a state together with a family of readers. It does not show that the model itself "
    "reads the label from there, or needs it, for anything it does; that takes interventions on the states.",
    "A higher score at one site than at another does not show that the label is computed there: it can have become "
    "easier to read, or been carried along.",
    "What these probes do not read beyond the baselines, others may: absence of evidence here has a size, which the "
    "interval gives.",
    "A control task rules out only what it is keyed on. Other regularities that come with the label (position, length, "
    "neighbouring words) can still be what the probe reads.",
    "The figures hold for this corpus and its annotation. The best site is chosen among those probed, on dev.",
)

USE_READING = (
    (
        "Probes recover it",
        "what edits need before there is anything to edit: on held-out rows a probe does better than knowing the label "
        "frequencies. It is less than decodable, which asks for more than every baseline has: a property that one word "
        "gives away can be recovered and used without being decodable in that sense. Where no probe recovers it, no "
        "use is claimed.",
    ),
    (
        "Used",
        "replacing the part of the state that stands for the property, by that of rows that have another value "
        "and are otherwise alike, changes what the model does by at least the smallest effect of interest. It is said "
        "of one site, one behaviour and these data, and of nothing else.",
    ),
    (
        "Swap and whole state",
        "the swap moves each state by the difference of class means of its stratum (rows with "
        "the same values of the other properties); whole states are exchanged between two such rows. Used: the "
        "swap has the effect. Used (as a whole state): only the exchange has, so that the model uses something there "
        "that goes with the property, and which part of the state carries it is not known.",
    ),
    (
        "Effect and mediated fraction",
        "the effect is the shift of the output along its natural difference, in SDs of "
        "the clean output; the mediated fraction is the share of that difference which the edit brings about, told "
        "only where the difference itself is established.",
    ),
    (
        "No material use found",
        "the 90 % intervals of both edits lie within the shaded band of equivalence. Other sites "
        "may carry the property, and effects may cancel within a stratum.",
    ),
    (
        "Frozen norms",
        "the share of the effect that goes away when the scales of later norms are held at their clean "
        "values: what is left does not come from a change of length alone.",
    ),
)
