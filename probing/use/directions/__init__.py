"""Directions, erasers and probes in files that describe themselves and their results; no export without its verdict."""

from __future__ import annotations

from probing.use.directions.exporting import export_control_vector, export_vectors
from probing.use.directions.files import read_evidence, write_evidence
from probing.use.directions.fitting import Source, controls_of, directions, directions_of, eraser, probe, stratum_names
from probing.use.directions.record import Evidence, Header, Stated

__all__ = [
    "Evidence",
    "Header",
    "Source",
    "Stated",
    "controls_of",
    "directions",
    "directions_of",
    "eraser",
    "export_control_vector",
    "export_vectors",
    "probe",
    "read_evidence",
    "stratum_names",
    "write_evidence",
]
