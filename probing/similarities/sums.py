"""Streams states of a store block by block: means, second moments, row norms and principal components of every site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import DegenerateDesign, NonFiniteStates, UnknownSite
from probing.models.site import select_sites
from probing.results.similarity import Role
from probing.seeds import generator
from probing.similarities.rows import Floats, Ints, SharedRows
from probing.system.threads import in_threads

States = NDArray[np.float32]
Pair = tuple[str, str]
OUTLIER_SDS = 6.0
_BLOCK_BYTES = 96 << 20
_PROJECTED_BYTES = 256 << 20
_MOST_COMPONENTS, _LEAST_COMPONENTS = 16, 8
_NO_SPREAD = 1e-6  # unbiased HSIC of a site with itself, as a share of the biased one, that is 0 up to rounding


@dataclass(eq=False)
class SiteSums:
    """Holds sums over N rows at one site of width D, from which all measures of linear similarity are made.

    Attributes:
        mean: `(D,)` mean state.
        scale: largest range of a coordinate. All other sums are of states divided by it, which no measure depends on:
            so they are far from the largest and the smallest number of float32.
        away: `(2, D)` means of the two halves of the rows, about the mean.
        cross: `(D, D)` sum of outer products of states about the mean.
        norms: `(N,)` squared distances from the mean.
        energies: `(2,)` for each half, sum of squared distances from the mean of that half.
        across: `(N,)` squared distances from the mean of the half that the row is not in.
        outliers: coordinates whose standard deviation is over 6 times the median one.
        outlier_norms: `(N,)` the part of `norms` in those coordinates.
        derivatives: `(S,)` derivative of the site's own HSIC by the weight of each cluster.
        projected: `(N, r)` states about the mean on the first principal components.
    """

    mean: Floats
    scale: float
    away: Floats
    cross: Floats
    norms: Floats
    energies: Floats
    across: Floats
    outliers: Ints
    outlier_norms: Floats
    derivatives: Floats
    projected: States

    @property
    def width(self) -> int:
        """Number of coordinates D."""
        return len(self.mean)

    @property
    def kept(self) -> Ints:
        """Coordinates that are no outliers."""
        return np.setdiff1d(np.arange(self.width), self.outliers)

    @property
    def outlier_share(self) -> float:
        """Share of the total variance in the outlier coordinates."""
        total = float(self.norms.sum())
        return float(self.outlier_norms.sum()) / total if total else 0.0

    @property
    def own_hsic(self) -> float:
        """Unbiased HSIC of the site with itself, times n (n − 3)."""
        return hsic(self.cross, self.norms, self.norms)


def hsic(cross: Floats, k: Floats, l: Floats) -> float:  # noqa: E741
    """Return the unbiased HSIC of linear kernels, times n (n − 3), from sums over rows.

    With states centred over all rows, the estimator of Song et al. is

        |X'Y|² − n/(n − 2) Σ k l + Σk Σl / ((n − 1)(n − 2)),

    where k and l are the squared lengths of the rows: the estimator does not change when a constant is added to all
    rows, and the sums of the centred kernels' rows are 0.

    Args:
        cross: X'Y of the centred states.
        k, l: `(N,)` squared lengths of the centred rows.

    References:
        Song, Smola, Gretton, Bedo and Borgwardt 2012, Feature selection via dependence maximization, JMLR 13, eq. 5.
    """
    n = len(k)
    return float((cross**2).sum() - n / (n - 2) * (k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)))


def hsic_derivatives(products: Floats, k: Floats, l: Floats) -> Floats:  # noqa: E741
    """Return the derivative `(N,)` of `hsic` by the weight of each row.

    Args:
        products: `(N,)` x' X'Y y of each row.
        k, l: `(N,)` squared lengths of the centred rows.
    """
    n = len(k)
    pairs = (k * l.sum() + l * k.sum()) / ((n - 1) * (n - 2))
    return np.asarray(2.0 * products - n / (n - 2) * k * l + pairs)


def row_products(a: States, b: States) -> Floats:
    """Return the inner product `(N,)` of each row of `a` with that of `b`."""
    return np.asarray(np.einsum("ij,ij->i", a, b), np.float64)


class Source:
    """Gives the states of one store at some sites, perhaps in some coordinates only, and their sums.

    Attributes:
        name: name in results.
        store: the store.
        sites: names of the sites.
        rows: the shared rows.
        leaves_out: whether outlier coordinates are left out when a site is measured.
        passes_over: whether sites with states that do not vary are left unmeasured (else they are refused).
        sums: by site, filled by `measure`.
    """

    def __init__(
        self,
        name: str,
        store: Any,
        sites: Iterable[str],
        rows: SharedRows,
        columns: Mapping[str, Ints] | None = None,
        *,
        leave_out: bool = False,
        pass_over: bool = False,
    ) -> None:
        self.name, self.store, self.sites, self.rows = name, store, tuple(sites), rows
        self.sums: dict[str, SiteSums] = {}
        self.leaves_out, self.passes_over = leave_out, pass_over
        self._columns = dict(columns or {})

    def width(self, site: str) -> int:
        """Return the number of coordinates that are read at a site."""
        return len(self._columns[site]) if site in self._columns else int(self.store.width(site))

    def read(self, site: str, rows: Any) -> States:
        """Return states `(N, D)` of some of the shared rows (a slice or indices)."""
        states: States = self.store.read(site, self.rows.index[rows])
        return states.take(self._columns[site], axis=1) if site in self._columns else states

    def _check(self, site: str, rows: slice, states: States) -> None:
        """Raise NonFiniteStates if states are NaN or infinite."""
        bad = np.flatnonzero(~np.isfinite(states).all(1))
        numbers = self.rows.index[rows][bad[:5]]
        if len(bad):
            raise NonFiniteStates(
                "states that are not finite",
                needed="finite states",
                found=f"NaN or infinity in rows {', '.join(map(str, numbers.tolist()))}",
                where=f"store {self.name}, site {site}",
                next_step="leave the site out, or extract again in float32",
            )

    def _constant(self, site: str, found: str) -> DegenerateDesign:
        return DegenerateDesign(
            "states that do not vary cannot be compared",
            needed="states that differ between rows",
            found=found,
            where=f"store {self.name}, site {site}",
            next_step="leave the site out (sites)",
        )

    def centred(self, site: str, rows: Any) -> States:
        """Return states `(N, D)` of some rows about the mean of all rows, over `SiteSums.scale`; the site must have
        been measured.
        """
        return _about(self.read(site, rows), self.sums[site].mean, self.sums[site].scale)

    def measure(self, advance: Callable[[], None]) -> None:
        """Read every site three times and fill `sums`: means; second moments; row sums.

        Raises:
            NonFiniteStates: states are NaN or infinite.
            DegenerateDesign: states do not vary, unless `passes_over`.
        """
        unknown = [site for site in self.sites if site not in self.sums]
        for site, found in zip(unknown, in_threads(self._measured_or_passed_over, unknown), strict=True):
            if found is not None:
                self.sums[site] = found
            advance()

    def _measured_or_passed_over(self, site: str) -> SiteSums | None:
        try:
            return self._measured_without_outliers(site)
        except DegenerateDesign:
            if not self.passes_over:
                raise
            return None

    def _measured_without_outliers(self, site: str) -> SiteSums:
        found = self._measured(site)
        if self.leaves_out and len(found.outliers):
            known = self._columns.get(site, np.arange(self.width(site)))
            self._columns[site] = known[found.kept]
            found = self._measured(site)
        return found

    def _measured(self, site: str) -> SiteSums:
        rows, width = self.rows, self.width(site)
        parts = list(rows.parts(block_rows([width])))
        counts = np.bincount(rows.half, minlength=2)
        totals, ends = np.zeros((2, width)), np.array([[np.inf], [-np.inf]]).repeat(width, 1)
        for part in parts:
            states, half = self.read(site, part), rows.half[part]
            added = np.stack([states[half == h].sum(0, dtype=np.float64) for h in (0, 1)])
            if not np.isfinite(added).all():
                self._check(site, part, states)
            totals += added
            ends = np.stack([np.minimum(ends[0], states.min(0)), np.maximum(ends[1], states.max(0))])
        mean, scale = totals.sum(0) / len(rows), float((ends[1] - ends[0]).max())
        if not scale > 0:
            raise self._constant(site, "all rows have the same state")
        away = (totals / counts[:, None] - mean) / scale
        cross, norms = np.zeros((width, width)), np.empty(len(rows))
        for part in parts:
            states = _about(self.read(site, part), mean, scale)
            cross += states.T @ states
            norms[part] = row_products(states, states)
        if hsic(cross, norms, norms) <= _NO_SPREAD * (cross**2).sum():
            raise self._constant(site, "all rows but one or two have the same state")
        vectors = np.linalg.eigh(cross)[1]
        count = components(len(rows), len(self.sites), width)
        sds = np.sqrt(np.maximum(np.diag(cross), 0.0))
        found = SiteSums(
            mean=mean,
            scale=scale,
            away=away,
            cross=cross,
            norms=norms,
            energies=np.array([norms[rows.half == h].sum() - counts[h] * away[h] @ away[h] for h in (0, 1)]),
            across=np.empty(len(rows)),
            outliers=np.flatnonzero(sds > OUTLIER_SDS * np.median(sds)) if np.median(sds) > 0 else np.empty(0, int),
            outlier_norms=np.zeros(len(rows)),
            derivatives=np.empty(0),
            projected=np.empty((len(rows), count), np.float32),
        )
        products = np.empty(len(rows))
        narrow, basis = cross.astype(np.float32), vectors[:, -count:].astype(np.float32)
        for part in parts:
            states = _about(self.read(site, part), mean, scale)
            other = away[1 - rows.half[part]]
            shift = (states @ away.T.astype(np.float32))[np.arange(len(states)), 1 - rows.half[part]]
            found.across[part] = norms[part] - 2.0 * shift + (other**2).sum(1)
            found.projected[part] = states @ basis
            products[part] = row_products(states @ narrow, states)
            if len(found.outliers):
                found.outlier_norms[part] = (states[:, found.outliers].astype(np.float64) ** 2).sum(1)
        found.derivatives = rows.sums(hsic_derivatives(products, norms, norms))
        return found


def _about(states: States, mean: Floats, scale: float) -> States:
    """Return states about a mean and divided by a scale, computed in float64 and rounded to float32 after each."""
    found = np.subtract(states, mean, out=np.empty_like(states), casting="same_kind")  # no array of float64 is made
    return np.divide(found, scale, out=found, casting="same_kind")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Holds two sources, the pairs of their sites, and what the comparison is for."""

    role: Role
    first: Source
    second: Source
    pairs: tuple[Pair, ...]

    def steps(self, task: str | None) -> int:
        """Return the number of steps of the work, which are of about equal length."""
        of_pairs = 3 if task is not None and self.role != "ceiling" else 2
        return len(self.first.sites) * (self.role == "ceiling") + len(self.second.sites) + of_pairs * len(self.pairs)


