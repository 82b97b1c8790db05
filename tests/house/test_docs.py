"""Documentation names all there is."""

from __future__ import annotations

import re

import pytest

from probing import registry
from tests.conftest import ROOT

PAGES = ("decodability.md", "use.md")
PAGE = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in PAGES)
NAMED = set(re.findall(r"`([a-z0-9_]+)[`:]", PAGE))


@pytest.mark.parametrize(
    "folder", ["tasks", "probes", "controls", "measures", "analyses", "interventions", "behaviours"]
)
def test_every_member_is_explained(folder: str) -> None:
    own = {name for name in registry.names(folder) if name != "sklearn"}
    missing = sorted(own - NAMED)
    where = "in a row of docs/decodability.md (what belongs to use: docs/use.md)"
    assert not missing, f"write {where} what these {folder} are, and when they mislead: {missing}"
