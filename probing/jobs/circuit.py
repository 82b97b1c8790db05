"""Defines CircuitOptions and CircuitJob, the validated options of finding the circuit that produces a model's
answers.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import probing as pb
from probing.errors import InputError
from probing.jobs import Many, option
from probing.jobs.patch import LoadingOptions, RunningModel

if TYPE_CHECKING:
    from probing.jobs.models import ModelOptions
    from probing.results.circuit import CircuitResult


class CircuitOptions(LoadingOptions):
    """Holds the options of finding and judging a circuit."""

    pairs: str = option(help="file of pairs: columns clean, corrupted, answer, corrupted_answer")
    level: Literal["edge", "node"] = option("edge", help="parts of a circuit: edge, or node (all edges between them)")
    method: Literal["exact", "eap", "eap_ig"] = option(
        "exact", help="effects on discovery: exact (each corrupted in turn), eap or eap_ig (estimates from gradients)"
    )
    by: Literal["corrupted", "mean"] = option(
        "corrupted", help="what a corrupted edge carries: that of the corrupted prompt, or the mean over prompts"
    )
    nodes: int | None = option(None, help="only edges between this many best nodes, estimated by EAP (default: all)")
    size: int | None = option(
        None,
        help="number of edges (or nodes) of the circuit, of which those on no path from the input to the logits are "
        "left out (default: the fewest of those tried that keep the metric)",
    )
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
    random_pairs: int = option(
        16, help="pairs on which random circuits, and candidate parts during the search, are measured"
    )
    seed: int = option(0, help="root of every random draw")

    def rooted(self, root: Path) -> Self:
        """Return a copy of the options in which relative paths of files are taken to lie in the folder `root`."""
        given = None if self.given is None else str(root / Path(self.given).expanduser())
        pairs, *transfer = (str(root / Path(file).expanduser()) for file in (self.pairs, *self.transfer))
        return self.model_copy(update={"pairs": pairs, "transfer": transfer, "given": given})

    def check(self, where: str) -> None:
        """Check what can be checked without a model.

        Raises:
            UnknownName, BadParameter: an option is wrong.
            InputError: a file is missing.
        """
        checked = import_module("probing.circuits.checking").Options
        checked(**self.given_to(checked))
        import_module("probing.circuits.checking").check_unused(self.given, self.nodes, self.size)
        for file in (self.pairs, *self.transfer, *filter(None, [self.given])):
            if not Path(file).exists():
                raise InputError("there is no such file", needed="pairs, or a circuit.json", found=file, where=where)

    def circuit(self, model: str | ModelOptions, to: str | Path, *, progress: bool) -> CircuitResult:
        """Load the model, run `probing.circuit` with these options, and return the results. Options in a `ModelOptions`
        take precedence.
        """
        own: dict[str, Any] = {"model": self.loaded(model), "to": to, "progress": None if progress else False}
        return pb.circuit(**self.given_to(pb.circuit) | own)


class CircuitJob(CircuitOptions, RunningModel):
    """Find the circuit (heads, MLPs and edges between them) that produces a model's answers, and judge it on other
    prompts.

    The pairs are a JSONL file or a table with the columns clean, corrupted, answer and corrupted_answer, as for
    `probing patch`. Edges are ranked on half of the groups of pairs and the circuit is judged on the other half, beside
    random circuits: is it sufficient, is it necessary, is each edge material. Writes circuit.json (which the report
    shows), Parquet, and graphs for MIB and Neuronpedia. A circuit holds for these prompts, this corruption and this
    metric only.
    """

    def run(self, *, progress: bool = True) -> CircuitResult:
        """Load the model, find and judge the circuit, write the results and return them."""
        return self.circuit(self.model, self.to, progress=progress)
