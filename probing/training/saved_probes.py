"""Saved probes of a training run: what their files hold, how they are named, and why some are not saved."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from probing import registry
from probing.contracts.probe import Probe
from probing.errors import ProbingError
from probing.probes._estimator import ClassifierProbe
from probing.provenance import digest
from probing.results.probe import ProbeResult

_ABOUT = ("model", "rows", "corpus", "store_id", "content_id", "unit")


def with_saved_probe(
    result: ProbeResult, probe: Probe, about: Mapping[str, Any]
) -> tuple[ProbeResult, Mapping[str, bytes]]:
    """Return the result that says where its probe is saved, or why it is not, and the files of the probe by suffix.

    Args:
        result: of the probe.
        probe: its fit on the task with the first seed.
        about: what its card tells beside what the result does.
    """
    files, reason = _files(result, probe, about)
    told = {"saved": probe_name(result)} if files else {"saved": "", "not_saved": reason}
    return replace(result, provenance=result.provenance | told), files


def probe_name(result: ProbeResult) -> str:
    """Return `probes/TASK/SITE/PROBE/HASH` below the folder of the results, without suffix.

    The hash is that of everything that made the probe, so that no two probes have one file.
    """
    names = "/".join(map(_slug, (result.task, result.site, result.probe)))
    return f"probes/{names}/{str(result.provenance['unit'])[:32]}"


def _files(result: ProbeResult, probe: Probe, about: Mapping[str, Any]) -> tuple[Mapping[str, bytes], str]:
    kind = type(probe)
    if registry.name_of(kind) is None:
        return {}, f"{kind.__name__} is not registered as a probe here, so that nothing could load it"
    try:
        return _named(result, probe, about).saved(), ""
    except (ProbingError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        return {}, error.message if isinstance(error, ProbingError) else f"{kind.__name__}: {str(error)[:200]}"


def _named(result: ProbeResult, probe: Probe, about: Mapping[str, Any]) -> Probe:
    """Return a copy that gives labels by name, and says of what it is."""
    named = copy.copy(probe)
    named.about = {
        "task": result.task,
        "site": result.site,
        "probe": result.probe,
        "kind": result.kind,
        "labels": list(result.classes),
        **{name: result.provenance.get(name) for name in _ABOUT},
        **about,
    }
    if isinstance(named, ClassifierProbe) and result.kind == "classes":
        named.classes_ = np.array([result.classes[code] for code in _codes(named)], dtype=np.str_)
    return named


def _codes(probe: ClassifierProbe) -> list[int]:
    """Return the codes of the classes that a fitted probe knows, in the order of its columns."""
    codes: list[int] = np.asarray(probe.classes_, np.int64).tolist()
    return codes


def _slug(name: str) -> str:
    """Return a name as that of a folder; if it has other characters than letters, digits and `._=,-` it also gets a
    hash.
    """
    if re.fullmatch(r"(?!.*-[0-9a-f]{8}$)[A-Za-z0-9_=,-][A-Za-z0-9._=,-]{0,79}", name):
        return name
    plain = re.sub(r"[^A-Za-z0-9._=,-]+", "-", name).strip("-.")[:80]
    return f"{plain}-{digest(name)[:8]}".strip("-")
