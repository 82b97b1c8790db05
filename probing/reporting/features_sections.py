"""Shows comparisons of a dictionary with the states it was made from: sentences that answer whether it reads the
property better than the plain probe and whether the model uses its latents, tables and a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console

from probing.reporting.blocks import Block, Cell, Fold, Table, Words, number, panels_figure
from probing.reporting.latent_words import OPTIMISTIC, edits_of_latents, is_of, use_of_latents
from probing.reporting.panels import Curve, Panel, points
from probing.reporting.terminal import print_lines, print_table
from probing.reporting.use_panels import Use
from probing.reporting.use_words import in_full
from probing.reporting.wording import decimal, folded, interval, measure_title, p_value, plural, short, with_interval
from probing.results.features import METHODS, FeatureScores, LatentScore, MethodScore, Quiver
from probing.results.probe import Score

SOURCE = "features.parquet"
NEAR = 0.005  # a score this near to the best possible one is at the ceiling
UNSEEN = (
    "If the dictionary was trained on texts of test, its latents know them and these numbers are optimistic; that is "
    "not checked here."
)
AUROC_OF_ONE = (
    "AUROC ranks rows by the activation of this latent alone, and only high activations count for the class. The "
    "probes above with k = 1 choose their latent by the difference of means and may read it either way, so they may "
    "score higher."
)
_ASK = "Does the model use these latents? Not asked yet: probing use … --comparison latents:dictionary=DIR."

CAPTION = (
    "Linear probes of a dictionary's latents beside probes of the states that they were made from: the same rows, "
    "splits, control tasks and resamples. Columns are ranked on train, their number k is chosen on dev, scores are on "
    "test. What the dictionary adds is what it has above the whole state; a random dictionary shows what size alone "
    "gives."
)


def name_of(found: FeatureScores) -> str:
    """Return the name of the dictionary, with the first digits of its hash, its size and the number of latents that are
    active per row.
    """
    size = f"{plural(int(found.dictionary['latents']), 'latent')}"
    active = found.active("dictionary")
    name, _, digits = str(found.dictionary["name"]).rpartition("-")
    per_row = "" if active is None else f", {active[0]:.0f} active per row on average"
    return f"{name} ({digits}: {size}{per_row})" if name else f"{digits} ({size}{per_row})"


def sentences(found: FeatureScores, uses: Sequence[Use] = ()) -> list[str]:
    """Return what the comparison shows, the answer to whether the dictionary reads the property better first; with
    results of edits, whether the model uses its latents.
    """
    chosen = found.chosen
    said = [_answer(found, chosen), *_no_gain(found, chosen), UNSEEN] if "dictionary" in chosen else []
    said += _without_random(found, chosen)
    said += pooled_sentences(found)
    said += [_quiver(quiver, found.measure) for quiver in found.quivers if quiver.added == "dictionary"]
    mains = [one for one in found.latents if one.is_main]
    said += [_main(one, found) for one in mains[:2]]
    said += [AUROC_OF_ONE] if any(one.is_shown for one in mains) else []
    return [*said, *(used_sentences(found, uses) or [_ASK])]


def _answer(found: FeatureScores, chosen: Mapping[str, MethodScore]) -> str:
    ours, dense = chosen["dictionary"], chosen["dense"]
    above, title = ours.above["dense"], measure_title(found.measure)
    answer = "Yes" if above.low > 0 else "No, worse" if above.high < 0 else "Not shown, neither better nor worse"
    others = [(name, one.k, one.test.value) for name, one in chosen.items() if name not in ("dense", "dictionary")]
    return (
        f"Does the dictionary {name_of(found)} read {found.result.task} better than the plain probe at "
        f"{found.result.site}? {answer}: {title} on test is {_with_ends(ours.test)} with "
        f"{plural(ours.k or 0, 'latent')} and {_with_ends(dense.test)} with the whole state, a difference of "
        f"{_with_ends(above)}. Beside them: {'; '.join(map(_arrow, others))}."
    )


def _no_gain(found: FeatureScores, chosen: Mapping[str, MethodScore]) -> list[str]:
    """Return sentences on scores that separate nothing: all inputs at the ceiling, or the dictionary no better than the
    random one.
    """
    least, title = min(one.test.value for one in chosen.values()), measure_title(found.measure)
    best = {"auroc": 1.0, "accuracy": 1.0, "f1": 1.0, "macro_f1": 1.0}.get(found.measure)
    said = []
    if best is not None and least >= best - NEAR:
        said.append(
            f"Every input scores at least {short(least)}, where {best:g} is the best possible: this task cannot tell "
            "them apart, and no score here is a gain of the dictionary. Ask a harder task, or train on fewer rows."
        )
    above = chosen["dictionary"].above.get("random")
    if above is not None and not above.low > 0:
        said.append(
            f"Against a random dictionary of this size the latents are not shown to be better ({title} higher by "
            f"{_with_ends(above)}): what they reach here shows no gain of training."
        )
    return said


def _without_random(found: FeatureScores, chosen: Mapping[str, MethodScore]) -> list[str]:
    """Return why there is no random dictionary beside this one, if there is none."""
    active, latents = found.active("dictionary"), int(found.dictionary["latents"])
    if "random" in chosen or active is None:
        return []
    return [
        f"There is no random dictionary beside it: {short(active[0], 1)} of its {plural(latents, 'latent')} are active "
        "in a row on average, more than a quarter, and so many of a random dictionary's would be active anywhere. What "
        "size alone gives is therefore not known."
    ]


def pooled_sentences(found: FeatureScores) -> list[str]:
    """Return that the dictionary was given means of states, if rows were pooled so."""
    rows = str(found.result.provenance.get("rows") or "")
    if not rows.endswith(":mean"):
        return []
    return [
        f"Rows are {rows}: means of the states of several tokens, which were encoded as if each were a state. "
        "Dictionaries are made for states of single tokens, so its latents may mean little here; prefer rows such as "
        "word:last or sentence:last."
    ]


def _quiver(found: Quiver, measure: str) -> str:
    return (
        "Quiver rule: adding the dictionary's probes to those among which dev chooses changes "
        f"{measure_title(measure)} on test by {_with_ends(found.gain)}; dev chose {_arrow(found.chosen)} "
        f"(without the dictionary {_arrow(found.without)}). When the rows of dev are resampled, the choice falls on a "
        f"probe of latents in {100 * found.share:.0f} % of the resamples."
    )


def _arrow(found: tuple[str, int | None, float]) -> str:
    method, k, value = found
    return f"{METHODS[method]}{'' if k is None else f', k = {k}'} ({short(value)})"


def _main(one: LatentScore, found: FeatureScores) -> str:
    chance = found.best_at_random(one.label)
    further = [other for other in found.latents if other.label == one.label and not other.is_main]
    if not one.is_shown:
        tested = f"AUROC {_with_ends(one.scores['auroc'])} on test"
        searched = plural(int(one.numbers.get("searched", 0)), "latent")
        return (
            f"No latent is shown to stand for {one.label}: the best on train, {one.latent}, has {tested}, where chance "
            f"is 0.5 (p {p_value(one.numbers.get('p', 1.0))}, corrected for {searched} searched)."
        )
    by_lot = "" if chance is None else f" (the best single latent of the random dictionary: {short(chance.value)})"
    said = (
        f"Latent {one.latent} is the best single one for {one.label}: AUROC {_with_ends(one.scores['auroc'])}{by_lot}; "
        f"precision {_value(one, 'precision')}, recall {_value(one, 'recall')}, F1 {_value(one, 'f1')}"
    )
    if not further:
        return f"{said}. No other latent adds to it where it does not fire."
    fires = "; ".join(
        f"{other.latent} on {_value(other, 'recovers')} of {plural(int(other.numbers.get('missed', 0)), 'row')} left"
        for other in further
    )
    return f"{said}. Others fire where it does not (splitting or absorption): {fires}."


def _value(one: LatentScore, name: str) -> str:
    return short(one.scores[name].value, 2) if name in one.scores else "–"


def _with_ends(found: Score) -> str:
    return with_interval(found, write=short)


def used_sentences(found: FeatureScores, uses: Sequence[Use]) -> list[str]:
    """Return, for each place of the dictionary's site and each edit of its latents, whether the model uses them there;
    and then, apart, the verdict on the property at the place, which is not about latents.
    """
    about, verdicts = [], []
    for use in uses:
        for cell, verdict in zip(use.result.cells, use.verdicts, strict=True):
            recipes = [name for name in edits_of_latents(cell) if is_of(name, str(found.dictionary.get("path") or ""))]
            if cell.site != found.result.site or not recipes:
                continue
            about += [use_of_latents(cell.place, name, cell) for name in recipes]
            of = f"the property {use.result.task} at {cell.place}"
            verdicts.append(f"Apart from latents, the verdict on {of}: {in_full(verdict)}.")
    return [*dict.fromkeys(about), *dict.fromkeys(verdicts), *([OPTIMISTIC] if about else [])]


def methods_table(found: FeatureScores, *, every_k: bool = False) -> Table:
    """Return the scores of all methods at the number of columns that dev chose; with `every_k`, at all numbers."""
    rows = [one for one in found.methods if every_k or one.is_chosen]
    controls = list(dict.fromkeys(name for one in rows for name in one.controls))
    head = ["input of the probe", "k", "on dev", f"{measure_title(found.measure)} on test"]
    head += [part for name in controls for part in (f"on {name}", "selectivity" if "shuffled" not in name else "above")]
    body: list[list[Cell]] = []
    for one in rows:
        own: list[Cell] = [METHODS[one.method], "all" if one.k is None else str(one.k)]
        own += [decimal(one.dev.value), number(one.test)]
        for name in controls:
            own += [number(score) for score in one.controls.get(name, (None, None))]
        body.append([*own, number(one.above.get("dense"))])
    caption = "Every number of columns that was tried." if every_k else CAPTION
    return Table(caption, [*head, "less the whole state"], body, (0,), source=SOURCE)


def latents_table(found: FeatureScores) -> Table:
    """Return the single latents of every class, with the further ones that fire where the main one does not."""
    head = ["class", "latent", "AUROC", "precision", "recall", "F1", "fires where none before does", "false alarms"]
    head += ["p", "cosine with main", "cosine with probe"]
    body: list[list[Cell]] = []
    for one in found.latents:
        names = ("auroc", "precision", "recall", "f1", "recovers", "false_alarms")
        p = one.numbers.get("p")
        with_main = None if one.is_main else one.numbers.get("cosine_with_main")
        cosines = [decimal(value, 2) for value in (with_main, one.numbers.get("cosine_with_probe"))]
        cells = [number(one.scores.get(name)) for name in names]
        body.append([one.label, str(one.latent), *cells, "–" if p is None else p_value(p), *cosines])
    searched = max((one.numbers.get("searched", 0.0) for one in found.latents), default=0.0)
    caption = (
        f"The best single latent of each class by AUROC on train, of {int(searched):,} that are ever active there, and "
        "then, where its p is at most 0.05, latents that fire on rows of the class where none before them does (each "
        "raises F1 on train by 0.03 or more). All numbers are on test; p is one-sided, against an AUROC of 0.5, times "
        "the number of latents searched."
    )
    return Table(caption, head, body, (0, 1), source="analyses.parquet")


def features_panel(found: FeatureScores) -> Panel:
    """Return the scores of all methods by the number of columns, with the whole state as a level."""
    methods = found.methods
    ks = sorted({one.k for one in methods if one.k is not None})
    curves = []
    for part, name in enumerate(dict.fromkeys(one.method for one in methods if one.k is not None)):
        drawn = points((ks.index(one.k), one.test) for one in methods if one.method == name and one.k is not None)
        curves.append(Curve(METHODS[name], "task" if name == "dictionary" else "other", drawn, part))
    dense = next(one.test for one in methods if one.k is None)
    level = Curve(METHODS["dense"], "baseline", points([(0, dense)]))
    title = f"{found.dictionary['name']} at {found.result.site}"
    names = tuple(map(str, ks))
    return Panel(title, measure_title(found.measure), names, tuple(curves), (level,), (0.5, 1.0), x_label="k")


def features_blocks(every: Sequence[FeatureScores], uses: Sequence[Use]) -> list[Block]:
    """Return what the page shows of each comparison: the answers in sentences, and the table of methods."""
    return [block for found in every for block in (Words("p", sentences(found, uses)), methods_table(found))]


def features_folds(every: Sequence[FeatureScores]) -> list[Fold]:
    """Return a folded part for each comparison: the curve over k, single latents, and every number of columns."""
    folds = []
    for found in every:
        figure = panels_figure([features_panel(found)], "Bands are 95 % intervals.")
        tables = [*([latents_table(found)] if found.latents else []), methods_table(found, every_k=True)]
        folds.append(Fold(f"Latents of the dictionary {found.dictionary['name']}", [figure, *tables]))
    return folds


def print_features(every: Iterable[FeatureScores], console: Console, *, details: bool) -> None:
    """Print, for each comparison, its sentences and a table of methods; with `details`, all numbers of columns and the
    single latents.
    """
    for found in every:
        head = ["input of the probe", "k", measure_title(found.measure), "less the whole state"]
        rows = [
            (
                METHODS[one.method],
                "all" if one.k is None else str(one.k),
                folded(one.test),
                folded(one.above.get("dense")),
            )
            for one in found.methods
            if details or one.is_chosen
        ]
        print_table(console, head, rows, (0,), title=f"{found.result.task}: dictionary {name_of(found)}")
        if details and found.latents:
            _print_latents(found, console)
        print_lines(console, sentences(found))
        console.print()


def _print_latents(found: FeatureScores, console: Console) -> None:
    names = ("precision", "recall", "f1", "recovers")
    rows = []
    for one in found.latents:
        area = one.scores.get("auroc")
        ranked = "–" if area is None else f"{short(area.value)} {interval(area)}"
        rows.append([one.label, str(one.latent), ranked, *(_value(one, name) for name in names)])
    head = ["class", "latent", "AUROC", "precision", "recall", "F1", "fires where none before does"]
    print_table(console, head, rows, (0,))
