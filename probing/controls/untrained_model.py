"""Uses the states of an untrained copy of the model (its twin), which has the same architecture and random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.control import Ints, Probed, StateControl, StateSource, StateTable
from probing.errors import BadParameter, ProvenanceMismatch


@dataclass(frozen=True, kw_only=True)
class UntrainedModelControl(StateControl):
    """Uses the states of an untrained copy of the model (its twin: the same architecture with random weights), from a
    second store of the same corpus, to show what training the model adds.

    The states of an untrained network distinguish words and positions quite well, and mix context at random. The second
    store is made by the same `probing extract` with `--untrained SEED` and another `--to`. For several sets of random
    weights, make several stores and name several controls.

    Args:
        store: directory of the second store (in a study file: left out for the study's own untrained extraction).

    References:
        Zhang and Bowman 2018, Language Modeling Teaches You More than Translation Does.
    """

    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = "an untrained network of this form would do as well"
    draws: ClassVar[int] = 1  # type: ignore[misc]

    store: str = ""

    def source(self, probed: Probed) -> TwinStates:
        """Return a source of the states of the untrained twin. `probed` holds the store, the sites and the labels.

        Raises:
            BadParameter: no store is named.
            ProvenanceMismatch: the store was not made by an untrained copy of the same model, or its corpus, rows or
                sites differ.
        """
        if not self.store:
            raise BadParameter(
                "untrained_model needs a second store",
                needed="untrained_model:store=DIR",
                found="no store",
                next_step="make one by the same `probing extract` with --untrained 0 and another --to",
            )
        twin = probed.opened(Path(self.store))
        _check_twin(probed.table.identity, twin.identity, self.store)
        _check_rows(probed, twin, self.store)
        seed = twin.identity["model"]["untrained"]["seed"]
        return TwinStates(twin, f"untrained_model:seed={seed}", "the untrained twin")


@dataclass(frozen=True, eq=False)
class TwinStates(StateSource):
    """Gives the states of the untrained twin (the same architecture with random weights) at the same site, from its own
    store.

    Attributes:
        table: the twin's store.
        name, above: as in `StateSource`.
    """

    table: StateTable
    name: str
    above: str

    def stand_in(self, site: str) -> str:
        """Return the site itself, since the twin has its own states for every site."""
        return site

    def read(self, site: str, rows: Ints, *, draw: int) -> NDArray[np.float32]:
        """Return the twin's states `(N, D)` of these N rows of the store at `site`; `draw` has no effect."""
        return self.table.read(site, rows)

    def recipe(self) -> dict[str, str]:
        """Return a dict with the content id of the twin's store, which does not depend on the folder that the store is
        in.
        """
        return {"content_id": self.table.content_id}


def _check_twin(ours: Any, theirs: Any, where: str) -> None:
    """Stop unless the other store's model is the untrained twin of this one."""
    model, twin = ours["model"], theirs["model"]
    untrained = twin.get("untrained")
    parameters = untrained.get("parameters") if isinstance(untrained, dict) else None
    if not parameters:
        raise _wrong(
            "the control's store is not of an untrained model",
            "a store made with --untrained SEED",
            f"the states of {twin.get('source', 'an unknown model')} as it was trained",
            where,
        )
    own = (model.get("untrained") or {}).get("parameters", (model.get("weights") or {}).get("parameters"))
    if parameters == own:
        raise _wrong(
            "the control's model is the probed one", "other weights", f"the same parameters, {parameters[:12]}…", where
        )
    facts = {"class": "class", "config": "configuration"}
    differing = [name for key, name in facts.items() if model.get(key) != twin.get(key)]
    tokenizers = [(identity.get("tokenizer") or {}).get("files") for identity in (ours, theirs)]
    differing += ["tokenizer"] if tokenizers[0] != tokenizers[1] else []
    if differing:
        raise _wrong(
            "the control's store is not of the untrained twin",
            "the same architecture and tokenizer",
            f"another {', '.join(differing)}",
            where,
        )


def _check_rows(probed: Probed, twin: StateTable, where: str) -> None:
    """Stop unless the other store has the same rows of the same corpus, and every site that is probed."""
    table = probed.table
    ours, theirs = (str(one.identity["corpus"]["fingerprint"]) for one in (table, twin))
    if ours != theirs:
        raise _wrong("the control's store is of another corpus", f"corpus {ours[:12]}…", f"{theirs[:12]}…", where)
    ours, theirs = (str(one.identity["extraction"]["rows"]) for one in (table, twin))
    if ours != theirs:
        raise _wrong("the control's store has other rows", f"rows {ours}", f"rows {theirs}", where)
    pairs = ((table.rows.example, twin.rows.example), (table.rows.word, twin.rows.word))
    if not all(np.array_equal(one, other) for one, other in pairs):
        count = len(table.rows.example)
        raise _wrong(
            "the control's store has rows of other words",
            f"the same {count:,} rows",
            f"{len(twin.rows.example):,} rows, of other words or examples",
            where,
        )
    if lacking := [site for site in probed.sites if site not in twin.sites]:
        raise _wrong(
            "the control's store lacks sites that are probed", ", ".join(lacking), ", ".join(twin.sites), where
        )


def _wrong(message: str, needed: str, found: str, where: str) -> ProvenanceMismatch:
    return ProvenanceMismatch(
        message,
        needed=needed,
        found=found,
        where=where,
        next_step="make it by the `probing extract` of the probed store, with --untrained SEED and another --to",
    )


MEMBER = UntrainedModelControl
