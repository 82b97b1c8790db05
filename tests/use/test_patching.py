"""Laws of patching and ablation: the last site gives the donor, slopes are exact, a silent part costs nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probing.contracts.edited_model import Instrument, Place
from probing.errors import BadParameter, DegenerateDesign, UnknownName
from probing.reporting.drawing import spec, svg
from probing.reporting.grids import HeatMap, ablation_map, map_chart, patching_map
from probing.reporting.plots import save_map
from probing.text.corpus import Corpus
from probing.use.behaviours.next_token import NextToken
from probing.use.edited_models.text import TextInstrument
from probing.use.patching.ablating import ablate
from probing.use.patching.patching import attribute, patch
from probing.use.patching.prompt_pairs import PromptPairs, patch_pairs
from tests.models.test_suffix_replay import read
from tests.samples.tiny_models import corpus_of
from tests.use.test_text_instrument import CORPUS

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = np.array([[0, 1], [2, 3], [4, 5], [6, 0]])


@cache
def instrument(family: str, sites: str = "resid.*,mlp_out.*", side: str = "right") -> Any:
    return TextInstrument.from_spans(
        read(family, side), CORPUS, NextToken(position="end"), positions=["first.last", "end"], sites=sites
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_the_last_site_gives_all_of_the_donor_and_what_is_not_read_nothing(family: str) -> None:
    result = patch(instrument(family), PAIRS)
    last, end = result.sites.index("resid.2"), result.positions.index("end")
    assert result.normalised[last, end] == pytest.approx(1.0, abs=1e-4) and result.n_pairs == 4
    lengths = np.linalg.norm(instrument(family).clean()[PAIRS[:, 1]] - instrument(family).clean()[PAIRS[:, 0]], axis=1)
    assert result.effect[last, end] == pytest.approx(lengths.mean(), rel=1e-3)
    row = next(row for row in result.table() if row["site"] == "resid.2" and row["position"] == "end")
    assert row["effect"] == pytest.approx(lengths.mean(), rel=1e-3)
    assert len(result.table()) == len(instrument(family).places)


def test_a_direction_is_all_that_is_measured_along() -> None:
    found = instrument("gpt2")
    direction = np.zeros(found.clean().shape[1])
    direction[0] = 2.0
    result = patch(found, PAIRS, direction=direction, places=[Place("resid.2", "end")])
    apart = found.clean()[PAIRS[:, 1], 0] - found.clean()[PAIRS[:, 0], 0]
    assert result.effect[0, 0] == pytest.approx(2 * apart.mean(), rel=1e-3)  # in the direction's own unit, and sign
    assert result.normalised.shape == (1, 1) and result.normalised[0, 0] == pytest.approx(1.0, abs=1e-4)


class Linear(Instrument):
    """y is the sum over places of states times a matrix: derivatives are exact."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._places = (Place("resid.0", "a"), Place("resid.0", "b"), Place("resid.1", "a"))
        self._matrices = rng.standard_normal((3, 4, 2))
        self._states = rng.standard_normal((20, 3, 4)).astype(np.float32)

    @property
    def places(self) -> tuple[Place, ...]:
        return self._places

    @property
    def n_rows(self) -> int:
        return 20

    def clean(self) -> np.ndarray:
        return np.einsum("npd,pdv->nv", self._states.astype(np.float64), self._matrices)

    def states(self, place: Place) -> np.ndarray:
        return self._states[:, self._places.index(place)]

    def run_from(self, site: str, rows: Any, states: Any, *, frozen_norms: bool = False) -> Tensor:
        y = torch.from_numpy(self.clean()[rows])
        for position, given in states.items():
            p = self._places.index(Place(site, position))
            y = y + (given - torch.from_numpy(self._states[rows, p])).double() @ torch.from_numpy(self._matrices[p])
        return y


