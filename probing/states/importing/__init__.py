"""Imports states that other programs computed, and makes a store of them; facts that are not known are recorded as
unknown. Options call tokens "pieces".
"""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probing.errors import BadParameter, CorpusError, NonFiniteStates, NotRepresentable, ProbingWarning, UntrustedFile
from probing.models.site import Site
from probing.provenance import environment, file_sha256
from probing.states.importing.foreign.process import Spool
from probing.states.importing.foreign.sources import ChildJob, Limits, open_source, refuse_link
from probing.states.importing.foreign.tensors import IDS
from probing.states.importing.requests import Pooled, request_rows
from probing.states.importing.rows import MatchedRows, match_rows, scope_of
from probing.states.importing.store import Arrays, copy_store, name_sites, receive, refuse_uneven, shard_content
from probing.states.store import Store, StoreWriter
from probing.states.store.commit_record import shard_starts
from probing.states.store.format import ITEM_BYTES, STATE_TYPES, check_name
from probing.states.store.writer import refuse_foreign
from probing.system.machine import with_typed_errors
from probing.text.alignment import check_words
from probing.text.corpus import Corpus

UNKNOWN = "unknown"
UNSAID = ("lmprobe", "vllm")  # formats that do not say what their layers are
_MOST_LAYERS = 12  # missing ones that are named
_AT_ONCE = 200  # requests that one child opens
SHARD_BYTES = 64 << 20
_SUFFIXES = {
    ".npy": "npy",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".json": "json",
    ".jsonl": "json",
    ".safetensors": "safetensors",
}


@with_typed_errors
def import_states(
    source: str | Path,
    corpus: Corpus | None = None,
    *,
    to: str | Path,
    rows: str | None = None,
    model: str | None = None,
    layers: str | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
    limits: Limits | None = None,
) -> Store:
    """Make a store from states that another program computed.

    The source is not trusted: a child process with limits on memory, time and files checks it, and sends only numbers
    back.

    Args:
        source: a NeuroX file (`.hdf5`, `.json`); a `.safetensors` or `.h5` file with an array for each site; a folder
            of `.npy` files; a store of this package; a data set of lmprobe (a folder with one Parquet index that has
            `lmprobe:` metadata, and one safetensors file for each layer); or hidden states of vLLM (a folder with one
            safetensors file for each request, which contains `hidden_states` of shape (tokens, layers, width) and
            `token_ids`).
        corpus: the corpus that the states belong to; not needed if the source is a store.
        to: directory of the new store.
        rows: what a state stands for: `word`, `sentence` or `piece` (token), optionally with the pooling (`word:mean`),
            which is recorded as given. None means that it is inferred from the number of states.
        model: name of the model that made the states, recorded as given.
        layers: meaning of layers that are only numbered. `resid`: inputs of blocks. `blocks`: outputs of blocks.
            `hf:L`: the `hidden_states` of transformers, from a model of L blocks; the last is after the final norm
            (names `resid.0`, `resid.1` and on to `final_norm`). `vllm`, or `vllm:8,16,24` if only these layers were
            saved: inputs of blocks; the last is before the final norm (names such as `resid.8`). Any other name is used
            as it is; the default names them `layer.0`, `layer.1` and so on. Sources of lmprobe and vLLM are refused
            without this option. Layers that are missing between others (for `hf:L`, of 0 to L) are named in a
            warning, and recorded with the store.
        tokenizer: folder of the tokenizer, needed for states of vLLM, whose requests are matched with texts by token
            ids.
        dtype: data type that states are stored in; None means that of the file, or float32.
        limits: limits of memory, time and sizes for the child process.

    Raises:
        BadParameter: it is not known what rows or layers of the source mean; the message names the option to give.
        UntrustedFile: the check of the source failed; nothing was imported.
        CorpusError, AlignmentError: the states are of another corpus; the message names the sentence.
        ProvenanceMismatch: `to` holds another store, or a store was made from another corpus.
        NonFiniteStates, NotRepresentable: as for `extract`; nothing is left of a store that was not there before.
        DiskFull: as for `extract`.
    """
    source, to = Path(source), Path(to)
    check_name(to)
    refuse_foreign(to)
    form, files = _files(source)
    limits = limits or Limits()
    n_bytes = sum(file.lstat().st_size for file in files)
    if form == "store":
        return copy_store(ChildJob(form, (source.absolute(),), n_bytes, 0, limits), to, corpus)
    if corpus is None or not len(corpus):
        raise CorpusError("arrays need a corpus", needed="the corpus the states are of", next_step="add --corpus")
    check_words(
        [e.words for e in corpus.examples], [len(e.text) for e in corpus.examples], [e.id for e in corpus.examples]
    )
    origin = Origin(form, source.name, _hashes(files), model, rows, tokenizer)
    to.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as folder,
        Spool(Path(folder), limits.column_bytes) as spool,
    ):
        arrays = Arrays(spool)
        for part in _parts(form, files):
            size = sum(file.lstat().st_size for file in part)
            receive(ChildJob(form, tuple(file.absolute() for file in part), size, len(corpus), limits), arrays)
        name_sites(arrays, layers, must_say=form in UNSAID, where=source.name)
        if arrays.missing_layers:
            warnings.warn(
                f"{_layers_said(arrays)} of {source.name} {_is_missing(arrays)}: the store has no site for "
                f"{'it' if len(arrays.missing_layers) == 1 else 'them'}, and curves over layers pass over the gap",
                ProbingWarning,
                stacklevel=3,
            )
        if _hashes(files) != origin.files:
            raise UntrustedFile("the source changed while it was read", needed="the same bytes", where=source.name)
        return _written(arrays, corpus, origin, to, dtype)


