"""A command for every job class: its flags are the fields of the job, its help the job's own words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer

from probing.store_commands import AsJson

Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]

_EXAMPLES = {
    "ExtractJob": "probing extract --model gpt2 --corpus train=train.conllu --corpus dev=dev.conllu "
    "--corpus test=test.conllu --sites 'resid.*' --rows word:mean --to cache/states/gpt2",
    "TrainJob": "probing train cache/states/gpt2 --corpus train=train.conllu --corpus dev=dev.conllu "
    "--corpus test=test.conllu --task upos --probe linear --probe mlp:hidden=64 --control word_type:draws=5 "
    "--seeds 3 --to cache/results/upos",
    "ImportJob": "probing store import activations.hdf5 --corpus train=train.conllu --corpus dev=dev.conllu "
    "--corpus test=test.conllu --to cache/states/theirs",
    "UseJob": "probing use --model datasets/reference/model --corpus train=datasets/reference/train.jsonl "
    "--task column:tense --task column:animacy --behaviour 'next_token:answers=was|were|is|are' --position end "
    "--to cache/results/use",
    "PatchJob": "probing patch --model gpt2 --pairs pairs.csv --sites 'resid.*,heads.*' --to cache/results/patch",
    "AblateJob": "probing ablate --model datasets/reference/model --corpus train=datasets/reference/train.jsonl "
    "--behaviour 'next_token:answers=was|were|is|are' --part heads --part mlps --to cache/results/ablate",
    "PlantbenchJob": "probing plantbench --tier 0 --tier 2 --json card.json",
    "ReportJob": "probing report cache/results/upos",
    "TransferJob": "probing transfer --source old=cache/states/old --source new=cache/states/new "
    "--corpus old.train=old-train.conllu --corpus old.dev=old-dev.conllu --corpus old.test=old-test.conllu "
    "--corpus new=new.conllu --task upos --sites 'resid.*' --to cache/results/transfer",
    "LeaveOneOutJob": "probing leave-one-out cache/states/gpt2 --corpus corpus.conllu --task upos --group document "
    "--to cache/results/documents",
}


def job_command(
    job_name: str,
    finish: Callable[[Any, Any, bool], None],
    *,
    home: str = "probing.jobs",
    with_json: bool = True,
) -> Callable[..., None]:
    """A Typer command whose flags are the fields of the job class."""
    job_class = getattr(import_module(home), job_name)

    def command(**flags: Any) -> None:
        quiet, as_json = flags.pop("quiet", False), flags.pop("as_json", False)
        job = job_class.read(flags, where="command line")
        finish(job, quiet, as_json)

    parameters = [_parameter(name, field) for name, field in job_class.model_fields.items()]
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        *([inspect.Parameter("as_json", keyword, default=False, annotation=AsJson)] if with_json else []),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = f"{inspect.cleandoc(job_class.__doc__)}\n\nExample: {_EXAMPLES[job_name]}"
    return command


def _parameter(name: str, field: Any) -> inspect.Parameter:
    extra = field.json_schema_extra or {}
    flag = "--" + (extra.get("flag") or name).replace("_", "-")
    if extra.get("argument"):
        kind: Any = typer.Argument(
            help=field.description, metavar=extra.get("metavar", f"{name.upper()}_DIR"), show_default=False
        )
    else:
        kind = typer.Option(flag, help=field.description)
    plain = field.annotation if field.annotation in (bool, int, str, int | None, str | None, list[str]) else str
    default = inspect.Parameter.empty if field.is_required() else field.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[plain, kind])
