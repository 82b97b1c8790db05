"""A Sphinx extension that writes the reference pages, docs/reference/, from the package itself before every build.

`pages()` gives them as text without Sphinx; tests/docs compares that with the package.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pygments.lexers.special import TextLexer  # type: ignore[import-untyped]
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

from probing import contracts, errors, registry

HERE = Path(__file__).parent
FOLDER = HERE / "reference"

# Which public names stand on which page of the API, in the order in which they are read.
SUBJECTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "corpus": ("Corpora", "Labelled text, and how it is split.", ("Corpus", "Example")),
    "states": (
        "Models and states",
        "A model, its sites, and the stores of its states.",
        ("LanguageModel", "Site", "extract", "import_states", "Store", "Replay"),
    ),
    "training": (
        "Probes and their results",
        "From states to scores with intervals, and from one source to another.",
        (
            "train",
            "probe",
            "ProbeResults",
            "ProbeResult",
            "Score",
            "compare",
            "transfer",
            "leave_one_out",
            "similarity",
            "load_probe",
        ),
    ),
    "use": (
        "Use",
        "What the model does when a property is exchanged in its states.",
        ("intervene", "UseRun", "Verdict", "judge", "read_directions", "export_directions", "apply_direction"),
    ),
    "dictionaries": (
        "Dictionaries",
        "Sparse autoencoders and transcoders: checked on states, encoded, trained beside their controls; and the texts "
        "that excite a latent.",
        ("Dictionary", "check_dictionary", "encode_states", "train_dictionary", "top_contexts"),
    ),
    "looking": (
        "Looking inside",
        "States and attention of texts, and what the states say when they are read as the model's output: each cue "
        "beside the intervention or the controls that test it.",
        ("inspect", "Inspection", "lens", "LensResult"),
    ),
    "circuits": (
        "Circuits",
        "Which heads and MLPs, through which edges, give an answer; found on some pairs and judged on others.",
        ("circuit", "CircuitResult"),
    ),
    "scoring": (
        "Probes on new text",
        "A saved probe scores texts, has a threshold, watches generation; its direction is added to a running model.",
        ("score", "TextScores", "choose_threshold", "watch", "steer", "steering_report"),
    ),
    "studies": (
        "Studies, jobs and reports",
        "Whole runs as objects. Their keys are the options of the :doc:`command line </reference/command-line>` and "
        "the keys of :doc:`study files </reference/study-files>`.",
        ("Study", "ProbingCallback", "ExtractJob", "TrainJob", "UseJob", "ReportJob", "report"),
    ),
}
ON_ERRORS = ("ProbingError",)  # public names that stand on the page of errors


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-docstring", _escape_docstring, priority=400)
    app.connect("autodoc-skip-member", _is_left_out)
    app.add_lexer("csv", TextLexer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _write(_: Sphinx) -> None:
    """Write every page whose text has changed, and remove those that are no longer made."""
    made = pages()
    FOLDER.mkdir(exist_ok=True)
    for name, text in made.items():
        file = FOLDER / f"{name}.rst"
        file.parent.mkdir(exist_ok=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    for file in FOLDER.rglob("*.rst"):
        if file.relative_to(FOLDER).with_suffix("").as_posix() not in made:
            file.unlink()


def _escape_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Make plain characters of what reStructuredText would read as markup: |x| in a docstring is a magnitude."""
    lines[:] = _flags_as_code(_without_bars("\n".join(lines))).split("\n")


def _is_left_out(app: Sphinx, what: str, name: str, value: Any, is_left_out: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn adds to every estimator (`set_fit_request` and the like)."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def _flags_as_code(text: str) -> str:
    """Return text with its --flags as code: a pair of hyphens would become a dash."""
    return re.sub(r"(`+[^`]*`+)|(?<![\w-])--[a-z][a-z-]+", lambda found: found[1] or f"`{found[0]}`", text)


def _without_bars(text: str) -> str:
    return re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", text)


def pages() -> dict[str, str]:
    """Return the text of every generated page, in reStructuredText, by its name in docs/reference."""
    made = {"api/" + name: _api_page(*subject) for name, subject in SUBJECTS.items()}
    made |= {"api/contracts": _contracts_page(), "api/errors": _errors_page()}
    made |= {"api/index": _api_index(), "command-line": _command_page(), "study-files": _study_page()}
    return made | {"result-files": _columns_page(), "members": _members_page()}


# Writing reStructuredText.


def _heading(text: str, underline: str, *, anchor: str = "") -> str:
    return (f".. _{anchor}:\n\n" if anchor else "") + f"{text}\n{underline * max(4, 2 * len(text))}\n"


def _words(text: str) -> str:
    """Return plain text with `code` and --flags in it as reStructuredText."""
    parts = re.split(r"`([^`]+)`", _flags_as_code(" ".join(text.split())))
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in enumerate(parts))


