"""The papers behind what a run used, as BibTeX: by name of the probe, control, measure or analysis."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

_ALWAYS = ("belinkov2022", "efron1993")
_OF = {
    "word_type": ("hewitt2019control",),
    "edge": ("hewitt2019control",),
    "keyed": ("hewitt2019control",),
    "random_states": ("hewitt2019control", "pimentel2020"),
    "untrained_model": ("zhang2018",),
    "structural": ("hewitt2019structural",),
    "uuas": ("hewitt2019structural",),
    "mass_mean": ("marks2023",),
    "sparse": ("gurnee2023",),
    "coordinates": ("gurnee2023",),
    "code_length": ("voita2020",),
    "information": ("xu2020", "hewitt2021conditional"),
    "usable_information": ("xu2020",),
    "interchange": ("geiger2021",),
    "class_mean": ("marks2023",),
    "leace": ("belrose2023",),
    "inlp": ("ravfogel2020",),
    "random_subspace": ("elazar2021",),
    "reliability": ("canby2024",),
    "cross_fitting": ("chernozhukov2018",),
    "max_t": ("westfall1993", "chernozhukov2013"),
    "families": ("benjamini2014",),
    "equivalence": ("schuirmann1987",),
    "permutation": ("phipson2010",),
    "propensity": ("rosenbaum1984",),
    "patching": ("zhang2024",),
    "holm": ("holm1979",),
    "bh": ("benjamini1995",),
}


def keys_of(names: Iterable[str], *, always: Iterable[str] = _ALWAYS) -> list[str]:
    """Return the keys of the papers behind members of these names, and of those that every run rests on; sorted."""
    found = set(always)
    for name in names:
        found.update(_OF.get(name.partition(":")[0], ()))
    return sorted(found)


def bibtex(names: Iterable[str], *, always: Iterable[str] = _ALWAYS) -> str:
    """Return the BibTeX entries for members of these names, and of what every run rests on."""
    return "\n\n".join(_entries()[key] for key in keys_of(names, always=always))


@cache
def _entries() -> dict[str, str]:
    """Return the entries of references.bib by their keys."""
    text = (files("probing.reporting") / "templates" / "references.bib").read_text("utf-8")
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in text.strip().split("\n\n")}
