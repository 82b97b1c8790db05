"""What becomes of every architecture of text of the installed transformers: load, extract, use; and the page of it."""

from __future__ import annotations

import inspect
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from probing.errors import ProbingError, ReplayUnavailable
from probing.lenses._reading import IDENTITY, Tail
from probing.models.discovery.tracing import first_tensor, given_state
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.use.behaviours.next_token import NextToken
from probing.use.edited_models.text import TextInstrument
from tests.samples.family_samples import architectures, model_class, takes_text, tiny_model
from tests.samples.tiny_models import byte_tokenizer, corpus_of

TEXTS = ("the thing is in", "a cat", "on it in the hat", "be in it")
TOLERANCE = 1e-5  # of the largest entry
SECONDS = 120
READ, REFUSED, OUTSIDE, UNBUILT, FAILED = "read", "refused", "no text alone", "not built", "FAILED"


@dataclass(frozen=True)
class Outcome:
    """What became of one model type.

    Attributes:
        kind: the model type.
        model: the class that stands for it.
        state: `read`, `refused`, `no text alone` (out of scope), `not built`, or `FAILED`, which must not be.
        streams: sites by their first part.
        use: whether it can be edited; `yes`, or why not.
        lens: whether the end that a lens reads with gives the model's own outputs: `exact`, `DIFFERS`, or why there is
            none.
        reason: why it is not read.
    """

    kind: str
    model: str
    state: str
    streams: tuple[str, ...] = ()
    use: str = ""
    lens: str = ""
    reason: str = ""


def survey(kind: str, folder: Path) -> Outcome:
    """Build one, load it, extract it and compare with hooks of our own, and edit it."""
    name = architectures()[kind]
    if not takes_text(model_class(name)):
        return Outcome(kind, name, OUTSIDE, reason="forward takes no input_ids")
    torch.set_num_threads(1)
    with warnings.catch_warnings(), _limited():
        warnings.simplefilter("ignore")
        try:
            model = tiny_model(kind)
        except Exception as error:
            text = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            return Outcome(kind, name, OUTSIDE if _is_missing_input(error) else UNBUILT, reason=text)
        try:
            return _read(kind, name, model, folder)
        except ProbingError as error:
            return Outcome(kind, name, REFUSED, reason=f"{error.found}" if error.found else error.message)
        except Exception as error:
            return Outcome(kind, name, FAILED, reason=f"{type(error).__name__}: {error}"[:300])


def _is_missing_input(error: Exception) -> bool:
    """Whether a forward pass over ids alone failed, not the building of the model."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "plain_pass":
            return isinstance(error, TypeError | AttributeError | ValueError)  # not sizes that do not fit
        frame = frame.tb_next
    return False


def _read(kind: str, name: str, model: Any, folder: Path) -> Outcome:
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    loaded = LanguageModel.load(str(folder / "model"))
    store = extract(loaded, corpus_of(*TEXTS), to=folder / "store", sites="*", rows="piece", progress=False)
    passes = [_hooked(loaded, text) for text in TEXTS]
    for site in loaded.sites:
        _expect_close(store.read(site), np.concatenate([states[site] for states in passes]), site)
    streams = tuple(dict.fromkeys(site.partition(".")[0] for site in loaded.sites))
    return Outcome(kind, name, READ, streams, _use(loaded), _lens(loaded))


def _hooked(loaded: LanguageModel, text: str) -> dict[str, np.ndarray]:
    """For each site, `(T, D)` by a plain hook on its module, in a pass of the model over one text alone."""
    trunk = loaded._trunk
    ids = torch.from_numpy(loaded.encode([text])[0].ids)[None]
    kept: dict[str, Any] = {}
    with ExitStack() as hooks:
        for site in loaded.sites:
            module = trunk.trunk.get_submodule(trunk.modules[site])
            if site == "embed":
                kept[site] = module.weight[ids[0]].detach()
                continue

            def hook(module: Any, args: Any, kwargs: Any, output: Any, site: str = site) -> None:
                state = given_state(args, kwargs) if site in trunk.reads_input else first_tensor(output)
                kept.setdefault(site, state)  # of a module that is called more than once, the first call

            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        with torch.inference_mode():
            trunk.trunk(input_ids=ids, use_cache=False) if _caches(trunk.trunk) else trunk.trunk(input_ids=ids)
    return {site: _rows(kept[site], trunk.layout_of(site), ids.shape[1]) for site in loaded.sites}


def _rows(state: Any, layout: Any, n: int) -> np.ndarray:
    """`(T, D)` of what a module gave."""
    if state.ndim > 2 and not layout.is_plain:
        state = state.movedim((layout.inputs, layout.pieces), (0, 1))[:, layout.skipped or 0 :][:, :n]
    return np.asarray(state.reshape(n, -1))


def _caches(trunk: Any) -> bool:
    return "use_cache" in inspect.signature(trunk.forward).parameters


def _expect_close(found: np.ndarray, expected: np.ndarray, site: str) -> None:
    assert found.shape == expected.shape, f"{site}: {found.shape} for {expected.shape}"
    scale = float(np.abs(expected).max()) or 1.0
    apart = float(np.abs(found - expected).max()) / scale
    assert apart <= TOLERANCE, f"{site} differs from a hook on its module by {apart:.1e}"


def _use(loaded: LanguageModel) -> str:
    """Edit the first block's input as the instrument does, and by a plain hook on the whole model."""
    try:
        found, scope = _instrument(loaded, "resid.*"), "yes"
    except ReplayUnavailable:
        try:
            found, scope = _instrument(loaded, "resid.0"), "from resid.0"
        except ProbingError as error:
            return f"{error.message}: {error.found}"
    except ProbingError as error:
        return f"{error.message}: {error.found}"
    place = found.places[0]
    rows = np.arange(2)
    states = torch.from_numpy(found.states(place)[rows])
    apart = 0.1 * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    changed = found.run_from(place.site, rows, {place.position: states + apart})
    assert not torch.allclose(changed, torch.from_numpy(found.clean()[rows]).to(changed.dtype)), "an edit does nothing"
    return scope


