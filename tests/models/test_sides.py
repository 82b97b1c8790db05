"""Laws of the two sides of an encoder-decoder: a piece's state is at the position that has read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from probing.errors import BadParameter, ProvenanceMismatch, UnsupportedModel
from probing.jobs import ExtractJob
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of

TEXT = "the cat is in"
CORPUS = corpus_of(TEXT, "a", "on the mat")

pytestmark = pytest.mark.filterwarnings("ignore")


def decoder(family: str, **options: Any) -> LanguageModel:
    return LanguageModel.from_modules(build(family), byte_tokenizer(), name=family, side="decoder", **options)


def test_what_enters_the_decoder_is_the_piece_itself_not_the_one_before() -> None:
    """T5 has no positions: what enters its first block is the embedding. Unshifted, it would be the piece before."""
    model = decoder("t5")
    state = model.states(model.encode([TEXT]), ["embed", "resid.0"])
    torch.testing.assert_close(state["resid.0"], state["embed"])
    assert not torch.allclose(state["resid.0"][:, 1:], state["embed"][:, :-1])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_decoder_states_see_earlier_pieces_only_and_the_encoder_all(family: str) -> None:
    """With the encoder's output held, the last piece changes its own state alone; else every state."""
    model = decoder(family)
    trunk = model._trunk
    inputs = model.encode(["the cat in a", "the cat in b"])
    read = {name: model.states([one], ["resid.1"])["resid.1"][0] for name, one in zip("ab", inputs, strict=True)}
    assert not torch.allclose(read["a"][0], read["b"][0], atol=1e-5)
    with torch.inference_mode():
        ids, mask = model._padded(inputs[:1])
        held = trunk.trunk.get_encoder()(input_ids=ids, attention_mask=mask)
        run = trunk.trunk.forward
        trunk.trunk.forward = lambda **given: run(**(given | {"encoder_outputs": held}))  # type: ignore[method-assign]
        a, b = (model.states([one], ["resid.2"])["resid.2"][0] for one in inputs)
    torch.testing.assert_close(a[:-1], b[:-1])
    assert not torch.allclose(a[-1], b[-1], atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_logits_after_a_piece_are_those_of_the_position_that_read_it(family: str) -> None:
    whole = AutoModelForSeq2SeqLM.from_config(build(family).config).eval()
    model = LanguageModel.from_modules(whole, byte_tokenizer(), side="decoder")
    inputs = model.encode([TEXT])
    ids = torch.from_numpy(inputs[0].ids)[None]
    start = torch.full((1, 1), whole.config.decoder_start_token_id)
    with torch.inference_mode():
        expected = whole(input_ids=ids, decoder_input_ids=torch.cat([start, ids], 1)).logits[:, 1:]
    torch.testing.assert_close(model.logits(inputs), expected)
    encoder = LanguageModel.from_modules(whole, byte_tokenizer(), side="encoder")
    with pytest.raises(UnsupportedModel, match="no logits"):
        encoder.logits(inputs)


def test_the_side_is_part_of_what_a_store_is(tmp_path: Path) -> None:
    model = decoder("t5")
    store = extract(model, CORPUS, sites="resid.*,cross_out.*", to=tmp_path / "s", progress=False)
    assert store.identity["model"]["side"] == "decoder"
    assert store.sites == ("resid.0", "resid.1", "resid.2", "cross_out.0", "cross_out.1")
    assert store.site_facts("resid.1")["module"] == "decoder.block.1"
    encoder = LanguageModel.from_modules(build("t5"), byte_tokenizer(), name="t5")
    assert "side" not in encoder.identity()["model"]  # as before there were sides
    with pytest.raises(ProvenanceMismatch, match=r"model\.side"):
        extract(encoder, CORPUS, sites="resid.*", to=tmp_path / "s", progress=False)


def test_the_start_piece_takes_one_position(tmp_path: Path) -> None:
    model = decoder("bart")
    assert model.max_length == 63
    long = corpus_of("abcdefghi " * 20)
    store = extract(model, long, rows="piece", sites="resid.2", to=tmp_path / "s", progress=False)
    assert len(store.rows.example) == 63 and np.isfinite(store.read("resid.2")).all()


def test_a_decoder_that_nothing_starts_is_refused() -> None:
    model = build("t5")
    model.config.decoder_start_token_id = None
    with pytest.raises(UnsupportedModel, match="decoder_start_token_id"):
        LanguageModel.from_modules(model, byte_tokenizer(), side="decoder")


def test_models_with_one_side_have_no_sides() -> None:
    for side in ("decoder", "encoder"):
        with pytest.raises(BadParameter, match="only an encoder-decoder"):
            LanguageModel.from_modules(build("gpt2"), byte_tokenizer(), side=side)  # type: ignore[arg-type]
    with pytest.raises(BadParameter, match="encoder or decoder"):
        LanguageModel.from_modules(build("t5"), byte_tokenizer(), side="middle")  # type: ignore[arg-type]


def test_the_flag_is_an_option_of_the_job(tmp_path: Path) -> None:
    build("t5").save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "c.jsonl").write_text('{"text": "the thing"}\n')
    stores = [
        ExtractJob(
            model=str(tmp_path / "m"), corpus=str(tmp_path / "c.jsonl"), to=str(tmp_path / f"{side}"), side=side
        ).run(progress=False)
        for side in ("encoder", "decoder", None)
    ]
    a, b, c = (store.read("resid.1") for store in stores)
    np.testing.assert_array_equal(a, c)
    assert not np.allclose(a, b, atol=1e-3)
