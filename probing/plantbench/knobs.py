"""Knobs: the settings that cases of tier 0 are drawn with; the development configuration, and the held-out one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probing.errors import BadParameter
from probing.seeds import generator

VERSION = "2"  # of the generator: a changed one gets another
DEVELOPMENT_SEEDS = tuple(range(20))
CI_SEEDS = (0, 1, 2)
HELD_OUT_DRAWS = 10  # of tier 0

Squash = Literal["linear", "tanh", "softsign"]
Grouping = Literal["equal", "mixed", "zipf", "lognormal"]


@dataclass(frozen=True)
class Knobs:
    """Holds the settings that a case of tier 0 is drawn with.

    Attributes:
        n: number of rows given to rules.
        answers: number of answers V.
        width: width of the states d.
        noise: SD of the states beside the codes (codes are ±1).
        gain: length of a read vector (the weights `(V,)` of a slot), divided by the root of V.
        noise_gain, noise_reads: SD of the weights of noise directions, and number of noise directions that are read.
        weak: gain of case 8, as a share of `gain`.
        rhos: correlations of case 5, by seed mod 3.
        norm: length of the code of case 3, instead of 1.
        balance: share of class 1 of binary properties.
        rare: share of the rare class in case 20.
        classes: number of classes in case 18.
        identities: number of identities in case 21.
        group_size, group_share: number of rows of a group, and share of the noise's variance that they have in common.
        squash: function that the model applies to normalised coordinates before its linear read.
        n_pairs: number of minimal pairs for certification.
        twins: whether half of the rows are minimal pairs of the other half.
        grouping: sizes of groups: all of `group_size`; 1 to `largest` at random; or `documents` of them, with sizes as
            1, 1/2, 1/3 … to the power of `tail`, or log-normal with `spread`.
        largest, documents, tail, spread: parameters of `grouping`; shares of Zipf classes use the same `tail`.
        document_share: share of the noise's variance that rows of a document have in common.
        loud: gain of the noise in cases 23 to 30 and 37 to 43.
        group_sizes, mixed_share: sizes of groups in cases 39 to 42, and share of variance that their rows have in
            common.
        many: numbers of classes in cases 23 to 28, which have `n` rows, half or a quarter of them, by seed mod 3.
        multiples, off_multiple: effects of cases 32 to 35, and of 36, in units of ε, the smallest effect of interest.
        voters: number of positions in case 31.
        wide: widths of cases 37 and 38, as multiples of their number of rows, `n` / 10.
    """

    n: int = 6000
    answers: int = 12
    width: int = 64
    noise: float = 0.5
    gain: float = 1.5
    noise_gain: float = 0.25
    noise_reads: int = 20
    weak: float = 0.2
    rhos: tuple[float, ...] = (0.5, 0.8, 0.95)
    norm: float = 6.0
    balance: float = 0.5
    rare: float = 0.02
    classes: int = 5
    identities: int = 96
    group_size: int = 4
    group_share: float = 0.2
    squash: Squash = "linear"
    n_pairs: int = 4096
    twins: bool = False
    grouping: Grouping = "equal"
    largest: int = 12
    documents: int = 150
    tail: float = 1.0
    spread: float = 1.5
    document_share: float = 0.64
    loud: float = 0.75
    group_sizes: tuple[int, int, int] = (1, 2, 7)
    mixed_share: float = 0.5
    many: tuple[int, int, int] = (4, 6, 17)
    multiples: tuple[float, float, float, float] = (0.8, 1.0, 1.25, 1.6)
    off_multiple: float = 1.6
    voters: int = 3
    wide: tuple[float, float] = (1.0, 2.0)

    def __post_init__(self) -> None:
        if self.width < 20 + self.noise_reads:
            raise BadParameter(
                "too narrow for codes and noise", needed="a width of noise_reads + 20 or more", found=str(self.width)
            )
        if min(self.n, self.answers, self.group_size, self.identities, self.n_pairs) < 1 or self.classes < 3:
            raise BadParameter("a size is out of range", needed="1 or more; 3 or more classes", found=str(self))
        if min(self.largest, self.documents, *self.group_sizes) < 1 or min(self.many) < 3 or self.voters % 2 == 0:
            raise BadParameter(
                "a number of the newer cases is out of range",
                found=str(self),
                needed="sizes of 1 or more, 3 or more classes, an odd number of voters",
            )
        if self.twins and self.n % 2:
            raise BadParameter("the twins track needs an even number of rows", needed="2m", found=str(self.n))


def held_out_version(package: str) -> str:
    """Return the name of a release's held-out configuration, which changes with the package and with the generator."""
    return f"{package}+{VERSION}"


def holdout_seed(version: str) -> int:
    """Return the root seed of the held-out configuration, a hash of the version's name."""
    return int.from_bytes(hashlib.sha256(f"plantbench-holdout-{version}".encode()).digest()[:4], "big")


def held_out(version: str, seed: int) -> Knobs:
    """Return knobs drawn from wider ranges, determined by version and seed. Run them once per release, and never tune
    against them.
    """
    rng = generator(holdout_seed(version), "knobs", seed)
    squashes: tuple[Squash, ...] = ("linear", "tanh", "softsign")
    return Knobs(
        n=int(rng.choice([4000, 6000, 8000])),
        answers=int(rng.integers(4, 33)),
        width=int(rng.choice([48, 64, 96, 128])),
        noise=float(rng.uniform(0.3, 0.7)),
        gain=float(rng.uniform(1.0, 2.5)),
        rhos=tuple(np.sort(rng.uniform(0.3, 0.95, 3)).tolist()),
        norm=float(rng.uniform(3, 8)),
        balance=float(rng.uniform(0.35, 0.65)),
        classes=int(rng.integers(3, 8)),
        group_size=int(rng.integers(1, 9)),
        group_share=float(rng.uniform(0, 0.5)),
        squash=squashes[int(rng.integers(3))],
        largest=int(rng.integers(5, 25)),
        documents=int(rng.integers(90, 260)),
        tail=float(rng.uniform(0.7, 1.2)),
        spread=float(rng.uniform(1.0, 1.8)),
        document_share=float(rng.uniform(0.3, 0.8)),
        loud=float(rng.uniform(0.25, 1.0)),
        group_sizes=(1, int(rng.integers(2, 4)), int(rng.integers(5, 16))),
        mixed_share=float(rng.uniform(0.2, 0.7)),
        many=(4, int(rng.integers(5, 11)), int(rng.integers(12, 21))),
        multiples=(float(rng.uniform(0.6, 0.9)), 1.0, float(rng.uniform(1.25, 1.4)), float(rng.uniform(1.5, 2.0))),
        off_multiple=float(rng.uniform(1.3, 2.0)),
        voters=int(rng.choice([3, 5])),
        wide=(float(rng.uniform(0.7, 1.4)), float(rng.uniform(1.6, 2.5))),
    )
