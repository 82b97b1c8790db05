"""Words that decide a label: where each text holds one of a few words that fix its label, texts are not independent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

LEAST_TEXTS = 100  # with fewer texts, words of one label are too often so by chance
LEAST_USES = 4  # texts of a word: one that is in fewer is of one label by chance
MOST_OF_TEXTS = 0.95
MARKERS = 8  # words a label: so few are marks of the label itself, whose effect is what is asked
TEXTS_A_WORD = 4  # on average; with fewer, the words are as good as independent texts


def deciding_words(texts: Sequence[str], labels: Sequence[Hashable]) -> tuple[str, ...]:
    """Return the words, most frequent first, of which (nearly) every text holds one and which each occur with one label
    only; () if there are no such words, so few that they are marks of the label, or hardly fewer than texts.

    A property of such texts is one of the words (say, the animacy of 60 nouns): what is measured on many texts is
    measured on these words, and texts with the same word say the same thing again.

    Args:
        texts: texts of the rows.
        labels: their labels.
    """
    if len(texts) < LEAST_TEXTS:
        return ()
    words_of = [set(text.casefold().split()) for text in texts]
    labels_of, counts = defaultdict[str, set[Hashable]](set), Counter[str]()
    for words, label in zip(words_of, labels, strict=True):
        counts.update(words)
        for word in words:
            labels_of[word].add(label)
    pure = {word for word, n in counts.items() if n >= LEAST_USES and len(labels_of[word]) == 1}
    chosen = Counter(max(found, key=lambda w: (counts[w], w)) for words in words_of if (found := words & pure))
    few = len(chosen) <= MARKERS * len(set(labels))
    if chosen.total() < MOST_OF_TEXTS * len(texts) or few or len(chosen) * TEXTS_A_WORD > chosen.total():
        return ()
    return tuple(word for word, _ in chosen.most_common())
