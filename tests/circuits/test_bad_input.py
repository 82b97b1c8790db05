"""Bad input is refused by type before a circuit is looked for; results are written whole and read back."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probing as pb
from probing.circuits import circuit
from probing.circuits.measuring import LEAST_GROUPS
from probing.circuits.running import Batch
from probing.circuits.traces import TokenPairs
from probing.errors import (
    BadParameter,
    CorpusError,
    DegenerateDesign,
    InputError,
    NoBehaviour,
    ProvenanceMismatch,
    TooFewGroups,
    UnknownName,
    UnsupportedModel,
)
from probing.reporting.circuit_sections import claims
from probing.results.circuit import INCONCLUSIVE, MATERIAL, TOGETHER, CircuitResult, read_circuit
from tests.samples.circuit_samples import CANCELLING, NORMED, Planted, planted_pairs, random_model, split
from tests.samples.tiny_models import language_model

pytestmark = pytest.mark.filterwarnings("ignore")
FAST: dict[str, Any] = {"random_circuits": 0, "progress": False}


def file_of(folder: Path, **changes: str) -> str:
    rows = []
    for k in range(24):
        own = {
            "clean": f"{chr(97 + k)}a the",
            "corrupted": f"{chr(97 + k)}b the",
            "answer": "a",
            "corrupted_answer": "b",
        }
        rows.append(own | {"kind": "x", "corrupted_kind": "y"} | changes)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_of_unequal_length(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match=r"unequal length[\s\S]*pairs\.jsonl, pair 1\b"):
        circuit(split("gpt2").model, file_of(tmp_path, corrupted="much longer than that"), **FAST)


def test_prompts_longer_than_the_model_reads(tmp_path: Path) -> None:
    long = " the" * 70
    with pytest.raises(BadParameter, match=r"at most 64 tokens[\s\S]*pairs\.jsonl, pair 1"):
        circuit(split("gpt2").model, file_of(tmp_path, clean="a" + long, corrupted="b" + long), **FAST)


@pytest.mark.parametrize("option", ["nodes", "size"])
def test_nothing_is_chosen_beside_a_given_circuit(option: str) -> None:
    with pytest.raises(BadParameter, match=f"{option} 3 beside circuit.json"):
        circuit("no such model", "pairs.csv", given="circuit.json", **{option: 3}, **FAST)


def test_answers_of_several_tokens(tmp_path: Path) -> None:
    with pytest.raises(NoBehaviour, match="no single"):
        circuit(split("gpt2").model, file_of(tmp_path, answer="several"), **FAST)


def test_files_without_answers_or_columns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"clean": "a the", "corrupted": "b the"}\n' * 20)
    with pytest.raises(NoBehaviour, match="needs answers"):
        circuit(split("gpt2").model, str(path), **FAST)
    with pytest.raises(CorpusError, match="template"):
        circuit(split("gpt2").model, file_of(tmp_path), group="template", **FAST)


def test_equal_metrics() -> None:
    same = planted_pairs()
    with pytest.raises(DegenerateDesign, match="the same on clean and corrupted"):
        circuit(Planted(CANCELLING), replace(same, corrupted=same.clean, values={}), **FAST)
    turned = replace(same, clean=same.corrupted, corrupted=same.clean, values={})
    with pytest.raises(DegenerateDesign, match="does not fall"):
        circuit(Planted(CANCELLING), turned, **FAST)


def test_too_few_pairs() -> None:
    with pytest.raises(TooFewGroups, match=str(2 * LEAST_GROUPS)):
        circuit(Planted(CANCELLING), planted_pairs(2 * LEAST_GROUPS - 1), **FAST)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"level": "path"}, UnknownName),
        ({"method": "guess"}, UnknownName),
        ({"by": "zero"}, UnknownName),
        ({"nodes": 0}, BadParameter),
        ({"epsilon": 1.5}, BadParameter),
        ({"delta": 0.0}, BadParameter),
        ({"random_circuits": -1}, BadParameter),
        ({"random_pairs": 0}, BadParameter),
        ({"size": 2.5}, BadParameter),
        ({"size": 10_000}, BadParameter),
        ({"nodes": 2, "size": 500}, BadParameter),
        ({"level": "node", "size": 7}, BadParameter),
        ({"group": "template"}, BadParameter),
        ({"properties": ["colour"]}, UnknownName),
    ],
)
def test_options_out_of_range(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        circuit(Planted(CANCELLING), planted_pairs(), **FAST | options)


def test_properties_that_do_not_differ() -> None:
    pairs = replace(planted_pairs(40), values={"sign": (["a"] * 40, ["a"] * 40)})
    with pytest.raises(DegenerateDesign, match="same in both prompts"):
        circuit(Planted(CANCELLING), pairs, **FAST)


def test_masked_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="bert"):
        circuit(language_model("bert"), file_of(tmp_path), **FAST)


def test_pairs_with_parts_missing() -> None:
    with pytest.raises(BadParameter, match="parts missing"):
        TokenPairs([[1, 2]], [[1, 3]], np.zeros((2, 2)), np.zeros(1))


@pytest.mark.parametrize("empty", [[], [[]]])
def test_prompts_without_tokens(empty: list[Any]) -> None:
    with pytest.raises(BadParameter, match=r"without tokens|parts missing"):
        TokenPairs(empty, empty, np.zeros((len(empty), 2)), np.zeros(len(empty)))


def test_answers_that_are_no_table() -> None:
    with pytest.raises(BadParameter, match=r"\(2,\)"):
        TokenPairs([[1], [2]], [[3], [4]], np.zeros(2), np.arange(2))


@pytest.mark.parametrize("turned", [False, True])
def test_copies_of_a_pair_are_one_group(turned: bool) -> None:
    """Also where groups are given, and where prompts are exchanged; and they cannot be in both halves."""
    pairs = planted_pairs(20)
    rows = [(a, b) for a, b in zip(pairs.clean, pairs.corrupted, strict=True)]
    copies = [(b, a) if turned else (a, b) for a, b in rows]
    clean, corrupted = zip(*rows, *copies, strict=True)
    given = np.r_[np.arange(20) // 2, 100 + np.arange(20)]
    joined = TokenPairs(clean, corrupted, np.zeros((40, 2), dtype=np.int64), given)
    assert len(np.unique(joined.groups)) == 10
    assert (joined.groups[:20] == joined.groups[20:]).all()
    assert (joined.chosen(np.arange(20, 40)).groups == joined.groups[20:]).all()


def test_copies_are_no_further_evidence(tmp_path: Path) -> None:
    few = planted_pairs(5)
    copies = TokenPairs([*few.clean] * 20, [*few.corrupted] * 20, np.zeros((100, 2), dtype=np.int64), np.arange(100))
    with pytest.raises(TooFewGroups, match="5 groups of 100 pairs"):
        circuit(Planted(CANCELLING), copies, **FAST)
    row = (tmp_path / "pairs.jsonl", '{"clean": "a", "corrupted": "b", "answer": "a", "corrupted_answer": "b"}\n')
    row[0].write_text(row[1] * 20)
    with pytest.raises(TooFewGroups, match="1 groups of 20 pairs"):
        circuit(split("gpt2").model, str(row[0]), **FAST)


def test_transfer_is_to_other_pairs_and_to_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are said before anything is measured."""
    monkeypatch.setattr("probing.circuits.Search", lambda *_, **__: pytest.fail("work was begun"))
    path = file_of(tmp_path)
    rows = Path(path).read_text().splitlines()
    copy, few = tmp_path / "copy.jsonl", tmp_path / "few.jsonl"
    copy.write_text("\n".join(rows))
    few.write_text("\n".join(row.replace("the", "of") for row in rows[:7]))
    for other, error in ((path, BadParameter), (str(copy), BadParameter), (str(few), TooFewGroups)):
        with pytest.raises(error):
            circuit(split("gpt2").model, path, transfer=[other], **FAST)


