"""Finds an example of a corpus by its ordinal, and a split by its name."""

from __future__ import annotations

from collections.abc import Sequence

from probing.errors import BadParameter, NoSuchExample, unknown_name
from probing.text.example import Example
from probing.text.sources import split_name


def example_at(examples: Sequence[Example], index: int, source: str) -> Example:
    """Return the example at an ordinal, which counts from the end if it is negative.

    Raises:
        NoSuchExample: there is none; it is an IndexError, too.
        BadParameter: `index` is no whole number.
    """
    count = len(examples)
    try:
        return examples[index]
    except IndexError:
        raise NoSuchExample(
            f"there is no example {index}",
            needed=f"a number from 0 to {count - 1}, or from -1 back to -{count}" if count else "",
            found=f"{index}, in a corpus of {count:,} examples",
            where=source,
        ) from None
    except TypeError:
        raise BadParameter(
            "a corpus is not indexed in this way",
            needed="corpus[3], corpus[10:20] or the name of a split, corpus['train']",
            found=f"{type(index).__name__} {index!r}"[:200],
            next_step="corpus.filter(lambda example: …) chooses examples by what they hold",
        ) from None


def split_called(name: str, splits: Sequence[str], source: str) -> str:
    """Return the split with this name, or with the usual name for it: `validation` is `dev`.

    Raises:
        UnknownName: there is none; the message lists the splits.
    """
    split = name if name in splits else split_name(name)
    if split not in splits:
        raise unknown_name("split", name, splits, where=source)
    return split
