"""Shows the tokens, in context, on which latents are most active, and the rows where a probe of a property
disagrees.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probing.dictionaries._beside_probe import Property, Texts, compared, mean_differences, property_of
from probing.dictionaries._options import whole
from probing.dictionaries.dictionary import Dictionary
from probing.errors import BadParameter, DegenerateDesign, ProbingWarning, ProvenanceMismatch
from probing.neuronpedia.reading import ExportedContext, ExportedLatents, read_export
from probing.neuronpedia.writing import write_feature_lists
from probing.provenance import __version__, model_called
from probing.results.latent_contexts import TOP, LatentContext, LatentContexts, LatentFacts
from probing.seeds import generator
from probing.states.store import Store
from probing.states.store.views import refuse_other_corpus
from probing.system.machine import target_of, with_typed_errors
from probing.system.progress import steps_bar
from probing.text.corpus import Corpus

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BANDS = ((0.9, 1.0), (0.5, 0.9), (0.0, 0.5))  # quantiles of the positive activations of a latent
_AT_ONCE = 8192
_MOST_EXPORTED = 3  # contexts of an export that are shown


@dataclass(frozen=True)
class Asked:
    """Holds what is looked for.

    Attributes:
        top: number of contexts with the largest activations.
        per_band: number of random contexts of each lower band.
        window: number of tokens on either side that are shown.
        seed: seed of the draws.
    """

    top: int
    per_band: int
    window: int
    seed: int

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            BadParameter: a value is out of range.
        """
        for name, least in (("top", 1), ("per_band", 0), ("window", 0), ("seed", 0)):
            whole(name, getattr(self, name), least)


@with_typed_errors
def top_contexts(
    dictionary: Dictionary | str | Path,
    store: Store | str | Path,
    corpus: Corpus,
    *,
    site: str | None = None,
    latents: Sequence[int] | None = None,
    count: int = 10,
    top: int = 5,
    per_band: int = 2,
    window: int = 10,
    export: str | Path | None = None,
    task: str | None = None,
    label: str | None = None,
    probe: str | Path | None = None,
    rows: str | None = None,
    disagreements: int = 10,
    seed: int = 0,
    to: str | Path | None = None,
    progress: bool | None = None,
) -> LatentContexts:
    """Return, for some latents, the tokens on which they are most active, in context, and random ones from lower
    quantiles of their activation; if a property is named, also the rows where a linear probe of it and the latent
    disagree.

    Args:
        dictionary: a dictionary, or its path.
        store: a store of states of its site, of tokens or words, or its directory.
        corpus: the corpus that the store was made from.
        site: site of the store; None: that of the dictionary.
        latents: numbers of the latents; None: with a property those that differ most between its classes on train,
            else random ones that are active.
        count: number of latents if none are named.
        top: number of contexts with the largest activations.
        per_band: number of random contexts from each lower band of quantiles (90–100, 50–90 and 0–50 % of the positive
            activations).
        window: tokens on either side that are shown.
        export: folder of an export of Neuronpedia for this dictionary, which names latents.
        task: property to compare with, such as `feature:Number`; None: that of `probe`, or none.
        label: class that probe and latents are compared on; None: the second in sorted order, if there are two classes.
        probe: file of a probe that `train` saved at this site; None: a linear probe is trained on train.
        rows: how to pool a store of tokens for the property, as for `train`.
        disagreements: largest number of rows of each kind of disagreement.
        seed: seed of the draws.
        to: folder for latent_contexts.json, latent_contexts.parquet and latent_disagreements.parquet; with an export
            also for `neuronpedia`, the latents as a list that Neuronpedia takes.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        BadParameter: an option or the number of a latent is out of range, the dictionary has another width, or the
            property has no such classes.
        ProvenanceMismatch: the store was made from another corpus, the probe reads another site, or the export is of a
            dictionary of other latents.
        DegenerateDesign: no latent is active.
        UnknownSite, UnknownName: there is no such site, task or class.
        InputError: the dictionary, the probe or the export is damaged.
    """
    folder = target_of(to)
    asked = Asked(top, per_band, window, seed)
    asked.check()
    whole("count", count, 1)
    whole("disagreements", disagreements, 0)
    own = dictionary if isinstance(dictionary, Dictionary) else Dictionary.load(dictionary)
    source = store if isinstance(store, Store) else Store.open(store)
    refuse_other_corpus(source, corpus)
    place = _site(own, source, site)
    chosen = None if latents is None else _checked(latents, own)
    beside = property_of(source, corpus, place, task, probe, label, rows)
    about = ExportedLatents() if export is None else read_export(export, latents=chosen)
    _refuse_other_export(about, own, export)
    said = "named"
    if chosen is None:
        chosen, said = _choose(own, source, place, beside, count, seed, progress)
    found = _activations(own, source, place, chosen, progress)
    texts = Texts(source, corpus, window)
    facts, contexts = [], []
    for latent in chosen:
        index, values = found[latent]
        facts.append(_facts(latent, values, source.n_rows, about))
        contexts += _contexts(latent, index, values, texts, asked)
    probes, apart = compared(own, chosen, beside, texts, disagreements) if beside is not None else ((), ())
    _warn_of_densities(facts, source.n_rows, export)
    result = LatentContexts(
        model_called(source.identity["model"]),
        place,
        own.content_id,
        own.n_latents,
        source.n_rows,
        said,
        tuple(facts),
        tuple(contexts),
        tuple(probes),
        tuple(apart),
        {"store": source.content_id, "export": [about.model, about.source], "version": __version__},
    )
    if folder is not None:
        result.write(folder)
        if about.model and about.source:
            _write_list(result, about, folder / "neuronpedia")
    return result


