"""States, labels and objectives that the benchmarks of probes share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from probing.seeds import generator
from probing.states.store import ShardContent, Store, StoreWriter

SPLITS = ("train", "test")


def prepared(states: Path, conllu: Path, model: str) -> None:
    """Make word-mean states as .npy files in `states`, and the seconds of it, unless they lie there."""
    states.mkdir(parents=True, exist_ok=True)
    if not (states / "test.upos.npy").exists():
        make_states(conllu, model, states)


def objective(Z: np.ndarray, codes: np.ndarray, W: np.ndarray, b: np.ndarray) -> float:
    """Mean log loss + ½‖W‖²/N, all in float64; more than two classes."""
    total = 0.0
    for low in range(0, len(Z), 8192):
        logits = torch.from_numpy(Z[low : low + 8192].astype(np.float64) @ W.astype(np.float64) + b)
        wanted = torch.from_numpy(codes[low : low + 8192])
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    return (total + 0.5 * float((W.astype(np.float64) ** 2).sum())) / len(Z)


def label_sets(states: Path, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The task's `(train, test)` codes, then one random label a word type for each draw."""
    words = [np.load(states / f"{split}.words.npy") for split in SPLITS]
    tags = [np.load(states / f"{split}.upos.npy") for split in SPLITS]
    classes = np.unique(tags[0])
    task = tuple(np.searchsorted(classes, part) for part in tags)
    share = np.bincount(task[0]) / len(task[0])
    types = np.unique(np.concatenate(words))
    sets = [task]
    for draw in range(draws):
        label = generator(0, "draw", draw).choice(len(share), size=len(types), p=share)
        sets.append(tuple(label[np.searchsorted(types, part)] for part in words))
    return sets


def make_states(conllu: Path, model: str, to: Path) -> None:
    """Word-mean states of every layer by plain transformers; 64 sentences of like length at a time."""
    import time

    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModel.from_pretrained(model).eval()
    forward = 0.0
    for split in SPLITS:
        sentences = read(conllu / f"en_lines-{split}.conllu")
        states: dict[int, np.ndarray] = {}
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        for low in range(0, len(order), 64):
            chosen = order[low : low + 64]
            texts = [[word for word, _ in sentences[i]] for i in chosen]
            batch = tokenizer(texts, is_split_into_words=True, return_tensors="pt", padding=True, truncation=True)
            begin = time.perf_counter()
            with torch.inference_mode():
                layers = torch.stack(network(**batch, output_hidden_states=True).hidden_states, 1).numpy()
            forward += time.perf_counter() - begin
            for place, i in enumerate(chosen):
                owner = np.array([-1 if word is None else word for word in batch.word_ids(place)])
                states[i] = np.stack([layers[place][:, owner == w].mean(1) for w in range(len(sentences[i]))], 1)
        stacked = np.concatenate([states[i] for i in range(len(sentences))], axis=1).astype(np.float32)
        for layer, X in enumerate(stacked):
            np.save(to / f"{split}.{layer}.npy", X)
        np.save(to / f"{split}.words.npy", np.array([word for sentence in sentences for word, _ in sentence]))
        np.save(to / f"{split}.upos.npy", np.array([tag for sentence in sentences for _, tag in sentence]))
    np.save(to / "forward_seconds.npy", forward)


def read(file: Path) -> list[list[tuple[str, str]]]:
    """`(form, UPOS)` of every word of every sentence."""
    sentences = []
    for block in file.read_text(encoding="utf-8").strip().split("\n\n"):
        cells = [line.split("\t") for line in block.split("\n") if not line.startswith("#")]
        sentences.append([(cell[1], cell[3]) for cell in cells if cell[0].isdigit()])
    return sentences


def made_up_store(folder: Path, size: int, width: int, shards: int = 100) -> None:
    """A store of `size` bytes of random float32 states at one site; a shard is one example of many words."""
    rows = size // (4 * width * shards)
    identity = {
        "model": {},
        "tokenizer": {},
        "corpus": {"fingerprint": "0" * 64},
        "extraction": {"sites": ["resid.0"], "rows": "word:mean", "dtype": "float32"},
        "plan": {"starts": list(range(shards)), "count": shards},
    }
    writer = StoreWriter.open(folder, identity=identity, environment={})
    for shard in range(shards):
        columns = dict.fromkeys(("word", "piece_start", "piece_end", "char_start", "char_end"), np.arange(rows))
        content = ShardContent(
            example_start=shard,
            n_examples=1,
            rows=columns | {"example": np.full(rows, shard)},
            examples={
                "offset": np.array([0, rows]),
                "ordinal": np.array([shard]),
                "text_sha256": np.zeros((1, 32), np.uint8),
                "flags": np.zeros(1, np.uint8),
            },
            sites={"resid.0": np.random.default_rng(shard).standard_normal((rows, width), np.float32)},
            modules={"resid.0": "made-up"},
        )
        writer.commit(shard, content)
    writer.seal()


def made_up_labels(store: Store, site: str) -> np.ndarray:
    """`(R,)` which of the first four features, with noise, is the largest."""
    random = np.random.default_rng(0)
    parts = [states[:, :4] + random.normal(size=(len(states), 4)) for _, states in store.blocks(site)]
    return np.argmax(np.concatenate(parts), axis=1)


def resident(name: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
