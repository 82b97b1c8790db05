"""Charts of what a lens reads in one prompt, by site and position."""

from __future__ import annotations

from collections.abc import Sequence

from probing.reporting.blocks import Figure
from probing.reporting.charts import Chart, described, ink, layer, nominal, panel_chart, rounded, tip
from probing.reporting.panels import Curve, Panel, Point
from probing.results.lens import Trajectory

_COLOURS, _DOMAIN = ["#f4f8fb", "#0072b2"], [0.0, 1.0]


def trajectory_chart(one: Trajectory) -> Chart:
    """Return the chart of a prompt: the most probable token by site and position, coloured by its probability."""
    columns = [f"{k} {token}" for k, token in enumerate(one.tokens)]
    rows = []
    for s, site in enumerate(one.sites):
        for t, column in enumerate(columns):
            (token, share), *others = one.top[s][t]
            rows.append(
                {
                    "site": site,
                    "token": column,
                    "text": shortened(token, 8),
                    "value": rounded(share),
                    "ink": ink(_COLOURS, _DOMAIN, share),
                    "top": f"{token} {share:.2f}" + "".join(f", {name} {p:.2f}" for name, p in others),
                    "entropy": rounded(one.entropy[s][t]),
                    "kl": rounded(one.kl[s][t]),
                    "rank": rounded(one.rank_of_final[s][t]),
                }
            )
    scale = {"domain": _DOMAIN, "range": _COLOURS, "interpolate": "rgb"}
    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": 160, "format": ".1f"}
    colour = {"field": "value", "type": "quantitative", "title": "probability", "scale": scale, "legend": legend}
    axis = {"labelAngle": -40, "labelLimit": 90}
    encoding = {
        "x": nominal("token", sort=columns, title="token read", axis=axis),
        "y": nominal("site", sort=list(reversed(one.sites)), title=None, axis={"labelLimit": 90}),
        "tooltip": [
            tip("site"),
            tip("token", "token read"),
            tip("top", "most probable next"),
            tip("entropy", "entropy, bits", number=True),
            tip("kl", "KL to final, bits", number=True),
            tip("rank", "rank of final top", number=True),
        ],
    }
    of_text = {"condition": {"test": "datum.ink === '#ffffff'", "value": "#ffffff"}, "value": "#000000"}
    layers = [
        layer({"type": "rect", "stroke": "#ffffff", "strokeWidth": 0.5}, color=colour),
        layer({"type": "text", "fontSize": 9}, text=nominal("text"), color=of_text),
    ]
    return {
        "title": {"text": f"{one.lens}: the most probable token by site", "subtitle": shortened(one.prompt, 90)},
        "width": {"step": 58},
        "height": {"step": 18},
        "data": {"values": rows},
        "encoding": encoding,
        "layer": layers,
    }


def trajectory_caption(one: Trajectory) -> str:
    """Return what the chart shows."""
    cut = " Only the first tokens are shown." if one.is_cut else ""
    return (
        "Each column is a token that was read, each row a site, the last at the top; a cell is the token that the lens "
        f"finds most probable as the output there, full colour is probability 1.{cut}"
    )


def trajectory_words(one: Trajectory) -> str:
    """Return the top tokens after the last token, for readers who cannot see the chart."""
    return f"{one.lens}, last token: " + "; ".join(
        f"{site} {row[-1][0][0]} {row[-1][0][1]:.2f}" for site, row in zip(one.sites, one.top, strict=True)
    )


def prompt_curves(one: Trajectory) -> Figure:
    """Return curves over sites at the last token: entropy, KL and ranks."""
    sites = tuple(one.sites)

    def curve(name: str, values: Sequence[Sequence[float | None]], part: int) -> Curve:
        last = [(x, row[-1] if name != "rank of the true token" else row[-2]) for x, row in enumerate(values) if row]
        return Curve(name, "task", tuple(Point(x, float(v)) for x, v in last if v is not None), part)

    bits = (curve("entropy", one.entropy, 0), curve("KL(final ‖ lens)", one.kl, 1))
    ranks = [curve("rank of the final top token", one.rank_of_final, 0)]
    if len(one.tokens) > 1 and one.rank_of_true and one.rank_of_true[0][-2] is not None:
        ranks.append(curve("rank of the true token", one.rank_of_true, 1))
    panels = [
        Panel("At the last token", "bits", sites, bits, (), (0.0, 0.1), (-1e9, 1e9)),
        Panel("Ranks there (of the true token: one before)", "rank", sites, tuple(ranks), (), (1.0, 2.0), (0.0, 1e9)),
    ]
    return Figure([panel_chart(panel) for panel in panels], f"{one.lens}: {one.prompt}", described(panels))


def shortened(text: str, most: int = 40) -> str:
    """Return the text, cut to at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
