"""Reads NeuroX activations as JSON lines, in a child process.

A line is `{"linex_index": n, "features": [{"token": w, "layers": [{"index": l, "values": [...]}, ...]}, ...]}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.files.strict_json import strict_json
from probing.states.importing.foreign.job import Limits
from probing.states.importing.foreign.protocol import Sender
from probing.states.importing.foreign.sources import SourceFile
from probing.states.store.verify import refuse


def read_neurox_json(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Send the words of each sentence, and its states layer by layer.

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
