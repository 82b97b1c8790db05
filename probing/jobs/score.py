"""Defines ScoreJob, the checked options of scoring new texts by a saved probe."""

from __future__ import annotations

import select
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import probing as pb
from probing.errors import ConfigError, CorpusError, ProbingWarning
from probing.jobs import MODEL_HELP, CorpusOptions, Files, Many, option

if TYPE_CHECKING:
    from probing.models.language_model import LanguageModel
    from probing.scoring import TextScores

STANDARD_INPUT = "-"
_WAIT = 0.05  # seconds: lines that come within them are scored together


class ScoreJob(CorpusOptions):
    """Score new texts by a saved probe.

    The texts are read in the same way as those that the probe was trained on. Give --text (repeatable), --corpus, or -
    to read standard input, where each line is a text and is scored as it comes. The output has one JSON line per text
    (or per word, if the probe reads words), and with --pieces one per token as well. With --to it is written to a file:
    NAME.jsonl, NAME.parquet, or NAME.html with tokens coloured by score. Another model, revision, chat template or set
    of labels than in training is refused, unless --any-model accepts it; the output then says so.
    """

    probe: str = Field(
        description="file of a saved probe, below probes/ in a directory of results",
        json_schema_extra={"argument": True, "metavar": "PROBE"},
    )
    source: str = Field(
        default="",
        description="- reads standard input, one text per line",
        json_schema_extra={"argument": True, "metavar": "[-]"},
    )
    model: str = option(help=MODEL_HELP)
    texts: Many = option([], help="text to score (repeatable)", flag="text")
    corpus: Files = option(
        [], help="texts in files instead: SPLIT=FILE (repeat), or one FILE, hub:NAME or probing:reference"
    )
    split: str | None = option(None, help="only this split of the corpus (default: all)")
    pieces: bool = option(False, help="score every token as well")
    label: str | None = option(
        None, help="class whose log odds are the score (default: that of the probe's threshold, or the second of two)"
    )
    any_model: bool = option(False, help="accept another model, revision, template or labels; the output says so")
    files: Many = option([], help="file to write: NAME.jsonl, NAME.parquet or NAME.html (repeatable)", flag="to")
    batch: int = Field(
        default=256, ge=1, description="number of texts that are scored together", json_schema_extra={"flag": ""}
    )
    device: str = option("cpu", help="torch device")
    dtype: str = option("float32", help="data type to compute in: float32, float16 or bfloat16")
    revision: str | None = option(None, help="revision of a hub model")

    def run(self, *, progress: bool = True) -> Iterator[TextScores]:
        """Check the options, load probe and model, and yield the scores of each batch of texts; files are written after
        the last batch. `progress`: whether to show progress on standard error.

        Raises:
            CorpusError: standard input has no line with a text. If it is already at its end, this is raised before the
                model is loaded.
        """
        self._check()
        probe = pb.load_probe(self.probe)
        corpus = self._corpus() if self.corpus else None
        model = pb.LanguageModel.load(self.model, device=self.device, dtype=self.dtype, revision=self.revision)
        return self._run(probe, model, corpus)

    def _run(self, probe: Any, model: LanguageModel, corpus: Any) -> Iterator[TextScores]:
        scoring, kept = import_module("probing.scoring"), []
        options: dict[str, Any] = {"pieces": self.pieces, "label": self.label, "any_model": self.any_model}
        if self.source == STANDARD_INPUT:
            recipe = scoring.recipe_of(probe, model, label=self.label, any_model=self.any_model)
            parts: Iterable[TextScores] = scoring.stream(recipe, model, lines(self.batch), pieces=self.pieces)
        else:
            texts = self.texts if corpus is None else corpus
            parts = [scoring.score(probe, model, texts, batch=self.batch, **options)]
        is_empty = True
        for scores in parts:
            kept += [scores] if self.files else []
            yield scores
            is_empty = False
        if is_empty:
            raise _nothing_to_score("no line with a text" if self.source else "none")
        for file in self.files:
            whole = scoring.TextScores(kept[0].recipe, kept[0].model, [text for part in kept for text in part])
            whole.write(file)

    def _check(self) -> None:
        given = [bool(self.texts), bool(self.corpus), bool(self.source)]
        if sum(given) != 1 or self.source not in ("", STANDARD_INPUT):
            raise ConfigError(
                "texts come from one place",
                needed="--text TEXT (repeatable), --corpus FILE, or - for standard input",
                found=f"{sum(given)} of them" if self.source in ("", STANDARD_INPUT) else repr(self.source),
            )
        if self.source == STANDARD_INPUT and _is_at_end(sys.stdin):
            raise _nothing_to_score("an empty standard input")
        for file in self.files:
            import_module("probing.scoring.scores").check_suffix(Path(file))
            import_module("probing.system.machine").check_target(Path(file).parent)

    def _corpus(self) -> Any:
        corpus = self.read_corpus()
        if self.split is None:
            return corpus
        examples = tuple(example for example in corpus.examples if example.split == self.split)
        if not examples:
            raise CorpusError(
                "no text of this split",
                needed=f"one of: {', '.join(corpus.splits)}",
                found=self.split,
                where=corpus.source,
            )
        return pb.Corpus(examples, corpus.source, corpus.unit)


def lines(most: int) -> Iterator[list[str]]:
    """Yield lists of lines from standard input: all lines that have arrived, at most `most` at a time; the last line
    need not end in a newline. Empty lines are left out, with a warning.
    """
    stream: Any = sys.stdin.buffer
    rest, found, count = b"", [], 0
    is_open = True
    while is_open:
        part = stream.read1(1 << 16)  # what `_is_at_end` looked at is in the buffer of the stream
        is_open = bool(part)
        *whole, rest = (rest + part).split(b"\n")
        whole += [rest] if not is_open and rest else []
        for line in whole:
            count += 1
            text = _decoded(line, count)
            if text.strip():
                found.append(text)
            else:
                warnings.warn(f"line {count} of standard input is empty: not scored", ProbingWarning, stacklevel=2)
        while found and (len(found) >= most or not is_open or not _has_more(stream)):
            yield found[:most]
            found = found[most:]


def _nothing_to_score(found: str) -> CorpusError:
    return CorpusError(
        "there are no texts to score",
        needed="at least one line with a text",
        found=found,
        next_step="send lines, as in `probing score PROBE - --model MODEL < FILE`, or give --text or --corpus",
    )


def _is_at_end(stream: Any) -> bool:
    """Return whether nothing can come from standard input: it is closed, or at its end at once. Input that is yet to
    come is not waited for.
    """
    if stream is None:
        return True
    try:
        return bool(select.select([stream], [], [], 0)[0]) and not stream.buffer.peek(1)
    except (OSError, ValueError):
        return False


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise CorpusError(
            "standard input is no UTF-8", needed="UTF-8", found=str(error.reason), where=f"line {number}"
        ) from error


def _has_more(stream: Any) -> bool:
    """Return whether more comes within a moment; where the system cannot say, that it does."""
    try:
        return bool(select.select([stream], [], [], _WAIT)[0])
    except (OSError, ValueError):
        return True
