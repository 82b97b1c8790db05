"""Saved probes of every kind, written once and kept for ever, load and predict what they did."""

from __future__ import annotations

import json

import pytest

import probing as pb
from probing import registry
from tests.golden_probes import FOLDER, OTHERS, fitted, kinds, predictions


@pytest.mark.parametrize("name", sorted(kinds()))
def test_a_golden_probe_predicts_what_it_did(name: str) -> None:
    missing = [end for end in (".safetensors", ".json", ".predictions") if not (FOLDER / f"{name}{end}").is_file()]
    assert not missing, f"tests/golden_probes lacks {name}{missing[0]}: run python scripts/make_golden_probes.py once"
    assert predictions(pb.load_probe(FOLDER / name)) == json.loads((FOLDER / f"{name}.predictions").read_text())


@pytest.mark.parametrize("name", sorted(kinds()))
def test_a_card_names_the_probe_as_it_is_registered_whatever_file_it_lies_in(name: str) -> None:
    card = json.loads(fitted(kinds()[name]).saved()[".json"])
    assert card["probe"] == "probes:" + name.replace(".", "/") and "class" not in card


def test_every_registered_class_has_one_name_and_its_name_gives_the_class() -> None:
    found = []
    for folder in registry.FOLDERS:
        for member in registry.names(folder):
            module = registry.get(folder, member)
            for role in registry.ROLES.values():
                kind = getattr(module, role, None)
                if isinstance(kind, type):
                    name = registry.name_of(kind)
                    assert name is not None and name.startswith(f"{folder}:{member}")
                    assert registry.class_of(name, folder) is kind and registry.member_name(kind) == member
                    found.append(name)
    assert len(found) == len(set(found)) > 60
    assert {name.split(".")[0] for name in kinds()}.isdisjoint(OTHERS)


def test_a_class_that_is_not_registered_has_no_name_and_no_name_gives_one() -> None:
    class Mine:
        pass

    assert registry.name_of(Mine) is None and registry.member_name(Mine) == "Mine"
    for name in ("probes:linear/regression", "probes:none", "tasks:upos", "os:path", "linear", "probes:../linear", ""):
        assert registry.class_of(name, "probes") is None
