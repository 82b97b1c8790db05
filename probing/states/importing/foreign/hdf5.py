"""Reads an HDF5 file in the child process (NeuroX activations, or one data set per site), after checking its
structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from probing.files.strict_json import strict_json
from probing.states.importing.foreign.protocol import BLOCK_BYTES, Sender
from probing.states.importing.foreign.sources import Limits, SourceFile, open_source
from probing.states.store.verify import AuditLimits, audit, refuse

SENTENCES = "sentence_to_index"
_METADATA = "/metadata/"  # what `probing store export` says of the store; it is not believed


@dataclass(frozen=True)
class Hdf5Source:
    """Holds an open, untrusted HDF5 file before its content is audited."""

    path: Path
    file: Any

    @classmethod
    def open(cls, path: Path) -> Hdf5Source:
        """Open an HDF5 file.

        Raises:
            UntrustedFile: it is a symbolic link, a pipe, a device or a directory.
            OSError: it is not an HDF5 file.
        """
        open_source(path).stream.close()
        return cls(path, h5py.File(path, "r", locking=False))

    def read(self, sender: Sender, limits: Limits, *, examples: int) -> None:
        """Audit the file, and send its content.

        Raises:
            UntrustedFile: the file breaks a rule.
        """
        allowed = AuditLimits(dataset_bytes=limits.column_bytes)
        allowed = replace(allowed, objects=max(allowed.objects, examples + 1))
        found = audit(self.file, limits=allowed, text=SENTENCES)
        if f"/{SENTENCES}" in found:
            self._sentences(found, sender, limits)
        else:
            self._columns(found, sender)

    def _sentences(self, found: dict[str, Any], sender: Sender, limits: Limits) -> None:
        texts = self._texts(found.pop(f"/{SENTENCES}"), limits)
        named = sorted(int(path[1:]) for path in found if path[1:].isdigit() and str(int(path[1:])) == path[1:])
        if set(texts) != set(named) or len(named) != len(found):
            refuse(
                f"one data set for each sentence of {SENTENCES}, and no other",
                self.path.name,
                f"{len(texts)} sentences, {len(found)} data sets",
            )
        for example in named:
            dataset = self.file[str(example)]
            if dataset.ndim not in (2, 3) or dataset.dtype.kind != "f":
                refuse(
                    "floats [layers, words, width] or [words, width]", f"/{example}", f"{dataset.dtype} {dataset.shape}"
                )
            states = dataset[()]
            states = states[None] if states.ndim == 2 else states
            sender.send("sentence", example=example, text=texts[example], rows=states.shape[1])
            for layer, rows in enumerate(states):
                sender.rows(str(layer), rows)

    def _texts(self, dataset: Any, limits: Limits) -> dict[int, str]:
        """Return the sentences by index: the only string of variable length that is read; memory limits what it can
        cost.
        """
        value = np.asarray(h5py.Dataset(dataset)[()]).reshape(-1)[0]
        text = value if isinstance(value, bytes) else str(value).encode()
        if len(text) > limits.json_bytes:
            refuse(f"at most {limits.json_bytes:,} bytes", f"/{SENTENCES}", f"{len(text):,}")
        try:
            index = strict_json(text)
        except ValueError as error:
            refuse("sound JSON", f"/{SENTENCES}", str(error)[:200])
        texts: dict[int, str] = {}
        for sentence, number in index.items() if isinstance(index, dict) else ():
            if not str(number).isdigit() or not str(number).isascii() or int(number) in texts:
                refuse("a different number for each sentence", f"/{SENTENCES}", repr(number)[:40])
            texts[int(number)] = sentence
        return texts

    def _columns(self, found: dict[str, Any], sender: Sender) -> None:
        for path in sorted(path for path in found if not path.startswith(_METADATA)):
            dataset = h5py.Dataset(found[path])
            if dataset.ndim != (2 if dataset.dtype.kind == "f" else 1) or dataset.dtype.kind not in "fiu":
                refuse("floats (R, D) or whole numbers (R,)", path, f"{dataset.dtype} {dataset.shape}")
            step = max(1, BLOCK_BYTES // max(1, 8 * int(np.prod(dataset.shape[1:]))))
            for first in range(0, max(1, len(dataset)), step):
                sender.rows(path.rpartition("/")[2], dataset[first : first + step])


def read_neurox_json(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Read a NeuroX JSON file and send the words of each sentence and its states, layer by layer.

    Raises:
        UntrustedFile: a line is too long, not valid JSON, or not of the NeuroX form.
    """
    (file,) = files
    number = 0
    while line := file.stream.readline(limits.json_bytes + 1):
        number += 1
        place = f"{file.name}:{number}"
        if len(line) > limits.json_bytes:
            refuse(f"lines of at most {limits.json_bytes:,} bytes", place, "a longer one")
        if line.strip():
            _send_sentence(_value(line, place), place, sender)


def _value(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = strict_json(line, finite=False)  # NaN is looked for in the arrays, ten times faster
    except ValueError as error:
        refuse("one sound JSON object a line", place, str(error)[:200])
    if not isinstance(value, dict) or type(value.get("linex_index")) is not int:
        refuse("an object with linex_index and features", place, repr(value)[:100])
    return value


def _send_sentence(value: dict[str, Any], place: str, sender: Sender) -> None:
    features = value.get("features")
    if not isinstance(features, list):
        refuse("an object with linex_index and features", place, "no list of features")
    layers: list[int] | None = None
    words, states = [], []
    for position, feature in enumerate(features):
        word, found = _word(feature, f"{place}, token {position + 1}")
        if layers is not None and list(found) != layers:
            refuse(
                "the same layers for all tokens of a sentence", place, f"token {position + 1} has {list(found)}"[:100]
            )
        layers = list(found)
        words.append(word)
        states.append(list(found.values()))
    sender.send("sentence", example=value["linex_index"], words=words, rows=len(words))
    for index, layer in enumerate(layers or ()):
        sender.rows(str(layer), _matrix([vectors[index] for vectors in states], place), "unknown")


def _word(feature: Any, place: str) -> tuple[str, dict[int, list[Any]]]:
    form = (
        isinstance(feature, dict) and isinstance(feature.get("token"), str) and isinstance(feature.get("layers"), list)
    )
    found = {}
    for layer in feature["layers"] if form else ():
        named = isinstance(layer, dict) and type(layer.get("index")) is int and isinstance(layer.get("values"), list)
        if not named or layer["index"] in found:
            refuse("layers with different indexes, and values", place, repr(layer)[:100])
        found[layer["index"]] = layer["values"]
    if not found:
        refuse("a token with layers", place, repr(feature)[:100])
    return feature["token"], found


def _matrix(vectors: list[list[Any]], place: str) -> NDArray[np.float32]:
    if len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
        refuse("one width for all tokens of a layer", place, f"{sorted({len(v) for v in vectors})}"[:100])
    try:
        values = np.array(vectors)
    except (ValueError, OverflowError):
        values = np.empty(0, object)  # lists inside lists
    if values.dtype.kind not in "fi" or values.ndim != 2:
        refuse("values that are numbers", place, f"dtype {values.dtype}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