def test_metrics_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Planted(CANCELLING)
    monkeypatch.setattr(model, "measure", lambda x, answers: x[:, -1, 0] * float("nan"))
    with pytest.raises(DegenerateDesign, match="not finite"):
        circuit(model, planted_pairs(), **FAST)


@pytest.mark.parametrize("options", [{"size": 1}, {"size": 1, "nodes": 3}])
def test_edges_without_a_path_are_no_circuit(options: dict[str, Any]) -> None:
    """The logits read most from a head, which the input is not yet connected to."""
    with pytest.raises(DegenerateDesign, match="no path"):
        circuit(Planted(CANCELLING), planted_pairs(), **FAST | options)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CircuitResult]:
    folder = tmp_path_factory.mktemp("circuit")
    return folder, circuit(Planted(CANCELLING), planted_pairs(), properties=["sign"], to=folder, **FAST)


def test_results_are_read_back(written: tuple[Path, CircuitResult]) -> None:
    folder, result = written
    again = read_circuit(folder)
    assert again is not None and json.dumps(asdict(again)) == json.dumps(asdict(result))
    assert read_circuit(folder / "nowhere") is None
    mib = json.loads((folder / "circuit-mib.json").read_text())
    assert [name for name, edge in mib["edges"].items() if edge["in_graph"]] == [
        *dict.fromkeys([part.name for part in result.parts if part.name in result.edges])
    ]
    graph = json.loads((folder / "circuit-neuronpedia.json").read_text())
    known = {node["node_id"] for node in graph["nodes"]}
    assert {end for link in graph["links"] for end in (link["source"], link["target"])} == known
    assert {"input", "logits"} <= known


