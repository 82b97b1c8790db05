"""Other libraries for marked tests: installed here, or in the folder that PROBING_OTHER_LIBRARIES names.

They run in a process of their own, since a folder has them without what they need elsewhere (`pip install --no-deps
--target`), and since importing them changes torch and warnings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

from tests.conftest import ROOT

FOLDER = "PROBING_OTHER_LIBRARIES"


# What `python -m` does, in a process that is there already.
PROGRAM = """
import os, runpy, sys
sys.path[1:1] = filter(None, os.environ["PYTHONPATH"].split(os.pathsep))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_with(
    module: str, *arguments: str, warm: list[str], python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGUMENTS` where a library can be imported; skip the test where the library is not installed.

    Args:
        module: the library.
        arguments: a module of the tests, and what follows.
        warm: words for this Python with the usual libraries loaded (fixture `warm`), used unless `python` is another.
        python: the Python to run.
    """
    paths = [os.environ[FOLDER]] if os.environ.get(FOLDER) else []
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if not _is_installed(module, python, environment["PYTHONPATH"]):
        pytest.skip(f"the package {module} is not installed")
    words = [*warm, "-c", PROGRAM] if python == sys.executable else [python, "-m"]
    return subprocess.run([*words, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@cache
def _is_installed(module: str, python: str, paths: str) -> bool:
    seek = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run([python, "-c", seek], check=False, env=environment, cwd=ROOT).returncode == 0
