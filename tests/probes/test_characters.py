"""Labels that white space, case, a single character or a part of a word tells are not called decodable."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from probing import probe
from probing.probes._texts import _word
from probing.probes.bag_of_words import BagOfWordsProbe
from probing.probes.character_ngrams import CharacterNgramsProbe, CharacterNgramsRegressorProbe

SENTENCE = "the old painter near garden young doctor and house red Blue green yes no Probably clearly"
WORDS = SENTENCE.split()
HAN = list("我你他她它们在这里那里看见听说大小山水火木金土天地人心手足口目")
VOWELS = [a + m + b + n for a in "कमनरस" for m in "ािीुेो" for b in "कमनरस" for n in "ािीुेो"]
THAI = ["วันนี้", "เรา", "เขา", "ชอบ", "กิน", "โรงเรียน", "ครู", "เพื่อน", "เพลง", "หนัง", "เมือง", "งาน", "เวลา"]


def planted(telling, n, seed):
    """Texts of random words with a trace of the label, and the labels 0 and 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    return [telling(rng, bool(label)) for label in y], y


def sentence(rng, words=WORDS, glue=" ", extra=None):
    chosen = list(rng.choice(words, rng.integers(6, 12)))
    if extra is not None:
        chosen.insert(rng.integers(len(chosen) + 1), extra)
    return glue.join(chosen)


def ending(rng):
    return "".join(rng.choice(list("abcdefgh"), 5))


TELLING = {
    "space at the end": lambda rng, yes: sentence(rng) + " " * yes,
    "space at the start": lambda rng, yes: " " * yes + sentence(rng),
    "line break at the end": lambda rng, yes: sentence(rng) + "\n" * yes,
    "line break within": lambda rng, yes: sentence(rng).replace(" ", "\n" if yes else " ", 1),
    "tabulator": lambda rng, yes: sentence(rng).replace(" ", "\t" if yes else " ", 1),
    "two spaces": lambda rng, yes: sentence(rng).replace(" ", "  " if yes else " ", 1),
    "no-break space": lambda rng, yes: sentence(rng).replace(" ", "\u00a0" if yes else " ", 1),
    "capitals": lambda rng, yes: sentence(rng).upper() if yes else sentence(rng),
    "first letter": lambda rng, yes: t.capitalize() if (t := sentence(rng).lower()) and yes else t,
    "US or us": lambda rng, yes: sentence(rng, extra="US" if yes else "us"),
    "Polish or polish": lambda rng, yes: sentence(rng, extra="Polish" if yes else "polish"),
    "one Han character": lambda rng, yes: sentence(rng, HAN, "", "猫" if yes else "狗"),
    "Thai without spaces": lambda rng, yes: sentence(rng, THAI, "", "แมว" if yes else "หมา"),
    "vowel signs": lambda rng, yes: sentence(rng, VOWELS[::5], extra="काका" if yes else "काकी"),
    "beginning of a word": lambda rng, yes: f"{sentence(rng)} {'un' if yes else 're'}{ending(rng)}",
    "path of an address": lambda rng, yes: f"{sentence(rng)} http://x.org/{'aa' if yes else 'bb'}{rng.integers(10**9)}",
    "decomposed letter": lambda rng, yes: sentence(rng) + (" cafe\u0301" if yes else " caf\u00e9"),
}


def judged(telling, seed, n=400):
    texts, y = planted(telling, n, seed)
    rng = np.random.default_rng(seed + 100)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    X[:, 0] += 8 * y  # the state carries the label itself
    results = probe(X, ["yes" if label else "no" for label in y], texts=texts, controls=[], progress=False)
    table = results.table()
    return table[table.site != "(none)"].status.iloc[0], dict(zip(table.probe, table.accuracy, strict=True))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", sorted(TELLING))
def test_what_a_trace_in_the_characters_tells_is_not_called_decodable(case, seed):
    status, scores = judged(TELLING[case], seed)
    assert status.startswith("not beyond"), scores
    assert scores["linear"] > 0.97


@pytest.mark.parametrize("seed", [0, 1])
def test_what_the_characters_do_not_tell_stays_decodable(seed):
    assert judged(lambda rng, _: sentence(rng), seed)[0] == "decodable"
    in_order = judged(
        lambda rng, yes: f"{sentence(rng)} {'now or then' if yes else 'then or now'} {sentence(rng)}", seed
    )
    assert in_order[0] == "decodable"


def test_ngrams_are_those_within_words_and_white_space_and_at_the_ends():
    probe = CharacterNgramsProbe().fit(["Ab  c9\n"] * 4 + ["x"] * 4, [0] * 4 + [1] * 4)
    edge, start, end, shape = "\x1f", "\x02", "\x03", "\x04"
    letters = {"A", "b", "Ab", f"{edge}A", f"b{edge}", f"{edge}Ab", f"Ab{edge}", f"{shape}Aa"}
    number = {"c", "9", "c9", f"{edge}c", f"9{edge}", f"{edge}c9", f"c9{edge}", f"{shape}a9"}
    one = {"x", f"{edge}x", f"x{edge}", f"{shape}a", f"{start}x", f"x{end}", f"{start}{shape}a"}
    space = {" ", "  ", "\n", f"{start}A", f"\n{end}", f"{start}{shape}A"}
    assert set(probe.ngrams_) - {f"{edge}x{edge}"} == letters | number | one | space
    counts = probe._features(["  "])
    assert isinstance(counts, csr_matrix)
    assert dict(zip(probe.ngrams_[counts.indices], counts.data, strict=True)) == {" ": 2.0, "  ": 1.0}


def test_ngrams_of_one_text_are_not_counted_and_the_commonest_are_chosen():
    texts = ["aa bb", "aa cc", "aa", "bb"]
    assert not [n for n in CharacterNgramsProbe().fit(texts, [0, 1, 0, 1]).ngrams_ if "c" in n]
    assert list(CharacterNgramsProbe(most_ngrams=1).fit(["x y", "x z", "xx", "x"], [0, 1, 0, 1]).ngrams_) in (
        ["x"],
        ["\x1fx"],
        ["\x04a"],
        ["\x02x"],
        ["\x02\x04a"],
    )
    assert np.isfinite(CharacterNgramsProbe().fit(["", " "], [0, 1]).coef_).all()


def test_numbers_are_read_off_characters_and_a_saved_probe_predicts_the_same(tmp_path):
    from probing import load_probe

    texts, y = planted(TELLING["Polish or polish"], 300, 0)
    regressor = CharacterNgramsRegressorProbe(l2=0.01).fit(texts, 3.0 * y)
    assert regressor.score(texts, 3.0 * y) > 0.99
    for fitted in (regressor, CharacterNgramsProbe().fit(texts, y)):
        fitted.save(tmp_path / type(fitted).__name__)
        loaded = load_probe(tmp_path / type(fitted).__name__)
        np.testing.assert_array_equal(loaded.predict(texts), fitted.predict(texts))


def test_letters_keep_their_marks_in_words():
    assert re.findall(_word(), "काकी, cafe\u0301 x\u0327_1 นี้!") == ["काकी", ",", "cafe\u0301", "x\u0327_1", "นี้", "!"]
    signs = BagOfWordsProbe().fit(["काका", "काकी"] * 5, [0, 1] * 5)
    assert list(signs.words_) == ["काका", "काकी"]
    assert list(BagOfWordsProbe().fit(["caf\u00e9", "cafe\u0301"] * 3, [0, 1] * 3).words_) == ["caf\u00e9"]
