"""Names of places in a model as other libraries write them, and our site of the same states."""

from __future__ import annotations

import re

from probing.errors import UnknownSite
from probing.models.site import Site

_BLOCK = r"(?:(?:[a-z_0-9]+\.)*?)(?:layers|h|block|blocks|layer)[._](?P<layer>\d+)"
# TransformerLens counts blocks from 0: `hook_resid_post` of block l is what enters block l + 1.
_HOOKS = (
    (r"(?:model\.)?blocks\.(?P<layer>\d+)\.hook_resid_pre", "resid", 0),
    (r"(?:model\.)?blocks\.(?P<layer>\d+)\.hook_resid_post", "resid", 1),
    (r"(?:model\.)?blocks\.(?P<layer>\d+)\.hook_mlp_out", "mlp_out", 0),
    (r"(?:model\.)?blocks\.(?P<layer>\d+)\.hook_attn_out", "attn_out", 0),
    (r"(?:model\.)?blocks\.(?P<layer>\d+)\.attn\.hook_z", "heads", 0),
    (r"hook_embed", "embed", None),
    (r"ln_final\.hook_normalized", "final_norm", None),
    # Modules of Hugging Face models, whose output is meant unless another is named.
    (_BLOCK + r"(?:\.output)?", "resid", 1),
    (_BLOCK + r"\.input", "resid", 0),
    (_BLOCK + r"[._](?:mlp|feed_forward|ffn)(?:\.output)?", "mlp_out", 0),
    (_BLOCK + r"[._](?:self_attn|attn|attention)(?:\.output)?", "attn_out", 0),
    (_BLOCK + r"\.post_feedforward_layernorm(?:\.output)?", "mlp_out", 0),
    (_BLOCK + r"\.self_attn\.o_proj\.input", "heads", 0),
    (r"(?:[a-z_0-9]+\.)*(?:embed_tokens|wte|embed_in|word_embeddings)(?:\.output)?", "embed", None),
)
_POST_NORM = re.compile(r"gemma-?[23]|olmo-?2", re.IGNORECASE)


def site_of(hook: str | None, model: str | None = None) -> str | None:
    """Return our name of the states at a hook or module of another library; None if they have no name here.

    The output of an MLP or attention module is what the sublayer adds to the residual stream only where no norm
    follows it; of models with such a norm (Gemma 2 and 3, OLMo 2) only the norm's output has a name here.

    Args:
        hook: a hook of TransformerLens, such as `blocks.3.hook_resid_post`, or a module, such as `layers.3.mlp`.
        model: name of the model, if it is known.
    """
    for pattern, stream, shift in _HOOKS:
        match = re.fullmatch(pattern, hook or "")
        if match is None:
            continue
        is_module = stream in ("mlp_out", "attn_out") and not re.search(r"hook_|post_feedforward", hook or "")
        if is_module and _POST_NORM.search(model or ""):
            return None
        site = stream if shift is None else f"{stream}.{int(match['layer'][:6]) + shift}"
        try:
            return str(Site.parse(site))
        except UnknownSite:
            return None
    return None
