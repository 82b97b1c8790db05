"""Defines `intervene`, which measures whether a model uses a property: it edits states, measures the output and gives
verdicts. Stored results are not measured again.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probing._renamed import takes_old_names
from probing.contracts.behaviour import Behaviour
from probing.errors import (
    BadParameter,
    DamagedUnit,
    DegenerateDesign,
    DoubtfulAnswer,
    DoubtfulData,
    InputError,
    NoBehaviour,
    NotResumed,
    ProbingError,
    UnknownSite,
    warn_user,
)
from probing.files.whole_files import folder_locked, read_sealed, sealed, sweep, write_atomically
from probing.models.language_model import LanguageModel
from probing.models.site import select_sites
from probing.provenance import digest, file_sha256, model_called
from probing.recipes import build, spec_of, text_of
from probing.results.analysis import failed_together
from probing.results.use import UseResult, read_use_results
from probing.system.machine import target_of
from probing.system.progress import steps_bar
from probing.text.corpus import Corpus
from probing.use.effects import UseOptions
from probing.use.measure import measure_property
from probing.use.subjects import Subjects
from probing.use.unmatched import unmatched_result
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Criteria, UseRun, write_use_run

VERSION = 10  # raised when a number of a `UseResult`, or how one is kept, changes
FOLDER = "use"


class ResultCache:
    """Stores results by a hash of everything that determines them, so that they are not measured again.

    Args:
        folder: folder of the run; None stores nothing.
        common: settings that all properties of the run have in common.
    """

    def __init__(self, folder: Path | None, common: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else folder / FOLDER
        self._common = dict(common)
        for place in [] if folder is None else [folder, folder / FOLDER]:
            sweep(place)

    def unit(self, key: Mapping[str, Any]) -> str:
        """Return the hash of everything that determines a result: the settings in `key` and those of the whole run."""
        return digest(self._common | dict(key))[:32]

    def _file(self, key: Mapping[str, Any]) -> Path | None:
        return None if self._folder is None else self._folder / f"{self.unit(key)}.json"

    def get(self, key: Mapping[str, Any]) -> UseResult | None:
        """Return the stored result with these settings (`key`); None if it was not measured or cannot be read."""
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        text = read_sealed(file)
        try:
            if text is not None:
                return UseResult.from_json(text)
        except InputError:
            pass
        warnings.warn(
            f"{key.get('task')} is measured again: its file is not as it was written (changed, or of an earlier "
            f"version): {file}",
            DamagedUnit,
            stacklevel=3,
        )
        return None

    def put(self, key: Mapping[str, Any], result: UseResult) -> UseResult:
        """Store a result under its settings (`key`), and return it."""
        file = self._file(key)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, sealed(result.to_json()))
        return result


@takes_old_names
def intervene(
    model: LanguageModel,
    corpus: Corpus,
    *,
    tasks: str | Sequence[str],
    behaviour: Behaviour | str,
    sites: str | Sequence[str] = "resid.*",
    positions: Sequence[str] = (),
    covariates: Sequence[str] = (),
    split: str | None = None,
    max_rows: int = 2000,
    criteria: Criteria | None = None,
    options: UseOptions | None = None,
    minimal_pairs: str | None = None,
    to: str | Path | None = None,
    replace: bool = False,
    progress: bool | None = None,
) -> UseRun:
    """Change properties in the states of a running model, measure how its behaviour changes, and return the results
    with a verdict for each property and place.

    Sentences (or words) of different classes are compared only if they agree in all covariates. The covariates of a
    property of sentences are all other `tasks` and those in `covariates`; those of a property of words are only those
    in `covariates`.

    Args:
        model: the model, with the head that the behaviour needs.
        corpus: corpus with labels. All its splits are used unless `split` names one, since groups are divided at random
            into three folds, whatever their split.
        tasks: names of tasks, all about words (`feature:Number`) or all about sentences (`column:tense`).
        behaviour: what is measured: `next_token:answers= was| were` (spaces count), `masked_token` with such answers,
            `head`, `readout`, or an object.
        sites: names of sites, with wildcards, such as `resid.*`, `attn_out.1` or `heads.*`.
        positions: for tasks of sentences, the positions whose states are edited, such as `subject` or `end`.
        covariates: names of tasks whose labels compared rows must share, in addition to the above.
        split: split of the corpus to use; None means all.
        max_rows: largest number of rows; if there are more, rows are sampled with classes as equal in size as possible.
        criteria: thresholds of the verdicts.
        options: see `UseOptions`.
        minimal_pairs: name of the column that holds, for each sentence, the id of the sentence that differs from it in
            the task's property only. Whole states are then exchanged within these pairs, and the natural contrast (the
            difference in output between real sentences of two values) is measured on them.
        to: folder for use.jsonl and verdicts.parquet; None writes nothing. Results stored there are not measured again,
            unless the behaviour cannot be written as text (`NotResumed`). Other results in the folder stay; those of
            the same model are judged together with these.
        replace: whether to drop results of the same task, behaviour and model with other settings.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        UnknownName: there is no such task, position or site.
        BadParameter: there is no task, tasks are of words and of sentences, or positions are missing or superfluous.
        NoBehaviour: no behaviour is given, the model cannot give it, or it is the same for all rows.
        ProvenanceMismatch: an intervention in `options.comparisons` reads a file made for other states.
        EditFailed: a check of the edits failed, such as that an edit which changes nothing leaves the output as it is.
        DegenerateDesign, TooFewGroups: there are too few rows or groups of different classes.
        UnitFailed: some of several tasks have too few rows of different classes; the others were measured and are
            written.
        CannotReachFile: `to` cannot be used; it is checked before work begins.
        BadTwin, OverlappingGroups: minimal pairs differ in more than the property, or are in different groups.

    Warns:
        DoubtfulAnswer: an answer spelt with or without a space before it is far likelier than the answer itself; or
            one of a few words in each text decides a property, and the corpus has no groups.
        DoubtfulData: no row of a task has a counterpart that agrees in the covariates, such as where another task
            determines it: nothing was edited, and its verdicts are *inconclusive*.
        NotResumed: the behaviour is an object of your own, or has a parameter that is a function.

    Example:
        >>> run = intervene(model, corpus, tasks=["column:tense"], behaviour="next_token:answers=was|is",
        ...                 positions=["end"])  # doctest: +SKIP
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise BadParameter("no task was given", needed="one or more", found="none")
    if not behaviour:
        raise NoBehaviour(
            "no behaviour was declared",
            needed="what of the outputs is measured",
            found="nothing",
            next_step="such as next_token:answers=A|B for a causal model, readout for an encoder",
        )
    target_of(to)
    criteria, options = criteria or Criteria(), options or UseOptions()
    measured = build("behaviours", behaviour) if isinstance(behaviour, str) else behaviour
    identity = model.identity()
    called = model_called(identity["model"])
    common = {
        "model": identity,
        "corpus": corpus.fingerprint,
        "behaviour": [spec_of(measured), *map(file_sha256, measured.files)],
        "sites": sites,
        "positions": positions,
        "split": split,
        "max_rows": max_rows,
        "options": vars(options),
        "version": VERSION,
    } | ({} if minimal_pairs is None else {"twins": minimal_pairs})
    common |= _checked_edits(options.comparisons, model, sites)
    known = ResultCache(None if to is None or not _is_told(measured) else Path(to), common)
    subjects = Subjects(
        model,
        corpus,
        names,
        measured,
        sites=sites,
        positions=positions,
        covariates=covariates,
        split=split,
        max_rows=max_rows,
        seed=options.seed,
        minimal_pairs=minimal_pairs,
    )
    for name in names:
        subjects.check(name)
    results: list[UseResult] = []
    failed: dict[str, ProbingError] = {}
    with steps_bar("use", "properties", len(names), progress) as advance:
        for done, name in enumerate(names, start=1):
            key = {"task": name, "others": subjects.others(name), "labels": subjects.labels_digest(name)}
            found = known.get(key)
            if found is None:
                instrument, prop = subjects.of(name)
                of = spec_of(measured)
                try:
                    found = measure_property(instrument, prop, behaviour=of, model=called, options=options)
                except DegenerateDesign as error:
                    try:
                        found = unmatched_result(instrument, prop, error, behaviour=of, model=called, options=options)
                    except DegenerateDesign as named:
                        failed[name] = named
                        continue
                found = dataclasses.replace(
                    found,
                    settings=found.settings | {"unit": known.unit(key), "model_facts": model.facts()},
                    left_out=subjects.left_out(name),
                    answers=instrument.answers,
                    doubts=(*instrument.doubts, *subjects.doubts(name)),
                )
                known.put(key, found)
            results.append(found)
            advance(done, len(names))
    for doubt in dict.fromkeys(doubt for result in results for doubt in result.doubts):
        warnings.warn(doubt, DoubtfulAnswer, stacklevel=2)
    for one in results:
        if one.unmatched:
            warn_user(f"{one.task}: use inconclusive, nothing was edited: {one.unmatched}", DoubtfulData)
    told = [dataclasses.replace(found, settings=found.settings | {"criteria": vars(criteria)}) for found in results]
    run = _judged(told) if to is None or not told else _merged(told, Path(to), drop=replace)
    if failed:
        raise (
            next(iter(failed.values()))
            if len(names) == 1
            else failed_together(failed, f"{len(failed)} of {len(names)} tasks")
        )
    return run


