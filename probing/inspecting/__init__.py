"""Summarises hidden states and attention of a model on some texts, and tests each attention pattern by replacing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, unknown_name
from probing.inspecting.attention import KINDS, SCORES, AttentionSummary, pattern_differences
from probing.inspecting.checking import HeadCheck, HeadMeans, disagreement, rounding_of
from probing.inspecting.prompts import Prompt, Texts, batches, prompts_of
from probing.inspecting.reading import Reader
from probing.inspecting.states import StateSummary, aligned_tokens, differences
from probing.models.language_model import LanguageModel
from probing.models.site import select_sites
from probing.provenance import digest, model_called
from probing.results.inspection import (
    NOTHING_TO_REPLACE,
    ONE_GROUP,
    ONE_TEXT,
    REPLACEMENTS,
    SINK,
    Comparison,
    InspectedText,
    Inspection,
)
from probing.seeds import child_seed
from probing.states.store.views import count_unknown, unknown_pieces_warning, warn_of_unknown
from probing.statistics.clusters import mean_intervals
from probing.system.machine import target_of
from probing.system.progress import steps_bar
from probing.text.corpus import Example

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 20  # texts whose patterns are kept
STRIKING = ("sharpness", *SCORES[2:5], *SCORES[6:10])  # scores whose largest values catch the eye
_PER_SITE = ("order", "text", "position", "token", "is_special")


def inspect(
    model: LanguageModel,
    texts: Texts,
    *,
    sites: str | Sequence[str] = "resid.*",
    attention: bool = False,
    check: bool = False,
    against: str | None = None,
    spans: Mapping[str, tuple[str, str]] | None = None,
    chat_template: bool = False,
    subset: str | Sequence[int] | None = None,
    max_texts: int = 500,
    replacements: str | Sequence[str] | None = None,
    draws: int = 1,
    seed: int = 0,
    to: str | Path | None = None,
    progress: bool | None = None,
) -> Inspection:
    """Summarise hidden states and attention patterns on texts, and check what the output loses without each pattern.

    Everything is descriptive. With `check`, every head's pattern is made uniform, replaced by its mean by position,
    permuted over the keys other than token 0, and its output is replaced by its mean; the KL divergence of the model's
    output, in bits, measures how much each replacement changes. A pattern whose replacement changes nothing does not
    explain the output on these texts.

    Args:
        model: the model; for attention, loaded with `attention="eager"`.
        texts: a text, texts, examples or a corpus.
        sites: sites whose states are summarised.
        attention: whether to summarise the attention patterns.
        check: whether to check them, too; needs a head over the vocabulary.
        against: a text to compare the only text with, token by token.
        spans: by name, a substring of the text and one of `against`, to compare instead of single tokens.
        chat_template: whether each text is a user's message, rendered by the tokenizer's chat template.
        subset: read only these examples of a corpus: a split, ordinals, or text such as `0,5,20:40`.
        max_texts: largest number of texts; if there are more, a random choice of them is read.
        replacements: ways to replace a head that are checked, such as `"uniform"` or a list; None: all four.
        draws: number of permutations of each pattern that are averaged.
        seed: seed of the choice of texts, of permutations and of resampling.
        to: folder for results, and for the units by which a killed check resumes; None: nothing is written.
        progress: False: show nothing. None or True: show a bar in a terminal, a changing line in a notebook, and
            otherwise a line on standard error every 30 s (with True, also one at the end).

    Raises:
        UnsupportedModel: the model has no attention, its attention cannot be returned, or it has no output to check.
        ReplayUnavailable: the model cannot be run from a block in its middle.
        UnknownSite: the model has no such site.
        CorpusError, UnknownName, BadParameter: there is no text, or a text or option cannot be used.
        CannotReachFile: `to` cannot be used; it is checked before work begins.

    References:
        Jain and Wallace 2019, Attention is not Explanation. Wiegreffe and Pinter 2019, Attention is not not
        Explanation. Kobayashi et al. 2020, Attention is Not Only a Weight.
    """
    for name, number in (("draws", draws), ("max_texts", max_texts)):
        if not isinstance(number, Integral) or number < 1:
            raise BadParameter(f"{name} is a count", needed="a whole number, 1 or more", found=repr(number))
    if replacements and not check:
        raise BadParameter("replacements are those of a check", needed="check=True", found=f"{replacements!r} alone")
    folder, wanted = target_of(to), select_sites(sites, model.sites)
    if not wanted:
        raise BadParameter("there are no sites to read", needed="a site, such as resid.*", found=repr(sites))
    prompts, count = prompts_of(
        model, texts, chat_template=chat_template, subset=subset, max_texts=max_texts, seed=seed
    )
    known = count_unknown((prompt.encoded for prompt in prompts), model.tokenizer.unk_token_id)
    warn_of_unknown(known)
    pairs = _aligned(model, prompts, against, spans or {}, chat_template)
    states = StateSummary(wanted, model.sites)
    reader = Reader(model, states.needed)
    if attention or check:
        reader.find_attention()
    ways = _ways(replacements, len({prompt.encoded.ids.tobytes() for prompt in prompts})) if check else ()
    if check:
        reader.check_running()
    patterns, means = AttentionSummary(reader, SHOWN), HeadMeans()
    for batch in batches(prompts):
        read = reader.read(batch)
        states.add(read)
        if reader.layers:
            patterns.add(read)
        if check:
            means.add(read)
    checks, effects, rounding = None, None, rounding_of(reader.trunk.dtype)
    if check:
        checked = HeadCheck(reader, means, ways, draws, seed)
        identity = None if folder is None else _identity(model, prompts, chat_template)
        with steps_bar("check", "heads", None, progress) as advance:
            effects = checked.run(prompts, folder=folder, identity=identity, advance=advance)
        checks = _checks_table(reader, effects, prompts, ways, seed)
    found = Inspection(
        model_called(model.identity()["model"] | {"source": model.facts()["name"]}),
        [InspectedText(prompt.id, prompt.text, prompt.tokens) for prompt in prompts],
        count,
        _tokens_table(states),
        _sites_table(states),
        _heads_table(patterns, prompts, seed) if reader.layers else None,
        checks,
        _compared(reader, wanted, prompts, *pairs) if pairs is not None else None,
        patterns.patterns,
        reader.layers,
        {} if effects is None else _disagreement(patterns, effects, ways, rounding),
        {"chat_template": chat_template, "draws": draws, "seed": seed, "texts_shown": min(SHOWN, len(prompts))}
        | ({"rounding": rounding} if check else {}),
        _doubts(known) + _notes(prompts, count, states, reader.has_sink, ways, effects),
    )
    if folder is not None:
        found.write(folder)
    return found


def _ways(asked: str | Sequence[str] | None, texts: int) -> tuple[str, ...]:
    """Return the replacements to check, in the order of `REPLACEMENTS`; of one text no mean by position. `texts` is
    the number of different texts.

    Raises:
        UnknownName: there is no such replacement.
        BadParameter: none is left.
    """
    asked = [asked] if isinstance(asked, str) else asked
    for name in asked or ():
        if name not in REPLACEMENTS:
            raise unknown_name("replacement", name, REPLACEMENTS)
    chosen = REPLACEMENTS if asked is None else asked
    found = tuple(name for name in REPLACEMENTS if name in chosen and (name != "position_mean" or texts > 1))
    if not found:
        raise BadParameter(
            "there is no replacement to check",
            needed="one of: " + ", ".join(REPLACEMENTS) + "; of one text, or equal ones, not position_mean",
            found=", ".join(chosen) or "none",
        )
    return found


def _aligned(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    against: str | None,
    spans: Mapping[str, tuple[str, str]],
    chat_template: bool,
) -> tuple[Prompt, dict[str, tuple[Any, Any]]] | None:
    """Return the text to compare with, and the pairs of token positions to compare; None if there is none."""
    if against is None:
        if spans:
            raise BadParameter("spans name parts of two texts", needed="a text to compare with", found="one text")
        return None
    if len(prompts) != 1:
        raise BadParameter(
            "one text is compared with another",
            needed="one text beside the one to compare with",
            found=f"{len(prompts)} texts",
            next_step="inspect one text, or compare stores with `probing similarity`",
        )
    other = prompts_of(model, [Example("against", against)], chat_template=chat_template)[0][0]
    return other, aligned_tokens(prompts[0], other, spans)


def _compared(
    reader: Reader, sites: Sequence[str], prompts: Sequence[Prompt], other: Prompt, pairs: Mapping[str, tuple[Any, Any]]
) -> Comparison:
    import pandas as pd

    one, two = reader.read(prompts[:1], sites), reader.read([other], sites)
    states = {site: (one.states[site][0], two.states[site][0]) for site in sites}
    heads = None
    if reader.layers and len(prompts[0]) == len(other):
        stacked = [
            np.stack([read.patterns[layer][0].double().cpu().numpy() for layer in reader.layers]) for read in (one, two)
        ]
        heads = pd.DataFrame(pattern_differences(stacked[0], stacked[1], reader.layers))
    text = InspectedText(other.id, other.text, other.tokens)
    return Comparison(text, pd.DataFrame(differences(states, pairs)), heads)


def _tokens_table(states: StateSummary) -> DataFrame:
    import pandas as pd

    whole = pd.concat([pd.DataFrame(rows) for rows in states.rows], ignore_index=True)
    ordered = whole.sort_values(["text", "order", "position"], kind="stable", ignore_index=True).drop(columns="order")
    return ordered[["text", "text_id", "site", "position", "token", "is_special", *_measured(ordered)]]


def _measured(table: DataFrame) -> list[str]:
    named = ("text", "text_id", "site", "position", "token", "is_special", "order")
    return [name for name in table.columns if name not in named]


def _sites_table(states: StateSummary) -> DataFrame:
    """Return a row for each site: norms of tokens other than token 0 and of token 0, medians, and the geometry."""
    import pandas as pd

    rows, geometry = [], states.geometry()
    for order, site in enumerate(states.sites):
        parts = [part for part in states.rows if part["order"] == order]
        position = np.concatenate([part["position"] for part in parts])
        rest = position > 0  # empty if every text is one token
        norm, row = _column(parts, "norm"), dict[str, Any](site=site)
        low, middle, high = np.quantile(norm[rest], [0.05, 0.5, 0.95]) if rest.any() else [np.nan] * 3
        numbers = {"norm_median": middle, "norm_low": low, "norm_high": high}
        numbers["norm_first_token"] = np.median(norm[position == 0])
        for name in _MEDIANS:
            numbers[f"{name}_median"] = np.median(_column(parts, name)[rest]) if rest.any() else np.nan
        largest = np.unique(_column(parts, "coordinate_1")[rest], return_counts=True)
        row |= {name: float(value) for name, value in numbers.items()}
        row["largest_coordinate"] = int(largest[0][largest[1].argmax()]) if rest.any() else None
        row["massive_first_token"] = int(_column(parts, "massive")[position == 0].sum())
        row["massive_elsewhere"] = int(_column(parts, "massive")[position > 0].sum())
        rows.append(row | {name: value for name, value in geometry[order].items() if name != "site"})
    return pd.DataFrame(rows)


def _column(parts: Sequence[Mapping[str, Any]], name: str) -> NDArray[Any]:
    """Return a column of one site's tokens; NaN where the site lacks it."""
    return np.concatenate([part.get(name, np.full(len(part["position"]), np.nan)) for part in parts])


