"""Laws of architectures: what the page of models says of each is so, and nothing ends in a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pytest
import transformers

from tests.conftest import ROOT
from tests.samples.family_samples import architectures
from tests.samples.family_survey import FAILED, READ, REFUSED, Outcome, page, survey

PAGE = ROOT / "docs" / "models.md"
SUBLAYERS = {"heads", "attn_out", "mlp_out"}
# Wrappers, pieces first, several streams, inputs made longer, no attention, hybrids, shared blocks.
FEW = (
    "bert",
    "gpt2",
    "llava",
    "qwen2_vl",
    "llama4_text",
    "roberta-prelayernorm",
    "xlnet",
    "gemma3n_text",
    "longformer",
    "fnet",
    "mamba",
    "qwen3_next",
    "t5",
    "albert",
    "fuyu",
    "openai-gpt",
)

pytestmark = pytest.mark.filterwarnings("ignore")


def row_of(outcome: Outcome) -> str:
    """How the page has it."""
    return next(line for line in page([outcome]).splitlines() if line.startswith(f"| {outcome.kind} |"))


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What becomes of an architecture; each is built once."""
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda kind: survey(kind, folder / kind))


@pytest.mark.parametrize("kind", FEW)
def test_an_architecture_is_read_as_its_page_says(kind: str, surveyed: Callable[[str], Outcome]) -> None:
    outcome = surveyed(kind)
    assert outcome.state == (REFUSED if kind == "albert" else READ), outcome
    assert outcome.state == REFUSED or outcome.use, outcome
    if _is_of_this_version():
        assert row_of(outcome) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "llama4_text", "roberta-prelayernorm", "fuyu", "openai-gpt"])
def test_sublayers_are_found_where_the_head_count_is_in_an_inner_configuration(
    kind: str, surveyed: Callable[[str], Outcome]
) -> None:
    assert set(surveyed(kind).streams) >= SUBLAYERS


def test_the_page_counts_what_it_lists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    read, total = map(int, re.findall(r"\*\*(\d+) of (\d+)", text)[0])
    parts = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    rows = {name: body.count("\n| ") - 1 for name, body in parts.items()}
    assert rows["Read"] == read and rows["Read"] + rows["Refused"] == total
    assert read >= 0.95 * total and FAILED not in text


@pytest.mark.slow
def test_every_architecture_is_as_the_page_says(surveyed: Callable[[str], Outcome]) -> None:
    """All × {load, extract, use}: 0 tracebacks, states equal to hooks within 1e-5, at least 95 % read."""
    outcomes = [surveyed(kind) for kind in architectures()]
    assert not [outcome for outcome in outcomes if outcome.state == FAILED]
    read, refused = (sum(o.state == state for o in outcomes) for state in (READ, REFUSED))
    assert read >= 0.95 * (read + refused)
    if _is_of_this_version():
        assert page(outcomes) == PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_lens_reads_every_causal_and_masked_family_to_its_own_outputs_or_refuses_it(
    surveyed: Callable[[str], Outcome],
) -> None:
    outcomes = [surveyed(kind) for kind in architectures()]
    assert [outcome.kind for outcome in outcomes if outcome.lens == "DIFFERS"] == []
    assert sum(outcome.lens == "exact" for outcome in outcomes) > 200


def _is_of_this_version() -> bool:
    return f"transformers {transformers.__version__}," in PAGE.read_text(encoding="utf-8")
