"""Adds a command for every job class: its flags are the fields of the job, and its help is the docstring of the job."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main

from probing._renamed import COMMAND_LINE, flag_of, old_names
from probing.cli.once_only import OnceOnly
from probing.cli.store_commands import AsJson
from probing.system.machine import check_target

Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]
Details = Annotated[bool, typer.Option("--details", help="print the tables, not only one line per property")]

_EXAMPLES = {
    "ExtractJob": "probing extract --model gpt2 --corpus train=train.conllu --corpus dev=dev.conllu "
    "--corpus test=test.conllu --sites 'resid.*' --rows word:mean --to cache/states/gpt2",
    "TrainJob": "probing train cache/states/gpt2 --corpus train=train.conllu --corpus dev=dev.conllu "
    "--corpus test=test.conllu --task upos --probe linear --probe mlp:hidden=64 --control word_type:draws=5 "
    "--seeds 3 --to cache/results/upos",
    "ImportJob": "probing store import activations.hdf5 --corpus train=train.conllu --corpus dev=dev.conllu "
    "--corpus test=test.conllu --to cache/states/theirs",
    "UseJob": "probing use --model probing:reference --corpus probing:reference "
    "--task column:tense --task column:animacy --behaviour 'next_token:answers=was|were|is|are' --position end "
    "--to cache/results/use",
    "ApplyDirectionJob": "probing direction apply cache/results/use/evidence --model probing:reference "
    "--prompt 'nowadays the doctor behind the window clearly' --strength -1",
    "ScoreJob": "probing score cache/results/mine/probes/TASK/resid.2/linear/HASH.json --model probing:reference "
    "--text 'nowadays the doctor behind the window clearly' --pieces --to scores.html",
    "PatchJob": "probing patch --model gpt2 --pairs pairs.csv --sites 'resid.*,heads.*' --to cache/results/patch",
    "AblateJob": "probing ablate --model probing:reference --corpus probing:reference "
    "--behaviour 'next_token:answers=was|were|is|are' --part heads --part mlps --to cache/results/ablate",
    "CircuitJob": "probing circuit --model gpt2 --pairs pairs.csv --nodes 30 --group template "
    "--to cache/results/circuit",
    "LensJob": "probing lens --model probing:reference --corpus probing:reference --lens tuned --lens logit "
    "--prompt 'nowadays the doctor behind the window clearly was' --to cache/results/lens",
    "InspectJob": "probing inspect --model probing:reference --text 'nowadays the doctor behind the window clearly' "
    "--check --to cache/results/inspect",
    "DictionaryTrainJob": "probing dictionary train cache/states/gpt2-tokens --site resid.6 --latents 4608 "
    "--to cache/results/dictionary",
    "DictionaryTopsJob": "probing dictionary tops cache/results/dictionary --store cache/states/gpt2-tokens "
    "--corpus train=train.conllu --corpus dev=dev.conllu --corpus test=test.conllu --task feature:Number "
    "--rows word:last --to cache/results/latents",
    "PlantbenchJob": "probing plantbench --tier 0 --tier 1 --json card.json",
    "ReportJob": "probing report cache/results/upos",
    "TransferJob": "probing transfer --source old=cache/states/old --source new=cache/states/new "
    "--corpus old.train=old-train.conllu --corpus old.dev=old-dev.conllu --corpus old.test=old-test.conllu "
    "--corpus new=new.conllu --task upos --sites 'resid.*' --to cache/results/transfer",
    "SimilarityJob": "probing similarity cache/states/bert cache/states/tuned --twin cache/states/untrained "
    "--corpus train=train.conllu --corpus dev=dev.conllu --corpus test=test.conllu --task upos "
    "--to cache/results/similarity",
    "DictionaryInfoJob": "probing dictionary info gpt2-small-res-jb/blocks.8.hook_resid_pre",
    "DictionaryCheckJob": "probing dictionary check DICTIONARY --model gpt2 --corpus texts.jsonl --skip 1",
    "DictionaryEncodeJob": "probing dictionary encode DICTIONARY --states cache/states/gpt2 --to cache/states/latents",
    "LeaveOneOutJob": "probing leave-one-out cache/states/gpt2 --corpus corpus.conllu --task upos --group document "
    "--to cache/results/documents",
}

_SUMMARIES = {  # the first paragraphs of the jobs' docstrings: the list of commands is shown without importing them
    "ExtractJob": "Run a model over a corpus and save its hidden states in a store; a killed run resumes where it was.",
    "TrainJob": "Train probes on tasks and on their control tasks, and write results.jsonl and results.parquet.",
    "ImportJob": "Make a store of states that another program computed: NeuroX, lmprobe, vLLM, .npy, .safetensors, .h5 "
    "or a store.",
    "UseJob": "Exchange a property (such as tense) in the hidden states of a running model, measure how its output "
    "changes, and give a verdict on use for each place.",
    "ApplyDirectionJob": "Run a model with and without a direction added to its states, and show its outputs "
    "side by side.",
    "ScoreJob": "Score new texts by a saved probe.",
    "PatchJob": "Patch activations: run one prompt of each pair with one state of the other prompt, for every site and "
    "position in turn.",
    "AblateJob": "Take heads, attention, MLPs or whole layers out of a model, one at a time, and measure "
    "what its output loses.",
    "PlantbenchJob": "Count how often verdicts are wrong, on models for which it is known what they use.",
    "ReportJob": "Write OUT_DIR/report.html from the results in OUT_DIR, which `probing train`, `probing use` or both "
    "wrote.",
    "TransferJob": "Train probes on every source, score them on every source, and write transfer.jsonl and "
    "transfer.parquet.",
    "LeaveOneOutJob": "Train probes on all groups but one and score them on that one, in turn, and write "
    "leave_one_out.jsonl and leave_one_out.parquet.",
    "SimilarityJob": "Compare the states of stores on the same rows, site by site, and write similarity.jsonl, "
    "similarity.parquet and drift.parquet.",
    "CircuitJob": "Find the circuit (heads, MLPs and edges between them) that produces a model's answers, and judge "
    "it on other prompts.",
    "LensJob": "Read the state of every site as an output of the model: logit lens, tuned lens, Jacobian lens, with "
    "controls.",
    "DictionaryTrainJob": "Train a sparse dictionary of the tokens' states at a site, and measure it and its "
    "controls on held-out texts.",
    "DictionaryTopsJob": "Show the tokens, in context, on which latents are most active, and random ones from lower "
    "quantiles of activation.",
    "DictionaryInfoJob": "Show the format, architecture, sizes and site of a dictionary, and what its file declares "
    "about it.",
    "DictionaryCheckJob": "Measure a dictionary on states (L0, variance unexplained, dead latents, loss recovered), "
    "and compare the numbers with those that its file declares.",
    "DictionaryEncodeJob": "Encode the states of a store as latents of a dictionary, and save the latents in a new "
    "store; a killed run resumes where it was.",
    "InspectJob": "Summarise hidden states and attention on some texts; with --check, test each attention pattern by "
    "replacing it.",
}


def add_job_command(
    app: typer.Typer,
    name: str,
    job_name: str,
    finish: Callable[..., None],
    *,
    home: str = "probing.jobs",
    with_json: bool = True,
    with_details: bool = False,
) -> None:
    """Add a command to `app` whose flags are the fields of a job class; the class is imported only when the command is
    called or its help is shown.

    Args:
        app: the app or group of commands.
        name: name of the command.
        job_name: name of the job class.
        finish: function that runs the job and prints its results.
        home: module of the job class.
        with_json: whether the command has the flag `--json`.
        with_details: whether the command has the flag `--details`.
    """

    def described() -> None:
        """Stand for the command in the list of commands."""

    described.__doc__ = _SUMMARIES[job_name]
    described.__dict__["build"] = partial(
        _job_command, job_name, finish, home=home, with_json=with_json, with_details=with_details
    )
    app.command(name, cls=_Deferred)(described)


class _Deferred(OnceOnly):
    """A command that is built only when it is called or its help is asked for."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        alone.command(self.name, cls=OnceOnly)(self.callback.__dict__["build"]())
        return typer.main.get_command(alone).make_context(info_name, args, *rest, **extra)


