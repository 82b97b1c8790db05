"""Probing classifiers with control tasks, which separate what hidden states encode from what a probe memorises.

Names are imported when first used, so that `import probing` is fast and loads neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probing._renamed import find_old_names
from probing.provenance import __version__ as __version__

if TYPE_CHECKING:
    from probing.circuits import circuit
    from probing.dictionaries.contexts import top_contexts
    from probing.dictionaries.dictionary import Dictionary
    from probing.dictionaries.encoding import encode_states
    from probing.dictionaries.losses import check_dictionary
    from probing.dictionaries.training import train_dictionary
    from probing.errors import ProbingError
    from probing.inspecting import inspect
    from probing.jobs import ExtractJob, ReportJob, TrainJob
    from probing.jobs.callback import ProbingCallback
    from probing.jobs.study import Study
    from probing.jobs.use import UseJob
    from probing.lenses import lens
    from probing.models.language_model import LanguageModel
    from probing.models.site import Site
    from probing.probes._estimator import load_probe
    from probing.reporting import report
    from probing.results.circuit import CircuitResult
    from probing.results.inspection import Inspection
    from probing.results.lens import LensResult
    from probing.results.probe import ProbeResult, Score
    from probing.scoring import score
    from probing.scoring.scores import TextScores
    from probing.scoring.steering import steer, steering_report
    from probing.scoring.watching import watch
    from probing.similarities import similarity
    from probing.states.extraction import extract
    from probing.states.extraction.replaying import Replay
    from probing.states.importing import import_states
    from probing.states.store import Store
    from probing.statistics.thresholds import choose_threshold
    from probing.text.corpus import Corpus, Example
    from probing.training import train
    from probing.training.arrays import probe
    from probing.training.comparing import compare
    from probing.training.leaving_out import leave_one_out
    from probing.training.results import ProbeResults
    from probing.training.transferring import transfer
    from probing.use.directions import apply_direction, export_directions, read_directions
    from probing.use.run import intervene
    from probing.verdicts.judging import judge
    from probing.verdicts.verdict import UseRun, Verdict

_HOMES = {
    "CircuitResult": "results.circuit",
    "Corpus": "text.corpus",
    "Dictionary": "dictionaries.dictionary",
    "Example": "text.corpus",
    "ExtractJob": "jobs",
    "Inspection": "results.inspection",
    "LanguageModel": "models.language_model",
    "LensResult": "results.lens",
    "ProbeResult": "results.probe",
    "ProbeResults": "training.results",
    "ProbingCallback": "jobs.callback",
    "ProbingError": "errors",
    "Replay": "states.extraction.replaying",
    "ReportJob": "jobs",
    "Score": "results.probe",
    "Site": "models.site",
    "Store": "states.store",
    "Study": "jobs.study",
    "TextScores": "scoring.scores",
    "TrainJob": "jobs",
    "UseJob": "jobs.use",
    "UseRun": "verdicts.verdict",
    "Verdict": "verdicts.verdict",
    "apply_direction": "use.directions",
    "check_dictionary": "dictionaries.losses",
    "choose_threshold": "statistics.thresholds",
    "circuit": "circuits",
    "compare": "training.comparing",
    "encode_states": "dictionaries.encoding",
    "export_directions": "use.directions",
    "extract": "states.extraction",
    "import_states": "states.importing",
    "inspect": "inspecting",
    "intervene": "use.run",
    "judge": "verdicts.judging",
    "leave_one_out": "training.leaving_out",
    "lens": "lenses",
    "load_probe": "probes._estimator",
    "probe": "training.arrays",
    "read_directions": "use.directions",
    "report": "reporting",
    "score": "scoring",
    "similarity": "similarities",
    "steer": "scoring.steering",
    "steering_report": "scoring.steering",
    "top_contexts": "dictionaries.contexts",
    "train": "training",
    "train_dictionary": "dictionaries.training",
    "transfer": "training.transferring",
    "watch": "scoring.watching",
}

__all__ = [
    "CircuitResult",
    "Corpus",
    "Dictionary",
    "Example",
    "ExtractJob",
    "Inspection",
    "LanguageModel",
    "LensResult",
    "ProbeResult",
    "ProbeResults",
    "ProbingCallback",
    "ProbingError",
    "Replay",
    "ReportJob",
    "Score",
    "Site",
    "Store",
    "Study",
    "TextScores",
    "TrainJob",
    "UseJob",
    "UseRun",
    "Verdict",
    "apply_direction",
    "check_dictionary",
    "choose_threshold",
    "circuit",
    "compare",
    "encode_states",
    "export_directions",
    "extract",
    "import_states",
    "inspect",
    "intervene",
    "judge",
    "leave_one_out",
    "lens",
    "load_probe",
    "probe",
    "read_directions",
    "report",
    "score",
    "similarity",
    "steer",
    "steering_report",
    "top_contexts",
    "train",
    "train_dictionary",
    "transfer",
    "watch",
]

find_old_names()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probing' has no attribute {name!r}")
    value = getattr(import_module(f"probing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
