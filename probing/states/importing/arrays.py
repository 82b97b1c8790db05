"""Arrays as a child process sends them, kept on disk until all are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from probing.errors import BadParameter, CorpusError, UntrustedFile
from probing.models.site import Site
from probing.states.importing.foreign.job import ChildJob
from probing.states.importing.foreign.process import hand_over
from probing.states.importing.foreign.spool import Spool
from probing.states.importing.rows import INDEX_COLUMNS, Sentence
from probing.states.store.format import STATE_TYPES

_MORE_SENTENCES = 100_000  # beyond the corpus, before the comparison that names the first


@dataclass
class Arrays:
    """Arrays as a child process sent them.

    Attributes:
        spool: holds them.
        sites: column by site.
        dtypes: what the source had, by column.
        sentences: what the source says of each.
    """

    spool: Spool
    sites: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    sentences: list[Sentence] = field(default_factory=list)

    def stored_dtype(self) -> str:
        """Return the source's data type, if it is one for all sites and can be stored; else float32."""
        found = {self.dtypes[column] for column in self.sites.values()}
        return next(iter(found)) if len(found) == 1 and found <= set(STATE_TYPES) else "float32"

    def index(self) -> dict[str, Any]:
        """Return the columns that say what a row is, by the names that `export` gives them or plainly.

        Raises:
            BadParameter: a column with another name.
        """
        found = {}
        for column in self.spool.names:
            values = self.spool.column(column)
            if values.ndim == 1:
                name = column.removeprefix("rows.")
                if name not in INDEX_COLUMNS:
                    raise BadParameter(
                        "a column of whole numbers with no meaning here",
                        needed=", ".join(INDEX_COLUMNS),
                        found=column[:80],
                        next_step="leave it out, or rename it",
                    )
                found[name] = values
        return found


def received(job: ChildJob, spool: Spool, layers: str) -> Arrays:
    """Return everything that a child process sends, by site.

    Args:
        job: what the child reads.
        spool: takes the arrays.
        layers: stream name of layers that have only a number.

    Raises:
        UntrustedFile: the source breaks a rule.
        UnknownSite: an array whose name is no site name.
        BadParameter: no states.
        CorpusError: far more sentences than the corpus has.
    """
    arrays = Arrays(spool)
    for frame in hand_over(job):
        if frame.kind == "sentence":
            arrays.sentences.append(_sentence(frame.head, job))
            if len(arrays.sentences) > job.examples + _MORE_SENTENCES:
                raise CorpusError(
                    "the file has more sentences than the corpus",
                    needed=f"{job.examples} sentences",
                    found="many more",
                    where=job.paths[0].name,
                )
        elif frame.rows is not None:
            spool.append(frame.head["column"], frame.rows)
            arrays.dtypes.setdefault(frame.head["column"], str(frame.head.get("dtype")))
    for column in spool.names:
        if spool.column(column).ndim == 2:
            name = f"{layers}.{column}" if column.isdigit() else column
            arrays.sites[str(Site.parse(name))] = column
    if not arrays.sites:
        raise BadParameter(
            "the source has no states",
            needed="floats (R, D)",
            found=", ".join(spool.names)[:200] or "nothing",
            where=job.paths[0].name,
        )
    return arrays


def _sentence(head: Mapping[str, Any], job: ChildJob) -> Sentence:
    example, n_rows, words, text = (head.get(key) for key in ("example", "rows", "words", "text"))
    listed = tuple(words) if isinstance(words, list) and all(isinstance(word, str) for word in words) else None
    if type(example) is not int or type(n_rows) is not int or not (listed is not None or isinstance(text, str)):
        raise UntrustedFile(
            "a sentence without words", needed="its words", found=repr(head)[:100], where=job.paths[0].name
        )
    return Sentence(example, n_rows, listed, text if isinstance(text, str) else None)
