"""Files as other programs write them, from the states of a store."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save_file

from probing.states.store import Store
from probing.text.corpus import Corpus


def sentences(store: Store, corpus: Corpus) -> list[np.ndarray]:
    """States [layers, words, width] of each sentence, layers in site order."""
    whole = np.stack([store.read(site) for site in store.sites])
    counts = np.bincount(store.rows.example, minlength=len(corpus))
    return np.split(whole, np.cumsum(counts)[:-1], axis=1)


def neurox_hdf5(path: Path, store: Store, corpus: Corpus) -> Path:
    """One data set a sentence, and a string that maps sentences to their numbers."""
    index: dict[str, str] = {}
    with h5py.File(path, "w") as file:
        for number, states in enumerate(sentences(store, corpus)):
            file.create_dataset(str(number), data=states)
            text, name, count = " ".join(corpus.examples[number].forms), "", 1
            name = text
            while name in index:
                count += 1
                name = f"{text} (Occurrence {count})"
            index[name] = str(number)
        file.create_dataset("sentence_to_index", (1,), h5py.string_dtype())[0] = json.dumps(index)
    return path


def neurox_json(path: Path, store: Store, corpus: Corpus) -> Path:
    """One JSON object a sentence."""
    lines = []
    for number, states in enumerate(sentences(store, corpus)):
        features = [
            {
                "token": form,
                "layers": [
                    {"index": layer, "values": [round(float(x), 8) for x in rows[word]]}
                    for layer, rows in enumerate(states)
                ],
            }
            for word, form in enumerate(corpus.examples[number].forms)
        ]
        lines.append(json.dumps({"linex_index": number, "features": features}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def safetensors_with_offset(path: Path, store: Store, corpus: Corpus) -> Path:
    """A tensor for each site, and where the rows of each sentence begin."""
    counts = np.bincount(store.rows.example, minlength=len(corpus))
    offset = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    save_file({site: store.read(site) for site in store.sites} | {"offset": offset}, path)
    return path


def bare_npy(path: Path, store: Store, corpus: Corpus) -> Path:
    """A folder with an array for each site, rows in the order of the corpus."""
    path.mkdir()
    for site in store.sites:
        np.save(path / f"{site}.npy", store.read(site))
    return path