def comparisons_of(
    stores: Mapping[str, Any],
    twins: Mapping[str, Any],
    sites: str | Sequence[str],
    pairs: str,
    rows: SharedRows,
    outliers: str,
) -> list[Comparison]:
    """Return all comparisons: the first store with every other and with its twin, and its halves with each other.

    Args:
        stores: the stores by name; the first is compared with the others.
        twins: the store of the first model's untrained twin by name, or nothing.
        sites: patterns of the sites of every store.
        pairs: `all`, `same` or `auto`, see `similarity`.
        rows: the shared rows.
        outliers: `apart` or `leave-out`.

    Raises:
        UnknownSite: a store lacks a site, or no site has the same name in two stores.
    """
    (name, store), *others = stores.items()
    first = _source(name, store, sites, rows, outliers)
    every = pairs == "all" or (pairs == "auto" and len(others) == 1)
    found = []
    for other_name, other in (*others, *twins.items()):
        second = _source(other_name, other, sites, rows, outliers)
        same = [(site, site) for site in first.sites if site in second.sites]
        is_pair = other_name in stores
        chosen = [(a, b) for a in first.sites for b in second.sites] if every and is_pair else same
        if not chosen:
            raise UnknownSite(
                f"{name} and {other_name} have no site of the same name",
                needed=", ".join(first.sites[:8]),
                found=", ".join(second.sites[:8]),
                where=f"store {other_name}",
                next_step="compare all pairs of sites: pairs=all" if is_pair else "name sites that both have",
            )
        found.append(Comparison("pair" if is_pair else "floor", first, second, tuple(chosen)))
    halves = _halves(name, store, first, rows)
    return [*found, *([halves] if halves else [])]


