"""`probing completion SHELL`: prints a script that completes commands, options and names of members in a shell."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any

import typer

from probing import registry
from probing.cli.once_only import OnceOnly
from probing.system.screen import say


class Shell(StrEnum):
    """A shell that a completion script is written for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_MEMBERS = {"--probe": "probes", "--control": "controls", "--measure": "measures", "--task": "tasks"}


def add_completion(app: typer.Typer) -> None:
    """Add the command `completion` to the app."""

    @app.command("completion", cls=OnceOnly)
    def completion(
        shell: Annotated[Shell, typer.Argument(help="shell: bash, zsh or fish", show_default=False)],
    ) -> None:
        """Print a script by which a shell completes commands, options and the names of members.

        Examples: source <(probing completion bash)    probing completion fish > ~/.config/fish/completions/probing.fish
        """
        command = typer.main.get_command(app)
        say(script(shell, dict(_words(command, "probing", None))), nl=False)


def _words(command: Any, path: str, parent: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every command with the words that may follow it: commands below it, or its options."""
    context = command.make_context(path.rpartition(" ")[2], [], parent=parent, resilient_parsing=True)
    built = context.command  # a command of a job is built only here
    below = getattr(command, "commands", {})
    options = [
        name
        for parameter in built.params
        if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False)
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]
    yield path, (*sorted(below), *options, "--help")
    for name in sorted(below):
        yield from _words(below[name], f"{path} {name}", context)


def script(shell: Shell, words: dict[str, tuple[str, ...]]) -> str:
    """Return the completion script for a shell; `words` lists, for each command, the subcommands or options that may
    follow it. File names are completed where no word fits.
    """
    members = {option: registry.names(folder) for option, folder in _MEMBERS.items()}
    return _fish(words, members) if shell == Shell.FISH else _bash(words, members, is_zsh=shell == Shell.ZSH)


def _bash(words: dict[str, tuple[str, ...]], members: Any, *, is_zsh: bool) -> str:
    cases = "".join(f'    "{path}") echo "{" ".join(found)}" ;;\n' for path, found in words.items())
    values = "".join(f'    {option}) echo "{" ".join(names)}" ;;\n' for option, names in members.items())
    above = [path for path in words if any(other.startswith(f"{path} ") for other in words)]
    groups = "".join(f'    "{path}") echo yes ;;\n' for path in above)
    head = "#compdef probing\nautoload -U +X bashcompinit && bashcompinit\n" if is_zsh else ""
    return f"""{head}# completes `probing` in {"zsh" if is_zsh else "bash"}; made by `probing completion`
_probing_words() {{
  case "$1" in
{cases}  esac
}}
_probing_members() {{
  case "$1" in
{values}  esac
}}
_probing() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" place="probing" i found
  for ((i = 1; i < COMP_CWORD; i++)); do
    found=" $(_probing_words "$place ${{COMP_WORDS[i]}}") "
    [ "$found" = "  " ] || place="$place ${{COMP_WORDS[i]}}"
  done
  found="$(_probing_members "$before")"
  if [ -z "$found" ] && {{ [ "${{word#-}}" != "$word" ] || [ -n "$(_probing_group "$place")" ]; }}; then
    found="$(_probing_words "$place")"
  fi
  COMPREPLY=($(compgen -W "$found" -- "$word"))
}}
_probing_group() {{
  case "$1" in
{groups}  esac
}}
complete -o default -o bashdefault -F _probing probing
"""


def _fish(words: dict[str, tuple[str, ...]], members: Any) -> str:
    lines = [
        "# completes `probing` in fish; made by `probing completion`",
        "complete -c probing -f -n __fish_use_subcommand",
    ]
    for path, found in words.items():
        parts = path.split()[1:]
        seen = [f"__fish_seen_subcommand_from {part}" for part in parts] or ["__fish_use_subcommand"]
        for word in found:
            if word.startswith("--"):
                values = f' -x -a "{" ".join(members[word])}"' if word in members else ""
                lines.append(f'complete -c probing -n "{"; and ".join(seen)}" -l {word[2:]}{values}')
            elif not word.startswith("-"):
                lines.append(f'complete -c probing -f -n "{"; and ".join(seen)}" -a {word}')
    return "\n".join(lines) + "\n"


def version_option(value: bool) -> None:
    """Print the version and end the program, if the option `--version` is given."""
    if value:
        say(f"probing {import_module('probing.provenance').__version__}")
        raise typer.Exit
