"""Measures lenses: columns by row and site, means with intervals, differences, commitment, use of sites, prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.contracts.lens import Lens
from probing.lenses._reading import (
    QUANTITIES,
    FinalOutputs,
    Ints,
    Tail,
    TokenRows,
    fast,
    final_outputs,
    parts,
    states_of,
)
from probing.models.batching import ParallelBatches
from probing.models.language_model import LanguageModel
from probing.provenance import model_called
from probing.results.lens import (
    ALL_SITES,
    CONTROLS,
    FIRST,
    NO_SITE,
    UNIGRAM,
    Commitment,
    LensDifference,
    LensMean,
    LensResult,
    SiteUse,
)
from probing.seeds import generator
from probing.statistics.clusters import ClusterMeans
from probing.system.progress import steps_bar
from probing.text.corpus import Corpus

Floats = NDArray[np.float64]
Key = tuple[str, str]  # lens and site
Columns = Mapping[Key, Mapping[str, NDArray[np.float32]]]
COMPARED = ("kl", "cross_entropy", "agreement")  # quantities of which differences are given
USED_BITS = 0.1  # smallest mean KL of a replaced state that counts as use


@dataclass(frozen=True, eq=False)
class Reading:
    """Names a lens that is measured, the sites that it reads, and whether those are of the untrained twin."""

    lens: Lens
    sites: tuple[str, ...]
    of_twin: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it only shows what a reader gives without the model's work."""
        return self.lens.name in CONTROLS


@dataclass(frozen=True, eq=False)
class Measured:
    """Holds the columns of all rows, and the mean state at each site.

    Attributes:
        tail: end of the model.
        rows: the rows.
        columns: by lens and site, `(N,)` values of each of `QUANTITIES`.
        mean_states: mean state `(D,)` by site.
    """

    tail: Tail
    rows: TokenRows
    columns: dict[Key, dict[str, NDArray[np.float32]]]
    mean_states: dict[str, torch.Tensor]


def measure(
    tail: Tail, rows: TokenRows, readings: Sequence[Reading], twin: LanguageModel | None, progress: bool | None
) -> Measured:
    """Compare what every lens reads at each of its sites with the final output, row by row, and return the columns.

    States are read batch by batch, and outputs computed for one site and a few rows at a time, so that memory does not
    grow with sites × rows × vocabulary.
    """
    own = tuple(s for s in tail.sites if s == tail.site or any(s in r.sites for r in readings if not r.of_twin))
    of_twin = tuple(s for s in tail.sites if any(s in r.sites for r in readings if r.of_twin))
    n, keys = len(rows), [(one.lens.name, site) for one in readings for site in one.sites]
    columns = {key: {name: np.empty(n, np.float32) for name in QUANTITIES} for key in [*keys, (UNIGRAM, NO_SITE)]}
    last = torch.empty((n, tail.model.width(tail.site)))
    sums = {site: torch.zeros(tail.model.width(site), dtype=torch.float64) for site in own}
    with (
        fast(tail.model),
        ParallelBatches.opened(2 if torch.get_num_threads() % 2 == 0 and tail.model.device == "cpu" else 1) as lanes,
        steps_bar("reading lenses", "rows", n, progress) as bar,
    ):
        done, twins = 0, iter(states_of(twin, rows, of_twin)) if twin is not None and of_twin else None
        for members, states in states_of(tail.model, rows, own):
            theirs = next(twins)[1] if twins is not None else {}
            last[torch.from_numpy(members)] = states[tail.site].float().cpu()
            for site in own:
                sums[site] += states[site].sum(0, dtype=torch.float64).cpu()
            for part in parts(torch.arange(len(members)), tail.chunk):
                chosen = members[part.numpy()]
                final = final_outputs(tail, states[tail.site][part], rows.target[chosen])
                for one in readings:
                    given = theirs if one.of_twin else states
                    for site in one.sites:
                        compared = final.compare(tail.logits(one.lens.at(site, given[site][part])), lanes)
                        _put(columns[one.lens.name, site], chosen, compared)
                done += len(part)
                bar(done, n)
        _unigram(tail, rows, last, columns[UNIGRAM, NO_SITE], lanes)
    return Measured(tail, rows, columns, {site: (sums[site] / n).float() for site in own})


