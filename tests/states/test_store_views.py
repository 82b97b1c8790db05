"""Views of a store hold what `read` returns: arrays by site, a DataFrame, a data set of PyTorch."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import probing as pb
from probing.errors import BadParameter, ProvenanceMismatch, UnknownSite
from tests.conftest import REFERENCE


@pytest.fixture(scope="module")
def corpus() -> pb.Corpus:
    read = pb.Corpus.read(REFERENCE / "dev.jsonl", split_seed=0)[::4]
    marked = (replace(e, columns=dict(e.columns) | {"split": "a label"}) for e in read)
    return replace(read, examples=tuple(marked))


@pytest.fixture(scope="module")
def store(corpus: pb.Corpus, tmp_path_factory: pytest.TempPathFactory) -> pb.Store:
    model = pb.LanguageModel.load(str(REFERENCE / "model"))
    return pb.extract(model, corpus, sites="resid.0,resid.2", to=tmp_path_factory.mktemp("s") / "s", progress=False)


def test_sites_are_names_and_give_arrays(store: pb.Store) -> None:
    assert store.sites == ("resid.0", "resid.2") and store.sites[1] == "resid.2" and store.sites[:1] == ("resid.0",)
    assert "resid.2" in store.sites and list(store.sites) == ["resid.0", "resid.2"]
    assert np.array_equal(store.sites["resid.2"], store.read("resid.2"))
    with pytest.raises(UnknownSite, match=r"resid\.2"):
        store.sites["resid.3"]
    assert pickle.loads(pickle.dumps(store.sites)) == copy.deepcopy(store.sites) == store.sites


def test_a_data_frame_holds_rows_labels_and_states(store: pb.Store, corpus: pb.Corpus) -> None:
    frame = store.to_dataframe(corpus=corpus)
    assert len(frame) == store.n_rows
    for site in store.sites:
        columns = [f"{site}[{i}]" for i in range(store.width(site))]
        assert np.array_equal(frame[columns].to_numpy(), store.read(site))
    for row in (0, 7, store.n_rows - 1):
        example, word = corpus[int(store.rows.example[row])], int(store.rows.word[row])
        found = frame.iloc[row]
        assert (found.id, found.text, found.split) == (example.id, example.text, example.split)
        assert found.form == example.forms[word] and found.upos == example.word_columns["upos"][word]
        assert found.tense == example.columns["tense"] and found["column:split"] == "a label"
    chosen = np.array([5, 3])
    part = store.to_dataframe("resid.2", rows=chosen)
    assert [name for name in part if "[0]" in name] == ["resid.2[0]"] and part.word.tolist() == frame.word[
        chosen
    ].tolist()
    assert not [name for name in store.to_dataframe([]) if "[" in name]
    with pytest.raises(ProvenanceMismatch):
        store.to_dataframe(corpus=corpus[:3])


def test_a_frame_goes_into_probe(store: pb.Store, corpus: pb.Corpus) -> None:
    frame = store.to_dataframe("resid.2", corpus=corpus)
    states = frame.filter(like="resid.2[")
    found = pb.probe(
        states, frame.upos, groups=frame.group, keys=frame.form, split=frame.split, seeds=1, progress=False
    )
    trained = pb.train(store, corpus, task="upos", sites="resid.2", progress=False)
    values = [[r.judged("accuracy").score.value for r in results] for results in (found, trained)]
    assert values[0] == values[1]


def test_a_loader_reads_batches(store: pb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(0, store.n_rows, 3)
    data = store.torch_dataset("resid.0", y=rows * 2, rows=rows)
    assert isinstance(data, torch.utils.data.Dataset)
    read: list[int] = []
    of_store = pb.Store.read
    monkeypatch.setattr(pb.Store, "read", lambda self, site, r=None: (read.append(len(r)), of_store(self, site, r))[1])
    batches = list(DataLoader(data, batch_size=4))
    assert read == [len(y) for _, y in batches]
    assert torch.equal(torch.cat([x for x, _ in batches]), torch.from_numpy(of_store(store, "resid.0", rows)))
    assert torch.cat([y for _, y in batches]).tolist() == (rows * 2).tolist()
    assert torch.equal(store.torch_dataset("resid.0")[-1], torch.from_numpy(of_store(store, "resid.0"))[-1])
    with pytest.raises(BadParameter, match="do not fit"):
        store.torch_dataset("resid.0", y=[1])
    with pytest.raises(BadParameter, match="no numbers"):
        store.torch_dataset("resid.0", y=["a"] * store.n_rows)
    with pytest.raises(UnknownSite):
        store.torch_dataset("resid.9")


def test_reprs_are_short(store: pb.Store, corpus: pb.Corpus, tmp_path: Path) -> None:
    model = pb.LanguageModel.load(str(REFERENCE / "model"))
    for thing in (store, corpus, model):
        assert len(repr(thing)) < 300 and "\n" not in repr(thing) and thing._repr_html_()
    assert f"{store.n_rows:,} rows (word:mean) at resid.0, resid.2" in repr(store)
    assert repr(corpus).startswith(f"Corpus of {len(corpus):,} examples from dev.jsonl (")
    assert repr(model).startswith("LanguageModel model: ") and "float32 on cpu" in repr(model)
