"""Laws of behaviours: answers are single pieces; a vocabulary is measured in nats; readouts do not see padding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from probing import registry
from probing.contracts.behaviour import Behaviour, Outputs, Texts
from probing.errors import BadParameter, NoBehaviour, UnknownName
from probing.recipes import build, normalised, spec_of, text_of
from probing.results.use import answers_said, visible
from probing.use.behaviours._answers import piece_text, reduced
from probing.use.behaviours.masked_token import MaskedToken
from probing.use.behaviours.next_token import NextToken
from probing.use.behaviours.readout import BUILT_IN, FinalStates
from probing.use.edited_models._reading import FAR, TwinWatch, twins_of
from tests.samples.tiny_models import byte_tokenizer, wordpiece_tokenizer


def texts_of(n: int, tokenizer: object = None, labels: dict[str, np.ndarray] | None = None) -> Texts:
    return Texts(tokenizer, (), np.zeros(n, np.int64), {}, labels or {})


def batches(logits: torch.Tensor, size: int = 7) -> Iterator[Outputs]:
    for part in logits.split(size):
        yield Outputs(part, torch.ones(len(part), 1, dtype=torch.bool), torch.ones(len(part), 1, dtype=torch.bool))


def weighted(logits: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(1).mean(0)
    return (logits - (logits @ p)[:, None]) * p.sqrt()


@pytest.mark.parametrize("name", registry.names("behaviours"))
def test_every_behaviour_says_what_it_reads(name: str) -> None:
    member = registry.get("behaviours", name).MEMBER
    built = build("behaviours", name)
    assert isinstance(built, Behaviour) and built.source in ("logits", "output", "states")
    assert member.__doc__ and member.fit is not Behaviour.fit


def test_logits_of_answers_are_centred_over_them() -> None:
    behaviour = NextToken(answers="t|h|in")
    tokenizer = byte_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(piece) for piece in ("t", "h", "in")]
    logits = torch.randn(9, 261, generator=torch.Generator().manual_seed(1)) + 100
    readout = behaviour.fit(texts_of(9, tokenizer), lambda: batches(logits))
    y = torch.cat([readout(outputs) for outputs in batches(logits)])
    expected = logits[:, ids] - logits[:, ids].mean(1, keepdim=True)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    assert behaviour.are_logits and not NextToken().are_logits


@pytest.mark.parametrize(
    ("tokenizer", "answers", "found"),
    [
        (byte_tokenizer, "t|dog", "3 pieces"),
        (wordpiece_tokenizer, "the|π", "vocabulary lacks"),
        (wordpiece_tokenizer, "cat|the-", "2 pieces"),
        (wordpiece_tokenizer, "the|The", "the"),
    ],
)
def test_an_answer_that_is_no_single_piece_is_refused(tokenizer: object, answers: str, found: str) -> None:
    with pytest.raises(NoBehaviour, match=found):
        NextToken(answers=answers).fit(texts_of(3, tokenizer()), lambda: iter(()))  # type: ignore[operator]


@pytest.mark.parametrize("answers", ["yes", "a|a", ["a"]])
def test_one_answer_is_none(answers: str | list[str]) -> None:
    with pytest.raises(BadParameter):
        NextToken(answers=answers)


def test_half_the_squared_change_of_a_vocabulary_is_the_divergence_in_nats() -> None:
    generator = torch.Generator().manual_seed(2)
    clean = 2 * torch.randn(1, 200, generator=generator).expand(40, -1) + 1e-3 * torch.randn(
        40, 200, generator=generator
    )
    readout = reduced(texts_of(40), lambda: batches(clean))
    edited = clean + 0.02 * torch.randn(40, 200, generator=generator)
    before, after = (torch.cat([readout(o) for o in batches(x)]) for x in (clean, edited))
    half = 0.5 * (after - before).double().square().sum(1)
    p, q = clean.double().log_softmax(1), edited.double().log_softmax(1)
    kl = (p.exp() * (p - q)).sum(1)
    assert float((half / kl - 1).abs().max()) < 0.1


def test_reduction_keeps_the_leading_axes_and_the_contrasts_of_classes() -> None:
    generator = torch.Generator().manual_seed(3)
    z = np.arange(90) % 2
    factors = torch.randn(90, 6, generator=generator) * torch.tensor([9.0, 7, 5, 3, 0.1, 0.1])
    factors[:, 5] = torch.from_numpy(z * 0.05).float()  # too small for a leading axis
    logits = factors @ torch.randn(6, 400, generator=generator) / 20
    full = weighted(logits)
    readout = reduced(texts_of(90, labels={"z": z.astype(np.int64)}), lambda: batches(logits), components=4)
    y = torch.cat([readout(o) for o in batches(logits)])
    assert y.shape == (90, 5)
    axes = torch.linalg.svd(full - full.mean(0), full_matrices=False)[2][:4].T
    best = ((full - full.mean(0)) @ axes).square().sum()
    assert float((y - y.mean(0)).square().sum()) >= 0.999 * float(best)
    contrast = full[z == 1].mean(0) - full[z == 0].mean(0)
    kept = y[z == 1].mean(0) - y[z == 0].mean(0)
    torch.testing.assert_close(kept.norm(), contrast.norm(), rtol=1e-3, atol=0)


def test_a_readout_does_not_see_padding() -> None:
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(2, 5, 3, generator=generator)
    real = torch.tensor([[True, True, True, False, False], [False, False, True, True, True]])
    assert set(BUILT_IN) == {"mean", "cls", "last"}
    for name, expected in {
        "mean": [states[0, :3].mean(0), states[1, 2:].mean(0)],
        "cls": [states[0, 0], states[1, 2]],
        "last": [states[0, 2], states[1, 4]],
    }.items():
        readout = FinalStates(function=name).fit(texts_of(2), lambda: [Outputs(states, real, real)])
        torch.testing.assert_close(readout(Outputs(states, real, real)), torch.stack(expected))
    with pytest.raises(BadParameter, match="mean"):
        FinalStates(function="maen")
    with pytest.raises(NoBehaviour):
        FinalStates(function=lambda states, real: states.sum()).fit(texts_of(2), lambda: [Outputs(states, real, real)])


def test_pieces_of_one_answer_count_together() -> None:
    tokenizer, logits = byte_tokenizer(), torch.randn(9, 300, generator=torch.Generator().manual_seed(1))
    a, b, c, stroke = (int(tokenizer(x, add_special_tokens=False)["input_ids"][0]) for x in "abc/")
    readout = NextToken(answers="a/b|c").fit(texts_of(9, tokenizer), lambda: batches(logits))
    y = torch.cat([readout(outputs) for outputs in batches(logits)])
    p = logits[:, [a, b, c]].softmax(1)
    torch.testing.assert_close(y.softmax(1), torch.stack([p[:, 0] + p[:, 1], p[:, 2]], 1), rtol=1e-5, atol=1e-6)
    as_written = NextToken(answers="/|a").fit(texts_of(9, tokenizer), lambda: batches(logits))
    own = logits[:, [stroke, a]]
    torch.testing.assert_close(as_written(next(batches(logits, 9))), own - own.mean(1, keepdim=True))
    for wrong in ("a/b|b", "a/nosuch|c", "a/|c"):
        with pytest.raises(NoBehaviour):
            NextToken(answers=wrong).check(tokenizer)


def test_weights_in_a_file_are_a_head_on_top_of_a_readout(tmp_path: Path) -> None:
    states, real = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4)), torch.ones(2, 5, dtype=torch.bool)
    matrix = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    save_file({"weights": matrix}, tmp_path / "head.safetensors")
    behaviour = build("behaviours", f"readout:function=cls,weights={tmp_path / 'head.safetensors'}")
    assert behaviour.files == (tmp_path / "head.safetensors",)
    readout = behaviour.fit(texts_of(2), lambda: [Outputs(states, real, real)])
    torch.testing.assert_close(readout(Outputs(states, real, real)), states[:, 0] @ matrix)
    with pytest.raises(NoBehaviour, match="another width"):
        behaviour.fit(texts_of(2), lambda: [Outputs(states[:, :, :2], real, real)])
    save_file({"weights": matrix[0]}, tmp_path / "vector.safetensors")
    for name in ("nosuch.safetensors", "vector.safetensors"):
        with pytest.raises(BadParameter, match="matrix"):
            FinalStates(weights=str(tmp_path / name))


def test_positions_that_are_not_there_are_refused() -> None:
    with pytest.raises(UnknownName, match="end"):
        NextToken(position="subject").pieces(texts_of(3))
    from probing.text.alignment import Encoded

    one = Encoded(np.array([5, 6]), np.array([[0, 1], [1, 2]]), np.zeros(2, bool), np.zeros((0, 2), np.int64))
    tokenizer = wordpiece_tokenizer()
    with pytest.raises(NoBehaviour, match="mask piece"):
        MaskedToken().pieces(Texts(tokenizer, (one,), np.zeros(1, np.int64), {}))
    tokenizer.mask_token = "cat"
    assert MaskedToken().pieces(Texts(tokenizer, (one,), np.zeros(1, np.int64), {})).tolist() == [0]


RECIPES = (
    "next_token:answers= is| are",
    "next_token:answers=is | are ,position=end",
    "masked_token:answers= is| are",
    "next_token:answers=  is|is ,position=subject.last",
    "next_token:answers= was/ is| were/ are",
    r"next_token:answers=\,|.",
    r"next_token:answers=\||\\\|x",
    r"next_token:answers=a\, b| c",
    "next_token:answers=\n|\t",
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_and_its_object_are_one_another_to_the_space(recipe: str) -> None:
    built = build("behaviours", recipe)
    assert spec_of(built) == recipe.replace(",position=end", "") == text_of("behaviours", built)
    again = build("behaviours", spec_of(built))
    assert (again.answers, again._answers, again.position) == (built.answers, built._answers, built.position)


def test_answers_given_one_by_one_are_those_of_the_text_whatever_characters_they_have() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        answers = ["".join(rng.choice(list(" a,|/\\=:\n\t"), rng.integers(1, 6))) for _ in range(rng.integers(2, 4))]
        if len(set(answers)) == len(answers):
            for member in (NextToken, MaskedToken):
                one = member(answers=answers)
                assert (
                    build("behaviours", spec_of(one))._answers == tuple(answers) == member(answers=one.answers)._answers
                )
    assert NextToken(answers=[" is", " are"]).answers == build("behaviours", "next_token:answers= is| are").answers


def test_only_names_and_keys_and_numbers_lose_white_space() -> None:
    built = build("behaviours", " next_token : answers= is| are , position=end")
    assert built._answers == (" is", " are ") and built.position == "end"
    assert build("probes", "mlp : hidden = 64 , layers= 2").hidden == 64
    assert build("tasks", " column : a ").argument == " a " and build("tasks", " upos ").argument == ""
    assert normalised("tasks", " column: a ") == "column: a "
    assert build("behaviours", "head: regression = true ").regression
    with pytest.raises(BadParameter, match=r"comma inside a value is written \\,"):
        build("behaviours", "next_token:answers=,|.")
    with pytest.raises(BadParameter) as error:
        build("interventions", "latents:dictionary=d,latents=43,45")
    assert "latents=43|45" in str(error.value) and "\\," not in str(error.value)


def test_what_no_text_tells_has_no_recipe() -> None:
    class Mine(NextToken):
        """Of a user."""

    assert text_of("behaviours", FinalStates()) == "readout"
    for behaviour in (FinalStates(function=lambda states, real: states[:, 0]), Mine(answers=" t|h")):
        assert text_of("behaviours", behaviour) is None


def block_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's way: the space before a word is a sign of its own at the beginning of a piece."""
    vocab = {piece: i for i, piece in enumerate(["<unk>", "▁is", "is", "▁are", "▁", "a", "r", "e", "i", "s"])}
    merges = [("i", "s"), ("▁", "is"), ("r", "e"), ("a", "re"), ("▁", "are")]
    vocab |= {"re": 10, "are": 11}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def test_the_pieces_that_are_measured_are_told_with_their_spaces() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    assert build("behaviours", "next_token:answers= t|t").answer_pieces(tokenizer) == (
        ((ids("Ġt"), " t"),),
        ((ids("t"), "t"),),
    )
    found = build("behaviours", "masked_token:answers=a/ the|\n").answer_pieces(tokenizer)
    assert answers_said(found) == "a/␣the | ↵".replace("↵", visible("\n")) and found[0][1] == (ids("Ġthe"), " the")
    assert NextToken().answer_pieces(tokenizer) == () == FinalStates().answer_pieces(tokenizer)
    assert visible(" a\t\xa0\u202eb") == "␣a⇥\\xa0\\u202eb"
    # Decoding drops the space of the first piece of such a vocabulary; what is measured is the piece with it.
    assert NextToken(answers="is|are").answer_pieces(block_tokenizer()) == (((1, " is"),), ((3, " are"),))
    half = tokenizer("é")["input_ids"][0]  # half a character: the piece's own name
    assert piece_text(tokenizer, half) == tokenizer.convert_ids_to_tokens(half)


