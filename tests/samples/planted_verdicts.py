"""Verdicts on what `scripts/_bench_use.py` plants, and how often a word is said over many seeds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache

from scipy.stats import binom

from probing.results.use import UseResult
from probing.use.effects import UseOptions
from probing.use.measure import measure_property
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Verdict
from scripts._bench_use import Planted, planted
from tests.samples.counting import at_most

QUICK = UseOptions(curve=False, details=False, null=False)
SEEDS = 100


def verdict_of(p: Planted, seed: int, options: UseOptions = QUICK) -> tuple[UseResult, Verdict]:
    instrument, prop = planted(p, seed)
    result = measure_property(instrument, prop, options=dataclasses.replace(options, seed=seed))
    return result, judge([result])[0]


@cache  # the default tests and the slow ones have seeds in common
def word_of(p: Planted, seed: int) -> str:
    return verdict_of(p, seed)[1].word.coarse


def words(p: Planted, seeds: int) -> Counter[str]:
    return Counter(word_of(p, seed) for seed in range(seeds))


def is_as_rare_as_stated(word: str, p: Planted) -> bool:
    """Whether a word that is wrong is said in no more of the seeds than 5 % allows for."""
    return at_most(binom.ppf(0.975, SEEDS, 0.05), lambda seed: word_of(p, seed) == word, range(SEEDS))
