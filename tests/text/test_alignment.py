"""Laws of alignment: pieces go to words by characters, and nothing is lost without a reason."""

from __future__ import annotations

import numpy as np
import pytest

from probing.errors import AlignmentError
from probing.text.alignment import Encoded, check_words, piece_rows, sentence_rows, word_rows
from tests.samples.tiny_models import byte_tokenizer, language_model, spans


def encoded(offsets, special=(), cut=()):
    T = len(offsets)
    mask = np.isin(np.arange(T), special)
    return Encoded(
        np.arange(T),
        np.array(offsets, dtype=np.int64).reshape(-1, 2),
        mask,
        np.array(cut, dtype=np.int64).reshape(-1, 2),
    )


def pooled(rows, r):
    return rows.pieces[rows.first[r] : rows.first[r + 1]].tolist()


def test_piece_belongs_to_the_word_of_its_first_visible_character():
    one = encoded([(0, 0), (0, 2), (2, 6), (6, 9), (0, 0)], special=(0, 4))  # [CLS] un| do|  it [SEP]
    rows = word_rows(["un do it "], [((0, 2), (3, 5), (6, 8))], [one])
    assert [pooled(rows, r) for r in range(3)] == [[1], [2], [3]]
    assert rows.piece.tolist() == [[1, 2], [2, 3], [3, 4]]
    assert rows.char.tolist() == [[0, 2], [3, 5], [6, 8]]


def test_a_word_with_hyphen_keeps_all_its_pieces():
    rows = word_rows(["un-do it"], [((0, 5), (6, 8))], [encoded([(0, 2), (2, 3), (3, 5), (5, 8)])])
    assert [pooled(rows, r) for r in range(2)] == [[0, 1, 2], [3]]


def test_words_that_share_one_span_get_the_same_pieces():
    rows = word_rows(["don't go"], [((0, 5), (0, 5), (6, 8))], [encoded([(0, 3), (3, 5), (6, 8)])])
    assert [pooled(rows, r) for r in range(3)] == [[0, 1], [0, 1], [2]]
    assert rows.word.tolist() == [0, 1, 2] and not rows.missing


def test_word_without_a_piece_is_named():
    rows = word_rows(["a \u200b b"], [((0, 1), (2, 3), (4, 5))], [encoded([(0, 1), (4, 5)])])
    assert rows.missing == ((0, 1, "no_pieces"),) and rows.word.tolist() == [0, 2]


def test_word_that_lost_a_piece_is_truncated_not_halved():
    one = encoded([(0, 1), (2, 4)], cut=[(4, 6), (7, 8)])
    rows = word_rows(["a bcde f"], [((0, 1), (2, 6), (7, 8))], [one])
    assert rows.word.tolist() == [0]
    assert rows.missing == ((0, 1, "truncated"), (0, 2, "truncated"))


def test_zero_width_and_blank_pieces_belong_to_no_word():
    rows = word_rows(["a b"], [((0, 1), (2, 3))], [encoded([(0, 1), (1, 1), (1, 2), (2, 3)])])
    assert [pooled(rows, r) for r in range(2)] == [[0], [3]]
    assert piece_rows(["a b"], [((0, 1), (2, 3))], [encoded([(0, 1), (1, 1), (1, 2), (2, 3)])]).word.tolist() == [
        0,
        -1,
        -1,
        1,
    ]


def test_examples_without_words_or_text_have_no_rows():
    texts, words = ["", "ab", "  "], [(), (), ()]
    rows = word_rows(texts, words, [encoded([]), encoded([(0, 2)]), encoded([(0, 2)])])
    assert len(rows) == 0 and rows.offset.tolist() == [0, 0, 0, 0]
    assert rows.skipped == ((0, "nothing_selected"), (1, "nothing_selected"), (2, "nothing_selected"))


def test_alignment_of_a_run_equals_alignment_one_by_one():
    texts = ["the thing is", "", "über the 日本 text", "x"]
    words = [spans(text) for text in texts]
    coded = language_model("gpt2").encode(texts)
    together = word_rows(texts, words, coded)
    for e, text in enumerate(texts):
        alone = word_rows([text], [words[e]], [coded[e]])
        part = slice(together.offset[e], together.offset[e + 1])
        assert together.word[part].tolist() == alone.word.tolist()
        assert together.piece[part].tolist() == alone.piece.tolist()


def test_every_byte_of_a_word_is_in_its_row():
    text = "über the 日本"
    rows = word_rows([text], [spans(text)], language_model("gpt2").encode([text]))
    assert np.diff(rows.first).tolist() == [
        5,
        1,
        6,
    ]  # ü: 2 bytes; ' the': 1 piece; 日本: 2 x 3 bytes
    assert byte_tokenizer()(text)["input_ids"] == language_model("gpt2").encode([text])[0].ids.tolist()


@pytest.mark.parametrize(("pool", "expected"), [("first", [0]), ("last", [2]), ("mean", [0, 1, 2]), ("max", [0, 1, 2])])
def test_first_and_last_keep_one_piece_but_the_whole_span(pool, expected):
    rows = word_rows(["abc"], [((0, 3),)], [encoded([(0, 1), (1, 2), (2, 3)])], pool)
    assert pooled(rows, 0) == expected and rows.piece.tolist() == [[0, 3]]


def test_sentence_row_skips_special_pieces_and_cls_reads_only_its_piece():
    one = encoded([(0, 0), (0, 1), (2, 3), (0, 0)], special=(0, 3))
    assert pooled(sentence_rows([one]), 0) == [1, 2]
    cls = sentence_rows([one], "cls", 0)
    assert pooled(cls, 0) == [0] and cls.char.tolist() == [[0, 0]]
    with pytest.raises(AlignmentError, match="CLS"):
        sentence_rows([one], "cls", 99)


def test_truncation_drops_content_from_the_end_and_keeps_special_pieces():
    one = encoded([(0, 0), (0, 1), (1, 2), (2, 3), (0, 0)], special=(0, 4)).truncated(4)
    assert one.ids.tolist() == [0, 1, 2, 4] and one.cut.tolist() == [[2, 3]]


@pytest.mark.parametrize("words", [((0, 3), (2, 4)), ((2, 3), (0, 1)), ((0, 9),), ((3, 1),)])
def test_spans_that_overlap_or_leave_the_text_are_refused(words):
    with pytest.raises(AlignmentError, match="sentence s7"):
        check_words([(), words], [0, 5], ["s6", "s7"])


def test_equal_spans_are_allowed():
    check_words([((0, 2), (0, 2), (3, 5))], [5], ["s"])
