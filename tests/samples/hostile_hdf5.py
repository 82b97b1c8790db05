"""Hostile HDF5 files, made by the tests: each breaks one rule of the audit. Most carry a good data set as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

SECRET = b"canary bytes that must never be seen"
CANARY, RAW_CANARY = "canary.h5", "canary.bin"
KINDS: dict[str, Callable[[Any], None]] = {}
RULES: dict[str, str] = {}  # what the refusal says, in part
READS_CANARY = (
    "external link",
    "external link in a middle component",
    "external storage",
    "virtual data set",
    "virtual data set of numbered files",
)


def kind(name: str, rule: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def register(make: Callable[[Any], None]) -> Callable[[Any], None]:
        KINDS[name], RULES[name] = make, rule
        return make

    return register


def write_canaries(folder: Path) -> None:
    """What hostile files point at, in the same folder."""
    secret = np.frombuffer(SECRET, "u1")
    for name in (CANARY, "canary-0.h5"):
        with h5py.File(folder / name, "w") as file:
            file["secret"] = secret
            file["group/secret"] = secret
    (folder / RAW_CANARY).write_bytes(SECRET)


def write(path: Path, name: str) -> Path:
    """The hostile file of one kind."""
    with h5py.File(path, "w") as file:
        file["good"] = np.arange(6.0)
        KINDS[name](file)
    if name == "user-defined link":
        _patch_link_type(path)
    return path


def write_good(path: Path) -> Path:
    """A file that breaks no rule: nested groups, chunks, all three filters, every type allowed, attributes."""
    with h5py.File(path, "w") as file:
        for dtype in ("i1", "u1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8"):
            file[f"types/{dtype[-2:]}{dtype[0] == '>'}"] = np.arange(12).astype(dtype)
        packed = file.create_dataset(
            "a/b/c", data=np.zeros((300, 40), "<f4"), chunks=(50, 40), compression="gzip", shuffle=True, fletcher32=True
        )
        packed.attrs["number"], packed.attrs["text"] = 3.5, np.bytes_(b"fixed")
        file["scalar"] = 3
    return path


@kind("soft link", "hard links only")
def _(file: Any) -> None:
    file["other"] = h5py.SoftLink("/good")


@kind("external link", "hard links only")
def _(file: Any) -> None:
    file["outer"] = h5py.ExternalLink(CANARY, "/secret")


@kind("external link in a middle component", "hard links only")
def _(file: Any) -> None:
    file.create_group("a")
    file["a/middle"] = h5py.ExternalLink(CANARY, "/group")


@kind("user-defined link", "hard links only")
def _(file: Any) -> None:
    file["outer"] = h5py.ExternalLink(CANARY, "/secret")


def _patch_link_type(path: Path) -> None:
    """Link type 64 (external) to 65, which nobody has registered."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x05outer") - 1
    while data[at] != 64:
        at -= 1
    data[at] = 65
    path.write_bytes(data)


@kind("external storage", "no external storage")
def _(file: Any) -> None:
    file.create_dataset("outer", (len(SECRET),), "u1", external=[(RAW_CANARY, 0, len(SECRET))])


def _virtual(file: Any, source: str, name: str, maxshape: Any = None) -> None:
    layout = h5py.VirtualLayout((len(SECRET),), "u1", maxshape=maxshape)
    layout[:] = h5py.VirtualSource(source, name, (len(SECRET),))
    file.create_virtual_dataset("outer", layout)


@kind("virtual data set", "no virtual data sets")
def _(file: Any) -> None:
    _virtual(file, CANARY, "secret")


@kind("virtual data set of the same file", "no virtual data sets")
def _(file: Any) -> None:
    file["bytes"] = np.zeros(len(SECRET), "u1")
    _virtual(file, ".", "bytes")


@kind("virtual data set of numbered files", "no virtual data sets")
def _(file: Any) -> None:
    size = len(SECRET)
    plan, space = h5p.create(h5p.DATASET_CREATE), h5s.create_simple((size,), (h5s.UNLIMITED,))
    space.select_hyperslab((0,), (h5s.UNLIMITED,), (size,), (size,))
    plan.set_virtual(space, b"canary-%b.h5", b"secret", h5s.create_simple((size,)))
    h5d.create(file.id, b"outer", h5t.STD_U8LE, h5s.create_simple((size,), (h5s.UNLIMITED,)), dcpl=plan)


def _filtered(file: Any, **options: Any) -> None:
    file.create_dataset("packed", data=np.arange(100), chunks=(100,), **options)


