"""Results as pages of many shapes meet them, made without a model: of a study, of many sites, with hostile names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from probing.reporting.across_models import across_models
from probing.reporting.grids import patching_map
from probing.reporting.page import Contents
from probing.reporting.task_results import by_task
from probing.reporting.use_panels import uses
from probing.results.analysis import Failure
from probing.results.patching import PatchingResult
from probing.results.probe import Comparison, Gain, MeasureResult, ProbeResult, Score
from probing.results.transfer import CrossResult
from tests.samples.use_report_samples import a_result, run_of

LAYERS = tuple(f"resid.{layer}" for layer in range(6))
TAGS = ("NOUN", "VERB", "ADP", "DET", "PRON")
BASELINES = (("prior", 0.31), ("bag_of_words", 0.62))
MARKUP = "a<script>alert(1)</script>\"'&{{ 7*7 }}{% x %}]]><b>$_^[red]\\</style>"
RIGHT_TO_LEFT = "‮זמן الفعل‏ tense"
LONG = "property_of_many_words_" * 22  # 506 characters
HOSTILE = (MARKUP, RIGHT_TO_LEFT, LONG)


def a_score(value: float, half: float = 0.012, unit: str = "fraction") -> Score:
    return Score(value, value - half, value + half, 1984, unit)


def _measures(value: float, control: str, at_control: float, is_baseline: bool) -> tuple[MeasureResult, ...]:
    gap = a_score(value - at_control, 0.03)
    against = Comparison(control, a_score(at_control, 0.03), 0.9, gap, True, (at_control,) * 5, None, 0.1, 0.05)
    gains = () if is_baseline else tuple(Gain(name, a_score(value - b), 0.02, 0.001, 0.002) for name, b in BASELINES)
    return tuple(
        measure
        for split in ("dev", "test")
        for measure in (
            MeasureResult("accuracy", split, a_score(value), True, value + 0.01, value - 0.1, (against,), gains),
            MeasureResult("log_loss", split, a_score(4 * (1 - value), 0.05, "bits"), False),
        )
    )


def results_of(
    task: str,
    sites: Sequence[str] = LAYERS,
    *,
    model: str = "tiny-gpt2",
    best: float = 0.95,
    labels: Sequence[str] = TAGS,
    probes: Sequence[str] = ("linear", "mlp:hidden=32"),
    **provenance: Any,
) -> list[ProbeResult]:
    """Accuracy that rises and falls over the sites to `best`, beside a control that falls and two baselines."""
    count = np.diag(np.arange(len(labels), 0, -1) * 7) + (np.indices((len(labels), len(labels))).sum(0) % 3)
    confusion = tuple(tuple(int(n) for n in row) for row in count)
    facts = {"level": "word", "rows": {"train": 64684, "dev": 2163, "test": 1984}, "classes": len(labels)}
    facts |= {"majority_label": labels[0], "majority": 0.31, "entropy_bits": 2.1, "excluded": {"truncated": 3}}
    of = {"store_id": f"{model}{task}"[:60], "model": model, "corpus_fingerprint": "ab12" * 16} | provenance
    found = []
    for i, site in enumerate(sites):
        depth = i / max(1, len(sites) - 1)
        for step, probe in enumerate(probes):
            value = best - 0.2 * abs(depth - 0.6) + 0.004 * step
            measures = _measures(value, "word_type", 0.75 - 0.2 * depth, False)
            found.append(
                ProbeResult(task, "classes", site, probe, measures, 3, 5, 18, tuple(labels), confusion, True, facts, of)
            )
    for name, value in BASELINES:
        measures = _measures(value, "word_type", value - 0.02, True)
        found.append(
            ProbeResult(task, "classes", "(none)", name, measures, 3, 5, 18, tuple(labels), (), True, facts, of)
        )
    return found


def study() -> Contents:
    """As the quickstart: one property whose use is not asked, three with edits beside the probes."""
    tasks = ("upos", "column:subject_number", "column:tense", "column:animacy")
    results = [one for k, task in enumerate(tasks) for one in results_of(task, best=0.95 - 0.05 * k)]
    return Contents(by_task(results), uses(run_of(*(a_result(task, model="tiny-gpt2") for task in tasks[1:]))))


def several_models() -> Contents:
    """Two properties of three models, one of them with edits, and a property that failed."""
    models = ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m, untrained (seed 0)", "tiny-gpt2")
    results = [
        one
        for k, model in enumerate(models)
        for task in ("upos", "column:tense")
        for one in results_of(task, model=model, best=0.97 - 0.09 * k, probes=("linear",), run=f"{k}{task}")
    ]
    text = "labels of one kind\n  needed: two labels at least\n  found: one"
    return Contents(
        by_task(results), uses(run_of(a_result("column:tense"))), failures=[Failure("voice", "InputError", text)]
    )


def many(sites: int = 200, properties: int = 10, models: int = 3) -> Contents:
    """A page of many sites, properties and models, made directly."""
    layers = tuple(f"resid.{layer}" for layer in range(sites))
    results = [
        one
        for m in range(models)
        for p in range(properties)
        for one in results_of(
            f"property_{p}", layers, model=f"model-{m}", best=0.9 - 0.03 * p, probes=("linear",), run=f"{m}.{p}"
        )
    ]
    return Contents(by_task(results))


def use_alone() -> Contents:
    """Edits of one property, in two behaviours at two positions, without results of probes."""
    unmatched = [("column:a2 of tiny-gpt2", "column:a2 is determined by column:a")]
    return Contents(uses=uses(run_of(a_result(), a_result(behaviour="head"))), unmatched=unmatched)


def patching(names: Sequence[str] = ("subject", "verb", "end"), title: str = "was|were") -> PatchingResult:
    """Effects that travel from the first position to the last."""
    sites = LAYERS
    depth, place = np.meshgrid(np.linspace(0, 1, len(sites)), np.linspace(0, 1, len(names)), indexing="ij")
    effect = 1.05 * np.exp(-9 * (depth - place) ** 2) - 0.04
    effect[0, -1] = math.nan
    answers = (((3, f" {title}"),), ((4, " were"),))
    return PatchingResult(sites, tuple(names), effect, effect, 12, "activation", answers, "tiny-gpt2")


def transfer(
    task: str = "upos", sources: Sequence[str] = ("news", "fiction", "speech"), sites: int = 1
) -> list[CrossResult]:
    """Scores that fall off the diagonal."""
    return [
        CrossResult(
            task,
            f"resid.{s}",
            "linear",
            "accuracy",
            a,
            b,
            a_score(0.9 if a == b else 0.6 + 0.05 * s),
            None,
            None,
            (),
            0,
            900,
        )
        for s in range(sites)
        for a in sources
        for b in sources
    ]


def maps() -> Contents:
    """Patching, and transfer at one site and over several."""
    found = [*transfer(), *transfer("column:tense", sites=6)]
    return Contents(patching=[patching_map(patching(), "was|were")], transfer=found)


def checkpoints() -> Contents:
    """Two tasks in checkpoints of one run, in an untrained twin and in models of two sizes."""
    models: list[tuple[str, dict[str, Any]]] = [
        (f"checkpoint-{step}", {"step": step, "parameters": 45_000}) for step in (0, 10, 400)
    ]
    models += [("small", {"parameters": 45_000}), ("large", {"parameters": 7 * 10**9})]
    models += [("large [untrained (seed 0)]", {"parameters": 7 * 10**9, "untrained": True})]
    tasks = by_task(
        replace(one, facts=one.facts | {"model": {"name": model.partition(" [")[0], "weights": model, **facts}})
        for number, (model, facts) in enumerate(models)
        for task in ("upos", "column:tense")
        for one in results_of(task, LAYERS[:4], model=model, probes=("linear",), run=f"{task}{number}")
    )
    return Contents(tasks, across=across_models(tasks))


def hostile() -> Contents:
    """Names of tasks, models, labels, positions, sources and failures that hold markup, turn text or are very long."""
    results = [
        one
        for k, name in enumerate(HOSTILE)
        for one in results_of(
            f"column:{name}", LAYERS[:3], model=name, labels=[*HOSTILE, "", " "], probes=("linear",), run=str(k)
        )
    ]
    used = a_result(task=MARKUP, behaviour=MARKUP, model=MARKUP)
    cells = tuple(
        replace(c, position=MARKUP if c.position == "end" else RIGHT_TO_LEFT, comparisons={MARKUP: {LONG: 1.0}})
        for c in used.cells
    )
    known = {c.place: d for c, d in zip(cells, used.decodability.values(), strict=True)}
    return Contents(
        by_task(results),
        uses(run_of(replace(used, cells=cells, decodability=known))),
        [patching_map(patching(HOSTILE, LONG), MARKUP)],
        transfer(MARKUP, HOSTILE),
        [Failure(name, "InputError", name) for name in HOSTILE],
    )


EVERY_KIND = ("W" * 150, "語" * 140, "الفعل الماضي " * 14, "naïve café " * 20, "🙂" * 90, "@%&" * 60, "a", "i" * 400)


def names_of_every_kind() -> Contents:
    """Long names in scripts and signs of every width, of properties, models, sources and positions."""
    results = [
        one
        for k, name in enumerate(EVERY_KIND)
        for one in results_of(name, LAYERS[:3], model=EVERY_KIND[k % 2], labels=EVERY_KIND[:5], probes=("linear",))
    ]
    used = run_of(a_result(task=EVERY_KIND[2], behaviour=EVERY_KIND[0], model=EVERY_KIND[1]))
    maps = [patching_map(patching(EVERY_KIND), EVERY_KIND[5])]
    return Contents(by_task(results), uses(used), maps, transfer(EVERY_KIND[1], EVERY_KIND))


def of_an_older_version() -> Contents:
    """Results that name no run, no model and no facts, and whose numbers lack what was added since."""
    older = []
    for one in results_of("upos", model=""):
        measures = tuple(
            replace(
                m,
                seen=None,
                unseen=None,
                comparisons=tuple(replace(c, detectable=None, draws=()) for c in m.comparisons),
            )
            for m in one.measures
        )
        older.append(replace(one, measures=measures, facts={}, provenance={"store_id": "5f2c" * 16}))
    return Contents(by_task(older))


def one_site() -> Contents:
    """A property at one site."""
    return Contents(by_task(results_of("upos", ("resid.3",), probes=("linear",))))


def many_labels() -> Contents:
    """A property of 500 labels."""
    return Contents(by_task(results_of("lemma", labels=[f"label{k}" for k in range(500)])))


def two_sites_of_other_streams() -> Contents:
    """Sites that are not layers of one stream, and a property that nothing reads."""
    names = ("embed", "resid.0", "attn_out.0", "mlp_out.0", "Layer 3", "final_norm")
    return Contents(by_task([*results_of("upos", names), *results_of("none", (), labels=("a", "b"))]))
