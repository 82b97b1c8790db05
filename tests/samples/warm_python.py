"""Many commands and programs, one interpreter: a warm process has loaded the libraries and forks for each of them.

`python CLIENT SOCKET -m probing …` and `… -c CODE` do what `python -m probing …` and `python -c CODE` do in this
folder, with these variables and files, and end as they end. Only loading the libraries is shared, which takes five
seconds of a processor each time; that modules import what they use is a law of tests/house/test_habits.py.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

CLIENT = Path(__file__)
LIBRARIES = (
    "torch",
    "transformers",
    "transformers.models.gpt2.modeling_gpt2",
    "sklearn.linear_model",
    "scipy.stats",
    "pandas",
    "pyarrow.parquet",
    "h5py",
    "altair",
    "vl_convert",
    "jinja2",
)


@contextmanager
def warm_python() -> Iterator[list[str]]:
    """The words that stand for `python` as long as the warm process lives."""
    with tempfile.TemporaryDirectory() as folder:  # not a test's own: the path of a socket has to be short
        path = Path(folder) / "warm"
        command = [sys.executable, "-m", "tests.samples.warm_python", "--serve", str(path)]
        with subprocess.Popen(command, cwd=CLIENT.parents[2], stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            try:
                yield [sys.executable, "-I", "-S", str(CLIENT), str(path)]
            finally:
                process.kill()


def serve(path: str) -> None:
    """Fork for every request until killed; what runs then is killed, too."""
    import gc
    from importlib import import_module

    from probing.system.stopping import end_with

    end_with(os.getppid())
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()  # forks neither walk through the libraries nor copy their memory to do so
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no dead child stays
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        server = os.getpid()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                end_with(server)
                listening.close()
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> NoReturn:
    """Do in a child what is asked for, and send the status with which it ended."""
    from probing.system.stopping import end_with

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    parent, child = os.getpid(), os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):  # whoever asked is gone
            connection.sendall(str(status).encode())
        os._exit(0)
    end_with(parent)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    code: object = None
    try:
        run(**json.loads(asked))
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))  # the libraries need not be taken down


def run(folder: str, variables: dict[str, str], words: list[str]) -> None:
    """Run what Python would run with these words, in a main module of its own."""
    import multiprocessing.process
    import runpy
    import types

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.process.ORIGINAL_DIR = folder
    sys.path[0] = ""
    kind, program, *_ = words
    sys.argv = ["-c", *words[2:]]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), main.__dict__)


def ask(path: str, words: list[str]) -> None:
    """Have the words run, and end as their process did."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        request = {"folder": str(Path.cwd()), "variables": dict(os.environ), "words": words}
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        status = int(connection.recv(16) or 1)
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "--serve" else ask(sys.argv[1], sys.argv[2:])
