"""Defines DictionaryTrainJob and DictionaryTopsJob, the validated options of training a dictionary and of showing its
latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import probing as pb
from probing.errors import BadParameter, ConfigError
from probing.jobs import MODEL_HELP, CorpusOptions, Files, Many, option

if TYPE_CHECKING:
    from probing.dictionaries.training import TrainedDictionary
    from probing.results.latent_contexts import LatentContexts


class DictionaryTrainJob(CorpusOptions):
    """Train a sparse dictionary of the tokens' states at a site, and measure it and its controls on held-out texts.

    The store must be of tokens (--rows piece). Writes the dictionary, dictionary_training.json (which the report shows)
    and Parquet; a killed run resumes to the same result. A random dictionary of the same size, and with --twin that of
    the untrained model, are measured beside it; with --model and --corpus also the loss that the model recovers.
    """

    store: str = Field(description="directory of the store", json_schema_extra={"argument": True})
    site: str = option(help="site of the store, such as resid.6")
    latents: int | None = option(None, help="number of latents (default: 8 times the width)")
    k: int = option(32, help="active latents of a token")
    architecture: Literal["topk", "batchtopk"] = option("batchtopk", help="topk, or batchtopk")
    epochs: int = option(10, help="passes over the tokens")
    batch: int | None = option(None, help="tokens of a step (default: a 128th of all, from 256 to 2048)")
    rate: float | None = option(None, help="largest learning rate (default: 0.1 / √width)")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", help="of the encoder's products: float32, bfloat16, or auto (bfloat16 where the processor has it)"
    )
    skip: int = option(1, help="first tokens of each text that are left out")
    max_rows: int | None = option(None, help="largest number of tokens, in whole texts chosen at random (default: all)")
    twin: str | None = option(None, help="store of the untrained twin (--untrained), whose dictionary is a control")
    model: str | None = option(None, help=f"for the recovered loss: {MODEL_HELP}")
    corpus: Files = option([], help="for the recovered loss: corpus of the store, as for extract")
    no_controls: bool = option(False, help="measure no random dictionary beside it")
    seed: int = option(0, help="root of every random draw")
    to: str = option(help="directory of the dictionary and results")
    replace: bool = option(False, help="delete a dictionary of other states or options that is in this directory")

    def run(self, *, progress: bool = True) -> TrainedDictionary:
        """Train the dictionary and its controls, write the results and return them."""
        if bool(self.model) != bool(self.corpus):
            raise ConfigError(
                "the recovered loss needs a model and its corpus",
                needed="--model and --corpus, or neither",
                found="--model alone" if self.model else "--corpus alone",
            )
        own: dict[str, Any] = {"states": self.store, "controls": not self.no_controls}
        own |= {"model": None if self.model is None else pb.LanguageModel.load(self.model, kind="causal")}
        own |= {"corpus": self.read_corpus() if self.corpus else None, "progress": None if progress else False}
        return pb.train_dictionary(**self.given_to(pb.train_dictionary) | own)


class DictionaryTopsJob(CorpusOptions):
    """Show the tokens, in context, on which latents are most active, and random ones from lower quantiles of
    activation.

    With --task or --probe, latents are set beside a linear probe of that property: those that differ most between its
    classes, and the rows where latent and probe disagree. With --neuronpedia, latents get the names and densities of an
    export. Writes latent_contexts.json (which the report shows) and Parquet.
    """

    dictionary: str = Field(
        description="file or folder of a dictionary", json_schema_extra={"argument": True, "metavar": "DICTIONARY"}
    )
    store: str = option(help="store of states of its site")
    site: str | None = option(None, help="site of the store (default: that of the dictionary)")
    latents: Many = option(
        [], help="number of a latent, or a range: 5:10 is 5 to 9 (repeatable; default: chosen)", flag="latent"
    )
    count: int = option(10, help="number of latents, if none are named")
    top: int = option(5, help="contexts with the largest activations")
    per_band: int = option(2, help="random contexts of each lower band of quantiles")
    window: int = option(10, help="tokens on either side")
    neuronpedia: str | None = option(None, help="folder of an export of Neuronpedia for this dictionary")
    task: str | None = option(None, help="property to compare with: upos, feature:Number, column:NAME, …")
    label: str | None = option(None, help="class to look for (default: the second of two)")
    probe: str | None = option(None, help="file of a saved probe of the property (default: a linear one is trained)")
    rows: str | None = option(None, help="how to pool a store of tokens for the property: word:last, …")
    disagreements: int = option(10, help="rows of each kind of disagreement")
    seed: int = option(0, help="seed of the draws")
    allow_pickle_weights: bool = option(False, help="read a dictionary from a pickle, by torch.load(weights_only=True)")
    to: str = option(help="directory of the results")

    def run(self, *, progress: bool = True) -> LatentContexts:
        """Encode the states, write the contexts of the latents and return them."""
        own: dict[str, Any] = {"corpus": self.read_corpus(), "latents": _numbers(self.latents)}
        own |= {"export": self.neuronpedia, "progress": None if progress else False}
        own["dictionary"] = pb.Dictionary.load(self.dictionary, allow_pickle_weights=self.allow_pickle_weights)
        return pb.top_contexts(**self.given_to(pb.top_contexts) | own)


def _numbers(given: list[str]) -> list[int] | None:
    """Return the numbers that `7`, `5:10` and so on name; None if there are none."""
    numbers: list[int] = []
    for text in given:
        first, colon, last = text.partition(":")
        is_number = first.isdecimal() and len(first) < 10 and (not colon or (last.isdecimal() and len(last) < 10))
        if not is_number or (colon and int(first) >= int(last)):
            raise BadParameter(
                "no number of a latent",
                needed="a number, or a range such as 5:10, which is 5 to 9",
                found=text,
                where="--latent",
            )
        numbers += range(int(first), int(last)) if colon else [int(first)]
    return numbers or None
