"""What a newcomer meets at the terminal: everything asked for is shown, and what makes a number doubtful is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import probing as pb
from probing import registry
from probing.cli.commands import app
from probing.cli.store_commands import _readable
from probing.registry import FOLDERS
from probing.reporting import finding
from probing.reporting.wording import needs
from probing.results.probe import from_json
from probing.states.store import Store
from probing.states.store.commit_record import unknown_share
from probing.states.store.format import REASONS
from probing.statistics.thresholds import Threshold
from probing.text.corpus import Corpus, Example
from probing.training.label_checks import data_warnings
from probing.verdicts.decodability import lone_test_label
from tests.conftest import REFERENCE, ROOT
from tests.samples.training_samples import labels_of

MODEL = str(REFERENCE / "model")
SUBJECTS = ("painter", "teacher", "sailor", "farmer", "dancer", "doctor", "singer", "writer", "lawyer", "judge")
TIMES = {"past": ("formerly", "earlier", "once"), "present": ("nowadays", "now", "still")}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def template_rows(times: dict[str, tuple[str, ...]] = TIMES, places: tuple[str, ...] = ("near", "under")) -> list[str]:
    """`text,tense,form,subject` in minimal pairs of words that the reference model knows."""
    return [
        f"{time} the {noun}{plural} {place} the garden,{tense},{'plural' if plural else 'singular'},{noun}"
        for noun in SUBJECTS
        for place in places
        for plural in ("", "s")
        for tense, words in times.items()
        for time in words
    ]


def table(folder: Path, rows: list[str], name: str = "my.csv", header: str = "text,tense,form,subject") -> Path:
    file = folder / name
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def extracted(folder: Path, file: Path, *more: object) -> Path:
    result = run(
        "extract",
        "--model",
        MODEL,
        "--corpus",
        file,
        "--rows",
        "sentence:mean",
        "--sites",
        "resid.2",
        "--to",
        folder / "s",
        "--quiet",
        *more,
    )
    assert result.exit_code == 0, result.output
    return folder / "s"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return extracted(folder, table(folder, template_rows()))


def trained(store: Path, to: Path, *more: object, file: Path | None = None) -> Result:
    return run("train", store, "--corpus", file or store.parent / "my.csv", "--to", to, "--quiet", *more)


def test_every_task_trained_is_printed_and_given_as_json(store: Path, tmp_path: Path) -> None:
    tasks = ("--task", "column:tense", "--task", "column:form")
    shown = trained(store, tmp_path / "r", *tasks)
    assert shown.exit_code == 0, shown.output
    assert all(re.search(rf"^{name} +\w", shown.stdout, re.M) for name in ("column:tense", "column:form"))
    full = trained(store, tmp_path / "r", *tasks, "--details").stdout
    assert "column:tense: accuracy" in full and "column:form: accuracy" in full
    lines = trained(store, tmp_path / "r", *tasks, "--json").stdout.splitlines()
    assert lines == (tmp_path / "r" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [from_json(line).task for line in lines] == ["column:tense"] * 7 + ["column:form"] * 7


def test_one_task_of_a_folder_prints_that_task_alone(store: Path, tmp_path: Path) -> None:
    trained(store, tmp_path / "r", "--task", "column:tense")
    lines = trained(store, tmp_path / "r", "--task", "column:form", "--json").stdout.splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"column:form"}


def test_pieces_the_model_does_not_know_are_counted_in_the_store_and_said(tmp_path: Path) -> None:
    rows = [
        f"{'Zebra' * i} the Walrus near a {noun},{tense}"
        for i in (1, 2, 3)
        for noun in SUBJECTS
        for tense in ("past", "present")
    ]
    file = table(tmp_path, rows, header="text,tense")
    shown = run("extract", "--model", MODEL, "--corpus", file, "--rows", "sentence:mean", "--to", tmp_path / "s")
    assert "warning: 50 % of the pieces of these texts are unknown" in shown.stderr
    opened = Store.open(tmp_path / "s")
    assert opened.unknown_pieces == pytest.approx(3 / 6)
    assert {count for count, _ in opened.inputs.values()} == {3}
    assert len({ids for _, ids in opened.inputs.values()}) == len(SUBJECTS) < len({row.split(",")[0] for row in rows})
    told = trained(tmp_path / "s", tmp_path / "r", "--task", "column:tense")
    assert "warning: column:tense: 50 % of the pieces" in " ".join(told.stdout.split())
    words = " ".join(told.stdout.split())
    assert re.search(
        r"warning: column:tense: (\d+) test rows of \1 have the same input as a row with another label", words
    )
    assert (
        "warning: column:tense: 50 %"
        in trained(tmp_path / "s", tmp_path / "r", "--task", "column:tense", "--json").stderr
    )
    page = run("report", tmp_path / "r")
    html = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert page.exit_code == 0 and "unknown to the model" in html and "whose input occurs with another label" in html


def test_known_words_and_labels_that_the_text_tells_give_no_warning(store: Path, tmp_path: Path) -> None:
    assert Store.open(store).unknown_pieces == 0.0 and Store.open(store).inputs == {}
    assert "warning" not in trained(store, tmp_path / "r", "--task", "column:tense").output


@pytest.mark.parametrize("role", ["states", "replay"])
def test_unknown_pieces_are_told_by_the_corpus_s_numbers_in_a_subset_too(tmp_path: Path, role: str) -> None:
    texts = ["the painter near the garden", "the zyx near the garden", "the painter near the qwv"]
    corpus = Corpus(tuple(Example(str(i), text, split="train") for i, text in enumerate(texts)))
    store = pb.extract(
        MODEL,
        corpus,
        sites="resid.1",
        rows="sentence:mean",
        subset=[0, 2],
        role=role,
        to=tmp_path / "s",
        progress=False,
    )
    assert {example: count for example, (count, _) in store.inputs.items()} == {2: 1}
    assert store.unknown_pieces == pytest.approx(1 / 10)


def test_a_shard_whose_record_does_not_count_pieces_leaves_the_share_unknown() -> None:
    said = {"pieces": 10, "inputs": [[0, 4, "aa"]]}
    assert unknown_share([said]) == 0.4
    assert unknown_share([said, {}]) is None and unknown_share([]) is None


def test_rows_conflict_by_input_and_word_and_not_by_example() -> None:
    def one(text: str, *tags: str) -> Example:
        return Example(text, text, ((0, 1), (2, 3)), word_columns={"upos": tags}, split="test")

    corpus = Corpus((one("a b", "X", "Y"), one("a b", "X", "Z"), one("c d", "Y", "Y"), one("e f", "X", "Y")))
    labels = replace(
        labels_of([0, 1, 0, 2, 1, 1, 0, 1], ["test"] * 8), example=np.arange(8) // 2, word=np.arange(8) % 2
    )
    assert data_warnings(labels, corpus, {}, None)["conflicting_inputs"] == 2
    same_ids = {2: (1, "same"), 3: (1, "same")}
    found = data_warnings(labels, corpus, same_ids, 0.5)
    assert (found["unknown_pieces"], found["conflicting_inputs"]) == (0.5, 4)


def test_the_table_of_the_page_of_data_holds_only_words_the_reference_model_knows() -> None:
    vocabulary = json.loads((REFERENCE / "model" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (block,) = re.findall(r"```csv\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.S)
    words = {word for line in block.splitlines()[1:] for word in line.split(",")[0].split()}
    assert len(words) > 10 and words <= set(vocabulary)
    assert str(sum(not word.startswith("[") for word in vocabulary)) in (ROOT / "docs" / "data.md").read_text(
        encoding="utf-8"
    )


def test_a_test_split_with_one_label_is_not_judged_and_the_terminal_says_why(tmp_path: Path) -> None:
    splits = {"train": 40, "dev": 24, "test": 24}
    lines = [
        f"{TIMES[tense][i % 3]} the {SUBJECTS[i % 10]} near the garden,{tense},{split}"
        for split, count in splits.items()
        for i in range(count)
        for tense in ("past" if split == "test" or i % 2 else "present",)
    ]
    file = table(tmp_path, lines, header="text,tense,split")
    store = extracted(tmp_path, file)
    brief = trained(store, tmp_path / "r", "--task", "column:tense", file=file).stdout
    assert "column:tense not judged" in " ".join(brief.split()) and "NOT JUDGED: all test labels are 'past'" in brief
    shown = trained(store, tmp_path / "r", "--task", "column:tense", "--details", file=file)
    said = " ".join(shown.stdout.split())
    assert "warning: NOT JUDGED: all test labels are 'past'." in said and "--split-seed" in said
    assert "NOT JUDGED: all test labels are 'past', so that nothing shows" in said and "is decodable from" not in said
    found = from_json((tmp_path / "r" / "results.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert found.facts["one_label"] == {"test": "past"}
    assert finding([found]).status == "not judged"


def test_labels_that_differ_by_case_or_space_alone_and_rows_without_label_are_said(tmp_path: Path) -> None:
    rows = template_rows()
    rows = [row.replace(",past,", ",Past,") if i % 40 == 0 else row for i, row in enumerate(rows)]
    rows[5] = rows[5].replace(",present,", ",,")
    file = table(tmp_path, rows)
    shown = trained(extracted(tmp_path, file), tmp_path / "r", "--task", "column:tense", file=file)
    said = " ".join(shown.stdout.split())
    assert "count as different: 'Past' and 'past'." in said
    assert "1 row of 240 has no label" in said
    assert doubts_of(("a b", "A  b", "c"))["alike_labels"] == [["a b", "A  b"]]


def doubts_of(classes: tuple[str, ...]) -> dict[str, object]:
    corpus = Corpus(tuple(Example(f"{i}", f"text {i}") for i in range(6)))
    split = ["train", "train", "train", "dev", "dev", "test"]
    return data_warnings(labels_of([0, 1, 2, 0, 1, 0], split, classes=classes), corpus, {}, None)


def test_the_only_label_of_a_split_is_counted_by_split() -> None:
    assert doubts_of(("x", "y", "z"))["one_label"] == {"test": "x"}


def test_a_label_on_a_single_test_row_is_not_judged() -> None:
    corpus = Corpus(tuple(Example(f"{i}", f"text {i}") for i in range(9)))
    split, classes = [*("train",) * 4, "dev", "dev", "test", "test", "test"], ("neg", "pos")
    alone, several = ([0, 1, 0, 1, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 0, 0, 1, 1])
    found = data_warnings(labels_of(alone, split, classes=classes), corpus, {}, None)
    assert lone_test_label(found) == "pos" and lone_test_label({}) is None
    assert lone_test_label(data_warnings(labels_of(several, split, classes=classes), corpus, {}, None)) == "neg"
    (needed,) = needs(sentences=None, only_label=None, has_baseline=True, lone_label="pos")
    assert "'pos'" in needed


def test_list_gives_names_as_a_spec_needs_them_and_words_for_users() -> None:
    shown = run("list", "controls").stdout
    assert "word_type" in shown and "shuffled_labels" in shown
    assert all(".py" not in run("list", folder).stdout for folder in FOLDERS)


def test_list_says_what_there_is_and_the_options_of_each_member() -> None:
    everything = run("list").stdout
    assert all(name in everything for name in (*FOLDERS, "word_type", "mass_mean", "leace"))
    assert run("list", "probes", "k_nearest").stdout.startswith("k_nearest:k=10,metric=euclidean\n\nPredicts the label")
    for folder in FOLDERS:
        for name in registry.names(folder):
            told = json.loads(run("list", folder, name, "--json").stdout)
            assert told["written"].partition(":")[0] == name and told["documentation"], (folder, name)
    assert "did you mean 'mlp'" in run("list", "probes", "mlpp").stderr


def test_list_says_what_a_member_is_whose_file_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the probe of the README, which has the docstring of its class alone."""
    monkeypatch.setattr(registry.get("probes", "k_nearest"), "__doc__", None)
    assert "Predicts the label that most of" in run("list", "probes").stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_list_says_the_whole_first_sentence_of_every_member(folder: str) -> None:
    for name, said in json.loads(run("list", folder, "--json").stdout).items():
        documented = " ".join((registry.get(folder, name).__doc__ or "").split())
        assert documented.startswith(said) and said.endswith("."), (name, said)
        rest = documented.removeprefix(said).lstrip()
        assert rest == "" or not rest[0].islower(), (name, rest)
    assert folder != "probes" or "which can find what a linear probe cannot." in " ".join(
        run("list", folder).stdout.split()
    )


