"""Reads the state of every site as an output of the model (logit lens, tuned lens, Jacobian lens), with controls and
with the effect of replacing the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probing.contracts.lens import Lens
from probing.errors import BadParameter, ConfigError, unknown_name
from probing.lenses._fitting import FitOptions, Wanted, clear, fit_lenses, read_fit_states
from probing.lenses._measuring import Reading, measure, result_of
from probing.lenses._reading import Tail, TokenRows, fast, final_outputs, lens_sites, token_rows
from probing.lenses.jacobian import JacobianLens
from probing.lenses.logit import LogitLens
from probing.lenses.tuned import TunedLens, check_outputs, model_facts, not_finite, recipe_of
from probing.models.batching import ParallelBatches
from probing.models.language_model import LanguageModel
from probing.models.loading.identity import untrained_twin
from probing.provenance import digest
from probing.results.lens import BIAS, CONTROLS, FIRST, PERMUTED, TWIN, LensResult, Trajectory, read_if_same
from probing.results.use import visible
from probing.system.machine import target_of, with_typed_errors
from probing.system.progress import steps_bar
from probing.text.corpus import Corpus

LENSES = ("logit", "tuned", "jacobian")
_SHOWN_TOKENS, _TOP = 48, 5  # of a prompt


@with_typed_errors
def lens(
    model: LanguageModel | str,
    corpus: Corpus,
    *,
    lenses: Sequence[str] = ("logit",),
    sites: str | Sequence[str] = "resid.*",
    prompts: Sequence[str] = (),
    split: str | None = None,
    controls: bool = True,
    max_rows: int = 20_000,
    train_rows: int = 8192,
    dev_rows: int = 512,
    epochs: int = 2,
    use_rows: int = 64,
    skip: int = 1,
    max_length: int = 512,
    seed: int = 0,
    to: str | Path | None = None,
    allow_pickle_weights: bool = False,
    any_model: bool = False,
    progress: bool | None = None,
) -> LensResult:
    """Turn the state of every site into an output distribution of the model, and return how close it is to the final
    output, with controls and with the change of the output when the state is replaced.

    The state, unchanged (logit lens) or mapped by another lens, takes the place of the state at the last site
    `resid.L`, and the model's own final norm and unembedding give the output. A row is a token that another one
    follows; for masked models, one masked token of each text.

    Args:
        model: a causal or masked language model, or the folder or hub name of one.
        corpus: texts; a lens that is trained uses its splits train and dev and is measured on test.
        lenses: `logit`; `tuned` (trained here) or `tuned:FOLDER`; `jacobian` (computed here) or `jacobian:FILE`. The
            others are compared with the first.
        sites: sites `resid.l`, shell-style patterns.
        prompts: texts of which the most probable tokens are given by site and position.
        split: split that is measured; None: test if a lens is trained, else all texts.
        controls: whether a lens trained here is compared with a bias alone, the translator of `resid.0`, a lens of the
            untrained twin and one trained on permuted targets, and every lens with the unigram.
        max_rows: rows that are measured, in whole texts chosen at random.
        train_rows, dev_rows: largest number of rows that a lens is trained on, and of rows of dev whose loss decides
            when its training ends.
        epochs: largest number of passes over the rows of train.
        use_rows: number of texts in which the state of one row is replaced, at each site in turn; 0: none.
        skip: number of first tokens of a text at which a causal model is not read, since their states are unlike all
            others; a Jacobian lens that is computed here leaves out the first 16 at any rate, of the texts that it is
            computed from.
        max_length: longest input in tokens; the rest of a text is left out.
        seed: root of every random draw.
        to: folder of the results, and of trained lenses, which a later run reads again; results of the same model,
            texts and options that are there are returned as they are. None: nothing is written.
        allow_pickle_weights: whether a lens from a pickle (`params.pt`, `.pt`) may be read, by `weights_only=True`.
        any_model: whether a lens from a file that names another model is accepted.
        progress: False: show nothing; None or True: a bar or, outside a terminal and a notebook, a line every 30 s.

    Raises:
        UnsupportedModel: the model has no head, or its output depends on more than the state of a token at the last
            site.
        ReplayUnavailable: the model cannot be run from its last site.
        UnknownSite, UnknownName, BadParameter, ConfigError: an option is wrong.
        CorpusError, DegenerateDesign: there are no rows, or too few to train on.
        InputError, UntrustedFile, ProvenanceMismatch: a file holds no lens, is a pickle, or is of another model, or
            outputs of a lens are not finite; nothing is then written.
        CannotReachFile: `to` cannot be used; it is checked before work begins.
    """
    folder, names = target_of(to), list(lenses)
    sizes = {"max_rows": max_rows, "train_rows": train_rows, "dev_rows": dev_rows, "epochs": epochs}
    sizes |= {"use_rows": use_rows, "skip": skip, "max_length": max_length}
    check_options(names, **sizes)
    reader = LanguageModel.load(model) if isinstance(model, str) else model
    tail = Tail(reader)
    chosen = lens_sites(tail, sites)
    read = {name: _from_file(name, tail, allow_pickle_weights, any_model) for name in names if ":" in name}
    is_trained = any(name in ("tuned", "jacobian") for name in names)
    measured = split if split is not None else ("test" if is_trained else None)
    made_of = [names, chosen, list(prompts), measured, controls, sizes, seed, any_model]
    recipe = recipe_of(tail, corpus, read, made_of)
    if folder is not None and (known := read_if_same(folder, recipe)) is not None:
        return known
    shared: dict[str, Any] = {"skip": skip, "max_length": max_length, "seed": seed}
    rows = token_rows(reader, corpus, split=measured, max_rows=max_rows, **shared)
    identity = tail.check(rows.inputs[:4])
    states = {site: state[0] for site, state in reader.states(rows.inputs[:1], chosen).items()}
    for one in read.values():
        check_outputs(tail, one, states)
    training = _Training(
        tail, chosen, {"lenses": names, "identity": identity, "skip": skip, "recipe": recipe}, progress, seed
    )
    readings = _readings(names, read, training, corpus, (train_rows, dev_rows, epochs), shared, folder, controls)
    measured_rows = measure(tail, rows, readings, training.twin_if_made, progress)
    for (name, site), columns in measured_rows.columns.items():
        if not all(np.isfinite(column).all() for column in columns.values()):
            raise not_finite(tail, name, site)
    result = result_of(
        measured_rows,
        readings,
        training.facts,
        sites=chosen,
        use_rows=use_rows,
        corpus=corpus,
        seed=seed,
        progress=progress,
    )
    shown = [one for text in prompts for one in trajectories(tail, text, readings, chosen)]
    doubts = [
        f"Not checked of the lens {name}: {one}." for name in names if name in read for one in _unchecked(read[name])
    ]
    result = replace(result, trajectories=shown, doubts=[*result.doubts, *doubts])
    if folder is not None:
        result.write(folder)
    return result


def _readings(
    names: Sequence[str],
    read: Mapping[str, Lens],
    training: _Training,
    corpus: Corpus,
    sizes: tuple[int, int, int],
    shared: dict[str, Any],
    folder: Path | None,
    controls: bool,
) -> list[Reading]:
    """Return the lenses in the order in which they were named, trained where they are not from files; controls follow.

    Raises:
        ConfigError: a lens reads none of the sites.
    """
    model, readings = training.tail.model, list[Reading]()
    for name in names:
        if name in read:
            readings.append(Reading(read[name], read[name].reads(training.sites)))
        elif name == "logit":
            readings.append(Reading(LogitLens(), training.sites))
        elif name == "jacobian":
            train = token_rows(model, corpus, split="train", max_rows=sizes[0], **shared)
            readings.append(training.jacobian(train, corpus.source))
        else:
            train, dev = (
                token_rows(model, corpus, split=part, max_rows=size, **shared).first(size)
                for part, size in zip(("train", "dev"), sizes, strict=False)
            )
            options = FitOptions(sizes[2], seed=shared["seed"])
            readings += training.tuned(train, dev, options, corpus, folder, controls)
    for one in readings:
        if not one.sites:
            raise ConfigError(
                f"the lens {one.lens.name} reads none of these sites",
                needed="a site that it was made for",
                found=", ".join(training.sites),
                next_step="choose other sites, or another lens",
            )
    return sorted(readings, key=lambda one: one.is_control)


def check_options(
    lenses: Sequence[str],
    *,
    max_rows: int,
    train_rows: int,
    dev_rows: int,
    epochs: int,
    use_rows: int,
    skip: int,
    max_length: int,
) -> None:
    """Check options of `lens`.

    Raises:
        UnknownName: there is no such lens.
        BadParameter: a number is out of range.
        ConfigError: two lenses are of the same kind, or there is none.
    """
    for name in lenses:
        kind, _, file = name.partition(":")
        if kind not in LENSES or (kind == "logit" and file) or (":" in name and not file):
            raise unknown_name("lens", name, (*LENSES, "tuned:FOLDER", "jacobian:FILE"))
    if not lenses or len({name.partition(":")[0] for name in lenses}) < len(lenses):
        raise ConfigError(
            "lenses that cannot be told apart", needed="each kind once, at least one", found=", ".join(lenses)
        )
    bounds = {"max_rows": max_rows, "train_rows": train_rows, "dev_rows": dev_rows, "epochs": epochs}
    for least, numbers in ((1, bounds | {"max_length": max_length}), (0, {"use_rows": use_rows, "skip": skip})):
        for name, value in numbers.items():
            if value < least:
                raise BadParameter(f"{name} is out of range", needed=f"{least} or more", found=str(value))


def _unchecked(lens: Lens) -> list[str]:
    """Return what of a lens from elsewhere could not be checked."""
    return list(getattr(lens, "facts", {}).get("unchecked", ()))


def _from_file(name: str, tail: Tail, allow_pickle_weights: bool, any_model: bool) -> Lens:
    kind, _, file = name.partition(":")
    home = TunedLens if kind == "tuned" else JacobianLens
    return home.read(Path(file).expanduser(), tail, allow_pickle_weights=allow_pickle_weights, any_model=any_model)


class _Training:
    """Trains lenses of one model.

    Attributes:
        facts: facts about the run, to which those of training are added.
    """

    def __init__(
        self, tail: Tail, sites: tuple[str, ...], facts: dict[str, Any], progress: bool | None, seed: int
    ) -> None:
        self.tail, self.sites, self.facts, self.progress, self.seed = tail, sites, facts, progress, seed
        self.twin_if_made: LanguageModel | None = None

    @property
    def twin(self) -> LanguageModel:
        """The same architecture with random weights."""
        if self.twin_if_made is None:
            model = self.tail.model
            network = untrained_twin(model.suffix.model, self.seed).to(model.suffix.trunk.dtype).to(model.device)
            self.twin_if_made = LanguageModel.from_modules(
                network, model.tokenizer, name=model.name, padding_side=model.padding_side, check=False
            )
        return self.twin_if_made

    def jacobian(self, train: TokenRows, where: str) -> Reading:
        """Compute the Jacobian lens of the sites of the second half of the blocks."""
        layers = [site for site in self.sites if self.tail.sites.index(site) * 2 >= self.tail.layer]
        inner = [site for site in layers if site != self.tail.site]
        with steps_bar("derivatives", "texts", None, self.progress) as bar:
            made = JacobianLens.fit(self.tail, train.inputs, inner, where=where, advance=bar) if inner else None
        if made is None:
            return Reading(JacobianLens({}), ())
        self.facts["jacobian"] = {"texts": made.facts["texts"], "change_between_halves": dict(made.changes)}
        return Reading(made, made.reads(self.sites))

    def tuned(
        self,
        train: TokenRows,
        dev: TokenRows,
        options: FitOptions,
        corpus: Corpus,
        folder: Path | None,
        controls: bool,
    ) -> list[Reading]:
        """Train the tuned lens and its controls, or take them up from `folder` if they were trained there alike."""
        inner = tuple(site for site in self.sites if site != self.tail.site)
        first = self.tail.sites[0]
        own = [Wanted("tuned", "h + A h + b, trained for each site by KL to the final output")]
        if controls:
            own += [Wanted(BIAS, CONTROLS[BIAS], "bias"), Wanted(PERMUTED, CONTROLS[PERMUTED], permuted=True)]
        jobs = [(self.tail.model, own)] + ([(None, [Wanted(TWIN, CONTROLS[TWIN])])] if controls else [])
        readings = []
        for reader, wanted in jobs:
            names = inner if reader is None or not controls else tuple(dict.fromkeys((first, *inner)))
            made = self._fitted(reader, train, dev, names, wanted, options, corpus, folder)
            readings += [Reading(one, one.reads(self.sites), reader is None) for one in made]
            for one in made:
                self.facts.setdefault("training", {})[one.name] = {
                    key: one.facts[key] for key in ("rows", "dev_rows", "dev_kl") if key in one.facts
                }
            if controls and reader is not None:
                tuned = made[0]
                copy = TunedLens(
                    {first: tuned.matrices[first]}, {first: tuned.biases[first]}, {}, FIRST, CONTROLS[FIRST]
                )
                readings.append(Reading(copy, (first,)))
        return readings

    def _fitted(
        self,
        reader: LanguageModel | None,
        train: TokenRows,
        dev: TokenRows,
        sites: tuple[str, ...],
        wanted: Sequence[Wanted],
        options: FitOptions,
        corpus: Corpus,
        folder: Path | None,
    ) -> list[TunedLens]:
        recipe = digest(
            [corpus.fingerprint, model_facts(self.tail), list(sites), len(train), len(dev), options.__dict__]
        )
        places = {one.name: folder / "lenses" / one.name if folder is not None else None for one in wanted}
        known = [self._known(place, recipe, one) for one, place in zip(wanted, places.values(), strict=True)]
        source = self.twin if reader is None else reader
        if all(one is not None for one in known):
            return [one for one in known if one is not None]
        title = "reading the untrained twin" if reader is None else "reading states"
        total = (len(train) + len(dev)) * (2 if reader is None else 1)
        with steps_bar(title, "rows", total, self.progress) as bar:
            data = read_fit_states(self.tail, source, train, dev, sites, _counting(bar, total))
        work = None if folder is None else folder / "lenses" / ("twin" if reader is None else "own")
        with steps_bar(f"training {', '.join(one.name for one in wanted)}", "steps", None, self.progress) as bar:
            made = fit_lenses(self.tail, data, wanted, options, recipe=recipe, folder=work, advance=bar)
        for one in made:
            if (place := places[one.name]) is not None:
                one.write(place, self.tail)
        if work is not None:
            clear(work)
        return made

    def _known(self, place: Path | None, recipe: str, wanted: Wanted) -> TunedLens | None:
        """Return a lens that was trained alike before; None if there is none."""
        if place is None or not (place / "lens.json").is_file():
            return None
        found = TunedLens.read(place, self.tail, any_model=True)
        found.name, found.about = wanted.name, wanted.about
        return found if found.facts.get("recipe") == recipe else None


def _counting(bar: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """Return a function that adds a number of steps to those done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar(done, total)

    return advance


