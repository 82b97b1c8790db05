"""Laws of the audit: a good file passes, every hostile kind is refused, and what hostile files point at stays shut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from probing.errors import UntrustedFile
from probing.states.store.verify import AuditLimits, audit
from tests.conftest import ROOT
from tests.samples import hostile_hdf5 as hostile
from tests.samples import store_samples as sample

ONE_OF_EACH = """
import sys, h5py
from probing.errors import UntrustedFile
from probing.states.store.verify import audit
for path in sys.argv[1:]:
    with h5py.File(path, "r") as file:
        try:
            audit(file)
        except UntrustedFile:
            continue
        raise SystemExit(path + " passed")
"""
NAIVE = """
import sys, h5py
for path in sys.argv[1:]:
    with h5py.File(path, "r") as file:
        try:
            for name in file:
                file[name][()]
        except Exception:
            pass
"""


def naive_bytes(path: Path) -> bytes:
    """What a reader gets that asks for everything by name: the naive double."""

    def contents(group: Any) -> bytes:
        return b"".join(contents(v) if isinstance(v, h5py.Group) else np.asarray(v).tobytes() for v in group.values())

    with h5py.File(path, "r") as file:
        return contents(file)


def audited(path: Path, **limits: int) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        return audit(file, limits=AuditLimits(**limits))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write_canaries(folder)
    return {name: hostile.write(folder / f"{i}.h5", name) for i, name in enumerate(hostile.KINDS)}


def test_good_files_and_shards_pass_and_every_data_set_is_found(tmp_path: Path) -> None:
    found = audited(hostile.write_good(tmp_path / "good.h5"))
    assert {"/a/b/c", "/scalar"} < set(found) and len(found) == 10
    for dtype in ("float32", "bfloat16"):
        sample.write(tmp_path / dtype, dtype)
        for shard in (tmp_path / dtype / "shards").glob("*.h5"):
            assert {f"/sites/{site}" for site in sample.SITES} < set(audited(shard))


@pytest.mark.parametrize("name", hostile.KINDS)
def test_every_hostile_kind_is_refused_with_rule_and_object(files: dict[str, Path], name: str) -> None:
    with pytest.raises(UntrustedFile) as caught:
        audited(files[name])
    assert hostile.RULES[name] in caught.value.rule
    assert caught.value.object.startswith("/") and caught.value.found
    assert hostile.SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize("name", hostile.READS_CANARY)
def test_a_naive_reader_hands_over_the_canary(
    files: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[name].parent)  # external storage is looked for there
    assert hostile.SECRET in naive_bytes(files[name])


def opened_by(program: str, files: dict[str, Path], folder: Path) -> str:
    log = folder / "trace"
    trace = ["strace", "-f", "-qq", "-e", "trace=%file", "-o", str(log)]
    done = subprocess.run(
        [*trace, sys.executable, "-c", program, *map(str, files.values())],
        cwd=next(iter(files.values())).parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr or not log.exists():
        pytest.skip(f"no system calls can be traced here: {done.stderr[:100]}")
    assert done.returncode == 0, done.stderr
    return log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_audit_makes_no_system_call_on_the_canary_and_a_naive_reader_does(
    files: dict[str, Path], tmp_path: Path
) -> None:
    reading = {name: files[name] for name in hostile.READS_CANARY}
    naive = opened_by(NAIVE, reading, tmp_path)
    assert hostile.CANARY in naive and hostile.RAW_CANARY in naive and "canary-0.h5" in naive
    trace = opened_by(ONE_OF_EACH, files, tmp_path)
    assert all(str(file) in trace for file in files.values())
    assert "canary" not in trace


def test_limits_are_those_given(tmp_path: Path) -> None:
    path = hostile.write_good(tmp_path / "good.h5")
    for limit, rule in {
        "objects": "objects",
        "depth": "inside",
        "attributes": "attributes",
        "dataset_bytes": "in a data set",
        "total_bytes": "in all",
        "chunk_bytes": "chunks",
        "attribute_bytes": "attributes of",
    }.items():
        with pytest.raises(UntrustedFile, match=rule):
            audited(path, **{limit: 1})


def test_text_of_variable_length_passes_only_as_one_string_under_the_name_allowed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["index"] = ["{}"]
        file["other"] = np.arange(3)
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert set(audit(file, text="index")) == {"/index", "/other"}
        with pytest.raises(UntrustedFile, match="integers or floats"):
            audit(file)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["index"]
        file["index"] = ["{}", "{}"]
    with h5py.File(tmp_path / "a.h5", "r") as file, pytest.raises(UntrustedFile):
        audit(file, text="index")
