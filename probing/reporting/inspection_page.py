"""Writes the page of an inspection, which sets each attention map beside its checked effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.files.whole_files import write_atomically
from probing.reporting.blocks import Block, Fold, Section, Table, Words, map_table, maps_figure
from probing.reporting.grids import HeatMap
from probing.reporting.inspection_tables import (
    CATCHING,
    DEFINITIONS,
    FEW,
    NOTHING_BESIDE_FIRST,
    agreement,
    differing_heads,
    effect_of,
    is_of_single_tokens,
    kl,
    largest_effects,
    least_effects,
    rounding,
    site_rows,
    standing_out,
    striking_rows,
)
from probing.reporting.page import rendered_sections
from probing.reporting.wording import plural
from probing.results.inspection import SINK, WAYS, InspectedText, Inspection
from probing.system.machine import with_typed_errors

TITLES = {
    "entropy": "entropy, bits",
    "entropy_share": "entropy as a share of uniform",
    "first_token": "weight on token 0",
    "punctuation": "weight on punctuation",
    "distance": "mean distance, tokens",
    "distance_spread": "spread of the distance, tokens",
    "self": "weight on the token itself",
    "previous_token": "weight on the token before",
    "same_token": "weight on the same token before",
    "induction": "weight on the token after the same token (induction)",
    "sink_mass": "weight on the sink, which is no token",
    "sharpness": "low entropy",
}
_MOST_TOKENS, _MOST_HEADS = 48, 12
NO_HEAD_STANDS_OUT = (
    "No head stands out: every score is equal for all heads, or not defined because no query may attend to two keys."
)

Heads = Sequence[tuple[int, int]]


@with_typed_errors
def write_page(found: Inspection, folder: Path, *, heads: Heads = ()) -> Path:
    """Write the page of an inspection, `inspection.html`, and return its path.

    Args:
        found: the inspection.
        folder: folder of the page.
        heads: pairs (layer, head) whose attention maps are shown; none: those that stand out.

    Raises:
        BadParameter: there is no such head.
        CannotReachFile: the folder cannot be used.
    """
    path = folder / "inspection.html"
    sections = [states_section(found)]
    if found.heads is not None:
        sections = [summary_section(found), *sections, heads_section(found), maps_section(found, heads)]
    if found.comparison is not None:
        sections.append(comparison_section(found))
    sections.append(Section("limits", "What this page cannot show", blocks=[Words("ul", found.limits)]))
    about = [found.model, plural(len(found.texts), "text"), *([found.texts[0].text] if len(found.texts) == 1 else [])]
    write_atomically(path, rendered_sections(sections, heading="A look inside the model", about=about))
    return path


def _labels(text: InspectedText) -> tuple[str, ...]:
    """Return a name for each token that is shown, numbered so that no two are equal."""
    return tuple(f"{k} {token.strip() or repr(token)}" for k, token in enumerate(text.tokens[:_MOST_TOKENS]))


def _first_text(found: Inspection, column: str) -> NDArray[np.float64]:
    """Return a column of the first text's tokens as `(sites, tokens)`, of the tokens that are shown."""
    table = found.tokens[found.tokens["text"] == 0]
    values = table[column].to_numpy(dtype=np.float64).reshape(len(found.sites), -1)
    return values[:, :_MOST_TOKENS]


def summary_section(found: Inspection) -> Section:
    """Return the section on top of the page: the heads with the largest checked effects, and what patterns tell."""
    claims = agreement(found)
    largest = [(layer, head, float(_least(found, layer, head))) for layer, head in largest_effects(found, FEW)]
    if largest:
        heads = ", ".join(f"{layer}.{head} ({kl(effect)} bits)" for layer, head, effect in largest)
        many = int((least_effects(found) > rounding(found)).sum())
        claims = [
            f"Replacing a head (layer.head) changes the output most for {heads}: KL, mean over tokens, by whichever "
            f"replacement changes it least. {many} of {least_effects(found).size} heads change it by more than "
            "rounding, whichever way they are replaced.",
            *claims,
        ]
    return Section("summary", "In short", claims=claims)


def _least(found: Inspection, layer: int, head: int) -> float:
    """Return the effect of a head under the replacement that changes the output least."""
    return float(least_effects(found)[found.layers.index(layer), head])


