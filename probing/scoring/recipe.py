"""Recipe: how new texts are turned into the rows of a saved probe, read from its card; other models or templates are
refused. A *piece* is a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.probe import Probe
from probing.errors import BadParameter, ProvenanceMismatch, unknown_name
from probing.measures._rows import gives_probabilities
from probing.models.language_model import LanguageModel
from probing.probes._estimator import load_probe
from probing.provenance import tokenizer_digest, weights_digest
from probing.states.extraction.reading_options import TOKENS_PER_BATCH, reading_of
from probing.states.extraction.shard_reading import ReadingOptions
from probing.statistics.thresholds import Threshold
from probing.text.chat import ChatTemplate
from probing.text.positions import SCOPE

Floats = NDArray[np.float64]
_WITH_ANY = "accept it with any_model (--any-model): the scores are then of another kind than those in the card"

# How the rows of whole texts were pooled in training, of which a text that is generated has a score of its own.
OWN_POOLS = {"sentence:first": "first", "sentence:last": "last", "sentence:mean": "mean", "sentence:max": "max"}
OWN_POOLS |= {"position:end": "last"}


@dataclass(frozen=True)
class Recipe:
    """Describes how texts are turned into the rows of a probe, and how the rows are scored.

    Attributes:
        probe, name: the fitted probe, and its name (task, recipe and site).
        site: site of the model that the probe reads.
        reading: options by which texts are read.
        pooled: pooling of pieces that the probe was trained with, such as `sentence:mean`; "" if rows were not pooled
            from a store of pieces.
        label: class whose log odds are the score; "" for a number, or for the most probable of several classes.
        threshold: the threshold in the card of the probe; None: there is none, or it is for another label.
        remarks: phrases on every difference from training, such as another model.
        labels: the classes in the order of the probe's probabilities; empty for a number.
    """

    probe: Probe
    name: str
    site: str
    reading: ReadingOptions
    pooled: str
    label: str
    threshold: Threshold | None = None
    remarks: tuple[str, ...] = ()
    labels: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> str:
        """Kind of the rows and their pooling, such as `sentence:mean`."""
        return self.pooled or str(self.reading.identity()["rows"])

    @property
    def reads_whole_texts(self) -> bool:
        """Whether a row is a whole text, so that a threshold chosen on rows does not hold for pieces."""
        return self.probe.input == "pieces" or self.rows.startswith("sentence")

    @property
    def own_pool(self) -> str:
        """How a whole text is pooled into a row: `pieces`, `first`, `last`, `mean` or `max`; "" if rows are others."""
        return "pieces" if self.probe.input == "pieces" else OWN_POOLS.get(self.rows, "")

    @property
    def of_pieces(self) -> ReadingOptions:
        """The same reading options, but with one row for every piece of the text."""
        return replace(self.reading, scope="piece", pool="mean", positions=())

    def scored(self, X: Any) -> tuple[Floats, list[str], Floats]:
        """Return scores `(N,)` (natural log odds), predicted labels and log probabilities `(N, K)` of rows `(N, D)`, or
        of `Pieces`.

        For a probe that predicts a number, the score is this number; labels are "" and there are no probabilities.
        """
        if not self.labels:
            return np.asarray(self.probe.predict(X), np.float64).reshape(-1), [""] * len(X), np.empty((len(X), 0))
        logs = np.asarray(self.probe.predict_log_proba(X), np.float64)  # type: ignore[attr-defined, unused-ignore]
        best = logs.argmax(1)
        codes = np.full(len(X), self.labels.index(self.label)) if self.label else best
        others = logs.copy()
        others[np.arange(len(X)), codes] = -np.inf
        with np.errstate(divide="ignore"):  # a class that the probe never saw has log probability -inf
            odds = logs[np.arange(len(X)), codes] - np.logaddexp.reduce(others, axis=1)
        return odds, [self.labels[k] for k in best], logs


def recipe_of(
    probe: Probe | str | Path, model: LanguageModel, *, label: str | None = None, any_model: bool = False
) -> Recipe:
    """Return the recipe by which this model turns texts into the rows of a probe, as in training.

    Args:
        probe: a probe that `train` saved, or the path of its file.
        model: the model that its states come from.
        label: class whose log odds are the score; None: the class that the probe's threshold flags, or without one, of
            two classes the second in sorted order.
        any_model: whether another model, revision, template or compute dtype is accepted, if its site has the same
            width; `remarks` then list the differences.

    Raises:
        ProvenanceMismatch: model, revision, tokenizer, chat template or dtype differ from training, or the card does
            not record them.
        UnknownSite: the model has no such site.
        BadParameter: the site has another width, the model has no chat template, the probe was not saved by `train`,
            reads pairs, spans or no states, or gives no probabilities.
        UnknownName: there is no such label.
    """
    fitted = load_probe(probe) if isinstance(probe, str | Path) else probe
    about = fitted.about
    if not about.get("site"):
        raise BadParameter(
            "a probe that does not say what it reads",
            needed="a probe that `probing train --to` saved, loaded with load_probe",
            found=f"{type(fitted).__name__} without a card",
            next_step="train it with `probing train … --to DIR`",
        )
    name = f"{about.get('task')} by {about.get('probe')} at {about['site']}"
    read: Mapping[str, Any] = about.get("read") or {}
    _refuse_rows(fitted, read, about, name)
    differences = _differences(about, read, model)
    if differences and not any_model:
        needed, found = zip(*[(f"{what} {old}", f"{what} {new}") for what, old, new in differences], strict=True)
        raise ProvenanceMismatch(
            "the probe was trained on states of another model, or read in another way",
            needed="; ".join(needed),
            found="; ".join(found),
            where=name,
            next_step=f"load the model that the probe was trained on, or {_WITH_ANY}",
        )
    reading, pooled = _reading(about, read, model)
    width = model.width(str(about["site"]))
    if width != getattr(fitted, "n_features_in_", width):
        raise BadParameter(
            "the states of this model have another width",
            needed=f"{fitted.n_features_in_} dimensions at {about['site']}",
            found=f"{width} in {model.name}",
            where=name,
            next_step="load the model that the probe was trained on",
        )
    labels, chosen = _labels(fitted, about, label, name)
    facts = about.get("threshold")
    threshold = Threshold.of(facts) if facts and facts["label"] == chosen else None
    remarks = tuple(f"{what} is {new}, in training {old}" for what, old, new in differences)
    return Recipe(fitted, name, str(about["site"]), reading, pooled, chosen, threshold, remarks, labels)


def _refuse_rows(probe: Probe, read: Mapping[str, Any], about: Mapping[str, Any], name: str) -> None:
    if probe.input not in ("states", "pieces") or about["site"] == "(none)":
        raise BadParameter(
            "a baseline reads no states", needed="a probe of states", found=f"one of {probe.input}", where=name
        )
    if read.get("row_form", "row") != "row":
        raise BadParameter(
            "this probe reads several words at a time",
            needed="a probe of words, sentences or positions",
            found=f"{read['row_form']} of words",
            where=name,
            next_step="score it with `probing transfer` on a labelled corpus",
        )


def _differences(about: Mapping[str, Any], read: Mapping[str, Any], model: LanguageModel) -> list[tuple[str, str, str]]:
    """Return (what, as in training, as now) of everything that changes the states."""
    identity = model.identity()
    mine = identity["model"]
    if not read or "model_facts" not in about:
        return [("the card", "of this version", "of an earlier one, which does not say how texts were read")]
    facts, found = about["model_facts"], []
    weights = weights_digest(mine)
    if facts["weights"] != weights:
        found.append(("model", str(about.get("model")), f"{mine['source']} [weights {weights[:8]}]"))
    if None not in (facts["revision"], mine.get("revision")) and facts["revision"] != mine["revision"]:
        found.append(("revision", str(facts["revision"]), str(mine.get("revision"))))
    for what in ("dtype", "side"):
        if facts[what] != mine.get(what):
            found.append((what, str(facts[what]), str(mine.get(what))))
    pieces = tokenizer_digest(identity["tokenizer"])
    if facts["tokenizer"] not in ("", pieces):
        found.append(("tokenizer", facts["tokenizer"][:8], pieces[:8]))
    chat = read.get("chat")
    if chat:
        template = ChatTemplate(model.tokenizer, model.name)  # refuses a tokenizer that has none
        now = template.sha256
        if now != chat["template_sha256"]:
            found.append(("chat template", chat["template_sha256"][:8], now[:8]))
    return found


def _reading(about: Mapping[str, Any], read: Mapping[str, Any], model: LanguageModel) -> tuple[ReadingOptions, str]:
    site, rows = str(about["site"]), str(read.get("rows") or about.get("rows"))
    if rows == SCOPE:
        rows = f"{SCOPE}:{','.join(read['position_names'])}"
    path = (read.get("modules") or {}).get(site)
    limit, most = read.get("max_length"), model.max_length
    reading = reading_of(
        model,
        sites=[f"{site}={path}" if path and site not in model.sites else site],
        rows=rows.removesuffix(" of pieces"),
        dtype=read.get("dtype"),
        max_length=limit if limit is None or most is None else min(limit, most),
        long_inputs=read.get("long_inputs", "truncate"),
        stride=read.get("stride"),
        tokens_per_batch=TOKENS_PER_BATCH,
        chat_template=bool(read.get("chat")),
    )
    return reading, str(read.get("pooled") or "")


def _labels(probe: Probe, about: Mapping[str, Any], label: str | None, name: str) -> tuple[tuple[str, ...], str]:
    """Return the labels in the order of the probe's columns, and the one that is scored."""
    if about.get("kind") == "real":
        if label is not None:
            raise BadParameter("a probe of a number has no labels", needed="no label", found=label, where=name)
        return (), ""
    known = tuple(map(str, getattr(probe, "classes_", ())))
    if label is not None and label not in known:
        raise unknown_name("label", label, known, where=name)
    if not gives_probabilities(probe):
        raise BadParameter(
            "this probe gives no probabilities",
            needed="one that does, such as linear",
            found=type(probe).__name__,
            where=name,
        )
    flagged = (about.get("threshold") or {}).get("label")
    if label is None and flagged in known:
        return known, str(flagged)
    return known, label or (known[1] if len(known) == 2 else "")


