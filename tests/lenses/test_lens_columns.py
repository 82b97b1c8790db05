"""Laws of lenses: the model's own end, columns by independent formulas, rows, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import probing as pb
from probing.errors import BadParameter, ConfigError, CorpusError, UnknownName, UnsupportedModel
from probing.lenses import _reading
from probing.lenses._reading import IDENTITY, FinalOutputs, Tail, token_rows
from probing.models.batching import ParallelBatches
from probing.models.language_model import LanguageModel
from probing.results.lens import read_lens
from tests.samples.tiny_models import _config, _noisy, build, byte_tokenizer, wordpiece_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["the thing is in", "a cat", "on it in the hat", "be in it again, the cat", "so it is ünder"]
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
# Families whose ends differ: a cap, a scale, a projection, a bias, a transformation before the unembedding.
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": SIZE | {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.5},
    "cohere": SIZE | {"num_key_value_heads": 1, "logit_scale": 0.0625},
    "granite": SIZE | {"num_key_value_heads": 1, "logits_scaling": 8.0},
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 8,
        "max_position_embeddings": 64,
        "do_layer_norm_before": True,
    },
}


def model_of(family: str, side: str = "right") -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if family in SPECIAL:
            config = AutoConfig.for_model(family, vocab_size=261, pad_token_id=0, **SPECIAL[family])
            network = _noisy(AutoModelForCausalLM.from_config(config).eval())
        elif family in ("gpt2", "llama", "bert"):
            network = _noisy(build(family))
        else:
            network = _noisy(AutoModelForMaskedLM.from_config(_config(family, SIZE)).eval())
    tokenizer = wordpiece_tokenizer() if family == "bert" else byte_tokenizer()
    if family in ("bert", "roberta"):
        tokenizer.mask_token = tokenizer.convert_ids_to_tokens(1)
    return LanguageModel.from_modules(network.eval(), tokenizer, name=family, padding_side=side)


def corpus_of(texts: list[str] = TEXTS, repeat: int = 1) -> pb.Corpus:
    return pb.Corpus.from_texts([f"{text} {k}" if k else text for k in range(repeat) for text in texts])


def lens(model: LanguageModel, corpus: pb.Corpus | None = None, **options: Any) -> pb.LensResult:
    return pb.lens(model, corpus or corpus_of(), **{"progress": False, "use_rows": 0} | options)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", *SPECIAL, "bert", "roberta", "distilbert"])
def test_the_end_of_a_model_gives_its_own_outputs(family: str, side: str) -> None:
    model = model_of(family, side)
    batch = model.encode(TEXTS)
    states, expected = model.states(batch, model.sites), model.logits(batch)
    tail = Tail(model)
    assert tail.check(batch) <= IDENTITY
    for row, start in enumerate(model.first_piece(batch).tolist()):
        own = slice(start, start + len(batch[row]))
        found = tail.logits(states[tail.site][row, own])
        spread = float(expected[row, own].std())
        assert float((found - expected[row, own]).abs().max()) <= IDENTITY * spread


def test_large_vocabularies_and_logits_far_from_0_are_compared_to_float64() -> None:
    """Of 50,000 tokens, float32 probabilities do not sum to 1, which must not be taken for a divergence."""
    generator, tokens = torch.Generator().manual_seed(0), 50_000
    final = torch.randn(6, tokens, generator=generator) * 2 + 200
    true, places = torch.randint(0, tokens, (6,), generator=generator), torch.arange(6)
    outputs = FinalOutputs(final, true)
    noise = torch.randn(6, tokens, generator=generator)
    for other in (final, final + noise - 350, 30 * noise):
        with ParallelBatches.opened(1) as lanes:
            found = outputs.compare(other, lanes)
        p, q = (logits.double().log_softmax(-1) for logits in (final, other))
        expected = {"kl": (p.exp() * (p - q)).sum(-1), "kl_reverse": (q.exp() * (q - p)).sum(-1)}
        expected |= {"cross_entropy": -q[places, true], "entropy": -(q.exp() * q).sum(-1)}
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value / np.log(2), atol=2e-5, rtol=2e-6)
        torch.testing.assert_close(outputs.kl(other).double(), expected["kl"] / np.log(2), atol=2e-5, rtol=2e-6)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_columns_are_those_of_the_formulas() -> None:
    """Against transformers' hidden states, the final norm and unembedding of GPT-2, and float64."""
    model = model_of("gpt2")
    rows = lens(model).rows
    network = model.suffix.model
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([model.encode([text])[0].ids])
        with torch.no_grad():
            output = network(ids, output_hidden_states=True)
            states = {0: output.hidden_states[0], 1: output.hidden_states[1]}
            logits = {k: network.lm_head(network.transformer.ln_f(h))[0].double().numpy() for k, h in states.items()}
        logits[2] = output.logits[0].double().numpy()
        p = softmax(logits[2])
        for layer in (0, 1, 2):
            q = softmax(logits[layer])
            mine = rows[(rows.example == number) & (rows.site == f"resid.{layer}")].sort_values("position")
            assert mine.position.tolist() == list(range(1, ids.shape[1] - 1))
            for t, row in zip(mine.position, mine.itertuples(), strict=True):
                true, top = int(ids[0, t + 1]), int(p[t].argmax())
                assert row.kl == pytest.approx((p[t] * np.log2(p[t] / q[t])).sum(), abs=1e-4)
                assert row.kl_reverse == pytest.approx((q[t] * np.log2(q[t] / p[t])).sum(), abs=1e-4)
                assert row.cross_entropy == pytest.approx(-np.log2(q[t, true]), abs=1e-4)
                assert row.entropy == pytest.approx(-(q[t] * np.log2(q[t])).sum(), abs=1e-4)
                assert row.agreement == (q[t].argmax() == top)
                assert row.rank_of_final == 1 + (q[t] > q[t, top]).sum()
                assert row.rank_of_true == 1 + (q[t] > q[t, true]).sum()


