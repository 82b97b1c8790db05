"""TextInstrument: runs a language model on rows of text, and again from a site on with other states at some rows. A
*piece* is a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.behaviour import Behaviour, Outputs, Texts
from probing.contracts.edited_model import Instrument, Place, expect_equal
from probing.errors import BadParameter, EditFailed, NoBehaviour
from probing.models.language_model import LanguageModel
from probing.recipes import build
from probing.results.use import Answers
from probing.states.extraction.replaying import Replay
from probing.text.corpus import Corpus
from probing.use.edited_models._checks import ROWS, check_all, checksum
from probing.use.edited_models._reading import Pieces, TwinWatch, block_input, read_pieces, read_states
from probing.use.edited_models._rows import (
    MAX_BYTES,
    Batch,
    Sequences,
    TextRows,
    cut_by_length,
    rows_of_spans,
    rows_of_words,
)
from probing.use.edited_models._running import Exchanges, Runner, editable_sites

Ints = NDArray[np.int64]
TOKENS_PER_BATCH = 2048
_CONSTANT = 1e-6


class TextInstrument(Instrument):
    """Runs a language model on N rows. A row is an example together with the pieces at its named positions.

    The states of whole sequences are held in memory, so that only the blocks after the edited site are run again; for
    `attn_out.l`, `mlp_out.l` and `heads.l` the run starts at the input of their block, and a hook makes the edit. To
    set a new state at a position of several pieces, its difference from the mean state of these pieces is added to
    each.

    Attributes:
        rows: origin of the rows, with labels, groups and word types.
        behaviour: the behaviour that is measured.
        runner: object that runs passes of the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: TextRows,
        behaviour: Behaviour | str,
        *,
        sites: str | Sequence[str] = "resid.*",
        tokens_per_batch: int = TOKENS_PER_BATCH,
        max_bytes: int = MAX_BYTES,
        replay: Replay | None = None,
        may_be_constant: bool = False,
    ) -> None:
        """Read the states once, and the clean behaviour.

        Args:
            model: loaded with the head that the behaviour needs.
            rows: from `rows_of_words` or `rows_of_spans`; see also `from_words` and `from_spans`.
            behaviour: or a recipe such as `next_token:answers= yes| no`.
            sites: patterns of `resid.l`, `attn_out.l`, `mlp_out.l`, `heads.l`.
            tokens_per_batch: padded pieces run at once.
            max_bytes: the most that states may take.
            replay: a store that has the states already.
            may_be_constant: whether a behaviour that is the same in every row, as in one row alone, is measured too.

        Raises:
            UnknownSite: no such site.
            BadParameter: sites of another kind, or more states than `max_bytes`.
            NoBehaviour: there is nothing to measure, or it never varies.
            ReplayUnavailable: a model that is not run from the middle.
        """
        self.rows, self._replay = rows, replay
        built: Behaviour = build("behaviours", behaviour) if isinstance(behaviour, str) else behaviour
        self.behaviour = built.check(model.tokenizer)
        texts = Texts(model.tokenizer, rows.encoded, rows.example, rows.pieces, rows.codes)
        chosen = editable_sites(sites, model)
        self._places = tuple(Place(site, name) for site in chosen for name in rows.pieces)
        sequences = Sequences(model, rows.encoded, tokens_per_batch=tokens_per_batch)
        self.runner = Runner(model, texts, sequences, self.behaviour)
        self._pieces = {name: Pieces(pieces) for name, pieces in rows.pieces.items()}
        self._checksum = checksum(model.suffix.model)
        for site in dict.fromkeys(map(block_input, chosen)):
            model.suffix.prove(site)  # before any hook of ours changes states
        sequences.reserve({base: model.width(base) for base in map(block_input, chosen)}, max_bytes)
        self._states = read_states(sequences, rows, self._pieces, self._places, replay)
        read = partial(read_pieces, sequences, rows, self._pieces, replay)
        self._exchanges = Exchanges(self._pieces, self._states, read)
        self._twins = TwinWatch(model.tokenizer, self.behaviour.answer_pieces(model.tokenizer))
        self._readout = self.behaviour.fit(texts, self.runner.clean)
        self._clean = self._read_clean()
        if not may_be_constant:
            self._check_varies()

    @classmethod
    def from_words(
        cls,
        model: LanguageModel,
        corpus: Corpus,
        behaviour: Behaviour | str,
        *,
        columns: Sequence[str] = (),
        split: str | None = None,
        max_rows: int = 2000,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Return an instrument whose rows are words that have a label in every column. If there are more than
        `max_rows`, words of different sentences, and equal numbers of each class of the first column, are preferred.

        Args:
            model, behaviour, options: see the class.
            corpus: examples with words.
            columns: names of label columns of words or sentences.
            split: split of the corpus to use; None means all.
            max_rows: largest number of rows.
            seed: seed of the choice.
        """
        rows = rows_of_words(model, corpus, columns=columns, split=split, max_rows=max_rows, seed=seed)
        return cls(model, rows, behaviour, **options)

    @classmethod
    def from_spans(
        cls,
        model: LanguageModel,
        corpus: Corpus,
        behaviour: Behaviour | str,
        *,
        positions: Sequence[str],
        columns: Sequence[str] = (),
        split: str | None = None,
        max_rows: int = 8000,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Return an instrument whose rows are the examples that have every position, and a label in every column. The
        position `subject` is all pieces of that span, `subject.last` the last of them.
        """
        rows = rows_of_spans(
            model, corpus, positions=positions, columns=columns, split=split, max_rows=max_rows, seed=seed
        )
        return cls(model, rows, behaviour, **options)

    @property
    def places(self) -> tuple[Place, ...]:
        return self._places

    @property
    def n_rows(self) -> int:
        return len(self.rows.example)

    @property
    def logits(self) -> bool:
        return self.behaviour.are_logits

    @property
    def answers(self) -> Answers:
        return self._twins.answers

    @property
    def doubts(self) -> tuple[str, ...]:
        return self._twins.doubts()

    @property
    def has_norms(self) -> bool:
        return self.runner.norms.are_known

    @property
    def offsets(self) -> Ints | None:
        first = np.array([pieces[0] for pieces in next(iter(self.rows.pieces.values()))], dtype=np.int64)
        return None if (first == first[0]).all() else first

    def clean(self) -> NDArray[np.float64]:
        return self._clean

    def states(self, place: Place) -> NDArray[np.float32]:
        self.check_places([place])
        found: NDArray[np.float32] = self._states[place].numpy()
        return found

    def batches(self, rows: Ints) -> list[Ints]:
        lengths = self.runner.sequences.lengths[self.rows.example[rows]]
        return cut_by_length(lengths, self.runner.sequences.tokens_per_batch)

    def run_from(self, site: str, rows: Ints, states: Mapping[str, Tensor], *, frozen_norms: bool = False) -> Tensor:
        self.check_places([Place(site, position) for position in states])
        if not states:
            raise BadParameter("no states were given", needed="those of one position or more", found="none")
        rows = np.asarray(rows, dtype=np.int64)

        def shift(part: Ints, batch: Batch) -> Tensor:
            at = torch.from_numpy(part)
            return self.shift(site, rows[part], {p: x[at.to(x.device)] for p, x in states.items()}, batch)

        with torch.set_grad_enabled(torch.is_grad_enabled() and any(x.requires_grad for x in states.values())):
            return self._run_shifted(site, rows, shift, frozen_norms=frozen_norms)

    def _run_shifted(
        self, site: str, rows: Ints, shift: Callable[[Ints, Batch], Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        parts, found = self.batches(rows), []
        for part in parts:
            batch = self.runner.batch(rows[part])
            outputs = self.runner.outputs(rows[part], batch, site, shift(part, batch), frozen_norms=frozen_norms)
            found.append(self._readout(outputs))
        back = torch.from_numpy(np.argsort(np.concatenate(parts), kind="stable"))
        return torch.cat(found)[back.to(found[0].device)]

    def exchange(self, place: Place, rows: Ints, donors: Ints) -> Tensor:
        self.check_places([place])
        found = self._exchanges.at(place)
        found.check(place, rows, donors)
        with torch.no_grad():
            return self._run_shifted(
                place.site,
                rows,
                lambda part, batch: found.shift(rows[part], donors[part], batch).to(self.runner.dtype),
            )

    def exchange_slopes(
        self, rows: Ints, donors: Ints, coefficients: NDArray[np.float64], places: Sequence[Place]
    ) -> dict[Place, NDArray[np.float64]]:
        found = {place: np.zeros(len(rows)) for place in places}
        for place in found:
            self._exchanges.at(place).check(place, rows, donors)
        for place, part, which, slope in self._slopes_of_pieces(rows, coefficients):
            if place not in found:
                continue
            apart = self._exchanges.at(place).apart(rows[part], donors[part]).double().numpy()
            np.add.at(found[place], part[which], np.einsum("md,md->m", slope, apart))
        return found

    def shift(self, site: str, rows: Ints, states: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the tensor to add at a site, `(B, T, D)`: the new states minus the clean ones at every piece of the
        positions, 0 elsewhere.
        """
        device, dtype = batch.inputs.ids.device, self.runner.dtype
        shift: Tensor | None = None
        for position, given in states.items():
            which, piece = self._pieces[position].of(rows)
            at = torch.from_numpy(which), torch.from_numpy(piece + batch.start[which])
            read = self._states[Place(site, position)][torch.from_numpy(rows)].to(given.device)
            apart = (given - read).to(device, dtype)
            if shift is None:
                shift = apart.new_zeros((*batch.inputs.ids.shape, apart.shape[1]))
            shift = shift.index_put((at[0].to(device), at[1].to(device)), apart[at[0].to(device)], accumulate=True)
        assert shift is not None  # for the reader of types: there is a position
        return shift

    def read(self, outputs: Outputs) -> NDArray[np.float64]:
        """Return the behaviour `(B, V)` that is read from given outputs of the model."""
        return np.asarray(self._readout(outputs).detach().double().cpu().numpy())

    def slopes(self, rows: Ints, coefficients: NDArray[np.float64]) -> dict[Place, NDArray[np.float64]]:
        """Return the derivatives of `Instrument.slopes`; one backward pass per batch gives those of all places."""
        found = {place: np.zeros((len(rows), self._states[place].shape[1])) for place in self._places}
        for place, part, which, slope in self._slopes_of_pieces(rows, coefficients):
            np.add.at(found[place], part[which], slope)
        return found

    def _slopes_of_pieces(
        self, rows: Ints, coefficients: NDArray[np.float64]
    ) -> Iterator[tuple[Place, Ints, Ints, NDArray[np.float64]]]:
        """Yield, by place and batch, its rows, the row of each piece `(M,)`, and slopes of pieces `(M, D)`."""
        for part in self.batches(rows):
            batch = self.runner.batch(rows[part])
            sites = tuple(dict.fromkeys(place.site for place in self._places))
            outputs, shifts = self.runner.with_shifts(rows[part], batch, sites)
            with torch.enable_grad():
                y = self._readout(outputs)
                aim = (y * torch.from_numpy(coefficients[part]).to(y.device, y.dtype)).sum()
            by_site = dict(zip(shifts, torch.autograd.grad(aim, list(shifts.values())), strict=True))
            for place in self._places:
                which, piece = self._pieces[place.position].of(rows[part])
                slope = by_site[place.site].double().cpu().numpy()
                yield place, part, which, slope[which, piece + batch.start[which]]

    def _read_clean(self) -> NDArray[np.float64]:
        """Return the clean behaviour `(N, V)`: by whole passes if the states were stored elsewhere; else from the
        deepest ones just read on.
        """
        every = np.arange(self.n_rows)
        parts, site = self.batches(every), None if self._replay is not None else self.runner.deepest
        found = []
        with torch.no_grad():
            for part in parts:
                outputs = self.runner.outputs(every[part], self.runner.batch(every[part]), site)
                self._twins.see(outputs)
                found.append(self.read(outputs))
        return np.asarray(np.concatenate(found)[np.argsort(np.concatenate(parts), kind="stable")])

    def check(self) -> None:
        """Check that edits of the model do what they should, by the checks of `Instrument.check` and these: the model
        is unchanged, is in eval mode and gives the same outputs in two runs; a run that starts at a middle layer equals
        the full run; an edit changes the states of its own rows and pieces (tokens) only; a row that gets all states of
        a donor row (or the last state, if logits are read) gives the donor's behaviour; a causal model does not read
        later pieces.
        """
        check_all(self.runner, self._pieces, self._places, self.shift, self._states)
        for site in dict.fromkeys(block_input(place.site) for place in self._places) if self._replay else ():
            assert self._replay is not None  # for the reader of types
            self._replay.check(site)
        self._check_weights()
        self._check_readout()

    def _check_readout(self) -> None:
        """Check the readout. Logits of like size cancel where they are centred, so the tolerance is that of the model's
        output.
        """
        rows = np.arange(min(self.n_rows, ROWS))
        with torch.no_grad():
            given = self.runner.outputs(rows, self.runner.batch(rows))
            values = given.values[given.real] if given.values.ndim > 2 else given.values
            size = max(float(values.abs().max()), float(np.abs(self._clean[rows]).max()))
            for place in self._places:
                y = self.run_from(place.site, rows, {place.position: self._states[place][torch.from_numpy(rows)]})
                expect_equal(
                    y,
                    torch.from_numpy(self._clean[rows]),
                    "states that were read give the clean behaviour",
                    str(place),
                    dtype=self.runner.dtype,
                    scale=size,
                )

    def _check_weights(self) -> None:
        if checksum(self.runner.model.suffix.model) != self._checksum:
            raise EditFailed(
                "the model's parameters have changed",
                needed="those of the clean outputs",
                found="others",
                where=self.runner.model.name,
                next_step="build the instrument again",
            )

    def _check_varies(self) -> None:
        spread = np.abs(self._clean - self._clean.mean(0)).max()
        if not np.isfinite(self._clean).all() or not spread > _CONSTANT * np.abs(self._clean).max():
            raise NoBehaviour(
                "the behaviour never varies",
                needed="outputs that differ between rows",
                found=f"a spread of {spread:g} over {self.n_rows} rows",
                where=self.runner.model.name,
                next_step="read it at another piece, or choose other answers or rows",
            )
