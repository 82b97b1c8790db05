"""CircuitJob: validated options of circuits, which heads and MLPs through which edges give a model's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import probing as pb
from probing.jobs import Many, option
from probing.jobs.patch import RunningModel

if TYPE_CHECKING:
    from probing.results.circuit import CircuitResult


class CircuitJob(RunningModel):
    """Find which heads and MLPs, through which edges, give a model's answers, and say how sure that is.

    The pairs are a JSONL file or a table with the columns clean, corrupted, answer and corrupted_answer, as for
    `probing patch`. Edges are ranked on half of the groups of pairs and the circuit is judged on the other half, beside
    random circuits: is it sufficient, is it necessary, is each edge material. Writes circuit.json (which the report
    shows), Parquet, and graphs for MIB and Neuronpedia. A circuit is of these prompts, this corruption and this metric.
    """

    pairs: str = option(help="file of pairs: columns clean, corrupted, answer, corrupted_answer")
    level: Literal["edge", "node"] = option("edge", help="parts of a circuit: edge, or node (all edges between them)")
    method: Literal["exact", "eap", "eap_ig"] = option(
        "exact", help="effects on discovery: exact (each corrupted in turn), eap or eap_ig (estimates from gradients)"
    )
    by: Literal["corrupted", "mean"] = option(
        "corrupted", help="what a corrupted edge carries: that of the corrupted prompt, or the mean over prompts"
    )
    nodes: int | None = option(None, help="only edges between this many best nodes, estimated by EAP (default: all)")
    size: int | None = option(None, help="number of edges of the circuit (default: the fewest that keep the metric)")
    steps: int = option(5, help="steps of eap_ig")
    epsilon: float = option(0.1, help="share of the metric that a sufficient circuit may lack")
    delta: float | None = option(None, help="least effect of a material edge, as a share (default: half of epsilon)")
    group: str | None = option(None, help="column whose equal values form a group, such as a template (default: none)")
    properties: Many = option(
        [], help="column with a property of the clean prompt, beside corrupted_COLUMN (repeatable)", flag="property"
    )
    transfer: Many = option([], help="file of other pairs on which the circuit is measured, too (repeatable)")
    given: str | None = option(None, help="circuit.json whose circuit is judged instead of a new one", flag="circuit")
    random_circuits: int = option(200, help="random circuits beside each size; 0: none")
    random_pairs: int = option(16, help="test pairs on which random circuits are measured")
    seed: int = option(0, help="root of every random draw")

    def run(self, *, progress: bool = True) -> CircuitResult:
        """Load the model, find and judge the circuit, write the results and return them."""
        own = {"model": self.load(), "progress": None if progress else False}
        return pb.circuit(**self.given_to(pb.circuit) | own)
