"""Writes a methods paragraph for a paper with every setting of a run, and lists the papers to cite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from probing.reporting.task_results import TaskResults, not_saved
from probing.reporting.wording import count, measure_title, plural

_CORRECTIONS = {"holm": "Holm-adjusted", "bh": "adjusted for the false discovery rate (Benjamini and Hochberg)"}


def methods_paragraph(task: TaskResults) -> str:
    """Return a paragraph that describes the run of a task with every setting."""
    about = task.any.provenance
    analyses = ", ".join(dict.fromkeys(one.analysis for one in task.analyses))
    parts = (
        _states(task, about),
        _rows(task.any.facts),
        _probes(task),
        _controls(task),
        f"Analyses: {analyses}." if analyses else "",
        _statistics(task, about),
        *(f"Not saved is the {said}." for said in not_saved(task.results, "")),
        _identifiers(about),
    )
    return " ".join(filter(None, parts))


def names_used(task: TaskResults) -> list[str]:
    """Return the names of the probes, controls, measures, analyses and the correction that the run of a task used."""
    comparisons = [c.control for r in task.all for m in r.measures for c in m.comparisons]
    measures = [m.measure for r in task.all for m in r.measures]
    correction = str(task.any.provenance.get("correction", "holm"))
    analyses = [one.analysis for one in task.analyses]
    return list(dict.fromkeys([*task.probes, *comparisons, *measures, *analyses, correction]))


def _states(task: TaskResults, provenance: Mapping[str, Any]) -> str:
    sites = task.sites
    if not sites:
        return ""
    rows = provenance.get("rows")
    said = f"We probed the hidden states of {task.model.label} at {sites_in_short(sites)}"
    return said + (f" (rows: {rows})." if rows else ".")


def sites_in_short(sites: Sequence[str]) -> str:
    """Return up to three sites by name, more as the first and the last with their number."""
    return ", ".join(sites) if len(sites) <= 3 else f"{sites[0]} to {sites[-1]} ({len(sites)} sites)"


def _rows(facts: Mapping[str, Any]) -> str:
    rows, sentences = facts.get("rows"), facts.get("sentences")
    if not isinstance(rows, Mapping) or not isinstance(sentences, Mapping):
        return ""
    sizes = ", ".join(f"{count(rows[split])} in {split} ({count(sentences.get(split))} sentences)" for split in rows)
    classes = facts.get("classes")
    return f"Labelled rows: {sizes}" + (f"; {count(classes)} classes." if classes else ".")


def _probes(task: TaskResults) -> str:
    if not task.probes:
        return ""
    chosen = [next(r for r in task.results if r.probe == probe) for probe in task.probes]
    told = "; ".join(f"{r.probe} ({_parameters(r.provenance.get('recipe', {}).get('probe', {}))})" for r in chosen)
    seeds = plural(task.any.seed_count, "seed")
    return (
        f"Probes, fitted on train with {seeds} each where the fit is random: {told}. Those of the toolkit that read "
        "states standardise them by train. "
        f"The site was chosen on {task.chosen_on}; all scores are on test."
    )


def _parameters(recipe: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in recipe.items() if key != "class") or "no parameters"


def _controls(task: TaskResults) -> str:
    names = [*task.controls(), *task.chance_checks()]
    baselines = ", ".join(result.probe for result in task.baselines)
    beside = f"Baselines without hidden states: {baselines}." if baselines else ""
    if not names:
        return beside
    return (
        f"Controls, with the same probes, budget and seeds: {', '.join(names)}, "
        f"at most {plural(task.any.draw_count, 'draw')} each. {beside}"
    ).strip()


def _statistics(task: TaskResults, provenance: Mapping[str, Any]) -> str:
    resamples, cluster = provenance.get("resamples"), str(provenance.get("cluster", "sentence"))
    reason = task.any.facts.get("unit_reason")
    correction = _CORRECTIONS.get(str(provenance.get("correction", "holm")), "adjusted")
    measures = ", ".join(dict.fromkeys(measure_title(m.measure) for r in task.all for m in r.measures))
    drawn = f"{count(resamples)} bootstrap resamples" if resamples else "bootstrap resamples"
    return (
        f"Measures: {measures}. Intervals are at 95 %, from {drawn} of whole {cluster}s"
        f"{', since ' + reason if reason and reason != 'asked for' else ''}, all copies of a text together, "
        "and carry seeds and control draws; p values of gains over the best baseline are one-sided and "
        f"{correction} over sites, probes, baselines and tasks{_family(task)}."
    )


def _family(task: TaskResults) -> str:
    """Return how many tests p is adjusted over, in words."""
    families = {gain.family for r in task.all for m in r.measures for gain in m.gains if gain.family is not None}
    return f" ({plural(max(families), 'test')} for a measure and split)" if families else ""


def _identifiers(provenance: Mapping[str, Any]) -> str:
    keys = {"store_id": "store", "content_id": "content", "corpus": "corpus", "root_seed": "root seed"}
    told = [f"{title} {str(provenance[key])[:12]}" for key, title in keys.items() if provenance.get(key) is not None]
    return f"Identifiers: {', '.join(told)}." if told else ""


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
    "features": ("kantamneni2025", "gurnee2023", "chanin2024"),
    "latents": ("marks2024",),
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
    """Return the sorted BibTeX keys of the papers that define the members with these names, and of the papers in
    `always`.
    """
    found = set(always)
    for name in names:
        found.update(_OF.get(name.partition(":")[0], ()))
    return sorted(found)


def bibtex(names: Iterable[str], *, always: Iterable[str] = _ALWAYS) -> str:
    """Return the BibTeX entries of the papers that define the members with these names, and of the papers in
    `always`.
    """
    return "\n\n".join(_entries()[key] for key in keys_of(names, always=always))


@cache
def _entries() -> dict[str, str]:
    """Return the entries of references.bib by their keys."""
    text = (files("probing.reporting") / "templates" / "references.bib").read_text("utf-8")
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in text.strip().split("\n\n")}
