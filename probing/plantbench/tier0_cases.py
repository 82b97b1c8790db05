"""The list of tier 0's cases: how each is built, with which knobs, and which twins it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from probing.plantbench import tier0_codes as codes
from probing.plantbench import tier0_reads as reads
from probing.plantbench import tier0_wider as wider
from probing.plantbench.plants import Builder, KnobsOf

TwinName = Literal["unused", "used"]


@dataclass(frozen=True)
class Spec:
    """The specification of one case.

    Attributes:
        name: as printed.
        build: the plant of either twin, from knobs and seed.
        knobs: what it is drawn with, from the knobs of all cases and the seed; None: these.
        twins: those it has.
    """

    name: str
    build: Builder
    knobs: KnobsOf | None = None
    twins: tuple[TwinName, ...] = ("unused", "used")


CASES: Mapping[int, Spec] = MappingProxyType(
    {
        1: Spec("plain", codes.plain),
        2: Spec("absent", codes.absent, twins=("unused",)),
        3: Spec("high_norm", codes.high_norm),
        4: Spec("unequal_length", codes.unequal_length),
        5: Spec("correlated", codes.correlated),
        6: Spec("cancelled", reads.cancelled),
        7: Spec("opposed", reads.opposed),
        8: Spec("weak", codes.weak),
        9: Spec("distributed", codes.distributed),
        10: Spec("product", reads.product),
        11: Spec("redundant", reads.redundant),
        12: Spec("self_repair", reads.self_repair),
        13: Spec("dormant", reads.dormant),
        16: Spec("interaction", reads.interaction),
        17: Spec("stratum_code", reads.stratum_code),
        18: Spec("five_classes", codes.five_classes),
        19: Spec("continuous", codes.continuous),
        20: Spec("rare", codes.rare),
        21: Spec("identity_label", codes.identity_label),
        22: Spec("dose_trap", reads.dose_trap),
        23: Spec("four_classes", wider.many_classes(0, zipf=False), wider.fewer_rows),
        24: Spec("four_zipf_classes", wider.many_classes(0, zipf=True), wider.fewer_rows),
        25: Spec("six_classes", wider.many_classes(1, zipf=False), wider.fewer_rows),
        26: Spec("six_zipf_classes", wider.many_classes(1, zipf=True), wider.fewer_rows),
        27: Spec("seventeen_classes", wider.many_classes(2, zipf=False), wider.fewer_rows),
        28: Spec("seventeen_zipf_classes", wider.many_classes(2, zipf=True), wider.fewer_rows),
        29: Spec("zipf_documents", wider.documents, wider.zipf_documents),
        30: Spec("treebank_documents", wider.documents, wider.treebank_documents),
        31: Spec("majority", wider.majority),
        32: Spec("effect_below", wider.of_size(0), twins=("used",)),
        33: Spec("effect_at", wider.of_size(1), twins=("used",)),
        34: Spec("effect_above", wider.of_size(2), twins=("used",)),
        35: Spec("effect_well_above", wider.of_size(3), twins=("used",)),
        36: Spec("small_opposed", wider.small_opposed, twins=("used",)),
        37: Spec("as_wide_as_long", codes.plain, wider.wide(0)),
        38: Spec("wider_than_long", codes.plain, wider.wide(1)),
        39: Spec("groups_of_one", codes.plain, wider.groups_of_size(0)),
        40: Spec("groups_of_two", codes.plain, wider.groups_of_size(1)),
        41: Spec("groups_of_seven", codes.plain, wider.groups_of_size(2)),
        42: Spec("mixed_groups", codes.plain, wider.mixed_groups),
        43: Spec("crossing_groups", wider.crossing_groups, wider.even_groups),
    }
)
