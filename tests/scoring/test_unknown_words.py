"""Law: what reads texts whose words a model does not know warns once, in the same words, at the line of its user."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import probing as pb
from probing.errors import DoubtfulData
from tests.scoring.test_scoring import MODEL, Trained, model_of

WORDS = "% of the pieces of these texts are unknown to the model's tokenizer"
KNOWN, UNKNOWN = "nowadays the young doctor clearly", "Quux blorps the Zebra quietly"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_corpus: dict[str, Path]) -> Trained:
    return Trained(tmp_path_factory.mktemp("unknown"), small_corpus)


def doubts(call: Callable[[], Any]) -> list[str]:
    """Return the warnings on data that a call gives, all at the line of their user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    found = [one for one in caught if issubclass(one.category, DoubtfulData)]
    assert all(one.filename == __file__ for one in found)
    return [str(one.message) for one in found]


def watch(model: pb.LanguageModel, file: Path, text: str) -> None:
    with pb.watch(model, file):
        model.generate([text], max_new_tokens=2)
        model.generate([text], max_new_tokens=2)


def streamed(model: pb.LanguageModel, file: Path, text: str) -> None:
    from probing.scoring import recipe_of, stream

    batches: Iterator[list[str]] = iter([[text], [text]])
    for _ in stream(recipe_of(file, model), model, batches):
        pass


def test_every_reader_of_new_texts_warns_of_unknown_words_once(trained: Trained) -> None:
    model, file = model_of(), trained.of("mean")[0]
    for text, count in ((UNKNOWN, 1), (KNOWN, 0)):
        for call in (
            lambda text=text: pb.score(file, model, text),
            lambda text=text: streamed(model, file, text),
            lambda text=text: watch(model, file, text),
            lambda text=text: pb.inspect(model, [text, text + " clearly"], sites="resid.1", progress=False),
        ):
            found = doubts(call)
            assert [WORDS in one for one in found] == [True] * count


def test_records_say_which_share_of_a_text_is_unknown_and_what_is_flagged(trained: Trained) -> None:
    file = trained.of("mean")[0]
    known, unknown = pb.score(file, model_of(), [KNOWN, UNKNOWN]).records()
    assert known["unknown_pieces"] == 0 and unknown["unknown_pieces"] == pytest.approx(4 / 5)
    threshold = pb.load_probe(file).about["threshold"]
    assert known["threshold"] == threshold["value"] and known["flagged_for"] == threshold["label"] == known["scored"]
    assert known["flagged"] == (known["score"] > known["threshold"])


def test_extract_and_train_warn_of_inputs_that_coincide(tmp_path: Path) -> None:
    known = ["doctor", "painters", "doctors", "painter", "friend", "lawyers", "old", "young"]
    corpus = pb.Corpus(
        tuple(
            pb.Example(
                id=f"x{n}",
                text=f"Zebra{n} quarks {known[n % 8]} {known[n // 8 % 8]}",
                split=("train", "dev", "test")[n % 3],
                columns={"c": "ab"[n // 7 % 2]},
            )
            for n in range(240)
        )
    )
    model = model_of()
    found = doubts(
        lambda: pb.extract(model, corpus, sites="resid.1", rows="sentence:mean", to=tmp_path / "s", progress=False)
    )
    assert len(found) == 1 and WORDS in found[0]
    results: list[pb.ProbeResults] = []
    found = doubts(
        lambda: results.append(
            pb.train(tmp_path / "s", corpus, task="column:c", probes=["linear"], controls=[], progress=False)
        )
    )
    assert sum(WORDS in one for one in found) == 1 and len(found) == len(set(found)) > 1
    if "not judged" in repr(results[0]):
        assert "not judged (" in repr(results[0])


def test_the_command_warns_once(trained: Trained, warm: list[str]) -> None:
    words = [*warm, "-m", "probing", "score", str(trained.of("mean")[0]), "--model", MODEL, "--text", UNKNOWN]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr.count(WORDS) == 1
    assert json.loads(done.stdout)["unknown_pieces"] == pytest.approx(4 / 5)