def test_damaged_files_are_refused(written: tuple[Path, CircuitResult], tmp_path: Path) -> None:
    (tmp_path / "circuit.json").write_text((written[0] / "circuit.json").read_text()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_circuit(tmp_path)


def test_a_circuit_is_judged_again_and_never_in_another_model(written: tuple[Path, CircuitResult]) -> None:
    folder, result = written
    again = circuit(Planted(CANCELLING), planted_pairs(seed=5), given=folder / "circuit.json", **FAST)
    assert again.edges == list(result.edges) and set(again.material) == set(result.material)
    with pytest.raises(ProvenanceMismatch, match="another model"):
        circuit(Planted(NORMED), planted_pairs(), given=folder / "circuit.json", **FAST)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_given_circuit_is_never_called_chosen_here(
    written: tuple[Path, CircuitResult], tmp_path: Path, seed: int
) -> None:
    """Test pairs that it was found on are counted, by whichever seed they are drawn; no effect is called measured."""
    path, pairs = str(written[0] / "circuit.json"), planted_pairs()
    again = circuit(Planted(CANCELLING), pairs, given=path, seed=seed, to=tmp_path, **FAST)
    known = set(written[1].facts["discovery_pairs"])
    own = set(circuit(Planted(CANCELLING), pairs, seed=seed, **FAST).facts["discovery_pairs"])
    count = sum(one in known for one in pairs.digests if one not in own)
    assert again.facts["test_pairs_of_discovery"] == count and (seed == 0) == (count == 0)
    of_pairs = [one for one in again.doubts if "test pairs are" in one]
    assert len(of_pairs) == bool(count) and all(f"{count} of the 40 test pairs" in one for one in of_pairs)
    assert set(again.facts["discovery_pairs"]) == known and again.facts["given"] == path
    effects = {part.name: part.effect for part in written[1].parts}
    assert {part.name: part.effect for part in again.parts} == {name: effects[name] for name in again.edges}
    page = pb.report(tmp_path).read_text("utf-8")
    assert "given by" in page and "; chosen on" not in page and "Rank correlation" not in page


def test_a_given_circuit_of_unknown_pairs_is_doubted(written: tuple[Path, CircuitResult], tmp_path: Path) -> None:
    """Files of before do not say what the circuit was found on; a circuit of another level has no effects here."""
    old = asdict(written[1])
    del old["facts"]["discovery_pairs"]
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(old))
    again = circuit(Planted(CANCELLING), planted_pairs(), given=path, level="node", **FAST)
    assert again.facts["test_pairs_of_discovery"] is None
    assert any("does not say which pairs" in doubt for doubt in again.doubts)
    assert [part.effect for part in again.parts] == [None] * len(again.parts)
    assert len(again.write(tmp_path / "out")) == 6 and read_circuit(tmp_path / "out") is not None


