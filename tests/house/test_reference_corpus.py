"""The reference corpus is what its script writes, and its labels agree with its words."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from probing.text.corpus import SPLITS, Corpus
from tests.conftest import REFERENCE, ROOT
from tests.samples.reference_samples import ANSWERS, Row, every, load_grammar, read, script

README = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
PAST = {"formerly", "previously", "originally", "earlier", "once", "historically"}
PRESENT = {"nowadays", "currently", "presently", "now", "still", "always"}
ANIMATE = {
    "painter",
    "teacher",
    "sailor",
    "farmer",
    "dancer",
    "doctor",
    "singer",
    "writer",
    "lawyer",
    "tiger",
    "rabbit",
    "falcon",
    "guard",
    "cook",
    "judge",
    "guide",
    "patient",
    "official",
    "native",
    "criminal",
    "baker",
    "spider",
    "hunter",
    "parrot",
}
PATTERN = re.compile(r"ADV DET (ADJ ){0,2}NOUN (ADP|PRON VERB) DET (ADJ ){0,3}NOUN ADV")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {split: read(split) for split in SPLITS}


@pytest.fixture(scope="module")
def grammar() -> ModuleType:
    return load_grammar()


def test_the_corpus_is_byte_for_byte_what_the_script_writes(tmp_path: Path) -> None:
    script("make_reference_corpus", str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {f"{split}.jsonl" for split in SPLITS}
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (REFERENCE / file.name).read_bytes(), file.name


def test_the_readme_has_the_checksums_of_the_files() -> None:
    said = dict(re.findall(r"\| `(reference/\S+)` .*`([0-9a-f]{64})` \|", README))
    assert set(said) == {*(f"reference/{split}.jsonl" for split in SPLITS), "reference/model/model.safetensors"}
    for name, digest in said.items():
        assert hashlib.sha256((ROOT / "datasets" / name).read_bytes()).hexdigest() == digest, name


def test_every_row_has_the_documented_columns(rows: dict[str, list[Row]]) -> None:
    columns = README.split("## Columns")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `([\w:]+)` \| (word|sentence|list of words) \|", columns, re.MULTILINE)
    assert len(documented) == 15
    for row in every(rows):
        assert list(row) == [name for name, _ in documented]
        for name, level in documented:
            if level == "sentence":
                assert isinstance(row[name], str) and row[name]
            else:
                assert isinstance(row[name], list) and len(row[name]) == len(row["words"])


def test_splits_share_no_document_text_or_identity(rows: dict[str, list[Row]]) -> None:
    assert {split: len(part) for split, part in rows.items()} == {"train": 1600, "dev": 400, "test": 400}
    for column in ("id", "text"):
        assert len({row[column] for row in every(rows)}) == 2400
    documents = [{row["document"] for row in part} for part in rows.values()]
    assert [len(names) for names in documents] == [400, 100, 100]
    assert len(set.union(*documents)) == 600


def test_every_document_has_each_number_with_each_tense_once(rows: dict[str, list[Row]]) -> None:
    found = Counter((r["document"], r["subject"], r["subject_number"], r["tense"]) for r in every(rows))
    assert set(found.values()) == {1}
    assert len(found) == 4 * len({document for document, *_ in found}) == 2400


def test_a_third_of_the_test_documents_has_a_subject_that_no_other_split_has(rows: dict[str, list[Row]]) -> None:
    known = {lemma for split in ("train", "dev") for row in rows[split] for lemma in row["lemma"]}
    assert len({row["document"] for row in rows["test"] if row["subject"] not in known}) == 35
    assert {row["subject"] for row in rows["dev"]} <= {row["subject"] for row in rows["train"]}


def test_word_labels_agree_with_the_words(rows: dict[str, list[Row]]) -> None:
    for row in every(rows):
        assert row["text"] == " ".join(row["words"])
        assert PATTERN.fullmatch(" ".join(row["upos"])), row["id"]
        for word, lemma, tag, number in zip(
            row["words"], row["lemma"], row["upos"], row["feature:Number"], strict=True
        ):
            if tag == "NOUN":
                assert (word, number) in {(lemma, "Sing"), (lemma + "s", "Plur")}, row["id"]
            elif tag == "VERB":
                past = lemma + ("d" if lemma.endswith("e") else "ed")
                assert (word, number) in {(lemma + "s", "Sing"), (lemma, "Plur"), (past, None)}, row["id"]
            else:
                assert (word, number) == (lemma, None), row["id"]
            assert (word == "the") == (tag == "DET") and (word == "that") == (tag == "PRON"), row["id"]


def test_sentence_labels_agree_with_the_words(rows: dict[str, list[Row]]) -> None:
    for row in every(rows):
        subject, attractor = (i for i, tag in enumerate(row["upos"]) if tag == "NOUN")
        assert row["words"][0] in (PAST if row["tense"] == "past" else PRESENT), row["id"]
        assert row["subject"] == row["lemma"][subject]
        assert row["document"] == f"{row['subject']}-{row['lemma'][attractor]}"
        assert (row["animacy"] == "animate") == (row["subject"] in ANIMATE), row["id"]
        for column, noun in (("subject_number", subject), ("attractor_number", attractor)):
            assert (row[column] == "plural") == row["words"][noun].endswith("s"), row["id"]
        assert row["template"] == ("relative" if "that" in row["words"] else "preposition")
        assert row["answer"] == ANSWERS[row["tense"], row["subject_number"]], row["id"]


def test_relative_verbs_agree_with_the_subject_and_the_tense(rows: dict[str, list[Row]]) -> None:
    seen = Counter()
    for row in every(rows):
        if row["template"] == "relative":
            form, lemma = (row[name][row["upos"].index("VERB")] for name in ("words", "lemma"))
            plural, past = row["subject_number"] == "plural", row["tense"] == "past"
            assert form.endswith("ed") if past else form == lemma + ("" if plural else "s"), row["id"]
            seen[row["answer"]] += 1
    assert min(seen.values()) > 200 and len(seen) == 4


def test_heads_are_the_tree_of_the_grammar(rows: dict[str, list[Row]]) -> None:
    for row in every(rows):
        tags = row["upos"]
        subject, attractor = (i + 1 for i, tag in enumerate(tags) if tag == "NOUN")
        verb = tags.index("VERB") + 1 if "VERB" in tags else None
        for place, (tag, head) in enumerate(zip(tags, row["head"], strict=True), 1):
            expected = {
                "ADV": subject,
                "DET": subject if place < subject else attractor,
                "ADJ": subject if place < subject else attractor,
                "NOUN": 0 if place == subject else verb or subject,
                "ADP": attractor,
                "PRON": verb,
                "VERB": subject,
            }[tag]
            assert head == expected, (row["id"], place)


def test_minimal_pairs_differ_in_one_property_only(grammar: ModuleType) -> None:
    random_ = random.Random(1)
    for _ in range(200):
        prompt = grammar.sample(random_)
        words = [token.form for token in prompt.tokens()]
        verb = 3 + len(prompt.adjectives) + 1
        for field, expected in (
            ("inanimate", {prompt.subject_position}),
            ("plural", {prompt.subject_position} | ({verb} if prompt.relative and prompt.present else set())),
            ("present", {0} | ({verb} if prompt.relative else set())),
        ):
            other = prompt.flipped(field)
            changed = {i for i, token in enumerate(other.tokens()) if token.form != words[i]}
            assert len(other.tokens()) == len(words) and changed == expected, (field, words)
            assert (other.answer == prompt.answer) == (field == "inanimate")


def test_the_corpus_reads_as_a_corpus() -> None:
    corpus = Corpus.read({split: str(REFERENCE / f"{split}.jsonl") for split in SPLITS})
    assert Counter(example.split for example in corpus.examples) == {"train": 1600, "dev": 400, "test": 400}
    for example, row in zip(corpus.examples, every({split: read(split) for split in SPLITS}), strict=True):
        assert list(example.forms) == row["words"]
        assert example.columns["animacy"] == row["animacy"]
        assert example.document == row["document"]
