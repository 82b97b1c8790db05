"""The report says what the results say: no more, no less, and nothing in it can act."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from probing import reporting
from probing.errors import ConfigError, InputError
from probing.reporting import findings, page
from probing.reporting.charts import panel_chart
from probing.reporting.grids import confusion_map
from probing.reporting.overview import entries, overview
from probing.reporting.page import Contents
from probing.reporting.panels import score_panels
from probing.reporting.plots import save_figures
from probing.reporting.task_results import by_task
from probing.reporting.use_panels import uses
from probing.results.probe import Comparison, Gain, MeasureResult, ProbeResult, Score, json_lines

TAGS = ("NOUN", "VERB", "ADP", "DET", "PRON", "PUNCT", "ADJ", "ADV", "AUX", "PROPN", "NUM", "INTJ", "X")
HOSTILE = "column:<script>alert(1)</script>\"'&$_^[red]"
LAYERS = tuple(f"resid.{layer}" for layer in range(7))


def a_score(value: float, half: float = 0.004, unit: str = "fraction", n: int = 19984) -> Score:
    return Score(value, value - half, value + half, n, unit)


def a_comparison(name: str, control: float, task: float, *, ceiling: float | None = 0.924, half: float = 0.012):
    check = name == "shuffled_labels"
    gap = task - control
    return Comparison(
        name,
        a_score(control, half),
        ceiling,
        a_score(gap, half),
        not check,
        (control,) * 5,
        None if check else 0.7,
        0.1,
    )


def a_gain(value: float, *, half: float = 0.004) -> Gain:
    return Gain("word_type", a_score(value, half), 0.02, 0.001, 0.01 if value - half > 0.02 else 0.4)


def confusion(classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    K = len(classes)
    return tuple(tuple((40 * (K - i) if i == j else (i * j) % 7) for j in range(K)) for i in range(K))


def a_result(
    site: str,
    probe: str = "linear",
    *,
    task: str = "upos",
    accuracy: float = 0.95,
    baseline: float = 0.881,
    controls: tuple[tuple[str, float], ...] = (("word_type", 0.61),),
    classes: tuple[str, ...] = TAGS,
) -> ProbeResult:
    measures = []
    for split, shift in (("dev", -0.001), ("test", 0.0)):
        value = accuracy + shift
        compared = tuple(a_comparison(name, control, value) for name, control in controls)
        gains = () if site == "(none)" else (a_gain(value - baseline), a_gain(value - 0.178))
        measures += [
            MeasureResult("accuracy", split, a_score(value), True, value + 0.01, value - 0.1, compared, gains),
            MeasureResult("macro_f1", split, a_score(value - 0.06, 0.01), True),
            MeasureResult("log_loss", split, a_score(4 * (1 - value), 0.02, "bits"), False),
        ]
    facts = {
        "level": "word",
        "rows": {"train": 64684, "dev": 21637, "test": 19984},
        "sentences": {"train": 3457, "dev": 1118, "test": 1121},
        "classes": len(classes),
        "majority_label": "NOUN",
        "majority": 0.178,
        "entropy_bits": 3.61,
        "type_overlap": 0.908,
        "excluded": {"truncated": 3},
        "duplicate_sentences": 12,
    }
    provenance = {
        "store_id": "5f2c" * 16,
        "model": "all-MiniLM-L6-v2",
        "corpus_fingerprint": "ab12" * 16,
        "recipe": {"rows": "word:mean", "dtype": "float32"},
        "environment": {"versions": {"torch": "2.13.0"}},
    }
    return ProbeResult(
        task, "classes", site, probe, tuple(measures), 3, 5, 18, classes, confusion(classes), True, facts, provenance
    )


def upos_like(task: str = "upos", sites: tuple[str, ...] = LAYERS, **options) -> list[ProbeResult]:
    found = []
    for i, site in enumerate(sites):
        depth = i / max(1, len(sites) - 1)
        value = 0.905 + 0.055 * math.sin(math.pi * min(1.0, 0.15 + depth))
        control = 0.745 - 0.21 * depth
        controls = (("word_type", control), ("keyed:key=lemma", control - 0.03), ("shuffled_labels", 0.176))
        shared = {"task": task, **options}
        found.append(a_result(site, accuracy=value, controls=controls, **shared))
        found.append(
            a_result(site, "mlp:hidden=64", accuracy=value + 0.004, controls=(("word_type", control + 0.1),), **shared)
        )
    options.pop("controls", None)
    found.append(a_result("(none)", "prior", task=task, accuracy=0.178, controls=(), **options))
    found.append(a_result("(none)", "word_type", task=task, accuracy=0.881, controls=(), **options))
    return found


def depth_like(sites: tuple[str, ...] = ("embed", *LAYERS, "final_norm")) -> list[ProbeResult]:
    found = []
    for i, site in enumerate((*sites, "(none)")):
        value = 0.1 if site == "(none)" else 0.3 + 0.05 * i
        control = (a_comparison("keyed:key=type", 0.05 - 0.03 * i, value, ceiling=None),) if site != "(none)" else ()
        gains = (Gain("prior", a_score(value, 0.03, "R²"), 0.02, 0.0001, 0.001),) if site != "(none)" else ()
        measures = tuple(
            measure
            for split in ("dev", "test")
            for measure in (
                MeasureResult("r2", split, a_score(value, 0.03, "R²"), True, comparisons=control, gains=gains),
                MeasureResult("spearman", split, a_score(value + 0.1, 0.03, "rho"), True),
            )
        )
        probe = "prior" if site == "(none)" else "ridge"
        facts = {"level": "word", "rows": {"test": 19984}, "mean": 2.51, "std": 1.43}
        found.append(ProbeResult("tree_depth", "real", site, probe, measures, 1, 5, 6, facts=facts))
    return found


def page_of(results, analyses=(), use=None, failures=()) -> bytes:
    return page.rendered(Contents(by_task(results, analyses), uses(use), failures=failures))


class Page(HTMLParser):
    """Elements, attributes and text of a page, its scripts and drawings apart; unbalanced elements are an error."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.style = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(content.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in ("meta", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        elif self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif "svg" not in self._open:
            self.text += data

    @property
    def made(self) -> tuple[Counter[str], Counter[tuple[str, str]], set[str]]:
        """What markup there is: elements and attributes by number, but for those of which a drawing needs more where a
        name has more lines.
        """
        lines = ("text", "tspan", "g")
        elements = Counter({tag: n for tag, n in self.elements.items() if tag not in lines})
        attributes = Counter((tag, key) for tag, key, _ in self.attributes if tag not in lines)
        return elements, attributes, {key for tag, key, _ in self.attributes if tag in lines} - {"dy", "x"}

    def values(self, key: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == key]