def _indented(text: str, by: str = "   ") -> str:
    return "".join(by + line if line.strip() else line for line in text.splitlines(keepends=True))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], widths: str) -> str:
    lines = [f".. list-table::\n   :header-rows: 1\n   :widths: {widths}\n\n"]
    for row in (head, *rows):
        lines += [f"   {'*' if i == 0 else ' '} - {cell}\n" for i, cell in enumerate(row)]
    return "".join(lines)


def _docstring(text: str) -> str:
    """Return a docstring, its sections written as napoleon does."""
    config: Any = Config(napoleon_google_docstring=True, napoleon_use_ivar=True)
    written = str(GoogleDocstring(_flags_as_code(_without_bars(inspect.cleandoc(text))), config, what="class"))
    written = re.sub(r"^:(?:ivar|param) [^:]+:", lambda found: found[0].replace("_", r"\_"), written, flags=re.M)
    return re.sub(r"(`[^`]*`)|(?<=[^\W_])_(?!\w)", lambda found: found[1] or r"\_", written)  # coef_ is no link


# The API.


def _api_index() -> str:
    listed = "".join(f"   {name}\n" for name in (*SUBJECTS, "contracts", "errors"))
    rows = [
        (f":py:obj:`{name} <probing.{name}>`", f":doc:`{subject[0]} <{page}>`", _words(_first_sentence(name)))
        for page, subject in SUBJECTS.items()
        for name in subject[2]
    ]
    return (
        _heading("Python", "=", anchor="api")
        + "\nEvery public name is an attribute of ``probing``, and is imported when it is first used.\n\n"
        + f".. toctree::\n   :hidden:\n\n{listed}\n"
        + _table(("Name", "Page", ""), rows, "22 22 56")
        + "\nBeside these, :doc:`contracts` has what can be plugged in, and :doc:`errors` every error.\n"
    )


def _first_sentence(name: str) -> str:
    return _summary(getattr(import_module("probing"), name).__doc__)


def _summary(text: str | None) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    found = re.match(r".*?[.!?](?=\s+[^a-z\s]|$)", paragraph)
    return found[0] if found else paragraph


def _api_page(title: str, about: str, names: tuple[str, ...]) -> str:
    return _heading(title, "=") + f"\n{about}\n\n" + "\n".join(_documented("probing", name) for name in names)


def _documented(module: str, name: str) -> str:
    value = getattr(import_module(module), name)
    if not inspect.isclass(value):
        return f".. autofunction:: {module}.{name}\n"
    if issubclass(value, BaseModel):  # its fields stand on the page of study files
        return f".. autoclass:: {module}.{name}(**keys)\n   :exclude-members: model_config\n   :no-undoc-members:\n"
    return f".. autoclass:: {module}.{name}\n"


def _contracts_page() -> str:
    return (
        _heading("Contracts", "=")
        + "\nWhat can be plugged in. A member is one file; :doc:`/extending` says which, and what it has to have.\n\n"
        + "\n".join(f".. autoclass:: probing.contracts.{name}\n" for name in contracts.__all__)
    )


def _errors_page() -> str:
    """Return the page of errors: each with its sentence, below the one that it is a kind of."""
    kinds = [*_below(errors.ProbingError), *_below(errors.ProbingWarning)]
    return (
        _heading("Errors and warnings", "=")
        + "\nEvery error says what was needed, what was found, where, and the next step. All of them are "
        + ":py:exc:`probing.ProbingError`, and stand in the module ``probing.errors``.\n\n"
        + "\n".join(_error(kind) for kind in dict.fromkeys(kinds))
    )


def _below(kind: type) -> Iterator[type]:
    yield kind
    below: list[type] = type.__subclasses__(kind)
    for one in sorted(below, key=_name):
        if one.__module__ == errors.__name__:
            yield from _below(one)


def _name(kind: type) -> str:
    return kind.__name__


