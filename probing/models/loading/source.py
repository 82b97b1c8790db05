"""The source of a model, as plain values that another process can load the same model by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from probing.models.discovery.parts import Sides


@dataclass(frozen=True)
class ModelSource:
    """The arguments of `LanguageModel.load`; a folder is an absolute path, a hub revision the one that was loaded."""

    name: str
    device: str
    dtype: str
    attention: str | None
    kind: Literal["auto", "base", "causal", "masked"]
    padding_side: str | None
    revision: str | None
    untrained: int | None
    side: Sides | None
    by_blocks: bool
    allow_pickle_weights: bool

    def anywhere(self) -> ModelSource:
        """Return the source for a process that runs in another directory."""
        path = Path(self.name).expanduser()
        return replace(self, name=str(path.resolve()), revision=None) if path.is_dir() else self

    def for_worker(self, slot: int | None) -> ModelSource:
        """Return the source for one of several workers: with several GPUs, `cuda` means another GPU for each."""
        if self.device != "cuda" or slot is None or torch.cuda.device_count() < 2:
            return self
        return replace(self, device=f"cuda:{slot % torch.cuda.device_count()}")
