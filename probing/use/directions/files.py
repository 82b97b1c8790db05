"""Reads and writes files of evidence (a direction, an eraser or a probe, with its verdict): safetensors files whose
header describes them. They are not trusted when read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from probing.errors import BadParameter, UntrustedFile
from probing.files.strict_json import strict_json
from probing.files.whole_files import write_atomically
from probing.states.store.verify import refuse
from probing.use.directions.record import Evidence, Header
from probing.verdicts.verdict import Word

KEY = "probing.evidence"
VERSION = 1
_MOST_BYTES, _MOST_HEADER = 256 << 20, 4 << 20
_KINDS = {"F64", "I64"}
FOLDER, _PATTERN = "evidence", "*.safetensors"
_NEEDED = "a file of evidence, or a folder of them"
_NEXT = "`probing use --save-directions` writes them to OUT_DIR/evidence"


def write_evidence(path: str | Path, evidence: Evidence) -> Path:
    """Write evidence into one file, whole or not at all; equal evidence gives equal bytes.

    Raises:
        BadParameter: the header is longer than readers accept.
    """
    told = json.dumps({"version": VERSION, **asdict(evidence.header)}, sort_keys=True, allow_nan=False)
    if len(told) > _MOST_HEADER // 2:
        raise BadParameter(
            "a header of evidence is too long",
            needed=f"at most {_MOST_HEADER // 2:,} characters",
            found=f"{len(told):,}",
            where=str(path),
        )
    arrays = {name: np.ascontiguousarray(array) for name, array in evidence.arrays.items()}
    write_atomically(Path(path), save(arrays, metadata={KEY: told}))
    return Path(path)


def read_evidence(path: str | Path) -> Evidence:
    """Read the evidence that `write_evidence` wrote, and return it.

    Raises:
        BadParameter: there is no such file.
        UntrustedFile: the file was not written by `write_evidence`, or is damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise BadParameter("no evidence here", needed=_NEEDED, found=_kind_of(file), where=str(path), next_step=_NEXT)
    size = file.stat().st_size
    if size > _MOST_BYTES:
        refuse(f"a file of at most {_MOST_BYTES:,} bytes", file.name, f"{size:,}")
    content = file.read_bytes()
    header, kinds = _header(content, file.name)
    if not set(kinds) <= _KINDS:
        refuse("tensors of float64 and int64", file.name, ", ".join(sorted(kinds))[:100])
    try:
        arrays: dict[str, NDArray[Any]] = load(content)
        return Evidence(header, arrays)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadParameter):
            refuse(f"evidence of {error.needed}", file.name, f"{error.message}: {error.found}"[:200])
        refuse("tensors as the header says", file.name, str(error)[:200])


def is_evidence(path: Path) -> bool:
    """Return whether `read_evidence` can read the file."""
    try:
        read_evidence(path)
    except (BadParameter, UntrustedFile):
        return False
    return True


