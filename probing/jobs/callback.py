"""Defines `ProbingCallback`, which probes a model at regular steps of its training and writes the results into a
folder.
"""

from __future__ import annotations

import inspect
import json
import random
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers.trainer_callback import TrainerCallback

import probing as pb
from probing.errors import BadParameter, ConfigError, ProbingError, ProbingWarning, unknown_name
from probing.files.whole_files import folder_locked, write_atomically
from probing.jobs.study import task_level
from probing.models.language_model import LanguageModel
from probing.models.loading.identity import Checkpoint
from probing.provenance import digest, weights_digest
from probing.results.models import ModelFacts
from probing.results.probe import json_lines, read_results
from probing.system.machine import check_target
from probing.training.results import ProbeResults

if TYPE_CHECKING:
    from probing.text.corpus import Corpus

_OWN = ("store", "corpus", "task", "to", "rows", "sites", "progress", "replace", "array_size", "array_index")
_STEPS = "steps.jsonl"


class ProbingCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Probes a held-out corpus with the model that is being trained, and writes the results into a folder as it goes.

    With `Trainer(callbacks=[callback])` it probes before the first step, every `every` steps and after the last one,
    and writes the page when training ends. In another training loop, call `probe(model, step)`. Training is not
    changed: random generators, training modes of all modules and weights are restored or untouched.

    A run that is started again with the same folder does not repeat steps that were probed. If the weights at a step
    differ from before (the run continued from an earlier checkpoint, or it is another run), the step is probed again:
    the old results of this step and of later ones leave the folder, with a warning.

    Args:
        corpus: labelled corpus with splits, none of which the model should be trained on.
        task: task, or tasks, such as `upos` or `column:tense`.
        to: folder of the results, for `probing report` and `ProbeResults.read`.
        every: number of steps from one probing to the next.
        sites: names of the sites that are read, as for `extract`.
        rows: what a state stands for, such as `word:mean`, as for `extract`.
        tokenizer: fast tokenizer; None means the one that the Trainer has as its `processing_class`.
        name: name of the model in results; "" means that of its configuration, or of its class.
        run: name of this training run, if one folder holds several.
        keep_states: whether the states of every step are kept, in `to`/states.
        page: whether the page is written when the Trainer ends.
        options: further options of `train`, such as `probes`, `controls`, `measures` or `seeds`.

    Attributes:
        to, every: the arguments of these names.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        task: str | Sequence[str],
        to: str | Path,
        every: int,
        sites: str | Sequence[str] = "resid.*",
        rows: str = "word:mean",
        tokenizer: Any = None,
        name: str = "",
        run: str = "",
        keep_states: bool = False,
        page: bool = True,
        **options: Any,
    ) -> None:
        """Check the tasks and options, before training starts; the class describes them.

        Raises:
            BadParameter: `every` is not a positive number, or there is no such option.
            ConfigError: the rows have not the level of a task.
            UnknownName: there is no such task.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise BadParameter("a probing every how many steps?", needed="a whole number above 0", found=repr(every))
        known = [key for key in inspect.signature(pb.train).parameters if key not in _OWN]
        for key in options:
            if key not in known:
                raise unknown_name("option", key, known, where="ProbingCallback", error=BadParameter)
        self.to, self.every = Path(to), every
        self._corpus, self._tasks = corpus, [task] if isinstance(task, str) else list(task)
        self._sites, self._rows, self._tokenizer = sites, rows, tokenizer
        self._name, self._run, self._keeps, self._page = name, run, keep_states, page
        self._options, self._at = options, -1
        check_target(self.to)
        self._check_rows()

    def _check_rows(self) -> None:
        scope = self._rows.partition(":")[0]
        for task in self._tasks:
            level = task_level(task, self._corpus)
            if scope not in (level, "piece") and not (scope == "position" and level == "sentence"):
                raise ConfigError(
                    f"task {task} needs other rows", needed=f"rows of kind {level}:…", found=self._rows, where="rows"
                )

    def probe(self, model: nn.Module, step: int, *, tokenizer: Any = None) -> ProbeResults:
        """Probe the model in its current state, record the results for this step, and return them.

        Args:
            model: a Hugging Face model.
            step: number of steps trained.
            tokenizer: fast tokenizer, if the callback was given none.

        Raises:
            BadParameter: the step is not a whole number from 0 on, or there is no tokenizer.
            UnsupportedModel: the states of the model cannot be read.
            DegenerateDesign: nothing can be learned from the labels.
        """
        Checkpoint(step, self._run)
        pieces = self._tokenizer or tokenizer
        if pieces is None:
            raise BadParameter("the callback has no tokenizer", needed="tokenizer=", found="none")
        with _unchanged(model):
            reader = LanguageModel.from_modules(
                model, pieces, name=self._name or _name_of(model), step=step, run=self._run or None
            )
            return self._probed(reader, step)

    def _probed(self, reader: LanguageModel, step: int) -> ProbeResults:
        identity = reader.identity()
        asked = [identity, self._corpus.fingerprint, self._tasks, self._sites, self._rows, self._options]
        key, weights = digest(json.loads(json.dumps(asked, default=repr))), weights_digest(identity["model"])
        self._drop_others(step, weights)
        if key not in self._done():
            store = self.to / "states" / f"step-{step}-{key[:8]}"
            pb.extract(reader, self._corpus, sites=self._sites, rows=self._rows, to=store, progress=False)
            for task in self._tasks:
                pb.train(store, self._corpus, task=task, to=self.to, progress=False, **self._options)
            if not self._keeps:
                shutil.rmtree(store)
            self._record(key, step)
        return ProbeResults(one for one in self.results if self._is_of(one, step))

    @property
    def results(self) -> ProbeResults:
        """All results in the folder, of all steps; empty if there are none."""
        return ProbeResults.read(self.to) if (self.to / "results.jsonl").is_file() else ProbeResults(())

    def _is_of(self, result: Any, step: int) -> bool:
        model = ModelFacts.of_result(result)
        return (model.run, model.step) == (self._run, step)

    def _drop_others(self, step: int, weights: str) -> None:
        """Drop results of this run from this step on, if those of this step are of other weights: no curve joins two
        trainings.
        """
        path = self.to / "results.jsonl"
        if not path.is_file():
            return
        with folder_locked(self.to):
            every = read_results(path)
            if all(ModelFacts.of_result(one).weights == weights for one in every if self._is_of(one, step)):
                return
            kept = [one for one in every if not self._is_later(one, step)]
            self._forget(step)  # first: a step that is dropped must not count as done
            write_atomically(path, json_lines(kept).encode())
        warnings.warn(
            f"step {step} has other weights than before: what was probed from there on, in another training, "
            "is dropped; to keep both, name each with run=",
            ProbingWarning,
            stacklevel=4,
        )

    def _is_later(self, result: Any, step: int) -> bool:
        """Return whether a result is of this run, at this step or after it."""
        model = ModelFacts.of_result(result)
        return model.run == self._run and model.step is not None and model.step >= step

    def _forget(self, step: int) -> None:
        """Remove the records of this run from this step on."""
        file = self.to / _STEPS
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        of = [json.loads(line) for line in lines]
        kept = [line for line, one in zip(lines, of, strict=True) if one["run"] != self._run or int(one["step"]) < step]
        write_atomically(file, "".join(kept).encode())

    def _done(self) -> set[str]:
        """Return the keys of what was probed."""
        file = self.to / _STEPS
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return {str(json.loads(line)["key"]) for line in lines}

    def _record(self, key: str, step: int) -> None:
        file = self.to / _STEPS
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        line = json.dumps({"run": self._run, "step": step, "key": key}, sort_keys=True)
        write_atomically(file, f"{before}{line}\n".encode())

    # What the Trainer calls.

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Probe the model before the first step of a new or resumed run; errors stop the run. The `Trainer` calls this,
        with its arguments, state and control.
        """
        if state.is_world_process_zero:
            self._at = state.global_step
            self.probe(given["model"], state.global_step, tokenizer=given.get("processing_class"))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Probe the model every `every` steps and at the last one; an error of this package becomes a warning, and
        training continues. The `Trainer` calls this, with its arguments, state and control.
        """
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._probe_once(state, given)

    # A run that another callback stops early ends at a step that `on_step_end` cannot know to be the last. Before the
    # Trainer loads the best checkpoint in place of it, one of these two events follows.

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Probe the model if training stops here. The `Trainer` calls this, with its arguments, state and control."""
        if control.should_training_stop:
            self._probe_once(state, given)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Probe the model if training stops here. The `Trainer` calls this, with its arguments, state and control."""
        if control.should_training_stop:
            self._probe_once(state, given)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Probe the last step if it has not been probed, and write the page of the results, unless `page` is False. The
        `Trainer` calls this, with its arguments, state and control.
        """
        if not args.load_best_model_at_end:  # else the weights may be those of another step
            self._probe_once(state, given)
        if state.is_world_process_zero and self._page and len(self.results):
            pb.report(self.to)

    def _probe_once(self, state: Any, given: dict[str, Any]) -> None:
        """Probe the model, unless it was at this step; an error of this package becomes a warning."""
        step = state.global_step
        if not state.is_world_process_zero or step == self._at:
            return
        self._at = step
        try:
            self.probe(given["model"], step, tokenizer=given.get("processing_class"))
        except ProbingError as error:
            warnings.warn(f"step {step} was not probed: {error}", ProbingWarning, stacklevel=3)


def _name_of(model: nn.Module) -> str:
    """Return the name in the model's configuration, of a folder its last part; else that of its class."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return (Path(name).name if Path(name).is_dir() else name) if name else type(model).__name__


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Within the block modules are in the mode for evaluation; after it modes and generators are what they were."""
    modes = {module: module.training for module in model.modules()}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
        random.setstate(python)
        np.random.set_state(numpy)
