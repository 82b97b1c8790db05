"""Keeps a training and its dictionary in a folder: what is there is taken up, or refused, or deleted on request."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.formats.ours import FILE
from probing.dictionaries.training.fitting import STATE, DictionaryOptions, Fit, fit_dictionary
from probing.dictionaries.training.token_states import TokenStates
from probing.errors import ConfigError, ProbingError
from probing.files.strict_json import strict_json
from probing.files.whole_files import folder_locked, read_sealed, sealed, sweep, write_atomically
from probing.provenance import __version__, digest
from probing.results.dictionary_training import NAME
from probing.system.progress import steps_bar

FIT = "fit.json"  # beside a dictionary that was trained here
EVALUATION = "evaluation.json"  # the same numbers in the form of SAEBench
TWINS = "twin"  # folder of the dictionary of the untrained twin
_RESULTS = (NAME, NAME.replace(".json", ".parquet"), EVALUATION, "report.html")


def make_room(
    folder: Path, rows: TokenStates, options: DictionaryOptions, twins: TokenStates | None, *, replace: bool
) -> None:
    """Check that what is in a folder belongs to this training, or delete it on request.

    Raises:
        ConfigError: there is another dictionary, and `replace` is not set.
    """
    own, theirs = _mark(rows, options), None if twins is None else _mark(twins, options)
    is_other = _holds_another(folder, own)
    other_twin = _holds_another(folder / TWINS, theirs) and (is_other or theirs is not None)
    if not (is_other or other_twin):
        return
    if not replace:
        raise ConfigError(
            "this folder holds another dictionary",
            needed="one of the same states and options, or none",
            found=f"a dictionary of other states or options, in {folder if is_other else folder / TWINS}",
            where=str(folder),
            next_step="give another folder, or replace what is there (--replace)",
        )
    with folder_locked(folder):
        names = [*_RESULTS, *([FIT, STATE, FILE] if is_other else [])]
        old = [folder / name for name in names]
        old += [folder / TWINS / name for name in (FIT, STATE, FILE)]
        old += [*(folder.glob("weights.*.safetensors") if is_other else ())]
        for file in [*old, *(folder / TWINS).glob("weights.*.safetensors")]:
            file.unlink(missing_ok=True)


def _holds_another(folder: Path, mark: str | None) -> bool:
    """Return whether a folder holds a dictionary that is not of the training with this mark."""
    if not (folder / FILE).exists():
        return False
    text = read_sealed(folder / FIT)
    if text is not None:
        return bool(strict_json(text).get("mark") != mark)
    return not (folder / STATE).exists()  # killed while it was written


def _mark(rows: TokenStates, options: DictionaryOptions) -> str:
    """Return what tells trainings apart: version, options, rows and their states."""
    return digest([__version__, asdict(options), rows.identity])


def fitted(
    rows: TokenStates, options: DictionaryOptions, folder: Path | None, title: str, progress: bool | None
) -> Fit:
    """Return the dictionary in a folder if it was trained there on these rows with these options, else train it and
    write it there.
    """
    mark = _mark(rows, options)
    if folder is None:
        with steps_bar(title, "steps", None, progress) as advance:
            return fit_dictionary(rows, options, advance=advance)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_locked(folder):
        sweep(folder)
        known = _known(folder, mark)
        if known is not None:
            return known
        with steps_bar(title, "steps", None, progress) as advance:
            fit = fit_dictionary(rows, options, folder=folder, mark=mark, advance=advance)
        fit.dictionary.save(folder)
        facts = {"mark": mark, "content_id": fit.dictionary.content_id, "errors": fit.errors, "alive": fit.alive}
        write_atomically(folder / FIT, sealed(json.dumps(facts | {"seconds": fit.seconds})))
        (folder / STATE).unlink(missing_ok=True)
    return fit


def _known(folder: Path, mark: str) -> Fit | None:
    """Return the dictionary that was trained in a folder with this mark, if it is as it was written."""
    text = read_sealed(folder / FIT)
    if text is None:
        return None
    facts = strict_json(text)
    if facts.get("mark") != mark:
        return None
    try:
        dictionary = Dictionary.load(folder)
    except ProbingError:  # damaged: trained anew
        return None
    if dictionary.content_id != facts["content_id"]:
        return None
    return Fit(dictionary, tuple(facts["errors"]), facts["alive"], facts["seconds"])