@kind("filter of another library", "no filters but")
def _(file: Any) -> None:
    _filtered(file, compression="lzf")


@kind("lossy filter", "no filters but")
def _(file: Any) -> None:
    _filtered(file, scaleoffset=4)


@kind("unknown filter id", "no filters but")
def _(file: Any) -> None:
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_chunk((100,))
    plan.set_filter(31_999, 1, (1, 2))
    h5d.create(file.id, b"packed", h5t.STD_I32LE, h5s.create_simple((100,)), dcpl=plan)
    file["packed"][:] = 1


@kind("numbers of variable length", "integers or floats")
def _(file: Any) -> None:
    file.create_dataset("odd", (3,), h5py.vlen_dtype("i4"))[0] = [1, 2]


@kind("text of variable length", "integers or floats")
def _(file: Any) -> None:
    file["odd"] = ["a", "bc"]


@kind("text of variable length by a name that is allowed elsewhere", "integers or floats")
def _(file: Any) -> None:
    file["inner/sentence_to_index"] = "{}"


@kind("object reference", "integers or floats")
def _(file: Any) -> None:
    file.create_dataset("odd", (1,), h5py.ref_dtype)[0] = file["good"].ref


@kind("region reference", "integers or floats")
def _(file: Any) -> None:
    file.create_dataset("odd", (1,), h5py.regionref_dtype)[0] = file["good"].regionref[0:2]


@kind("compound", "integers or floats")
def _(file: Any) -> None:
    file["odd"] = np.zeros(3, [("a", "i4"), ("b", "f4")])


@kind("opaque", "integers or floats")
def _(file: Any) -> None:
    file["odd"] = np.zeros(3, h5py.opaque_dtype(np.dtype("M8[s]")))


@kind("enumeration", "integers or floats")
def _(file: Any) -> None:
    file["odd"] = np.zeros(3, bool)


@kind("array type", "integers or floats")
def _(file: Any) -> None:
    file.create_dataset("odd", (3,), np.dtype(("i4", (2,))))[0] = [1, 2]


@kind("committed type", "groups and data sets only")
def _(file: Any) -> None:
    file["odd"] = np.dtype("f4")


@kind("empty data set", "data sets with a shape")
def _(file: Any) -> None:
    file["odd"] = h5py.Empty("f4")


@kind("attribute of variable length", "attributes that are numbers")
def _(file: Any) -> None:
    file["good"].attrs["note"] = "text"


@kind("attribute that refers", "attributes that are numbers")
def _(file: Any) -> None:
    file["good"].attrs.create("note", file.ref, dtype=h5py.ref_dtype)


@kind("many attributes", "at most 64 attributes")
def _(file: Any) -> None:
    for index in range(65):
        file["good"].attrs[f"a{index}"] = index


@kind("4 TB in a small file", "bytes in a data set")
def _(file: Any) -> None:
    file.create_dataset("bomb", (1 << 40,), "f4", chunks=(1 << 20,))[0] = 1


@kind("500 middling data sets", "times what is stored, in sum")
def _(file: Any) -> None:
    for index in range(500):
        file.create_dataset(f"bomb{index}", (15 << 20,), "f4", chunks=(1 << 10,))[0] = 1


@kind("zeros that deflate a thousandfold", "times what is stored")
def _(file: Any) -> None:
    file.create_dataset("bomb", data=np.zeros(80 << 20, "u1"), chunks=(16 << 20,), compression="gzip")


@kind("one huge chunk", "chunks of at most")
def _(file: Any) -> None:
    file.create_dataset("bomb", (1000,), "u1", maxshape=(None,), chunks=(1 << 30,), compression="gzip")[:1] = 1


@kind("data set that was never written", "data sets that were written")
def _(file: Any) -> None:
    file.create_dataset("odd", (100,), "f4")


@kind("link cycle", "one name for each object")
def _(file: Any) -> None:
    file.create_group("a/b")
    file["a/b/up"] = file["a"]


@kind("link to the root", "one name for each object")
def _(file: Any) -> None:
    file["a"] = file["/"]


@kind("second name", "one name for each object")
def _(file: Any) -> None:
    file["again"] = file["good"]


@kind("20,000 groups", "10,000 objects")
def _(file: Any) -> None:
    for index in range(20_000):
        h5py.h5g.create(file.id, str(index).encode()).close()


@kind("deep nesting", "groups inside each other")
def _(file: Any) -> None:
    file.create_group("/".join("abcdefghijklmnopqrst"))


@kind("name of many bytes", "names of at most")
def _(file: Any) -> None:
    file.create_group("n" * 5000)