def test_extract_prints_short_ids_and_round_numbers(tmp_path: Path) -> None:
    file = table(tmp_path, template_rows())
    flags = ("extract", "--model", MODEL, "--corpus", file, "--sites", "resid.2", "--to", tmp_path / "s", "--quiet")
    shown = run(*flags).stdout
    info = json.loads(run(*flags, "--json").stdout)
    assert info["store_id"] not in shown and info["store_id"][:12] in shown
    assert f"{info['absmax']['resid.2']:.3g}" in shown and str(info["absmax"]["resid.2"]) not in shown
    whole = " ".join(run("store", "info", tmp_path / "s").stdout.split())
    assert "unknown pieces 0.0 %" in whole and info["store_id"] in whole


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_to_leave_something_out_is_explained(reason: str) -> None:
    info = {"unknown_pieces": None, "absmax": {}, "skipped": {reason: 2}, "missing_words": {}}
    ((said, count),) = _readable(info, brief=False)["skipped"].items()
    assert count == 2 and said.startswith(f"{reason} (") and "?" not in said


def test_the_lines_of_the_page_of_data_for_labels_of_sentences_run_in_python(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(pb\.train\(store, corpus, task=\"column:tense\".*?\))`", text)
    assert 'rows="sentence:mean"' in text
    corpus = pb.Corpus.read(table(tmp_path, template_rows()))
    model = pb.LanguageModel.load(MODEL)
    store = pb.extract(model, corpus, rows="sentence:mean", sites="resid.2", to=tmp_path / "s")
    result = eval(line.replace("to=...", "to=None"), {"pb": pb, "store": store, "corpus": corpus})
    assert result.selectivity("accuracy").value > 0.2


def test_the_saved_probe_and_its_threshold_are_printed(store: Path, tmp_path: Path) -> None:
    asked = ("--task", "column:tense", "--probe", "linear", "--threshold", "fpr=0.2")
    shown = trained(store, tmp_path / "r", *asked)
    assert shown.exit_code == 0, shown.output
    line = next(one for one in shown.stdout.splitlines() if "is saved in" in one)
    place = re.search(r"is saved in (\S+\.json)", line)
    assert place and line.startswith("column:tense: linear at resid.2 ")
    threshold = Threshold.of(pb.load_probe(place[1]).about["threshold"])
    assert str(threshold) in line and f"{threshold.value:.4g}" in line and "0.2 of other rows may be" in line
    assert re.search(r"chosen on \d+ of dev", line) and re.search(
        r"false positives [\d.e-]+ \[[\d.e-]+, [\d.e-]+\]", line
    )
    lines = [json.loads(one) for one in trained(store, tmp_path / "r", *asked, "--json").stdout.splitlines()]
    saved = [one for one in lines if "saved" in one]
    assert [one["threshold"]["value"] for one in saved] == [threshold.value] and saved[0]["saved"] == place[1]


def test_a_probe_of_two_classes_without_a_threshold_says_what_one_needs(store: Path, tmp_path: Path) -> None:
    asked = ("--task", "column:tense", "--task", "column:subject", "--probe", "linear")
    lines = [one for one in trained(store, tmp_path / "r", *asked).stdout.splitlines() if "is saved in" in one]
    tense, subject = lines
    assert "no threshold: --threshold fpr=0.01" in tense and "99 rows of the other class" in tense
    assert re.search(r"dev has \d+ rows of both classes in \d+ ", tense)
    assert "threshold" not in subject
    few = trained(store, tmp_path / "r", *asked[:2], "--threshold", "fpr=0.001")
    assert few.exit_code == 1 and "at least 999" in " ".join(few.stderr.split())
