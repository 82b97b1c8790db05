"""Defines StudyLooks, which inspects the models of a study: attention and states, lenses, similarity of states,
circuits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field

from probing.errors import CannotReachFile, ConfigError
from probing.jobs import ExtractOptions, Many
from probing.jobs.circuit import CircuitOptions
from probing.jobs.inspect import InspectOptions
from probing.jobs.lens import LensOptions
from probing.jobs.models import ModelOptions
from probing.jobs.similarity import SimilarityOptions

if TYPE_CHECKING:
    from probing.text.corpus import Corpus

Stores = Mapping[tuple[str, int | None], Path]  # by rows and seed of the untrained model


class StudySimilarity(SimilarityOptions):
    """Holds the options for comparing the states of several models of a study, or those of one model with those of its
    untrained twin (same architecture, random weights).
    """

    rows: str | None = Field(None, description="rows of the extraction that is compared (default: the first one)")
    against: str | None = Field(
        None,
        description="model that the others are compared with, by a part of its name (default: the last trained one, "
        "such as the last checkpoint)",
    )
    stores: Many = Field(default=[], description="directories of further stores of the same rows")
    outputs: bool = Field(default=False, description="whether outputs of the models are compared, too, by their KL")

    def rooted(self, root: Path) -> Self:
        """Return a copy of the options in which relative paths of stores are taken to lie in the folder `root`."""
        stores = [str(root / Path(store).expanduser()) for store in self.stores]
        twin = None if self.twin is None else str(root / Path(self.twin).expanduser())
        return self.model_copy(update={"stores": stores, "twin": twin})

    def check_study(self, models: Sequence[ModelOptions], extract: Sequence[ExtractOptions], where: str) -> None:
        """Check the options against the models and extractions of the study.

        Raises:
            BadParameter: an option is wrong.
            ConfigError: there is no such model or extraction, there is nothing to compare with, or outputs are to be
                compared although `stores` are given, whose models are not known.
            CannotReachFile: a folder is no store.
        """
        self.check()
        first, rows = self._first(models, where), self._rows(extract, where)
        seeds = [one.untrained for one in extract if one.rows == rows and one.untrained is not None]
        if len(models) == 1 and not self.stores and (not seeds or first.untrained is not None):
            raise ConfigError(
                "the states of this study have nothing to be compared with",
                needed="several `models`, an untrained extraction of the same rows, or `stores`",
                found=f"{first}, trained states of {rows} alone",
                where=where,
                next_step=f"add `- {{rows: '{rows}', untrained: 0}}` under extract",
            )
        if self.outputs and self.stores:
            raise ConfigError(
                "outputs are those of the study's models",
                needed="`outputs` without `stores`",
                found="both",
                where=where,
            )
        for store in (*self.stores, *filter(None, [self.twin])):
            if not (Path(store) / "store.json").is_file():
                raise CannotReachFile(
                    "there is no such store", needed="the directory of a store", found=store, where=where
                )

    def _first(self, models: Sequence[ModelOptions], where: str) -> ModelOptions:
        """Return the model that the others are compared with."""
        if self.against is None:
            return ([one for one in models if one.untrained is None] or list(models))[-1]
        named = [one for one in models if self.against in str(one)]
        if len(named) != 1:
            raise ConfigError(
                f"{self.against!r} names {len(named) or 'none'} of the models",
                needed="a part of the name of one: " + ", ".join(map(str, models)),
                found=", ".join(map(str, named)) or self.against,
                where=where,
            )
        return named[0]

    def _rows(self, extract: Sequence[ExtractOptions], where: str) -> str:
        """Return the rows of the extraction that is compared."""
        known = [one.rows for one in extract if one.role == "states" and one.untrained is None]
        if not known or self.rows not in (None, *known):
            raise ConfigError(
                "no extraction of this study has the rows that are compared",
                needed=f"an extract entry with rows {self.rows or 'word:mean'}, not untrained",
                found=", ".join(known) or "none",
                where=where,
            )
        return self.rows or known[0]

    def compare(
        self,
        models: Sequence[ModelOptions],
        stores: Sequence[Stores],
        extract: Sequence[ExtractOptions],
        corpus: Corpus,
        to: Path,
        *,
        progress: bool,
    ) -> None:
        """Compare the states of the models and write the results; `stores` are the stores of each model, in the order
        of `models`.
        """
        first, rows = self._first(models, ""), self._rows(extract, "")
        at = next(i for i, one in enumerate(models) if one is first)
        pairs = [(first, stores[at][rows, None])]
        pairs += [(one, of[rows, None]) for i, (one, of) in enumerate(zip(models, stores, strict=True)) if i != at]
        seeds = sorted(seed for of, seed in stores[at] if of == rows and seed is not None)
        twins = [(first.model_copy(update={"untrained": seed}), stores[at][rows, seed]) for seed in seeds]
        has_others = len(pairs) > 1 or bool(self.stores)
        floor = self.twin if self.twin is not None or not has_others or not twins else twins[0][1]
        pairs += [] if has_others else twins
        self.similarity(
            [*(store for _, store in pairs), *self.stores],
            corpus,
            to,
            models=[one for one, _ in pairs] if self.outputs else (),
            progress=progress,
            twin=floor,
        )


@dataclass(frozen=True)
class StudyLooks:
    """Holds the options of each kind of inspection of a study's models; None for kinds that the study does not
    ask for.
    """

    inspect: InspectOptions | None
    lens: LensOptions | None
    similarity: StudySimilarity | None
    circuit: CircuitOptions | None

    def rooted(self, root: Path) -> StudyLooks:
        """Return a copy in which relative paths of files and stores are taken to lie in the folder `root`."""
        rooted = (None if one is None else one.rooted(root) for one in (self.lens, self.similarity, self.circuit))
        return StudyLooks(self.inspect, *rooted)  # type: ignore[arg-type]

    def check(
        self, models: Sequence[ModelOptions], extract: Sequence[ExtractOptions], corpus: Corpus, where: str
    ) -> None:
        """Check what can be checked before any work.

        Raises:
            ProbingError: an option is wrong, a file or a split is missing, or there is nothing to compare with.
        """
        if self.lens is not None:
            self.lens.check(corpus, where)
        if self.circuit is not None:
            self.circuit.check(where)
        if self.similarity is not None:
            self.similarity.check_study(models, extract, where)

    def run(
        self,
        models: Sequence[ModelOptions],
        stores: Sequence[Stores],
        extract: Sequence[ExtractOptions],
        corpus: Corpus,
        out: Path,
        *,
        progress: bool,
    ) -> None:
        """Inspect every model, and write the results into `out`; if there are several models, those of each into a
        folder of its own, such as `lens/MODEL`.
        """
        for model in models:
            own = model.folder if len(models) > 1 else ""
            if self.inspect is not None:
                self.inspect.inspect(model, corpus, out / "inspection" / own, progress=progress)
            if self.lens is not None:
                self.lens.lens(model, corpus, out / "lens" / own if own else out, progress=progress)
            if self.circuit is not None:
                self.circuit.circuit(model, out / "circuit" / own if own else out, progress=progress)
        if self.similarity is not None:
            self.similarity.compare(models, stores, extract, corpus, out, progress=progress)