def _source(name: str, store: Any, sites: str | Sequence[str], rows: SharedRows, outliers: str) -> Source:
    chosen = select_sites(sites, store.sites)
    return Source(name, store, chosen, rows, leave_out=outliers == "leave-out")


def _halves(name: str, store: Any, first: Source, rows: SharedRows) -> Comparison | None:
    """Return the comparison of random halves of the coordinates of each site that has two or more."""
    sites = [site for site in first.sites if store.width(site) > 1]
    orders = {site: generator(rows.seed, "coordinates", site).permutation(store.width(site)) for site in sites}
    halves = [{site: np.sort(order[part::2]) for site, order in orders.items()} for part in (0, 1)]
    one, other = (
        Source(f"{name}, half {part + 1}", store, sites, rows, columns, leave_out=first.leaves_out, pass_over=True)
        for part, columns in enumerate(halves)
    )
    return Comparison("ceiling", one, other, tuple((site, site) for site in sites)) if sites else None


def block_rows(widths: Iterable[int]) -> int:
    """Return the number of rows of a block, so that the states of all these widths take some 100 MiB at most."""
    return int(np.clip(_BLOCK_BYTES // (4 * max(1, sum(widths))), 128, 8192))


def components(n_rows: int, n_sites: int, width: int) -> int:
    """Return the number of principal components on which rows are kept in memory: at most 16, fewer if they would take
    over 256 MiB.
    """
    fitting = _PROJECTED_BYTES // (4 * max(1, n_rows * n_sites))
    return int(min(width, np.clip(fitting, _LEAST_COMPONENTS, _MOST_COMPONENTS)))
