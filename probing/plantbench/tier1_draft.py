"""Draft: builds the circuit of a tier-1 model (a transformer with assigned weights) from codes (embeddings of words),
moves (attention heads), gates (hidden units) and reads (the unembedding).

Each of the other functions adds the parts of one case to a draft: how the value of property B of the subject word is
coded, moved from the subject to the query (the last word) and read into the answer logits. A *slot* is an orthonormal
direction of the residual stream. `is_used` chooses between the *twins* of a case: the used twin, whose answer depends
on B, and the unused one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from probing.plantbench.compiling import HEAD_WIDTH, WIDTH, Circuit, Floats, Head, Unit
from probing.plantbench.prompts import Language
from probing.seeds import generator

CONST = 2.0
IDENTITY = tuple(f"identity.{i}" for i in range(16))
BACKGROUND = tuple(f"background.{i}" for i in range(HEAD_WIDTH))
CONTEXT = tuple(f"context.{i}" for i in range(HEAD_WIDTH))
PLACE = tuple(f"place.{i}" for i in range(8))
CODE, PLACE_CODE = 0.5, 0.3  # standard deviation of a slot
CONTEXT_GAIN, READ, CONTEXT_READ = 1.5, 1.5, 0.25
MOVE, GATE = 1, 2  # layers


class Draft:
    """Collects the parts of a circuit. A new draft has the parts that all cases share: properties A and C, moved to the
    query and read there, and context words as noise.

    All identity codes have the same length, and so do all backgrounds, so that a code of ±1 has no effect through a
    norm.

    Args:
        language: language of the prompts.
        family: `gpt2` or `llama`, which decides how products are computed.
        seed: seed of codes and reads.
        read_c: whether property C is read.
    """

    def __init__(self, language: Language, *, family: str, seed: int, read_c: bool = True) -> None:
        self.language, self.lexicon, self.family, self.seed = language, language.lexicon, family, seed
        self.slots: dict[str, Floats] = {}  # (V,) embedding of every piece
        self.heads: list[tuple[int, str, list[tuple[str, str, float]]]] = []
        self.units: list[Unit] = []
        self.reads: dict[str, Floats] = {}  # (K,) by slot
        subjects: Floats = np.full(len(self.lexicon), 1.0)
        self.slots["const"] = np.full(len(language.vocabulary), CONST)
        self.code("flag", subjects)
        self._set_background()
        self.set_identity()
        for name in ("A", "C"):
            self.code(name, np.asarray(2.0 * self.lexicon.codes(name) - 1, dtype=np.float64))
        self.move(["A", "C"])
        self.read("copy.A")
        if read_c:
            self.read("copy.C")

    def code(self, slot: str, values: Floats) -> None:
        """Set the embedding of the subject words in a slot to `values` `(W,)`, and that of all other words to 0."""
        whole = np.zeros(len(self.language.vocabulary))
        whole[self.language.first_subject :] = values
        self.slots[slot] = whole

    def codes(self, slots: Sequence[str], values: Floats) -> None:
        """Set the embeddings of the subject words in k slots to the columns of `values` `(W, k)`."""
        for slot, column in zip(slots, values.T, strict=True):
            self.code(slot, column)

    def set_identity(self, avoid: Floats | None = None, mark: Floats | None = None) -> None:
        """Give each identity a random code of fixed length in 16 slots, orthogonal to `avoid` `(16,)` if it is given,
        and add `mark` `(W, 16)`.
        """
        numbers = self.lexicon.identities
        drawn = generator(self.seed, "identity").standard_normal((int(numbers.max()) + 1, len(IDENTITY)))
        if avoid is not None:
            drawn -= np.outer(drawn @ avoid, avoid) / (avoid @ avoid)
        codes = _of_length(drawn, CODE)[numbers]
        self.codes(IDENTITY, codes if mark is None else codes + mark)

    def _set_background(self) -> None:
        language, rng = self.language, generator(self.seed, "background")
        drawn = _of_length(rng.standard_normal((self.lexicon.factors["i"], len(BACKGROUND))), CODE)
        self.codes(BACKGROUND, drawn[self.lexicon.levels["i"]])
        first = language.first_subject - language.fillers
        fillers = _of_length(rng.standard_normal((language.fillers, len(BACKGROUND))), CODE)
        for slot, column in zip(BACKGROUND, fillers.T, strict=True):
            self.slots[slot][first : language.first_subject] = column

    def move(self, slots: Sequence[str], *, layer: int = MOVE, to: str = "copy") -> None:
        """Copy slots of the subject, unscaled, to the slots `TO.SLOT` of itself and of every later word, by an
        attention head in block `layer`.
        """
        copies = [(slot, f"{to}.{slot}", 1.0) for slot in slots]
        known = next((head for head in self.heads if head[:2] == (layer, "flag")), None)
        if known is None:
            self.heads.append((layer, "flag", copies))
        else:
            known[2].extend(copies)

    def read(self, slot: str, gain: float = READ, *, like: str = "") -> None:
        """Let the answer logits read a slot, with weights gain · N(0, 1), or gain times those of the slot `like`."""
        drawn = self.reads[like] if like else generator(self.seed, "read", slot).standard_normal(self.language.answers)
        self.reads[slot] = gain * drawn

    def unit(self, reads: Mapping[str, float], slot: str, size: float = 1.0, *, layer: int = GATE) -> None:
        """Add a hidden unit to the MLP of block `layer`: size · relu(Σ weight · slot), over `reads`, is added to
        `slot`.
        """
        self.units.append(Unit(layer, dict(reads), {slot: size}))

    def product(self, x: str, y: str, slot: str) -> None:
        """Write the product of two codes of ±1 to a slot: by gated units in a Llama, by four ReLUs (one for each
        combination of signs) in a GPT-2.
        """
        if self.family == "llama":
            self.units += [Unit(GATE, {x: sign}, {slot: sign}, times=y) for sign in (1.0, -1.0)]
            return
        for a, b in ((1.0, 1.0), (-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0)):
            self.unit({x: a, y: b, "const": -1 / CONST}, slot, a * b)

    def build(self) -> Circuit:
        """Return the circuit with all parts that were added."""
        rng = generator(self.seed, "context")
        subject = self._subject_norms()
        heads = [
            Head(layer, key, tuple((source, to, gain * subject[layer]) for source, to, gain in copies))
            for layer, key, copies in self.heads
        ]
        gain = CONTEXT_GAIN * subject[MOVE]
        heads.append(Head(MOVE, "", tuple((a, b, gain) for a, b in zip(BACKGROUND, CONTEXT, strict=True))))
        reads = self.reads | {slot: CONTEXT_READ * rng.standard_normal(self.language.answers) for slot in CONTEXT}
        has_places = self.family == "gpt2"
        written = [to for head in heads for _, to, _ in head.copies] + [s for unit in self.units for s in unit.writes]
        slots = tuple(dict.fromkeys([*self.slots, *written, *reads, *(PLACE if has_places else ())]))
        places = np.zeros((self.language.length, len(slots)))
        drawn = generator(self.seed, "places").standard_normal((self.language.length, len(PLACE)))
        if has_places:
            places[:, [slots.index(slot) for slot in PLACE]] = _of_length(drawn, PLACE_CODE)
        return Circuit(
            slots,
            self._table(slots, self.slots, len(self.language.vocabulary)),
            places if has_places else None,
            tuple(heads),
            tuple(self.units),
            self._table(slots, reads, self.language.answers),
            self.language.first_answer,
            self._query_norm(),
        )

    @staticmethod
    def _table(slots: tuple[str, ...], columns: Mapping[str, Floats], rows: int) -> Floats:
        return np.stack([columns.get(slot, np.zeros(rows)) for slot in slots], axis=1)

    def _mean_square(self, slot: str) -> float:
        """Return the mean square of a slot over the subjects."""
        values = self.slots.get(slot, np.zeros(1))[-len(self.lexicon) :] ** 2
        return float(np.average(values, weights=self.language.weights))

    def _place_square(self) -> float:
        return len(PLACE) * PLACE_CODE**2 if self.family == "gpt2" else 0.0

    def _subject_norms(self) -> list[float]:
        """Return the usual root mean square of the subject's state before layers 0 and 1: it copies to itself, too."""
        squares = self._place_square() + sum(self._mean_square(slot) for slot in self.slots)
        found = []
        for layer in range(MOVE + 1):
            found.append(math.sqrt(squares / WIDTH))
            squares += sum(self._mean_square(a) for at, _, copies in self.heads if at == layer for a, _, _ in copies)
        return found

    def _query_norm(self) -> float:
        copied = sum(self._mean_square(a) for _, _, copies in self.heads for a, _, _ in copies)
        context = len(CONTEXT) * (CONTEXT_GAIN * CODE) ** 2 / (self.language.length - 1)
        return math.sqrt((CONST**2 + self._place_square() + copied + context) / WIDTH)