def test_attribution_is_exact_where_the_model_is_linear() -> None:
    pairs = np.array([[0, 5], [3, 2], [7, 11]])
    exact, rough = patch(Linear(), pairs), attribute(Linear(), pairs)
    np.testing.assert_allclose(rough.normalised, exact.normalised, atol=1e-6)
    assert np.isnan(exact.normalised[1, 1]) and len(exact.table()) == 3
    error = exact.error_of(rough)
    assert error.largest < 1e-6 and error.correlation == pytest.approx(1.0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_one_backward_pass_gives_the_slopes_of_each_site_alone(family: str, side: str) -> None:
    found = instrument(family, "*.0,*.1,resid.2", side)
    rows = np.array([3, 0, 5])
    coefficients = np.random.default_rng(1).standard_normal((3, found.clean().shape[1]))
    together, alone = found.slopes(rows, coefficients), Instrument.slopes(found, rows, coefficients)
    assert list(together) == list(alone) == list(found.places) and len(alone) == 18
    for place in found.places:
        np.testing.assert_allclose(together[place], alone[place], atol=1e-4, rtol=1e-3, err_msg=str(place))
        assert np.abs(alone[Place("resid.1", "end")]).max() > 1e-3


def test_attribution_is_patching_to_first_order() -> None:
    """Of one row whose donor is near: the error falls with the square of the distance."""
    found = instrument("gpt2")
    place, direction = Place("resid.1", "end"), np.ones(found.clean().shape[1])
    slope = found.slopes(np.array([2]), direction[None])[place][0]
    h = found.states(place)[2]
    step = found.states(place)[3] - h
    errors = []
    for size in (0.2, 0.02):
        y = found.run_from(place.site, np.array([2]), {"end": torch.from_numpy(h + size * step)[None]})
        errors.append(abs(float((y.numpy()[0] - found.clean()[2]) @ direction) - size * float(slope @ step)))
    assert errors[1] < 0.05 * errors[0]
    error = patch(found, PAIRS).error_of(attribute(found, PAIRS))
    assert error.largest >= error.root_mean_square > 1e-4 and error.difference.shape == (5, 2)


def test_patching_refuses_what_is_no_pair() -> None:
    found = instrument("gpt2")
    for pairs in ([[0, 99]], [[0]], [[0.0, 1.0]], np.zeros((0, 2), int)):
        with pytest.raises(BadParameter, match="two rows"):
            patch(found, pairs)
    with pytest.raises(DegenerateDesign):
        patch(found, [[1, 1]])
    with pytest.raises(BadParameter, match="direction"):
        attribute(found, PAIRS, direction=[0.0])
    with pytest.raises(UnknownName):
        patch(found, PAIRS, places=[Place("resid.9", "end")])
    with pytest.raises(BadParameter, match="same sites"):
        patch(found, PAIRS).error_of(patch(found, PAIRS, places=[Place("resid.1", "end")]))


@pytest.mark.parametrize("kind", ["heads", "attention", "mlps", "layers"])
def test_a_component_without_effect_is_one_whose_output_is_zero_already(kind: str) -> None:
    """The second block is silenced at its output weights: ablating it by zero changes nothing, the first block does."""
    model = read("gpt2", "right", torch.float64)
    blocks = model._trunk.blocks
    layers = [blocks[1].attn.c_proj, blocks[1].mlp.c_proj]
    kept = [[p.detach().clone() for p in layer.parameters()] for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                for parameter in layer.parameters():
                    parameter.zero_()
        found = TextInstrument.from_words(model, CORPUS, "next_token", sites="resid.1", max_rows=8)
        result = ablate(found, kind=kind, by="zero")
        silent = np.array([component.layer == 1 for component in result.components])
        assert (result.effect[silent] < 1e-6).all() and (result.effect[~silent] > 1e-3).any()
        assert len(result.components) == (4 if kind == "heads" else 2) and result.flips is None
        grid = result.grid()
        assert grid.shape == (2, 2 if kind == "heads" else 1)
        assert str(result.components[0]) == {"heads": "head 0.0", "mlps": "mlp 0", "layers": "layer 0"}.get(
            kind, "attention 0"
        )
    finally:
        with torch.no_grad():
            for layer, values in zip(layers, kept, strict=True):
                for parameter, value in zip(layer.parameters(), values, strict=True):
                    parameter.copy_(value)


def test_ablation_by_the_mean_is_a_full_pass_with_the_mean_there() -> None:
    model = read("llama", "right")
    found = TextInstrument.from_words(model, CORPUS, "next_token:answers=t|h", sites="resid.1", max_rows=8)
    result = ablate(found, kind="mlps", by="mean")
    encoded = list(found.rows.encoded)
    states = [model.states([one], ["mlp_out.0"])["mlp_out.0"][0] for one in encoded]
    mean = torch.cat(states).double().mean(0).float()
    module = model._trunk.trunk.get_submodule(model.modules["mlp_out.0"])
    handle = module.register_forward_hook(lambda m, a, output: mean.expand_as(output).clone())
    try:
        ids = [model.tokenizer.convert_tokens_to_ids(piece) for piece in ("t", "h")]
        logits = [model.logits([encoded[e]])[0, -1, ids].float() for e in found.rows.example]
    finally:
        handle.remove()
    y = torch.stack(logits).double()
    y = (y - y.mean(1, keepdim=True)).numpy()
    clean = found.clean()
    spread = np.sqrt(np.square(clean - clean.mean(0)).sum(1).mean())
    assert result.effect[0] == pytest.approx(np.sqrt(np.square(y - clean).sum(1).mean()) / spread, rel=1e-3)
    assert result.flips is not None and result.flips[0] == (y.argmax(1) != clean.argmax(1)).mean()
    with pytest.raises(BadParameter, match="heads"):
        ablate(found, kind="head")
    with pytest.raises(BadParameter, match="zero"):
        ablate(found, by="none")


def test_heat_maps_show_every_number_and_are_the_same_bytes(tmp_path: Path) -> None:
    result = patch(Linear(), [[0, 5], [3, 2]])
    chart = patching_map(result, "shares <of> A")
    drawn = map_chart(chart)
    shown = {(row["row"], row["column"]): row["value"] for row in drawn["data"]["values"]}
    known = np.isfinite(chart.values)
    assert len(shown) == known.sum() == 3
    for (i, j), value in np.ndenumerate(chart.values):
        if known[i, j]:
            assert shown[chart.rows[i], chart.columns[j]] == pytest.approx(value, rel=1e-4)
    assert "shares &lt;of&gt; A" in svg(spec(drawn))
    paths = save_map(chart, tmp_path / "a")
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in save_map(chart, tmp_path / "a")] == before
    assert save_map(chart, tmp_path / "b")[0].read_bytes() == before[0]
    assert {path.suffix for path in paths} == {".pdf", ".svg"}
    heads = ablation_map(ablate(TextInstrument.from_words(read("gpt2"), CORPUS, "readout", max_rows=6)))
    assert heads.rows == ("layer 0", "layer 1") and heads.columns == ("0", "1")
    with pytest.raises(BadParameter):
        HeatMap("t", ("a",), ("b",), np.full((1, 1), np.nan), "l")


SPANS = ("x ab in t", "h cd in t", "x ef in t", "x gh in t", "h ba in t", "x dc in t")  # the last three are the donors


def span_pairs() -> PromptPairs:
    examples = [replace(e, spans={"subject": (2, 4)}) for e in corpus_of(*SPANS).examples]
    return PromptPairs(Corpus(tuple(examples), "spans"), (("t", "h"), ("h", "x"), ("t", "x")))


def by_hooks(model: Any, site: str, run: Any, donor: Any, pieces: list[int], ids: tuple[int, int]) -> tuple[float, ...]:
    """Logit differences of the prompt that is run, of the donor, and of the former with the donor's states there."""
    given = model.states([donor], [site])[site][0, pieces]

    def edit(module: Any, args: Any, output: Any = None) -> Any:
        states = (args[0] if output is None else output).clone()
        states[0, pieces] = given
        return (states, *args[1:]) if output is None else states

    def difference(one: Any) -> float:
        logits = model.logits([one])[0, -1].double()
        return float(logits[ids[0]] - logits[ids[1]])

    clean, other = difference(run), difference(donor)
    module = model._trunk.trunk.get_submodule(model.modules[site])
    reads = site in model._trunk.reads_input
    handle = module.register_forward_pre_hook(edit) if reads else module.register_forward_hook(edit)
    try:
        return clean, other, difference(run)
    finally:
        handle.remove()


@pytest.mark.parametrize("into", ["corrupted", "clean"])
@pytest.mark.parametrize("site", ["resid.1", "mlp_out.0"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patching_a_span_exchanges_its_pieces_and_the_effect_is_the_logit_difference(
    family: str, site: str, into: str
) -> None:
    model, pairs = read(family), span_pairs()
    found = patch_pairs(model, pairs, sites=site, positions=["subject", "subject.last"], run_prompt=into).exact
    encoded = model.encode([e.text for e in pairs.corpus.examples])
    assert found.positions == ("subject", "subject.last")
    for j, pieces in enumerate(([2, 3], [3])):
        change, natural = [], []
        for k, answers in enumerate(pairs.answers):
            ids = tuple(model.tokenizer.convert_tokens_to_ids(answer) for answer in answers)
            ends = (encoded[3 + k], encoded[k]) if into == "corrupted" else (encoded[k], encoded[3 + k])
            clean, other, patched = by_hooks(model, site, *ends, pieces, ids)
            change.append(patched - clean)
            natural.append(other - clean)
        d, n = np.array(change), np.array(natural)
        assert found.effect[0, j] == pytest.approx(d.mean(), abs=2e-4)
        assert found.normalised[0, j] == pytest.approx((d @ n) / (n @ n), abs=2e-4)
        assert np.abs(d).max() > 1e-3


@pytest.mark.parametrize("site", ["resid.1", "mlp_out.0"])
def test_slopes_of_a_whole_span_are_those_of_its_pieces(site: str) -> None:
    model, pairs = read("gpt2"), span_pairs()
    found = TextInstrument.from_spans(
        model,
        pairs.corpus,
        "next_token:answers=t|h|x",
        positions=["subject", "subject.first", "subject.last"],
        sites=site,
    )
    rows, donors = np.arange(3), np.arange(3) + 3
    aims = np.random.default_rng(0).standard_normal((3, 3))
    whole, *pieces = (
        found.exchange_slopes(rows, donors, aims, [Place(site, name)])[Place(site, name)]
        for name in ("subject", "subject.first", "subject.last")
    )
    np.testing.assert_allclose(whole, sum(pieces), rtol=1e-5, atol=1e-7)
    pooled = Instrument.exchange_slopes(found, rows, donors, aims, [Place(site, "subject")])[Place(site, "subject")]
    assert np.abs(whole - pooled).max() > 1e-3


def test_spans_of_different_numbers_of_pieces_are_refused_before_the_model_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = TextInstrument.from_spans(
        read("gpt2"), CORPUS, NextToken(position="end"), positions=["first", "end"], sites="resid.1"
    )
    for patching in (patch, attribute):
        with pytest.raises(
            BadParameter, match=r"'first' has not equally many pieces(.|\n)*first\.first or first\.last"
        ):
            patching(found, PAIRS)
        assert np.isfinite(patching(found, PAIRS, places=[Place("resid.1", "end")]).effect).all()
    pairs = span_pairs()
    examples = [replace(e, spans={"subject": (2, 4 - (k == 4))}) for k, e in enumerate(pairs.corpus.examples)]
    unequal = replace(pairs, corpus=Corpus(tuple(examples), "spans"))
    monkeypatch.setattr("probing.use.patching.prompt_pairs.TextInstrument", None)
    with pytest.raises(
        BadParameter, match=r"1 of 3 pairs, such as pair 2: 2 and 1(.|\n)*subject\.first or subject\.last"
    ):
        patch_pairs(read("gpt2"), unequal, positions=["subject"])