def _write_list(result: LatentContexts, about: ExportedLatents, folder: Path) -> None:
    """Write the latents as a list for Neuronpedia, with what was measured of each in its description."""
    beside = {one.latent: one for one in result.probes}
    texts = {}
    for one in result.facts:
        often = f"active on {one.density:.3%}" if one.density else "never active on any"
        text = f"{often} of {result.rows:,} rows of {result.site}"
        if (probe := beside.get(one.latent)) is not None:
            text += (
                f"; balanced accuracy of {probe.task} ({probe.label}) on test {probe.latent_accuracy:.3f}, of a linear "
                f"probe {probe.probe_accuracy:.3f}; whether the model uses it was not measured"
            )
        texts[one.latent] = text
    write_feature_lists(
        texts,
        folder,
        model=about.model,
        source=about.source,
        name=f"Latents of {result.site}",
        description=f"Latents chosen: {result.chosen_by}.",
    )


def _site(dictionary: Dictionary, store: Store, site: str | None) -> str:
    place = site or dictionary.site
    if place is None:
        raise BadParameter(
            "the dictionary does not say which site it is of", needed="a site", found="none", next_step="give --site"
        )
    if store.width(place) != dictionary.width:
        raise BadParameter(
            "the states do not fit the dictionary",
            needed=f"{dictionary.width} features",
            found=f"{store.width(place)} at {place} of {store.path}",
            next_step="give a store of the model that the dictionary was trained on",
        )
    return place


def _checked(latents: Sequence[int], dictionary: Dictionary) -> tuple[int, ...]:
    most = dictionary.n_latents - 1
    given = [latent for latent in latents if isinstance(latent, int | np.integer) and not isinstance(latent, bool)]
    wrong = [latent for latent in given if not 0 <= latent <= most]
    if wrong or len(given) < len(latents) or not given:
        found = ", ".join(map(str, wrong)) or (repr(list(latents))[:100] if len(latents) else "none")
        raise BadParameter("there is no such latent", needed=f"whole numbers, 0 to {most}", found=found)
    return tuple(dict.fromkeys(map(int, given)))


def _refuse_other_export(about: ExportedLatents, dictionary: Dictionary, export: str | Path | None) -> None:
    """Refuse an export of more latents than the dictionary has, and warn of one of fewer, which may be in part."""
    if 0 <= about.highest < dictionary.n_latents - 1:
        warnings.warn(
            f"the export {export} has latents up to {about.highest}, the dictionary up to {dictionary.n_latents - 1}: "
            "if it is not a part of one, it is of another dictionary",
            ProbingWarning,
            stacklevel=3,
        )
    if about.highest >= dictionary.n_latents:
        raise ProvenanceMismatch(
            "the export is of another dictionary",
            needed=f"latents 0 to {dictionary.n_latents - 1}",
            found=f"latent {about.highest} of {about.source} of {about.model}",
            where=str(export),
            next_step="give the export of this dictionary",
        )


def _choose(
    dictionary: Dictionary,
    store: Store,
    site: str,
    beside: Property | None,
    count: int,
    seed: int,
    progress: bool | None,
) -> tuple[tuple[int, ...], str]:
    """Return latents, and how they were chosen."""
    if beside is None:
        fires = np.zeros(dictionary.n_latents, bool)
        for _, latents in _encoded(dictionary, store, site, "finding active latents", progress):
            fires[latents.indices] = True
        active = np.flatnonzero(fires)
        if not len(active):
            raise DegenerateDesign(
                "no latent is active on these states",
                needed="one that is",
                found="none",
                where=f"{site} of {store.path}",
            )
        drawn = generator(seed, "latents").permutation(active)[:count]
        return tuple(np.sort(drawn).tolist()), "at random among those that are active"
    latents, is_label = dictionary.encode(beside.states("train")), beside.is_label("train")
    gaps = mean_differences(latents, is_label)
    best = np.argsort(-np.abs(gaps), kind="stable")[:count]
    return tuple(best.tolist()), f"by the difference of means between {beside.label} and other rows of train, in SDs"


