"""Laws of chat templates: the prompt is the tokenizer's, words are the text's, and no text is changed unseen."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probing.errors import AlignmentError, BadParameter, CorpusError, ProvenanceMismatch
from probing.jobs import ExtractJob
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.text.chat import ChatTemplate
from probing.text.corpus import Corpus, Example
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
CORPUS = corpus_of("the thing is being", "user", "the thing is being", "über the 日本 thing")


def chatting(template: str = TEMPLATE) -> LanguageModel:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return LanguageModel.from_modules(build("gpt2", 128), tokenizer, name="chatty")


def prompt(text: str) -> str:
    return f"<user>\n{text}</user>\n<assistant>\n"


def test_templates_that_share_a_child_give_each_thread_its_own_prompts() -> None:
    rendered = "the " + TEMPLATE
    shared, other = (chatting(template).tokenizer for template in (rendered, TEMPLATE))
    ours = [ChatTemplate(tokenizer, "") for tokenizer in (shared, shared, other)]
    messages = [(("user", f"text {k}"), ("assistant", "so " * (k % 7))) for k in range(40)]
    wanted = [[one.opened(chat).ids.tolist() for chat in messages] for one in ours]
    assert wanted[0] == wanted[1] != wanted[2] and len({tuple(ids) for ids in wanted[0]}) == len(messages)
    with ThreadPoolExecutor(8) as threads:
        jobs = [[threads.submit(one.opened, chat) for chat in messages] for one in ours]
        assert [[job.result().ids.tolist() for job in of_one] for of_one in jobs] == wanted


def run(model: LanguageModel, corpus: Corpus, to: Path, **options: Any) -> Any:
    return extract(model, corpus, to=to, progress=False, chat_template=True, **options)


def test_prompts_are_what_the_template_writes_and_offsets_are_the_texts() -> None:
    model = chatting()
    texts = [example.text for example in CORPUS.examples]
    inputs = ChatTemplate(model.tokenizer, "").encode(CORPUS.examples)
    for text, one, whole in zip(texts, inputs, model.encode([prompt(t) for t in texts]), strict=True):
        np.testing.assert_array_equal(one.ids, whole.ids)
        inside = (whole.offsets[:, 0] >= 7) & (whole.offsets[:, 1] <= 7 + len(text))
        np.testing.assert_array_equal(~one.special, inside)
        np.testing.assert_array_equal(one.offsets[inside], whole.offsets[inside] - 7)


def test_words_are_pooled_from_the_prompts_states(tmp_path: Path) -> None:
    """`user` is also in the template, and is found all the same."""
    model = chatting()
    store = run(model, CORPUS, tmp_path / "s", rows="word:mean")
    assert len(store.rows.example) == sum(len(example.words) for example in CORPUS.examples)
    whole = model.encode([prompt("the thing is being")])
    state = model.states(whole, ["resid.2"])["resid.2"][0].numpy()
    for row, (start, end) in enumerate(CORPUS.examples[0].words):
        inside = [
            (a - 7 < end) and (b - 7 > start) and not (b - a == 1 and a - 7 == start - 1)
            for a, b in whole[0].offsets.tolist()
        ]
        np.testing.assert_allclose(store.read("resid.2")[row], state[inside].mean(0), atol=1e-5)
    plain = extract(model, CORPUS, to=tmp_path / "p", progress=False)
    assert not np.allclose(plain.read("resid.2"), store.read("resid.2"), atol=1e-3)


def test_a_template_that_joins_a_piece_with_the_text_leaves_it_in_the_text() -> None:
    """`Ġthe` begins in the template's space and ends in the text: its offsets are cut to the text."""
    model = chatting("Q: {{ messages[0].content }}ing!")
    (one,) = ChatTemplate(model.tokenizer, "").encode([Example(id="a", text="the in")])
    content = np.flatnonzero(~one.special)
    assert one.offsets[content[0]].tolist() == [0, 3]  # "Ġthe", of which the space is the template's
    assert one.offsets[content[-1]].tolist() == [4, 6]


def test_piece_rows_are_of_the_text_and_positions_reach_the_template(tmp_path: Path) -> None:
    model = chatting()
    corpus = Corpus(tuple(replace(e, spans={"text": (0, len(e.text))}) for e in CORPUS.examples))
    pieces = run(model, corpus, tmp_path / "p", rows="piece")
    assert (pieces.rows.char_end > pieces.rows.char_start).all() and pieces.rows.piece_start[0] == 7
    store = run(model, corpus, tmp_path / "s", rows="position:text.before,input_end")
    whole = model.encode([prompt(corpus.examples[3].text)])
    state = model.states(whole, ["resid.2"])["resid.2"][0].numpy()
    mine = store.read("resid.2")[store.rows.example == 3]
    np.testing.assert_allclose(mine, state[[6, -1]], atol=1e-5)


