"""Vectors in a file that can be searched: an SQLite database with sqlite-vec in it.

Needs the extra `search`.
"""

try:
    import apsw as apsw
    import sqlite_vec as sqlite_vec
except ModuleNotFoundError as _exc:
    from aioembed.errors import MissingExtra

    raise MissingExtra(_exc.name or "sqlite-vec", "search") from _exc

from .index import EmbeddingIndex as EmbeddingIndex
from .records import Hit as Hit
from .records import SyncReport as SyncReport
