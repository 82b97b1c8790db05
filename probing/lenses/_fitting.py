"""Trains translators h + A h + b by KL to the model's final output. N rows, D width, V ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from probing.errors import DegenerateDesign
from probing.files.whole_files import write_atomically
from probing.lenses._reading import FinalOutputs, Tail, TokenRows, fast, parts, states_of
from probing.lenses.jacobian import frozen
from probing.lenses.tuned import TunedLens
from probing.models.language_model import LanguageModel
from probing.provenance import digest
from probing.seeds import child_seed

Kind = Literal["affine", "bias"]
STARTS = (0.003, 0.03, 0.3)  # shrinkage of the least-squares starts towards the identity
CONSTANTS = (0.3, 3.0, 30.0)  # and towards the mean last state: what a state does not tell would only add noise
_FLOOR = 1e-2  # of the median variance: directions of less are not blown up to 1
_STATE = ("training.json", "training.safetensors")
_GAIN = 1e-3  # least relative fall of the KL on dev for which training goes on


@dataclass(frozen=True)
class FitOptions:
    """Options of training.

    Attributes:
        epochs: largest number of passes over the rows.
        batch: rows of a step.
        rate: how far the first steps of AdamW may move a state, relative to the size of a final state. The learning
            rate is `rate` / D for the matrix, since all D whitened features of a state may move it the same way, and
            a tenth of `rate` for the bias; both fall linearly to 0.
        decay: weight decay of AdamW, towards the identity.
        seed: seed of the order of rows.
    """

    epochs: int = 2
    batch: int = 128
    rate: float = 0.1
    decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FitStates:
    """Holds the states that lenses are trained on.

    Attributes:
        sites: states by site, each `(N, D)` float32, of the model itself or of its untrained twin.
        last: `(N, D)` states of the model at its last site, which give the final outputs.
        train: number of rows that are trained on; the others, of other texts, end the training.
    """

    sites: dict[str, Tensor]
    last: Tensor
    train: int


def read_fit_states(
    tail: Tail,
    reader: LanguageModel,
    train: TokenRows,
    dev: TokenRows,
    sites: Sequence[str],
    advance: Callable[[int], None],
) -> FitStates:
    """Return the states of rows of train and dev at the sites, read by `reader`: the model, or its untrained twin.

    Raises:
        DegenerateDesign: there are fewer than two rows on either side.
    """
    if min(len(train), len(dev)) < 2:
        raise DegenerateDesign(
            "too few rows to train a lens",
            needed="two tokens or more in train and in dev",
            found=f"{len(train):,} and {len(dev):,}",
            next_step="give more text",
        )
    width, count = tail.model.width(tail.site), len(train) + len(dev)
    states = {site: torch.empty((count, width)) for site in sites}
    last = torch.empty((count, width))
    for start, rows in ((0, train), (len(train), dev)):
        others = [(reader, states, tuple(sites))] if reader is not tail.model else []
        own = {**states, tail.site: last} if reader is tail.model else {tail.site: last}
        for model, places, names in [*others, (tail.model, own, tuple(own))]:
            with fast(model):
                for members, batch in states_of(model, rows, names):
                    for site in names:
                        places[site][start + torch.from_numpy(members)] = batch[site].float().cpu()
                    advance(len(members))
    return FitStates(states, last, len(train))


@dataclass(eq=False)
class Translator:
    """Holds a translator in training: y = h + s (R'(h − m) M + b), with whitened states R'(h − m).

    Attributes:
        lens, site: which lens it belongs to, and the site that it reads.
        kind: `affine`, or `bias` (M stays 0).
        permuted: whether its targets are those of other rows.
        mean, whiten, scale: m `(D,)`, R `(D, D)` and s.
        M, b: parameters `(D, D)` and `(D,)`.
        best: parameters with the lowest KL on dev.
        losses: KL on dev in bits: of the start, and after each epoch.
        is_done: whether training has ended.
    """

    lens: str
    site: str
    kind: Kind
    permuted: bool
    mean: Tensor
    whiten: Tensor
    scale: float
    M: Tensor
    b: Tensor
    best: tuple[Tensor, Tensor]
    losses: list[float] = field(default_factory=list)
    is_done: bool = False
    moments: list[Tensor] = field(default_factory=list)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are trained."""
        return [self.M, self.b] if self.kind == "affine" else [self.b]

    def moved(self, h: Tensor, x: Tensor) -> Tensor:
        """Return y for states h and their whitened form x."""
        return h + self.scale * (torch.addmm(self.b, x, self.M) if self.kind == "affine" else self.b)

    def white(self, h: Tensor) -> Tensor:
        """Return the whitened states."""
        return (h - self.mean) @ self.whiten

    def note(self, loss: float) -> None:
        """Record the KL on dev after an epoch, keep the best parameters, and end where nothing is gained."""
        self.is_done = not loss < min(self.losses) * (1.0 - _GAIN)
        if loss < min(self.losses):
            self.best = (self.M.clone(), self.b.clone())
        self.losses.append(loss)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return A `(D, D)` and b `(D,)` of h + A h + b at the best parameters."""
        M, b = self.best
        if self.kind == "bias":
            return torch.zeros_like(M), self.scale * b
        A = (self.scale * self.whiten.double() @ M.double()).T
        return A.float(), (self.scale * b.double() - A @ self.mean.double()).float()


@dataclass(frozen=True)
class Wanted:
    """Names a lens to train: its name, the form of its translators, and whether its targets are those of other rows."""

    name: str
    about: str
    kind: Kind = "affine"
    permuted: bool = False


def fit_lenses(
    tail: Tail,
    data: FitStates,
    wanted: Sequence[Wanted],
    options: FitOptions,
    *,
    recipe: Any,
    folder: Path | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[TunedLens]:
    """Train all translators of all these lenses together, so that the final outputs of a step are computed once, and
    return the lenses.

    A translator starts from the identity or from a least-squares fit of the last state (shrunk towards the identity or
    towards the mean last state), whichever has the lowest KL on dev, and goes on by AdamW on KL(final ‖ lens) with its
    full vocabulary. Training of a site ends when an epoch lowers the KL on dev by less than a thousandth; the best
    parameters are taken. After each epoch the state of training is written to `folder`, and a killed run goes on from
    there.
    """
    order = torch.Generator().manual_seed(child_seed(options.seed, "lens order"))
    shift = torch.randperm(data.train, generator=order)
    translators = [_started(tail, data, one, site, shift) for one in wanted for site in data.sites]
    total, steps = options.epochs + 1, -(-data.train // options.batch)
    mark = digest([recipe, asdict(options), [(t.lens, t.site) for t in translators]])
    epoch = _resumed(folder, mark, translators)
    with frozen(tail.model.suffix.model):
        if epoch == 0:
            _choose_starts(tail, data, translators, shift, lambda done, of: advance(done, of * total))
        for number in range(epoch, options.epochs):
            active = [one for one in translators if not one.is_done]
            if not active:
                break
            generator = torch.Generator().manual_seed(child_seed(options.seed, "lens epoch", number))
            batches = parts(torch.randperm(data.train, generator=generator), options.batch)
            for step, rows in enumerate(batches):
                at = number * steps + step
                rate = options.rate * (1.0 - at / (options.epochs * steps))
                _step(tail, data, active, rows, shift, rate, options.decay, at + 1)
                advance((number + 1) * steps + step, total * steps)
            for one, loss in zip(active, _dev_losses(tail, data, active), strict=True):
                one.note(loss)
            _save(folder, mark, number + 1, translators)
    return [_lens(one, [t for t in translators if t.lens == one.name], data, recipe) for one in wanted]


def _lens(wanted: Wanted, translators: Sequence[Translator], data: FitStates, recipe: Any) -> TunedLens:
    pairs = {one.site: one.affine() for one in translators}
    facts = {
        "recipe": recipe,
        "rows": data.train,
        "dev_rows": len(data.last) - data.train,
        "dev_kl": {one.site: one.losses for one in translators},
    }
    matrices, biases = ({site: pair[k] for site, pair in pairs.items()} for k in (0, 1))
    return TunedLens(matrices, biases, facts, wanted.name, wanted.about)


def _started(tail: Tail, data: FitStates, wanted: Wanted, site: str, shift: Tensor) -> Translator:
    """Return a translator at the identity, with its whitening."""
    h, last = data.sites[site][: data.train], data.last[: data.train]
    weights = _weights(last)
    mean = weights @ h
    centred = h - mean
    variances, axes = torch.linalg.eigh(((centred * weights[:, None]).T @ centred).double())
    floor = _FLOOR * float(variances.clamp_min(0).median()) + 1e-12
    whiten = (axes / (variances.clamp_min(0) + floor).sqrt()).float()
    scale = float((weights @ last.square()).mean().sqrt())
    width = h.shape[1]
    start = torch.zeros((width, width)), torch.zeros(width)
    return Translator(wanted.name, site, wanted.kind, wanted.permuted, mean, whiten, scale, *start, best=start)


def _weights(last: Tensor) -> Tensor:
    """Return weights `(N,)` of rows, which sum to 1: rows of large norm, which a final norm scales down, count less."""
    weights = 1.0 / last.square().mean(1).clamp_min(1e-12)
    return weights / weights.sum()


def _choose_starts(
    tail: Tail, data: FitStates, translators: Sequence[Translator], shift: Tensor, advance: Callable[[int, int], None]
) -> None:
    """Give each translator the start with the lowest KL on dev."""
    last = data.last[: data.train]
    weights = _weights(last)
    candidates: list[list[tuple[Tensor, Tensor]]] = []
    for one in translators:
        h = data.sites[one.site][: data.train]
        target = last[shift] if one.permuted else last
        missing = target - h
        x, b = one.white(h), weights @ missing
        listed = [(one.M, one.b)]
        if one.kind == "bias":
            listed.append((one.M, b / one.scale))
        else:
            weighted = x * weights[:, None]
            variances, products = (weighted * x).sum(0), weighted.T @ (missing - b) / one.scale
            listed += [(products / (variances + shrink)[:, None], b / one.scale) for shrink in STARTS]
            away = torch.linalg.inv(one.whiten.double()).float() / one.scale  # what takes the state itself away
            whole = weighted.T @ (target - weights @ target) / one.scale
            listed += [(whole / (variances + shrink)[:, None] - away, b / one.scale) for shrink in CONSTANTS]
        candidates.append(listed)
    for number in range(max(map(len, candidates))):
        tried = [
            (one, listed[number]) for one, listed in zip(translators, candidates, strict=True) if number < len(listed)
        ]
        for one, (M, b) in tried:
            one.M, one.b = M.clone(), b.clone()
        for (one, start), loss in zip(tried, _dev_losses(tail, data, [one for one, _ in tried]), strict=True):
            if not one.losses or loss < one.losses[0]:
                one.losses, one.best = [loss], start
        advance(number + 1, max(map(len, candidates)))
    for one in translators:
        one.M, one.b = one.best[0].clone(), one.best[1].clone()
        one.moments = [torch.zeros_like(p) for p in one.parameters for _ in range(2)]


def _dev_losses(tail: Tail, data: FitStates, translators: Sequence[Translator]) -> list[float]:
    """Return the mean KL(target ‖ lens) on the rows of dev, in bits; permuted targets are those of the next row."""
    sums = [0.0] * len(translators)
    count = len(data.last) - data.train
    none = torch.zeros(count, dtype=torch.long, device=tail.model.device)
    with fast(tail.model):
        for rows in parts(torch.arange(count), tail.chunk):
            finals = {
                moved: FinalOutputs(tail.logits(data.last[data.train + (rows + moved) % count]), none[: len(rows)])
                for moved in {int(one.permuted) for one in translators}
            }
            for k, one in enumerate(translators):
                h = data.sites[one.site][data.train + rows]
                outputs = tail.logits(one.moved(h, one.white(h)))
                sums[k] += float(finals[int(one.permuted)].kl(outputs).sum())
    return [total / count for total in sums]


def _step(
    tail: Tail,
    data: FitStates,
    translators: Sequence[Translator],
    rows: Tensor,
    shift: Tensor,
    rate: float,
    decay: float,
    number: int,
) -> None:
    """Do a step of AdamW for every translator on the same rows."""
    with torch.inference_mode():
        targets = {
            permuted: torch.softmax(tail.logits(data.last[shift[rows] if permuted else rows]), -1)
            for permuted in {one.permuted for one in translators}
        }
    for one in translators:
        h = data.sites[one.site][rows]
        x = one.white(h)
        with torch.enable_grad():
            y = one.moved(h, x).requires_grad_()
            outputs = tail.logits(y)
        # The derivative of KL(p ‖ q) by the outputs is q − p.
        with torch.no_grad():
            slope = torch.softmax(outputs.detach(), -1).sub_(targets[one.permuted]).div_(len(rows))
        (gradient,) = torch.autograd.grad(outputs, y, slope)
        gradient = one.scale * gradient.cpu()
        gradients = [x.T @ gradient, gradient.sum(0)] if one.kind == "affine" else [gradient.sum(0)]
        _adam(one, gradients, rate, decay, number)


def _adam(one: Translator, gradients: Sequence[Tensor], rate: float, decay: float, number: int) -> None:
    """Do a step of AdamW (Loshchilov and Hutter 2019, Algorithm 2), with β₁ 0.9 and β₂ 0.99."""
    for k, (value, gradient) in enumerate(zip(one.parameters, gradients, strict=True)):
        size_of_step = rate / len(value) if value.ndim == 2 else rate / 10
        first, second = one.moments[2 * k], one.moments[2 * k + 1]
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.01)
        size = (second / (1.0 - 0.99**number)).sqrt_().add_(1e-8)
        value.mul_(1.0 - size_of_step * decay).addcdiv_(first, size, value=-size_of_step / (1.0 - 0.9**number))


def _save(folder: Path | None, mark: str, epoch: int, translators: Sequence[Translator]) -> None:
    """Write the state of training."""
    if folder is None:
        return
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for k, one in enumerate(translators):
        values = [one.M, one.b, *one.best, *one.moments]
        tensors |= {f"{k}.{j}": value.clone().contiguous() for j, value in enumerate(values)}
    facts = {"mark": mark, "epoch": epoch, "losses": [one.losses for one in translators]}
    facts |= {"done": [one.is_done for one in translators]}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _STATE[1], save(tensors, {"mark": f"{mark} {epoch}"}))
    write_atomically(folder / _STATE[0], json.dumps(facts).encode())


def _resumed(folder: Path | None, mark: str, translators: Sequence[Translator]) -> int:
    """Take up the state of training in a folder, and return the number of epochs done; 0 if there is none."""
    if folder is None or not all((folder / name).is_file() for name in _STATE):
        return 0
    from safetensors import safe_open

    try:
        facts = json.loads((folder / _STATE[0]).read_text(encoding="utf-8"))
        with safe_open(folder / _STATE[1], "pt") as file:
            if facts["mark"] != mark or (file.metadata() or {}).get("mark") != f"{mark} {facts['epoch']}":
                return 0
            read = [
                [file.get_tensor(f"{k}.{j}") for j in range(4 + 2 * len(t.parameters))]
                for k, t in enumerate(translators)
            ]
    except Exception:  # of an interrupted write, or of another version: trained anew
        return 0
    for one, values, losses, done in zip(translators, read, facts["losses"], facts["done"], strict=True):
        one.M, one.b, one.best, one.moments = values[0], values[1], (values[2], values[3]), values[4:]
        one.losses, one.is_done = losses, done
    return int(facts["epoch"])


def clear(folder: Path) -> None:
    """Remove the state of a finished training."""
    for name in _STATE:
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
