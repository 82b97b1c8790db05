"""Laws of runs with corrupted edges, on random models of every family that circuits know."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probing.circuits.running import Batch
from probing.circuits.traces import Means, trace
from probing.errors import ProbingError, UnsupportedModel
from probing.models.language_model import LanguageModel
from probing.models.splitting import IDENTITY, SplitTransformer
from tests.samples.circuit_samples import KNOWN, REFUSED, random_model, random_pairs, split

pytestmark = pytest.mark.filterwarnings("ignore")


def batch_of(family: str, *, by_mean: bool = False) -> Batch:
    model, pairs = split(family), random_pairs()
    means = Means(model, [*pairs.clean, *pairs.corrupted]) if by_mean else None
    return Batch(model, pairs, np.arange(4), means)


@pytest.mark.parametrize("family", KNOWN)
def test_what_senders_wrote_is_the_residual_stream_at_every_reader(family: str) -> None:
    ids = torch.tensor(np.random.default_rng(1).integers(0, 261, (3, 9)))
    assert split(family).check(ids) <= IDENTITY


@pytest.mark.parametrize("weak", ["attn.c_attn", "attn.c_proj", "mlp.c_proj"])
@pytest.mark.parametrize("size", [0.0, 1e-9])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_blocks_of_which_a_part_is_pruned_are_as_the_others(weak: str, size: float, layers: tuple[int, ...]) -> None:
    """Whether a block is parallel does not depend on what its attention and MLP write or read."""
    model = random_model("gpt2", KNOWN["gpt2"])
    with torch.no_grad():
        for layer in layers:
            for part in model._model.transformer.h[layer].get_submodule(weak).parameters():
                part *= size
    pruned = SplitTransformer(model)
    assert not pruned.is_parallel
    assert pruned.check(torch.tensor(np.random.default_rng(1).integers(0, 261, (3, 9)))) <= IDENTITY


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("gpt2", ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj")),
        ("llama", ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")),
        ("gpt_neox", ("gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp.dense_4h_to_h")),
    ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_that_writes_nothing_is_as_the_others(family: str, parts: tuple[str, ...], layer: int) -> None:
    model = random_model(family, KNOWN[family])
    with torch.no_grad():
        for path in parts:
            for part in model._model.get_submodule(path.format(layer)).parameters():
                part *= 0
    again = LanguageModel.from_modules(model._model, model.tokenizer, name=family)
    assert again.sites == model.sites
    assert SplitTransformer(again).is_parallel == (family == "gpt_neox")


@pytest.mark.parametrize("weak", ["attention.query_key_value", "attention.dense", "mlp.dense_4h_to_h"])
def test_parallel_blocks_are_known_if_they_are_pruned(weak: str) -> None:
    model = random_model("gpt_neox", KNOWN["gpt_neox"])
    with torch.no_grad():
        for layer in model._model.gpt_neox.layers:
            for part in layer.get_submodule(weak).parameters():
                part *= 0
    assert SplitTransformer(model).is_parallel


@pytest.mark.parametrize("part", ["lm_head", "transformer.wte", "transformer.h.1.mlp.c_fc", "transformer.h.0.ln_1"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(part: str, value: float) -> None:
    """The cause is said to be the weights, not the family of the model."""
    model = random_model("gpt2", KNOWN["gpt2"] | {"tie_word_embeddings": False})
    with torch.no_grad():
        model._model.get_submodule(part).weight[3] = value
    with pytest.raises(ProbingError, match="finite") as error:
        SplitTransformer(model)
    assert "family" not in str(error.value)


def test_blocks_of_both_kinds_are_refused() -> None:
    model = random_model("gpt_neox", KNOWN["gpt_neox"])
    assert SplitTransformer(model).is_parallel
    model._model.gpt_neox.layers[1].use_parallel_residual = False
    with pytest.raises(UnsupportedModel):
        SplitTransformer(model)


@pytest.mark.parametrize("family", KNOWN)
def test_all_edges_are_the_model_and_none_the_corrupted_run(family: str) -> None:
    batch, pairs = batch_of(family), random_pairs()
    clean, corrupted = batch.ends()
    model = split(family).model
    for prompts, expected in ((pairs.clean, clean), (pairs.corrupted, corrupted)):
        logits = model._model(torch.tensor(prompts)).logits[:, -1].detach().numpy()
        np.testing.assert_allclose(expected, logits[:, 5] - logits[:, 9], atol=1e-5 * np.abs(logits).max())
    scale = np.abs(clean).max()
    np.testing.assert_allclose(batch.run(batch.graph.allowed), clean, atol=1e-5 * scale)
    np.testing.assert_allclose(batch.run(np.zeros_like(batch.graph.allowed)), corrupted, atol=1e-5 * scale)


@pytest.mark.parametrize("by_mean", [False, True])
@pytest.mark.parametrize("family", KNOWN)
def test_one_edge_is_removed_alike_alone_and_from_a_circuit_of_all(family: str, by_mean: bool) -> None:
    batch = batch_of(family, by_mean=by_mean)
    graph = batch.graph
    alone_in = [graph.allowed[:, r].sum() == 1 and reader.kind == "m" for r, reader in enumerate(graph.readers)]
    # A sender whose inputs are all corrupted writes its mean, which is not what it would write on a mean input.
    edges = [(int(s), int(r)) for s, r in np.argwhere(graph.allowed) if not (by_mean and alone_in[r])][::3]
    alone = batch.removals(edges)
    others = [batch.graph.allowed.copy() for _ in edges]
    for other, edge in zip(others, edges, strict=True):
        other[edge] = False
    together = batch.ends()[0] - batch.changed(batch.graph.allowed, others)
    scale = np.abs(batch.ends()[0]).max()
    np.testing.assert_allclose(alone, together, atol=2e-5 * scale)
    assert np.abs(alone).max() > 1e-3 * scale


@pytest.mark.parametrize("family", KNOWN)
def test_a_node_is_the_edges_that_leave_it(family: str) -> None:
    batch = batch_of(family)
    senders = list(range(len(batch.graph.senders)))
    found = batch.node_removals(senders)
    for s in senders:
        expected = batch.ends()[0] - batch.run(batch.graph.without(batch.graph.allowed, s))
        np.testing.assert_allclose(found[s], expected, atol=2e-5 * np.abs(batch.ends()[0]).max())


@pytest.mark.parametrize("family", KNOWN)
def test_estimates_are_derivatives(family: str) -> None:
    """A thousandth of an edge's difference changes the metric by a thousandth of its estimate."""
    batch = batch_of(family)
    edges = [(int(s), int(r)) for s, r in np.argwhere(batch.graph.allowed)]
    small = batch.removals(edges, shifts=-1e-2 * batch.differences).sum(1) * 1e2
    scores = batch.attributed(steps=1, by_reader=True)
    estimates = np.array([scores[edge] for edge in edges])
    assert np.abs(small - estimates).max() < 0.05 * np.abs(estimates).max()
    nodes = batch.attributed(steps=1, by_reader=False)
    at_once = Batch(batch.model, random_pairs(), batch.rows, is_attributed=True)
    np.testing.assert_allclose(at_once.node_effects, nodes, atol=1e-6 * np.abs(nodes).max())
    assert at_once.passes == 3.0 and not at_once.clean.writes.requires_grad
    np.testing.assert_allclose(nodes, (scores * batch.graph.allowed).sum(1), atol=1e-4 * np.abs(nodes).max())


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_cannot_be_split_are_refused_by_name(family: str) -> None:
    model = random_model(family, REFUSED[family])
    with pytest.raises(UnsupportedModel, match=family):
        SplitTransformer(model)


