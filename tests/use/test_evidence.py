"""Evidence says what it is, does again what the intervention did, and never travels without its verdict."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from probing.contracts.edited_model import Place
from probing.contracts.intervention import Targets
from probing.errors import BadParameter, UntrustedFile
from probing.models.site import Site
from probing.probes.linear import LinearProbe
from probing.results.use import UseResult
from probing.use.directions import (
    Evidence,
    Source,
    Stated,
    controls_of,
    directions,
    directions_of,
    eraser,
    export_control_vector,
    export_vectors,
    probe,
    read_evidence,
    stratum_names,
    write_evidence,
)
from probing.use.directions.exporting import gguf_bytes
from probing.use.directions.files import KEY
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.interventions.class_mean import ClassMean
from probing.use.interventions.leace import Leace
from probing.use.measure import Property, measure_property
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Verdict, Word
from tests.samples.use_samples import HERE, Vectors, sample

SOURCE = Source(
    model="tiny",
    revision="abc",
    identity="f" * 64,
    labels=("Sing", "Plur"),
    label_definition="Number of the subject",
    position_rule="the last piece of the span",
    strata=("c=0", "c=1", "c=2", "c=3"),
    controls=("strata: crossing",),
)


@cache
def measured() -> tuple[EditMeasurement, UseResult, Verdict]:
    made = sample(5, gain=0.8, n=900, rho=0.3, width=24)
    options = UseOptions(curve=False, details=False)
    found = measure_property(made.instrument, made.prop, behaviour="next", model="tiny", options=options)
    bench = EditMeasurement.of(made.instrument, made.prop.plan(options), seed=0)
    return bench, found, judge([found])[0]


@cache
def real_valued() -> tuple[EditMeasurement, Verdict]:
    made = sample(6, gain=0.8, n=600)
    z = made.instrument.h @ np.linspace(-1, 1, 24)
    bench = EditMeasurement.of(made.instrument, Property("z", z, 0, np.arange(600), {}).plan(UseOptions()), seed=0)
    return bench, measured()[2]


@pytest.fixture
def found() -> Evidence:
    bench, _, verdict = measured()
    return directions(bench, HERE, verdict, SOURCE)


def edited_by_the_measurement(
    bench: EditMeasurement, dose: float
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """States of F3 as the swap edits them, with F1 and F3."""
    f1, _, f3 = bench.folds(0)
    states = bench.states(HERE)
    shift = bench.shift(states, f1)
    return (states[f3] + dose * shift.difference(bench.naturals[0].sides)).astype(states.dtype), f1, f3


@pytest.mark.parametrize("dose", [1.0, 1.5])
@pytest.mark.parametrize("shared", [False, True])
def test_a_loaded_direction_gives_the_states_that_the_intervention_gave(
    tmp_path: Path, dose: float, shared: bool
) -> None:
    bench, _, verdict = measured()
    bench = replace(bench, shared=shared)
    wanted, f1, f3 = edited_by_the_measurement(bench, dose)
    write_evidence(tmp_path / "d.safetensors", directions(bench, HERE, verdict, SOURCE, rows=f1, dose=dose))
    loaded, sides = read_evidence(tmp_path / "d.safetensors"), bench.naturals[0].sides
    strata = None if shared else sides.strata
    again = loaded.apply(bench.states(HERE)[f3], start=sides.start, goal=sides.goal, strata=strata, dose=dose)
    np.testing.assert_array_equal(again, wanted)
    assert np.abs(again - bench.states(HERE)[f3]).max() > 0.1


def test_a_loaded_direction_moves_the_output_as_the_measurement_said(tmp_path: Path) -> None:
    bench, _, verdict = measured()
    wanted, f1, f3 = edited_by_the_measurement(bench, 1.0)
    loaded = read_evidence(write_evidence(tmp_path / "d", directions(bench, HERE, verdict, SOURCE, rows=f1)))
    sides = bench.naturals[0].sides
    again = loaded.apply(bench.states(HERE)[f3], start=sides.start, goal=sides.goal, strata=sides.strata)
    np.testing.assert_array_equal(bench.run(HERE, f3, again), bench.run(HERE, f3, wanted))


def test_real_values_move_by_their_slopes(tmp_path: Path) -> None:
    bench, verdict = real_valued()
    wanted, f1, f3 = edited_by_the_measurement(bench, 1.0)
    made = directions(bench, HERE, verdict, replace(SOURCE, labels=(), strata=()), rows=f1)
    loaded, sides = read_evidence(write_evidence(tmp_path / "d", made)), bench.naturals[0].sides
    again = loaded.apply(bench.states(HERE)[f3], start=sides.start, goal=sides.goal, strata=sides.strata)
    np.testing.assert_array_equal(again, wanted)
    np.testing.assert_allclose(loaded.direction(start=0, goal=2), 2 * loaded.direction())


def test_members_of_interventions_and_evidence_agree(found: Evidence) -> None:
    bench = measured()[0]
    e, states = bench.experiment, bench.states(HERE)
    targets = Targets(e.z, e.strata, 2)
    edit = ClassMean(dose=1.5).fit(states, targets)
    np.testing.assert_allclose(
        found.apply(states, start=e.z, goal=1 - e.z, strata=e.strata, dose=1.5),
        edit.apply(states, targets, 1 - e.z),
        rtol=1e-12,
        atol=1e-12,
    )


def test_a_loaded_eraser_is_the_eraser_and_leaves_class_means_equal(tmp_path: Path) -> None:
    bench, _, verdict = measured()
    e, states = bench.experiment, bench.states(HERE)
    loaded = read_evidence(write_evidence(tmp_path / "e", eraser(bench, HERE, verdict, SOURCE)))
    targets = Targets(e.z, e.strata, 2)
    again = loaded.apply(states)
    np.testing.assert_allclose(again, Leace().fit(states, targets).apply(states, targets, e.z), atol=1e-12)
    before, after = (np.abs(h[e.z == 1].mean(0) - h[e.z == 0].mean(0)).max() for h in (states, again))
    assert before > 0.1
    assert after < 1e-10 * before
    half = loaded.apply(states, dose=0.5)
    assert np.abs(half[e.z == 1].mean(0) - half[e.z == 0].mean(0)).max() == pytest.approx(before / 2, rel=1e-6)


def test_a_loaded_probe_says_what_the_probe_said(tmp_path: Path) -> None:
    bench, _, verdict = measured()
    e, states = bench.experiment, bench.states(HERE).astype(np.float32)
    rows = np.arange(len(e.rows))
    fitted = LinearProbe().fit(states, e.z)
    loaded = read_evidence(
        write_evidence(tmp_path / "p", probe(bench, HERE, verdict, SOURCE, fitted=fitted, rows=rows))
    )
    given = fitted.predict_log_proba(states)
    np.testing.assert_allclose(loaded.predict(states), given, atol=1e-4)
    assert (given.argmax(1) == e.z).mean() > 0.9
    with pytest.raises(BadParameter, match="edits nothing"):
        loaded.apply(states)


def test_what_is_written_is_what_is_read_and_equal_evidence_gives_equal_bytes(tmp_path: Path, found: Evidence) -> None:
    path = write_evidence(tmp_path / "d.safetensors", found)
    loaded = read_evidence(path)
    assert loaded.header == found.header
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert write_evidence(tmp_path / "again", loaded).read_bytes() == path.read_bytes()


def test_the_header_names_everything_that_is_needed_to_judge_it(found: Evidence) -> None:
    bench, result, verdict = measured()
    told, cell = found.header, result.cells[0]
    assert (told.model, told.revision, told.task, told.place) == ("tiny", "abc", "z", "h")
    assert "enters block l" in told.convention
    assert "means[stratum, goal]" in told.operation
    assert told.verdict.word == Word.USED_SUBSPACE == str(verdict.word)
    assert told.verdict.effect == (
        cell.subspace.effect_size,
        cell.subspace.effect_size_low,
        cell.subspace.effect_size_high,
    )
    assert told.verdict.overturned_by == verdict.overturned_by
    assert told.rows == len(bench.experiment.rows)
    assert "three folds by group" in told.folds
    other = replace(bench, instrument=Vectors(bench.states(HERE) + 1.0, np.ones((8, 24)), norm=False))
    assert directions(other, HERE, verdict, SOURCE).header.data != told.data
    assert len(told.data) == 64


def test_names_of_strata_and_controls_are_those_of_the_measurement() -> None:
    bench, result, verdict = measured()
    made = sample(5, gain=0.8, n=900, rho=0.3, width=24)
    names = stratum_names(bench.experiment, {name: values for name, (values, _) in made.prop.covariates.items()})
    assert sorted(names) == ["c=0, a=0", "c=0, a=1", "c=1, a=0", "c=1, a=1"]
    assert controls_of(replace(result, false_positives=(0.05, 0.0, 0.2, 20)))[1].endswith("of 20 discovered")
    (one,) = directions_of(bench, result, [verdict], replace(SOURCE, strata=names, controls=controls_of(result)))
    assert one.header.strata == names
    assert one.header.controls == ("strata: crossing of c, a",)
    assert one.header.dose == result.cells[0].dose


def test_there_is_no_evidence_without_its_verdict(found: Evidence) -> None:
    bench, _, verdict = measured()
    for make in (directions, eraser):
        with pytest.raises(BadParameter, match="without its verdict"):
            make(bench, HERE, None, SOURCE)
        with pytest.raises(BadParameter, match="another place"):
            make(bench, HERE, replace(verdict, position="end"), SOURCE)
        with pytest.raises(BadParameter, match="another place or model"):
            make(bench, HERE, verdict, replace(SOURCE, model="other"))
    for word in ("", "used"):
        with pytest.raises(BadParameter, match="without its verdict"):
            Evidence(replace(found.header, verdict=replace(found.header.verdict, word=word)), found.arrays)
    with pytest.raises(BadParameter, match="without its verdict"):
        Evidence(replace(found.header, verdict=None), found.arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [{"strata": 4}, {"strata": -1}, {"goal": 2}, {"start": -1}, {"goal": 0.5}, {"start": np.zeros(3, int)}],
    ids=str,
)
def test_codes_that_are_not_there_are_refused(found: Evidence, given: dict[str, Any]) -> None:
    states = measured()[0].states(HERE)[:5]
    with pytest.raises(BadParameter):
        found.apply(states, **given)
    with pytest.raises(BadParameter, match="width"):
        found.apply(states[:, :5])


def test_a_class_without_rows_in_a_stratum_is_refused_there_and_left_out_of_the_shared_shift(found: Evidence) -> None:
    counts = np.array(found.arrays["counts"])
    counts[1, 0] = 0
    partial = Evidence(found.header, {**found.arrays, "counts": counts})
    states = measured()[0].states(HERE)[:5]
    with pytest.raises(BadParameter, match="no rows to tell"):
        partial.apply(states, strata=1)
    np.testing.assert_array_equal(partial.apply(states, strata=2), found.apply(states, strata=2))
    kept = np.array([0, 2, 3])
    shares, means = found.arrays["shares"][kept], found.arrays["means"][kept]
    wanted = np.einsum("w,wd->d", shares / shares.sum(), means[:, 1] - means[:, 0])
    np.testing.assert_allclose(partial.direction(), wanted)


def rewritten(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file of evidence with another header."""
    size = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + size])
    text = json.dumps(change(outer)).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def told(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """With other fields of ours."""

    def on(outer: dict[str, Any]) -> dict[str, Any]:
        fields = json.loads(outer["__metadata__"][KEY])
        change(fields)
        return outer | {"__metadata__": {KEY: json.dumps(fields)}}

    return lambda content: rewritten(content, on)


def arrays(**changes: NDArray[Any] | None) -> Callable[[bytes], bytes]:
    """With other arrays."""

    def on(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + size])["__metadata__"]
        kept = {k: v for k, v in (dict(measured_arrays()) | changes).items() if v is not None}
        return save({k: np.ascontiguousarray(v) for k, v in kept.items()}, metadata=text)

    return on