def _put(columns: dict[str, NDArray[np.float32]], rows: Ints, values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        columns[name][rows] = value.float().cpu().numpy()


def _unigram(
    tail: Tail, rows: TokenRows, last: torch.Tensor, columns: dict[str, NDArray[np.float32]], lanes: ParallelBatches
) -> None:
    """Compare the mean final output over the texts of the other half with each row: the best that a constant does."""
    codes = np.unique(rows.group, return_inverse=True)[1].reshape(-1)
    halves = codes % 2 if codes.max() else np.arange(len(codes)) % 2
    sides = [(half, torch.from_numpy(np.flatnonzero(halves == half))) for half in (0, 1)]
    sums = {half: torch.zeros(tail.vocabulary, dtype=torch.float64, device=tail.model.device) for half in (0, 1)}
    for half, members in sides:
        for part in parts(members, tail.chunk):
            sums[half] += torch.softmax(tail.logits(last[part]), -1).sum(0, dtype=torch.float64)
    for half, members in sides:
        other = sums[1 - half] if float(sums[1 - half].sum()) > 0 else sums[half]
        constant = (other / other.sum()).clamp_min(1e-30).log().float()
        for part in parts(members, tail.chunk):
            final = final_outputs(tail, last[part], rows.target[part.numpy()])
            _put(columns, part.numpy(), final.compare(constant.expand(len(part), -1), lanes))


def result_of(
    measured: Measured,
    readings: Sequence[Reading],
    facts: Mapping[str, Any],
    *,
    sites: Sequence[str],
    use_rows: int,
    corpus: Corpus,
    seed: int,
    progress: bool | None,
) -> LensResult:
    """Return the means of all columns with intervals, differences, commitment, and the effect of replacing states."""
    rows, columns, tail = measured.rows, measured.columns, measured.tail
    about = {one.lens.name: one.lens.about for one in readings} | {UNIGRAM: CONTROLS[UNIGRAM]}
    first = readings[0].lens.name
    clusters = ClusterMeans(rows.group, seed=seed)
    means, differences = (
        means_of(columns, clusters, rows.target_bytes, tail.site),
        differences_of(columns, clusters, list(about), first),
    )
    shown = [one.lens.name for one in readings if not one.is_control]
    commitment, depths = commitments(columns, clusters, shown, sites, tail.site)
    use = _use(measured, first, means, differences, sites, use_rows, seed, progress) if use_rows else []
    texts = len(np.unique(rows.example))
    counts = {
        "rows": len(rows),
        "texts": texts,
        "clusters": clusters.count,
        "unit": corpus.unit,
        "corpus": corpus.source,
    }
    counts |= {"fingerprint": corpus.fingerprint, "head": tail.model.suffix.head, "model": tail.model.facts()}
    return LensResult(
        model_called(tail.model.identity()["model"]),
        {**counts, **facts, "used_bits": USED_BITS},
        about,
        tuple(sites),
        (*means, *depths),
        differences,
        commitment,
        use,
        (),
        _doubts(clusters.count, corpus.unit),
        rows=_row_table(measured),
    )


def _doubts(clusters: int, unit: str) -> list[str]:
    if clusters == 1:
        return [f"All rows are of one text or {unit}: no interval can be given, and nothing is known of others."]
    few = f"Only {clusters} texts or {unit}s are resampled: intervals are wide, and uncertain themselves."
    return [few] if clusters < 20 else []


def _use(
    measured: Measured,
    first: str,
    means: Sequence[LensMean],
    differences: Sequence[LensDifference],
    sites: Sequence[str],
    count: int,
    seed: int,
    progress: bool | None,
) -> list[SiteUse]:
    rows = measured.rows
    some = rows.first(int(np.searchsorted(rows.input, min(count, len(rows.inputs)))) or len(rows))
    inner = [site for site in sites if site in measured.mean_states]
    total = len(some.inputs) * len(inner)
    done = 0
    with steps_bar("replacing states", "runs", total, progress) as bar:

        def advance(number: int) -> None:
            nonlocal done
            done += number
            bar(done, total)

        chosen, effects = replaced_kl(measured.tail, some, inner, measured.mean_states, seed=seed, advance=advance)
    own = {one.site: one for one in means if (one.lens, one.quantity) == (first, "kl")}
    gains = {d.site: d for d in differences if (d.lens, d.than_lens, d.quantity) == (first, UNIGRAM, "kl")}
    last = measured.tail.site  # there every lens gives the final output
    results = uses(effects, some.group[chosen], own, gains, seed=seed)
    return [replace(one, is_read=True, lens_kl=0.0) if one.site == last else one for one in results]


def _row_table(measured: Measured) -> Any:
    """Return one row per lens × site × token."""
    import pandas as pd

    rows = measured.rows
    tokens = measured.tail.model.tokenizer.convert_ids_to_tokens(rows.target.tolist())
    shared = {"example": rows.example, "position": rows.place, "target": tokens, "target_id": rows.target}
    shared |= {"target_bytes": rows.target_bytes, "cluster": rows.group}
    frames = [
        pd.DataFrame({"lens": lens, "site": site, **shared, **columns})
        for (lens, site), columns in measured.columns.items()
    ]
    return pd.concat(frames, ignore_index=True)


def means_of(columns: Columns, means: ClusterMeans, target_bytes: Ints, last: str) -> list[LensMean]:
    """Return the mean of every column, and bits a byte; agreement at the last site holds by definition, and does not
    vary.
    """
    results = []
    for (lens, site), one in columns.items():
        for quantity, unit in QUANTITIES.items():
            value, low, high = means.mean(one[quantity], unit)
            low, high = (value, value) if low is not None and (site, quantity) == (last, "agreement") else (low, high)
            results.append(LensMean(lens, site, quantity, value, low, high, unit, len(one[quantity])))
        rate = means.mean(one["cross_entropy"], "bits", over=target_bytes)
        results.append(LensMean(lens, site, "bits_per_byte", *rate, "bits per byte", len(target_bytes)))
    return results


def differences_of(columns: Columns, means: ClusterMeans, lenses: Sequence[str], first: str) -> list[LensDifference]:
    """Return paired differences: of the first lens to every other one, of every lens to the first one and to the
    unigram, and of each lens to itself at the site before.
    """
    results: list[LensDifference] = []

    def add(key: Key, than: Key) -> None:
        for quantity in COMPARED:
            unit = QUANTITIES[quantity]
            gap = columns[key][quantity].astype(np.float64) - columns[than][quantity]
            value, low, high = means.mean(gap, unit, least=-1.0)
            results.append(LensDifference(*key, *than, quantity, value, low, high, unit, len(gap)))

    constants = {lens: next((key for key in columns if key[0] == lens), None) for lens in (UNIGRAM, FIRST)}
    before: dict[str, str] = {}
    for lens, site in columns:
        if lens in constants:
            continue
        for other in lenses:
            than = constants.get(other) or (other, site)
            if other != lens and than in columns and _is_compared(lens, other, lenses, first):
                add((lens, site), than)
        if lens in before:
            add((lens, site), (lens, before[lens]))
        before[lens] = site
    return results


def _is_compared(lens: str, other: str, lenses: Sequence[str], first: str) -> bool:
    """Return whether a difference is of interest: the first lens against all others, and every lens against the first
    and against the unigram.
    """
    return lens == first or other in (first, UNIGRAM)


def commitments(
    columns: Columns, means: ClusterMeans, lenses: Iterable[str], sites: Sequence[str], last: str
) -> tuple[list[Commitment], list[LensMean]]:
    """Return for each lens from which site on its most probable token stays the final one, and the mean depth in
    blocks. At the last site every lens gives the final output.
    """
    shares, depths = [], []
    for lens in lenses:
        read = [site for site in sites if (lens, site) in columns and site != last]
        if not read:
            continue
        agrees = np.stack([columns[lens, site]["agreement"] > 0.5 for site in read] + [np.ones(_rows(columns), bool)])
        stays = np.logical_and.accumulate(agrees[::-1])[::-1]
        first = stays.argmax(0)
        names = [*read, last]
        counts = np.bincount(first, minlength=len(names)) / max(1, len(first))
        shares.append(Commitment(lens, dict(zip(names, counts.tolist(), strict=True))))
        layers = np.array([int(name.rpartition(".")[2]) for name in names], dtype=np.float64)
        value, *ends = means.mean(layers[first], "blocks")
        low, high = (None if end is None else float(np.clip(end, layers[0], layers[-1])) for end in ends)
        depths.append(LensMean(lens, ALL_SITES, "commitment_depth", value, low, high, "blocks", len(first)))
    return shares, depths


def _rows(columns: Columns) -> int:
    return len(next(iter(columns.values()))["kl"])


def replaced_kl(
    tail: Tail,
    rows: TokenRows,
    sites: Sequence[str],
    mean_states: Mapping[str, torch.Tensor],
    *,
    seed: int,
    advance: Callable[[int], None],
) -> tuple[Ints, dict[str, NDArray[np.float32]]]:
    """Return chosen rows, one of each text at random, and by site the KL in bits of their outputs when their state at
    the site is replaced by the mean state.
    """
    draw = generator(seed, "lens use").random(len(rows))
    order = np.lexsort((draw, rows.input))
    chosen = order[np.unique(rows.input[order], return_index=True)[1]]
    results = {site: np.full(len(chosen), np.nan, np.float32) for site in sites}
    at = {int(row): k for k, row in enumerate(chosen)}
    model = tail.model
    for batch, members in rows.batches():
        mine = np.array([row for row in members.tolist() if row in at], dtype=np.int64)
        given = [rows.inputs[i] for i in batch]
        line = torch.tensor([batch.index(i) for i in rows.input[mine].tolist()], device=model.device)
        column = torch.from_numpy(rows.place[mine] + model.first_piece(given)[line.cpu().numpy()]).to(model.device)
        inputs = model.padded(given)
        states, outputs = model.suffix.read(inputs, sites)
        assert outputs is not None  # the tail refused models without a head
        final = FinalOutputs(
            outputs[line, column].float().clamp_min(-1e30),
            torch.zeros(len(mine), dtype=torch.long, device=model.device),
        )
        for site in sites:
            edited = states[site].clone()
            edited[line, column] = mean_states[site].to(edited)
            changed = model.run_from(site, edited, inputs)[line, column].float().clamp_min(-1e30)
            results[site][[at[int(row)] for row in mine]] = final.kl(changed).cpu().numpy()
            advance(len(mine))
    return chosen, results


def uses(
    effects: Mapping[str, NDArray[np.float32]],
    groups: Ints,
    lens_means: Mapping[str, LensMean],
    lens_gains: Mapping[str, LensDifference],
    *,
    seed: int,
) -> list[SiteUse]:
    """Return for each site the mean effect of replacing its state, beside whether the lens reads it.

    Args:
        effects: KL in bits of the chosen rows, by site.
        groups: cluster of each chosen row.
        lens_means: mean KL(final ‖ lens) by site.
        lens_gains: difference of that KL to the unigram's, by site.
        seed: seed of the resampling.
    """
    means = ClusterMeans(groups, seed=seed)
    results = []
    for site, values in effects.items():
        value, low, high = means.mean(values, "bits")
        gain, own = lens_gains.get(site), lens_means.get(site)
        is_read = None if gain is None or gain.high is None else gain.high < 0
        is_used = None if low is None else low >= USED_BITS
        results.append(SiteUse(site, value, low, high, len(values), own.value if own else None, is_read, is_used))
    return results
