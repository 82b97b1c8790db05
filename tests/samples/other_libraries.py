"""Other libraries for marked tests: installed here, or in the folder that PROBING_OTHER_LIBRARIES names.

They run in a process of their own, since a folder has them without what they need elsewhere (`pip install --no-deps
--target`), and since importing them changes torch and warnings.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FOLDER = "PROBING_OTHER_LIBRARIES"


def run_with(module: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGUMENTS` where a library can be imported; skip the test where the library is not installed."""
    paths = [os.environ[FOLDER]] if os.environ.get(FOLDER) else []
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    seek = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if subprocess.run([python, "-c", seek], check=False, env=environment, cwd=ROOT).returncode:
        pytest.skip(f"the package {module} is not installed")
    return subprocess.run(
        [python, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
