"""Defines `CorpusReader`, the base class of readers, which make a corpus from a file or a hub data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from probing.text.corpus import Corpus


class CorpusReader(ABC):
    """Base class of readers: each reads files (or hub data sets) of one format into a corpus."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    numbers_documents_by_file: ClassVar[bool] = False  # True: document 1 of two files need not be one document

    @abstractmethod
    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """Read all examples of `source` into a corpus and assign them to `split`; if that is "", to the splits that the
        source names, or to `train` if it names none.

        Raises:
            CorpusError: the file is missing, malformed or empty; the message names file and line.
        """
