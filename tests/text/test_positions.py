"""Laws of rows at positions: the piece that the name says, missing ones named, and a task probed at one of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probing.errors import AlignmentError, BadParameter, ConfigError, CorpusError, ProvenanceMismatch, UnknownName
from probing.jobs.study import Study
from probing.results.probe import read_results
from probing.states.extraction import extract
from probing.states.store import Store, store_info
from probing.states.store.export import export
from probing.text.corpus import Corpus, Example
from probing.text.positions import Position, parse_positions, position_rows
from probing.training import train
from probing.training.pooling import with_rows
from tests.conftest import REFERENCE
from tests.samples.tiny_models import language_model, spans

TEXT = "the cat is being in the hat"


def example(text: str, number: int = 0, **named: tuple[int, int]) -> Example:
    return Example(id=f"s{number}", text=text, words=spans(text), spans=named)


def pieces_at(family: str, text: str, name: str, limit: int | None = None, **named: tuple[int, int]) -> str:
    """The text of the piece at a position, `[id]` of a special one, or why there is none."""
    one = language_model(family).encode([text])[0]
    one = one if limit is None else one.truncated(limit)
    rows = position_rows([example(text, **named)], [one], parse_positions(name))
    if not len(rows):
        return rows.missing[0][2]
    pieces = rows.pieces.tolist()
    assert rows.piece.tolist() == [[pieces[0], pieces[-1] + 1]] and rows.first.tolist() == [0, len(pieces)]
    special = one.special[pieces]
    return f"[{one.ids[pieces[0]]}]" if special.any() else text[one.offsets[pieces[0], 0] : one.offsets[pieces[-1], 1]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("start", "t"),
        ("end", "t"),
        ("end-1", "a"),
        ("start+1", "he"),
        ("entity", "cat"),
        ("entity.first", "c"),
        ("entity.last", "t"),
        ("entity.before", " "),
        ("entity.before-1", "he"),
        ("entity.after", " "),
        ("entity.last-1", "a"),
        ("entity.after+1", "i"),
        ("input_start", "t"),
        ("input_end-2", "h"),
        ("start-1", "no_pieces"),
        ("end+1", "no_pieces"),
        ("other.last", "nothing_selected"),
    ],
)
@pytest.mark.parametrize("start", [3, 4])
def test_a_position_is_the_piece_its_name_says(name: str, expected: str, start: int) -> None:
    """Pieces are t, he, ␣, c, a, t, ␣, i, s, …: that of a space alone has no visible character, and is in no span."""
    assert pieces_at("gpt2", TEXT, name, entity=(start, 7)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("start", "the"),
        ("input_start", "[2]"),
        ("input_end", "[3]"),
        ("start-1", "[2]"),
        ("end+1", "[3]"),
        ("entity.before", "the"),
        ("entity", "cat"),
        ("end+2", "no_pieces"),
    ],
)
def test_special_pieces_count_as_pieces_before_and_after(name: str, expected: str) -> None:
    assert pieces_at("bert", "the cat", name, entity=(4, 7)) == expected


def test_a_position_cut_off_is_truncated_and_never_another_piece() -> None:
    cut = {"limit": 4, "entity": (4, 7)}  # [CLS] the cat [SEP] of `the cat the cat`
    text = "the cat the cat"
    found = {name: pieces_at("bert", text, name, **cut) for name in ("entity", "entity.after", "end", "start+2")}
    assert found == {"entity": "cat", "entity.after": "truncated", "end": "truncated", "start+2": "truncated"}
    assert pieces_at("bert", text, "entity", limit=4, entity=(4, 11)) == "truncated"
    assert pieces_at("bert", text, "input_end", **cut) == "[3]"


def test_spans_share_pieces_by_their_visible_characters() -> None:
    assert pieces_at("gpt2", "a  b", "e.last", e=(1, 3)) == "no_pieces"
    assert pieces_at("gpt2", "日本 x", "e.last", e=(0, 1)) == "日"
    assert pieces_at("bert", "cating", "e.last", e=(0, 4)) == "ing"
    assert pieces_at("gpt2", "", "end") == "no_pieces"


def test_names_are_normalised_and_others_refused() -> None:
    assert [p.name for p in parse_positions("entity, answer.before-1,end+0,entity+1,entity.last")] == [
        "entity",
        "answer.before-1",
        "end+0",
        "entity.last+1",
        "entity.last",
    ]
    assert Position.parse("a.before") == Position("a.before", "a", "first", -1)
    for bad in ("", "end.first", "a.middle", "1st", "a.b.c", "a..last"):
        with pytest.raises(BadParameter, match="no position"):
            parse_positions(bad)
    with pytest.raises(BadParameter, match="twice"):
        parse_positions("entity, entity")


CORPUS = Corpus(
    (
        example(TEXT, 0, entity=(4, 7), answer=(24, 27)),
        example("cat", 1, answer=(0, 3)),
        example("   ", 2, entity=(1, 1)),
        example("a being", 3, entity=(2, 7)),
    )
)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_rows_are_the_pieces_own_states_and_all_others_are_named(tmp_path: Path, family: str) -> None:
    model = language_model(family)
    names = "answer.before,entity,end"
    store = extract(model, CORPUS, rows=f"position:{names}", to=tmp_path / "s", progress=False)
    assert store.position_names == ("answer.before", "entity", "end")
    assert store.identity["extraction"]["rows"] == "position"
    reached = {(e, p) for e, p in zip(store.rows.example.tolist(), store.rows.position.tolist(), strict=True)}
    lost = {(e, p): reason for e, p, reason in store.missing_words}
    assert reached | set(lost) == {(e, p) for e in range(4) for p in range(3)} and not reached & set(lost)
    assert lost[1, 1] == "nothing_selected" and lost[2, 1] == "no_pieces"
    assert (family == "gpt2") == (lost.get((1, 0)) == "no_pieces")
    order = list(zip(store.rows.example, store.rows.piece_start, store.rows.piece_end, strict=True))
    assert order == sorted(order)
    states = store.read("resid.1")
    for row, (e, start, end) in enumerate(order):
        inputs = model.encode([CORPUS.examples[e].text])
        expected = model.states(inputs, ["resid.1"])["resid.1"][0, int(start) : int(end)].mean(0)
        np.testing.assert_allclose(states[row], expected, atol=1e-5)
    sizes = np.bincount(store.rows.position, weights=store.rows.piece_end - store.rows.piece_start)
    assert sizes[1] > np.bincount(store.rows.position)[1]  # whole spans, of several pieces
    assert store.verify() == []
    info = store_info(tmp_path / "s")
    assert info["rows"] == "position:answer.before,entity,end" and sum(info["missing_words"].values()) == len(lost)
    exported = export(tmp_path / "s", tmp_path / "out")
    np.testing.assert_array_equal(np.load(exported / "rows.position.npy"), store.rows.position)


def test_a_row_at_a_word_knows_the_word(tmp_path: Path) -> None:
    store = extract(language_model("bert"), CORPUS, rows="position:entity,input_end", to=tmp_path / "s", progress=False)
    assert {(e, p): w for e, p, w in zip(store.rows.example, store.rows.position, store.rows.word, strict=True)} == {
        (0, 0): 1,
        (0, 1): -1,
        (1, 1): -1,
        (2, 1): -1,
        (3, 0): 1,
        (3, 1): -1,
    }


def test_equal_texts_with_other_spans_are_other_rows(tmp_path: Path) -> None:
    corpus = Corpus((example("the cat", 0, e=(0, 3)), example("the cat", 1, e=(4, 7))))
    store = extract(language_model("bert"), corpus, rows="position:e", to=tmp_path / "s", progress=False)
    assert store.rows.piece_start.tolist() == [1, 2] and not np.allclose(*store.read("resid.2"))


def test_unknown_and_impossible_spans_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = language_model("gpt2")
    with pytest.raises(UnknownName, match="did you mean 'entity'"):
        extract(model, CORPUS, rows="position:entitty.last", to=tmp_path / "s", progress=False)
    with pytest.raises(AlignmentError, match="sentence s7"):
        extract(model, Corpus((example("ab", 7, e=(1, 3)),)), rows="position:e", to=tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


def prompts(folder: Path, n: int = 90) -> Path:
    """Prompts `AB: the cat in X`, whose label is the letter before the colon; the last letter is noise."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        key, noise = (chr(97 + int(rng.integers(2))) for _ in range(2))
        # Texts differ in their ends: equal ones would be one group.
        end = " ".join(("the", "was", ".")[i // 3**place % 3] for place in range(5))
        text = f"{key}: the cat in {noise} {end}"
        rows.append({"id": str(i), "text": text, "spans": {"key": [0, 1], "noise": [14, 15]}, "label": f"is {key}"})
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_task_is_probed_at_a_position(tmp_path: Path) -> None:
    corpus = Corpus.read(prompts(tmp_path))
    store = extract(
        language_model("bert"), corpus, sites="embed", rows="position:key,noise.last", to=tmp_path / "s", progress=False
    )
    accuracy = {}
    for name in ("key", "noise.last"):
        result = train(store, corpus, task="column:label", rows=f"position:{name}", sites="embed", progress=False)
        one = next(r for r in result if r.probe == "linear")
        accuracy[name] = one.measure("accuracy").score.value
        assert one.provenance["rows"] == f"position:{name}"
    assert accuracy["key"] == 1.0 > accuracy["noise.last"]
    with pytest.raises(BadParameter, match=r"which position(.|\n)*position:key or rows position:noise\.last"):
        train(store, corpus, task="column:label", sites="embed", progress=False)
    with pytest.raises(BadParameter, match=r"noise is the whole span; this store has its last piece(.|\n)*noise\.last"):
        train(store, corpus, task="column:label", rows="position:noise", sites="embed", progress=False)
    moved = Corpus(tuple(Example(**(vars(e) | {"spans": {"key": (0, 1), "noise": (0, 1)}})) for e in corpus.examples))
    with pytest.raises(ProvenanceMismatch, match="other spans"):
        train(store, moved, task="column:label", rows="position:key", sites="embed", progress=False)


def test_readers_give_spans_of_offsets_and_of_substrings(tmp_path: Path) -> None:
    lines = [
        {"text": "Dogs bark.", "spans": {"entity": [0, 4], "verb": "bark"}},
        {"text": "Cats sleep.", "spans": {"entity": [0, 4], "verb": None}},
        {"text": "Hm.", "spans": None},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [dict(e.spans) for e in Corpus.read(tmp_path / "a.jsonl", split_seed=0).examples]
    assert found == [{"entity": (0, 4), "verb": (5, 9)}, {"entity": (0, 4)}, {}]
    (tmp_path / "b.csv").write_text("text,from,to,who\nDogs bark,5,9,Dogs\nCats sleep,5,10,\nHm,,,\n")
    options = {"span.verb": "from:to", "span.entity": "who", "text": "text"}
    found = [dict(e.spans) for e in Corpus.read(tmp_path / "b.csv", **options).examples]
    assert found == [{"verb": (5, 9), "entity": (0, 4)}, {"verb": (5, 10)}, {}]


@pytest.mark.parametrize("value", [[0, 99], [3, 3], [-1, 2], "bark bark", "s", [0.0, 1], {"a": 1}])
def test_a_span_that_is_not_in_its_text_is_refused_with_its_line(tmp_path: Path, value: object) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Dogs bark as dogs.", "spans": {"e": value}}) + "\n")
    with pytest.raises(CorpusError, match=r"span 'e'(.|\n)*a\.jsonl:1"):
        Corpus.read(tmp_path / "a.jsonl")


def test_spans_of_another_form_are_refused_or_left_out_where_told(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a b", "spans": {"e": [0, 1]}}\n{"text": "a b", "spans": [0, 1]}\n')
    with pytest.raises(CorpusError, match=r"no mapping(.|\n)*a\.jsonl:2(.|\n)*spans=none"):
        Corpus.read(file)
    assert not any(e.spans for e in Corpus.read(file, spans="none").examples)
    file.write_text('{"text": "a b", "spans": [{"start": 0}]}\n')  # another data set's own field of that name
    assert not any(e.spans for e in Corpus.read(file).examples)


def test_a_skipped_input_has_no_row_at_any_position(tmp_path: Path) -> None:
    corpus = Corpus((example("the cat the cat", 0), example("a", 1)))
    for rows in ("position:input_start,end", "sentence:cls"):
        store = extract(
            language_model("bert"),
            corpus,
            rows=rows,
            max_length=4,
            long_inputs="skip",
            to=tmp_path / rows[:4],
            progress=False,
        )
        assert store.skipped == [(0, "too_long")] and set(store.rows.example.tolist()) == {1}
        assert store.missing_words == []


def test_a_span_option_for_a_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text,start\nDogs bark,1\n")
    with pytest.raises(CorpusError, match="did you mean 'start'"):
        Corpus.read(tmp_path / "b.csv", **{"span.e": "strat"})


def test_a_store_without_positions_has_none(tmp_path: Path) -> None:
    store = extract(language_model("gpt2"), CORPUS, rows="piece", to=tmp_path / "s", progress=False)
    assert Store.open(tmp_path / "s").rows.position is None and store.position_names == ()


def test_a_study_probes_several_positions_of_one_store_and_one_folder_holds_the_results_of_all(tmp_path: Path) -> None:
    prompts(tmp_path)
    (tmp_path / "study.yaml").write_text(
        f"""
name: positions
model: {REFERENCE / "model"}
corpus: prompts.jsonl
extract: {{rows: "position:key,noise", sites: embed}}
train:
  - {{task: "column:label", rows: "position:key", sites: embed, controls: []}}
  - {{task: "column:label", rows: "position:noise", sites: embed, controls: []}}
""",
        encoding="utf-8",
    )
    study = Study.from_yaml(tmp_path / "study.yaml")
    study.run(tmp_path / "out", progress=False)
    found = read_results(tmp_path / "out" / "results.jsonl")
    assert {r.task for r in found if r.probe == "linear"} == {f"column:label at {p}" for p in ("key", "noise")}
    unasked = study.model_copy(update={"train": [study.train[0].model_copy(update={"rows": None})]})
    with pytest.raises(ConfigError, match="no extraction of this study has rows"):
        unasked.run(tmp_path / "other", progress=False)


TEXTS = [
    example("the cat is being", 0, entity=(4, 7)),
    example("über the 日本 thing", 1, entity=(9, 11)),
    example("the hat", 2),
    example("cat in hat", 3, entity=(0, 10)),
]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("name", ["end", "start", "end-1", "entity", "entity.first", "entity.last-1", "start+1"])
def test_a_position_of_a_piece_store_is_that_of_a_position_store(tmp_path: Path, family: str, name: str) -> None:
    corpus, model = Corpus(tuple(TEXTS)), language_model(family)
    pieces = extract(model, corpus, rows="piece", to=tmp_path / "pieces", progress=False)
    there = extract(model, corpus, rows=f"position:{name}", to=tmp_path / "there", progress=False)
    found, expected = (with_rows(store, corpus, f"position:{name}", "sentence") for store in (pieces, there))
    assert found.identity["extraction"]["rows"] == expected.identity["extraction"]["rows"]
    for column in ("example", "word", "piece_start", "piece_end", "char_start", "char_end"):
        np.testing.assert_array_equal(getattr(found.rows, column), getattr(expected.rows, column), err_msg=column)
    assert 2 < len(found.rows.example) <= 4
    for site in there.sites:
        assert found.width(site) == expected.width(site)
        np.testing.assert_allclose(found.read(site), expected.read(site), atol=1e-6)
        np.testing.assert_array_equal(found.read(site, np.array([2, 0])), found.read(site)[[2, 0]])


def test_a_position_that_a_piece_store_cannot_know_is_refused(tmp_path: Path) -> None:
    corpus, model = Corpus(tuple(TEXTS)), language_model("bert")
    pieces = extract(model, corpus, rows="piece", to=tmp_path / "pieces", progress=False)
    for name in ("end+1", "end+3", "start-1", "entity.before", "entity.after", "input_end", "input_start+1"):
        with pytest.raises(BadParameter, match="cannot be found in a piece store"):
            with_rows(pieces, corpus, f"position:{name}", "sentence")
    with pytest.raises(UnknownName, match="entity"):
        with_rows(pieces, corpus, "position:entety", "sentence")
    cut = extract(model, corpus, rows="piece", max_length=9, long_inputs="truncate", to=tmp_path / "c", progress=False)
    with pytest.raises(BadParameter, match="inputs that are cut"):
        with_rows(cut, corpus, "position:start", "sentence")
