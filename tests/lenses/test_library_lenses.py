"""TransformerLens and tuned-lens read the same from the same weights: KL, cross-entropy and ranks, row by row.

A library that is not installed skips its test by name. `PROBING_LENS_MODEL` names the folder of a further causal model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probing as pb
from probing.models.language_model import LanguageModel
from tests.lenses.library_lenses import QUANTITIES
from tests.lenses.test_lens_columns import TEXTS
from tests.samples.other_libraries import run_with
from tests.samples.tiny_models import _noisy, build, byte_tokenizer

pytestmark = [pytest.mark.lens_libraries, pytest.mark.filterwarnings("ignore")]
CLOSE = 1e-4  # bits, and as a share of what is above 1; of float32 states through two implementations of one model
PROSE = ["The capital of France is Paris, and that of Italy is Rome.", "Two and two are four; three and three are six."]


@pytest.fixture(scope="module", params=["gpt2", "llama", "named"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights as a folder, or the one that PROBING_LENS_MODEL names."""
    if request.param == "named":
        place = os.environ.get("PROBING_LENS_MODEL")
        if not place:
            pytest.skip("PROBING_LENS_MODEL names no folder of a causal model")
        return Path(place)
    folder = tmp_path_factory.mktemp("tiny")  # TransformerLens takes a folder's name for that of its model
    network = _noisy(build(request.param))
    network.config.n_ctx = 64  # published GPT-2s have it, and TransformerLens reads it
    network.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def read_by(
    library: str, model: Path, ours: LanguageModel, texts: list[str], to: Path, warm: list[str]
) -> dict[str, Any]:
    """Run a library on the tokens of texts, and return its columns by lens and text."""
    ids = [one.ids.tolist() for one in ours.encode(texts)]
    (to / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    done = run_with(library, "tests.lenses.library_lenses", library, str(model), str(to), warm=warm)
    assert done.returncode == 0, done.stderr[-3000:]
    return {file.stem: dict(np.load(file)) for file in to.glob("*.npz")}


def compare(rows: pd.DataFrame, theirs: dict[str, np.ndarray], sites: list[str], count: int) -> dict[str, float]:
    """Return the largest difference of every quantity over all rows, which are to be at least `count`: for values above
    1 as a share of them, and of ranks what is beyond a tie (one place).
    """
    largest, seen = dict.fromkeys(QUANTITIES, 0.0), 0
    for row in rows[rows.site.isin(sites)].itertuples():
        expected = theirs[str(row.example)][sites.index(str(row.site)), row.position]
        for name, value in zip(QUANTITIES, expected, strict=True):
            difference = abs(float(getattr(row, name)) - float(value))
            difference = max(0.0, difference - 1.0) if name.startswith("rank") else difference
            largest[name] = max(largest[name], difference / max(1.0, float(value)))
        seen += 1
    assert seen >= count
    return largest


def check(found: dict[str, float], what: str) -> None:
    print(what, {name: f"{value:.2e}" for name, value in found.items()})
    assert max(found.values()) < CLOSE, found


def ours_of(model: Path, **options: Any) -> tuple[LanguageModel, list[str], pb.LensResult]:
    ours = pb.LanguageModel.load(str(model), kind="causal")
    texts = PROSE if os.environ.get("PROBING_LENS_MODEL") == str(model) else TEXTS
    given: dict[str, Any] = {"use_rows": 0, "skip": 0, "progress": False, "any_model": False} | options
    return ours, texts, pb.lens(ours, pb.Corpus.from_texts(texts), **given)


def test_the_logit_lens_is_that_of_transformer_lens(model: Path, tmp_path: Path, warm: list[str]) -> None:
    ours, texts, result = ours_of(model)
    theirs = read_by("transformer_lens", model, ours, texts, tmp_path, warm)
    sites = list(result.sites)
    assert sites[0] == "resid.0" and len(sites) > 2
    rows = result.rows[result.rows.lens == "logit"]
    check(compare(rows, theirs["logit"], sites, len(sites) * 10), f"TransformerLens, {len(rows)} rows")


def test_lenses_are_those_of_tuned_lens_and_its_files_are_read(model: Path, tmp_path: Path, warm: list[str]) -> None:
    ours = pb.LanguageModel.load(str(model), kind="causal")
    texts = PROSE if os.environ.get("PROBING_LENS_MODEL") == str(model) else TEXTS
    theirs = read_by("tuned_lens", model, ours, texts, tmp_path, warm)
    lenses = ["logit", f"tuned:{tmp_path / 'tuned'}"]
    _, _, result = ours_of(model, lenses=lenses, allow_pickle_weights=True)
    assert not any("Not checked" in doubt for doubt in result.doubts)  # name and unembedding are its own
    sites = [site for site in result.sites if site != result.sites[-1]]
    for name in ("logit", "tuned"):
        rows = result.rows[result.rows.lens == name]
        check(compare(rows, theirs[name], sites, len(sites) * 10), f"tuned-lens, {name}, {len(rows)} rows")
    moved = [float(np.abs(theirs["tuned"][key] - theirs["logit"][key])[..., 0].max()) for key in theirs["logit"]]
    assert min(moved) > 100 * CLOSE  # its translators do something
