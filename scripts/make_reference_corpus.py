"""Write the reference corpus: `python scripts/make_reference_corpus.py [FOLDER]` (default: datasets/reference).

A sentence prompt stops just before the verb that must agree: "formerly the old painter near the tall gardens clearly"
goes on with `was`. The subject's number and the time adverb's tense decide the next word (is, are, was, were); the
attractor's number and the subject's animacy do not. Same seed, same bytes, on every machine.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

SEED = 20
DOCUMENTS = {"train": 400, "dev": 100, "test": 100}  # four sentences each: number × tense
UNSEEN_SHARE = 0.35  # of test documents whose subject occurs in no other split

# (animate, inanimate): the two of a pair stand in for each other in minimal pairs of animacy
NOUNS = (
    ("painter", "garden"),
    ("teacher", "bottle"),
    ("sailor", "window"),
    ("farmer", "lantern"),
    ("dancer", "hammer"),
    ("doctor", "blanket"),
    ("singer", "kettle"),
    ("writer", "ladder"),
    ("lawyer", "basket"),
    ("tiger", "pillow"),
    ("rabbit", "bucket"),
    ("falcon", "carpet"),
    ("guard", "anchor"),
    ("cook", "mirror"),
    ("judge", "bridge"),
    ("guide", "shadow"),
    ("patient", "novel"),
    ("official", "antique"),
    ("native", "metal"),
    ("criminal", "chemical"),
    ("baker", "castle"),
    ("spider", "engine"),
    ("hunter", "barrel"),
    ("parrot", "curtain"),
)
VERBS = (
    "guard",
    "cook",
    "judge",
    "guide",
    "anchor",
    "mirror",
    "bridge",
    "shadow",
    "follow",
    "admire",
    "remember",
    "describe",
    "avoid",
    "praise",
)
ADJECTIVES = (
    "patient",
    "official",
    "native",
    "criminal",
    "novel",
    "antique",
    "metal",
    "chemical",
    "old",
    "young",
    "tall",
    "quiet",
    "heavy",
    "clever",
    "dark",
    "round",
    "famous",
    "strange",
    "gentle",
    "broken",
)
PREPOSITIONS = ("near", "behind", "beside", "beyond", "under", "above", "with", "without")
TIMES = (  # (past, present): the two of a pair stand in for each other in minimal pairs of tense
    ("formerly", "nowadays"),
    ("previously", "currently"),
    ("originally", "presently"),
    ("earlier", "now"),
    ("once", "still"),
    ("historically", "always"),
)
QUERIES = ("clearly", "probably", "certainly", "apparently")
ANSWERS = ("was", "were", "is", "are")  # index: 2 · present + plural

UNSEEN_NOUNS = frozenset({"baker", "castle", "spider", "engine", "hunter", "barrel", "parrot", "curtain"})
UNSEEN_VERBS = frozenset({"avoid", "praise"})
UNSEEN_ADJECTIVES = frozenset({"gentle", "broken"})


@dataclass(frozen=True)
class Token:
    """One word with its labels; `head` is 1-based, 0 for the root."""

    form: str
    lemma: str
    upos: str
    head: int
    deprel: str
    number: str | None = None


@dataclass(frozen=True)
class Prompt:
    """The choices that make one prompt; binary ones are 0 or 1, nouns and times are indices into the lists above."""

    time: int
    present: int
    adjectives: tuple[str, ...]
    subject: int
    inanimate: int
    plural: int
    link: str  # a preposition, or the verb of a relative clause
    relative: int
    attractor: int
    attractor_inanimate: int
    attractor_plural: int
    attractor_adjectives: tuple[str, ...]
    query: str

    @property
    def subject_lemma(self) -> str:
        return NOUNS[self.subject][self.inanimate]

    @property
    def attractor_lemma(self) -> str:
        return NOUNS[self.attractor][self.attractor_inanimate]

    @property
    def answer(self) -> str:
        """The next word."""
        return ANSWERS[2 * self.present + self.plural]

    @property
    def subject_position(self) -> int:
        """0-based index of the subject noun."""
        return 2 + len(self.adjectives)

    def flipped(self, field: str) -> Prompt:
        """The minimal pair: equal in everything but one binary choice (agreement follows it)."""
        return replace(self, **{field: 1 - getattr(self, field)})

    def tokens(self) -> list[Token]:
        """The words in order, with heads in a tree rooted at the subject."""
        root = self.subject_position + 1
        words = [Token(TIMES[self.time][self.present], TIMES[self.time][self.present], "ADV", root, "advmod")]
        words += _noun_phrase(1, self.adjectives, self.subject_lemma, self.plural, 0, "root")
        if self.relative:
            verb = root + 2
            words.append(Token("that", "that", "PRON", verb, "nsubj"))
            words.append(_verb(self.link, self.present, self.plural, root))
            head, relation = verb, "obj"
        else:
            attractor = root + 3 + len(self.attractor_adjectives)
            words.append(Token(self.link, self.link, "ADP", attractor, "case"))
            head, relation = root, "nmod"
        words += _noun_phrase(
            len(words), self.attractor_adjectives, self.attractor_lemma, self.attractor_plural, head, relation
        )
        return [*words, Token(self.query, self.query, "ADV", root, "advmod")]


def _noun_phrase(
    before: int, adjectives: tuple[str, ...], lemma: str, plural: int, head: int, relation: str
) -> list[Token]:
    noun = before + 2 + len(adjectives)
    form = with_s(lemma) if plural else lemma
    return [
        Token("the", "the", "DET", noun, "det"),
        *(Token(word, word, "ADJ", noun, "amod") for word in adjectives),
        Token(form, lemma, "NOUN", head, relation, "Plur" if plural else "Sing"),
    ]


def _verb(lemma: str, present: int, plural: int, head: int) -> Token:
    if not present:
        return Token(with_ed(lemma), lemma, "VERB", head, "acl:relcl")
    form = lemma if plural else with_s(lemma)
    return Token(form, lemma, "VERB", head, "acl:relcl", "Plur" if plural else "Sing")


def with_s(lemma: str) -> str:
    """The plural of a noun, the third person singular of a verb."""
    return lemma + "s"


def with_ed(lemma: str) -> str:
    """The past of a regular verb."""
    return lemma + ("d" if lemma.endswith("e") else "ed")


def vocabulary() -> list[str]:
    """Every word that a prompt or its answer can have, sorted."""
    nouns = {form for pair in NOUNS for lemma in pair for form in (lemma, with_s(lemma))}
    verbs = {form for lemma in VERBS for form in (lemma, with_s(lemma), with_ed(lemma))}
    times = {word for pair in TIMES for word in pair}
    return sorted(nouns | verbs | times | {*ADJECTIVES, *PREPOSITIONS, *QUERIES, *ANSWERS, "the", "that"})


def sample(random_: random.Random, *, unseen: bool = True) -> Prompt:
    """One random prompt; without `unseen`, only of the words that occur in the training split."""
    verbs = [word for word in VERBS if unseen or word not in UNSEEN_VERBS]
    adjectives = [word for word in ADJECTIVES if unseen or word not in UNSEEN_ADJECTIVES]
    pairs = [i for i, pair in enumerate(NOUNS) if unseen or pair[0] not in UNSEEN_NOUNS]
    relative = random_.randrange(2)
    subject, attractor = random_.sample(pairs, 2)
    chosen = random_.sample(adjectives, random_.randrange(3) + random_.randrange(2))
    mine = random_.randrange(min(2, len(chosen)) + 1)
    return Prompt(
        time=random_.randrange(len(TIMES)),
        present=random_.randrange(2),
        adjectives=tuple(chosen[:mine]),
        subject=subject,
        inanimate=random_.randrange(2),
        plural=random_.randrange(2),
        link=random_.choice(verbs if relative else PREPOSITIONS),
        relative=relative,
        attractor=attractor,
        attractor_inanimate=random_.randrange(2),
        attractor_plural=random_.randrange(2),
        attractor_adjectives=tuple(chosen[mine:]),
        query=random_.choice(QUERIES),
    )


def documents(random_: random.Random) -> dict[str, list[tuple[int, int, int, int]]]:
    """For every split its (subject, inanimate, attractor, inanimate) pairs: no pair is in two splits."""
    nouns = [(i, side) for i in range(len(NOUNS)) for side in (0, 1)]
    pairs = [(*a, *b) for a in nouns for b in nouns if a[0] != b[0]]
    random_.shuffle(pairs)
    known = [p for p in pairs if not {NOUNS[p[0]][p[1]], NOUNS[p[2]][p[3]]} & UNSEEN_NOUNS]
    new = [p for p in pairs if NOUNS[p[0]][p[1]] in UNSEEN_NOUNS]
    n_new = round(UNSEEN_SHARE * DOCUMENTS["test"])
    taken = iter(known)
    chosen = {split: [next(taken) for _ in range(DOCUMENTS[split])] for split in ("train", "dev")}
    mixed = [next(taken) for _ in range(DOCUMENTS["test"] - n_new)] + new[:n_new]
    random_.shuffle(mixed)
    return {**chosen, "test": mixed}


def prompts(seed: int = SEED) -> Iterator[tuple[str, str, Prompt]]:
    """All prompts as (split, document, prompt): every document has each number with each tense once."""
    random_ = random.Random(seed)
    for split, pairs in documents(random_).items():
        for subject, inanimate, attractor, attractor_inanimate in pairs:
            for plural, present in ((0, 0), (0, 1), (1, 0), (1, 1)):
                prompt = replace(
                    sample(random_, unseen=split == "test"),
                    subject=subject,
                    inanimate=inanimate,
                    plural=plural,
                    present=present,
                    attractor=attractor,
                    attractor_inanimate=attractor_inanimate,
                )
                yield split, f"{prompt.subject_lemma}-{prompt.attractor_lemma}", prompt


def record(identity: str, document: str, prompt: Prompt) -> dict[str, object]:
    """One JSON object: sentence-level columns are values, word-level columns are lists."""
    tokens = prompt.tokens()
    return {
        "id": identity,
        "document": document,
        "text": " ".join(token.form for token in tokens),
        "words": [token.form for token in tokens],
        "upos": [token.upos for token in tokens],
        "lemma": [token.lemma for token in tokens],
        "feature:Number": [token.number for token in tokens],
        "head": [token.head for token in tokens],
        "subject": prompt.subject_lemma,
        "subject_number": ("singular", "plural")[prompt.plural],
        "tense": ("past", "present")[prompt.present],
        "animacy": ("animate", "inanimate")[prompt.inanimate],
        "attractor_number": ("singular", "plural")[prompt.attractor_plural],
        "template": ("preposition", "relative")[prompt.relative],
        "answer": prompt.answer,
    }


def write(folder: Path, seed: int = SEED) -> list[Path]:
    """Write one JSONL file per split; return their paths."""
    lines: dict[str, list[str]] = {split: [] for split in DOCUMENTS}
    for split, document, prompt in prompts(seed):
        row = record(f"{split}-{len(lines[split]) + 1}", document, prompt)
        lines[split].append(json.dumps(row, separators=(",", ":")) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{split}.jsonl" for split in lines]
    for path, rows in zip(paths, lines.values(), strict=True):
        path.write_text("".join(rows), encoding="utf-8", newline="\n")
    return paths


def main() -> None:
    default = Path(__file__).resolve().parent.parent / "datasets" / "reference"
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else default):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
