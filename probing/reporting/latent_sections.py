"""Shows how a dictionary was trained, and the contexts of its latents, on the page and in the terminal."""

from __future__ import annotations

from rich.console import Console

from probing.reporting.blocks import Block, Cell, Fold, Number, Section, Table, Words
from probing.reporting.terminal import print_lines, print_table
from probing.reporting.wording import decimal, plural
from probing.results.dictionary_training import LIMITS as TRAINING_LIMITS
from probing.results.dictionary_training import RANDOM, ROLES, TWIN, DictionaryQuality, DictionaryTraining
from probing.results.latent_contexts import (
    LIMITS,
    TOP,
    Disagreement,
    LatentContext,
    LatentContexts,
    LatentFacts,
    ProbeBeside,
)

_HEADS = (
    "dictionary",
    "L0",
    "variance unexplained",
    "alive",
    "loss recovered",
    "loss in nats: clean / replaced / removed",
)
_CALLED = {TWIN: "untrained twin", RANDOM: "random"}
_SHORT = 60  # characters of a context on either side, in the terminal
_VISIBLE = 10  # latents whose contexts are not folded


def training_section(result: DictionaryTraining, anchor: str) -> Section:
    """Return the section of the page on a dictionary that was trained."""
    rows: list[list[Cell]] = [_cells(one) for one in result.qualities]
    others = [f"{one.unexplained:.1%} ({_called(one)})" for one in result.qualities if one is not result.trained]
    against = f"Left unexplained by the controls: {', '.join(others)}."
    table = Table("On held-out texts.", _HEADS, rows, source="dictionary_training.parquet")
    errors: list[list[Cell]] = [[str(k), Number(decimal(e, 4))] for k, e in enumerate(result.errors, start=1)]
    curve = Table("In the mean over the steps of each pass.", ("pass", "variance unexplained"), errors)
    return Section(
        anchor,
        f"Dictionary of {result.site or 'states'}",
        models=[result.model] if result.model else [],
        about=about_training(result),
        claims=[quality_sentence(result), *([against] if others else [])],
        notes=result.doubts,
        blocks=[
            table,
            Words("ul", [f"{_called(one)}: {ROLES[one.role]}" for one in result.qualities]),
            Words("p", ["What this does not show:"]),
            Words("ul", TRAINING_LIMITS),
        ],
        folds=[Fold("Training", [curve])],
    )


def about_training(result: DictionaryTraining) -> str:
    """Return a line on how a dictionary was trained."""
    kind = {"topk": "TopK", "batchtopk": "BatchTopK"}[result.architecture]
    return (
        f"{kind}, {plural(result.latents, 'latent')} of width {result.width}, k {result.k}, from "
        f"{plural(result.train_tokens, 'token')} in {plural(result.epochs, 'pass', 'passes')}; measured on "
        f"{plural(result.held_out_tokens, 'token')} of other texts"
    )


def quality_sentence(result: DictionaryTraining) -> str:
    """Return a sentence on what the dictionary does on held-out texts."""
    own = result.trained
    loss = "" if own.loss_recovered is None else f", and recovers {_recovered(own)} of the model's loss"
    return (
        f"The dictionary has {decimal(own.l0, 1)} active latents a token, leaves {own.unexplained:.1%} of the variance "
        f"unexplained{loss}; {own.alive:.0%} of its latents are active on held-out tokens"
        + ("." if own.alive_in_training is None else f", {own.alive_in_training:.0%} on tokens of train.")
    )


def _recovered(one: DictionaryQuality) -> str:
    if one.loss_recovered is None:
        return "–"
    low, high = one.loss_recovered_low, one.loss_recovered_high
    return f"{one.loss_recovered:.1%}" + ("" if low is None or high is None else f" [{low:.1%}, {high:.1%}]")


def _called(one: DictionaryQuality) -> str:
    return _CALLED.get(one.role, one.role)


def _cells(one: DictionaryQuality) -> list[Cell]:
    losses = (one.loss_clean, one.loss_replaced, one.loss_removed)
    alive = f"{one.alive:.0%}" + (
        "" if one.alive_in_training is None else f" ({one.alive_in_training:.0%} in training)"
    )
    loss = "–" if one.loss_clean is None else " / ".join(decimal(value, 2) for value in losses if value is not None)
    cells = (decimal(one.l0, 1), f"{one.unexplained:.1%}", alive, _recovered(one), loss)
    return [_called(one), *(Number(cell) for cell in cells)]


