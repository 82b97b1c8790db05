"""Resuming with other libraries: refused by name, or allowed, recorded with each shard and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.errors import ProvenanceMismatch
from probing.states.extraction import extract
from probing.states.store import StoreWriter, merge, store_info
from probing.states.store.format import parse_signed, signed_json
from tests.samples import store_samples as sample
from tests.samples.tiny_models import corpus_of, language_model


def environment(torch: str = "2.12.1+cpu", transformers: str = "5.10.2", device: str = "cpu") -> dict[str, Any]:
    return {"versions": {"torch": torch, "transformers": transformers, "numpy": "2.1"}, "device": device}


def opened(path: Path, *, allow: bool = False, **versions: str) -> StoreWriter:
    return StoreWriter.open(
        path, identity=sample.identity(), environment=environment(**versions), allow_mixed_environment=allow
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    opened(tmp_path / "store").commit(0, sample.content(0))
    return tmp_path / "store"


@pytest.mark.parametrize(("library", "version"), [("torch", "2.13.0"), ("torch", "3.12.1"), ("transformers", "5.11.0")])
def test_another_minor_version_is_refused_by_name(begun: Path, library: str, version: str) -> None:
    before = {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()}
    with pytest.raises(ProvenanceMismatch, match="--allow-mixed-environment") as caught:
        opened(begun, **{library: version})
    assert caught.value.found == f"{library} {version[: version.rindex('.')]}"
    assert before == {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()}


def test_another_patch_or_build_goes_on(begun: Path) -> None:
    assert opened(begun, torch="2.12.9", transformers="5.10.0").missing() == [1, 2]
    assert StoreWriter.open(begun, identity=sample.identity(), environment={}).missing() == [1, 2]


def test_where_allowed_each_shard_records_its_own_and_info_shows_all(begun: Path) -> None:
    writer = opened(begun, allow=True, torch="2.13.0", device="cuda")
    for shard in writer.missing():
        writer.commit(shard, sample.content(shard))
    writer.seal()
    assert store_info(begun)["environments"] == [
        "2 shards: torch 2.13.0; transformers 5.10.2; device cuda",
        "1 shard: torch 2.12.1+cpu; transformers 5.10.2; device cpu",
    ]
    shown = CliRunner().invoke(app, ["store", "info", str(begun)]).output
    assert "torch 2.13.0" in shown and "torch 2.12.1+cpu" in shown


def test_a_finished_store_opens_with_any_versions(tmp_path: Path) -> None:
    sample.write(tmp_path / "store")
    assert opened(tmp_path / "store", torch="9.9.9").missing() == []


def test_parts_made_with_different_versions_merge_and_keep_their_records(begun: Path, tmp_path: Path) -> None:
    writer = opened(tmp_path / "other", torch="2.13.0")
    for shard in (1, 2):
        writer.commit(shard, sample.content(shard))
    assert merge(begun, tmp_path / "other") == [1, 2]
    assert [line.split(";")[0] for line in store_info(begun)["environments"]] == [
        "2 shards: torch 2.13.0",
        "1 shard: torch 2.12.1+cpu",
    ]


def test_extraction_resumes_with_other_versions_only_if_told_to(tmp_path: Path) -> None:
    corpus = corpus_of(*(f"the thing being {n} the" for n in range(12)))
    chosen: dict[str, Any] = {"to": tmp_path / "store", "shard_bytes": 1200, "progress": False}
    part = extract(language_model("gpt2"), corpus, array_size=2, **chosen)
    assert 0 < part.shards_done < part.shards_planned
    header = parse_signed((tmp_path / "store" / "store.json").read_bytes())
    older = environment(torch="1.13.0")
    (tmp_path / "store" / "store.json").write_bytes(signed_json({**header, "environment": older}))
    with pytest.raises(ProvenanceMismatch, match=r"torch 1\.13"):
        extract(language_model("gpt2"), corpus, **chosen)
    whole = extract(language_model("gpt2"), corpus, allow_mixed_environment=True, **chosen)
    assert whole.shards_done == whole.shards_planned


def test_the_flag_is_an_option_of_extract() -> None:
    assert "--allow-mixed-environment" in CliRunner().invoke(app, ["extract", "--help"], env={"COLUMNS": "200"}).output
