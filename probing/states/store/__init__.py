"""Stores of hidden states: HDF5 files (shards) that are never changed. A shard is valid once a record of it, its commit
record, exists beside it.
"""

from probing.states.store.content import ShardContent, narrow
from probing.states.store.export import list_stores, store_info
from probing.states.store.file_ops import FileOps
from probing.states.store.format import ITEM_BYTES, STATE_TYPES
from probing.states.store.maintenance import collect, garbage, merge, remove, repair
from probing.states.store.reader import Store
from probing.states.store.views import RowTable
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
