"""Defines the jobs of `probing dictionary`, which hold validated options: describe a sparse dictionary, check it on
states, and encode states with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probing as pb
from probing.errors import ConfigError
from probing.jobs import MODEL_HELP, CorpusOptions, Files, Job, option

if TYPE_CHECKING:
    from probing.dictionaries.checking import DictionaryCheck
    from probing.dictionaries.dictionary import Dictionary
    from probing.states.store import Store


class DictionaryOptions(Job):
    """Holds the options that name a dictionary."""

    dictionary: str = Field(
        description="folder or file of a dictionary: of SAELens, Gemma Scope, sparsify, dictionary_learning, or ours",
        json_schema_extra={"argument": True, "metavar": "DICTIONARY"},
    )
    allow_pickle_weights: bool = option(False, help="read ae.pt, a pickle, by torch.load(weights_only=True)")
    norm_factor: float | None = option(
        None,
        help="factor that states had in training, for SAELens' expected_average_only_in: √width / their mean norm",
    )

    def load(self) -> Dictionary:
        """Read the dictionary and return it."""
        return pb.Dictionary.load(self.dictionary, **self.given_to(pb.Dictionary.load))


class DictionaryInfoJob(DictionaryOptions):
    """Show the format, architecture, sizes and site of a dictionary, and what its file declares about it."""

    def run(self, *, progress: bool = True) -> Dictionary:
        """Read the dictionary and return it."""
        return self.load()


class DictionaryCheckJob(CorpusOptions, DictionaryOptions):
    """Measure a dictionary on states (L0, variance unexplained, dead latents, loss recovered), and compare the numbers
    with those that its file declares.

    States are those of a store (--states) or of a model that reads a corpus (--model, --corpus); with a causal model,
    the loss is measured, too. The command ends with an error that names the likely cause if L0 is more than 25 % off
    the declared value, if variance unexplained is more than 25 % worse than declared, or if another setting or site, or
    leaving out first tokens, gives a much better result.
    """

    states: str | None = option(None, help="store of states")
    model: str | None = option(None, help=MODEL_HELP)
    corpus: Files = option(
        [], help="texts for the model: SPLIT=FILE (repeat), or one FILE, hub:NAME or probing:reference"
    )
    site: str | None = option(None, help="site that is encoded (default: the one that the file names)")
    skip: int = option(0, help="first tokens of a text that are left out")
    max_rows: int = option(4000, help="largest number of rows, chosen at random")
    seed: int = option(0, help="seed of the choice and of the intervals")
    any_model: bool = option(False, help="accept a dictionary whose file names another model or site")
    device: str = option("cpu", help="torch device of the model")
    dtype: str = option("float32", help="compute dtype of the model: float32, float16 or bfloat16")

    def run(self, *, progress: bool = True) -> DictionaryCheck:
        """Read the dictionary, measure it, and return the measurements; their method `refuse_if_wrong` raises the
        error.
        """
        if (self.states is None) == (self.model is None):
            raise ConfigError(
                "states come from one place",
                needed="--states STORE, or --model MODEL with --corpus FILE",
                found="neither" if self.states is None else "both",
            )
        if (self.model is None) != (not self.corpus):
            raise ConfigError("a model reads a corpus", needed="--model with --corpus", found="one without the other")
        made = self.load()
        given = self.given_to(pb.check_dictionary) | {"progress": None if progress else False}
        if self.states is not None:
            return pb.check_dictionary(**given | {"dictionary": made, "source": pb.Store.open(self.states)})
        texts = [example.text for example in self.read_corpus().examples]
        model = pb.LanguageModel.load(str(self.model), **self.given_to(pb.LanguageModel.load))
        return pb.check_dictionary(**given | {"dictionary": made, "source": model, "texts": texts})


class DictionaryEncodeJob(DictionaryOptions):
    """Encode the states of a store as latents of a dictionary, and save the latents in a new store; a killed run
    resumes where it was.

    Latents are stored as a sparse matrix (CSR) with one row for each row of states, so that probes can be trained on
    them as on states.
    """

    states: str = option(help="store of states")
    to: str = option(help="directory of the new store")
    site: str | None = option(None, help="site that is encoded (default: the one that the file names)")
    dtype: Literal["float16", "bfloat16", "float32"] = option("float16", help="data type to store latents in")
    any_model: bool = option(False, help="accept a dictionary whose file names another model or site")
    device: str = option("cpu", help="torch device to encode on")

    def run(self, *, progress: bool = True) -> Store:
        """Encode what is not encoded yet, and return the store of latents."""
        given = self.given_to(pb.encode_states) | {"progress": None if progress else False}
        return pb.encode_states(**given | {"dictionary": self.load(), "store": pb.Store.open(self.states)})
