"""Laws of tables: cells are read as they were written, no line is lost in another, refusals say what to do."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from probing.errors import BadParameter, CorpusError
from probing.readers import _text
from probing.readers._delimited import _INTEGER, _NUMBER, numbers_of
from probing.readers._text import count, has_plain_quotes
from probing.tasks.column import MEMBER as COLUMN
from probing.text.corpus import Corpus

LINES = [("old dog", "a"), ('"I am tired.', "b"), ("small bird", "a"), ('Let us go."', "b"), ("cold river", "a")]


def table(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def read(file: Path, **options: str) -> list[tuple[str, object]]:
    return [(e.text, e.columns.get("label")) for e in Corpus.read(file, **options).examples]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("alphabet", ['ab ",', "ab, \n", 'aé,"\n', "ab\u2028\x0b\x85'"])
def test_a_table_is_read_as_a_csv_writer_wrote_it(tmp_path: Path, quoting: int, end: str, alphabet: str) -> None:
    rng = random.Random(alphabet)
    alphabet += "\r" if quoting == csv.QUOTE_ALL else ""  # the writer itself leaves a lone one without marks
    rows = [["x" + "".join(rng.choices(alphabet, k=6)), "".join(rng.choices(alphabet, k=2))] for _ in range(60)]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
        writer.writerows([["text", "label"], *rows])
    assert read(tmp_path / "a.csv", quoting="multiline") == [(text, label or None) for text, label in rows]


@pytest.mark.parametrize(("separator", "name"), [("\t", "a.tsv"), (",", "a.csv"), ("\t", "a.csv"), (";", "a.csv")])
@pytest.mark.parametrize("label_first", [False, True])
def test_lines_that_a_stray_quotation_mark_would_merge_are_refused_and_read_without_quoting(
    tmp_path: Path, separator: str, name: str, label_first: bool
) -> None:
    order = (1, 0) if label_first else (0, 1)
    lines = [("text", "label"), *LINES]
    file = table(tmp_path, "".join(separator.join(line[i] for i in order) + "\n" for line in lines), name)
    with pytest.raises(CorpusError, match="lines 3 to 5 would be one row") as caught:
        read(file, separator=separator)
    assert "quoting='none'" in caught.value.next_step and caught.value.where.endswith(":3")
    assert read(file, separator=separator, quoting="none") == LINES


@pytest.mark.parametrize("text", ['"Yes," he said.', '"Yes" and "no"', '"Well', 'x\ty\n"'])
def test_quotation_marks_that_do_not_pair_are_refused_with_the_line_and_what_reads_them(
    tmp_path: Path, text: str
) -> None:
    file = table(tmp_path, f"text\tlabel\ngood\ta\n{text}\tb\n", "a.tsv")
    with pytest.raises(CorpusError, match="malformed table") as caught:
        read(file)
    assert "quoting='none'" in caught.value.next_step
    assert caught.value.where.endswith(":4" if "\n" in text else ":3")


def test_prose_with_line_breaks_and_commas_is_one_cell(tmp_path: Path) -> None:
    file = table(tmp_path, 'text,label\n"Hello, she said.\nBye, he said.\nSo, well",a\nx,b\n')
    assert read(file) == [("Hello, she said.\nBye, he said.\nSo, well", "a"), ("x", "b")]


def test_lines_that_could_be_rows_are_one_cell_where_that_is_said(tmp_path: Path) -> None:
    file = table(tmp_path, 'text,label\n"a,b\nc",d\n')
    with pytest.raises(CorpusError, match="lines 2 to 3 would be one row"):
        read(file)
    assert read(file, quoting="multiline") == [("a,b\nc", "d")]
    with pytest.raises(BadParameter, match="unknown quoting"):
        read(file, quoting="nome")


@pytest.mark.parametrize("name", ["text", "sentence", "Text"])
@pytest.mark.parametrize(("cells", "step"), [(["12", "37", "40"], 1), (["1.50", "2", ".5"], 1), (["007", "1", "2"], 1)])
def test_a_text_of_digits_is_the_text_as_written(tmp_path: Path, name: str, cells: list[str], step: int) -> None:
    rows = [(cell, "odd" if i else "even") for i, cell in enumerate(cells)]
    file = table(tmp_path, f"label,{name}\n" + "".join(f"{label},{text}\n" for text, label in rows))
    assert read(file) == rows


def test_a_column_named_by_an_option_is_the_text_as_written_and_a_number_otherwise(tmp_path: Path) -> None:
    file = table(tmp_path, "a,label,text\n1.0,x,q\n2.0,y,r\n")
    assert [e.text for e in Corpus.read(file, text="a").examples] == ["1.0", "2.0"]
    assert [e.columns["a"] for e in Corpus.read(file).examples] == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "feather"])
def test_whole_numbers_in_a_text_column_are_its_text_and_fractions_are_refused(tmp_path: Path, kind: str) -> None:
    def file(values: list[object]) -> Path:
        frame, path = pd.DataFrame({"text": values, "label": ["x", "y"]}), tmp_path / f"a.{kind}"
        if kind == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            getattr(frame, f"to_{kind}")(path)
        return path

    assert read(file([12, 37])) == [("12", "x"), ("37", "y")]
    with pytest.raises(CorpusError, match="no text in column 'text'") as caught:
        read(file([1.5, 2.5]))
    assert "text=COLUMN" in caught.value.next_step


@pytest.mark.parametrize("length", [131_073, 3_000_000])
def test_a_cell_of_any_length_is_read(tmp_path: Path, length: int) -> None:
    word, limit = "ab " * (length // 3) + "c", csv.field_size_limit()
    file = table(tmp_path, f'text,label\nx,1\n"{word}, d",2\n{word},3\n"p""q",4\n5" pipe,5\n')
    assert [e.text for e in Corpus.read(file).examples] == ["x", f"{word}, d", word, 'p"q', '5" pipe']
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_command_that_converts_another_encoding_works(tmp_path: Path, encoding: str) -> None:
    if shutil.which("iconv") is None:
        pytest.skip("needs iconv")
    mark = "“" if encoding != "latin-1" else "é"
    folder = tmp_path / "my data"
    folder.mkdir()
    file = table(folder, f"text,label\ncaf{mark} noir,a\n".encode(encoding))
    with pytest.raises(CorpusError, match="not UTF-8") as caught:
        read(file)
    subprocess.run(caught.value.next_step.partition(": ")[2], shell=True, check=True)
    assert read(folder / "a.utf8.csv") == [(f"caf{mark} noir", "a")]


def test_a_broken_byte_in_utf_8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="not UTF-8") as caught:
        read(table(tmp_path, "text,label\né è ö ü,a\n".encode() + b"x\xff,b\n"))
    assert "iconv" not in caught.value.next_step and caught.value.where.endswith(":3")


def test_the_nameless_index_of_a_data_frame_is_left_out_and_other_nameless_columns_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["x", "y", "z"], "label": ["a", "b", "c"]})
    frame.iloc[[2, 0]].to_csv(tmp_path / "a.csv")
    corpus = Corpus.read(tmp_path / "a.csv")
    assert (read(tmp_path / "a.csv"), list(corpus.column_names())) == ([("z", "c"), ("x", "a")], ["label"])
    frame.set_index(pd.Index(["p", "q", "r"])).to_csv(tmp_path / "b.csv")
    for file in (tmp_path / "b.csv", table(tmp_path, "text,\nx,1\n", "c.csv")):
        with pytest.raises(CorpusError, match="a name of its own") as caught:
            read(file)
        assert "index=False" in caught.value.next_step


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_of_objects_is_read_as_its_lines(tmp_path: Path, indent: int | None) -> None:
    rows = [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Corpus.read(tmp_path / "a.json").examples == Corpus.read(tmp_path / "b" / "a.jsonl").examples


@pytest.mark.parametrize(
    ("value", "step"),
    [
        ({"data": [{"text": "a"}]}, 'jq -c \'.\\["data"\\]'),
        ({"text": {"0": "a"}, "label": {"0": "b"}}, "orient='records'"),
        ({"text": ["a"], "label": ["b"]}, "orient='records'"),
        (["a", "b"], "orient='records'"),
        ([], "orient='records'"),
        ([["a", "b"]], "orient='records'"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_other_json_is_refused_with_the_next_step(tmp_path: Path, value: object, step: str, indent: int | None) -> None:
    with pytest.raises(CorpusError, match=step):
        Corpus.read(table(tmp_path, json.dumps(value, indent=indent), "a.json"))


def test_an_object_over_several_lines_is_refused_with_what_puts_it_on_one(tmp_path: Path) -> None:
    row = json.dumps({"text": "a b", "label": "x"}, indent=1)
    for text in (row, row + "\n" + row):
        with pytest.raises(CorpusError, match="jq -c"):
            Corpus.read(table(tmp_path, text, "a.json"))


@pytest.mark.parametrize("values", [[["a", "b"], ["a"], []], [["a", "b"], "a", []], [["a", "b", "c d"], ["a"], None]])
def test_lists_of_strings_that_are_no_words_are_sets_of_labels(tmp_path: Path, values: list[object]) -> None:
    rows = [{"text": "one two", "label": value} for value in values]
    corpus = Corpus.read(table(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "a.jsonl"))
    task = COLUMN("label")
    task.prepare(corpus)
    wanted = [None if v is None else (tuple(sorted(v)) if isinstance(v, list) else (v,)) for v in values]
    assert (task.kind, [task.labels(e)[0] for e in corpus.examples]) == ("labels", wanted)


@pytest.mark.parametrize("value", [[1, 0, 1], {"a": 1}, [None, "a", "b"], [[1, 2]]])
def test_a_field_that_is_no_column_is_refused_where_it_is_asked_for(tmp_path: Path, value: object) -> None:
    corpus = Corpus.read(table(tmp_path, json.dumps({"text": "one two", "v": value, "y": 1}) + "\n", "a.jsonl"))
    assert list(corpus.column_names()) == ["y"]
    with pytest.raises(CorpusError, match="'v' is no column of labels") as caught:
        COLUMN("v").prepare(corpus)
    assert "list of strings" in caught.value.next_step


def test_rows_below_blank_lines_and_breaks_in_cells_are_named_by_their_line(tmp_path: Path) -> None:
    for text, line in (
        ("text,a\n\nx,1\n\n,2\n", 5),
        ('text,a\n"x\ny",1\n,2\n', 4),
        ("\ntext,a\r\nx,1\r\n,2\r\n", 4),
        ("text,a\rx,1\r,2\r", 3),
        ("text,a\nx,1\n,2", 3),
    ):
        with pytest.raises(CorpusError, match="no text in column") as caught:
            Corpus.read(table(tmp_path, text))
        assert caught.value.where.endswith(f":{line}")


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ('{"messages": [{"role": "user", "content": "Hi there."}]}', {}),
        ('{"words": ["Hi", "there"]}', {}),
        ('{"forms": ["Hi", "there"], "tags": ["a", "b"]}', {"words": "forms"}),
    ],
)
def test_one_line_of_lists_is_one_row(tmp_path: Path, line: str, options: dict[str, str]) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(line + "\n")
    assert [example.text.split()[0] for example in Corpus.read(str(file), **options).examples] == ["Hi"]


def test_numbers_told_the_quick_way_are_those_of_the_patterns() -> None:
    cells = [
        "".join(part)
        for length in range(1, 5)
        for part in itertools.product("01.-+eE xnaif,_", repeat=length)
        if length < 4 or part[0] in "01.-+ "
    ]
    cells += [
        "inf",
        "nan",
        "-inf",
        "1e100",
        "1e-5",
        "0x1F",
        "9" * 18,
        "9" * 19,
        "1" + "0" * 17,
        "1" + "0" * 18,
        "\u0661",
        "1 ",
        "1\t",
    ]
    wrong = []
    for cell in cells:
        column = pa.chunked_array([["1", cell]])
        found = numbers_of(column).type
        integer, number = (bool(re.search(pattern, cell)) for pattern in (_INTEGER, _NUMBER))
        if found != (pa.int64() if integer else pa.float64() if number else pa.string()):
            wrong.append((cell, str(found)))
    assert not wrong


def test_numbers_are_told_alike_however_a_column_lies_in_memory() -> None:
    for cells in (["10", "2", "03"], ["1", None, "0.5"], ["7", "-0.5", "-00"], [None, "12", "0"], ["1", "2", "1e1"]):
        whole = numbers_of(pa.chunked_array([cells]))
        padded = pa.array(["0x", *cells, "1e9"]).slice(1, len(cells))
        for chunks in ([padded], [[cells[0]], cells[1:]], [cells[:2], [], cells[2:]]):
            assert numbers_of(pa.chunked_array(chunks, pa.string())).equals(whole)


def quotes_are_plain(text: str) -> bool:
    """The same said mark by mark."""
    edges = '",\n\r'
    is_open = False
    for place, mark in enumerate(text):
        if mark == '"':
            is_open = not is_open
            beside = text[place - 1 : place] if is_open else text[place + 1 : place + 2]
            if beside and beside not in edges:
                return False
        elif mark in "\n\r" and is_open:
            return False
    return not is_open


def test_quotation_marks_are_judged_as_one_after_the_other_in_whatever_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    judged = []
    for _ in range(200):
        cells = ["a", '"a"', '"a,""b"', '""', '"' + "ab" * rng.randint(1, 90) + '"']
        text = "".join(rng.choice(cells) + rng.choice(",,\n\r") for _ in range(rng.randint(1, 30)))
        for _ in range(rng.choice([0, 0, 1, 2])):
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(['"', "a", ",", "\n", ""]) + text[place + 1 :]
        judged.append(quotes_are_plain(text))
        data = np.frombuffer(text.encode(), np.uint8)
        for size in (3, 64, 100, 2**20):
            monkeypatch.setattr(_text, "_AT_ONCE", size)
            assert has_plain_quotes(data, ",") == judged[-1], (text, size)
            assert count(data, 34) == text.count('"')
    assert 0.1 < sum(judged) / len(judged) < 0.9


@pytest.mark.parametrize("first", ["1234567890123456700", "12345678901234567890", "1000000000000001"])
def test_codes_of_many_digits_stay_apart(tmp_path: Path, first: str) -> None:
    codes = [str(int(first) + k) for k in range(3)]
    for extra in ([], ["1.5"]):
        rows = [[f"word{k}", code] for k, code in enumerate([*codes, *extra])]
        corpus = Corpus.read(table(tmp_path, "text,author\n" + "".join(f"{t},{c}\n" for t, c in rows), "a.csv"))
        found = [example.columns["author"] for example in corpus.examples]
        assert [str(value) for value in found] == [*codes, *extra]


def test_a_row_without_a_split_among_rows_with_one_is_refused(tmp_path: Path) -> None:
    content = "text,split\na b,train\nc d,\ne f,test\n"
    with pytest.raises(CorpusError, match=r"without a split(.|\n)*a\.csv:3(.|\n)*split_column=none"):
        Corpus.read(table(tmp_path, content, "a.csv"))
    assert len(Corpus.read(table(tmp_path, content, "a.csv"), split_column="none").examples) == 3
    given = Corpus.read({"dev": table(tmp_path, "text,split\na b,\nc d,dev\n", "b.csv")})
    assert {example.split for example in given.examples} == {"dev"}


@pytest.mark.parametrize("values", [[1.0, float("inf")], [[1.0], [float("-inf")]]])
def test_infinite_numbers_of_a_parquet_file_are_refused(tmp_path: Path, values: list[object]) -> None:
    pd.DataFrame({"text": ["a b", "c d"], "x": values}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="'x' holds a number that is not finite"):
        Corpus.read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"text\na b\n", mtime=0), "gzip archive(.|\n)*gunzip"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"PAR1rest", "a Parquet file(.|\n)*name it .parquet"),
        (b"sep=;\ntext;label\na b;c\n", "delete the line, and read the file with(.|\n)*separator=';'"),
    ],
    ids=["gzip", "zip", "parquet", "spreadsheet"],
)
def test_what_is_no_table_of_text_is_called_what_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=reason):
        Corpus.read(tmp_path / "a.csv")
