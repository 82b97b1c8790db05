"""Laws of sliding windows: each piece has the most context it can have, and what fits is read as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probing.errors import BadParameter, ProvenanceMismatch
from probing.states.extraction import extract
from probing.states.extraction.pooling import windows_of
from probing.states.store import store_info
from probing.text.alignment import Encoded
from probing.text.chat import ChatTemplate
from probing.text.corpus import Corpus, Example
from tests.samples.tiny_models import byte_tokenizer, corpus_of, language_model

LONG = "the cat is being in the hat on it and the thing is in the inn"
CORPUS = corpus_of("the cat", LONG, "a", LONG, "b c d")


def run(to: Path, family: str = "bert", corpus: Corpus = CORPUS, **options: Any) -> Any:
    options = {"rows": "piece", "long_inputs": "window", "max_length": 12} | options
    return extract(language_model(family), corpus, to=to, progress=False, **options)


def by_hand(one: Encoded, length: int, stride: int) -> list[tuple[list[int], int]]:
    """For each piece the input it is read in and its place there, by trying every window; written from the rule."""
    specials = [i for i in range(len(one)) if one.special[i]]
    text = [i for i in range(len(one)) if not one.special[i]]
    head, tail = [i for i in specials if i < text[0]], [i for i in specials if i > text[-1]]
    room = length - len(head) - len(tail)
    starts, a = [], 0
    while a + room < len(text):
        starts.append(a)
        a += min(stride, room)
    starts.append(max(len(text) - room, 0))
    found = []
    for i in range(len(one)):
        if one.special[i]:
            chosen = starts[0] if i in head else starts[-1]
        else:
            p = text.index(i)
            inside = [a for a in starts if a <= p < a + room]
            chosen = max(inside, key=lambda a: (min(p - a, a + room - 1 - p), -a))
        window = head + text[chosen : chosen + room] + tail
        found.append((window, window.index(i)))
    return found


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 9, 12])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_each_piece_is_read_where_the_lesser_of_its_contexts_is_largest(family: str, stride: int) -> None:
    for text in (LONG, LONG[:30], LONG[:13]):
        (one,) = language_model(family).encode([text])
        cut = windows_of(one, 12, stride)
        assert all(len(window) == min(12, len(one)) for window in cut.inputs)
        for piece, (window, place) in enumerate(by_hand(one, 12, stride)):
            mine = cut.inputs[int(cut.window[piece])]
            assert int(cut.place[piece]) == place, piece
            np.testing.assert_array_equal(mine.ids, one.ids[window])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_states_are_those_of_the_windows(tmp_path: Path, family: str) -> None:
    model = language_model(family)
    store = run(tmp_path / "s", family, stride=4, tokens_per_batch=30)
    (one,) = model.encode([LONG])
    mine = np.flatnonzero(store.rows.example == 1)
    assert len(mine) == int((~one.special).sum()) and not store.missing_words
    places = by_hand(one, 12, 4)
    for row, piece in zip(mine, store.rows.piece_start[mine], strict=True):
        window, place = places[int(piece)]
        part = Encoded(one.ids[window], one.offsets[window], one.special[window], np.zeros((0, 2), np.int64))
        expected = model.states([part], ["resid.2"])["resid.2"][0, place]
        np.testing.assert_allclose(store.read("resid.2", np.array([row]))[0], expected, atol=1e-5)


def test_what_fits_one_window_is_read_as_without_windows(tmp_path: Path) -> None:
    windowed, plain = run(tmp_path / "w"), run(tmp_path / "p", long_inputs="truncate", max_length=None)
    short = np.isin(plain.rows.example, [0, 2, 4])
    same = np.isin(windowed.rows.example, [0, 2, 4])
    np.testing.assert_allclose(windowed.read("resid.2")[same], plain.read("resid.2")[short], atol=1e-5)
    assert len(windowed.rows.example) == len(plain.rows.example)  # nothing is lost of the long ones either


def test_one_window_over_all_pieces_is_the_input_itself(tmp_path: Path) -> None:
    (one,) = language_model("bert").encode([LONG])
    wide = run(tmp_path / "w", max_length=len(one))
    plain = run(tmp_path / "p", long_inputs="truncate", max_length=None)
    np.testing.assert_allclose(wide.read("resid.2"), plain.read("resid.2"), atol=1e-5)
    assert wide.windowed == []


def test_more_context_than_chunks_have(tmp_path: Path) -> None:
    """Chunks without overlap (a stride as long as the window) leave pieces at an edge; windows do not."""
    (one,) = language_model("gpt2").encode([LONG])

    def least(stride: int) -> int:
        cut = windows_of(one, 12, stride)
        inner = range(6, len(one) - 6)  # the ends of the text have less in any window
        return min(min(int(cut.place[i]), 11 - int(cut.place[i])) for i in inner)

    assert least(12) == 0 and least(4) >= 3 and least(1) == 5


def test_words_across_windows_are_pooled_from_all_their_pieces(tmp_path: Path) -> None:
    words, pieces = run(tmp_path / "w", rows="word:mean", stride=3), run(tmp_path / "p", stride=3)
    assert len(words.rows.word) == sum(len(e.words) for e in CORPUS.examples)
    for row in np.flatnonzero(words.rows.example == 1):
        mine = (pieces.rows.example == 1) & (pieces.rows.word == words.rows.word[row])
        np.testing.assert_allclose(words.read("resid.1")[row], pieces.read("resid.1")[mine].mean(0), atol=1e-5)


def test_windows_are_counted_named_and_part_of_what_the_store_is(tmp_path: Path) -> None:
    store = run(tmp_path / "s", stride=5)
    assert [e for e, _ in store.windowed] == [1, 3] and all(count > 2 for _, count in store.windowed)
    assert store_info(tmp_path / "s")["read_in_windows"] == 2
    assert store.identity["extraction"]["stride"] == 5
    np.testing.assert_array_equal(*(store.read("resid.2")[store.rows.example == e] for e in (1, 3)))
    with pytest.raises(ProvenanceMismatch, match="stride"):
        run(tmp_path / "s", stride=4)
    assert store.verify() == []
    assert run(tmp_path / "d").identity["extraction"]["stride"] == 6


def test_special_pieces_of_both_ends_stand_in_every_window(tmp_path: Path) -> None:
    cls, sep = 2, 3
    cut = windows_of(language_model("bert").encode([LONG])[0], 12, 4)
    assert all(window.ids[0] == cls and window.ids[-1] == sep for window in cut.inputs)
    store = run(tmp_path / "s", rows="position:input_start,input_end")
    assert (store.rows.example == 1).sum() == 2


def test_a_chat_template_stands_in_every_window() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<u>{{ messages[0].content }}</u>"
    (one,) = ChatTemplate(tokenizer, "").encode([Example(id="a", text=LONG)])
    cut = windows_of(one, 20, 5)
    for window in cut.inputs:
        assert tokenizer.decode(window.ids[:3]) == "<u>" and tokenizer.decode(window.ids[-4:]) == "</u>"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stride": 13}, "1 to 12"),
        ({"stride": 0}, "1 to 12"),
        ({"stride": 4, "long_inputs": "truncate"}, "a stride is for long inputs"),
    ],
)
def test_strides_that_mean_nothing_are_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadParameter, match=text):
        run(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_no_room_for_text_is_refused() -> None:
    (one,) = language_model("bert").encode([LONG])
    with pytest.raises(BadParameter, match="fill the whole window"):
        windows_of(one, 2, 1)
