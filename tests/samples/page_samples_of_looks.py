"""Results of lenses, of similarity and of an inspection, as their pages show them; the last is of a small model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import probing as pb
from probing.reporting.inspection_page import write_page
from probing.reporting.page import Contents
from probing.results.lens import ALL_SITES, NO_SITE, Commitment, LensDifference, LensMean, LensResult, SiteUse
from probing.results.lens import Trajectory as Read
from probing.results.probe import Score
from probing.results.similarity import Role, SimilarityResult, SimilarityResults
from tests.samples.planted_heads import TEXT, planted_model

SITES = tuple(f"resid.{layer}" for layer in range(4))
_UNITS = {"agreement": "fraction", "rank_of_final": "rank", "rank_of_true": "rank"}
_ROLES: dict[Role, float] = {"pair": 0.8, "ceiling": 0.95, "floor": 0.3}
_QUANTITIES = ("kl", "kl_reverse", "cross_entropy", "entropy", "agreement", "rank_of_final", "rank_of_true")
_TOKENS = ("now", "adays", "␣the", "␣old", "␣doctor", "␣behind", "␣the", "␣window", "␣clearly", "␣was", "<b>")


def trajectory(lens: str, tokens: tuple[str, ...] = _TOKENS) -> Read:
    """What a lens reads in a prompt: ever surer of the token itself."""
    shares = [[0.2 + 0.2 * s + 0.01 * t for t in range(len(tokens))] for s in range(len(SITES))]
    top = [[[(token, p), ("␣other", 0.1)] for token, p in zip(tokens, row, strict=True)] for row in shares]
    falling = [[2.0 - p for p in row] for row in shares]
    ranks = [[*row[:-1], None] for row in falling]
    return Read(" ".join(tokens), lens, tokens, SITES, top, falling, falling, falling, ranks)


def lenses() -> Contents:
    """Two lenses and a control at four sites, with use beside them, and two prompts: one of a token, one of eleven."""
    names = {"tuned": 0.1, "logit": 0.5, "bias_only": 0.3}
    means = [
        LensMean(lens, site, quantity, value, value - 0.05, value + 0.05, _UNITS.get(quantity, "bits"), 500)
        for lens, level in names.items()
        for k, site in enumerate(SITES)
        for quantity in _QUANTITIES
        for value in (level * (3 - k) + (0.1 if quantity == "agreement" else 0.0),)
    ]
    means += [LensMean("unigram", NO_SITE, quantity, 1.7, 1.6, 1.8, "bits", 500) for quantity in _QUANTITIES]
    means.append(LensMean("tuned", ALL_SITES, "commitment_depth", 1.4, 1.2, 1.6, "blocks", 500))
    gains = [
        LensDifference("tuned", site, than, site, "kl", -0.4, -0.5, -0.3, "bits", 500)
        for site in SITES
        for than in ("logit", "bias_only")
    ]
    use = [SiteUse(site, 0.5, 0.3, 0.7, 30, 0.3, k > 0, True) for k, site in enumerate(SITES)]
    shares = Commitment("tuned", dict.fromkeys(SITES, 0.25))
    facts = {"rows": 500, "texts": 60, "head": "causal", "skip": 1, "used_bits": 0.1}
    prompts = [trajectory(lens, tokens) for lens in ("tuned", "logit") for tokens in (_TOKENS, ("the",))]
    about = {name: f"the lens {name}" for name in (*names, "unigram")}
    return Contents(lenses=[LensResult("tiny-gpt2", facts, about, SITES, means, gains, [shares], use, prompts)])


def similarities() -> Contents:
    """Two models whose sites are alike by depth, with a ceiling and a floor."""
    found = []
    for role, top in _ROLES.items():
        for i, a in enumerate(SITES):
            for j, b in enumerate(SITES):
                value = top - 0.1 * abs(i - j)
                score = Score(value, value - 0.02, value + 0.02, 900, "fraction")
                if role == "pair" or i == j:
                    found.append(SimilarityResult("cka", role, "m", "twin", a, b, score, 0.01, 0.05, 60, 64, 64))
    return Contents(similarity=SimilarityResults(found))


def inspection() -> bytes:
    """The page of two texts in a model of planted heads, whose heads are taken away."""
    found = pb.inspect(planted_model(), [TEXT, "start b d a b d a"], check=True, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        return write_page(found, Path(folder)).read_bytes()