def printed(results: list[ProbeResult], width: int = 80) -> str:
    stream = io.StringIO()
    reporting.print_results(results, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


def every_shape() -> dict[str, list[ProbeResult]]:
    many = tuple(f"resid.{layer}" for layer in range(50))
    return {
        "classes": upos_like(),
        "regression": depth_like(),
        "one site": upos_like(sites=("resid.3",)),
        "fifty sites": upos_like(sites=("embed", *many, "final_norm")),
        "several streams": upos_like(sites=("embed", *LAYERS, "final_norm", "attn_out.0", "attn_out.1", "mlp_out.0")),
        "no control": [a_result(site, controls=()) for site in LAYERS],
        "chance check only": [a_result(site, controls=(("shuffled_labels", 0.178),)) for site in LAYERS],
        "only baselines": [a_result("(none)", "prior", accuracy=0.178, controls=())],
        "odd site names": [a_result(site) for site in ("Layer 3", "<b>", "resid.1")],
        "many classes": [a_result("resid.1", classes=tuple(f"tag{k}" for k in range(60)))],
        "two stores": [a_result("resid.1"), replace(a_result("resid.1"), provenance={"store_id": "other"})],
        "dev not scored": [
            replace(r, measures=tuple(m for m in r.measures if m.split == "test"))
            for r in upos_like()
            if r.probe == "linear"
        ],
    }


SHAPES = every_shape()


@pytest.fixture(params=SHAPES, ids=str)
def results(request) -> list[ProbeResult]:
    return SHAPES[request.param]


def test_page_is_well_formed_small_and_self_contained_for_every_shape_of_results(results):
    content = page_of(results)
    found = Page(content)
    assert len(content) < 3_000_000
    assert set(re.findall(r"\w+://[^\"' ]*", found.text + found.style)) == set()
    assert all(value.startswith("#") for value in found.values("href") + found.values("xlink:href"))
    assert found.elements["script"] == 2
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(found.elements)
    assert not found.values("src") and not found.values("style")
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert len(set(found.values("id"))) == len(found.values("id"))
    assert {value[1:] for value in found.values("href")} <= set(found.values("id"))


def test_policy_allows_own_style_and_script_and_nothing_else():
    found = Page(page_of(upos_like()))
    policy = next(value for value in found.values("content") if "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == f"'sha256-{digest}'"
    script = base64.b64encode(hashlib.sha256(found.scripts[-1].encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{script}'"
    assert "unsafe" not in policy and "http" not in policy


def test_hostile_names_add_no_element_and_no_attribute():
    def shape(task: str, classes: tuple[str, ...]) -> tuple[Counter, Counter]:
        return Page(page_of(upos_like(task, classes=classes))).made

    nasty = tuple(f'</style><img src=x onerror="{k}">' for k in range(len(TAGS)))
    assert shape(HOSTILE, nasty) == shape("upos", TAGS)
    assert "<script>alert(1)</script>" in Page(page_of(upos_like(HOSTILE))).text


def test_names_with_surrogates_and_control_characters_can_be_written():
    Page(page_of(upos_like("a\ud800b\x00c")))
    assert printed(upos_like("品詞"))


def test_every_point_of_a_figure_and_every_cell_of_the_table_equals_its_result():
    results = upos_like()
    found = Page(page_of(results))
    (panel, *_) = score_panels(by_task(results)[0], best=True)
    drawn = panel_chart(panel)["data"]["values"]
    for result in results:
        score = result.measure("accuracy").score
        assert f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" in found.text
        if result.site != "(none)" and result.probe == by_task(results)[0].best().probe:
            against = result.measure("accuracy").comparisons[0]
            at = {row["series"]: row for row in drawn if row["at"] == result.site}
            for name, own in (("accuracy", score), ("selectivity", against.selectivity), ("control", against.score)):
                shown = [at[name][key] for key in ("value", "low", "high")]
                assert shown == pytest.approx([own.value, own.low, own.high], rel=1e-4)


def test_the_overview_holds_every_judgement_of_the_probe_that_is_best_on_dev():
    results = upos_like() + depth_like()
    tasks = by_task(results)
    found = overview(entries(tasks, ()))
    assert [row.name for row in found.rows] == ["upos", "tree_depth"]
    for row, task in zip(found.rows, tasks, strict=True):
        for cell in row.cells:
            judged = findings.judge(task, task.at(cell.site, task.best().probe))
            assert cell.judgement == judged
            assert cell.value == judged.gain.gain.value
            assert cell.record()["decodable"] == (judged.status in ("selectively decodable", "decodable"))
        assert row.line in Page(page_of(results)).text


def test_each_task_has_one_finding_in_the_page_and_one_in_the_terminal():
    results = upos_like() + depth_like() + upos_like("xpos")
    found = Page(page_of(results))
    screen = " ".join(printed(results).split())
    for task in by_task(results):
        sentence = reporting.finding(task).sentence
        assert found.text.count(sentence) == 1
        assert screen.count(sentence) == 1


def test_findings_claim_decodability_only(results):
    for task in by_task(results):
        said = reporting.finding(task)
        everything = " ".join((said.sentence, said.does_not_show, *said.evidence, *said.overturned_by))
        assert not re.search(r"\bused\b", everything)
        assert said.overturned_by and said.does_not_show
    assert not re.search(r"\bused\b", Page(page_of(results)).text)


def test_finding_names_probe_site_numbers_control_ceiling_and_rows():
    said = reporting.finding([r for r in upos_like() if r.probe != "mlp:hidden=64"])
    best = max((r for r in upos_like() if r.probe == "linear"), key=lambda r: r.measure("accuracy", "dev").score.value)
    score = best.measure("accuracy").score
    for part in ("linear", best.site, "19,984", f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]", "0.924"):
        assert part in said.sentence
    assert said.status == "selectively decodable"
    assert "does not show that the model uses it" in said.does_not_show
    assert any("Chance check (shuffled_labels)" in line for line in said.evidence)


def test_best_layer_is_chosen_on_dev_and_not_on_test():
    def with_dev(site: str, dev: float, test: float) -> ProbeResult:
        measures = tuple(MeasureResult("accuracy", s, a_score(v), True) for s, v in (("dev", dev), ("test", test)))
        return replace(a_result(site), measures=measures)

    task = by_task([with_dev("resid.0", 0.8, 0.9), with_dev("resid.1", 0.9, 0.8)])[0]
    assert task.best().site == "resid.1"
    assert "resid.1*" in printed(list(task.results))


@pytest.mark.parametrize(
    ("accuracy", "control", "status"),
    [
        (0.95, 0.60, "selectively decodable"),
        (0.95, 0.945, "decodable"),
        (0.89, 0.60, "not beyond word_type"),
        (0.84, 0.60, "not beyond word_type"),
    ],
)
def test_criterion_needs_gain_beyond_margin_and_selectivity_above_zero(accuracy, control, status):
    said = reporting.finding([a_result("resid.1", accuracy=accuracy, controls=(("word_type", control),))])
    assert said.status == status
    assert ("smallest difference" in said.sentence) == status.startswith("not beyond")
    assert ("is about 0.024" in said.sentence) == status.startswith("not beyond")  # margin and half the width


def test_the_weakest_of_several_controls_decides():
    controls = (("word_type", 0.6), ("keyed:key=lemma", 0.949))
    said = reporting.finding([a_result("resid.1", controls=controls)])
    assert said.status == "decodable"
    assert "keyed:key=lemma" in said.sentence


def test_chance_check_is_never_called_selectivity():
    results = SHAPES["chance check only"]
    said = reporting.finding(results)
    assert said.status == "decodable" and "without a control task" in said.sentence
    head = printed(results).split("chance check: shuffled_labels")[0]
    assert "selectivity" not in head and "above chance" in printed(results)


def test_without_baselines_nothing_is_judged():
    bare = a_result("resid.1")
    bare = replace(bare, measures=tuple(replace(m, gains=()) for m in bare.measures))
    assert reporting.finding([bare]).status == "not judged"


@pytest.mark.parametrize(("sentences", "judged"), [(19, False), (20, True)])
def test_few_test_sentences_are_not_judged_however_good_the_score(sentences, judged):
    result = a_result("resid.1")
    result = replace(result, facts=result.facts | {"sentences": {"train": 90, "dev": 20, "test": sentences}})
    said = reporting.finding([result])
    assert (said.status != "not judged") == judged
    assert ("too few to judge" in said.sentence) != judged
    assert ("beyond the margin" in said.sentence) == judged


def test_a_finding_is_about_one_task():
    with pytest.raises(InputError):
        reporting.finding(upos_like() + depth_like())


def test_table_fits_eighty_columns_and_keeps_every_number_whole(results):
    screen = printed(results)
    assert max(map(len, screen.splitlines())) <= 80
    for result in results:
        value = result.measures[-1 if result.kind == "classes" else 0]
        primary = result.measure("accuracy" if result.kind == "classes" else "r2").score
        assert value is not None
        assert f"{primary.value:.3f}".lstrip("0") + " ±" in screen


def test_wide_table_shows_whole_intervals():
    score = upos_like()[0].measure("accuracy").score
    assert f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" in printed(upos_like(), 160)


def test_sites_stand_in_the_order_of_the_forward_pass():
    sites = ("final_norm", "resid.10", "resid.2", "embed", "attn_out.0")
    assert by_task([a_result(s) for s in sites])[0].sites == (
        "embed",
        "resid.2",
        "resid.10",
        "final_norm",
        "attn_out.0",
    )


def test_confusions_of_many_classes_are_of_the_most_frequent_and_say_so():
    result = SHAPES["many classes"][0]
    shown = confusion_map(by_task([result])[0])
    most = sorted(zip(map(sum, result.confusion), result.classes, strict=True), reverse=True)[:25]
    assert set(shown.rows) == set(shown.columns) == {name for _, name in most}
    assert "the 25 most frequent of 60 labels" in shown.title
    assert shown.values[shown.rows.index("tag0"), shown.columns.index("tag0")] == 1.0


def test_pages_over_the_limit_leave_rows_and_drawings_out_and_say_so(monkeypatch):
    results = upos_like(sites=tuple(f"resid.{layer}" for layer in range(300)))
    whole = page_of(results)
    monkeypatch.setattr(page, "MAX_BYTES", len(whole) - 1)
    smaller = page_of(results)
    assert len(smaller) < len(whole)
    assert re.search(r"The first \d+ of 602 rows: results.parquet holds all", Page(smaller).text)


def test_report_writes_page_and_figures_and_is_repeatable(tmp_path):
    (tmp_path / "results.jsonl").write_text(json_lines(depth_like()[:3]))
    path = reporting.report(str(tmp_path))
    assert path == tmp_path / "report.html"
    figures = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    assert (
        sorted(figures) == [f"curves-{t}.{kind}" for t in ("tree-depth", "upos") for kind in ("pdf", "svg")] or figures
    )
    first = path.read_bytes()
    assert reporting.report(tmp_path).read_bytes() == first
    assert {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()} == figures
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "report.html", "results.jsonl"]


def test_figures_can_be_drawn_for_hostile_names_inside_their_folder(tmp_path):
    found = Contents(by_task(upos_like("../../x$<\\" + HOSTILE, sites=("resid.0",))))
    for path in save_figures(found, tmp_path / "figures"):
        assert path.parent == tmp_path / "figures" and path.stat().st_size > 1000


def test_missing_results_name_the_next_step(tmp_path):
    with pytest.raises(ConfigError) as caught:
        reporting.report(tmp_path)
    assert "probing train" in caught.value.next_step
    with pytest.raises(ConfigError):
        reporting.write_report([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_results_are_a_typed_error_and_leave_the_old_page(tmp_path):
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "results.jsonl").write_text(json_lines(upos_like())[:-20])
    with pytest.raises(InputError):
        reporting.report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_judgement_uses_the_baseline_that_leaves_least_to_gain():
    said = findings.judge(by_task([a_result("resid.1")])[0], a_result("resid.1"))
    assert said.gain.gain.value == pytest.approx(0.95 - 0.881)


def test_every_data_fact_says_which_split_it_is_of():
    text = " ".join(Page(page_of(upos_like())).text.split())
    assert "majority label of train NOUN: 0.178 of the test rows" in text
    assert "label entropy of train, bits 3.610" in text
    text = " ".join(Page(page_of(depth_like())).text.split())
    assert "mean of the target in train 2.510" in text


def test_what_is_not_judged_has_no_caveats_of_a_finding_and_says_what_a_judgement_needs():
    result = a_result("resid.1")
    few = replace(result, facts=result.facts | {"sentences": {"train": 90, "dev": 20, "test": 5}})
    one = replace(result, facts=result.facts | {"one_label": {"test": "NOUN"}})
    for unjudged, needed in ((few, "20 different test sentences"), (one, "another label than 'NOUN'")):
        said, text = reporting.finding([unjudged]), Page(page_of([unjudged])).text
        assert said.status == "not judged" and "can recover" not in said.does_not_show
        assert any(needed in line for line in said.overturned_by)
        assert "What a judgement needs" in text and "What would overturn it" not in text
    text = Page(page_of([result])).text
    assert "What would overturn it" in text and "That a probe can recover upos" in text


def test_a_model_s_name_is_followed_by_what_tells_it_from_another_of_that_name():
    named = [replace(r, provenance=r.provenance | {"model": "model", "model_identity": "ab" * 32}) for r in upos_like()]
    assert "Model: model (identity abababababab)" in Page(page_of(named)).text


def test_every_table_scrolls_in_a_box_that_the_keyboard_reaches():
    content = page_of(upos_like()).decode().split("<script")[0]
    assert content.count("<table>") == content.count('<div class="scroll" tabindex="0" role="region"') > 3
