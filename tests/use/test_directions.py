"""Directions are exported, read back and applied: what leaves a file is the direction, and what is added is no more."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import probing as pb
from probing.errors import BadParameter, NoBehaviour, ProvenanceMismatch, UnknownName, UnknownSite, UntrustedFile
from probing.neuronpedia.reading import read_written_list
from probing.neuronpedia.schemas import Vector
from probing.provenance import model_called, weights_digest
from probing.use.directions import Evidence, Header, Stated, caveat, export_vectors, record_of, write_evidence
from probing.use.directions.record import CONVENTION, OPERATIONS
from probing.verdicts.verdict import Word
from tests.conftest import REFERENCE
from tests.samples.tiny_models import language_model
from tests.use.test_evidence import parsed

WIDTH = 64
ANSWERS = "next_token:answers=was|were|is|are"
PROMPTS = (
    "nowadays the doctor behind the window clearly",
    "formerly the old painters near the garden probably",
    "nowadays the doctors",
)
SHIFT = 3 * np.random.default_rng(0).normal(size=WIDTH)


@cache
def model() -> pb.LanguageModel:
    return pb.LanguageModel.load(str(REFERENCE / "model"))


def planted(
    site: str = "resid.2",
    position: str = "end",
    *,
    word: Word = Word.USED_SUBSPACE,
    labels: tuple[str, ...] = ("a", "b"),
) -> Evidence:
    """Evidence of the reference model whose class k has the mean k · SHIFT in both strata."""
    identity = model().identity()["model"]
    told = Stated(str(word), (), "because", "this", (1.5, 1.0, 2.0), None, 0.001, 0.01, 1.0, 1.0)
    header = Header(
        kind="class_mean",
        operation=OPERATIONS["class_mean"],
        model=model_called(identity),
        revision="",
        identity=weights_digest(identity),
        site=site,
        convention=CONVENTION,
        position=position,
        position_rule="",
        task="column:z",
        labels=labels,
        label_definition="",
        behaviour=ANSWERS,
        strata=("u", "v"),
        sign="",
        scale="",
        dose=1.0,
        data="",
        rows=10,
        fitted_on="",
        folds="",
        controls=(),
        verdict=told,
    )
    shares = np.array([0.25, 0.75])
    if not labels:
        return Evidence(header, {"slopes": np.stack([SHIFT, SHIFT]), "shares": shares})
    means = np.stack([np.outer(np.arange(len(labels)), SHIFT) + base for base in (0.0, 5.0)])
    return Evidence(header, {"means": means, "counts": np.full((2, len(labels)), 9, np.int64), "shares": shares})


def erasing(site: str = "resid.2") -> Evidence:
    unit = (SHIFT / np.linalg.norm(SHIFT))[:, None]
    one = planted(site)
    header = replace(one.header, kind="leace", operation=OPERATIONS["leace"])
    return Evidence(header, {"left": unit, "right": unit, "centre": np.zeros(WIDTH)})


def hooked(text: str, change: np.ndarray | None, *, block: int = 2) -> np.ndarray:
    """Logits of the last piece, by a plain hook of PyTorch on the model as transformers loads it."""
    network = AutoModelForCausalLM.from_pretrained(str(REFERENCE / "model")).eval()
    blocks = next(m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1)

    def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states = given[0].clone()
        states[0, -1] += torch.from_numpy(change).float()
        return (states, *given[1:])

    if change is not None:
        blocks[block].register_forward_pre_hook(add)
    ids = torch.tensor([model().tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return network(input_ids=ids).logits[0, -1].double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.mark.parametrize("strength", [1.0, -0.5, 2.0])
def test_applying_is_what_a_plain_hook_does(strength: float) -> None:
    found = pb.apply_direction(model(), planted(), PROMPTS, strength=strength, progress=False)
    ids = [model().tokenizer.convert_tokens_to_ids(piece) for piece in found.outputs]
    for row, text in enumerate(PROMPTS):
        for values, change in ((found.clean, None), (found.edited, strength * SHIFT)):
            np.testing.assert_allclose(values[row], log_softmax(hooked(text, change))[ids], atol=2e-4)
    assert np.abs(found.edited - found.clean).max() > 0.1


@pytest.mark.parametrize("side", ["right", "left"])
def test_applying_to_another_family_of_models_is_what_a_plain_hook_does(side: str) -> None:
    llama, texts = language_model("llama", side), ("the thing is being", "on the thing")
    shift = SHIFT[: llama.width("resid.1")]
    one = planted("resid.1")
    means = np.stack([np.stack([0 * shift, shift])] * 2)
    evidence = Evidence(one.header, {**one.arrays, "means": means})
    found = pb.apply_direction(llama, evidence, texts, strength=2, top=9, any_model=True, progress=False)
    network = llama.suffix.model

    def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...], kwargs: dict) -> tuple[tuple, dict]:
        states = (given[0] if given else kwargs["hidden_states"]).clone()
        states[0, last] += torch.from_numpy(2 * shift).float()
        return ((states, *given[1:]), kwargs) if given else (given, kwargs | {"hidden_states": states})

    for row, text in enumerate(texts):
        (one_text,) = llama.encode([text])
        last = int(np.flatnonzero(~one_text.special)[-1])  # behind it there may be special pieces
        handle = network.model.layers[1].register_forward_pre_hook(add, with_kwargs=True)
        ids = torch.from_numpy(np.asarray(one_text.ids))[None]
        with torch.no_grad():
            logits = network(input_ids=ids).logits[0, last].double().numpy()
        handle.remove()
        best = np.sort(log_softmax(logits))[::-1][:9]
        np.testing.assert_allclose(np.sort(found.edited[row])[::-1][:9], best, atol=2e-4)
        assert np.abs(found.edited[row] - found.clean[row]).max() > 1e-3


def test_of_two_classes_either_way_can_be_gone_and_answers_are_measured_as_by_the_hook() -> None:
    back = pb.apply_direction(model(), planted(), PROMPTS, behaviour=ANSWERS, start="b", progress=False)
    assert (back.start, back.goal, back.unit, back.outputs) == ("b", "a", "logits", ("was", "were", "is", "are"))
    ids = model().tokenizer.convert_tokens_to_ids(list(back.outputs))
    for row, text in enumerate(PROMPTS):
        wanted = hooked(text, -SHIFT)[ids]
        np.testing.assert_allclose(back.edited[row], wanted - wanted.mean(), atol=2e-4)
    _, edited = back.probabilities() or (None, None)
    np.testing.assert_allclose(edited.sum(1), 1)
    negative = pb.apply_direction(model(), planted(), PROMPTS, behaviour=ANSWERS, strength=-1, progress=False)
    np.testing.assert_allclose(negative.edited, back.edited, atol=1e-5)


@pytest.mark.parametrize("site", ["resid.0", "resid.2", "attn_out.1", "mlp_out.1"])
@pytest.mark.parametrize("behaviour", [None, ANSWERS])
def test_a_strength_of_zero_changes_no_bit(site: str, behaviour: str | None) -> None:
    found = pb.apply_direction(model(), planted(site), PROMPTS, strength=0, behaviour=behaviour, progress=False)
    np.testing.assert_array_equal(found.clean, found.edited)
    assert found.flips() == 0
    twice = pb.apply_direction(model(), planted(site), PROMPTS[:1] * 2, strength=0, behaviour=behaviour, progress=False)
    np.testing.assert_array_equal(twice.clean[0], twice.edited[1])


def test_a_corpus_is_measured_by_the_behaviour_of_the_verdict_and_zero_changes_no_bit_in_many_batches() -> None:
    corpus = pb.Corpus.read({"dev": str(REFERENCE / "dev.jsonl")})
    found = pb.apply_direction(model(), planted(), corpus, strength=0, max_rows=400, progress=False)
    assert found.behaviour == ANSWERS and found.clean.shape == (400, 4)
    np.testing.assert_array_equal(found.clean, found.edited)
    assert found.texts[:2] == (corpus.examples[0].text, corpus.examples[1].text)
    alone = pb.apply_direction(model(), planted(), found.texts[7], behaviour=ANSWERS, progress=False)
    some = pb.apply_direction(model(), planted(), corpus, max_rows=400, progress=False)
    np.testing.assert_allclose(some.edited[7], alone.edited[0], atol=1e-4)
    rows = some.rows()
    assert len(rows) == 1600 and rows[28]["text"] == found.texts[7] and rows[28]["edited"] == some.edited[7, 0]


def test_words_of_a_corpus_and_spans_are_positions_too() -> None:
    corpus = pb.Corpus.read({"dev": str(REFERENCE / "dev.jsonl")})
    words = replace(planted().header, position="")
    found = pb.apply_direction(
        model(),
        Evidence(words, planted().arrays),
        corpus,
        max_rows=20,
        behaviour="next_token:position=word",
        progress=False,
    )
    assert len(found.words) == 20 and min(found.words) >= 0 and "word" in found.rows()[0]
    assert found.unit == "numbers" and found.probabilities() is None and found.flips() is None


def test_an_eraser_takes_its_part_of_the_states_out() -> None:
    found = pb.apply_direction(model(), erasing(), PROMPTS, behaviour=ANSWERS, progress=False)
    assert (found.start, found.goal) == ("", "")
    again = pb.apply_direction(model(), erasing(), PROMPTS, behaviour=ANSWERS, strength=0, progress=False)
    np.testing.assert_array_equal(again.clean, again.edited)
    assert np.abs(found.edited - found.clean).max() > 1e-3


def test_weights_decide_whose_direction_it_is() -> None:
    other = pb.LanguageModel.load(str(REFERENCE / "model"), untrained=0)
    with pytest.raises(ProvenanceMismatch, match="fitted on another model") as caught:
        pb.apply_direction(other, planted(), PROMPTS, progress=False)
    assert "untrained (seed 0)" in caught.value.found and "any-model" in caught.value.next_step
    pb.apply_direction(other, planted(), PROMPTS, any_model=True, progress=False)
    one = planted()
    old = Evidence(replace(one.header, identity=""), one.arrays)  # as files before 0.2: by the full name alone
    half = Evidence(replace(old.header, model=old.header.model.replace("float32", "bfloat16")), one.arrays)
    for known in (old, half):
        pb.apply_direction(model(), known, PROMPTS[:1], progress=False)
    renamed = Evidence(replace(one.header, model="theirs [weights 00000000]"), one.arrays)
    pb.apply_direction(model(), renamed, PROMPTS[:1], progress=False)  # the same weights under another name
    with pytest.raises(ProvenanceMismatch):
        pb.apply_direction(other, old, PROMPTS, progress=False)


def test_what_cannot_be_applied_is_refused_by_type() -> None:
    one = planted()
    thin = Evidence(one.header, {**one.arrays, "means": one.arrays["means"][..., :5]})
    with pytest.raises(BadParameter, match="another width") as caught:
        pb.apply_direction(model(), thin, PROMPTS, any_model=True, progress=False)
    assert ("5 dimensions" in caught.value.needed, "64" in caught.value.found) == (True, True)
    with pytest.raises(UnknownSite):
        pb.apply_direction(model(), planted("resid.9"), PROMPTS, progress=False)
    for position in ("", "subject", "subject.last"):
        with pytest.raises(BadParameter, match="no such position"):
            pb.apply_direction(model(), planted(position=position), PROMPTS, progress=False)
    pb.apply_direction(model(), planted(position="subject"), PROMPTS, position="end-1", progress=False)
    with pytest.raises(BadParameter, match="lacks the position") as caught:
        pb.apply_direction(model(), planted(), PROMPTS, position="start+4", progress=False)
    assert PROMPTS[2] in caught.value.found
    for wrong in ([], ["", "a"]):
        with pytest.raises(BadParameter, match="prompt"):
            pb.apply_direction(model(), planted(), wrong, progress=False)
    with pytest.raises(BadParameter, match="longer than the model reads"):
        pb.apply_direction(model(), planted(), ["the doctor " * 40], progress=False)
    with pytest.raises(BadParameter, match="strength"):
        pb.apply_direction(model(), planted(), PROMPTS, strength=np.inf, progress=False)
    base = pb.LanguageModel.load(str(REFERENCE / "model"), kind="base")
    with pytest.raises(NoBehaviour):
        pb.apply_direction(base, planted(), PROMPTS, progress=False)


@pytest.mark.parametrize("strength", [1e30, -1e300])
def test_a_strength_that_breaks_the_model_gives_no_numbers(strength: float) -> None:
    with pytest.raises(BadParameter, match="no numbers") as caught:
        pb.apply_direction(model(), planted(), PROMPTS, strength=strength)
    assert caught.value.found == f"{strength:g}"


def test_classes_are_named_and_numbers_of_real_values_given() -> None:
    three = planted(labels=("a", "b", "c"))
    assert three.codes("c", "a") == (2, 0)
    for given in ((None, None), ("a", None)):
        with pytest.raises(BadParameter, match="3 classes"):
            three.codes(*given)
    with pytest.raises(UnknownName, match="'d'"):
        three.codes("a", "d")
    with pytest.raises(BadParameter, match="another class"):
        three.codes("a", "a")
    two = planted()
    assert [two.codes(), two.codes("b"), two.codes(None, "a"), two.codes("a", "b")] == [(0, 1), (1, 0), (1, 0), (0, 1)]
    real = planted(labels=())
    assert (real.codes(), real.codes("2", "-0.5")) == ((0, 1), (2, -0.5))
    np.testing.assert_allclose(real.direction(start=2, goal=-0.5), -2.5 * SHIFT)
    for wrong in ("a", "nan"):
        with pytest.raises(BadParameter, match="number to number"):
            real.codes(wrong)
    assert erasing().codes() == (0, 1)
    with pytest.raises(BadParameter, match="only class means"):
        erasing().codes("a", "b")
    assert record_of(three)["norm"] == pytest.approx(2 * np.linalg.norm(SHIFT))
    assert record_of(real)["norm"] == pytest.approx(np.linalg.norm(SHIFT))
    assert (record_of(erasing())["rank"], record_of(erasing())["norm"]) == (1, None)


@pytest.mark.parametrize("form", ["gguf", "safetensors", "npz", "npy"])
def test_what_is_exported_and_read_back_is_the_direction(tmp_path: Path, form: str) -> None:
    one = planted()
    files = pb.export_directions(one, tmp_path / f"v.{form}")
    wanted = SHIFT.astype(np.float32)
    if form == "gguf":
        metadata, vectors = parsed(files[0].read_bytes())
        told, vector = json.loads(str(metadata["probing.evidence.1"])), vectors["direction.1"]
    elif form == "npy":
        vector, told = np.load(files[0]), json.loads(files[1].read_text())["resid.2@end"]
        assert files[1].name == "v.npy.json"
    elif form == "npz":
        loaded = np.load(files[0])
        vector, told = loaded["resid.2@end"], json.loads(str(loaded["probing.evidence"]))["resid.2@end"]
    else:
        vector = load_file(files[0])["resid.2@end"]
        told = {"verdict": {"word": str(Word.USED_SUBSPACE)}}
    np.testing.assert_allclose(vector, wanted, rtol=1e-6)
    np.testing.assert_array_equal(vector, one.direction().astype(np.float32))
    assert told["verdict"]["word"] == Word.USED_SUBSPACE
    before = [file.read_bytes() for file in files]
    with pytest.raises(BadParameter, match="something already"):
        pb.export_directions(one, files[0], goal="a")
    assert [file.read_bytes() for file in files] == before
    pb.export_directions(one, files[0], goal="a", replace=True)
    assert files[0].read_bytes() != before[0]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    other = pb.export_directions(one, tmp_path / "other.bin", format=form)
    assert other[0].read_bytes() == before[0]


def test_a_vector_for_neuronpedia_has_the_verdict_in_its_label(tmp_path: Path) -> None:
    one, file = planted(), tmp_path / "vectors.json"
    pb.export_directions(one, file, format="neuronpedia", model_hint="gpt2-small")
    (vector,) = read_written_list(file, Vector)
    np.testing.assert_allclose(vector.vector, one.direction(), rtol=1e-6)
    assert (vector.modelId, vector.layerNumber, vector.hookType) == ("gpt2-small", 2, "hook_resid_pre")
    assert str(Word.USED_SUBSPACE) in vector.vectorLabel and one.header.task in vector.vectorLabel
    with pytest.raises(BadParameter, match="names its model"):
        pb.export_directions(one, tmp_path / "other.json", format="neuronpedia")
    assert not (tmp_path / "other.json").exists()


def test_a_vector_without_its_evidence_is_never_left(tmp_path: Path) -> None:
    (tmp_path / "v.npy.json").write_text("mine")
    with pytest.raises(BadParameter, match="something already"):
        pb.export_directions(planted(), tmp_path / "v.npy")
    for wrong in ("v", "v.txt"):
        with pytest.raises(BadParameter, match="unknown format") as caught:
            pb.export_directions(planted(), tmp_path / wrong)
        assert "gguf, safetensors" in caught.value.needed
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(BadParameter, match="something already"):
        pb.export_directions(planted(), tmp_path / "folder.npy", replace=True)
    with pytest.raises(OSError, match="directory"):
        export_vectors(tmp_path / "folder.npy", [planted()])
    (tmp_path / "folder.npy").rmdir()
    both = [planted(), planted("resid.3")]
    with pytest.raises(BadParameter, match="one vector"):
        pb.export_directions(both, tmp_path / "w.npy")
    with pytest.raises(BadParameter, match="belong together"):
        pb.export_directions([planted(), planted("resid.3", labels=("b", "a"))], tmp_path / "w.npz")
    with pytest.raises(BadParameter, match="made of directions"):
        pb.export_directions([], tmp_path / "w.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy.json"]


def test_folders_of_evidence_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="no evidence here"):
        pb.read_directions(tmp_path / "nowhere")
    with pytest.raises(BadParameter, match="no evidence in this folder") as caught:
        pb.read_directions(tmp_path)
    assert caught.value.found == "an empty folder"
    folder = tmp_path / "evidence"
    paths = [write_evidence(folder / f"{site}.safetensors", planted(site)) for site in ("resid.1", "resid.2")]
    for given in ((tmp_path,), (folder,), (paths[1], folder), paths):
        found = pb.read_directions(*given)
        assert sorted(found) == paths and {one.header.site for one in found.values()} == {"resid.1", "resid.2"}
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    with pytest.raises(UntrustedFile) as untrusted:
        pb.read_directions(folder)
    assert untrusted.value.where == "resid.2.safetensors"
    exported = pb.export_directions(planted(), tmp_path / "v.safetensors")
    with pytest.raises(UntrustedFile) as untrusted:
        pb.read_directions(*exported)
    assert untrusted.value.found == "exported vectors"


@pytest.mark.parametrize("word", Word)
def test_only_a_used_subspace_establishes_its_direction(word: Word) -> None:
    said = caveat(planted(word=word).header)
    assert (said == "") == (word is Word.USED_SUBSPACE)
    assert record_of(planted(word=word))["is_established"] == (word is Word.USED_SUBSPACE)
    if said:
        assert said.startswith("column:z at resid.2@end is") and said.endswith("not established")
    assert ("the site is established" in said) == (word is Word.USED_SITE)


def test_a_verdict_says_nothing_of_another_place_or_behaviour() -> None:
    header = planted(word=Word.USED_SUBSPACE).header
    assert caveat(header) == caveat(header, header.place, header.behaviour) == ""
    assert "resid.9@elsewhere" in caveat(header, "resid.9@elsewhere", header.behaviour)
    assert "head" in caveat(header, header.place, "head")
