"""What the operating system refuses is one typed error with reason, path and next step, by command and from Python."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import probing as pb
from probing.contracts.executor import as_work_error
from probing.errors import BadParameter, CannotReachFile, DiskFull, NotEnoughMemory, ProbingError
from probing.states.store.export import export
from probing.system import machine
from probing.system.machine import check_target, typed, typed_errors, with_typed_errors
from tests.conftest import REFERENCE, ROOT, some

LONG = "n" * 300
MODEL = str(REFERENCE / "model")


def command(*words: object, cwd: Path | None = None, prepare: str = "") -> subprocess.CompletedProcess[str]:
    """A command as it is typed, in a shell that first does `prepare`."""
    shell = f'{prepare}\nexec "$@"'
    variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", shell, "sh", sys.executable, "-m", "probing", *map(str, words)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def warm_command(warm: list[str], *words: object) -> subprocess.CompletedProcess[str]:
    """A command in a process with the libraries loaded, where no limit is of its start."""
    given = [*warm, "-m", "probing", *map(str, words)]
    return subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def refused(done: subprocess.CompletedProcess[str], error: str, *parts: str) -> None:
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stderr.startswith(f"{error}: ") and "Traceback" not in done.stderr, done.stderr
    assert "next step" in done.stderr
    for part in parts:
        assert part in done.stderr, (part, done.stderr)


def of(number: int, name: str | None = "/some/where") -> OSError:
    return OSError(number, os.strerror(number), name) if name else OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [*machine._STEPS, errno.ENOTSUP, errno.EBUSY])
def test_every_refusal_says_why_where_and_what_to_do(number: int) -> None:
    error = typed(of(number))
    assert isinstance(error, CannotReachFile) and isinstance(error, OSError)
    assert error.found == os.strerror(number) and error.where == "/some/where" and error.next_step


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_stays_a_full_disk(number: int) -> None:
    assert isinstance(typed(of(number)), DiskFull)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        of(errno.ENOMEM),
        RuntimeError("can't start new thread"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        RuntimeError("std::bad_alloc"),
        ImportError("libx.so: failed to map segment from shared object"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_every_word_for_a_want_of_memory_is_known(error: Exception) -> None:
    assert isinstance(typed(error), NotEnoughMemory)
    assert "not enough memory" in as_work_error(error, "shard 3").message


def test_what_is_no_matter_of_the_machine_stays_what_it_is() -> None:
    assert typed(ValueError("no")) is None and typed(RuntimeError("os error 3 is a nice number")) is None
    mine = BadParameter("no")
    assert typed(mine) is mine
    with pytest.raises(KeyError), typed_errors():
        raise KeyError("x")


def test_numbers_that_libraries_only_name_in_words_are_read() -> None:
    error = typed(OSError("Unable to open file (unable to open file: errno = 13, error message = 'Permission denied')"))
    assert error is not None and "permissions" in error.next_step


def test_an_error_of_a_file_in_a_worker_is_typed_too() -> None:
    error = as_work_error(of(errno.EMFILE), "linear at resid.1")
    assert isinstance(error, CannotReachFile) and "ulimit -n" in error.next_step


def test_a_target_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_target(tmp_path / "a" / "b")
    check_target(tmp_path)
    assert not (tmp_path / "a").exists()
    for bad in (tmp_path / "file", tmp_path / "file" / "a", tmp_path / LONG, tmp_path / LONG / "a", Path("/proc/x/y")):
        if bad.parts[1] == "proc" and os.geteuid() == 0:
            continue  # root may ask; /proc refuses later
        with pytest.raises(CannotReachFile):
            check_target(bad)


def test_functions_keep_names_and_type_their_errors(tmp_path: Path) -> None:
    @with_typed_errors
    def opens(name: str) -> str:
        """Says hello."""
        return Path(name).read_text()

    assert opens.__doc__ == "Says hello." and opens.__name__ == "opens"
    with pytest.raises(CannotReachFile, match="missing"):
        opens(str(tmp_path / "missing"))


@pytest.mark.parametrize("call", ["report", "read", "export", "compare"])
def test_python_functions_type_what_the_machine_refuses(call: str, tmp_path: Path) -> None:
    calls = {
        "report": lambda: pb.report(tmp_path / LONG),
        "read": lambda: pb.Corpus.read(str(tmp_path / f"{LONG}.jsonl")),
        "export": lambda: export(tmp_path, tmp_path / f"{LONG}.h5"),
        "compare": lambda: pb.compare(tmp_path / LONG, task="upos"),
    }
    with pytest.raises(ProbingError):
        calls[call]()


def test_a_name_of_300_characters(tmp_path: Path, warm: list[str]) -> None:
    refused(warm_command(warm, "report", tmp_path / LONG), "CannotReachFile", "File name too long", "shorter")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("clean,corrupted\na,b\n")
    done = warm_command(warm, "patch", "--model", MODEL, "--pairs", pairs, "--to", tmp_path / LONG)
    refused(done, "CannotReachFile", "File name too long")


def test_a_file_where_a_folder_should_be(tmp_path: Path, warm: list[str]) -> None:
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "p.csv").write_text("clean,corrupted\na,b\n")
    done = warm_command(warm, "patch", "--model", MODEL, "--pairs", tmp_path / "p.csv", "--to", tmp_path / "file")
    refused(done, "CannotReachFile", str(tmp_path / "file"), "another place")
    assert (tmp_path / "file").read_text() == "somebody's"


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = command("report", "results", cwd=tmp_path / "gone", prepare=f"rmdir {tmp_path / 'gone'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    study = command(
        "run", REFERENCE / "study.yaml", cwd=ROOT, prepare=f"mkdir {tmp_path}/b; cd {tmp_path}/b; rmdir ../b"
    )
    refused(study, "CannotReachFile", "working directory", "cd")


def test_few_descriptors() -> None:
    done = command("list", "probes", prepare="ulimit -n 5")
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_output_that_nobody_reads_ends_quietly() -> None:
    for words in (("list", "probes"), ("--help",), ("list", "probes", "mlp")):
        done = command(*words, prepare="exec > >(exec 0<&-; sleep 1); sleep 0.3")
        assert done.returncode in (0, 1) and not done.stderr, (words, done)


@pytest.mark.slow
def test_a_closed_output_is_no_file_of_ours(tmp_path: Path) -> None:
    done = command("list", "probes", prepare="exec 1>&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_output_is_typed() -> None:
    refused(command("list", "probes", prepare="exec > /dev/full"), "DiskFull")


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space hold on Linux")
@pytest.mark.parametrize("mib", some([200, 700, 2500], 2))
def test_too_little_address_space_is_typed(mib: int, tmp_path: Path) -> None:
    """Libraries abort, end with their own words, or hang: none of it is what is seen."""
    words = (
        "extract",
        "--model",
        MODEL,
        "--corpus",
        f"train={REFERENCE / 'dev.jsonl'}",
        "--to",
        tmp_path / "s",
        "--quiet",
    )
    done = command(*words, prepare=f"ulimit -v {mib * 1024}")
    if done.returncode:
        assert "not enough memory" in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 1 and "next step" in done.stderr
    assert done.returncode or mib > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space hold on Linux")
def test_under_a_limit_that_suffices_all_is_as_without() -> None:
    with_limit, without = command("list", prepare="ulimit -v 4000000"), command("list")
    assert with_limit == without or (with_limit.returncode, with_limit.stdout, with_limit.stderr) == (
        without.returncode,
        without.stdout,
        without.stderr,
    )
    assert command("liist", prepare="ulimit -v 4000000").returncode == 2


NEAR_THE_LIMIT = """
import mmap, os, resource, sys, time
from probing.system import supervising
supervising.HANG_SECONDS = 0.5
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
def work():
    held = mmap.mmap(-1, 850 << 20)  # address space that is never touched
    end = time.monotonic() + 2
    while time.monotonic() < end:
        {body}
    sys.exit(0)