def _error(kind: type) -> str:
    home = "probing" if kind.__name__ in ON_ERRORS else "probing.errors"
    bases = [base.__name__ for base in kind.__bases__ if base.__module__ == errors.__name__]
    text = inspect.cleandoc(kind.__doc__ or "")
    if bases:
        first, *rest = text.split("\n\n", 1)
        text = "\n\n".join([f"{first} A kind of {' and '.join(f'`{base}`' for base in bases)}.", *rest])
    return f".. py:exception:: {home}.{kind.__name__}\n\n{_indented(_docstring(text))}\n"


# The command line.


def commands() -> Iterator[tuple[str, Any]]:
    """Give every command of the live program, as `probing store ls`, with its Click command."""
    import typer.main

    program = typer.main.get_command(import_module("probing.cli.commands").app)
    yield from _commands("probing", program, None)


def _commands(name: str, command: Any, parent: Any) -> Iterator[tuple[str, Any]]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    yield name, context.command  # a command of a job is built only here
    for below, one in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(f"{name} {below}", one, context)


def options_of(command: Any) -> list[Any]:
    """Return the parameters of a command that its help shows."""
    return [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]


def _command_page() -> str:
    known = dict(commands())
    rows = [
        (f":ref:`{name} <{_anchor(name)}>`", _words(_summary(known[name].help))) for name in known if name != "probing"
    ]
    parts = [_heading("Command line", "="), "\n", _COMMANDS_INTRO, _table(("Command", ""), rows, "30 70")]
    for name, command in known.items():
        if hasattr(command, "commands"):
            title = "" if name == "probing" else _heading(name, "-", anchor=_anchor(name))
            parts.append(f"\n{title}\n{_words(command.help or '')}\n" if title else "")
        else:
            parts.append(_command_section(name, command, "~" if name.count(" ") > 1 else "-"))
    return "".join(parts)


def _anchor(name: str) -> str:
    return "command-" + name.replace(" ", "-")


_COMMANDS_INTRO = """Every command has ``--help``. Results go to standard output (``--json``: as JSON lines),
progress to standard error. Exit codes: 0 done, 1 a readable error, 2 wrong usage, 75 stopped by SIGTERM or SIGUSR1
(start it again).
:doc:`/commands` shows the commands at work.

"""


def _command_section(name: str, command: Any, underline: str) -> str:
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))
    parts = [f"\n{_heading(name, underline, anchor=_anchor(name))}\n.. program:: {name}\n\n"]
    for paragraph in paragraphs:
        label, found, example = paragraph.partition("xample: ")
        if found and label == "E":
            parts.append(f".. code-block:: sh\n\n   {_wrapped(' '.join(example.split()))}\n\n")
        elif paragraph.startswith("Examples: "):
            lines = re.split(r"\s{2,}|\n", paragraph.removeprefix("Examples: "))
            parts.append(".. code-block:: sh\n\n" + "".join(f"   {line}\n" for line in lines) + "\n")
        else:
            parts.append(_words(paragraph) + "\n\n")
    shown = options_of(command)
    arguments = [p for p in shown if p.param_type_name == "argument"]
    parts += [_argument(p) for p in arguments]
    parts += [_option(p) for p in shown if p not in arguments]
    return "".join(parts)


def _wrapped(command: str) -> str:
    """Return a long command on several lines, each a pair of an option and its value."""
    if len(command) < 80:
        return command
    lines, last = [], ""
    for part in re.split(r" (?=--)", command):
        if last and len(last) + len(part) > 84:
            lines.append(last)
            last = part
        else:
            last = f"{last} {part}".strip()
    return " \\\n     ".join([*lines, last])


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).strip("{}[].")
    more = _facts(parameter)
    return f".. option:: {name}\n\n   {_sentence(getattr(parameter, 'help', ''))}{more}\n\n"


def _option(parameter: Any) -> str:
    kind = "" if parameter.is_flag else f" <{_kind(parameter)}>"
    named = ", ".join(f"{name}{kind}" for name in (*parameter.opts, *parameter.secondary_opts))
    return f".. option:: {named}\n\n   {_sentence(parameter.help)}{_facts(parameter)}\n\n"


def _kind(parameter: Any) -> str:
    """Return what the value of an option is: a number, a path or text."""
    annotation = str(getattr(getattr(parameter, "type_descriptor", None), "annotation", str))
    kinds = {"int": "number", "float": "number", "Path": "path"}
    return next((kind for name, kind in kinds.items() if re.search(rf"\b{name}\b", annotation)), "text")


