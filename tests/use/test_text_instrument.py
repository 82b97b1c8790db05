"""Laws of the text instrument: replay is the full pass, edits reach what they name, norms can be held."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from probing.contracts.edited_model import Place
from probing.errors import BadParameter, EditFailed, NoBehaviour, ReplayUnavailable, UnknownName, UnsupportedModel
from probing.models.language_model import LanguageModel
from probing.models.reading.self_check import HeldNorms
from probing.states.extraction import extract
from probing.states.extraction.replaying import Replay
from probing.text.corpus import Corpus
from probing.use.behaviours.next_token import NextToken
from probing.use.behaviours.readout import FinalStates
from probing.use.edited_models._rows import _spread, cut_by_length
from probing.use.edited_models.text import TextInstrument
from tests.models.test_suffix_replay import read
from tests.samples.tiny_models import byte_tokenizer, corpus_of, wordpiece_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = (
    "the thing is being",
    "a",
    "on the thing",
    "in the inning",
    "x y",
    "one two three",
    "the thing is bein",
    "z y x",
)


def labelled() -> Corpus:
    examples = [
        replace(
            e,
            word_columns={"odd": tuple(str(i % 2) for i in range(len(e.words)))},
            columns={"long": len(e.words) > 2},
            spans={"first": e.words[0], "last": e.words[-1]} if len(e.words) > 1 else {},
        )
        for e in corpus_of(*TEXTS).examples
    ]
    return Corpus(tuple(examples))


CORPUS = labelled()


@cache
def instrument(family: str, side: str = "right", behaviour: str = "next_token", sites: str = "resid.*") -> Any:
    return TextInstrument.from_words(
        read(family, side), CORPUS, behaviour, columns=["odd"], sites=sites, max_rows=12, tokens_per_batch=40
    )


def clean_states(found: TextInstrument, place: Place, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(found.states(place)[rows])


@pytest.mark.parametrize("behaviour", ["next_token:position=word", "readout"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "distilbert"])
def test_every_check_holds_at_every_site(family: str, side: str, behaviour: str) -> None:
    found = instrument(family, side, behaviour, "*.0,*.1,resid.2")
    assert len(found.places) == 9 and found.has_norms
    found.check()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_an_edit_equals_a_full_pass_with_a_hook(family: str) -> None:
    """Of one row in one text: every piece of the word moves by the difference."""
    found = instrument(family, "right", "readout", "resid.1,mlp_out.1")
    rows = np.array([3, 7, 3])
    one = found.rows.encoded[found.rows.example[3]]
    model = read(family, "right")
    step = torch.randn(16, generator=torch.Generator().manual_seed(7))
    for site in ("resid.1", "mlp_out.1"):
        given = clean_states(found, Place(site), rows) + step
        y = found.run_from(site, rows, {"": given})
        torch.testing.assert_close(y[0], y[2], atol=1e-6, rtol=0)
        module = model._trunk.trunk.get_submodule(model.modules[site])
        pieces = found.rows.pieces[""][3]

        def edit(module: Any, args: Any, output: Any = None, pieces: Any = pieces) -> Any:
            states = (args[0] if output is None else output).clone()
            states[0, pieces] += step
            return (states, *args[1:]) if output is None else states

        reads = site in model._trunk.reads_input
        handle = module.register_forward_pre_hook(edit) if reads else module.register_forward_hook(edit)
        last = "final_norm" if "final_norm" in model.sites else "resid.2"
        try:
            expected = model.states([one], [last])[last][0].mean(0)
        finally:
            handle.remove()
        torch.testing.assert_close(y[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_last_state_of_a_donor_gives_the_donors_behaviour(family: str, side: str) -> None:
    found = instrument(family, side, "next_token:position=word")
    single = np.flatnonzero([len(pieces) == 1 for pieces in found.rows.pieces[""]])
    assert len(single) >= 2
    donors = np.roll(single, 1)
    y = found.run_from("resid.2", single, {"": clean_states(found, Place("resid.2"), donors)})
    np.testing.assert_allclose(y.numpy(), found.clean()[donors], atol=1e-5)
    assert np.abs(found.clean()[donors] - found.clean()[single]).max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "distilbert"])
def test_frozen_norms_change_nothing_where_nothing_is_edited_and_are_linear_after_the_last_block(family: str) -> None:
    found = instrument(family, "left", "readout")
    rows = np.arange(found.n_rows)
    for place in found.places:
        y = found.run_from(place.site, rows, {"": clean_states(found, place, rows)}, frozen_norms=True)
        np.testing.assert_allclose(y.numpy(), found.clean(), atol=1e-5)
    x = clean_states(found, Place("resid.2"), rows)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    held = [found.run_from("resid.2", rows, {"": x + k * step}, frozen_norms=True) for k in (0, 1, 3)]
    torch.testing.assert_close(held[2] - held[0], 3 * (held[1] - held[0]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_the_gradient_is_the_finite_difference(family: str, frozen: bool) -> None:
    found = instrument(family, "left")
    rows = np.array([0, 5, 5, 2])
    x = clean_states(found, Place("resid.1"), rows) + 0.1
    weights = torch.randn((4, found.clean().shape[1]), generator=torch.Generator().manual_seed(5))
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad((found.run_from("resid.1", rows, {"": x}, frozen_norms=frozen) * weights).sum(), x)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    values = [
        (found.run_from("resid.1", rows, {"": x.detach() + k * step}, frozen_norms=frozen).double() * weights).sum()
        for k in (-0.01, 0.01)
    ]
    assert float((values[1] - values[0]) / 0.02) == pytest.approx(float((slope * step).sum()), rel=2e-2, abs=2e-3)


def test_rows_are_run_in_any_number_and_order_and_parts() -> None:
    found = instrument("gpt2")
    rows = np.random.default_rng(0).integers(0, found.n_rows, 60)
    given = clean_states(found, Place("resid.1"), rows) + torch.randn(
        60, 16, generator=torch.Generator().manual_seed(1)
    )
    y = found.run_from("resid.1", rows, {"": given})
    parts = found.batches(rows)
    assert len(parts) > 3 and sorted(np.concatenate(parts)) == list(range(60))
    for k in (0, 17, 59):
        alone = found.run_from("resid.1", rows[k : k + 1], {"": given[k : k + 1]})
        torch.testing.assert_close(alone[0], y[k], atol=1e-5, rtol=1e-5)
    lengths = np.array([3, 9, 1, 9, 4])
    assert [part.tolist() for part in cut_by_length(lengths, 18)] == [[1, 3], [4, 0, 2]]


def test_rows_of_spans_have_every_position_and_several_are_edited_together() -> None:
    model = read("gpt2")
    found = TextInstrument.from_spans(
        model, CORPUS, "next_token:answers=t|h", positions=["first", "last.last", "end"], columns=["long"]
    )
    assert found.n_rows == 7 and dict(found.rows.excluded) == {"a position has no piece": 1}
    assert found.places[:3] == (Place("resid.0", "first"), Place("resid.0", "last.last"), Place("resid.0", "end"))
    assert len(found.rows.pieces["first"][0]) == 2 and found.logits  # "t", "he"
    assert found.rows.values("long")[1] == 2 and (found.rows.ordinal != 1).all()
    found.check()
    rows = np.arange(7)
    step = 3 * torch.randn(16, generator=torch.Generator().manual_seed(7))
    both = {p: torch.from_numpy(found.states(Place("resid.1", p))) + step for p in ("first", "end")}
    one = found.run_from("resid.1", rows, {"end": both["end"]})
    assert not torch.allclose(found.run_from("resid.1", rows, both), one, atol=1e-3)
    with pytest.raises(UnknownName, match="nowhere"):
        found.run_from("resid.1", rows, {"nowhere": both["end"]})


def test_words_are_of_as_many_sentences_as_can_be_and_classes_are_even() -> None:
    rng = np.random.default_rng(0)
    example, classes = np.repeat(np.arange(100), 10), (rng.random(1000) < 0.1).astype(np.int64)
    chosen = _spread(np.arange(1000), example, classes, 80, 0)
    assert np.bincount(classes[chosen]).tolist() == [40, 40]
    assert np.bincount(example[chosen]).max() <= 2 and len(set(example[chosen])) > 60
    np.testing.assert_array_equal(chosen, _spread(np.arange(1000), example, classes, 80, 0))
    assert len(_spread(np.arange(1000), example, classes, 400, 0)) == 400  # what the rare class lacks, others fill


def test_states_of_a_replay_store_are_those_of_a_pass(tmp_path: Path) -> None:
    model = read("gpt2")
    store = extract(model, CORPUS, to=tmp_path / "s", role="replay", sites="resid.1,mlp_out.1", progress=False)
    replay = Replay.open(store, model)
    options: dict[str, Any] = {"sites": "resid.1,mlp_out.1", "max_rows": 12}
    stored = TextInstrument.from_words(model, CORPUS, "next_token", replay=replay, **options)
    passed = TextInstrument.from_words(model, CORPUS, "next_token", **options)
    for place in passed.places:
        np.testing.assert_allclose(stored.states(place), passed.states(place), atol=1e-6)
    stored.check()


def test_a_head_over_texts_is_a_behaviour() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        network = BertForSequenceClassification(BertConfig(vocab_size=61, num_labels=3, **size)).eval()
        with torch.no_grad():
            for weight in network.parameters():
                weight += 0.1 * torch.randn(weight.shape)
    model = LanguageModel.from_modules(network, wordpiece_tokenizer(), name="classifier")
    found = TextInstrument.from_words(model, CORPUS, "head", max_rows=12)
    found.check()
    assert found.clean().shape == (12, 3) and found.logits
    with pytest.raises(NoBehaviour, match="language-model head"):
        TextInstrument.from_words(model, CORPUS, "next_token")
    with pytest.raises(NoBehaviour, match="whole texts"):
        TextInstrument.from_words(read("gpt2"), CORPUS, "head")


def test_a_mask_piece_is_read_where_it_is_and_half_precision_has_its_tolerance() -> None:
    tokenizer = wordpiece_tokenizer()
    tokenizer.mask_token = "cat"
    model = LanguageModel.from_modules(read("bert").suffix.model, tokenizer, name="bert", padding_side="left")
    texts = ("the cat is", "a cat", "on the cat thing", "no", "the x cat")
    corpus = corpus_of(*(text for text in texts if "cat" in text))
    found = TextInstrument.from_words(model, corpus, "masked_token:answers=the|a", max_rows=8)
    found.check()
    one = model.encode([corpus.examples[0].text])
    ids = [tokenizer.convert_tokens_to_ids(piece) for piece in ("the", "a")]
    logits = model.logits(one)[0, 2, ids].double().numpy()
    np.testing.assert_allclose(found.clean()[0], logits - logits.mean(), atol=1e-5)
    with pytest.raises(NoBehaviour, match="0 of them"):
        TextInstrument.from_words(model, corpus_of(*texts), "masked_token:answers=the|a")
    half = TextInstrument.from_words(read("gpt2", "left", torch.bfloat16), CORPUS, "next_token", max_rows=8)
    half.check()
    y = half.run_from(
        "resid.1", np.arange(8), {"": clean_states(half, Place("resid.1"), np.arange(8))}, frozen_norms=True
    )
    np.testing.assert_allclose(y.numpy(), half.clean(), atol=0.05 * np.abs(half.clean()).max())


def test_real_values_are_sampled_without_regard_to_them() -> None:
    texts = [f"x {'y ' * (k % 3)}z" for k in range(60)]
    examples = [replace(e, columns={"size": k / 7}) for k, e in enumerate(corpus_of(*texts).examples)]
    found = TextInstrument.from_words(
        read("gpt2"), Corpus(tuple(examples)), "readout", columns=["size"], sites="resid.1", max_rows=30
    )
    values, n_classes = found.rows.values("size")
    assert n_classes == 0 and values.min() < 2 and values.max() > 6 and len(set(found.rows.example)) == 30
    rows = np.arange(found.n_rows)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    states = clean_states(found, Place("resid.1"), rows).requires_grad_()
    assert torch.autograd.grad(found.run_from("resid.1", rows, {"": states}).sum(), states)[0].abs().sum() > 0


def test_what_cannot_be_is_refused_before_it_is_run() -> None:
    model = read("gpt2")
    with pytest.raises(BadParameter, match="max_bytes"):
        TextInstrument.from_words(model, CORPUS, "readout", max_bytes=1000)
    with pytest.raises(BadParameter, match=r"resid\.l"):
        TextInstrument.from_words(model, CORPUS, "readout", sites="final_norm")
    with pytest.raises(UnknownName, match="odd"):
        TextInstrument.from_words(model, CORPUS, "readout", columns=["odf"])
    constant = FinalStates(function=lambda states, real: states.sum((1, 2))[:, None] * 0 + 1)
    with pytest.raises(NoBehaviour, match="never varies"):
        TextInstrument.from_words(model, CORPUS, constant)


def test_checks_fail_where_the_model_is_not_as_it_was() -> None:
    model = read("gpt2", "right", torch.float64)
    found = TextInstrument.from_words(model, CORPUS, "next_token", max_rows=8)
    network = model.suffix.model
    network.train()
    with pytest.raises(EditFailed, match="training mode"):
        found.check()
    network.eval()
    found.check()
    kept = network.transformer.h[1].ln_2.weight.detach().clone()
    try:
        with torch.no_grad():
            network.transformer.h[1].ln_2.weight[0] += 1e-3
        with pytest.raises(EditFailed):
            found.check()
    finally:
        with torch.no_grad():
            network.transformer.h[1].ln_2.weight.copy_(kept)
    found.check()


@pytest.mark.parametrize("break_it", ["another piece", "a later piece", "noise"])
def test_a_model_that_breaks_an_identity_is_found_out(break_it: str) -> None:
    """A hook on the last block that carries states to other pieces, or adds noise."""
    model = read("gpt2")
    found = TextInstrument.from_words(model, CORPUS, "next_token:position=word", max_rows=8, tokens_per_batch=60)
    draws = torch.Generator().manual_seed(0)

    def spoil(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if break_it == "noise":
            states = states + 0.1 * torch.randn(states.shape, generator=draws)
        else:
            states = states + 0.1 * states.roll(1 if break_it == "another piece" else -1, 1)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = model._trunk.blocks[1].register_forward_hook(spoil)
    try:
        with pytest.raises((EditFailed, UnsupportedModel, ReplayUnavailable)):
            found.check()
    finally:
        handle.remove()
    found.check()


def test_norms_that_cannot_be_held_are_refused() -> None:
    class OddNorm(torch.nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).abs()

    odd = HeldNorms(torch.nn.Sequential(torch.nn.LayerNorm(4), OddNorm(4)))
    assert not odd.are_known and list(odd.scales) == ["0"]
    with pytest.raises(ReplayUnavailable, match="OddNorm"):
        odd.check()
    with pytest.raises(ReplayUnavailable, match="no norm"):
        HeldNorms(torch.nn.Linear(2, 2)).check()


@cache
def growing(side: str) -> LanguageModel:
    """A Llama of eight blocks whose MLPs write 30 times as much: held at the scale 1, padding would overflow."""
    size = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LlamaConfig(vocab_size=261, num_key_value_heads=1, max_position_embeddings=64, **size)
        network = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight += 0.3 * torch.randn(weight.shape) * (100 if "down_proj" in name else 1)
    return LanguageModel.from_modules(network, byte_tokenizer(), name="growing", padding_side=side)


@pytest.mark.parametrize("behaviour", ["next_token:answers= t|t", "readout"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_takes_no_part_where_norms_are_held(side: str, behaviour: str) -> None:
    """In a batch of texts of unequal length each row gives what it gives alone, where nothing is padded."""
    found = TextInstrument.from_words(growing(side), CORPUS, behaviour, sites="resid.1,resid.4", max_rows=12)
    rows = np.arange(found.n_rows)
    lengths = found.runner.sequences.lengths[found.rows.example]
    assert lengths.max() > 2 * lengths.min()
    for place in found.places:
        x = clean_states(found, place, rows)
        step = 0.1 * x.norm(dim=1).mean() * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) / 4
        for states, frozen in ((x, True), (x + step, True), (x + step, False)):
            y = found.run_from(place.site, rows, {"": states}, frozen_norms=frozen)
            assert bool(torch.isfinite(y).all())
            alone = torch.cat(
                [
                    found.run_from(place.site, rows[k : k + 1], {"": states[k : k + 1]}, frozen_norms=frozen)
                    for k in rows
                ]
            )
            torch.testing.assert_close(y, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def test_final_states_of_padding_are_zero() -> None:
    found = instrument("llama", "left", "readout")
    rows = np.arange(found.n_rows)
    outputs = found.runner.outputs(rows, found.runner.batch(rows))
    assert not outputs.values[~outputs.real].any() and outputs.values[outputs.real].any() and (~outputs.real).any()


def test_the_record_of_answers_is_that_of_their_pieces_however_they_are_given() -> None:
    model = read("gpt2")
    found = [
        TextInstrument.from_words(model, CORPUS, behaviour, sites="resid.1", max_rows=8)
        for behaviour in ("next_token:answers= t|t", NextToken(answers=[" t", "t"]), NextToken(answers=("t", " t")))
    ]
    piece = model.tokenizer.convert_tokens_to_ids
    assert found[0].answers == found[1].answers == (((piece("Ġt"), " t"),), ((piece("t"), "t"),))
    np.testing.assert_array_equal(found[0].clean(), found[1].clean())
    np.testing.assert_array_equal(found[0].clean(), found[2].clean()[:, ::-1])
    logits = [model.logits([found[0].rows.encoded[e]])[0, -1, piece("Ġt")] for e in found[0].rows.example]
    others = [model.logits([found[0].rows.encoded[e]])[0, -1, piece("t")] for e in found[0].rows.example]
    halves = (torch.stack(logits) - torch.stack(others)).double().numpy() / 2
    np.testing.assert_allclose(found[0].clean()[:, 0], halves, atol=1e-5)
    assert instrument("gpt2").answers == () == instrument("gpt2").doubts


def test_a_far_likelier_twin_is_seen_in_the_clean_run() -> None:
    model = read("gpt2")
    head, twin = model.suffix.model.get_output_embeddings(), model.tokenizer.convert_tokens_to_ids("Ġt")
    final = model.suffix.model.transformer.ln_f
    kept = [final.bias.detach().clone(), head.weight.detach().clone()]
    try:
        with torch.no_grad():  # a direction that every final state has, and this piece reads
            final.bias[0] = 20.0
            head.weight[:, 0] = 0.0
            head.weight[twin, 0] = 1.0
        found = TextInstrument.from_words(model, CORPUS, "next_token:answers=t|h", sites="resid.1", max_rows=8)
        right = TextInstrument.from_words(model, CORPUS, "next_token:answers= t|h", sites="resid.1", max_rows=8)
    finally:
        with torch.no_grad():
            final.bias.copy_(kept[0])
            head.weight.copy_(kept[1])
    (doubt,) = found.doubts
    assert doubt.startswith("the answer 't' is hardly what the model says here: '␣t', the same with a space before it")
    assert right.doubts == ()