supervising.supervised(work)
"""
BODIES = {
    "waits": ("time.sleep(30)", "hung"),
    "asks the system again and again": ("os.getrandom(100_000)", "hung"),
    "computes": ("sum(range(10_000))", ""),
    "reads": ("open('/proc/self/stat').read(); time.sleep(0.01)", ""),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("what", BODIES)
def test_near_the_limit_of_memory_what_gets_nowhere_is_ended_and_what_works_is_not(what: str) -> None:
    body, how = BODIES[what]
    program = NEAR_THE_LIMIT.format(body=body)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == bool(how), done.stderr
    assert ("under which the work hung" in done.stderr) == bool(how)


TABLE_UNDER_A_LIMIT = """
import resource
from pathlib import Path
from probing.system import supervising
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 30),) * 2)
def work():
    from pyarrow import compute, csv  # their code, which takes address space, too
    from probing.readers.table import read_table
    before = int(Path("/proc/self/statm").read_text().split()[0])
    assert len(list(read_table(FILE, {}).values)) == 2
    print((int(Path("/proc/self/statm").read_text().split()[0]) - before) * resource.getpagesize() >> 20)
supervising.supervised(work)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_under_a_limit_on_memory_a_table_takes_less_than_its_allocator_would_reserve(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nThey go.,x\nWe go.,y\n")
    program = f"FILE = {str(tmp_path / 'a.csv')!r}\n{TABLE_UNDER_A_LIMIT}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    assert int(done.stdout) < 900