def states_section(found: Inspection) -> Section:
    """Return the section on hidden states: maps of token by site for the first text, and a table of sites."""
    labels, sites = _labels(found.texts[0]), tuple(found.sites["site"])
    norms = np.log10(np.maximum(_first_text(found, "norm"), 1e-9))
    maps = [_site_map("Size of states", sites, labels, norms, "log₁₀ of the norm")]
    if "cosine_to_previous" in found.tokens:
        cosine = _first_text(found, "cosine_to_previous")
        if np.isfinite(cosine).any():
            maps.append(_site_map("What a block changes", sites, labels, cosine, "cosine to the site before"))
    share = _first_text(found, "largest_share")
    maps.append(
        _site_map("Outlying coordinates", sites, labels, share, "share of Σ x² in the three largest coordinates")
    )
    head, rows = site_rows(found)
    notes = [*found.notes, *([NOTHING_BESIDE_FIRST] if is_of_single_tokens(found) else [])]
    caption = "Each site: norms of tokens other than token 0 (median, 5 to 95 %) and of token 0, and its geometry."
    table = Table(caption, head, rows, source="inspection-sites.parquet")
    of_first = "the text" if len(found.texts) == 1 else f"the first of {len(found.texts)} texts"
    return Section(
        "states",
        "Hidden states",
        about=f"Maps of {of_first}; resid.l enters block l, the last one leaves the last block before any final norm",
        notes=notes,
        blocks=[maps_figure(maps), table],
        folds=[Fold("The maps as tables", [map_table(one) for one in maps])],
    )


def _site_map(title: str, sites: tuple[str, ...], labels: tuple[str, ...], values: Any, label: str) -> HeatMap:
    return HeatMap(title, sites, labels, values, label, "site", "token", is_upward=True)


def heads_section(found: Inspection) -> Section:
    """Return the section on all heads: maps of layer by head, the checked effect first, and a table of those that
    stand out.
    """
    effects = {way: grid for way in found.replacements if np.isfinite(grid := found.grid(way, "kl")).any()}
    largest = max((float(np.nanmax(np.abs(grid))) for grid in effects.values()), default=0.0)
    of_checks = [
        replace(_head_map(found, WAYS[way], grid, "KL of the output, bits"), least_limit=largest)
        for way, grid in effects.items()
    ]
    of_scores = [
        _head_map(found, TITLES[score], found.grid(score), "mean over queries and texts")
        for score in ("entropy_share", *CATCHING, *(("sink_mass",) if SINK in found.notes else ()))
        if np.isfinite(found.grid(score)).any()
    ]
    head, rows = striking_rows(found)
    caption = (
        "The head with the largest score of each kind (of entropy the smallest), and what uniform attention and the "
        "shares ‖α v W_O‖ (weighted) score there."
    )
    if found.checks is not None:
        caption += f" KL is that of the output in bits: {'; '.join(WAYS[way] for way in found.replacements)}."
    blocks: list[Block] = [
        Table(caption, head, rows, texts=(0, 1), source="inspection-heads.parquet")
        if rows
        else Words("p", [NO_HEAD_STANDS_OUT])
    ]
    blocks += [maps_figure(of_checks)] if of_checks else []
    folds = [Fold("What each score counts", [Words("ul", DEFINITIONS)])]
    folds += [Fold("Scores of all heads, by layer", [maps_figure(of_scores)])] if of_scores else []
    title = "Heads: what catches the eye" + ("" if found.checks is None else ", and what it does")
    return Section("heads", title, blocks=blocks, folds=folds)


def _head_map(found: Inspection, title: str, values: NDArray[np.float64], label: str) -> HeatMap:
    layers = tuple(f"layer {layer}" for layer in found.layers)
    heads = tuple(str(head) for head in range(values.shape[1]))
    return HeatMap(title, layers, heads, values, label, "layer", "head", is_upward=True)


def _chosen(found: Inspection, heads: Heads) -> list[tuple[int, int]]:
    """Return the heads whose maps are shown.

    Raises:
        BadParameter: there is no such head.
    """
    most = found.grid("entropy").shape[1]
    for layer, head in heads:
        if layer not in found.layers or head >= most:
            raise BadParameter(
                f"there is no head {layer}.{head}",
                needed=f"a layer of {found.layers[0]} to {found.layers[-1]} and a head of 0 to {most - 1}",
                found=f"{layer}.{head}",
            )
    if heads:
        return list(heads)
    striking = [(layer, head) for _, layer, head in standing_out(found)]
    chosen = list(dict.fromkeys([*largest_effects(found, FEW), *striking]))[:_MOST_HEADS]
    return chosen or [(found.layers[0], head) for head in range(min(FEW, most))]


