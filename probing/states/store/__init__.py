"""The activation store: computed states in immutable HDF5 shards, each of which is valid once its commit record
exists.
"""

from probing.states.store.content import ShardContent, narrow
from probing.states.store.export import list_stores, store_info
from probing.states.store.file_ops import FileOps
from probing.states.store.format import ITEM_BYTES, STATE_TYPES
from probing.states.store.maintenance import collect, garbage, merge, remove, repair
from probing.states.store.reader import RowTable, Store
from probing.states.store.writer import StoreWriter

__all__ = [
    "ITEM_BYTES",
    "STATE_TYPES",
    "FileOps",
    "RowTable",
    "ShardContent",
    "Store",
    "StoreWriter",
    "collect",
    "garbage",
    "list_stores",
    "merge",
    "narrow",
    "remove",
    "repair",
    "store_info",
]
