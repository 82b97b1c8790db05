"""Laws of foreign files: hostile ones are one typed error, the child has nothing to give, the parent trusts nobody."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save

from probing.errors import UntrustedFile
from probing.states.importing.foreign.hdf5 import read_neurox_json
from probing.states.importing.foreign.npy import read_npy, read_safetensors
from probing.states.importing.foreign.process import CHILD, Spool, hand_over
from probing.states.importing.foreign.protocol import Frame, Sender, frames
from probing.states.importing.foreign.sources import ChildJob, Limits, open_source
from tests.conftest import ROOT
from tests.samples import hostile_hdf5 as hostile
from tests.samples import store_samples as sample
from tests.samples.warm_child import warm
from tests.states.test_store import forge_shard, shard_path

READERS = {"npy": read_npy, "json": read_neurox_json, "safetensors": read_safetensors}
LINE = {
    "linex_index": 0,
    "features": [
        {"token": w, "layers": [{"index": 0, "values": [1.5, 2.0]}, {"index": 1, "values": [0.5, -1]}]}
        for w in ("dogs", "bark")
    ],
}


def job(form: str, *paths: Path, **limits: Any) -> ChildJob:
    return ChildJob(form, paths, sum(p.stat().st_size for p in paths if p.is_file()), 10, Limits(**limits))


def read_here(form: str, path: Path) -> list[Frame]:
    """What a reader sends, read in this process."""
    out = io.BytesIO()
    file = open_source(path)
    with file.stream:
        READERS[form]([file], Sender(out), Limits())
    out.seek(0)
    return list(frames(out))


def refused(form: str, path: Path, rule: str) -> UntrustedFile:
    with pytest.raises(UntrustedFile, match=rule) as caught:
        read_here(form, path)
    return caught.value


def test_frames_carry_numbers_unchanged(tmp_path: Path) -> None:
    states, column = np.random.default_rng(0).normal(size=(5, 3)).astype("f4"), np.arange(5)
    out = io.BytesIO()
    sender = Sender(out)
    sender.rows("resid.1", states[:2])
    sender.rows("resid.1", states[2:])
    sender.rows("word", column)
    sender.rows("word", column[:0])
    sender.send("end")
    out.seek(0)
    with Spool(tmp_path, 1000) as spool:
        for frame in frames(out):
            if frame.rows is not None:
                spool.append(frame.head["column"], frame.rows)
        assert np.array_equal(spool.column("resid.1"), states) and np.array_equal(spool.column("word"), column)
        with pytest.raises(UntrustedFile, match="one width"):
            spool.append("resid.1", np.zeros((1, 4), "f4"))
        with pytest.raises(UntrustedFile, match="bytes in a column"):
            spool.append("resid.1", np.zeros((100, 3), "f4"))


MISBEHAVIOUR = {
    "crash": "killed by signal 11",
    "hang": "more: the process was stopped",
    "spin": "processor time|was stopped",
    "grow": "memory",
    "open": "Too many open files",
    "write": "File too large",
    "stop early": "exit status 0",
    "fail at the end": "exit status 3",
    "pickle": "a frame that is none",
    "huge frame": "a frame that is none",
    "odd rows": "rows of no shape",
    "short rows": "another size",
}


@pytest.mark.parametrize("form", MISBEHAVIOUR)
def test_whatever_becomes_of_the_child_is_one_typed_error(tmp_path: Path, form: str) -> None:
    path = tmp_path / "canary"
    if form in ("open", "write"):
        path.write_bytes(b"mine")
    limits = {"seconds": 1.5} if form in ("hang", "spin") else {}
    start = time.monotonic()
    with pytest.raises(UntrustedFile, match=MISBEHAVIOUR[form]):
        list(hand_over(job(form, path, memory_bytes=256 << 20, **limits), module="tests.samples.broken_children"))
    assert time.monotonic() - start < 60
    assert path.exists() == (form in ("open", "write")) and (not path.exists() or path.read_bytes() == b"mine")


def test_nothing_of_a_child_outlives_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "embed.npy", np.zeros((1000, 1000), "f4"))
    received = hand_over(job("npy", tmp_path / "embed.npy"))
    next(received)
    received.close()
    children = subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    assert "probing.states.importing.foreign.child" not in children.stdout


@pytest.mark.parametrize("name", [*hostile.READS_CANARY, "unknown filter id", "4 TB in a small file", "link cycle"])
def test_hostile_hdf5_is_refused_by_the_child_and_the_canary_is_not_seen(tmp_path: Path, name: str) -> None:
    hostile.write_canaries(tmp_path)
    path = hostile.write(tmp_path / "evil.h5", name)
    with pytest.raises(UntrustedFile) as caught:
        list(hand_over(job("hdf5", path)))
    assert hostile.RULES[name] in caught.value.rule and caught.value.object.startswith("evil.h5: /")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_child_opens_its_file_and_nothing_after_it(tmp_path: Path) -> None:
    hostile.write_canaries(tmp_path)
    path = hostile.write(tmp_path / "evil.h5", "external link")
    log = tmp_path / "trace"
    subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=open,openat,openat2,connect,execve",
            "-o",
            str(log),
            sys.executable,
            "-P",
            "-m",
            "probing.states.importing.foreign.child",
            job("hdf5", path).to_json(),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    calls = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    if not calls:
        pytest.skip("no system calls can be traced here")
    last = max(i for i, call in enumerate(calls) if "evil.h5" in call and "open" in call)
    assert not [call for call in calls[last + 1 :] if "open" in call and "= -1" not in call]
    assert not [call for call in calls if "canary" in call or "connect(" in call]
    assert not [call for call in calls[last:] if "execve(" in call]


@pytest.mark.slow
def test_a_pipe_a_folder_and_a_link_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    np.save(tmp_path / "good.npy", np.zeros((2, 2)))
    (tmp_path / "link.npy").symlink_to("good.npy")
    for name, rule in {"pipe": "regular", "folder": "regular", "link": "symbolic"}.items():
        for form, suffix in (("npy", ".npy"), ("hdf5", ".npy")):
            with pytest.raises(UntrustedFile, match=rule):
                list(hand_over(job(form, tmp_path / f"{name}{suffix}")))


def test_a_pickle_in_an_npy_file_is_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (canary,)

    np.save(tmp_path / "embed.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(UntrustedFile, match="never unpickled"):
        list(hand_over(job("npy", tmp_path / "embed.npy")))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UntrustedFile, match="npy"):
        list(hand_over(job("npy", tmp_path / "raw.npy")))
    assert not canary.exists()
    np.load(tmp_path / "embed.npy", allow_pickle=True)  # the naive double
    assert canary.exists()


def npy(shape: object, descr: object = "<f4", fortran: bool = False, body: bytes = b"", version: int = 1) -> bytes:
    header = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode().ljust(117) + b"\n"
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (npy((2, 3), body=bytes(24))[:-1], "as many bytes"),
        (npy((2, 3), body=bytes(25)), "as many bytes"),
        (npy((1 << 40, 1 << 20)), "as many bytes"),
        (npy((-2, -3), body=bytes(24)), "whole numbers"),
        (npy((2, 3), fortran=True, body=bytes(24)), "C order"),
        (npy((6,), body=bytes(24)), "floats"),
        (npy((1, 2, 3), body=bytes(24)), "floats"),
        (npy((3, 2), "<i4", body=bytes(24)), "floats"),
        (npy((3, 2), "<c8", body=bytes(48)), "integers or floats"),
        (npy((3, 2), "|S4", body=bytes(24)), "integers or floats"),
        (npy((3, 2), "|b1", body=bytes(6)), "integers or floats"),
        (npy((3,), "|O", body=bytes(24)), "never unpickled"),
        (npy((3,), [("a", "<f4")], body=bytes(12)), "never unpickled"),
        (npy((2, 3), version=9, body=bytes(24)), "npy format"),
        (npy("__import__('os').getcwd()"), "whole numbers"),
        (b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b"{" * 1000, "header of at most"),
        (b"", "cut off"),
    ],
)
def test_hostile_npy_headers_are_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "embed.npy").write_bytes(content)
    refused("npy", tmp_path / "embed.npy", rule)


def tensors(header: object, body: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (tensors({"a": entry(0, 8, [1, 2])}, bytes(7)), "cut off"),
        (tensors({"a": entry(0, 8, [1, 2])}, bytes(9)), "end of the file"),
        (tensors({"a": entry(0, 8, [1, 2]), "b": entry(4, 12, [1, 2])}, bytes(12)), "gaps or overlaps"),
        (tensors({"a": entry(4, 12, [1, 2])}, bytes(12)), "gaps or overlaps"),
        (tensors({"a": entry(8, 0, [1, 2])}, bytes(8)), "as many bytes"),
        (tensors({"a": entry(-8, 0, [1, 2])}, bytes(8)), "whole numbers"),
        (tensors({"a": entry(0, 8, [1 << 47, 1 << 47])}, bytes(8)), "as many bytes"),
        (tensors({"a": entry(0, 8, [True, 2])}, bytes(8)), "whole numbers"),
        (tensors({"a": entry(0, 8, [8], "F8_E4M3")}, bytes(8)), "one of"),
        (tensors({"a": entry(0, 8, [2])}, bytes(8)), "floats"),
        (tensors({"a": 1}), "dtype, shape"),
        (tensors([]), "header with tensors"),
        (tensors(b'{"a":1,"a":1}'), "occurs twice"),
        (tensors(b'{"a":NaN}'), "no JSON number"),
        (tensors(b"[" * 100_000), "too deeply"),
        (tensors(b"\xff\xfe"), "UTF-8"),
        (tensors({}, size=1 << 60), "header of at most"),
        (b"\x01", "cut off"),
    ],
)
def test_hostile_safetensors_headers_are_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refused("safetensors", tmp_path / "a.safetensors", rule)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('"linex_index": 0', '"linex_index": "0"', "linex_index"),
        ('"linex_index": 0', '"linex_index": 0, "linex_index": 1', "occurs twice"),
        ("1.5", "NaN", "no JSON number"),
        ("1.5", '"1.5"', "numbers"),
        ("1.5", "null", "numbers"),
        ("[1.5, 2.0]", "[1.5]", "one width"),
        ("[1.5, 2.0]", "[]", "one width"),
        ("[1.5, 2.0]", "[[1.5], 2.0]", "numbers"),
        ('"index": 1', '"index": 0', "different indexes"),
        ('"features": [', '"features": 1, "other": [', "features"),
        ('"token": "dogs"', '"token": 1', "token"),
        ("1.5", "[" * 50_000, "too deeply"),
    ],
)
def test_hostile_json_lines_are_refused_with_their_line(tmp_path: Path, old: str, new: str, rule: str) -> None:
    text = json.dumps(LINE)
    assert old in text
    (tmp_path / "a.json").write_text("\n" + text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UntrustedFile, match=rule):
        read_here("json", tmp_path / "a.json")


def test_a_line_longer_than_its_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(LINE) + " " * 5000, encoding="utf-8")
    with pytest.raises(UntrustedFile, match="lines of at most 1,000"):
        list(hand_over(job("json", tmp_path / "a.json", json_bytes=1000)))


def neurox(path: Path, index: object = None) -> Path:
    with h5py.File(path, "w") as file:
        file["0"] = np.zeros((2, 3, 4), "f4")
        text = index if isinstance(index, str) else json.dumps({"a b c": "0"} if index is None else index)
        file.create_dataset("sentence_to_index", (1,), h5py.string_dtype())[0] = text
    return path


@pytest.mark.parametrize(
    ("index", "rule"),
    [
        ("{", "sound JSON"),
        ('{"a": "0", "a": "0"}', "sound JSON"),
        ({"a": "0", "b": "0"}, "different number"),
        ({"a": "-0"}, "different number"),
        ({"a": "٣"}, "different number"),
        ({"a": "1"}, "one data set for each"),
        ([], "one data set for each"),
        ({"a": "../0"}, "different number"),
        ({"a": [0]}, "different number"),
    ],
)
def test_a_neurox_index_that_does_not_fit_is_refused(tmp_path: Path, index: object, rule: str) -> None:
    with pytest.raises(UntrustedFile, match=rule):
        list(hand_over(job("hdf5", neurox(tmp_path / "a.hdf5", index))))


def test_the_text_of_a_neurox_index_is_bounded(tmp_path: Path) -> None:
    path = neurox(tmp_path / "a.hdf5", {"a" * 5000: "0"})
    assert [frame.kind for frame in hand_over(job("hdf5", path))] == ["sentence", "rows", "rows"]
    with pytest.raises(UntrustedFile, match="at most 1,000 bytes"):
        list(hand_over(job("hdf5", path, json_bytes=1000)))
    path = neurox(tmp_path / "b.hdf5", json.dumps({"a" * (80 << 20): "0"}))
    with pytest.raises(UntrustedFile, match=r"memory allocation failed|bytes of memory"):
        list(hand_over(job("hdf5", path, memory_bytes=64 << 20)))


def test_a_forged_shard_with_a_matching_record_is_refused_by_the_child(tmp_path: Path) -> None:
    sample.write(tmp_path / "store")
    (tmp_path / "store" / "seal.json").unlink()
    forged = Path(shutil.copy(shard_path(tmp_path / "store", 0), tmp_path / "forged.h5"))
    with h5py.File(forged, "r+") as file:
        del file["/sites/embed"]
        file["/sites/embed"] = h5py.ExternalLink("canary.h5", "/secret")
    assert len(list(hand_over(job("store", tmp_path / "store")))) == 1 + sample.N_SHARDS
    forge_shard(tmp_path / "store", 0, forged)
    with pytest.raises(UntrustedFile, match="hard links only"):
        list(hand_over(job("store", tmp_path / "store")))


def mutations(good: bytes, count: int) -> list[bytes]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        spoiled = bytearray(good)
        for position in rng.integers(0, min(len(good), 400), rng.integers(1, 5)):
            spoiled[position] = rng.integers(256)
        found.append(bytes(spoiled[: rng.integers(len(good))] if rng.random() < 0.2 else spoiled))
    return found


def _good(form: str) -> bytes:
    if form == "json":
        return json.dumps(LINE).encode()
    states = np.arange(6, dtype=np.float32).reshape(2, 3)
    if form == "safetensors":
        return bytes(save({"embed": states, "offset": np.array([0, 2])}))
    out = io.BytesIO()
    np.save(out, states)
    return out.getvalue()


@pytest.mark.parametrize("form", READERS)
def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    outcomes = {"read": 0, "refused": 0}
    for content in [_good(form), *mutations(_good(form), 400)]:
        path.write_bytes(content)
        try:
            read_here(form, path)
            outcomes["read"] += 1
        except UntrustedFile:
            outcomes["refused"] += 1
    assert outcomes["read"] >= 1 and outcomes["refused"] > 50


def _survive_mutated_hdf5(folder: Path, count: int, module: str = CHILD) -> list[str]:
    """What became of the good file, of so many mutations of it, and of the good file again."""
    good, outcomes = neurox(folder / "good.hdf5").read_bytes(), []
    for content in [good, *mutations(good, count), good]:
        (folder / "a.hdf5").write_bytes(content)
        try:
            outcomes.append(repr([frame.kind for frame in hand_over(job("hdf5", folder / "a.hdf5"), module=module)]))
        except UntrustedFile as error:
            assert error.where
            outcomes.append(str(error))
        assert not re.search("core", " ".join(path.name for path in folder.iterdir()))
    return outcomes


@pytest.mark.slow
def test_mutated_hdf5_is_read_or_refused(tmp_path: Path) -> None:
    outcomes = _survive_mutated_hdf5(tmp_path, 10)
    (tmp_path / "warm").mkdir()
    with warm(tmp_path / "warm"):
        again = _survive_mutated_hdf5(tmp_path / "warm", 10, "tests.samples.warm_child")
    assert again == outcomes and len(set(outcomes)) > 1


@pytest.mark.slow
def test_much_mutated_hdf5_is_read_or_refused(tmp_path: Path) -> None:
    with warm(tmp_path):
        outcomes = _survive_mutated_hdf5(tmp_path, 160, "tests.samples.warm_child")
    assert outcomes[0] == outcomes[-1] == "['sentence', 'rows', 'rows']"
    assert len(set(outcomes)) > 10