def maps_section(found: Inspection, heads: Heads) -> Section:
    """Return the section of attention maps, each beside the checked effect of its head."""
    text, labels = found.texts[0], _labels(found.texts[0])
    blocks: list[Block] = []
    for layer, head in _chosen(found, heads):
        both = found.patterns[0][:, found.layers.index(layer), head, : len(labels), : len(labels)].astype(np.float64)
        kinds = ("attention", "value-weighted share ‖α v W_O‖")
        maps = [
            HeatMap(f"Head {layer}.{head}", labels, labels, values, kind, "query", "key", is_share=True)
            for kind, values in zip(kinds, both, strict=True)
        ]
        maps[1:1] = _effect_map(found, layer, head)
        blocks.append(maps_figure(maps, _caption(found, layer, head)))
    cut = f", its first {_MOST_TOKENS} tokens" if len(text.tokens) > _MOST_TOKENS else ""
    about = f"Attention of “{text.text}”{cut}: a row is a token that reads, a column the token that is read"
    return Section(
        "maps",
        "Attention maps" + ("" if found.checks is None else " beside their checked effect"),
        about=about,
        blocks=blocks,
    )


def _effect_map(found: Inspection, layer: int, head: int) -> list[HeatMap]:
    """Return a map of what the output loses when a head is replaced; none if it was not checked."""
    if found.checks is None:
        return []
    ways = [way for way in found.replacements if np.isfinite(effect_of(found, way, layer, head)["kl"])]
    if not ways:
        return []
    effects = [effect_of(found, way, layer, head) for way in ways]
    values = np.array([[one["kl"], one["kl_last"]] for one in effects])
    rows, title = tuple(WAYS[way] for way in ways), f"What the output loses without {layer}.{head}"
    return [HeatMap(title, rows, ("mean", "last"), values, "KL, bits: mean over tokens, last token", is_share=True)]


def _caption(found: Inspection, layer: int, head: int) -> str:
    """Return what the check says of a head, in words."""
    if found.checks is None:
        return f"Head {layer}.{head} was not checked: whether its pattern matters is not known."
    parts = []
    for way in found.replacements:
        of = effect_of(found, way, layer, head)
        if not np.isfinite(of["kl"]):
            parts.append(f"{WAYS[way]}: not defined on these texts")
            continue
        ends = f" [{kl(of['kl_low'])}, {kl(of['kl_high'])}]" if np.isfinite(of["kl_low"]) else ""
        parts.append(f"{WAYS[way]} {kl(of['kl'])}{ends} bits ({kl(of['kl_last'])} at the last token)")
    words = f"Head {layer}.{head}, KL of the output: {'; '.join(parts)}."
    least = least_effects(found)
    effect = _least(found, layer, head)
    if not np.isfinite(effect):
        return words
    if effect <= rounding(found):
        return f"{words} Not every replacement changes the output by more than rounding ({rounding(found):g} bits)."
    median = float(np.nanmedian(least))
    than = "less than" if effect < median else "as much as" if effect == median else "more than"
    last = min(effect_of(found, way, layer, head)["kl_last"] for way in found.replacements)
    return (
        f"{words} Whichever way it is replaced, the output changes by at least {kl(effect)} bits in the mean over "
        f"tokens, {than} with the median head ({kl(median)}). No single token need change as much: the last does by at "
        f"least {kl(last)} bits, and which token changes most was not recorded."
    )


def comparison_section(found: Inspection) -> Section:
    """Return the section on two texts: distances by site and span, and the heads whose patterns differ most."""
    assert found.comparison is not None  # for the reader of types: asked for only where there is one
    states, heads = found.comparison.states, found.comparison.heads
    sites, spans = tuple(dict.fromkeys(states["site"])), tuple(dict.fromkeys(states["span"]))[:_MOST_TOKENS]
    maps = []
    for column, label in (("relative_distance", "distance / mean of both norms"), ("cosine", "cosine of both states")):
        values = states[column].to_numpy(dtype=np.float64).reshape(len(sites), -1)[:, : len(spans)]
        maps.append(_site_map(label.capitalize(), sites, spans, values, label))
    blocks: list[Block] = [maps_figure(maps)]
    if heads is not None:
        columns, rows = differing_heads(heads, _MOST_HEADS)
        caption = "Heads whose patterns differ most: total variation distance, mean over queries and at its largest."
        blocks.append(Table(caption, columns, rows, source="inspection-against-heads.parquet"))
    blocks.append(Words("p", [COMPARISON_LIMIT]))
    return Section("against", "Two texts", about=f"Compared with “{found.comparison.text.text}”", blocks=blocks)


COMPARISON_LIMIT = (
    "Two texts differ in all that their words bring: a distance says where they are told apart, not by what. "
    "`probing patch` tests which difference the output follows. No lens reads these states here."
)
