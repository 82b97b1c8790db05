"""Schemas of what Neuronpedia exports and imports, under its own field names.

Exports hold more fields than these, and may lack some: unknown fields are ignored, missing ones are None or empty. What
is written for importers must fit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_IN_LIST = 100  # features that `list/add-features` takes at a time
MOST_IN_VECTOR = 24_576  # numbers of a vector that `vector/new` takes
STRENGTHS = (-100.0, 100.0)


def _list(value: Any) -> Any:
    return [] if value is None else value


Number = Annotated[float, Field(allow_inf_nan=False)]
Numbers = Annotated[list[Number], BeforeValidator(_list)]
Texts = Annotated[list[str], BeforeValidator(_list)]
Name = Annotated[str, Field(min_length=1)]
Index = Annotated[int, Field(ge=0)]


class _Exported(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExportedFeature(_Exported):
    """A line of `features/batch-N.jsonl.gz`.

    Attributes:
        modelId, layer, index: model, source (such as `6-res-jb`) and number of the latent.
        maxActApprox: largest activation.
        frac_nonzero: share of the tokens on which it is active.
        pos_str, pos_values, neg_str, neg_values: tokens that it promotes and suppresses most.
        hookName: place of the states in TransformerLens' names.
    """

    modelId: Name
    layer: Name
    index: Index
    maxActApprox: Number | None = None
    frac_nonzero: Annotated[Number, Field(ge=0, le=1)] | None = None
    pos_str: Texts = Field(default_factory=list)
    pos_values: Numbers = Field(default_factory=list)
    neg_str: Texts = Field(default_factory=list)
    neg_values: Numbers = Field(default_factory=list)
    hookName: str | None = None


class ExportedActivation(_Exported):
    """A line of `activations/batch-N.jsonl.gz`: a text and the activation of one latent on each of its tokens."""

    modelId: Name
    layer: Name
    index: Index
    tokens: Texts = Field(default_factory=list)
    values: Numbers = Field(default_factory=list)
    maxValue: Number | None = None
    maxValueTokenIndex: int | None = None

    @model_validator(mode="after")
    def _as_long(self) -> Self:
        if len(self.tokens) != len(self.values):
            raise ValueError(f"{len(self.tokens)} tokens and {len(self.values)} values")
        return self


class ExportedExplanation(_Exported):
    """A line of `explanations/batch-N.jsonl.gz`: what someone or some model says a latent stands for."""

    modelId: Name
    layer: Name
    index: Index
    description: str | None = None
    typeName: str | None = None
    explanationModelName: str | None = None


class Vector(_Written):
    """A vector as `vector/new` takes it.

    Attributes:
        modelId: Neuronpedia's id of the model.
        layerNumber, hookType: where it is added: before or after a block.
        vector: the numbers.
        vectorLabel: its name, which holds our verdict.
        vectorDefaultSteerStrength: factor it is shown with.
    """

    modelId: Name
    layerNumber: Index
    hookType: Literal["hook_resid_pre", "hook_resid_post"]
    vector: Annotated[list[Number], Field(min_length=1, max_length=MOST_IN_VECTOR)]
    vectorLabel: Name
    vectorDefaultSteerStrength: Annotated[Number, Field(ge=STRENGTHS[0], le=STRENGTHS[1])]


class ListedFeature(_Written):
    """A latent of a list, with what is said of it."""

    modelId: Name
    layer: Name
    index: Annotated[str, Field(pattern=r"^[0-9]+$")]
    description: str = ""


class FeatureList(_Written):
    """Latents that `list/add-features` adds to a list; `listId` is known once the list was made by `list/new`."""

    listId: str
    featuresToAdd: Annotated[list[ListedFeature], Field(min_length=1, max_length=MOST_IN_LIST)]


class NewList(_Written):
    """A list as `list/new` takes it."""

    name: Name
    description: str
    testText: str | None = None


class HeadScores(_Written):
    """A row of `scatter_data.json`: the scores of an attention head; None where one was not measured."""

    layer: Index
    head: Index
    self_attention_score: Number | None = None
    prev_token_score: Number | None = None
    pattern_entropy: Number | None = None
    qk_distance: Number | None = None
    qk_distance_variance: Number | None = None
    induction_score: Number | None = None


class HeadConfig(_Written):
    """`config.json` of a folder of attention heads; its importer needs all fields but `description`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    np_model_id: Name
    model_name: Name
    dataset_name: Name
    n_sequences: Annotated[int, Field(ge=1)]
    seq_len: Annotated[int, Field(ge=1)]
    dtype: Name
    attn_implementation: Name
    description: str = ""


