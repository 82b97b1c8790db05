"""Compares probes of a dictionary's latents with probes of the states that they were made from, on the same rows,
splits, control tasks and bootstrap resamples, and reports the single latents that stand for a property.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from probing.analyses._few_columns import Columns, compared_columns, principal_components
from probing.analyses._fits import measure_of
from probing.analyses._single_columns import single_columns
from probing.contracts.analysis import Analysis, SiteData
from probing.contracts.control import Probed, StateTable
from probing.contracts.probe import Probe
from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.encoding import is_of_another
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnknownSite, unknown_name
from probing.labels import Kind, Labels
from probing.probes.linear import LinearProbe
from probing.provenance import model_called
from probing.recipes import parts_of
from probing.results.analysis import Point
from probing.results.features import PREFIX
from probing.seeds import child_seed

Floats = NDArray[np.float32]
KS = (1, 2, 5, 16, 64, 128, 512)
TWIN = "untrained_model"
_ROWS_AT_ONCE = 256  # that are encoded until a latent is active


@dataclass(frozen=True)
class Source:
    """Names a dictionary by the hash of its contents, and loads it when it is used, in any process.

    Attributes:
        content_id: hash of the dictionary's contents.
        path: where it is loaded from; "" if `held` is given.
        held: the dictionary itself; None: it is loaded.
    """

    content_id: str
    path: str = ""
    held: Dictionary | None = None

    @classmethod
    def of(cls, given: str | Path | Dictionary) -> Source:
        """Read the dictionary at a path once, or take one that is in memory, and return its source."""
        if isinstance(given, Dictionary):
            return cls(given.content_id, held=given)
        path = str(Path(given).expanduser().resolve())
        return cls(Dictionary.load(path).content_id, path)

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary.

        Raises:
            ProvenanceMismatch: the file holds another dictionary than it held when the run began.
        """
        return self.held if self.held is not None else _loaded(self.path, self.content_id)

    @property
    def name(self) -> str:
        """Name for results: that of its folder or file, with the first digits of its hash."""
        return f"{Path(self.path).stem if self.path else 'dictionary'}-{self.content_id[:8]}"

    def __repr__(self) -> str:
        return self.content_id