def test_a_text_within_messages_is_read_there(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "the thing"},
        {"role": "assistant", "content": "being"},
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat[:2]}) + "\n")
    corpus = Corpus.read(file)
    assert [e.text for e in corpus.examples] == ["the thing"] * 2 and len(corpus.examples[0].messages) == 3
    model = chatting()
    store = run(model, corpus, tmp_path / "s", rows="position:input_end,end")
    for row, after in enumerate(("</user>\n<assistant>\nbeing</assistant>\n", "</user>\n<assistant>\n")):
        text = "<system>\nbe short</system>\n<user>\nthe thing"
        whole, short = model.encode([text + after, text])
        for name, inputs in ((0, whole), (1, short)):
            expected = model.states([inputs], ["resid.2"])["resid.2"][0, -1]
            mine = (store.rows.example == row) & (store.rows.position == name)
            np.testing.assert_allclose(store.read("resid.2")[mine][0], expected, atol=1e-5)


def test_messages_without_a_users_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "system", "content": "x"}]}) + "\n")
    with pytest.raises(CorpusError, match=r"without a user's(.|\n)*chat\.jsonl:1"):
        Corpus.read(file)


def test_messages_of_another_form_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    good, bad = {"messages": [{"role": "user", "content": "x"}]}, {"messages": [{"role": "user"}]}
    file.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(CorpusError, match=r"no list of messages(.|\n)*chat\.jsonl:2"):
        Corpus.read(file)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content | upper }}!", "none"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "several"),
        ("<u>{{ messages[0].content | trim }}", "changes the text"),
        ("{{ raise_exception('no') }}", "refuses these messages"),
    ],
)
def test_a_template_that_does_not_keep_the_text_is_refused(template: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match=problem):
        run(chatting(template), corpus_of("a thing "), tmp_path / "s")


def test_a_text_that_is_twice_in_its_messages_is_refused(tmp_path: Path) -> None:
    twice = Example(id="twice", text="a", messages=(("user", "a"), ("assistant", "a")))
    with pytest.raises(AlignmentError, match=r"exactly once(.|\n)*sentence twice"):
        run(chatting(), Corpus((twice,)), tmp_path / "s")


def test_an_empty_text_has_no_rows(tmp_path: Path) -> None:
    store = run(chatting(), corpus_of("", "a"), tmp_path / "s")
    assert store.rows.example.tolist() == [1] and store.skipped == [(0, "nothing_selected")]


def test_a_model_without_a_template_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = LanguageModel.from_modules(build("gpt2"), byte_tokenizer())
    with pytest.raises(BadParameter, match="no chat template"):
        run(model, CORPUS, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_another_template_is_another_store_and_none_leaves_the_identity_as_it_was(tmp_path: Path) -> None:
    store = run(chatting(), CORPUS, tmp_path / "s")
    assert set(store.identity["extraction"]["chat"]) == {"template_sha256", "rendered_sha256", "messages_sha256"}
    with pytest.raises(ProvenanceMismatch, match="chat"):
        run(chatting(TEMPLATE + " "), CORPUS, tmp_path / "s")
    plain = extract(chatting(), CORPUS, to=tmp_path / "p", progress=False)
    assert "chat" not in plain.identity["extraction"]


def test_long_prompts_are_cut_in_the_text_and_keep_the_template(tmp_path: Path) -> None:
    corpus = corpus_of("abc def", "a")
    store = run(chatting(), corpus, tmp_path / "s", max_length=len(chatting().encode([prompt("abcd")])[0]))
    assert store.missing_words == [(0, 1, "truncated")]
    assert store.rows.word.tolist() == [0, 0]


def test_the_flag_is_an_option_of_the_job(tmp_path: Path) -> None:
    model = chatting()
    model._model.save_pretrained(tmp_path / "m")
    model.tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "c.jsonl").write_text('{"text": "the thing"}\n')
    job = ExtractJob(
        model=str(tmp_path / "m"), corpus=str(tmp_path / "c.jsonl"), to=str(tmp_path / "s"), chat_template=True
    )
    assert "chat" in job.run(progress=False).identity["extraction"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10000000000 }}{{ messages[0].content }}",
        "{{ 'x' * 20000000 }}{{ messages[0].content }}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}"
        "{% endfor %}{{ messages[0].content }}",
    ],
    ids=["memory", "output", "time"],
)
def test_a_template_without_bounds_is_refused(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    rendering = ChatTemplate(tokenizer, "here")
    rendering._renderer.seconds = 2.0
    with pytest.raises(BadParameter, match="more than any prompt needs"):
        rendering.encode([Example(id="a", text="the thing")])


def test_rendering_goes_on_after_a_conversation_that_did_not_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].content == 'x' %}{{ 'x' * 10000000000 }}{% endif %}<{{ messages[0].content }}>"
    )
    rendering = ChatTemplate(tokenizer, "here")
    with pytest.raises(BadParameter):
        rendering.encode([Example(id="a", text="x")])
    assert rendering._render((("user", "the"),)) == "<the>"