def test_means_are_those_of_tokens_from_the_end() -> None:
    """Also where prompts are of several lengths, or longer than any that means are of."""
    model = split("gpt2")
    prompts = [[3, 5, 7], [11, 13], [17, 19]]
    means = Means(model, prompts)
    traces = [trace(model, torch.tensor([one])) for one in prompts]
    found = means.trace(trace(model, torch.tensor([[1, 2, 3, 4]])))
    last = sum(one.writes[:, 0, -1] for one in traces) / 3
    torch.testing.assert_close(found.writes[:, 0, -1], last)
    torch.testing.assert_close(found.writes[:, 0, 1], traces[0].writes[:, 0, 0])
    torch.testing.assert_close(found.writes[:, 0, 0], traces[0].writes[:, 0, 0])
    torch.testing.assert_close(found.end[0, -2], sum(one.end[0, -2] for one in traces) / 3)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("family", KNOWN)
def test_estimates_are_mean_derivatives_between_the_inputs(family: str, steps: int) -> None:
    """Of what the logits read, by small steps at runs of inputs between the corrupted and the clean ones (eq. 3 of
    Hanna, Pezzelle and Belinkov 2024).
    """
    batch = batch_of(family)
    first, last = batch.corrupted.writes[0], batch.clean.writes[0]
    expected = np.zeros(len(batch.graph.senders))
    with torch.no_grad():
        for k in range(1, steps + 1):
            end = batch._through(0, first + (last - first) * (k / steps))
            for sender, difference in enumerate(batch.differences):
                up, down = (batch.measure(end + sign * 1e-2 * difference)[0].double() for sign in (1, -1))
                expected[sender] += float((up - down).sum()) / 2e-2 / steps
    found = batch.attributed(steps=steps, by_reader=True)[:, -1]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
