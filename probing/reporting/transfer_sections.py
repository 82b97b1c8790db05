"""Shows transfer between sources: a matrix of training by test source with intervals, on the page and in the
terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from probing.reporting.blocks import Cell, Fold, Section, Table, Words, maps_figure, number
from probing.reporting.grids import transfer_maps
from probing.reporting.task_results import site_order
from probing.reporting.terminal import WIDE, print_lines, print_table
from probing.reporting.wording import Estimate, folded, measure_title, plural, with_interval
from probing.results.models import ModelFacts
from probing.results.probe import Score
from probing.results.transfer import CrossResult
from probing.verdicts.decodability import MIN_SENTENCES

_FEW_ROWS = 100  # the interval of an accuracy is then some ±0.1 wide, as much as transfer usually costs
_MOST, _MOST_TABLES = 6, 3

CAPTION = (
    "Probes trained on one source and scored on the test rows of another. A fall says that what the probe reads "
    "differs between the sources; it does not say that the model's own use of it does."
)

Key = tuple[str, str, str, str]  # model, task, probe, site


def model_of_cross(result: CrossResult) -> ModelFacts:
    """Return the facts of the model whose states a result of transfer read."""
    return ModelFacts.of(str(result.provenance.get("model") or ""), result.provenance.get("model_facts"))


def matrices(results: Sequence[CrossResult]) -> dict[Key, list[CrossResult]]:
    """Return the results of the first measure of each task, grouped by (model, task, probe, site)."""
    first: dict[str, str] = {}
    groups: dict[Key, list[CrossResult]] = {}
    for one in results:
        if first.setdefault(one.task, one.measure) == one.measure:
            groups.setdefault((model_of_cross(one).label, one.task, one.probe, one.site), []).append(one)
    return {key: groups[key] for key in sorted(groups, key=_order)}


def _order(key: Key) -> tuple[object, ...]:
    return (*key[:2], _is_floor(key), key[2], site_order(key[3]))


def _is_floor(key: Key) -> bool:
    return key[3].startswith("(")


CORNER = "trained on ↓ tested on →"


def _cells(found: Sequence[CrossResult]) -> tuple[list[str], list[tuple[str, list[Score | None]]]]:
    """Return the sources tested on, and for each source trained on the scores there."""
    rows, columns = (list(dict.fromkeys(getattr(one, side) for one in found)) for side in ("trained_on", "tested_on"))
    scores = {(one.trained_on, one.tested_on): one.score for one in found}
    return columns, [(row, [scores.get((row, column)) for column in columns]) for row in rows]


def _matrix(key: Key, found: Sequence[CrossResult], several: bool) -> Table:
    columns, scores = _cells(found)
    body: list[list[Cell]] = [[row, *map(number, own)] for row, own in scores]
    caption = f"{_caption(key, found, several)}, with 95 % intervals."
    return Table(caption, [CORNER, *columns], body, source="transfer.parquet")


def _caption(key: Key, found: Sequence[CrossResult], several: bool) -> str:
    model, task, probe, site = key
    at = "" if _is_floor(key) else f" at {site}"
    return f"{task}: {probe}{at}, {measure_title(found[0].measure)} on test" + (f"; {model}" if several else "")


def transfer_section(results: Sequence[CrossResult], anchor: str) -> Section:
    """Return the section of the page on transfer: heat maps, and matrices with intervals, which are folded if there are
    many.
    """
    models = {model_of_cross(one).label: model_of_cross(one) for one in results}
    groups = matrices(results)
    maps = transfer_maps([one for found in groups.values() for one in found])  # baselines last
    tables = {key: _matrix(key, found, len(models) > 1) for key, found in groups.items()}
    about = "; ".join(": ".join(filter(None, (label, model.build))) for label, model in models.items())
    shown_first = [table for key, table in tables.items() if not _is_floor(key)]
    in_view = shown_first if len(shown_first) <= _MOST_TABLES else []
    rest = [table for table in tables.values() if table not in in_view]
    return Section(
        anchor,
        "Transfer between sources",
        models=list(models),
        about=f"States of {about}",
        notes=doubts(results),
        blocks=[Words("p", [CAPTION]), *in_view, maps_figure(maps)],
        folds=[Fold(f"{'The other' if in_view else 'The'} matrices, with intervals", rest)] if rest else [],
    )


def doubts(results: Sequence[CrossResult]) -> list[str]:
    """Return a sentence for each source with so few test rows that its scores are uncertain."""
    found = {}
    for one in results:
        texts = one.provenance.get("sentences")
        few_texts = isinstance(texts, int) and texts < MIN_SENTENCES
        if few_texts or one.score.n < _FEW_ROWS:
            of = f" ({plural(texts, 'different text')})" if isinstance(texts, int) else ""
            found[one.tested_on] = (
                f"Only {plural(one.score.n, 'test row')}{of} of {one.tested_on}: scores on it are uncertain, and no "
                "difference of usual size would be seen."
            )
    return list(found.values())


def print_transfer(results: Sequence[CrossResult], console: Console, *, details: bool) -> None:
    """Print the matrix of each probe and site: training sources by test sources, with intervals; without `details` at
    most six matrices.
    """
    groups = matrices(results)
    said: Callable[[Estimate | None], str] = with_interval if console.width >= WIDE else folded
    models = list(dict.fromkeys(key[0] for key in groups))
    print_lines(console, [f"model {label}" for label in models], style="dim")
    chosen = list(groups.items())[: None if details else _MOST]
    for key, found in chosen:
        columns, scores = _cells(found)
        rows = [(row, *map(said, own)) for row, own in scores]
        print_table(console, [CORNER, *columns], rows, (0,), title=_caption(key, found, len(models) > 1))
    if len(chosen) < len(groups):
        more = plural(len(groups) - len(chosen), "matrix", "matrices")
        print_lines(console, [f"{more} more with --details"], style="dim")