def answer_mark(model: LanguageModel) -> tuple[int, ...]:
    """Return the piece ids with which the chat template opens an answer; () if the tokenizer has no template."""
    if not getattr(model.tokenizer, "chat_template", None):
        return ()
    template, size = ChatTemplate(model.tokenizer, model.name), len(model.tokenizer)
    words = [model.tokenizer.decode([size * k // 8], skip_special_tokens=True).strip() for k in range(1, 8)]
    opened = [template.opened((("user", word),)).ids[::-1].tolist() for word in filter(None, (*words, "a", "1"))]
    length = 0  # of what all end in: words of several kinds, for some are unknown to the tokenizer
    while all(len(ids) > length for ids in opened) and len({ids[length] for ids in opened}) == 1:
        length += 1
    return tuple(opened[0][:length][::-1])


def refuse_other_form(recipes: Mapping[str, Recipe], mark: tuple[int, ...], ids: NDArray[np.int64]) -> None:
    """Refuse a chat for probes that were trained without a chat template, and plain text for those trained with one.

    Args:
        recipes: recipes of the probes, by name.
        mark: ids that `answer_mark` returned; (): nothing is refused.
        ids: `(n,)` ids of the prompt.

    Raises:
        ProvenanceMismatch: the prompt has another form than the texts in training.
    """
    is_chat = tuple(ids[-len(mark) :].tolist()) == mark
    for name, recipe in recipes.items() if mark else ():
        if bool(recipe.reading.chat) != is_chat:
            forms = ("plain texts", "texts inside a chat template")
            raise ProvenanceMismatch(
                "the prompt has another form than the texts that the probe was trained on",
                needed=forms[bool(recipe.reading.chat)],
                found=forms[is_chat],
                where=name,
                next_step=f"train the probe on states of the same form (chat_template), or {_WITH_ANY}",
            )
