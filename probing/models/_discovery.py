"""Finds the parts of a Transformer without knowing its family: the block list, the final norm, the embedding."""

from __future__ import annotations

from torch import nn

from probing.errors import UnsupportedModel

FINAL_NORMS = (
    "ln_f", "norm", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "layer_norm", "ln_final"
)  # fmt: skip


def find_trunk(model: nn.Module) -> nn.Module:
    """The part that makes states: the model without its head, or its encoder."""
    trunk: nn.Module = getattr(model, "base_model", model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder: nn.Module = trunk.get_encoder()  # type: ignore[operator]
        return encoder
    return trunk


def find_blocks(trunk: nn.Module, family: str) -> tuple[str, nn.ModuleList]:
    """The path and the list of blocks: the longest list of same-class modules that lies in no other such list.

    Raises:
        UnsupportedModel: there is none.
    """
    found: dict[str, nn.ModuleList] = {}
    for path, module in trunk.named_modules():
        nested = any(path.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1 and not nested:
            found[path] = module
    if not found:
        raise UnsupportedModel(
            f"models of the family {family!r} are not read", needed="a list of Transformer blocks",
            found=f"none in {type(trunk).__name__}", next_step="choose a Transformer encoder or decoder",
        )  # fmt: skip
    path = max(found, key=lambda name: len(found[name]))
    return path, found[path]


def find_final_norm(trunk: nn.Module, blocks_path: str) -> tuple[str, nn.Module] | None:
    """The norm beside the block list, known by its name; the self-check proves that it is the final one."""
    parent_path = blocks_path.rpartition(".")[0]
    for name, child in trunk.get_submodule(parent_path).named_children():
        if name in FINAL_NORMS and "norm" in type(child).__name__.lower():
            return f"{parent_path}.{name}" if parent_path else name, child
    return None


def first_tensor(output: object) -> object:
    """A block's hidden states: its output in recent transformers, the first of a tuple before."""
    return output[0] if isinstance(output, tuple) else output
