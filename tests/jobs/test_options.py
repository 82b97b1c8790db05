"""Every option of a job reaches the function that does its work, or is named here as read by the job itself."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest

import probing as pb
from probing.jobs import ExtractJob, Job, TrainJob
from probing.jobs.cross import LeaveOneOutJob, TransferJob
from probing.jobs.inspect import InspectJob
from probing.jobs.patch import AblateJob, PatchJob
from probing.jobs.use import UseJob
from probing.use.edited_models.text import TextInstrument
from probing.use.effects import UseOptions
from probing.use.patching.prompt_pairs import patch_pairs

load = pb.LanguageModel.load
READ = {"corpus", "reader_options", "split_seed", "group", "to"}  # what a corpus is read with, and where results go
WORK: dict[type[Job], tuple[list[Callable[..., Any]], set[str]]] = {
    ExtractJob: ([pb.extract, load], {"store_dtype"}),
    TrainJob: ([pb.train], {"tasks"}),
    TransferJob: ([pb.transfer], set()),
    LeaveOneOutJob: ([pb.leave_one_out], set()),
    UseJob: ([pb.intervene, load, UseOptions], {"save_directions"}),
    InspectJob: ([pb.inspect, load], {"heads"}),
    PatchJob: ([patch_pairs, load], {"no_attribution", "spans", "title"}),
    AblateJob: ([TextInstrument.from_spans, load], {"by", "parts"}),
}


@pytest.mark.parametrize("job", WORK, ids=lambda job: job.__name__)
def test_every_option_reaches_what_does_the_work(job: type[Job]) -> None:
    functions, own = WORK[job]
    taken = {name for function in functions for name in signature(function).parameters}
    assert set(job.model_fields) <= taken | READ | own
    assert not own & taken


def test_options_are_given_by_their_names_and_an_empty_list_leaves_the_default() -> None:
    job = TransferJob(sources=["a=b", "c=d"], corpus=["a=x"], task="upos", to="r", seeds=3, measures=["accuracy"])
    given = job.given_to(pb.transfer)
    assert given["probes"] is None and given["measures"] == ["accuracy"] and given["seeds"] == 3
    assert set(given) == set(TransferJob.model_fields) & set(signature(pb.transfer).parameters)
    assert UseJob(tasks=["upos"], corpus=["x"], model="m", to="r").given_to(pb.intervene)["positions"] == []
