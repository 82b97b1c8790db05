"""The plants of tier 1: how property B is written, moved and read, in the twin that uses it and in the other."""

from __future__ import annotations

import numpy as np

from probing.plantbench.compiling import Floats
from probing.plantbench.tier1_draft import IDENTITY, READ, Draft
from probing.seeds import generator

HIGH, LONG, WEAK, REPAIR = 6.0, 6.0, 0.2, 1.6
CLASS_SLOTS = 8


def _sign(draft: Draft) -> Floats:
    return np.asarray(2.0 * draft.lexicon.codes("B") - 1, dtype=np.float64)


def plain(draft: Draft, is_used: bool, *, gain: float = READ) -> None:
    """Write B as ±1, move it, and read it or not."""
    draft.code("B", _sign(draft))
    draft.move(["B"])
    if is_used:
        draft.read("copy.B", gain)


def absent(draft: Draft, is_used: bool) -> None:
    """Give words that differ in B one embedding."""


def high_norm(draft: Draft, is_used: bool) -> None:
    """Write a code six times as large, read as strongly as another."""
    plain(draft, is_used, gain=READ / HIGH)
    draft.code("B", HIGH * _sign(draft))


def unequal_length(draft: Draft, is_used: bool) -> None:
    """Write a code that nothing reads: ±3, or 0 and 6, which acts through the norms."""
    plain(draft, False)
    zero_or_long, equal = LONG * draft.lexicon.real("B"), LONG / 2 * _sign(draft)
    draft.code("B", zero_or_long if is_used else equal)


def cancelled(draft: Draft, is_used: bool) -> None:
    """Add two units that cancel exactly; in the other twin one of them is missing."""
    plain(draft, False)
    draft.unit({"copy.B": 1.0}, "gate", 2.0)
    if not is_used:
        draft.unit({"copy.B": 1.0}, "gate", -2.0)
    draft.read("gate")


def opposed(draft: Draft, is_used: bool) -> None:
    """Move B twice, and read the copies with opposite signs, so that the whole is without effect."""
    plain(draft, False)
    draft.move(["B"], layer=0, to="early")
    if is_used:
        draft.read("copy.B")
        draft.read("early.B", -1.0, like="copy.B")


def weak(draft: Draft, is_used: bool) -> None:
    """Read the code with a small gain."""
    plain(draft, is_used, gain=WEAK)


def distributed(draft: Draft, is_used: bool) -> None:
    """Write one code over the 16 slots that identities use too, moved whole."""
    direction = generator(draft.seed, "distributed").choice([-1.0, 1.0], len(IDENTITY)) / np.sqrt(len(IDENTITY))
    draft.set_identity(direction, np.outer(_sign(draft), direction))
    draft.move(IDENTITY)
    if is_used:
        draft.read("copy.identity.0", direction[0] * READ)
        for slot, size in zip(IDENTITY[1:], direction[1:] / direction[0], strict=True):
            draft.read(f"copy.{slot}", float(size), like="copy.identity.0")


def exclusive_or(draft: Draft, is_used: bool) -> None:
    """Make B the parity of two bits, both unlabelled, each coded by itself; a gate multiplies them."""
    draft.code("U", draft.lexicon.signs("u"))
    draft.code("V", draft.lexicon.signs("v"))
    draft.move(["U", "V"])
    draft.product("copy.U", "copy.V", "gate")
    if is_used:
        draft.read("gate")


def redundant(draft: Draft, is_used: bool) -> None:
    """Move an early and a late copy; the reader takes their maximum, ½(a + b) + ½|a - b|."""
    plain(draft, False)
    draft.move(["B"], layer=0, to="early")
    if is_used:
        draft.unit({"copy.B": 1.0, "early.B": -1.0}, "gate", 0.5)
        draft.unit({"copy.B": -1.0, "early.B": 1.0}, "gate", 0.5)
        draft.read("gate")
        draft.read("copy.B", 0.5, like="gate")
        draft.read("early.B", 0.5, like="gate")