_MEDIANS = ("cosine_to_previous", "attention_norm", "attention_cosine", "mlp_norm", "mlp_cosine", "largest_share")


def _heads_table(summary: AttentionSummary, prompts: Sequence[Prompt], seed: int) -> DataFrame:
    import pandas as pd

    scores, queries = summary.stacked()  # (N, 3, L, H, S), (N, L, S)
    groups = np.array([prompt.group for prompt in prompts])
    _, _, n_layers, n_heads, n_scores = scores.shape
    means, bounds = mean_intervals(scores.reshape(len(scores), -1), groups, seed=child_seed(seed, "heads"))
    means, bounds = means.reshape(scores.shape[1:]), bounds.reshape(*scores.shape[1:], 2).clip(min=0)
    is_share = np.array([name not in ("entropy", "distance", "distance_spread") for name in SCORES])
    bounds[..., is_share, :] = bounds[..., is_share, :].clip(max=1)
    known = np.isfinite(scores[:, 0]).sum(0)  # texts
    rows = [
        {
            "layer": layer,
            "head": head,
            "score": SCORES[s],
            "value": means[0, k, head, s],
            "low": bounds[0, k, head, s, 0],
            "high": bounds[0, k, head, s, 1],
        }
        | {kind: means[i, k, head, s] for i, kind in enumerate(KINDS) if i}
        | {"texts": int(known[k, head, s]), "queries": int(queries[:, k, s].sum())}
        for k, layer in enumerate(summary.reader.layers[:n_layers])
        for head in range(n_heads)
        for s in range(n_scores)
    ]
    return pd.DataFrame(rows)


