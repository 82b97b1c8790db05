"""The path of a newcomer: few functions lie between `train` and the solver of linear probes."""

from __future__ import annotations

import inspect
from types import FrameType
from typing import Any

import pytest

import probing as pb
from probing.probes import linear
from tests.samples.training_samples import word_corpus
from tests.training.test_training import tag_store

MOST = 7


def test_train_meets_its_solver_after_few_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks, solve = [], linear.solve

    def met(*given: Any) -> Any:
        frame: FrameType | None = inspect.currentframe()
        stack = []
        while frame := frame and frame.f_back:
            stack += [frame.f_code.co_name] if frame.f_globals["__name__"].startswith("probing.") else []
        stacks.append([*stack[::-1], "solve"])
        return solve(*given)

    monkeypatch.setattr(linear, "solve", met)
    corpus = word_corpus()
    pb.train(tag_store(corpus), corpus, task="upos", probes=["linear"], progress=False)
    assert stacks and "train" in stacks[0]
    assert len(stacks[0]) <= MOST, stacks[0]
