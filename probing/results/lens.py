"""Defines `LensResult`, which holds the outputs that lenses read at every site, with intervals, controls, and the
effect of replacing the states there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import InputError
from probing.files.whole_files import write_atomically, write_parquet
from probing.results._reading import read_result

if TYPE_CHECKING:
    import pandas as pd

NAME = "lens.json"
NO_SITE = "(none)"  # of the unigram, which reads no state
ALL_SITES = "(all)"  # of quantities of a lens as a whole
UNIGRAM, FIRST, BIAS, TWIN, PERMUTED = "unigram", "first_site", "bias_only", "untrained_twin", "permuted_targets"
CONTROLS = {
    UNIGRAM: "reads nothing: the mean final output over the texts of the other half",
    FIRST: "the tuned translator of resid.0, the same at every site: all that the current token tells",
    BIAS: "the state plus a trained bias, without a matrix",
    TWIN: "a tuned lens on the states of the same architecture with random weights, for the outputs of this model",
    PERMUTED: "the tuned lens, trained on the outputs of other rows",
}

LIMITS = (
    "A lens reads a state with the end of the model. That a token can be read at a site does not show that the model "
    "reads it there, or that it was computed there.",
    "What a lens cannot read can be used all the same: see the effect of replacing the state, beside it. It is all "
    "that the model holds of the token at that block: an effect says that the site is on the way to the output, not "
    "what of it is used.",
    "The logit lens assumes that a site writes in the form of the last one. A high KL says that this lens does not "
    "read the site, not that the site holds nothing.",
    "A tuned lens is a trained reader. Only what it reads beyond the translator of the first site (which knows the "
    "current token and no context), the untrained twin, permuted targets and the unigram is in the state because the "
    "model put it there.",
    "KL and agreement compare with the model's own final output, right or wrong; cross-entropy and the rank of the "
    "true token compare with the text.",
)


@dataclass(frozen=True)
class LensMean:
    """Holds the mean of one quantity of one lens at one site over all rows.

    Attributes:
        lens: name of the lens.
        site: the site read; `(none)` for the unigram baseline, `(all)` for quantities over all sites.
        quantity: `kl`, `kl_reverse`, `cross_entropy` and `entropy`, all in bits per token; `agreement` (fraction),
            `rank_of_final`, `rank_of_true`, `bits_per_byte`, or `commitment_depth` (blocks).
        value: the mean.
        low, high: ends of its 95 % interval; None if there is only one text.
        unit: unit of the value.
        n: number of rows.
    """

    lens: str
    site: str
    quantity: str
    value: float
    low: float | None
    high: float | None
    unit: str
    n: int


@dataclass(frozen=True)
class LensDifference:
    """Holds the mean of a paired difference, row by row.

    Attributes:
        lens, site: the lens and the site whose mean is compared.
        than_lens, than_site: the lens and the site that it is compared with: another lens at the same site, a control,
            or the same lens at the site before.
        quantity, value, low, high, unit, n: as for `LensMean`, for the difference: the mean of `lens` at `site` minus
            that of `than_lens` at `than_site`.
    """

    lens: str
    site: str
    than_lens: str
    than_site: str
    quantity: str
    value: float
    low: float | None
    high: float | None
    unit: str
    n: int


@dataclass(frozen=True)
class SiteUse:
    """Holds what happens to the output of a row when its state at a site is replaced by the mean state of all rows.

    Attributes:
        site: the site.
        value, low, high: KL(clean ‖ replaced) at the row, in bits, with its 95 % interval.
        n: number of rows, one a text.
        lens_kl: mean KL divergence of the first lens at this site, KL(final output ‖ lens), in bits.
        is_read: whether that lens is closer to the final output than the unigram baseline is; None if there is no
            interval to decide it.
        is_used: whether `low` reaches the smallest effect that counts; None if not known.
    """

    site: str
    value: float
    low: float | None
    high: float | None
    n: int
    lens_kl: float | None
    is_read: bool | None
    is_used: bool | None


@dataclass(frozen=True)
class Commitment:
    """Holds, for one lens, the site from which on its most probable token equals that of the final output at all later
    sites.

    Attributes:
        lens: name of the lens.
        shares: by name of a site, the share of the rows for which it is this site.
    """

    lens: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Trajectory:
    """Holds what a lens reads in one prompt, by site and position.

    Attributes:
        prompt, lens: the text and the name of the lens.
        tokens: the T tokens of the prompt.
        sites: the S sites, from the first on.
        top: `(S, T, k)` the most probable tokens, each with its probability.
        entropy, kl, rank_of_final, rank_of_true: `(S, T)` numbers; ranks of the true token are None where no token
            follows.
        is_cut: whether the prompt was longer than what is shown.
    """

    prompt: str
    lens: str
    tokens: Sequence[str]
    sites: Sequence[str]
    top: Sequence[Sequence[Sequence[tuple[str, float]]]]
    entropy: Sequence[Sequence[float]]
    kl: Sequence[Sequence[float]]
    rank_of_final: Sequence[Sequence[float]]
    rank_of_true: Sequence[Sequence[float | None]]
    is_cut: bool = False


@dataclass(frozen=True)
class LensResult:
    """Holds the results of lenses on one corpus.

    Attributes:
        model: full name of the model.
        facts: facts about model, corpus, rows and training.
        lenses: a sentence on each lens and control, by name and in order; the others are compared with the first.
        sites: sites read, in order.
        means, differences: see `LensMean` and `LensDifference`.
        commitment: see `Commitment`; one for each lens that is no control.
        use: see `SiteUse`; empty if it was not measured.
        trajectories: one for each prompt and lens.
        doubts: sentences on what weakens the results.
        limits: sentences on what a lens cannot show.
    """

    model: str
    facts: Mapping[str, Any]
    lenses: Mapping[str, str]
    sites: Sequence[str]
    means: Sequence[LensMean]
    differences: Sequence[LensDifference]
    commitment: Sequence[Commitment]
    use: Sequence[SiteUse]
    trajectories: Sequence[Trajectory]
    doubts: Sequence[str] = ()
    limits: Sequence[str] = LIMITS
    rows: Any = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        n = self.facts.get("rows", 0)
        return f"LensResult({', '.join(self.lenses)} of {self.model}: {len(self.sites)} sites, {n:,} rows)"

    def mean(self, lens: str, site: str, quantity: str) -> LensMean | None:
        """Return the mean of a quantity, or None if it was not measured."""
        return self._index.get((lens, site, quantity))

    def difference(self, lens: str, site: str, than: str, quantity: str = "kl") -> LensDifference | None:
        """Return the difference of a lens at a site from another lens or control (`than`), or None if it was not
        measured.
        """
        return next(
            (d for d in self.differences if (d.lens, d.site, d.than_lens, d.quantity) == (lens, site, than, quantity)),
            None,
        )

    @property
    def _index(self) -> dict[tuple[str, str, str], LensMean]:
        known = self.__dict__.get("_by_key")
        if known is None:
            known = {(m.lens, m.site, m.quantity): m for m in self.means}
            object.__setattr__(self, "_by_key", known)
        return dict(known)

    @property
    def unread_but_used(self) -> list[str]:
        """Sites at which the first lens is no closer to the final output than the unigram baseline, although replacing
        the states there changes the output.
        """
        return [one.site for one in self.use if one.is_read is False and one.is_used]

    def table(self) -> pd.DataFrame:
        """Return one row per lens × site × quantity: the content of lens.parquet."""
        return self._frame(self.means, LensMean)

    def difference_table(self) -> pd.DataFrame:
        """Return one row per paired difference: the content of lens_differences.parquet."""
        return self._frame(self.differences, LensDifference)

    def _frame(self, records: Sequence[Any], kind: type) -> pd.DataFrame:
        import pandas as pd

        frame = pd.DataFrame([{"model": self.model} | asdict(one) for one in records])
        if not len(frame):
            frame = pd.DataFrame(columns=["model", *kind.__dataclass_fields__])  # type: ignore[attr-defined]
        return frame.astype(dict.fromkeys(("value", "low", "high"), "float64"))

    def write(self, folder: str | Path) -> list[Path]:
        """Write lens.json, lens.parquet, lens_differences.parquet and, if the numbers of single rows are in memory,
        lens_rows.parquet into a folder, and return their paths.

        Raises:
            InputError: a number is not finite; nothing is then written.
        """
        place, text = Path(folder), self._text().encode()  # before anything is written
        tables = {"lens": self.table(), "lens_differences": self.difference_table()}
        tables |= {"lens_rows": self.rows} if self.rows is not None else {}
        for name, frame in tables.items():
            write_parquet(frame, place / f"{name}.parquet")
        write_atomically(place / NAME, text)
        return [place / NAME, *(place / f"{name}.parquet" for name in tables)]

    def _text(self) -> str:
        try:
            return json.dumps(self._values(), allow_nan=False)
        except ValueError as error:
            raise InputError(
                "results of lenses that are not finite cannot be written",
                needed="finite numbers",
                found=str(error),
                where=self.model,
                next_step="leave out the sites, or the replaced states (use_rows 0), that give them",
            ) from error

    def _values(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__ if name != "rows"}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return dict(value) if isinstance(value, Mapping) else value


def read_lens(folder: str | Path) -> LensResult | None:
    """Return the results in lens.json of a folder, without their rows; None if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    return read_result(LensResult, Path(folder) / NAME, "results of lenses cannot be read", "probing lens")


def read_if_same(folder: Path, recipe: str) -> LensResult | None:
    """Return the results in a folder, with their rows, if they were made by the recipe; None if there are no such
    results, or files of them are missing or damaged.
    """
    import pandas as pd

    tables = [folder / f"{name}.parquet" for name in ("lens", "lens_differences", "lens_rows")]
    try:
        known = read_lens(folder)
        if known is None or known.facts.get("recipe") != recipe or not all(map(Path.is_file, tables)):
            return None
        has_lens = (
            "tuned" not in known.facts.get("training", {}) or (folder / "lenses" / "tuned" / "lens.json").is_file()
        )
        return replace(known, rows=pd.read_parquet(tables[-1])) if has_lens else None
    except (InputError, OSError, ValueError):  # pyarrow's errors are ValueErrors
        return None
