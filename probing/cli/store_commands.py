"""The commands `probing store …`: they list, describe, verify, merge, clean, remove and export stores."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from probing.cli.once_only import OnceOnly
from probing.system.screen import console, say, shown

AsJson = Annotated[bool, typer.Option("--json", help="JSON lines instead of tables")]

_SHOWN = 20
path_argument = partial(typer.Argument, readable=False)  # who may not read it is told so as by every other command

store_app = typer.Typer(help="Inspect and maintain stores of hidden states.", no_args_is_help=True)


_REASONS = {
    "too_long": "longer than the limit",
    "truncated": "beyond the limit of an input",
    "no_pieces": "the tokenizer makes no piece of it",
    "nothing_selected": "no such position in it",
    "not_in_source": "not in the file imported from",
}


def print_store(path: Path, as_json: bool, *, brief: bool = False) -> None:
    """Print the summary of a store that `store_info` returns; `brief` shortens the ids."""
    info = import_module("probing.states.store").store_info(path)
    missing = [] if as_json else info.pop("missing", [])
    info = info if as_json else _readable(info, brief=brief)
    print_mapping(info, as_json)
    for unit in missing[:_SHOWN]:
        first, last = unit["examples"]
        lease = unit["lease"] and f"; process {unit['lease']['pid']} on {unit['lease']['host']} computes it"
        say(f"missing: shard {unit['shard']}, examples {first} to {last}{lease or ''}")
    if len(missing) > _SHOWN:
        say(f"missing: {len(missing) - _SHOWN} shards more (all of them with --json)")


def _readable(info: dict[str, Any], *, brief: bool) -> dict[str, Any]:
    """Return the summary with rounded numbers, and with reasons in words."""
    short = {name: info[name][:12] for name in ("store_id", "content_id") if brief}
    share = info["unknown_pieces"]
    return (
        info
        | short
        | {
            "absmax": {site: f"{value:.3g}" for site, value in info["absmax"].items()},
            "unknown_pieces": "not recorded" if share is None else f"{100 * share:.1f} %",
            **{
                name: {f"{reason} ({_REASONS.get(reason, '?')})": count for reason, count in info[name].items()}
                for name in ("skipped", "missing_words")
            },
        }
    )


def print_mapping(info: dict[str, Any], as_json: bool, *, verbatim: bool = False) -> None:
    """Print a mapping as two columns, or as one JSON line. With `verbatim`, keys are printed unchanged, since they are
    names that users type.
    """
    import json

    from rich.table import Table

    if as_json:
        say(json.dumps(info, sort_keys=True, default=str))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in info.items():
        said = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        said = ", ".join(map(str, said)) if isinstance(said, list | tuple) else said
        text = str(said) if said not in ("", None) else "none"
        table.add_row(key if verbatim else key.replace("_", " "), shown(text))
    console().print(table)


@store_app.command("ls", cls=OnceOnly)
def store_ls(
    root: Annotated[Path, path_argument(help="a store, or a directory of stores")] = Path("cache/states"),
    as_json: AsJson = False,
) -> None:
    """List the stores under a directory.

    Example: probing store ls cache/states
    """
    found = import_module("probing.states.store").list_stores(root)
    for info in found:
        info.pop("missing", None)
        print_mapping(info, as_json)
        if not as_json:
            say("")
    if not found and not as_json:
        say(f"no store under {root}")


@store_app.command("info", cls=OnceOnly)
def store_show(
    store: Annotated[Path, path_argument(metavar="STORE_DIR", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show the model, corpus and sites of a store, which files (shards) are done and missing, and which examples and
    words were left out.

    Example: probing store info cache/states/gpt2
    """
    print_store(store, as_json)


@store_app.command("verify", cls=OnceOnly)
def store_verify(
    store: Annotated[Path, path_argument(metavar="STORE_DIR", show_default=False)],
    repair: Annotated[
        bool, typer.Option("--repair", help="set damaged records aside, so that extract redoes them")
    ] = False,
) -> None:
    """Read every byte of a store and compare it with the recorded hashes; the exit code is 1 if anything differs.

    Example: probing store verify cache/states/gpt2
    """
    module = import_module("probing.states.store")
    if repair:
        for name in module.repair(store):
            say(f"set aside: {name}; run `probing extract` again to compute it anew")
    opened = module.Store.open(store, allow_partial=True, verification="full")
    problems = opened.verify()
    done = f"{opened.shards_done} of {opened.shards_planned} shards"
    if problems:
        errors = import_module("probing.errors")
        raise errors.CorruptShard(
            "the store does not verify",
            needed="every shard as its record says",
            found="; ".join(problems[:10]),
            where=str(store),
            next_step="run `probing store verify --repair`, then `probing extract` again",
        )
    say(f"{store}: sound, {done}, {opened.n_rows} rows")


@store_app.command("merge", cls=OnceOnly)
def store_merge(
    first: Annotated[Path, path_argument(metavar="STORE_DIR", help="store to complete", show_default=False)],
    other: Annotated[
        Path, path_argument(metavar="OTHER_DIR", help="store to copy from, not changed", show_default=False)
    ],
    prefer_first: Annotated[
        bool, typer.Option("--prefer-first", help="where shards differ, keep those of STORE_DIR")
    ] = False,
) -> None:
    """Copy the files (shards) that a store lacks from another part of the same extraction.

    Example: probing store merge cache/states/gpt2 /mnt/other/gpt2
    """
    copied = import_module("probing.states.store").merge(first, other, prefer_target=prefer_first)
    say(f"{first}: {len(copied)} shards copied")


@store_app.command("gc", cls=OnceOnly)
def store_gc(
    store: Annotated[Path, path_argument(metavar="STORE_DIR", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, only list")] = False,
) -> None:
    """List the files of a store that nothing needs, and with --yes delete them.

    Example: probing store gc cache/states/gpt2 --yes
    """
    module = import_module("probing.states.store")
    found = module.garbage(store)
    for item in found:
        say(f"{item.path}  {item.n_bytes} bytes  {item.reason}")
    if yes:
        say(f"{module.collect(found)} bytes deleted")
    else:
        say(f"{sum(item.n_bytes for item in found)} bytes; nothing was deleted (add --yes)")


@store_app.command("rm", cls=OnceOnly)
def store_rm(
    store: Annotated[Path, path_argument(metavar="STORE_DIR", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete one store.

    Example: probing store rm cache/states/gpt2
    """
    if not yes:
        typer.confirm(f"delete {store}?", abort=True)
    left = import_module("probing.states.store").remove(store)
    say(f"{store}: deleted" + (f"; left alone, not of a store: {', '.join(left)}" if left else ""))


@store_app.command("export", cls=OnceOnly)
def store_export(
    store: Annotated[Path, path_argument(metavar="STORE_DIR", show_default=False)],
    to: Annotated[Path, typer.Option("--to", help="NAME.h5, NAME.safetensors, NAME.parquet, or a folder of .npy")],
    compress: Annotated[bool, typer.Option("--compress", help="HDF5: shuffle and deflate")] = False,
) -> None:
    """Write a complete store as one file that other tools read.

    Example: probing store export cache/states/gpt2 --to gpt2.safetensors
    """
    say(f"exported: {import_module('probing.states.store.export').export(store, to, compress=compress)}")
