"""Says in words what similarity shows and does not show: findings, warnings, and where measures disagree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import rankdata, spearmanr

from probing.reporting.task_results import site_order
from probing.reporting.wording import decimal, interval, plural, short
from probing.results.similarity import CKA, NEIGHBOURS, OUTPUT_KL, PROCRUSTES, TRANSFER, SimilarityResult

TITLES = {
    CKA: "CKA (debiased)",
    NEIGHBOURS: "mutual neighbours",
    PROCRUSTES: "Procrustes R² (held out)",
    TRANSFER: "probe transfer",
    OUTPUT_KL: "KL of outputs, bits per token",
}
OF_STATES = (CKA, NEIGHBOURS, PROCRUSTES)

LIMITS = (
    "None of these numbers edits a model: like states are not shown to be used alike, nor unlike ones to be used "
    "differently. That takes interventions (`probing use`, `probing patch`, `probing ablate`).",
    "CKA and R² weigh each direction by its variance. A property in directions of little variance can be gone while "
    "they are near 1; probe transfer asks for one property, and says nothing of others.",
    "Being above chance says only that the rows correspond: an untrained twin is above it, too, since it sees the same "
    "words. Compare with floor and ceiling, not with 0.",
    "The ceiling is how alike random halves of one store's coordinates are; two layers of one residual stream share "
    "coordinates and can exceed it.",
    "Mutual neighbours depend on the number of rows among which they are sought; rows with equal states tie. All "
    "numbers hold for these texts and rows.",
    "Intervals of R² keep the fitted maps and those of neighbours keep the neighbours: in simulations they held the "
    "true value in 80–88 % of cases, not 95 %. Chance of R² is a bound that is not too low, not its mean by chance.",
)
CAPTION = (
    "How alike the states of two stores are, on the same rows. Chance: the value that 95 % of permutations of the "
    "rows, by whole clusters, do not exceed. Ceiling: random halves of the first store's coordinates. Floor: its "
    "untrained twin."
)
_MANY_OUTLIERS = 0.05  # difference of CKA with and without outlier coordinates that is worth a warning
_MANY_TIES = 0.05
_MOST_CLAIMS = 3  # stores of which each has a sentence; of more the first and the last
_WIDE_CLOUD = 0.1  # d / (n + d) beyond which biased CKA misleads


@dataclass(frozen=True)
class Disagreement:
    """Holds a pair of sites with its CKA, its loss by transfer, and its rank by each among all pairs (1: most
    alike).
    """

    cka: SimilarityResult
    transfer: SimilarityResult
    cka_rank: int
    transfer_rank: int


def loss(result: SimilarityResult) -> float:
    """Return how much worse a probe scores on the other store's states than on its own store's; 0 is as well."""
    value = (result.own_a or 0.0) - result.score.value
    return value if result.higher_is_better else -value


def disagreements(results: Iterable[SimilarityResult]) -> tuple[float | None, list[Disagreement]]:
    """Compare the order of pairs by CKA with their order by the loss of probe transfer: return Spearman's correlation
    of the two (None for fewer than three pairs) and the pairs, those whose ranks differ most first.
    """
    chosen = [one for one in results if one.role == "pair"]
    by_pair = {(one.first, one.second, one.site_a, one.site_b): one for one in chosen if one.measure == CKA}
    moved = [one for one in chosen if one.measure == TRANSFER]
    matched = [
        (by_pair[key], one) for one in moved if (key := (one.first, one.second, one.site_a, one.site_b)) in by_pair
    ]
    if len(matched) < 3:
        return None, []
    ckas, losses = [-cka.score.value for cka, _ in matched], [loss(one) for _, one in matched]
    ranks = zip(rankdata(ckas, "min").tolist(), rankdata(losses, "min").tolist(), strict=True)
    found = [Disagreement(*pair, int(a), int(b)) for pair, (a, b) in zip(matched, ranks, strict=True)]
    found.sort(key=lambda one: -abs(one.cka_rank - one.transfer_rank))
    rho = float(spearmanr(ckas, losses).statistic) if len(set(ckas)) > 1 and len(set(losses)) > 1 else None
    return rho, found


def disagreement_sentence(rho: float | None, found: Sequence[Disagreement]) -> str:
    """Return a sentence on how alike the orders of pairs by CKA and by probe transfer are."""
    if not found:
        return ""
    is_constant = "cannot be compared (one of them is constant)"
    how = is_constant if rho is None else f"agree with Spearman's ρ = {decimal(rho, 2)}"
    first = found[0]
    of, several = len(found), len({one.cka.second for one in found}) > 1
    pair = _place(first.cka) + (f" of {first.cka.second}" if several else "")
    return (
        f"Over {plural(of, 'pair')} of sites the orders by CKA and by probe transfer {how}; they disagree most on "
        f"{pair}: number {first.cka_rank} by CKA ({short(first.cka.score.value)}), number {first.transfer_rank} "
        f"by transfer ({short(first.transfer.score.value)}, {short(first.transfer.own_a)} on its own states)."
    )


def claims(results: Sequence[SimilarityResult]) -> list[str]:
    """Return sentences on the pairs of stores: where they are most and least alike, beside floor and ceiling."""
    found, by_step = [], sorted(results, key=lambda one: -1 if one.step is None else one.step)
    pairs = list(dict.fromkeys((one.first, one.second) for one in by_step if one.role == "pair"))
    for first, second in pairs if len(pairs) <= _MOST_CLAIMS else [pairs[0], pairs[-1]]:
        here = [one for one in results if (one.first, one.second, one.measure) == (first, second, CKA)]
        same = [one for one in here if one.site_a == one.site_b] or here
        most, least = (pick(same, key=lambda one: one.score.value) for pick in (max, min))
        sites = plural(len(same), "site") if same is not here else plural(len(here), "pair of sites", "pairs of sites")
        at = f"over {sites} goes from {_valued(least)} to {_valued(most)}" if len(same) > 1 else f"is {_valued(most)}"
        found.append(f"{first} and {second}: CKA {at}.")
        below = [one for one in same if one.null_bound is not None and one.score.value <= one.null_bound]
        if below:
            found.append(f"Within chance at {', '.join(_place(one) for one in below[:5])}.")
    for one in results:
        if one.measure == OUTPUT_KL:
            found.append(
                f"Outputs of {one.second} differ from those of {one.first} by {decimal(one.score.value)} bits per "
                f"token {interval(one.score)}; matched with other tokens, "
                f"by {decimal(one.null_mean)}."
            )
    return found


def _valued(one: SimilarityResult) -> str:
    return f"{short(one.score.value)} ({_place(one)})"


def _place(one: SimilarityResult) -> str:
    return one.site_a if one.site_a == one.site_b else f"{one.site_a} and {one.site_b}"


def doubts(results: Sequence[SimilarityResult]) -> list[str]:
    """Return warnings: outlier coordinates that make CKA, tied neighbours, few rows for the width, no floor."""
    found = []
    pairs = [one for one in results if one.role == "pair"]
    moved = [(abs(one.score.value - one.without_outliers), one) for one in pairs if one.without_outliers is not None]
    moved = [(by, one) for by, one in moved if by > _MANY_OUTLIERS]
    if moved:
        _, worst = max(moved, key=lambda pair: pair[0])
        found.append(
            f"Outlier coordinates change CKA by more than {_MANY_OUTLIERS} in {plural(len(moved), 'pair')} of sites: "
            f"at {_place(worst)} it is {short(worst.score.value)} with and {short(worst.without_outliers)} without "
            f"{worst.outliers_a} and {worst.outliers_b} of them, which hold {worst.outlier_share_a:.0%} and "
            f"{worst.outlier_share_b:.0%} of the variance."
        )
    same = [one for one in pairs if one.site_a == one.site_b] or pairs
    tied = sorted({_place(one) for one in same if (one.ties or 0.0) > _MANY_TIES}, key=site_order)
    if tied:
        share = max(one.ties or 0.0 for one in same)
        found.append(
            f"Neighbours tie (up to {share:.0%} of the rows) at {', '.join(tied[:4])}"
            f"{' and more' if len(tied) > 4 else ''}: rows have equal states or directions there (all rows, if a site "
            "has one coordinate), and which of them count as nearest is arbitrary."
        )
    small = [one for one in pairs if (one.biased_if_unrelated or 0.0) > _WIDE_CLOUD]
    if small:
        one = small[0]
        found.append(
            f"{one.score.n:,} rows are few for {one.width_a} and {one.width_b} coordinates: biased CKA of independent "
            f"Gaussian states would be {short(one.biased_if_unrelated)}. Debiasing assumes independent rows, which "
            "words of one sentence are not: compare CKA with chance, which permutes whole clusters."
        )
    is_untrained = any("untrained (seed" in str(one.provenance.get("model_b")) for one in pairs)
    if pairs and not is_untrained and not any(one.role == "floor" for one in results):
        found.append("No untrained twin was given: what similarity needs no training is not known (--twin STORE).")
    return found
