"""What is written for Neuronpedia fits its schemas and is read back equal; what does not fit is not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probing.errors import BadParameter, InputError
from probing.neuronpedia.reading import read_written, read_written_list
from probing.neuronpedia.schemas import (
    Evaluation,
    FeatureList,
    Graph,
    HeadConfig,
    HeadScores,
    NewList,
    Vector,
)
from probing.neuronpedia.writing import (
    vector,
    write_evaluation,
    write_feature_lists,
    write_graph,
    write_heads,
    write_vectors,
)

VERDICT = "used: mediated fraction 0.96 [0.81, 1.17]"


def graph() -> dict[str, Any]:
    node = {"feature": 253, "layer": "0", "ctx_idx": 1, "feature_type": "cross layer transcoder", "clerp": "number"}
    return {
        "metadata": {
            "slug": "number",
            "scan": "gpt2-small",
            "prompt_tokens": ["The", " cats"],
            "prompt": "The cats",
            "info": {"description": VERDICT, "generator": {"name": "probing"}},
        },
        "qParams": {"pinnedIds": ["0_253_1"], "linkType": "both"},
        "nodes": [
            node | {"node_id": "0_253_1", "jsNodeId": "0_253-0", "activation": 9.5},
            node | {"node_id": "L_1", "jsNodeId": "L_1-0", "feature": None, "feature_type": "logit", "influence": None},
        ],
        "links": [{"source": "0_253_1", "target": "L_1", "weight": -0.25}],
    }


def evaluation() -> dict[str, Any]:
    return {
        "eval_type_id": "probing_latents",
        "eval_config": {"k": [1, 16], "site": "resid.6"},
        "eval_id": "a-1",
        "datetime_epoch_millis": 1_700_000_000_000,
        "eval_result_metrics": {"auroc": {"dense": 0.94, "k_1": 0.76, "k_512": None}},
        "eval_result_details": [{"property": "number", "auroc": 0.9}],
        "sae_lens_id": "blocks.6.hook_resid_pre",
        "eval_result_unstructured": {"verdict": VERDICT},
    }


@pytest.mark.parametrize(
    ("site", "layers", "layer", "hook"),
    [
        ("resid.6", 12, 6, "hook_resid_pre"),
        ("resid.12", 12, 11, "hook_resid_post"),
        ("resid.3", None, 3, "hook_resid_pre"),
    ],
)
def test_vectors_are_read_back_with_the_verdict_in_the_label(
    tmp_path: Path, site: str, layers: int | None, layer: int, hook: str
) -> None:
    values = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    one = vector(
        model="gpt2-small", site=site, layers=layers, values=values, label="number", verdict=VERDICT, strength=4
    )
    path = write_vectors([one, one], tmp_path / "vectors.json")
    assert read_written_list(path, Vector) == [one, one]
    assert (one.layerNumber, one.hookType) == (layer, hook)
    assert one.vectorLabel == f"number: {VERDICT}" and one.vectorDefaultSteerStrength == 4.0
    np.testing.assert_array_equal(np.float32(one.vector), values)


@pytest.mark.parametrize(
    "changed",
    [
        {"site": "heads.3"},
        {"site": "resid.13"},
        {"values": [float("nan")]},
        {"values": []},
        {"label": ""},
        {"strength": 1e6},
        {"values": np.zeros(30_000)},
    ],
)
def test_vectors_that_neuronpedia_would_refuse_are_refused(changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"model": "m", "site": "resid.1", "layers": 12, "values": [1.0], "label": "x"}
    with pytest.raises(BadParameter):
        vector(**given | changed)


def test_lists_of_latents_come_in_batches_that_neuronpedia_takes(tmp_path: Path) -> None:
    latents = {index: f"latent {index}; {VERDICT}" for index in range(0, 500, 2)}
    options = {"model": "gpt2-small", "source": "6-res-jb", "name": "number", "description": VERDICT}
    paths = write_feature_lists(latents, tmp_path, **options)
    assert read_written(paths[0], NewList) == NewList(name="number", description=VERDICT, testText=None)
    bodies = [read_written(path, FeatureList) for path in paths[1:]]
    assert [len(body.featuresToAdd) for body in bodies] == [100, 100, 50] and all(
        len(b.featuresToAdd) <= 128 for b in bodies
    )
    listed = {int(one.index): one.description for body in bodies for one in body.featuresToAdd}
    assert listed == latents and {one.layer for body in bodies for one in body.featuresToAdd} == {"6-res-jb"}
    with pytest.raises(BadParameter, match="no latents"):
        write_feature_lists({}, tmp_path, **options)


def test_heads_are_read_back_equal(tmp_path: Path) -> None:
    heads = [HeadScores(layer=0, head=head, induction_score=0.1 * head) for head in range(3)]
    config = HeadConfig(
        np_model_id="gpt2-small",
        model_name="gpt2",
        dataset_name="corpus",
        n_sequences=10,
        seq_len=32,
        dtype="float32",
        attn_implementation="eager",
        description=VERDICT,
    )
    scores, settings = write_heads(heads, config, tmp_path)
    assert (scores.name, settings.name) == ("scatter_data.json", "config.json")
    assert read_written_list(scores, HeadScores) == heads and read_written(settings, HeadConfig) == config
    with pytest.raises(BadParameter, match="once each"):
        write_heads([heads[0], heads[0]], config, tmp_path)


def test_a_graph_is_read_back_equal(tmp_path: Path) -> None:
    path = write_graph(graph(), tmp_path / "graph.json")
    assert read_written(path, Graph) == Graph.model_validate(graph())
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == graph()  # nothing is added, nothing is lost
    assert written["metadata"]["info"]["description"] == VERDICT


def test_graphs_whose_links_lead_nowhere_are_not_written(tmp_path: Path) -> None:
    loose, twice, lacking = graph(), graph(), graph()
    loose["links"][0]["target"] = "nowhere"
    twice["nodes"][1]["node_id"] = "0_253_1"
    del lacking["metadata"]["scan"]
    for wrong in (loose, twice, lacking):
        with pytest.raises(BadParameter, match="cannot be written"):
            write_graph(wrong, tmp_path / "graph.json")
    assert not list(tmp_path.iterdir())


def test_an_evaluation_is_read_back_equal(tmp_path: Path) -> None:
    path = write_evaluation(evaluation(), tmp_path / "evaluation.json")
    assert read_written(path, Evaluation) == Evaluation.model_validate(evaluation())
    for wrong in ({"datetime_epoch_millis": -1}, {"eval_result_metrics": {"auroc": {"k": {"1": 2}}}}, {"more": 1}):
        with pytest.raises(BadParameter):
            write_evaluation(evaluation() | wrong, tmp_path / "other.json")


def test_a_file_that_does_not_fit_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, read in (("{}", read_written), ("[]", read_written), ("{", read_written_list), ("{}", read_written_list)):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="damaged or of another form"):
            read(path, Vector)