def _job_command(
    job_name: str, finish: Callable[..., None], *, home: str, with_json: bool, with_details: bool
) -> Callable[..., None]:
    """Return the function of a Typer command whose flags are the fields of the job class."""
    job_class = getattr(import_module(home), job_name)

    fields = job_class.model_fields
    old = {name: fields[new] for name, new in old_names(fields).items()}

    def command(context: typer.Context, **flags: Any) -> None:
        quiet, as_json = flags.pop("quiet", False), flags.pop("as_json", False)
        shown = {"details": flags.pop("details")} if with_details else {}
        given = {name: value for name, value in flags.items() if _is_given(context, name)}
        job = job_class.read(given, where=COMMAND_LINE)
        folder, card = getattr(job, "to", None), getattr(job, "json_file", None)
        for target in filter(None, (folder and Path(folder), card and Path(card).parent)):
            check_target(target)
        finish(job, quiet, as_json, **shown)

    parameters = [_parameter(name, field, flag_of(name, field)) for name, field in fields.items()]
    parameters += [_parameter(name, field, flag_of(name), hidden=True) for name, field in old.items()]
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        *([inspect.Parameter("as_json", keyword, default=False, annotation=AsJson)] if with_json else []),
        *([inspect.Parameter("details", keyword, default=False, annotation=Details)] if with_details else []),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    paragraphs = inspect.cleandoc(job_class.__doc__).split("\n\n")  # the screen's width breaks their lines, not ours
    command.__doc__ = "\n\n".join([*(" ".join(p.split()) for p in paragraphs), f"Example: {_EXAMPLES[job_name]}"])
    return command


def _is_given(context: typer.Context, name: str) -> bool:
    """Return whether a value comes from the command line rather than from the default of its field."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _parameter(name: str, field: Any, flag: str, *, hidden: bool = False) -> inspect.Parameter:
    extra = field.json_schema_extra or {}
    if extra.get("argument"):
        kind: Any = typer.Argument(
            help=field.description, metavar=extra.get("metavar", f"{name.upper()}_DIR"), show_default=False
        )
    else:
        kind = typer.Option(flag, help=field.description, hidden=hidden)
    plain = field.annotation if field.annotation in (bool, int, str, int | None, str | None, list[str]) else str
    default = inspect.Parameter.empty if field.is_required() else field.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[plain, kind])