def read_directions(*paths: str | Path) -> dict[Path, Evidence]:
    """Read saved directions, erasers and probes (evidence), and return them by path: every file in `paths`, and every
    `.safetensors` file of the folders in `paths`, sorted by name within a folder.

    Args:
        paths: files of `write_evidence`, or folders of them; for a results folder of `probing use`, its subfolder
            `evidence` is read.

    Raises:
        BadParameter: a file does not exist, or a folder has no such files.
        UntrustedFile: a file was not written by `write_evidence`, or is damaged.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        own = sorted(path.glob(_PATTERN)) or sorted((path / FOLDER).glob(_PATTERN))
        if path.is_dir() and not own:
            raise BadParameter(
                "no evidence in this folder", needed=_NEEDED, found=_kind_of(path), where=str(path), next_step=_NEXT
            )
        files += own if path.is_dir() else [path]
    return {file: read_evidence(file) for file in dict.fromkeys(files)}


def _kind_of(path: Path) -> str:
    if not path.is_dir():
        return "something that is no file" if path.exists() else "nothing"
    return "other files" if any(path.iterdir()) else "an empty folder"


def _header(content: bytes, name: str) -> tuple[Header, list[str]]:
    """Return the file's description of itself, and the dtypes of its tensors."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(_MOST_HEADER, len(content) - 8):
        refuse(f"a header of at most {_MOST_HEADER:,} bytes, inside the file", name, f"{size:,}")
    try:
        outer = strict_json(content[8 : 8 + size])
        if not isinstance(outer, dict) or not isinstance(outer.get("__metadata__"), dict):
            refuse("a header with metadata", name, type(outer).__name__)
        told = outer["__metadata__"].get(KEY)
        if not isinstance(told, str):
            refuse(f"evidence under {KEY!r}", name, "none")
        fields = strict_json(told)
        version = fields.pop("version", None) if isinstance(fields, dict) else None
        if version != VERSION:
            is_export = isinstance(fields, dict) and all(isinstance(one, dict) for one in fields.values())
            refuse(f"version {VERSION} of evidence", name, "exported vectors" if is_export else repr(version)[:40])
        header = TypeAdapter(Header).validate_json(json.dumps(fields), strict=True)
    except ValueError as error:
        if isinstance(error, UntrustedFile):
            raise
        refuse("the header of evidence", name, str(error)[:200])
    tensors = [entry for key, entry in outer.items() if key != "__metadata__"]
    return header, [str(t.get("dtype")) if isinstance(t, dict) else repr(t)[:20] for t in tensors]


def record_of(evidence: Evidence) -> dict[str, Any]:
    """Return a flat dict that describes the evidence, with values that JSON can hold.

    `dimensions` is the width D of the states. `norm` is the length of the shift of class means at dose 1, in the unit
    of the states: between two classes (of several, the two farthest apart), or per unit of a real value; None for
    erasers and probes. `rank` is the number of directions that an eraser removes. `effect` is in SDs of the unedited
    output, with its 95 % interval from `effect_low` to `effect_high`; None if it was not measured.
    """
    header, told = evidence.header, evidence.header.verdict
    effect = told.effect or (None, None, None)
    return {
        "model": header.model,
        "revision": header.revision,
        "weights": header.identity,
        "task": header.task,
        "labels": list(header.labels),
        "behaviour": header.behaviour,
        "site": header.site,
        "position": header.position,
        "kind": header.kind,
        "dimensions": evidence.width,
        "rank": int(evidence.arrays["left"].shape[1]) if header.kind == "leace" else None,
        "norm": norm(evidence),
        "dose": header.dose,
        "effect": effect[0],
        "effect_low": effect[1],
        "effect_high": effect[2],
        "verdict": told.word,
        "flags": list(told.flags),
        "is_established": not caveat(header),
        "rows": header.rows,
    }


def norm(evidence: Evidence) -> float | None:
    """Return the length of the shift between class means (see `record_of`); None if there is none."""
    if evidence.header.kind != "class_mean":
        return None
    pairs = list(combinations(range(len(evidence.header.labels)), 2)) or [(0, 1)]
    lengths = []
    for start, goal in pairs:
        try:
            lengths.append(float(np.linalg.norm(evidence.direction(start=start, goal=goal))))
        except BadParameter:  # two classes that no stratum has both of
            continue
    return max(lengths, default=None)


def caveat(header: Header, place: str = "", behaviour: str = "") -> str:
    """Return a sentence on why the verdict does not establish that the model uses the direction; "" if it does.

    Args:
        header: header of the evidence.
        place: place at which the direction is to be applied; "" means that of the verdict.
        behaviour: behaviour that is to be changed; "" means that of the verdict.
    """
    word = header.verdict.word
    elsewhere = [
        found for found, own in ((place, header.place), (behaviour, header.behaviour)) if found not in ("", own)
    ]
    if elsewhere and word == Word.USED_SUBSPACE:
        return (
            f"the verdict is about {header.task} at {header.place} in {header.behaviour or 'its own behaviour'}: it "
            f"says nothing of {' and '.join(elsewhere)}"
        )
    if word == Word.USED_SUBSPACE:
        return ""
    what = f"{header.task} at {header.place}"
    if word == Word.USED_SITE:
        return (
            f"{what} is {word}: that the model uses the site is established, that it uses this direction is not "
            "established"
        )
    return f"{what} is {word}: that the model uses this direction is not established"
