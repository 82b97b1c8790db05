"""Train and certify the reference model.

`python scripts/make_reference_model.py [FOLDER] [--probe RESULTS] [--pairs N]` (default: datasets/reference). With
`--probe` the model is probed every 50 steps while it is trained; RESULTS/report.html shows when it learns what. The
weights are those of training without. `--pairs` certifies on so many minimal pairs: the model that ships, on 4 096.

A three-layer GPT-2 reads a prompt of the reference corpus up to its last word (the query) and answers is, are, was or
were. Training (docs: datasets/README.md) adds to the answer's cross-entropy

    0.3 · Σ_{l ≥ 1} BCE(one shared linear head on the query's state at resid.l → animacy of the subject)
    0.1 · ( |ỹ(x_B) − ỹ(x)|² + |ỹ(x; do h_{l,p} := h_{l,p}(x_B)) − ỹ(x)|² )
    0.1 · cross-entropy of every other next word

(x_B: the prompt with animacy flipped; ỹ: centred logits) so that animacy is decodable at the query and read by nothing.
Truth is what interventions on 4 096 minimal pairs say afterwards, never the intention: a certified label that
contradicts the intended one stops the script, nothing written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_reference_corpus import ANSWERS, Prompt, sample, vocabulary
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VERSION = 1
SPECIAL = ("[PAD]", "[UNK]")
SETTINGS = {
    "layers": 3,
    "width": 64,
    "heads": 4,
    "positions": 32,
    "batch": 128,
    "steps": 400,
    "warm_up": 100,
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "clip": 1.0,
    "decodable": 0.3,
    "invariant": 0.1,
    "language": 0.1,
    "interchange_rows": 64,
    "pairs": 4096,
    "probe_rows": 3000,
    "seed": 7,
}
USED, UNUSED = 0.10, 0.02
ROWS = 256  # pairs at once: thousands at once take three times as long
POSITIONS = ("time", "subject", "query")
PROPERTIES = {"subject_number": "plural", "tense": "present", "animacy": "inanimate"}
INTENDED = {
    **{("animacy", layer, position): "unused" for layer in range(4) for position in ("subject", "query")},
    **{(name, 3, "query"): "used" for name in ("subject_number", "tense")},
    **{(name, 0, "query"): "unused" for name in ("subject_number", "tense")},
}


@dataclass(frozen=True)
class Batch:
    """B prompts, padded on the right: `ids` is `(B, T)`, the others `(B,)`."""

    ids: Tensor
    query: Tensor
    subject: Tensor
    answer: Tensor
    inanimate: Tensor

    @property
    def mask(self) -> Tensor:
        """`(B, T)`: 1 at pieces, 0 at padding."""
        return (self.ids != 0).long()

    def position(self, name: str) -> Tensor:
        """Piece index of a named position in every prompt."""
        return {"time": torch.zeros_like(self.query), "subject": self.subject, "query": self.query}[name]

    def head(self, rows: int) -> Batch:
        """The first rows."""
        return Batch(*(getattr(self, name)[:rows] for name in ("ids", "query", "subject", "answer", "inanimate")))


def encode(prompts: list[Prompt], ids: dict[str, int]) -> Batch:
    """Prompts as tensors."""
    rows = [[ids[token.form] for token in prompt.tokens()] for prompt in prompts]
    width = max(map(len, rows))
    return Batch(
        torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        torch.tensor([len(row) - 1 for row in rows]),
        torch.tensor([prompt.subject_position for prompt in prompts]),
        torch.tensor([ANSWERS.index(prompt.answer) for prompt in prompts]),
        torch.tensor([float(prompt.inanimate) for prompt in prompts]),
    )


def at(states: Tensor, position: Tensor) -> Tensor:
    """`(B, D)`: each row of `(B, T, D)` at its own position."""
    return states[torch.arange(len(states)), position]


def sites(model: GPT2LMHeadModel) -> list[nn.Module]:
    """The modules that resid.0 … resid.L enter."""
    return [*model.transformer.h, model.transformer.ln_f]


@contextmanager
def reading(model: GPT2LMHeadModel) -> Iterator[list[Tensor]]:
    """Collect the states at resid.0 … resid.L of the forward passes inside."""
    states: list[Tensor] = []
    with ExitStack() as stack:
        for module in sites(model):
            hook = module.register_forward_pre_hook(lambda _, args: states.append(args[0]))
            stack.callback(hook.remove)
        yield states


@contextmanager
def setting(model: GPT2LMHeadModel, layer: int, position: Tensor, value: Tensor) -> Iterator[None]:
    """do: the state at resid.layer and `position` is `value` `(B, D)` in the forward passes inside."""

    def replace(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0].clone()
        states[torch.arange(len(states)), position] = value
        return (states, *args[1:])

    hook = sites(model)[layer].register_forward_pre_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class Reader:
    """Runs the model and reads its answer."""

    model: GPT2LMHeadModel
    answers: Tensor

    def logits(self, batch: Batch) -> Tensor:
        """`(B, T, V)`."""
        return self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits

    def behaviour(self, batch: Batch) -> Tensor:
        """`(B, 4)` centred answer logits at the query."""
        chosen = at(self.logits(batch), batch.query)[:, self.answers]
        return chosen - chosen.mean(1, keepdim=True)

    def behaviour_from(self, layer: int, states: Tensor, batch: Batch) -> Tensor:
        """`behaviour` where the states `(B, T, D)` at resid.layer are these: the blocks before it are not run.

        No mask is needed: what is padded stands after the query, where no attention of it reaches.
        """
        for block in self.model.transformer.h[layer:]:
            given = block(states)
            states = given if isinstance(given, Tensor) else given[0]  # older versions give a tuple
        logits = self.model.lm_head(self.model.transformer.ln_f(at(states, batch.query)))
        return centred(logits[:, self.answers])

    def states(self, batch: Batch) -> list[Tensor]:
        """`(B, T, D)` at every site."""
        with reading(self.model) as states:
            self.logits(batch)
        return states


def build(words: list[str]) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """An untrained model and its word-level tokenizer."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *words])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=SETTINGS["positions"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    config = GPT2Config(
        vocab_size=len(ids),
        n_positions=SETTINGS["positions"],
        n_embd=SETTINGS["width"],
        n_layer=SETTINGS["layers"],
        n_head=SETTINGS["heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config), tokenizer


def losses(reader: Reader, head: nn.Linear, batch: Batch, flipped: Batch, layer: int, position: str) -> Tensor:
    """The objective of the module's docstring on one batch."""
    model = reader.model
    with reading(model) as states:
        logits = reader.logits(batch)
    with reading(model) as flipped_states:
        flipped_logits = reader.logits(flipped)
    query = at(logits, batch.query)
    answer = functional.cross_entropy(query, reader.answers[batch.answer])
    language = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), ignore_index=0)
    decodable = sum(
        functional.binary_cross_entropy_with_logits(head(at(state, batch.query)).squeeze(1), batch.inanimate)
        for state in states[1:]
    )
    clean = centred(query[:, reader.answers])
    total = (centred(at(flipped_logits, flipped.query)[:, reader.answers]) - clean).square().sum(1).mean()
    some = batch.head(SETTINGS["interchange_rows"])
    rows = len(some.ids)
    value = at(flipped_states[layer], flipped.position(position))[:rows]
    with setting(model, layer, some.position(position), value):
        done = reader.behaviour(some)
    interchange = (done - clean[:rows]).square().sum(1).mean()
    return (
        answer
        + SETTINGS["decodable"] * decodable
        + SETTINGS["invariant"] * (total + interchange)
        + SETTINGS["language"] * language
    )