def _encoded(
    dictionary: Dictionary, store: Store, site: str, title: str, progress: bool | None
) -> Iterator[tuple[Ints, csr_array]]:
    """Yield row numbers and their latents, block by block."""
    with steps_bar(title, "rows", store.n_rows, progress) as update:
        for rows, states in store.blocks(site, block_rows=_AT_ONCE):
            yield rows, dictionary.encode(np.array(states))  # PyTorch takes no read-only view of a file
            update(int(rows[-1]) + 1, store.n_rows)


def _activations(
    dictionary: Dictionary, store: Store, site: str, latents: Sequence[int], progress: bool | None
) -> dict[int, tuple[Ints, Floats]]:
    """Return for each latent the rows on which it is active, and its activations there."""
    parts: dict[int, list[tuple[Ints, Floats]]] = {latent: [] for latent in latents}
    for rows, encoded in _encoded(dictionary, store, site, "encoding", progress):
        columns = encoded.tocsc()
        for latent in latents:
            where = slice(columns.indptr[latent], columns.indptr[latent + 1])
            parts[latent].append((rows[columns.indices[where]], columns.data[where].astype(np.float64)))
    return {
        latent: (np.concatenate([rows for rows, _ in found]), np.concatenate([values for _, values in found]))
        for latent, found in parts.items()
    }


def _facts(latent: int, values: Floats, rows: int, about: ExportedLatents) -> LatentFacts:
    return LatentFacts(
        latent,
        len(values) / rows,
        float(values.max(initial=0.0)),
        float(values.mean()) if len(values) else 0.0,
        about.name(latent),
        about.densities.get(latent),
        about.largest.get(latent),
        about.page(latent) if latent in about else "",
        tuple(map(_marked, about.contexts.get(latent, ())[:_MOST_EXPORTED])),
    )


def _warn_of_densities(facts: Sequence[LatentFacts], rows: int, export: str | Path | None) -> None:
    """Warn of latents whose density in an export is more than tenfold that on these rows, or less than a tenth of it;
    densities below 10 rows are taken as 10 rows.
    """
    least = 10 / rows
    apart = [
        one
        for one in facts
        if one.exported_density is not None
        and not 0.1 <= max(one.exported_density, least) / max(one.density, least) <= 10
    ]
    if not apart:
        return
    first = apart[0]
    warnings.warn(
        f"the export {export} contradicts these states in {len(apart)} of {len(facts)} latents: latent {first.latent} "
        f"is active on {first.exported_density:.3%} of tokens there and on {first.density:.3%} of {rows:,} rows here; "
        "it may be of another dictionary, or of other texts",
        ProbingWarning,
        stacklevel=3,
    )


def _marked(context: ExportedContext) -> str:
    """Return a context as text, with its strongest token in double angle brackets, and 10 tokens on either side."""
    at = context.largest
    before, after = "".join(context.tokens[max(0, at - 10) : at]), "".join(context.tokens[at + 1 : at + 11])
    return f"{before}«{context.tokens[at]}»{after}"


def _contexts(latent: int, index: Ints, values: Floats, texts: Texts, asked: Asked) -> list[LatentContext]:
    """Return the contexts of a latent, from the strongest to those of the lowest band."""
    order = np.argsort(-values, kind="stable")
    strongest = order[: asked.top]
    chosen = [(TOP, rank, place) for rank, place in enumerate(strongest.tolist(), start=1)]
    random = generator(asked.seed, "contexts", latent)
    level = np.empty(len(values))
    level[order[::-1]] = (np.arange(len(values)) + 0.5) / max(1, len(values))
    for low, high in BANDS:
        among = np.setdiff1d(np.flatnonzero((level >= low) & (level < high)), strongest)
        drawn = random.permutation(among)[: asked.per_band]
        drawn = drawn[np.argsort(-values[drawn], kind="stable")]
        band = f"{100 * low:.0f}–{100 * high:.0f} %"
        chosen += [(band, rank, place) for rank, place in enumerate(drawn.tolist(), start=1)]
    return [
        LatentContext(latent, band, rank, float(values[place]), **texts.of_row(int(index[place])))
        for band, rank, place in chosen
    ]
