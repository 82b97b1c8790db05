"""Many foreign files, one interpreter: a warm process forks a child for each, which is limited and reads as ever.

The child that `hand_over` starts (`python -m tests.samples.warm_child JOB`) passes its output to the warm process over
a socket beside the file, waits, and ends as the fork did. What reads the file is `run` of `foreign/child.py` in a
process of its own; only loading the libraries is shared, and that is most of the time that a child takes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SOCKET = "warm"


@contextmanager
def warm(folder: Path) -> Iterator[None]:
    """The warm process, for files in this folder."""
    from probing.states.importing.foreign.process import child_environment

    command = [sys.executable, "-P", "-m", "tests.samples.warm_child", "--serve"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, env=child_environment()) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()
            (folder / SOCKET).unlink()


@contextmanager
def warm_children(folder: Path) -> Iterator[None]:
    """Within the block, whoever imports files of this folder has them read by forks of the warm process."""
    from probing.states.importing.foreign.process import hand_over

    own = hand_over.__kwdefaults__
    with warm(folder):
        hand_over.__kwdefaults__ = own | {"module": "tests.samples.warm_child"}
        try:
            yield
        finally:
            hand_over.__kwdefaults__ = own


def serve() -> None:
    """Fork for every job until killed."""
    from probing.states.importing.foreign.child import run  # here: the child that passes a job on loads nothing
    from probing.states.importing.foreign.protocol import Sender
    from probing.states.importing.foreign.sources import ChildJob

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(SOCKET)  # relative: the whole path may be too long for a socket
        listening.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            job, (output,), _, _ = socket.recv_fds(connection, 1 << 16, 1)
            child = os.fork()
            if child == 0:
                listening.close()
                connection.close()
                os.dup2(output, 1)
                os.close(output)
                os.chdir("/")
                run(ChildJob.from_json(job.decode()), Sender(sys.stdout.buffer))
                sys.stdout.flush()
                os._exit(0)
            os.close(output)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(OSError):  # whoever asked has heard enough, and is gone
                connection.sendall(str(status).encode())
            connection.close()


def ask(job: str) -> None:
    """Have a job done, and end as its process did."""
    above = Path(json.loads(job)["paths"][0]).parents
    os.chdir(next(folder for folder in above if (folder / SOCKET).is_socket()))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SOCKET)
        socket.send_fds(connection, [job.encode()], [1])
        status = int(connection.recv(16))
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    serve() if sys.argv[1] == "--serve" else ask(sys.argv[1])
