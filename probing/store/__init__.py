"""The activation store: states computed once, in immutable HDF5 shards, each valid by its commit record."""

from probing.store.content import ShardContent, narrow
from probing.store.file_ops import FileOps
from probing.store.format import ITEM_BYTES, STATE_TYPES
from probing.store.maintenance import collect, garbage, merge, remove, repair
from probing.store.moments import Moments
from probing.store.reader import RowTable, Store
from probing.store.summary import list_stores, store_info
from probing.store.writer import StoreWriter

__all__ = [
    "ITEM_BYTES", "STATE_TYPES", "FileOps", "Moments", "RowTable", "ShardContent", "Store", "StoreWriter", "collect",
    "garbage", "list_stores", "merge", "narrow", "remove", "repair", "store_info",
]  # fmt: skip
