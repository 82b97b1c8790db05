"""Defines every error and warning that this package raises on purpose.

    ProbingError
    ├─ InputError (ValueError)   UnknownName BadParameter ConfigError CorpusError AlignmentError DegenerateDesign
    │                            TooFewGroups OverlappingGroups NoBehaviour BadTwin WrongDictionary
    │                            NoSuchExample (IndexError)
    ├─ StoreError                NotAStore UnsupportedFormat IncompleteStore ProvenanceMismatch CorruptShard
    │                            NotRepresentable NonFiniteStates DiskFull (OSError) StoreBusy
    ├─ UntrustedFile
    ├─ ModelError                UnsupportedModel UnknownSite RemoteCodeRefused ReplayUnavailable EditFailed
    │                            PlantFailed
    ├─ WorkError                 UnitFailed WorkerLost Stalled
    ├─ MachineError              CannotReachFile (OSError)   NotEnoughMemory (MemoryError)
    ├─ Interrupted
    └─ MissingDependency (ImportError)

    ProbingWarning (UserWarning)  DoubtfulAnswer NotForThisTask UnusedWeights NotResumed OtherRows DamagedUnit
                                  OldName (DeprecationWarning)

A message says what was needed, what was found, where, and the next step; the four are attributes too.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

# Control characters; what turns the direction of text; line ends that only some programs know; halves of a character.
_NOT_SHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class ProbingError(Exception):
    """The base class of all errors that a user can act on.

    Args:
        message: what went wrong, in one sentence.
        needed: what the operation requires.
        found: what it was given or read instead.
        where: where the mistake is: file and line, sentence id, site or flag.
        next_step: what the user can do now.
    """

    def __init__(
        self, message: str, *, needed: str = "", found: str = "", where: str = "", next_step: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.needed = needed
        self.found = found
        self.where = where
        self.next_step = next_step

    def __str__(self) -> str:
        where = self.where.replace("\n", "\\n")  # names of files may hold line ends
        facts = (("needed", self.needed), ("found", self.found), ("where", where), ("next step", self.next_step))
        text = "\n".join([self.message, *(f"  {name}: {fact}" for name, fact in facts if fact)])
        return printable(text)

    def __reduce__(self) -> tuple[object, ...]:
        # All attributes go along, notes too: an error of another process is as good as one of this.
        facts = (self.message, self.needed, self.found, self.where, self.next_step)
        return _rebuild, (type(self), *facts), dict(self.__dict__)


def printable(text: str) -> str:
    r"""Return the text with those characters escaped that change how a terminal or page shows other text: control
    characters become `\x1b`, marks of text direction `\u202e`, and so on.
    """
    return _NOT_SHOWN.sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"  # the latter also in JSON


def _rebuild(
    kind: type[ProbingError], message: str, needed: str, found: str, where: str, next_step: str
) -> ProbingError:
    return kind(message, needed=needed, found=found, where=where, next_step=next_step)


class InputError(ProbingError, ValueError):
    """The caller gave something that cannot be used."""


class UnknownName(InputError):
    """A name is not in a registry, a corpus or a store."""


class BadParameter(InputError):
    """An option has a value out of range or of the wrong form."""


class ConfigError(InputError):
    """A study file lacks a required setting, or has one that is not allowed."""


class CorpusError(InputError):
    """A corpus file is missing, malformed or empty."""


class AlignmentError(InputError):
    """Words and tokens cannot be matched by character offsets."""


class DegenerateDesign(InputError):
    """Nothing can be learned from the labels: all are of one class, a split is empty, or no word has a token."""


class TooFewGroups(InputError):
    """There are fewer groups than an experiment in three folds needs."""


class OverlappingGroups(InputError):
    """Sentences that belong together, such as the two of a minimal pair, are in different groups, so an edit would be
    measured on sentences related to those it was fitted on.
    """


class NoBehaviour(InputError):
    """The model's output has nothing to measure: an answer is not a single token, or the measured value is always the
    same.
    """


class BadTwin(InputError):
    """The twin of a sentence (the other half of its minimal pair) is missing, has the same value of the property, or
    differs from it in other ways as well.
    """


class WrongDictionary(InputError):
    """A sparse dictionary does not describe the states as its file declares: it is read wrongly, or of other states."""


class NoSuchExample(InputError, IndexError):
    """A corpus has no example of this number."""


class StoreError(ProbingError):
    """The activation store cannot do what was requested."""


class NotAStore(StoreError):
    """A directory has no valid store.json."""


class UnsupportedFormat(StoreError):
    """A store has another major format version, or a file is not of the expected format."""


class IncompleteStore(StoreError):
    """Some files (shards) of a store are missing."""


class ProvenanceMismatch(StoreError):
    """The store was made from another model or corpus, or with other options."""


class CorruptShard(StoreError):
    """A file of a store differs from the hash that was recorded when it was written."""


class NotRepresentable(StoreError):
    """A state is finite, but too large for the data type in which it is to be stored."""


class NonFiniteStates(StoreError):
    """States are NaN or infinite."""


class DiskFull(StoreError, OSError):
    """The disk has too little room for the files to be written."""


class StoreBusy(StoreError):
    """Another process is working on the same store or results and holds a lock on them."""


class UntrustedFile(ProbingError):
    """A file that is not trusted breaks a rule of its format; nothing was read from it.

    Attributes:
        rule: the rule that it breaks, the same text as `needed`.
        object: the file and the object in it that breaks the rule, the same text as `where`.
    """

    @property
    def rule(self) -> str:
        """The rule that the file breaks."""
        return self.needed

    @property
    def object(self) -> str:
        """The file, and the object in it that breaks the rule."""
        return self.where


class ModelError(ProbingError):
    """The model cannot be loaded or read."""


class UnsupportedModel(ModelError):
    """The states of a model of this architecture cannot be read, or the self-check failed."""


class UnknownSite(ModelError, UnknownName):
    """The model or store does not have the site."""


class RemoteCodeRefused(ModelError):
    """A model works only with Python code from its repository, which this package never runs."""


class ReplayUnavailable(ModelError):
    """The model's blocks cannot be run from the middle: the model or the store does not allow it."""