def measured_arrays() -> dict[str, NDArray[Any]]:
    bench, _, verdict = measured()
    return dict(directions(bench, HERE, verdict, SOURCE).arrays)


FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"hello, this is no such file at all",
    "cut": lambda content: content[:-9],
    "longer": lambda content: content + bytes(8),
    "a huge header": lambda content: (1 << 40).to_bytes(8, "little") + content[8:],
    "not JSON": lambda content: content[:8] + b"[" + content[9:],
    "no metadata": lambda content: rewritten(content, lambda o: {k: v for k, v in o.items() if k[0] != "_"}),
    "other metadata": lambda content: rewritten(content, lambda o: o | {"__metadata__": {"format": "pt"}}),
    "a list": lambda content: rewritten(content, lambda o: [o]),
    "another version": told(lambda f: f.update(version=2)),
    "no version": told(lambda f: f.pop("version")),
    "a field more": told(lambda f: f.update(extra=1)),
    "a field less": told(lambda f: f.pop("site")),
    "no verdict": told(lambda f: f.update(verdict=None)),
    "a verdict of another word": told(lambda f: f["verdict"].update(word="used for sure")),
    "a verdict's field more": told(lambda f: f["verdict"].update(extra=1)),
    "text for a number": told(lambda f: f.update(rows="900")),
    "another kind": told(lambda f: f.update(kind="pickle")),
    "arrays of another kind": told(lambda f: f.update(kind="leace")),
    "a class more": told(lambda f: f.update(labels=["a", "b", "c"])),
    "no strata": told(lambda f: f.update(strata=[])),
    "an array less": arrays(shares=None),
    "an array more": arrays(more=np.zeros(3)),
    "half precision": arrays(shares=np.ones(4, np.float32) / 4),
    "not a number": arrays(shares=np.array([1.0, np.nan, 0, 0])),
    "a negative share": arrays(shares=np.array([1.0, 1.0, -1.0, 0])),
    "another shape": arrays(means=np.zeros((4, 2))),
    "other strata": arrays(shares=np.ones(5) / 5),
    "no width": arrays(means=np.zeros((4, 2, 0))),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_not_ours_are_refused_by_type(tmp_path: Path, found: Evidence, name: str) -> None:
    path = write_evidence(tmp_path / "d.safetensors", found)
    path.write_bytes(FOREIGN[name](path.read_bytes()))
    with pytest.raises(UntrustedFile) as caught:
        read_evidence(path)
    assert caught.value.needed
    assert "d.safetensors" in caught.value.where


