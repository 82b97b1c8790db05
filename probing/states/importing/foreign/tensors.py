"""Reads data sets of lmprobe (a Parquet index beside safetensors) and hidden states of vLLM in the child process."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.states.importing.foreign.npy import TYPES, tensors_of
from probing.states.importing.foreign.protocol import BLOCK_BYTES, Sender
from probing.states.importing.foreign.sources import Limits, SourceFile
from probing.states.store.verify import refuse

LMPROBE = b"lmprobe:"
TEXTS = ("prompt", "text", "input", "sentence", "full_text")
IDS = ("token_ids", "prompt_token_ids", "input_ids")
_MOST_SAID = 500


def load_arrow() -> None:
    """Import the Parquet reader, before this process gives up the right to open files."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # the usual one reserves a gigabyte at once
    import pyarrow.parquet  # noqa: F401


def read_lmprobe(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Send the metadata of the index, the text of each row, and the states of each layer, `(N, D)`.

    Raises:
        UntrustedFile: the index has no `lmprobe:` metadata, a row has no text, or a file or tensor of states has no
            layer number in its name.
    """
    index, *layers = files
    table = _index(index)
    said = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in table.schema.metadata.items()}
    own = {key[len(LMPROBE) :]: value[:_MOST_SAID] for key, value in said.items() if key.startswith(LMPROBE.decode())}
    column = next((name for name in TEXTS if name in table.column_names), None)
    sender.send("facts", said=own, columns=table.column_names[:100], text=column, rows=len(table))
    for example, text in enumerate(table.column(column).to_pylist() if column else ()):
        if not isinstance(text, str):
            refuse(f"a text in column {column} of every row", index.name, repr(text)[:60])
        sender.send("sentence", example=example, text=text, rows=1)
    for file in layers:
        _send_layers(file, sender)


def _index(file: SourceFile) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(pa.BufferReader(file.exactly(file.n_bytes, "an index")))
    metadata = parquet.schema_arrow.metadata or {}
    if not any(key.startswith(LMPROBE) for key in metadata):
        refuse("an index with metadata whose keys begin with lmprobe:", file.name, f"{len(metadata)} other keys")
    found = [name for name in TEXTS if name in parquet.schema_arrow.names][:1]
    table = parquet.read(columns=found or parquet.schema_arrow.names[:1], use_threads=False)
    return table.replace_schema_metadata(metadata)


def _send_layers(file: SourceFile, sender: Sender) -> None:
    tensors = tensors_of(file)
    several = sum("F" in dtype for _, dtype, *_ in tensors) > 1
    for name, dtype, shape, begin, end in tensors:
        if "F" not in dtype:
            file.exactly(end - begin, "a tensor")  # what else a file says of its rows is not known here
            continue
        numbers = re.findall(r"\d+", name if several else f"{name} {file.path.stem}")
        if not numbers:
            refuse("the number of the layer in the name of its file", file.name, name[:60])
        for rows in _blocks(file, dtype, shape):
            sender.rows(str(int(numbers[-1])), rows, "bfloat16" if dtype == "BF16" else "")


def read_vllm(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Send the piece ids of each request, and its states layer by layer, `(pieces, width)`.

    Raises:
        UntrustedFile: a file has no `hidden_states` (pieces, layers, width), or not as many ids as pieces.
    """
    for file in files:
        tensors = tensors_of(file, floats=(1, 2, 3, 4))
        states = [shape for name, dtype, shape, *_ in tensors if name == "hidden_states" and "F" in dtype]
        ids = [name for name, dtype, *_ in tensors if name in IDS and "F" not in dtype]
        if len(states) != 1 or len(states[0]) != 3 or not states[0][1]:
            refuse(
                "hidden_states of (pieces, layers, width)", file.name, f"{states or [one[0] for one in tensors]}"[:80]
            )
        sender.send("request", pieces=states[0][0], layers=states[0][1], has_ids=bool(ids), file=file.name)
        for name, dtype, shape, begin, end in tensors:
            if name == "hidden_states":
                for block in _blocks(file, dtype, shape):
                    for layer in range(shape[1]):
                        sender.rows(str(layer), block[:, layer], "bfloat16" if dtype == "BF16" else "")
                continue
            data = file.exactly(end - begin, "a tensor")
            if ids and name == ids[0]:
                values = np.frombuffer(data, TYPES[dtype]).reshape(-1)
                if len(values) != states[0][0]:
                    refuse("as many piece ids as pieces", f"{file.name}: {name}", f"{len(values)} and {states[0][0]}")
                sender.rows(IDS[0], values)


def _blocks(file: SourceFile, dtype: str, shape: Sequence[int]) -> Any:
    """Yield the next tensor of a file in blocks of its first axis."""
    kind, row = np.dtype(TYPES[dtype]), math.prod(shape[1:])
    step = max(1, BLOCK_BYTES // max(1, 8 * row))
    for first in range(0, max(1, shape[0]), step):
        count = min(step, shape[0] - first)
        values: NDArray[Any] = np.frombuffer(file.exactly(count * row * kind.itemsize, "a tensor"), kind)
        if dtype == "BF16":
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        yield values.reshape(count, *shape[1:])
