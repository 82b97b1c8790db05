"""Says when a text that is generated raises an alarm: which score is compared with which threshold, and when. Options
call tokens "pieces".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probing.errors import BadParameter, OtherRows, unknown_name, warn_user
from probing.scoring.recipe import Recipe
from probing.statistics.aggregations import AGGREGATIONS, running
from probing.statistics.thresholds import Threshold

AS_TRAINED, SO_FAR = "as_trained", "as_trained_so_far"
Limits = float | Threshold | Mapping[str, float | Threshold] | None


@dataclass(frozen=True)
class Alarm:
    """Reports that the score of a generated text has passed its threshold.

    Attributes:
        probe: name of the probe.
        sequence: number of the text, counted from 0 over all generations within the block.
        piece: number of the scored token at which the threshold is passed, counted from 0; with `as_trained` the last.
        score: the score after that token.
        threshold: the threshold.
        label: class whose log odds are the score; "" for a number.
    """

    probe: str
    sequence: int
    piece: int
    score: float
    threshold: float
    label: str = ""


@dataclass(frozen=True)
class AlarmRule:
    """Says which score of a text is compared with the threshold, and when.

    Attributes:
        alarm_on: `as_trained`, the score of the whole text, once it is finished; `as_trained_so_far`, the score of the
            text so far, after every token; or an aggregation of the tokens' scores so far, after every token.
        role: `assistant` or `all`: the tokens that count.
        decay, width: settings of the aggregation.
    """

    alarm_on: str
    role: str = "assistant"
    decay: float = 0.9
    width: int = 8

    def __str__(self) -> str:
        more = {"exponential": f" (decay {self.decay:g})", "rolling": f" (width {self.width})"}
        more |= {"rolling_max": more["rolling"]}
        return f"{self.alarm_on}{more.get(self.alarm_on, '')} over pieces of role {self.role}"

    def compared(self, scores: Any, so_far: Any) -> Any:
        """Return the values `(n,)` that are compared after each of n tokens, of the scores of tokens and of prefixes;
        not for `as_trained`.
        """
        if self.alarm_on == SO_FAR:
            return so_far
        return running(scores, self.alarm_on, decay=self.decay, width=self.width)

    def check(self, recipes: Mapping[str, Recipe]) -> None:
        """Check that the rule can be applied to the probes.

        Raises:
            BadParameter: there is no such aggregation or role, or a probe gives a text as a whole no score.
        """
        if self.alarm_on not in (AS_TRAINED, SO_FAR):
            if self.alarm_on not in AGGREGATIONS:
                raise unknown_name("alarm_on", self.alarm_on, (AS_TRAINED, SO_FAR, *AGGREGATIONS), error=BadParameter)
            running(np.zeros(1), self.alarm_on, decay=self.decay, width=self.width)
        elif others := [recipe for recipe in recipes.values() if not recipe.own_pool]:
            raise BadParameter(
                "this probe gives a text as a whole no score",
                needed="rows of whole texts (sentence:…, position:end)",
                found=f"rows {others[0].rows}",
                where=others[0].name,
                next_step=f"aggregate the scores of the pieces: alarm_on='{AGGREGATIONS[0]}', 'mean', …",
            )
        if self.role not in ("assistant", "all"):
            raise unknown_name("role", str(self.role), ("assistant", "all"), error=BadParameter)


@dataclass(frozen=True)
class AlarmThreshold(Threshold):
    """Holds a threshold that was chosen on generated texts: a text raises an alarm if its highest compared score is
    above it, so that the shares are those of texts.

    Attributes:
        rule: which score of a text is compared, and when.
    """

    rule: AlarmRule | None = None


def rule_of(recipes: Mapping[str, Recipe], limits: Limits, alarm_on: str | None, role: str, **how: Any) -> AlarmRule:
    """Return the rule for `alarm_on`. None: that by which the thresholds were chosen, which for thresholds in the cards
    of probes of whole texts is `as_trained`; of numbers `last`.
    """
    given = [one for one in (limits.values() if isinstance(limits, Mapping) else [limits]) if one is not None]
    chosen = [one.rule for one in given if isinstance(one, AlarmThreshold) and one.rule is not None]
    if alarm_on is None and chosen:
        return AlarmRule(chosen[0].alarm_on, role, chosen[0].decay, chosen[0].width)
    of_texts = not given and all(recipe.own_pool and recipe.threshold is not None for recipe in recipes.values())
    return AlarmRule(alarm_on or (AS_TRAINED if of_texts else "last"), role, **how)


def limits_of(recipes: Mapping[str, Recipe], threshold: Limits, rule: AlarmRule) -> dict[str, float]:
    """Return the alarm threshold of each probe by name: the given one, else the threshold in the card of the probe.
    Warn where it was chosen for other scores than those that the rule compares.

    Raises:
        UnknownName, BadParameter: a threshold is for an unknown probe or not finite, or a probe has none.
    """
    found = {}
    if isinstance(threshold, Mapping) and (unknown := [name for name in threshold if name not in recipes]):
        raise unknown_name("probe", str(unknown[0]), recipes, error=BadParameter)
    for name, recipe in recipes.items():
        given = threshold.get(name) if isinstance(threshold, Mapping) else threshold
        if given is None and recipe.threshold is None:
            flagged = (recipe.probe.about.get("threshold") or {}).get("label")
            raise BadParameter(
                "a callback needs a threshold",
                needed="threshold, or a probe trained with threshold='fpr=…'",
                found=f"a threshold of {flagged!r} only, while {recipe.label!r} is watched" if flagged else "none",
                where=name,
            )
        used = recipe.threshold if given is None else given
        found[name] = float(used.value if isinstance(used, Threshold) else used)  # type: ignore[arg-type]
        if not math.isfinite(found[name]):
            raise BadParameter("a threshold is a number", needed="a finite number", found=str(given), where=name)
        if isinstance(used, Threshold) and (difference := _difference(recipe, used, rule)):
            warn_user(
                f"{name}: {difference}. Its share of {used.fpr:g} does not hold here: choose a threshold on texts that "
                f"the model generates, with `scores.threshold(…)` of `watch` without a callback",
                OtherRows,
            )
    return found


def _difference(recipe: Recipe, used: Threshold, rule: AlarmRule) -> str:
    """Return what differs between the scores on which a threshold was chosen and those compared; "": nothing."""
    if isinstance(used, AlarmThreshold):
        return "" if used.rule == rule else f"its threshold was chosen on {used.rule}, and is compared with {rule}"
    if not recipe.own_pool:
        return (
            f"its threshold was chosen on single rows ({recipe.rows}); a text has many pieces, and any of them can "
            "raise the alarm"
        )
    if rule.alarm_on != AS_TRAINED:
        return (
            f"its threshold was chosen on whole texts ({recipe.rows}), and is compared with {rule.alarm_on} after "
            "every piece of an unfinished text, so that far more texts raise an alarm "
            f"(alarm_on='{AS_TRAINED}' compares the finished text)"
        )
    without = "" if rule.role == "all" or recipe.reading.chat else " without their prompts"
    return (
        f"its threshold was chosen on whole texts of a corpus ({recipe.rows}), and is compared with what a model "
        f"generates{without}"
    )
