"""What changes a store on disk goes through `store/file_ops.py`: nothing escapes the reliability figures."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

STORE = ROOT / "probing" / "store"
SEAM = "file_ops.py"
OTHERS = ("export.py",)  # write files that are no store's
CHANGING = {
    "chmod",
    "fsync",
    "ftruncate",
    "hardlink_to",
    "link",
    "makedirs",
    "mkdir",
    "mkdtemp",
    "mkstemp",
    "move",
    "remove",
    "removedirs",
    "rename",
    "renames",
    "rmdir",
    "rmtree",
    "symlink",
    "symlink_to",
    "touch",
    "truncate",
    "unlink",
    "utime",
    "write_bytes",
    "write_text",
}
WRITING_FLAGS = {"O_APPEND", "O_CREAT", "O_RDWR", "O_TRUNC", "O_WRONLY"}
FILES = [file for file in sorted(STORE.rglob("*.py")) if file.name not in (SEAM, *OTHERS)]


def changes(source: str) -> Iterator[str]:
    """Calls that change the disk, other than methods of `files`, which is the seam."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if getattr(owner, "id", getattr(owner, "attr", "")) in ("files", "_files"):
            continue
        one_argument = len(node.args) == 1 and not node.keywords
        mode = " ".join(str(a.value) for a in node.args if isinstance(a, ast.Constant))
        flags = {part.attr for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Attribute)}
        opens = name == "open" and (flags & WRITING_FLAGS or (owner is None and set(mode) & set("wax+")))
        path_opens = name == "open" and owner is not None and mode[:1] in ("w", "a", "x")
        if name in CHANGING or opens or path_opens or (name == "replace" and owner is not None and one_argument):
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_store_changes_the_disk_through_its_seam_alone(file: Path) -> None:
    assert list(changes(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "path.unlink()",
        "os.unlink(path)",
        "source.replace(target)",
        "shutil.rmtree(path)",
        "path.write_bytes(data)",
        "open(path, 'wb')",
        "path.open('w')",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "path.mkdir(parents=True)",
        "os.fsync(fd)",
        "path.touch()",
    ],
)
def test_a_change_beside_the_seam_is_found(code: str) -> None:
    assert len(list(changes(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "files.unlink(path)",
        "self._files.rename(a, b)",
        "text.replace('a', 'b')",
        "path.open('rb')",
        "open(path)",
        "os.open(path, os.O_RDONLY)",
        "replace(files, a, b)",
        "Store.open(path)",
        "h5o.open(group, name)",
    ],
)
def test_reading_and_the_seam_are_allowed(code: str) -> None:
    assert list(changes(code)) == []
