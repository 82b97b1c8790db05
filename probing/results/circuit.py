"""Defines `CircuitResult`, which holds a circuit: its edges, how much of the metric it carries, and the conclusions;
writes and reads circuit.json, Parquet, and graphs for MIB and Neuronpedia.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import InputError
from probing.files.whole_files import write_atomically, write_parquet
from probing.results._reading import read_result

if TYPE_CHECKING:
    import pandas as pd

NAME, MIB, NEURONPEDIA = "circuit.json", "circuit-mib.json", "circuit-neuronpedia.json"
MATERIAL, BELOW, INCONCLUSIVE = "material", "below δ", "inconclusive"
SUFFICIENT, EXCEEDS, NOT_SUFFICIENT = "sufficient", "more than the model", "not sufficient"
NECESSARY, NOT_NECESSARY = "necessary", "not necessary"
CLOSER = "closer to the model than random circuits"
NO_CLOSER = "no closer to the model than random circuits with as many edges at every node"
TOGETHER = "the circuit's other parts together"
JUDGED = "judged"  # `by` of the size of the circuit that is judged
LIMITS = (
    "A circuit holds for these prompts, this corruption and this metric, and for no others.",
    "An edge that is not material may still work where another one does the same: look at what they do together.",
    "A material edge may have a double outside the circuit; the whole model then loses nothing without it, and a doubt "
    "says so.",
    "Paths that cancel are material one by one: those that cancel across several readers are not looked for.",
    "A node is a head or an MLP; what happens inside it is not seen.",
)


@dataclass(frozen=True)
class Estimated:
    """Holds a number with the ends of its 95 % interval, which are None if it has no interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CircuitPart:
    """Holds one edge (or node) and its effects, as shares of the difference between clean and corrupted prompts.

    Attributes:
        name: `a0.h1->a3.h2<q>`, or the name of a node.
        effect: by how much the metric of the whole model falls if this edge alone is corrupted, on the discovery pairs:
            measured for the method `exact`, estimated from gradients for the others. For a given circuit it is the
            number in its file, or None if the file has none.
        in_circuit: whether it is in the circuit that is judged.
        removal: by how much the metric of the circuit falls if the edge is taken out of it, on the test pairs; None if
            it is not in the circuit.
        p_adjusted: p value of the test that the removal changes the metric by more than δ, adjusted over the edges of
            the circuit (max-T).
        detectable: smallest true removal that the test could have shown.
        word: the conclusion on the removal: `material`, `below δ` or `inconclusive`; "" if the edge is not in the
            circuit.
        carries: by property, the share of the metric's difference that moves if this edge alone carries the other
            class's mean; and the same with labels in random order, as `NAME (shuffled)`.
    """

    name: str
    effect: float | None
    in_circuit: bool = False
    removal: Estimated | None = None
    p_adjusted: float | None = None
    detectable: float | None = None
    word: str = ""
    carries: Mapping[str, Estimated] = field(default_factory=dict)


@dataclass(frozen=True)
class CircuitSize:
    """Holds how much of the metric the circuit of one size carries on the test pairs.

    Attributes:
        by: how its edges were chosen: by `absolute` or `signed` effect, or by `nodes` (all edges between the best
            nodes); `judged` means the circuit that is judged.
        asked: number of edges (for `nodes`, of nodes) that were to be chosen.
        edges: number of edges on a path from the input to the logits.
        faithfulness: f, the share of the metric's difference that the circuit keeps.
        random_low, random_high: range of 95 % of random circuits with as many edges at every node, on a part of test.
    """

    by: str
    asked: int
    edges: int
    faithfulness: Estimated
    random_low: float | None = None
    random_high: float | None = None


@dataclass(frozen=True)
class Judged:
    """Holds one conclusion about the circuit.

    Attributes:
        question: the question, such as `sufficient`, `necessary` or `beside random circuits`.
        word: the answer in words, such as `not sufficient` or `inconclusive`.
        share: the number that the answer is based on, with its interval.
        detectable: the smallest true difference from the bound that could have been shown; None if not computed.
        overturned_by: which finding would change the answer.
    """

    question: str
    word: str
    share: Estimated
    detectable: float | None
    overturned_by: str

    @property
    def named(self) -> str:
        """The answer in words, preceded by the question if the answer alone does not show what was asked."""
        is_plain = self.word != INCONCLUSIVE and self.question != TOGETHER
        return self.word if is_plain else f"{self.question}: {self.word}"


