"""Defines `LatentContexts`, which holds the tokens, in context, on which latents are most active, and the rows where a
probe of a property disagrees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.files.whole_files import write_atomically, write_parquet
from probing.results._reading import read_result

if TYPE_CHECKING:
    import pandas as pd

NAME = "latent_contexts.json"
TABLE, DISAGREEMENTS = "latent_contexts.parquet", "latent_disagreements.parquet"
TOP = "top"
LIMITS = (
    "The contexts that excite a latent most show its extremes. What it does at ordinary strength stands in the lower "
    "bands; a name that fits the top alone does not fit the latent.",
    "A latent and a probe that agree read alike here; neither shows that the model uses what they read.",
)


@dataclass(frozen=True)
class LatentFacts:
    """Holds facts about a latent.

    Attributes:
        latent: its number.
        density: share of the rows on which it is active.
        largest, mean: largest activation, and mean over the rows on which it is active; 0 where it never is.
        name: its explanations in the export of Neuronpedia; "" if there are none.
        exported_density, exported_largest: the same facts in that export; None: not known.
        page: address of its page there; "" if there is none.
        exported_contexts: contexts in that export, the token with the largest activation in double angle brackets.
    """

    latent: int
    density: float
    largest: float
    mean: float
    name: str = ""
    exported_density: float | None = None
    exported_largest: float | None = None
    page: str = ""
    exported_contexts: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatentContext:
    """Holds a row on which a latent is active, in its context.

    Attributes:
        latent: number of the latent.
        band: `top`, or the quantiles of its positive activations between which this one lies, such as `50–90 %`.
        rank: place in the band, from 1; those of `top` are ordered by activation, the others drawn at random.
        activation: activation of the latent.
        example, id: number and id of the text in the corpus.
        char_start, char_end: span of the token in the text.
        left, token, right: the text before, the token, and the text after it.
    """

    latent: int
    band: str
    rank: int
    activation: float
    example: int
    id: str
    char_start: int
    char_end: int
    left: str
    token: str
    right: str


@dataclass(frozen=True)
class ProbeBeside:
    """Holds how a latent and a linear probe of a property agree on the rows of test.

    Attributes:
        latent: number of the latent.
        task, label, probe: the property, the class that both look for, and the probe.
        sign: 1 where the latent is active on the class, -1 where it is active on the others, 0 where no activation
            separates them on train; the latent then never predicts the class.
        threshold: activation above which the latent predicts the class (for sign -1, the other classes); chosen on
            train for the best balanced accuracy.
        both, probe_only, latent_only, neither: numbers of rows for which both, one or neither of them predicts the
            class.
        probe_accuracy, latent_accuracy: balanced accuracy of each on these rows.
    """

    latent: int
    task: str
    label: str
    probe: str
    sign: int
    threshold: float
    both: int
    probe_only: int
    latent_only: int
    neither: int
    probe_accuracy: float
    latent_accuracy: float


@dataclass(frozen=True)
class Disagreement:
    """Holds a row of test where a probe and a latent disagree.

    Attributes:
        latent: number of the latent.
        kind: `probe only` or `latent only`: which of the two predicts the class.
        rank: place among the rows of this kind, from 1, the most certain prediction first.
        activation: activation of the latent.
        probe_score: natural log odds of the probe.
        label: the row's own label.
        example, id, char_start, char_end, left, token, right: as for `LatentContext`.
    """

    latent: int
    kind: str
    rank: int
    activation: float
    probe_score: float
    label: str
    example: int
    id: str
    char_start: int
    char_end: int
    left: str
    token: str
    right: str


@dataclass(frozen=True)
class LatentContexts:
    """Holds contexts of some latents of a dictionary.

    Attributes:
        model, site: names of the model and the site whose states are encoded.
        dictionary: content id of the dictionary; `latents`, its number of latents.
        rows: number of rows that were encoded.
        chosen_by: how the latents were chosen, as a phrase.
        facts: facts about each latent.
        contexts: rows in context, by latent and band.
        probes: agreement of a linear probe with each latent; empty if no property was named.
        disagreements: rows of test where probe and latent disagree.
        about: ids of the store and of the Neuronpedia export, and the version of this package.
    """

    model: str
    site: str
    dictionary: str
    latents: int
    rows: int
    chosen_by: str
    facts: tuple[LatentFacts, ...]
    contexts: tuple[LatentContext, ...]
    probes: tuple[ProbeBeside, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return a DataFrame with one row per context; it is the content of latent_contexts.parquet."""
        import pandas as pd

        known = {one.latent: one for one in self.facts}
        rows = [
            {"latent": one.latent, "name": known[one.latent].name, "density": known[one.latent].density} | asdict(one)
            for one in self.contexts
        ]
        return pd.DataFrame(
            rows, columns=[*_FACTS, *(name for name in LatentContext.__dataclass_fields__ if name != "latent")]
        )

    def disagreement_table(self) -> pd.DataFrame:
        """Return a DataFrame with one row per disagreement; it is the content of latent_disagreements.parquet."""
        import pandas as pd

        return pd.DataFrame(
            [asdict(one) for one in self.disagreements], columns=list(Disagreement.__dataclass_fields__)
        )

    def to_json(self) -> str:
        """Return the result as JSON."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write latent_contexts.json and .parquet and, if a property was named, latent_disagreements.parquet into a
        folder, and return it.
        """
        place = Path(folder)
        write_atomically(place / NAME, self.to_json().encode())
        write_parquet(self.table(), place / TABLE)
        if self.probes:
            write_parquet(self.disagreement_table(), place / DISAGREEMENTS)
        else:
            (place / DISAGREEMENTS).unlink(missing_ok=True)
        return place


_FACTS = ("latent", "name", "density")


def read_contexts(folder: str | Path) -> LatentContexts | None:
    """Return the result in latent_contexts.json of a folder; None if there is no such file.

    Raises:
        InputError: the file holds no such result.
    """
    mistake = "this file holds no contexts of latents"
    return read_result(LatentContexts, Path(folder) / NAME, mistake, "probing dictionary tops")
