"""Tier 1: transformers whose weights are computed, not trained. Cases 1 to 24 and 28, built in hundredths of a second.
What each model uses is certified, by interventions on it, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from probing.plantbench.built import Built, compiled
from probing.plantbench.case import Case, Truth
from probing.plantbench.certifying import certified, values_of
from probing.plantbench.planted_model import PromptInstrument
from probing.plantbench.tier1_cases import CASES, FAMILIES, plant
from probing.seeds import child_seed, generator

PAIRS, PROBE_ROWS = 512, 4096


def cases(seed: int, *, numbers: Sequence[int] = tuple(CASES), family: str = "") -> Iterator[tuple[Case, Truth]]:
    """Yield both twins of every case, one after the other, with its truth for the cells of property B.

    Args:
        seed: seed of the generator.
        numbers: numbers of the cases.
        family: `gpt2` or `llama`; "": the seed's parity decides.

    Raises:
        PlantFailed: certification of a case contradicts the intention.
    """
    for number in numbers:
        for twin in CASES[number].twins:
            yield build(number, twin, seed, family=family)


def build(
    number: int,
    twin: str,
    seed: int,
    *,
    family: str = "",
    rows: int = 0,
    pairs: int = PAIRS,
    probe_rows: int = PROBE_ROWS,
) -> tuple[Case, Truth]:
    """Build one case and return it with its certified truth; if `rows` is 0, it has as many rows as it needs.

    The effects of a compiled model hardly vary between prompts, so fewer pairs are enough.

    Raises:
        BadParameter: there is no such case, twin or family.
        PlantFailed: certification contradicts the intention.
    """
    chosen = family or FAMILIES[seed % len(FAMILIES)]
    built = compiled(plant(number, twin, family=chosen, seed=seed))
    cells = tuple(cell for cell in built.claim.cells if cell.property == "B")
    claim = replace(built.claim, cells=cells)
    truth = certified(claim, seed=child_seed(seed, "tier 1", number), n_pairs=pairs, probe_rows=probe_rows)
    return case_of(built, truth, rows or CASES[number].rows), truth


def case_of(built: Built, truth: Truth, rows: int) -> Case:
    """Return the case of a built model on new prompts, each of which is a group of its own."""
    language = built.planted.language
    prompts = language.sample(rows, generator(built.seed, "rows", built.number))
    values = {name: values_of(language.lexicon, name) for name in language.lexicon.properties}
    return Case(
        tier=built.tier,
        number=built.number,
        name=built.name,
        twin=built.twin,
        seed=built.seed,
        instrument=PromptInstrument(built.planted, prompts),
        labels={name: z[prompts.words] for name, (z, _) in values.items()},
        n_classes={name: k for name, (_, k) in values.items()},
        groups=np.arange(rows),
        cells=tuple(truth.cells),
        types=language.lexicon.identities[prompts.words],
    )
