"""The commands `probing direction …`: they show and export fitted directions, and apply them to a running model."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from probing.cli.once_only import OnceOnly
from probing.cli.store_commands import AsJson, path_argument
from probing.system.screen import console, say, shown

direction_app = typer.Typer(
    help="Show, export and apply the directions that `probing use --save-directions` wrote.", no_args_is_help=True
)

Evidence = Annotated[
    list[Path], path_argument(metavar="EVIDENCE", help="files of directions, or folders of them", show_default=False)
]
_WIDE = 120
_SHOWN = 20
_SHOW_SAID = (
    "norm: length of the shift of class means at strength 1; effect: of the edit that decided, in SDs of the clean "
    "output, with its 95 % interval"
)
_ANSWERS_SAID = "without, with: logits of the answers less their mean; p: probabilities among these answers"


@direction_app.command("show", cls=OnceOnly)
def direction_show(evidence: Evidence, as_json: AsJson = False) -> None:
    """Show, for each saved direction, its property and site, how long it is, what adding it does, and the verdict on
    use.

    Example: probing direction show cache/results/use/evidence
    """
    module = import_module("probing.use.directions")
    found = module.read_directions(*evidence)
    records = [{"file": str(path), **module.record_of(one)} for path, one in found.items()]
    if as_json:
        for record in records:
            say(json.dumps(record, sort_keys=True))
        return
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["model"], record["task"], tuple(record["labels"]), record["behaviour"])
        groups.setdefault(key, []).append(record)
    for (model, task, labels, behaviour), rows in groups.items():
        screen = console()
        screen.print(shown(_heading(model, task, labels, behaviour), style="bold"))
        screen.print(_table(rows, screen.width))
        screen.print()
    console().print(shown(_SHOW_SAID, style="dim"))
    _warn(found.values())


@direction_app.command("export", cls=OnceOnly)
def direction_export(
    evidence: Evidence,
    to: Annotated[Path, typer.Option("--to", help="file to write, such as NAME.gguf", show_default=False)],
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="gguf, safetensors, npz, npy (default: by the ending of the file's name) or neuronpedia"
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="class that the direction leads away from (default: the other of two, or else the first)"),
    ] = None,
    goal: Annotated[
        str | None, typer.Option(help="class that the direction leads to (default: the second of two)")
    ] = None,
    model_hint: Annotated[
        str,
        typer.Option(
            "--model-hint",
            help="gguf: llama.cpp's name of the architecture, such as llama or gpt2; neuronpedia: its id of the model",
        ),
    ] = "unknown",
    replace: Annotated[bool, typer.Option("--replace", help="replace a file that is there already")] = False,
) -> None:
    """Write directions as a GGUF control vector or as plain vectors, together with their verdicts.

    Example: probing direction export cache/results/use/evidence --to tense.gguf
    """
    module = import_module("probing.use.directions")
    found = list(module.read_directions(*evidence).values())
    files = module.export_directions(
        found, to, format=form, start=start, goal=goal, model_hint=model_hint, replace=replace
    )
    for one in found:
        say(f"{one.header.task} at {one.header.place}: {one.header.verdict.word}")
    _warn(found)
    for file in files:
        say(f"exported: {file}")


def finish_apply(job: Any, quiet: bool, as_json: bool) -> None:
    """Run the job of `probing direction apply`, and print the outputs without the direction and with it, as tables or
    JSON lines.
    """
    run = job.run(progress=not quiet)
    if as_json:
        for row in run.rows():
            say(json.dumps(row, sort_keys=True))
    else:
        say(_title(run))
        if len(run.texts) <= _SHOWN and not job.corpus:
            for row, text in enumerate(run.texts):
                say(f"\n{text}")
                console().print(_outputs(run, [row]) if run.behaviour else _pieces(run, row))
        else:
            rows = f"{len(run.texts):,} rows"
            flips = run.flips()
            changed = "" if flips is None else f"; the most probable answer changes in {100 * flips:.0f} % of them"
            say(f"\nmeans over {rows}{changed}")
            console().print(_outputs(run, list(range(len(run.texts)))))
        if run.unit == "logits":
            console().print(shown(_ANSWERS_SAID, style="dim"))
    sentence = import_module("probing.use.directions").caveat(run.header, run.place, run.behaviour)
    import_module("probing.cli.output").warn([sentence])


def _warn(evidence: Any) -> None:
    caveat = import_module("probing.use.directions").caveat
    import_module("probing.cli.output").warn(dict.fromkeys(caveat(one.header) for one in evidence))


def _heading(model: str, task: str, labels: tuple[str, ...], behaviour: str) -> str:
    classes = f" ({' → '.join(labels) if len(labels) == 2 else ', '.join(labels)})" if labels else ""
    return f"{task}{classes} in {model}" + (f", for {behaviour}" if behaviour else "")


def _table(rows: list[dict[str, Any]], width: int) -> Any:
    words, wording = import_module("probing.reporting.use_words"), import_module("probing.reporting.wording")
    verdicts = import_module("probing.verdicts.verdict")
    table = _columns("site", "position", "kind", right=("dims", "norm", "effect, SD"), left=("verdict",))
    if width >= _WIDE:
        table.add_column("file", overflow="fold")
    for row in rows:
        effect = row["effect"]
        low, high = (wording.decimal(row[name], 2) for name in ("effect_low", "effect_high"))
        cells = (
            row["site"],
            row["position"] or "word",
            row["kind"] + (f", rank {row['rank']}" if row["rank"] is not None else ""),
            str(row["dimensions"]),
            wording.decimal(row["norm"], 2),
            wording.decimal(effect, 2) + ("" if effect is None else f" [{low}, {high}]"),
            words.SHORT[verdicts.Word(row["verdict"])],
            *([row["file"]] if width >= _WIDE else []),
        )
        table.add_row(*map(shown, cells))
    return table


def _columns(*left_first: str, right: tuple[str, ...], left: tuple[str, ...] = ()) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", collapse_padding=True)
    for name in left_first:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in left:
        table.add_column(name, overflow="fold")
    return table


def _title(run: Any) -> str:
    classes = f" ({run.start} → {run.goal})" if run.goal else ""
    what = f"{run.header.task}{classes}"
    done = "erased" if run.header.kind == "leace" else "added"
    behaviour = f"; {run.behaviour}" if run.behaviour else "; most probable pieces"
    return f"{what} {done} at {run.place}, strength {run.strength:g}{behaviour}"


def _pieces(run: Any, row: int) -> Any:
    """Return a table of the most probable pieces of one text, without the direction and with it, side by side."""
    visible = import_module("probing.results.use").visible
    both = run.probabilities()
    table = _columns("without", right=("p",))
    table.add_column("with", overflow="fold")
    table.add_column("p", justify="right", no_wrap=True)
    orders = [(-values[row]).argsort(kind="stable") for values in both]
    for pair in list(zip(*orders, strict=True))[: run.top]:
        cells = [
            text
            for values, k in zip(both, pair, strict=True)
            for text in (visible(run.outputs[k]), _probability(values[row, k]))
        ]
        table.add_row(*map(shown, cells))
    return table


def _outputs(run: Any, rows: list[int]) -> Any:
    """Return a table of the outputs, without the direction and with it, as means over these rows."""
    decimal, both = import_module("probing.reporting.wording").decimal, run.probabilities()
    more = ("p without", "p with") if both is not None else ()
    table = _columns("answer" if run.unit == "logits" else "output", right=("without", "with", "change", *more))
    for k, name in enumerate(run.outputs[:_SHOWN]):
        clean, edited = (float(values[rows, k].mean()) for values in (run.clean, run.edited))
        cells = [name, decimal(clean, 2), decimal(edited, 2), decimal(edited - clean, 2)]
        cells += [] if both is None else [_probability(values[rows, k].mean()) for values in both]
        table.add_row(*map(shown, cells))
    return table


def _probability(value: float) -> str:
    return "<.001" if value < 0.0005 else str(import_module("probing.reporting.wording").short(float(value)))
