"""Makes pairs of prompts for `probing patch` and `probing circuit` from BLiMP's paradigms of subject–verb agreement.

    scripts/blimp_pairs.py PARADIGM.jsonl MODEL PAIRS.jsonl

A clean prompt is a sentence up to where the good and the bad one part; the answers are the tokens at which they do. The
corrupted prompt has the subject in the other number, and a determiner that allows it. Only pairs whose prompts have
equally many tokens, and whose answers are single tokens, are written. Groups are subjects: `group` is the noun.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

OTHER = {"The": "The", "Some": "Some", "This": "These", "That": "Those", "A": "Many", "Every": "All", "Each": "Most"}
OTHER |= {plural: singular for singular, plural in OTHER.items()}


def other_number(words: list[str], is_plural: bool) -> list[str] | None:
    """Return the words with the subject, which is the second, in the other number; None if its plural is not in -s."""
    noun = words[1]
    if (
        words[0] not in OTHER
        or noun[0].isupper()
        or noun.endswith("s") != is_plural
        or noun.endswith(("ss", "y", "ch"))
    ):
        return None
    if is_plural and noun.endswith(("ies", "ses", "ches")):
        return None
    return [OTHER[words[0]], noun[:-1] if is_plural else noun + "s", *words[2:]]


def pair_of(row: dict[str, str], tokenizer: object) -> dict[str, str] | None:
    """Return a pair made of a row of BLiMP, or None if there is none."""
    words, good, bad = row["one_prefix_prefix"].split(), row["one_prefix_word_good"], row["one_prefix_word_bad"]
    if len(words) < 2 or (len(words) > 2 and words[2] not in ("of", "about")):
        return None
    is_plural = not good.split()[0].removesuffix("n't").endswith("s")
    changed = other_number(words, is_plural)
    if changed is None:
        return None
    cut = tokenizer.encode  # type: ignore[attr-defined]
    answers = [cut(" " + word, add_special_tokens=False) for word in (good, bad)]
    if answers[0][0] == answers[1][0] or (len(answers[0]) > 1 and "n't" not in good):
        return None
    if len(answers[1]) > 1 and "n't" not in bad:
        return None
    prompts = [" ".join(words), " ".join(changed)]
    if len(cut(prompts[0])) != len(cut(prompts[1])):
        return None
    first, second = (tokenizer.decode([ids[0]]) for ids in answers)  # type: ignore[attr-defined]
    numbers = ("plural", "singular") if is_plural else ("singular", "plural")
    return {
        "clean": prompts[0],
        "corrupted": prompts[1],
        "answer": first,
        "corrupted_answer": second,
        "number": numbers[0],
        "corrupted_number": numbers[1],
        "group": words[1].removesuffix("s"),
    }


def main(source: str, model: str, to: str) -> None:
    """Write the pairs of a paradigm, each pair of prompts once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in Path(source).read_text("utf-8").splitlines()]
    pairs = {(pair["clean"], pair["answer"]): pair for row in rows if (pair := pair_of(row, tokenizer)) is not None}
    Path(to).write_text("".join(json.dumps(pair) + "\n" for pair in pairs.values()), "utf-8")
    groups = len({pair["group"] for pair in pairs.values()})
    print(f"{len(pairs)} pairs of {groups} subjects, of {len(rows)} rows: {to}")


if __name__ == "__main__":
    main(*sys.argv[1:])