def _lens(loaded: LanguageModel) -> str:
    """Compare the outputs of the model with those of its end, given the last states."""
    if loaded.suffix.head is None:
        return "no outputs over a vocabulary"
    try:
        tail = Tail(loaded)
        tail.check(loaded.encode(TEXTS))
        alone = loaded.encode(TEXTS[:1])
        state, expected = loaded.states(alone, [tail.site])[tail.site][0], loaded.logits(alone)[0].float()
        is_given = torch.isfinite(expected)
        difference = (tail.logits(state) - expected)[is_given].abs().max()
    except ProbingError as error:
        return f"{error.message}: {error.found}"
    return "exact" if float(difference) <= IDENTITY * float(expected[is_given].std()) else "DIFFERS"


def _instrument(loaded: LanguageModel, sites: str) -> TextInstrument:
    behaviour = NextToken() if loaded.suffix.head == "causal" else "readout"
    found = TextInstrument.from_words(loaded, corpus_of(*TEXTS), behaviour, max_rows=4, sites=sites)
    found.check()
    return found


@contextmanager
def _limited() -> Iterator[None]:
    """An endless pass is a failure."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def page(outcomes: list[Outcome]) -> str:
    """docs/models.md."""
    by_state = {state: [o for o in outcomes if o.state == state] for state in (READ, REFUSED, OUTSIDE, UNBUILT)}
    read, refused = by_state[READ], by_state[REFUSED]
    total, used = len(read) + len(refused), [o for o in read if o.use == "yes" or o.use.startswith("from ")]
    rows = [f"| {o.kind} | {o.model} | {', '.join(o.streams)} | {_cell(o.use)} |" for o in read]
    edited = f"{len(used)} of these are edited, {len(refused)} are refused."
    outside, unbuilt = len(by_state[OUTSIDE]), len(by_state[UNBUILT])
    lines = [
        "# Models",
        "",
        f"What becomes of every architecture of text of transformers {transformers.__version__}, as a tiny random",
        "model: loaded from its folder, extracted at all sites and compared with plain hooks, and edited. Made by",
        "`scripts/make_models_page.py`; a slow test compares it with what is so.",
        "",
        f"**{len(read)} of {total} that run on text alone are read ({len(read) / max(total, 1):.1%})**, their states",
        f"within 1e-5 of hooks; {edited}",
        "",
        f"Out of scope: {outside} model types whose class takes no `input_ids`, or does not run on them alone (it",
        "wants images, audio, boxes).",
        f"Not tried: {unbuilt}, of which no tiny configuration was found.",
        "",
        "A model that is not read by its blocks is read by module paths (docs/extraction.md).",
        "",
        "## Read",
        "",
        "| model type | class | sites | edited |",
        "|-|-|-|-|",
        *rows,
        "",
        "## Refused",
        "",
        "| model type | class | why |",
        "|-|-|-|",
        *(f"| {o.kind} | {o.model} | {_cell(o.reason)} |" for o in refused),
        "",
        "## Not built",
        "",
        "| model type | class | why |",
        "|-|-|-|",
        *(f"| {o.kind} | {o.model} | {_cell(o.reason)} |" for o in by_state[UNBUILT]),
        "",
        "## Out of scope",
        "",
        "Their forward takes no `input_ids`: "
        + ", ".join(o.kind for o in by_state[OUTSIDE] if o.reason == "forward takes no input_ids")
        + ".",
        "",
        "They do not run on ids alone: "
        + ", ".join(o.kind for o in by_state[OUTSIDE] if o.reason != "forward takes no input_ids")
        + ".",
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").strip()