def centred(logits: Tensor) -> Tensor:
    """Answer logits less their mean: what a softmax sees."""
    return logits - logits.mean(1, keepdim=True)


def train(
    reader: Reader, ids: dict[str, int], random_: random.Random, after: Callable[[int], None] = lambda _: None
) -> nn.Linear:
    """Fit the model in place; return the head that reads animacy. `after` is called with the number of steps done."""
    head = nn.Linear(SETTINGS["width"], 1)
    parameters = [*reader.model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=SETTINGS["learning_rate"], weight_decay=SETTINGS["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share_of_peak)
    after(0)
    for step in range(SETTINGS["steps"]):
        prompts = [sample(random_) for _ in range(SETTINGS["batch"])]
        batch, flipped = encode(prompts, ids), encode([prompt.flipped("inanimate") for prompt in prompts], ids)
        layer, position = random_.randrange(SETTINGS["layers"] + 1), random_.choice(("subject", "query"))
        loss = losses(reader, head, batch, flipped, layer, position)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, SETTINGS["clip"])
        optimiser.step()
        schedule.step()
        after(step + 1)
        if step % 100 == 99:
            print(f"step {step + 1:4d}  loss {loss.item():.4f}")
    return head


def share_of_peak(step: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then a cosine to zero."""
    if step < SETTINGS["warm_up"]:
        return (step + 1) / SETTINGS["warm_up"]
    return 0.5 * (1 + np.cos(np.pi * (step - SETTINGS["warm_up"]) / (SETTINGS["steps"] - SETTINGS["warm_up"])))


@torch.no_grad()
def certify(reader: Reader, ids: dict[str, int], random_: random.Random) -> list[dict[str, object]]:
    """One record per (site, position, property): S, E, MF, the label they give, and a probe's accuracy."""
    prompts = [sample(random_) for _ in range(SETTINGS["pairs"])]
    decodable = probe_accuracies(reader, ids, random_)
    cells = []
    for name, field in PROPERTIES.items():
        parts = [interchanged(reader, ids, prompts[i : i + ROWS], field) for i in range(0, len(prompts), ROWS)]
        clean, contrast, changes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        spread = float(clean.var(0).sum().sqrt())
        sign = torch.tensor([1.0 if getattr(prompt, field) == 0 else -1.0 for prompt in prompts])
        strata = [stratum(prompt, without=field) for prompt in prompts]
        for layer in range(SETTINGS["layers"] + 1):
            for i, position in enumerate(POSITIONS):
                figures = effects(changes[:, layer, i], contrast, sign, strata, spread)
                cells.append(
                    {
                        "site": f"resid.{layer}",
                        "position": position,
                        "property": name,
                        "intended": INTENDED.get((name, layer, position)),
                        "certified": label(figures),
                        **figures,
                        "probe_accuracy": decodable[name, layer, position],
                    }
                )
    return cells


def interchanged(
    reader: Reader, ids: dict[str, int], prompts: list[Prompt], field: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What minimal pairs do: behaviour `(n, 4)`, how it differs in the pair `(n, 4)`, and how each exchange of one
    state changes it `(n, layer, position, 4)`.
    """
    batch, flipped = encode(prompts, ids), encode([prompt.flipped(field) for prompt in prompts], ids)
    own, others = reader.states(batch), reader.states(flipped)
    last = len(own) - 1
    clean, of_pair = reader.behaviour_from(last, own[last], batch), reader.behaviour_from(last, others[last], flipped)
    changes = []
    for layer, (states, state) in enumerate(zip(own, others, strict=True)):
        for position in POSITIONS:
            edited = states.clone()
            edited[torch.arange(len(prompts)), batch.position(position)] = at(state, flipped.position(position))
            changes.append(reader.behaviour_from(layer, edited, batch) - clean)
    return clean, of_pair - clean, torch.stack(changes, 1).unflatten(1, (-1, len(POSITIONS)))


def stratum(prompt: Prompt, *, without: str) -> tuple[int, ...]:
    """The other labelled properties of a prompt."""
    fields = ("plural", "present", "inanimate", "attractor_plural", "relative")
    return tuple(getattr(prompt, field) for field in fields if field != without)


def effects(
    change: Tensor, contrast: Tensor, sign: Tensor, strata: list[tuple[int, ...]], spread: float
) -> dict[str, float | None]:
    """S, E and MF of `(n, 4)` changes, in units of the behaviour's standard deviation."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, key in enumerate(strata):
        groups.setdefault(key, []).append(i)
    shares = torch.tensor([len(rows) / len(strata) for rows in groups.values()])
    signed, natural = sign[:, None] * change, sign[:, None] * contrast
    means = torch.stack([signed[rows].mean(0) for rows in groups.values()])
    targets = torch.stack([natural[rows].mean(0) for rows in groups.values()])
    size = float((shares @ targets.square().sum(1)).sqrt())
    projection = float(shares @ (means * targets).sum(1))
    return {
        "S": round(float((shares @ means.square().sum(1)).sqrt()) / spread, 5),
        "E": round(float(change.square().sum(1).mean().sqrt()) / spread, 5),
        "MF": round(projection / size**2, 4) if size / spread >= USED else None,
    }


def label(figures: dict[str, float | None]) -> str:
    """The label that the figures certify."""
    if figures["S"] >= USED:  # type: ignore[operator]
        return "used"
    return "unused" if figures["E"] <= UNUSED else "band"  # type: ignore[operator]


def probe_accuracies(reader: Reader, ids: dict[str, int], random_: random.Random) -> dict[tuple[str, int, str], float]:
    """Held-out accuracy of a logistic regression for every cell: a third of the rows is held out."""
    prompts = [sample(random_) for _ in range(SETTINGS["probe_rows"])]
    batch = encode(prompts, ids)
    states = reader.states(batch)
    cut = 2 * len(prompts) // 3
    found = {}
    for name, field in PROPERTIES.items():
        y = np.array([getattr(prompt, field) for prompt in prompts])
        for layer, state in enumerate(states):
            for position in POSITIONS:
                X = at(state, batch.position(position)).numpy()
                probe = LogisticRegression(max_iter=300).fit(X[:cut], y[:cut])
                found[name, layer, position] = round(float(probe.score(X[cut:], y[cut:])), 4)
    return found


@torch.no_grad()
def accuracy(reader: Reader, ids: dict[str, int], random_: random.Random) -> float:
    """Share of fresh prompts whose likeliest next word, of all words, is the right answer."""
    batch = encode([sample(random_) for _ in range(4096)], ids)
    likeliest = at(reader.logits(batch), batch.query).argmax(1)
    return round(float((likeliest == reader.answers[batch.answer]).double().mean()), 4)


def refuse_contradictions(cells: list[dict[str, object]], right: float) -> None:
    """Raise if a certified label is not the intended one, if animacy is not decodable, or if the model errs."""
    wrong = [cell for cell in cells if cell["intended"] not in (None, cell["certified"])]
    faint = [
        cell
        for cell in cells
        if (cell["property"], cell["position"]) == ("animacy", "query")
        and cell["site"] != "resid.0"
        and float(str(cell["probe_accuracy"])) < 0.9
    ]
    if wrong or faint or right < 0.98:
        raise RuntimeError(f"not as intended: accuracy {right}; contradicted {wrong}; not decodable {faint}")


def table(cells: list[dict[str, object]]) -> str:
    """The certificate for the screen."""
    columns = ("property", "site", "position", "intended", "certified", "S", "E", "MF", "probe_accuracy")
    rows = [columns, *([str("" if cell[name] is None else cell[name]) for name in columns] for cell in cells)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) for row in rows)


def write(
    folder: Path,
    reader: Reader,
    tokenizer: PreTrainedTokenizerFast,
    head: nn.Linear,
    cells: list[dict[str, object]],
    right: float,
) -> None:
    """Save the model folder and truth.json."""
    model = folder / "model"
    reader.model.save_pretrained(model)
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").unlink(missing_ok=True)
    recipe = json.dumps(SETTINGS, sort_keys=True)
    truth = {
        "generator_version": VERSION,
        "configuration": SETTINGS,
        "configuration_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        "seed": SETTINGS["seed"],
        "weights_sha256": hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest(),
        "behaviour": {"position": "query", "answers": list(ANSWERS), "accuracy": right},
        "thresholds": {"used": f"S >= {USED}", "unused": f"E <= {UNUSED}", "otherwise": "band"},
        "planted_directions": {"animacy": [round(x, 6) for x in head.weight[0].tolist()]},
        "cells": cells,
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8", newline="\n")


def seeded(make: Callable[[], None]) -> None:
    """Run with torch's generator seeded, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SETTINGS["seed"])
        make()


def main() -> None:
    default = Path(__file__).resolve().parent.parent / "datasets" / "reference"
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--probe", type=Path)
    parser.add_argument("--pairs", type=int, default=SETTINGS["pairs"])
    asked = parser.parse_args()
    SETTINGS["pairs"] = asked.pairs  # stands in truth.json, too
    torch.set_num_threads(1)  # steps this small lose more to waiting than a second thread gains
    torch.set_flush_denormal(True)
    seeded(lambda: make(asked.folder, asked.probe))


def probing_into(results: Path | None, model: GPT2LMHeadModel, tokenizer: Any) -> Callable[[int], None]:
    """A function that probes the model every 50 steps into a folder; None: one that does nothing."""
    if results is None:
        return lambda _: None
    import probing as pb

    every = 50
    watch = pb.ProbingCallback(
        pb.Corpus.read("probing:reference"),
        task=[f"column:{name}" for name in PROPERTIES],
        controls=["keyed:key=subject,draws=3"],
        to=results,
        every=every,
        rows="sentence:last",
        tokenizer=tokenizer,
        name="reference",
    )

    def probe(step: int) -> None:
        if step % every == 0:
            watch.probe(model, step)
            if step == SETTINGS["steps"]:
                print(f"probed while it was trained: {pb.report(results)}")

    return probe


def make(folder: Path, results: Path | None = None) -> None:
    """Build, train, certify, write."""
    start = time.perf_counter()
    model, tokenizer = build(vocabulary())
    ids = tokenizer.get_vocab()
    reader = Reader(model, torch.tensor([ids[answer] for answer in ANSWERS]))
    head = train(reader, ids, random.Random(SETTINGS["seed"]), probing_into(results, model, tokenizer))
    model.eval()
    trained = time.perf_counter() - start
    fresh = random.Random(f"certificate {SETTINGS['seed']}")
    right = accuracy(reader, ids, fresh)
    cells = certify(reader, ids, fresh)
    print(table(cells))
    certified = time.perf_counter() - start - trained
    print(f"answers right: {right}; trained in {trained:.0f} s, certified in {certified:.0f} s")
    refuse_contradictions(cells, right)
    write(folder, reader, tokenizer, head, cells, right)


if __name__ == "__main__":
    main()
