"""Contexts of latents are those of the largest activations; disagreements are rows where latent and probe differ."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.dictionaries._beside_probe import mean_differences
from probing.dictionaries.contexts import BANDS
from probing.errors import BadParameter, CorpusError, InputError, ProbingWarning, ProvenanceMismatch, UnknownName
from probing.jobs.dictionary_training import _numbers
from probing.neuronpedia.reading import read_written
from probing.neuronpedia.schemas import FeatureList
from probing.reporting.latent_sections import apart, contexts_section
from probing.results.latent_contexts import TOP, read_contexts
from probing.states.store import Store
from tests.conftest import REFERENCE

MODEL, SITE = str(REFERENCE / "model"), "resid.2"


@pytest.fixture(scope="module")
def corpus(small_corpus: dict[str, Path]) -> pb.Corpus:
    return pb.Corpus.read(small_corpus)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corpus: pb.Corpus) -> Store:
    place = tmp_path_factory.mktemp("tokens") / "store"
    return pb.extract(pb.LanguageModel.load(MODEL), corpus, to=place, sites=SITE, rows="piece", progress=False)


@pytest.fixture(scope="module")
def dictionary(store: Store) -> pb.Dictionary:
    """Random directions: what they mean is nothing, so that laws are about the contexts alone."""
    states = store.read(SITE)
    return pb.Dictionary.random(states.shape[1], 96, l0=6, states=states, seed=0)


def tops(dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus, **options: Any) -> Any:
    return pb.top_contexts(dictionary, store, corpus, **{"site": SITE, "progress": False} | options)


def test_the_top_contexts_are_the_largest_activations(
    dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus, tmp_path: Path
) -> None:
    dense = dictionary.encode(store.read(SITE)).toarray()
    often = np.argsort(-(dense > 0).sum(0))[:2].tolist()
    found = tops(dictionary, store, corpus, latents=often, top=4, per_band=3, to=tmp_path)
    for facts in found.facts:
        values = dense[:, facts.latent]
        assert facts.density == pytest.approx((values > 0).mean()) and facts.largest == pytest.approx(values.max())
        own = [one for one in found.contexts if one.latent == facts.latent]
        best = [one.activation for one in own if one.band == TOP]
        np.testing.assert_allclose(best, np.sort(values)[::-1][:4], rtol=1e-6)
        for low, high in BANDS:
            drawn = [one for one in own if one.band == f"{100 * low:.0f}–{100 * high:.0f} %"]
            limits = np.quantile(values[values > 0], [low, high])
            assert len(drawn) == 3
            assert all(limits[0] - 0.1 <= one.activation <= limits[1] + 0.1 for one in drawn)
        for one in own:
            text = corpus[one.example].text
            assert text[one.char_start : one.char_end] == one.token
            assert f"{one.left}{one.token}{one.right}" in text
            rows = np.flatnonzero((store.rows.example == one.example) & (store.rows.char_start == one.char_start))
            assert any(values[row] == pytest.approx(one.activation) for row in rows)
    assert read_contexts(tmp_path) == found
    table = pd.read_parquet(tmp_path / "latent_contexts.parquet")
    assert len(table) == len(found.contexts) and set(table["latent"]) == set(often)
    assert "Latents of resid.2" in pb.report(tmp_path).read_text(encoding="utf-8")


def test_a_planted_latent_of_a_property_is_chosen_and_agrees_with_the_probe(
    store: Store, corpus: pb.Corpus, tmp_path: Path
) -> None:
    """A latent along the difference of class means of number is the one that differs most; and where it and the probe
    disagree, the table says what each says.
    """
    task = "column:subject_number"
    rows, labels = _labelled(store, corpus, "subject_number")
    states = store.read(SITE)
    shift = states[rows[labels == "plural"]].mean(0) - states[rows[labels == "singular"]].mean(0)
    middle = (states[rows[labels == "plural"]].mean(0) + states[rows[labels == "singular"]].mean(0)) / 2
    drawn = np.random.default_rng(1).standard_normal((40, len(shift)))
    drawn = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    drawn[11] = shift / np.linalg.norm(shift)
    planted = pb.Dictionary(
        architecture="standard",
        encoder=drawn.T,
        encoder_bias=np.zeros(40),
        decoder=drawn,
        decoder_bias=middle,
        subtract_decoder_bias=True,
    )
    found = tops(planted, store, corpus, task=task, rows="sentence:last", count=3, label="plural", to=tmp_path)
    assert found.facts[0].latent == 11 and "difference of means" in found.chosen_by
    beside = found.probes[0]
    assert beside.sign == 1 and beside.latent_accuracy > 0.8
    total = beside.both + beside.probe_only + beside.latent_only + beside.neither
    assert total == sum(1 for one in corpus if one.split == "test")
    for one in found.disagreements:
        own = next(probe for probe in found.probes if probe.latent == one.latent)
        says = (one.activation > own.threshold) == (own.sign > 0)
        assert says == (one.kind == "latent only") and (one.probe_score > 0) == (one.kind == "probe only")
        assert corpus[one.example].columns["subject_number"] == one.label and corpus[one.example].split == "test"
    counts = {
        (p.latent, kind): n
        for p in found.probes
        for kind, n in (("probe only", p.probe_only), ("latent only", p.latent_only))
    }
    for (latent, kind), count in counts.items():
        assert sum((one.latent, one.kind) == (latent, kind) for one in found.disagreements) == min(count, 10)
    assert (tmp_path / "latent_disagreements.parquet").is_file()


def _labelled(store: Store, corpus: pb.Corpus, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The last row of each text of train, and its label."""
    last = np.flatnonzero(np.append(np.diff(store.rows.example) != 0, True))
    keep = [row for row in last.tolist() if corpus[int(store.rows.example[row])].split == "train"]
    return np.array(keep), np.array([corpus[int(store.rows.example[row])].columns[column] for row in keep])