class EditFailed(ModelError):
    """Edits of the model's states do not work: replacing the states by themselves changes the output."""


class PlantFailed(ModelError):
    """A model was built to use a property, or not to use it, but a check of it shows the opposite."""


class WorkError(ProbingError):
    """Work that was given to worker processes was not done."""


class UnitFailed(WorkError):
    """Some fits, shards or tasks failed; all others were done first.

    Attributes:
        errors: mapping from the name of each failed fit, shard or task to its error.
    """

    errors: Mapping[str, ProbingError] = MappingProxyType({})


class WorkerLost(WorkError):
    """Worker processes died repeatedly at the same work, so it was given up."""


class Stalled(WorkError):
    """No worker made progress for as long as the executor waits."""


class MachineError(ProbingError):
    """The operating system refuses what the work needs, such as memory or disk space; see `probing.system.machine`."""


class CannotReachFile(MachineError, OSError):
    """The operating system cannot open, read or write a file, folder or stream."""


class NotEnoughMemory(MachineError, MemoryError):
    """There is not enough memory, or a limit on it was reached."""


class Interrupted(ProbingError):
    """Ctrl-C ended the run: no file is half-written, and the same command resumes the run."""


class MissingDependency(ProbingError, ImportError):
    """An optional package is not installed."""


class ProbingWarning(UserWarning):
    """The base class of all warnings: nothing failed, but the user should know of it."""


class DoubtfulAnswer(ProbingWarning):
    """An answer may be misspelt (far likelier with, or without, a space before it), or few words decide a property."""


class NotForThisTask(ProbingWarning):
    """A probe, measure or analysis cannot be used for the kind of labels of one of several tasks, and is left out
    there.
    """


class UnusedWeights(ProbingWarning):
    """A model's files hold weights of blocks that the loaded model does not have."""


class DoubtfulData(ProbingWarning):
    """Texts or labels do not allow what is done with them, such as texts whose tokens a model does not know."""


class OtherRows(ProbingWarning):
    """A threshold is compared with other scores (of words, texts or tokens) than those on which it was chosen."""


class NotResumed(ProbingWarning):
    """Settings (such as a function of the user) cannot be written as text, so each run measures anew instead of
    resuming.
    """


class OldName(ProbingWarning, DeprecationWarning):
    """An option was given under a name of an earlier version, which still works."""


class DamagedUnit(ProbingWarning):
    """The file of a finished fit is damaged; the fit is done again."""


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, where: str = "", error: type[ProbingError] = UnknownName
) -> ProbingError:
    """Return an error that says that a name is unknown, names the nearest known one and lists all. `kind` says what is
    named (such as `site`), `known` lists the known names, `where` is the place of the mistake, and `error` the class of
    the error.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    step = f"did you mean {near[0]!r}?" if near else "choose one of the names above"
    listed = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
    return error(
        f"unknown {kind} {name!r}",
        needed=f"one of: {listed or '(none)'}",
        found=repr(name),
        where=where,
        next_step=step,
    )


_BETWEEN = ("probing", "pydantic", "typer", "click", "abc", "contextlib")


class OldAttributes:
    """Base class of classes with renamed attributes: `_before` maps each old name to the new one.

    Reading or setting an old name reads or sets the attribute with the new name. If a subclass defines an attribute
    under an old name, it gets the new name. Each use gives a warning.
    """

    _before: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for old, new in cls._before.items():
            if "_before" in vars(cls):
                setattr(cls, old, _OldAttribute(old, new))
            elif old in vars(cls):
                if new not in vars(cls):
                    warn_of_old_name(f"`{old}` of {cls.__name__} is now `{new}`")
                    setattr(cls, new, vars(cls)[old])
                delattr(cls, old)  # what the base class has under this name leads to the new one


class _OldAttribute:
    """An attribute under its old name."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def __get__(self, instance: Any, owner: type) -> Any:
        warn_of_old_name(f"`{self._old}` of {owner.__name__} is now `{self._new}`")
        return getattr(owner if instance is None else instance, self._new)

    def __set__(self, instance: Any, value: Any) -> None:
        warn_of_old_name(f"`{self._old}` of {type(instance).__name__} is now `{self._new}`")
        setattr(instance, self._new, value)


def warn_of_old_name(sentence: str) -> None:
    """Warn of a deprecated name. `sentence` says which name replaces it."""
    warn_user(f"{sentence}: the old name works until version 0.3", OldName)


def warn_user(sentence: str, category: type[Warning]) -> None:
    """Give a warning that points to the line outside this package from which it was called."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, category, stacklevel=level)


def __getattr__(name: str) -> type[ProbingError]:
    """Return, for the name of an error that no code raised, an error that no code raises: what catches it goes on."""
    if name not in ("DidNotConverge", "FitError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{name} is never raised (a fit says by `converged_` whether it met its tolerance); the name works until "
        "version 0.3",
        OldName,
        stacklevel=2,
    )
    return type(name, (ProbingError,), {"__doc__": "An error of earlier versions that nothing raised."})