def print_training(result: DictionaryTraining, console: Console) -> None:
    """Print how a dictionary was trained, and a line for it and each control."""
    where = f"{result.site} of {result.model}" if result.site else "states"
    print_lines(console, [f"Dictionary of {where}"], style="bold")
    print_lines(console, [about_training(result)], style="dim")
    rows = [[cell.text if isinstance(cell, Number) else cell for cell in _cells(one)[:-1]] for one in result.qualities]
    print_table(console, ["", "L0", "unexplained", "alive", "loss recovered"], rows, (0,))


def contexts_section(result: LatentContexts, anchor: str) -> Section:
    """Return the section of the page on latents: their facts, contexts, and where a probe disagrees."""
    blocks: list[Block] = [_facts_table(result)]
    blocks += [_probe_table(result)] if result.probes else []
    tables = [_context_table(result, one) for one in result.facts]
    folds = [Fold("The other latents", tables[_VISIBLE:])] if len(tables) > _VISIBLE else []
    folds += [Fold(f"Where the probe and latent {one.latent} disagree", [apart(result, one)]) for one in result.probes]
    exported = [Words("ul", [f"{one.latent}: {text}" for one in result.facts for text in one.exported_contexts])]
    if exported[0].lines:
        folds.append(Fold("Contexts in the export of Neuronpedia", exported))
    return Section(
        anchor,
        f"Latents of {result.site}",
        models=[result.model],
        about=about_contexts(result),
        claims=[probe_sentence(result, one) for one in result.probes[:3]],
        blocks=[*blocks, *tables[:_VISIBLE], Words("p", ["What this does not show:"]), Words("ul", LIMITS)],
        folds=folds,
    )


def about_contexts(result: LatentContexts) -> str:
    """Return a line on which latents are shown."""
    return (
        f"{plural(len(result.facts), 'latent')} of {result.latents:,} (chosen: {result.chosen_by}), on "
        f"{plural(result.rows, 'row')} of {result.model}"
    )


def probe_sentence(result: LatentContexts, one: ProbeBeside) -> str:
    """Return a sentence on how a latent and a probe agree."""
    if one.sign == 0:
        is_silent = any(facts.latent == one.latent and facts.density == 0 for facts in result.facts)
        does = "is never active" if is_silent else f"separates no rows of train by {one.label}"
        return (
            f"Latent {one.latent} {does}, so it says nothing of {one.task}; balanced accuracy of the probe {one.probe} "
            f"{decimal(one.probe_accuracy, 3)}."
        )
    rows = one.both + one.probe_only + one.latent_only + one.neither
    agree = (one.both + one.neither) / rows if rows else 0.0
    does = "active" if one.sign > 0 else "not active"
    return (
        f"Latent {one.latent} ({does} on {one.label}) and the probe {one.probe} of {one.task} agree on {agree:.1%} of "
        f"{plural(rows, 'row')} of test; balanced accuracy {decimal(one.latent_accuracy, 3)} of the latent, "
        f"{decimal(one.probe_accuracy, 3)} of the probe."
    )


def _facts_table(result: LatentContexts) -> Table:
    numbers = ["density", "largest", "mean"]
    rows: list[list[Cell]] = [
        [str(one.latent), Number(f"{one.density:.3%}"), Number(decimal(one.largest, 2)), Number(decimal(one.mean, 2))]
        for one in result.facts
    ]
    head, texts = ["latent", *numbers], [0]
    if any(one.name or one.page for one in result.facts):
        head, texts = ["latent", "name", "page", *numbers, "density there"], [0, 1, 2]
        for row, one in zip(rows, result.facts, strict=True):
            row[1:1] = [one.name or "–", one.page or "–"]
            row.append(Number("–" if one.exported_density is None else f"{one.exported_density:.3%}"))
    return Table("The latents.", head, rows, texts, source="latent_contexts.parquet")