@lru_cache(maxsize=2)
def _loaded(path: str, content_id: str) -> Dictionary:
    found = Dictionary.load(path)
    if found.content_id != content_id:
        raise ProvenanceMismatch(
            "the dictionary changed while it was used",
            needed=content_id[:12],
            found=found.content_id[:12],
            where=path,
            next_step="run the same command again",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class DictionaryComparison(Analysis):
    """Fits the run's linear probe on k latents of a dictionary and, beside them, on what a fair comparison needs: the
    whole state, k coordinates of it, its first k principal components, k latents of a random dictionary of the same
    size, L0 and centre, and k latents of a dictionary of the untrained twin.

    Columns are ranked on train by |mean difference| between the rows of a class and all others (the largest over the
    classes), principal components by variance; k is chosen on dev and scores are those on test. The quiver rule adds
    the probes of latents to a choice on dev among the probes of states, and asks whether the score on test rises.

    Args:
        dictionary: the dictionary.
        twin: a dictionary of the untrained twin's states, which a control `untrained_model` gives; None: none.
        k: numbers of columns that are tried.
        measure: name of the measure; "": AUROC for two classes, else accuracy.
        site: site of the states; "": that of the dictionary.
        seed: seed of the random dictionary.

    References:
        Kantamneni, Engels, Rajamanoharan, Tegmark and Nanda 2025, Are Sparse Autoencoders Useful? A Case Study in
        Sparse Probing, §3 (baselines, ranking, quiver of arrows). Gurnee et al. 2023, Finding Neurons in a Haystack,
        §3.1 (k-sparse probes). Chanin et al. 2024, A is for Absorption, §3.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    dictionary: Source
    twin: Source | None = None
    k: tuple[int, ...] = KS
    measure: str = ""
    site: str = ""
    seed: int = 0

    @classmethod
    def parse(cls, given: str | Path | Dictionary | DictionaryComparison) -> DictionaryComparison:
        """Return the comparison that a text `DICTIONARY,twin=DICTIONARY,k=1|16|128,…` asks for.

        Raises:
            BadParameter: an option is unknown or has a wrong value.
            InputError: a dictionary cannot be read; see `Dictionary.load`.
        """
        if isinstance(given, DictionaryComparison):
            return given
        if isinstance(given, Dictionary):
            return cls(dictionary=Source.of(given))
        path, *parts = parts_of(str(given), ",")
        options = dict(part.partition("=")[::2] for part in parts)
        known = ("twin", "k", "measure", "site", "seed")
        for name in options:
            if name not in known:
                raise unknown_name("option of features", name, known, where=str(given), error=BadParameter)
        read: dict[str, Callable[[str], Any]] = {"twin": Source.of, "k": _numbers, "seed": _number}
        values = {name: read.get(name, str)(text) for name, text in options.items()}
        return cls(dictionary=Source.of(path), **values)

    @property
    def name(self) -> str:
        """Name in results."""
        return f"{PREFIX}{self.dictionary.name}"

    @cached_property
    def _site(self) -> str:
        return self.site or self.dictionary.dictionary.site or ""

    def reads(self, site: str) -> bool:
        """Return whether this is the dictionary's site."""
        return site == self._site

    def accepts(self, probe: Probe) -> bool:
        """Return whether it is a linear probe."""
        return isinstance(probe, LinearProbe)

    def check(self, probed: Probed, others: Collection[str]) -> None:
        """Check that the dictionary, and the twin's, fit the states, before any work; `others` are the names of the
        run's state controls.

        Raises:
            UnknownSite: no site is known, or the store or the run lacks it.
            ProvenanceMismatch: the dictionary is of another width or model, or the twin's of another size.
            BadParameter: k exceeds the number of latents, rows are read as pairs, the measure does not score classes,
                or there are no states of the twin.
            UnknownName: there is no such measure.
        """
        dictionary = self.dictionary.dictionary
        if not self._site:
            raise UnknownSite(
                "the dictionary does not say which site it is of",
                needed="a site",
                found="none",
                where=self.dictionary.path,
                next_step=f"add one: --features '{self.dictionary.path},site=resid.3'",
            )
        if self._site not in probed.sites:
            step = "extract that site, or name it in --sites; site=… after the dictionary's name overrides its site"
            raise UnknownSite(
                f"states of {self._site} are not probed",
                needed=self._site,
                found=", ".join(probed.sites),
                where=str(probed.table.path),
                next_step=step,
            )
        refuse_other_states(dictionary, self._site, probed.table.width(self._site), probed.table.identity["model"])
        if max(self.k) > dictionary.n_latents and self.k != KS:
            raise BadParameter(
                "there are fewer latents than that",
                needed=f"k of at most {dictionary.n_latents:,}",
                found=str(max(self.k)),
                where=self.dictionary.path,
            )
        if probed.labels.row_form not in ("row", "mean"):
            raise BadParameter(
                "latents are of one state each",
                needed="a task whose rows are single states",
                found=f"task {probed.labels.task}, read as {probed.labels.row_form}",
                next_step="leave --features out for this task",
            )
        name = self._measure(probed.labels)
        if measure_of(name).needs or "classes" not in measure_of(name).kinds:
            raise BadParameter(
                f"{name} does not score classes of single states", needed="such as auroc or accuracy", found=name
            )
        self._check_twin(dictionary, others)

    def check_states(self, table: StateTable, labels: Labels) -> None:
        """Check that some latent is active on some row of train: rows are encoded until one is.

        Raises:
            DegenerateDesign: none is.
        """
        if labels.row_form != "row":
            return  # of means of states, which `run` makes
        dictionary, rows = self.dictionary.dictionary, labels.row[labels.rows("train")]
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            if dictionary.encode(table.read(self._site, np.unique(rows[first : first + _ROWS_AT_ONCE]))).nnz:
                return
        raise DegenerateDesign(
            "no latent of the dictionary is active on the rows of train",
            needed="a latent that is",
            found=f"none of {dictionary.n_latents:,} on {len(rows):,} rows of {self._site}",
            where=self.dictionary.path,
            next_step="compare it with these states: probing dictionary check --states",
        )

    def _check_twin(self, dictionary: Dictionary, others: Collection[str]) -> None:
        if self.twin is None:
            return
        twin = self.twin.dictionary
        ours, theirs = (f"{one.n_latents:,} latents of width {one.width}" for one in (dictionary, twin))
        if ours != theirs:
            raise ProvenanceMismatch(
                "the twin's dictionary has another size", needed=ours, found=theirs, where=self.twin.path
            )
        if not any(name.startswith(TWIN) for name in others):
            raise BadParameter(
                "the twin's dictionary needs the twin's states",
                needed=f"the control {TWIN}:store=DIR",
                found=", ".join(others) or "no control of states",
                next_step=f"add --control {TWIN}:store=DIR, a store made with --untrained",
            )

    def settings(self, data: SiteData) -> Mapping[str, Any]:
        """Return what is needed to read the numbers: the dictionary, the measure, numbers of columns and of rows."""
        made = self.dictionary.dictionary
        return {
            "dictionary": {
                "name": self.dictionary.name,
                "path": self.dictionary.path,
                "content_id": made.content_id,
                "architecture": made.architecture,
                "source": made.source,
                "latents": made.n_latents,
                "width": made.width,
            },
            "twin": None if self.twin is None else self.twin.content_id,
            "measure": self._measure(data.labels),
            "k": list(self.k),
            "seed": self.seed,
            "ranking": "|mean difference| on train, of each class against all others, the largest over classes",
            "test_rows": data.resamplers["test"].n,
            "test_clusters": data.resamplers["test"].clusters.count,
        }

    def _measure(self, labels: Labels) -> str:
        return self.measure or ("auroc" if len(labels.classes) == 2 else "accuracy")

    def run(self, probe: Probe, data: SiteData) -> Sequence[Point]:
        """Fit and score all methods, apply the quiver rule, and return the numbers; see `probing.results.features`."""
        inputs = self._inputs(data)
        points, whole = compared_columns(probe, data, inputs, self.k, self._measure(data.labels))
        active = [p for one in inputs if issparse(one.states["train"]) for p in _active(one)]
        latents = {one.method: one.states for one in inputs}
        found = single_columns(latents["dictionary"], latents.get("random"), data)
        return [*active, *points, *found, *self._cosines(found, whole, data.labels)]

    def _inputs(self, data: SiteData) -> list[Columns]:
        """Return the columns of every method but the whole state."""
        dictionary, X = self.dictionary.dictionary, data.states
        latents = {split: dictionary.encode(states) for split, states in X.items()}
        l0 = max(1.0, latents["train"].nnz / max(1, latents["train"].shape[0]))
        found = [
            Columns("coordinates", X),
            Columns("pca", principal_components(X, max(self.k)), is_ranked=False),
            Columns("dictionary", latents),
        ]
        if 4 * round(l0) <= dictionary.n_latents:  # beyond that, most of a random dictionary is active, too
            random = random_of(dictionary, X["train"], l0=l0, seed=self.seed)
            found.append(Columns("random", {split: random.encode(states) for split, states in X.items()}))
        if self.twin is not None:
            read = next(read for name, read in data.others.items() if name.startswith(TWIN))
            found.append(Columns("twin", {split: self.twin.dictionary.encode(X) for split, X in read().items()}))
        return found

    def _cosines(self, found: Sequence[Point], whole: Probe, labels: Labels) -> list[Point]:
        """Return, for each latent that is reported, the cosines of its direction with that of its class's main latent
        and with that of the probe of the whole state, which reads the class along it.
        """
        dictionary = self.dictionary.dictionary
        if dictionary.is_transcoder:  # it decodes to another place
            return []
        of_class = np.asarray(whole.coef_) / np.asarray(whole.scale_)[:, None]
        points = []
        for one in found:
            if one.quantity != "recall" or one.x is None:
                continue
            latent = dictionary.decoder[int(one.x)]
            main = next(p for p in found if p.quantity == "recall" and p.label == one.label)
            column = int(np.flatnonzero(whole.classes_ == labels.classes.index(one.label))[0])
            for name, other in (
                ("cosine_with_main", dictionary.decoder[int(main.x or 0)]),
                ("cosine_with_probe", of_class[:, column]),
            ):
                points.append(Point(name, _cosine(latent, other), "cosine", x=one.x, x_name="latent", label=one.label))
        return points


def refuse_other_states(
    dictionary: Dictionary, site: str, width: int, model: Mapping[str, Any] | None, *, where: str = ""
) -> None:
    """Raise an error if a dictionary was not made of these states.

    Args:
        dictionary: the dictionary.
        site: name of the site of the states.
        width: their width.
        model: identity of the model, as in a store's `identity["model"]`; None: not known.
        where: place of the mistake, for the message.

    Raises:
        ProvenanceMismatch: the states have another width or are of another model.
    """
    if dictionary.width != width:
        raise ProvenanceMismatch(
            "the dictionary is of states of another width",
            needed=f"states of width {dictionary.width}",
            found=f"{site} of width {width}",
            where=where,
            next_step="give the dictionary of this model and site",
        )
    if model is not None and dictionary.model is not None and is_of_another(dictionary.model, model):
        raise ProvenanceMismatch(
            "the dictionary was trained on the states of another model",
            needed=dictionary.model,
            found=model_called(model),
            where=where,
            next_step="give the dictionary of this model",
        )


def random_of(dictionary: Dictionary, states: Floats, *, l0: float, seed: int) -> Dictionary:
    """Return a dictionary of as many random directions, of which each state `(n, d)` takes the `l0` largest, around the
    centre (the decoder's bias) of the given one.

    Around the mean of these very states, which a dictionary trained on other text has never seen, its latents would say
    less of them than those of the dictionary, for that reason alone.
    """
    moved = states
    if not dictionary.is_transcoder:
        moved = states - states.mean(0, dtype=np.float64).astype(np.float32) + dictionary.decoder_bias
    own = child_seed(seed, "features", "random dictionary")  # another than that of a random dictionary of the user's
    return Dictionary.random(dictionary.width, dictionary.n_latents, l0=l0, states=moved, seed=own)


def _active(columns: Columns) -> list[Point]:
    """Return how many latents of a dictionary are active in a row, and how many are active in any row of train."""
    train, name = columns.states["train"], columns.method
    return [
        Point("l0", train.nnz / max(1, train.shape[0]), "latents", label=name),
        Point("alive", float((train.sum(axis=0) > 0).sum()), "latents", label=name),
    ]


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.asarray(a, np.float64) @ b / length) if length else 0.0


def _number(text: str) -> int:
    if not text.strip().isdecimal():
        raise BadParameter("this is no whole number", needed="such as 16", found=repr(text))
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(sorted({_number(part) for part in text.split("|")}))
    if not found or found[0] < 1:
        raise BadParameter("k counts columns", needed="1 or more, such as k=1|16|128", found=repr(text))
    return found
