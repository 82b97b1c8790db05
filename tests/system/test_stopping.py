"""Signals end a run, whatever the program is doing when they come: in a destructor, in a callback, twice, or busy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from probing.system import stopping
from tests.conftest import ROOT

# A command of the command line that does `{body}`; `send` gives this process a signal.
PROGRAM = """
import os, signal, sys, time, weakref
from probing.cli import commands
from probing.system import stopping
stopping.GRACE_SECONDS = {grace}
def send(name="SIGTERM"):
    os.kill(os.getpid(), getattr(signal, name))
    for _ in range(3):
        time.sleep(0)
class Sends:
    def __del__(self):
        send()
def work():
{body}
commands.store_app.command("work")(work)
sys.argv = ["probing", "store", "work"]
commands.main()
"""
WAITS = "time.sleep(60)"


def ended(*body: str, grace: float = 30.0) -> subprocess.CompletedProcess[str]:
    lines = "\n".join(f"    {line}" for line in body)
    command = [sys.executable, "-c", PROGRAM.format(body=lines, grace=grace)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


BODIES = {
    "plainly": ("send()", WAITS),
    "in a destructor": ("thing = Sends()", "del thing", WAITS),
    "in destructors one after another": ("things = [Sends() for _ in range(20)]", "del things", WAITS),
    "in a callback of a weak reference": (
        "class A: pass",
        "a = A()",
        "r = weakref.ref(a, lambda _: send())",
        "del a",
        WAITS,
    ),
    "in a comparison that swallows everything": (
        "try:",
        "    send()",
        "except BaseException:",
        "    pass",
        WAITS,
    ),
    "twice": ("try:", "    send()", "finally:", "    send()", "    send('SIGUSR1')", WAITS),
    "twice in a row": ("os.kill(os.getpid(), 15); os.kill(os.getpid(), 15)", WAITS),
    "while the first is cleaned up after": (
        "try:",
        "    send()",
        "finally:",
        "    time.sleep(0.6)",
        "    print('cleaned up')",
        WAITS,
    ),
}


@pytest.mark.parametrize("when", BODIES)
def test_a_batch_system_s_signal_ends_with_75(when: str) -> None:
    done = ended(*BODIES[when])
    assert done.returncode == stopping.REQUEUE, (done.returncode, done.stderr)
    assert done.stderr.strip() == stopping.SAID
    assert ("cleaned up" in done.stdout) == ("cleaned" in when)


def test_ctrl_c_in_a_destructor_ends_with_1() -> None:
    done = ended("class C:", "    def __del__(self): send('SIGINT')", "c = C()", "del c", WAITS)
    assert done.returncode == 1 and done.stderr.startswith("Interrupted: "), done.stderr


def test_a_computation_that_never_comes_back_is_ended_all_the_same() -> None:
    done = ended(
        "import hashlib, threading",
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), 15)).start()",
        "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)",
        grace=0.5,
    )
    assert done.returncode == stopping.REQUEUE, (done.returncode, done.stderr)
    assert done.stderr.strip() == stopping.SAID


def test_signals_are_heard_while_the_command_line_itself_is_imported() -> None:
    program = """
import os, sys
class Sends:
    def find_spec(self, name, path=None, target=None):
        if name in ("probing.cli.commands", "typer", "rich"):
            os.kill(os.getpid(), 15)
sys.meta_path.insert(0, Sends())
sys.argv = ["probing", "list"]
import runpy
runpy.run_module("probing", run_name="__main__")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == stopping.REQUEUE and done.stderr.strip() == stopping.SAID, done