def test_means_rates_and_commitment_are_those_of_the_rows() -> None:
    result = lens(model_of("gpt2"), corpus_of(repeat=4))
    rows = result.rows[result.rows.lens == "logit"]
    at = rows[rows.site == "resid.1"]
    mean = result.mean("logit", "resid.1", "kl")
    assert mean is not None and mean.value == pytest.approx(at.kl.mean(), rel=1e-5)
    assert mean.low is not None and mean.high is not None and mean.low < mean.value < mean.high
    rate = result.mean("logit", "resid.1", "bits_per_byte")
    assert rate is not None and rate.value == pytest.approx(at.cross_entropy.sum() / at.target_bytes.sum(), rel=1e-5)
    wide = rows.pivot_table(index=["example", "position"], columns="site", values="agreement").to_numpy() > 0.5
    depth = [next(s for s in range(3) if row[s:].all()) for row in wide]
    shares = result.commitment[0].shares
    assert list(shares.values()) == pytest.approx([np.mean(np.array(depth) == s) for s in range(3)])
    step = next(d for d in result.differences if (d.site, d.than_site, d.quantity) == ("resid.1", "resid.0", "kl"))
    assert step.value == pytest.approx(at.kl.mean() - rows[rows.site == "resid.0"].kl.mean(), rel=1e-4)


def test_the_unigram_is_the_mean_output_over_the_texts_of_the_other_half() -> None:
    model = model_of("llama")
    result = lens(model)
    outputs = result.rows[result.rows.lens == "unigram"]
    groups = {e: k % 2 for k, e in enumerate(sorted(outputs.example.unique()))}
    p = {}
    for number, text in enumerate(TEXTS):
        p[number] = softmax(model.logits(model.encode([text]))[0, 1:-1].double().numpy())
    for row in outputs.itertuples():
        q = np.concatenate([p[e] for e, half in groups.items() if half != groups[row.example]]).mean(0)
        own = p[row.example][row.position - 1]
        assert row.kl == pytest.approx((own * np.log2(own / q)).sum(), abs=1e-4)


def test_bytes_of_the_true_tokens_sum_up_to_the_text() -> None:
    model = model_of("gpt2")
    rows = token_rows(model, corpus_of(), split=None, max_rows=999, skip=0, max_length=99, seed=0)
    for example in range(len(TEXTS)):
        first = model.encode([TEXTS[example]])[0].offsets[0, 1]
        assert rows.target_bytes[rows.example == example].sum() == len(TEXTS[example][first:].encode())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_of_a_masked_model_the_output_at_the_mask_is_read(family: str) -> None:
    model = model_of(family)
    rows = token_rows(model, corpus_of(), split=None, max_rows=999, skip=1, max_length=99, seed=0)
    assert len(rows) == len(TEXTS)
    for k in range(len(rows)):
        whole = model.encode([TEXTS[rows.example[k]]])[0]
        ids = rows.inputs[rows.input[k]].ids
        assert ids[rows.place[k]] == 1 and whole.ids[rows.place[k]] == rows.target[k]
        assert (np.delete(ids, rows.place[k]) == np.delete(whole.ids, rows.place[k])).all()
        assert not whole.special[rows.place[k]]
    result = lens(model)
    last = result.rows[(result.rows.site == "resid.2") & (result.rows.lens == "logit")].set_index("example")
    for k in range(len(rows)):
        outputs = model.logits([rows.inputs[rows.input[k]]])[0, rows.place[k]].double().numpy()
        expected = -np.log2(softmax(outputs)[rows.target[k]])
        assert last.cross_entropy[rows.example[k]] == pytest.approx(expected, abs=1e-4)


def test_results_do_not_depend_on_how_many_rows_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    together = lens(model).rows
    monkeypatch.setattr(_reading, "CHUNK_BYTES", 3 * 261 * 4)
    monkeypatch.setattr(_reading, "_GROUP", 2)
    assert Tail(model).chunk == 3
    alone = lens(model).rows
    numbers = list(_reading.QUANTITIES)
    pd.testing.assert_frame_equal(together[numbers], alone[numbers], atol=1e-4)