@dataclass(frozen=True)
class Origin:
    """Holds the origin of imported states.

    Attributes:
        format: format of the source.
        name: name of the source, without its folder.
        files: SHA-256 by file name.
        model: name of the model, as the user gave it.
        rows: kind of rows, as the user gave it.
        tokenizer: tokenizer whose piece ids were used to match requests with texts.
    """

    format: str
    name: str
    files: Mapping[str, str]
    model: str | None
    rows: str | None
    tokenizer: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return the blocks `model` and `tokenizer` of the store's identity, in which all entries that an import cannot
        know are `UNKNOWN`.
        """
        names = ("revision", "weights", "config", "class", "dtype", "attention", "remote_code")
        said = f" (said to be of {self.model})" if self.model else ""
        model = {"source": f"imported from {self.name}{said}", "format": self.format, "files": dict(self.files)}
        return {"model": model | dict.fromkeys(names, UNKNOWN), "tokenizer": {"source": self.tokenizer or UNKNOWN}}


def _files(source: Path) -> tuple[str, list[Path]]:
    refuse_link(source)
    if (source / "store.json").is_file():
        return "store", [path for path in sorted(source.rglob("*")) if path.is_file() and not path.is_symlink()]
    if source.is_dir():
        form, found = _in_folder(source)
    else:
        found, form = [source] if source.is_file() else [], _SUFFIXES.get(source.suffix.lower(), "")
    if not found or not form:
        raise BadParameter(
            "nothing that can be imported",
            found=str(source),
            needed="a store, a folder of .npy or .safetensors, a Parquet index beside .safetensors, or a file ending "
            f"in {', '.join(_SUFFIXES)}",
            next_step="check the path and its ending",
        )
    for file in found:  # before they are hashed, which reads all of them
        open_source(file).stream.close()
    return form, found


def _in_folder(folder: Path) -> tuple[str, list[Path]]:
    """Return the format of a folder, and its files: numbers in names count as numbers, `request_9` before
    `request_10`.
    """
    listed = sorted(folder.iterdir(), key=lambda path: [n.zfill(20) for n in re.split(r"(\d+)", path.name)])
    of = {suffix: [path for path in listed if path.suffix == suffix] for suffix in (".npy", ".parquet", ".safetensors")}
    if of[".npy"] or not of[".safetensors"]:
        return "npy", sorted(of[".npy"])
    if len(of[".parquet"]) > 1:
        names = ", ".join(path.name for path in of[".parquet"])
        raise BadParameter("which file is the index?", needed="one Parquet file beside the layers", found=names)
    return ("lmprobe" if of[".parquet"] else "vllm"), of[".parquet"] + of[".safetensors"]


def _parts(form: str, files: list[Path]) -> list[list[Path]]:
    """Return the files that one child reads: of requests, which may be many thousands, so many at once."""
    step = _AT_ONCE if form == "vllm" else max(1, len(files))
    return [files[first : first + step] for first in range(0, len(files), step)]


def _hashes(files: list[Path]) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in files if file.is_file() and not file.is_symlink()}


def _written(arrays: Arrays, corpus: Corpus, origin: Origin, to: Path, dtype: str | None) -> Store:
    """Write the arrays as a sealed store."""
    states: dict[str, Any] = {site: arrays.spool.column(column) for site, column in arrays.sites.items()}
    index, scope = {}, scope_of(origin.rows)
    if origin.format == "vllm":
        ids = arrays.spool.column(IDS[0]) if IDS[0] in arrays.spool else None
        refuse_uneven(arrays)
        made = request_rows(arrays.requests, ids, corpus, origin.rows, origin.tokenizer, origin.name)
        states = {site: Pooled(values, made.first, made.end) for site, values in states.items()}
        index, scope = dict(made.index), made.scope
    else:
        index = arrays.index()
    sizes = {site: len(values) for site, values in states.items()}
    if len(set(sizes.values())) > 1:
        raise BadParameter("sites with different numbers of rows", needed="one number", found=str(sizes)[:200])
    rows = match_rows(corpus, next(iter(sizes.values())), index, arrays.sentences, scope)
    stored = dtype or arrays.stored_dtype()
    if stored not in STATE_TYPES:
        raise BadParameter("unknown stored dtype", needed=", ".join(STATE_TYPES), found=repr(dtype))
    row_bytes = sum(values.shape[1] for values in states.values()) * ITEM_BYTES[stored]
    starts = shard_starts(corpus, rows.scope, row_bytes, SHARD_BYTES)
    identity = _identity(corpus, origin, rows, sorted(states, key=lambda s: Site.parse(s).order), stored, starts)
    marks = {"imported": {"from": origin.name, "format": origin.format, "provenance": UNKNOWN} | _said(arrays)}
    is_new = not to.exists()
    writer = StoreWriter.open(to, identity=identity, environment=environment() | marks)
    missing = writer.missing()
    writer.preflight(row_bytes * len(rows.columns["word"]) * len(missing) // max(1, len(starts)))
    try:
        for shard in missing:
            span = starts[shard], [*starts[1:], len(corpus)][shard]
            writer.commit(shard, shard_content(span, corpus, rows, states, arrays.sites, stored))
    except (NonFiniteStates, NotRepresentable):
        if is_new:  # no run could finish it, and the mended source, which is another, would be refused here
            shutil.rmtree(to)
        raise
    writer.seal()
    return Store.open(to)


def _said(arrays: Arrays) -> dict[str, Any]:
    """Return what an index says of itself, and what was not found in it."""
    gap = [_layers_said(arrays)] if arrays.missing_layers else []
    if not arrays.facts:
        return {"not_found": gap} if gap else {}
    said = arrays.facts.get("said")
    missing = gap
    missing += [] if arrays.facts.get("text") else ["texts: rows were taken to follow the corpus"]
    missing += [] if isinstance(said, dict) and any("model" in key for key in said) else ["the model's name"]
    return {"said": said, "not_found": missing}


def _layers_said(arrays: Arrays) -> str:
    numbers = arrays.missing_layers
    more = f" and {len(numbers) - _MOST_LAYERS} more" if len(numbers) > _MOST_LAYERS else ""
    return f"{'layer' if len(numbers) == 1 else 'layers'} {', '.join(map(str, numbers[:_MOST_LAYERS]))}{more}"


def _is_missing(arrays: Arrays) -> str:
    return "is missing" if len(arrays.missing_layers) == 1 else "are missing"


def _identity(
    corpus: Corpus, origin: Origin, rows: MatchedRows, sites: list[str], dtype: str, starts: tuple[int, ...]
) -> dict[str, Any]:
    source = ", ".join(Path(part.strip()).name for part in corpus.source.split(","))
    said = origin.rows if origin.rows and ":" in origin.rows else f"{rows.scope}:{UNKNOWN}"
    extraction = {"role": "states", "sites": sites, "dtype": dtype} | dict.fromkeys(
        ("batch_rule", "long_inputs", "max_length"), UNKNOWN
    )
    return origin.identity() | {
        "corpus": {"fingerprint": corpus.fingerprint, "source": source, "subset": None},
        "extraction": extraction | {"rows": "piece" if rows.scope == "piece" else said},
        "plan": {"starts": list(starts), "count": len(corpus)},
    }
