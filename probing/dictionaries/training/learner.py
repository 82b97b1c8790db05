"""Does the steps of training a TopK or BatchTopK dictionary. B rows of a step, D width, M latents, n active values.

Only the k active latents of a row enter its reconstruction, so decoding and all gradients are sums over these k rows of
the decoder, not products of whole matrices; the one large product is that of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize, pad

_GROUP = 16  # latents whose largest value is taken before latents are compared one by one
_SURE = 0.9  # of the threshold of the step before: values below are not looked at
_BETAS = (0.9, 0.999)
AUX_WEIGHT = 1 / 32  # of the auxiliary loss (Gao et al. 2024, Appendix A.2)
_LIFT = 4.0  # of a bias of a dead latent, in root mean squares of the gradients of all biases
_AUX_ROWS = 1024  # rows of a step that the auxiliary loss is computed on


@dataclass(frozen=True)
class Active:
    """Holds the n active latents of B rows, by rows.

    Attributes:
        columns: `(n,)` latents.
        values: `(n,)` their values, positive or 0.
        starts: `(B,)` index of the first of each row.
    """

    columns: Tensor
    values: Tensor
    starts: Tensor

    @property
    def rows(self) -> Tensor:
        """Row of each value, `(n,)`."""
        counts = torch.diff(self.starts, append=self.starts.new_tensor([len(self.columns)]))
        return torch.repeat_interleave(counts)


class Learner:
    """Holds a dictionary in training, for states that are centred and scaled to a mean square of 1 a coordinate.

    The loss is the mean squared error, plus (weighted) that of what is left over by the latents that have been inactive
    for long, of which each row takes the `aux_k` largest (Gao et al. 2024, §2.4). Directions of the decoder have norm
    1; AdamW moves them along the sphere.

    Attributes:
        encoder, decoder: `(M, D)`.
        encoder_bias: `(M,)`; `decoder_bias`: `(D,)`.
        idle: `(M,)` rows seen since each latent was last active.
        threshold: least value that was active in the last step (BatchTopK).
    """

    def __init__(
        self, decoder: Tensor, *, k: int, per_row: bool, idle_after: int, rate: float, low_precision: bool
    ) -> None:
        """Begin with an encoder that is the decoder, transposed.

        Args:
            decoder: `(M, D)` first directions.
            k: active latents of a row, in the mean over a step if not `per_row`.
            per_row: whether every row has k (TopK), or all rows together k times their number (BatchTopK).
            idle_after: number of rows after which an inactive latent is counted among the dead.
            rate: learning rate of AdamW.
            low_precision: whether the encoder's product is computed in bfloat16.
        """
        self.decoder = normalize(decoder, dim=1)
        self.encoder = self.decoder.clone()
        latents, width = decoder.shape
        self.encoder_bias, self.decoder_bias = decoder.new_zeros(latents), decoder.new_zeros(width)
        self.idle = torch.zeros(latents, dtype=torch.int64, device=decoder.device)
        self.threshold = 0.0
        self._k, self._per_row, self._idle_after, self._low = k, per_row, idle_after, low_precision
        self._aux_k = min(512, width // 2, latents)
        self._optimizer = torch.optim.AdamW(self._weights, lr=rate, betas=_BETAS, weight_decay=0.0, fused=True)
        self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient

    @property
    def _weights(self) -> list[Tensor]:
        return [self.encoder, self.decoder, self.encoder_bias, self.decoder_bias]

    def pre_activations(self, centred: Tensor) -> Tensor:
        """Return `(B, M)` values before latents are chosen, in bfloat16 or float32."""
        if self._low:
            return torch.addmm(self.encoder_bias.bfloat16(), centred.bfloat16(), self.encoder.bfloat16().T)
        return torch.addmm(self.encoder_bias, centred, self.encoder.T)

    def choose(self, pre: Tensor) -> Active:
        """Return the active latents of pre-activations `(B, M)`."""
        return per_row(pre, self._k) if self._per_row else self._over_batch(pre)

    def _over_batch(self, pre: Tensor) -> Active:
        wanted = self._k * len(pre)
        flat, columns, rows = above(pre, _SURE * self.threshold)
        for share in (_SURE / 2, 0.0):
            if len(flat) < wanted and self.threshold > 0:
                flat, columns, rows = above(pre, share * self.threshold)
        if len(flat) > wanted:
            chosen = flat.topk(wanted, sorted=False).indices.sort().values
            flat, columns, rows = flat[chosen], columns[chosen], rows[chosen]
        self.threshold = float(flat.amin()) if len(flat) else 0.0
        counts = torch.bincount(rows, minlength=len(pre))
        return Active(columns, flat.float(), counts.cumsum(0) - counts)

    def step(self, states: Tensor, rate: float) -> float:
        """Do a step on states `(B, D)` at a learning rate, and return the mean squared error a coordinate."""
        centred = states - self.decoder_bias
        pre = self.pre_activations(centred)
        active = self.choose(pre)
        values = active.values.requires_grad_()
        with torch.enable_grad():
            made = embedding_bag(active.columns, self.decoder, active.starts, mode="sum", per_sample_weights=values)
        error = made.detach() - centred
        (slopes,) = torch.autograd.grad(made, values, error)
        self._add_gradients(active, slopes, centred, error)
        self.idle += len(states)
        self.idle[torch.bincount(active.columns, minlength=len(self.idle)) > 0] = 0
        dead = torch.nonzero(self.idle > self._idle_after)[:, 0]
        if len(dead):
            self._add_auxiliary(dead, pre, centred, error)
        self._move(rate)
        return float(error.square().mean())

    def _add_gradients(self, active: Active, slopes: Tensor, centred: Tensor, error: Tensor) -> None:
        """Put the gradients of half the summed squared error in place."""
        order = torch.argsort(active.columns, stable=True)
        counts = torch.bincount(active.columns, minlength=len(self.idle))
        starts, rows = counts.cumsum(0) - counts, active.rows[order]
        values, slopes = active.values.detach()[order], torch.where(active.values.detach() > 0, slopes, 0.0)
        slopes = slopes[order]
        gradients = self._gradients
        gradients[0].copy_(embedding_bag(rows, centred, starts, mode="sum", per_sample_weights=slopes))
        gradients[1].copy_(embedding_bag(rows, error, starts, mode="sum", per_sample_weights=values))
        gradients[2].zero_().index_add_(0, active.columns[order], slopes)
        torch.sub(error.sum(0), gradients[2] @ self.encoder, out=gradients[3])

    def _add_auxiliary(self, dead: Tensor, pre: Tensor, centred: Tensor, error: Tensor) -> None:
        """Add the gradients of the auxiliary loss: dead latents reconstruct what the others left over."""
        left, rows = -error[:_AUX_ROWS], centred[:_AUX_ROWS]
        values = pre[: len(left), dead].float().relu_()
        if len(dead) > self._aux_k:
            least = values.topk(self._aux_k, dim=1, sorted=False).values.amin(1, keepdim=True)
            values = torch.where(values >= least, values, 0.0)
        directions = self.decoder[dead]
        wrong = torch.addmm(-left, values, directions)
        # The losses are relative to the variances of what they reconstruct, so that the weight means the same.
        weight = AUX_WEIGHT * float(centred.square().mean() / left.square().mean().clamp_min(1e-12))
        wrong *= weight * len(error) / len(left)
        slopes = torch.where(values > 0, wrong @ directions.T, 0.0)
        gradients = self._gradients
        gradients[0].index_add_(0, dead, slopes.T @ rows)
        gradients[1].index_add_(0, dead, values.T @ wrong)
        gradients[2].index_add_(0, dead, slopes.sum(0))
        # Where the values of a dead latent are all negative, no error reaches it: its bias rises until one is not.
        gradients[2][dead] -= _LIFT * gradients[2].square().mean().sqrt()

    def _move(self, rate: float) -> None:
        slopes = self._gradients[1]
        slopes.addcmul_((slopes * self.decoder).sum(1, keepdim=True), self.decoder, value=-1.0)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self.decoder.copy_(normalize(self.decoder, dim=1))

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors from which training goes on."""
        names = ("encoder", "decoder", "encoder_bias", "decoder_bias")
        own = dict(zip(names, self._weights, strict=True)) | {"idle": self.idle}
        for name, weight in zip(names, self._weights, strict=True):
            state = self._optimizer.state.get(weight, {})
            own |= {f"{name}.{part}": value for part, value in state.items() if isinstance(value, Tensor)}
        return own | {"threshold": torch.tensor(self.threshold, dtype=torch.float64)}

    def take_up(self, tensors: Mapping[str, Tensor]) -> Self:
        """Go on from tensors that `tensors` returned, and return the learner."""
        for name, weight in zip(("encoder", "decoder", "encoder_bias", "decoder_bias"), self._weights, strict=True):
            weight.copy_(tensors[name])
            parts = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
            self._optimizer.state[weight] = {part: value.clone() for part, value in parts.items()}
        self.idle.copy_(tensors["idle"])
        self.threshold = float(tensors["threshold"])
        return self


