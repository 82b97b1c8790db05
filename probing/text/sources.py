"""Sources of a corpus: a file, a glob, `{split: file}`, `hub:NAME` or the reference; finds reader and split of each."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probing import registry
from probing.errors import CorpusError, unknown_name
from probing.reference import REFERENCE, shipped

HUB = "hub:"
SPLITS = ("train", "dev", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "test": "test",
    "testing": "test",
}
Source = str | Path | Mapping[str, str] | Mapping[str, Path]


@dataclass(frozen=True)
class Part:
    """Describes a part of a corpus: path of a file or name of a hub data set, name of the reader, and split ("": from
    the data).
    """

    path: str
    reader: str
    split: str


def split_name(name: str) -> str:
    """Return `train`, `dev` or `test` for their usual spellings (`validation` is `dev`); other names unchanged."""
    return _SPLIT_NAMES.get(name.strip().lower(), name.strip())


def split_order(split: str) -> tuple[int, str]:
    """Return a sort key: `train`, `dev`, `test`, then other names by letter."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def parts_of(source: Source) -> list[Part]:
    """Return the files of a corpus, in split order.

    Raises:
        CorpusError: there is no file, no reader knows the suffix, or a glob matches files whose names do not contain
            their splits.
        UnknownName: a name after `probing:` does not ship with the package.
    """
    source = dict.fromkeys(SPLITS, REFERENCE) if str(source) == REFERENCE else source
    if isinstance(source, Mapping):
        named = [(split_name(split), str(path)) for split, path in source.items()]
        _refuse_twice([split for split, _ in named], source)
    elif _is_glob(str(source)):
        named = [(_split_in(path), path) for path in _matches(str(source))]
    else:
        named = [("", str(source))]
    if not named:
        raise CorpusError("no corpus was given", needed="a file, a glob, {split: file} or hub:NAME", found="nothing")
    return [_part(path, split) for split, path in sorted(named, key=lambda pair: split_order(pair[0]))]


def _part(path: str, split: str) -> Part:
    if path.startswith(HUB):
        return Part(path.removeprefix(HUB), "hub", split)
    path = shipped(path, f"{split}.jsonl")
    check_file(path)
    return Part(path, _reader_of(path), split)


def check_file(path: str) -> None:
    """Check that a path is an existing file.

    Raises:
        CorpusError: there is no such file; the message names the nearest files in the folder.
    """
    file = Path(path)
    if file.is_file():
        return
    if file.is_dir():
        raise CorpusError(
            "a corpus is a file, not a folder",
            needed="a file, a glob or {split: file}",
            found=f"the folder {path}",
            next_step="name one of: " + ", ".join(_files_in(file)[:10]) if _files_in(file) else "",
        )
    folder = file.parent
    readable = [name for name in _files_in(folder) if Path(name).suffix.lower() in _readers()]
    near = difflib.get_close_matches(file.name, readable, n=3, cutoff=0.4)
    if near:
        step = "did you mean " + " or ".join(repr(str(folder / name)) for name in near) + "?"
    else:
        step = "check the path" if folder.is_dir() else f"the folder {str(folder)!r} does not exist either"
    raise CorpusError("corpus file not found", needed="an existing file", found=path, next_step=step)


def _readers() -> dict[str, str]:
    """Return the name of the reader of every suffix that has a reader."""
    known: dict[str, str] = {}
    for name in registry.names("readers"):
        known |= dict.fromkeys(registry.get("readers", name).MEMBER.suffixes, name)
    return known


def _reader_of(path: str) -> str:
    suffix = Path(path).suffix.lower()
    known = _readers()
    if suffix not in known:
        raise CorpusError(
            f"no reader for {suffix!r} files" if suffix else "a corpus file needs a suffix",
            needed="one of: " + ", ".join(sorted(known)),
            found=path,
            next_step="convert or rename the file",
        )
    return known[suffix]


def _is_glob(source: str) -> bool:
    return not source.startswith(HUB) and glob.has_magic(source) and not Path(source).is_file()


def _matches(pattern: str) -> list[str]:
    found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())  # noqa: PTH207
    if not found:
        names = _files_in(Path(pattern).parent)
        near = difflib.get_close_matches(Path(pattern).name, names, n=3, cutoff=0.3)
        raise CorpusError(
            "no file matches",
            needed="at least one file",
            found=pattern,
            next_step="files there: " + ", ".join(near or names[:5]) if names else "check the folder",
        )
    return found


def _split_in(path: str) -> str:
    """Return the split that a part of the file name gives: `en_lines-train.conllu` is `train`."""
    parts = re.split(r"[^a-z]+", Path(path).name.lower())
    splits = {_SPLIT_NAMES[part] for part in parts if part in _SPLIT_NAMES}
    if len(splits) != 1:
        raise CorpusError(
            "the file name does not tell its split",
            needed="exactly one of train, dev, valid, validation, test in it",
            found=Path(path).name,
            where=path,
            next_step="give the files as train=FILE dev=FILE test=FILE",
        )
    return splits.pop()


def _refuse_twice(splits: list[str], source: Mapping[str, object]) -> None:
    for split in splits:
        if splits.count(split) > 1:
            raise CorpusError(f"two files for split {split!r}", needed="one file a split", found=", ".join(source))


def _files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def split_among(name: str, splits: Sequence[str], source: str) -> str:
    """Return which of the splits of a corpus is called so (`validation` is `dev`).

    Raises:
        UnknownName: none is; the message lists the splits.
    """
    split = name if name in splits else split_name(name)
    if split not in splits:
        raise unknown_name("split", name, splits, where=source)
    return split
