"""Makes pairs of prompts for `probing patch` and `probing circuit` from BLiMP's paradigms of number.

    scripts/blimp_pairs.py PARADIGM.jsonl MODEL PAIRS.jsonl

A clean prompt is a sentence up to where the good and the bad one part; the answers are the tokens at which they do. The
corrupted prompt is, in paradigms of subject–verb agreement, the clean one with the subject in the other number, and a
determiner that allows it; of determiner–noun agreement, with the determiner that ends it in the other number; of
anaphor agreement, that of another row, whose good word is the bad one here. Only pairs whose prompts have equally many
tokens, and whose answers are single tokens, are written. `group` is the subject, the noun that is the answer, or, of
anaphors, the row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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


def pair_of(row: dict[str, str], tokenizer: Any) -> dict[str, str] | None:
    """Return a pair made of a row of BLiMP, or None if there is none."""
    words, good, bad = row["one_prefix_prefix"].split(), row["one_prefix_word_good"], row["one_prefix_word_bad"]
    if len(words) < 2 or (len(words) > 2 and words[2] not in ("of", "about")):
        return None
    is_plural = not good.split()[0].removesuffix("n't").endswith("s")
    changed = other_number(words, is_plural)
    if changed is None:
        return None
    cut = tokenizer.encode
    answers = [cut(" " + word, add_special_tokens=False) for word in (good, bad)]
    if answers[0][0] == answers[1][0] or (len(answers[0]) > 1 and "n't" not in good):
        return None
    if len(answers[1]) > 1 and "n't" not in bad:
        return None
    prompts = [" ".join(words), " ".join(changed)]
    if len(cut(prompts[0])) != len(cut(prompts[1])):
        return None
    first, second = (tokenizer.decode([ids[0]]) for ids in answers)
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


def determiner_pair(row: dict[str, str], tokenizer: Any) -> dict[str, str] | None:
    """Return a pair made of a row on a determiner and its noun, or None if there is none."""
    words, good, bad = row["one_prefix_prefix"].split(), row["one_prefix_word_good"], row["one_prefix_word_bad"]
    answers = [tokenizer.encode(" " + word, add_special_tokens=False) for word in (good, bad)]
    if words[-1].capitalize() not in OTHER or any(len(answer) > 1 for answer in answers):
        return None
    numbers = ("plural", "singular") if words[-1] in ("these", "those") else ("singular", "plural")
    return {
        "clean": " ".join(words),
        "corrupted": " ".join([*words[:-1], OTHER[words[-1].capitalize()].lower()]),
        "answer": " " + good,
        "corrupted_answer": " " + bad,
        "number": numbers[0],
        "corrupted_number": numbers[1],
        "group": good if numbers[0] == "singular" else bad,
    }


def anaphor_pairs(rows: list[dict[str, str]], tokenizer: Any) -> list[dict[str, str]]:
    """Return pairs of rows on anaphors whose prompts have equally many tokens; every row is in one of them at most."""
    waiting: dict[tuple[int, str, str], list[dict[str, str]]] = {}
    pairs = []
    for row in rows:
        good, bad = row["one_prefix_word_good"], row["one_prefix_word_bad"]
        size = len(tokenizer.encode(row["one_prefix_prefix"], add_special_tokens=False))
        others = waiting.get((size, bad, good))
        if not others:
            waiting.setdefault((size, good, bad), []).append(row)
            continue
        numbers = ("plural", "singular") if good == "themselves" else ("singular", "plural")
        pairs.append(
            {
                "clean": row["one_prefix_prefix"],
                "corrupted": others.pop(0)["one_prefix_prefix"],
                "answer": " " + good,
                "corrupted_answer": " " + bad,
                "number": numbers[0],
                "corrupted_number": numbers[1],
                "group": row["one_prefix_prefix"],
            }
        )
    cut, answers = tokenizer.encode, ("answer", "corrupted_answer")
    return [pair for pair in pairs if all(len(cut(pair[key], add_special_tokens=False)) == 1 for key in answers)]


def pairs_of(rows: list[dict[str, str]], tokenizer: Any) -> list[dict[str, str]]:
    """Return the pairs of a paradigm, which the first row names."""
    paradigm = rows[0]["UID"]
    if paradigm.startswith("anaphor"):
        return anaphor_pairs(rows, tokenizer)
    made = determiner_pair if paradigm.startswith("determiner") else pair_of
    return [pair for row in rows if (pair := made(row, tokenizer)) is not None]


def main(source: str, model: str, to: str) -> None:
    """Write the pairs of a paradigm, each pair of prompts once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in Path(source).read_text("utf-8").splitlines()]
    pairs = {(pair["clean"], pair["answer"]): pair for pair in pairs_of(rows, tokenizer)}
    Path(to).write_text("".join(json.dumps(pair) + "\n" for pair in pairs.values()), "utf-8")
    groups = len({pair["group"] for pair in pairs.values()})
    print(f"{len(pairs)} pairs of {groups} groups, of {len(rows)} rows: {to}")


if __name__ == "__main__":
    main(*sys.argv[1:])
