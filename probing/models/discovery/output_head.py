"""Finds which head a model has over the pieces that it reads."""

from __future__ import annotations

from torch import nn
from transformers.models.auto import modeling_auto


def head_kind(model: nn.Module, trunk: nn.Module) -> str | None:
    """Return `masked` or `causal` for a language-model head over the trunk's own positions; None: there is no such
    head.
    """
    name = type(model).__name__
    if model is trunk or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    if name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
        return "masked"
    causal = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return "causal" if any(name in names.values() for names in causal) else None