def _probe_table(result: LatentContexts) -> Table:
    head = ["latent", "active on", "says yes where", "both yes", "probe only", "latent only", "neither"]
    head += ["accuracy", "of the probe"]
    rows: list[list[Cell]] = [
        [
            str(one.latent),
            "–" if one.sign == 0 else one.label if one.sign > 0 else f"not {one.label}",
            _cut(one),
            *(Number(f"{count:,}") for count in (one.both, one.probe_only, one.latent_only, one.neither)),
            Number(decimal(one.latent_accuracy, 3)),
            Number(decimal(one.probe_accuracy, 3)),
        ]
        for one in result.probes
    ]
    caption = (
        f"Rows of test on which latent and probe say {result.probes[0].label}; balanced accuracy. The latent says so "
        "by its activation, at the cut that is best on train; the probe where its log odds are above 0."
    )
    return Table(caption, head, rows, texts=(0, 1, 2), source="latent_disagreements.parquet")


def _cut(one: ProbeBeside) -> str:
    """Return from which activation a latent says yes, such as `above 0.31`."""
    return "never" if one.sign == 0 else f"{'above' if one.sign > 0 else 'at most'} {decimal(one.threshold, 2)}"


def _context_table(result: LatentContexts, facts: LatentFacts) -> Table:
    rows: list[list[Cell]] = [
        [one.band, Number(decimal(one.activation, 2)), _line(one), one.id]
        for one in result.contexts
        if one.latent == facts.latent
    ]
    name = f" ({facts.name})" if facts.name else ""
    head = ("band", "activation", "context", "text")
    return Table(f"Latent {facts.latent}{name}.", head, rows, texts=(0, 2, 3), source="latent_contexts.parquet")


def apart(result: LatentContexts, beside: ProbeBeside) -> Table | Words:
    """Return a table of the rows where a probe and a latent disagree, or words that they never do."""
    rows: list[list[Cell]] = [
        [
            one.kind,
            Number(decimal(one.activation, 2)),
            Number(decimal(one.probe_score, 2)),
            one.label,
            _line(one),
            one.id,
        ]
        for one in result.disagreements
        if one.latent == beside.latent
    ]
    if not rows:
        return Words("p", ["They agree on every row of test."])
    head = ("who says yes", "activation", "log odds of the probe", "label", "context", "text")
    does = "The latent never does." if beside.sign == 0 else f"The latent does where its activation is {_cut(beside)}."
    caption = f"Who says {beside.label}, the surest first. {does}"
    return Table(caption, head, rows, texts=(0, 3, 4, 5), source="latent_disagreements.parquet")


def _line(one: LatentContext | Disagreement, most: int | None = None) -> str:
    """Return a context as a line in which its token is marked, cut to `most` characters on either side."""
    before, after = " ".join(one.left.split("\n")), " ".join(one.right.split("\n"))
    if most is not None:
        before = before if len(before) <= most else f"…{before[-most:]}"
        after = after if len(after) <= most else f"{after[:most]}…"
    return f"{before}«{one.token}»{after}" if one.token else f"{before}{after}"  # a whole text has no marked part


def print_contexts(result: LatentContexts, console: Console, *, details: bool) -> None:
    """Print latents with their strongest contexts; with `details` all bands, and the rows where a probe disagrees."""
    print_lines(console, [about_contexts(result)], style="dim")
    for facts in result.facts:
        active = f"active on {facts.density:.2%}" if facts.density else "never active"
        title = " · ".join(filter(None, (f"latent {facts.latent}", active, facts.name, facts.page)))
        own = [one for one in result.contexts if one.latent == facts.latent and (details or one.band == TOP)]
        rows = [(one.band, decimal(one.activation, 2), _line(one, _SHORT)) for one in own]
        print_table(console, ["band", "activation", "context"], rows, (0, 2), title=title)
    for beside in result.probes:
        print_lines(console, [probe_sentence(result, beside)])
        if details:
            differing = [
                (row.kind, decimal(row.activation, 2), decimal(row.probe_score, 2), row.label, _line(row, _SHORT))
                for row in result.disagreements
                if row.latent == beside.latent
            ]
            print_table(console, ["who says yes", "activation", "log odds", "label", "context"], differing, (0, 3, 4))