def test_a_key_twice_is_refused(tmp_path: Path, found: Evidence) -> None:
    path = write_evidence(tmp_path / "d.safetensors", found)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + size].rstrip().replace(b'\\"rows\\"', b'\\"rows\\": 1, \\"rows\\"', 1)
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(UntrustedFile) as caught:
        read_evidence(path)
    assert "occurs twice" in caught.value.found
    with pytest.raises(BadParameter, match="no evidence here"):
        read_evidence(tmp_path / "nowhere")


def test_a_small_gguf_is_the_bytes_that_the_specification_says() -> None:
    """Written out by hand from the specification: little-endian, 64-bit lengths, data from multiples of 32."""
    tensors = {"direction.1": np.array([1.0, -2.0], np.float32), "direction.10": np.array([0.5], np.float32)}
    wanted = b"".join(
        (
            b"GGUF",
            b"\x03\0\0\0",
            b"\x02\0\0\0\0\0\0\0",
            b"\x02\0\0\0\0\0\0\0",
            b"\x14\0\0\0\0\0\0\0",
            b"general.architecture",
            b"\x08\0\0\0",
            b"\x0d\0\0\0\0\0\0\0",
            b"controlvector",
            b"\x19\0\0\0\0\0\0\0",
            b"controlvector.layer_count",
            b"\x04\0\0\0",
            b"\x02\0\0\0",
            b"\x0b\0\0\0\0\0\0\0",
            b"direction.1",
            b"\x01\0\0\0",
            b"\x02\0\0\0\0\0\0\0",
            b"\0\0\0\0",
            b"\0\0\0\0\0\0\0\0",
            b"\x0c\0\0\0\0\0\0\0",
            b"direction.10",
            b"\x01\0\0\0",
            b"\x01\0\0\0\0\0\0\0",
            b"\0\0\0\0",
            b"\x20\0\0\0\0\0\0\0",
        )
    )
    wanted += bytes(-len(wanted) % 32)
    wanted += b"\0\0\x80\x3f" + b"\0\0\0\xc0" + bytes(24) + b"\0\0\0\x3f" + bytes(28)
    metadata: dict[str, str | int] = {"general.architecture": "controlvector", "controlvector.layer_count": 2}
    assert gguf_bytes(metadata, tensors) == wanted


