"""Writes what importers of Neuronpedia take: vectors, lists of latents, attention heads, graphs and evaluations.

Each file is checked against its schema before it is written. What a verdict says stands in the text that Neuronpedia
shows beside a result, since it has no field of its own for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ValidationError

from probing.errors import BadParameter
from probing.files.whole_files import write_atomically
from probing.neuronpedia.schemas import (
    MOST_IN_LIST,
    Evaluation,
    FeatureList,
    Graph,
    HeadConfig,
    HeadScores,
    ListedFeature,
    NewList,
    Vector,
)
from probing.system.machine import with_typed_errors

M = TypeVar("M", bound=BaseModel)

_SITE = re.compile(r"resid\.(\d+)")


def vector(
    *,
    model: str,
    site: str,
    layers: int | None,
    values: ArrayLike,
    label: str,
    verdict: str = "",
    strength: float = 1.0,
) -> Vector:
    """Return a direction as Neuronpedia takes it, the verdict in its label.

    Args:
        model: Neuronpedia's id of the model.
        site: `resid.l`, which is `hook_resid_pre` of block l; after the last block, `hook_resid_post` of that.
        layers: number of the model's blocks; None: not known, and `site` enters a block.
        values: `(D,)` the direction.
        label: its name.
        verdict: what was measured of its use, in words.
        strength: factor that it is shown with.

    Raises:
        BadParameter: the site is no residual stream, or something does not fit the schema.
    """
    match = _SITE.fullmatch(site)
    if match is None or (layers is not None and int(match[1]) > layers):
        raise BadParameter(
            "Neuronpedia takes vectors of the residual stream alone",
            needed="a site resid.l" + ("" if layers is None else f" up to resid.{layers}"),
            found=site,
        )
    layer = int(match[1])
    is_last = layer == layers
    return _made(
        Vector,
        {
            "modelId": model,
            "layerNumber": layer - 1 if is_last else layer,
            "hookType": "hook_resid_post" if is_last else "hook_resid_pre",
            "vector": np.asarray(values, dtype=np.float64).reshape(-1).tolist(),
            "vectorLabel": f"{label}: {verdict}" if verdict else label,
            "vectorDefaultSteerStrength": float(strength),
        },
    )


@with_typed_errors
def write_vectors(vectors: Sequence[Vector], path: str | Path) -> Path:
    """Write vectors as a JSON list, each entry the body of one `vector/new`, and return the path."""
    return _write(Path(path), [_plain(one) for one in vectors])


@with_typed_errors
def write_feature_lists(
    latents: Mapping[int, str],
    folder: str | Path,
    *,
    model: str,
    source: str,
    name: str,
    description: str,
    test_text: str | None = None,
) -> list[Path]:
    """Write a list of latents as the body of `list/new`, list.json, and those of `list/add-features`, each of at most
    100 latents, list-0.json and so on; return the paths.

    Args:
        latents: what is said of each latent (a verdict, a score), by its number, in the order of the list.
        folder: where the files go.
        model, source: Neuronpedia's ids of the model and of the dictionary.
        name, description: of the list.
        test_text: text on which Neuronpedia shows the latents of the list.

    Raises:
        BadParameter: there are no latents, or something does not fit the schema.
    """
    if not latents:
        raise BadParameter("a list of no latents", needed="one latent or more", found="none")
    made = _made(NewList, {"name": name, "description": description, "testText": test_text})
    listed = [
        _made(ListedFeature, {"modelId": model, "layer": source, "index": str(index), "description": text})
        for index, text in latents.items()
    ]
    bodies = [
        _made(FeatureList, {"listId": "", "featuresToAdd": listed[at : at + MOST_IN_LIST]})
        for at in range(0, len(listed), MOST_IN_LIST)
    ]
    place = Path(folder)
    return [
        _write(place / "list.json", _plain(made)),
        *(_write(place / f"list-{number}.json", _plain(body)) for number, body in enumerate(bodies)),
    ]


@with_typed_errors
def write_heads(heads: Sequence[HeadScores], config: HeadConfig, folder: str | Path) -> list[Path]:
    """Write scores of attention heads as config.json and scatter_data.json, and return the paths.

    Raises:
        BadParameter: there are no heads, or two entries of one head.
    """
    places = [(head.layer, head.head) for head in heads]
    if not places or len(set(places)) < len(places):
        raise BadParameter("heads once each", needed="one entry of each head", found=f"{len(places)} entries")
    place = Path(folder)
    rows = [_plain(head) for head in heads]
    return [_write(place / "scatter_data.json", rows), _write(place / "config.json", _plain(config))]


@with_typed_errors
def write_graph(graph: Graph | Mapping[str, Any], path: str | Path) -> Path:
    """Write an attribution graph, and return the path.

    Raises:
        BadParameter: it does not fit the schema: a link without its nodes, or two nodes of one name.
    """
    made = graph if isinstance(graph, Graph) else _made(Graph, dict(graph))
    return _write(Path(path), made.model_dump(mode="json", exclude_none=False, exclude_unset=True))


@with_typed_errors
def write_evaluation(evaluation: Evaluation | Mapping[str, Any], path: str | Path) -> Path:
    """Write an evaluation in the form of SAEBench, and return the path.

    Raises:
        BadParameter: it does not fit the schema.
    """
    made = evaluation if isinstance(evaluation, Evaluation) else _made(Evaluation, dict(evaluation))
    return _write(Path(path), _plain(made))


def _made(schema: type[M], values: Mapping[str, Any]) -> M:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadParameter(
            "this cannot be written for Neuronpedia",
            needed=f"{schema.__name__}: {first['msg']}",
            found=repr(first.get("input"))[:200],
            where=".".join(map(str, first["loc"])),
        ) from error


def _plain(made: BaseModel) -> Any:
    return made.model_dump(mode="json")


def _write(path: Path, value: Any) -> Path:
    write_atomically(path, (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode())
    return path
