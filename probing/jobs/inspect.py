"""Defines InspectOptions and InspectJob, the validated options of inspecting a model's states and attention on some
texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import probing as pb
from probing.errors import BadParameter, ConfigError
from probing.jobs import MODEL_HELP, CorpusOptions, Files, Job, Many, option
from probing.jobs.flag_values import named_pairs

if TYPE_CHECKING:
    from probing.jobs.models import ModelOptions
    from probing.results.inspection import Inspection
    from probing.text.corpus import Corpus


@dataclass(frozen=True)
class Inspected:
    """Holds an inspection and the paths of the files written."""

    found: Inspection
    files: tuple[Path, ...]


class InspectOptions(Job):
    """Holds the options of inspecting a model's states and attention."""

    subset: str | None = option(None, help="only these texts of a corpus: a split, or numbers such as 0,5,20:40")
    chat_template: bool = option(False, help="read each text as a user's message, by the tokenizer's chat template")
    sites: str = option("resid.*", help="sites whose states are summarised, comma-separated, with wildcards")
    attention: bool = option(False, help="summarise the attention patterns of every head (loads attention 'eager')")
    check: bool = option(
        False, help="replace every head's pattern and output, and measure what the model's output does"
    )
    replacements: Many = option(
        [],
        help="replacement that is checked: uniform, position_mean, permuted, mean_output (repeatable; default: all)",
        flag="replacement",
    )
    heads: Many = option(
        [], help="LAYER.HEAD whose map the page shows (repeatable; default: those that stand out)", flag="head"
    )
    draws: int = option(1, help="permutations of each pattern that are averaged")
    max_texts: int = Field(default=500, ge=1, description="largest number of texts", json_schema_extra={"flag": ""})
    seed: int = option(0, help="seed of the choice of texts, of permutations and of resampling")
    device: str = option("cpu", help="torch device")
    dtype: str = option("float32", help="compute dtype: float32, float16 or bfloat16")
    kind: Literal["auto", "base", "causal", "masked"] = option("auto", help="head to load: auto, base, causal, masked")
    revision: str | None = option(None, help="revision of a hub model")

    def inspect(
        self, model: str | ModelOptions, texts: Sequence[str] | Corpus, to: str | Path, *, progress: bool, **own: Any
    ) -> Inspected:
        """Load the model (with eager attention, which returns the patterns, if attention is to be read), run
        `probing.inspect` with these options, write the page, and return the results. Options in a `ModelOptions` take
        precedence.

        Raises:
            ConfigError: `heads` are set without `attention` or `check`, or `replacements` without `check`.
            BadParameter: there is no such head.
        """
        heads = [_head(name) for name in self.heads]
        for flag, given, needed in (
            ("--head", heads and not (self.attention or self.check), "--attention or --check"),
            ("--replacement", self.replacements and not self.check, "--check"),
        ):
            if given:
                raise ConfigError(f"{flag} says what of attention is shown or checked", needed=needed, found="neither")
        name, of_model = (model, {}) if isinstance(model, str) else (model.name, model.loaded_with())
        kind = "eager" if self.attention or self.check else None
        loaded = pb.LanguageModel.load(name, **self.given_to(pb.LanguageModel.load) | {"attention": kind} | of_model)
        for layer, head in heads:
            _check_head(loaded, layer, head)
        shared = {"model": loaded, "texts": texts, "to": to, "progress": None if progress else False}
        found = pb.inspect(**self.given_to(pb.inspect) | shared | own)
        page = import_module("probing.reporting.inspection_page")
        return Inspected(found, (*found.paths(to), page.write_page(found, Path(to), heads=heads)))


class InspectJob(CorpusOptions, InspectOptions):
    """Summarise hidden states and attention on some texts; with --check, test each attention pattern by replacing it.

    Writes inspection.json, Parquet tables and a page. All of it is descriptive. With --check, the pattern and the
    output of every head are replaced, and the change of the model's output stands beside the attention map: a pattern
    whose replacement changes nothing does not explain the output on these texts.
    """

    model: str = option(help=MODEL_HELP)
    texts: Many = option([], help="text to inspect (repeatable)", flag="text")
    corpus: Files = option(
        [], help="texts in files instead: SPLIT=FILE (repeat), or one FILE, hub:NAME or probing:reference"
    )
    against: str | None = option(None, help="compare the only text with this one, token by token")
    spans: Many = option(
        [], help="NAME=SUBSTRING|SUBSTRING_OF_OTHER to compare instead of single tokens (repeatable)", flag="span"
    )
    to: str = option(help="directory of the results")

    def run(self, *, progress: bool = True) -> Inspected:
        """Check the options, read the texts, measure, write the results and the page, and return them."""
        spans = self._spans()
        if bool(self.texts) == bool(self.corpus):
            raise ConfigError(
                "texts come from one place",
                needed="--text TEXT (repeatable) or --corpus FILE",
                found="both" if self.texts else "neither",
            )
        if self.subset is not None and not self.corpus:
            raise ConfigError("a subset is one of a corpus", needed="--corpus FILE", found="--text")
        texts = self.read_corpus() if self.corpus else self.texts
        return self.inspect(self.model, texts, self.to, progress=progress, against=self.against, spans=spans)

    def _spans(self) -> dict[str, tuple[str, str]]:
        found = {}
        for name, parts in named_pairs(self.spans, "span", "subject=the cat|the dogs"):
            one, bar, other = parts.partition("|")
            if not (one and bar and other):
                raise ConfigError(
                    f"--span {name}={parts} names one substring",
                    needed="two: NAME=SUBSTRING|SUBSTRING_OF_OTHER",
                    found=repr(parts),
                )
            found[name] = (one, other)
        return found


def _check_head(model: pb.LanguageModel, layer: int, head: int) -> None:
    """Refuse a head that the model does not have; of a model without known heads, `probing.inspect` says that."""
    layers = [int(site.partition(".")[2]) for site in model.sites if site.startswith("heads.")]
    if not layers:
        return
    most = model.head_size(f"heads.{layers[0] if layer not in layers else layer}").get("n_heads", 0)
    if layer not in layers or head >= most:
        raise BadParameter(
            f"there is no head {layer}.{head}",
            needed=f"a layer of {layers[0]} to {layers[-1]} and a head of 0 to {most - 1}",
            found=f"--head {layer}.{head}",
        )


def _head(name: str) -> tuple[int, int]:
    layer, dot, head = name.partition(".")
    if not (dot and layer.isdigit() and head.isdigit()):
        raise ConfigError(f"--head {name} names no head", needed="LAYER.HEAD, such as 3.5", found=repr(name))
    return int(layer), int(head)