def _checks_table(reader: Reader, effects: Any, prompts: Sequence[Prompt], ways: Sequence[str], seed: int) -> DataFrame:
    """Return a row for each head and replacement, from effects `(N, R, L, H, 2)`."""
    import pandas as pd

    groups = np.array([prompt.group for prompt in prompts])
    means, bounds = mean_intervals(effects.reshape(len(effects), -1), groups, seed=child_seed(seed, "checks"))
    means, bounds = means.reshape(effects.shape[1:]), bounds.reshape(*effects.shape[1:], 2).clip(min=0)
    known = np.isfinite(effects[..., 0]).sum(0)
    return pd.DataFrame(
        [
            {"layer": layer, "head": head, "replacement": way}
            | {name: means[r, k, head, at] for at, name in enumerate(("kl", "kl_last"))}
            | {
                f"{name}_{end}": bounds[r, k, head, at, e]
                for at, name in enumerate(("kl", "kl_last"))
                for e, end in enumerate(("low", "high"))
            }
            | {"texts": int(known[r, k, head])}
            for r, way in enumerate(ways)
            for k, layer in enumerate(reader.layers)
            for head in range(reader.n_heads)
        ]
    )


def _disagreement(
    summary: AttentionSummary, effects: Any, ways: Sequence[str], rounding: float
) -> dict[str, dict[str, dict[str, int]]]:
    """Return, by replacement and score, how many heads have a striking pattern and an effect below the median."""
    scores, _ = summary.stacked()
    means = _mean(scores[:, 0])
    named = {name: means[..., s] for s, name in enumerate(SCORES)}
    named["sharpness"] = 1.0 - named["entropy_share"]
    striking = {name: named[name] for name in STRIKING}
    return {way: disagreement(striking, _mean(effects[:, r, ..., 0]), rounding) for r, way in enumerate(ways)}


