"""Laws of the corpus readers: strict where a file is wrong, exact about spans, splits and groups."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from probing.errors import BadParameter, CorpusError
from probing.readers._values import split_words
from probing.text.corpus import Corpus
from tests.conftest import real_data

ROOT_LINE = "1\tGo\tgo\tVERB\tVB\tMood=Imp\t0\troot\t_\t_"


def line(number: object, form: str, head: object = 0, feats: str = "_", misc: str = "_") -> str:
    return f"{number}\t{form}\t{form.lower()}\tX\t_\t{feats}\t{head}\tdep\t_\t{misc}"


def conllu(folder: Path, *lines: str, name: str = "a.conllu") -> Path:
    file = folder / name
    file.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return file


def jsonl(folder: Path, *rows: object, name: str = "a.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_words_of_a_multiword_token_share_its_span_unless_their_forms_make_it_up(tmp_path: Path) -> None:
    file = conllu(
        tmp_path,
        "# sent_id = s",
        "# text = Don't du",
        "1-2\tDon't" + "\t_" * 8,
        line(1, "Do"),
        line(2, "n't", 1),
        "2.1\tghost" + "\t_" * 8,
        "3-4\tdu" + "\t_" * 8,
        line(3, "de", 1),
        line(4, "le", 1),
    )
    (example,) = Corpus.read(file).examples
    assert example.id == "s"
    assert example.words == ((0, 2), (2, 5), (6, 8), (6, 8))


@pytest.mark.parametrize("comment", ["# text = Hey , you!", "# text = something else", "# note = x"])
def test_the_text_is_the_comment_where_tokens_fill_it_else_rebuilt(tmp_path: Path, comment: str) -> None:
    file = conllu(tmp_path, comment, line(1, "Hey", misc="SpaceAfter=No"), line(2, ",", 1), line(3, "you!", 1))
    (example,) = Corpus.read(file).examples
    assert example.text == ("Hey , you!" if "Hey" in comment else "Hey, you!")
    assert example.forms == ("Hey", ",", "you!")
    assert example.columns == ({"note": "x"} if "note" in comment else {})


def test_features_of_the_file_are_columns_and_missing_values_are_none(tmp_path: Path) -> None:
    file = conllu(tmp_path, line(1, "a", 2, "Number=Sing|Case=Nom"), line(2, "_"), "", line(1, "b"))
    first, second = Corpus.read(file).examples
    assert first.word_columns["feature:Case"] == ("Nom", None)
    assert second.word_columns["feature:Number"] == (None,)
    assert first.word_columns["lemma"] == ("a", "_")
    assert first.word_columns["xpos"] == (None, None)
    assert first.word_columns["head"] == (2, 0)


@pytest.mark.parametrize(
    ("lines", "number", "said"),
    [
        ([ROOT_LINE, "2\ttoo\tfew"], 2, "10 tab-separated"),
        ([line(1, "a"), line(2, "b", 7)], 2, "out of range"),
        ([line(1, "a"), line(2, "b", "x")], 2, "not a number"),
        ([line(1, "a"), line(3, "b")], 2, "numbered"),
        ([line(1, "a"), "2-9\tbc" + "\t_" * 8, line(2, "b", 1)], 4, "without its words"),
        ([line(1, "a"), line(2, "b", 3), line(3, "c", 2)], 1, "circle"),
        ([line(1, "a", 1)], 1, "circle"),
        ([line(1, "a", feats="Number")], 1, "features"),
        (["# text = x", "", line(1, "a")], 2, "without words"),
        ([line(1, "a"), "# late"], 2, "comment"),
        ([line(1, "")], 1, "empty column"),
    ],
)
def test_a_malformed_treebank_is_refused_with_file_and_line(
    tmp_path: Path, lines: list[str], number: int, said: str
) -> None:
    with pytest.raises(CorpusError, match=said) as caught:
        Corpus.read(conllu(tmp_path, *lines))
    assert caught.value.where.endswith(f"a.conllu:{number}")


@pytest.mark.parametrize("data", [b"", b" \n\n", b"1\tGo\0", b"ok\n\xff\xfe"])
@pytest.mark.parametrize("suffix", ["conllu", "jsonl", "csv"])
def test_empty_binary_and_wrongly_encoded_files_are_refused(tmp_path: Path, data: bytes, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(data)
    with pytest.raises(CorpusError, match=r"empty|NUL|UTF-8"):
        Corpus.read(file)


@pytest.mark.parametrize(
    "bad",
    [
        '{"text": "a", "text": "b"}',
        '{"text": "a", "x": NaN}',
        '{"text": "a", "x": 1e999}',
        "[1]",
        "{",
        '{"text": "\\ud800"}',
        '{"text": ""}',
        '{"text": null}',
        "[" * 100_000,
        '{"text": "a", "words": ["b"]}',
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n\n' + bad + "\n", encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        Corpus.read(file)
    assert caught.value.where.endswith("a.jsonl:3")


def test_lists_as_long_as_the_words_are_word_columns_and_scalars_sentence_columns(tmp_path: Path) -> None:
    row = {"text": "a  bc d", "words": ["a", "bc", "d"], "tag": [1, None, 2], "year": 3, "deep": {"x": 1}, "odd": [1]}
    corpus = Corpus.read(jsonl(tmp_path, row, {"words": ["x", "y"], "text": "x y"}))
    assert corpus.column_names() == {"tag": "word", "year": "sentence"}
    assert corpus.examples[0].words == ((0, 1), (3, 5), (6, 7))
    assert corpus.examples[1].word_columns["tag"] == (None, None)


def test_a_word_column_that_does_not_fit_one_row_is_refused(tmp_path: Path) -> None:
    rows = [{"words": ["a", "b"], "tag": ["X", "Y"]}] * 3 + [{"words": ["a", "b"], "tag": ["X"]}]
    with pytest.raises(CorpusError, match="'tag' does not fit") as caught:
        Corpus.read(jsonl(tmp_path, *rows))
    assert caught.value.where.endswith(":4")


def test_words_without_a_list_are_runs_of_letters_and_single_marks() -> None:
    text = "Don't, he said: नमस्ते x-ray’s."
    words = [text[a:b] for a, b in split_words(text)]
    assert words == ["Don't", ",", "he", "said", ":", "नमस्ते", "x-ray’s", "."]


def test_csv_numbers_are_numbers_and_everything_else_stays_as_written(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('sentence,n,f,code,na\n"one, two",1,0.5,007,NA\n"li\nne",,1,1,\n', encoding="utf-8")
    first, second = Corpus.read(file).examples
    assert first.text == "one, two"
    assert first.columns == {"n": 1, "f": 0.5, "code": "007", "na": "NA"}
    assert second.columns == {"n": None, "f": 1.0, "code": "1", "na": None}


@pytest.mark.parametrize(
    ("text", "where"),
    [("text,a\nx,1\ny\n", ":3"), ('text,a\nx,"1\n', ":2"), ("text,text\nx,1\n", ":1"), ('text\n"a\nb"\nx,y\n', ":4")],
)
def test_a_malformed_csv_is_refused_with_its_line(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        Corpus.read(file)
    assert caught.value.where.endswith(where)


def test_a_table_without_a_clear_text_column_says_which_columns_there_are(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("left,right\na,b\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="left, right"):
        Corpus.read(file)
    with pytest.raises(CorpusError, match="did you mean 'left'"):
        Corpus.read(file, text="lefft")
    assert Corpus.read(file, text="left").examples[0].text == "a"


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_columnar_files_read_as_their_jsonl(tmp_path: Path, suffix: str) -> None:
    rows = [{"words": ["a", "b"], "upos": ["X", None], "year": year, "split": "validation"} for year in (1, 2)]
    table, file = pa.Table.from_pylist(rows), tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, file)
    elif suffix == "feather":
        feather.write_feather(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert Corpus.read(file).examples == Corpus.read(jsonl(tmp_path, *rows)).examples
    assert Corpus.read(file).splits == ("dev",)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CorpusError, match="not a sound"):
        Corpus.read(file)


def test_a_glob_takes_splits_from_file_names_in_split_order(tmp_path: Path) -> None:
    for name in ("x_test", "x-train", "x.validation"):
        jsonl(tmp_path, {"text": name}, name=f"{name}.jsonl")
    corpus = Corpus.read(str(tmp_path / "x*.jsonl"))
    assert [(e.split, e.text) for e in corpus.examples] == [
        ("train", "x-train"),
        ("dev", "x.validation"),
        ("test", "x_test"),
    ]
    jsonl(tmp_path, {"text": "?"}, name="x-more.jsonl")
    with pytest.raises(CorpusError, match="does not tell its split"):
        Corpus.read(str(tmp_path / "x*.jsonl"))
    with pytest.raises(CorpusError, match="no file matches"):
        Corpus.read(str(tmp_path / "y*.jsonl"))


def test_files_are_read_in_split_order_and_their_own_numbering_is_told_apart(tmp_path: Path) -> None:
    lines = ("# newdoc id = 1", "# sent_id = 1", ROOT_LINE)
    files = {split: conllu(tmp_path, *lines, name=f"{split}.conllu") for split in ("test", "extra", "dev", "train")}
    corpus = Corpus.read(files)
    assert [e.split for e in corpus.examples] == ["train", "dev", "test", "extra"]
    assert len({e.group for e in corpus.examples}) == len({e.id for e in corpus.examples}) == 4


def test_a_declared_document_in_two_splits_is_refused(tmp_path: Path) -> None:
    files = {s: jsonl(tmp_path, {"text": s, "document": "d"}, name=f"{s}.jsonl") for s in ("train", "test")}
    with pytest.raises(CorpusError, match="in two splits"):
        Corpus.read(files)
    assert len(Corpus.read(files, document="none")) == 2


def test_one_file_is_split_at_random_by_group_unless_it_has_splits(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "document": i // 2} for i in range(40)]
    corpus = Corpus.read(jsonl(tmp_path, *rows))
    assert corpus.splits == ("train", "dev", "test")
    assert corpus == Corpus.read(tmp_path / "a.jsonl", split_seed=0) != Corpus.read(tmp_path / "a.jsonl", split_seed=1)
    own = jsonl(tmp_path, {"text": "a", "split": "train"}, {"text": "b", "split": "test"}, name="own.jsonl")
    assert Corpus.read(own).splits == ("train", "test")
    with pytest.raises(BadParameter, match="split_seed"):
        Corpus.read(own, split_seed=1)
    with pytest.raises(CorpusError, match="says that it is"):
        Corpus.read({"train": own})


def test_missing_files_and_unknown_suffixes_and_options_name_the_nearest(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"text": "a"}, name="train.jsonl")
    with pytest.raises(CorpusError, match=r"did you mean .*train\.jsonl"):
        Corpus.read(tmp_path / "trian.jsonl")
    with pytest.raises(CorpusError, match="not a folder"):
        Corpus.read(tmp_path)
    with pytest.raises(CorpusError, match=r"one of: \.arrow"):
        Corpus.read(conllu(tmp_path, ROOT_LINE, name="a.xlsx"))
    with pytest.raises(BadParameter, match="did you mean 'text'"):
        Corpus.read(file, txet="a")


def test_a_hub_data_set_gives_its_splits_and_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    made = datasets.Dataset.from_dict({"sentence": ["a b", "c"], "label": [1, 0]}, features=features)
    asked: list[object] = []

    def load(name: str, config: str | None, *, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, config, revision))
        return datasets.DatasetDict({"validation": made, "train": made})

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = Corpus.read("hub:me/set:small", revision="v1")
    assert asked == [("me/set", "small", "v1")]
    assert [(e.split, e.text, e.columns["label"]) for e in corpus.examples] == [
        ("train", "a b", "good"),
        ("train", "c", "bad"),
        ("dev", "a b", "good"),
        ("dev", "c", "bad"),
    ]
    with pytest.raises(CorpusError, match="split of the data set"):
        Corpus.read({"test": "hub:me/set"})


@pytest.mark.real_data
def test_every_word_of_lines_is_found_in_its_text() -> None:
    corpus = Corpus.read(str(real_data() / "ud" / "en_lines-*.conllu"))
    counts = {split: [0, 0] for split in corpus.splits}
    for example in corpus.examples:
        counts[example.split][0] += 1
        counts[example.split][1] += len(example.words)
        assert all(form.strip() == form != "" for form in example.forms)
    assert counts == {"train": [3457, 64684], "dev": [1118, 21637], "test": [1121, 19984]}
