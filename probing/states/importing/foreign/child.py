"""The child process that opens untrusted files: `python -m` this module with a JSON job; it writes frames to stdout.

It first imports all modules, limits its resources, opens the files and gives up the right to open others (a store needs
a few more); only then does it parse their content.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from probing.errors import ProbingError
from probing.states.importing.foreign.hdf5 import Hdf5Source, read_neurox_json
from probing.states.importing.foreign.npy import read_npy, read_safetensors, read_store
from probing.states.importing.foreign.protocol import Sender
from probing.states.importing.foreign.sources import (
    ChildJob,
    Limits,
    SourceFile,
    limit_open_files,
    limit_resources,
    open_source,
)
from probing.states.importing.foreign.tensors import load_arrow, read_lmprobe, read_vllm

_SPARE_FILES = 8


_READERS: dict[str, Callable[[Sequence[SourceFile], Sender, Limits], None]] = {
    "npy": read_npy,
    "json": read_neurox_json,
    "safetensors": read_safetensors,
    "lmprobe": read_lmprobe,
    "vllm": read_vllm,
}


def run(job: ChildJob, sender: Sender) -> None:
    """Run the job in the child process and send its frames; if an error occurs, the last frame reports it."""
    try:
        limit_resources(job.limits, job.n_bytes)
        _read(job, sender)
    except ProbingError as error:
        sender.send("refused", message=error.message, rule=error.needed, object=error.where, found=error.found)
    except MemoryError:
        sender.send("refused", message="", rule=f"{job.limits.memory_bytes:,} bytes of memory", object="", found="more")
    except Exception as error:  # a hostile file may raise anything
        found = f"{type(error).__name__}: {error}"[:300]
        sender.send(
            "refused", message="", rule=f"a readable file ({job.format})", object=job.paths[0].name, found=found
        )
    else:
        sender.send("end")


def _read(job: ChildJob, sender: Sender) -> None:
    if job.format == "store":
        limit_open_files(_highest_open() + _SPARE_FILES)
        read_store(job.paths[0], sender)
    elif job.format == "hdf5":
        source = Hdf5Source.open(job.paths[0])
        limit_open_files(0)
        source.read(sender, job.limits, examples=job.examples)
    else:
        if job.format == "lmprobe":
            load_arrow()
        files = [open_source(path) for path in job.paths]
        limit_open_files(0)
        _READERS[job.format](files, sender, job.limits)


def _highest_open() -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    return fd


if __name__ == "__main__":
    run(ChildJob.from_json(sys.argv[1]), Sender(sys.stdout.buffer))
