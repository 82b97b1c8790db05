"""An HDF5 file in a child process: NeuroX activations, or one data set per site; audited before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from probing.files.strict_json import strict_json
from probing.states.importing.foreign.job import Limits
from probing.states.importing.foreign.protocol import BLOCK_BYTES, Sender
from probing.states.importing.foreign.sources import open_source
from probing.states.store.verify import AuditLimits, audit, refuse

SENTENCES = "sentence_to_index"
_METADATA = "/metadata/"  # what `probing store export` says of the store; it is not believed


@dataclass(frozen=True)
class Hdf5Source:
    """An open HDF5 file of which nothing was read yet."""

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