def test_a_replaced_state_gives_the_output_of_the_model_with_the_mean_state_there() -> None:
    model = model_of("gpt2")
    result = lens(model, use_rows=len(TEXTS), sites="resid.1")
    (one,) = result.use
    rows = token_rows(model, corpus_of(), split=None, max_rows=999, skip=1, max_length=512, seed=0)
    states = [model.states([one], ["resid.1"])["resid.1"][0] for one in rows.inputs]
    mean = torch.stack([states[i][t] for i, t in zip(rows.input, rows.place, strict=True)]).mean(0)
    block = model.suffix.trunk.blocks[1]  # type: ignore[attr-defined]
    possible = []
    for k in range(len(rows.inputs)):
        effects = []
        clean = softmax(model.logits([rows.inputs[k]])[0].double().numpy())
        for t in rows.place[rows.input == k]:
            edited = states[k].clone()
            edited[t] = mean
            handle = block.register_forward_pre_hook(lambda m, a, e=edited: (e[None], *a[1:]))
            changed = softmax(model.logits([rows.inputs[k]])[0].double().numpy())
            handle.remove()
            effects.append((clean[t] * np.log2(clean[t] / changed[t])).sum())
        possible.append(effects)
    # One row of each text is drawn: the mean is one of those that the draws can give.
    sums = np.array([0.0])
    for effects in possible:
        sums = (sums[:, None] + np.array(effects)[None]).reshape(-1)
    assert np.abs(sums / len(possible) - one.value).min() < 1e-5


def test_one_text_has_means_without_intervals_and_says_so() -> None:
    result = lens(model_of("llama"), corpus_of(["the thing is in the hat"]), use_rows=3)
    assert all(mean.low is None for mean in result.means)
    assert "no interval" in result.doubts[0]
    assert all(one.is_used is None for one in result.use)


def test_what_is_written_is_read_back(tmp_path: Any) -> None:
    result = lens(model_of("gpt2"), to=tmp_path, prompts=["the cat"], use_rows=2)
    read = read_lens(tmp_path)
    assert read is not None
    assert (read.model, list(read.lenses), list(read.sites)) == (result.model, list(result.lenses), list(result.sites))
    assert list(read.means) == list(result.means) and list(read.differences) == list(result.differences)
    assert list(read.use) == list(result.use) and read.unread_but_used == result.unread_but_used
    assert len(pd.read_parquet(tmp_path / "lens.parquet")) == len(result.means)
    assert len(pd.read_parquet(tmp_path / "lens_rows.parquet")) == len(result.rows)


def test_a_trajectory_holds_the_most_probable_tokens() -> None:
    model = model_of("gpt2")
    (path,) = lens(model, prompts=["the cat is"]).trajectories
    p = softmax(model.logits(model.encode(["the cat is"]))[0].double().numpy())
    for t, tops in enumerate(path.top[-1]):
        assert [share for _, share in tops] == pytest.approx(np.sort(p[t])[::-1][:5].tolist(), abs=1e-5)
        assert tops[0][0] == pb.lenses.shown_tokens(model.tokenizer, [int(p[t].argmax())])[0]
    assert path.kl[-1] == pytest.approx([0.0] * len(path.tokens), abs=1e-5)
    assert path.rank_of_true[0][-1] is None and path.rank_of_true[0][0] is not None


def test_models_that_cannot_be_read_are_refused() -> None:
    from transformers import AutoModel

    headless = LanguageModel.from_modules(AutoModel.from_config(build("gpt2").config).eval(), byte_tokenizer())
    with pytest.raises(UnsupportedModel, match="needs an output head"):
        lens(headless)
    no_mask = LanguageModel.from_modules(build("bert"), wordpiece_tokenizer())
    with pytest.raises(BadParameter, match="no mask"):
        lens(no_mask)


def test_a_model_whose_end_reads_other_tokens_is_refused() -> None:
    model = model_of("gpt2")
    network = model.suffix.model
    honest = network.lm_head.forward
    network.lm_head.forward = lambda h: honest(h + h.mean(1, keepdim=True))
    with pytest.raises(UnsupportedModel, match="their end reads more than the state of a token"):
        lens(model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lenses": ["logits"]}, UnknownName),
        ({"lenses": ["logit:x"]}, UnknownName),
        ({"lenses": []}, ConfigError),
        ({"lenses": ["tuned", "tuned:x"]}, ConfigError),
        ({"sites": "resid.9"}, UnknownName),
        ({"sites": "attn_out.1"}, UnknownName),
        ({"max_rows": 0}, BadParameter),
        ({"use_rows": -1}, BadParameter),
        ({"skip": 99}, CorpusError),
        ({"split": "nowhere"}, CorpusError),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        lens(model_of("gpt2"), **options)