def _facts(parameter: Any) -> str:
    """Return whether a parameter is required, may be repeated, and what it is by default, as sentences."""
    default = parameter.default
    default = default() if callable(default) else default
    default = None if type(default).__name__ == "Sentinel" else default
    facts = [" Required."] if parameter.required else []
    if getattr(parameter, "multiple", False) or parameter.nargs == -1:
        facts.append("" if "repeat" in (getattr(parameter, "help", "") or "") else " May be given several times.")
    if default not in (None, False, "", [], ()):
        facts.append(f" Default: ``{' '.join(default) if isinstance(default, list | tuple) else default}``.")
    return "".join(facts)


def _sentence(text: str | None) -> str:
    """Return a help text as a sentence."""
    text = (text or "").strip()
    is_code = re.match(r"\S*(?:[_./=]|:\S)", text)
    text = text if is_code else text[:1].upper() + text[1:]
    return _words(text if text.endswith((".", "…", "!", "?")) else f"{text}.")


# Study files.

STUDY_PARTS = (
    ("", "Study"),
    ("models", "ModelOptions"),
    ("extract", "ExtractOptions"),
    ("train", "StudyTrain"),
    ("use", "StudyUse"),
    ("inspect", "InspectOptions"),
    ("lens", "LensOptions"),
    ("similarity", "StudySimilarity"),
    ("circuit", "CircuitOptions"),
    ("truth", "KnownTruth"),
)


def study_keys() -> dict[str, FieldInfo]:
    """Return every key that a study file may have, as `train.probes`, with its field."""
    module = import_module("probing.jobs.study")
    found: dict[str, FieldInfo] = {}
    for part, name in STUDY_PARTS:
        for key, field in getattr(module, name).model_fields.items():
            if (part, key) != ("", "root"):  # set by the reader: the folder of the file
                found[f"{part}.{field.alias or key}".lstrip(".")] = field
    return found


def _study_page() -> str:
    example = (HERE.parent / "datasets" / "reference" / "study.yaml").read_text(encoding="utf-8")
    parts = [
        _heading("Study files", "="),
        "\n``probing run study.yaml`` runs all that one file asks for, and goes on where it was. This one ships:\n\n",
        f".. code-block:: yaml\n   :caption: datasets/reference/study.yaml\n\n{_indented(example)}\n",
        "Paths are taken from the file's own folder. A key that is not listed here is refused, and the nearest one is "
        "named. Where a list is asked for, a single text stands for a list of one; ``extract``, ``train`` and ``use`` "
        "may each be one mapping or a list of them.\n",
    ]
    for key, field in study_keys().items():
        part, _, _ = key.rpartition(".")
        if key == f"{part}.{_first_key(part)}":
            parts.append(f"\n{_heading(f'Keys of {part}', '-', anchor=f'study-{part}')}\n")
        elif not part and key == _first_key(""):
            parts.append(f"\n{_heading('Keys of the file', '-')}\n")
        parts.append(_study_key(key, field))
    return "".join(parts)


@cache
def _first_key(part: str) -> str:
    keys = [key for key in study_keys() if key.rpartition(".")[0] == part]
    return keys[0].rpartition(".")[2]


def _study_key(key: str, field: FieldInfo) -> str:
    default = "" if field.is_required() or field.default in (None, [], {}, "") else _as_yaml(field.default)
    facts = [f"*{_type_words(field.annotation)}*"]
    facts += ["required"] if field.is_required() else [f"default ``{default}``"] if default else []
    about = re.sub(r" ?\(repeatable\)|; repeatable|repeatable; ", "", _described(key, field))  # a word for flags
    return f".. confval:: {key}\n\n   {_sentence(about)} ({', '.join(facts)})\n\n"


def _described(key: str, field: FieldInfo) -> str:
    """Return the description of a key, which some take over from the option of the command line."""
    if field.description:
        return field.description
    part, _, name = key.rpartition(".")
    module = import_module("probing.jobs.study")
    own = getattr(module, dict(STUDY_PARTS)[part])
    name = next(known for known, one in own.model_fields.items() if name in (known, one.alias))
    bases = [base for base in (*own.__mro__[1:], module.CorpusOptions) if name in getattr(base, "model_fields", {})]
    return next((base.model_fields[name].description or "" for base in bases), "")