def trajectories(tail: Tail, text: str, readings: Sequence[Reading], sites: Sequence[str]) -> list[Trajectory]:
    """Return what each lens that is no control reads in a text, by site and position."""
    whole = tail.model.encode([text])[0]
    one = whole.truncated(_SHOWN_TOKENS)
    states = tail.model.states([one], tail.sites)
    start = int(tail.model.first_piece([one])[0])
    at = {site: state[0, start:] for site, state in states.items()}
    is_causal = tail.model.suffix.head == "causal"
    following = np.append(one.ids[1:], one.ids[-1])
    tokenizer = tail.model.tokenizer
    results = []
    with fast(tail.model), ParallelBatches.opened(1) as lanes:
        final = final_outputs(tail, at[tail.site], following)
        for reading in (reading for reading in readings if not reading.is_control):
            top, columns = [], []
            for site in reading.sites:
                logits = tail.logits(reading.lens.at(site, at[site]))
                best = torch.softmax(logits, -1).topk(min(_TOP, logits.shape[-1]))
                top.append(
                    [
                        list(zip(shown_tokens(tokenizer, i.tolist()), p.tolist(), strict=True))
                        for i, p in zip(*best[::-1], strict=True)
                    ]
                )
                compared = final.compare(logits, lanes)
                if not all(bool(torch.isfinite(value).all()) for value in compared.values()):
                    raise not_finite(tail, reading.lens.name, site)
                columns.append({name: value.float().tolist() for name, value in compared.items()})
            ranks = [[*column["rank_of_true"][:-1], None] if is_causal else [None] * len(one) for column in columns]
            entropy, kl, rank = ([column[name] for column in columns] for name in ("entropy", "kl", "rank_of_final"))
            arrays = (shown_tokens(tokenizer, one.ids.tolist()), list(reading.sites), top, entropy, kl, rank, ranks)
            results.append(Trajectory(text, reading.lens.name, *arrays, is_cut=len(one) < len(whole)))
    return results


def shown_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return tokens as text in which white space is visible: `␣the`."""
    raw = tokenizer.convert_ids_to_tokens(list(ids))
    return [
        visible(one.replace("▁", " ") if one.startswith(("▁", "##")) else tokenizer.decode([number]))
        for one, number in zip(raw, ids, strict=True)
    ]
