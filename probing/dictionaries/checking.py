"""The self-check of a dictionary on the user's own states: does it do there what its file declares, and if not, why?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.dictionaries.dictionary import NORMALIZATIONS, Dictionary
from probing.errors import BadParameter, WrongDictionary

Floats = NDArray[np.float32]

OFF = 0.25  # share by which L0 may be off, unexplained variance be worse than declared, and another setting gain
_POOR = 0.9  # share of variance unexplained from which on a dictionary explains nothing
_LEAST_GAIN = 0.002  # of variance: what another setting gains below this is noise
_FEWER_ROWS = 2000  # for settings that are tried out
_FACTOR = "normalisation: states times "
_FIRST = "first_token: without it"
_K_STEPS = (0.25, 0.5, 2.0, 4.0)
_MORE_LATENTS_GAIN = 0.5  # more latents than in training explain somewhat more: only a halved rest is a wrong setting
_FACTOR_ROWS = 256
_FACTOR_STEPS = (1.0, 0.5, 0.25, 0.125, 0.0625)  # of the power of 2 of a factor of the states
_LARGEST_FACTOR = 6  # the same


@dataclass(frozen=True)
class Fit:
    """Says how well a dictionary describes some states.

    Attributes:
        l0: mean number of active latents of a row.
        fvu: fraction of variance unexplained: squared error of the reconstruction over that of the mean state.
        dead: share of latents that are active on no row.
    """

    l0: float
    fvu: float
    dead: float


@dataclass(frozen=True)
class DictionaryCheck:
    """Holds what a self-check measured.

    Attributes:
        site: site whose states were encoded.
        rows: number of rows.
        fit: L0, fraction of variance unexplained, dead share on these rows.
        declared: the same numbers as the file declares them, where it does.
        alternatives: by what was changed: how well the dictionary does with another setting or on other states.
        problems: what is wrong, in sentences; the first names the likely cause; empty if nothing is.
        cause: short name of the likely cause (`k`, `relu`, `threshold`, `normalisation`, `bias`, `decoder`, `encoder`,
            `site`, `first_token`, `dead`, `unknown`); "" if nothing is wrong.
        loss: losses of the model (see `LossRecovered`); None if no model was given.
    """

    site: str
    rows: int
    fit: Fit
    declared: Mapping[str, float]
    alternatives: Mapping[str, Fit] = field(default_factory=dict)
    problems: Sequence[str] = ()
    cause: str = ""
    loss: Any = None

    def refuse_if_wrong(self, where: str = "") -> None:
        """Raise an error if the dictionary does not do what its file declares.

        Raises:
            WrongDictionary: see `problems`.
        """
        if self.problems:
            declared = ", ".join(f"{name} {value:g}" for name, value in self.declared.items())
            raise WrongDictionary(
                f"this dictionary does not describe these states: {self.problems[0]}",
                needed=f"what the file declares ({declared})" if declared else "a dictionary of these states",
                found=f"l0 {self.fit.l0:.4g}, {self.fit.fvu:.1%} of the variance unexplained, "
                f"{self.fit.dead:.1%} of the latents dead, on {self.rows:,} rows of {self.site}",
                where=where,
                next_step=_STEPS.get(self.cause, _STEPS["unknown"]),
            )


_STEPS = {
    "k": "check k in the settings of the file",
    "relu": "read it as TopK: set the architecture and k in the settings of the file",
    "threshold": "check the architecture in the settings of the file: BatchTopK has a threshold, TopK has k",
    "normalisation": "check the normalisation in the settings of the file, or give norm_factor (--norm-factor)",
    "bias": "check whether the decoder's bias is subtracted before encoding (apply_b_dec_to_input)",
    "decoder": "write the decoder as (latents, width)",
    "encoder": "write the encoder as (width, latents)",
    "site": "give the site that the dictionary was trained on: the input of block l is resid.l, its output resid.l+1",
    "first_token": "leave out the first token of every text (--skip 1)",
    "dead": "give states of the model and site that the dictionary was trained on",
    "unknown": "give states of the model and site that the dictionary was trained on, in its normalisation",
}


@dataclass(frozen=True, eq=False)
class CheckRows:
    """Holds rows of states that a dictionary is checked on.

    Attributes:
        site: site of the dictionary.
        states: states `(n, d)` of the same rows by site: of `site`, and of others that may be meant.
        is_first: `(n,)` whether the row is the first token of its text.
        targets: for a transcoder, the states `(n, d_out)` that it decodes.
    """

    site: str
    states: Mapping[str, Floats]
    is_first: NDArray[np.bool_]
    targets: Floats | None = None

    def part(self, chosen: NDArray[Any]) -> CheckRows:
        """Return some of the rows."""
        states = {name: rows[chosen] for name, rows in self.states.items()}
        return CheckRows(
            self.site, states, self.is_first[chosen], None if self.targets is None else self.targets[chosen]
        )


def measure_fit(dictionary: Dictionary, states: ArrayLike, targets: ArrayLike | None = None) -> Fit:
    """Return L0, fraction of variance unexplained and share of dead latents on states `(n, d)`.

    Args:
        dictionary: the dictionary.
        states: states of at least two rows.
        targets: for a transcoder, the states `(n, d_out)` that it decodes.

    Raises:
        BadParameter: the states do not fit, or are fewer than two or all equal.
    """
    rows = dictionary.checked(states)
    aims = rows if targets is None else np.asarray(targets, dtype=np.float32)
    variance = float(((aims - aims.mean(axis=0, dtype=np.float64)) ** 2).sum(dtype=np.float64)) if len(aims) else 0.0
    if len(rows) < 2 or variance <= 0:
        raise BadParameter("nothing can be checked on these states", needed="rows that differ", found=f"{len(rows)}")
    latents = dictionary.encode(rows)
    error = aims - dictionary.decode(latents, states=rows)
    with np.errstate(over="ignore"):
        rest = float((error.astype(np.float64) ** 2).sum()) / variance
    dead = 1.0 - len(np.unique(latents.indices)) / dictionary.n_latents
    return Fit(latents.nnz / len(rows), rest if np.isfinite(rest) else float("inf"), dead)


def check_rows(dictionary: Dictionary, rows: CheckRows, *, seed: int = 0) -> DictionaryCheck:
    """Measure how well a dictionary describes states, compare with what its file declares, and look for the cause if it
    does not: try other settings of it, and other states, and see whether one of them does much better.

    Args:
        dictionary: the dictionary.
        rows: the states.
        seed: seed of the choice of rows for settings that are tried out.
    """
    fit = measure_fit(dictionary, rows.states[rows.site], rows.targets)
    declared = declared_of(dictionary)
    count = len(rows.is_first)
    chosen = np.random.default_rng(seed).permutation(count)[:_FEWER_ROWS]
    few = rows if len(chosen) == count else rows.part(np.sort(chosen))
    own = fit if few is rows else measure_fit(dictionary, few.states[few.site], few.targets)
    tried = dict(_alternatives(dictionary, few, own, declared))
    cause, problems = _judged(fit, own, declared, tried, dictionary)
    # First tokens can be so large that they decide which setting seems better; what is wrong with the rest is asked
    # without them.
    if _FIRST in tried and (problems or _is_better(_FIRST, tried[_FIRST], own)):
        rest = check_rows(dictionary, rows.part(~rows.is_first), seed=seed)
        first = [_better_words("first_token", "", tried[_FIRST], own), *problems]
        cause, problems = (rest.cause, list(rest.problems)) if rest.problems else ("first_token", first)
    return DictionaryCheck(rows.site, count, fit, declared, tried, problems, cause)


def declared_of(dictionary: Dictionary) -> dict[str, float]:
    """Return what the file declares of L0 (its own number, or else k) and of the variance unexplained."""
    found: dict[str, float] = {}
    for name, keys in (("l0", ("l0", "k", "target_l0")), ("fvu", ("fvu",))):
        for key in keys:
            value = dictionary.declared.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                found.setdefault(name, float(value))
    if "l0" not in found and dictionary.k is not None:
        found["l0"] = float(dictionary.k)
    return found


def _alternatives(
    dictionary: Dictionary, rows: CheckRows, own: Fit, declared: Mapping[str, float]
) -> list[tuple[str, Fit]]:
    """Return the fits of other settings, by `cause: what was changed`."""
    states, found = rows.states[rows.site], list[tuple[str, Fit]]()

    def attempt(name: str, other: Dictionary | None, given: Floats, aims: Floats | None) -> None:
        if other is not None and len(given) > 1:
            try:
                found.append((name, measure_fit(other, given, aims)))
            except BadParameter:  # of states that are all equal, or of another width
                return

    for name, other in _other_settings(dictionary, states, own, declared):
        attempt(name, other, states, rows.targets)
    for site, given in rows.states.items():
        if site != rows.site and given.shape == states.shape:
            attempt(f"site: {site}", dictionary, given, rows.targets)
    if rows.is_first.any() and not rows.is_first.all():
        later = rows.part(~rows.is_first)
        attempt(_FIRST, dictionary, later.states[rows.site], later.targets)
    return found


def _other_settings(
    dictionary: Dictionary, states: Floats, own: Fit, declared: Mapping[str, float]
) -> list[tuple[str, Dictionary]]:
    """Return dictionaries with one setting changed, by `cause: what was changed`."""
    found: list[tuple[str, Dictionary]] = []
    k, most = dictionary.k, dictionary.n_latents
    if dictionary.activation == "topk" and k is not None:
        ks = {max(1, round(k * step)) for step in _K_STEPS} - {k}
        found += [(f"k: {other}", replace(dictionary, k=other)) for other in sorted(ks) if other <= most]
        found += [("threshold: BatchTopK", _by_threshold(dictionary, states, k))]
    elif dictionary.activation in ("relu", "threshold") and "l0" in declared and own.l0 > declared["l0"]:
        kept = min(most, max(1, round(declared["l0"])))
        architecture = dictionary.architecture if dictionary.is_transcoder else "topk"
        cause = "relu" if dictionary.activation == "relu" else "threshold"
        found.append(
            (f"{cause}: TopK of {kept}", replace(dictionary, architecture=architecture, k=kept, threshold=None))
        )
    for name in NORMALIZATIONS:
        if name != dictionary.normalization:
            found.append((f"normalisation: {name}", replace(dictionary, normalization=name)))
    if dictionary.normalization == "none" and not dictionary.is_transcoder:
        factor = _best_factor(dictionary, states)
        if not 0.9 < factor < 1.1:
            found.append((f"{_FACTOR}{factor:.4g}", scaled(dictionary, factor)))
    if dictionary.decoder_bias.shape == (dictionary.width,) and dictionary.decoder_bias.any():
        flipped = not dictionary.subtract_decoder_bias
        name = f"bias: {'' if flipped else 'not '}subtracted"
        found.append((name, replace(dictionary, subtract_decoder_bias=flipped)))
    for name in ("decoder", "encoder"):
        matrix: Floats = getattr(dictionary, name)
        turned: dict[str, Any] = {name: matrix.reshape(matrix.shape[::-1]).T}
        found.append((f"{name}: transposed", replace(dictionary, **turned)))
    return found


def _by_threshold(dictionary: Dictionary, states: Floats, k: int) -> Dictionary:
    """Return a TopK dictionary as BatchTopK: with the threshold above which rows have k latents in the mean."""
    most = min(dictionary.n_latents, 4 * k)
    values = np.sort(replace(dictionary, k=most).encode(states).data)[::-1]
    threshold = values[min(k * len(states), len(values) - 1)] if len(values) else 0.0
    architecture = dictionary.architecture if dictionary.is_transcoder else "batchtopk"
    return replace(dictionary, architecture=architecture, k=None, threshold=np.array([threshold], np.float32))


def _best_factor(dictionary: Dictionary, states: Floats) -> float:
    """Return the factor of the states at which a dictionary explains them best: the least of its squared errors, first
    among powers of 2, then in ever smaller steps around the best of them.
    """
    rows = states[:: max(1, len(states) // _FACTOR_ROWS)]
    known: dict[float, float] = {}

    def error(power: float) -> float:
        if power not in known:
            try:
                known[power] = measure_fit(scaled(dictionary, 2**power), rows).fvu
            except BadParameter:  # of rows that are all equal, or numbers that float32 does not hold
                known[power] = float("inf")
        return known[power]

    powers = np.arange(-_LARGEST_FACTOR, _LARGEST_FACTOR + 1, dtype=float).tolist()
    for step in _FACTOR_STEPS:
        best = min(powers, key=lambda power: (error(power), abs(power)))
        powers = [best - step / 2, best, best + step / 2]
    return float(2 ** min(powers, key=lambda power: (error(power), abs(power))))


def scaled(dictionary: Dictionary, factor: float) -> Dictionary:
    """Return the dictionary that encodes a state x as this one encodes `factor` x, and decodes in the units of x."""
    number = np.float32(factor)
    return replace(
        dictionary,
        encoder=dictionary.encoder * number,
        decoder=dictionary.decoder / number,
        decoder_bias=dictionary.decoder_bias / number,
    )


def _judged(
    fit: Fit, own: Fit, declared: Mapping[str, float], tried: Mapping[str, Fit], dictionary: Dictionary
) -> tuple[str, list[str]]:
    """Return the likely cause and the problems, in sentences; of a dictionary that is as declared ("", [])."""
    problems: list[str] = []
    if fit.dead == 1.0:
        return "dead", ["all latents are dead"]
    l0 = declared.get("l0")
    if l0 is not None and not 1 - OFF <= fit.l0 / l0 <= 1 + OFF:
        problems.append(f"{fit.l0:.4g} latents of a row are active, where the file declares {l0:g}")
    if "fvu" in declared and fit.fvu > declared["fvu"] * (1 + OFF) + _LEAST_GAIN:
        worse = fit.fvu / declared["fvu"] - 1
        problems.append(
            f"{fit.fvu:.1%} of the variance are unexplained, worse by {worse:.0%} than the {declared['fvu']:.1%} that "
            "the file declares"
        )
    if fit.fvu > _POOR:
        problems.append(f"{fit.fvu:.1%} of the variance are unexplained")
    better = {name: one for name, one in tried.items() if _is_better(name, one, own)}
    if not better:
        return ("unknown", problems) if problems else ("", [])
    # More latents explain more in any case: where a threshold does much better with as many, k is not the cause.
    is_threshold = any(name.startswith("threshold: ") for name in better)
    likely = [name for name in better if not (is_threshold and name.startswith("k: "))]
    best = min(likely, key=lambda name: better[name].fvu)
    cause, _, change = best.partition(": ")
    return cause, [_better_words(cause, change, better[best], own), *problems]


def _better_words(cause: str, change: str, one: Fit, own: Fit) -> str:
    setting = f"the setting {change!r}" if change in NORMALIZATIONS else change
    words = _CAUSES[cause].format(change=setting)
    return f"{words} ({one.fvu:.1%} of the variance unexplained instead of {own.fvu:.1%})"


_CAUSES = {
    "k": "it was probably trained with k = {change}",
    "relu": "TopK weights are probably read as ReLU: {change} does better",
    "threshold": "its architecture is probably another: {change} does better",
    "normalisation": "its states were probably normalised otherwise: {change} does better",
    "bias": "the decoder's bias is probably to be {change} before encoding",
    "decoder": "its decoder is probably transposed",
    "encoder": "its encoder is probably transposed",
    "site": "its site is probably {change}",
    "first_token": "it was probably trained without the first token of a text",
}


def _is_better(name: str, one: Fit, own: Fit) -> bool:
    """Return whether a change explains so much more that the setting of the file is doubtful. What leaves nearly all
    unexplained is no explanation, however much worse the setting of the file does.
    """
    is_more = name.startswith(("k: ", _FACTOR)) and one.l0 > own.l0 * (1 + OFF)
    share = _MORE_LATENTS_GAIN if is_more else 1 / (1 + OFF)
    return one.fvu <= _POOR and one.fvu < share * own.fvu and own.fvu - one.fvu > _LEAST_GAIN
