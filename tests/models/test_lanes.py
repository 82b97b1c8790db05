"""Laws of passes side by side: lanes read what is their own, two read what one does, nothing is left on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from probing.models.batching import ParallelBatches, keeps_state
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract, threads_set
from tests.conftest import some
from tests.samples.tiny_models import FAMILIES, build, byte_tokenizer, corpus_of, language_model, wordpiece_tokenizer

ALL = [*(family for names in FAMILIES.values() for family in names), *(f"{name}/decoder" for name in FAMILIES["both"])]
TEXTS = ["a", "the thing", "on it", "the cat is in the hat", "as it is"] * 8


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threads_set(2):
        yield


@pytest.mark.parametrize("family", some(ALL, 6))
def test_two_lanes_read_the_bytes_that_one_thread_reads(family: str, tmp_path) -> None:
    name, _, side = family.partition("/")
    tokenizer = wordpiece_tokenizer() if name == "bert" else byte_tokenizer()
    model = LanguageModel.from_modules(build(name), tokenizer, side=side or None)
    corpus = corpus_of(*(f"{text} {i}" for i, text in enumerate(TEXTS)))
    stores = []
    for threads in (2, 1):
        with threads_set(threads), model.many_states(model.sites) as lanes:
            assert lanes.count == threads
        stores.append(
            extract(
                model,
                corpus,
                sites="*",
                rows="piece",
                tokens_per_batch=64,
                threads=threads,
                to=tmp_path / str(threads),
                progress=False,
            )
        )
    assert stores[0].content_id == stores[1].content_id


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_lanes_do_not_see_each_others_states() -> None:
    model = language_model("gpt2")
    inputs = [[one] for one in model.encode(TEXTS)]
    expected = [model.states(batch, model.sites) for batch in inputs]
    with model.many_states(model.sites) as lanes:
        found = list(lanes.map(lambda batch: model.states(batch, model.sites), inputs * 5))
        other = model.states(inputs[0], ["resid.1"])  # read by its own hooks, while the held ones are on
    for mine, its in zip(found, expected * 5, strict=True):
        for site in model.sites:
            torch.testing.assert_close(mine[site], its[site], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(other["resid.1"], expected[0]["resid.1"])


@pytest.mark.usefixtures("two_threads")
def test_an_error_comes_in_order_and_nothing_is_left_on() -> None:
    model, done = language_model("gpt2"), []

    def read(i: int) -> int:
        if i in (3, 4):
            raise ValueError(str(i))
        done.append(i)
        return i

    with pytest.raises(ValueError, match="3"), model.many_states(model.sites) as lanes:
        for i in lanes.map(read, range(10_000)):
            assert i in (0, 1, 2)
    assert len(done) < 10_000 and torch.get_num_threads() == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model._model.modules())


def test_each_lane_has_its_share_of_the_threads_and_new_threads_have_all() -> None:
    with threads_set(4), ParallelBatches.opened(2) as lanes:
        assert set(lanes.map(lambda _: torch.get_num_threads(), range(20))) == {2}
        with ParallelBatches.opened(1) as alone:
            assert set(alone.map(lambda _: torch.get_num_threads(), range(2))) == {4}
        with threads_set(4), ParallelBatches.opened(4) as more:  # threads that begin now
            assert set(more.map(lambda _: torch.get_num_threads(), range(20))) == {1}


@pytest.mark.usefixtures("two_threads")
def test_a_model_that_keeps_what_it_computed_runs_in_one_lane() -> None:
    config = LlamaConfig(
        vocab_size=261,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    )
    model = LanguageModel.from_modules(LlamaForCausalLM(config).eval(), byte_tokenizer())
    with model.many_states(["resid.1"]) as lanes:
        assert lanes.count == 1
        assert list(lanes.map(lambda i: i + 1, [1, 2])) == [2, 3]


class Counts(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.known, self.last = how, {}, None
        self.register_buffer("seen", torch.zeros(1))
        if how == "rope":
            self.rope_type = "longrope"

    def forward(self, n: int) -> None:
        if self.how == "attribute":
            self.last = torch.ones(n)
        elif self.how == "table":
            self.known[n] = n
        elif self.how == "buffer":
            self.seen += n


@pytest.mark.parametrize("how", ["nothing", "attribute", "table", "buffer", "rope"])
def test_what_a_pass_leaves_behind_is_noticed(how: str) -> None:
    model = nn.Sequential(Counts(how))
    assert keeps_state(model, [lambda: model[0](3), lambda: model[0](4)]) is (how != "nothing")
