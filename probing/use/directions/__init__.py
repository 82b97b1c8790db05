"""Writes and reads directions, erasers and probes as files, which contain their description and verdict, and exports
them to other programs.
"""

from __future__ import annotations

from probing.use.directions.applying import AppliedDirection, apply_direction
from probing.use.directions.exporting import export_control_vector, export_directions, export_vectors
from probing.use.directions.files import caveat, read_directions, read_evidence, record_of, write_evidence
from probing.use.directions.fitting import Source, controls_of, directions, directions_of, eraser, probe, stratum_names
from probing.use.directions.record import Evidence, Header, Stated

__all__ = [
    "AppliedDirection",
    "Evidence",
    "Header",
    "Source",
    "Stated",
    "apply_direction",
    "caveat",
    "controls_of",
    "directions",
    "directions_of",
    "eraser",
    "export_control_vector",
    "export_directions",
    "export_vectors",
    "probe",
    "read_directions",
    "read_evidence",
    "record_of",
    "stratum_names",
    "write_evidence",
]
