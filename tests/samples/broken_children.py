"""Children that misbehave, one way for each format name: what a parent must survive."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np

from probing.states.importing.foreign.protocol import Sender
from probing.states.importing.foreign.sources import ChildJob, limit_open_files, limit_resources


class _Payload:
    """Unpickling it writes a canary."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(self.canary),)


def misbehave(job: ChildJob, sender: Sender) -> None:
    """Do what the format's name says."""
    out = sys.stdout.buffer
    rows = np.zeros((2, 3), np.float32)
    if job.format == "crash":
        sender.rows("embed", rows)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif job.format == "hang":
        time.sleep(600)
    elif job.format == "spin":
        limit_resources(job.limits, 0)
        while True:
            pass
    elif job.format == "grow":
        limit_resources(job.limits, 0)
        try:
            _ = bytearray(1 << 30)
        except MemoryError:
            sender.send("refused", rule="memory")
    elif job.format == "open":
        limit_open_files(0)
        try:
            job.paths[0].read_bytes()
        except OSError as error:
            sender.send("refused", rule="no more files", found=str(error))
        else:
            sender.send("end")
    elif job.format == "write":
        limit_resources(job.limits, 0)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with job.paths[0].open("ab") as file:
                file.write(b"x")
        except OSError as error:
            sender.send("refused", rule="no writing", found=str(error))
        else:
            sender.send("end")
    elif job.format == "stop early":
        sender.rows("embed", rows)
    elif job.format == "fail at the end":
        sender.send("end")
        out.flush()
        os._exit(3)
    elif job.format == "pickle":
        out.write(pickle.dumps(_Payload(str(job.paths[0]))))
    elif job.format == "huge frame":
        out.write(b"prb1" + (10).to_bytes(4, "little") + (1 << 50).to_bytes(8, "little") + b"x" * 100)
    elif job.format == "odd rows":
        sender._write({"kind": "rows", "column": "embed", "shape": [2, -3]}, bytes(24))
    elif job.format == "short rows":
        sender._write({"kind": "rows", "column": "embed", "shape": [2, 3]}, bytes(20))


if __name__ == "__main__":
    misbehave(ChildJob.from_json(sys.argv[1]), Sender(sys.stdout.buffer))
