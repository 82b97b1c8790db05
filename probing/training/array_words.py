"""Next steps in terms of arrays, for `pb.probe`: its user has no corpus, store, column or flag to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from probing.errors import ProbingError, UnitFailed

# What a next step of `train` may speak of and a user of arrays does not have.
FOREIGN = re.compile(
    r"--[a-z]|\b(?:files?|stores?|corpus|corpora|columns?|annotations?|extract|extraction|documents?|sentences?|tokenizer)\b"
    r"|\bprobing (?:train|extract|store)\b",
    re.IGNORECASE,
)
# The step for each error, by how its message begins.
_STEPS = (
    ("no row has a label", "give labels in y: None and NaN are missing, and such rows are left out"),
    ("column ", "give labels in y: None and NaN are missing, and such rows are left out"),
    ("no labelled rows in", "give more groups, or labels in y for rows of train, dev and test"),
    ("too few groups to split", "give rows of at least three groups, or split= with train, dev and test"),
    ("all train rows have one label", "give rows with another label in y, or another split"),
    ("fewer train rows than classes", "give more rows or fewer classes, or kind='real' if y holds numbers"),
    ("no label of", "check that the labels of y are spelt alike in all splits"),
    ("no dev row can be scored", "check that the labels of y are spelt alike in all splits"),
    ("no interval can be given", "give rows of more groups, or leave groups out"),
    ("states that are not finite", "leave these rows or this site out of X, or compute the states in float32"),
    ("the word_type control needs", "give keys=: the control draws one label for each of them"),
    ("the keyed control needs", "give keys=: the control draws one label for each of them"),
    ("the key ", "give keys= that recur on several rows with different labels, or another control"),
    ("rows without a ", "give every row a key, or leave the row out of all arrays"),
    ("random_states needs", "give keys=, each of which gets one vector, or leave the control out"),
    ("untrained_model needs", "leave the control out, or give the untrained model's states as an X of their own"),
    ("the control static has", "give X as {site: states} with a lower site, such as embed"),
    ("control ", "give keys= with more values, or another root_seed"),
    ("values must be different numbers", "write, for instance, analyses=['capacity:values=1|2|5|10']"),
    ("the bootstrap samples of", "delete it and run pb.probe again with the same arrays and to="),
)
_ANY = "change what the message names: X, y, groups, keys, texts, split, or the options probes, controls and measures"


def step_for_arrays(message: str, next_step: str) -> str:
    """Return the next step of an error as a user of arrays can take it: unchanged if it speaks of nothing else."""
    if message.startswith("unknown key of"):
        return "give keys=, values that several rows share, or leave the control out"
    if not FOREIGN.search(next_step):
        return next_step
    if " reads all pieces " in message:
        return "leave this probe out: it reads every token of a row, and X has one state a row"
    if " cannot be fitted" in message:
        return "give rows of another label in y, or another split"
    if " is not numeric" in message:
        return "give numbers in y, or kind='classes'"
    return next((step for beginning, step in _STEPS if message.startswith(beginning)), _ANY)


@contextmanager
def in_terms_of_arrays() -> Iterator[None]:
    """Within the block, give errors a next step in terms of arrays; those of single fits within `UnitFailed`, too."""
    try:
        yield
    except ProbingError as error:
        for one in (error, *(error.errors.values() if isinstance(error, UnitFailed) else ())):
            one.next_step = step_for_arrays(one.message, one.next_step)
        raise