@dataclass(frozen=True)
class CircuitResult:
    """Holds a circuit and what was measured of it.

    Attributes:
        model: name of the model.
        identity: facts that identify the model.
        facts: options, numbers of pairs, cost in forward passes, rank correlations of estimated with measured effects,
            and so on; `given`, the file of a given circuit; `discovery_pairs`, a hash of each pair that the circuit was
            found on; and `test_pairs_of_discovery`, for a given circuit, how many test pairs are among the pairs that
            it was found on (None: not known); `removals_from_model`, by how much the metric of the whole model falls
            without each material edge (or node), on the test pairs; `nodes_left_out`, effects of δ or more of nodes
            that EAP leaves out; and for EAP and EAP-IG the largest error and the parts of δ or more that are not seen.
        parts: all edges (or nodes) whose effect was measured, the largest first.
        edges: names of the edges of the circuit that is judged.
        sizes: the circuit that is judged, and circuits of ten sizes.
        areas: by name, such as `CPR absolute`: for each choice of edges, CPR, the area under the faithfulness f of
            circuits of growing size, and CMD, the area between f and 1.
        words: the conclusions about the circuit, one for each question.
        elsewhere: the circuit's faithfulness f under another corruption and on other pairs, by name.
        doubts: sentences on what weakens the results.
        limits: sentences on what a circuit cannot show.
    """

    model: str
    identity: Mapping[str, Any]
    facts: Mapping[str, Any]
    parts: Sequence[CircuitPart]
    edges: Sequence[str]
    sizes: Sequence[CircuitSize]
    areas: Mapping[str, Estimated]
    words: Sequence[Judged]
    elsewhere: Mapping[str, Estimated]
    doubts: Sequence[str] = ()
    limits: Sequence[str] = LIMITS

    def __repr__(self) -> str:
        words = ", ".join(one.named for one in self.words)
        return f"CircuitResult({self.model}: {len(self.edges)} edges, {words}; {self.scope})"

    @property
    def scope(self) -> str:
        """Phrase that names the prompts, the corruption and the metric for which the circuit was found."""
        return (
            f"of these prompts ({self.facts['pairs']}), this corruption ({self.facts['by']}) and this metric "
            f"({self.facts['metric']})"
        )

    def word(self, question: str) -> Judged:
        """Return the conclusion on a question, which is `sufficient` or `necessary`."""
        return next(one for one in self.words if one.question == question)

    @property
    def material(self) -> list[str]:
        """Names of the material edges (or nodes): those whose removal from the circuit was shown to change the metric
        by more than δ, the option `delta` of `circuit`.
        """
        return [part.name for part in self.parts if part.word == MATERIAL]

    def table(self) -> pd.DataFrame:
        """Return one row per edge or node: the content of circuit_edges.parquet."""
        import pandas as pd

        rows = []
        for part in self.parts:
            removal = part.removal or Estimated(float("nan"))
            row = {"model": self.model, "name": part.name, "effect": part.effect, "in_circuit": part.in_circuit}
            row |= {"removal": removal.value, "low": removal.low, "high": removal.high}
            row |= {"p_adjusted": part.p_adjusted, "detectable": part.detectable, "word": part.word}
            rows.append(row)
        numbers = ("effect", "removal", "low", "high", "p_adjusted", "detectable")
        columns = ["model", "name", "effect", "in_circuit", *numbers[1:], "word"]
        return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, "float64"))

    def carried(self) -> pd.DataFrame:
        """Return one row per edge and property: the content of circuit_flows.parquet."""
        import pandas as pd

        columns = ("model", "name", "property", "value", "low", "high")
        rows = [
            (self.model, part.name, name, one.value, one.low, one.high)
            for part in self.parts
            for name, one in part.carries.items()
        ]
        return pd.DataFrame(rows, columns=list(columns)).astype(dict.fromkeys(("value", "low", "high"), "float64"))

    def size_table(self) -> pd.DataFrame:
        """Return one row per size and choice of edges: the content of circuit_sizes.parquet."""
        import pandas as pd

        rows = [
            {"model": self.model, "by": one.by, "asked": one.asked, "edges": one.edges}
            | asdict(one.faithfulness)
            | {"random_low": one.random_low, "random_high": one.random_high}
            for one in self.sizes
        ]
        numbers = ("value", "low", "high", "random_low", "random_high")
        return pd.DataFrame(rows, columns=["model", "by", "asked", "edges", *numbers]).astype(
            dict.fromkeys(numbers, "float64")
        )

    def mib(self) -> dict[str, Any]:
        """Return the circuit in the format of the MIB benchmark: its nodes and edges, with the score of each edge and
        whether each node and edge is in the circuit.
        """
        ends = [edge.partition("->")[::2] for edge in self.edges]
        inside = {re.sub(r"<.>", "", end).replace(".g", ".h") for pair in ends for end in pair}
        scores = {part.name: part.effect for part in self.parts if "->" in part.name}
        names = dict.fromkeys([*scores, *self.edges])
        nodes = {re.sub(r"<.>", "", end) for name in names for end in name.partition("->")[::2]}
        chosen = set(self.edges)
        return {
            "cfg": dict(self.facts.get("shape", {})),
            "nodes": {name: {"in_graph": name.replace(".g", ".h") in inside} for name in sorted(nodes)},
            "edges": {name: {"score": scores.get(name), "in_graph": name in chosen} for name in names},
        }

    def neuronpedia(self) -> dict[str, Any]:
        """Return the circuit as a graph that Neuronpedia's viewer of attribution graphs reads: heads and MLPs as nodes
        of their layer at the last token, edges with their effects.
        """
        effects = {part.name: part.removal.value if part.removal else part.effect or 0.0 for part in self.parts}
        linked: dict[tuple[str, str], float] = {}
        for edge in self.edges:
            sender, _, reader = edge.partition("->")
            for target in self.facts.get("nodes_of_readers", {}).get(reader, [re.sub(r"<.>", "", reader)]):
                linked[sender, target] = linked.get((sender, target), 0.0) + effects.get(edge, 0.0)
        names = list(dict.fromkeys(end for pair in linked for end in pair))
        return {
            "metadata": {
                "slug": re.sub(r"[^a-z0-9]+", "-", f"circuit-{Path(self.model).name}".lower()).strip("-"),
                "scan": self.model,
                "prompt": self.facts.get("example", ""),
                "prompt_tokens": list(self.facts.get("example_tokens", ())),
                "schema_version": 1,
                "info": {"creator_name": "probing", "description": self.scope},
            },
            "qParams": {"linkType": "both", "pinnedIds": [], "clickedId": "", "supernodes": [], "sg_pos": ""},
            "nodes": [self._node(name) for name in names],
            "links": [{"source": a, "target": b, "weight": weight} for (a, b), weight in linked.items()],
        }

    def _node(self, name: str) -> dict[str, Any]:
        kinds = {"input": "embedding", "logits": "logit"}
        last = max(0, len(self.facts.get("example_tokens", ())) - 1)
        number = re.match(r"[am](\d+)", name)
        layers = int(self.facts.get("shape", {}).get("n_layers", 0))
        layer = "E" if name == "input" else number[1] if number else str(layers)
        return {
            "node_id": name,
            "jsNodeId": f"{name}-0",
            "feature": 0,
            "layer": layer,
            "ctx_idx": last,
            "reverse_ctx_idx": 0,
            "run_idx": 0,
            "feature_type": kinds.get(name, "attention head" if name.startswith("a") else "mlp"),
            "token_prob": 0.0,
            "is_target_logit": name == "logits",
            "clerp": name,
            "influence": None,
            "activation": None,
        }

    def plot(self) -> Any:
        """Return an Altair chart of the circuit: nodes by depth, edges as wide as their effects.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        from importlib import import_module

        drawing = import_module("probing.reporting.drawing")
        return drawing.altair_chart(import_module("probing.reporting.circuit_sections").circuit_chart(self))

    def write(self, folder: str | Path) -> list[Path]:
        """Write circuit.json, three tables as Parquet, and the graphs for MIB and Neuronpedia into a folder, and return
        their paths.

        Raises:
            InputError: a number is not finite; nothing is then written.
        """
        place = Path(folder)
        try:
            texts = {
                name: json.dumps(values, allow_nan=False, indent=1, ensure_ascii=False).encode()
                for name, values in ((NAME, asdict(self)), (MIB, self.mib()), (NEURONPEDIA, self.neuronpedia()))
            }
        except ValueError as error:
            raise InputError(
                "a circuit with numbers that are not finite cannot be written",
                needed="finite numbers",
                found=str(error),
                where=self.model,
                next_step="check that the model's outputs are finite on every pair",
            ) from error
        tables = {"edges": self.table(), "sizes": self.size_table(), "flows": self.carried()}
        for name, frame in tables.items():
            write_parquet(frame, place / f"circuit_{name}.parquet")
        for name, text in texts.items():
            write_atomically(place / name, text)
        return [*(place / name for name in texts), *(place / f"circuit_{name}.parquet" for name in tables)]


def read_circuit(folder: str | Path) -> CircuitResult | None:
    """Return the circuit in circuit.json of a folder (or in a file of that form); None if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(folder)
    return read_result(
        CircuitResult, path / NAME if path.is_dir() else path, "a circuit cannot be read", "probing circuit"
    )