@pytest.mark.parametrize(("answers", "wrong"), [(" t|h", [" t"]), ("t|h", ["t"]), (" t|t", []), ("h|a", [])])
def test_an_answer_whose_twin_is_far_likelier_is_doubtful(answers: str, wrong: list[str]) -> None:
    tokenizer = byte_tokenizer()
    pieces = NextToken(answers=answers).answer_pieces(tokenizer)
    for apart, expected in ((FAR + 0.1, wrong), (FAR - 0.1, [])):
        logits = torch.randn(40, 261, generator=torch.Generator().manual_seed(1))
        for text, piece in ((" t", "t"), ("t", "Ġt")):  # the twin of either is that much likelier in the mean
            own, twin = (tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in (text, text))
            twin = tokenizer.convert_tokens_to_ids(piece)
            if text in answers.split("|"):
                logits[:, twin] += apart - (logits[:, twin] - logits[:, own]).mean()
        watch = TwinWatch(tokenizer, pieces)
        for outputs in batches(logits):
            watch.see(outputs)
        assert [doubt.split("answer ")[1].split(" is ")[0] for doubt in watch.doubts()] == [
            f"'{visible(text)}'" for text in expected
        ]
    assert len(twins_of(block_tokenizer(), (((1, " is"),),))) == 1
