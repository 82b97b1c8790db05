"""Defines `CorpusReader`, the base class of readers, which make a corpus from a file or a hub data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from probing.text.corpus import Corpus


class CorpusReader(ABC):
    """Base class of readers: each reads files (or hub data sets) of one format into a corpus.

    Class attributes:
        suffixes: endings of the names of its files, such as `.jsonl`; empty for a reader that reads no files.
        numbers_documents_by_file: whether ids of documents are numbers that begin anew in each file, so that equal ids
            in two files are two documents.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    numbers_documents_by_file: ClassVar[bool] = False  # True: document 1 of two files need not be one document

    @abstractmethod
    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """Read all examples of `source` and return the corpus.

        Args:
            source: path of the file, or name of the data set.
            split: name of the split that all examples are assigned to; "" means the splits that the source names, or
                `train` if it names none.
            options: options of the reader by name, as texts; the class lists them.

        Raises:
            CorpusError: the file is missing, malformed or empty; the message names file and line.
            BadParameter: the reader has no such option.
        """