def _checked_edits(recipes: Sequence[str], model: LanguageModel, sites: str | Sequence[str]) -> dict[str, Any]:
    """Check that interventions which read files are made for states of the sites that are edited, and return, for the
    hash of results, the hashes of these files; an empty dict if there are none.

    Raises:
        UnknownSite: the site of an intervention is not edited.
        ProvenanceMismatch, BadParameter: see `Intervention.check`.
    """
    edits = {name: build("interventions", name) for name in recipes}
    reading = {name: edit for name, edit in edits.items() if edit.files}
    chosen = select_sites(sites, model.sites) if reading else ()
    for name, edit in reading.items():
        own = [site for site in chosen if edit.edits(site)]
        if not own:
            raise UnknownSite(
                f"no site is edited that {name} is made for",
                needed="the site that its file names among those of --sites",
                found=", ".join(chosen),
                next_step="name that site in --sites, or its site in the recipe: site=…",
            )
        for site in own:
            edit.check(site, model.width(site), model.identity()["model"])
    hashes = [file_sha256(file) for edit in reading.values() for file in edit.files]
    return {"edits": hashes} if hashes else {}


def _judged(results: Sequence[UseResult]) -> UseRun:
    return UseRun(tuple(results), tuple(judge(results)))


def _merged(results: Sequence[UseResult], folder: Path, *, drop: bool) -> UseRun:
    """Return these results, judged together with all that the folder holds of the same model, and written beside
    them.
    """
    with folder_locked(folder / FOLDER):
        file = folder / "use.jsonl"
        older = read_use_results(file) if file.is_file() else []
        units, asked = {one.unit for one in results}, {_question(one) for one in results}
        kept = {_key(one): one for one in older if not drop or one.unit in units or _question(one) not in asked}
        whole = _judged(list((kept | {_key(one): one for one in results}).values()))
        write_use_run(whole, folder)
    return whole.of_units(units)


def _question(result: UseResult) -> tuple[str, ...]:
    """Return what a result is of, whatever the settings that gave it."""
    return result.task, result.behaviour, result.model


def _key(result: UseResult) -> tuple[str, ...]:
    return (result.unit,) if result.unit else _question(result)


def _is_told(behaviour: Behaviour) -> bool:
    """Return whether the text of a behaviour says all of it, so that its results can be looked up by it again."""
    if text_of("behaviours", behaviour) is not None:
        return True
    warnings.warn(
        f"{spec_of(behaviour)} is measured anew by each run: it is of your own class, or a parameter of it is no text",
        NotResumed,
        stacklevel=3,
    )
    return False
