"""Applies saved probes to new text: scores texts, scores what a model generates, and adds a probe's direction to the
states of a running model. Options call tokens "pieces".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from probing.contracts.probe import Probe
from probing.errors import BadParameter, CorpusError
from probing.models.language_model import LanguageModel
from probing.provenance import model_called
from probing.scoring.recipe import Recipe, recipe_of
from probing.scoring.scores import RowScore, TextScore, TextScores, check_texts, score_corpus
from probing.states.extraction.reading_options import check_corpus
from probing.states.store.views import warn_of_unknown
from probing.system.machine import with_typed_errors
from probing.text.corpus import Corpus, Example

__all__ = ["Recipe", "RowScore", "TextScore", "TextScores", "recipe_of", "score", "stream"]

BATCH = 256
Texts = str | Corpus | Sequence[str | Example] | Iterable[str | Example]


@with_typed_errors
def score(
    probe: Probe | str | Path,
    model: LanguageModel,
    texts: Texts,
    *,
    pieces: bool = False,
    label: str | None = None,
    any_model: bool = False,
    batch: int = BATCH,
) -> TextScores:
    """Score new texts by a saved probe and return the scores. The states are read as in training: at the same site,
    with the same pooling to words or texts, chat template, length limit and data type.

    On the training corpus the scores equal those in training, up to rounding that depends on the batch.

    Args:
        probe: a probe that `train(…, to=…)` saved, or the path of its file.
        model: the model whose states the probe was trained on.
        texts: a text, a list of texts or examples (with words, spans or messages of a chat), or a corpus.
        pieces: whether every token is scored as well, by its own state in place of the pooled one.
        label: class whose natural log odds are the score. None means the class that the probe's threshold flags;
            without a threshold, the second in sorted order if there are two classes, and the most probable class of
            each text or word if there are more.
        any_model: whether another model, revision, chat template or data type than in training is accepted, if the site
            has the same width. The differences are then listed in `recipe.remarks`, and in `remarks` of every record.
        batch: number of texts that are read together.

    Raises:
        ProvenanceMismatch: model, revision, tokenizer, chat template or data type differ from training; or the probe
            was saved by an earlier version of this package, which did not record them.
        UnknownSite: the model has no such site.
        UnknownName: the probe has no such label, or a text lacks a position that the probe reads.
        BadParameter: the site has another width, the model has no chat template, the probe scores words and texts are
            not divided into words, the probe reads pairs of words or no states (a baseline), or the corpus has a label
            that the probe does not have.
        CorpusError: there are no texts, or one has no tokens.
    """
    recipe = recipe_of(probe, model, label=label, any_model=any_model)
    corpus = _corpus(texts)
    _check(model, corpus, recipe, pieces, any_model)
    found = [
        text
        for first in range(0, len(corpus), max(1, batch))
        for text in score_corpus(
            model, replace(corpus, examples=corpus.examples[first : first + max(1, batch)]), recipe, pieces=pieces
        )
    ]
    scores = TextScores(recipe, model_called(model.identity()["model"]), found)
    warn_of_unknown(scores.unknown_pieces)
    return scores


def stream(
    recipe: Recipe, model: LanguageModel, batches: Iterable[Sequence[str]], *, pieces: bool = False
) -> Iterator[TextScores]:
    """Score batches of texts as they arrive, and yield the scores of each batch; they equal the scores of all texts at
    once.

    Args:
        recipe: the recipe that `recipe_of` returned.
        model: the model.
        batches: batches of texts.
        pieces: whether every piece is scored as well.

    Raises:
        CorpusError, BadParameter: as in `score`, raised at the batch of the text.
    """
    name, count, has_warned = model_called(model.identity()["model"]), 0, False
    for batch in batches:
        corpus = _corpus(batch, count)
        _check(model, corpus, recipe, pieces, any_model=False)
        count += len(batch)
        scores = TextScores(recipe, name, score_corpus(model, corpus, recipe, pieces=pieces))
        has_warned = has_warned or warn_of_unknown(scores.unknown_pieces)
        yield scores


def _corpus(texts: Texts, start: int = 0) -> Corpus:
    if isinstance(texts, Corpus):
        return texts
    given = [texts] if isinstance(texts, str) else [] if isinstance(texts, Mapping) else list(texts)
    if hasattr(texts, "columns") or isinstance(texts, Mapping) or not all(isinstance(g, str | Example) for g in given):
        raise BadParameter(
            "these are no texts",
            needed="a text, texts, examples or a corpus (of a DataFrame: its column, or Corpus.from_dataframe)",
            found=type(texts).__name__,
        )
    examples: list[Any] = [
        Example(id=f"text-{start + n + 1}", text=one, split="test") if isinstance(one, str) else one
        for n, one in enumerate(given)
    ]
    if not examples:
        raise CorpusError("there are no texts to score", needed="at least one text", found="none")
    return Corpus(tuple(examples))


def _check(model: LanguageModel, corpus: Corpus, recipe: Recipe, pieces: bool, any_model: bool) -> None:
    check_texts(model, corpus, recipe, pieces=pieces)
    check_corpus(model, corpus, recipe.reading)
    field, _, column = str(recipe.probe.about.get("task", "")).partition(":")
    column = column.partition(" at ")[0]
    if field != "column" or not recipe.labels or any_model:
        return
    others = {str(e.columns[column]) for e in corpus.examples if e.columns.get(column) is not None} - set(recipe.labels)
    if others:
        raise BadParameter(
            "the corpus has labels that the probe does not know",
            needed=f"labels of {column}: {', '.join(recipe.labels)}",
            found=", ".join(sorted(others)[:10]),
            where=corpus.source or recipe.name,
            next_step="give texts of the same label set, or accept others (any_model, --any-model)",
        )
