"""Reads exports of Neuronpedia for one dictionary, and reads back what `writing` wrote; files are not trusted."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from probing.errors import InputError, ProvenanceMismatch
from probing.files.strict_json import strict_json
from probing.neuronpedia.schemas import ExportedActivation, ExportedExplanation, ExportedFeature
from probing.system.machine import with_typed_errors

M = TypeVar("M", bound=BaseModel)
E = TypeVar("E", ExportedFeature, ExportedActivation, ExportedExplanation)

PARTS: Mapping[str, type[ExportedFeature] | type[ExportedActivation] | type[ExportedExplanation]] = {
    "features": ExportedFeature,
    "activations": ExportedActivation,
    "explanations": ExportedExplanation,
}
_BATCH = re.compile(r"batch-(\d+)\.jsonl(\.gz)?")
_MOST_LINE = 64 << 20  # bytes of a line, unpacked
_SITE = "https://www.neuronpedia.org"


@dataclass(frozen=True)
class ExportedContext:
    """Holds a text on which a latent is active: its tokens, and the latent's activation on each."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def largest(self) -> int:
        """Index of the token with the largest activation."""
        return max(range(len(self.values)), key=self.values.__getitem__)


@dataclass(frozen=True)
class ExportedLatents:
    """Holds what an export says of the latents of one dictionary.

    Attributes:
        model, source: Neuronpedia's ids of the model and of the dictionary; "" if no line names them.
        names: explanations of each latent, each once, in the order of the files.
        densities: share of tokens on which a latent is active.
        largest: largest activation.
        contexts: texts on which a latent is most active, the strongest first.
        highest: largest number of a latent in any line, of those asked for or not; -1: there is no line.
    """

    model: str = ""
    source: str = ""
    names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    densities: Mapping[int, float] = field(default_factory=dict)
    largest: Mapping[int, float] = field(default_factory=dict)
    contexts: Mapping[int, tuple[ExportedContext, ...]] = field(default_factory=dict)
    highest: int = -1

    def __contains__(self, latent: int) -> bool:
        return any(latent in part for part in (self.names, self.densities, self.largest, self.contexts))

    def name(self, latent: int) -> str:
        """Return the explanations of a latent as one text; "" if it has none."""
        return "; ".join(self.names.get(latent, ()))

    def page(self, latent: int) -> str:
        """Return the address of the page of a latent, to be shown as text."""
        model, source = quote(self.model, safe=""), quote(self.source, safe="")
        return f"{_SITE}/{model}/{source}/{latent}" if model and source else ""


@with_typed_errors
def read_export(
    folder: str | Path, *, latents: Collection[int] | None = None, most_contexts: int = 10
) -> ExportedLatents:
    """Read the export of a dictionary: `features`, `activations` and `explanations`, each of files batch-N.jsonl.gz (or
    .jsonl); a missing part is empty. Unknown fields are ignored.

    Args:
        folder: folder of the dictionary, such as `v1/gpt2-small/6-res-jb`.
        latents: the latents to read; None: all.
        most_contexts: largest number of contexts of a latent, the strongest.

    Raises:
        InputError: there is no such file, or one is damaged; the message names file and line.
        ProvenanceMismatch: lines are of several models or dictionaries.
    """
    place, owner = Path(folder).expanduser(), _Owner()
    if not any(_batches(place, part) for part in PARTS):
        raise InputError(
            "this folder holds no export of Neuronpedia",
            needed=f"{', '.join(f'{part}/batch-0.jsonl.gz' for part in PARTS)}, or some of them",
            found="none of them" if place.is_dir() else "no such folder",
            where=str(place),
            next_step="give the folder of one dictionary, such as v1/gpt2-small/6-res-jb",
        )
    names: dict[int, dict[str, None]] = {}
    densities: dict[int, float] = {}
    largest: dict[int, float] = {}
    contexts: dict[int, list[ExportedContext]] = {}
    seen: set[int] = set()
    for one in _lines(place, "features", ExportedFeature, owner, latents):
        if one.index in seen:
            raise _damaged(str(place / "features"), f"latent {one.index} twice")
        seen.add(one.index)
        if one.frac_nonzero is not None:
            densities[one.index] = one.frac_nonzero
        if one.maxActApprox is not None:
            largest[one.index] = one.maxActApprox
    for told in _lines(place, "explanations", ExportedExplanation, owner, latents):
        if told.description and told.description.strip():
            names.setdefault(told.index, {})[" ".join(told.description.split())] = None
    for text in _lines(place, "activations", ExportedActivation, owner, latents):
        if text.values:
            known = contexts.setdefault(text.index, [])
            known.append(ExportedContext(tuple(text.tokens), tuple(text.values)))
            known.sort(key=lambda context: -max(context.values))
            del known[most_contexts:]
    return ExportedLatents(
        owner.model,
        owner.source,
        {index: tuple(texts) for index, texts in names.items()},
        densities,
        largest,
        {index: tuple(texts) for index, texts in contexts.items()},
        owner.highest,
    )


