"""What other libraries read of a model by lenses, written as `columns.npz` for tests to compare with.

    python -m tests.lenses.library_lenses LIBRARY MODEL TO

TO holds `ids.json`, token ids of texts. The libraries run the model of the folder MODEL and give logits of every state;
KL, cross-entropy and ranks are computed of these here, in float64 and by their definitions.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

QUANTITIES = ("kl", "cross_entropy", "rank_of_final", "rank_of_true")


def columns(logits: Tensor, final: Tensor, ids: Sequence[int]) -> np.ndarray:
    """Return the quantities `(T - 1, 4)` of logits `(T, V)` of a lens, beside those of the model, in bits."""
    q, p = (values[:-1].double().log_softmax(-1) for values in (logits, final))
    places, true = torch.arange(len(ids) - 1), torch.tensor(list(ids[1:]))
    top = p.argmax(-1)
    kl = (p.exp() * (p - q)).sum(-1) / math.log(2)
    cross = -q[places, true] / math.log(2)
    ranks = [1.0 + (q > q[places, token][:, None]).sum(-1) for token in (top, true)]
    return torch.stack([kl, cross, *ranks], -1).numpy()


def write(to: Path, name: str, read: Callable[[Tensor], tuple[Sequence[Tensor], Tensor]]) -> None:
    """Write what `read` gives of each text, as arrays `(S, T - 1, 4)`: logits of every site, and the model's own."""
    texts = json.loads((to / "ids.json").read_text(encoding="utf-8"))
    found = {}
    for number, ids in enumerate(texts):
        sites, final = read(torch.tensor([ids]))
        found[str(number)] = np.stack([columns(site, final, ids) for site in sites])
    np.savez(to / f"{name}.npz", **found)


def transformer_lens(model: Path, to: Path) -> None:
    """The logit lens by its hooks, its last norm and its unembedding, of weights as they are."""
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config
    from transformer_lens.pretrained import weight_conversions
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    config = get_pretrained_model_config(str(model), dtype=torch.float32, device="cpu")  # of a folder, not by name
    hooked: Any = HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(model))
    convert = getattr(weight_conversions, f"convert_{source.config.model_type}_weights")
    as_it_is = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    hooked.load_and_process_state_dict(convert(source, config), **as_it_is)

    def read(ids: Tensor) -> tuple[list[Tensor], Tensor]:
        final, cache = hooked.run_with_cache(ids, prepend_bos=False)
        states = [cache["resid_pre", layer] for layer in range(hooked.cfg.n_layers)]
        states.append(cache["resid_post", hooked.cfg.n_layers - 1])
        return [hooked.unembed(hooked.ln_final(state))[0] for state in states], final[0]

    write(to, "logit", read)


def tuned_lens(model: Path, to: Path) -> None:
    """Its logit lens, and a tuned lens with random translators, which it saves in the folder `tuned`."""
    from transformers import AutoModelForCausalLM
    from tuned_lens import TunedLens
    from tuned_lens.nn.lenses import LogitLens

    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tuned, generator = TunedLens.from_model(source), torch.Generator().manual_seed(5)
    for value in tuned.layer_translators.parameters():
        value.data.copy_(torch.randn(value.shape, generator=generator) * 0.3 / value.shape[-1] ** 0.5)
    tuned.save(to / "tuned")
    for name, lens in (("logit", LogitLens.from_model(source)), ("tuned", tuned)):

        def read(ids: Tensor, lens: Any = lens) -> tuple[list[Tensor], Tensor]:
            run = source(ids, output_hidden_states=True)
            states = run.hidden_states[:-1]  # the last is after the final norm
            return [lens(state, idx=layer)[0] for layer, state in enumerate(states)], run.logits[0]

        write(to, name, read)


if __name__ == "__main__":
    with torch.no_grad():
        {"transformer_lens": transformer_lens, "tuned_lens": tuned_lens}[sys.argv[1]](
            Path(sys.argv[2]), Path(sys.argv[3])
        )