def test_the_page_states_the_cut_of_each_latent_and_marks_only_what_is_there(
    dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus
) -> None:
    found = tops(dictionary, store, corpus, task="column:subject_number", rows="sentence:last", count=6)
    assert found.disagreements and {one.token for one in found.disagreements} == {""}  # rows are whole texts
    section = contexts_section(found, "a")
    assert "«»" not in str(section)
    beside = next(block for block in section.blocks if tuple(getattr(block, "head", ()))[:2] == ("latent", "active on"))
    cuts = [row[2] for row in beside.rows]
    for one, cut in zip(found.probes, cuts, strict=True):
        assert cut == f"{'above' if one.sign > 0 else 'at most'} {one.threshold:.2f}"
        assert str(cut) in str(apart(found, one)) or "agree on every row" in str(apart(found, one))
    none = replace(found, disagreements=())
    assert all("agree on every row" in str(apart(none, one)) for one in found.probes)


def test_mean_differences_are_in_standard_deviations() -> None:
    from scipy.sparse import csr_array

    dense = np.random.default_rng(0).random((50, 6)).astype(np.float32)
    dense[dense < 0.5], dense[:, 4] = 0.0, 0.0
    is_label = np.arange(50) % 3 == 0
    expected = (dense[is_label].mean(0) - dense[~is_label].mean(0)) / np.where(dense.std(0) > 0, dense.std(0), np.inf)
    np.testing.assert_allclose(mean_differences(csr_array(dense), is_label), expected, rtol=1e-5, atol=1e-7)


