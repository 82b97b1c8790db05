"""Where a model came from, as plain values that another process can load the same model by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch


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

    @classmethod
    def of(
        cls, name: str, device: str, dtype: str, attention: str | None,
        kind: Literal["auto", "base", "causal", "masked"], padding_side: str | None, revision: str | None,
        untrained: int | None,
    ) -> ModelSource:  # fmt: skip
        """From what `load` was given, and the revision that it found."""
        path = Path(name).expanduser()
        if path.is_dir():
            name, revision = str(path.resolve()), None
        return cls(name, device, dtype, attention, kind, padding_side, revision, untrained)

    def for_worker(self, slot: int | None) -> ModelSource:
        """The same for one of several workers: where there are several GPUs, `cuda` means another one for each."""
        if self.device != "cuda" or slot is None or torch.cuda.device_count() < 2:
            return self
        return replace(self, device=f"cuda:{slot % torch.cuda.device_count()}")