@pytest.mark.parametrize("word", [INCONCLUSIVE, "sufficient"])
def test_every_word_that_is_printed_has_its_question(written: tuple[Path, CircuitResult], word: str) -> None:
    words = [replace(one, word=word) for one in written[1].words]
    text = repr(replace(written[1], words=words))
    questions = [one.question for one in words if word == INCONCLUSIVE or one.question == TOGETHER]
    assert all(f"{question}: {word}" in text for question in questions)


@pytest.mark.parametrize(
    ("many", "words"), [(0, "None of 6 edges is"), (1, "1 of 6 edges is"), (6, "6 of 6 edges are")]
)
def test_the_sentence_on_material_edges_counts_them(written: tuple[Path, CircuitResult], many: int, words: str) -> None:
    inside = [part for part in written[1].parts if part.in_circuit][:6]
    assert len(inside) == 6
    parts = [replace(part, word=MATERIAL if place < many else "") for place, part in enumerate(inside)]
    assert claims(replace(written[1], parts=parts))[-1].startswith(f"{words} material: ")


def test_a_stopped_run_continues(written: tuple[Path, CircuitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before is read, not measured again, and the record says the same, cost included."""
    folder, result = written
    assert sorted((folder / "units").iterdir())
    measured = Batch.removals

    def only_shifted(self: Batch, edges: Any, *, shifts: Any = None, advance: Any = None) -> Any:
        assert shifts is not None, "measured again"
        return measured(self, edges, shifts=shifts, advance=advance)

    monkeypatch.setattr(Batch, "removals", only_shifted)
    again = circuit(Planted(CANCELLING), planted_pairs(), properties=["sign"], to=folder, **FAST)
    assert json.dumps(asdict(again)) == json.dumps(asdict(result))


def test_the_same_seed_gives_the_same_result() -> None:
    found = [circuit(Planted(NORMED), planted_pairs(), random_circuits=5, progress=False) for _ in range(2)]
    assert json.dumps(asdict(found[0])) == json.dumps(asdict(found[1]))


def test_the_page_shows_the_circuit(written: tuple[Path, CircuitResult]) -> None:
    folder, result = written
    page = pb.report(folder).read_text("utf-8")
    for text in ("Which parts give the answers", "of these prompts", "m0-&gt;logits", "EAP-IG"):
        assert text in page
    assert all(name.split("->")[0] in page for name in result.edges)


def test_a_language_model_by_its_file_of_pairs(tmp_path: Path) -> None:
    """Every number of a random model is finite, and words are among those that are known."""
    model = random_model(
        "llama",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 24, "max_position_embeddings": 64, "num_key_value_heads": 2},
    )
    rows = [json.loads(line) for line in Path(file_of(tmp_path)).read_text().splitlines()]
    logits = [model.logits(model.encode([row["clean"], row["corrupted"]]))[:, -1].numpy() for row in rows]
    ids = [model.tokenizer.encode(answer)[0] for answer in ("a", "b")]
    fall = np.mean([one[0, ids[0]] - one[0, ids[1]] - one[1, ids[0]] + one[1, ids[1]] for one in logits])
    turned = {} if fall > 0 else {"answer": "b", "corrupted_answer": "a"}
    path = file_of(tmp_path, **turned)
    try:
        result = circuit(model, path, nodes=4, properties=["kind"], method="eap_ig", **FAST)
    except DegenerateDesign as error:
        assert "does not fall" in str(error)
        return
    assert result.facts["rank_correlation_eap"] is not None
    result.write(tmp_path / "out")