def test_an_export_names_latents_and_is_written_back_as_a_list(
    dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    owner = {"modelId": "reference", "layer": "2-res"}
    for part, line in (
        ("features", {"index": "5", "frac_nonzero": 0.25, "maxActApprox": 3.0}),
        ("explanations", {"index": "5", "description": "a made-up <name>"}),
        ("activations", {"index": 5, "tokens": ["a", " b"], "values": [0.0, 1.0]}),
    ):
        (export / part).mkdir(parents=True)
        (export / part / "batch-0.jsonl").write_text(json.dumps(owner | line) + "\n", encoding="utf-8")
    with pytest.warns(ProbingWarning, match="latents up to 5, the dictionary up to 95"):  # it may be a part
        found = tops(dictionary, store, corpus, latents=[5, 6], export=export, to=tmp_path / "to")
    assert (found.facts[0].name, found.facts[0].exported_density) == ("a made-up <name>", 0.25)
    assert found.facts[0].exported_contexts == ("a« b»",) and found.facts[0].page.endswith("/reference/2-res/5")
    assert found.facts[1].name == found.facts[1].page == ""
    page = pb.report(tmp_path / "to").read_text(encoding="utf-8")
    assert "a made-up &lt;name&gt;" in page and "<name>" not in page and "neuronpedia.org/reference/2-res/5" in page
    body = read_written(tmp_path / "to" / "neuronpedia" / "list-0.json", FeatureList)
    assert [one.index for one in body.featuresToAdd] == ["5", "6"] and "active on" in body.featuresToAdd[0].description
    (export / "features" / "batch-0.jsonl").write_text(json.dumps(owner | {"index": 960}) + "\n", encoding="utf-8")
    with pytest.raises(ProvenanceMismatch, match="another dictionary"):
        tops(dictionary, store, corpus, export=export)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"latents": [96]}, BadParameter),
        ({"latents": []}, BadParameter),
        ({"top": 0}, BadParameter),
        ({"count": 0}, BadParameter),
        ({"task": "column:nothing"}, UnknownName),
        ({"task": "column:subject_number", "rows": "sentence:last", "label": "dual"}, UnknownName),
        ({"probe": "none.json"}, Exception),
    ],
)
def test_wrong_options_are_refused(
    dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises((error, CorpusError)):
        tops(dictionary, store, corpus, **options)


def test_a_dictionary_of_another_width_or_corpus_is_refused(store: Store, corpus: pb.Corpus, tmp_path: Path) -> None:
    states = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    with pytest.raises(BadParameter, match="do not fit the dictionary"):
        tops(pb.Dictionary.random(8, 40, l0=2, states=states, seed=0), store, corpus)
    (tmp_path / "latent_contexts.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="no contexts of latents"):
        read_contexts(tmp_path)


def test_the_commands_print_train_and_tops(store: Store, corpus_flags: list[str], tmp_path: Path) -> None:
    run = CliRunner()
    options = ["--site", SITE, "--latents", "96", "--k", "6", "--epochs", "2", "--batch", "128", "--quiet"]
    made = run.invoke(app, ["dictionary", "train", str(store.path), *options, "--to", str(tmp_path / "d")])
    assert made.exit_code == 0, made.output
    for words in ("BatchTopK, 96 latents", "random", "unexplained", "report.html"):
        assert words in made.stdout
    given = [str(tmp_path / "d"), "--store", str(store.path), *corpus_flags, "--quiet"]
    task = ["--task", "column:subject_number", "--rows", "sentence:last", "--label", "plural", "--count", "2"]
    shown = run.invoke(app, ["dictionary", "tops", *given, *task, "--details", "--to", str(tmp_path / "t")])
    assert shown.exit_code == 0, shown.output
    assert "latent" in shown.stdout and "balanced accuracy" in shown.stdout.replace("\n", " ")
    lines = run.invoke(app, ["dictionary", "tops", *given, "--latent", "3:5", "--to", str(tmp_path / "j"), "--json"])
    assert lines.exit_code == 0, lines.output
    assert [one["latent"] for one in json.loads(lines.stdout)["facts"]] == [3, 4]
    wrong = run.invoke(app, ["dictionary", "tops", *given, "--latent", "x", "--to", str(tmp_path / "w")])
    assert wrong.exit_code != 0 and "no number of a latent" in wrong.output


@pytest.mark.parametrize("latents", [[1.5], ["a"], [True], [-1], [96], [], [None]])
def test_what_is_no_number_of_a_latent_is_a_typed_error(
    latents: list[Any], dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus
) -> None:
    with pytest.raises(BadParameter, match="no such latent"):
        tops(dictionary, store, corpus, latents=latents)


def test_options_of_another_type_or_range_are_refused(
    dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus
) -> None:
    for name in ("top", "per_band", "window", "count", "disagreements", "seed"):
        for value in (-1, 1.5, "2", None, True):
            with pytest.raises(BadParameter):
                tops(dictionary, store, corpus, **{name: value})


@pytest.mark.parametrize(
    ("given", "numbers"),
    [(["7"], [7]), (["5:8"], [5, 6, 7]), (["5:6", "1"], [5, 1])]
    + [([text], None) for text in ("8:5", "5:5", "a", "5:", ":5", "-1", "1:2:3", "9" * 5000, "1.5")],
)
def test_a_range_is_without_its_end_and_never_empty(given: list[str], numbers: list[int] | None) -> None:
    if numbers is not None:
        assert _numbers(given) == numbers
        return
    with pytest.raises(BadParameter, match="no number of a latent"):
        _numbers(given)


@pytest.mark.parametrize(("factor", "is_apart"), [(0.02, True), (0.5, False), (1.0, False), (2.0, False), (50.0, True)])
def test_an_export_of_other_densities_is_warned_of(
    dictionary: pb.Dictionary, store: Store, corpus: pb.Corpus, tmp_path: Path, factor: float, is_apart: bool
) -> None:
    dense = (dictionary.encode(store.read(SITE)).toarray() > 0).mean(0)
    latent = int(dense.argmax() if factor < 1 else np.abs(dense - 0.015).argmin())
    assert len(store.rows.example) * dense[latent] > 10 / 0.09 or factor >= 1
    owner = {"modelId": "reference", "layer": "2-res"}
    facts = [
        {"index": str(k), "frac_nonzero": float(min(1, dense[k] * factor)), "maxActApprox": 3.0} for k in (latent, 95)
    ]
    for part, lines in (("features", facts), ("explanations", []), ("activations", [])):
        (tmp_path / part).mkdir()
        (tmp_path / part / "batch-0.jsonl").write_text("".join(json.dumps(owner | one) + "\n" for one in lines))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tops(dictionary, store, corpus, latents=[latent], export=tmp_path)
    assert any("contradicts these states in 1 of 1 latents" in str(one.message) for one in caught) == is_apart


@pytest.mark.parametrize("kind", ["silent", "constant"])
def test_a_latent_that_separates_nothing_has_no_direction(
    store: Store, corpus: pb.Corpus, kind: str, tmp_path: Path
) -> None:
    """It says yes to no row, and neither page nor terminal says that it is active on a class."""
    width = store.width(SITE)
    bias = np.array([-1e9 if kind == "silent" else 1.0, 0.0])
    own = {"encoder": np.zeros((width, 2)), "decoder": np.ones((2, width)), "decoder_bias": np.zeros(width)}
    own["encoder"][0, 1] = 1.0
    made = pb.Dictionary(architecture="standard", encoder_bias=bias, **own)
    options = {"latents": [0, 1], "rows": "sentence:last", "task": "column:subject_number", "to": tmp_path}
    found = tops(made, store, corpus, **options)
    (idle, other) = found.probes
    assert idle.sign == 0 and idle.both == idle.latent_only == 0 and other.sign != 0
    page = pb.report(tmp_path).read_text(encoding="utf-8")
    said = "is never active" if kind == "silent" else "separates no rows of train"
    assert f"Latent 0 {said}" in page and "Latent 0 (" not in page
