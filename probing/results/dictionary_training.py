"""Defines `DictionaryTraining`, which holds how a dictionary was trained here, and the measurements of it and its
controls on held-out tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.files.whole_files import write_atomically, write_parquet
from probing.results._reading import read_result

if TYPE_CHECKING:
    import pandas as pd

NAME = "dictionary_training.json"
TRAINED, TWIN, RANDOM = "trained", "untrained_twin", "random"
ROLES = {
    TRAINED: "the dictionary",
    TWIN: "the same architecture, trained and measured on the states of the same model with random weights",
    RANDOM: "random unit directions, as many, with as many active latents a token; one factor is fitted",
}
LIMITS = (
    "A low share of unexplained variance says that few directions suffice to rebuild the states, not that a latent "
    "stands for anything, nor that the model uses it.",
    "The untrained twin's dictionary says how well such a dictionary rebuilds states that nothing was learned in, and "
    "the random dictionary what as many directions do without training.",
    "Whether latents read a property better than a plain probe is measured by training probes on them, not here.",
)


@dataclass(frozen=True)
class DictionaryQuality:
    """Holds the measurements of a dictionary on held-out tokens.

    Attributes:
        role: `trained`, `untrained_twin` or `random`.
        l0: mean number of active latents per token.
        unexplained: fraction of variance unexplained: squared error over squared distance from the mean of the states,
            without tokens that are more than 4 times as far from it as the median (attention sinks of some models).
        unexplained_of_all: the same over all tokens; equal if there are no such tokens.
        outliers: share of such tokens.
        alive: share of the latents that are active on at least one held-out token.
        alive_in_training: share that was active on at least one token in the last pass over train; None: not trained.
        loss_clean, loss_replaced, loss_removed: mean cross-entropy of the model's prediction of the next token, in
            nats: with unchanged states, with the states replaced by their reconstruction, and replaced by their mean;
            None if no model was given.
        loss_recovered: (loss_removed − loss_replaced) / (loss_removed − loss_clean).
        loss_recovered_low, loss_recovered_high: its 95 % interval from resampling texts.
    """

    role: str
    l0: float
    unexplained: float
    alive: float
    unexplained_of_all: float | None = None
    outliers: float = 0.0
    alive_in_training: float | None = None
    loss_clean: float | None = None
    loss_replaced: float | None = None
    loss_removed: float | None = None
    loss_recovered: float | None = None
    loss_recovered_low: float | None = None
    loss_recovered_high: float | None = None


@dataclass(frozen=True)
class DictionaryTraining:
    """Holds how a dictionary was trained, and the measurements of it and its controls on held-out tokens.

    Attributes:
        model: name of the model whose states it was trained on; "" for an array.
        site: site of the states; "" for an array.
        architecture: `topk` or `batchtopk`.
        latents, width, k: number of latents, width of the states, and the number of active latents per token that was
            set.
        train_tokens, held_out_tokens: numbers of rows.
        first_tokens: rows left out because they are first tokens of their text.
        epochs, batch, rate, seed: options of training.
        precision: precision of the encoder's matrix products in training: `float32` or `bfloat16`.
        errors: share of variance unexplained in each pass over train, averaged over its steps.
        qualities: measurements of the dictionary and of its controls.
        seconds: wall time of training; None if it was read from the disk or resumed.
        facts: ids of store and dictionary, and version.
    """

    model: str
    site: str
    architecture: str
    latents: int
    width: int
    k: int
    train_tokens: int
    held_out_tokens: int
    first_tokens: int
    epochs: int
    batch: int
    rate: float
    seed: int
    precision: str
    errors: tuple[float, ...]
    qualities: tuple[DictionaryQuality, ...]
    seconds: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> DictionaryQuality:
        """Measurements of the trained dictionary."""
        return next(one for one in self.qualities if one.role == TRAINED)

    @property
    def doubts(self) -> list[str]:
        """Reasons to doubt that the dictionary is useful, as sentences."""
        return [*_doubts(self)]

    def table(self) -> pd.DataFrame:
        """Return a DataFrame with one row per dictionary (trained, untrained twin, random); it is the content of
        dictionary_training.parquet.
        """
        import pandas as pd

        names = ("model", "site", "architecture", "latents", "k")
        frame = pd.DataFrame([{name: getattr(self, name) for name in names} | asdict(one) for one in self.qualities])
        return frame.astype({name: "float64" for name in frame.columns if name.startswith(("loss", "alive"))})

    def to_json(self) -> str:
        """Return the result as JSON."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write dictionary_training.json and dictionary_training.parquet into a folder, and return it."""
        place = Path(folder)
        write_atomically(place / NAME, self.to_json().encode())
        write_parquet(self.table(), place / NAME.replace(".json", ".parquet"))
        return place


def _doubts(one: DictionaryTraining) -> Sequence[str]:
    own, doubts = one.trained, []
    if abs(own.l0 - one.k) > 0.25 * one.k:
        doubts.append(f"{own.l0:.1f} latents are active on a held-out token, not {one.k} as asked for.")
    alive = own.alive if own.alive_in_training is None else max(own.alive, own.alive_in_training)
    if alive < 0.9:
        doubts.append(
            f"Only {alive:.0%} of the latents are ever active: give fewer latents, more tokens or a larger k."
        )
    if own.outliers and own.unexplained_of_all is not None:
        doubts.append(
            f"{own.outliers:.2%} of the held-out tokens have states more than 4 times as far from the mean as the "
            f"median token; with them {own.unexplained_of_all:.1%} of the variance is unexplained."
        )
    for control in one.qualities:
        if control.role == RANDOM and control.unexplained <= own.unexplained:
            doubts.append("Random directions explain as much of the states as the dictionary: it has learned nothing.")
    return doubts


def read_training(folder: str | Path) -> DictionaryTraining | None:
    """Return the result in dictionary_training.json of a folder; None if there is no such file.

    Raises:
        InputError: the file holds no such result.
    """
    mistake = "this file holds no training of a dictionary"
    return read_result(DictionaryTraining, Path(folder) / NAME, mistake, "probing dictionary train")
