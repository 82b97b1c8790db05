"""Laws of the nouns: seeds, sites, provenance, corpus, records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from probing.errors import BadParameter, CorpusError, InputError, UnknownName, UnknownSite
from probing.models.site import Site, select_sites
from probing.provenance import canonical_json, differing_keys, digest
from probing.results.probe import Comparison, Gain, MeasureResult, ProbeResult, Score, from_json, read_results, to_json
from probing.seeds import child_seed, generator
from probing.text.corpus import Corpus, Example


def test_child_seeds_depend_on_root_and_on_the_whole_path() -> None:
    seeds = {child_seed(0, "a", 1), child_seed(0, "a", 2), child_seed(1, "a", 1), child_seed(0, "a1"), child_seed(0)}
    assert len(seeds) == 5
    assert child_seed(0, "a", 1) == child_seed(0, "a", 1)
    assert generator(3, "x").random() == generator(3, "x").random()


def test_sites_sort_by_layer_not_by_letter() -> None:
    names = [f"resid.{layer}" for layer in range(12)] + ["embed", "final_norm"]
    assert select_sites("*", reversed(names)) == ("embed", *(f"resid.{i}" for i in range(12)), "final_norm")
    assert select_sites("resid.10, resid.2", names) == ("resid.2", "resid.10")
    assert str(Site.parse("resid.6")) == "resid.6"


@pytest.mark.parametrize("bad", ["resid.01", "../x", "Resid.1", "resid.", "", "a" * 40, "resid.1\n"])
def test_names_that_are_no_sites_are_refused(bad: str) -> None:
    with pytest.raises(UnknownSite):
        Site.parse(bad)


def test_canonical_json_is_one_form() -> None:
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"ä","b":1}\n'.encode()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == ["a.c", "a.d"]


def corpus(n: int = 40) -> Corpus:
    return Corpus(tuple(Example(str(i), f"text {i}", ((0, 4), (5, 6)), document=f"d{i // 4}") for i in range(n)))


def test_a_fingerprint_changes_with_text_words_and_order_but_not_with_labels_or_splits() -> None:
    base = corpus()
    first, *rest = base.examples
    assert base.with_random_split(1).fingerprint == base.fingerprint
    assert Corpus((replace(first, columns={"a": 1}), *rest)).fingerprint == base.fingerprint
    for changed in ((replace(first, text="Text 0"), *rest), (replace(first, words=((0, 4),)), *rest), (*rest, first)):
        assert Corpus(tuple(changed)).fingerprint != base.fingerprint


def test_a_random_split_keeps_documents_whole_and_is_reproducible() -> None:
    split = corpus().with_random_split(seed=3)
    assert split == corpus().with_random_split(seed=3)
    assert split != corpus().with_random_split(seed=4)
    homes: dict[str | None, set[str]] = {}
    for example in split.examples:
        homes.setdefault(example.document, set()).add(example.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert split.splits == ("train", "dev", "test")


def test_a_split_needs_three_groups_and_good_fractions() -> None:
    with pytest.raises(CorpusError):
        corpus(8).with_random_split()
    assert set(corpus(12).with_random_split().splits) == {"train", "dev", "test"}
    with pytest.raises(BadParameter):
        corpus().with_random_split(fractions=(0.5, 0.5, 0.5))


def result() -> ProbeResult:
    score = Score(0.9, 0.88, 0.92, 100, "fraction")
    gain = Score(0.3, 0.2, 0.4, 100, "fraction")
    comparisons = (
        Comparison("word_type", score, 0.95, gain, True, (0.5, 0.6), 0.7, None),
        Comparison("shuffled_labels", score, None, gain, False, (0.2,)),
    )
    gains = (Gain("prior", gain, 0.02, 0.01, 0.02),)
    measure = MeasureResult("accuracy", "test", score, True, comparisons=comparisons, gains=gains)
    return ProbeResult(
        "upos",
        "classes",
        "resid.1",
        "linear",
        (measure,),
        3,
        5,
        6,
        classes=("A", "B"),
        confusion=((5, 1), (0, 4)),
        provenance={"store_id": "x"},
    )


def test_a_result_survives_json() -> None:
    assert from_json(to_json(result())) == result()
    assert json.loads(to_json(result()))["task"] == "upos"


@pytest.mark.parametrize(
    "change", [{"seed_count": "many"}, {"measures": None}, {"classes": 3}, {"confusion": [["x"]]}, {"site": None}]
)
def test_results_with_fields_of_the_wrong_type_are_refused_with_their_line(tmp_path: Path, change: dict) -> None:
    file, good = tmp_path / "results.jsonl", to_json(result())
    file.write_text(f"{good}\n\n{json.dumps({**json.loads(good), **change})}\n")
    with pytest.raises(InputError, match=r"results\.jsonl:3") as caught:
        read_results(file)
    assert next(iter(change)) in caught.value.found


def test_a_chance_check_is_never_called_selectivity() -> None:
    word_type, shuffled = result().rows()
    assert (word_type["selectivity"], word_type["above_chance"]) == (0.3, None)
    assert (shuffled["selectivity"], shuffled["above_chance"]) == (None, 0.3)


def test_an_unscored_measure_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="accuracy on test"):
        result().measure("r2")