def _as_yaml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def _type_words(annotation: Any) -> str:
    """Return the type of a key in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_words(one) for one in inside if one is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(str(one) for one in inside)
    if origin is list:
        return "mapping, or a list of them" if _is_model(inside[0]) else f"list of {_type_words(inside[0])}s"
    if origin is dict or _is_model(annotation):
        return "mapping"
    return {bool: "true or false", int: "whole number", float: "number"}.get(annotation, "text")


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


# Files of results.


@cache
def columns() -> Mapping[str, Any]:
    """Return what docs/_columns.yaml says of every Parquet file."""
    read: Mapping[str, Any] = yaml.safe_load((HERE / "_columns.yaml").read_text(encoding="utf-8"))
    return read


def _columns_page() -> str:
    listed = [(f"`{name}`_", _words(file["a row is"])) for name, file in columns().items()]
    parts = [_heading("Files of results", "="), "\n", _FILES_INTRO, _table(("File", "A row is"), listed, "30 70")]
    for name, file in columns().items():
        rows = [(f"``{column}``", f"{_words(about)} (*{kind}*)") for column, (kind, about) in file["columns"].items()]
        parts.append(f"\n{_heading(name, '-')}\n")
        parts.append(f"A row is {_words(file['a row is'])}. Written by {_words(file['written by'])}.\n\n")
        parts.append(_table(("Column", "Meaning"), rows, "32 68"))
    return "".join(parts)


_FILES_INTRO = """Every column of every Parquet file, as written by the version of these pages. Read them with
``pandas.read_parquet`` or anything else that knows the format. Intervals are 95 % intervals. In column names
``{edit}`` is ``swap`` (class means are exchanged) or ``interchange`` (whole states are), ``{dose}`` a number such as
``1.5``, and ``{site}`` a site such as ``resid.6``; in file names ``{…}`` stands for what was asked for.

Beside these, a folder holds the same results as JSON lines (``results.jsonl``, ``use.jsonl``, ``transfer.jsonl``,
``leave_one_out.jsonl``, ``similarity.jsonl``), from which reports are made and runs are taken up again.

"""


# Members.


def _members_page() -> str:
    rows = [
        (f":ref:`{folder} <members-{folder}>`", ", ".join(f"``{name}``" for name in registry.names(folder)))
        for folder in registry.FOLDERS
    ]
    parts = [_heading("Members", "="), "\n", _MEMBERS_INTRO, _table(("Kind", "Members"), rows, "20 80")]
    for folder in registry.FOLDERS:
        parts.append(f"\n{_heading(folder.capitalize(), '-', anchor=f'members-{folder}')}\n")
        parts += [_member(folder, name) for name in registry.names(folder)]
    return "".join(parts)


_MEMBERS_INTRO = """All that can be named in a recipe, as ``probing list`` shows it. A recipe is a name, a colon and
options: ``mlp:hidden=64,layers=2``. What is left out has the default shown here.

"""


def _member(folder: str, name: str) -> str:
    module = registry.get(folder, name)
    member = module.MEMBER
    try:
        known = inspect.signature(member).parameters.values() if callable(member) else []
    except ValueError:
        known = []
    defaults = {p.name: p.default for p in known if p.default is not p.empty}
    text = _as_lists(_docstring(inspect.getdoc(member) or module.__doc__ or ""), defaults)
    return f".. describe:: {name}\n\n{_indented(text)}\n"


def _as_lists(text: str, defaults: Mapping[str, Any]) -> str:
    """Return a docstring with its parameters and attributes as lists; parameters are written as in a recipe."""
    lines: list[str] = []
    written: set[str] = set()
    title, inside = "", False
    for line in text.splitlines():
        found = re.match(r":(param|ivar) ([^:]+):\s*(.*)", line)
        if found:
            names = [name.strip().replace("\\", "") for name in found[2].split(",")]
            heading = "Options" if found[1] == "param" else "After the fit"
            lines += ["", f"*{heading}*", ""] if heading != title else []
            title, inside = heading, True
            written |= set(names)
            shown = ", ".join(f"``{name}={defaults[name]}``" if name in defaults else f"``{name}``" for name in names)
            lines.append(f"* {shown}: {found[3]}")
        elif inside and line.startswith(" "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line if line.strip() or not inside else "")
            inside = inside and not line.strip()
    missing = [f"``{name}={value}``" for name, value in defaults.items() if name not in written]
    lines += ["", f"*{'Other options' if 'Options' in text else 'Options'}*: {', '.join(missing)}"] if missing else []
    return "\n".join(lines) + "\n"
