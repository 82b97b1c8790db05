"""F12: any order of writing, crashing, resuming, taking and leaving leases, damaging, verifying, repairing, merging,
collecting and removing."""

from __future__ import annotations

import logging
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from probing.errors import CorruptShard, NotAStore, StoreBusy
from probing.states.store import Store, collect, garbage, merge, remove, repair
from probing.states.store.format import parse_signed, record_file
from tests.reliability.fault_files import Counted, Stopped
from tests.reliability.job import Job, QuickFiles
from tests.reliability.lease_model import LeaseModel
from tests.reliability.tally import Tally

JOB = Job(3, rows=2)
NAMES = st.sampled_from(["one", "two"])
SHARD = st.integers(0, JOB.n_shards - 1)
SHARDS = st.sets(SHARD)
CALLS = st.none() | st.integers(0, 15) | st.integers(0, 60)
STEPS = 30


class LaterFiles(QuickFiles):
    """Two days from now."""

    def clock(self) -> float:
        """As `FileOps`, and two days."""
        return super().clock() + 2 * 86_400


class StoreStates(RuleBasedStateMachine):
    """Two stores of one job, and what must be true of each.

    Attributes:
        safe: shards acknowledged, and neither removed nor damaged since.
        flipped, gone: shards whose file was damaged or deleted behind the store's back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.safe: dict[str, set[int]] = {"one": set(), "two": set()}
        self.flipped: dict[str, set[int]] = {"one": set(), "two": set()}
        self.gone: dict[str, set[int]] = {"one": set(), "two": set()}
        self.leases = {name: LeaseModel(self.root / name) for name in self.safe}

    def teardown(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root)

    @initialize(name=NAMES, begun=st.sampled_from(["nothing", "finished"]), lease=st.booleans())
    def begin(self, name: str, begun: str, lease: bool) -> None:
        """Where a run begins: few would come to a finished store by themselves."""
        if begun == "nothing":
            return
        self.resume(name)
        if lease:
            self.leases[name].leave(0, is_over=False)

    def _exists(self, name: str) -> bool:
        return (self.root / name / "store.json").exists()

    def _is_sound(self, name: str) -> bool:
        return not self.flipped[name] | self.gone[name]

    @rule(name=NAMES, shards=SHARDS, at=CALLS, half=st.booleans(), queues=st.booleans())
    def write(self, name: str, shards: set[int], at: int | None, half: bool, queues: bool) -> None:
        """Open the store and commit some shards, perhaps those that are free in its queue; perhaps crash."""
        files = Counted(at, half=half)
        with suppress(Stopped):
            writer = JOB.open(self.root / name, files)
            self._reopened(name)
            for shard in sorted(shards):
                if not queues or self.leases[name].take(shard, files):
                    writer.commit(shard, JOB.content(shard))
                    self.safe[name] |= {shard} - self.flipped[name]
                    if queues:
                        self.leases[name].release(shard, files)
        if at is not None:
            self._forget_if_withdrawn(name)

    @rule(name=NAMES)
    def resume(self, name: str) -> None:
        """Run the job to its end."""
        JOB.write(self.root / name, QuickFiles())
        self._reopened(name)
        self.safe[name] = set(range(JOB.n_shards)) - self.flipped[name]
        assert len(list((self.root / name / "shards").glob("s??????.json"))) == JOB.n_shards

    def _reopened(self, name: str) -> None:
        """A writer that opens a store sets aside the records whose files are gone."""
        self.safe[name] -= self.gone[name]
        self.gone[name] = set()

    def _forget_if_withdrawn(self, name: str) -> None:
        """A record that was set aside or removed says nothing wrong any more."""
        shards = self.root / name / "shards"
        for damaged in (self.flipped, self.gone):
            damaged[name] = {shard for shard in damaged[name] if (shards / record_file(shard)).exists()}

    @rule(name=NAMES, shard=SHARD, at=CALLS, half=st.booleans())
    def take_lease(self, name: str, shard: int, at: int | None, half: bool) -> None:
        """Take the lease of a shard and keep it; perhaps crash on the way."""
        if self._exists(name):
            with suppress(Stopped):
                self.leases[name].take(shard, Counted(at, half=half))

    @rule(name=NAMES, shard=SHARD)
    def release_lease(self, name: str, shard: int) -> None:
        """Give a lease back."""
        self.leases[name].release(shard, QuickFiles())

    @rule(name=NAMES, shard=SHARD, is_over=st.booleans())
    def leave_lease(self, name: str, shard: int, is_over: bool) -> None:
        """A process elsewhere takes a lease and dies."""
        if self._exists(name):
            self.leases[name].leave(shard, is_over=is_over)

    @rule(name=NAMES, shard=SHARD, keeps=st.sampled_from([0, 0.5, 1]), is_old=st.booleans())
    def damage_lease(self, name: str, shard: int, keeps: float, is_old: bool) -> None:
        """Empty a lease, cut it short or change a byte of it."""
        self.leases[name].damage(shard, keeps=keeps, is_old=is_old)

    @precondition(lambda self: any(self.safe.values()))
    @rule(name=NAMES, shard=SHARD, deletes=st.booleans())
    def damage(self, name: str, shard: int, deletes: bool) -> None:
        """Flip a bit of a committed shard, or delete its file."""
        if shard not in self.safe[name]:
            return
        record = parse_signed((self.root / name / "shards" / record_file(shard)).read_bytes())
        file, place = self.root / name / "shards" / record["file"], record["datasets"]["/sites/resid.0"]["offset"]
        if deletes:
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            data[place] ^= 1
            file.write_bytes(data)
        (self.gone if deletes else self.flipped)[name].add(shard)
        self.safe[name].discard(shard)

    @rule(name=NAMES)
    def verify(self, name: str) -> None:
        """Verification finds damage where there is some, and nothing else."""
        if not self._exists(name):
            return
        try:
            problems = Store.open(self.root / name, allow_partial=True).verify()
        except CorruptShard:
            assert self.gone[name]
            return
        assert bool(problems) == (not self._is_sound(name)), problems

    @rule(name=NAMES, at=CALLS)
    def repair(self, name: str, at: int | None) -> None:
        """Set damaged records aside; perhaps crash on the way, and do it again."""
        if not self._exists(name):
            return
        with suppress(Stopped):
            repair(self.root / name, files=Counted(at))
        repair(self.root / name, files=QuickFiles())
        self.flipped[name], self.gone[name] = set(), set()

    @rule(target_name=NAMES, at=CALLS)
    def merge(self, target_name: str, at: int | None) -> None:
        """Copy into one store what it lacks of the other; perhaps crash on the way."""
        source = "two" if target_name == "one" else "one"
        if not self._exists(source) or not self._is_sound(source) or not self._is_sound(target_name):
            return
        before = set(JOB.found(self.root / source))
        with suppress(Stopped):
            merge(self.root / target_name, self.root / source, files=Counted(at))
            self.safe[target_name] |= before
        self._forget_if_withdrawn(target_name)
        assert set(JOB.found(self.root / source)) == before

    @rule(name=NAMES, at=CALLS, is_later=st.booleans())
    def collect(self, name: str, at: int | None, is_later: bool) -> None:
        """Delete what nothing needs, now or in two days; perhaps crash on the way."""
        if not self._exists(name):
            return
        found = garbage(self.root / name, files=LaterFiles() if is_later else QuickFiles())
        with suppress(Stopped):
            collect(found, files=Counted(at))
            self.leases[name].collected()
        self.leases[name].removed()

    @rule(name=NAMES, at=CALLS)
    def remove(self, name: str, at: int | None) -> None:
        """Delete a store; perhaps crash on the way."""
        if not self._exists(name):
            return
        leases = self.leases[name]
        leases.settle()
        # Temporary files of this very process look like those of a writer at work; in two days they do not.
        for temporary in (self.root / name).glob("*/.tmp-*"):
            temporary.unlink()
        try:
            remove(self.root / name, files=Counted(at))
        except StoreBusy:
            assert leases.live
            return
        except Stopped:
            if leases.live:
                return  # before anything was deleted: the law is the judge
        else:
            assert not leases.live and not (self.root / name).exists()
        self.safe[name] = set()
        leases.removed()
        self._forget_if_withdrawn(name)

    @invariant()
    def what_is_acknowledged_is_there_and_nothing_is_wrong(self) -> None:
        """The law."""
        for name, safe in self.safe.items():
            found = JOB.found(self.root / name)
            assert not JOB.wrong(found)
            assert not self._is_sound(name) or safe <= set(found)
            if not self._exists(name):
                assert not safe
                continue
            with suppress(CorruptShard, NotAStore):
                assert Store.open(self.root / name, allow_partial=True).shards_done >= len(safe)

    @invariant()
    def leases_are_what_they_say(self) -> None:
        """The law of what lies beside the shards."""
        for name in self.safe:
            self.leases[name].check()

    @invariant()
    def a_seal_counts_no_shard_that_is_not_committed(self) -> None:
        """Readers may open a store by its seal alone."""
        for name in self.safe:
            seal, shards = self.root / name / "seal.json", self.root / name / "shards"
            if seal.exists():
                assert all(
                    (shards / record_file(record["shard"])).exists()
                    for record in parse_signed(seal.read_bytes())["records"]
                )


def store_states(folder: Path, *, examples: int) -> Tally:
    """F12: so many runs of at most `STEPS` steps, the same every time."""
    tally = Tally("F12", "no law broken")
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    logging.getLogger("probing").setLevel(logging.ERROR)  # records set aside are part of the plan
    try:
        stateful.run_state_machine_as_test(StoreStates, settings=chosen)
    except BaseExceptionGroup as error:
        tally.add("wrong", error.exceptions, "several laws")
    except Exception as error:
        tally.add("wrong", ["; ".join([str(error), *getattr(error, "__notes__", [])])], type(error).__name__)
    tally.done[f"runs of {STEPS} steps"] = examples
    return tally