class GraphInfo(_Written):
    """What a graph says of itself; all optional."""

    description: str | None = None
    creator_name: str | None = None
    creator_url: str | None = None
    source_urls: list[str] | None = None
    generator: Mapping[str, str] | None = None
    create_time_ms: Index | None = None


class GraphMetadata(_Written):
    """Metadata of a graph: its name, the model (`scan`) and the prompt."""

    slug: Name
    scan: Name
    prompt_tokens: list[str]
    prompt: str
    feature_details: Mapping[str, str] | None = None
    node_threshold: Number | None = None
    info: GraphInfo | None = None
    generation_settings: Mapping[str, Any] | None = None
    pruning_settings: Mapping[str, Any] | None = None
    schema_version: int | None = None


class GraphQuery(_Written):
    """State in which the page of a graph opens."""

    pinnedIds: list[str] = Field(default_factory=list)
    supernodes: list[list[str]] = Field(default_factory=list)
    linkType: str = "both"
    clickedId: str = ""
    sg_pos: str = ""


class GraphNode(_Written):
    """A node of a graph: a latent, an error, an embedding or an output at a token (`ctx_idx`)."""

    node_id: Name
    feature: int | None
    layer: str | int
    ctx_idx: Index
    feature_type: Name
    jsNodeId: Name
    clerp: str
    influence: Number | None = None
    activation: Number | None = None
    token_prob: Number | None = None
    is_target_logit: bool | None = None
    run_idx: int | None = None
    reverse_ctx_idx: int | None = None


class GraphLink(_Written):
    """A weighted edge between two nodes, by their `node_id`."""

    source: Name
    target: Name
    weight: Number


class Graph(_Written):
    """An attribution graph. Every link joins two of its nodes, whose ids differ."""

    metadata: GraphMetadata
    qParams: GraphQuery
    nodes: list[GraphNode]
    links: list[GraphLink]

    @model_validator(mode="after")
    def _joined(self) -> Self:
        names = [node.node_id for node in self.nodes]
        known = set(names)
        if len(known) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two nodes are named {twice}")
        loose = [end for link in self.links for end in (link.source, link.target) if end not in known]
        if loose:
            raise ValueError(f"a link leads to {loose[0]}, which is no node")
        return self


class Evaluation(_Written):
    """An evaluation of a dictionary in the form of SAEBench; metrics are numbers by name, by category.

    Attributes:
        eval_type_id, eval_id: kind of evaluation, and a name of this one.
        eval_config: its options.
        datetime_epoch_millis: when it was made.
        eval_result_metrics: the results.
        eval_result_details: results of parts, such as of each property.
        sae_lens_id, sae_lens_release_id, sae_lens_version: names of the dictionary in SAELens, if it has such.
        sae_cfg_dict: settings of the dictionary.
        eval_result_unstructured: anything else; our verdict stands in its `verdict`.
    """

    eval_type_id: Name
    eval_config: Mapping[str, Any]
    eval_id: Name
    datetime_epoch_millis: Annotated[int, Field(ge=0, le=9_999_999_999_999)]
    eval_result_metrics: Mapping[str, Mapping[str, Number | None]]
    eval_result_details: list[Mapping[str, Any]] = Field(default_factory=list)
    sae_bench_commit_hash: str = ""
    sae_lens_id: str | None = None
    sae_lens_release_id: str | None = None
    sae_lens_version: str | None = None
    sae_cfg_dict: Mapping[str, Any] | None = None
    eval_result_unstructured: Any | None = None
