"""Defines `Site`, the name of a place in a model at which states are read. docs/store-format.md, "Sites", lists all
names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probing.errors import UnknownSite, unknown_name

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}(\.(0|[1-9][0-9]{0,3}))?")
_FEW = 3
_STREAMS = ("embed", "resid", "attn_out", "cross_out", "mlp_out", "heads", "final_norm")


@dataclass(frozen=True)
class Site:
    """Names a place in the computation at which states are read. The name `resid.6` has the stream `resid` and the
    layer 6; `embed` has no layer.

    `embed` is the token embedding alone. `resid.6` is the residual stream that enters block 6 (blocks are counted from
    0); in a model of 12 blocks, `resid.12` leaves the last block, before any final norm. `final_norm` is the output of
    that norm.
    """

    stream: str
    layer: int | None = None

    @classmethod
    def parse(cls, name: str) -> Site:
        """Return the site with a given name, which has the form `stream` or `stream.layer`.

        Raises:
            UnknownSite: the name does not have the form of a site.
        """
        if not _NAME.fullmatch(name):
            raise UnknownSite(
                f"{name!r} is not a site name", needed="a name such as resid.0, embed or final_norm", found=repr(name)
            )
        stream, _, layer = name.partition(".")
        return cls(stream, int(layer) if layer else None)

    def __str__(self) -> str:
        return self.stream if self.layer is None else f"{self.stream}.{self.layer}"

    @property
    def order(self) -> tuple[int, int, str]:
        """Sort key that puts sites in the order in which a forward pass reaches them."""
        rank = _STREAMS.index(self.stream) if self.stream in _STREAMS else len(_STREAMS)
        return rank, -1 if self.layer is None else self.layer, self.stream


def are_module_paths(patterns: str | Iterable[str]) -> bool:
    """Return whether every pattern is `name=module.path`, so that the model's blocks need not be found."""
    return all("=" in part for part in (patterns.split(",") if isinstance(patterns, str) else patterns))


def select_sites(patterns: str | Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return the available sites that match at least one of the shell-style patterns (comma-separated or a list), in
    site order.

    Raises:
        UnknownSite: a pattern matches nothing; the message names the nearest site.
    """
    wanted = [part.strip() for part in (patterns.split(",") if isinstance(patterns, str) else patterns)]
    known = sorted(available, key=lambda name: Site.parse(name).order)
    chosen: set[str] = set()
    for pattern in wanted:
        hits = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            streams = {f"{name.partition('.')[0]}.*" for name in known if "." in name} if "*" in pattern else set()
            raise unknown_name("site", pattern, streams or known, error=UnknownSite)
        chosen.update(hits)
    return tuple(name for name in known if name in chosen)


def shortly(sites: Sequence[str]) -> str:
    """Return up to three site names as a list, more of them in short form: `31 sites (resid.0 … resid.30)`."""
    if len(sites) <= _FEW:
        return ", ".join(sites) or "no site"
    return f"{len(sites)} sites ({sites[0]} … {sites[-1]})"
