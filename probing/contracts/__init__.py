"""Defines the abstract classes that extensions implement (contracts), one per file. Read this folder first.

Letters in shapes: N rows (labelled words or sentences, one state each), D width of a state, K classes, V numbers of a
behaviour (or size of the vocabulary), S sentences or other clusters, T tokens, L layers, B texts of a batch, M sets of
labels, R resamples. An extension (a member) is one file in the folder of its kind, which assigns its class to `MEMBER`.
The classes are imported when first used, so that a worker process can import `executor.py` without heavy libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probing.contracts.analysis import Analysis
    from probing.contracts.behaviour import Behaviour, Readout
    from probing.contracts.control import Control, StateControl, StateSource
    from probing.contracts.edited_model import Instrument
    from probing.contracts.executor import Executor, Worker
    from probing.contracts.intervention import Edit, Intervention
    from probing.contracts.lens import Lens
    from probing.contracts.measure import Measure, Prediction
    from probing.contracts.probe import Probe, RowBlocks
    from probing.contracts.reader import CorpusReader
    from probing.contracts.task import Task

_HOMES = {
    "Analysis": "analysis",
    "Behaviour": "behaviour",
    "Control": "control",
    "CorpusReader": "reader",
    "Edit": "intervention",
    "Executor": "executor",
    "Instrument": "edited_model",
    "Intervention": "intervention",
    "Lens": "lens",
    "Measure": "measure",
    "Prediction": "measure",
    "Probe": "probe",
    "Readout": "behaviour",
    "RowBlocks": "probe",
    "StateControl": "control",
    "StateSource": "control",
    "Task": "task",
    "Worker": "executor",
}

__all__ = [
    "Analysis",
    "Behaviour",
    "Control",
    "CorpusReader",
    "Edit",
    "Executor",
    "Instrument",
    "Intervention",
    "Lens",
    "Measure",
    "Prediction",
    "Probe",
    "Readout",
    "RowBlocks",
    "StateControl",
    "StateSource",
    "Task",
    "Worker",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probing.contracts' has no attribute {name!r}")
    return getattr(import_module(f"probing.contracts.{_HOMES[name]}"), name)