def parsed(content: bytes) -> tuple[dict[str, str | int], dict[str, NDArray[np.float32]]]:
    """A reader of what control vectors are made of, from the specification."""
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, content, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> str:
        return str(take(f"{take('Q')}s").decode())

    assert (take("4s"), take("I")) == (b"GGUF", 3)
    n_tensors, n_entries = take("Q"), take("Q")
    metadata: dict[str, str | int] = {}
    for _ in range(n_entries):
        key, kind = text(), take("I")
        metadata[key] = text() if kind == 8 else take("I")
        assert kind in (4, 8)
    infos = []
    for _ in range(n_tensors):
        name = text()
        assert take("I") == 1
        infos.append((name, take("Q"), take("I"), take("Q")))
    start = at + -at % 32
    assert all(offset % 32 == 0 and kind == 0 for _, _, kind, offset in infos)
    found = {name: np.frombuffer(content, "<f4", n, start + offset) for name, n, _, offset in infos}
    return metadata, found


def at_site(one: Evidence, site: str, scale: float = 1.0) -> Evidence:
    Site.parse(site)
    return Evidence(replace(one.header, site=site), {**one.arrays, "means": scale * one.arrays["means"]})


def test_a_control_vector_has_each_direction_at_the_block_whose_output_is_its_site(
    tmp_path: Path, found: Evidence
) -> None:
    both = [at_site(found, "resid.7", 2.0), at_site(found, "resid.2")]
    path = export_control_vector(tmp_path / "v.gguf", both, model_hint="llama")
    metadata, vectors = parsed(path.read_bytes())
    assert list(vectors) == ["direction.1", "direction.6"]
    np.testing.assert_array_equal(vectors["direction.1"], found.direction().astype(np.float32))
    np.testing.assert_array_equal(vectors["direction.6"], (2 * found.direction()).astype(np.float32))
    assert metadata["general.architecture"] == "controlvector"
    assert metadata["controlvector.model_hint"] == "llama"
    assert metadata["controlvector.layer_count"] == 2
    told_of = json.loads(str(metadata["probing.evidence.6"]))
    assert told_of["verdict"]["word"] == Word.USED_SUBSPACE
    assert told_of["site"] == "resid.7"
    back = export_control_vector(tmp_path / "b.gguf", both, model_hint="llama", start=1, goal=0)
    np.testing.assert_array_equal(parsed(back.read_bytes())[1]["direction.6"], -vectors["direction.6"])


