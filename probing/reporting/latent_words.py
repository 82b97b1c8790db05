"""Sentences on edits of a dictionary's latents: whether the model uses these latents, and which ones they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from probing.recipes import parts_of
from probing.reporting.wording import decimal, plural
from probing.results.use import LATENT, NEVER_ACTIVE, UseCell

LATENTS = "latents"  # name of the intervention that edits latents of a dictionary
LITTLE = 0.1  # a share of the swap's effect that is below this at both ends of its interval is little
_KINDS = ("latents", "directions")  # what is drawn at random in place of an edit of latents
_MOST = 20  # numbers of latents that a sentence names
OPTIMISTIC = (
    "Latents that were chosen by the labels of these very texts, or whose dictionary was trained on them, do somewhat "
    "better for that reason alone: name latents that were chosen on other texts. Nothing here checks that."
)


def edit_title(name: str) -> str:
    """Return the recipe of an intervention for a table: the dictionary that it names without the folders before it."""
    return re.sub(r"dictionary=[^,]*/", "dictionary=", name)


def edits_of_latents(cell: UseCell) -> dict[str, dict[str, float]]:
    """Return the numbers of edits of latents at a place, by recipe, without those of random ones."""
    return {name: one for name, one in cell.comparisons.items() if name.partition(":")[0] == LATENTS}


def is_of(recipe: str, path: str) -> bool:
    """Return whether the recipe of an edit names the dictionary at a path, which is absolute; also if it names only the
    last folders of the path, or the path is not known.
    """
    named = PurePath(_option(recipe, "dictionary")).parts
    own = PurePath(path).parts
    return not own or (bool(named) and own[-len(named) :] == named)


def latents_called(recipe: str, numbers: Mapping[str, float]) -> str:
    """Return which latents an edit sets, such as `latents 43, 45 of dictionary`."""
    of = PurePath(_option(recipe, "dictionary")).name
    named = [part.strip() for part in _option(recipe, "latents").split("|") if part.strip()]
    if named:
        return f"{_listed(named)} of {of}"
    shares = {int(key.removeprefix(LATENT)): share for key, share in numbers.items() if key.startswith(LATENT)}
    always = [str(latent) for latent in sorted(shares) if shares[latent] == 1]
    often = [str(latent) for latent in sorted(shares) if shares[latent] < 1]
    count = plural(int(numbers.get("rank", 0)), "latent")
    if not always and not often:
        return f"the first {count} of {of}"
    which = [_listed(always)] if always else []
    which += [f"in some of the three folds {_listed(often)}"] if often else []
    return f"the first {count} of {of} by the difference of class means, in units of the states ({', '.join(which)})"


def _listed(latents: Sequence[str]) -> str:
    more = f" and {len(latents) - _MOST} more" if len(latents) > _MOST else ""
    return f"latent{'s' * (len(latents) > 1)} {', '.join(latents[:_MOST])}{more}"


def _option(recipe: str, name: str) -> str:
    parts = (part.partition("=") for part in parts_of(recipe.partition(":")[2], ","))
    return next((value.strip() for key, _, value in parts if key.strip() == name), "")


def use_of_latents(place: str, recipe: str, cell: UseCell) -> str:
    """Return whether the model uses the latents of an edit at a place, and by which numbers: the share of the
    class-mean swap's effect that they reproduce, and what random latents and directions do.
    """
    numbers = cell.comparisons[recipe]
    asked = f"Does the model use {latents_called(recipe, numbers)} at {place}?"
    if 0 < numbers.get("rank", 0) <= numbers.get(NEVER_ACTIVE, 0):
        which = "they are" if numbers["rank"] > 1 else "it is"
        return f"{asked} Not asked by this edit: {which} never active on these rows."
    return f"{asked} {_answer(numbers)} {mediated(recipe, cell)}"


def _answer(numbers: Mapping[str, float]) -> str:
    low, high = (numbers.get(f"share_of_swap_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return "Not answered."
    if max(abs(low), abs(high)) < LITTLE:
        return f"Hardly, for less than {100 * LITTLE:.0f} % of the swap's effect."
    if high < 0:
        return "Not as the swap does: they move the output the other way."
    if low <= 0:
        return "Not shown: the interval of their share holds 0."
    as_good = [f"random {kind}" for kind in _KINDS if numbers.get(f"above_random_{kind}", 1.0) < 0.95]
    if as_good:
        return f"Not shown: {' and '.join(as_good)} that move states as far do as much in more than 5 % of the draws."
    return "Yes, for this part of the swap's effect."


def mediated(recipe: str, cell: UseCell) -> str:
    """Return sentences on the part of the class-mean swap's effect that an edit of latents reproduces, beside random
    latents and directions that move states as far.
    """
    numbers = cell.comparisons[recipe]
    count = plural(int(numbers.get("rank", 0)), "latent")
    share = _share(numbers, "share_of_swap")
    if share is None:
        return f"The swap of class means has no effect of which {count} could mediate a part."
    of_all = _share(numbers, "mediated_fraction")
    total = "" if of_all is None else f", and {of_all} of the natural difference in the output"
    do = "reproduces" if numbers.get("rank") == 1 else "reproduce"
    to = "Set to 0" if _option(recipe, "to") == "zero" else "Set to their mean in the other class"
    first = f"{to}, {count} {do} {share} of the class-mean swap's effect{total}."
    over = any(numbers.get(name, 0.0) > 1 for name in ("share_of_swap", "mediated_fraction"))
    sentences = [first, *([OVER] if over else []), _beside_random(recipe, cell)]
    return " ".join(filter(None, sentences))


OVER = "A share above 100 % says that the edit moves the output further than what it is a share of."


def _beside_random(recipe: str, cell: UseCell) -> str:
    """Return a sentence on what random latents and directions that move states as far do on the same rows."""
    numbers = cell.comparisons[recipe]
    parts = []
    for kind in _KINDS:
        if f"above_random_{kind}" not in numbers:
            continue
        random = cell.comparisons.get(f"random {kind} for {recipe}", {})
        does = ""
        if "along" in random and "along_high" in random:
            does = f" ({decimal(random['along'], 2)} SD in the median, {decimal(random['along_high'], 2)} at the 95th "
            does += "percentile)"
        parts.append(f"{100 * numbers[f'above_random_{kind}']:.0f} % of random {kind}{does}")
    if not parts:
        return ""
    own = f" by {decimal(abs(numbers['along']), 2)} SD," if "along" in numbers else ""
    return f"They move it{own} further than {' and '.join(parts)} that move states as far."


def _share(numbers: Mapping[str, float], name: str) -> str | None:
    if name not in numbers:
        return None
    value, low, high = (decimal(100 * numbers[key], 0) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} % [{low}, {high}]"
