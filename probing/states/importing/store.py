"""Turns imported arrays into shards, and copies an untrusted `probing` store after a child process has verified it. A
*piece* is a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probing.errors import BadParameter, CorpusError, ProvenanceMismatch, UntrustedFile
from probing.states.importing.foreign.process import Spool, hand_over
from probing.states.importing.foreign.sources import ChildJob
from probing.states.importing.layers import missing_layers, sites_of
from probing.states.importing.rows import INDEX_COLUMNS, MatchedRows, Sentence
from probing.states.store import ShardContent, Store, StoreWriter, narrow
from probing.states.store.commit_record import load_record
from probing.states.store.format import STATE_TYPES, read_store_json, record_file
from probing.text.corpus import Corpus


def copy_store(job: ChildJob, to: Path, corpus: Corpus | None) -> Store:
    """Copy a complete, untrusted store after verifying it, and return the copy; identity and content id are those of
    the source.

    Args:
        job: the job, which names the store.
        to: directory of the new store.
        corpus: corpus whose fingerprint the store must have; None: not checked.

    Raises:
        UntrustedFile: the store breaks a rule, is damaged or not finished.
        ProvenanceMismatch: the store was made from another corpus.
    """
    (source,) = job.paths
    sound = {frame.head.get("shard"): frame.head.get("sha256") for frame in hand_over(job) if frame.kind == "record"}
    _refuse_changed(source / "store.json", sound.get(-1))
    header, recipe = read_store_json(source)
    _check_identity(header["identity"], source)
    if corpus is not None:
        refuse_other_corpus(header["identity"], corpus, source)
    marks = {"imported": {"from": source.name, "format": "probing-activations", "provenance": "as the store says"}}
    said = header.get("environment")
    known = said if isinstance(said, dict) else {}
    writer = StoreWriter.open(to, identity=header["identity"], environment=known | marks)
    for shard in writer.missing():
        _refuse_changed(source / "shards" / record_file(shard), sound.get(shard))
        record: Any = load_record(source, recipe, shard)
        writer.copy(shard, record, (source / "shards" / record["file"]).read_bytes())
    writer.seal()
    return Store.open(to)


def _check_identity(identity: dict[str, Any], source: Path) -> None:
    """Check what every reader of a store takes for granted."""
    for block, key in (("model", "source"), ("corpus", "fingerprint"), ("extraction", "rows")):
        found = identity.get(block)
        if not isinstance(found, dict) or not isinstance(found.get(key), str):
            raise UntrustedFile(
                "the store does not say what it holds",
                needed=f"identity.{block}.{key}",
                found=repr(found)[:100],
                where=source.name,
            )


def _refuse_changed(path: Path, sha256: object) -> None:
    """Refuse bytes other than those that the child verified; only these are parsed here."""
    if path.is_symlink() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise UntrustedFile(
            "the source changed while it was read", needed="the bytes that were verified", where=path.name
        )


def refuse_other_corpus(identity: dict[str, Any], corpus: Corpus, source: Path) -> None:
    """Check that the fingerprint of a corpus is that of the store.

    Raises:
        ProvenanceMismatch: they differ.
    """
    block = identity.get("corpus")
    recorded = block.get("fingerprint") if isinstance(block, dict) else None
    if recorded != corpus.fingerprint:
        raise ProvenanceMismatch(
            "the store was made from another corpus",
            needed=f"corpus {str(recorded)[:12]}…",
            found=f"corpus {corpus.fingerprint[:12]}… from {corpus.source}",
            where=source.name,
            next_step="give the files the store was made from, in the same order",
        )


_SKIPPED, _HAS_MISSING = 1, 4


def shard_content(
    span: tuple[int, int],
    corpus: Corpus,
    rows: MatchedRows,
    states: Mapping[str, Any],
    names: Mapping[str, str],
    dtype: str,
) -> ShardContent:
    """Return the part of the arrays that belongs to one shard, as shard content.

    Args:
        span: first example of the shard, and one past its last.
        corpus: the corpus.
        rows: all rows, matched with the corpus.
        states: all states `(R, D)` by site.
        names: name of each site in the source.
        dtype: dtype that states are stored in.

    Raises:
        NotRepresentable: a state overflows the stored dtype.
    """
    first, end = span
    part = slice(rows.offset[first], rows.offset[end])
    skipped = tuple(entry for entry in rows.skipped if first <= entry[0] < end)
    missing = tuple(entry for entry in rows.missing if first <= entry[0] < end)
    lost, lacking = {e for e, _ in skipped}, {e for e, _, _ in missing}
    hashes = b"".join(hashlib.sha256(e.text.encode()).digest() for e in corpus.examples[first:end])
    examples = {
        "offset": rows.offset[first : end + 1] - rows.offset[first],
        "ordinal": np.arange(first, end),
        "text_sha256": np.frombuffer(hashes, "u1").reshape(-1, 32),
        "flags": np.array([_SKIPPED * (e in lost) | _HAS_MISSING * (e in lacking) for e in range(first, end)], "u1"),
    }
    return ShardContent(
        example_start=first,
        n_examples=end - first,
        rows={name: values[part] for name, values in rows.columns.items()},
        examples=examples,
        sites={site: narrow(values[part], dtype, site) for site, values in states.items()},
        modules={site: f"imported: {column}"[:200] for site, column in names.items()},
        skipped=skipped,
        missing_words=missing,
    )


_MORE_SENTENCES = 100_000  # beyond the corpus, before the comparison that names the first


@dataclass
class Arrays:
    """Holds the arrays that a child process sent.

    Attributes:
        spool: the columns on the disk.
        sites: column name by site.
        dtypes: data type in the source, by column.
        sentences: entries of the source about each sentence.
        requests: number of pieces of each request, if the source holds requests.
        facts: further metadata of the source.
        missing_layers: numbers of layers that the source lacks between others.
    """

    spool: Spool
    sites: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    sentences: list[Sentence] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    missing_layers: list[int] = field(default_factory=list)

    def stored_dtype(self) -> str:
        """Return the source's data type if all sites have the same and it can be stored, else float32."""
        found = {self.dtypes[column] for column in self.sites.values()}
        return next(iter(found)) if len(found) == 1 and found <= set(STATE_TYPES) else "float32"

    def index(self) -> dict[str, Any]:
        """Return the index columns, which assign example and word to each row, by name, with the prefix `rows.` of
        `export` removed.

        Raises:
            BadParameter: a column has an unknown name.
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


def receive(job: ChildJob, arrays: Arrays) -> None:
    """Receive everything that a child process sends, and add it to the arrays.

    Raises:
        UntrustedFile: the source breaks a rule.
        CorpusError: the source has far more sentences than the corpus.
    """
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
        elif frame.kind == "request":
            arrays.requests.append(_pieces(frame.head, job))
        elif frame.kind == "facts":
            arrays.facts = dict(frame.head)
        elif frame.rows is not None:
            arrays.spool.append(frame.head["column"], frame.rows)
            arrays.dtypes.setdefault(frame.head["column"], str(frame.head.get("dtype")))


def name_sites(arrays: Arrays, layers: str | None, *, must_say: bool, where: str) -> None:
    """Assign a site to each column of states that was received.

    Args:
        arrays: the received columns; `sites` and `missing_layers` are set.
        layers: meaning of layer numbers, see `sites_of`.
        must_say: whether `layers` must be given.
        where: the source, for messages.

    Raises:
        UnknownSite: the name of an array is not a site name.
        BadParameter: the source has no states, or the meaning of its layers is not known.
    """
    columns = [column for column in arrays.spool.names if arrays.spool.column(column).ndim == 2]
    arrays.sites = sites_of(columns, layers, must_say=must_say, where=where)
    arrays.missing_layers = missing_layers(columns, layers)
    if not arrays.sites:
        raise BadParameter(
            "the source has no states",
            needed="floats (R, D)",
            found=", ".join(arrays.spool.names)[:200] or "nothing",
            where=where,
        )


def refuse_uneven(arrays: Arrays) -> None:
    """Refuse requests that do not all have the same layers.

    Raises:
        BadParameter: a layer has more or fewer pieces than the requests.
    """
    n_pieces = sum(arrays.requests)
    for site, column in arrays.sites.items():
        n_rows = len(arrays.spool.column(column))
        if n_rows != n_pieces:
            raise BadParameter(
                "requests with different layers",
                needed=f"{n_pieces:,} pieces at every layer",
                found=f"{n_rows:,} at {site}",
                next_step="import the requests of one run, which saved the same layers",
            )


def _pieces(head: Mapping[str, Any], job: ChildJob) -> int:
    """Return the number of pieces of a request."""
    pieces = head.get("pieces")
    if type(pieces) is not int or pieces < 1:
        raise UntrustedFile(
            "a request without pieces", needed="pieces", found=repr(head)[:100], where=job.paths[0].name
        )
    return pieces


def _sentence(head: Mapping[str, Any], job: ChildJob) -> Sentence:
    example, n_rows, words, text = (head.get(key) for key in ("example", "rows", "words", "text"))
    listed = tuple(words) if isinstance(words, list) and all(isinstance(word, str) for word in words) else None
    if type(example) is not int or type(n_rows) is not int or not (listed is not None or isinstance(text, str)):
        raise UntrustedFile(
            "a sentence without words", needed="its words", found=repr(head)[:100], where=job.paths[0].name
        )
    return Sentence(example, n_rows, listed, text if isinstance(text, str) else None)