def per_row(pre: Tensor, k: int) -> Active:
    """Return the k largest values of each row `(B, M)`, as 0 where they are negative.

    The k largest values of a row are in the k groups of latents whose largest values are largest; so the groups are
    compared first.
    """
    count, latents = pre.shape
    groups = -(-latents // _GROUP)
    if groups <= 2 * k:
        values, columns = pre.topk(min(k, latents), dim=1, sorted=False)
    else:
        split = _grouped(pre, groups)
        best = split.amax(1).topk(k, dim=1, sorted=False).indices
        among = split.gather(2, best[:, None].expand(-1, _GROUP, -1)).flatten(1)
        values, places = among.topk(k, dim=1, sorted=False)
        columns = (places // k) * groups + best.gather(1, places % k)
    columns, order = columns.sort(dim=1)
    values = values.gather(1, order).float().relu_()
    starts = torch.arange(0, count * columns.shape[1], columns.shape[1], device=pre.device)
    return Active(columns.flatten(), values.flatten(), starts)


def above(pre: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values of `(B, M)` above a number that is not negative, with their columns and rows, by rows."""
    groups = -(-pre.shape[1] // _GROUP)
    split = _grouped(pre, groups)
    rows, group = torch.nonzero(split.amax(1) > least, as_tuple=True)
    among = split[rows, :, group]
    place, member = torch.nonzero(among > least, as_tuple=True)
    rows, columns, values = rows[place], member * groups + group[place], among[place, member]
    order = torch.argsort(rows * (groups * _GROUP) + columns)
    return values[order], columns[order], rows[order]


def _grouped(pre: Tensor, groups: int) -> Tensor:
    """Return `(B, 16, groups)`: latent j is at `[j // groups, j % groups]`; missing latents are minus infinity."""
    missing = groups * _GROUP - pre.shape[1]
    return (pad(pre, (0, missing), value=-torch.inf) if missing else pre).view(len(pre), _GROUP, groups)