def _of_length(rows: Floats, deviation: float) -> Floats:
    """Return rows `(n, k)` scaled to the length that k normal values of this deviation usually have."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths * deviation * math.sqrt(rows.shape[1]))


HIGH, LONG, WEAK, REPAIR = 6.0, 6.0, 0.2, 1.6
CLASS_SLOTS = 8


def _sign(draft: Draft) -> Floats:
    return np.asarray(2.0 * draft.lexicon.codes("B") - 1, dtype=np.float64)


def plain(draft: Draft, is_used: bool, *, gain: float = READ) -> None:
    """Code property B as ±1 in a slot of the subject's embedding and move it to the query by an attention head; the
    used twin reads it there into the logits, with weights of size `gain`.
    """
    draft.code("B", _sign(draft))
    draft.move(["B"])
    if is_used:
        draft.read("copy.B", gain)


def absent(draft: Draft, is_used: bool) -> None:
    """Add nothing to the draft, so that words that differ only in property B have the same embedding."""


def high_norm(draft: Draft, is_used: bool) -> None:
    """Code property B six times as large as usual; the used twin reads it with a sixth of the usual gain."""
    plain(draft, is_used, gain=READ / HIGH)
    draft.code("B", HIGH * _sign(draft))


def unequal_length(draft: Draft, is_used: bool) -> None:
    """Code property B as ±3 or, in the used twin, as 0 and 6, so that it acts through the scale of the norms; nothing
    reads the code itself.
    """
    plain(draft, False)
    zero_or_long, equal = LONG * draft.lexicon.real("B"), LONG / 2 * _sign(draft)
    draft.code("B", zero_or_long if is_used else equal)


def cancelled(draft: Draft, is_used: bool) -> None:
    """Add two hidden units that read property B and cancel exactly; the used twin lacks one of them."""
    plain(draft, False)
    draft.unit({"copy.B": 1.0}, "gate", 2.0)
    if not is_used:
        draft.unit({"copy.B": 1.0}, "gate", -2.0)
    draft.read("gate")


def opposed(draft: Draft, is_used: bool) -> None:
    """Move property B to the query twice; the used twin reads the two copies with opposite signs, so that together they
    have no effect.
    """
    plain(draft, False)
    draft.move(["B"], layer=0, to="early")
    if is_used:
        draft.read("copy.B")
        draft.read("early.B", -1.0, like="copy.B")


def weak(draft: Draft, is_used: bool) -> None:
    """Code property B as in `plain`; the used twin reads it with a small gain."""
    plain(draft, is_used, gain=WEAK)


def distributed(draft: Draft, is_used: bool) -> None:
    """Spread the code of property B over the 16 slots that hold the random codes of the identities
    (`Draft.set_identity`), and move all of these slots to the query.
    """
    direction = generator(draft.seed, "distributed").choice([-1.0, 1.0], len(IDENTITY)) / np.sqrt(len(IDENTITY))
    draft.set_identity(direction, np.outer(_sign(draft), direction))
    draft.move(IDENTITY)
    if is_used:
        draft.read("copy.identity.0", direction[0] * READ)
        for slot, size in zip(IDENTITY[1:], direction[1:] / direction[0], strict=True):
            draft.read(f"copy.{slot}", float(size), like="copy.identity.0")


def exclusive_or(draft: Draft, is_used: bool) -> None:
    """Make property B the parity of two unlabelled bits, each with its own code, and multiply the codes; the used twin
    reads the product.
    """
    draft.code("U", draft.lexicon.signs("u"))
    draft.code("V", draft.lexicon.signs("v"))
    draft.move(["U", "V"])
    draft.product("copy.U", "copy.V", "gate")
    if is_used:
        draft.read("gate")


def redundant(draft: Draft, is_used: bool) -> None:
    """Move property B to the query twice, early and late; the used twin reads the maximum of the copies a and b, ½(a +
    b) + ½|a - b|.
    """
    plain(draft, False)
    draft.move(["B"], layer=0, to="early")
    if is_used:
        draft.unit({"copy.B": 1.0, "early.B": -1.0}, "gate", 0.5)
        draft.unit({"copy.B": -1.0, "early.B": 1.0}, "gate", 0.5)
        draft.read("gate")
        draft.read("copy.B", 0.5, like="gate")
        draft.read("early.B", 0.5, like="gate")


def self_repair(draft: Draft, is_used: bool) -> None:
    """Move property B to the query twice. The used twin reads the early copy z, and reads the late copy b only if z is
    ablated: relu(b − c|z|) − relu(−b − c|z|), with c = `REPAIR`.
    """
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
    """Move and read a slot that is 0 for every word; only the used twin reads the code of property B."""
    plain(draft, is_used)
    draft.code("silent", np.zeros(len(draft.lexicon)))
    draft.move(["silent"])
    draft.read("copy.silent")


def interaction(draft: Draft, is_used: bool) -> None:
    """Write the product of properties B and C to a slot. The used twin reads the product into the logits; no twin reads
    B by itself.
    """
    plain(draft, False)
    draft.product("copy.B", "copy.C", "gate")
    if is_used:
        draft.read("gate")


def stratum_dependent(draft: Draft, is_used: bool) -> None:
    """Code property B in one slot and B times the sign of property C in another. Multiply the second by C, which gives
    B again; the used twin reads this product.
    """
    plain(draft, False)
    draft.code("B.C", _sign(draft) * (2.0 * draft.lexicon.codes("C") - 1))
    draft.move(["B.C"])
    draft.product("copy.B.C", "copy.C", "gate")
    if is_used:
        draft.read("gate")


def classes(draft: Draft, is_used: bool) -> None:
    """Give each class of property B its own slot or, if there are more than eight classes, a random direction of fixed
    length in eight slots.
    """
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
    """Code property B, a real value b, as sin(b / 2) and cos(b / 2) in two slots, so that all codes have length 1; the
    used twin reads the sine.
    """
    angle = draft.lexicon.real("B") / 2
    draft.codes(["B", "B.rest"], np.stack([np.sin(angle), np.cos(angle)], axis=1))
    draft.move(["B", "B.rest"])
    if is_used:
        draft.read("copy.B")


def identity_label(draft: Draft, is_used: bool) -> None:
    """Make property B a partition of the identities, and shift their codes along one direction by its sign; the used
    twin reads that direction.
    """
    direction = generator(draft.seed, "partition").standard_normal(len(IDENTITY))
    direction /= np.linalg.norm(direction)
    draft.set_identity(direction, 0.5 * np.outer(_sign(draft), direction))
    draft.move(IDENTITY)
    if is_used:
        draft.read("copy.identity.0", 2 * direction[0] * READ)
        for slot, size in zip(IDENTITY[1:], direction[1:] / direction[0], strict=True):
            draft.read(f"copy.{slot}", float(size), like="copy.identity.0")


def dose_trap(draft: Draft, is_used: bool) -> None:
    """Add hidden units on the code of property B. In the used twin they open at 0; in the other only beyond twice the
    code, which a swap reaches at doses above 1.5.
    """
    plain(draft, False)
    threshold = 0.0 if is_used else -1.0  # times const = 2
    draft.unit({"copy.B": 1.0, "const": threshold}, "gate")
    draft.unit({"copy.B": -1.0, "const": threshold}, "gate", -1.0)
    draft.read("gate")
