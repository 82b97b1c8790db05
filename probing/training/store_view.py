"""Views that show a store as a store of other rows: what all such views share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class StoreView:
    """Base of views of a store: it takes over what does not depend on the rows.

    Attributes:
        identity: that of the store, with the view's own `rows`.
        sites, path, store_id, content_id, environment, inputs, unknown_pieces: those of the store.
    """

    def __init__(self, store: Any, rows: str) -> None:
        self._store = store
        self.identity = store.identity | {"extraction": store.identity["extraction"] | {"rows": rows}}
        self.sites, self.path = store.sites, store.path
        self.store_id, self.content_id = store.store_id, store.content_id
        self.environment = store.environment
        self.inputs, self.unknown_pieces = store.inputs, store.unknown_pieces

    def width(self, site: str) -> int:
        """Return the number of features at a site."""
        width: int = self._store.width(site)
        return width

    def _of_store(self, site: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return states `(N, D)` of rows of the store itself."""
        states: NDArray[np.float32] = self._store.read(site, rows)
        return states