def test_vectors_by_place_carry_their_verdicts(tmp_path: Path, found: Evidence) -> None:
    both = [at_site(found, "embed"), at_site(found, "attn_out.3", 2.0)]
    plain = np.load(export_vectors(tmp_path / "v.npz", both), allow_pickle=False)
    tensors = load_file(export_vectors(tmp_path / "v.safetensors", both))
    for vectors in (plain, tensors):
        np.testing.assert_array_equal(vectors["embed"], found.direction().astype(np.float32))
        np.testing.assert_array_equal(vectors["attn_out.3"], (2 * found.direction()).astype(np.float32))
    told_of = json.loads(str(plain[KEY]))
    assert told_of["attn_out.3"]["verdict"] == json.loads(json.dumps(asdict(found.header.verdict)))
    content = (tmp_path / "v.safetensors").read_bytes()
    outer = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(outer["__metadata__"][KEY]) == told_of


def test_exports_say_from_which_class_to_which_they_lead(tmp_path: Path, found: Evidence) -> None:
    one = at_site(found, "resid.2")
    for start, goal in ((0, 1), (1, 0)):
        plain = np.load(export_vectors(tmp_path / "v.npz", [one], start=start, goal=goal), allow_pickle=False)
        vector = export_control_vector(tmp_path / "v.gguf", [one], model_hint="gpt2", start=start, goal=goal)
        metadata, _ = parsed(vector.read_bytes())
        told_of = json.loads(str(metadata["probing.evidence.1"]))
        assert (told_of["start"], told_of["goal"]) == (found.header.labels[start], found.header.labels[goal])
        assert json.loads(str(plain[KEY])) == {"resid.2": told_of}


