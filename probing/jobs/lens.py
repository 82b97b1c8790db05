"""Defines LensOptions and LensJob, the validated options of lenses, which read the states of every site as outputs of
the model.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import probing as pb
from probing.errors import CorpusError, InputError
from probing.jobs import CorpusOptions, Many, option
from probing.jobs.patch import LoadingOptions, RunningModel

if TYPE_CHECKING:
    from probing.jobs.models import ModelOptions
    from probing.results.lens import LensResult
    from probing.text.corpus import Corpus


class LensOptions(LoadingOptions):
    """Holds the options of lenses."""

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

    def rooted(self, root: Path) -> Self:
        """Return a copy in which relative paths of files of lenses are taken to lie in the folder `root`."""
        named = [one.partition(":") for one in self.lenses]
        places = [f"{kind}:{root / Path(file).expanduser()}" if file else kind + colon for kind, colon, file in named]
        return self.model_copy(update={"lenses": places})

    def check(self, corpus: Corpus, where: str) -> None:
        """Check what can be checked without a model.

        Raises:
            UnknownName, BadParameter, ConfigError: an option is wrong.
            CorpusError: the corpus has no such split.
            InputError: a file of a lens is missing.
        """
        check = import_module("probing.lenses").check_options
        check(**self.given_to(check))
        is_trained = any(one in ("tuned", "jacobian") for one in self.lenses)
        needed = (["train"] if is_trained else []) + (["dev"] if "tuned" in self.lenses else [])
        needed += [self.split or "test"] if is_trained or self.split else []
        if missing := [split for split in needed if split not in corpus.splits]:
            raise CorpusError(
                "the corpus lacks a split that lenses need",
                needed=f"texts of {', '.join(needed)}",
                found=f"no text of {', '.join(missing)}; splits: {', '.join(map(str, corpus.splits))}",
                where=where,
            )
        for one in self.lenses:
            kind, _, file = one.partition(":")
            if file and not Path(file).expanduser().exists():
                raise InputError(
                    "there is no lens here",
                    needed=f"{kind}:{'FOLDER' if kind == 'tuned' else 'FILE'} of a lens",
                    found=one,
                    where=where,
                )

    def lens(self, model: str | ModelOptions, corpus: Corpus, to: str | Path, *, progress: bool) -> LensResult:
        """Load the model, run `probing.lens` with these options, and return the results. Options in a `ModelOptions`
        take precedence.
        """
        own: dict[str, Any] = {"model": self.loaded(model), "corpus": corpus, "to": to}
        own |= {"controls": not self.no_controls, "progress": None if progress else False}
        return pb.lens(**self.given_to(pb.lens) | own)


class LensJob(CorpusOptions, LensOptions, RunningModel):
    """Read the state of every site as an output of the model: logit lens, tuned lens, Jacobian lens, with controls.

    States pass through the model's own final norm and unembedding. For each site, the KL divergence from the final
    output, cross-entropy, agreement and ranks are printed, and how the output changes if the state is replaced by the
    mean state. Writes lens.json (which the report shows), Parquet and report.html. A lens shows what can be decoded
    from a site by a map of its form, not how the model uses the state.
    """

    def run(self, *, progress: bool = True) -> LensResult:
        """Load the model, train the lenses that are not read from files, measure all lenses, write the results and
        return them. If the folder already holds results of the same model, texts and options, they are returned
        unchanged.
        """
        return self.lens(self.model, self.read_corpus(), self.to, progress=progress)