@dataclass
class _Owner:
    """The model and dictionary that all lines must be of."""

    model: str = ""
    source: str = ""
    highest: int = -1

    def check(self, line: ExportedFeature | ExportedActivation | ExportedExplanation, where: str) -> None:
        self.highest = max(self.highest, line.index)
        if not self.model:
            self.model, self.source = line.modelId, line.layer
        if (line.modelId, line.layer) != (self.model, self.source):
            raise ProvenanceMismatch(
                "an export of several dictionaries",
                needed=f"lines of {self.source} of {self.model}",
                found=f"one of {line.layer} of {line.modelId}",
                where=where,
                next_step="give the folder of one dictionary",
            )


def _batches(folder: Path, part: str) -> list[Path]:
    """Return the files of a part of an export, by their numbers."""
    place = folder / part
    files = [
        (match, path) for path in (place.iterdir() if place.is_dir() else ()) if (match := _BATCH.fullmatch(path.name))
    ]
    return [path for match, path in sorted(files, key=lambda file: (int(file[0][1]), file[1].name))]


def _lines(folder: Path, part: str, schema: type[E], owner: _Owner, latents: Collection[int] | None) -> Iterator[E]:
    wanted = None if latents is None else frozenset(latents)
    for path in _batches(folder, part):
        for number, text in enumerate(_texts(path), start=1):
            where = f"{path}, line {number}"
            line = _checked(schema, text, where)
            owner.check(line, where)
            if wanted is None or line.index in wanted:
                yield line


def _texts(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file that are not empty, unpacked.

    Raises:
        InputError: the file is damaged, or a line is too long.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            while line := stream.readline(_MOST_LINE + 1):
                number += 1
                if len(line) > _MOST_LINE:
                    raise _damaged(f"{path}, line {number}", f"a line of more than {_MOST_LINE >> 20} MiB")
                if line.strip():
                    yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(f"{path}, after line {number}", f"{error or type(error).__name__}") from error


def _checked(schema: type[M], text: bytes, where: str) -> M:
    """Return a JSON text as a schema.

    Raises:
        InputError: it is no strict JSON, or does not fit the schema.
    """
    try:
        return schema.model_validate(strict_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(where, f"{'.'.join(map(str, first['loc'])) or 'object'}: {first['msg']}") from error
    except ValueError as error:
        raise _damaged(where, str(error)) from error


def _damaged(where: str, found: str) -> InputError:
    return InputError(
        "a file of Neuronpedia is damaged or of another form",
        needed="JSON as Neuronpedia writes it",
        found=found[:300],
        where=where,
        next_step="fetch or write the file again",
    )


@with_typed_errors
def read_written(path: str | Path, schema: type[M]) -> M:
    """Return a JSON file that `writing` wrote, as the schema it has.

    Raises:
        InputError: the file does not fit the schema.
    """
    file = Path(path)
    return _checked(schema, file.read_bytes(), str(file))


@with_typed_errors
def read_written_list(path: str | Path, schema: type[M]) -> list[M]:
    """Return the entries of a JSON file that is a list, each as the schema it has.

    Raises:
        InputError: the file is no list, or an entry does not fit the schema.
    """
    file = Path(path)
    try:
        entries = strict_json(file.read_bytes())
    except ValueError as error:
        raise _damaged(str(file), str(error)) from error
    if not isinstance(entries, list):
        raise _damaged(str(file), "no list")
    try:
        return [schema.model_validate(entry) for entry in entries]
    except ValidationError as error:
        raise _damaged(str(file), error.errors()[0]["msg"]) from error