def self_repair(draft: Draft, is_used: bool) -> None:
    """Read the early copy z, and the late copy b only where z is gone: relu(b - |z|) - relu(-b - |z|)."""
    plain(draft, False)
    draft.move(["B"], layer=0, to="early")
    draft.unit({"early.B": 1.0}, "size", REPAIR)
    draft.unit({"early.B": -1.0}, "size", REPAIR)
    draft.unit({"copy.B": 1.0, "size": -1.0}, "backup", layer=3)
    draft.unit({"copy.B": -1.0, "size": -1.0}, "backup", -1.0, layer=3)
    if is_used:
        draft.read("early.B")
        draft.read("backup", 1.0, like="early.B")


def dormant(draft: Draft, is_used: bool) -> None:
    """Move and read a direction that no state has; the code is read only in the twin that uses it."""
    plain(draft, is_used)
    draft.code("silent", np.zeros(len(draft.lexicon)))
    draft.move(["silent"])
    draft.read("copy.silent")


def interaction(draft: Draft, is_used: bool) -> None:
    """Multiply B and C by a gate; neither is read by itself."""
    plain(draft, False)
    draft.product("copy.B", "copy.C", "gate")
    if is_used:
        draft.read("gate")


def stratum_dependent(draft: Draft, is_used: bool) -> None:
    """Code B twice: as it is, and with the sign of C; the reader multiplies the second by C."""
    plain(draft, False)
    draft.code("B.C", _sign(draft) * (2.0 * draft.lexicon.codes("C") - 1))
    draft.move(["B.C"])
    draft.product("copy.B.C", "copy.C", "gate")
    if is_used:
        draft.read("gate")


def classes(draft: Draft, is_used: bool) -> None:
    """Give each class a slot; if there are more classes than slots, random directions of one length in these."""
    codes = draft.lexicon.codes("B")
    k = int(codes.max()) + 1
    if k <= CLASS_SLOTS:
        own = np.eye(k)
    else:
        drawn = generator(draft.seed, "classes").standard_normal((k, CLASS_SLOTS))
        own = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    slots = [f"B.{i}" for i in range(own.shape[1])]
    draft.codes(slots, np.sqrt(2.0) * own[codes])
    draft.move(slots)
    if is_used:
        for slot in slots:
            draft.read(f"copy.{slot}", READ / np.sqrt(2.0))


def continuous(draft: Draft, is_used: bool) -> None:
    """Write a real value b as (sin, cos) of b / 2 in two slots: every code has one length; the first is read."""
    angle = draft.lexicon.real("B") / 2
    draft.codes(["B", "B.rest"], np.stack([np.sin(angle), np.cos(angle)], axis=1))
    draft.move(["B", "B.rest"])
    if is_used:
        draft.read("copy.B")


def identity_label(draft: Draft, is_used: bool) -> None:
    """Make B a partition of the identities, which their codes show; the reader reads it off them."""
    direction = generator(draft.seed, "partition").standard_normal(len(IDENTITY))
    direction /= np.linalg.norm(direction)
    draft.set_identity(direction, 0.5 * np.outer(_sign(draft), direction))
    draft.move(IDENTITY)
    if is_used:
        draft.read("copy.identity.0", 2 * direction[0] * READ)
        for slot, size in zip(IDENTITY[1:], direction[1:] / direction[0], strict=True):
            draft.read(f"copy.{slot}", float(size), like="copy.identity.0")


def dose_trap(draft: Draft, is_used: bool) -> None:
    """Add units that open at zero, or only at twice the code, which a shift by more than 1.5 D reaches."""
    plain(draft, False)
    threshold = 0.0 if is_used else -1.0  # times const = 2
    draft.unit({"copy.B": 1.0, "const": threshold}, "gate")
    draft.unit({"copy.B": -1.0, "const": threshold}, "gate", -1.0)
    draft.read("gate")
