"""Labels at random of texts that differ by a word or two are known from their neighbours, and not called decodable."""

from __future__ import annotations

import numpy as np
import pytest

import probing as pb
from probing.probes.nearest_text import NearestTextProbe, NearestTextRegressorProbe
from probing.reporting.findings import judge
from probing.reporting.task_results import by_task

WORDS = [f"{a}{b}" for a in ("riv", "sto", "gar", "lig", "mus", "for") for b in ("er", "ne", "den", "ht", "ic")]
HAN = list("我你他她它们在这里那看见听说大小山水火木金土天地人心手足口目日月")
LABELS = {
    "classes": lambda rng, n: rng.choice(["a", "b"], n),
    "three classes": lambda rng, n: rng.choice(["a", "b", "c"], n),
    "numbers": lambda rng, n: rng.standard_normal(n),
}


def variants(rng, words, glue, copies=4, bases=150):
    """Texts of 12 words, each with copies in which one word is drawn anew, and the number of the text of each."""
    texts, of = [], []
    for base in range(bases):
        kept = list(rng.choice(words, 12))
        for _ in range(copies):
            here = list(kept)
            here[rng.integers(12)] = rng.choice(words)
            texts.append(glue.join(here))
            of.append(base)
    return np.array(texts, dtype=object), np.array(of)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("words, glue", [(WORDS, " "), (HAN, "")], ids=["words", "Han"])
def test_random_labels_of_near_copies_are_not_called_decodable(words, glue, labels):
    rng = np.random.default_rng(7)
    texts, of = variants(rng, words, glue)
    y = LABELS[labels](rng, of.max() + 1)[of]
    # States that recognise the text that a copy was made of, as those of any model do.
    states = rng.standard_normal((of.max() + 1, 48))[of] + 0.3 * rng.standard_normal((len(of), 48))
    probes = ["ridge"] if labels == "numbers" else ["linear", "k_nearest:k=3"]
    results = pb.probe(states.astype(np.float32), y, texts=texts, probes=probes, controls=[], progress=False)
    (task,) = by_task(results)
    statuses = [outcome.status for one in task.results if (outcome := judge(task, one))]
    assert statuses and all(status.startswith(("not beyond", "not shown")) for status in statuses)


def test_the_nearest_are_those_of_all_pairs_and_a_saved_probe_gives_the_same(tmp_path):
    rng = np.random.default_rng(1)
    texts, of = variants(rng, WORDS, " ", bases=60)
    y = rng.integers(3, size=60)[of]
    order = rng.permutation(len(texts))
    train, test = order[:160], order[160:]
    probe = NearestTextProbe(k=5).fit(texts[train], y[train])
    rows, queries = (probe._features(texts[part].tolist()).toarray() for part in (train, test))
    near = np.argsort(-np.round(queries @ rows.T, 9), axis=1, kind="stable")[:, :5]
    counts = np.stack([(y[train][near] == label).sum(1) for label in range(3)], axis=1)
    first = y[train][near[:, 0]]
    wanted = np.argmax(counts + 0.5 * (np.arange(3) == first[:, None]), axis=1)
    assert np.array_equal(probe.predict(texts[test]), wanted)
    assert np.abs(probe.predict_proba(texts[test]) - (counts + 1) / 8).max() < 1e-5
    probe.save(tmp_path / "probe")
    again = pb.load_probe(tmp_path / "probe")
    assert np.array_equal(again.predict_log_proba(texts[test]), probe.predict_log_proba(texts[test]))
    numbers = y + 0.5
    regressor = NearestTextRegressorProbe(k=5).fit(texts[train], numbers[train])
    assert np.allclose(regressor.predict(texts[test]), numbers[train][near].mean(1))


def test_the_number_of_neighbours_is_chosen_on_dev():
    rng = np.random.default_rng(2)
    texts, of = variants(rng, WORDS, " ", bases=100)
    order = rng.permutation(len(texts))
    train, dev = order[:300], order[300:]
    alike = rng.integers(2, size=100)[of]  # known from a few near copies
    common = np.where(rng.random(len(texts)) < 0.3, 1, 0)  # known only as rare
    counts = [NearestTextProbe().fit(texts[train], y[train], dev=(texts[dev], y[dev])).k_ for y in (alike, common)]
    assert counts[0] <= 3 and counts[1] == 30
