"""Documentation names all there is."""

from __future__ import annotations

import re

import pytest

from probing import registry
from tests.conftest import ROOT

PAGE = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("decodability.md", "use.md"))
NAMED = set(re.findall(r"`([a-z0-9_]+)[`:]", PAGE))


@pytest.mark.parametrize(
    "folder", ["tasks", "probes", "controls", "measures", "analyses", "interventions", "behaviours"]
)
def test_every_member_is_explained(folder: str) -> None:
    own = {name for name in registry.names(folder) if name != "sklearn"}
    assert own - NAMED == set()
