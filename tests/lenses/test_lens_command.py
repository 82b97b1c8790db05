"""`probing lens`: what it prints, writes and refuses, and its section of the page."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import probing as pb
from probing.cli.commands import app
from probing.reporting.lens_sections import claims, lens_section, print_lens
from probing.results.lens import LIMITS, LensDifference, LensMean, LensResult, SiteUse, read_lens
from tests.conftest import REFERENCE

MODEL = str(REFERENCE / "model")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["lens", "--model", MODEL, *map(str, arguments)], env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, corpus_flags: list[str]) -> tuple[Result, Path]:
    to = tmp_path_factory.mktemp("lens")
    sizes = ["--max-rows", 200, "--train-rows", 300, "--dev-rows", 100, "--epochs", 1, "--use-rows", 5]
    prompt = ["--prompt", "nowadays the <doctor> behind"]
    return run(*corpus_flags, "--lens", "tuned", "--lens", "logit", *sizes, *prompt, "--to", to, "--quiet"), to


def test_it_prints_every_lens_use_the_prompt_and_what_it_cannot_show(done: tuple[Result, Path]) -> None:
    result, to = done
    assert result.exit_code == 0, result.output
    for words in ("untrained twin", "first site", "permuted targets", "unigram", "KL when replaced", "<doctor>"):
        assert words in result.stdout
    assert " ".join(LIMITS[0].split()) in " ".join(result.stdout.split())
    assert str(to / "report.html") in result.stdout.replace("\n", "")
    lens = read_lens(to)
    assert lens is not None and lens.facts["identity"] <= 1e-4 and lens.facts["rows"] >= 200


def test_the_page_has_its_section_and_escapes_prompts(done: tuple[Result, Path]) -> None:
    page = (done[1] / "report.html").read_text(encoding="utf-8")
    assert "What lenses read" in page and "What this does not show" in page
    assert "<doctor>" not in page
    assert pb.report(done[1]) == done[1] / "report.html"


def test_json_lines_are_the_tables(tmp_path: Path, corpus_flags: list[str]) -> None:
    result = run(*corpus_flags, "--max-rows", 50, "--use-rows", 0, "--to", tmp_path, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    lens = read_lens(tmp_path)
    assert lens is not None and len(lines) == len(lens.means) + len(lens.differences)


def test_bad_input_is_one_readable_block_and_nothing_is_written(tmp_path: Path, corpus_flags: list[str]) -> None:
    for flags, error in (
        (["--lens", "logits"], "UnknownName"),
        (["--lens", f"tuned:{tmp_path}"], "InputError"),
        (["--sites", "resid.9"], "UnknownSite"),
        (["--skip", 900], "CorpusError"),
    ):
        result = run(*corpus_flags, *flags, "--to", tmp_path / "out", "--quiet")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"{error}: "), result.stderr
        assert not (tmp_path / "out").exists()


def a_result() -> LensResult:
    """A lens that is closer than the unigram at resid.1 alone; both sites are used."""
    sites, gains = ("resid.0", "resid.1"), (0.2, -0.4)
    means = [
        LensMean("logit", site, "kl", 1.0 + gain, 0.9, 1.6, "bits", 50) for site, gain in zip(sites, gains, strict=True)
    ]
    means.append(LensMean("unigram", "(none)", "kl", 1.0, 0.9, 1.1, "bits", 50))
    differences = [
        LensDifference("logit", site, "unigram", "(none)", "kl", gain, gain - 0.1, gain + 0.1, "bits", 50)
        for site, gain in zip(sites, gains, strict=True)
    ]
    use = [SiteUse(site, 0.5, 0.3, 0.7, 9, 1.0, gain < 0, True) for site, gain in zip(sites, gains, strict=True)]
    lenses = {"logit": "as it is", "unigram": "nothing"}
    facts = {"rows": 50, "texts": 9, "head": "causal", "skip": 1, "used_bits": 0.1}
    return LensResult("m", facts, lenses, sites, means, differences, (), use, ())


def test_sites_that_are_not_read_and_used_are_named() -> None:
    result = a_result()
    assert result.unread_but_used == ["resid.0"]
    sentences = claims(result)
    assert "closer to the final output at resid.1 and farther from it at resid.0 than unigram" in sentences[0]
    assert any(s.startswith("Not read by logit, and used all the same: resid.0 (") for s in sentences)
    none = replace(result, use=[replace(one, is_used=False) for one in result.use])
    assert not any("used all the same" in s for s in claims(none))
    section = lens_section(result, "lens")
    assert [block for block in section.blocks if getattr(block, "lines", None) == LIMITS]


def test_a_control_that_is_worse_than_the_unigram_is_named() -> None:
    result = a_result()
    for value, is_weak in ((1.2, True), (0.8, False)):
        control = LensMean("untrained_twin", "resid.0", "kl", value, 0.7, 1.3, "bits", 50)
        more = replace(result, lenses={**result.lenses, "untrained_twin": "random"}, means=[*result.means, control])
        assert any("the control to beat: untrained_twin" in s for s in claims(more)) == is_weak


def test_a_narrow_terminal_shows_all_columns() -> None:
    console = Console(width=80, record=True, file=StringIO())
    print_lens(a_result(), console, details=True)
    text = console.export_text()
    assert "0.50 [0.30, 0.70]" in text and "not read, used" in text
