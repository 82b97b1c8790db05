"""Probing classifiers with control tasks: what hidden states encode, told apart from what a probe can memorise.

Names are imported when first used, so that `import probing` is fast and loads neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probing.corpus import Corpus, Example
    from probing.errors import ProbingError
    from probing.extraction import extract
    from probing.extraction.replaying import Replay
    from probing.importing import import_states
    from probing.intervening.runs import intervene
    from probing.jobs import ExtractJob, ReportJob, TrainJob
    from probing.judging import judge
    from probing.language_model import LanguageModel
    from probing.probes._loading import load_probe
    from probing.records import ProbeResult, Score
    from probing.reporting import report
    from probing.site import Site
    from probing.store import Store
    from probing.study import Study
    from probing.training import train
    from probing.training.comparing import compare
    from probing.training.leaving_out import leave_one_out
    from probing.training.results import ProbeResults
    from probing.training.transferring import transfer
    from probing.use_jobs import UseJob
    from probing.use_run import UseRun
    from probing.verdict import Verdict

__version__ = "0.1.0"

_HOMES = {
    "Corpus": "corpus",
    "Example": "corpus",
    "ExtractJob": "jobs",
    "LanguageModel": "language_model",
    "ProbeResult": "records",
    "ProbeResults": "training.results",
    "ProbingError": "errors",
    "Replay": "extraction.replaying",
    "ReportJob": "jobs",
    "Score": "records",
    "Site": "site",
    "Store": "store",
    "Study": "study",
    "TrainJob": "jobs",
    "UseJob": "use_jobs",
    "UseRun": "use_run",
    "Verdict": "verdict",
    "compare": "training.comparing",
    "extract": "extraction",
    "import_states": "importing",
    "intervene": "intervening.runs",
    "judge": "judging",
    "leave_one_out": "training.leaving_out",
    "load_probe": "probes._loading",
    "report": "reporting",
    "train": "training",
    "transfer": "training.transferring",
}

__all__ = [
    "Corpus",
    "Example",
    "ExtractJob",
    "LanguageModel",
    "ProbeResult",
    "ProbeResults",
    "ProbingError",
    "Replay",
    "ReportJob",
    "Score",
    "Site",
    "Store",
    "Study",
    "TrainJob",
    "UseJob",
    "UseRun",
    "Verdict",
    "compare",
    "extract",
    "import_states",
    "intervene",
    "judge",
    "leave_one_out",
    "load_probe",
    "report",
    "train",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probing' has no attribute {name!r}")
    value = getattr(import_module(f"probing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