def test_a_control_vector_loses_no_position(tmp_path: Path, found: Evidence) -> None:
    two = [at_site(found, "resid.2"), at_site(found, "resid.2", 2.0)]
    two[1] = Evidence(replace(two[1].header, position="end"), two[1].arrays)
    with pytest.raises(BadParameter, match="one direction a layer"):
        export_control_vector(tmp_path / "v.gguf", two, model_hint="gpt2")
    assert not list(tmp_path.iterdir())
    assert len(load_file(export_vectors(tmp_path / "v.safetensors", two))) == 2


def test_exports_refuse_what_they_cannot_say(tmp_path: Path, found: Evidence) -> None:
    bench, _, verdict = measured()
    good = at_site(found, "resid.2")
    of_other = Evidence(replace(good.header, model="other", site="resid.3"), good.arrays)
    for wrong in ([], [eraser(bench, HERE, verdict, SOURCE)], [good, good], [good, of_other]):
        with pytest.raises(BadParameter):
            export_control_vector(tmp_path / "v.gguf", wrong, model_hint="gpt2")
        with pytest.raises(BadParameter):
            export_vectors(tmp_path / "v.npz", wrong)
    for site in ("embed", "resid.0", "resid.1", "attn_out.3", "final_norm"):
        with pytest.raises(BadParameter, match="cannot be at this site"):
            export_control_vector(tmp_path / "v.gguf", [at_site(found, site)], model_hint="gpt2")
    with pytest.raises(BadParameter, match="no such format"):
        export_vectors(tmp_path / "v.pt", [good])
    assert not list(tmp_path.iterdir())


def test_a_verdict_is_told_with_the_numbers_of_the_edit_that_decided() -> None:
    _, result, verdict = measured()
    whole = Stated.of(replace(verdict, word=Word.USED_SITE))
    assert whole.effect is not None
    assert whole.effect[0] == result.cells[0].whole.effect_size
    cell = replace(
        result.cells[0],
        subspace=replace(
            result.cells[0].subspace,
            mediated_fraction=0.5,
            mediated_fraction_low=-np.inf,
            mediated_fraction_high=np.inf,
        ),
    )
    unbounded = Stated.of(replace(verdict, evidence=cell))
    assert unbounded.mediated is None
    assert unbounded.effect is not None
    untested = replace(verdict, word=Word.NOT_TESTED, evidence=None, decodability=None)
    assert Stated.of(untested).effect is None


def test_places_with_positions_are_told_apart(found: Evidence) -> None:
    assert replace(found.header, position="end").place == str(Place("h", "end"))
