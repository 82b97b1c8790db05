"""LensJob: validated options of lenses, which read the state of every site as an output of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import probing as pb
from probing.jobs import CorpusOptions, Many, option
from probing.jobs.patch import RunningModel

if TYPE_CHECKING:
    from probing.results.lens import LensResult


class LensJob(CorpusOptions, RunningModel):
    """Read the state of every site as an output of the model: logit lens, tuned lens, Jacobian lens, with controls.

    States are put in at the model's own end; KL to the final output, cross-entropy, agreement and ranks are printed by
    site, beside what happens when the state is replaced by its mean. Writes lens.json (which the report shows), Parquet
    and report.html. A lens says what a reader of its form finds at a site, not what the model does with it.
    """

    lenses: Many = option(
        ["logit"],
        help="logit, tuned (trained here), tuned:FOLDER, jacobian (computed here) or jacobian:FILE (repeatable; others "
        "are compared with the first)",
        flag="lens",
    )
    sites: str = option("resid.*", help="sites resid.l, comma-separated, with wildcards")
    prompts: Many = option([], help="text whose most probable tokens are shown by site (repeatable)", flag="prompt")
    split: str | None = option(None, help="split that is measured (default: test if a lens is trained, else all)")
    no_controls: bool = option(False, help="train no controls beside the tuned lens")
    max_rows: int = option(20_000, help="tokens that are measured, in whole texts chosen at random")
    train_rows: int = option(8192, help="tokens of train that a lens is trained on")
    dev_rows: int = option(512, help="tokens of dev that end its training")
    epochs: int = option(2, help="largest number of passes over the tokens of train")
    use_rows: int = option(64, help="texts of which one state is replaced at each site; 0: none")
    skip: int = option(
        1,
        help="first tokens of a text that a causal model is not read at; a Jacobian lens is computed without the "
        "first 16 at any rate",
    )
    max_length: int = option(512, help="longest input in tokens; the rest of a text is left out")
    seed: int = option(0, help="root of every random draw")
    allow_pickle_weights: bool = option(False, help="read a lens from a pickle, by torch.load(weights_only=True)")
    any_model: bool = option(False, help="accept a lens from a file that names another model")

    def run(self, *, progress: bool = True) -> LensResult:
        """Load the model, train lenses that are not from files, measure all, write the results and return them."""
        own = {"model": self.load(), "corpus": self.read_corpus(), "controls": not self.no_controls}
        return pb.lens(**self.given_to(pb.lens) | own | {"progress": None if progress else False})