def _mean(values: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over the first axis of what is not NaN; NaN where all is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(0)
    return np.asarray(np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0)))


def _doubts(known: NDArray[np.int64]) -> list[str]:
    """Return a note on unknown tokens, if these are many; `known` is what `count_unknown` returned."""
    unknown, tokens = known.sum(0).tolist()
    sentence = unknown_pieces_warning(unknown / tokens if tokens else None)
    return [sentence] if sentence else []


def _notes(
    prompts: Sequence[Prompt], count: int, states: StateSummary, has_sink: bool, ways: Sequence[str], effects: Any
) -> list[str]:
    """Return what these texts do not allow; `effects` are those of the check, None if there was none."""
    groups = len({prompt.group for prompt in prompts})
    found = [ONE_TEXT] if len(prompts) == 1 else [ONE_GROUP.format(len(prompts))] if groups == 1 else []
    if len({prompt.encoded.ids.tobytes() for prompt in prompts}) == 1 and effects is not None:
        found.append("The mean pattern by position needs several texts: of one text it is the pattern itself.")
    if 1 < groups < 20:
        found.append(f"Intervals rest on {groups} groups of texts, which is few.")
    if has_sink:
        found.append(SINK)
    for r, way in enumerate(ways):
        missing = int(np.isnan(effects[:, r, ..., 0]).all((1, 2)).sum())
        if missing:
            found.append(NOTHING_TO_REPLACE.format(way, missing, len(prompts)))
    if count > len(prompts):
        found.append(f"{len(prompts):,} of {count:,} texts were read, chosen at random.")
    total = sum(len(prompt) for prompt in prompts)
    if total > states.kept_tokens:
        found.append(f"The geometry of sites is that of {states.kept_tokens:,} of {total:,} tokens.")
    return found


def _identity(model: LanguageModel, prompts: Sequence[Prompt], chat_template: bool) -> str:
    """Return a digest of all that determines the check of a batch: the model and every text."""
    return digest([model.identity(), [prompt.encoded.ids.tolist() for prompt in prompts], chat_template])
